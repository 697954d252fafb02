package repository

import (
	"context"
	"errors"
	"fmt"
	"io"

	"golang.org/x/sync/errgroup"

	"github.com/holdfast-dr/holdfast/core/blob"
	"github.com/holdfast-dr/holdfast/core/chunk"
)

// Bounds of one Read.
const (
	readAhead = 4        // ranges that are read at once
	readRange = 4 << 20  // bytes of one range
	readGap   = 64 << 10 // bytes between two records that are read rather than asked around
)

// stretch is a range of a pack with the records of several ids that follow each
// other in the request.
type stretch struct {
	kind       chunk.Kind
	pack       PackID
	start, end int64
	wanted     []location
}

// Read calls emit for each id in the order asked. Neighbours in a pack are read
// with one request, and several requests run at once; memory is bounded by
// readAhead ranges. Every checksum is verified: a damaged copy is recorded, and
// another one is tried. *AbsentError and *DamagedError name the id that could
// not be read.
func (r *Repository) Read(ctx context.Context, kind chunk.Kind, ids []chunk.ID, emit func(chunk.Record) error) error {
	if len(ids) > MaxIDs || kind != chunk.KindData && kind != chunk.KindPage {
		return fmt.Errorf("read: %d ids of kind %d: %w", len(ids), kind, ErrRefused)
	}
	plan, err := r.plan(kind, ids)
	if err != nil {
		return err
	}
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	group, ctx := errgroup.WithContext(ctx)
	results := make(chan chan []chunk.Record, readAhead-1) // in order; its capacity bounds what is under way
	group.Go(func() error {
		defer close(results)
		for _, s := range plan {
			result := make(chan []chunk.Record, 1)
			select {
			case results <- result:
			case <-ctx.Done():
				return ctx.Err()
			}
			group.Go(func() error {
				records, err := r.readStretch(ctx, s)
				if err == nil {
					result <- records
				}
				return err
			})
		}
		return nil
	})
	emitErr := drain(ctx, results, emit)
	stop()
	groupErr := group.Wait()
	if emitErr != nil && !errors.Is(emitErr, context.Canceled) {
		return emitErr
	}
	if groupErr != nil {
		return groupErr
	}
	return emitErr
}

// drain emits what was read, in order, in the caller's goroutine.
func drain(ctx context.Context, results <-chan chan []chunk.Record, emit func(chunk.Record) error) error {
	for result := range results {
		select {
		case records := <-result:
			for _, record := range records {
				if err := emit(record); err != nil {
					return err
				}
			}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// plan finds where everything is, and what can be read together.
func (r *Repository) plan(kind chunk.Kind, ids []chunk.ID) ([]*stretch, error) {
	var plan []*stretch
	var last *stretch
	for _, id := range ids {
		copies, _, err := r.live(kind, id)
		if err != nil {
			return nil, err
		}
		if len(copies) == 0 {
			return nil, &AbsentError{Kind: kind, ID: id}
		}
		l := copies[0]
		end := l.Offset + int64(l.Length)
		if last != nil && last.pack == l.pack && l.Offset >= last.end && l.Offset-last.end <= readGap && end-last.start <= readRange {
			last.end, last.wanted = end, append(last.wanted, l)
			continue
		}
		last = &stretch{kind: kind, pack: l.pack, start: l.Offset, end: end, wanted: []location{l}}
		plan = append(plan, last)
	}
	return plan, nil
}

// readStretch reads one range. Records that are not what was written are read
// from another copy.
func (r *Repository) readStretch(ctx context.Context, s *stretch) ([]chunk.Record, error) {
	buf := make([]byte, s.end-s.start)
	err := r.blobs.ReadAt(ctx, r.packName(s.kind, s.pack), buf, s.start)
	gone := errors.Is(err, blob.ErrNotFound) // collected since it was looked up, or lost
	cut := errors.Is(err, io.ErrUnexpectedEOF)
	if err != nil && !gone && !cut {
		return nil, fmt.Errorf("read pack %s: %w", s.pack, err)
	}
	records := make([]chunk.Record, len(s.wanted))
	for i, l := range s.wanted {
		if !gone {
			if cut {
				records[i], err = r.readCopy(ctx, s.kind, l)
			} else {
				records[i], err = parseAt(buf[l.Offset-s.start:], l.Entry)
			}
			if err == nil {
				continue
			}
			if !errors.Is(err, chunk.ErrDamaged) {
				return nil, err
			}
			if err := r.markDamaged(ctx, s.kind, l.ID, s.pack); err != nil {
				return nil, err
			}
		}
		not := s.pack
		if gone {
			not = PackID{} // whatever the index says now
		}
		if records[i], err = r.readOther(ctx, s.kind, l.ID, not); err != nil {
			return nil, err
		}
	}
	return records, nil
}

// readOther reads a record from any copy but that in one pack.
func (r *Repository) readOther(ctx context.Context, kind chunk.Kind, id chunk.ID, not PackID) (chunk.Record, error) {
	copies, _, err := r.live(kind, id)
	if err != nil {
		return chunk.Record{}, err
	}
	var damaged *DamagedError
	for _, l := range copies {
		if l.pack == not {
			if l.damaged {
				damaged = &DamagedError{Kind: kind, ID: id, Pack: l.pack}
			}
			continue
		}
		record, err := r.readCopy(ctx, kind, l)
		switch {
		case err == nil:
			return record, nil
		case errors.Is(err, chunk.ErrDamaged):
			damaged = &DamagedError{Kind: kind, ID: id, Pack: l.pack}
			if err := r.markDamaged(ctx, kind, id, l.pack); err != nil {
				return chunk.Record{}, err
			}
		case !errors.Is(err, blob.ErrNotFound):
			return chunk.Record{}, err
		}
	}
	if damaged != nil {
		return chunk.Record{}, damaged
	}
	return chunk.Record{}, &AbsentError{Kind: kind, ID: id}
}

// readCopy reads one copy of a record.
func (r *Repository) readCopy(ctx context.Context, kind chunk.Kind, l location) (chunk.Record, error) {
	buf := make([]byte, l.Length)
	err := r.blobs.ReadAt(ctx, r.packName(kind, l.pack), buf, l.Offset)
	if errors.Is(err, io.ErrUnexpectedEOF) {
		return chunk.Record{}, fmt.Errorf("pack %s is cut: %w", l.pack, chunk.ErrDamaged)
	}
	if err != nil {
		return chunk.Record{}, fmt.Errorf("read pack %s: %w", l.pack, err)
	}
	return parseAt(buf, l.Entry)
}
