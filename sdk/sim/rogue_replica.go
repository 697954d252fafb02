package sim

import (
	"context"
	"errors"
	"io"
	"iter"
	"slices"
	"sync/atomic"

	"github.com/holdfast-dr/holdfast/sdk"
)

// replicaOf is a replica as the state has it now, or nil.
func (r *rogue) replicaOf(id sdk.ReplicaID) (found *replica) {
	_ = r.hypervisor.view(func(st *state) error { found = st.Replicas[id]; return nil })
	return found
}

func replicaEpoch(id sdk.ReplicaID) func(*state) uint64 {
	return func(st *state) uint64 {
		if r, ok := st.Replicas[id]; ok {
			return r.Epoch
		}
		return 0
	}
}

// Replicas lists.
func (r *rogue) Replicas(ctx context.Context, space sdk.Space) iter.Seq2[sdk.Replica, error] {
	return func(yield func(sdk.Replica, error) bool) {
		for listed, err := range r.Platform.Replicas(ctx, space) {
			if r.breach == BreachPointDraftUnlisted {
				listed.Draft = nil
			}
			if !yield(listed, err) {
				return
			}
		}
	}
}

// CreateReplica makes a replica.
func (r *rogue) CreateReplica(ctx context.Context, op sdk.Op, spec sdk.ReplicaSpec) (sdk.Replica, error) {
	if r.breach == BreachRunningSeedTaken && spec.Seed != "" {
		_ = r.hypervisor.SetState(spec.Seed, sdk.StateOff) // it may be a replica by now
	}
	return r.Platform.CreateReplica(ctx, op, spec)
}

// DraftPoint opens a draft.
func (r *rogue) DraftPoint(ctx context.Context, op sdk.Op, spec sdk.PointSpec) (sdk.PointDraft, error) {
	leave, crowded := r.crowded(BreachParallelPointDraftBusy, op.ID)
	defer leave()
	if crowded {
		return sdk.PointDraft{}, sdk.Errorf(sdk.ErrBusy, sdk.FaultBackend, "replica %s is being drafted", spec.Replica)
	}
	before := r.replicaOf(spec.Replica)
	if r.breach == BreachAnyBase && before != nil && len(before.Chain) > 0 {
		if _, err := before.point(spec.Base); err == nil {
			spec.Base = before.Chain[len(before.Chain)-1].ID
		}
	}
	draft := func() (made sdk.PointDraft, err error) {
		err = r.locked(BreachDraftPointLocks, op, func() error {
			made, err = r.Platform.DraftPoint(ctx, op, spec)
			return err
		})
		return made, err
	}
	made, err := draft()
	switch {
	case r.breach == BreachSecondPointDraftEnds && errors.Is(err, sdk.ErrBusy) && before.Open != nil:
		err = r.hypervisor.change(func(st *state) error { return st.abortPoint(r.hypervisor.store, st.Replicas[spec.Replica]) })
		if err == nil {
			made, err = draft()
		}
	case r.breach == BreachTooManyPoints && errors.Is(err, sdk.ErrBusy) && before.Open == nil:
		err = r.hypervisor.change(func(st *state) error { st.Replicas[spec.Replica].MaxPoints++; return nil })
		if err == nil {
			made, err = draft()
		}
	case r.breach == BreachGrownEndIsNotZero && err == nil && len(before.Chain) > 0:
		err = r.dirtyEnds(spec, before.Chain[len(before.Chain)-1])
	}
	return made, err
}

// dirtyEnds writes behind the old end of the disks of a draft that grew.
func (r *rogue) dirtyEnds(spec sdk.PointSpec, base *point) error {
	open := r.replicaOf(spec.Replica).Open
	for id, d := range open.Files {
		old, ok := base.Files[id]
		if !ok || d.SizeBytes == old.SizeBytes {
			continue
		}
		f, err := r.hypervisor.store.open(d.image())
		if err != nil {
			return err
		}
		dirt := make([]byte, d.SizeBytes-old.SizeBytes)
		for i := range dirt {
			dirt[i] = 0xdd
		}
		_, err = f.WriteAt(dirt, old.SizeBytes)
		if err := errors.Join(err, f.Close()); err != nil {
			return err
		}
	}
	return nil
}

// OpenPointDraftDisk opens a disk of a draft.
func (r *rogue) OpenPointDraftDisk(ctx context.Context, op sdk.Op, draft sdk.PointDraft, id sdk.DiskID) (sdk.PointWriter, error) {
	key := draft.ID + string(id)
	if writer, ok := r.memory.get("writer " + key).(*Platform); ok && r.breach == BreachKilledPointWriterStays && writer.turnIsOver() {
		return nil, sdk.Errorf(sdk.ErrBusy, sdk.FaultBackend, "disk %s is being written", id)
	}
	opened, err := r.Platform.OpenPointDraftDisk(ctx, op, draft, id)
	if err != nil {
		return nil, err
	}
	r.memory.add("writers "+draft.ID, 1)
	return &roguePointWriter{pointWriter: opened.(*pointWriter), rogue: r, draft: draft, disk: id, key: key, epoch: op.Epoch}, nil
}

// roguePointWriter writes one disk of a draft.
type roguePointWriter struct {
	*pointWriter
	rogue *rogue
	draft sdk.PointDraft
	disk  sdk.DiskID
	key   string
	epoch uint64
	gone  atomic.Bool
}

func (w *roguePointWriter) WriteAt(data []byte, off int64) (int, error) {
	if w.rogue.breach == BreachPointWriteFencedEarly {
		turn, err := entryAt(w.writer.writer, 0)
		if err == nil && turn == w.turn && w.rogue.turn() == nil {
			return w.inDraftOfNow(data, off)
		}
	}
	n, err := w.pointWriter.WriteAt(data, off)
	if errors.Is(err, sdk.ErrFenced) && w.unfenced() {
		return w.image.WriteAt(data, off)
	}
	if err == nil {
		w.rogue.memory.set("writer "+w.key, w.rogue.Platform)
	}
	return n, err
}

// inDraftOfNow writes into whatever draft is open by now, as one does whose
// drafts of a replica share a file.
func (w *roguePointWriter) inDraftOfNow(data []byte, off int64) (int, error) {
	image := w.image
	if r := w.rogue.replicaOf(w.draft.Replica); r != nil && r.Open != nil && r.Open.ID != w.draft.ID {
		f, err := w.rogue.hypervisor.store.open(r.Open.Files[w.disk].image())
		if err != nil {
			return 0, err
		}
		defer f.Close()
		image = f
	}
	return image.WriteAt(data, off)
}

// Flush does not notice the fence either.
func (w *roguePointWriter) Flush() error {
	err := w.pointWriter.Flush()
	if errors.Is(err, sdk.ErrFenced) && w.unfenced() {
		return nil
	}
	return err
}

// unfenced reports whether a writer that was fenced goes on.
func (w *roguePointWriter) unfenced() bool {
	switch w.rogue.breach {
	case BreachPointReopenKeepsWriter:
		r := w.rogue.replicaOf(w.draft.Replica)
		return r != nil && r.Open != nil && r.Open.ID == w.draft.ID && r.Epoch == w.epoch
	case BreachActivatedWritersGoOn:
		return w.rogue.realOf(w.draft.Replica) != nil
	}
	return false
}

func (w *roguePointWriter) ReadAt(data []byte, off int64) (int, error) {
	if w.rogue.breach != BreachDraftReadsBase || w.Shape() == sdk.ShapeSequential || w.draft.Base == "" {
		return w.pointWriter.ReadAt(data, off)
	}
	base, err := w.rogue.Platform.OpenPoint(context.Background(), "", w.draft.Replica, w.draft.Base, w.disk)
	if err != nil {
		return 0, err
	}
	n, err := base.ReadAt(data, off)
	if errors.Is(err, io.EOF) {
		return n, err // readers compare io.EOF itself
	}
	return n, errors.Join(err, base.Close())
}

func (w *roguePointWriter) Close() error {
	if !w.gone.Swap(true) {
		w.rogue.memory.add("writers "+w.draft.ID, -1)
	}
	return w.pointWriter.Close()
}

// CommitPoint makes a draft a point.
func (r *rogue) CommitPoint(ctx context.Context, op sdk.Op, draft sdk.PointDraft, label sdk.PointLabel) (sdk.Point, error) {
	if r.breach == BreachAchievedLost {
		label.Achieved = ""
	}
	op = r.early(BreachPointCommitFencedEarly, op, replicaEpoch(draft.Replica))
	var made sdk.Point
	err := r.locked(BreachCommitPointLocks, op, func() (err error) {
		made, err = r.Platform.CommitPoint(ctx, op, draft, label)
		return err
	})
	return made, err
}

// AbortPoint removes a draft.
func (r *rogue) AbortPoint(ctx context.Context, op sdk.Op, draft sdk.PointDraft) error {
	written := r.memory.add("writers "+draft.ID, 0) > 0
	err := r.Platform.AbortPoint(ctx, op, draft)
	switch {
	case r.breach == BreachCommittedPointAborted && errors.Is(err, sdk.ErrInvalid):
		return nil
	case r.breach == BreachPointAbortLeavesFile && err == nil && written:
		return r.litter(draft.ID)
	}
	return err
}

// OpenPoint reads a point.
func (r *rogue) OpenPoint(ctx context.Context, space sdk.Space, replicaID sdk.ReplicaID, pointID sdk.PointID, disk sdk.DiskID) (sdk.BlockReader, error) {
	if r.breach == BreachForeignSpaceReads {
		space = ""
	}
	opened, err := r.Platform.OpenPoint(ctx, space, replicaID, pointID, disk)
	if found := r.replicaOf(replicaID); r.breach == BreachUnknownPointInvalid && errors.Is(err, sdk.ErrNotFound) && found != nil {
		if _, missing := found.point(pointID); missing != nil {
			return nil, sdk.Errorf(sdk.ErrInvalid, sdk.FaultHost, "point %s", pointID)
		}
	}
	if r.breach != BreachInstanceInPoint || err != nil {
		return opened, err
	}
	shown := opened.(*pointReader)
	_ = r.hypervisor.view(func(st *state) error {
		for _, i := range st.Instances {
			m, ok := st.Machines[i.Machine]
			if !ok || i.Point != pointID || i.Purpose != sdk.PurposeTest {
				continue
			}
			if f, err := r.hypervisor.store.open(m.Files[disk].image()); err == nil {
				shown.image = f
			}
		}
		return nil
	})
	return shown, nil
}

// HoldPoint holds.
func (r *rogue) HoldPoint(ctx context.Context, op sdk.Op, replicaID sdk.ReplicaID, pointID sdk.PointID, holder string) error {
	err := r.Platform.HoldPoint(ctx, op, replicaID, pointID, holder)
	if err == nil {
		r.memory.set("holds "+string(pointID), r.Platform)
	}
	return err
}

// RemovePoint removes a point.
func (r *rogue) RemovePoint(ctx context.Context, op sdk.Op, replicaID sdk.ReplicaID, pointID sdk.PointID) error {
	before := r.replicaOf(replicaID)
	if holds, ok := r.memory.get("holds " + string(pointID)).(*Platform); ok && r.breach == BreachHoldForgotten && holds != r.Platform {
		err := r.hypervisor.change(func(st *state) error {
			if pt, err := st.Replicas[replicaID].point(pointID); err == nil {
				pt.Holders = nil
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	op = r.lifted(BreachOlderClaimRemovesPoint, op, replicaEpoch(replicaID))
	err := r.locked(BreachRemovePointLocks, op, func() error { return r.Platform.RemovePoint(ctx, op, replicaID, pointID) })
	switch {
	case r.breach == BreachRunningPointRemoved && errors.Is(err, sdk.ErrBusy) && r.tested(pointID):
		return r.hypervisor.change(func(st *state) error {
			found := st.Replicas[replicaID]
			pt, err := found.point(pointID)
			if err != nil {
				return err
			}
			st.removePoint(found, pt)
			return nil
		})
	case r.breach == BreachRemovalSpoils && err == nil && before != nil:
		return r.spoil(before, pointID)
	}
	return err
}

// tested reports whether a test of a point runs.
func (r *rogue) tested(id sdk.PointID) (found bool) {
	_ = r.hypervisor.view(func(st *state) error {
		for _, i := range st.Instances {
			found = found || i.Point == id && i.Purpose == sdk.PurposeTest
		}
		return nil
	})
	return found
}

// spoil empties the point before one that was removed, if that was the
// youngest.
func (r *rogue) spoil(before *replica, removed sdk.PointID) error {
	n := slices.IndexFunc(before.Chain, func(pt *point) bool { return pt.ID == removed })
	if n < 1 || n < len(before.Chain)-1 {
		return nil
	}
	for _, d := range before.Chain[n-1].Files {
		f, err := r.hypervisor.store.open(d.image())
		if err != nil {
			return err
		}
		if err := errors.Join(f.Punch(0, d.SizeBytes), f.Close()); err != nil {
			return err
		}
	}
	return nil
}

// RemoveReplica removes a replica.
func (r *rogue) RemoveReplica(ctx context.Context, op sdk.Op, id sdk.ReplicaID) error {
	before := r.replicaOf(id)
	err := r.Platform.RemoveReplica(ctx, op, id)
	if r.breach == BreachRemovedReplicaLeaves && err == nil && before != nil && before.Open != nil {
		return r.litter(string(id))
	}
	return err
}
