package sim

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"strconv"
	"strings"

	"github.com/holdfast-dr/holdfast/sdk"
)

// Snapshot closes a generation of every disk, at one moment.
func (p *Platform) Snapshot(ctx context.Context, op sdk.Op, req sdk.SnapshotRequest) (sdk.Snapshot, error) {
	var snap sdk.Snapshot
	err := p.during(ctx, "Snapshot", op, func(bool) error {
		return p.hypervisor.change(func(st *state) error {
			m, err := st.machine(op, req.Machine)
			if err != nil {
				return err
			}
			if open := st.openSnapshot(req.Machine); open != nil {
				switch {
				case open.OpID == op.ID:
					snap = open.Snapshot
					return nil
				case open.Epoch >= op.Epoch:
					return sdk.Errorf(sdk.ErrBusy, sdk.FaultBackend, "machine %s has snapshot %s open", req.Machine, open.ID).
						WithHint("end that snapshot first; a run with a newer claim ends it by itself")
				}
				// An older claim's: the run that took it is over.
				if err := st.endSnapshot(p.hypervisor.store, open, false); err != nil {
					return err
				}
			}
			made, err := st.snapshot(p.hypervisor.store, m, op, req)
			if err != nil {
				return err
			}
			made.Achieved, made.Note = p.quiesce(m.State, req.Quiesce)
			st.Snapshots[made.ID] = made
			snap = made.Snapshot
			return nil
		})
	})
	return snap, err
}

// quiesce says how still a machine got.
func (p *Platform) quiesce(state sdk.State, want sdk.Quiesce) (sdk.Quiesce, string) {
	rank := map[sdk.Quiesce]int{sdk.QuiesceNone: 0, sdk.QuiesceFileSystem: 1, sdk.QuiesceApplication: 2}
	if want == "" {
		want = sdk.QuiesceNone
	}
	if state != sdk.StateRunning || rank[want] <= rank[p.settings.Quiesce] {
		return want, ""
	}
	return p.settings.Quiesce, fmt.Sprintf("The guest can do no more than %s.", p.settings.Quiesce)
}

// snapshot makes the tables of a new snapshot and moves the disks on to their
// next generation.
func (st *state) snapshot(s store, m *machine, op sdk.Op, req sdk.SnapshotRequest) (*snapshot, error) {
	chosen, err := choose(m, req.Disks)
	if err != nil {
		return nil, err
	}
	made := &snapshot{OpID: op.ID, Epoch: op.Epoch, Disks: make(map[sdk.DiskID]*image)}
	made.ID, made.Taken, made.Marks = newID(), now(), make(map[sdk.DiskID]sdk.Mark)
	made.Machine = m.show()
	made.Machine.Disks = chosen
	for _, shown := range chosen {
		d := m.Files[shown.ID]
		i := &image{Disk: *d}
		i.Disk.Marks = nil
		i.Since, i.Lost = d.since(req.Since[shown.ID])
		if err := s.create(i.aside(made.ID), d.SizeBytes); err != nil {
			return nil, fmt.Errorf("make snapshot of disk %s: %w", shown.ID, err)
		}
		if err := s.create(i.moved(made.ID), movedHeader+d.blocks()*entrySize); err != nil {
			return nil, fmt.Errorf("make snapshot of disk %s: %w", shown.ID, err)
		}
		made.Marks[shown.ID] = d.mark(made.ID)
		d.Generation++
		made.Disks[shown.ID] = i
	}
	return made, nil
}

// choose is the disks of a request, in the machine's order.
func choose(m *machine, want []sdk.DiskID) ([]sdk.Disk, error) {
	wanted := make(map[sdk.DiskID]bool)
	for _, id := range want {
		if _, ok := m.Files[id]; !ok {
			return nil, sdk.Errorf(sdk.ErrNotFound, sdk.FaultBackend, "disk %s of machine %s", id, m.ID)
		}
		wanted[id] = true
	}
	var chosen []sdk.Disk
	for _, d := range m.Disks {
		switch {
		case want == nil && d.Skip == "", wanted[d.ID]:
			chosen = append(chosen, d)
		}
	}
	return chosen, nil
}

// A mark is "sim1", the disk's UID, its size, the generation that it closed
// and the snapshot that it came from.

func (d *disk) mark(snapshotID string) sdk.Mark {
	d.Marks[snapshotID] = d.Generation
	return fmt.Appendf(nil, "sim1 %s %d %d %s", d.UID, d.SizeBytes, d.Generation, snapshotID)
}

// since is the generation of a mark, or why it is worth nothing.
func (d *disk) since(mark sdk.Mark) (generation uint64, lost string) {
	if len(mark) == 0 {
		return 0, "the snapshot's request named no mark"
	}
	part := strings.Split(string(mark), " ")
	if len(part) != 5 || part[0] != "sim1" {
		return 0, "the mark is not one of this hypervisor"
	}
	if part[1] != d.UID || part[2] != strconv.FormatInt(d.SizeBytes, 10) {
		return 0, "the mark is one of another disk, or of another size"
	}
	generation, ok := d.Marks[part[4]]
	if !ok || strconv.FormatUint(generation, 10) != part[3] {
		return 0, "the mark is no longer kept"
	}
	return generation, ""
}

// OpenDisk opens one disk of a snapshot.
func (p *Platform) OpenDisk(ctx context.Context, snap sdk.Snapshot, diskID sdk.DiskID) (sdk.BlockReader, error) {
	var r *reader
	err := p.during(ctx, "OpenDisk", sdk.Op{ID: snap.ID}, func(bool) error {
		return p.hypervisor.view(func(st *state) error {
			i, err := st.image(snap, diskID)
			if err != nil {
				return err
			}
			shown, err := openPicture(p.hypervisor.store, snap.ID, i)
			if err != nil {
				return err
			}
			r = &reader{platform: p, picture: shown, armed: p.armed(st)}
			return nil
		})
	})
	if err != nil {
		return nil, err
	}
	return r, nil
}

// armed reports whether any fault waits for calls of disks. Disks look once,
// when they are opened, for they are called often.
func (p *Platform) armed(st *state) bool {
	for _, call := range diskCalls {
		for _, faults := range [][]Fault{p.settings.Faults, st.Faults} {
			for _, f := range faults {
				if f.Call == call {
					return true
				}
			}
		}
	}
	return false
}

func (st *state) image(snap sdk.Snapshot, diskID sdk.DiskID) (*image, error) {
	open, ok := st.Snapshots[snap.ID]
	if !ok {
		return nil, sdk.Errorf(sdk.ErrNotFound, sdk.FaultBackend, "snapshot %s", snap.ID)
	}
	i, ok := open.Disks[diskID]
	if !ok {
		return nil, sdk.Errorf(sdk.ErrNotFound, sdk.FaultBackend, "disk %s of snapshot %s", diskID, snap.ID)
	}
	return i, nil
}

// EndSnapshot drops what the snapshot kept aside.
func (p *Platform) EndSnapshot(ctx context.Context, op sdk.Op, snap sdk.Snapshot, keep bool) error {
	return p.during(ctx, "EndSnapshot", op, func(bool) error {
		return p.hypervisor.change(func(st *state) error {
			open, ok := st.Snapshots[snap.ID]
			if !ok {
				return nil
			}
			if _, err := st.machine(op, open.Machine.ID); err != nil {
				return err
			}
			return st.endSnapshot(p.hypervisor.store, open, keep)
		})
	})
}

// endSnapshot first tells readers that it is over, then removes the files.
func (st *state) endSnapshot(s store, snap *snapshot, keep bool) error {
	for id, i := range snap.Disks {
		if f, err := s.open(i.moved(snap.ID)); err == nil {
			err = errors.Join(putEntry(f, 0, 1), f.Close())
			if err != nil {
				return fmt.Errorf("end snapshot %s: %w", snap.ID, err)
			}
		}
		st.discard(i.aside(snap.ID), i.moved(snap.ID))
		if m, ok := st.Machines[snap.Machine.ID]; ok && !keep {
			if d, ok := m.Files[id]; ok {
				delete(d.Marks, snap.ID)
			}
		}
	}
	delete(st.Snapshots, snap.ID)
	return nil
}

// Changed lists what changed between the mark in the request and the snapshot.
func (p *Platform) Changed(ctx context.Context, snap sdk.Snapshot, diskID sdk.DiskID) iter.Seq2[sdk.Extent, error] {
	return func(yield func(sdk.Extent, error) bool) {
		var shown *picture
		var since uint64
		lies := false
		err := p.during(ctx, "Changed", sdk.Op{ID: snap.ID}, func(lie bool) error {
			lies = lie
			return p.hypervisor.view(func(st *state) error {
				i, err := st.image(snap, diskID)
				if err != nil {
					return err
				}
				if i.Lost != "" {
					return sdk.Errorf(sdk.ErrMarkLost, sdk.FaultBackend, "disk %s: %s", diskID, i.Lost)
				}
				since = i.Since
				shown, err = openPicture(p.hypervisor.store, snap.ID, i)
				return err
			})
		})
		if err != nil {
			yield(sdk.Extent{}, err)
			return
		}
		defer shown.close()
		for e, err := range shown.changed(since) {
			if err == nil {
				err = ctx.Err()
			}
			if lies && err == nil {
				lies = false
				continue
			}
			if !yield(e, err) || err != nil {
				return
			}
		}
	}
}

// ReleaseMark forgets a mark. The generations stay, so younger marks do too.
func (p *Platform) ReleaseMark(ctx context.Context, op sdk.Op, id sdk.MachineID, diskID sdk.DiskID, mark sdk.Mark) error {
	return p.during(ctx, "ReleaseMark", op, func(bool) error {
		return p.hypervisor.change(func(st *state) error {
			if _, ok := st.Machines[id]; !ok {
				return nil
			}
			m, err := st.machine(op, id)
			if err != nil {
				return err
			}
			part := strings.Split(string(mark), " ")
			if d, ok := m.Files[diskID]; ok && len(part) == 5 && part[1] == d.UID {
				delete(d.Marks, part[4])
			}
			return nil
		})
	})
}

// reader reads one disk of a snapshot.
type reader struct {
	platform *Platform
	picture  *picture
	armed    bool
}

func (r *reader) Size() int64 { return r.picture.size }

func (r *reader) ReadAt(data []byte, off int64) (n int, err error) {
	if err := r.platform.turn(); err != nil {
		return 0, err
	}
	if !r.armed {
		return r.picture.readAt(data, off)
	}
	fault := r.platform.during(context.Background(), "ReadAt", sdk.Op{}, func(bool) error {
		n, err = r.picture.readAt(data, off)
		return nil
	})
	if fault != nil {
		return 0, fault
	}
	return n, err
}

func (r *reader) Extents(ctx context.Context, off, n int64) iter.Seq2[sdk.Extent, error] {
	return func(yield func(sdk.Extent, error) bool) {
		if r.armed {
			if err := r.platform.during(ctx, "Extents", sdk.Op{}, func(bool) error { return nil }); err != nil {
				yield(sdk.Extent{}, err)
				return
			}
		}
		for e, err := range r.picture.extents(off, n) {
			if err == nil {
				err = ctx.Err()
			}
			if !yield(e, err) || err != nil {
				return
			}
		}
	}
}

func (r *reader) Close() error {
	r.picture.close()
	return nil
}
