package quota

import (
	"context"
	"fmt"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/holdfast-dr/holdfast/core/chunk"
	"github.com/holdfast-dr/holdfast/core/tenant"
)

// ID is a cloud repository's id.
type ID string

// Units that a tenant and a provider agree on.
const (
	GiB int64 = 1 << 30
	TiB int64 = 1 << 40
)

// Bounds of what an operator may type.
const (
	MaxName  = 128
	MaxLimit = 1 << 60 // 1 EiB: sums of two stay far from overflow
)

// DefaultChunkSize is the size of the aligned pieces into which disks are cut
// in a new cloud repository. It is fixed when the repository is created.
const DefaultChunkSize = 256 << 10

// ReservationTTL is how long bytes that are in no point yet stay reserved for an
// idle session.
const ReservationTTL = 7 * 24 * time.Hour

// CloudRepository is what a tenant sees: a name and a size.
type CloudRepository struct {
	ID           ID
	TenantID     tenant.ID
	Name         string // friendly, unique within the tenant
	LocationID   string // the provider's repository behind it
	LimitBytes   int64
	UsedBytes    int64 // charged to points
	PendingBytes int64 // reserved by sessions, or unreferenced
	// UnreferencedBytes arrived and are in no point yet. They are counted until
	// a point uses them, or they were idle for ReservationTTL and are collected.
	UnreferencedBytes int64
	ChunkSize         int64
	Created           time.Time
	Updated           time.Time
	Version           int64
	Retired           time.Time      // not zero: its tenant is gone
	Backups           tenant.Backups // of a retired one: kept or to be deleted
}

// FreeBytes is what can still be reserved; never negative.
func (r CloudRepository) FreeBytes() int64 {
	return max(0, r.LimitBytes-r.UsedBytes-r.PendingBytes)
}

// Check says whether the repository keeps every rule.
func (r CloudRepository) Check() error {
	invalid := func(field, format string, args ...any) error {
		return &tenant.InvalidError{Field: field, Reason: fmt.Sprintf(format, args...)}
	}
	switch n := utf8.RuneCountInString(r.Name); {
	case n == 0:
		return invalid("name", "must not be empty")
	case n > MaxName || !utf8.ValidString(r.Name):
		return invalid("name", "must be text of at most %d characters", MaxName)
	case r.TenantID == tenant.Provider:
		return invalid("tenant", "must be given")
	case r.LocationID == "":
		return invalid("repository", "must be given")
	case r.LimitBytes < 1 || r.LimitBytes > MaxLimit:
		return invalid("quota", "must be between 1 byte and %s", tenant.SizeText(MaxLimit))
	case r.ChunkSize < 4<<10 || r.ChunkSize > chunk.MaxSize || r.ChunkSize&(r.ChunkSize-1) != 0: // what point.Geometry takes
		return invalid("chunk size", "must be a power of two between 4 KiB and 1 MiB")
	}
	for _, c := range r.Name {
		if unicode.IsControl(c) || unicode.In(c, unicode.Cf) {
			return invalid("name", "must not contain control characters")
		}
	}
	return nil
}

// FullError refuses bytes for which there is no room. The figures are those of
// the moment of the refusal.
type FullError struct {
	Repository   string // the friendly name
	LimitBytes   int64
	UsedBytes    int64
	PendingBytes int64
	WantedBytes  int64
}

// Error gives the figures for people; programs read the exact ones in its fields,
// which cross the wire.
func (e *FullError) Error() string {
	size := tenant.SizeText
	return fmt.Sprintf("cloud repository %q is full: %s wanted, %s of %s free (%s used, %s pending)",
		e.Repository, size(e.WantedBytes), size(max(0, e.LimitBytes-e.UsedBytes-e.PendingBytes)), size(e.LimitBytes), size(e.UsedBytes), size(e.PendingBytes))
}

// Hint says what helps.
func (e *FullError) Hint() string {
	return "remove points that are no longer needed, or ask the provider for a larger quota; what is stored stays restorable, and what is pending is used by the next backup of the same data or goes when it was idle for a week"
}

// Reservation is what a session holds of a repository's free space.
type Reservation struct {
	RepositoryID ID
	Session      string
	Bytes        int64
	Expires      time.Time
}

// Query selects cloud repositories by name order. Without a tenant it lists
// everybody's, which only the provider may ask.
type Query struct {
	Tenant     tenant.ID
	LocationID string
	Retired    bool   // those of deleted tenants instead
	After      ID     // continue after this one
	Limit      int    // 0: tenant.DefaultLimit
	Text       string // part of the name
}

// Store keeps cloud repositories and their reservations. Create, Adopt, Update
// and Delete need audit.With in the context.
type Store interface {
	Create(ctx context.Context, r CloudRepository) (CloudRepository, error)
	// Adopt creates a cloud repository under the id of objects that are there.
	// *TakenError: the id is in use; *StrangerError: they are not the tenant's.
	// What a deleted tenant left comes with its catalogue; anything else has none
	// yet, and takes no writes before an import. Chunk size and used bytes of
	// what was kept stay as they are.
	Adopt(ctx context.Context, a Adoption) (CloudRepository, error)
	// Owned tells which of some ids cloud repositories have, also retired ones.
	Owned(ctx context.Context, ids []ID) (map[ID]Owned, error)
	// Get answers tenant.ErrNotFound for another tenant's repository. The
	// provider asks with the repository's own tenant, or AnyTenant.
	Get(ctx context.Context, t tenant.ID, id ID) (CloudRepository, error)
	List(ctx context.Context, q Query) ([]CloudRepository, error)
	// Update changes name and limit of the version that r carries. A limit
	// below what is used is allowed: it blocks new backups and deletes nothing.
	Update(ctx context.Context, r CloudRepository) (CloudRepository, error)
	// Delete removes a repository that stores nothing; *NotEmptyError otherwise.
	Delete(ctx context.Context, t tenant.ID, id ID) error

	// Reserve adds bytes to what a session holds and pushes its expiry out, or
	// answers a *FullError and changes nothing.
	Reserve(ctx context.Context, t tenant.ID, id ID, session string, bytes int64) (Reservation, error)
	// Commit ends a session's reservation and charges what its point really
	// takes, which may be less, or more if that still fits.
	Commit(ctx context.Context, t tenant.ID, id ID, session string, charge int64) error
	// Release gives a session's reservation back; an unknown session holds nothing.
	Release(ctx context.Context, t tenant.ID, id ID, session string) error
	// Expire releases the reservations whose sessions went idle.
	Expire(ctx context.Context) (released int64, err error)
}

// Owned is a cloud repository as the survey of a location sees it.
type Owned struct {
	TenantID   tenant.ID
	TenantName string // also of a deleted one
	Name       string
	Retired    bool
	Backups    tenant.Backups // of a retired one
}

// MaxOwned bounds the ids of one question of Owned.
const MaxOwned = 1000

// AnyTenant lifts the scope of a query; only callers of the provider may pass it.
const AnyTenant tenant.ID = "*"

// NotEmptyError refuses the deletion of a cloud repository that stores data.
type NotEmptyError struct {
	Repository string
	UsedBytes  int64
	Pending    int64
}

// Error says how much is there.
func (e *NotEmptyError) Error() string {
	return fmt.Sprintf("cloud repository %q still stores %s and has %s pending", e.Repository, tenant.SizeText(e.UsedBytes), tenant.SizeText(e.Pending))
}

// Hint says what helps.
func (e *NotEmptyError) Hint() string {
	return "forget its points first, or wait until running backups have ended"
}
