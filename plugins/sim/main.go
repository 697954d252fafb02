// Command holdfast-plugin-sim drives a simulated hypervisor that lives in a
// directory. Started by holdfast, it is a plugin. Started by hand, it is the
// hypervisor's operator and its guests:
//
//	holdfast-plugin-sim create DIR NAME SIZE...     a machine with disks of SIZE (K, M, G, T)
//	holdfast-plugin-sim list DIR                    machines and their disks
//	holdfast-plugin-sim write DIR MACHINE DISK OFFSET [TEXT]   TEXT, or standard input
//	holdfast-plugin-sim fill DIR MACHINE DISK OFFSET LENGTH SEED   bytes that do not compress
//	holdfast-plugin-sim read DIR MACHINE DISK OFFSET LENGTH
//	holdfast-plugin-sim hash DIR MACHINE [DISK]     SHA-256 of disks
//	holdfast-plugin-sim power DIR MACHINE off|running|paused
//	holdfast-plugin-sim delete DIR MACHINE
//	holdfast-plugin-sim lose-marks DIR MACHINE      as a storage migration would
//	holdfast-plugin-sim objects DIR                 everything that a plugin can leave behind
//	holdfast-plugin-sim faults DIR [JSON]           what goes wrong from now on; none without JSON
//	holdfast-plugin-sim hook DIR VERB...            what "holdfast plugin verify --hook" asks for
//	holdfast-plugin-sim describe                    what this plugin is, as JSON
package main

import (
	"context"
	"fmt"
	"os"
	"slices"

	"github.com/holdfast-dr/holdfast/sdk"
	"github.com/holdfast-dr/holdfast/sdk/plugin"
	"github.com/holdfast-dr/holdfast/sdk/sim"
)

// version is set when the program is built.
var version = "dev"

// config is what an endpoint of this plugin is configured with.
type config struct {
	Dir    string     `json:"dir" help:"directory in which the simulated hypervisor lives" required:"true"`
	Breach sim.Breach `json:"breach" help:"rule of the contract to break, to test what tests plugins"`
	sim.Settings
}

func open(_ context.Context, c any) (sdk.Platform, error) {
	config := c.(*config)
	hypervisor, err := sim.Open(config.Dir)
	if err != nil {
		return nil, sdk.Errorf(sdk.ErrUnavailable, sdk.FaultBackend, "open the simulated hypervisor: %v", err)
	}
	if config.Breach != "" && !slices.Contains(sim.Breaches(), config.Breach) {
		return nil, sdk.Errorf(sdk.ErrInvalid, sdk.FaultHost, "there is no breach %q", config.Breach).
			WithHint("breaches: %v", sim.Breaches())
	}
	return hypervisor.Connect(config.Settings).Break(config.Breach), nil
}

func main() {
	if len(os.Args) > 2 {
		if err := control(os.Args[1], os.Args[2:], os.Stdin, os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, "holdfast-plugin-sim:", err)
			os.Exit(1)
		}
		return
	}
	plugin.Serve(plugin.Author{
		Name: "sim", Version: version,
		Config: &config{}, Type: (*sim.Platform)(nil), Open: open,
		HostUser: true, // the simulated hypervisor's directory is its operator's
	})
}
