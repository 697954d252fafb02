package repository

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/holdfast-dr/holdfast/core/blob"
	"github.com/holdfast-dr/holdfast/core/chunk"
	"github.com/holdfast-dr/holdfast/core/point"
	"github.com/holdfast-dr/holdfast/core/quota"
)

// Config says what to open, and how.
type Config struct {
	ID        string     // of the cloud repository, a UUID
	Blobs     blob.Store // of the location; all objects lie below ID
	Index     *Index
	Catalogue Catalogue
	SpoolDir  string // of the server; sessions lie below ID. On the store's file system, packs are linked instead of copied.

	Epoch     uint64 // of the claim; 0 opens for reading
	ChunkSize int64  // fixed when the repository was made; 0: chunk.Size
	FanOut    int    // of map pages; 0: DefaultFanOut

	PackBytes   int64         // 0: DefaultPack; map packs have a quarter of it
	MaxSessions int           // 0: DefaultSessions
	LongestRead time.Duration // after it a condemned pack is deleted; 0: DefaultLongestRead
	BinPeriod   time.Duration // how long forgotten points stay restorable; 0: they go with the next collection
	// PendingPeriod is how long what no point uses yet is kept for the next
	// session; 0: DefaultPending.
	PendingPeriod time.Duration

	Clock func() time.Time // time.Now if nil
	Log   *slog.Logger     // discarded if nil
	// Sync brings a file of the spool to the disk; (*os.File).Sync if nil. Tests
	// make it fail.
	Sync func(*os.File) error
}

// Defaults of Config.
const (
	DefaultFanOut = point.FanOut
	// DefaultPack: 16 MiB was as good on a quiet disk and 2.3 times slower on a
	// busy one; more delays what a session has to ship at its end.
	DefaultPack        = 64 << 20
	DefaultSessions    = 256
	DefaultLongestRead = 24 * time.Hour
	// DefaultPending is the life of an idle session: who comes back within it
	// finds what arrived.
	DefaultPending = quota.ReservationTTL
)

// Repository is one cloud repository. It is safe for several goroutines.
type Repository struct {
	id            string
	blobs         blob.Store
	space         space
	catalogue     Catalogue
	spool         string
	epoch         uint64
	refusal       error // of everything that writes; nil: go ahead
	newest        uint64
	chunkSize     int64
	fanOut        int
	packBytes     int64
	maxSessions   int
	longest       time.Duration
	bin           time.Duration
	pendingPeriod time.Duration
	clock         func() time.Time
	log           *slog.Logger
	sync          func(*os.File) error

	// burying is held from a tombstone to its transaction, and while tombstones of
	// live points are looked for.
	burying sync.Mutex

	// Locks are taken in this order: marking, condemning, charging, mu.
	marking    sync.Mutex   // one walk of all points at a time
	condemning sync.RWMutex // read-held from a commit's look-ups to its end, written by condemn
	charging   sync.Mutex   // makes what is charged and what is marked agree; guards used and pending
	used       usedState
	pending    int64      // what is pending, by the index; guarded by charging
	collecting sync.Mutex // one collection at a time

	mu        sync.Mutex // guards what follows
	sessions  map[chunk.SessionID]*Session
	pins      map[point.ID]int
	condemned map[PackID]time.Time
	// distrusted are the sessions whose chunks do not count while there is another copy; see Distrust.
	distrusted map[chunk.SessionID]struct{}
	damaged    int // what was found damaged or lost; 0: nobody has to look
	settling   settling
	closed     bool
}

// Open opens a cloud repository: it takes the claim's epoch into the store,
// reconciles the index with the packs that are there, and finds the sessions
// that were open when the last server ended. A database that is older than the
// store is opened for reading and for Import only.
func Open(ctx context.Context, c Config) (*Repository, error) {
	r, err := configure(c)
	if err != nil {
		return nil, fmt.Errorf("open repository %s: %w", c.ID, err)
	}
	if err := r.open(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("open repository %s: %w", c.ID, err), r.Close())
	}
	return r, nil
}

func configure(c Config) (*Repository, error) {
	space, err := c.Index.space(c.ID)
	if err != nil {
		return nil, err
	}
	r := &Repository{
		id: c.ID, blobs: c.Blobs, space: space, catalogue: c.Catalogue, spool: filepath.Join(c.SpoolDir, c.ID),
		epoch: c.Epoch, chunkSize: c.ChunkSize, fanOut: c.FanOut, packBytes: c.PackBytes, maxSessions: c.MaxSessions,
		longest: c.LongestRead, bin: c.BinPeriod, pendingPeriod: c.PendingPeriod, clock: c.Clock, log: c.Log, sync: c.Sync,
		sessions: map[chunk.SessionID]*Session{}, pins: map[point.ID]int{}, condemned: map[PackID]time.Time{},
	}
	r.chunkSize = orDefault(r.chunkSize, chunk.Size)
	r.fanOut = orDefault(r.fanOut, DefaultFanOut)
	r.packBytes = orDefault(r.packBytes, DefaultPack)
	r.maxSessions = orDefault(r.maxSessions, DefaultSessions)
	r.longest = orDefault(r.longest, DefaultLongestRead)
	r.pendingPeriod = orDefault(r.pendingPeriod, DefaultPending)
	if r.clock == nil {
		r.clock = time.Now
	}
	if r.sync == nil {
		r.sync = (*os.File).Sync
	}
	if r.log == nil {
		r.log = slog.New(slog.DiscardHandler)
	}
	r.log = r.log.With("repository", r.id)
	geometry := point.Geometry{ChunkSize: r.chunkSize, FanOut: r.fanOut}
	return r, geometry.Validate()
}

func orDefault[T comparable](v, otherwise T) T {
	var zero T
	if v == zero {
		return otherwise
	}
	return v
}

func (r *Repository) open(ctx context.Context) error {
	if err := r.claim(ctx); err != nil {
		return err
	}
	if err := r.checkFormat(ctx); err != nil {
		return err
	}
	if err := r.loadCondemned(ctx); err != nil {
		return err
	}
	if err := r.loadDistrusted(ctx); err != nil {
		return err
	}
	changed, err := r.reconcile(ctx)
	if err != nil {
		return err
	}
	for _, family := range []byte{familySound, familyNew} { // of work that a crash cut
		if err := r.space.clear(r.space.key(family)); err != nil {
			return err
		}
	}
	if r.refusal != nil {
		return nil
	}
	if err := r.recover(ctx); err != nil {
		return err
	}
	if err := r.refuseUnknown(ctx); err != nil || r.refusal != nil {
		return err
	}
	if err := r.endLost(ctx); err != nil {
		return err
	}
	if err := r.exhumeAll(ctx); err != nil {
		return err
	}
	walked, err := r.openUsed(ctx)
	if err != nil {
		return err
	}
	// A condemned pack may be gone from store and index, and not yet from what is
	// pending; and where a copy is damaged that the index took for sound, another
	// is used now, which may be pending.
	return r.openPending(ctx, changed || walked || len(r.condemned) > 0 || r.damaged > 0)
}

// claim takes the epoch into the store, unless the store knows a newer one.
func (r *Repository) claim(ctx context.Context) error {
	newest, err := r.newestEpoch(ctx)
	if err != nil {
		return err
	}
	r.newest = newest
	switch {
	case r.epoch == 0:
		r.refusal = ErrReadOnly
		return nil
	case r.epoch <= newest:
		r.refusal = &OldDatabaseError{Repository: r.id, Epoch: r.epoch, Newest: newest}
		r.log.Error("database is older than the repository", "epoch", r.epoch, "newest", newest)
		return nil
	}
	if newest == 0 {
		if r.refusal, err = r.unmounted(ctx); err != nil || r.refusal != nil {
			return err
		}
	}
	err = r.blobs.Put(ctx, r.name(ownerFolder, epochName(r.epoch)), strings.NewReader(""), 0)
	if errors.Is(err, blob.ErrExists) { // between listing and now, so by another database
		r.newest = r.epoch
		r.refusal = &OldDatabaseError{Repository: r.id, Epoch: r.epoch, Newest: r.epoch}
		return nil
	}
	if err != nil {
		return fmt.Errorf("write the claim's epoch: %w", err)
	}
	r.newest = r.epoch
	r.forgetOwners(ctx)
	return nil
}

// unmounted refuses to write to a store that has nothing at all of this
// repository, although the catalogue has points: most likely it is a folder
// whose disk is not mounted. Where it is truly gone, Import says so to the
// catalogue.
func (r *Repository) unmounted(ctx context.Context) (refusal, err error) {
	for _, err := range r.blobs.List(ctx, r.id+"/") {
		return nil, err // something is there
	}
	for _, binned := range []bool{false, true} {
		points, err := r.catalogue.Points(ctx, r.id, PointQuery{Binned: binned, Limit: 1})
		if err != nil {
			return nil, fmt.Errorf("look for points: %w", err)
		}
		if len(points) > 0 {
			r.log.Error("the store has nothing of a repository with points: is it mounted?")
			return fmt.Errorf("the store has nothing of this repository, which has points: %w", ErrReadOnly), nil
		}
	}
	return nil, nil
}

// forgetOwners removes the epochs of earlier claims: only the highest counts.
func (r *Repository) forgetOwners(ctx context.Context) {
	var older []string
	for object, err := range r.blobs.List(ctx, r.name(ownerFolder)) {
		if err != nil {
			return
		}
		if object.Name < r.name(ownerFolder, epochName(r.epoch)) {
			older = append(older, object.Name)
		}
	}
	for _, name := range older {
		if err := r.blobs.Delete(ctx, name); err != nil && !errors.Is(err, blob.ErrNotFound) {
			r.log.Warn("an old epoch stays", "object", name, "error", err)
		}
	}
}

// checkFormat reads what the repository is, or makes it so.
func (r *Repository) checkFormat(ctx context.Context) error {
	want := formatJSON{Format: chunk.Format, Repository: r.id, ChunkSize: r.chunkSize, FanOut: r.fanOut}
	b, err := blob.Read(ctx, r.blobs, r.name(formatObject), maxSmall)
	switch {
	case errors.Is(err, blob.ErrNotFound) && r.refusal == nil:
		content, err := encodeSmall(want)
		if err != nil {
			return err
		}
		return r.putBytes(ctx, r.name(formatObject), content)
	case errors.Is(err, blob.ErrNotFound):
		return nil // nothing has been written yet
	case err != nil:
		return err
	}
	var have formatJSON
	if err := decodeSmall(b, &have); err != nil {
		r.log.Error("the format object is damaged", "error", err) // every manifest says the same
		return nil
	}
	if have != want {
		return fmt.Errorf("repository is %+v, the database says %+v: %w", have, want, ErrRefused)
	}
	return nil
}

// loadCondemned learns which packs no longer count.
func (r *Repository) loadCondemned(ctx context.Context) error {
	const page = 1000
	for after := (PackID{}); ; {
		packs, err := r.catalogue.Condemned(ctx, r.id, after, page)
		if err != nil {
			return fmt.Errorf("list condemned packs: %w", err)
		}
		for _, p := range packs {
			r.condemned[p.Pack], after = p.At, p.Pack
		}
		if len(packs) < page {
			return nil
		}
	}
}

// reconcile makes the index agree with the packs in the store: a stale index is
// worse than none. It reads the footers of packs that the index does not know,
// or of which it does not know what is pending. changed tells whether there were
// any.
func (r *Repository) reconcile(ctx context.Context) (changed bool, err error) {
	_, counted, err := r.space.pending()
	if err != nil {
		return false, err
	}
	known := map[PackID]int64{}
	prefix := r.space.key(familyPack)
	err = r.space.each(prefix, func(key, value []byte) error {
		if len(key) == len(PackID{}) && len(value) == 9 {
			known[PackID(key)] = int64(binary.LittleEndian.Uint64(value[1:]))
		}
		return nil
	})
	if err != nil {
		return false, err
	}
	var wrong []packObject
	for _, kind := range []PackKind{chunk.KindData, chunk.KindPage} {
		for p, err := range r.packs(ctx, kind) {
			if err != nil {
				return false, err
			}
			if size, ok := known[p.id]; !ok || size != p.size {
				wrong = append(wrong, p)
				continue
			}
			delete(known, p.id)
			if !counted && r.young(p.id) {
				wrong = append(wrong, p)
			}
		}
	}
	gone := make(map[PackID]bool, len(known))
	for id := range known {
		gone[id] = true
	}
	if err := r.space.purge(gone); err != nil {
		return false, err
	}
	if len(gone) > 0 { // deleted by somebody else
		r.noteDamage()
	}
	for _, p := range wrong {
		if err := r.enter(ctx, p); err != nil {
			return false, err
		}
	}
	if len(wrong)+len(gone) > 0 {
		r.log.Info("index reconciled", "entered", len(wrong), "dropped", len(gone))
	}
	return len(wrong)+len(gone) > 0, r.applyDamage(ctx)
}

// enter makes a pack of the store known from its footer, or, where the footer
// is damaged, from its records.
func (r *Repository) enter(ctx context.Context, p packObject) error {
	entries, err := readFooter(ctx, r.blobs, p)
	if errors.Is(err, chunk.ErrDamaged) {
		r.log.Error("footer is damaged, reading the whole pack", "pack", p.id, "error", err)
		entries, err = scanPack(ctx, r.blobs, p)
	}
	if errors.Is(err, blob.ErrNotFound) {
		return nil // deleted since it was listed
	}
	if err != nil {
		return err
	}
	if !r.young(p.id) || r.isCondemned(p.id) {
		return r.enterPack(p, entries, nil, nil)
	}
	return r.enterPack(p, entries, nil, func(b *batch) { b.pend(p, entries) }) // counted when it is known what points use
}

func (r *Repository) applyDamage(ctx context.Context) error {
	for d, err := range r.catalogue.Damage(ctx, r.id) {
		if err != nil {
			return fmt.Errorf("list damage: %w", err)
		}
		if err := r.space.damage(d); err != nil {
			return err
		}
		r.noteDamage()
	}
	return nil
}

// Writable reports whether the repository takes writes; the error says why not.
func (r *Repository) Writable() error { return r.refusal }

// Epoch is that of the claim, 0 for a repository that was opened for reading.
func (r *Repository) Epoch() uint64 { return r.epoch }

// ChunkSize is the size of every chunk but a disk's last, fixed when the
// repository was made.
func (r *Repository) ChunkSize() int64 { return r.chunkSize }

// FanOut is the ids of a map page, fixed as well.
func (r *Repository) FanOut() int { return r.fanOut }

// Close ends the use of the repository. Open sessions keep their spool and are
// found by the next Open. The Index, the Catalogue and the blobs stay open.
func (r *Repository) Close() error {
	r.mu.Lock()
	sessions := r.sessions
	r.sessions, r.closed = map[chunk.SessionID]*Session{}, true
	settled := r.settling.done
	if settled != nil {
		r.settling.stop()
	}
	r.mu.Unlock()
	if settled != nil {
		<-settled
	}
	var errs []error
	for _, s := range sessions {
		s.ending.Lock() // a commit that is on its way still writes down what became of it
		errs = append(errs, s.close())
		s.ending.Unlock()
	}
	return errors.Join(errs...)
}

// collectorDir is where the collector writes; what a crash leaves there are
// copies only.
func (r *Repository) collectorDir() string { return filepath.Join(r.spool, "collect") }

// recover finds the sessions that were open, and drops what is none.
func (r *Repository) recover(ctx context.Context) error {
	if err := os.RemoveAll(r.collectorDir()); err != nil {
		return fmt.Errorf("clear the collector's spool: %w", err)
	}
	if err := os.MkdirAll(r.spool, 0o700); err != nil {
		return fmt.Errorf("make spool: %w", full(err))
	}
	folders, err := os.ReadDir(r.spool)
	if err != nil {
		return fmt.Errorf("read spool: %w", err)
	}
	for _, folder := range folders {
		s, err := r.recoverSession(filepath.Join(r.spool, folder.Name()))
		if err != nil {
			return err
		}
		if s == nil {
			continue
		}
		if err := r.settleAttempt(ctx, s); err != nil {
			return errors.Join(err, s.close())
		}
	}
	return nil
}

// live looks for copies of a record that count: not in a condemned pack. The
// first is the one to use; sound tells whether nothing speaks against it. Those
// that distrusted sessions brought come after the sound ones, damaged ones last.
func (r *Repository) live(kind chunk.Kind, id chunk.ID) (copies []location, sound bool, err error) {
	all, err := r.space.copies(kind, id)
	if err != nil || len(all) == 0 {
		return nil, false, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	var doubtful, damaged []location
	for _, l := range all {
		_, condemned := r.condemned[l.pack]
		l.doubtful = r.doubts(kind, l.Session)
		switch {
		case condemned:
		case l.damaged:
			damaged = append(damaged, l)
		case l.doubtful:
			doubtful = append(doubtful, l)
		default:
			copies = append(copies, l)
		}
	}
	sound = len(copies) > 0
	return append(append(copies, doubtful...), damaged...), sound, nil
}

// markDamaged makes a copy not count any more, here and in the database. Where a
// full disk prevents that, whoever reads it finds it again.
func (r *Repository) markDamaged(ctx context.Context, kind chunk.Kind, id chunk.ID, pack PackID) error {
	d := Damage{Kind: kind, ID: id, Pack: pack, At: r.clock()}
	r.log.Error("a record is damaged", "kind", kindName(kind), "id", id, "pack", pack)
	err := r.space.damage(d)
	r.noteDamage()
	if r.epoch != 0 {
		err = errors.Join(err, r.catalogue.MarkDamaged(ctx, r.id, []Damage{d}))
	}
	if errors.Is(err, blob.ErrFull) {
		r.log.Error("damage is not recorded", "pack", pack, "error", err)
		return nil
	}
	if err != nil {
		return fmt.Errorf("record damage: %w", err)
	}
	return nil
}
