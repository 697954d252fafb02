package gateway

import (
	"context"

	"github.com/holdfast-dr/holdfast/core/chunk"
	"github.com/holdfast-dr/holdfast/core/point"
	"github.com/holdfast-dr/holdfast/core/tenant"
)

// Repository is an open cloud repository, held under a claim by whoever opened
// it. It knows nothing of tenants and contracts. Its methods are safe for
// several goroutines.
type Repository interface {
	// Epoch is that of the claim.
	Epoch() uint64
	// Begin opens a session for one new point of a machine.
	Begin(ctx context.Context, machine point.MachineID, base point.ID, owner string) (Session, error)
	// Resume finds a session again that this or an earlier process began;
	// ErrSessionClosed if there is none of this owner.
	Resume(ctx context.Context, id chunk.SessionID, owner string) (Session, error)

	Read(ctx context.Context, kind chunk.Kind, ids []chunk.ID, emit func(chunk.Record) error) error
	Manifest(ctx context.Context, id point.ID) ([]byte, error)
	// Points lists points after one, oldest first; of all machines if machine is
	// empty.
	Points(ctx context.Context, machine point.MachineID, after point.ID, limit int) ([]PointInfo, error)
	Forget(ctx context.Context, id point.ID) error

	PutWrap(ctx context.Context, name string, wrap []byte) error
	Wrap(ctx context.Context, name string) ([]byte, error)
	Wraps(ctx context.Context) ([]Wrap, error)
}

// Session is one new point on its way into a repository. The agent stamps its
// records with the ID.
type Session interface {
	ID() chunk.SessionID
	Machine() point.MachineID
	Base() point.ID

	Have(ctx context.Context, kind chunk.Kind, ids []chunk.ID) ([]bool, error)
	// Put takes whole records, checks them, and keeps no reference to them. It
	// tells how many bytes were not there yet, also beside an error.
	Put(ctx context.Context, batch []byte) (taken int64, err error)
	// Commit makes the point exist, durably; or answers why it cannot, with a
	// *point.MissingError if records are to be sent again.
	Commit(ctx context.Context, manifest []byte) error
	Abort(ctx context.Context) error
	// Damaged lists the base point's chunks that have to be sent again.
	Damaged(ctx context.Context) ([]chunk.ID, error)
}

// Opener opens a tenant's cloud repository, or returns the one that is open. A
// repository of another tenant is tenant.ErrNotFound. A *claim.HeldError says
// that another server has it.
type Opener func(ctx context.Context, t tenant.ID, repository string) (Repository, error)
