package image

import (
	"errors"
	"fmt"
	"os"
	"reflect"
	"sync/atomic"
	"syscall"

	"github.com/holdfast-dr/holdfast/sdk"
)

// raw is the bytes of the disk, with holes where nothing was written.
//
// Whole blocks go past the page cache where the file system allows it: a disk
// that comes back is not read again soon, and copying it through the cache costs
// four times the CPU and displaces what others use. The rest, such as the end of
// an odd disk, goes through the cache.
type raw struct {
	file   *os.File
	size   int64
	direct *os.File // the same file past the page cache; nil where that is not to be had
	unit   uintptr  // of what goes there, in memory and in the file
	denied atomic.Bool
}

var _ sdk.BlockWriter = (*raw)(nil)

// directUnit suits every disk with sectors of 512 and 4096 bytes.
const directUnit = 4096

func newRaw(f *os.File, size int64) (sdk.BlockWriter, error) {
	if err := f.Truncate(size); err != nil {
		return nil, err
	}
	return &raw{file: f, size: size, direct: openDirect(f), unit: directUnit}, nil
}

func (r *raw) Size() int64      { return r.size }
func (r *raw) Shape() sdk.Shape { return sdk.ShapeRandom }
func (r *raw) Flush() error     { return r.file.Sync() }

func (r *raw) Close() error {
	err := r.file.Close()
	if r.direct != nil {
		err = errors.Join(err, r.direct.Close())
	}
	return err
}

// WriteAt writes; what goes through the page cache is written back at once, so
// that the sync at the end has little left to wait for.
func (r *raw) WriteAt(p []byte, off int64) (int, error) {
	if off < 0 || off > r.size || int64(len(p)) > r.size-off {
		return 0, fmt.Errorf("%d bytes at %d of an image of %d: %w", len(p), off, r.size, sdk.ErrInvalid)
	}
	if r.isWhole(p, off) {
		n, err := r.direct.WriteAt(p, off)
		if !errors.Is(err, syscall.EINVAL) && !errors.Is(err, errors.ErrUnsupported) {
			return n, err
		}
		r.denied.Store(true) // a disk with larger blocks, or a file system that knows no better
	}
	n, err := r.file.WriteAt(p, off)
	if err == nil {
		writeBack(r.file, off, int64(n))
	}
	return n, err
}

// isWhole reports whether p may go past the page cache.
func (r *raw) isWhole(p []byte, off int64) bool {
	return r.direct != nil && !r.denied.Load() && len(p) > 0 &&
		(reflect.ValueOf(p).Pointer()|uintptr(off)|uintptr(len(p)))%r.unit == 0
}

// Zero makes a hole.
func (r *raw) Zero(off, n int64) error {
	if off < 0 || n < 0 || off > r.size || n > r.size-off {
		return fmt.Errorf("%d bytes at %d of an image of %d: %w", n, off, r.size, sdk.ErrInvalid)
	}
	if n == 0 || punch(r.file, off, n) == nil {
		return nil
	}
	zeroes := make([]byte, min(n, 1<<20))
	for n > 0 {
		part := zeroes[:min(n, int64(len(zeroes)))]
		if _, err := r.file.WriteAt(part, off); err != nil {
			return err
		}
		off, n = off+int64(len(part)), n-int64(len(part))
	}
	return nil
}
