package sim_test

import (
	"bytes"
	"context"
	"errors"
	"iter"
	"math/rand/v2"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/holdfast-dr/holdfast/sdk"
	"github.com/holdfast-dr/holdfast/sdk/sim"
)

const (
	kib   = 1 << 10
	block = 64 * kib
)

// each runs a test on a hypervisor in memory and on one in a directory. fresh
// is a connection that shares nothing with any other but the hypervisor.
func each(t *testing.T, test func(t *testing.T, hv *sim.Hypervisor, fresh func() *sim.Platform)) {
	t.Run("memory", func(t *testing.T) {
		hv := sim.New()
		test(t, hv, func() *sim.Platform { return hv.Connect(sim.Settings{}) })
	})
	t.Run("directory", func(t *testing.T) {
		dir := t.TempDir()
		hv, err := sim.Open(dir)
		if err != nil {
			t.Fatal(err)
		}
		test(t, hv, func() *sim.Platform {
			again, err := sim.Open(dir)
			if err != nil {
				t.Fatal(err)
			}
			return again.Connect(sim.Settings{})
		})
	})
}

func create(t *testing.T, hv *sim.Hypervisor, spec sim.MachineSpec) sdk.Machine {
	t.Helper()
	m, err := hv.CreateMachine(spec)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func write(t *testing.T, hv *sim.Hypervisor, m sdk.Machine, disk int, off int64, data []byte) {
	t.Helper()
	if err := hv.WriteDisk(m.ID, m.Disks[disk].ID, off, data); err != nil {
		t.Fatal(err)
	}
}

func collect[T any](t *testing.T, seq iter.Seq2[T, error]) []T {
	t.Helper()
	var all []T
	for v, err := range seq {
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, v)
	}
	return all
}

func read(t *testing.T, p *sim.Platform, snap sdk.Snapshot, disk sdk.DiskID) []byte {
	t.Helper()
	r, err := p.OpenDisk(t.Context(), snap, disk)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	data := make([]byte, r.Size())
	if _, err := r.ReadAt(data, 0); err != nil {
		t.Fatal(err)
	}
	return data
}

func op(id string) sdk.Op { return sdk.Op{ID: id, Epoch: 1} }

func TestSnapshotShowsOneMomentOfAllDisks(t *testing.T) {
	each(t, func(t *testing.T, hv *sim.Hypervisor, fresh func() *sim.Platform) {
		m := create(t, hv, sim.MachineSpec{Name: "db", DiskBytes: []int64{512 * kib, 300 * kib}})
		write(t, hv, m, 0, 100, []byte("first"))
		write(t, hv, m, 1, 299*kib, []byte("second"))
		snap, err := fresh().Snapshot(t.Context(), op("s1"), sdk.SnapshotRequest{Machine: m.ID})
		if err != nil {
			t.Fatal(err)
		}
		var want [2][]byte
		for i, d := range m.Disks {
			want[i] = read(t, fresh(), snap, d.ID)
			write(t, hv, m, i, 0, bytes.Repeat([]byte{0xee}, 300*kib))
		}
		if !bytes.Contains(want[0], []byte("first")) || !bytes.Contains(want[1], []byte("second")) {
			t.Fatal("the snapshot lacks what was written before it")
		}
		for i, d := range m.Disks {
			if got := read(t, fresh(), snap, d.ID); !bytes.Equal(got, want[i]) {
				t.Errorf("disk %d of the snapshot changed while it was open", i)
			}
		}
	})
}

func TestExtentsAgreeWithBytes(t *testing.T) {
	each(t, func(t *testing.T, hv *sim.Hypervisor, fresh func() *sim.Platform) {
		size := int64(10*block + 512)
		m := create(t, hv, sim.MachineSpec{Name: "db", DiskBytes: []int64{size}})
		write(t, hv, m, 0, 2*block, bytes.Repeat([]byte{1}, 2*block))
		snap, err := fresh().Snapshot(t.Context(), op("s1"), sdk.SnapshotRequest{Machine: m.ID})
		if err != nil {
			t.Fatal(err)
		}
		write(t, hv, m, 0, 3*block, bytes.Repeat([]byte{2}, 4*block))
		r, err := fresh().OpenDisk(t.Context(), snap, m.Disks[0].ID)
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		got := collect(t, r.Extents(t.Context(), 0, size))
		want := []sdk.Extent{
			{Offset: 0, Length: 2 * block, Zero: true},
			{Offset: 2 * block, Length: 2 * block},
			{Offset: 4 * block, Length: size - 4*block, Zero: true},
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("extents (-want +got):\n%s", diff)
		}
		part := collect(t, r.Extents(t.Context(), 2*block+512, block))
		if diff := cmp.Diff([]sdk.Extent{{Offset: 2*block + 512, Length: block}}, part); diff != "" {
			t.Errorf("extents of a part (-want +got):\n%s", diff)
		}
	})
}

// TestChangedIsExact writes at random between and during snapshots and
// compares Changed with what differs in the bytes.
func TestChangedIsExact(t *testing.T) {
	each(t, func(t *testing.T, hv *sim.Hypervisor, fresh func() *sim.Platform) {
		const blocks = 40
		rnd := rand.New(rand.NewPCG(7, 11))
		m := create(t, hv, sim.MachineSpec{Name: "db", DiskBytes: []int64{blocks * block}})
		disk := m.Disks[0].ID
		scribble := func(touched map[int64]bool) {
			for range 6 {
				b := rnd.Int64N(blocks)
				touched[b] = true
				write(t, hv, m, 0, b*block+rnd.Int64N(block-8), []byte{byte(rnd.Uint32()), 1, 2, 3})
			}
		}
		var mark sdk.Mark
		touched := make(map[int64]bool)
		for round := range uint64(8) {
			p := fresh()
			next := sdk.Op{ID: "run", Epoch: round + 1}
			snap, err := p.Snapshot(t.Context(), next, sdk.SnapshotRequest{Machine: m.ID, Since: map[sdk.DiskID]sdk.Mark{disk: mark}})
			if err != nil {
				t.Fatal(err)
			}
			during := make(map[int64]bool)
			scribble(during)
			if mark == nil {
				for _, err := range p.Changed(t.Context(), snap, disk) {
					if !errors.Is(err, sdk.ErrMarkLost) {
						t.Fatalf("changed without a mark: %v", err)
					}
				}
			} else {
				got := make(map[int64]bool)
				for _, e := range collect(t, p.Changed(t.Context(), snap, disk)) {
					for b := e.Offset / block; b*block < e.End(); b++ {
						got[b] = true
					}
				}
				if diff := cmp.Diff(touched, got); diff != "" {
					t.Fatalf("round %d, changed blocks (-want +got):\n%s", round, diff)
				}
			}
			if err := p.EndSnapshot(t.Context(), next, snap, true); err != nil {
				t.Fatal(err)
			}
			if mark != nil {
				if err := p.ReleaseMark(t.Context(), next, m.ID, disk, mark); err != nil {
					t.Fatal(err)
				}
			}
			mark, touched = snap.Marks[disk], during
			scribble(touched)
		}
	})
}

func TestRepeatsFindTheFirstAnswer(t *testing.T) {
	each(t, func(t *testing.T, hv *sim.Hypervisor, fresh func() *sim.Platform) {
		m := create(t, hv, sim.MachineSpec{Name: "db", DiskBytes: []int64{block}})
		before, err := hv.Objects()
		if err != nil {
			t.Fatal(err)
		}
		var snaps [2]sdk.Snapshot
		for i := range snaps {
			if snaps[i], err = fresh().Snapshot(t.Context(), op("s"), sdk.SnapshotRequest{Machine: m.ID}); err != nil {
				t.Fatal(err)
			}
		}
		if diff := cmp.Diff(snaps[0], snaps[1]); diff != "" {
			t.Errorf("the same snapshot twice (-first +second):\n%s", diff)
		}
		for range 2 {
			if err := fresh().EndSnapshot(t.Context(), op("e"), snaps[0], false); err != nil {
				t.Fatal(err)
			}
		}
		spec := sdk.DraftSpec{Machine: sdk.Machine{Name: "copy", Disks: m.Disks}}
		var drafts [2]sdk.Draft
		for i := range drafts {
			if drafts[i], err = fresh().CreateDraft(t.Context(), op("d"), spec); err != nil {
				t.Fatal(err)
			}
		}
		if diff := cmp.Diff(drafts[0], drafts[1]); diff != "" {
			t.Errorf("the same draft twice (-first +second):\n%s", diff)
		}
		for range 2 {
			if err := fresh().AbortDraft(t.Context(), op("a"), drafts[0]); err != nil {
				t.Fatal(err)
			}
		}
		after, err := hv.Objects()
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(before, after); diff != "" {
			t.Errorf("left behind (-before +after):\n%s", diff)
		}
		if drafts[0], err = fresh().CreateDraft(t.Context(), op("d2"), spec); err != nil {
			t.Fatal(err)
		}
		var ids [2]sdk.MachineID
		for i := range ids {
			if ids[i], err = fresh().CommitDraft(t.Context(), op("c"), drafts[0]); err != nil {
				t.Fatal(err)
			}
		}
		if ids[0] != ids[1] {
			t.Errorf("commit gave %s, then %s", ids[0], ids[1])
		}
		if err := fresh().AbortDraft(t.Context(), op("a2"), drafts[0]); !errors.Is(err, sdk.ErrInvalid) {
			t.Errorf("abort of a committed draft: %v, want ErrInvalid", err)
		}
	})
}

func TestOpeningADraftDiskAgainFencesTheWriterBefore(t *testing.T) {
	each(t, func(t *testing.T, hv *sim.Hypervisor, fresh func() *sim.Platform) {
		spec := sdk.DraftSpec{Machine: sdk.Machine{Name: "new", Disks: []sdk.Disk{{ID: "vda", SizeBytes: block}}}}
		d, err := fresh().CreateDraft(t.Context(), op("d"), spec)
		if err != nil {
			t.Fatal(err)
		}
		open := func(epoch uint64) (sdk.BlockWriter, error) {
			return fresh().OpenDraftDisk(t.Context(), sdk.Op{ID: "o", Epoch: epoch}, d, "vda")
		}
		first, err := open(1)
		if err != nil {
			t.Fatal(err)
		}
		defer first.Close()
		second, err := open(2)
		if err != nil {
			t.Fatal(err)
		}
		defer second.Close()
		if _, err := first.WriteAt([]byte("late"), 0); !errors.Is(err, sdk.ErrFenced) {
			t.Errorf("write of the earlier writer: %v, want ErrFenced", err)
		}
		if _, err := open(1); !errors.Is(err, sdk.ErrFenced) {
			t.Errorf("open under an older epoch: %v, want ErrFenced", err)
		}
		if _, err := second.WriteAt([]byte("good"), 0); err != nil {
			t.Errorf("write of the later writer: %v", err)
		}
		if _, err := fresh().CommitDraft(t.Context(), sdk.Op{ID: "c", Epoch: 2}, d); err != nil {
			t.Fatal(err)
		}
		if _, err := second.WriteAt([]byte("late"), 0); !errors.Is(err, sdk.ErrFenced) {
			t.Errorf("write after the commit: %v, want ErrFenced", err)
		}
	})
}

func TestForeignSpaceIsDenied(t *testing.T) {
	hv := sim.New()
	m := create(t, hv, sim.MachineSpec{Name: "db", DiskBytes: []int64{block}, Space: "tenant-a"})
	p := hv.Connect(sim.Settings{})
	foreign := sdk.Op{ID: "x", Space: "tenant-b"}
	if err := p.Start(t.Context(), foreign, m.ID); !errors.Is(err, sdk.ErrDenied) {
		t.Errorf("start: %v, want ErrDenied", err)
	}
	spec := sdk.DraftSpec{Replace: m.ID, Machine: sdk.Machine{Name: "over"}}
	if _, err := p.CreateDraft(t.Context(), foreign, spec); !errors.Is(err, sdk.ErrDenied) {
		t.Errorf("replace: %v, want ErrDenied", err)
	}
	if err := p.Start(t.Context(), sdk.Op{ID: "y", Space: "tenant-a"}, m.ID); err != nil {
		t.Errorf("start in the own space: %v", err)
	}
}

func TestSequentialWriterTakesNoStepBack(t *testing.T) {
	hv := sim.New()
	p := hv.Connect(sim.Settings{Shape: sdk.ShapeSequential})
	spec := sdk.DraftSpec{Machine: sdk.Machine{Name: "new", Disks: []sdk.Disk{{ID: "vda", SizeBytes: 4 * block}}}}
	d, err := p.CreateDraft(t.Context(), op("d"), spec)
	if err != nil {
		t.Fatal(err)
	}
	w, err := p.OpenDraftDisk(t.Context(), op("o"), d, "vda")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.WriteAt([]byte("x"), block); err != nil {
		t.Fatal(err)
	}
	if _, err := w.WriteAt([]byte("x"), 0); !errors.Is(err, sdk.ErrInvalid) {
		t.Errorf("write backwards: %v, want ErrInvalid", err)
	}
	// Begun again, what the first attempt wrote is gone.
	if w, err = p.OpenDraftDisk(t.Context(), op("o2"), d, "vda"); err != nil {
		t.Fatal(err)
	}
	if _, err := w.WriteAt([]byte("y"), 2*block); err != nil {
		t.Fatal(err)
	}
	id, err := p.CommitDraft(t.Context(), op("c"), d)
	if err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 1)
	if err := hv.ReadDisk(id, "vda", block, got); err != nil || got[0] != 0 {
		t.Errorf("skipped byte = %q, %v; want zero", got, err)
	}
}

func TestFaults(t *testing.T) {
	hv := sim.New()
	m := create(t, hv, sim.MachineSpec{Name: "db", DiskBytes: []int64{block}})
	died := 0
	p := hv.Connect(sim.Settings{Die: func() { died++ }, Faults: []sim.Fault{
		{Call: "Probe", Action: sim.ActionError, Nth: 2, Code: sdk.CodeUnavailable},
		{Call: "Start", Action: sim.ActionPending, Times: 2},
		{Call: "Stop", Action: sim.ActionDie},
	}})
	for i, want := range []error{nil, sdk.ErrUnavailable, nil} {
		if _, err := p.Probe(t.Context(), sdk.Subject{}); !errors.Is(err, want) {
			t.Errorf("probe %d: %v, want %v", i+1, err, want)
		}
	}
	for i, want := range []error{sdk.ErrPending, sdk.ErrPending, nil} {
		if err := p.Start(t.Context(), op("start"), m.ID); !errors.Is(err, want) {
			t.Errorf("start %d: %v, want %v", i+1, err, want)
		}
	}
	for range 2 {
		if err := p.Stop(t.Context(), op("stop"), m.ID, 0); err != nil {
			t.Error(err)
		}
	}
	if died != 1 {
		t.Errorf("died %d times, want once", died)
	}
	if err := hv.SetFaults(sim.Fault{Call: "Machines", Action: sim.ActionPanic}); err != nil {
		t.Fatal(err)
	}
	func() {
		defer func() {
			if recover() == nil {
				t.Error("no panic on request")
			}
		}()
		for _, err := range p.Machines(t.Context()) {
			t.Errorf("listed, with %v", err)
		}
	}()
}

func TestHangEndsWithClose(t *testing.T) {
	hv := sim.New()
	p := hv.Connect(sim.Settings{Faults: []sim.Fault{{Call: "Probe", Action: sim.ActionHang}}})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	done := make(chan error)
	go func() { _, err := p.Probe(context.WithoutCancel(ctx), sdk.Subject{}); done <- err }()
	p.Close()
	if err := <-done; err == nil {
		t.Error("the hanging call succeeded")
	}
}

func TestLostAndForeignMarks(t *testing.T) {
	hv := sim.New()
	m := create(t, hv, sim.MachineSpec{Name: "db", DiskBytes: []int64{block}})
	p := hv.Connect(sim.Settings{})
	disk := m.Disks[0].ID
	snap, err := p.Snapshot(t.Context(), op("s1"), sdk.SnapshotRequest{Machine: m.ID})
	if err != nil {
		t.Fatal(err)
	}
	if err := p.EndSnapshot(t.Context(), op("e1"), snap, true); err != nil {
		t.Fatal(err)
	}
	if err := hv.LoseMarks(m.ID); err != nil {
		t.Fatal(err)
	}
	for i, mark := range []sdk.Mark{snap.Marks[disk], sdk.Mark("sim1 other 1 1 x"), sdk.Mark("nonsense")} {
		next := sdk.Op{ID: "s", Epoch: uint64(i) + 2}
		snap, err := p.Snapshot(t.Context(), next, sdk.SnapshotRequest{Machine: m.ID, Since: map[sdk.DiskID]sdk.Mark{disk: mark}})
		if err != nil {
			t.Fatal(err)
		}
		for _, err := range p.Changed(t.Context(), snap, disk) {
			if !errors.Is(err, sdk.ErrMarkLost) {
				t.Errorf("mark %q: %v, want ErrMarkLost", mark, err)
			}
		}
	}
}
