package conformance_test

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/sdk"
	"github.com/holdfast-dr/holdfast/sdk/conformance"
	"github.com/holdfast-dr/holdfast/sdk/plugin"
	"github.com/holdfast-dr/holdfast/sdk/sim"
)

// fixture is one of a simulated hypervisor. open gives a platform of a fresh
// process, or of what stands for one.
func fixture(t *testing.T, hv *sim.Hypervisor, open func() (sdk.Platform, error)) conformance.Fixture {
	t.Helper()
	m, err := hv.CreateMachine(sim.MachineSpec{
		Name: "conformance", DiskBytes: []int64{4 << 20, 2<<20 + 512}, State: sdk.StateRunning, Space: "ours",
	})
	if err != nil {
		t.Fatal(err)
	}
	p, err := open()
	if err != nil {
		t.Fatal(err)
	}
	return conformance.Fixture{
		Platform: p, Fresh: open, Machine: m.ID,
		Write: func(disk sdk.DiskID, off int64, data []byte) error { return hv.WriteDisk(m.ID, disk, off, data) },
		Read:  hv.ReadDisk, Remove: hv.DeleteMachine, Objects: hv.Objects,
		Draft: sdk.DraftSpec{Machine: sdk.Machine{
			Name: "new", CPUs: 2, MemoryBytes: 1 << 30,
			NICs: []sdk.NIC{{MAC: "52:54:00:aa:bb:cc", Network: "default", Model: "virtio"}},
		}},
		Space: "ours", Foreign: "theirs", Epoch: 1,
	}
}

// variants are the ways in which a back-end may honestly differ.
var variants = map[string]sim.Settings{
	"plain":      {},
	"sequential": {Shape: sdk.ShapeSequential},
	"no quiesce": {Quiesce: sdk.QuiesceNone},
	"pending":    {Faults: pending()},
	"source":     {Without: []sdk.Ability{sdk.AbilityChangeTracker, sdk.AbilityTarget, sdk.AbilityPower}},
	"target":     {Without: []sdk.Ability{sdk.AbilitySource, sdk.AbilityChangeTracker, sdk.AbilityPower}},
}

func pending() []sim.Fault {
	var faults []sim.Fault
	for _, call := range []string{"Snapshot", "EndSnapshot", "ReleaseMark", "CreateDraft", "CommitDraft", "AbortDraft", "Start", "Stop"} {
		faults = append(faults, sim.Fault{Call: call, Action: sim.ActionPending, Times: 1})
	}
	return faults
}

func TestInMemory(t *testing.T) {
	for name, settings := range variants {
		t.Run(name, func(t *testing.T) {
			conformance.Run(t, func(t *testing.T) conformance.Fixture {
				hv := sim.New()
				return fixture(t, hv, func() (sdk.Platform, error) { return hv.Connect(settings), nil })
			})
		})
	}
}

func author(hv *sim.Hypervisor, settings sim.Settings) plugin.Author {
	return plugin.Author{
		Name: "sim", Version: "test", Type: (*sim.Platform)(nil),
		Open: func(context.Context, any) (sdk.Platform, error) { return hv.Connect(settings), nil },
	}
}

func TestOverGRPC(t *testing.T) {
	for name, settings := range variants {
		t.Run(name, func(t *testing.T) {
			conformance.Run(t, func(t *testing.T) conformance.Fixture {
				hv := sim.New()
				return fixture(t, hv, func() (sdk.Platform, error) {
					p, err := plugin.Local(context.Background(), author(hv, settings), plugin.Launch{})
					if err != nil {
						return nil, err
					}
					t.Cleanup(func() { p.Close() })
					return p.Platform(), nil
				})
			})
		})
	}
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
		return fixture(t, hv, func() (sdk.Platform, error) {
			p, err := plugin.Start(context.Background(), plugin.Launch{Path: path, SHA256: sum, Settings: settings})
			if err != nil {
				return nil, err
			}
			t.Cleanup(func() { p.Close() })
			return p.Platform(), nil
		})
	})
}

// failed lists the checks that found a problem.
func failed(t *testing.T, f conformance.Fixture) []string {
	t.Helper()
	names := []string{}
	conformance.Verify(t.Context(), f, func(r conformance.Result) {
		if len(r.Problems) > 0 {
			names = append(names, r.Check)
		}
	})
	return names
}

// TestBrokenPluginsAreCaught breaks one promise at a time.
func TestBrokenPluginsAreCaught(t *testing.T) {
	always := func(call string, action sim.Action) []sim.Fault {
		return []sim.Fault{{Call: call, Action: action, Times: -1}}
	}
	for _, test := range []struct {
		name     string
		settings sim.Settings
		broken   func(*sim.Hypervisor, *sim.Platform) sdk.Platform
		want     []string // among the checks that fail
	}{
		{name: "tracker lies", settings: sim.Settings{Faults: always("Changed", sim.ActionLie)},
			want: []string{"change-tracker/changed-is-complete", "change-tracker/failed-run-keeps-the-mark"}},
		{name: "call panics", settings: sim.Settings{Faults: always("CreateDraft", sim.ActionPanic)},
			want: []string{"target/draft-becomes-a-machine"}},
		{name: "everything is new", broken: func(_ *sim.Hypervisor, p *sim.Platform) sdk.Platform { return &forgetful{Platform: p} },
			want: []string{"source/snapshot-repeats", "target/repeats"}},
		{name: "epochs are ignored", broken: func(_ *sim.Hypervisor, p *sim.Platform) sdk.Platform { return &unfenced{Platform: p} },
			want: []string{"source/older-claim-is-fenced", "target/older-claim-is-fenced", "power/older-claim-is-fenced"}},
		{name: "spaces are ignored", broken: func(_ *sim.Hypervisor, p *sim.Platform) sdk.Platform { return &spaceless{Platform: p} },
			want: []string{"target/foreign-space-is-denied", "power/foreign-space-is-denied"}},
		{name: "the live disk is read", broken: func(hv *sim.Hypervisor, p *sim.Platform) sdk.Platform { return &torn{Platform: p, hv: hv} },
			want: []string{"source/snapshot-stays-as-it-was"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			hv := sim.New()
			f := fixture(t, hv, func() (sdk.Platform, error) {
				p := hv.Connect(test.settings)
				if test.broken != nil {
					return test.broken(hv, p), nil
				}
				return p, nil
			})
			got := failed(t, f)
			for _, name := range test.want {
				if !slices.Contains(got, name) {
					t.Errorf("check %s passed; these failed: %s", name, strings.Join(got, ", "))
				}
			}
		})
	}
}

// The broken ones have the abilities of their Go type, through these.

type forgetful struct {
	*sim.Platform
	calls int
}

func (p *forgetful) As(target any) bool { return as(p, target) }

func (p *forgetful) forget(op sdk.Op) sdk.Op {
	p.calls++
	op.ID = fmt.Sprintf("%s/%p/%d", op.ID, p, p.calls)
	return op
}

func (p *forgetful) Snapshot(ctx context.Context, op sdk.Op, req sdk.SnapshotRequest) (sdk.Snapshot, error) {
	return p.Platform.Snapshot(ctx, p.forget(op), req)
}

func (p *forgetful) CreateDraft(ctx context.Context, op sdk.Op, spec sdk.DraftSpec) (sdk.Draft, error) {
	return p.Platform.CreateDraft(ctx, p.forget(op), spec)
}

type unfenced struct{ *sim.Platform }

func (p *unfenced) As(target any) bool { return as(p, target) }

func (p *unfenced) Snapshot(ctx context.Context, op sdk.Op, req sdk.SnapshotRequest) (sdk.Snapshot, error) {
	op.Epoch = 1 << 40
	return p.Platform.Snapshot(ctx, op, req)
}

func (p *unfenced) EndSnapshot(ctx context.Context, op sdk.Op, snap sdk.Snapshot, keep bool) error {
	op.Epoch = 1 << 40
	return p.Platform.EndSnapshot(ctx, op, snap, keep)
}

func (p *unfenced) OpenDraftDisk(ctx context.Context, op sdk.Op, draft sdk.Draft, disk sdk.DiskID) (sdk.BlockWriter, error) {
	op.Epoch = 1 << 40
	return p.Platform.OpenDraftDisk(ctx, op, draft, disk)
}

func (p *unfenced) Start(ctx context.Context, op sdk.Op, id sdk.MachineID) error {
	op.Epoch = 1 << 40
	return p.Platform.Start(ctx, op, id)
}

func (p *unfenced) Stop(ctx context.Context, op sdk.Op, id sdk.MachineID, _ time.Duration) error {
	op.Epoch = 1 << 40
	return p.Platform.Stop(ctx, op, id, 0)
}

type spaceless struct{ *sim.Platform }

func (p *spaceless) As(target any) bool { return as(p, target) }

func (p *spaceless) OpenDraftDisk(ctx context.Context, op sdk.Op, draft sdk.Draft, disk sdk.DiskID) (sdk.BlockWriter, error) {
	op.Space = ""
	return p.Platform.OpenDraftDisk(ctx, op, draft, disk)
}

func (p *spaceless) Start(ctx context.Context, op sdk.Op, id sdk.MachineID) error {
	op.Space = ""
	return p.Platform.Start(ctx, op, id)
}

// torn reads disks as they are now.
type torn struct {
	*sim.Platform
	hv *sim.Hypervisor
}

func (p *torn) As(target any) bool { return as(p, target) }

func (p *torn) OpenDisk(ctx context.Context, snap sdk.Snapshot, disk sdk.DiskID) (sdk.BlockReader, error) {
	r, err := p.Platform.OpenDisk(ctx, snap, disk)
	if err != nil {
		return nil, err
	}
	return &tornReader{BlockReader: r, hv: p.hv, machine: snap.Machine.ID, disk: disk}, nil
}

type tornReader struct {
	sdk.BlockReader
	hv      *sim.Hypervisor
	machine sdk.MachineID
	disk    sdk.DiskID
}

func (r *tornReader) ReadAt(data []byte, off int64) (int, error) {
	n, err := r.BlockReader.ReadAt(data, off)
	if n > 0 {
		if err := r.hv.ReadDisk(r.machine, r.disk, off, data[:n]); err != nil {
			return 0, err
		}
	}
	return n, err
}

func as[P sdk.Platform](p P, target any) bool {
	switch to := target.(type) {
	case *sdk.Source:
		*to = any(p).(sdk.Source)
	case *sdk.ChangeTracker:
		*to = any(p).(sdk.ChangeTracker)
	case *sdk.Target:
		*to = any(p).(sdk.Target)
	case *sdk.Power:
		*to = any(p).(sdk.Power)
	default:
		return false
	}
	return true
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
