package nbd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"maps"
	"math"
	"slices"

	"github.com/holdfast-dr/holdfast/sdk"
)

// Export is what the server serves under a name. Its methods are called from
// many goroutines unless Serial is set, and from several connections.
//
// Reader and Writer may have further methods, which the server finds:
//
//	Extents(ctx, off, n) iter.Seq2[sdk.Extent, error]  // Reader: base:allocation
//	Zero(off, n int64) error                           // Writer: as a hole where possible
//	Trim(off, n int64) error                           // Writer: a hint
//	Flush() error                                      // Writer: makes writes durable
//
// Without Zero the server writes zeroes. A client that asks for zeroes without
// a hole gets what Zero makes all the same: QEMU asks so when it begins to
// mirror a disk, and writing out terabytes of zeroes would help nobody. Without
// Flush a client is told that nothing is promised to be durable.
type Export struct {
	Size        int64
	Description string

	Reader io.ReaderAt // nil: reads are refused
	Writer io.WriterAt // nil: the export is read-only

	// Dirty are the dirty bitmaps by name, without ContextDirtyPrefix. Each
	// lists changed extents of [off, off+n) in ascending order.
	Dirty map[string]func(ctx context.Context, off, n int64) iter.Seq2[sdk.Extent, error]

	// MinBlock and PreferredBlock are powers of two, told to clients; 0 means 1
	// and 4096. A client that does not ask for block sizes is refused an export
	// with a MinBlock above 1.
	MinBlock       uint32
	PreferredBlock uint32

	// MultiConn promises that a Flush on one connection covers what was
	// acknowledged on all. Read-only exports promise it anyway.
	MultiConn bool

	// Serial makes the server carry out the requests of a connection one after
	// another, in the order of their arrival.
	Serial bool
}

// The optional methods of Reader and Writer.
type (
	extenter interface {
		Extents(ctx context.Context, off, n int64) iter.Seq2[sdk.Extent, error]
	}
	zeroer  interface{ Zero(off, n int64) error }
	trimmer interface{ Trim(off, n int64) error }
	flusher interface{ Flush() error }
)

func (e *Export) readOnly() bool { return e.Writer == nil }

func (e *Export) minBlock() uint32 { return max(e.MinBlock, 1) }

func (e *Export) preferredBlock() uint32 {
	if e.PreferredBlock > 0 {
		return max(e.PreferredBlock, e.minBlock())
	}
	return max(defaultPreferredBlock, e.minBlock())
}

// validate catches mistakes of whoever made the export.
func (e *Export) validate() error {
	switch {
	case e.Size < 0:
		return fmt.Errorf("export of %d bytes: %w", e.Size, sdk.ErrInvalid)
	case e.Reader == nil && e.Writer == nil:
		return fmt.Errorf("export without reader and writer: %w", sdk.ErrInvalid)
	case e.minBlock()&(e.minBlock()-1) != 0 || e.minBlock() > maxMinBlock:
		return fmt.Errorf("export with blocks of %d bytes: %w", e.MinBlock, sdk.ErrInvalid)
	case e.preferredBlock()&(e.preferredBlock()-1) != 0 || e.preferredBlock() > maxPayload:
		return fmt.Errorf("export with preferred blocks of %d bytes: %w", e.PreferredBlock, sdk.ErrInvalid)
	}
	return nil
}

// flags are the transmission flags of the export.
func (e *Export) flags(structured bool) uint16 {
	f := flagHasFlags | flagCache
	if structured {
		f |= flagDF
	}
	if e.readOnly() {
		return f | flagReadOnly | flagMultiConn
	}
	f |= flagWriteZeroes
	if e.MultiConn {
		f |= flagMultiConn
	}
	if _, ok := e.Writer.(flusher); ok {
		f |= flagFlush | flagFUA
	}
	if _, ok := e.Writer.(trimmer); ok {
		f |= flagTrim
	}
	return f
}

// contexts are the names of the export's meta contexts. The id of each is its
// index plus one.
func (e *Export) contexts() []string {
	names := []string{ContextAllocation}
	for _, name := range slices.Sorted(maps.Keys(e.Dirty)) {
		names = append(names, ContextDirtyPrefix+name)
	}
	return names
}

// describe lists what a context says about [off, off+n).
func (e *Export) describe(ctx context.Context, metaContext string, off, n int64) iter.Seq2[Status, error] {
	if metaContext == ContextAllocation {
		return e.allocation(ctx, off, n)
	}
	list := e.Dirty[metaContext[len(ContextDirtyPrefix):]]
	return statuses(list(ctx, off, n), func(sdk.Extent) uint32 { return StateDirty })
}

func (e *Export) allocation(ctx context.Context, off, n int64) iter.Seq2[Status, error] {
	x, ok := e.Reader.(extenter)
	if !ok {
		return func(yield func(Status, error) bool) { yield(Status{off, n, 0}, nil) }
	}
	return statuses(x.Extents(ctx, off, n), func(e sdk.Extent) uint32 {
		if e.Zero {
			return StateHole | StateZero
		}
		return 0
	})
}

func statuses(extents iter.Seq2[sdk.Extent, error], flags func(sdk.Extent) uint32) iter.Seq2[Status, error] {
	return func(yield func(Status, error) bool) {
		for e, err := range extents {
			if !yield(Status{e.Offset, e.Length, flags(e)}, err) {
				return
			}
		}
	}
}

// maxReplyExtents bounds one BLOCK_STATUS reply that is sent. The client asks
// again for the rest.
const maxReplyExtents = 16384

// cover makes extents of [off, off+n) what the wire wants: without gaps, which
// count as flags 0, neighbours of equal flags joined, at most limit of them.
func cover(list iter.Seq2[Status, error], off, n int64, limit int) ([]Status, error) {
	var out []Status
	at, end := off, off+n
	before := int64(math.MinInt64)
	add := func(after int64, flags uint32) {
		if last := len(out) - 1; last >= 0 && out[last].Flags == flags {
			out[last].Length += after - at
		} else if after > at {
			out = append(out, Status{at, after - at, flags})
		}
		at = after
	}
	for s, err := range list {
		if err != nil {
			return nil, err
		}
		if s.Length < 0 || s.Offset < before || s.Length > math.MaxInt64-max(s.Offset, 0) {
			return nil, errOverlap
		}
		before = s.Offset + s.Length
		first, after := max(s.Offset, off), min(before, end)
		if after <= first {
			continue
		}
		if first > at {
			add(first, 0)
		}
		add(after, s.Flags)
		if len(out) > limit || at == end {
			break
		}
	}
	if at < end && len(out) <= limit {
		add(end, 0)
	}
	return out[:min(len(out), limit)], nil
}

var errOverlap = errors.New("the export's extents overlap or are not ascending")
