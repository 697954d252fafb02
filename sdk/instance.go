package sdk

import (
	"context"
	"iter"
)

// AbilityActivator is the ability of an Activator.
const AbilityActivator Ability = "activator"

// InstanceID names a run of a replica's point at one back-end. It is chosen by
// the back-end and never used twice.
type InstanceID string

// Activator runs points of replicas. An instance never writes into its point:
// it runs on a layer of its own, which is thrown away, kept, or made permanent.
//
// An instance has a machine of its replica's space, which is in the inventory:
// Power, Console, Guest and Source know it by that machine's id.
//
// A real instance belongs to the replica's claim: its operations record their
// epoch at the replica, and are refused there if it is an older one. A test is
// nobody's claim: it runs beside the replication, neither fences it nor is
// fenced by it, and its operations are held against those on itself alone.
type Activator interface {
	// Activate boots a machine from a point, or from a layer that was kept, and
	// needs the point, as a holder does, for as long as the instance exists.
	// Before a real one runs, every draft and writer of the replica under an
	// older epoch is gone, and none can be opened. A repeat with the same Op.ID
	// returns the same instance, and starts it if it is off. A second real
	// instance that runs or is off is ErrBusy; tests may be any number.
	Activate(ctx context.Context, op Op, req ActivateRequest) (Instance, error)

	// Instances lists the instances of a space, from what the back-end itself
	// has; for the empty space, all of them.
	Instances(ctx context.Context, space Space) iter.Seq2[Instance, error]

	// Deactivate pulls an instance's plug and removes its machine. With
	// KeepLayer what it wrote stays (InstanceKept), and so does the need for its
	// point, until it is deactivated with DiscardLayer. Repeating it is nil, an
	// unknown instance too. A back-end that cannot keep a layer answers
	// ErrUnsupported, and leaves everything as it is.
	Deactivate(ctx context.Context, op Op, instance InstanceID, layer Layer) error

	// Finalize makes a real instance an ordinary machine of the space, with all
	// that it wrote, under the id that it has. Its replica is gone with every
	// point; one that is held, or that another instance runs, is ErrBusy. The
	// machine goes on running meanwhile where the back-end can. It may take
	// long (ErrPending). A repeat returns the same machine. A test is
	// ErrInvalid, and so is a layer that is kept.
	Finalize(ctx context.Context, op Op, instance InstanceID) (MachineID, error)

	// Reverse opens a real instance as a source, for the way back: a Snapshot of
	// its machine with these marks as Since can say what is no longer as it was
	// in the point. A disk without a mark has to be compared. It can be
	// repeated; the marks are good until a snapshot of them is ended with keep.
	Reverse(ctx context.Context, op Op, instance InstanceID) (Reversal, error)
}

// Purpose is why a point is run.
type Purpose string

// The purposes.
const (
	PurposeReal Purpose = "real" // a failover
	PurposeTest Purpose = "test" // beside it, to be thrown away
)

// Layer says what becomes of what an instance wrote.
type Layer string

// The choices.
const (
	DiscardLayer Layer = "discard"
	KeepLayer    Layer = "keep"
)

// ActivateRequest asks for an instance.
type ActivateRequest struct {
	Replica ReplicaID
	Point   PointID
	// Kept is an instance of the replica whose layer was kept: it runs again,
	// and Point is its point. "" runs the point as it is.
	Kept    InstanceID
	Purpose Purpose
	Name    string // of the machine, unique within the space
	// Networks maps the networks of the point's NICs to those of the back-end. A
	// NIC whose network is not in it is not connected, so that nothing reaches a
	// network that nobody chose. MAC addresses are those of the point.
	Networks    map[string]string
	CPUs        int   // 0: as in the point
	MemoryBytes int64 // 0: as in the point
}

// InstanceState is what an instance is doing.
type InstanceState string

// The states of an instance.
const (
	InstanceRunning InstanceState = "running"
	InstanceOff     InstanceState = "off"  // its guest shut down, or its host died
	InstanceKept    InstanceState = "kept" // deactivated, what it wrote is there
)

// Instance is a run of a point.
type Instance struct {
	ID      InstanceID
	Space   Space
	Machine MachineID // "" once it is deactivated
	Replica ReplicaID
	Point   PointID
	Purpose Purpose
	State   InstanceState
	Epoch   uint64 // the highest that an Op on it carried
	// WrittenBytes is how much its layer takes: what an undo throws away.
	WrittenBytes int64
}

// Reversal is an instance as a source.
type Reversal struct {
	Machine MachineID
	Since   map[DiskID]Mark // as of the activated point
}
