package point_test

import (
	"context"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/holdfast-dr/holdfast/core/chunk"
	"github.com/holdfast-dr/holdfast/core/point"
)

// BenchmarkFanOut is the experiment that chose FanOut: what an incremental
// point of a full 1 TiB disk writes and fetches, under scattered and clustered
// change. DESIGN.md has its table. Run it with
//
//	go test -run '^$' -bench FanOut -benchtime 1x ./core/point
func BenchmarkFanOut(b *testing.B) {
	const chunks = 1 << 40 / chunk.Size
	changes := []struct {
		name  string
		share float64
		run   int // neighbours that change together
	}{
		{"100-chunks", 100.0 / chunks, 1},
		{"scattered-0.1%", 0.001, 1}, {"scattered-1%", 0.01, 1}, {"scattered-3%", 0.03, 1},
		{"clustered-0.1%", 0.001, 64}, {"clustered-1%", 0.01, 64}, {"clustered-3%", 0.03, 64},
	}
	for _, fanOut := range []int{64, 128, 256, 512} {
		store := &pages{byID: make(map[chunk.ID][]byte)}
		tree := point.Tree{Geometry: point.Geometry{SizeBytes: 1 << 40, ChunkSize: chunk.Size, FanOut: fanOut}, Pages: store}
		r := rand.New(rand.NewPCG(1, 2))
		var err error
		if tree.Root, err = build(tree, store, func(set func(int64, chunk.ID)) {
			for i := range int64(chunks) {
				set(i, randomID(r))
			}
		}); err != nil {
			b.Fatal(err)
		}
		full := store.written
		for _, change := range changes {
			b.Run(fmt.Sprintf("%d/%s", fanOut, change.name), func(b *testing.B) {
				r := rand.New(rand.NewPCG(3, 4))
				var indexes []int64
				for range int(change.share * chunks / float64(change.run)) {
					first := r.Int64N(chunks-int64(change.run)) / int64(change.run) * int64(change.run)
					for i := range int64(change.run) {
						indexes = append(indexes, first+i)
					}
				}
				slices.Sort(indexes)
				indexes = slices.Compact(indexes)
				for b.Loop() {
					store.reset()
					if _, err := build(tree, discard{store}, func(set func(int64, chunk.ID)) {
						for _, i := range indexes {
							set(i, randomID(r))
						}
					}); err != nil {
						b.Fatal(err)
					}
				}
				b.ReportMetric(float64(store.written)/(1<<20), "MiB-written")
				b.ReportMetric(float64(store.fetched)/(1<<20), "MiB-fetched")
				b.ReportMetric(float64(store.requests), "pages-fetched")
				b.ReportMetric(float64(store.written)/float64(len(indexes)), "B/chunk")
				b.ReportMetric(float64(tree.RootLevel()+1), "levels")
				b.ReportMetric(float64(full)/(1<<20), "MiB-full")
			})
		}
	}
}

func randomID(r *rand.Rand) (id chunk.ID) {
	for i := 0; i < len(id); i += 8 {
		binary.LittleEndian.PutUint64(id[i:], r.Uint64())
	}
	return id
}

// pages is a store of map pages in memory, which counts.
type pages struct {
	byID              map[chunk.ID][]byte
	fetched, written  int64 // bytes
	requests, largest int   // pages fetched; the most in one request
	calls             int
}

func (p *pages) reset() { p.fetched, p.written, p.requests, p.largest, p.calls = 0, 0, 0, 0, 0 }

func (p *pages) Pages(_ context.Context, ids []chunk.ID) ([][]byte, error) {
	out := make([][]byte, len(ids))
	p.calls++
	p.largest = max(p.largest, len(ids))
	for i, id := range ids {
		page, ok := p.byID[id]
		if !ok {
			return nil, fmt.Errorf("page %s: %w", id, chunk.ErrAbsent)
		}
		out[i] = page
		p.requests++
		p.fetched += int64(len(page))
	}
	return out, nil
}

func (p *pages) write(_ context.Context, id chunk.ID, page []byte) error {
	p.written += int64(len(page))
	p.byID[id] = slices.Clone(page)
	return nil
}

// discard counts and keeps nothing.
type discard struct{ *pages }

func (d discard) write(_ context.Context, _ chunk.ID, page []byte) error {
	d.written += int64(len(page))
	return nil
}

type writer interface {
	write(ctx context.Context, id chunk.ID, page []byte) error
}

// build writes a tree on top of base.
func build(base point.Tree, to writer, fill func(set func(int64, chunk.ID))) (root chunk.ID, err error) {
	ctx := context.Background()
	b, err := point.NewBuilder(base, to.write)
	if err != nil {
		return root, err
	}
	fill(func(index int64, id chunk.ID) {
		if err == nil {
			err = b.Set(ctx, index, id)
		}
	})
	if err != nil {
		return root, err
	}
	return b.Finish(ctx)
}
