package image

import (
	"fmt"
	"os"

	"github.com/holdfast-dr/holdfast/sdk"
)

// raw is the bytes of the disk, with holes where nothing was written.
type raw struct {
	file *os.File
	size int64
}

var _ sdk.BlockWriter = (*raw)(nil)

func newRaw(f *os.File, size int64) (sdk.BlockWriter, error) {
	return &raw{file: f, size: size}, f.Truncate(size)
}

func (r *raw) Size() int64      { return r.size }
func (r *raw) Shape() sdk.Shape { return sdk.ShapeRandom }
func (r *raw) Close() error     { return r.file.Close() }
func (r *raw) Flush() error     { return r.file.Sync() }

// WriteAt writes, and starts the write-back at once: the sync at the end then
// has little left to wait for.
func (r *raw) WriteAt(p []byte, off int64) (int, error) {
	if off < 0 || off > r.size || int64(len(p)) > r.size-off {
		return 0, fmt.Errorf("%d bytes at %d of an image of %d: %w", len(p), off, r.size, sdk.ErrInvalid)
	}
	n, err := r.file.WriteAt(p, off)
	if err == nil {
		writeBack(r.file, off, int64(n))
	}
	return n, err
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
