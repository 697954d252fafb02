package mover

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/holdfast-dr/holdfast/core/chunk"
	"github.com/holdfast-dr/holdfast/core/point"
)

// read fills slabs, one request for each contiguous range.
func (s *sending) read(ctx context.Context) error {
	for {
		it, ok, err := recv(ctx, s.plans)
		if !ok {
			return err
		}
		if it.reads() == 0 {
			s.maps <- it // has room for every item there is
			continue
		}
		if it.slab, _, err = recv(ctx, s.slabs); err != nil {
			return err
		}
		started := time.Now()
		err = s.fill(it)
		clock(&s.meter.source, started)
		if err != nil {
			return err
		}
		s.hashes <- it // has room for every slab there is
	}
}

func (it *item) reads() (n int) {
	for i := range it.chunks {
		if !it.chunks[i].zero {
			n++
		}
	}
	return n
}

func (s *sending) fill(it *item) error {
	g := s.disk.Geometry
	used, from, start := 0, 0, int64(-1) // the range that is gathered: slab[from:used], at byte start
	load := func() error {
		if from == used {
			return nil
		}
		n, err := s.disk.Reader.ReadAt(it.slab[from:used], start)
		if n < used-from {
			if err == nil || errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			return fmt.Errorf("read %d bytes at %d of the disk: %w", used-from, start, err)
		}
		s.meter.read.Add(int64(n))
		return nil
	}
	for i := range it.chunks {
		c := &it.chunks[i]
		if c.zero {
			continue
		}
		offset, length := c.index*g.ChunkSize, g.ChunkLength(c.index)
		if start+int64(used-from) != offset || start < 0 {
			if err := load(); err != nil {
				return err
			}
			from, start = used, offset
		}
		c.plain = it.slab[used : used+length : used+length]
		used += length
	}
	return load()
}

// work hashes and seals, sealing first, so that what is nearly done makes room.
// It calls hashed when nothing is left to hash.
func (s *sending) work(ctx context.Context, hashed func()) error {
	hasher, sealer := s.to.Keys.NewHasher(), s.to.Keys.NewSealer(s.to.Session)
	var scratch []byte
	hashes := s.hashes
	for {
		it, sealing, ok, err := s.next(ctx, hashes)
		if err != nil {
			return err
		}
		switch {
		case sealing && !ok:
			return nil
		case sealing:
			scratch, err = s.seal(ctx, it, sealer, scratch)
		case !ok:
			hashes = nil
			hashed()
		default:
			s.hash(it, hasher)
		}
		if err != nil {
			return err
		}
	}
}

// next is a worker's next item, and whether it is to be sealed. A worker that
// finds none says so to whoever gathers a question before it waits.
func (s *sending) next(ctx context.Context, hashes <-chan *item) (it *item, sealing, ok bool, err error) {
	select {
	case it, ok = <-s.seals:
		if !s.working() {
			s.ring() // an answer that comes while the last one is sealed keeps nobody waiting
		}
		return it, true, ok, nil
	default:
	}
	select {
	case it, ok = <-hashes:
		return it, false, ok, nil
	default:
	}
	s.ring()
	select {
	case <-ctx.Done():
		return nil, false, false, context.Cause(ctx)
	case it, ok = <-s.seals:
		return it, true, ok, nil
	case it, ok = <-hashes:
		return it, false, ok, nil
	}
}

// working reports whether something waits for a worker, or is about to become
// part of a question.
func (s *sending) working() bool { return len(s.seals)+len(s.hashes) > 0 || s.hashing.Load() > 0 }

// ring wakes whoever waits for a larger question.
func (s *sending) ring() {
	select {
	case s.idle <- struct{}{}:
	default:
	}
}

func (s *sending) hash(it *item, hasher *chunk.Hasher) {
	s.hashing.Add(1)
	defer s.hashing.Add(-1)
	started := time.Now()
	asks := 0
	for i := range it.chunks {
		c := &it.chunks[i]
		if c.zero || bytes.Equal(c.plain, s.zeroes[:len(c.plain)]) {
			continue
		}
		c.id = hasher.ID(c.plain)
		_, suspect := s.suspect[c.id]
		if c.ask = c.id != c.base || suspect; c.ask {
			asks++
			continue
		}
		s.same(*c)
	}
	clock(&s.meter.cpu, started)
	if asks > 0 {
		s.asks <- it // has room for every slab there is
	} else {
		s.release(it)
	}
	s.maps <- it // has room for every item there is
}

// same counts a chunk that need not be sent.
func (s *sending) same(c piece) {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	s.stats.SameBytes += int64(len(c.plain))
	s.sample.offer(candidate{id: c.id, base: c.id == c.base})
}

// release counts an item as done and gives its slab back.
func (s *sending) release(it *item) {
	total := 0
	for i := range it.chunks {
		total += len(it.chunks[i].plain)
	}
	s.meter.done.Add(int64(total))
	slab := it.slab
	s.slabs <- slab[:cap(slab)]
}

// askEnough is how many ids make a question that is worth asking at once: what
// a request costs both ends is little beside what so many chunks cost.
const askEnough = 128

// slowAnswer is how long even quick answers take where waiting for a larger
// question gains nothing: others gather while it is on its way.
const slowAnswer = 5 * time.Millisecond

// heard notes how long an answer took. What counts is the quickest of late,
// which says how far the repository is, and not how busy both ends are.
func (s *sending) heard(took time.Duration) {
	if last := time.Duration(s.answered.Load()); last > 0 {
		took = min(took, last+last/8)
	}
	s.answered.Store(int64(took))
}

// patient reports whether a question may wait to become larger.
func (s *sending) patient() bool {
	took := time.Duration(s.answered.Load())
	return took > 0 && took < slowAnswer && s.working()
}

// ask finds out which chunks the repository lacks. While one question is on its
// way more items gather, so questions grow with the round-trip time.
func (s *sending) ask(ctx context.Context) error {
	var group []*item
	var ids []chunk.ID
	for {
		var ok bool
		var err error
		group, ids, ok, err = s.gather(ctx, group[:0], ids[:0])
		if err != nil || len(group) == 0 {
			return err
		}
		have, err := s.have(ctx, ids)
		if err != nil {
			return err
		}
		s.answer(group, have)
		if !ok {
			return nil
		}
	}
}

// gather takes items for one question: all that there are, and where answers
// come quickly, what comes until there are askEnough ids or a worker has nothing
// left to do. One asker gathers at a time, so that such a worker finds the one
// who waits. ok is false when nothing more will come.
func (s *sending) gather(ctx context.Context, group []*item, ids []chunk.ID) (_ []*item, _ []chunk.ID, ok bool, err error) {
	if err := give(ctx, s.gathering, struct{}{}); err != nil {
		return nil, nil, false, err
	}
	defer func() { <-s.gathering }()
	it, ok, err := recv(ctx, s.asks)
	select {
	case <-s.idle: // of before; a worker that is idle now has left its queues empty
	default:
	}
	for ok {
		if group, ids = append(group, it), it.asked(ids); len(ids) >= askGroup {
			return group, ids, true, nil
		}
		select {
		case it, ok = <-s.asks:
			continue
		default:
		}
		if len(ids) >= askEnough || !s.patient() {
			return group, ids, true, nil
		}
		select {
		case <-ctx.Done():
			return nil, nil, false, context.Cause(ctx)
		case it, ok = <-s.asks:
		case <-s.idle:
			return group, ids, true, nil
		}
	}
	return group, ids, false, err
}

func (it *item) asked(ids []chunk.ID) []chunk.ID {
	for i := range it.chunks {
		if it.chunks[i].ask {
			ids = append(ids, it.chunks[i].id)
		}
	}
	return ids
}

func (s *sending) have(ctx context.Context, ids []chunk.ID) (have []bool, err error) {
	err = s.retry.Do(ctx, func() (err error) {
		asked := time.Now()
		have, err = s.to.Writer.Have(ctx, chunk.KindData, ids)
		clock(&s.meter.asked, asked)
		s.heard(time.Since(asked))
		return err
	})
	if err == nil && len(have) != len(ids) {
		err = fmt.Errorf("asked about %d chunks, got %d answers", len(ids), len(have))
	}
	if err != nil {
		return nil, fmt.Errorf("ask which chunks the repository has: %w", err)
	}
	return have, nil
}

// answer marks what to send. A chunk that is on its way already, for another
// place of the disk, is not sent twice.
func (s *sending) answer(group []*item, have []bool) {
	for _, it := range group {
		needs := 0
		for i := range it.chunks {
			c := &it.chunks[i]
			if !c.ask {
				continue
			}
			present := have[0]
			have = have[1:]
			switch {
			case present:
				s.same(*c)
			case s.claim(c.id):
				c.need = true
				needs++
			default:
				s.count(func(st *Stats) { st.SameBytes += int64(len(c.plain)) })
			}
		}
		if needs == 0 {
			s.release(it)
			continue
		}
		s.seals <- it // has room for every slab there is
	}
}

func (s *sending) claim(id chunk.ID) bool {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	if _, taken := s.claimed[id]; taken {
		return false
	}
	s.claimed[id] = struct{}{}
	return true
}

func (s *sending) seal(ctx context.Context, it *item, sealer *chunk.Sealer, scratch []byte) ([]byte, error) {
	for i := range it.chunks {
		c := &it.chunks[i]
		if !c.need {
			continue
		}
		started := time.Now()
		record, err := sealer.Append(scratch[:0], c.id, c.plain)
		clock(&s.meter.cpu, started)
		if err != nil {
			return scratch, err
		}
		scratch = record
		if err := s.data.add(ctx, chunk.KindData, c.id, record); err != nil {
			return scratch, err
		}
		s.count(func(st *Stats) {
			st.SentChunks++
			st.SentBytes += int64(len(c.plain))
			st.StoredBytes += int64(len(record))
		})
	}
	s.release(it)
	return scratch, nil
}

// batch is the body of one Put.
type batch struct {
	data []byte
	ids  []chunk.ID // of chunks
}

// packer gathers records into batches.
type packer struct {
	limit func() int // of a batch, bytes
	free  chan *batch
	full  chan *batch
	// open holds the batch that is being filled, or nil. Who has taken it out
	// may add to it; a mutex could not be left when ctx ends.
	open chan *batch
}

func (s *sending) newPacker() packer {
	p := packer{limit: s.batchLimit, free: s.free, full: s.puts, open: make(chan *batch, 1)}
	p.open <- nil
	return p
}

// batchLimit is how large a batch may become. On a long line the last ones are
// smaller, so that the connections end together: one that begins with a whole
// batch when the others are done would keep the run waiting alone.
func (s *sending) batchLimit() int {
	if s.opts.Connections <= fewConnections {
		return s.opts.BatchBytes
	}
	left := s.meter.total.Load() - s.meter.done.Load()
	return int(max(lastBatch, min(left/int64(s.opts.Connections), int64(s.opts.BatchBytes))))
}

// add appends a record, handing over the open batch if it has no room.
func (p *packer) add(ctx context.Context, kind chunk.Kind, id chunk.ID, record []byte) error {
	b, _, err := recv(ctx, p.open)
	if err != nil {
		return err
	}
	defer func() { p.open <- b }()
	if b != nil && len(b.data)+len(record) > p.limit() {
		p.full <- b // has room for every batch there is
		b = nil
	}
	if b == nil {
		if b, _, err = recv(ctx, p.free); err != nil {
			return err
		}
	}
	b.data = append(b.data, record...)
	if kind == chunk.KindData {
		b.ids = append(b.ids, id)
	}
	return nil
}

// flush hands over what is gathered, when nobody adds any more.
func (p *packer) flush() {
	if b := <-p.open; b != nil {
		p.full <- b // has room for every batch there is
	}
	p.open <- nil
}

// put sends batches, each until it has arrived.
func (s *sending) put(ctx context.Context) error {
	for {
		b, ok, err := recv(ctx, s.puts)
		if !ok {
			return err
		}
		err = s.retry.Do(ctx, func() error {
			defer clock(&s.meter.wire, time.Now())
			return s.to.Writer.Put(ctx, b.data)
		})
		if err != nil {
			return fmt.Errorf("send %d bytes to the repository: %w", len(b.data), err)
		}
		s.meter.sent.Add(int64(len(b.data)))
		s.mutex.Lock()
		for _, id := range b.ids {
			delete(s.claimed, id)
		}
		s.mutex.Unlock()
		b.data, b.ids = b.data[:0], b.ids[:0]
		s.free <- b
	}
}

// draw builds the map, taking items in order.
func (s *sending) draw(ctx context.Context) (chunk.ID, error) {
	pages := s.newPacker()
	var record []byte
	base := point.Tree{Geometry: s.disk.Geometry}
	if s.disk.Base != nil {
		base = s.base
	}
	builder, err := point.NewBuilder(base, func(ctx context.Context, id chunk.ID, page []byte) error {
		record = chunk.AppendPage(record[:0], s.to.Session, id, page)
		s.count(func(st *Stats) {
			st.Pages++
			st.PageBytes += int64(len(record))
		})
		return pages.add(ctx, chunk.KindPage, id, record)
	})
	if err != nil {
		return chunk.ID{}, err
	}
	early := make(map[int64]*item, window)
	for next := int64(0); ; {
		it, ok, err := recv(ctx, s.maps)
		if err != nil {
			return chunk.ID{}, err
		}
		if !ok {
			break
		}
		early[it.seq] = it
		for it := early[next]; it != nil; it = early[next] {
			delete(early, next)
			next++
			for i := range it.chunks {
				c := &it.chunks[i] // need belongs to the askers: no copy
				if c.id == c.base {
					continue
				}
				if err := builder.Set(ctx, c.index, c.id); err != nil {
					return chunk.ID{}, err
				}
			}
			<-s.tokens
		}
	}
	if ctx.Err() != nil {
		return chunk.ID{}, context.Cause(ctx) // the stages before were cut short
	}
	root, err := builder.Finish(ctx)
	if err != nil {
		return chunk.ID{}, err
	}
	pages.flush()
	return root, nil
}
