package repository

import (
	"context"
	"encoding/binary"
	"errors"
	"time"

	"github.com/google/uuid"

	"github.com/holdfast-dr/holdfast/core/chunk"
	"github.com/holdfast-dr/holdfast/core/claim"
)

// What sessions brought and no point has used yet is pending: it is charged from
// the moment that its pack is in the store, in place of the session's
// reservation, so that giving a session up makes no room. A commit takes what
// its point uses out of it, whoever brought that; what is left expires after
// Config.PendingPeriod, and counts until the collection has deleted its pack.
//
// The index keeps one key for each pending record, below its pack, and the sum.
// Each transaction of the catalogue is told the sum, never a difference, so that
// a lost answer is healed by the next one.

// pendingKey is that of a record, or of all records of a pack.
func (s space) pendingKey(pack PackID, record ...[]byte) []byte {
	return s.key(familyPending, append([][]byte{pack[:]}, record...)...)
}

// pendingSum is the key of the sum. An index without it does not know what is
// pending.
func (s space) pendingSum() []byte { return s.key(familyState, []byte("pending")) }

// pend makes every record of a pack pending.
func (b *batch) pend(p packObject, entries []Entry) {
	for _, e := range entries {
		b.set(b.s.pendingKey(p.id, recordKey(p.kind, e.ID)), binary.LittleEndian.AppendUint32(nil, e.Length))
	}
}

func (b *batch) setPending(sum int64) {
	b.set(b.s.pendingSum(), binary.LittleEndian.AppendUint64(nil, uint64(sum)))
}

func (s space) pending() (sum int64, known bool, err error) {
	value, ok, err := s.get(s.pendingSum())
	if err != nil || !ok || len(value) != 8 {
		return 0, false, err
	}
	return int64(binary.LittleEndian.Uint64(value)), true, nil
}

// pendingIn is what is pending of one pack.
func (s space) pendingIn(pack PackID) (sum int64, err error) {
	err = s.each(s.pendingKey(pack), func(_, value []byte) error {
		sum += int64(binary.LittleEndian.Uint32(value))
		return nil
	})
	return sum, err
}

func sumOf(entries []Entry) (sum int64) {
	for _, e := range entries {
		sum += int64(e.Length)
	}
	return sum
}

// bring makes a pack of a session known, which is in the store. What is in it
// is pending from now on, and no longer reserved.
func (r *Repository) bring(ctx context.Context, p *spoolPack, pages map[chunk.ID][]byte, session string) error {
	r.charging.Lock()
	defer r.charging.Unlock()
	_, known, err := r.space.get(r.space.key(familyPack, p.id[:]))
	if err != nil {
		return err
	}
	if known { // its spool file outlived it
		return r.enterPack(p.packObject, p.entries, pages, nil)
	}
	unused, err := r.unusedOf(p)
	if err != nil {
		return err
	}
	bytes, sum := sumOf(p.entries), r.pending+sumOf(unused)
	err = r.enterPack(p.packObject, p.entries, pages, func(b *batch) {
		b.pend(p.packObject, unused)
		b.setPending(sum)
	})
	if err != nil {
		return err
	}
	r.pending = sum
	// The pack is in the store, whatever becomes of the request that filled it.
	err = r.catalogue.Shipped(context.WithoutCancel(ctx), r.id, r.epoch, session, bytes, sum)
	if errors.Is(err, claim.ErrFenced) {
		return err
	}
	if err != nil { // the reservation goes on counting for it
		r.log.Warn("charge what is pending", "pack", p.id, "error", err)
	}
	return nil
}

// unusedOf is what a new pack holds beside records that points use and of which
// no sound copy is left: it takes their place at once, and they are charged
// already. r.charging is held.
func (r *Repository) unusedOf(p *spoolPack) ([]Entry, error) {
	unused := make([]Entry, 0, len(p.entries))
	for _, e := range p.entries {
		_, sound, err := r.live(p.kind, e.ID)
		if err != nil {
			return nil, err
		}
		if !sound {
			use, err := r.use(recordKey(p.kind, e.ID))
			if err != nil {
				return nil, err
			}
			if use != usedNot {
				continue
			}
		}
		unused = append(unused, e)
	}
	return unused, nil
}

// openPending learns what is pending, and what the sessions that are open hold
// beside it: reservations of other lives of the server end here. count asks for
// counting anew.
func (r *Repository) openPending(ctx context.Context, count bool) error {
	r.charging.Lock()
	defer r.charging.Unlock()
	sum, known, err := r.space.pending()
	if err != nil {
		return err
	}
	if r.pending = sum; count || !known {
		if err := r.countPending(); err != nil {
			return err
		}
	}
	r.mu.Lock()
	reserved := make(map[string]int64, len(r.sessions))
	for id, s := range r.sessions {
		reserved[sessionText(id)] = s.spooledRecords()
	}
	r.mu.Unlock()
	return r.catalogue.Reconciled(ctx, r.id, r.epoch, r.pending, reserved)
}

// spooledRecords is what the session received and no pack of the store has yet.
func (s *Session) spooledRecords() (sum int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range s.open {
		sum += p.recordBytes()
	}
	for _, p := range s.sealed {
		sum += p.recordBytes()
	}
	return sum
}

// countPending drops what is pending no more from the index, and adds up the
// rest; r.charging is held. Of a record that a point uses, the first copy is
// not pending, whichever that is by now.
func (r *Repository) countPending() error {
	var pack PackID
	var there bool
	sum, b := int64(0), r.space.batch()
	prefix := r.space.key(familyPending)
	err := r.space.each(prefix, func(key, value []byte) error {
		if len(key) != len(PackID{})+1+len(chunk.ID{}) || len(value) != 4 {
			b.delete(append(append([]byte(nil), prefix...), key...))
			return b.spill()
		}
		if id := PackID(key); id != pack || !there {
			var err error
			if _, there, err = r.space.get(r.space.key(familyPack, id[:])); err != nil {
				return err
			}
			pack = id
		}
		keep := there
		if keep {
			first, err := r.firstOfUsed(pack, key[len(PackID{}):])
			if err != nil {
				return err
			}
			keep = !first
		}
		if keep {
			sum += int64(binary.LittleEndian.Uint32(value))
			return nil
		}
		b.delete(append(append([]byte(nil), prefix...), key...))
		return b.spill()
	})
	if err != nil {
		b.drop()
		return err
	}
	b.setPending(sum)
	if err := b.apply(); err != nil {
		return err
	}
	r.pending = sum
	return nil
}

// recountPending counts anew after what may have made another copy of a record
// the one that is used: a collection, or a verification that found damage. What
// a restore finds damaged waits for the next of them.
func (r *Repository) recountPending(ctx context.Context) error {
	r.charging.Lock()
	defer r.charging.Unlock()
	before := r.pending
	if err := r.countPending(); err != nil || r.pending == before {
		return err
	}
	return r.catalogue.Reconciled(ctx, r.id, r.epoch, r.pending, nil)
}

// firstOfUsed reports whether a pack has the copy of a record that points use.
func (r *Repository) firstOfUsed(pack PackID, record []byte) (bool, error) {
	use, err := r.use(record)
	if err != nil || use == usedNot {
		return false, err
	}
	copies, _, err := r.live(chunk.Kind(record[0]), chunk.ID(record[1:]))
	return len(copies) > 0 && copies[0].pack == pack, err
}

// releasePending makes what is pending of packs pending no more: it is gone, or
// waste that is not worth a copy.
func (r *Repository) releasePending(ctx context.Context, packs ...PackID) error {
	r.charging.Lock()
	defer r.charging.Unlock()
	sum, b := r.pending, r.space.batch()
	for _, pack := range packs {
		prefix := r.space.pendingKey(pack)
		err := r.space.each(prefix, func(key, value []byte) error {
			sum -= int64(binary.LittleEndian.Uint32(value))
			b.delete(append(append([]byte(nil), prefix...), key...))
			return nil
		})
		if err != nil {
			b.drop()
			return err
		}
	}
	if sum == r.pending {
		b.drop()
		return nil
	}
	b.setPending(sum)
	if err := b.apply(); err != nil {
		return err
	}
	r.pending = sum
	return r.catalogue.Reconciled(ctx, r.id, r.epoch, sum, nil)
}

// idleSince is when what a pack holds was last wanted: when its session was
// given up, if it was, else when the pack was begun.
func (r *Repository) idleSince(p PackID, entries []Entry) (time.Time, error) {
	since := p.time()
	if len(entries) == 0 {
		return since, nil
	}
	value, ok, err := r.space.get(r.space.key(familyEnded, entries[0].Session[:]))
	if err != nil || !ok || len(value) != 8 {
		return since, err
	}
	if ended := time.UnixMicro(int64(binary.LittleEndian.Uint64(value))); ended.After(since) {
		since = ended
	}
	return since, nil
}

// time is when a pack was begun, which its id says.
func (p PackID) time() time.Time {
	sec, nsec := uuid.UUID(p).Time().UnixTime()
	return time.Unix(sec, nsec)
}

// young reports whether what no point uses of a pack is pending even if the
// index knows nothing of it.
func (r *Repository) young(p PackID) bool { return r.clock().Sub(p.time()) < r.pendingPeriod }

// noteEnded keeps the time at which a session was given up.
func (s *Session) noteEnded() error {
	b := s.r.space.batch()
	b.set(s.r.space.key(familyEnded, s.id[:]), binary.LittleEndian.AppendUint64(nil, uint64(s.r.clock().UnixMicro())))
	return b.apply()
}

// forgetEnded drops the times of sessions that were given up long ago: their
// packs are old without them.
func (r *Repository) forgetEnded() error {
	b := r.space.batch()
	prefix := r.space.key(familyEnded)
	err := r.space.each(prefix, func(key, value []byte) error {
		if len(value) == 8 && r.clock().Sub(time.UnixMicro(int64(binary.LittleEndian.Uint64(value)))) < r.pendingPeriod {
			return nil
		}
		b.delete(append(append([]byte(nil), prefix...), key...))
		return b.spill()
	})
	if err != nil {
		b.drop()
		return err
	}
	return b.apply()
}
