package gateway

import (
	"errors"
	"fmt"
	"io"

	"github.com/holdfast-dr/holdfast/core/chunk"
)

// errEnded is the orderly end of a body.
var errEnded = errors.New("end of the body")

// errCut: a batch ends inside a record.
var errCut = fmt.Errorf("the batch ends inside a record: %w", chunk.ErrDamaged)

// readFull fills b, or answers errEnded with what there was.
func readFull(r io.Reader, b []byte) (int, error) {
	n, err := io.ReadFull(r, b)
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return n, errEnded
	}
	return n, err
}

// wholeRecords is how many bytes of b are whole records, by their headers. What
// is in them, checksums included, is for whoever keeps them.
func wholeRecords(b []byte) (int, error) {
	whole := 0
	for len(b)-whole >= chunk.HeaderSize {
		_, size, err := chunk.ParseHeader(b[whole:])
		if err != nil {
			return 0, err
		}
		if len(b)-whole < size {
			break
		}
		whole += size
	}
	return whole, nil
}
