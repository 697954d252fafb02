package repository

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/bloom"
	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/google/uuid"

	"github.com/holdfast-dr/holdfast/core/blob"
	"github.com/holdfast-dr/holdfast/core/chunk"
)

// Index is the server's one cache of where records are and what points use. It
// may be deleted while no server runs: every Open reconciles it with the store,
// which is the truth. Its keys begin with a family and the cloud repository.
type Index struct {
	db   *pebble.DB
	disk *indexDisk // nil: in memory
	room room

	mu sync.Mutex // makes changes of one id's copies whole
}

// Families of keys.
const (
	familyCopies  = 'L' // kind, id → the copies of a record
	familyPack    = 'P' // pack → kind, size: its records are entered
	familyPage    = 'E' // page id → encoded page: the edges from pages to their children
	familyUsed    = 'X' // generation, kind, id → flag, size: what points use
	familyState   = 'G' // → generation and sum of the points that it counts; "pending" → the sum of what is pending
	familyPending = 'U' // pack, kind, id → size: brought by a session and used by no point yet
	familyEnded   = 'Z' // session → when it was given up
	familyNew     = 'N' // session, kind, id → size: what a commit in progress needs
	familySound   = 'V' // page id → whether all below it is present: a verification in progress
)

// IndexOptions tune the index. The zero value works.
type IndexOptions struct {
	CacheBytes int64 // 0: DefaultIndexCache
	InMemory   bool  // nothing is written, the directory is not used; for tests and for a look into a store
	// Free tells what is free on the directory's disk; the system is asked if it is
	// nil. Tests fill the disk with it.
	Free func(directory string) (int64, error)
}

// DefaultIndexCache is what the index keeps in memory. Pebble's own default of
// 8 MiB makes look-ups four to eight times slower.
const DefaultIndexCache = 64 << 20

// OpenIndex uses a directory, which is made if it does not exist. One process
// may use it at a time. An index that is corrupt is made anew. While its disk is
// full it does not open: the error is a *blob.FullError.
func OpenIndex(dir string, o IndexOptions) (*Index, error) {
	if o.CacheBytes == 0 {
		o.CacheBytes = DefaultIndexCache
	}
	if o.Free == nil {
		o.Free = blob.FreeBytes
	}
	var disk *indexDisk
	if !o.InMemory {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, fmt.Errorf("make index %s: %w", dir, full(err))
		}
		disk = &indexDisk{FS: vfs.Default, dir: dir, free: o.Free}
		if err := disk.room(); err != nil {
			return nil, fmt.Errorf("open index: %w", err)
		}
	}
	db, err := openPebble(dir, disk, o)
	if pebble.IsCorruptionError(err) {
		if err := os.RemoveAll(dir); err != nil {
			return nil, fmt.Errorf("remove corrupt index: %w", err)
		}
		db, err = openPebble(dir, disk, o)
	}
	if err != nil {
		return nil, fmt.Errorf("open index %s: %w", dir, full(err))
	}
	if disk != nil {
		disk.opened.Store(true)
	}
	return &Index{db: db, disk: disk}, nil
}

func openPebble(dir string, disk *indexDisk, o IndexOptions) (*pebble.DB, error) {
	cache := pebble.NewCache(o.CacheBytes)
	defer cache.Unref()
	options := &pebble.Options{
		Cache:              cache,
		FormatMajorVersion: pebble.FormatNewest,
		MemTableSize:       16 << 20,
		Logger:             quiet{},
	}
	if disk != nil {
		options.FS = disk
	} else {
		options.FS = vfs.NewMem()
	}
	for i := range options.Levels {
		options.Levels[i].FilterPolicy = bloom.FilterPolicy(10)
	}
	return pebble.Open(dir, options)
}

// quiet drops what Pebble logs: errors come back from its calls, and a cache is
// nobody's news.
type quiet struct{}

func (quiet) Infof(string, ...any)  {}
func (quiet) Errorf(string, ...any) {}
func (quiet) Fatalf(format string, args ...any) {
	panic(fmt.Sprintf("index: "+format, args...)) // Pebble does not survive it
}

// Close ends the use of the index. What waits for room on its disk is given up:
// the next OpenIndex finds the index as a crash would have left it.
func (x *Index) Close() error {
	if x.stuck() {
		return fmt.Errorf("close index: %w", x.disk.full(0))
	}
	return x.db.Close()
}

// stuck reports whether something waits for room on the index's disk.
func (x *Index) stuck() bool { return x.disk != nil && x.disk.waiting.Load() > 0 }

// writable answers a *blob.FullError while nothing may be written.
func (x *Index) writable() error {
	if x.disk == nil {
		return nil
	}
	if err := x.disk.room(); err != nil {
		return fmt.Errorf("write index: %w", err)
	}
	return nil
}

// space is one repository's part of the index.
type space struct {
	index *Index
	id    [16]byte
}

func (x *Index) space(repository string) (space, error) {
	id, err := uuid.Parse(repository)
	if err != nil || id.String() != repository {
		return space{}, fmt.Errorf("repository id %.80q is not a UUID", repository)
	}
	return space{index: x, id: id}, nil
}

func (s space) key(family byte, parts ...[]byte) []byte {
	key := make([]byte, 0, 96)
	key = append(key, family)
	key = append(key, s.id[:]...)
	for _, part := range parts {
		key = append(key, part...)
	}
	return key
}

func recordKey(kind chunk.Kind, id chunk.ID) []byte { return append([]byte{byte(kind)}, id[:]...) }

// get copies a value; ok is false if there is none.
func (s space) get(key []byte) (value []byte, ok bool, err error) {
	found, closer, err := s.index.db.Get(key)
	if errors.Is(err, pebble.ErrNotFound) {
		return nil, false, nil
	}
	if err != nil {
		return nil, false, fmt.Errorf("read index: %w", err)
	}
	value = bytes.Clone(found)
	return value, true, closer.Close()
}

// each calls visit for every key that begins with prefix, in order. The slices
// are valid during the call, and the key lacks the prefix.
func (s space) each(prefix []byte, visit func(key, value []byte) error) (err error) {
	it, err := s.index.db.NewIter(&pebble.IterOptions{LowerBound: prefix, UpperBound: after(prefix)})
	if err != nil {
		return fmt.Errorf("read index: %w", err)
	}
	defer func() { err = errors.Join(err, it.Close()) }()
	for it.First(); it.Valid(); it.Next() {
		value, err := it.ValueAndErr()
		if err != nil {
			return fmt.Errorf("read index: %w", err)
		}
		if err := visit(it.Key()[len(prefix):], value); err != nil {
			return err
		}
	}
	return it.Error()
}

// after is the first key that does not begin with prefix.
func after(prefix []byte) []byte {
	end := bytes.Clone(prefix)
	for i := len(end) - 1; i >= 0; i-- {
		if end[i]++; end[i] != 0 {
			return end[:i+1]
		}
	}
	return nil
}

// clear drops every key that begins with prefix.
func (s space) clear(prefix []byte) error {
	if err := s.index.writable(); err != nil {
		return err
	}
	if err := s.index.db.DeleteRange(prefix, after(prefix), pebble.NoSync); err != nil {
		return fmt.Errorf("write index: %w", err)
	}
	return nil
}

// batch gathers writes. Nothing is synced: what a crash takes is entered again
// by the next reconciliation.
func (s space) batch() *batch { return &batch{s: s, b: s.index.db.NewBatch()} }

type batch struct {
	s space
	b *pebble.Batch // nil when it has ended
	// small is written into the reserve, too.
	small bool
}

// batchSize is where a batch that may be cut anywhere is written.
const batchSize = 1 << 20

func (b *batch) set(key, value []byte) { _ = b.b.Set(key, value, nil) } // fails only after Close

func (b *batch) delete(key []byte) { _ = b.b.Delete(key, nil) }

// spill writes what was gathered if it is a lot.
func (b *batch) spill() error {
	if b.b.Len() < batchSize {
		return nil
	}
	if err := b.apply(); err != nil {
		return err
	}
	b.b = b.s.index.db.NewBatch()
	return nil
}

// apply writes the batch and ends it. While the index's disk is full it is
// dropped, and the error is a *blob.FullError.
func (b *batch) apply() error {
	defer b.drop()
	if err := b.s.index.writable(); err != nil && (!b.small || b.s.index.stuck()) {
		return err
	}
	if err := b.b.Commit(pebble.NoSync); err != nil {
		return fmt.Errorf("write index: %w", err)
	}
	return nil
}

// drop ends the batch; one that has ended stays so.
func (b *batch) drop() {
	if b.b != nil {
		_ = b.b.Close() // gives memory back
		b.b = nil
	}
}

// location is a copy of a record.
type location struct {
	pack     PackID
	damaged  bool
	doubtful bool // a distrusted session brought it; not in the index, see Repository.live
	Entry
}

// maxCopies bounds the copies of one record that the index knows. More of them
// are waste, and are collected as such, but for a sound one, which takes the
// place of one that is not.
const maxCopies = 8

const locationSize = 16 + 1 + 8 + 4*4 + 16

func appendLocation(dst []byte, l location) []byte {
	dst = append(dst, l.pack[:]...)
	flag := byte(0)
	if l.damaged {
		flag = 1
	}
	dst = append(dst, flag)
	dst = binary.LittleEndian.AppendUint64(dst, uint64(l.Offset))
	for _, n := range []uint32{l.Length, l.Checksum, l.PlainLength, l.KeyNumber} {
		dst = binary.LittleEndian.AppendUint32(dst, n)
	}
	return append(dst, l.Session[:]...)
}

func parseLocations(id chunk.ID, b []byte) []location {
	locations := make([]location, 0, len(b)/locationSize)
	for ; len(b) >= locationSize; b = b[locationSize:] {
		locations = append(locations, location{
			pack:    PackID(b[:16]),
			damaged: b[16] != 0,
			Entry: Entry{
				ID:          id,
				Offset:      int64(binary.LittleEndian.Uint64(b[17:])),
				Length:      binary.LittleEndian.Uint32(b[25:]),
				Checksum:    binary.LittleEndian.Uint32(b[29:]),
				PlainLength: binary.LittleEndian.Uint32(b[33:]),
				KeyNumber:   binary.LittleEndian.Uint32(b[37:]),
				Session:     chunk.SessionID(b[41:57]),
			},
		})
	}
	return locations
}

// copies are the known copies of a record, the first that came first.
func (s space) copies(kind chunk.Kind, id chunk.ID) ([]location, error) {
	value, ok, err := s.get(s.key(familyCopies, recordKey(kind, id)))
	if err != nil || !ok {
		return nil, err
	}
	return parseLocations(id, value), nil
}

// change edits the copies of several records. edit returns what is to be kept;
// the same id may come more than once.
func (s space) change(kind chunk.Kind, ids []chunk.ID, also func(*batch), edit func(i int, copies []location) []location) error {
	s.index.mu.Lock()
	defer s.index.mu.Unlock()
	b := s.batch()
	done := make(map[chunk.ID][]location, len(ids))
	for i, id := range ids {
		copies, seen := done[id]
		if !seen {
			var err error
			if copies, err = s.copies(kind, id); err != nil {
				b.drop()
				return err
			}
		}
		done[id] = edit(i, copies)
	}
	for id, copies := range done {
		key := s.key(familyCopies, recordKey(kind, id))
		if len(copies) == 0 {
			b.delete(key)
			if kind == chunk.KindPage {
				b.delete(s.key(familyPage, id[:]))
			}
			continue
		}
		var value []byte
		for _, l := range copies {
			value = appendLocation(value, l)
		}
		b.set(key, value)
	}
	also(b)
	return b.apply()
}

func idsOf(entries []Entry) []chunk.ID {
	ids := make([]chunk.ID, len(entries))
	for i, e := range entries {
		ids[i] = e.ID
	}
	return ids
}

// enter makes a synced pack known, in one batch. Entering again is harmless.
// more, if given, adds to the batch. doubts says which sessions are distrusted.
func (s space) enter(p packObject, entries []Entry, pages map[chunk.ID][]byte, doubts func(chunk.SessionID) bool, more func(*batch)) error {
	also := func(b *batch) {
		for id, page := range pages {
			b.set(s.key(familyPage, id[:]), page)
		}
		value := binary.LittleEndian.AppendUint64([]byte{byte(p.kind)}, uint64(p.size))
		b.set(s.key(familyPack, p.id[:]), value)
		if more != nil {
			more(b)
		}
	}
	return s.change(p.kind, idsOf(entries), also, func(i int, copies []location) []location {
		l := location{pack: p.id, Entry: entries[i]}
		for j, known := range copies {
			if known.pack == p.id {
				l.damaged = known.damaged
				copies[j] = l
				return copies
			}
		}
		if len(copies) < maxCopies {
			return append(copies, l)
		}
		worse := slices.IndexFunc(copies, func(c location) bool { return c.damaged || doubts(c.Session) })
		if worse < 0 || doubts(l.Session) {
			return copies
		}
		return append(slices.Delete(copies, worse, worse+1), l)
	})
}

// remove makes a pack unknown.
func (s space) remove(p packObject, entries []Entry) error {
	also := func(b *batch) { b.delete(s.key(familyPack, p.id[:])) }
	return s.change(p.kind, idsOf(entries), also, func(_ int, copies []location) []location {
		kept := copies[:0]
		for _, l := range copies {
			if l.pack != p.id {
				kept = append(kept, l)
			}
		}
		return kept
	})
}

// damage marks one copy.
func (s space) damage(d Damage) error {
	return s.change(d.Kind, []chunk.ID{d.ID}, func(b *batch) { b.small = true }, func(_ int, copies []location) []location {
		for i := range copies {
			if copies[i].pack == d.Pack {
				copies[i].damaged = true
			}
		}
		return copies
	})
}

// purge makes several packs unknown whose footers are gone, by looking at every
// record of the repository.
func (s space) purge(gone map[PackID]bool) error {
	if len(gone) == 0 {
		return nil
	}
	s.index.mu.Lock()
	defer s.index.mu.Unlock()
	b := s.batch()
	prefix := s.key(familyCopies)
	err := s.each(prefix, func(key, value []byte) error {
		var kept []byte
		for rest := value; len(rest) >= locationSize; rest = rest[locationSize:] {
			if !gone[PackID(rest[:16])] {
				kept = append(kept, rest[:locationSize]...)
			}
		}
		switch whole := append(bytes.Clone(prefix), key...); {
		case len(kept) == len(value):
			return nil
		case len(kept) == 0:
			b.delete(whole)
		default:
			b.set(whole, kept)
		}
		return b.spill()
	})
	if err != nil {
		b.drop()
		return err
	}
	for id := range gone { // last, so that a purge that was cut is done again
		b.delete(s.key(familyPack, id[:]))
	}
	return b.apply()
}
