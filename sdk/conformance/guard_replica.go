package conformance

import (
	"context"
	"fmt"
	"iter"

	"github.com/holdfast-dr/holdfast/sdk"
)

type guardedReplicator struct {
	sdk.Replicator
	ledger *ledger
}

func (g guardedReplicator) Replicas(ctx context.Context, space sdk.Space) iter.Seq2[sdk.Replica, error] {
	return guardedSeq(g.ledger, "Replicas", g.Replicator.Replicas(ctx, space))
}

func (g guardedReplicator) CreateReplica(ctx context.Context, op sdk.Op, spec sdk.ReplicaSpec) (sdk.Replica, error) {
	return guarded(g.ledger, "CreateReplica", op.ID, func() (sdk.Replica, error) { return g.Replicator.CreateReplica(ctx, op, spec) })
}

func (g guardedReplicator) DraftPoint(ctx context.Context, op sdk.Op, spec sdk.PointSpec) (sdk.PointDraft, error) {
	return guarded(g.ledger, "DraftPoint", op.ID, func() (sdk.PointDraft, error) { return g.Replicator.DraftPoint(ctx, op, spec) })
}

func (g guardedReplicator) OpenPointDraftDisk(ctx context.Context, op sdk.Op, draft sdk.PointDraft, disk sdk.DiskID) (sdk.PointWriter, error) {
	w, err := guarded(g.ledger, "OpenPointDraftDisk", op.ID, func() (sdk.PointWriter, error) {
		return g.Replicator.OpenPointDraftDisk(ctx, op, draft, disk)
	})
	if err != nil {
		return nil, err
	}
	return guardedPointWriter{guardedWriter{w, g.ledger}, w}, nil
}

func (g guardedReplicator) CommitPoint(ctx context.Context, op sdk.Op, draft sdk.PointDraft, label sdk.PointLabel) (sdk.Point, error) {
	return guarded(g.ledger, "CommitPoint", op.ID, func() (sdk.Point, error) { return g.Replicator.CommitPoint(ctx, op, draft, label) })
}

func (g guardedReplicator) AbortPoint(ctx context.Context, op sdk.Op, draft sdk.PointDraft) error {
	return guardedErr(g.ledger, "AbortPoint", op.ID, func() error { return g.Replicator.AbortPoint(ctx, op, draft) })
}

func (g guardedReplicator) OpenPoint(ctx context.Context, space sdk.Space, replica sdk.ReplicaID, point sdk.PointID, disk sdk.DiskID) (sdk.BlockReader, error) {
	r, err := guarded(g.ledger, "OpenPoint", "", func() (sdk.BlockReader, error) {
		return g.Replicator.OpenPoint(ctx, space, replica, point, disk)
	})
	if err != nil {
		return nil, err
	}
	return guardedReader{r, g.ledger}, nil
}

func (g guardedReplicator) HoldPoint(ctx context.Context, op sdk.Op, replica sdk.ReplicaID, point sdk.PointID, holder string) error {
	return guardedErr(g.ledger, "HoldPoint", op.ID, func() error { return g.Replicator.HoldPoint(ctx, op, replica, point, holder) })
}

func (g guardedReplicator) ReleasePoint(ctx context.Context, op sdk.Op, replica sdk.ReplicaID, point sdk.PointID, holder string) error {
	return guardedErr(g.ledger, "ReleasePoint", op.ID, func() error { return g.Replicator.ReleasePoint(ctx, op, replica, point, holder) })
}

func (g guardedReplicator) RemovePoint(ctx context.Context, op sdk.Op, replica sdk.ReplicaID, point sdk.PointID) error {
	return guardedErr(g.ledger, "RemovePoint", op.ID, func() error { return g.Replicator.RemovePoint(ctx, op, replica, point) })
}

func (g guardedReplicator) RemoveReplica(ctx context.Context, op sdk.Op, replica sdk.ReplicaID) error {
	return guardedErr(g.ledger, "RemoveReplica", op.ID, func() error { return g.Replicator.RemoveReplica(ctx, op, replica) })
}

type guardedPointWriter struct {
	guardedWriter
	readable sdk.PointWriter
}

// ReadAt reads into memory of its own first, as that of a reader does.
func (g guardedPointWriter) ReadAt(p []byte, off int64) (int, error) {
	own := make([]byte, len(p))
	n, err := guarded(g.ledger, "ReadAt", "", func() (int, error) { return g.readable.ReadAt(own, off) })
	if n < 0 || n > len(p) {
		return 0, fmt.Errorf("ReadAt of %d bytes answers %d", len(p), n)
	}
	return copy(p, own[:n]), err
}

type guardedActivator struct {
	sdk.Activator
	ledger *ledger
}

func (g guardedActivator) Activate(ctx context.Context, op sdk.Op, req sdk.ActivateRequest) (sdk.Instance, error) {
	return guarded(g.ledger, "Activate", op.ID, func() (sdk.Instance, error) { return g.Activator.Activate(ctx, op, req) })
}

func (g guardedActivator) Instances(ctx context.Context, space sdk.Space) iter.Seq2[sdk.Instance, error] {
	return guardedSeq(g.ledger, "Instances", g.Activator.Instances(ctx, space))
}

func (g guardedActivator) Deactivate(ctx context.Context, op sdk.Op, instance sdk.InstanceID, layer sdk.Layer) error {
	return guardedErr(g.ledger, "Deactivate", op.ID, func() error { return g.Activator.Deactivate(ctx, op, instance, layer) })
}

func (g guardedActivator) Finalize(ctx context.Context, op sdk.Op, instance sdk.InstanceID) (sdk.MachineID, error) {
	return guarded(g.ledger, "Finalize", op.ID, func() (sdk.MachineID, error) { return g.Activator.Finalize(ctx, op, instance) })
}

func (g guardedActivator) Reverse(ctx context.Context, op sdk.Op, instance sdk.InstanceID) (sdk.Reversal, error) {
	return guarded(g.ledger, "Reverse", op.ID, func() (sdk.Reversal, error) { return g.Activator.Reverse(ctx, op, instance) })
}

type guardedNetworker struct {
	sdk.Networker
	ledger *ledger
}

func (g guardedNetworker) Networks(ctx context.Context, space sdk.Space) iter.Seq2[sdk.Network, error] {
	return guardedSeq(g.ledger, "Networks", g.Networker.Networks(ctx, space))
}

func (g guardedNetworker) CreateNetwork(ctx context.Context, op sdk.Op, spec sdk.NetworkSpec) (sdk.Network, error) {
	return guarded(g.ledger, "CreateNetwork", op.ID, func() (sdk.Network, error) { return g.Networker.CreateNetwork(ctx, op, spec) })
}

func (g guardedNetworker) RemoveNetwork(ctx context.Context, op sdk.Op, name string) error {
	return guardedErr(g.ledger, "RemoveNetwork", op.ID, func() error { return g.Networker.RemoveNetwork(ctx, op, name) })
}

type guardedPools struct {
	sdk.Pools
	ledger *ledger
}

func (g guardedPools) Capacity(ctx context.Context) (sdk.Capacity, error) {
	return guarded(g.ledger, "Capacity", "", func() (sdk.Capacity, error) { return g.Pools.Capacity(ctx) })
}

func (g guardedPools) SetLimits(ctx context.Context, op sdk.Op, limits sdk.Limits) (sdk.Enforced, error) {
	return guarded(g.ledger, "SetLimits", op.ID, func() (sdk.Enforced, error) { return g.Pools.SetLimits(ctx, op, limits) })
}

func (g guardedPools) Usage(ctx context.Context, space sdk.Space) (sdk.Usage, error) {
	return guarded(g.ledger, "Usage", "", func() (sdk.Usage, error) { return g.Pools.Usage(ctx, space) })
}

type guardedConsole struct {
	sdk.Console
	ledger *ledger
}

func (g guardedConsole) Screenshot(ctx context.Context, space sdk.Space, machine sdk.MachineID) ([]byte, error) {
	return guarded(g.ledger, "Screenshot", "", func() ([]byte, error) { return g.Console.Screenshot(ctx, space, machine) })
}

type guardedGuest struct {
	sdk.Guest
	ledger *ledger
}

func (g guardedGuest) GuestInfo(ctx context.Context, space sdk.Space, machine sdk.MachineID) (sdk.GuestInfo, error) {
	return guarded(g.ledger, "GuestInfo", "", func() (sdk.GuestInfo, error) { return g.Guest.GuestInfo(ctx, space, machine) })
}
