package plugin_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/holdfast-dr/holdfast/sdk"
	"github.com/holdfast-dr/holdfast/sdk/nbd"
	"github.com/holdfast-dr/holdfast/sdk/plugin"
	"github.com/holdfast-dr/holdfast/sdk/sim"
)

const block = 64 << 10

func ability[T any](t *testing.T, p *plugin.Process) T {
	t.Helper()
	found, ok := sdk.As[T](p.Platform())
	if !ok {
		t.Fatalf("the plugin lacks %T", found)
	}
	return found
}

func TestDisksAreReadOverNBD(t *testing.T) {
	dir := t.TempDir()
	hv, err := sim.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	m, err := hv.CreateMachine(sim.MachineSpec{Name: "db", DiskBytes: []int64{8*block + 512}})
	if err != nil {
		t.Fatal(err)
	}
	disk := m.Disks[0].ID
	content := bytes.Repeat([]byte("holdfast"), block/4)
	if err := hv.WriteDisk(m.ID, disk, 2*block, content); err != nil {
		t.Fatal(err)
	}
	epoch := uint64(0)
	both(t, map[string]any{"dir": dir}, func(t *testing.T, p *plugin.Process) {
		epoch++
		source := ability[sdk.Source](t, p)
		snap, err := source.Snapshot(t.Context(), sdk.Op{ID: t.Name(), Epoch: epoch}, sdk.SnapshotRequest{Machine: m.ID})
		if err != nil {
			t.Fatal(err)
		}
		r, err := source.OpenDisk(t.Context(), snap, disk)
		if err != nil {
			t.Fatal(err)
		}
		var extents []sdk.Extent
		for e, err := range r.Extents(t.Context(), 0, r.Size()) {
			if err != nil {
				t.Fatal(err)
			}
			extents = append(extents, e)
		}
		want := []sdk.Extent{
			{Offset: 0, Length: 2 * block, Zero: true},
			{Offset: 2 * block, Length: 2 * block},
			{Offset: 4 * block, Length: 4*block + 512, Zero: true},
		}
		if diff := cmp.Diff(want, extents); diff != "" {
			t.Errorf("extents (-want +got):\n%s", diff)
		}
		got := make([]byte, r.Size())
		var readers sync.WaitGroup
		for off := 0; off < len(got); off += block {
			readers.Go(func() {
				piece := got[off:min(off+block, len(got))]
				if _, err := r.ReadAt(piece, int64(off)); err != nil {
					t.Errorf("read at %d: %v", off, err)
				}
			})
		}
		readers.Wait()
		if !bytes.Equal(got[2*block:4*block], content) {
			t.Error("the bytes are not those of the disk")
		}
		if err := source.EndSnapshot(t.Context(), sdk.Op{ID: t.Name(), Epoch: epoch}, snap, false); err != nil {
			t.Fatal(err)
		}
		if _, err := r.ReadAt(got[:512], 0); err == nil {
			t.Error("read after the end of the snapshot succeeded")
		}
		if err := r.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
		if _, err := source.OpenDisk(t.Context(), snap, disk); !errors.Is(err, sdk.ErrNotFound) {
			t.Errorf("open of an ended snapshot: %v, want ErrNotFound", err)
		}
	})
}

func draft(t *testing.T, target sdk.Target, epoch uint64) sdk.Draft {
	t.Helper()
	spec := sdk.DraftSpec{Machine: sdk.Machine{Name: "new", Disks: []sdk.Disk{{ID: "vda", SizeBytes: 16 * block}}}}
	d, err := target.CreateDraft(t.Context(), sdk.Op{ID: "create " + t.Name(), Epoch: epoch}, spec)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func TestWriterBeforeIsFenced(t *testing.T) {
	both(t, map[string]any{"dir": t.TempDir()}, func(t *testing.T, p *plugin.Process) {
		target := ability[sdk.Target](t, p)
		d := draft(t, target, 1)
		open := func(epoch uint64) (sdk.BlockWriter, error) {
			return target.OpenDraftDisk(t.Context(), sdk.Op{ID: "open", Epoch: epoch}, d, "vda")
		}
		first, err := open(1)
		if err != nil {
			t.Fatal(err)
		}
		defer first.Close()
		if _, err := first.WriteAt([]byte("early"), 0); err != nil {
			t.Fatal(err)
		}
		second, err := open(2)
		if err != nil {
			t.Fatal(err)
		}
		defer second.Close()
		if _, err := first.WriteAt([]byte("late"), 0); err == nil {
			t.Error("the earlier writer wrote after it was fenced")
		}
		if _, err := open(1); !errors.Is(err, sdk.ErrFenced) {
			t.Errorf("open under an older epoch: %v, want ErrFenced", err)
		}
		if _, err := second.WriteAt([]byte("good"), 0); err != nil {
			t.Errorf("the rightful writer, after a fenced attempt: %v", err)
		}
		if err := second.Zero(block, block); err != nil {
			t.Error(err)
		}
		if err := second.Flush(); err != nil {
			t.Error(err)
		}
		if _, err := target.CommitDraft(t.Context(), sdk.Op{ID: "commit", Epoch: 2}, d); err != nil {
			t.Fatal(err)
		}
		if _, err := second.WriteAt([]byte("late"), 0); err == nil {
			t.Error("a write after the commit succeeded")
		}
	})
}

func TestSequentialShape(t *testing.T) {
	dir := t.TempDir()
	hv, err := sim.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	both(t, map[string]any{"dir": dir, "shape": "sequential"}, func(t *testing.T, p *plugin.Process) {
		target := ability[sdk.Target](t, p)
		d := draft(t, target, 1)
		w, err := target.OpenDraftDisk(t.Context(), sdk.Op{ID: "open", Epoch: 1}, d, "vda")
		if err != nil {
			t.Fatal(err)
		}
		defer w.Close()
		if w.Shape() != sdk.ShapeSequential {
			t.Fatalf("shape %q, want sequential", w.Shape())
		}
		content := bytes.Repeat([]byte{7}, 3*block)
		if _, err := w.WriteAt(content, block); err != nil {
			t.Fatal(err)
		}
		if err := w.Zero(4*block, block); err != nil {
			t.Fatal(err)
		}
		if _, err := w.WriteAt(content[:512], 0); !errors.Is(err, sdk.ErrInvalid) {
			t.Errorf("write backwards: %v, want ErrInvalid", err)
		}
		id, err := target.CommitDraft(t.Context(), sdk.Op{ID: "commit", Epoch: 1}, d)
		if err != nil {
			t.Fatal(err)
		}
		got := make([]byte, 3*block)
		if err := hv.ReadDisk(id, "vda", block, got); err != nil || !bytes.Equal(got, content) {
			t.Errorf("what was written is not there (%v)", err)
		}
	})
}

func TestPanicInADiskIsAnErrorOfTheCall(t *testing.T) {
	dir := t.TempDir()
	hv, err := sim.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	m, err := hv.CreateMachine(sim.MachineSpec{Name: "db", DiskBytes: []int64{block}})
	if err != nil {
		t.Fatal(err)
	}
	p := start(t, launch(t, map[string]any{"dir": dir, "faults": []sim.Fault{{Call: "ReadAt", Action: sim.ActionPanic}}}))
	source := ability[sdk.Source](t, p)
	snap, err := source.Snapshot(t.Context(), sdk.Op{ID: "s"}, sdk.SnapshotRequest{Machine: m.ID})
	if err != nil {
		t.Fatal(err)
	}
	r, err := source.OpenDisk(t.Context(), snap, m.Disks[0].ID)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	buf := make([]byte, 512)
	if _, err := r.ReadAt(buf, 0); err == nil {
		t.Error("a read that panicked succeeded")
	}
	if _, err := r.ReadAt(buf, 0); err != nil {
		t.Errorf("the read after: %v", err)
	}
}

// addressed is a platform whose disks are served by a back-end, which is an
// NBD server of the test.
type addressed struct {
	*sim.Platform
	address sdk.Address
	closed  chan struct{}
}

func (p *addressed) As(target any) bool {
	if to, ok := target.(*sdk.Source); ok {
		*to = p
		return true
	}
	return p.Platform.As(target)
}

func (p *addressed) OpenDisk(ctx context.Context, snap sdk.Snapshot, disk sdk.DiskID) (sdk.BlockReader, error) {
	r, err := p.Platform.OpenDisk(ctx, snap, disk)
	return &addressedReader{BlockReader: r, platform: p}, err
}

type addressedReader struct {
	sdk.BlockReader
	platform *addressed
}

func (r *addressedReader) Address() sdk.Address { return r.platform.address }

func (r *addressedReader) ReadAt([]byte, int64) (int, error) {
	return 0, errors.New("the host should have dialled the back-end")
}

func (r *addressedReader) Close() error {
	close(r.platform.closed)
	return r.BlockReader.Close()
}

func TestHostDialsTheBackEndItself(t *testing.T) {
	hv := sim.New()
	m, err := hv.CreateMachine(sim.MachineSpec{Name: "db", DiskBytes: []int64{block}})
	if err != nil {
		t.Fatal(err)
	}
	content := bytes.Repeat([]byte("from the back-end"), block)[:block]
	listener, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	server := &nbd.Server{Exports: func(name string) (nbd.Export, error) {
		if name != "vda" {
			return nbd.Export{}, sdk.ErrNotFound
		}
		return nbd.Export{Size: block, Reader: bytes.NewReader(content)}, nil
	}}
	go func() { _ = server.Serve(context.Background(), listener) }()
	defer server.Close()
	platform := &addressed{
		Platform: hv.Connect(sim.Settings{}), closed: make(chan struct{}),
		address: sdk.Address{Network: "unix", Addr: listener.Addr().String(), Export: "vda"},
	}
	p, err := plugin.Local(t.Context(), plugin.Author{Name: "direct", Version: "1",
		Open: func(context.Context, any) (sdk.Platform, error) { return platform, nil }}, plugin.Launch{})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	source := ability[sdk.Source](t, p)
	snap, err := source.Snapshot(t.Context(), sdk.Op{ID: "s"}, sdk.SnapshotRequest{Machine: m.ID})
	if err != nil {
		t.Fatal(err)
	}
	r, err := source.OpenDisk(t.Context(), snap, m.Disks[0].ID)
	if err != nil {
		t.Fatal(err)
	}
	got := make([]byte, block)
	if _, err := r.ReadAt(got, 0); err != nil || !bytes.Equal(got, content) {
		t.Errorf("read: %v, or not the back-end's bytes", err)
	}
	if err := r.Close(); err != nil {
		t.Error(err)
	}
	select {
	case <-platform.closed:
	default:
		t.Error("the plugin was not told that the disk was closed")
	}
}

// naive is a target whose writers know nothing of each other.
type naive struct {
	*sim.Platform
	mutex sync.Mutex // guards bytes
	bytes [block]byte
}

func (p *naive) As(target any) bool {
	if to, ok := target.(*sdk.Target); ok {
		*to = p
		return true
	}
	return p.Platform.As(target)
}

func (p *naive) OpenDraftDisk(context.Context, sdk.Op, sdk.Draft, sdk.DiskID) (sdk.BlockWriter, error) {
	return &naiveWriter{p}, nil
}

type naiveWriter struct{ platform *naive }

func (w *naiveWriter) WriteAt(p []byte, off int64) (int, error) {
	w.platform.mutex.Lock()
	defer w.platform.mutex.Unlock()
	return copy(w.platform.bytes[off:], p), nil
}

func (w *naiveWriter) Zero(int64, int64) error { return nil }
func (w *naiveWriter) Flush() error            { return nil }
func (w *naiveWriter) Close() error            { return nil }
func (w *naiveWriter) Size() int64             { return block }
func (w *naiveWriter) Shape() sdk.Shape        { return sdk.ShapeRandom }

// TestNaiveWritersAreFencedToo has an author who does not disconnect the
// writer before; within one process, the plugin does it for him.
func TestNaiveWritersAreFencedToo(t *testing.T) {
	platform := &naive{Platform: sim.New().Connect(sim.Settings{})}
	p, err := plugin.Local(t.Context(), plugin.Author{Name: "naive", Version: "1",
		Open: func(context.Context, any) (sdk.Platform, error) { return platform, nil }}, plugin.Launch{})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	target := ability[sdk.Target](t, p)
	open := func(disk sdk.DiskID) sdk.BlockWriter {
		w, err := target.OpenDraftDisk(t.Context(), sdk.Op{ID: "o"}, sdk.Draft{ID: "d"}, disk)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { w.Close() })
		return w
	}
	first, other := open("vda"), open("vdb")
	if _, err := first.WriteAt([]byte("early"), 0); err != nil {
		t.Fatal(err)
	}
	second := open("vda")
	if _, err := first.WriteAt([]byte("late!"), 0); err == nil {
		t.Error("the writer before wrote")
	}
	for name, w := range map[string]sdk.BlockWriter{"second": second, "other disk's": other} {
		if _, err := w.WriteAt([]byte(name), 100); err != nil {
			t.Errorf("the %s writer: %v", name, err)
		}
	}
	platform.mutex.Lock()
	defer platform.mutex.Unlock()
	if got := string(platform.bytes[:5]); got != "early" {
		t.Errorf("the disk has %q, want early", got)
	}
}

// careless is a cloud host whose writers know of no fence.
type careless struct{ *sim.Platform }

func (c careless) As(target any) bool {
	return sdk.Grant(target, c, func(sdk.Ability) bool { return true })
}

func (c careless) OpenPointDraftDisk(context.Context, sdk.Op, sdk.PointDraft, sdk.DiskID) (sdk.PointWriter, error) {
	return unfenced(make([]byte, 4*block)), nil
}

type unfenced []byte

func (w unfenced) Size() int64                              { return int64(len(w)) }
func (w unfenced) Shape() sdk.Shape                         { return sdk.ShapeRandom }
func (w unfenced) Flush() error                             { return nil }
func (w unfenced) Close() error                             { return nil }
func (w unfenced) WriteAt(p []byte, off int64) (int, error) { return copy(w[off:], p), nil }
func (w unfenced) ReadAt(p []byte, off int64) (int, error)  { return copy(p, w[off:]), nil }
func (w unfenced) Zero(off, n int64) error                  { clear(w[off:][:n]); return nil }

// TestDraftOfAPointEndsTheWritersBefore is about disks that this package serves:
// whatever the author does, nobody writes to a draft that a newer claim ended, to
// one that is a point, or to one whose replica is gone.
func TestDraftOfAPointEndsTheWritersBefore(t *testing.T) {
	author := plugin.Author{Name: "careless", Version: "test", Type: careless{}, Open: func(context.Context, any) (sdk.Platform, error) {
		return careless{sim.New().Connect(sim.Settings{})}, nil
	}}
	p, err := plugin.Local(t.Context(), author, plugin.Launch{})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	host := ability[sdk.Replicator](t, p)
	op := func(id string, epoch uint64) sdk.Op { return sdk.Op{ID: id, Epoch: epoch} }
	r, err := host.CreateReplica(t.Context(), op("replica", 1), sdk.ReplicaSpec{Name: "db"})
	if err != nil {
		t.Fatal(err)
	}
	spec := sdk.PointSpec{Replica: r.ID, Machine: sdk.Machine{Name: "db", Disks: []sdk.Disk{{ID: "vda", SizeBytes: 4 * block}}}}
	open := func(epoch uint64) (sdk.PointDraft, sdk.PointWriter) {
		t.Helper()
		d, err := host.DraftPoint(t.Context(), op(fmt.Sprint("draft ", epoch), epoch), spec)
		if err != nil {
			t.Fatal(err)
		}
		w, err := host.OpenPointDraftDisk(t.Context(), op("open", epoch), d, "vda")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.WriteAt(make([]byte, block), 0); err != nil {
			t.Fatal(err)
		}
		return d, w
	}
	ended := func(w sdk.PointWriter, why string) {
		t.Helper()
		if _, err := w.WriteAt(make([]byte, block), 0); err == nil {
			t.Errorf("a write after %s succeeded", why)
		}
	}
	_, first := open(1)
	d, second := open(2)
	ended(first, "a newer claim drafted the point")
	if again, err := host.DraftPoint(t.Context(), op("draft 2", 2), spec); err != nil || again.ID != d.ID {
		t.Fatalf("the same draft again: %+v, %v", again, err)
	}
	if _, err := second.WriteAt(make([]byte, block), 0); err != nil {
		t.Errorf("a write after its own draft was asked for again: %v", err)
	}
	point, err := host.CommitPoint(t.Context(), op("commit", 2), d, sdk.PointLabel{})
	if err != nil {
		t.Fatal(err)
	}
	ended(second, "its commit")
	spec.Base = point.ID
	_, third := open(3)
	reader, err := host.OpenPoint(t.Context(), "", r.ID, point.ID, "vda")
	if err != nil {
		t.Fatal(err)
	}
	if err := host.RemoveReplica(t.Context(), op("remove", 3), r.ID); err != nil {
		t.Fatal(err)
	}
	ended(third, "its replica was removed")
	if _, err := reader.ReadAt(make([]byte, 512), 0); err == nil {
		t.Error("a point is read whose replica was removed")
	}
}

// What on the wire would say that there is no limit, or no VLAN, is refused.
func TestNumbersBelowZeroStayAtTheHost(t *testing.T) {
	author := plugin.Author{Name: "sim", Version: "test", Type: (*sim.Platform)(nil), Open: func(context.Context, any) (sdk.Platform, error) {
		return sim.New().Connect(sim.Settings{}), nil
	}}
	p, err := plugin.Local(t.Context(), author, plugin.Launch{})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	for _, limits := range []sdk.Limits{{CPUs: -1}, {MemoryBytes: -1}, {CPUs: 1 << 40}} {
		if _, err := ability[sdk.Pools](t, p).SetLimits(t.Context(), sdk.Op{ID: "limits", Space: "ours"}, limits); !errors.Is(err, sdk.ErrInvalid) {
			t.Errorf("limits %+v: %v, want ErrInvalid", limits, err)
		}
	}
	for _, vlan := range []int{-1, 4095} {
		spec := sdk.NetworkSpec{Name: "net", VLAN: vlan}
		if _, err := ability[sdk.Networker](t, p).CreateNetwork(t.Context(), sdk.Op{ID: "net", Space: "ours"}, spec); !errors.Is(err, sdk.ErrInvalid) {
			t.Errorf("VLAN %d: %v, want ErrInvalid", vlan, err)
		}
	}
}
