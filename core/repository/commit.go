package repository

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"

	"github.com/holdfast-dr/holdfast/core/blob"
	"github.com/holdfast-dr/holdfast/core/chunk"
	"github.com/holdfast-dr/holdfast/core/claim"
	"github.com/holdfast-dr/holdfast/core/point"
	"github.com/holdfast-dr/holdfast/core/quota"
	"github.com/holdfast-dr/holdfast/core/tenant"
)

// Commit makes the point of a manifest exist, and ends the session. In this
// order: what was put is synced into the store; every id that the point needs is
// looked up, but for the pages that it shares with its base; the manifest is
// synced; one transaction of the catalogue checks the epoch, records the point
// and charges it. Only its success promises durability.
//
// *point.MissingError names what has to be sent again; the session goes on. A
// *quota.FullError, too, leaves the session open, with nothing lost, but the
// point's id may be used up (ErrVoid): commit under a new one. Repeating a
// commit whose answer was lost answers as the first one did.
func (s *Session) Commit(ctx context.Context, manifest []byte) error {
	s.ending.Lock()
	defer s.ending.Unlock()
	p, err := point.ParsePublic(manifest)
	if err != nil {
		return fmt.Errorf("commit: %w: %w", ErrRefused, err)
	}
	if err := s.matches(p); err != nil {
		return fmt.Errorf("commit point %s: %w: %w", p.Point, ErrRefused, err)
	}
	committed, err := s.r.committed(ctx, p, manifest)
	if err != nil {
		return fmt.Errorf("commit point %s: %w", p.Point, err)
	}
	if committed {
		s.finish(p.Point)
		return nil
	}
	if err := s.touch(); err != nil {
		return fmt.Errorf("commit point %s: %w", p.Point, err)
	}
	if err := s.commit(ctx, p, manifest); err != nil {
		return fmt.Errorf("commit point %s: %w", p.Point, err)
	}
	s.finish(p.Point)
	return nil
}

// finish ends a session whose point exists, whatever becomes of its spool.
func (s *Session) finish(done point.ID) {
	if err := s.end(done); err != nil {
		s.r.log.Warn("the spool of a session stays", "session", sessionText(s.id), "error", err)
	}
}

func (s *Session) matches(p point.Public) error {
	switch {
	case p.Repository != s.r.id:
		return fmt.Errorf("manifest is for repository %s", p.Repository)
	case p.Machine != s.machine:
		return fmt.Errorf("manifest is of machine %s, the session of %s", p.Machine, s.machine)
	case p.Session != sessionText(s.id):
		return fmt.Errorf("manifest is of session %s, this is %s", p.Session, sessionText(s.id))
	case p.ChunkSize != s.r.chunkSize || p.FanOut != s.r.fanOut:
		return fmt.Errorf("manifest has chunk size %d and fan-out %d, the repository %d and %d", p.ChunkSize, p.FanOut, s.r.chunkSize, s.r.fanOut)
	}
	return nil
}

// committed reports whether this very point exists.
func (r *Repository) committed(ctx context.Context, p point.Public, manifest []byte) (bool, error) {
	record, err := r.catalogue.Point(ctx, r.id, p.Point)
	if errors.Is(err, tenant.ErrNotFound) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	present, _, err := r.readManifest(ctx, record)
	if err != nil {
		return false, err
	}
	if !bytes.Equal(present, manifest) {
		return false, fmt.Errorf("the point exists with another manifest: %w", ErrRefused)
	}
	return true, nil
}

func (s *Session) commit(ctx context.Context, p point.Public, manifest []byte) error {
	if err := s.r.Writable(); err != nil {
		return err
	}
	if err := s.shipAll(ctx); err != nil {
		return err
	}
	// From the look-ups to the transaction no copy that was counted may be
	// condemned.
	s.r.condemning.RLock()
	defer s.r.condemning.RUnlock()
	d := &demand{s: s, p: p}
	defer d.forget()
	if err := d.look(ctx); err != nil {
		return err
	}
	if err := s.putManifest(ctx, p, manifest); err != nil {
		return err
	}
	return s.record(ctx, d)
}

// putManifest syncs the manifest, after noting that it may be there.
func (s *Session) putManifest(ctx context.Context, p point.Public, manifest []byte) error {
	name := s.r.manifestName(p, s.r.epoch)
	_, err := blob.Stat(ctx, s.r.blobs, name+voidSuffix)
	if err == nil {
		return ErrVoid
	}
	if !errors.Is(err, blob.ErrNotFound) {
		return err
	}
	if s.try != nil && s.try.Object != name { // another point was tried before
		if err := s.void(ctx); err != nil {
			return err
		}
	}
	s.try = &attempt{Point: p.Point, Machine: p.Machine, Object: name}
	if err := s.note(); err != nil {
		return err
	}
	if err := s.r.putBytes(ctx, name, manifest); err != nil {
		return fmt.Errorf("store manifest: %w", err)
	}
	return nil
}

// void marks the manifest that was tried as refused, so that an import never
// takes it for a point.
func (s *Session) void(ctx context.Context) error {
	err := s.r.blobs.Put(ctx, s.try.Object+voidSuffix, strings.NewReader(""), 0)
	if err != nil && !errors.Is(err, blob.ErrExists) {
		return fmt.Errorf("void manifest: %w", err)
	}
	s.try = nil
	return s.note()
}

// settleAttempt decides about a manifest whose commit did not come back: it is
// a point, or it is void.
func (r *Repository) settleAttempt(ctx context.Context, s *Session) error {
	if s.try == nil {
		return nil
	}
	_, err := r.catalogue.Point(ctx, r.id, s.try.Point)
	switch {
	case err == nil:
		return s.end(s.try.Point)
	case errors.Is(err, tenant.ErrNotFound):
		return s.void(ctx)
	}
	return err
}

// record is the transaction, and what follows from its answer.
func (s *Session) record(ctx context.Context, d *demand) error {
	r := s.r
	r.charging.Lock()
	defer r.charging.Unlock()
	charge, taken, err := d.charge()
	if err != nil {
		return err
	}
	record := recordOf(d.p, r.epoch)
	record.Committed, record.ChargedBytes = r.clock().UTC(), charge
	pending := r.pending - taken
	if err := r.catalogue.Commit(ctx, r.id, r.epoch, record, pending); err != nil {
		return s.refused(ctx, d.p, err)
	}
	r.noteUsed(d, pending)
	return nil
}

// refused handles an error of the transaction. A definite refusal voids the
// manifest before it is answered; where nobody knows, a repeated commit or the
// end of the session decides.
func (s *Session) refused(ctx context.Context, p point.Public, err error) error {
	var over *quota.FullError
	if !errors.As(err, &over) && !errors.Is(err, claim.ErrFenced) && !errors.Is(err, ErrRefused) {
		return err
	}
	s.r.log.Info("commit refused", "point", p.Point, "error", err)
	return errors.Join(err, s.void(context.WithoutCancel(ctx)))
}

// demand is what a point needs: it looks everything up that is not known from
// the base, and gathers what is to be charged in the index.
type demand struct {
	s       *Session
	p       point.Public
	missing point.MissingError
	batch   *batch
}

// errEnough ends a look-up that has found as much missing as an answer holds.
var errEnough = errors.New("enough is missing")

func (d *demand) prefix() []byte { return d.s.r.space.key(familyNew, d.s.id[:]) }

func (d *demand) key(kind chunk.Kind, id chunk.ID) []byte {
	return append(d.prefix(), recordKey(kind, id)...)
}

// forget drops what was gathered.
func (d *demand) forget() {
	if err := d.s.r.space.clear(d.prefix()); err != nil {
		d.s.r.log.Warn("clear the index", "error", err)
	}
}

func (d *demand) look(ctx context.Context) error {
	if err := d.s.r.space.clear(d.prefix()); err != nil { // of an attempt before a crash
		return err
	}
	base, err := d.base(ctx)
	if err != nil {
		return err
	}
	d.batch = d.s.r.space.batch()
	for i := range d.p.Disks {
		var shared chunk.ID
		if i < len(base.Disks) && base.Geometry(i) == d.p.Geometry(i) {
			shared = base.Disks[i].Root
		}
		g := d.p.Geometry(i)
		if root := d.p.Disks[i].Root; !root.IsZero() {
			if err = d.page(ctx, place{g: g, level: g.RootLevel()}, root, shared); err != nil {
				break
			}
		}
	}
	if err != nil && !errors.Is(err, errEnough) {
		d.batch.drop()
		return err
	}
	if err := d.batch.apply(); err != nil {
		return err
	}
	if len(d.missing.Chunks)+len(d.missing.Pages) > 0 {
		return &d.missing
	}
	return nil
}

// base is the manifest of the point that the session builds on, if it is live:
// its pages need no look-up, for it is pinned, and no charge.
func (d *demand) base(ctx context.Context) (point.Public, error) {
	if d.s.base == "" {
		return point.Public{}, nil
	}
	record, err := d.s.r.point(ctx, d.s.base)
	if errors.Is(err, ErrNotFound) {
		return point.Public{}, nil // in the bin: everything is looked up and charged
	}
	if err != nil {
		return point.Public{}, err
	}
	_, base, err := d.s.r.readManifest(ctx, record)
	if errors.Is(err, chunk.ErrDamaged) || errors.Is(err, blob.ErrNotFound) {
		return point.Public{}, nil
	}
	return base, err
}

// place is where a page is in a disk's map.
type place struct {
	g     point.Geometry
	level int
	first int64 // index of the first chunk below it
}

// span is how many chunks an entry covers.
func (l place) span() int64 {
	span := int64(1)
	for range l.level {
		span *= int64(l.g.FanOut)
	}
	return span
}

// inside reports whether every chunk below is a whole one, so that the same
// page anywhere else inside is as good.
func (l place) inside() bool { return l.first+l.span()*int64(l.g.FanOut) < l.g.Chunks() }

func (l place) child(i int) place {
	return place{g: l.g, level: l.level - 1, first: l.first + int64(i)*l.span()}
}

// page looks up a page and everything below it, unless it is the base's.
func (d *demand) page(ctx context.Context, at place, id, shared chunk.ID) error {
	if id == shared {
		return nil
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	key := d.key(chunk.KindPage, id)
	if at.inside() {
		if _, seen, err := d.s.r.space.get(key); err != nil || seen {
			return err
		}
	}
	copies, sound, err := d.s.r.live(chunk.KindPage, id)
	if err != nil {
		return err
	}
	if !sound {
		return d.lacks(&d.missing.Pages, id)
	}
	page, err := d.s.r.page(ctx, id)
	if errors.Is(err, chunk.ErrDamaged) || errors.Is(err, ErrNotFound) {
		return d.lacks(&d.missing.Pages, id)
	}
	if err != nil {
		return err
	}
	if page.Level != at.level || len(page.IDs) != at.g.FanOut {
		return fmt.Errorf("map page %s has level %d and fan-out %d, its place %d and %d: %w",
			id, page.Level, len(page.IDs), at.level, at.g.FanOut, ErrRefused)
	}
	below, err := d.sharedBelow(ctx, at, shared)
	if err != nil {
		return err
	}
	if err := d.children(ctx, at, page, below); err != nil {
		return err
	}
	// After its children, so that a page that was seen is one that was looked
	// through.
	d.batch.set(key, demandValue(copies[0]))
	return d.batch.spill()
}

// sharedBelow are the base's ids at the same place, zero without a base.
func (d *demand) sharedBelow(ctx context.Context, at place, shared chunk.ID) ([]chunk.ID, error) {
	none := make([]chunk.ID, at.g.FanOut)
	if shared.IsZero() || at.level == 0 {
		return none, nil
	}
	page, err := d.s.r.page(ctx, shared)
	if err != nil || page.Level != at.level || len(page.IDs) != at.g.FanOut {
		if err == nil || errors.Is(err, chunk.ErrDamaged) || errors.Is(err, ErrNotFound) {
			return none, nil
		}
		return nil, err
	}
	return page.IDs, nil
}

func (d *demand) children(ctx context.Context, at place, page point.Page, below []chunk.ID) error {
	for i, id := range page.IDs {
		if id.IsZero() {
			continue
		}
		first := at.first + int64(i)*at.span()
		if first >= at.g.Chunks() {
			return fmt.Errorf("a map page has an id beyond the end of the disk: %w", ErrRefused)
		}
		if at.level > 0 {
			if err := d.page(ctx, at.child(i), id, below[i]); err != nil {
				return err
			}
			continue
		}
		if err := d.chunk(id, at.g.ChunkLength(first)); err != nil {
			return err
		}
	}
	return nil
}

func (d *demand) chunk(id chunk.ID, length int) error {
	copies, sound, err := d.s.r.live(chunk.KindData, id)
	if err != nil {
		return err
	}
	if !sound {
		return d.lacks(&d.missing.Chunks, id)
	}
	if int(copies[0].PlainLength) != length {
		return fmt.Errorf("chunk %s has %d bytes, its place %d: %w", id, copies[0].PlainLength, length, ErrRefused)
	}
	d.batch.set(d.key(chunk.KindData, id), demandValue(copies[0]))
	return d.batch.spill()
}

func (d *demand) lacks(list *[]chunk.ID, id chunk.ID) error {
	for _, known := range *list {
		if known == id {
			return nil
		}
	}
	*list = append(*list, id)
	if len(*list) >= point.MaxMissing {
		return errEnough
	}
	return nil
}

// charge is the bytes of what no live point used before, and how many bytes the
// point takes out of what is pending; r.charging is held.
func (d *demand) charge() (sum, taken int64, err error) {
	r := d.s.r
	err = r.space.each(d.prefix(), func(key, value []byte) error {
		size, pack := parseDemand(value)
		use, charged, err := r.useAndSize(r.used.generation, key)
		if err != nil {
			return err
		}
		if use != usedLive {
			charged = 0
		}
		if size > charged { // another copy may be larger than the one that was no good
			sum += int64(size - charged)
		}
		pending, ok, err := r.space.get(r.space.pendingKey(pack, key))
		if ok && len(pending) == 4 {
			taken += int64(binary.LittleEndian.Uint32(pending))
		}
		return err
	})
	return sum, taken, err
}

// demandValue is the size of a needed record, and which pack has the copy that
// is used.
func demandValue(l location) []byte {
	return append(binary.LittleEndian.AppendUint32(nil, l.Length), l.pack[:]...)
}

func parseDemand(value []byte) (size uint32, pack PackID) {
	return binary.LittleEndian.Uint32(value), PackID(value[4:])
}
