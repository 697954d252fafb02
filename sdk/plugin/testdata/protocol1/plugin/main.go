// Command plugin is a plugin of the day on which protocol 1 was frozen. It
// drives the simulated hypervisor.
package main

import (
	"context"
	"fmt"

	"github.com/holdfast-dr/holdfast/sdk"
	"github.com/holdfast-dr/holdfast/sdk/plugin/testdata/protocol1"
	"github.com/holdfast-dr/holdfast/sdk/sim"
)

type config struct {
	Dir string `json:"dir" help:"directory in which the simulated hypervisor lives" required:"true"`
	sim.Settings
}

// platform answers the probe of a machine called "error CODE" with that error.
type platform struct{ *sim.Platform }

func (p platform) Probe(ctx context.Context, subject sdk.Subject) (sdk.Report, error) {
	for _, code := range protocol1.Codes {
		if subject.Machine == sdk.MachineID("error "+code) {
			e := sdk.Errorf(code.Sentinel(), sdk.FaultBackend, "on request").WithHint("ask for something else")
			e.Progress, e.After = 0.25, 1500e6
			return sdk.Report{}, fmt.Errorf("probe: %w", e)
		}
	}
	return p.Platform.Probe(ctx, subject)
}

func open(_ context.Context, c any) (sdk.Platform, error) {
	config := c.(*config)
	hypervisor, err := sim.Open(config.Dir)
	if err != nil {
		return nil, sdk.Errorf(sdk.ErrUnavailable, sdk.FaultBackend, "open the simulated hypervisor: %v", err)
	}
	return platform{hypervisor.Connect(config.Settings)}, nil
}

func main() {
	protocol1.Serve(protocol1.Author{
		Name: "sim", Version: "1.0.0", Config: &config{}, Type: (*platform)(nil), Open: open,
	})
}
