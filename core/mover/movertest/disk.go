package movertest

import (
	"context"
	"fmt"
	"io"
	"iter"
	"maps"
	"slices"
	"sync"

	"github.com/holdfast-dr/holdfast/sdk"
)

// Block is the granule of a Disk's allocation.
const Block = 64 << 10

var (
	_ sdk.BlockReader = (*Disk)(nil)
	_ sdk.BlockWriter = (*Disk)(nil)
)

// Disk is a sparse disk. Fields are set before it is used.
type Disk struct {
	Bytes  int64
	Order  sdk.Shape                    // as a writer; "" is ShapeRandom
	OnRead func(off int64, n int) error // may wait
	// Make fills blocks that were never written, for disks too large to hold; it
	// reports false for a block of zeroes.
	Make func(block []byte, number int64) bool

	mutex   sync.Mutex // guards the fields below
	blocks  map[int64][]byte
	read    int64
	written int64
	next    int64
	flushed bool
}

// NewDisk returns a disk of zeroes.
func NewDisk(bytes int64) *Disk { return &Disk{Bytes: bytes, blocks: make(map[int64][]byte)} }

// Size implements sdk.BlockReader.
func (d *Disk) Size() int64 { return d.Bytes }

// Close implements sdk.BlockReader.
func (d *Disk) Close() error { return nil }

// Shape implements sdk.BlockWriter.
func (d *Disk) Shape() sdk.Shape {
	if d.Order == "" {
		return sdk.ShapeRandom
	}
	return d.Order
}

// Flush implements sdk.BlockWriter.
func (d *Disk) Flush() error {
	d.mutex.Lock()
	defer d.mutex.Unlock()
	d.flushed = true
	return nil
}

// BytesRead is the sum of all reads.
func (d *Disk) BytesRead() int64 {
	d.mutex.Lock()
	defer d.mutex.Unlock()
	return d.read
}

// BytesWritten is the sum of all writes; Flushed says whether Flush came after
// the last one.
func (d *Disk) BytesWritten() (n int64, flushed bool) {
	d.mutex.Lock()
	defer d.mutex.Unlock()
	return d.written, d.flushed
}

func (d *Disk) block(n int64) []byte {
	if b := d.blocks[n]; b != nil || d.Make == nil {
		return b
	}
	b := make([]byte, Block)
	if !d.Make(b, n) {
		return nil
	}
	return b
}

// ReadAt implements io.ReaderAt.
func (d *Disk) ReadAt(p []byte, off int64) (int, error) {
	if d.OnRead != nil {
		if err := d.OnRead(off, len(p)); err != nil {
			return 0, err
		}
	}
	d.mutex.Lock()
	defer d.mutex.Unlock()
	n := int(min(int64(len(p)), d.Bytes-off))
	for done := 0; done < n; {
		at := off + int64(done)
		part := p[done:min(n, done+int(Block-at%Block))]
		if b := d.blocks[at/Block]; b != nil {
			copy(part, b[at%Block:])
		} else if d.Make != nil && at%Block == 0 && len(part) == Block {
			if !d.Make(part, at/Block) {
				clear(part)
			}
		} else if b := d.block(at / Block); b != nil {
			copy(part, b[at%Block:])
		} else {
			clear(part)
		}
		done += len(part)
	}
	d.read += int64(n)
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// WriteAt implements io.WriterAt and keeps a sequential writer's rules.
func (d *Disk) WriteAt(p []byte, off int64) (int, error) {
	d.mutex.Lock()
	defer d.mutex.Unlock()
	if off < 0 || off+int64(len(p)) > d.Bytes {
		return 0, fmt.Errorf("write beyond the end: %d bytes at %d", len(p), off)
	}
	if d.Shape() == sdk.ShapeSequential && off < d.next {
		return 0, fmt.Errorf("write at %d after %d was reached", off, d.next)
	}
	d.next = off + int64(len(p))
	d.written += int64(len(p))
	d.flushed = false
	for done := 0; done < len(p); {
		at := off + int64(done)
		part := p[done:min(len(p), done+int(Block-at%Block))]
		b := d.blocks[at/Block]
		if b == nil {
			if b = d.block(at / Block); b == nil {
				b = make([]byte, Block)
			}
			d.blocks[at/Block] = b
		}
		copy(b[at%Block:], part)
		done += len(part)
	}
	return len(p), nil
}

// Zero implements sdk.BlockWriter for whole blocks.
func (d *Disk) Zero(off, n int64) error {
	d.mutex.Lock()
	defer d.mutex.Unlock()
	if off%Block != 0 || n%Block != 0 && off+n != d.Bytes {
		return fmt.Errorf("zero of %d bytes at %d: %w", n, off, sdk.ErrInvalid)
	}
	maps.DeleteFunc(d.blocks, func(b int64, _ []byte) bool { return b >= off/Block && b*Block < off+n })
	return nil
}

// Extents implements sdk.BlockReader by blocks.
func (d *Disk) Extents(ctx context.Context, off, n int64) iter.Seq2[sdk.Extent, error] {
	return func(yield func(sdk.Extent, error) bool) {
		open := sdk.Extent{Offset: off}
		for at := off; at < off+n; {
			end := min((at/Block+1)*Block, off+n)
			zero := !d.allocated(at / Block)
			if open.Length > 0 && zero != open.Zero {
				if !yield(open, ctx.Err()) {
					return
				}
				open = sdk.Extent{Offset: at}
			}
			open.Zero, open.Length = zero, end-open.Offset
			at = end
		}
		if open.Length > 0 {
			yield(open, ctx.Err())
		}
	}
}

func (d *Disk) allocated(n int64) bool {
	d.mutex.Lock()
	defer d.mutex.Unlock()
	return d.blocks[n] != nil || d.Make != nil && d.Make(make([]byte, Block), n)
}

// Equal reports whether two disks hold the same bytes.
func (d *Disk) Equal(other *Disk) bool {
	if d.Bytes != other.Bytes {
		return false
	}
	a, b := make([]byte, Block), make([]byte, Block)
	for at := int64(0); at < d.Bytes; at += Block {
		n := min(Block, d.Bytes-at)
		if _, err := d.ReadAt(a[:n], at); err != nil {
			return false
		}
		if _, err := other.ReadAt(b[:n], at); err != nil {
			return false
		}
		if !slices.Equal(a[:n], b[:n]) {
			return false
		}
	}
	return true
}
