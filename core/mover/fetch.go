package mover

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/holdfast-dr/holdfast/core/chunk"
	"github.com/holdfast-dr/holdfast/core/point"
	"github.com/holdfast-dr/holdfast/sdk"
)

// Damage is a part of a disk that the repository cannot give back.
type Damage struct {
	Offset int64 // bytes
	Length int64
	ID     chunk.ID // of the chunk; the zero ID if a page of the map is damaged
	Err    error
}

func (d Damage) Error() string {
	return fmt.Sprintf("%d bytes at %d cannot be read: %v", d.Length, d.Offset, d.Err)
}

// Unwrap gives errors.Is the reason.
func (d Damage) Unwrap() error { return d.Err }

// FetchStats says what a Fetch or Verify did.
type FetchStats struct {
	SizeBytes    int64
	Chunks       int64 // that are not zero
	WrittenBytes int64 // plaintext; of Verify, that was checked
	Damaged      int64 // pieces
	Retries      int64
	Duration     time.Duration
	Load         Load
	Bottleneck   Stage
}

const (
	fetchBytes   = 2 << 20  // of plaintext in one request, at least
	fetchMost    = 16 << 20 // and at most: a request costs the server look-ups of agent, tenant and lease
	fetchPerConn = 2        // requests in flight for each connection
	fetchQueue   = 4
	writeBytes   = 1 << 20 // of one write, where chunks lie side by side
)

// Fetch copies a disk of a point to a writer, whose every byte is zero at
// first, and flushes it. Every chunk's seal is checked and its id recomputed, so
// nothing is written that is not what was backed up. A writer of ShapeSequential
// gets everything from one goroutine in ascending order.
func Fetch(ctx context.Context, tree point.Tree, from Repository, w sdk.BlockWriter, opts Options) (FetchStats, error) {
	if w.Size() < tree.SizeBytes {
		return FetchStats{}, fmt.Errorf("write a disk of %d bytes to one of %d: %w", tree.SizeBytes, w.Size(), sdk.ErrInvalid)
	}
	f := newFetching(tree, from, opts)
	f.writer = w
	return f.run(ctx)
}

// Verify reads every chunk of a disk, as Fetch does, and writes nothing. Each
// damaged piece goes to report, from several goroutines, whose error ends the
// work; pieces that a damaged page hides are reported as a range.
func Verify(ctx context.Context, tree point.Tree, from Repository, report func(Damage) error, opts Options) (FetchStats, error) {
	opts.Damaged = report
	return newFetching(tree, from, opts).run(ctx)
}

// fetching is one Fetch or Verify.
type fetching struct {
	tree   point.Tree
	from   Repository
	writer sdk.BlockWriter // nil: only check
	opts   Options
	retry  Retry
	meter  meter
	jobs   chan *job
	slabs  chan []byte // of a sequential writer, else nil
	inTurn chan *job   // of a sequential writer, else nil

	mutex sync.Mutex // guards stats
	stats FetchStats
}

// job is the chunks of one request.
type job struct {
	indexes []int64
	ids     []chunk.ID
	slab    []byte        // the plaintexts that are not written yet, back to back
	sizes   []int         // of a sequential writer; 0: damaged
	done    chan struct{} // of a sequential writer; closed when slab is filled
}

func newFetching(tree point.Tree, from Repository, opts Options) *fetching {
	f := &fetching{tree: tree, from: from, opts: opts.withDefaults(tree.Geometry)}
	f.tree.Pages = newPageCache(tree.Pages)
	f.retry = f.opts.Retry
	failed := f.retry.Failed
	f.retry.Failed = func(err error) {
		f.count(func(st *FetchStats) { st.Retries++ })
		if failed != nil {
			failed(err)
		}
	}
	f.stats.SizeBytes = tree.SizeBytes
	f.meter.total.Store(tree.SizeBytes)
	return f
}

func (f *fetching) count(change func(*FetchStats)) {
	f.mutex.Lock()
	defer f.mutex.Unlock()
	change(&f.stats)
}

func (f *fetching) run(ctx context.Context) (FetchStats, error) {
	getters := f.opts.Connections * fetchPerConn
	f.meter.wires, f.meter.workers, f.meter.targets = getters, getters, getters
	f.jobs = make(chan *job, fetchQueue)
	if f.writer != nil && f.writer.Shape() == sdk.ShapeSequential {
		f.meter.targets = 1
		n := getters + fetchQueue
		f.slabs, f.inTurn = make(chan []byte, n), make(chan *job, n)
		for range n {
			f.slabs <- make([]byte, 0, fetchBytes)
		}
	}
	f.meter.begin(f.from.Reader)
	stop := f.meter.reporting(ctx, f.opts.Progress)
	err := f.move(ctx, getters)
	if err == nil && f.writer != nil {
		started := time.Now()
		if err = f.writer.Flush(); err != nil {
			err = fmt.Errorf("flush the target: %w", err)
		}
		clock(&f.meter.target, started)
	}
	stop()
	f.mutex.Lock()
	defer f.mutex.Unlock()
	f.stats.Duration = time.Since(f.meter.start)
	f.stats.Load = f.meter.load()
	f.stats.Bottleneck = f.stats.Load.Bottleneck()
	return f.stats, err
}

func (f *fetching) move(ctx context.Context, getters int) error {
	ctx, fail := context.WithCancelCause(ctx)
	defer fail(nil)
	var all sync.WaitGroup
	start := func(work func() error) {
		all.Go(func() {
			if err := work(); err != nil {
				fail(err)
			}
		})
	}
	start(func() error {
		err := f.list(ctx)
		if err != nil {
			fail(err) // before the channels close
		}
		close(f.jobs)
		if f.inTurn != nil {
			close(f.inTurn)
		}
		return err
	})
	for range getters {
		start(func() error { return f.fetch(ctx) })
	}
	if f.inTurn != nil {
		start(func() error { return f.writeInTurn(ctx) })
	}
	all.Wait()
	return context.Cause(ctx)
}

// list walks the map and hands out jobs.
func (f *fetching) list(ctx context.Context) error {
	open := &job{}
	next := int64(0) // chunks below are dealt with
	emit := func() error {
		if len(open.ids) == 0 {
			return nil
		}
		j := open
		open = &job{}
		if f.slabs != nil {
			slab, _, err := recv(ctx, f.slabs)
			if err != nil {
				return err
			}
			j.slab, j.done = slab[:0], make(chan struct{})
			if err := give(ctx, f.inTurn, j); err != nil {
				return err
			}
		}
		return give(ctx, f.jobs, j)
	}
	visit := func(index int64, id chunk.ID) error {
		f.meter.done.Add((index - next) * f.tree.ChunkSize) // zeroes
		next = index + 1
		open.indexes, open.ids = append(open.indexes, index), append(open.ids, id)
		if int64(len(open.ids)+1)*f.tree.ChunkSize > f.jobBytes(index) {
			return emit()
		}
		return nil
	}
	var hidden func(first, end int64, err error) error
	if f.opts.Damaged != nil {
		hidden = func(first, end int64, err error) error {
			offset := first * f.tree.ChunkSize
			return f.damaged(Damage{Offset: offset, Length: min(end*f.tree.ChunkSize, f.tree.SizeBytes) - offset, Err: err})
		}
	}
	if err := f.tree.WalkAround(ctx, 0, f.tree.Chunks(), visit, hidden); err != nil {
		return fmt.Errorf("read the map: %w", err)
	}
	f.meter.done.Add(max(0, f.tree.SizeBytes-next*f.tree.ChunkSize)) // zeroes
	return emit()
}

// jobBytes is how much one request asks for: less towards the end, so that the
// getters end together. A sequential writer has slabs of one size.
func (f *fetching) jobBytes(index int64) int64 {
	if f.slabs != nil {
		return fetchBytes
	}
	share := (f.tree.SizeBytes - index*f.tree.ChunkSize) / int64(4*f.meter.wires)
	return max(fetchBytes, min(share, fetchMost))
}

func (f *fetching) damaged(d Damage) error {
	f.count(func(st *FetchStats) { st.Damaged++ })
	if f.opts.Damaged == nil {
		return d
	}
	return f.opts.Damaged(d)
}

// fetch runs jobs.
func (f *fetching) fetch(ctx context.Context) error {
	g := newGetter(f.from, f.retry, &f.meter)
	slab := make([]byte, 0, max(writeBytes, f.tree.ChunkSize))
	for {
		j, ok, err := recv(ctx, f.jobs)
		if !ok {
			return err
		}
		if j.done == nil {
			j.slab = slab
		}
		err = g.get(ctx, j.ids, &j.slab, func(i int, plain []byte, bad error) error {
			return f.take(j, i, plain, bad)
		})
		if err != nil {
			return err
		}
		if j.done != nil {
			close(j.done)
		}
	}
}

// take receives one chunk of a job, in the job's order; its plaintext is the end
// of the job's slab.
func (f *fetching) take(j *job, i int, plain []byte, bad error) error {
	index := j.indexes[i]
	offset, length := index*f.tree.ChunkSize, f.tree.ChunkLength(index)
	if bad == nil && len(plain) != length {
		bad = fmt.Errorf("chunk %s has %d bytes, its place has %d: %w", j.ids[i], len(plain), length, chunk.ErrDamaged)
	}
	f.meter.done.Add(int64(length))
	if bad == nil {
		f.count(func(st *FetchStats) {
			st.Chunks++
			st.WrittenBytes += int64(length)
		})
		f.meter.sent.Add(int64(length))
	} else {
		j.slab = j.slab[:len(j.slab)-len(plain)]
		if err := f.damaged(Damage{Offset: offset, Length: int64(length), ID: j.ids[i], Err: bad}); err != nil {
			return err
		}
		length = 0
	}
	switch {
	case f.writer == nil:
		j.slab = j.slab[:0]
		return nil
	case j.done != nil:
		j.sizes = append(j.sizes, length)
		return nil
	}
	more := length > 0 && i+1 < len(j.indexes) && j.indexes[i+1] == index+1
	if more && int64(len(j.slab))+f.tree.ChunkSize <= int64(cap(j.slab)) {
		return nil
	}
	gathered := j.slab
	j.slab = j.slab[:0]
	if len(gathered) == 0 {
		return nil
	}
	return f.write(gathered, offset+int64(length)-int64(len(gathered)))
}

func (f *fetching) write(b []byte, offset int64) error {
	defer clock(&f.meter.target, time.Now())
	if _, err := f.writer.WriteAt(b, offset); err != nil {
		return fmt.Errorf("write %d bytes at %d of the target: %w", len(b), offset, err)
	}
	return nil
}

// writeInTurn writes jobs in their order, contiguous chunks at once.
func (f *fetching) writeInTurn(ctx context.Context) error {
	for {
		j, ok, err := recv(ctx, f.inTurn)
		if !ok {
			return err
		}
		if _, _, err := recv(ctx, j.done); err != nil {
			return err
		}
		rest, first, length := j.slab, int64(-1), 0
		for i, size := range j.sizes {
			offset := j.indexes[i] * f.tree.ChunkSize
			if size == 0 {
				continue
			}
			if first >= 0 && first+int64(length) != offset {
				if err := f.write(rest[:length], first); err != nil {
					return err
				}
				rest, length, first = rest[length:], 0, -1
			}
			if first < 0 {
				first = offset
			}
			length += size
		}
		if length > 0 {
			if err := f.write(rest[:length], first); err != nil {
				return err
			}
		}
		f.slabs <- j.slab[:0] // has room for every slab there is
	}
}

// getter reads and opens chunks. It belongs to one goroutine.
type getter struct {
	reader Reader
	opener *chunk.Opener
	retry  Retry
	meter  *meter

	session chunk.SessionID // that of the record that is being visited; zero: there is none
}

func newGetter(from Repository, retry Retry, m *meter) *getter {
	if m == nil {
		m = new(meter)
	}
	return &getter{reader: from.Reader, opener: from.Keys.NewOpener(), retry: retry, meter: m}
}

// get appends the plaintext of each id in order to into, which visit may empty,
// and calls visit with it or with what is wrong with it. Requests that fail on
// the way are repeated for what is still to come. After an error about a record
// the next one is asked for alone, for the Reader may have failed before it came
// to the bad one, and then two, four …
func (g *getter) get(ctx context.Context, ids []chunk.ID, into *[]byte, visit func(i int, plain []byte, bad error) error) error {
	next, width := 0, len(ids)
	for next < len(ids) {
		end := min(next+width, len(ids))
		err := g.retry.Do(ctx, func() error { return g.request(ctx, ids[:end], &next, into, visit) })
		switch {
		case err == nil && next < end:
			return fmt.Errorf("read %d chunks: the answer ends after %d", end, next)
		case err == nil:
			width *= 2
		case errors.As(err, new(final)) || !isBad(err) || ctx.Err() != nil:
			return fmt.Errorf("read chunk %s: %w", ids[min(next, end-1)], err)
		case end-next == 1:
			width = 1
			next++
			g.session = chunk.SessionID{}
			if err := visit(next-1, nil, err); err != nil {
				return err
			}
		default:
			width = 1
		}
	}
	return nil
}

// request is one Read of what is still to come. Its time without that of emit
// is the wire's.
func (g *getter) request(ctx context.Context, ids []chunk.ID, next *int, into *[]byte, visit func(int, []byte, error) error) error {
	started, mine := time.Now(), time.Duration(0)
	defer func() { g.meter.wire.Add(int64(time.Since(started) - mine)) }()
	return g.reader.Read(ctx, chunk.KindData, ids[*next:], func(r chunk.Record) error {
		entered := time.Now()
		defer func() { mine += time.Since(entered) }()
		if *next == len(ids) {
			return final{fmt.Errorf("got record %s, which was not asked for", r.ID)}
		}
		i, before := *next, len(*into)
		var bad error
		if r.ID != ids[i] {
			bad = fmt.Errorf("got record %s instead of %s: %w", r.ID, ids[i], chunk.ErrDamaged)
		} else if *into, bad = g.opener.Open(*into, r); bad != nil && !isBad(bad) {
			return final{bad} // a key is missing, for one
		}
		clock(&g.meter.cpu, entered)
		*next++
		g.session = r.Session
		if err := visit(i, (*into)[before:], bad); err != nil {
			return final{err}
		}
		return nil
	})
}
