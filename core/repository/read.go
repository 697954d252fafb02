package repository

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/holdfast-dr/holdfast/core/blob"
	"github.com/holdfast-dr/holdfast/core/chunk"
)

// Bounds of reading.
const (
	// stretchBytes of records are read together, into one buffer: two chunks that
	// do not compress, four usual ones.
	stretchBytes = 2 * (chunk.HeaderSize + chunk.Size + chunk.Overhead)
	readGap      = 64 << 10 // bytes between two records of a pack that are read rather than asked around
	readAhead    = 4        // stretches of one Read that are under way at once
	readRanges   = 4        // ranges of one stretch that are read at once
	// maxAhead is how many stretches all Reads of the process together hold, apart
	// from the one that each always has: a slow reader holds up nobody else.
	maxAhead = 64
)

// buffers are those of all stretches in the process.
var (
	stretchBuffers = sync.Pool{New: func() any { return new([]byte) }}
	aheadSlots     = make(chan struct{}, maxAhead)
)

// stretch is what follows each other in a request, up to stretchBytes bytes.
type stretch struct {
	kind   chunk.Kind
	wanted []location // in the order asked

	done    chan struct{} // closed when the fields below are set
	buffer  *[]byte
	records []chunk.Record // those before the one that err is about
	err     error
	counted bool // in ahead
}

// span is a range of a pack that is read at once.
type span struct {
	pack       PackID
	start, end int64
	into       []byte
	err        error // blob.ErrNotFound or io.ErrUnexpectedEOF
}

// Read calls emit for each id in the order asked, with a record that is valid
// during the call only. What follows each other in the request is read together,
// in the order of the packs, and some of it ahead; memory is bounded by
// readAhead stretches. Every checksum is verified: a damaged copy is recorded, and
// another one is tried. *AbsentError and *DamagedError name the id that could
// not be read, after those before it were emitted.
func (r *Repository) Read(ctx context.Context, kind chunk.Kind, ids []chunk.ID, emit func(chunk.Record) error) error {
	if len(ids) > MaxIDs || kind != chunk.KindData && kind != chunk.KindPage {
		return fmt.Errorf("read: %d ids of kind %d: %w", len(ids), kind, ErrRefused)
	}
	plan, missing := r.plan(kind, ids)
	ctx, stop := context.WithCancel(ctx)
	var running []*stretch // in order
	defer func() {
		stop()
		for _, w := range running {
			<-w.done
			w.release()
		}
	}()
	for len(plan) > 0 || len(running) > 0 {
		for len(plan) > 0 && len(running) < readAhead {
			w := plan[0]
			if w.counted = len(running) > 0; w.counted && !mayRunAhead() {
				break
			}
			plan, running = plan[1:], append(running, w)
			go func() {
				defer close(w.done)
				w.err = r.readStretch(ctx, w)
			}()
		}
		w := running[0]
		<-w.done
		for _, record := range w.records {
			if err := emit(record); err != nil {
				return err
			}
		}
		if w.err != nil {
			return w.err
		}
		w.release()
		running = running[1:]
	}
	return missing
}

func mayRunAhead() bool {
	select {
	case aheadSlots <- struct{}{}:
		return true
	default:
		return false
	}
}

// release gives back what a stretch holds; its records end to be valid.
func (w *stretch) release() {
	if w.buffer != nil {
		stretchBuffers.Put(w.buffer)
	}
	if w.counted {
		<-aheadSlots
	}
}

// plan finds where everything is and divides it into stretches, up to the first id
// that is absent.
func (r *Repository) plan(kind chunk.Kind, ids []chunk.ID) (plan []*stretch, missing error) {
	found := make([]location, 0, len(ids))
	for _, id := range ids {
		copies, _, err := r.live(kind, id)
		if err == nil && len(copies) == 0 {
			err = &AbsentError{Kind: kind, ID: id}
		}
		if err != nil {
			missing = err
			break
		}
		found = append(found, copies[0])
	}
	for len(found) > 0 {
		n, size := 1, int64(found[0].Length)
		for n < len(found) && size+int64(found[n].Length) <= stretchBytes {
			size += int64(found[n].Length)
			n++
		}
		plan = append(plan, &stretch{kind: kind, wanted: found[:n:n], done: make(chan struct{})})
		found = found[n:]
	}
	return plan, missing
}

// spans are the ranges to be read for a stretch, and for each location the one in
// which it lies.
func (w *stretch) spans() (spans []span, of []int) {
	order := make([]int, len(w.wanted))
	for i := range order {
		order[i] = i
	}
	slices.SortFunc(order, func(a, b int) int {
		first, second := &w.wanted[a], &w.wanted[b]
		return cmp.Or(bytes.Compare(first.pack[:], second.pack[:]), cmp.Compare(first.Offset, second.Offset))
	})
	of = make([]int, len(w.wanted))
	wasted := int64(0)
	for _, i := range order {
		l := &w.wanted[i]
		end := l.Offset + int64(l.Length)
		if len(spans) > 0 {
			last := &spans[len(spans)-1]
			gap := max(0, l.Offset-last.end)
			if last.pack == l.pack && gap <= readGap && wasted+gap <= stretchBytes {
				last.end, wasted, of[i] = max(last.end, end), wasted+gap, len(spans)-1
				continue
			}
		}
		of[i] = len(spans)
		spans = append(spans, span{pack: l.pack, start: l.Offset, end: end})
	}
	return spans, of
}

// readStretch reads a stretch's records. Those that are not what was written are
// read from another copy.
func (r *Repository) readStretch(ctx context.Context, w *stretch) error {
	spans, of := w.spans()
	size := int64(0)
	for _, s := range spans {
		size += s.end - s.start
	}
	w.buffer = stretchBuffers.Get().(*[]byte)
	if int64(cap(*w.buffer)) < size {
		*w.buffer = make([]byte, max(size, stretchBytes))
	}
	rest := (*w.buffer)[:cap(*w.buffer)]
	for i := range spans {
		n := spans[i].end - spans[i].start
		spans[i].into, rest = rest[:n:n], rest[n:]
	}
	if err := r.readSpans(ctx, w.kind, spans); err != nil {
		return err
	}
	w.records = make([]chunk.Record, 0, len(w.wanted))
	for i, l := range w.wanted {
		record, err := r.recordOf(ctx, w.kind, l, &spans[of[i]])
		if err != nil {
			return err
		}
		w.records = append(w.records, record)
	}
	return nil
}

// readSpans fills each span, or notes why it has less.
func (r *Repository) readSpans(ctx context.Context, kind chunk.Kind, spans []span) error {
	read := func(s *span) error {
		s.err = r.blobs.ReadAt(ctx, r.packName(kind, s.pack), s.into, s.start)
		if s.err == nil || errors.Is(s.err, blob.ErrNotFound) || errors.Is(s.err, io.ErrUnexpectedEOF) {
			return nil
		}
		return fmt.Errorf("read pack %s: %w", s.pack, s.err)
	}
	if len(spans) == 1 {
		return read(&spans[0])
	}
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(readRanges)
	for i := range spans {
		group.Go(func() error {
			if err := ctx.Err(); err != nil {
				return err
			}
			return read(&spans[i])
		})
	}
	return group.Wait()
}

// recordOf finds a record in what was read of its pack, or another copy of it.
func (r *Repository) recordOf(ctx context.Context, kind chunk.Kind, l location, from *span) (record chunk.Record, err error) {
	switch {
	case errors.Is(from.err, blob.ErrNotFound): // collected since it was looked up, or lost
		return r.readOther(ctx, kind, l.ID, PackID{}) // whatever the index says now
	case from.err != nil: // cut
		record, err = r.readCopy(ctx, kind, l)
	default:
		record, err = parseWhole(kind, from.into[l.Offset-from.start:], l.Entry)
	}
	if !errors.Is(err, chunk.ErrDamaged) {
		return record, err
	}
	if err := r.markDamaged(ctx, kind, l.ID, l.pack); err != nil {
		return chunk.Record{}, err
	}
	return r.readOther(ctx, kind, l.ID, l.pack)
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
	return parseWhole(kind, buf, l.Entry)
}

// parseWhole decodes a record, and of a map page checks the content, too: a page
// that its id does not name would otherwise be offered to writers as present,
// although every reader refuses it.
func parseWhole(kind chunk.Kind, b []byte, e Entry) (chunk.Record, error) {
	record, err := parseAt(b, e)
	if err == nil && kind == chunk.KindPage {
		err = notWritten(checkPage(record))
	}
	return record, err
}
