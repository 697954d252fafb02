package sim

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"github.com/google/uuid"

	"github.com/holdfast-dr/holdfast/sdk"
)

// Limits of a simulated machine.
const (
	MaxDisks     = 128
	MaxDiskBytes = 64 << 40
)

// Hypervisor is a simulated back-end. Its methods are what an operator and a
// guest would do; Connect gives what a plugin sees. All may be called from
// several goroutines.
type Hypervisor struct {
	store  store
	memory memory // of breaches
}

// New makes a hypervisor in memory.
func New() *Hypervisor { return &Hypervisor{store: newMemoryStore()} }

// Open makes, or finds, a hypervisor in a directory. Its disks are sparse
// files there. What a process left that was killed in the middle of a call is
// removed.
func Open(dir string) (*Hypervisor, error) {
	s, err := newDirStore(dir)
	if err != nil {
		return nil, err
	}
	h := &Hypervisor{store: s}
	return h, h.sweep()
}

// MachineSpec is a machine to make. The zero value of every field works,
// except that a machine needs a name.
type MachineSpec struct {
	Name        string
	DiskBytes   []int64 // one disk each, called vda, vdb, …
	CPUs        int     // 0 means 1
	MemoryBytes int64   // 0 means 256 MiB
	Firmware    sdk.Firmware
	State       sdk.State // "" means off
	Tags        []string
	Networks    []string // one NIC each; nil means one in "default"
	Space       sdk.Space
}

// CreateMachine makes a machine with empty disks.
func (h *Hypervisor) CreateMachine(spec MachineSpec) (sdk.Machine, error) {
	m := sdk.Machine{
		Name:        spec.Name,
		Firmware:    spec.Firmware,
		State:       spec.State,
		CPUs:        max(spec.CPUs, 1),
		MemoryBytes: spec.MemoryBytes,
		Tags:        spec.Tags,
	}
	if m.Firmware == "" {
		m.Firmware = sdk.FirmwareBIOS
	}
	if m.State == "" {
		m.State = sdk.StateOff
	}
	if m.MemoryBytes == 0 {
		m.MemoryBytes = 256 << 20
	}
	if spec.Networks == nil {
		spec.Networks = []string{"default"}
	}
	for _, n := range spec.Networks {
		m.NICs = append(m.NICs, sdk.NIC{MAC: newMAC(), Network: n, Model: "virtio"})
	}
	for i, size := range spec.DiskBytes {
		name := diskName(i)
		m.Disks = append(m.Disks, sdk.Disk{ID: sdk.DiskID(name), Name: name, SizeBytes: size, Format: "raw", Pool: "default"})
	}
	if err := checkMachine(m); err != nil {
		return sdk.Machine{}, err
	}
	m.ID, m.UUID = sdk.MachineID(newID()), uuid.NewString()

	err := h.change(func(st *state) error {
		owned := &machine{Machine: m, Space: spec.Space, Files: make(map[sdk.DiskID]*disk)}
		for _, d := range m.Disks {
			made, err := newDisk(h.store, d.SizeBytes)
			if err != nil {
				return err
			}
			owned.Files[d.ID] = made
		}
		for _, n := range spec.Networks {
			if !slices.Contains(st.Networks, n) {
				st.Networks = append(st.Networks, n)
			}
		}
		st.Machines[m.ID] = owned
		m = owned.show()
		return nil
	})
	return m, err
}

// diskName is what a guest calls its i-th disk: vda to vdz, then vdaa.
func diskName(i int) string {
	letters := ""
	for ; i >= 0; i = i/26 - 1 {
		letters = string(rune('a'+i%26)) + letters
	}
	return "vd" + letters
}

// checkMachine refuses what no machine of this hypervisor can be.
func checkMachine(m sdk.Machine) error {
	invalid := func(format string, args ...any) error {
		return sdk.Errorf(sdk.ErrInvalid, sdk.FaultHost, format, args...)
	}
	if m.Name == "" || len(m.Name) > 255 {
		return invalid("a machine's name has 1 to 255 bytes")
	}
	if len(m.Disks) > MaxDisks {
		return invalid("machine %q has %d disks, at most %d are possible", m.Name, len(m.Disks), MaxDisks)
	}
	seen := make(map[sdk.DiskID]bool)
	for _, d := range m.Disks {
		switch {
		case d.ID == "" || seen[d.ID]:
			return invalid("the disks of machine %q need ids of their own", m.Name)
		case d.SizeBytes < 0 || d.SizeBytes > MaxDiskBytes || d.SizeBytes%512 != 0:
			return invalid("disk %s of machine %q has %d bytes; sizes are multiples of 512 up to %d", d.ID, m.Name, d.SizeBytes, int64(MaxDiskBytes))
		}
		seen[d.ID] = true
	}
	return nil
}

// show is the machine as the inventory has it.
func (m *machine) show() sdk.Machine {
	shown := m.Machine
	shown.Native = nil
	native, err := json.Marshal(map[string]any{"kind": "sim", "machine": shown})
	if err != nil {
		panic(err) // plain data always encodes
	}
	shown.Native = native
	return shown
}

// newMAC is a random address in the range that QEMU uses.
func newMAC() string {
	var b [3]byte
	if _, err := rand.Read(b[:]); err != nil {
		panic(err) // crypto/rand never fails
	}
	return fmt.Sprintf("52:54:00:%02x:%02x:%02x", b[0], b[1], b[2])
}

// Machines lists the machines by name.
func (h *Hypervisor) Machines() ([]sdk.Machine, error) {
	var list []sdk.Machine
	err := h.view(func(st *state) error {
		for _, m := range st.Machines {
			list = append(list, m.show())
		}
		return nil
	})
	slices.SortFunc(list, func(a, b sdk.Machine) int {
		return strings.Compare(a.Name+string(a.ID), b.Name+string(b.ID))
	})
	return list, err
}

// Find is the machine with an id or, if only one has it, a name.
func (h *Hypervisor) Find(idOrName string) (sdk.Machine, error) {
	list, err := h.Machines()
	if err != nil {
		return sdk.Machine{}, err
	}
	var found []sdk.Machine
	for _, m := range list {
		if string(m.ID) == idOrName {
			return m, nil
		}
		if m.Name == idOrName {
			found = append(found, m)
		}
	}
	switch len(found) {
	case 1:
		return found[0], nil
	case 0:
		return sdk.Machine{}, sdk.Errorf(sdk.ErrNotFound, sdk.FaultBackend, "machine %s", idOrName)
	default:
		return sdk.Machine{}, sdk.Errorf(sdk.ErrInvalid, sdk.FaultHost, "%d machines are called %q; name one by its id", len(found), idOrName)
	}
}

// DeleteMachine destroys a machine, its disks and what is open on it.
func (h *Hypervisor) DeleteMachine(id sdk.MachineID) error {
	return h.change(func(st *state) error {
		m, ok := st.Machines[id]
		if !ok {
			return sdk.Errorf(sdk.ErrNotFound, sdk.FaultBackend, "machine %s", id)
		}
		if s := st.openSnapshot(id); s != nil {
			if err := st.endSnapshot(h.store, s, false); err != nil {
				return err
			}
		}
		for _, d := range m.Files {
			st.discard(d.files()...)
		}
		maps.DeleteFunc(st.Drafts, func(_ string, d *draft) bool { return d.Committed == id })
		delete(st.Machines, id)
		return nil
	})
}

// SetState says what a machine is doing, as if somebody had switched it.
func (h *Hypervisor) SetState(id sdk.MachineID, to sdk.State) error {
	return h.change(func(st *state) error {
		m, ok := st.Machines[id]
		if !ok {
			return sdk.Errorf(sdk.ErrNotFound, sdk.FaultBackend, "machine %s", id)
		}
		m.State = to
		return nil
	})
}

// WriteDisk writes as the guest does: the change is tracked, and an open
// snapshot keeps what was there.
func (h *Hypervisor) WriteDisk(machineID sdk.MachineID, diskID sdk.DiskID, off int64, data []byte) error {
	// In pieces, so that a long write does not keep readers waiting.
	for len(data) > 0 {
		piece := data[:min(len(data), 1<<20)]
		if err := h.writePiece(machineID, diskID, off, piece); err != nil {
			return fmt.Errorf("write disk %s of machine %s: %w", diskID, machineID, err)
		}
		off, data = off+int64(len(piece)), data[len(piece):]
	}
	return nil
}

func (h *Hypervisor) writePiece(machineID sdk.MachineID, diskID sdk.DiskID, off int64, data []byte) error {
	unlock, err := h.store.lock()
	if err != nil {
		return err
	}
	defer unlock()
	st, err := readState(h.store)
	if err != nil {
		return err
	}
	d, err := st.disk(machineID, diskID)
	if err != nil {
		return err
	}
	if off < 0 || off+int64(len(data)) > d.SizeBytes {
		return sdk.Errorf(sdk.ErrInvalid, sdk.FaultHost, "%d bytes at %d are outside of %d", len(data), off, d.SizeBytes)
	}
	return st.guestWrite(h.store, machineID, diskID, d, off, data)
}

func (st *state) disk(machineID sdk.MachineID, diskID sdk.DiskID) (*disk, error) {
	m, ok := st.Machines[machineID]
	if !ok {
		return nil, sdk.Errorf(sdk.ErrNotFound, sdk.FaultBackend, "machine %s", machineID)
	}
	d, ok := m.Files[diskID]
	if !ok {
		return nil, sdk.Errorf(sdk.ErrNotFound, sdk.FaultBackend, "disk %s of machine %s", diskID, machineID)
	}
	return d, nil
}

// ReadDisk reads as the guest does.
func (h *Hypervisor) ReadDisk(machineID sdk.MachineID, diskID sdk.DiskID, off int64, data []byte) error {
	return h.view(func(st *state) error {
		d, err := st.disk(machineID, diskID)
		if err != nil {
			return err
		}
		f, err := openFile(h.store, d.image(), "disk "+string(diskID))
		if err != nil {
			return err
		}
		defer f.Close()
		_, err = f.ReadAt(data, off)
		return err
	})
}

// HashDisk is the SHA-256 of everything on a disk.
func (h *Hypervisor) HashDisk(machineID sdk.MachineID, diskID sdk.DiskID) ([sha256.Size]byte, error) {
	var sum [sha256.Size]byte
	err := h.view(func(st *state) error {
		d, err := st.disk(machineID, diskID)
		if err != nil {
			return err
		}
		f, err := openFile(h.store, d.image(), "disk "+string(diskID))
		if err != nil {
			return err
		}
		defer f.Close()
		hash := sha256.New()
		if _, err := io.Copy(hash, io.NewSectionReader(f, 0, d.SizeBytes)); err != nil {
			return err
		}
		hash.Sum(sum[:0])
		return nil
	})
	return sum, err
}

// LoseMarks makes every mark of a machine's disks worthless, as a storage
// migration would.
func (h *Hypervisor) LoseMarks(id sdk.MachineID) error {
	return h.change(func(st *state) error {
		m, ok := st.Machines[id]
		if !ok {
			return sdk.Errorf(sdk.ErrNotFound, sdk.FaultBackend, "machine %s", id)
		}
		for _, d := range m.Files {
			clear(d.Marks)
		}
		if s := st.openSnapshot(id); s != nil {
			for _, i := range s.Disks {
				i.Lost = "the hypervisor lost the marks of this machine"
			}
		}
		return nil
	})
}

// SetFaults exchanges the faults of every process that uses this hypervisor,
// and starts counting calls anew.
func (h *Hypervisor) SetFaults(faults ...Fault) error {
	for _, f := range faults {
		if err := f.check(); err != nil {
			return err
		}
	}
	return h.change(func(st *state) error {
		st.Faults, st.Calls, st.Pending = faults, make(map[string]int), make(map[string]int)
		return nil
	})
}

// Objects names everything that a plugin can leave at this hypervisor:
// machines, snapshots, drafts, marks, replicas, instances, networks and files. Equal before and after means
// that nothing was left behind.
func (h *Hypervisor) Objects() ([]string, error) {
	var list []string
	err := h.view(func(st *state) error {
		for id, m := range st.Machines {
			list = append(list, "machine "+string(id))
			for name, d := range m.Files {
				for mark := range d.Marks {
					list = append(list, fmt.Sprintf("mark %s of disk %s of machine %s", mark, name, id))
				}
			}
		}
		for id := range st.Snapshots {
			list = append(list, "snapshot "+id)
		}
		for id, d := range st.Drafts {
			if d.Committed == "" {
				list = append(list, "draft "+id)
			}
		}
		for id, r := range st.Replicas {
			list = append(list, "replica "+string(id))
			for _, pt := range r.Chain {
				list = append(list, "point "+string(pt.ID))
				for _, holder := range pt.Holders {
					list = append(list, fmt.Sprintf("hold %s of point %s", holder, pt.ID))
				}
			}
			if r.Open != nil {
				list = append(list, "draft "+r.Open.ID+" of a point")
			}
		}
		for id := range st.Instances {
			list = append(list, "instance "+string(id))
		}
		for name := range st.Made {
			list = append(list, "network "+name)
		}
		names, err := h.store.names()
		for _, n := range names {
			list = append(list, "file "+n)
		}
		return err
	})
	slices.Sort(list)
	return list, err
}

// errClosed is what every call on a closed Platform answers.
var errClosed = errors.New("the connection to the simulated hypervisor is closed")
