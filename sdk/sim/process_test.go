package sim_test

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/holdfast-dr/holdfast/sdk"
	"github.com/holdfast-dr/holdfast/sdk/sim"
)

func TestKilledProcessDoesNothingMore(t *testing.T) {
	hv := sim.New()
	m, err := hv.CreateMachine(sim.MachineSpec{Name: "db", DiskBytes: []int64{block}})
	if err != nil {
		t.Fatal(err)
	}
	p := hv.Connect(sim.Settings{})
	draft, err := p.CreateDraft(t.Context(), sdk.Op{ID: "d"}, sdk.DraftSpec{Machine: sdk.Machine{
		Name: "new", Disks: []sdk.Disk{{ID: "vda", SizeBytes: block}},
	}})
	if err != nil {
		t.Fatal(err)
	}
	w, err := p.OpenDraftDisk(t.Context(), sdk.Op{ID: "o"}, draft, "vda")
	if err != nil {
		t.Fatal(err)
	}
	p.Suspend()
	done := make(chan error)
	go func() { done <- p.Start(t.Context(), sdk.Op{ID: "s"}, m.ID) }()
	go func() { _, err := w.WriteAt([]byte("x"), 0); done <- err }()
	p.Kill()
	for range 2 {
		if err := <-done; err == nil {
			t.Error("a killed process did what it was asked for while it was stopped")
		}
	}
	p.Resume()
	if err := p.Start(t.Context(), sdk.Op{ID: "s"}, m.ID); err == nil {
		t.Error("a killed process was woken up")
	}
	if now, err := hv.Find("db"); err != nil || now.State != sdk.StateOff {
		t.Errorf("the machine is %s, %v", now.State, err)
	}
}

func TestStoppedProcessGoesOn(t *testing.T) {
	hv := sim.New()
	m, err := hv.CreateMachine(sim.MachineSpec{Name: "db", DiskBytes: []int64{block}})
	if err != nil {
		t.Fatal(err)
	}
	p := hv.Connect(sim.Settings{})
	p.Suspend()
	p.Suspend()
	done := make(chan error)
	go func() { done <- p.Start(t.Context(), sdk.Op{ID: "s", Epoch: 1}, m.ID) }()
	// Somebody else takes the machine over meanwhile.
	if err := hv.Connect(sim.Settings{}).Stop(t.Context(), sdk.Op{ID: "t", Epoch: 2}, m.ID, 0); err != nil {
		t.Fatal(err)
	}
	p.Resume()
	p.Resume()
	if err := <-done; !errors.Is(err, sdk.ErrFenced) {
		t.Errorf("start by a process that woke up late: %v, want ErrFenced", err)
	}
}

// TestOpenSweepsWhatTheDeadLeft puts a file where a process that was killed in
// the middle of a change would leave it.
func TestOpenSweepsWhatTheDeadLeft(t *testing.T) {
	dir := t.TempDir()
	hv, err := sim.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	m, err := hv.CreateMachine(sim.MachineSpec{Name: "db", DiskBytes: []int64{block, 0}})
	if err != nil {
		t.Fatal(err)
	}
	p := hv.Connect(sim.Settings{})
	if _, err := p.Snapshot(t.Context(), sdk.Op{ID: "s"}, sdk.SnapshotRequest{Machine: m.ID}); err != nil {
		t.Fatal(err)
	}
	if _, err := p.CreateDraft(t.Context(), sdk.Op{ID: "d"}, sdk.DraftSpec{Machine: sdk.Machine{
		Name: "new", Disks: []sdk.Disk{{ID: "vda", SizeBytes: block}},
	}}); err != nil {
		t.Fatal(err)
	}
	before, err := hv.Objects()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "files", "disk-of-the-dead.img"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	again, err := sim.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	after, err := again.Objects()
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(before, after) {
		t.Errorf("objects before and after a fresh process: %q, %q", before, after)
	}
}

func TestDisksAreNamedAsInAGuest(t *testing.T) {
	sizes := make([]int64, 28)
	m, err := sim.New().CreateMachine(sim.MachineSpec{Name: "wide", DiskBytes: sizes})
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range map[int]sdk.DiskID{0: "vda", 25: "vdz", 26: "vdaa", 27: "vdab"} {
		if m.Disks[i].ID != want {
			t.Errorf("disk %d is called %s, want %s", i, m.Disks[i].ID, want)
		}
	}
}
