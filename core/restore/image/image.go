package image

import (
	"errors"
	"fmt"
	"os"

	"github.com/holdfast-dr/holdfast/sdk"
)

// Format is a kind of image file.
type Format string

// The formats.
const (
	Raw   Format = "raw"
	QCOW2 Format = "qcow2"
	VMDK  Format = "vmdk" // stream-optimised, as OVA files have it
)

// Formats lists them all.
func Formats() []Format { return []Format{Raw, QCOW2, VMDK} }

const sector = 512

// Create starts an image of a disk of sizeBytes in a new file; one that exists,
// a link included, is fs.ErrExist. qcow2 and VMDK round the size up to whole sectors.
func Create(path string, format Format, sizeBytes int64) (sdk.BlockWriter, error) {
	if sizeBytes < 0 {
		return nil, fmt.Errorf("create image %s of %d bytes: %w", path, sizeBytes, sdk.ErrInvalid)
	}
	start, ok := map[Format]func(*os.File, int64) (sdk.BlockWriter, error){Raw: newRaw, QCOW2: newQCOW2, VMDK: newVMDK}[format]
	if !ok {
		return nil, fmt.Errorf("create image %s: format %q is not one of %v: %w", path, format, Formats(), sdk.ErrInvalid)
	}
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600) // a disk's content is nobody else's business
	if err != nil {
		return nil, fmt.Errorf("create image: %w", err)
	}
	w, err := start(f, sizeBytes)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("create image %s: %w", path, err), f.Close(), os.Remove(path))
	}
	return w, nil
}

// ErrOrder means that a sequential image was written backwards, or after it was
// complete.
var ErrOrder = errors.New("image is written in ascending order and once")

// order keeps the rules of a sequential writer.
type order struct {
	size     int64
	next     int64
	complete bool
}

// advance claims [off, off+n).
func (o *order) advance(off int64, n int64) error {
	switch {
	case off < 0 || n < 0 || off > o.size || n > o.size-off:
		return fmt.Errorf("%d bytes at %d of an image of %d: %w", n, off, o.size, sdk.ErrInvalid)
	case o.complete || off < o.next:
		return fmt.Errorf("%d bytes at %d after %d: %w", n, off, o.next, ErrOrder)
	}
	o.next = off + n
	return nil
}
