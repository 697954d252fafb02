package repository_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/holdfast-dr/holdfast/core/audit"
	"github.com/holdfast-dr/holdfast/core/blob"
	"github.com/holdfast-dr/holdfast/core/blob/blobtest"
	"github.com/holdfast-dr/holdfast/core/blob/dir"
	"github.com/holdfast-dr/holdfast/core/chunk"
	"github.com/holdfast-dr/holdfast/core/point"
	"github.com/holdfast-dr/holdfast/core/repository"
	"github.com/holdfast-dr/holdfast/core/repository/repositorytest"
)

const (
	testChunk  = 4096
	testFanOut = 4
)

// tester is what fails: a test, or one history of a property.
type tester interface {
	Helper()
	Context() context.Context
	Cleanup(f func())
	Error(args ...any)
	Errorf(format string, args ...any)
	Fatal(args ...any)
	Fatalf(format string, args ...any)
}

// site is a tenant with one cloud repository, and the provider's side of it.
type site struct {
	t         tester
	id        string
	root      string
	blobs     *blobtest.Faulty
	catalogue *repositorytest.Catalogue
	index     *repository.Index
	spool     string
	clock     *blobtest.Clock
	epoch     uint64
	repo      *repository.Repository
	keys      *chunk.Keyring
	pack      int64
	bin       time.Duration
	log       *slog.Logger
	sync      func(*os.File) error
	damaged   bool // something was, so what it took may be given back late, and collections wait
}

// deadline is far beyond what any test takes; it turns a hang into a failure.
func testContext(t tester) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	t.Cleanup(cancel)
	return audit.With(ctx, audit.System("test", "a test"))
}

func newSite(t *testing.T) *site {
	t.Helper()
	t.Parallel() // these tests wait for disks
	root := t.TempDir()
	store, err := dir.Open(filepath.Join(root, "store"), dir.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = store.Close() })
	s := &site{
		t: t, id: uuid.Must(uuid.NewV7()).String(), root: root, blobs: blobtest.NewFaulty(store),
		catalogue: &repositorytest.Catalogue{}, spool: filepath.Join(root, "spool"),
		clock: blobtest.NewClock(time.Now()), keys: chunk.NewKeyring(), pack: 64 << 10,
		log: slog.New(slog.DiscardHandler),
	}
	s.catalogue.Add(s.id, 1<<40, 0)
	s.openIndex()
	s.open()
	t.Cleanup(func() { s.close() })
	return s
}

func (s *site) openIndex() {
	s.t.Helper()
	index, err := repository.OpenIndex(filepath.Join(s.root, "index"), repository.IndexOptions{CacheBytes: 4 << 20})
	if err != nil {
		s.t.Fatal(err)
	}
	s.index = index
}

func (s *site) config() repository.Config {
	return repository.Config{
		ID: s.id, Blobs: s.blobs, Index: s.index, Catalogue: s.catalogue, SpoolDir: s.spool, Epoch: s.epoch,
		ChunkSize: testChunk, FanOut: testFanOut, PackBytes: s.pack, BinPeriod: s.bin, Clock: s.clock.Now, Log: s.log, Sync: s.sync,
	}
}

// open claims and opens the repository.
func (s *site) open() {
	s.t.Helper()
	s.epoch++
	s.catalogue.SetEpoch(s.id, s.epoch)
	repo, err := repository.Open(testContext(s.t), s.config())
	if err != nil {
		s.t.Fatal(err)
	}
	s.repo = repo
}

func (s *site) close() {
	if s.repo != nil {
		if err := s.repo.Close(); err != nil {
			s.t.Error(err)
		}
		s.repo = nil
	}
	if s.index != nil {
		if err := s.index.Close(); err != nil {
			s.t.Error(err)
		}
		s.index = nil
	}
}

// restart ends this life of the server and begins another.
func (s *site) restart() {
	s.t.Helper()
	s.close()
	s.openIndex()
	s.open()
}

// disk is content in memory.
type disk []byte

// randomDisk has random, repeated, compressible and zero chunks.
func randomDisk(r *rand.Rand, size int) disk {
	d := make(disk, size)
	for off := 0; off < size; off += testChunk {
		scatter(r, d[off:min(off+testChunk, size)])
	}
	return d
}

func scatter(r *rand.Rand, b []byte) {
	clear(b)
	switch r.IntN(4) {
	case 0: // zeroes
	case 1: // compressible
		for i := range b {
			b[i] = byte(i / 100 * r.IntN(2))
		}
		b[0] = byte(1 + r.IntN(255))
	default:
		for i := range b {
			b[i] = byte(r.Uint32())
		}
	}
}

// changed is the disk with some chunks replaced.
func (d disk) changed(r *rand.Rand, chunks int) disk {
	next := bytes.Clone(d)
	for range chunks {
		off := r.IntN((len(d)+testChunk-1)/testChunk) * testChunk
		scatter(r, next[off:min(off+testChunk, len(d))])
	}
	return next
}

// backup is a tenant's run in progress.
type backup struct {
	s       *site
	session *repository.Session
	machine point.MachineID
	point   point.ID
	base    point.ID
	sealer  *chunk.Sealer
	public  point.Public
	sent    int // records
}

func newMachine() point.MachineID { return point.MachineID(uuid.Must(uuid.NewV7()).String()) }

func (s *site) begin(ctx context.Context, machine point.MachineID, base point.ID) (*backup, error) {
	session, err := s.repo.Begin(ctx, machine, base, "agent")
	if err != nil {
		return nil, err
	}
	return &backup{
		s: s, session: session, machine: machine, point: point.NewID(), base: base, sealer: s.keys.NewSealer(session.ID()),
	}, nil
}

// pages reads map pages of the repository.
type pages struct {
	ctx  context.Context
	repo *repository.Repository
}

func (p pages) Pages(ctx context.Context, ids []chunk.ID) ([][]byte, error) {
	var out [][]byte
	err := p.repo.Read(ctx, chunk.KindPage, ids, func(r chunk.Record) error {
		out = append(out, bytes.Clone(r.Body))
		return nil
	})
	return out, err
}

// send brings what the repository does not have, and returns the manifest.
func (b *backup) send(ctx context.Context, disks ...disk) ([]byte, error) {
	b.public = point.Public{
		Repository: b.s.id, Point: b.point, Previous: b.base, Machine: b.machine, Session: sessionText(b.session),
		Taken: b.s.clock.Now(), Kind: point.KindFull, ChunkSize: testChunk, FanOut: testFanOut,
	}
	private := point.Private{Machine: "a machine", Spec: []byte("{}")}
	for _, d := range disks {
		root, err := b.sendDisk(ctx, d)
		if err != nil {
			return nil, err
		}
		b.public.Disks = append(b.public.Disks, point.Disk{SizeBytes: int64(len(d)), Root: root})
		private.Disks = append(private.Disks, point.PrivateDisk{ID: "sda"})
	}
	return point.Manifest{Public: b.public, Private: private}.Seal(b.s.keys)
}

func sessionText(s *repository.Session) string {
	id := s.ID()
	const digits = "0123456789abcdef"
	var out []byte
	for _, b := range id {
		out = append(out, digits[b>>4], digits[b&15])
	}
	return string(out)
}

func (b *backup) sendDisk(ctx context.Context, d disk) (chunk.ID, error) {
	base := point.Tree{
		Geometry: point.Geometry{SizeBytes: int64(len(d)), ChunkSize: testChunk, FanOut: testFanOut},
		Pages:    pages{ctx, b.s.repo},
	}
	var batch []byte
	flush := func(limit int) error {
		if len(batch) <= limit {
			return nil
		}
		err := b.session.Put(ctx, batch)
		batch = nil
		return err
	}
	builder, err := point.NewBuilder(base, func(ctx context.Context, id chunk.ID, page []byte) error {
		have, err := b.session.Have(ctx, chunk.KindPage, []chunk.ID{id})
		if err != nil || have[0] {
			return err
		}
		b.sent++
		batch = chunk.AppendPage(batch, b.session.ID(), id, page)
		return flush(32 << 10)
	})
	if err != nil {
		return chunk.ID{}, err
	}
	for i := range base.Chunks() {
		plain := d[i*testChunk : i*testChunk+int64(base.ChunkLength(i))]
		if len(bytes.TrimLeft(plain, "\x00")) == 0 {
			continue
		}
		id := b.s.keys.ID(plain)
		if err := builder.Set(ctx, i, id); err != nil {
			return chunk.ID{}, err
		}
		have, err := b.session.Have(ctx, chunk.KindData, []chunk.ID{id})
		if err != nil {
			return chunk.ID{}, err
		}
		if have[0] {
			continue
		}
		b.sent++
		if batch, err = b.sealer.Append(batch, id, plain); err != nil {
			return chunk.ID{}, err
		}
		if err := flush(32 << 10); err != nil {
			return chunk.ID{}, err
		}
	}
	root, err := builder.Finish(ctx)
	if err != nil {
		return chunk.ID{}, err
	}
	return root, flush(0)
}

// run makes a whole backup, and sends again what the commit misses.
func (s *site) run(ctx context.Context, machine point.MachineID, base point.ID, disks ...disk) (point.ID, error) {
	b, err := s.begin(ctx, machine, base)
	if err != nil {
		return "", err
	}
	for {
		manifest, err := b.send(ctx, disks...)
		if err != nil {
			return "", err
		}
		err = b.session.Commit(ctx, manifest)
		var missing *point.MissingError
		if errors.As(err, &missing) {
			continue
		}
		return b.point, err
	}
}

func (s *site) backup(machine point.MachineID, base point.ID, disks ...disk) point.ID {
	s.t.Helper()
	id, err := s.run(testContext(s.t), machine, base, disks...)
	if err != nil {
		s.t.Fatalf("backup: %v", err)
	}
	return id
}

// restore reads a disk of a point, and checks everything that a tenant checks.
func (s *site) restore(ctx context.Context, id point.ID, i int) (disk, error) {
	b, err := s.repo.Manifest(ctx, id)
	if err != nil {
		return nil, err
	}
	m, err := point.Open(b, s.keys)
	if err != nil {
		return nil, err
	}
	g := m.Public.Geometry(i)
	tree := point.Tree{Geometry: g, Root: m.Public.Disks[i].Root, Pages: pages{ctx, s.repo}}
	d := make(disk, g.SizeBytes)
	var ids []chunk.ID
	var at []int64
	err = tree.Walk(ctx, 0, g.Chunks(), func(index int64, id chunk.ID) error {
		ids, at = append(ids, id), append(at, index)
		return nil
	})
	if err != nil {
		return nil, err
	}
	opener, n := s.keys.NewOpener(), 0
	err = s.repo.Read(ctx, chunk.KindData, ids, func(r chunk.Record) error {
		if r.ID != ids[n] {
			return errors.New("records come in another order")
		}
		plain, err := opener.Open(nil, r)
		copy(d[at[n]*testChunk:], plain)
		n++
		return err
	})
	return d, err
}

func (s *site) wantRestore(id point.ID, disks ...disk) {
	s.t.Helper()
	for i, want := range disks {
		got, err := s.restore(testContext(s.t), id, i)
		if err != nil {
			s.t.Errorf("restore disk %d of point %s: %v", i, id, err)
		} else if !bytes.Equal(got, want) {
			s.t.Errorf("disk %d of point %s differs", i, id)
		}
	}
}

// objects lists the store.
func (s *site) objects(prefix string) []blob.Object {
	s.t.Helper()
	var all []blob.Object
	for object, err := range s.blobs.List(testContext(s.t), s.id+"/"+prefix) {
		if err != nil {
			s.t.Fatal(err)
		}
		all = append(all, object)
	}
	return all
}

func wantIs(t *testing.T, what string, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("%s: error %v, want %v", what, err, want)
	}
}

// seeded is chance that HOLDFAST_TEST_SEED=seed repeats.
func seeded(t *testing.T) *rand.Rand {
	t.Helper()
	seed := rand.Uint64()
	if text := os.Getenv("HOLDFAST_TEST_SEED"); text != "" {
		if _, err := fmt.Sscan(text, &seed); err != nil {
			t.Fatalf("read the seed %q: %v", text, err)
		}
	}
	t.Logf("HOLDFAST_TEST_SEED=%d repeats this", seed)
	return rand.New(rand.NewPCG(seed, 0))
}
