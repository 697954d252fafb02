package mover_test

import (
	"context"
	"errors"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfast-dr/holdfast/core/chunk"
	"github.com/holdfast-dr/holdfast/core/mover"
	"github.com/holdfast-dr/holdfast/core/mover/movertest"
	"github.com/holdfast-dr/holdfast/core/point"
	"github.com/holdfast-dr/holdfast/sdk"
)

func TestSequentialWriterIsWrittenInOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStand(t, 300*size+777)
		for i := int64(0); i < 300; i += 3 {
			s.fill(i*size, 2*size-100, i)
		}
		s.fill(300*size, 777, 5)
		sent, _ := s.send(mover.Disk{}, none)
		var n atomic.Int64
		s.store.OnRead = func(context.Context, chunk.Kind, []chunk.ID) error { // answers overtake each other
			pass(time.Duration(7-n.Add(1)%7) * 10 * time.Millisecond)
			return nil
		}
		w := movertest.NewDisk(s.disk.Bytes) // refuses to be written backwards
		w.Order = sdk.ShapeSequential
		stats, err := mover.Fetch(t.Context(), s.tree(sent), s.to(), w, mover.Options{})
		if err != nil {
			t.Fatal(err)
		}
		if _, flushed := w.BytesWritten(); !w.Equal(s.disk) || !flushed {
			t.Errorf("the disk differs, or was not flushed (%v)", flushed)
		}
		if stats.Chunks != 201 {
			t.Errorf("stats %+v", stats)
		}
	})
}

func TestRequestsAreInFlightTogether(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStand(t, 320*size)
		s.fill(0, 320*size, -1)
		sent, _ := s.send(mover.Disk{}, none)
		s.store.OnRead = func(context.Context, chunk.Kind, []chunk.ID) error { pass(100 * time.Millisecond); return nil }
		stats, err := mover.Fetch(t.Context(), s.tree(sent), s.to(), movertest.NewDisk(s.disk.Bytes), mover.Options{Connections: 4})
		if err != nil {
			t.Fatal(err)
		}
		if one := 40 * 100 * time.Millisecond; stats.Duration > one/4 {
			t.Errorf("%v for 40 requests of 100 ms", stats.Duration)
		}
	})
}

func TestDamagedChunkEndsARestore(t *testing.T) {
	s := newStand(t, 100*size)
	s.fill(0, 50*size, -1)
	sent, _ := s.send(mover.Disk{}, none)
	ids := s.store.Names(chunk.KindData)
	for name, spoil := range map[string]func(){
		"flipped":  func() { s.store.Flip(chunk.KindData, ids[0]) },
		"absent":   func() { s.store.Remove(chunk.KindData, ids[1]) },
		"poisoned": func() { s.store.Replace(chunk.KindData, ids[2], sealed(t, s.keys, ids[2], content(size, 9))) },
		"another's": func() {
			s.store.Replace(chunk.KindData, ids[3], sealed(t, s.keys, s.keys.ID(content(size, 8)), content(size, 8)))
		},
	} {
		spoil()
		for _, order := range []sdk.Shape{sdk.ShapeRandom, sdk.ShapeSequential} {
			w := movertest.NewDisk(s.disk.Bytes)
			w.Order = order
			_, err := mover.Fetch(t.Context(), s.tree(sent), s.to(), w, mover.Options{})
			var d mover.Damage
			if !errors.As(err, &d) || d.Length != size || d.ID.IsZero() {
				t.Errorf("%s, %s: Fetch = %v", name, order, err)
			}
		}
	}

	// All four are reported when the caller goes on, and the rest is restored.
	for _, order := range []sdk.Shape{sdk.ShapeRandom, sdk.ShapeSequential} {
		var mutex sync.Mutex
		var found []mover.Damage
		w := movertest.NewDisk(s.disk.Bytes)
		w.Order = order
		stats, err := mover.Fetch(t.Context(), s.tree(sent), s.to(), w, mover.Options{Damaged: func(d mover.Damage) error {
			mutex.Lock()
			defer mutex.Unlock()
			found = append(found, d)
			return nil
		}})
		if err != nil || len(found) != 4 || stats.Damaged != 4 || stats.Chunks != 46 {
			t.Fatalf("%s: Fetch = %+v, %v; found %v", order, stats, err, found)
		}
		want := movertest.NewDisk(s.disk.Bytes)
		b := make([]byte, size)
		for i := range int64(50) {
			if slices.ContainsFunc(found, func(d mover.Damage) bool { return d.Offset == i*size }) {
				continue
			}
			if _, err := s.disk.ReadAt(b, i*size); err != nil {
				t.Fatal(err)
			}
			if _, err := want.WriteAt(b, i*size); err != nil {
				t.Fatal(err)
			}
		}
		if !w.Equal(want) {
			t.Errorf("%s: what is not damaged differs", order)
		}
	}
}

func sealed(t *testing.T, keys *chunk.Keyring, id chunk.ID, plain []byte) []byte {
	t.Helper()
	b, err := keys.NewSealer(chunk.SessionID{9}).Append(nil, id, plain)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestVerifyGoesAroundADamagedPage(t *testing.T) {
	s := newStand(t, 64*size) // fan-out 8: a root and 8 leaves
	s.fill(0, 64*size, -1)
	sent, _ := s.send(mover.Disk{}, none)
	var leaf chunk.ID
	for _, id := range s.store.Names(chunk.KindPage) {
		if id != sent.Root {
			leaf = id
		}
	}
	s.store.Remove(chunk.KindPage, leaf)
	var found []mover.Damage
	stats, err := mover.Verify(t.Context(), s.tree(sent), s.to(), func(d mover.Damage) error {
		found = append(found, d)
		return nil
	}, mover.Options{})
	if err != nil || len(found) != 1 || found[0].Length != 8*size || !found[0].ID.IsZero() || stats.Chunks != 56 {
		t.Errorf("Verify = %+v, %v, found %v", stats, err, found)
	}
	w := movertest.NewDisk(s.disk.Bytes)
	if _, err := mover.Fetch(t.Context(), s.tree(sent), s.to(), w, mover.Options{}); !errors.Is(err, chunk.ErrAbsent) {
		t.Errorf("Fetch = %v", err)
	}
}

func TestOlderKeyringIsNotCalledDamage(t *testing.T) {
	s := newStand(t, 10*size)
	s.fill(0, 10*size, -1)
	old := s.keys
	s.keys = s.keys.Rotated()
	sent, _ := s.send(mover.Disk{}, none)
	from := s.to()
	from.Keys = old
	_, err := mover.Verify(t.Context(), s.tree(sent), from, func(d mover.Damage) error { return nil }, mover.Options{})
	if err == nil || errors.Is(err, chunk.ErrDamaged) {
		t.Errorf("Verify with a ring that lacks the key = %v", err)
	}
}

func TestFailingWriterEndsARestore(t *testing.T) {
	s := newStand(t, 100*size)
	s.fill(0, 100*size, -1)
	sent, _ := s.send(mover.Disk{}, none)
	for _, order := range []sdk.Shape{sdk.ShapeRandom, sdk.ShapeSequential} {
		w := fullDisk{movertest.NewDisk(s.disk.Bytes)}
		w.Order = order
		if _, err := mover.Fetch(t.Context(), s.tree(sent), s.to(), w, mover.Options{}); !errors.Is(err, errFull) {
			t.Errorf("%s: Fetch = %v", order, err)
		}
	}
	small := movertest.NewDisk(99 * size)
	if _, err := mover.Fetch(t.Context(), s.tree(sent), s.to(), small, mover.Options{}); !errors.Is(err, sdk.ErrInvalid) {
		t.Errorf("Fetch to a smaller disk = %v", err)
	}
}

// errFull looks like something to repeat, but a write is not repeated.
var errFull = sdk.Errorf(sdk.ErrBusy, sdk.FaultBackend, "no space")

type fullDisk struct{ *movertest.Disk }

func (d fullDisk) WriteAt(p []byte, off int64) (int, error) {
	if off > 40*size {
		return 0, errFull
	}
	return d.Disk.WriteAt(p, off)
}

// cutting ends each answer after a few records, as a broken line does.
type cutting struct {
	*movertest.Store
	calls atomic.Int32
}

func (c *cutting) Read(ctx context.Context, kind chunk.Kind, ids []chunk.ID, emit func(chunk.Record) error) error {
	n := min(len(ids), 3)
	if err := c.Store.Read(ctx, kind, ids[:n], emit); err != nil {
		return err
	}
	if n < len(ids) {
		c.calls.Add(1)
		return movertest.ErrTemporary
	}
	return nil
}

func TestCutAnswersAreContinued(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStand(t, 64*size)
		s.fill(0, 64*size, -1)
		sent, _ := s.send(mover.Disk{}, none)
		line := &cutting{Store: s.store}
		from := mover.Repository{Reader: line, Keys: s.keys}
		w := movertest.NewDisk(s.disk.Bytes)
		tree := point.Tree{Geometry: s.geometry(), Root: sent.Root, Pages: mover.Pages(line, mover.Retry{})}
		stats, err := mover.Fetch(t.Context(), tree, from, w, mover.Options{})
		if err != nil || !w.Equal(s.disk) || line.calls.Load() == 0 || stats.Retries == 0 {
			t.Errorf("Fetch over a line that breaks: %+v, %v", stats, err)
		}
		if written, _ := w.BytesWritten(); written != s.disk.Bytes {
			t.Errorf("%d bytes were written for %d", written, s.disk.Bytes)
		}
	})
}

// hasty fails before it emits what comes before the bad record.
type hasty struct{ *movertest.Store }

func (h hasty) Read(ctx context.Context, kind chunk.Kind, ids []chunk.ID, emit func(chunk.Record) error) error {
	if err := h.Store.Read(ctx, kind, ids, func(chunk.Record) error { return nil }); err != nil {
		return err
	}
	return h.Store.Read(ctx, kind, ids, emit)
}

func TestSoundChunksAreNotBlamedForABadOne(t *testing.T) {
	s := newStand(t, 64*size)
	s.fill(0, 64*size, -1)
	sent, _ := s.send(mover.Disk{}, none)
	bad := s.store.Names(chunk.KindData)[11]
	s.store.Remove(chunk.KindData, bad)
	from := mover.Repository{Reader: hasty{s.store}, Keys: s.keys}
	var mutex sync.Mutex
	var found []mover.Damage
	stats, err := mover.Verify(t.Context(), s.tree(sent), from, func(d mover.Damage) error {
		mutex.Lock()
		defer mutex.Unlock()
		found = append(found, d)
		return nil
	}, mover.Options{})
	if err != nil || len(found) != 1 || found[0].ID != bad || stats.Chunks != 63 {
		t.Errorf("Verify = %+v, %v; found %v, want %s alone", stats, err, found, bad)
	}
}

func TestChunkOfAnotherLengthIsDamage(t *testing.T) {
	s := newStand(t, 10*size+100)
	s.fill(0, size, -1)
	s.fill(10*size, 100, -2)
	sent, _ := s.send(mover.Disk{}, none)
	// The last chunk of a larger disk is a whole one: the same map does not fit.
	tree := s.tree(sent)
	tree.SizeBytes = 10*size + 101
	w := movertest.NewDisk(tree.SizeBytes)
	if _, err := mover.Fetch(t.Context(), tree, s.to(), w, mover.Options{}); !errors.Is(err, chunk.ErrDamaged) {
		t.Errorf("Fetch = %v", err)
	}
}

// largest notes the longest write, and how many there were.
type largest struct {
	*movertest.Disk
	mutex         sync.Mutex
	writes, bytes int
}

func (l *largest) WriteAt(p []byte, off int64) (int, error) {
	l.mutex.Lock()
	l.writes, l.bytes = l.writes+1, max(l.bytes, len(p))
	l.mutex.Unlock()
	return l.Disk.WriteAt(p, off)
}

func TestNeighboursAreWrittenTogether(t *testing.T) {
	s := newStand(t, 128*size+100)
	s.fill(0, 90*size, -1)
	s.fill(100*size, 28*size+100, -2)
	sent, _ := s.send(mover.Disk{}, none)
	bad := s.store.Names(chunk.KindData)[7]
	for _, damage := range []bool{false, true} {
		w := &largest{Disk: movertest.NewDisk(s.disk.Bytes)}
		opts := mover.Options{Damaged: func(mover.Damage) error { return nil }}
		if damage {
			s.store.Flip(chunk.KindData, bad)
		}
		stats, err := mover.Fetch(t.Context(), s.tree(sent), s.to(), w, opts)
		if err != nil || (stats.Damaged > 0) != damage || !damage && !w.Equal(s.disk) {
			t.Fatalf("Fetch with damage %t: %+v, %v", damage, stats, err)
		}
		written, _ := w.BytesWritten()
		if written != stats.WrittenBytes || w.writes > 36 || w.bytes > 1<<20 {
			t.Errorf("%d bytes were written, not %d, in %d pieces of up to %d", written, stats.WrittenBytes, w.writes, w.bytes)
		}
	}
}

// Fetching makes no garbage that grows with the bytes of chunks.
func TestFetchReusesItsBuffers(t *testing.T) {
	const chunks = 256
	s := newStand(t, chunks*chunk.Size)
	s.fill(0, chunks*chunk.Size, 1)
	geometry := point.Geometry{SizeBytes: s.disk.Bytes, ChunkSize: chunk.Size, FanOut: s.fan}
	sent, _, err := mover.Send(t.Context(), mover.Disk{Reader: s.disk, Geometry: geometry}, s.to(), none)
	if err != nil {
		t.Fatal(err)
	}
	tree := point.Tree{Geometry: geometry, Root: sent.Root, Pages: s.store}
	w := movertest.NewDisk(s.disk.Bytes)
	fetch := func() {
		if _, err := mover.Fetch(t.Context(), tree, s.to(), w, mover.Options{}); err != nil {
			t.Fatal(err)
		}
	}
	fetch() // makes the blocks of the target, too
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	fetch()
	runtime.ReadMemStats(&after)
	const fixed = 20 << 20 // a slab and a decoder for each of eight getters
	if made := after.TotalAlloc - before.TotalAlloc; made > fixed || !w.Equal(s.disk) {
		t.Errorf("fetching %d bytes allocated %d", s.disk.Bytes, made)
	}
}
