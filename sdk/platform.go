package sdk

import (
	"context"
	"io"
	"iter"
	"time"
)

// Platform is the one interface that every plugin implements: a connection to
// one endpoint. What else it can do is found with As.
type Platform interface {
	// Machines lists the inventory in no particular order. An error ends the
	// sequence. A machine that vanishes while listing is left out.
	Machines(ctx context.Context) iter.Seq2[Machine, error]

	// Probe says what works now for the endpoint, a machine or a disk, and for
	// what does not, why. An unknown subject is ErrNotFound; an endpoint that
	// cannot be reached is a Report that says so, not an error.
	Probe(ctx context.Context, subject Subject) (Report, error)

	// Cancel asks the back-end to give up the work that carries this Op.ID.
	// ErrCannotCancel means that it goes on; an unknown or finished id is nil.
	Cancel(ctx context.Context, opID string) error

	// Close ends the connection. Work at the back-end is not cancelled.
	Close() error
}

// Subject is what Probe looks at: the endpoint when both fields are empty, a
// machine, or one disk of a machine.
type Subject struct {
	Machine MachineID
	Disk    DiskID
}

// Ability names an optional interface of this package.
type Ability string

// The abilities of protocol 1.
const (
	AbilitySource        Ability = "source"
	AbilityChangeTracker Ability = "change-tracker"
	AbilityTarget        Ability = "target"
	AbilityPower         Ability = "power"
)

// Report is the answer of Probe.
type Report struct {
	Product  string // "QEMU 7.2.22, libvirt 9.0.0"
	Findings []Finding
}

// Finding says whether one ability works now.
type Finding struct {
	Ability Ability
	Works   bool
	Reason  string // why not, or in what reduced form; a full sentence
	Hint    string // what the operator can do about it
}

// Works reports whether r says that the ability works, and the reason if not.
func (r Report) Works(a Ability) (bool, string) {
	for _, f := range r.Findings {
		if f.Ability == a {
			return f.Works, f.Reason
		}
	}
	return false, "the plugin does not offer " + string(a)
}

// Quiesce is how still a machine is asked to be while its snapshot is taken.
type Quiesce string

// The quiescing options, from none to most. They are also what a snapshot says
// was achieved.
const (
	QuiesceNone        Quiesce = "none"        // as after a power cut
	QuiesceFileSystem  Quiesce = "file-system" // file systems frozen and flushed
	QuiesceApplication Quiesce = "application" // and applications told to settle
)

// Source reads machines. All disks of a snapshot show one moment.
type Source interface {
	// Snapshot fixes one moment of a machine. A repeat with the same Op.ID
	// returns the same snapshot while it is open. Another snapshot open on the
	// machine is ErrBusy, unless it was left by a dead run of ours, which is
	// then ended first.
	Snapshot(ctx context.Context, op Op, req SnapshotRequest) (Snapshot, error)

	// OpenDisk reads one disk of an open snapshot. The caller closes it.
	OpenDisk(ctx context.Context, snap Snapshot, disk DiskID) (BlockReader, error)

	// EndSnapshot releases everything that the snapshot holds at the back-end,
	// except its marks. Repeating it is nil, an unknown snapshot too. With
	// keep false the new marks are released as well: the run failed.
	EndSnapshot(ctx context.Context, op Op, snap Snapshot, keep bool) error
}

// SnapshotRequest asks for a snapshot.
type SnapshotRequest struct {
	Machine MachineID
	Disks   []DiskID // nil: every disk that has no Skip
	Quiesce Quiesce
	// Deadline bounds how long the machine may be frozen; 0 means 10 s. The
	// snapshot is taken unfrozen, and says so, if freezing does not succeed.
	Deadline time.Duration
	// Since holds, for each disk, the mark from which the caller wants to know
	// the changes; some back-ends need it at this moment. A mark that is lost
	// does not fail the snapshot: Changed answers ErrMarkLost.
	Since map[DiskID]Mark
}

// Snapshot is one open moment of a machine. It is a value: a fresh process
// finds everything else by ID.
type Snapshot struct {
	ID       string
	Machine  Machine // as it was at that moment, with the disks in it
	Achieved Quiesce
	// Note says in a sentence why less was achieved than asked, or is empty.
	Note  string
	Marks map[DiskID]Mark // the new marks; none for a disk without tracking
	Taken time.Time
}

// ChangeTracker says what changed between a mark and a snapshot.
type ChangeTracker interface {
	// Changed lists, in ascending order and without overlap, the extents of the
	// disk that may differ from what they were at the mark named in the
	// snapshot's request. It may list more, never less. ErrMarkLost means that
	// nothing is known and the caller compares everything.
	Changed(ctx context.Context, snap Snapshot, disk DiskID) iter.Seq2[Extent, error]

	// ReleaseMark frees what the back-end keeps for a mark. Unknown marks are
	// nil, so it can be repeated. Releasing a mark keeps all younger ones valid.
	ReleaseMark(ctx context.Context, op Op, machine MachineID, disk DiskID, mark Mark) error
}

// Target writes machines. What it writes is a draft until it is committed:
// nothing boots it, and AbortDraft leaves no trace.
type Target interface {
	// CreateDraft makes room for a machine. The draft's ID is found again by a
	// repeat with the same Op.ID.
	CreateDraft(ctx context.Context, op Op, spec DraftSpec) (Draft, error)

	// OpenDraftDisk opens one disk of a draft for writing. Opening it again
	// disconnects the writer before. The caller closes it.
	OpenDraftDisk(ctx context.Context, op Op, draft Draft, disk DiskID) (BlockWriter, error)

	// CommitDraft makes the draft a machine, powered off, and returns its id.
	// A repeat returns the same id.
	CommitDraft(ctx context.Context, op Op, draft Draft) (MachineID, error)

	// AbortDraft removes the draft and everything written to it. Repeating it
	// is nil, an unknown draft too; a committed one is ErrInvalid.
	AbortDraft(ctx context.Context, op Op, draft Draft) error
}

// DraftSpec says what machine a draft becomes.
type DraftSpec struct {
	// Machine describes it: name, CPUs, memory, firmware, disks with id and
	// size, NICs, and Native if it came from the same kind of back-end. Unless
	// Replace is set, the new machine gets a new id, UUID and MAC addresses.
	Machine Machine
	// Replace names the machine to restore over: it keeps its identity, and its
	// disks are exchanged at commit. It must be off (ErrBusy otherwise).
	Replace MachineID
	Pool    string // where the disks go; "" is the back-end's default
	// Networks maps the network names of Machine.NICs to those of the back-end;
	// a name that is not in it stays. A network that does not exist is
	// ErrInvalid, with the existing ones in the hint.
	Networks map[string]string
}

// Draft is an open draft. It is a value, like Snapshot.
type Draft struct {
	ID    string
	Disks []DiskID // those of DraftSpec.Machine, to be written
}

// Power starts and stops machines.
type Power interface {
	// Start powers a machine on; nil if it runs.
	Start(ctx context.Context, op Op, machine MachineID) error
	// Stop asks the guest to shut down and, if it has not within grace, pulls
	// the plug; grace 0 pulls it at once. Nil if the machine is off.
	Stop(ctx context.Context, op Op, machine MachineID, grace time.Duration) error
}

// BlockReader reads a disk. Size is in bytes. ReadAt and Extents may be called
// from several goroutines, and ReadAt follows io.ReaderAt.
type BlockReader interface {
	io.ReaderAt
	io.Closer
	Size() int64
	// Extents describes [off, off+n) in ascending order, without gaps. A reader
	// that knows nothing of holes returns the range as one extent.
	Extents(ctx context.Context, off, n int64) iter.Seq2[Extent, error]
}

// Shape is how a writer wants to be written.
type Shape string

// The shapes of a BlockWriter.
const (
	// ShapeRandom: any order, any number of times, several goroutines.
	ShapeRandom Shape = "random"
	// ShapeSequential: one goroutine, ascending, each byte once, and from
	// offset zero again after a failure. What is skipped reads as zeroes.
	ShapeSequential Shape = "sequential"
)

// BlockWriter writes a disk whose every byte is zero at first.
type BlockWriter interface {
	io.WriterAt
	io.Closer
	Size() int64
	// Zero makes [off, off+n) read as zeroes, as a hole where possible.
	Zero(off, n int64) error
	// Flush returns when everything acknowledged before is durable.
	Flush() error
	Shape() Shape
}

// Addressed is implemented by a BlockReader or BlockWriter whose bytes the host
// should fetch from the back-end itself instead of through the plugin.
type Addressed interface {
	Address() Address
}

// Address says where a disk's bytes are served over NBD.
type Address struct {
	Network string // "unix" or "tcp"
	Addr    string // socket path, or host:port
	Export  string
	TLS     *AddressTLS // nil: plaintext
	// DirtyBitmap is the name of the meta context with changed blocks, such as
	// "qemu:dirty-bitmap:backup-vda"; "" if there is none.
	DirtyBitmap string
	// Connections is how many the server takes at once; 0 means 1.
	Connections int
}

// AddressTLS is how to reach an NBD server over TLS (STARTTLS). PEM blocks.
type AddressTLS struct {
	CA         []byte
	Cert, Key  []byte // client identity; secret, never logged
	ServerName string
}

// As finds an ability of a platform. A platform whose abilities are not those
// of its Go type (a wrapper, the host's side of a plugin) has a method
// As(target any) bool, which sets the interface that target points to.
func As[T any](p Platform) (T, bool) {
	var found T
	if d, ok := p.(interface{ As(target any) bool }); ok {
		return found, d.As(&found)
	}
	found, ok := p.(T)
	return found, ok
}
