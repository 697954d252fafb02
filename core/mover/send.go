package mover

import (
	"context"
	"fmt"
	"iter"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/holdfast-dr/holdfast/core/chunk"
	"github.com/holdfast-dr/holdfast/core/point"
	"github.com/holdfast-dr/holdfast/sdk"
)

// Repository is the far end of a copy, with the keys to it.
type Repository struct {
	Writer  Writer // for Send
	Reader  Reader // for Fetch and Verify; of Send, to prove a sample of what is not sent
	Keys    *chunk.Keyring
	Session chunk.SessionID // for Send
}

// Disk is one disk to be sent.
type Disk struct {
	Reader   sdk.BlockReader
	Geometry point.Geometry // its size must be the reader's
	// Base is the map of the same disk in an earlier point of the same geometry
	// whose presence at the repository is sure, or nil: then everything is read
	// and asked for.
	Base *point.Tree
	// Changed lists what may differ from Base; nil: everything is read and
	// compared with it. It is not used without a Base.
	Changed func(ctx context.Context) iter.Seq2[sdk.Extent, error]
	// Suspect names chunks whose copies at the repository are missing or
	// damaged. Wherever Base has one, it is read and sent again.
	Suspect []chunk.ID
}

func (d Disk) kind() point.Kind {
	switch {
	case d.Base == nil:
		return point.KindFull
	case d.Changed == nil:
		return point.KindCompare
	default:
		return point.KindIncremental
	}
}

func (d Disk) validate() error {
	if err := d.Geometry.Validate(); err != nil {
		return err
	}
	if size := d.Reader.Size(); size != d.Geometry.SizeBytes {
		return fmt.Errorf("disk has %d bytes, expected %d: %w", size, d.Geometry.SizeBytes, sdk.ErrInvalid)
	}
	if d.Base != nil && d.Base.Geometry != d.Geometry {
		return fmt.Errorf("base has another geometry than the disk: %w", sdk.ErrInvalid)
	}
	return nil
}

// Options tune a copy. The zero value works.
type Options struct {
	Workers     int // goroutines that hash, compress, seal; default cores+1
	Readers     int // requests in flight at the source, default 4
	Connections int // requests in flight at the repository, default 4; see ConnectionsOver
	BatchBytes  int // of one Put; default 4 MiB, less where Memory is for many connections
	// Memory bounds the buffers of one Send, in bytes; default 40 MiB, at least
	// what one request of each kind needs.
	Memory int64
	// AuditChunks is how many chunks that the change tracker calls unchanged are
	// read and compared all the same: 0 means 16 or 2 % of the changed ones,
	// whichever is more, at most 1,000; -1 none.
	AuditChunks int
	// VerifyChunks is how many chunks that were not sent are fetched, opened and
	// hashed: 0 means 5 % of the bytes sent, at least 16 chunks and at most
	// 1,000; -1 none.
	VerifyChunks int
	Retry        Retry
	Seed         Seed // of the samples; zero: unpredictable
	// Progress is called about once a second and at the end, by one goroutine.
	Progress func(Progress)
	// Damaged decides what Fetch does about a chunk that cannot be had whole:
	// nil goes on and leaves zeroes there. Without it the first one ends the copy.
	Damaged func(Damage) error
}

const (
	slabBytes    = 1 << 20 // of one read at the source
	minBatch     = 2 << 20 // any record fits twice
	maxBatch     = 4 << 20 // unless a larger one is asked for
	lastBatch    = minBatch / 4
	lookAhead    = 512  // chunks whose base ids are looked up at once
	window       = 256  // slabs between the planner and the map
	askGroup     = 1024 // ids of one Have
	askers       = 2
	maxSample    = 1000
	minSample    = 16
	defaultBytes = 40 << 20
)

func (o Options) withDefaults(g point.Geometry) Options {
	if o.Workers <= 0 {
		o.Workers = defaultWorkers()
	}
	if o.Readers <= 0 {
		o.Readers = 4
	}
	if o.Connections <= 0 {
		o.Connections = fewConnections
	}
	if o.Memory <= 0 {
		o.Memory = defaultBytes
	}
	if o.BatchBytes <= 0 {
		// One for each connection and one that is being filled.
		o.BatchBytes = min(maxBatch, int(batchShare(o.Memory))/(o.Connections+1))
	}
	o.BatchBytes = max(minBatch, min(o.BatchBytes, MaxBatch))
	if o.Seed == (Seed{}) {
		o.Seed = randomSeed()
	}
	return o
}

// Connections of a copy on a short line, and on the longest.
const (
	fewConnections  = 4
	mostConnections = 8
	// perConnection is the round trip that is worth one more connection. From 40 ms
	// on there are all of them: a connection that loses packets carries the less
	// the longer the line is, and while it waits for an answer it carries nothing.
	perConnection = 10 * time.Millisecond
)

// ConnectionsOver is how many requests are best in flight on a line of this
// round trip. Few are cheaper for both ends, many fill a long line.
func ConnectionsOver(roundTrip time.Duration) int {
	return min(mostConnections, fewConnections+int(max(0, roundTrip)/perConnection))
}

// batchShare is the part of the memory that batches may have.
func batchShare(memory int64) int64 { return memory * 2 / 3 }

// buffers divides Memory: batches first, one for each connection and two that
// are being filled, then slabs.
func (o Options) buffers(slab int) (batches, slabs int) {
	batches = o.Connections + 2
	for batches > 3 && int64(batches*o.BatchBytes) > batchShare(o.Memory) {
		batches--
	}
	slabs = int((o.Memory - int64(batches*o.BatchBytes)) / int64(slab))
	return batches, max(slabs, 2)
}

// Stats says what a Send did.
type Stats struct {
	Kind         point.Kind
	SizeBytes    int64
	ChangedBytes int64 // that the tracker named, in whole chunks; SizeBytes without one
	ReadBytes    int64 // at the source, samples included
	SameBytes    int64 // of those read: equal to the base, or already at the repository
	SentBytes    int64 // plaintext of the chunks that were sent
	StoredBytes  int64 // the same as sealed records, without pages
	SentChunks   int64
	Pages        int64
	PageBytes    int64
	Retries      int64
	Duration     time.Duration
	Load         Load
	Bottleneck   Stage
	// Audit is the sample of unchanged chunks that was read at the source.
	// Verified is the sample of chunks not sent that was fetched; those that
	// were not what they should be are in Damaged.
	Audit    Sample
	Verified Sample
	Seed     Seed // by which both were chosen
	Damaged  []Suspect
}

// Suspect is a chunk of a sample that is not what it should be.
type Suspect struct {
	ID      chunk.ID
	Session chunk.SessionID // that brought it, by the record; zero: there was no record to look at
}

// Send copies a disk to a repository and returns its map, whose pages and
// chunks have all been received. Nothing is committed. What an earlier, broken
// run of the same copy sent is found and not sent again.
//
// A change tracker that is caught lying is an *AuditError, and one that lost its
// mark is sdk.ErrMarkLost, both before anything was sent: the caller sends
// again without Changed. Memory is bounded by Options.Memory, whatever the size
// of the disk.
func Send(ctx context.Context, disk Disk, to Repository, opts Options) (point.Disk, Stats, error) {
	if err := disk.validate(); err != nil {
		return point.Disk{}, Stats{}, err
	}
	s := newSending(disk, to, opts)
	s.meter.begin(to.Writer)
	stop := s.meter.reporting(ctx, s.opts.Progress)
	root, err := s.send(ctx)
	stop()
	stats := s.finish()
	if err != nil {
		return point.Disk{}, stats, err
	}
	return point.Disk{SizeBytes: disk.Geometry.SizeBytes, Root: root}, stats, nil
}

// sending is one Send. Items flow through its channels, whose capacities are
// the number of items that can exist, so that only readers (for a slab) and
// sealers (for a batch) ever wait for a later stage.
type sending struct {
	disk    Disk
	base    point.Tree // with cached pages; used if disk.Base is set
	to      Repository
	opts    Options
	retry   Retry
	meter   meter
	random  *rand.Rand // chooses samples; of one goroutine at a time
	zeroes  []byte
	suspect map[chunk.ID]struct{}
	changed *set // of an incremental

	tokens chan struct{} // one for each item that the map has not taken
	plans  chan *item
	slabs  chan []byte
	hashes chan *item
	asks   chan *item
	seals  chan *item
	maps   chan *item
	free   chan *batch
	puts   chan *batch

	gathering chan struct{} // whoever has put something in may gather a question
	idle      chan struct{} // something is in it when a worker had nothing to do
	hashing   atomic.Int32  // items that workers are hashing
	answered  atomic.Int64  // how long a quick answer takes, nanoseconds; 0: none came yet

	data packer

	mutex   sync.Mutex // guards the fields below
	stats   Stats
	claimed map[chunk.ID]struct{} // ids that are on their way
	sample  reservoir             // of ids that were not sent
}

// item is up to one slab of chunks on its way through the stages, in the order
// of its seq for the map and in any other order elsewhere.
type item struct {
	seq    int64
	chunks []piece
	slab   []byte
}

type piece struct {
	index int64
	zero  bool   // known to be zero: not read, no place in the slab
	plain []byte // in the slab
	base  chunk.ID
	id    chunk.ID
	ask   bool
	need  bool
}

func newSending(disk Disk, to Repository, opts Options) *sending {
	s := &sending{disk: disk, to: to, opts: opts.withDefaults(disk.Geometry)}
	s.retry = s.opts.Retry
	failed := s.retry.Failed
	s.retry.Failed = func(err error) {
		s.count(func(st *Stats) { st.Retries++ })
		if failed != nil {
			failed(err)
		}
	}
	if disk.Base != nil {
		s.base = *disk.Base
		s.base.Pages = newPageCache(disk.Base.Pages)
	}
	s.zeroes = make([]byte, disk.Geometry.ChunkSize)
	s.suspect = make(map[chunk.ID]struct{}, len(disk.Suspect))
	for _, id := range disk.Suspect {
		s.suspect[id] = struct{}{}
	}
	s.claimed = make(map[chunk.ID]struct{})
	s.random = rand.New(rand.NewChaCha8(s.opts.Seed))
	s.stats.Seed = s.opts.Seed
	s.sample = reservoir{random: rand.New(rand.NewPCG(s.random.Uint64(), s.random.Uint64()))}
	s.stats.Kind, s.stats.SizeBytes = disk.kind(), disk.Geometry.SizeBytes
	s.meter.sources, s.meter.workers = s.opts.Readers, s.opts.Workers
	s.meter.wires, s.meter.askers = s.opts.Connections, askers
	return s
}

// prepare makes the channels and buffers, after the audit has passed.
func (s *sending) prepare() {
	slab := max(slabBytes, int(s.disk.Geometry.ChunkSize))
	batches, slabs := s.opts.buffers(slab)
	s.tokens = make(chan struct{}, window)
	s.plans, s.maps = make(chan *item, window), make(chan *item, window)
	s.hashes, s.asks, s.seals = make(chan *item, slabs), make(chan *item, slabs), make(chan *item, slabs)
	s.slabs = make(chan []byte, slabs)
	for range slabs {
		s.slabs <- make([]byte, slab)
	}
	s.free, s.puts = make(chan *batch, batches), make(chan *batch, batches)
	for range batches {
		s.free <- &batch{data: make([]byte, 0, s.opts.BatchBytes)}
	}
	s.gathering, s.idle = make(chan struct{}, 1), make(chan struct{}, 1)
	s.data = s.newPacker()
}

func (s *sending) count(change func(*Stats)) {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	change(&s.stats)
}

func (s *sending) finish() Stats {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	s.stats.ReadBytes = s.meter.read.Load()
	s.stats.Duration = time.Since(s.meter.start)
	s.stats.Load = s.meter.load()
	s.stats.Bottleneck = s.stats.Load.Bottleneck()
	return s.stats
}

func (s *sending) send(ctx context.Context) (chunk.ID, error) {
	if err := s.survey(ctx); err != nil {
		return chunk.ID{}, err
	}
	if err := s.audit(ctx); err != nil {
		return chunk.ID{}, err
	}
	s.prepare()
	root, err := s.run(ctx)
	if err != nil {
		return chunk.ID{}, err
	}
	return root, s.verify(ctx)
}

// run moves everything through the stages. Each stage closes the next one's
// channel when all its goroutines are done. The first failure ends them all.
func (s *sending) run(ctx context.Context) (root chunk.ID, err error) {
	ctx, fail := context.WithCancelCause(ctx)
	defer fail(nil)
	var all, reading, hashing, asking, packing sync.WaitGroup
	stage := func(n int, wg *sync.WaitGroup, work func() error) {
		wg.Add(n)
		for range n {
			all.Go(func() {
				defer wg.Done()
				if err := work(); err != nil {
					fail(err) // before wg.Done, so that no later stage takes this for the end
				}
			})
		}
	}
	after := func(wg *sync.WaitGroup, done func()) {
		all.Go(func() {
			wg.Wait()
			done()
		})
	}
	var planning, putting sync.WaitGroup
	stage(1, &planning, func() error { return s.plan(ctx) })
	after(&planning, func() { close(s.plans) })
	stage(s.opts.Readers, &reading, func() error { return s.read(ctx) })
	after(&reading, func() { close(s.hashes) })
	hashing.Add(s.opts.Workers)
	stage(s.opts.Workers, &packing, func() error {
		hashed := sync.OnceFunc(hashing.Done)
		err := s.work(ctx, hashed)
		if err != nil {
			fail(err)
		}
		hashed()
		return err
	})
	after(&hashing, func() { close(s.asks); close(s.maps) })
	stage(askers, &asking, func() error { return s.ask(ctx) })
	after(&asking, func() { close(s.seals) })
	stage(1, &packing, func() (err error) {
		root, err = s.draw(ctx)
		return err
	})
	after(&packing, func() { s.data.flush(); close(s.puts) })
	stage(s.opts.Connections, &putting, func() error { return s.put(ctx) })
	all.Wait()
	if err := context.Cause(ctx); err != nil {
		return chunk.ID{}, err
	}
	return root, nil
}

// recv takes from a channel until it is closed or ctx ends.
func recv[T any](ctx context.Context, from <-chan T) (v T, ok bool, err error) {
	select {
	case <-ctx.Done():
		return v, false, context.Cause(ctx)
	case v, ok = <-from:
		return v, ok, nil
	}
}

func give[T any](ctx context.Context, to chan<- T, v T) error {
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case to <- v:
		return nil
	}
}

// AuditError says that a change tracker lied: chunks that it called unchanged
// differ from the base.
type AuditError struct {
	Checked int
	Wrong   int
	Offset  int64 // of the first wrong one, bytes
	Seed    Seed  // by which they were chosen
}

func (e *AuditError) Error() string {
	return fmt.Sprintf("change tracker is wrong: %d of %d sampled chunks that it calls unchanged differ, the first at byte %d (seed %s)", e.Wrong, e.Checked, e.Offset, e.Seed)
}
