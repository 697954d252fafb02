package plugin_test

import (
	"context"
	"iter"

	"github.com/holdfast-dr/holdfast/sdk"
	"github.com/holdfast-dr/holdfast/sdk/plugin"
)

type mineConfig struct {
	URI      string `json:"uri" help:"where the back-end is" required:"true"`
	Password string `json:"password" help:"of the user in the URI" secret:"true"`
}

// mine is a platform without abilities: it shows its machines.
type mine struct{ uri string }

func (m *mine) Machines(context.Context) iter.Seq2[sdk.Machine, error] {
	return func(yield func(sdk.Machine, error) bool) {
		yield(sdk.Machine{ID: "1", Name: "only one", State: sdk.StateOff}, nil)
	}
}

func (m *mine) Probe(_ context.Context, subject sdk.Subject) (sdk.Report, error) {
	if subject.Machine != "" && subject.Machine != "1" || subject.Disk != "" {
		return sdk.Report{}, sdk.Errorf(sdk.ErrNotFound, sdk.FaultBackend, "machine %s", subject.Machine)
	}
	return sdk.Report{Product: "mine at " + m.uri}, nil
}

func (m *mine) Cancel(context.Context, string) error { return nil }
func (m *mine) Close() error                         { return nil }

// The main function of a plugin.
func ExampleServe() {
	plugin.Serve(plugin.Author{
		Name: "mine", Version: "1.0.0", Config: &mineConfig{}, Type: (*mine)(nil),
		Open: func(_ context.Context, c any) (sdk.Platform, error) {
			return &mine{uri: c.(*mineConfig).URI}, nil
		},
	})
}
