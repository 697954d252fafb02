package mover_test

import (
	"math/rand/v2"
	"runtime"
	"testing"

	"github.com/holdfast-dr/holdfast/core/chunk"
	"github.com/holdfast-dr/holdfast/core/mover"
	"github.com/holdfast-dr/holdfast/core/mover/movertest"
	"github.com/holdfast-dr/holdfast/core/point"
)

// maxGarbage is how many bytes a copy may allocate for each chunk, beside the
// buffers that it begins with: keys, ciphers and the items of the pipeline, but
// nothing of the chunk's own size.
const maxGarbage = chunk.Size / 16

// TestCopyMakesNoGarbageByTheByte compares a copy of few chunks with one of many,
// so that what every copy needs once does not count.
func TestCopyMakesNoGarbageByTheByte(t *testing.T) {
	keys := chunk.NewKeyring()
	cost := func(chunks int64) uint64 {
		size := chunks * chunk.Size
		disk := movertest.NewDisk(size)
		random, plain := rand.New(rand.NewPCG(1, uint64(chunks))), make([]byte, chunk.Size)
		for i := range chunks {
			for j := range plain {
				plain[j] = 'a' + byte(random.Uint32()%16)
			}
			if _, err := disk.WriteAt(plain, i*chunk.Size); err != nil {
				t.Fatal(err)
			}
		}
		store := movertest.NewStore()
		store.Forgetful = true
		g := point.Geometry{SizeBytes: size, ChunkSize: chunk.Size, FanOut: point.FanOut}
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		_, stats, err := mover.Send(t.Context(), mover.Disk{Reader: disk, Geometry: g}, mover.Repository{Writer: store, Keys: keys}, mover.Options{})
		runtime.ReadMemStats(&after)
		if err != nil || stats.SentChunks != chunks {
			t.Fatalf("sent %d of %d chunks: %v", stats.SentChunks, chunks, err)
		}
		return after.TotalAlloc - before.TotalAlloc
	}
	const few, many = 32, 288
	more := int64(cost(many)) - int64(cost(few))
	each := more / (many - few)
	t.Logf("%d bytes for each chunk", each)
	if each > maxGarbage {
		t.Errorf("a copy allocates %d bytes for each chunk of %d, want at most %d", each, chunk.Size, maxGarbage)
	}
}
