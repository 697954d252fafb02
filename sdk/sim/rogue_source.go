package sim

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/holdfast-dr/holdfast/sdk"
)

// padding makes a mark too long.
var padding = bytes.Repeat([]byte(" "), sdk.MaxMark)

// Snapshot takes a snapshot.
func (r *rogue) Snapshot(ctx context.Context, op sdk.Op, req sdk.SnapshotRequest) (sdk.Snapshot, error) {
	leave, crowded := r.crowded(BreachParallelSnapshotIsBusy, op.ID)
	defer leave()
	if crowded {
		return sdk.Snapshot{}, sdk.Errorf(sdk.ErrBusy, sdk.FaultBackend, "snapshot %s is being taken", op.ID)
	}
	if err := r.beforeSnapshot(ctx, &op, &req); err != nil {
		return sdk.Snapshot{}, err
	}
	op = r.early(BreachSnapshotFencedEarly, op, machineEpoch(req.Machine))
	var snap sdk.Snapshot
	err := r.locked(BreachSnapshotLocks, op, func() (err error) {
		snap, err = r.Platform.Snapshot(ctx, op, req)
		return err
	})
	if r.breach == BreachSecondSnapshotEndsIt && errors.Is(err, sdk.ErrBusy) {
		if err := r.endOpen(req.Machine); err != nil {
			return snap, err
		}
		snap, err = r.Platform.Snapshot(ctx, op, req)
	}
	if err != nil {
		return snap, err
	}
	return r.afterSnapshot(op, req, snap)
}

// beforeSnapshot changes what is asked for, or refuses it.
func (r *rogue) beforeSnapshot(ctx context.Context, op *sdk.Op, req *sdk.SnapshotRequest) error {
	var m *machine
	var open *snapshot
	_ = r.hypervisor.view(func(st *state) error {
		m, open = st.Machines[req.Machine], st.openSnapshot(req.Machine)
		return nil
	})
	if m == nil {
		return nil
	}
	exists := func(id sdk.DiskID) bool { return m.Files[id] != nil }
	switch r.breach {
	case BreachCancelledSnapshotStays:
		if ctx.Err() != nil {
			stays := *op
			stays.ID += "?"
			_, _ = r.Platform.Snapshot(context.WithoutCancel(ctx), stays, *req)
		}
	case BreachProgressFalls:
		if n := r.memory.add("pending "+op.ID, 1); n < 3 {
			e := sdk.Errorf(sdk.ErrPending, sdk.FaultBackend, "taking a snapshot")
			e.Progress, e.After = 1/float64(n+1), time.Millisecond
			return e
		}
	case BreachUnknownDiskLeftOut:
		if req.Disks = slices.DeleteFunc(slices.Clone(req.Disks), func(id sdk.DiskID) bool { return !exists(id) }); len(req.Disks) == 0 {
			req.Disks = nil
		}
	case BreachAllDisksAnyway:
		if !slices.ContainsFunc(req.Disks, func(id sdk.DiskID) bool { return !exists(id) }) {
			req.Disks = nil
		}
	case BreachNewerClaimIsBusy:
		if open != nil && open.OpID != op.ID && open.Epoch < op.Epoch {
			return sdk.Errorf(sdk.ErrBusy, sdk.FaultBackend, "snapshot %s is open", open.ID)
		}
	case BreachEndedStaysInTheWay:
		if open == nil && r.memory.get("ended "+string(req.Machine)) == op.Epoch {
			return sdk.Errorf(sdk.ErrBusy, sdk.FaultBackend, "a snapshot was open")
		}
	case BreachSnapshotWithoutID:
		if op.ID == "" {
			op.ID = newID()
		}
	case BreachWritesUntracked:
		return r.hypervisor.change(func(st *state) error { st.Lossy = true; return nil })
	case BreachMarkTooLong, BreachForeignMarkTaken:
		since := make(map[sdk.DiskID]sdk.Mark)
		for id, mark := range req.Since {
			since[id] = r.taken(m.Files[id], mark)
		}
		req.Since = since
	}
	return nil
}

// taken is a mark as the platform takes it.
func (r *rogue) taken(d *disk, mark sdk.Mark) sdk.Mark {
	if r.breach == BreachMarkTooLong {
		return bytes.TrimSuffix(mark, padding)
	}
	part := strings.Split(string(mark), " ")
	if d == nil || len(part) != 5 || part[1] == d.UID || d.Marks[part[4]] == 0 {
		return mark
	}
	return fmt.Appendf(nil, "sim1 %s %d %d %s", d.UID, d.SizeBytes, d.Marks[part[4]], part[4])
}

// afterSnapshot changes what is answered.
func (r *rogue) afterSnapshot(op sdk.Op, req sdk.SnapshotRequest, snap sdk.Snapshot) (sdk.Snapshot, error) {
	r.memory.set("taken "+snap.ID, true)
	switch r.breach {
	case BreachRepeatDatedAnew:
		if n := r.memory.add("dated "+op.ID, 1); n > 1 {
			snap.Taken = snap.Taken.Add(time.Duration(n) * time.Second)
		}
	case BreachNoteMissing:
		snap.Note = ""
	case BreachFailedRunTakesMark:
		r.memory.set("since "+snap.ID, req.Since)
	case BreachMarkTooLong:
		for id, mark := range snap.Marks {
			snap.Marks[id] = append(slices.Clone(mark), padding...)
		}
	case BreachTwoMoments:
		return snap, r.refreeze(snap)
	}
	return snap, nil
}

// refreeze has the second disk show a later moment, if the guest is writing.
func (r *rogue) refreeze(snap sdk.Snapshot) error {
	if len(snap.Machine.Disks) < 2 {
		return nil
	}
	id := snap.Machine.Disks[1].ID
	before, now := make([]byte, 4096), make([]byte, 4096)
	if err := r.hypervisor.ReadDisk(snap.Machine.ID, id, 0, before); err != nil {
		return err
	}
	for range 10 {
		r.wait(2 * time.Millisecond)
		if err := r.hypervisor.ReadDisk(snap.Machine.ID, id, 0, now); err != nil {
			return err
		}
	}
	if bytes.Equal(before, now) {
		return nil
	}
	return r.hypervisor.change(func(st *state) error {
		i, err := st.image(snap, id)
		if err != nil {
			return err
		}
		return r.hypervisor.store.create(i.moved(snap.ID), movedHeader+i.Disk.blocks()*entrySize)
	})
}

func (r *rogue) endOpen(id sdk.MachineID) error {
	return r.hypervisor.change(func(st *state) error {
		if open := st.openSnapshot(id); open != nil {
			return st.endSnapshot(r.hypervisor.store, open, false)
		}
		return nil
	})
}

// EndSnapshot ends a snapshot.
func (r *rogue) EndSnapshot(ctx context.Context, op sdk.Op, snap sdk.Snapshot, keep bool) error {
	op = r.lifted(BreachOlderClaimEnds, op, machineEpoch(snap.Machine.ID))
	err := r.locked(BreachEndLocks, op, func() error { return r.Platform.EndSnapshot(ctx, op, snap, keep) })
	if err != nil {
		return err
	}
	if r.memory.get("taken "+snap.ID) != nil {
		r.memory.set("over "+snap.ID, true)
	}
	switch r.breach {
	case BreachEndedStaysInTheWay:
		r.memory.set("ended "+string(snap.Machine.ID), op.Epoch)
	case BreachFailedRunTakesMark:
		since, _ := r.memory.get("since " + snap.ID).(map[sdk.DiskID]sdk.Mark)
		r.memory.set("since "+snap.ID, nil)
		for id, mark := range since {
			if !keep {
				err = errors.Join(err, r.Platform.ReleaseMark(ctx, op, snap.Machine.ID, id, mark))
			}
		}
		return err
	case BreachFailedRunLeavesFile:
		for _, d := range snap.Machine.Disks {
			if keep || r.memory.get("read "+snap.ID+string(d.ID)) == nil {
				return nil
			}
		}
		return r.litter(snap.ID)
	case BreachKeptRunLeavesFile:
		if keep {
			return r.litter(snap.ID)
		}
	}
	return nil
}

// OpenDisk opens a disk.
func (r *rogue) OpenDisk(ctx context.Context, snap sdk.Snapshot, id sdk.DiskID) (sdk.BlockReader, error) {
	key := snap.ID + string(id)
	switch r.breach {
	case BreachGivenUpReaderStays:
		if r.memory.get("given up "+key) != nil {
			return nil, sdk.Errorf(sdk.ErrBusy, sdk.FaultBackend, "disk %s was given up", id)
		}
	case BreachKilledReaderStays:
		if reader, ok := r.memory.get("reader " + key).(*Platform); ok && reader.turnIsOver() {
			return nil, sdk.Errorf(sdk.ErrBusy, sdk.FaultBackend, "disk %s is being read", id)
		}
		r.memory.set("reader "+key, r.Platform)
	}
	opened, err := r.Platform.OpenDisk(ctx, snap, id)
	if err != nil {
		return nil, err
	}
	r.memory.set("read "+key, true)
	second := r.memory.add("opened "+key, 1) > 1
	return &rogueReader{BlockReader: opened, rogue: r, machine: snap.Machine.ID, disk: id, key: key,
		live: r.breach == BreachSecondOpeningIsLive && second}, nil
}

// turnIsOver reports whether the process was killed.
func (p *Platform) turnIsOver() bool {
	select {
	case <-p.process.killed:
		return true
	default:
		return false
	}
}

// rogueReader reads one disk of a snapshot.
type rogueReader struct {
	sdk.BlockReader
	rogue   *rogue
	machine sdk.MachineID
	disk    sdk.DiskID
	key     string
	live    bool
	long    atomic.Bool // the last piece was large, and not the end
}

func (r *rogueReader) ReadAt(p []byte, off int64) (int, error) {
	if r.rogue.breach == BreachReadsRounded {
		return r.BlockReader.ReadAt(p, off&^511)
	}
	n, err := r.BlockReader.ReadAt(p, off)
	r.long.Store(len(p) >= 1<<20 && off+int64(n) < r.Size())
	over := r.rogue.breach == BreachDiskOutlivesSnapshot && errors.Is(err, sdk.ErrNotFound)
	if over {
		n, err = len(p), nil
	}
	if (over || r.live) && n > 0 {
		if err := r.rogue.hypervisor.ReadDisk(r.machine, r.disk, off, p[:n]); err != nil {
			return 0, err
		}
	}
	return n, err
}

func (r *rogueReader) Extents(ctx context.Context, off, n int64) iter.Seq2[sdk.Extent, error] {
	return func(yield func(sdk.Extent, error) bool) {
		first := true
		for e, err := range r.BlockReader.Extents(ctx, off, n) {
			if first && err == nil && r.rogue.breach == BreachExtentsHaveGap {
				first = false
				continue
			}
			if !yield(e, err) {
				return
			}
		}
	}
}

func (r *rogueReader) Close() error {
	if r.long.Load() {
		r.rogue.memory.set("given up "+r.key, true)
	}
	return r.BlockReader.Close()
}

// Changed lists what changed.
func (r *rogue) Changed(ctx context.Context, snap sdk.Snapshot, id sdk.DiskID) iter.Seq2[sdk.Extent, error] {
	return func(yield func(sdk.Extent, error) bool) {
		known := slices.ContainsFunc(snap.Machine.Disks, func(d sdk.Disk) bool { return d.ID == id })
		if r.breach == BreachUnknownDiskUnchanged && !known || r.breach == BreachEndedIsUnchanged && r.memory.get("over "+snap.ID) != nil {
			return
		}
		if err := r.lookLocked(BreachChangedLocks, "the changes of "+snap.ID); err != nil {
			yield(sdk.Extent{}, err)
			return
		}
		leave, crowded := r.crowded(BreachParallelChangesCut, snap.ID)
		defer leave()
		for e, err := range r.Platform.Changed(ctx, snap, id) {
			if crowded && err == nil {
				crowded = false
				continue
			}
			if !yield(e, err) {
				return
			}
		}
	}
}

// ReleaseMark releases a mark.
func (r *rogue) ReleaseMark(ctx context.Context, op sdk.Op, id sdk.MachineID, diskID sdk.DiskID, mark sdk.Mark) error {
	op = r.lifted(BreachOlderClaimReleases, op, machineEpoch(id))
	switch {
	case r.breach == BreachMarkTooLong:
		mark = bytes.TrimSuffix(mark, padding)
	case r.breach == BreachUnknownMarkTakesAll && !bytes.HasPrefix(mark, []byte("sim1 ")):
		return r.hypervisor.LoseMarks(id)
	}
	return r.locked(BreachReleaseLocks, op, func() error { return r.Platform.ReleaseMark(ctx, op, id, diskID, mark) })
}
