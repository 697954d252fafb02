package repository

import (
	"context"
	"iter"
	"time"

	"github.com/holdfast-dr/holdfast/core/chunk"
	"github.com/holdfast-dr/holdfast/core/point"
)

// Catalogue is the database's part of a repository: which points exist, which
// packs are condemned, which records are damaged, and the quota. Every method
// is one transaction. Those that take an epoch answer an error that is
// claim.ErrFenced, and change nothing, unless the claim of the cloud repository
// still has that epoch. Commit, Forget, Purge, Distrust and Import need
// audit.With in the context; the others are bookkeeping.
type Catalogue interface {
	// Check answers whether the claim still has the epoch.
	Check(ctx context.Context, repository string, epoch uint64) error

	// Commit makes a point exist: it checks the epoch, records the point, ends
	// the session's reservation, charges the point's bytes, sets what is pending
	// without what the point uses of it, and appends the audit entry. Where the
	// charge exceeds both the room and what it takes the place of, it answers
	// *quota.FullError. A point that exists already is an error.
	Commit(ctx context.Context, repository string, epoch uint64, p PointRecord, pendingBytes int64) error

	// Shipped sets what is pending, the bytes of a session among it that were
	// reserved until now. It is charged even above the limit: it is there.
	Shipped(ctx context.Context, repository string, epoch uint64, session string, shippedBytes, pendingBytes int64) error

	// Reconciled sets what is pending, and, unless reserved is nil, what sessions
	// hold beside it: those not named hold nothing.
	Reconciled(ctx context.Context, repository string, epoch uint64, pendingBytes int64, reserved map[string]int64) error

	// Point finds one point, binned or not, else tenant.ErrNotFound.
	Point(ctx context.Context, repository string, id point.ID) (PointRecord, error)

	// Points lists points in the order of their ids.
	Points(ctx context.Context, repository string, q PointQuery) ([]PointRecord, error)

	// Forget puts a point into the bin. One that is there already stays as it is;
	// an unknown one is tenant.ErrNotFound.
	Forget(ctx context.Context, repository string, epoch uint64, id point.ID, at time.Time) error

	// Purge removes binned points for good; others are passed over.
	Purge(ctx context.Context, repository string, epoch uint64, ids []point.ID) error

	// Settle sets the bytes that the live points take.
	Settle(ctx context.Context, repository string, epoch uint64, usedBytes int64) error

	// Condemn records that packs are to be deleted. It is never taken back.
	Condemn(ctx context.Context, repository string, epoch uint64, packs []PackID, at time.Time) error

	// Condemned lists the packs that wait for their deletion, in the order of
	// their ids, after one.
	Condemned(ctx context.Context, repository string, after PackID, limit int) ([]CondemnedPack, error)

	// Removed records that condemned packs are gone, and with them their damage.
	Removed(ctx context.Context, repository string, epoch uint64, packs []PackID) error

	// MarkDamaged records damaged copies; those known already stay.
	MarkDamaged(ctx context.Context, repository string, damage []Damage) error

	// Damage lists all that is recorded.
	Damage(ctx context.Context, repository string) iter.Seq2[Damage, error]

	// Began records who brings what a session's records are. One that is known
	// already stays as it is.
	Began(ctx context.Context, repository string, epoch uint64, s SessionRecord) error

	// Ended records that sessions ended; those that had, or are unknown, stay.
	Ended(ctx context.Context, repository string, epoch uint64, sessions []string, at time.Time) error

	// Sessions lists sessions in the order of their ids, which is that in which
	// they began.
	Sessions(ctx context.Context, repository string, q SessionQuery) ([]SessionRecord, error)

	// Distrust makes sessions distrusted, or trusted again, and tells how many
	// that changed. One that is named and not known is made known.
	Distrust(ctx context.Context, repository string, epoch uint64, d Distrust, at time.Time) (changed int, err error)

	// ForgetSessions drops sessions of which no record is left.
	ForgetSessions(ctx context.Context, repository string, epoch uint64, sessions []string) error

	// Import replaces the points of a repository by those given, sets the bytes
	// that they take even above the limit, and raises the epoch of the claim to
	// at least floor, so that the next claim is newer than every one before.
	Import(ctx context.Context, repository string, floor uint64, points []PointRecord, usedBytes int64) error
}

// PointRecord is what the database knows of a point.
type PointRecord struct {
	ID           point.ID
	Machine      point.MachineID
	Previous     point.ID
	Session      string // hexadecimal
	Epoch        uint64 // in the manifest's name
	Kind         point.Kind
	Taken        time.Time
	Committed    time.Time
	Disks        int
	SizeBytes    int64     // of all disks
	ChargedBytes int64     // sealed bytes that the commit newly referenced
	Forgotten    time.Time // not zero: in the bin
}

// PointQuery selects points. The zero value selects every live one.
type PointQuery struct {
	Machine point.MachineID // empty: all
	Session string          // empty: all
	Binned  bool            // those in the bin instead
	After   point.ID
	Limit   int // 0: MaxPoints
}

// MaxPoints bounds one answer of Points.
const MaxPoints = 1000

// CondemnedPack is a pack that waits for its deletion.
type CondemnedPack struct {
	Pack PackID
	At   time.Time
}

// Damage is a copy of a record whose bytes are not what was written.
type Damage struct {
	Kind chunk.Kind
	ID   chunk.ID
	Pack PackID
	At   time.Time
}

// SessionRecord is what the database knows of a session: the records that it
// brought carry its id.
type SessionRecord struct {
	ID         string // hexadecimal
	Owner      string // what Begin was told: the agent; empty: not known
	Machine    point.MachineID
	Began      time.Time
	Ended      time.Time // zero: it is open
	Distrusted time.Time // zero: its records count
}

// SessionQuery selects sessions. The zero value selects every one.
type SessionQuery struct {
	Owner      string // empty: all
	Open       bool   // only those that have not ended
	Distrusted bool   // only those
	After      string // an id
	Limit      int    // 0: MaxSessions
}

// MaxSessions bounds one answer of Sessions.
const MaxSessions = 1000

// Distrust says which sessions are distrusted: one, or those of an owner that
// had not ended before a time.
type Distrust struct {
	Session string    // hexadecimal; empty: those of Owner
	Owner   string    // an agent
	Since   time.Time // zero: ever
	Lift    bool      // they are trusted again
}
