package repository_test

import (
	"context"
	"errors"
	"math/rand/v2"
	"runtime"
	"slices"
	"sync/atomic"
	"testing"

	"github.com/holdfast-dr/holdfast/core/blob"
	"github.com/holdfast-dr/holdfast/core/blob/mem"
	"github.com/holdfast-dr/holdfast/core/chunk"
)

// counted counts the ranges that are read of a store.
type counted struct {
	blob.Store
	reads, bytes atomic.Int64
}

func (c *counted) ReadAt(ctx context.Context, name string, p []byte, offset int64) error {
	c.reads.Add(1)
	c.bytes.Add(int64(len(p)))
	return c.Store.ReadAt(ctx, name, p, offset)
}

// half is a chunk whose record has about n bytes.
func half(n int) []byte { return append(randomBody(n), make([]byte, chunk.Size-n)...) }

// Batches that sealers fill side by side lie in a pack in another order than on
// the disk; they are read at once all the same, and come in the order asked.
func TestNeighboursInDisorderAreReadTogether(t *testing.T) {
	store := &counted{Store: new(mem.Store)}
	ctx, repo, id := stageOn(t, t.TempDir(), store)
	const chunks, size, group = 256, 32 << 10, 8
	_, ids := fill(ctx, t, repo, id, chunks, half(size))
	random := rand.New(rand.NewPCG(1, 2))
	for part := range slices.Chunk(ids, group) {
		random.Shuffle(len(part), func(i, j int) { part[i], part[j] = part[j], part[i] })
	}
	store.reads.Store(0)
	store.bytes.Store(0)
	n := 0
	if err := repo.Read(ctx, chunk.KindData, ids, func(r chunk.Record) error {
		if r.ID != ids[n] {
			t.Fatalf("record %d is %s, want %s", n, r.ID, ids[n])
		}
		n++
		return nil
	}); err != nil || n != chunks {
		t.Fatalf("%d records, %v", n, err)
	}
	if reads := store.reads.Load(); reads > chunks/4 {
		t.Errorf("%d records in %d groups needed %d reads", chunks, chunks/group, reads)
	}
	if most := int64(chunks*size) * 5 / 4; store.bytes.Load() > most {
		t.Errorf("%d bytes were read, want at most %d", store.bytes.Load(), most)
	}
}

func TestWhatPrecedesAnAbsentRecordIsEmitted(t *testing.T) {
	ctx, repo, id := stage(t)
	_, ids := fill(ctx, t, repo, id, 64, half(32<<10))
	lost := chunk.ID{9}
	n := 0
	err := repo.Read(ctx, chunk.KindData, slices.Insert(slices.Clone(ids), 40, lost), func(chunk.Record) error {
		n++
		return nil
	})
	if !errors.Is(err, chunk.ErrAbsent) || n != 40 {
		t.Errorf("%d records came before %v, want 40", n, err)
	}
	stop := errors.New("enough")
	n = 0
	if err := repo.Read(ctx, chunk.KindData, ids, func(chunk.Record) error {
		if n++; n == 20 {
			return stop
		}
		return nil
	}); !errors.Is(err, stop) || n != 20 {
		t.Errorf("after %d records %v", n, err)
	}
}

// Reading makes no garbage that grows with the bytes of chunks. (With the race
// detector a quarter of what is put into a pool is lost on purpose.)
func TestReadReusesItsBuffers(t *testing.T) {
	ctx, repo, id := stage(t)
	const chunks, size = 512, 128 << 10
	_, ids := fill(ctx, t, repo, id, chunks, half(size))
	read := func() {
		if err := repo.Read(ctx, chunk.KindData, ids, func(chunk.Record) error { return nil }); err != nil {
			t.Fatal(err)
		}
	}
	read()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	read()
	runtime.ReadMemStats(&after)
	if made := after.TotalAlloc - before.TotalAlloc; made > chunks*size/2 {
		t.Errorf("reading %d bytes allocated %d", chunks*size, made)
	}
}
