package conformance_test

import (
	"cmp"
	"context"
	"encoding/json"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/holdfast-dr/holdfast/sdk"
	"github.com/holdfast-dr/holdfast/sdk/conformance"
	"github.com/holdfast-dr/holdfast/sdk/plugin"
	"github.com/holdfast-dr/holdfast/sdk/sim"
)

// fixture is one of a simulated hypervisor. open gives a process, or what
// stands for one.
func fixture(t *testing.T, hv *sim.Hypervisor, sizes []int64, open func() (conformance.Process, error)) conformance.Fixture {
	t.Helper()
	m, err := hv.CreateMachine(sim.MachineSpec{
		Name: "conformance", DiskBytes: sizes, State: sdk.StateRunning, Space: "ours",
	})
	if err != nil {
		t.Fatal(err)
	}
	p, err := open()
	if err != nil {
		t.Fatal(err)
	}
	return conformance.Fixture{
		Platform: p.Platform, Process: open, Machine: m.ID,
		Fresh: func() (sdk.Platform, error) {
			p, err := open()
			return p.Platform, err
		},
		Write: func(disk sdk.DiskID, off int64, data []byte) error { return hv.WriteDisk(m.ID, disk, off, data) },
		Read:  hv.ReadDisk, Remove: hv.DeleteMachine, Objects: hv.Objects, WriteInstance: hv.WriteDisk,
		Draft: sdk.DraftSpec{Machine: sdk.Machine{
			Name: "new", CPUs: 2, MemoryBytes: 1 << 30,
			NICs: []sdk.NIC{{MAC: "52:54:00:aa:bb:cc", Network: "default", Model: "virtio"}},
		}},
		Provoke: func(code sdk.Code) error {
			return hv.SetFaults(sim.Fault{Call: "Probe", Action: sim.ActionError, Code: code, Hint: "on request", Fault: sdk.FaultBackend})
		},
		Space: "ours", Foreign: "theirs", Epoch: 1,
	}
}

// The sizes of a machine's disks, in bytes: the smallest that will do, and
// those of which a half can be read.
var (
	small = []int64{1 << 20, 1<<20 + 512}
	large = []int64{4 << 20, 2<<20 + 512}
)

// signals are what stands for signals to a simulated process.
func signals(p *sim.Platform, face sdk.Platform, end func()) conformance.Process {
	return conformance.Process{
		Platform: face,
		Kill:     func() error { p.Kill(); end(); return nil },
		Suspend:  func() error { p.Suspend(); return nil },
		Resume:   func() error { p.Resume(); return nil },
	}
}

// variants are the ways in which a back-end may honestly differ.
var variants = map[string]sim.Settings{
	"plain":      {},
	"few points": {MaxPoints: 5},
	"sequential": {Shape: sdk.ShapeSequential},
	"no quiesce": {Quiesce: sdk.QuiesceNone},
	"pending":    {Faults: pending()},
	"source":     {Without: []sdk.Ability{sdk.AbilityChangeTracker, sdk.AbilityTarget, sdk.AbilityPower}},
	"target":     {Without: []sdk.Ability{sdk.AbilitySource, sdk.AbilityChangeTracker, sdk.AbilityPower}},
}

func pending() []sim.Fault {
	var faults []sim.Fault
	for _, call := range []string{
		"Snapshot", "EndSnapshot", "ReleaseMark", "CreateDraft", "CommitDraft", "AbortDraft", "Start", "Stop",
		"CreateReplica", "DraftPoint", "CommitPoint", "AbortPoint", "HoldPoint", "ReleasePoint", "RemovePoint", "RemoveReplica",
		"Activate", "Deactivate", "Finalize", "Reverse", "CreateNetwork", "RemoveNetwork", "SetLimits",
	} {
		faults = append(faults, sim.Fault{Call: call, Action: sim.ActionPending, Times: 1})
	}
	return faults
}

func TestInMemory(t *testing.T) {
	for name, settings := range variants {
		t.Run(name, func(t *testing.T) {
			conformance.Run(t, func(t *testing.T) conformance.Fixture { return inMemory(t, settings, "") })
		})
	}
}

func inMemory(t *testing.T, settings sim.Settings, broken sim.Breach) conformance.Fixture {
	hv := sim.New()
	return fixture(t, hv, small, func() (conformance.Process, error) {
		p := hv.Connect(settings)
		return signals(p, p.Break(broken), func() {}), nil
	})
}

func TestOverGRPC(t *testing.T) {
	for name, settings := range variants {
		t.Run(name, func(t *testing.T) {
			conformance.Run(t, func(t *testing.T) conformance.Fixture { return overGRPC(t, settings, "") })
		})
	}
}

func overGRPC(t *testing.T, settings sim.Settings, broken sim.Breach) conformance.Fixture {
	hv, wire := sim.New(), new(conformance.Wire)
	f := fixture(t, hv, large, func() (conformance.Process, error) {
		p := hv.Connect(settings)
		author := plugin.Author{
			Name: "sim", Version: "test", Type: (*sim.Platform)(nil),
			Open: func(context.Context, any) (sdk.Platform, error) { return p.Break(broken), nil },
		}
		local, err := plugin.Local(context.Background(), author, plugin.Launch{WrapData: wire.Wrap})
		if err != nil {
			return conformance.Process{}, err
		}
		t.Cleanup(func() { local.Close() })
		return signals(p, local.Platform(), func() { local.Close() }), nil
	})
	f.Wire = wire
	return f
}

// TestBinary runs the program that users have, a fresh process for each
// platform.
func TestBinary(t *testing.T) {
	path := filepath.Join(t.TempDir(), "holdfast-plugin-sim")
	build := exec.Command("go", "build", "-o", path, "github.com/holdfast-dr/holdfast/plugins/sim")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build the plugin: %v\n%s", err, out)
	}
	sum, err := plugin.Checksum(path)
	if err != nil {
		t.Fatal(err)
	}
	conformance.Run(t, func(t *testing.T) conformance.Fixture {
		dir := t.TempDir()
		hv, err := sim.Open(dir)
		if err != nil {
			t.Fatal(err)
		}
		settings, err := json.Marshal(map[string]string{"dir": dir})
		if err != nil {
			t.Fatal(err)
		}
		wire := new(conformance.Wire)
		f := fixture(t, hv, large, func() (conformance.Process, error) {
			p, err := plugin.Start(context.Background(), plugin.Launch{Path: path, SHA256: sum, Settings: settings, WrapData: wire.Wrap})
			if err != nil {
				return conformance.Process{}, err
			}
			t.Cleanup(func() { p.Close() })
			return conformance.Control(p), nil
		})
		f.Wire = wire
		return f
	})
}

// TestChecksHaveNames keeps the list fit for a table and for a flag that picks
// one.
func TestChecksHaveNames(t *testing.T) {
	seen := make(map[string]bool)
	for _, c := range conformance.Checks() {
		ability, _, ok := strings.Cut(c.Name, "/")
		if !ok || seen[c.Name] || ability != cmp.Or(string(c.Ability), "platform") {
			t.Errorf("check %q of ability %q", c.Name, c.Ability)
		}
		seen[c.Name] = true
	}
}
