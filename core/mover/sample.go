package mover

import (
	"context"
	crand "crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/holdfast-dr/holdfast/core/chunk"
)

// Seed decides which chunks are samples. The zero Seed stands for an
// unpredictable one: neither a tracker nor a provider shall know where nobody
// looks. Stats tell which it was, so that a finding can be looked at again: with
// the same seed, base and changes the audit reads the same chunks.
type Seed [32]byte

// String is the seed in hex.
func (s Seed) String() string { return hex.EncodeToString(s[:]) }

func randomSeed() (seed Seed) {
	_, _ = crand.Read(seed[:]) // never fails
	return seed
}

// Sample is how many chunks of a kind were looked at, and how many were wrong.
type Sample struct {
	Chunks int
	Bytes  int64
	Wrong  int
}

// Detection is the probability that a number of runs with samples of this size
// find something, if this share of all chunks is wrong: 1-(1-share)^(chunks·runs).
// It is a lower bound where what is wrong was written, since half of the audit
// looks there alone.
func (s Sample) Detection(share float64, runs int) float64 {
	return 1 - math.Pow(1-share, float64(s.Chunks)*float64(runs))
}

type candidate struct {
	id   chunk.ID
	base bool // the base point has it, so the repository must
}

// reservoir is an even sample, of at most maxSample, of everything offered.
type reservoir struct {
	random *rand.Rand
	seen   int64
	kept   []candidate
}

func (r *reservoir) offer(c candidate) {
	r.seen++
	if len(r.kept) < maxSample {
		r.kept = append(r.kept, c)
	} else if at := r.random.Int64N(r.seen); at < maxSample {
		r.kept[at] = c
	}
}

// unchanged picks chunks that the change tracker does not name: half of them
// anywhere, half among those that the base does not have as zeroes, where guests
// write most.
func (s *sending) unchanged(ctx context.Context, n int) ([]int64, error) {
	chunks := s.disk.Geometry.Chunks()
	if free := chunks - s.changed.count; int64(n) > free {
		n = int(free)
	}
	picked := make(map[int64]struct{}, n)
	for tries := 0; len(picked) < n && tries < 20*n+100; tries++ {
		i := s.random.Int64N(chunks)
		if tries%2 == 1 {
			var err error
			if i, err = s.written(ctx, i); err != nil {
				return nil, err
			}
		}
		if i >= 0 && !s.changed.has(i) {
			picked[i] = struct{}{}
		}
	}
	indexes := make([]int64, 0, len(picked))
	for i := range picked {
		indexes = append(indexes, i)
	}
	slices.Sort(indexes)
	return indexes, nil
}

// neighbours is how many chunks that are not zero one draw chooses among. Taking
// the first one after a random place would look at the beginnings of what was
// written and hardly anywhere else.
const neighbours = 128

// written draws one of the chunks from i on that the base does not have as
// zeroes, and from the beginning after the end; -1 if there is none.
func (s *sending) written(ctx context.Context, i int64) (int64, error) {
	found, stop := make([]int64, 0, neighbours), errors.New("stop")
	for _, part := range [][2]int64{{i, s.disk.Geometry.Chunks()}, {0, i}} {
		err := s.base.Walk(ctx, part[0], part[1], func(index int64, _ chunk.ID) error {
			if found = append(found, index); len(found) == neighbours {
				return stop
			}
			return nil
		})
		if err != nil && !errors.Is(err, stop) {
			return 0, fmt.Errorf("look for a chunk of the base: %w", err)
		}
		if len(found) == neighbours {
			break
		}
	}
	if len(found) == 0 {
		return -1, nil
	}
	return found[s.random.IntN(len(found))], nil
}

func sampleSize(asked, wanted int) int {
	switch {
	case asked < 0:
		return 0
	case asked > 0:
		return min(asked, maxSample)
	default:
		return min(max(wanted, minSample), maxSample)
	}
}

// audit reads chunks that the change tracker calls unchanged and compares them
// with the base.
func (s *sending) audit(ctx context.Context) error {
	if s.changed == nil {
		return nil
	}
	n := sampleSize(s.opts.AuditChunks, int(min(s.changed.count/50, maxSample)))
	indexes, err := s.unchanged(ctx, n)
	if err != nil {
		return err
	}
	want := make([]chunk.ID, len(indexes))
	if err := s.base.Select(ctx, indexes, func(i int, id chunk.ID) error { want[i] = id; return nil }); err != nil {
		return fmt.Errorf("look up the base's chunks: %w", err)
	}
	got := make([]chunk.ID, len(indexes))
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(s.opts.Readers)
	for i, index := range indexes {
		g.Go(func() (err error) {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			got[i], err = s.peek(index)
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	lie := AuditError{Checked: len(indexes), Seed: s.opts.Seed}
	for i := range indexes {
		if got[i] == want[i] {
			continue
		}
		if lie.Wrong++; lie.Wrong == 1 {
			lie.Offset = indexes[i] * s.disk.Geometry.ChunkSize
		}
	}
	s.count(func(st *Stats) {
		st.Audit = Sample{Chunks: len(indexes), Bytes: s.meter.read.Load(), Wrong: lie.Wrong}
	})
	if lie.Wrong > 0 {
		return &lie
	}
	return nil
}

// peek reads and hashes one chunk.
func (s *sending) peek(index int64) (chunk.ID, error) {
	started := time.Now()
	it := item{chunks: []piece{{index: index}}, slab: make([]byte, s.disk.Geometry.ChunkLength(index))}
	if err := s.fill(&it); err != nil {
		return chunk.ID{}, err
	}
	clock(&s.meter.source, started)
	if slices.Equal(it.slab, s.zeroes[:len(it.slab)]) {
		return chunk.ID{}, nil
	}
	return s.to.Keys.ID(it.slab), nil
}

// verify fetches, opens and hashes chunks that this run did not send.
func (s *sending) verify(ctx context.Context) error {
	if s.to.Reader == nil || s.opts.VerifyChunks < 0 {
		return nil
	}
	s.mutex.Lock()
	average := int64(s.disk.Geometry.ChunkSize)
	if s.stats.SentChunks > 0 {
		average = max(1, s.stats.StoredBytes/s.stats.SentChunks)
	}
	n := sampleSize(s.opts.VerifyChunks, int(min(s.stats.StoredBytes/20/average, maxSample)))
	picked := s.sample.kept
	s.mutex.Unlock()
	s.random.Shuffle(len(picked), func(i, j int) { picked[i], picked[j] = picked[j], picked[i] })
	if s.changed != nil {
		kept, err := s.keptChunks(ctx, n)
		if err != nil {
			return err
		}
		// Half of either, more where the other has too few.
		fromRun := min(len(picked), max(n/2, n-len(kept)))
		picked = append(slices.Clone(picked[:fromRun]), kept...)
	}
	picked = picked[:min(n, len(picked))]
	const perRequest = 8
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(s.opts.Connections)
	for group := range slices.Chunk(picked, perRequest) {
		g.Go(func() error { return s.prove(ctx, group) })
	}
	return g.Wait()
}

// keptChunks picks ids that the map takes over from the base unread.
func (s *sending) keptChunks(ctx context.Context, n int) ([]candidate, error) {
	indexes, err := s.unchanged(ctx, 2*n)
	if err != nil {
		return nil, err
	}
	var kept []candidate
	seen := make(map[chunk.ID]struct{}, n)
	err = s.base.Select(ctx, indexes, func(_ int, id chunk.ID) error {
		if _, again := seen[id]; !again && !id.IsZero() {
			seen[id] = struct{}{}
			kept = append(kept, candidate{id: id, base: true})
		}
		return nil
	})
	s.random.Shuffle(len(kept), func(i, j int) { kept[i], kept[j] = kept[j], kept[i] })
	return kept[:min(n, len(kept))], err
}

func (s *sending) prove(ctx context.Context, group []candidate) error {
	ids := make([]chunk.ID, len(group))
	for i, c := range group {
		ids[i] = c.id
	}
	g := newGetter(s.to, s.retry, nil)
	var opened []byte
	return g.get(ctx, ids, &opened, func(i int, plain []byte, bad error) error {
		opened = opened[:0]
		if errors.Is(bad, chunk.ErrAbsent) && !group[i].base {
			return nil // in a session, not readable before it is committed
		}
		s.count(func(st *Stats) {
			st.Verified.Chunks++
			st.Verified.Bytes += int64(len(plain))
			if bad != nil {
				st.Verified.Wrong++
				st.Damaged = append(st.Damaged, Suspect{ID: ids[i], Session: g.session})
			}
		})
		return nil
	})
}

// isBad reports whether an error is about one record or page, and not about
// the way to it.
func isBad(err error) bool {
	return errors.Is(err, chunk.ErrDamaged) || errors.Is(err, chunk.ErrAbsent)
}
