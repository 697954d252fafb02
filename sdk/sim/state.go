package sim

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"github.com/google/uuid"

	"github.com/holdfast-dr/holdfast/sdk"
)

// format is the version of the state document.
const format = 1

// state is everything of a Hypervisor but the bytes of its files. It is read
// and written whole, under the store's lock.
type state struct {
	Format    int
	Machines  map[sdk.MachineID]*machine
	Snapshots map[string]*snapshot
	Drafts    map[string]*draft
	Replicas  map[sdk.ReplicaID]*replica
	Instances map[sdk.InstanceID]*instance
	Networks  []string
	Made      map[string]*network // those of Networks that CreateNetwork made
	Pools     []string
	Limits    map[sdk.Space]*limits
	Faults    []Fault
	Calls     map[string]int // by fault: how many calls it has seen
	Pending   map[string]int // by call and Op.ID: how often it answered ErrPending
	Lossy     bool           `json:",omitempty"` // writes during a snapshot are not tracked

	garbage []string // files to remove once this is saved
}

// machine is a machine, where it lives and who owns it.
type machine struct {
	sdk.Machine
	Space sdk.Space
	Epoch uint64 // the highest that any Op on it carried
	Files map[sdk.DiskID]*disk
	Was   sdk.InstanceID `json:",omitempty"` // before it was made permanent
}

// disk is what lies behind one disk of a machine.
type disk struct {
	UID       string // never used twice, so a mark of a replaced disk is lost
	SizeBytes int64
	// Generation is that of the guest's writes from now on.
	Generation uint64
	Marks      map[string]uint64 // the closed generation of each live mark
}

func (d *disk) image() string  { return "disk-" + d.UID + ".img" }
func (d *disk) table() string  { return "disk-" + d.UID + ".generations" }
func (d *disk) writer() string { return "disk-" + d.UID + ".writer" }

// blocks is how many blocks of change tracking the disk has.
func (d *disk) blocks() int64 { return (d.SizeBytes + blockSize - 1) / blockSize }

// snapshot is one open snapshot.
type snapshot struct {
	sdk.Snapshot
	OpID  string
	Epoch uint64
	Disks map[sdk.DiskID]*image
}

// image is one disk as a snapshot shows it.
type image struct {
	Disk  disk // as it was; Marks is empty
	Since uint64
	Lost  string // why Changed knows nothing, or empty
}

func (i *image) aside(snapshotID string) string {
	return "snapshot-" + snapshotID + "-" + i.Disk.UID + ".img"
}

func (i *image) moved(snapshotID string) string {
	return "snapshot-" + snapshotID + "-" + i.Disk.UID + ".moved"
}

// draft is a draft, and after its commit the record of it.
type draft struct {
	sdk.Draft
	OpID      string
	Space     sdk.Space
	Epoch     uint64
	Spec      sdk.DraftSpec
	Files     map[sdk.DiskID]*disk
	Committed sdk.MachineID
}

func newState() *state {
	return &state{
		Format:    format,
		Machines:  make(map[sdk.MachineID]*machine),
		Snapshots: make(map[string]*snapshot),
		Drafts:    make(map[string]*draft),
		Replicas:  make(map[sdk.ReplicaID]*replica),
		Instances: make(map[sdk.InstanceID]*instance),
		Made:      make(map[string]*network),
		Limits:    make(map[sdk.Space]*limits),
		Networks:  []string{"default", "isolated"},
		Pools:     []string{"default", "second"},
		Calls:     make(map[string]int),
		Pending:   make(map[string]int),
	}
}

func readState(s store) (*state, error) {
	doc, err := s.load()
	if err != nil {
		return nil, fmt.Errorf("read the state: %w", err)
	}
	st := newState()
	if doc == nil {
		return st, nil
	}
	if err := json.Unmarshal(doc, st); err != nil {
		return nil, fmt.Errorf("read the state: %w", err)
	}
	if st.Format != format {
		return nil, fmt.Errorf("read the state: format %d, want %d", st.Format, format)
	}
	return st, nil
}

// view runs look over the state while nobody changes it.
func (h *Hypervisor) view(look func(*state) error) error {
	unlock, err := h.store.rlock()
	if err != nil {
		return err
	}
	defer unlock()
	st, err := readState(h.store)
	if err != nil {
		return err
	}
	return look(st)
}

// discard has files removed after the state is saved that no longer knows them.
func (st *state) discard(names ...string) { st.garbage = append(st.garbage, names...) }

// sweep removes the files that the state does not know: nobody else is inside a
// change, so whoever made them, or was about to remove them, was killed.
func (h *Hypervisor) sweep() error {
	return h.change(func(st *state) error {
		known := make(map[string]bool)
		keep := func(d *disk) {
			for _, name := range d.files() {
				known[name] = true
			}
		}
		for _, m := range st.Machines {
			for _, d := range m.Files {
				keep(d)
			}
		}
		for _, draft := range st.Drafts {
			for _, d := range draft.Files {
				keep(d)
			}
		}
		for _, r := range st.Replicas {
			for _, pt := range r.Chain {
				for _, d := range pt.Files {
					keep(d)
				}
			}
			if r.Open != nil {
				for _, d := range r.Open.Files {
					keep(d)
				}
			}
		}
		for _, i := range st.Instances {
			if i.Kept != nil {
				for _, d := range i.Kept.Files {
					keep(d)
				}
			}
		}
		for id, snap := range st.Snapshots {
			for _, i := range snap.Disks {
				known[i.aside(id)], known[i.moved(id)] = true, true
			}
		}
		names, err := h.store.names()
		if err != nil {
			return err
		}
		for _, name := range names {
			if !known[name] {
				st.discard(name)
			}
		}
		return nil
	})
}

// change runs do over the state, alone, and saves the state if do succeeds. A
// process that is killed inside leaves the state of before or after; files that
// neither knows are swept by the next that opens the hypervisor.
func (h *Hypervisor) change(do func(*state) error) error {
	unlock, err := h.store.lock()
	if err != nil {
		return err
	}
	defer unlock()
	st, err := readState(h.store)
	if err != nil {
		return err
	}
	if err := do(st); err != nil {
		return err
	}
	doc, err := json.Marshal(st)
	if err != nil {
		return fmt.Errorf("encode the state: %w", err)
	}
	if err := h.store.save(doc); err != nil {
		return fmt.Errorf("save the state: %w", err)
	}
	for _, name := range st.garbage {
		if err := h.store.remove(name); err != nil {
			return fmt.Errorf("remove %s: %w", name, err)
		}
	}
	return nil
}

// machine finds a machine for op and records the epoch.
func (st *state) machine(op sdk.Op, id sdk.MachineID) (*machine, error) {
	m, ok := st.Machines[id]
	if !ok {
		return nil, sdk.Errorf(sdk.ErrNotFound, sdk.FaultBackend, "machine %s", id)
	}
	return m, admit(op, m.Space, &m.Epoch, "machine "+string(id))
}

// admit checks the space and the epoch of an Op and records the epoch.
func admit(op sdk.Op, space sdk.Space, epoch *uint64, what string) error {
	if op.ID == "" {
		return sdk.Errorf(sdk.ErrInvalid, sdk.FaultHost, "an operation on %s without an id", what)
	}
	if op.Space != "" && op.Space != space {
		return sdk.Errorf(sdk.ErrDenied, sdk.FaultHost, "%s is outside of space %q", what, op.Space)
	}
	if op.Epoch < *epoch {
		return sdk.Errorf(sdk.ErrFenced, sdk.FaultHost, "%s belongs to epoch %d, the call has %d", what, *epoch, op.Epoch)
	}
	*epoch = op.Epoch
	return nil
}

// openSnapshot is the snapshot that is open on a machine, if there is one.
func (st *state) openSnapshot(id sdk.MachineID) *snapshot {
	for _, s := range st.Snapshots {
		if s.Machine.ID == id {
			return s
		}
	}
	return nil
}

// newDisk makes the files of a disk.
func newDisk(s store, sizeBytes int64) (*disk, error) {
	d := &disk{UID: newID(), SizeBytes: sizeBytes, Generation: 1, Marks: make(map[string]uint64)}
	if err := s.create(d.image(), sizeBytes); err != nil {
		return nil, fmt.Errorf("make a disk: %w", err)
	}
	if err := s.create(d.table(), d.blocks()*entrySize); err != nil {
		return nil, fmt.Errorf("make a disk: %w", err)
	}
	return d, nil
}

// files are all that a disk can have.
func (d *disk) files() []string { return []string{d.image(), d.table(), d.writer()} }

// openFile opens a file of the store; one that is gone is ErrNotFound.
func openFile(s store, name, what string) (file, error) {
	f, err := s.open(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, sdk.Errorf(sdk.ErrNotFound, sdk.FaultBackend, "%s", what)
	}
	return f, err
}

// newID is a new UUIDv7, or panics if the system has no randomness left.
func newID() string { return uuid.Must(uuid.NewV7()).String() }

// now is the time that goes into the state: in microseconds, UTC.
func now() time.Time { return time.Now().UTC().Truncate(time.Microsecond) }
