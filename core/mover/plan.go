package mover

import (
	"context"
	"errors"
	"fmt"
	"iter"

	"github.com/holdfast-dr/holdfast/core/chunk"
	"github.com/holdfast-dr/holdfast/core/point"
	"github.com/holdfast-dr/holdfast/sdk"
)

// survey learns what changed and where the base is damaged.
func (s *sending) survey(ctx context.Context) error {
	g := s.disk.Geometry
	s.meter.total.Store(g.SizeBytes)
	s.stats.ChangedBytes = g.SizeBytes
	if s.disk.kind() != point.KindIncremental {
		return nil
	}
	s.changed = newSet()
	for e, err := range s.disk.Changed(ctx) {
		if err != nil {
			return fmt.Errorf("list changed extents: %w", err)
		}
		if e.Offset < 0 || e.Length < 0 || e.Offset > g.SizeBytes || e.Length > g.SizeBytes-e.Offset {
			return fmt.Errorf("changed extent at %d of %d bytes lies outside the disk: %w", e.Offset, e.Length, sdk.ErrInvalid)
		}
		s.changed.add(e.Offset/g.ChunkSize, (e.End()+g.ChunkSize-1)/g.ChunkSize)
	}
	if len(s.suspect) > 0 {
		if err := s.base.Walk(ctx, 0, g.Chunks(), func(index int64, id chunk.ID) error {
			if _, bad := s.suspect[id]; bad {
				s.changed.add(index, index+1)
			}
			return nil
		}); err != nil {
			return fmt.Errorf("look for damaged chunks in the base: %w", err)
		}
	}
	total := int64(0)
	for first, end := range s.changed.runs() {
		total += s.bytes(first, end)
	}
	s.stats.ChangedBytes = total
	s.meter.total.Store(total)
	return nil
}

// bytes is the length of the chunks in [first, end).
func (s *sending) bytes(first, end int64) int64 {
	g := s.disk.Geometry
	return min(end*g.ChunkSize, g.SizeBytes) - first*g.ChunkSize
}

// span is a range of chunks to be read, or known to be zero.
type span struct {
	first, end int64
	zero       bool
}

// shortRun is the length in chunks below which a changed range is read without
// asking what of it is allocated: the question costs as much as the bytes.
const shortRun = 16

func (s *sending) spans(ctx context.Context) iter.Seq2[span, error] {
	if s.changed == nil {
		return s.allocated(ctx, 0, s.disk.Geometry.Chunks())
	}
	return func(yield func(span, error) bool) {
		for first, end := range s.changed.runs() {
			if end-first < shortRun {
				if !yield(span{first: first, end: end}, nil) {
					return
				}
				continue
			}
			for sp, err := range s.allocated(ctx, first, end) {
				if !yield(sp, err) || err != nil {
					return
				}
			}
		}
	}
}

// allocated divides [first, end) by the source's allocation map. A map with a
// gap is an error: a chunk taken for zero would be lost.
func (s *sending) allocated(ctx context.Context, first, end int64) iter.Seq2[span, error] {
	return func(yield func(span, error) bool) {
		if first >= end {
			return
		}
		size := s.disk.Geometry.ChunkSize
		at, next := first*size, first
		limit := at + s.bytes(first, end)
		for e, err := range s.disk.Reader.Extents(ctx, at, limit-at) {
			if errors.Is(err, sdk.ErrUnsupported) && next == first {
				yield(span{first: first, end: end}, nil)
				return
			}
			if err != nil {
				yield(span{}, fmt.Errorf("read allocation map: %w", err))
				return
			}
			if e.Offset != at || e.Length <= 0 || e.Length > limit-at {
				yield(span{}, fmt.Errorf("allocation map goes from byte %d to an extent at %d of %d bytes: %w", at, e.Offset, e.Length, sdk.ErrInvalid))
				return
			}
			at = e.End()
			from, to := max(e.Offset/size, next), min((at+size-1)/size, end)
			if e.Zero || from >= to {
				continue
			}
			if from > next && !yield(span{first: next, end: from, zero: true}, nil) {
				return
			}
			if !yield(span{first: from, end: to}, nil) {
				return
			}
			next = to
		}
		if at != limit {
			yield(span{}, fmt.Errorf("allocation map ends at byte %d of %d: %w", at, limit, sdk.ErrInvalid))
			return
		}
		if next < end {
			yield(span{first: next, end: end, zero: true}, nil)
		}
	}
}

// planner gathers chunks into items, looking up the base ids of many at once.
type planner struct {
	s       *sending
	seq     int64
	waiting []piece
}

func (s *sending) plan(ctx context.Context) error {
	p := &planner{s: s}
	for sp, err := range s.spans(ctx) {
		if err != nil {
			return err
		}
		if sp.zero {
			err = p.zero(ctx, sp)
		} else {
			err = p.data(ctx, sp)
		}
		if err != nil {
			return err
		}
	}
	return p.flush(ctx)
}

func (p *planner) add(ctx context.Context, piece piece) error {
	p.waiting = append(p.waiting, piece)
	if len(p.waiting) < lookAhead {
		return nil
	}
	return p.flush(ctx)
}

func (p *planner) data(ctx context.Context, sp span) error {
	for i := sp.first; i < sp.end; i++ {
		if err := p.add(ctx, piece{index: i}); err != nil {
			return err
		}
	}
	return nil
}

// zero enters those chunks of a hole that the base has otherwise.
func (p *planner) zero(ctx context.Context, sp span) error {
	p.s.meter.done.Add(p.s.bytes(sp.first, sp.end))
	if p.s.disk.Base == nil {
		return nil
	}
	return p.s.base.Walk(ctx, sp.first, sp.end, func(index int64, id chunk.ID) error {
		return p.add(ctx, piece{index: index, zero: true, base: id})
	})
}

func (p *planner) flush(ctx context.Context) error {
	if err := p.lookUp(ctx); err != nil {
		return err
	}
	perSlab := int(max(slabBytes, p.s.disk.Geometry.ChunkSize) / p.s.disk.Geometry.ChunkSize)
	var chunks []piece
	reads := 0
	emit := func() error {
		if len(chunks) == 0 {
			return nil
		}
		if err := give(ctx, p.s.tokens, struct{}{}); err != nil {
			return err
		}
		it := &item{seq: p.seq, chunks: chunks}
		p.seq++
		chunks, reads = nil, 0
		return give(ctx, p.s.plans, it)
	}
	for _, c := range p.waiting {
		chunks = append(chunks, c)
		if !c.zero {
			reads++
		}
		if reads == perSlab {
			if err := emit(); err != nil {
				return err
			}
		}
	}
	p.waiting = p.waiting[:0]
	return emit()
}

func (p *planner) lookUp(ctx context.Context) error {
	if p.s.disk.Base == nil {
		return nil
	}
	var indexes []int64
	var places []int
	for i, c := range p.waiting {
		if !c.zero {
			indexes, places = append(indexes, c.index), append(places, i)
		}
	}
	err := p.s.base.Select(ctx, indexes, func(i int, id chunk.ID) error {
		p.waiting[places[i]].base = id
		return nil
	})
	if err != nil {
		return fmt.Errorf("look up the base's chunks: %w", err)
	}
	return nil
}
