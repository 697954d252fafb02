package repository

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/holdfast-dr/holdfast/core/blob"
	"github.com/holdfast-dr/holdfast/core/chunk"
	"github.com/holdfast-dr/holdfast/core/claim"
)

// CollectOptions steer a collection. The zero value works.
type CollectOptions struct {
	// Threshold is the share of a pack that must be waste before what is used is
	// copied out of it; 0: DefaultThreshold. Below one half, copying costs more
	// than it frees.
	Threshold float64

	// Pause, if set, is called after each step; its error ends the collection
	// there. A collection that ended anywhere is simply run again.
	Pause func(ctx context.Context, done CollectStage) error
}

// DefaultThreshold of CollectOptions.
const DefaultThreshold = 0.5

// CollectStage is a step of a collection.
type CollectStage string

// The steps. Copied and condemned come once for each group of packs.
const (
	StageMarked    CollectStage = "marked"    // it is known what points use
	StageCopied    CollectStage = "copied"    // used records are synced in a new pack
	StageCondemned CollectStage = "condemned" // the old packs no longer count
	StageDeleted   CollectStage = "deleted"   // packs that were condemned long ago are gone
)

// CollectReport says what a collection did.
type CollectReport struct {
	PurgedPoints   int
	UsedBytes      int64 // what live points take
	CondemnedPacks int
	CondemnedBytes int64
	CopiedRecords  int
	CopiedBytes    int64
	KeptPacks      int // with waste, but holding damaged records that nothing replaces, or no room to copy what is used
	DeletedPacks   int
	DeletedBytes   int64
	WaitingPacks   int // condemned, and deleted later
}

// condemnGroup bounds the packs of one condemn transaction.
const condemnGroup = 256

// Collect frees space, in the order that keeps every record that a live or
// binned point or the base of an open session uses: what is used is copied to a
// new pack and synced; in one transaction, serialised with commits, the use is
// looked up again and the old pack is condemned; from then on it does not count;
// it is deleted after the longest read. Backups and restores go on meanwhile.
// One collection runs at a time; a second is ErrBusy. Memory is bounded.
func (r *Repository) Collect(ctx context.Context, o CollectOptions) (CollectReport, error) {
	var report CollectReport
	if err := r.Writable(); err != nil {
		return report, err
	}
	if !r.collecting.TryLock() {
		return report, fmt.Errorf("collect: %w", ErrBusy)
	}
	defer r.collecting.Unlock()
	if o.Threshold <= 0 {
		o.Threshold = DefaultThreshold
	}
	if o.Pause == nil {
		o.Pause = func(ctx context.Context, _ CollectStage) error { return ctx.Err() }
	}
	c := &collector{r: r, o: o, report: &report, began: r.clock(), bringer: map[chunk.SessionID]struct{}{}}
	err := c.run(ctx)
	var incomplete *IncompleteError
	if err == nil || errors.As(err, &incomplete) { // what was condemned before does not depend on it
		err = errors.Join(err, c.delete(ctx))
	}
	if err == nil {
		err = errors.Join(r.forgetEnded(), r.recountPending(ctx))
	}
	if err != nil {
		return report, fmt.Errorf("collect repository %s: %w", r.id, err)
	}
	return report, nil
}

type collector struct {
	r      *Repository
	o      CollectOptions
	report *CollectReport

	unused  []victim // nothing in them is used
	victims []victim // what is used in them is in out
	out     *spoolPack

	began   time.Time
	bringer map[chunk.SessionID]struct{} // sessions of which there is a record
	blind   bool                         // not every pack could be looked into
}

// victim is a pack to be condemned.
type victim struct {
	packObject
	entries []Entry
}

func (c *collector) run(ctx context.Context) (err error) {
	if err := c.r.purge(ctx, c.report); err != nil {
		return err
	}
	w, err := c.r.walk(ctx)
	if err != nil {
		return err
	}
	c.report.UsedBytes = w.liveBytes
	if len(w.broken) > 0 {
		return &IncompleteError{Points: w.broken[:min(len(w.broken), 100)]}
	}
	if err := c.o.Pause(ctx, StageMarked); err != nil {
		return err
	}
	if err := os.MkdirAll(c.r.collectorDir(), 0o700); err != nil {
		return fmt.Errorf("make spool: %w", full(err))
	}
	defer func() {
		if c.out != nil {
			err = errors.Join(err, c.out.discard())
		}
	}()
	for _, kind := range []PackKind{chunk.KindData, chunk.KindPage} {
		if err := c.sweep(ctx, kind); err != nil {
			return err
		}
	}
	return c.forgetSessions(ctx)
}

// sweep goes through the packs of a kind.
func (c *collector) sweep(ctx context.Context, kind PackKind) error {
	for p, err := range c.r.packs(ctx, kind) {
		if err != nil {
			return err
		}
		if err := c.pack(ctx, p); err != nil {
			return err
		}
	}
	if err := c.finish(ctx); err != nil {
		return err
	}
	return c.condemnUnused(ctx)
}

// pack decides about one pack.
func (c *collector) pack(ctx context.Context, p packObject) error {
	if c.r.isCondemned(p.id) {
		return nil
	}
	entries, err := readFooter(ctx, c.r.blobs, p)
	if errors.Is(err, chunk.ErrDamaged) {
		c.report.KeptPacks++ // verify tells what is in it
		c.blind = true
		return nil
	}
	if errors.Is(err, blob.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, e := range entries {
		c.bringer[e.Session] = struct{}{}
	}
	if c.r.openSession(entries) {
		return nil
	}
	pending, err := c.r.space.pendingIn(p.id)
	if err != nil {
		return err
	}
	if pending > 0 {
		since, err := c.r.idleSince(p.id, entries)
		if err != nil {
			return err
		}
		if c.r.clock().Sub(since) < c.r.pendingPeriod {
			return nil
		}
	}
	used, usedBytes, err := c.used(p, entries)
	if err != nil {
		return err
	}
	records := sumOf(entries)
	switch waste := records - usedBytes; {
	case len(used) == 0:
		c.unused = append(c.unused, victim{p, entries})
		if len(c.unused) >= condemnGroup {
			return c.condemnUnused(ctx)
		}
		return nil
	case waste == 0 || float64(waste) < c.o.Threshold*float64(records):
		if pending > 0 { // what is kept of it is not the tenant's doing any more
			return c.r.releasePending(ctx, p.id)
		}
		return nil
	}
	return c.copy(ctx, victim{p, entries}, used)
}

func (r *Repository) isCondemned(id PackID) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	_, condemned := r.condemned[id]
	return condemned
}

// openSession reports whether a session that is open brought any of the records.
func (r *Repository) openSession(entries []Entry) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, e := range entries {
		if _, open := r.sessions[e.Session]; open {
			return true
		}
	}
	return false
}

// used are the records that points use from this pack and not from another.
func (c *collector) used(p packObject, entries []Entry) (used []Entry, usedBytes int64, err error) {
	c.r.charging.Lock()
	defer c.r.charging.Unlock()
	for _, e := range entries {
		use, err := c.r.use(recordKey(p.kind, e.ID))
		if err != nil {
			return nil, 0, err
		}
		if use == usedNot {
			continue
		}
		copies, _, err := c.r.live(p.kind, e.ID)
		if err != nil {
			return nil, 0, err
		}
		if len(copies) > 0 && copies[0].pack == p.id && copies[0].Offset == e.Offset {
			used, usedBytes = append(used, e), usedBytes+int64(e.Length)
		}
	}
	return used, usedBytes, nil
}

// copy brings the used records of a pack into the new one. A pack with a damaged
// record of which there is no other copy stays as it is.
func (c *collector) copy(ctx context.Context, v victim, used []Entry) error {
	if c.out != nil && (c.out.kind != v.kind || c.out.size+v.size > c.r.packLimit(v.kind) || len(c.victims) >= condemnGroup) {
		if err := c.finish(ctx); err != nil {
			return err
		}
	}
	giveBack, err := c.r.takeRoom(sumOf(used))
	if err != nil { // what nothing uses goes without it; the rest waits for room
		c.report.KeptPacks++
		return nil //nolint:nilerr // it is in the log
	}
	defer giveBack()
	if c.out == nil {
		out, err := c.r.newSpoolPack(c.r.collectorDir(), v.kind)
		if err != nil {
			return err
		}
		c.out = out
	}
	whole := true
	var lost []chunk.ID
	err = eachRecord(ctx, c.r.blobs, v.packObject, used, func(e Entry, record chunk.Record, damage error) error {
		if damage != nil {
			lost = append(lost, e.ID)
			return nil
		}
		b := record.Append(nil)
		c.report.CopiedRecords++
		c.report.CopiedBytes += int64(len(b))
		return c.out.write(b, record)
	})
	if err != nil {
		return err
	}
	for _, id := range lost {
		if err := c.r.markDamaged(ctx, v.kind, id, v.id); err != nil {
			return err
		}
		_, sound, err := c.r.live(v.kind, id)
		if err != nil {
			return err
		}
		whole = whole && sound
	}
	if !whole {
		c.report.KeptPacks++ // the copies of the others are waste, until there is a sound copy again
		return nil
	}
	c.victims = append(c.victims, v)
	return nil
}

// finish syncs the new pack and condemns those that it replaces.
func (c *collector) finish(ctx context.Context) error {
	if c.out == nil {
		return nil
	}
	out, victims := c.out, c.victims
	c.out, c.victims = nil, nil
	if len(victims) == 0 {
		return out.discard()
	}
	if err := errors.Join(out.seal(), c.r.ship(ctx, out, "")); err != nil {
		return errors.Join(err, out.discard())
	}
	if err := c.o.Pause(ctx, StageCopied); err != nil {
		return err
	}
	return c.condemn(ctx, victims)
}

func (c *collector) condemnUnused(ctx context.Context) error {
	if len(c.unused) == 0 {
		return nil
	}
	victims := c.unused
	c.unused = nil
	return c.condemn(ctx, victims)
}

// condemn looks the use up again while no commit is between its look-ups and its
// end, and condemns the packs without which every used record still has a sound
// copy.
func (c *collector) condemn(ctx context.Context, victims []victim) error {
	if err := c.condemnLocked(ctx, victims); err != nil {
		return err
	}
	return c.o.Pause(ctx, StageCondemned)
}

func (c *collector) condemnLocked(ctx context.Context, victims []victim) error {
	r := c.r
	r.condemning.Lock()
	defer r.condemning.Unlock()
	r.charging.Lock()
	defer r.charging.Unlock()
	if r.used.stale {
		return errors.New("condemn: the index lacks what a point uses; run it again")
	}
	doomed := make(map[PackID]bool, len(victims))
	for _, v := range victims {
		doomed[v.id] = true
	}
	var packs []PackID
	for _, v := range victims {
		free, err := c.replaced(v, doomed)
		if err != nil {
			return err
		}
		if !free {
			delete(doomed, v.id) // now it can keep others' records, too
			continue
		}
		packs = append(packs, v.id)
		c.report.CondemnedPacks++
		c.report.CondemnedBytes += v.size
	}
	if len(packs) == 0 {
		return nil
	}
	now := r.clock().UTC()
	err := r.catalogue.Condemn(ctx, r.id, r.epoch, packs, now)
	if errors.Is(err, claim.ErrFenced) {
		return err
	}
	// Whatever became of an answer that was lost: nothing counts that may be
	// condemned.
	r.mu.Lock()
	for _, id := range packs {
		r.condemned[id] = now
	}
	r.mu.Unlock()
	if err != nil {
		return fmt.Errorf("condemn packs: %w", err)
	}
	return nil
}

// replaced reports whether every record of a pack that is used has a sound copy
// outside the doomed packs, and no open session relies on it.
func (c *collector) replaced(v victim, doomed map[PackID]bool) (bool, error) {
	if c.r.openSession(v.entries) {
		return false, nil
	}
	for _, e := range v.entries {
		use, err := c.r.use(recordKey(v.kind, e.ID))
		if err != nil {
			return false, err
		}
		if use == usedNot {
			continue
		}
		copies, sound, err := c.r.live(v.kind, e.ID)
		if err != nil {
			return false, err
		}
		other := false // as good as the best that there is
		for _, l := range copies {
			other = other || !l.damaged && !doomed[l.pack] && !(sound && l.doubtful)
		}
		if !other {
			return false, nil
		}
	}
	return true, nil
}

// delete removes packs that were condemned longer ago than the longest read. It
// may be late or repeated: nothing that counts has their names.
func (c *collector) delete(ctx context.Context) error {
	if err := c.r.catalogue.Check(ctx, c.r.id, c.r.epoch); err != nil {
		return err
	}
	for after := (PackID{}); ; {
		packs, err := c.r.catalogue.Condemned(ctx, c.r.id, after, condemnGroup)
		if err != nil {
			return fmt.Errorf("list condemned packs: %w", err)
		}
		var gone []PackID
		for _, p := range packs {
			after = p.Pack
			if c.r.clock().Sub(p.At) < c.r.longest {
				c.report.WaitingPacks++
				continue
			}
			deleted, err := c.deletePack(ctx, p)
			if err != nil {
				return err
			}
			if deleted {
				gone = append(gone, p.Pack)
			}
		}
		if err := c.removed(ctx, gone); err != nil {
			return err
		}
		if len(packs) < condemnGroup {
			return c.o.Pause(ctx, StageDeleted)
		}
	}
}

func (c *collector) deletePack(ctx context.Context, p CondemnedPack) (bool, error) {
	for _, kind := range []PackKind{chunk.KindData, chunk.KindPage} {
		name := c.r.packName(kind, p.Pack)
		object, err := blob.Stat(ctx, c.r.blobs, name)
		if errors.Is(err, blob.ErrNotFound) {
			continue
		}
		if err != nil {
			return false, err
		}
		pack, _ := c.r.packOf(kind, object)
		if entries, err := readFooter(ctx, c.r.blobs, pack); err == nil {
			if err := c.r.space.remove(pack, entries); err != nil {
				return false, err
			}
		}
		err = c.r.blobs.Delete(ctx, name)
		if errors.Is(err, blob.ErrRetained) {
			c.report.WaitingPacks++
			return false, nil
		}
		if err != nil && !errors.Is(err, blob.ErrNotFound) {
			return false, fmt.Errorf("delete pack: %w", err)
		}
		c.report.DeletedPacks++
		c.report.DeletedBytes += object.SizeBytes
	}
	return true, nil
}

// removed ends the story of deleted packs.
func (c *collector) removed(ctx context.Context, gone []PackID) error {
	if len(gone) == 0 {
		return nil
	}
	unknown := map[PackID]bool{} // in the index although they could not be taken out by their footers
	for _, id := range gone {
		if _, ok, err := c.r.space.get(c.r.space.key(familyPack, id[:])); err != nil {
			return err
		} else if ok {
			unknown[id] = true
		}
	}
	if err := c.r.space.purge(unknown); err != nil {
		return err
	}
	// While the catalogue calls them condemned, an Open counts anew what is pending.
	if err := c.r.releasePending(ctx, gone...); err != nil {
		return err
	}
	if err := c.r.catalogue.Removed(ctx, c.r.id, c.r.epoch, gone); err != nil {
		return fmt.Errorf("record deleted packs: %w", err)
	}
	c.r.mu.Lock()
	defer c.r.mu.Unlock()
	for _, id := range gone {
		delete(c.r.condemned, id)
	}
	return nil
}
