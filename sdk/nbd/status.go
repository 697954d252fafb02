package nbd

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"iter"
	"slices"

	"github.com/holdfast-dr/holdfast/sdk"
)

// Status is what a meta context says about a range of a disk.
type Status struct {
	Offset int64
	Length int64
	Flags  uint32
}

// statusPiece is how much of a disk one block status request asks about. It is
// short enough for a server that looks up every cluster to answer in time.
const statusPiece = 1 << 30

// statusBatch is how many extents are decoded at a time, so that what a chunk
// claims to hold is not allocated before it arrives.
const statusBatch = 512

// status takes in a BLOCK_STATUS chunk. Chunks of contexts that the request is
// not about are read and dropped.
func (l *link) status(r *request, length uint32) error {
	if length < 4+8 || (length-4)%8 != 0 || length > 4+8*maxStatusExtents {
		return violated("block status chunk of %d bytes", length)
	}
	b, err := l.take(4)
	if err != nil {
		return err
	}
	wanted := binary.BigEndian.Uint32(b) == r.context
	if wanted && len(r.extents) > 0 {
		return violated("two chunks of one meta context")
	}
	off := r.offset
	for count := int(length-4) / 8; count > 0; {
		n := min(count, statusBatch)
		b, err := l.take(8 * n)
		if err != nil {
			return err
		}
		count -= n
		for ; len(b) > 0 && wanted && off < r.offset+uint64(r.length); b = b[8:] {
			size, flags := binary.BigEndian.Uint32(b), binary.BigEndian.Uint32(b[4:])
			if size == 0 {
				return violated("block status extent of no bytes")
			}
			r.extents = append(r.extents, Status{int64(off), int64(size), flags})
			off += uint64(size)
		}
	}
	return nil
}

// MetaContexts are the negotiated ones among those asked for, sorted.
func (c *Client) MetaContexts() []string {
	var names []string
	for name := range c.details.contexts {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// BlockStatus describes [off, off+n) as the meta context sees it, ascending,
// without gaps, neighbours of equal flags joined. A context that was not
// negotiated is sdk.ErrUnsupported. Cancelling ctx stops the waiting.
func (c *Client) BlockStatus(ctx context.Context, metaContext string, off, n int64) iter.Seq2[Status, error] {
	return func(yield func(Status, error) bool) {
		id, ok := c.details.contexts[metaContext]
		if !ok {
			yield(Status{}, fmt.Errorf("nbd block status: meta context %q: %w", metaContext, sdk.ErrUnsupported))
			return
		}
		if err := c.check("block status", off, n); err != nil {
			yield(Status{}, err)
			return
		}
		j := joiner{yield: yield}
		for end := off + n; off < end; {
			extents, err := c.status(ctx, id, off, min(end-off, statusPiece))
			if err != nil {
				j.fail(err)
				return
			}
			for _, e := range extents {
				e.Length = min(e.Length, end-e.Offset)
				if !j.add(e) {
					return
				}
				off = e.Offset + e.Length
				if off == end {
					break
				}
			}
		}
		j.flush()
	}
}

// status asks once. The answer starts at off, has at least one extent, and may
// be shorter or longer than what was asked.
func (c *Client) status(ctx context.Context, id uint32, off, n int64) ([]Status, error) {
	first, after := c.aligned(off, n)
	r := newRequest(cmdBlockStatus, first, uint32(after-first))
	r.context = id
	l := c.pick()
	if err := l.submit(r, nil); err != nil {
		return nil, err
	}
	select {
	case err := <-r.done:
		extents := trim(r.extents, off)
		if err == nil && len(extents) == 0 {
			err = violated("block status ends where it should begin")
		}
		return extents, err
	case <-ctx.Done():
		// The link keeps the request until its answer comes; nobody waits.
		return nil, context.Cause(ctx)
	}
}

// trim cuts what lies before off, where an aligned request began earlier.
func trim(extents []Status, off int64) []Status {
	for len(extents) > 0 && extents[0].Offset+extents[0].Length <= off {
		extents = extents[1:]
	}
	if len(extents) > 0 && extents[0].Offset < off {
		extents[0].Length -= off - extents[0].Offset
		extents[0].Offset = off
	}
	return extents
}

// joiner yields extents with equal neighbours joined.
type joiner struct {
	yield func(Status, error) bool
	last  Status
}

func (j *joiner) add(s Status) bool {
	if j.last.Length > 0 && j.last.Flags == s.Flags {
		j.last.Length += s.Length
		return true
	}
	ok := j.flush()
	j.last = s
	return ok
}

func (j *joiner) flush() bool {
	last := j.last
	j.last = Status{}
	return last.Length == 0 || j.yield(last, nil)
}

func (j *joiner) fail(err error) {
	if j.flush() {
		j.yield(Status{}, err)
	}
}

// Extents describes [off, off+n) by base:allocation, or as one extent if the
// server does not speak of holes. It follows sdk.BlockReader.
func (c *Client) Extents(ctx context.Context, off, n int64) iter.Seq2[sdk.Extent, error] {
	if _, ok := c.details.contexts[ContextAllocation]; !ok {
		return c.oneExtent(off, n)
	}
	return func(yield func(sdk.Extent, error) bool) {
		for s, err := range c.BlockStatus(ctx, ContextAllocation, off, n) {
			if !yield(sdk.Extent{Offset: s.Offset, Length: s.Length, Zero: s.Flags&StateZero != 0}, err) {
				return
			}
		}
	}
}

func (c *Client) oneExtent(off, n int64) iter.Seq2[sdk.Extent, error] {
	return func(yield func(sdk.Extent, error) bool) {
		if err := c.check("extents", off, n); err != nil {
			yield(sdk.Extent{}, err)
		} else if n > 0 {
			yield(sdk.Extent{Offset: off, Length: n}, nil)
		}
	}
}

var _ io.ReaderAt = (*Client)(nil)
