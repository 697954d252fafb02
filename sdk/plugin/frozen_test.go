package plugin_test

import (
	"encoding/json"
	"errors"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"

	"github.com/holdfast-dr/holdfast/sdk"
	"github.com/holdfast-dr/holdfast/sdk/conformance"
	"github.com/holdfast-dr/holdfast/sdk/plugin"
	"github.com/holdfast-dr/holdfast/sdk/plugin/testdata/protocol1"
	"github.com/holdfast-dr/holdfast/sdk/sim"
)

// built compiles a program of this module and answers its path and checksum.
func built(t *testing.T, pkg string) (path, sum string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "holdfast-plugin-sim")
	build := exec.Command("go", "build", "-o", path, "github.com/holdfast-dr/holdfast/"+pkg)
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build %s: %v\n%s", pkg, err, out)
	}
	return path, sumOf(t, path)
}

// startDir starts a program on the simulated hypervisor in a directory.
type startDir func(settings json.RawMessage) (sdk.Platform, error)

// conforms runs the suite on a plugin that drives a simulated hypervisor.
func conforms(t *testing.T, start startDir) {
	if testing.Short() {
		t.Skip("the whole suite: not in -short")
	}
	conformance.Run(t, func(t *testing.T) conformance.Fixture {
		dir := t.TempDir()
		hv, err := sim.Open(dir)
		if err != nil {
			t.Fatal(err)
		}
		m, err := hv.CreateMachine(sim.MachineSpec{
			Name: "conformance", DiskBytes: []int64{4 << 20, 2<<20 + 512}, State: sdk.StateRunning, Space: "ours",
		})
		if err != nil {
			t.Fatal(err)
		}
		fresh := func() (sdk.Platform, error) {
			p, err := start(settings(t, map[string]any{"dir": dir}))
			if err == nil {
				t.Cleanup(func() { p.Close() })
			}
			return p, err
		}
		p, err := fresh()
		if err != nil {
			t.Fatal(err)
		}
		return conformance.Fixture{
			Platform: p, Fresh: fresh, Machine: m.ID,
			Write: func(disk sdk.DiskID, off int64, data []byte) error { return hv.WriteDisk(m.ID, disk, off, data) },
			Read:  hv.ReadDisk, Remove: hv.DeleteMachine, Objects: hv.Objects,
			Space: "ours", Foreign: "theirs", Epoch: 1,
		}
	})
}

// TestOldPluginServesTodaysHost has a plugin that was built when protocol 1 was
// frozen keep every promise of today that is not about a later ability.
func TestOldPluginServesTodaysHost(t *testing.T) {
	path, sum := built(t, "sdk/plugin/testdata/protocol1/plugin")
	d, err := plugin.Describe(t.Context(), path, sum)
	if err != nil {
		t.Fatal(err)
	}
	abilities := []sdk.Ability{sdk.AbilitySource, sdk.AbilityChangeTracker, sdk.AbilityTarget, sdk.AbilityPower}
	if d.Protocol != 1 || !slices.Equal(d.Abilities, abilities) {
		t.Errorf("described as protocol %d with %v", d.Protocol, d.Abilities)
	}
	conforms(t, func(settings json.RawMessage) (sdk.Platform, error) {
		p, err := plugin.Start(t.Context(), plugin.Launch{Path: path, SHA256: sum, Settings: settings})
		if err != nil {
			return nil, err
		}
		return p.Platform(), nil
	})
	t.Run("errors", func(t *testing.T) {
		p := start(t, plugin.Launch{Path: path, SHA256: sum, Settings: settings(t, map[string]any{"dir": t.TempDir()})})
		keepMeaning(t, p.Platform())
	})
}

// keepMeaning asks for an error of every sentinel.
func keepMeaning(t *testing.T, p sdk.Platform) {
	t.Helper()
	for _, code := range protocol1.Codes {
		_, err := p.Probe(t.Context(), sdk.Subject{Machine: sdk.MachineID("error " + code)})
		e, ok := errors.AsType[*sdk.Error](err)
		if !ok || !errors.Is(err, code.Sentinel()) || sdk.CodeOf(err) != code {
			t.Errorf("%s came as %v", code, err)
			continue
		}
		if e.Fault != sdk.FaultBackend || e.Hint != "ask for something else" || e.Progress != 0.25 || e.After != 1500e6 {
			t.Errorf("%s came as %+v", code, e)
		}
		if want := "probe: on request: " + code.Sentinel().Error(); err.Error() != want {
			t.Errorf("%s says %q, want %q", code, err, want)
		}
	}
}

// TestTodaysPluginServesOldHost has a host that was built when protocol 1 was
// frozen drive a plugin of today.
func TestTodaysPluginServesOldHost(t *testing.T) {
	path, sum := built(t, "plugins/sim")
	if _, err := protocol1.Describe(t.Context(), path, sum); err != nil {
		t.Fatal(err)
	}
	conforms(t, func(settings json.RawMessage) (sdk.Platform, error) {
		return oldHost(t, protocol1.Launch{Path: path, SHA256: sum, Settings: settings})
	})
	t.Run("errors", func(t *testing.T) {
		l := launch(t, map[string]any{"dir": t.TempDir()})
		p, err := oldHost(t, protocol1.Launch{Path: l.Path, SHA256: l.SHA256, Settings: l.Settings})
		if err != nil {
			t.Fatal(err)
		}
		defer p.Close()
		for _, form := range errorForms() {
			_, err := p.Probe(t.Context(), sdk.Subject{Machine: sdk.MachineID("error " + form.name)})
			if err == nil {
				t.Errorf("%s: no error", form.name)
				continue
			}
			for _, code := range protocol1.Codes {
				if want := errors.Is(form.err, code.Sentinel()); errors.Is(err, code.Sentinel()) != want {
					t.Errorf("%s: errors.Is(%v, %v) is %t at an old host, %t at the plugin", form.name, err, code.Sentinel(), !want, want)
				}
			}
			if got, want := sdk.HintOf(err), sdk.HintOf(form.err); got != want {
				t.Errorf("%s: hint %q, want %q", form.name, got, want)
			}
		}
	})
}

func oldHost(t *testing.T, l protocol1.Launch) (sdk.Platform, error) {
	p, err := protocol1.Start(t.Context(), l)
	if err != nil {
		return nil, err
	}
	return p.Platform(), nil
}
