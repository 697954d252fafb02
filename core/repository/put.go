package repository

import (
	"context"
	"errors"
	"fmt"

	"github.com/holdfast-dr/holdfast/core/blob"
	"github.com/holdfast-dr/holdfast/core/chunk"
	"github.com/holdfast-dr/holdfast/core/point"
)

// Put takes whole records, back to back. It checks their form, checksums and
// lengths, and of map pages the content; a batch with anything wrong is refused
// whole, with ErrRefused. Records that are there already are passed over: the
// first sound copy wins. A nil error promises that the records were received,
// not that they are durable.
func (s *Session) Put(ctx context.Context, batch []byte) error {
	_, err := s.Take(ctx, batch)
	return err
}

// Take is Put, and tells how many bytes of the batch were not there yet, also
// beside an error: so much more has to be kept.
func (s *Session) Take(ctx context.Context, batch []byte) (taken int64, err error) {
	if len(batch) > MaxBatch {
		return 0, fmt.Errorf("put %d bytes, at most %d: %w", len(batch), MaxBatch, ErrRefused)
	}
	if err := s.touch(); err != nil {
		return 0, err
	}
	records, err := s.parse(batch)
	if err != nil {
		return 0, fmt.Errorf("put: %w: %w", ErrRefused, err)
	}
	giveBack, err := s.r.takeRoom(int64(len(batch)))
	if err != nil {
		return 0, fmt.Errorf("put: %w", err)
	}
	taken, err = s.add(ctx, batch, records)
	giveBack()
	if err != nil {
		return taken, fmt.Errorf("put: %w", err)
	}
	return taken, s.shipSome(ctx)
}

func (s *Session) parse(batch []byte) ([]chunk.Record, error) {
	var records []chunk.Record
	for rest := batch; len(rest) > 0; {
		record, next, err := chunk.ParseRecord(rest)
		if err != nil {
			return nil, err
		}
		if err := s.check(record); err != nil {
			return nil, err
		}
		records, rest = append(records, record), next
	}
	return records, nil
}

func (s *Session) check(r chunk.Record) error {
	switch {
	case r.Session != s.id:
		return fmt.Errorf("record %s is of another session", r.ID)
	case r.Kind == chunk.KindData:
		if int64(r.PlainLength) > s.r.chunkSize {
			return fmt.Errorf("chunk %s of %d bytes, chunks have at most %d here", r.ID, r.PlainLength, s.r.chunkSize)
		}
		return nil
	}
	if got := point.PageID(r.Body); got != r.ID {
		return fmt.Errorf("map page %s has the content of %s", r.ID, got)
	}
	page, err := point.ParsePage(r.Body)
	if err != nil {
		return err
	}
	if len(page.IDs) != s.r.fanOut {
		return fmt.Errorf("map page %s has fan-out %d, pages have %d here", r.ID, len(page.IDs), s.r.fanOut)
	}
	return nil
}

// add spools the records that are not there yet, and tells how many bytes.
func (s *Session) add(ctx context.Context, batch []byte, records []chunk.Record) (taken int64, err error) {
	known := make([]bool, len(records))
	for i, r := range records {
		if err := ctx.Err(); err != nil {
			return 0, err
		}
		var err error
		if _, known[i], err = s.r.live(r.Kind, r.ID); err != nil {
			return 0, err
		}
	}
	s.writing.Lock() // and not mu: whoever asks what is there need not wait for the disk
	defer s.writing.Unlock()
	if s.isEnded() {
		return 0, s.errEnded()
	}
	run := run{s: s, batch: batch, known: map[recordName]struct{}{}}
	offset := 0
	for i, r := range records {
		end := offset + r.Size()
		if !known[i] && !s.spooled(r.Kind, r.ID) {
			if err := run.add(offset, end, r); err != nil {
				return run.taken, err
			}
		}
		offset = end
	}
	err = run.flush()
	return run.taken, err
}

// run is a stretch of a batch that goes into one pack with one write.
type run struct {
	s          *Session
	pack       *spoolPack
	batch      []byte
	start, end int
	records    []chunk.Record
	known      map[recordName]struct{} // of the whole batch
	taken      int64                   // bytes in packs
}

type recordName struct {
	kind chunk.Kind
	id   chunk.ID
}

// add takes the record at batch[offset:end], unless the batch had it before.
func (u *run) add(offset, end int, r chunk.Record) error {
	name := recordName{r.Kind, r.ID}
	if _, twice := u.known[name]; twice {
		return nil
	}
	u.known[name] = struct{}{}
	size := end - u.start
	if len(u.records) > 0 && u.end == offset && u.pack.kind == r.Kind && u.pack.fits(size, u.s.r.packLimit(r.Kind)) {
		u.end, u.records = end, append(u.records, r)
		return nil
	}
	if err := u.flush(); err != nil {
		return err
	}
	pack, err := u.s.room(r)
	if err != nil {
		return err
	}
	u.pack, u.start, u.end, u.records = pack, offset, end, append(u.records[:0], r)
	return nil
}

func (u *run) flush() error {
	if len(u.records) == 0 {
		return nil
	}
	records := u.records
	u.records = u.records[:0]
	if err := u.pack.write(u.batch[u.start:u.end], records...); err != nil {
		return err
	}
	u.taken += int64(u.end - u.start)
	return nil
}

// packLimit is the size at which a pack is full. Map packs are smaller: their
// records are, and whoever rebuilds the index reads all of them.
func (r *Repository) packLimit(kind PackKind) int64 {
	if kind == chunk.KindPage {
		return r.packBytes / 4
	}
	return r.packBytes
}

// room is the open pack for a record, a new one if the present one is full;
// s.writing is held.
func (s *Session) room(r chunk.Record) (*spoolPack, error) {
	s.mu.Lock()
	p := s.open[r.Kind]
	s.mu.Unlock()
	if p != nil && p.fits(r.Size(), s.r.packLimit(r.Kind)) {
		return p, nil
	}
	if p != nil {
		if err := p.seal(); err != nil {
			return nil, err
		}
		s.mu.Lock()
		s.sealed = append(s.sealed, p)
		delete(s.open, r.Kind)
		s.mu.Unlock()
	}
	p, err := s.r.newSpoolPack(s.dir, r.Kind)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.open[r.Kind] = p
	return p, nil
}

// shipSome brings finished packs to the store in the goroutine that finished
// them, while others go on spooling; that is the back-pressure. Errors are
// answered only when too much waits: until then a later call may succeed.
func (s *Session) shipSome(ctx context.Context) error {
	s.mu.Lock()
	waiting := len(s.sealed)
	s.mu.Unlock()
	if waiting == 0 {
		return nil
	}
	if waiting <= maxSealed {
		if !s.shipping.TryLock() {
			return nil
		}
	} else {
		s.shipping.Lock()
	}
	err := s.shipSealed(ctx)
	s.shipping.Unlock()
	if err != nil && waiting <= maxSealed && !errors.Is(err, blob.ErrFull) {
		s.r.log.Warn("a pack waits for the store", "session", sessionText(s.id), "error", err)
		return nil
	}
	return err
}

// shipSealed ships every finished pack; s.shipping is held.
func (s *Session) shipSealed(ctx context.Context) error {
	for {
		p, err := s.shipNext(ctx)
		if err == nil && p != nil && p.taken {
			p, err = s.shipNext(ctx) // under another name; a store that has that one, too, is not asked for ever
			if err == nil && p != nil && p.taken {
				err = fmt.Errorf("store pack %s: the store has it with other content: %w", p.id, chunk.ErrDamaged)
			}
		}
		if err != nil || p == nil {
			return err
		}
		s.mu.Lock()
		s.sealed = s.sealed[1:]
		s.mu.Unlock()
	}
}

// shipNext ships the first finished pack, nil if there is none. One whose name
// turned out to be taken stays the first, and is shipped anew by the next call.
func (s *Session) shipNext(ctx context.Context) (*spoolPack, error) {
	p, err := s.nextSealed(ctx)
	if err != nil || p == nil {
		return nil, err
	}
	err = s.r.ship(ctx, p, sessionText(s.id))
	if err != nil && p.taken {
		s.r.log.Error("a pack was damaged in the store before its session ended, and is stored again", "pack", p.id, "error", err)
		return p, nil
	}
	return p, err
}

// nextSealed is the finished pack that is shipped next, nil if there is none.
func (s *Session) nextSealed(ctx context.Context) (*spoolPack, error) {
	for {
		p, err := s.firstSealed()
		if err != nil || p == nil || !p.doubtful && !p.taken {
			return p, err
		}
		fresh, err := s.r.renew(ctx, p)
		if err != nil {
			return nil, fmt.Errorf("write spool file anew: %w", err)
		}
		if fresh == p {
			return p, nil
		}
		s.mu.Lock()
		if s.sealed[0] = fresh; fresh == nil {
			s.sealed = s.sealed[1:]
		}
		s.mu.Unlock()
		if err := p.discard(); err != nil {
			s.r.log.Warn("a spool file stays", "pack", p.id, "error", err)
		}
	}
}

// firstSealed ends the first finished pack with its footer.
func (s *Session) firstSealed() (*spoolPack, error) {
	s.mu.Lock()
	if len(s.sealed) == 0 || s.ended {
		s.mu.Unlock()
		return nil, nil
	}
	p := s.sealed[0]
	s.mu.Unlock()
	return p, p.seal()
}

// shipAll seals the open packs and ships everything.
func (s *Session) shipAll(ctx context.Context) error {
	s.shipping.Lock()
	defer s.shipping.Unlock()
	s.closePacks()
	return s.shipSealed(ctx)
}

// closePacks lets no open pack take any more.
func (s *Session) closePacks() {
	s.writing.Lock()
	defer s.writing.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, kind := range []PackKind{chunk.KindData, chunk.KindPage} { // pages come after what they name
		if p := s.open[kind]; p != nil {
			s.sealed = append(s.sealed, p)
			delete(s.open, kind)
		}
	}
}
