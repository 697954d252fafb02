package sim

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"sync"

	"github.com/google/uuid"

	"github.com/holdfast-dr/holdfast/sdk"
)

// CreateDraft makes the disks of a machine to be.
func (p *Platform) CreateDraft(ctx context.Context, op sdk.Op, spec sdk.DraftSpec) (sdk.Draft, error) {
	var made sdk.Draft
	err := p.during(ctx, "CreateDraft", op, func(bool) error {
		return p.hypervisor.change(func(st *state) error {
			for _, d := range st.Drafts {
				if d.OpID == op.ID {
					made = d.Draft
					return admit(op, d.Space, &d.Epoch, "draft "+d.ID)
				}
			}
			if err := st.checkSpec(op, spec); err != nil {
				return err
			}
			d := &draft{
				Draft: sdk.Draft{ID: newID()}, OpID: op.ID, Space: op.Space, Epoch: op.Epoch,
				Spec: spec, Files: make(map[sdk.DiskID]*disk),
			}
			for _, wanted := range spec.Machine.Disks {
				file, err := newDisk(p.hypervisor.store, wanted.SizeBytes)
				if err != nil {
					return err
				}
				if err := p.hypervisor.store.create(file.writer(), entrySize); err != nil {
					return err
				}
				d.Files[wanted.ID] = file
				d.Disks = append(d.Disks, wanted.ID)
			}
			st.Drafts[d.ID] = d
			made = d.Draft
			return nil
		})
	})
	return made, err
}

// checkSpec refuses what cannot become a machine, before anything is made.
func (st *state) checkSpec(op sdk.Op, spec sdk.DraftSpec) error {
	if op.ID == "" {
		return sdk.Errorf(sdk.ErrInvalid, sdk.FaultHost, "a draft without an operation id")
	}
	if err := checkMachine(spec.Machine); err != nil {
		return err
	}
	for _, nic := range spec.Machine.NICs {
		network := nic.Network
		if to, ok := spec.Networks[network]; ok {
			network = to
		}
		if !st.offers(op.Space, network) {
			return sdk.Errorf(sdk.ErrInvalid, sdk.FaultHost, "there is no network %q", network).
				WithHint("networks here: %s", strings.Join(st.networksOf(op.Space), ", "))
		}
	}
	if spec.Pool != "" && !slices.Contains(st.Pools, spec.Pool) {
		return sdk.Errorf(sdk.ErrInvalid, sdk.FaultHost, "there is no pool %q", spec.Pool).
			WithHint("pools here: %s", strings.Join(st.Pools, ", "))
	}
	if spec.Replace != "" {
		m, err := st.machine(op, spec.Replace)
		if err != nil {
			return err
		}
		return m.replaceable(st)
	}
	return nil
}

// replaceable refuses to exchange the disks of a machine in use.
func (m *machine) replaceable(st *state) error {
	if m.State != sdk.StateOff {
		return sdk.Errorf(sdk.ErrBusy, sdk.FaultHost, "machine %s is %s", m.ID, m.State).
			WithHint("stop the machine before restoring over it")
	}
	if s := st.openSnapshot(m.ID); s != nil {
		return sdk.Errorf(sdk.ErrBusy, sdk.FaultBackend, "machine %s has snapshot %s open", m.ID, s.ID)
	}
	for _, i := range st.Instances {
		if i.Machine == m.ID {
			return sdk.Errorf(sdk.ErrBusy, sdk.FaultBackend, "machine %s is instance %s of a replica", m.ID, i.ID)
		}
	}
	return nil
}

// draft finds a draft for op.
func (st *state) draft(op sdk.Op, id string) (*draft, error) {
	d, ok := st.Drafts[id]
	if !ok {
		return nil, sdk.Errorf(sdk.ErrNotFound, sdk.FaultBackend, "draft %s", id)
	}
	return d, admit(op, d.Space, &d.Epoch, "draft "+id)
}

// OpenDraftDisk opens a disk of a draft. The writer before it is fenced off by
// the number in the disk's writer file, which every write compares.
func (p *Platform) OpenDraftDisk(ctx context.Context, op sdk.Op, dr sdk.Draft, diskID sdk.DiskID) (sdk.BlockWriter, error) {
	var w *writer
	err := p.during(ctx, "OpenDraftDisk", op, func(bool) error {
		return p.hypervisor.change(func(st *state) error {
			d, err := st.draft(op, dr.ID)
			if err != nil {
				return err
			}
			if d.Committed != "" {
				return sdk.Errorf(sdk.ErrInvalid, sdk.FaultHost, "draft %s is committed as machine %s", d.ID, d.Committed)
			}
			file, ok := d.Files[diskID]
			if !ok {
				return sdk.Errorf(sdk.ErrNotFound, sdk.FaultBackend, "disk %s of draft %s", diskID, d.ID)
			}
			w, err = p.openWriter(file, nil)
			if err != nil {
				return fmt.Errorf("open disk %s of draft %s: %w", diskID, d.ID, err)
			}
			w.armed = p.armed(st)
			return nil
		})
	})
	if err != nil {
		return nil, err
	}
	return w, nil
}

// openWriter opens a disk of a draft; base is what it showed at first, or nil.
func (p *Platform) openWriter(d, base *disk) (*writer, error) {
	s := p.hypervisor.store
	turn, err := disconnect(s, d)
	if err != nil {
		return nil, err
	}
	w := &writer{platform: p, size: d.SizeBytes, turn: turn}
	if w.writer, err = s.open(d.writer()); err != nil {
		return nil, err
	}
	if w.image, err = s.open(d.image()); err != nil {
		_ = w.writer.Close()
		return nil, err
	}
	if w.Shape() == sdk.ShapeSequential {
		// It begins again, and what it skips has to read as zeroes, or the base.
		err := w.image.Punch(0, d.SizeBytes)
		if err == nil && base != nil {
			err = copyBytes(s, base, w.image, d.SizeBytes)
		}
		if err != nil {
			return nil, errors.Join(err, w.Close())
		}
	}
	return w, nil
}

// disconnect fences off whoever writes a disk and returns the next number.
func disconnect(s store, d *disk) (uint64, error) {
	f, err := s.open(d.writer())
	if err != nil {
		return 0, err
	}
	defer f.Close()
	turn, err := entryAt(f, 0)
	if err != nil {
		return 0, err
	}
	return turn + 1, putEntry(f, 0, turn+1)
}

// CommitDraft makes the draft's disks those of a machine.
func (p *Platform) CommitDraft(ctx context.Context, op sdk.Op, dr sdk.Draft) (sdk.MachineID, error) {
	var id sdk.MachineID
	err := p.during(ctx, "CommitDraft", op, func(bool) error {
		return p.hypervisor.change(func(st *state) error {
			d, err := st.draft(op, dr.ID)
			if err != nil {
				return err
			}
			if d.Committed == "" {
				if err := st.commit(p.hypervisor.store, op, d); err != nil {
					return err
				}
			}
			id = d.Committed
			return nil
		})
	})
	return id, err
}

func (st *state) commit(s store, op sdk.Op, d *draft) error {
	m := &machine{Machine: d.Spec.Machine, Space: d.Space, Epoch: op.Epoch}
	m.ID, m.UUID, m.Disks = sdk.MachineID(newID()), uuid.NewString(), slices.Clone(d.Spec.Machine.Disks)
	m.NICs = slices.Clone(d.Spec.Machine.NICs)
	for i := range m.NICs {
		m.NICs[i].MAC = newMAC()
	}
	if d.Spec.Replace != "" {
		old, err := st.machine(op, d.Spec.Replace)
		if err != nil {
			return err
		}
		if err := old.replaceable(st); err != nil {
			return err
		}
		for _, f := range old.Files {
			st.discard(f.files()...)
		}
		m.ID, m.UUID, m.NICs = old.ID, old.UUID, old.NICs
		m.Space, m.Epoch = old.Space, old.Epoch
	} else {
		for i, nic := range m.NICs {
			if to, ok := d.Spec.Networks[nic.Network]; ok {
				m.NICs[i].Network = to
			}
		}
	}
	for i := range m.Disks {
		m.Disks[i].Format, m.Disks[i].Pool = "raw", "default"
		if d.Spec.Pool != "" {
			m.Disks[i].Pool = d.Spec.Pool
		}
	}
	m.State, m.Native, m.Files = sdk.StateOff, nil, d.Files
	for _, f := range d.Files {
		if _, err := disconnect(s, f); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		st.discard(f.writer())
	}
	st.Machines[m.ID] = m
	d.Committed, d.Files = m.ID, nil
	return nil
}

// AbortDraft removes a draft and its disks.
func (p *Platform) AbortDraft(ctx context.Context, op sdk.Op, dr sdk.Draft) error {
	return p.during(ctx, "AbortDraft", op, func(bool) error {
		return p.hypervisor.change(func(st *state) error {
			if _, ok := st.Drafts[dr.ID]; !ok {
				return nil
			}
			d, err := st.draft(op, dr.ID)
			if err != nil {
				return err
			}
			if d.Committed != "" {
				return sdk.Errorf(sdk.ErrInvalid, sdk.FaultHost, "draft %s is committed as machine %s", d.ID, d.Committed)
			}
			for _, f := range d.Files {
				if _, err := disconnect(p.hypervisor.store, f); err != nil && !errors.Is(err, fs.ErrNotExist) {
					return err
				}
				st.discard(f.files()...)
			}
			delete(st.Drafts, dr.ID)
			return nil
		})
	})
}

// writer writes one disk of a draft.
type writer struct {
	platform *Platform
	image    file
	writer   file
	size     int64
	turn     uint64 // fenced off when the writer file has another
	armed    bool

	mutex sync.Mutex // guards next
	next  int64      // sequential: where the next write may begin
}

func (w *writer) Size() int64      { return w.size }
func (w *writer) Shape() sdk.Shape { return w.platform.settings.Shape }

func (w *writer) WriteAt(data []byte, off int64) (n int, err error) {
	err = w.do("WriteAt", off, int64(len(data)), func() error {
		n, err = w.image.WriteAt(data, off)
		return err
	})
	if err != nil {
		return 0, err
	}
	return n, nil
}

func (w *writer) Zero(off, n int64) error {
	return w.do("Zero", off, n, func() error { return w.image.Punch(off, n) })
}

func (w *writer) Flush() error {
	return w.do("Flush", 0, 0, w.image.Sync)
}

// do is one call of a writer: not fenced, inside the disk, in order.
func (w *writer) do(call string, off, n int64, work func() error) error {
	guarded := func(bool) error {
		if err := w.platform.turn(); err != nil {
			return err
		}
		unlock, err := w.platform.hypervisor.store.rlock()
		if err != nil {
			return err
		}
		defer unlock()
		turn, err := entryAt(w.writer, 0)
		if err != nil {
			return err
		}
		if turn != w.turn {
			return sdk.Errorf(sdk.ErrFenced, sdk.FaultHost, "the disk was opened again, committed or aborted")
		}
		if off < 0 || n < 0 || off+n > w.size {
			return sdk.Errorf(sdk.ErrInvalid, sdk.FaultHost, "%d bytes at %d are outside of %d", n, off, w.size)
		}
		if w.Shape() == sdk.ShapeSequential && call != "Flush" {
			if err := w.advance(off, n); err != nil {
				return err
			}
		}
		return work()
	}
	if !w.armed {
		return guarded(false)
	}
	return w.platform.during(context.Background(), call, sdk.Op{}, guarded)
}

func (w *writer) advance(off, n int64) error {
	w.mutex.Lock()
	defer w.mutex.Unlock()
	if off < w.next {
		return sdk.Errorf(sdk.ErrInvalid, sdk.FaultHost, "write at %d after %d: this disk is written in ascending order", off, w.next)
	}
	w.next = off + n
	return nil
}

func (w *writer) Close() error { return errors.Join(w.image.Close(), w.writer.Close()) }
