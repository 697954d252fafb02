package repository

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/zeebo/blake3"

	"github.com/holdfast-dr/holdfast/core/blob"
	"github.com/holdfast-dr/holdfast/core/chunk"
	"github.com/holdfast-dr/holdfast/core/point"
)

// What points use is kept in the index as a generation: one key for every
// record that a live point needs, or that only binned points and the bases of
// open sessions do, with its size. A commit adds to the present generation;
// everything else walks all points into a new one. The sum of the points that a
// generation counts tells at Open whether it is that of the catalogue.

// use says who needs a record.
type use byte

const (
	usedNot  use = 0
	usedHeld use = 1 // by binned points and bases only: kept, not charged
	usedLive use = 2
)

// usedState is the present generation.
type usedState struct {
	generation uint64
	sum        [32]byte
	walking    bool           // a new generation is being made
	recent     []point.Public // committed since the walk began
	stale      bool           // a point uses what the generation lacks
}

// addPoint adds a point to, or takes it from, a sum.
func addPoint(sum *[32]byte, id point.ID, u use) {
	h := blake3.Sum256(append([]byte{byte(u)}, id...))
	for i := range sum {
		sum[i] ^= h[i]
	}
}

func (r *Repository) usedPrefix(generation uint64) []byte {
	return r.space.key(familyUsed, binary.BigEndian.AppendUint64(nil, generation))
}

// use looks a record up in the present generation; r.charging is held.
func (r *Repository) use(recordKey []byte) (use, error) {
	return r.useIn(r.used.generation, recordKey)
}

func (r *Repository) useIn(generation uint64, recordKey []byte) (use, error) {
	u, _, err := r.useAndSize(generation, recordKey)
	return u, err
}

func (r *Repository) useAndSize(generation uint64, recordKey []byte) (u use, size uint32, err error) {
	value, ok, err := r.space.get(append(r.usedPrefix(generation), recordKey...))
	if err != nil || !ok || len(value) != 5 {
		return usedNot, 0, err
	}
	return use(value[0]), binary.LittleEndian.Uint32(value[1:]), nil
}

func usedValue(u use, size uint32) []byte {
	return binary.LittleEndian.AppendUint32([]byte{byte(u)}, size)
}

func (b *batch) setState(s usedState) {
	b.set(b.s.key(familyState), append(binary.BigEndian.AppendUint64(nil, s.generation), s.sum[:]...))
}

// noteUsed adds a committed point to the present generation, and takes what it
// uses out of what is pending; r.charging is held.
// The point exists already, so an error only makes the generation stale.
func (r *Repository) noteUsed(d *demand, pending int64) {
	b := r.space.batch()
	prefix := r.usedPrefix(r.used.generation)
	err := r.space.each(d.prefix(), func(key, value []byte) error {
		size, pack := parseDemand(value)
		b.set(append(append([]byte(nil), prefix...), key...), usedValue(usedLive, size))
		b.delete(r.space.pendingKey(pack, key))
		return b.spill()
	})
	addPoint(&r.used.sum, d.p.Point, usedLive)
	if err == nil {
		b.setState(r.used)
		b.setPending(pending)
		r.pending = pending
		err = b.apply()
	} else {
		b.drop()
	}
	if err != nil {
		r.used.stale = true
		r.log.Error("note what a point uses", "point", d.p.Point, "error", err)
	}
	if r.used.walking {
		r.used.recent = append(r.used.recent, d.p)
	}
}

// openUsed takes the generation that the index holds if it is that of the
// catalogue's points, else makes a new one, and says so.
func (r *Repository) openUsed(ctx context.Context) (walked bool, err error) {
	value, ok, err := r.space.get(r.space.key(familyState))
	if err != nil {
		return false, err
	}
	if ok && len(value) == 40 {
		var sum [32]byte
		for _, binned := range []bool{false, true} {
			for p, err := range r.allPoints(ctx, binned) {
				if err != nil {
					return false, err
				}
				addPoint(&sum, p.ID, useOf(binned))
			}
		}
		r.used = usedState{generation: binary.BigEndian.Uint64(value), sum: [32]byte(value[8:])}
		if sum == r.used.sum {
			return false, nil
		}
	}
	w, err := r.walk(ctx)
	if err != nil {
		return false, err
	}
	if len(w.broken) > 0 {
		r.log.Error("map pages of points cannot be read", "points", len(w.broken), "first", w.broken[0])
	}
	return true, nil
}

func useOf(binned bool) use {
	if binned {
		return usedHeld
	}
	return usedLive
}

// allPoints lists every live, or every binned, point of the catalogue.
func (r *Repository) allPoints(ctx context.Context, binned bool) func(func(PointRecord, error) bool) {
	return func(yield func(PointRecord, error) bool) {
		for q := (PointQuery{Binned: binned, Limit: MaxPoints}); ; {
			points, err := r.catalogue.Points(ctx, r.id, q)
			if err != nil {
				yield(PointRecord{}, fmt.Errorf("list points: %w", err))
				return
			}
			for _, p := range points {
				if q.After = p.ID; !yield(p, nil) {
					return
				}
			}
			if len(points) < q.Limit {
				return
			}
		}
	}
}

// walk is one walk over the maps of all points into a new generation.
type walk struct {
	r          *Repository
	generation uint64
	sum        [32]byte
	liveBytes  int64
	heldBytes  int64
	broken     []point.ID // points with pages that cannot be read
	batch      *batch
}

// walk makes a new generation the present one. Points that are committed
// meanwhile are in it. Memory is one page per level and one batch.
func (r *Repository) walk(ctx context.Context) (*walk, error) {
	r.marking.Lock()
	defer r.marking.Unlock()
	r.charging.Lock()
	w := &walk{r: r, generation: r.used.generation + 1}
	r.used.walking, r.used.recent = true, nil
	r.charging.Unlock()

	err := w.everything(ctx)
	r.charging.Lock()
	defer r.charging.Unlock()
	if err == nil {
		err = w.finish(ctx)
	}
	r.used.walking, r.used.recent = false, nil
	if err != nil {
		return nil, errors.Join(err, r.space.clear(r.usedPrefix(w.generation)))
	}
	return w, nil
}

func (w *walk) everything(ctx context.Context) error {
	if err := w.r.space.clear(w.r.usedPrefix(w.generation)); err != nil { // of a walk that a crash cut
		return err
	}
	for _, binned := range []bool{false, true} { // live ones first: they count as live whatever else uses them
		for record, err := range w.r.allPoints(ctx, binned) {
			if err != nil {
				return err
			}
			addPoint(&w.sum, record.ID, useOf(binned))
			if err := w.record(ctx, record, useOf(binned)); err != nil {
				return err
			}
		}
	}
	return nil
}

// finish adds what was committed during the walk and takes the generation into
// use; r.charging is held.
func (w *walk) finish(ctx context.Context) error {
	r := w.r
	for _, p := range r.used.recent {
		counted, err := w.counted(ctx, p)
		if err != nil {
			return err
		}
		if !counted {
			addPoint(&w.sum, p.Point, usedLive)
		}
		if err := w.point(ctx, p, usedLive); err != nil {
			return err
		}
	}
	old, b := r.used, r.space.batch()
	// What lies below a page that cannot be read is used, and not in the
	// generation: a collection that goes on meanwhile must not rely on it.
	r.used.generation, r.used.sum, r.used.stale = w.generation, w.sum, len(w.broken) > 0
	if len(w.broken) == 0 && r.refusal == nil { // commits wait, so the figure is exact
		if err := r.catalogue.Settle(ctx, r.id, r.epoch, w.liveBytes); err != nil {
			r.used = old
			return errors.Join(fmt.Errorf("settle what is used: %w", err), b.b.Close())
		}
	}
	b.setState(r.used)
	if err := b.apply(); err != nil {
		r.used = old
		return err
	}
	return r.space.clear(r.usedPrefix(old.generation))
}

// counted reports whether the listing of the walk had the point: the sum is the
// catalogue's if so. It only matters to the next Open, which walks again if in
// doubt.
func (w *walk) counted(ctx context.Context, p point.Public) (bool, error) {
	use, err := w.r.useIn(w.generation, recordKey(0, pointMark(p.Point)))
	return use != usedNot, err
}

// pointMark is a key for the point itself, beside those of its records.
func pointMark(id point.ID) chunk.ID { return blake3.Sum256([]byte(id)) }

func (w *walk) record(ctx context.Context, record PointRecord, u use) error {
	_, p, err := w.r.readManifest(ctx, record)
	if errors.Is(err, chunk.ErrDamaged) || errors.Is(err, blob.ErrNotFound) {
		w.broken = append(w.broken, record.ID)
		return nil
	}
	if err != nil {
		return err
	}
	return w.point(ctx, p, u)
}

func (w *walk) point(ctx context.Context, p point.Public, u use) error {
	w.batch = w.r.space.batch()
	whole := true
	for i, disk := range p.Disks {
		if disk.Root.IsZero() {
			continue
		}
		ok, err := w.page(ctx, disk.Root, p.Geometry(i).RootLevel(), u)
		if err != nil {
			w.batch.drop()
			return err
		}
		whole = whole && ok
	}
	if !whole {
		w.broken = append(w.broken, p.Point)
	}
	w.set(recordKey(0, pointMark(p.Point)), usedHeld, 0)
	return w.batch.apply()
}

func (w *walk) set(record []byte, u use, size uint32) {
	w.batch.set(append(w.r.usedPrefix(w.generation), record...), usedValue(u, size))
}

// page marks a page and everything below it, and reports whether all its pages
// could be read.
func (w *walk) page(ctx context.Context, id chunk.ID, level int, u use) (bool, error) {
	if err := ctx.Err(); err != nil {
		return false, err
	}
	fresh, err := w.mark(chunk.KindPage, id, u)
	if err != nil || !fresh {
		return true, err
	}
	page, err := w.r.page(ctx, id)
	if errors.Is(err, chunk.ErrDamaged) || errors.Is(err, ErrNotFound) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	if page.Level != level {
		return false, nil
	}
	whole := true
	for _, child := range page.IDs {
		if child.IsZero() {
			continue
		}
		if level == 0 {
			if _, err := w.mark(chunk.KindData, child, u); err != nil {
				return false, err
			}
			continue
		}
		ok, err := w.page(ctx, child, level-1, u)
		if err != nil {
			return false, err
		}
		whole = whole && ok
	}
	return whole, nil
}

// mark enters one record, unless it is there already. The batch is written at
// once, so that what repeats is seen.
func (w *walk) mark(kind chunk.Kind, id chunk.ID, u use) (fresh bool, err error) {
	key := recordKey(kind, id)
	known, err := w.r.useIn(w.generation, key)
	if err != nil || known >= u {
		return false, err
	}
	copies, _, err := w.r.live(kind, id)
	if err != nil {
		return false, err
	}
	size := uint32(0)
	if len(copies) > 0 {
		size = copies[0].Length
	}
	switch {
	case u == usedHeld:
		w.heldBytes += int64(size)
	case known == usedHeld:
		w.heldBytes -= int64(size)
		w.liveBytes += int64(size)
	default:
		w.liveBytes += int64(size)
	}
	b := w.r.space.batch()
	b.set(append(w.r.usedPrefix(w.generation), key...), usedValue(u, size))
	return true, b.apply()
}

// page reads a map page by way of the index, and from its pack if the index
// lacks it. Its hash is checked.
func (r *Repository) page(ctx context.Context, id chunk.ID) (point.Page, error) {
	key := r.space.key(familyPage, id[:])
	encoded, ok, err := r.space.get(key)
	if err != nil {
		return point.Page{}, err
	}
	if ok && point.PageID(encoded) == id {
		return point.ParsePage(encoded)
	}
	var page point.Page
	err = r.Read(ctx, chunk.KindPage, []chunk.ID{id}, func(record chunk.Record) error {
		if got := point.PageID(record.Body); got != id {
			return fmt.Errorf("map page %s has the content of %s: %w", id, got, chunk.ErrDamaged)
		}
		if page, err = point.ParsePage(record.Body); err != nil {
			return err
		}
		b := r.space.batch()
		b.set(key, record.Body)
		if err := b.apply(); !errors.Is(err, blob.ErrFull) { // it is read from its pack the next time
			return err
		}
		return nil
	})
	return page, err
}
