package sdk

import "time"

// MachineID, DiskID name a machine and a disk of it at one back-end. They are
// chosen by the back-end, opaque to the core, and stable for as long as the
// object lives; renaming a machine does not change its id.
type (
	MachineID string
	DiskID    string
)

// Mark is an opaque token from which a ChangeTracker can say what changed
// since. It is bound to one disk's identity and size, at most MaxMark bytes,
// and is stored with the point that it belongs to.
type Mark []byte

// MaxMark is the largest Mark, in bytes, that a plugin may return.
const MaxMark = 4096

// CallLimit is the longest that any call of a plugin may take. Longer work
// answers ErrPending and is asked for again.
const CallLimit = 30 * time.Second

// Space is where one tenant's machines live at a provider's back-end: a
// resource pool, an organisation's VDC, a pool with a name prefix. The empty
// Space is the whole back-end and is used for sources.
type Space string

// Op identifies one piece of mutating work; see the rules in the package
// comment.
type Op struct {
	ID    string // chosen by the caller; repeating it repeats nothing
	Space Space
	Epoch uint64 // fencing number of the caller's claim
}

// State is what a machine is doing now.
type State string

// The states of a machine.
const (
	StateUnknown State = "unknown"
	StateOff     State = "off"
	StateRunning State = "running"
	StatePaused  State = "paused"
)

// Firmware is how a machine boots.
type Firmware string

// The kinds of firmware.
const (
	FirmwareBIOS Firmware = "bios"
	FirmwareUEFI Firmware = "uefi"
)

// Machine is a virtual machine as the inventory shows it.
type Machine struct {
	ID          MachineID
	Name        string
	UUID        string
	Firmware    Firmware
	State       State
	CPUs        int
	MemoryBytes int64
	Tags        []string
	Disks       []Disk
	NICs        []NIC
	// Native is the back-end's own description, kept with every point so that a
	// restore to the same kind of back-end loses nothing. Opaque to the core,
	// at most MaxNative bytes.
	Native []byte
}

// MaxNative is the largest Machine.Native, in bytes.
const MaxNative = 1 << 20

// Disk is one disk of a machine.
type Disk struct {
	ID        DiskID
	Name      string // what an operator calls it: vda, Hard disk 1
	SizeBytes int64
	Format    string // the back-end's: qcow2, raw, vmdk
	Pool      string // storage pool or datastore, "" if none is known
	// Skip says why the disk cannot be part of a snapshot (removable, shared,
	// read-only), and is empty for a disk that can.
	Skip string
}

// NIC is one network interface of a machine.
type NIC struct {
	MAC     string
	Network string
	Model   string
}

// Extent is a range of a disk. Offset and Length are bytes.
type Extent struct {
	Offset int64
	Length int64
	Zero   bool // reads as zeroes; false when the plugin cannot tell
}

// End is the offset of the first byte after the extent.
func (e Extent) End() int64 { return e.Offset + e.Length }
