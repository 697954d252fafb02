package sdk

import (
	"context"
	"io"
	"iter"
	"time"
)

// AbilityReplicator is the ability of a Replicator.
const AbilityReplicator Ability = "replicator"

// ReplicaID, PointID name a replica and a point of it at one back-end. They are
// chosen by the back-end, opaque to the core, and never used twice.
type (
	ReplicaID string
	PointID   string
)

// Replicator keeps replicas: machines that do not run, each with a chain of
// points, of which every one can be read and, by an Activator, be run. A
// replica is not in the inventory of Machines.
//
// A point comes into being as a draft. A draft of a newer epoch ends the draft
// and the writers of an older one, and nothing is a point before CommitPoint,
// which checks the epoch: what a writer that was taken over still sends lands
// in something that nobody boots.
type Replicator interface {
	// Replicas lists the replicas of a space with their points, from what the
	// back-end itself has; for the empty space, all of them. A core that lost
	// its database rebuilds it from this.
	Replicas(ctx context.Context, space Space) iter.Seq2[Replica, error]

	// CreateReplica makes a replica. A repeat with the same Op.ID returns the
	// same one.
	CreateReplica(ctx context.Context, op Op, spec ReplicaSpec) (Replica, error)

	// DraftPoint opens the draft of a replica's next point. A repeat with the
	// same Op.ID returns the same draft, with everything that was flushed to
	// it. Another draft that is open is ErrBusy, unless it was opened under an
	// older epoch: then it is aborted first. A replica that has MaxPoints
	// points is ErrBusy: the caller removes one.
	DraftPoint(ctx context.Context, op Op, spec PointSpec) (PointDraft, error)

	// OpenPointDraftDisk opens one disk of a draft. Opening it again
	// disconnects the writer before. The caller closes it.
	OpenPointDraftDisk(ctx context.Context, op Op, draft PointDraft, disk DiskID) (PointWriter, error)

	// CommitPoint makes the draft the replica's youngest point. Everything that
	// was written is durable before it answers, and no writer can go on
	// afterwards. A repeat returns the same point.
	CommitPoint(ctx context.Context, op Op, draft PointDraft, label PointLabel) (Point, error)

	// AbortPoint removes a draft and everything written to it. Repeating it is
	// nil, an unknown draft too; a committed one is ErrInvalid.
	AbortPoint(ctx context.Context, op Op, draft PointDraft) error

	// OpenPoint reads one disk of a point. If the point is removed meanwhile its
	// reads may fail; they never show anything else. The caller closes it.
	OpenPoint(ctx context.Context, space Space, replica ReplicaID, point PointID, disk DiskID) (BlockReader, error)

	// HoldPoint records at the back-end that a holder needs a point, whatever
	// dies and however long it takes: neither the point nor anything that it is
	// read through is removed. Holders are not writers, so the epoch counts for
	// nothing here. Repeating it is nil. A holder has 1 to MaxHolder bytes.
	HoldPoint(ctx context.Context, op Op, replica ReplicaID, point PointID, holder string) error

	// ReleasePoint ends a hold. An unknown point, or holder, is nil.
	ReleasePoint(ctx context.Context, op Op, replica ReplicaID, point PointID, holder string) error

	// RemovePoint removes a point, whichever it is, and leaves what every other
	// one shows as it was. It may take long (ErrPending, with progress), and a
	// fresh process goes on where a killed one stopped. A point that is held or
	// run, or that has to stay because a younger one is, is ErrBusy, and the
	// error names what needs it; so is one that an open draft is based on. An
	// unknown point is nil.
	RemovePoint(ctx context.Context, op Op, replica ReplicaID, point PointID) error

	// RemoveReplica removes a replica with its points and its draft. One that
	// has an instance or a point that is held is ErrBusy, and loses nothing. An
	// unknown one is nil.
	RemoveReplica(ctx context.Context, op Op, replica ReplicaID) error
}

// Bounds of what the caller has a Replicator keep, in bytes.
const (
	MaxLabel  = 4096 // a label of a replica or a point
	MaxHolder = 256
)

// ReplicaSpec asks for a replica.
type ReplicaSpec struct {
	Name string // what an operator calls it; unique within the space
	Pool string // where its disks go; "" is the back-end's default
	// Label is the caller's, kept with the replica and listed by Replicas.
	Label string
	// Seed is a machine of the space that becomes the replica: its disks, as
	// they are, are the first point, and it is no machine any more. It has to be
	// off (ErrBusy otherwise). "" makes a replica without points.
	Seed MachineID
}

// Replica is a replica as the back-end has it.
type Replica struct {
	ID    ReplicaID
	Space Space
	Name  string
	Pool  string
	Label string
	Epoch uint64 // the highest that an Op of a writer, or of a failover, carried
	// MaxPoints is how many points it can have at once, 0 for as many as there
	// is room for.
	MaxPoints int
	Points    []Point     // from old to young
	Draft     *PointDraft // nil: none is open
}

// PointSpec asks for the draft of a point.
type PointSpec struct {
	Replica ReplicaID
	// Base is the point whose content the draft's disks show before anything is
	// written; "" for zeroes. It has to be the youngest one, and "" where there
	// is none (ErrInvalid otherwise).
	Base PointID
	// Machine is what the point is a state of: name, CPUs, memory, firmware,
	// disks with id and size, NICs, and Native. A disk that the base does not
	// have is zero at first; one that grew is zero behind its old end; one that
	// is not named is not part of this point. A disk that shrank is ErrInvalid:
	// its caller gives it a new id.
	Machine Machine
}

// PointDraft is the open draft of a point. It is a value, like Snapshot.
type PointDraft struct {
	ID      string
	Replica ReplicaID
	Base    PointID
	Disks   []DiskID // those of PointSpec.Machine, to be written
	Epoch   uint64   // under which it was opened
}

// PointWriter writes a disk of a draft that begins as its base was, and reads
// what was written so far over the base: whatever its shape, what is skipped
// stays as it was. One of ShapeSequential cannot read (ErrUnsupported), and
// begins as its base was each time that it is opened.
type PointWriter interface {
	BlockWriter
	io.ReaderAt
}

// PointLabel is what the caller keeps with a point.
type PointLabel struct {
	Label    string    // the caller's
	Taken    time.Time // the moment that the point shows, in microseconds
	Achieved Quiesce   // how still the source was
}

// Point is a committed point of a replica.
type Point struct {
	ID      PointID
	Machine Machine // as in its PointSpec
	PointLabel
	Holders []string // in any order
	// StoredBytes is what the point alone takes at the back-end, an estimate
	// where points share.
	StoredBytes int64
}
