package mover

import (
	"context"

	"github.com/holdfast-dr/holdfast/core/chunk"
)

// MaxBatch is the most bytes of records that one Put carries, and MaxIDs the
// most ids of one Have or Read.
const (
	MaxBatch = 16 << 20
	MaxIDs   = 16384
)

// Writer is a session that brings records to a cloud repository. It is safe for
// several goroutines.
type Writer interface {
	// Have tells for each id whether the repository holds it. The answer is a
	// hint: commit has the last word.
	Have(ctx context.Context, kind chunk.Kind, ids []chunk.ID) ([]bool, error)

	// Put hands over whole records, back to back, at most MaxBatch bytes, which
	// may be repeated. A nil error says that they were received and checked;
	// only the commit promises durability. The batch is not kept.
	Put(ctx context.Context, batch []byte) error
}

// Reader reads records of a cloud repository. It is safe for several
// goroutines.
type Reader interface {
	// Read calls emit for each id in the order asked, at most MaxIDs. A record
	// that is absent or damaged is an error that names it and wraps
	// chunk.ErrAbsent or chunk.ErrDamaged, after those before it were emitted. The
	// record is valid during the call only. Readers of records check what they
	// got: a Reader promises nothing about content.
	Read(ctx context.Context, kind chunk.Kind, ids []chunk.ID, emit func(chunk.Record) error) error
}
