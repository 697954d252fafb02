package host

import (
	"context"
	"iter"

	"github.com/holdfast-dr/holdfast/sdk"
)

var (
	_ sdk.Replicator = (*Platform)(nil)
	_ sdk.Activator  = (*Platform)(nil)
	_ sdk.Networker  = (*Platform)(nil)
	_ sdk.Pools      = (*Platform)(nil)
	_ sdk.Console    = (*Platform)(nil)
	_ sdk.Guest      = (*Platform)(nil)
)

// Replicas lists the replicas of a space.
func (p *Platform) Replicas(ctx context.Context, space sdk.Space) iter.Seq2[sdk.Replica, error] {
	return listOf(ctx, p, sdk.AbilityReplicator, "Replicas", func(r sdk.Replicator) iter.Seq2[sdk.Replica, error] {
		return r.Replicas(ctx, space)
	})
}

// CreateReplica makes a replica.
func (p *Platform) CreateReplica(ctx context.Context, op sdk.Op, spec sdk.ReplicaSpec) (sdk.Replica, error) {
	return actOf(doing(ctx, op), p, sdk.AbilityReplicator, "CreateReplica", func(r sdk.Replicator) (sdk.Replica, error) {
		return r.CreateReplica(ctx, op, spec)
	})
}

// DraftPoint opens the draft of a replica's next point.
func (p *Platform) DraftPoint(ctx context.Context, op sdk.Op, spec sdk.PointSpec) (sdk.PointDraft, error) {
	return actOf(doing(ctx, op), p, sdk.AbilityReplicator, "DraftPoint", func(r sdk.Replicator) (sdk.PointDraft, error) {
		return r.DraftPoint(ctx, op, spec)
	})
}

// OpenPointDraftDisk opens a disk of a draft. The writer ends with its process.
func (p *Platform) OpenPointDraftDisk(ctx context.Context, op sdk.Op, draft sdk.PointDraft, disk sdk.DiskID) (sdk.PointWriter, error) {
	return openOf(doing(ctx, op), p, sdk.AbilityReplicator, "OpenPointDraftDisk", func(r sdk.Replicator) (sdk.PointWriter, error) {
		return r.OpenPointDraftDisk(ctx, op, draft, disk)
	}, func(l *life, w sdk.PointWriter) sdk.PointWriter { return &pointWriter{newWriter(l, w), w} })
}

// CommitPoint makes a draft a point.
func (p *Platform) CommitPoint(ctx context.Context, op sdk.Op, draft sdk.PointDraft, label sdk.PointLabel) (sdk.Point, error) {
	return actOf(doing(ctx, op), p, sdk.AbilityReplicator, "CommitPoint", func(r sdk.Replicator) (sdk.Point, error) {
		return r.CommitPoint(ctx, op, draft, label)
	})
}

// AbortPoint removes a draft.
func (p *Platform) AbortPoint(ctx context.Context, op sdk.Op, draft sdk.PointDraft) error {
	return change(ctx, p, op, sdk.AbilityReplicator, "AbortPoint", func(r sdk.Replicator) error { return r.AbortPoint(ctx, op, draft) })
}

// OpenPoint reads a disk of a point. The reader ends with its process.
func (p *Platform) OpenPoint(ctx context.Context, space sdk.Space, replica sdk.ReplicaID, point sdk.PointID, disk sdk.DiskID) (sdk.BlockReader, error) {
	return openOf(ctx, p, sdk.AbilityReplicator, "OpenPoint", func(r sdk.Replicator) (sdk.BlockReader, error) {
		return r.OpenPoint(ctx, space, replica, point, disk)
	}, func(l *life, r sdk.BlockReader) sdk.BlockReader { return newReader(l, r) })
}

// HoldPoint records a holder of a point.
func (p *Platform) HoldPoint(ctx context.Context, op sdk.Op, replica sdk.ReplicaID, point sdk.PointID, holder string) error {
	return change(ctx, p, op, sdk.AbilityReplicator, "HoldPoint", func(r sdk.Replicator) error {
		return r.HoldPoint(ctx, op, replica, point, holder)
	})
}

// ReleasePoint ends a hold.
func (p *Platform) ReleasePoint(ctx context.Context, op sdk.Op, replica sdk.ReplicaID, point sdk.PointID, holder string) error {
	return change(ctx, p, op, sdk.AbilityReplicator, "ReleasePoint", func(r sdk.Replicator) error {
		return r.ReleasePoint(ctx, op, replica, point, holder)
	})
}

// RemovePoint removes a point.
func (p *Platform) RemovePoint(ctx context.Context, op sdk.Op, replica sdk.ReplicaID, point sdk.PointID) error {
	return change(ctx, p, op, sdk.AbilityReplicator, "RemovePoint", func(r sdk.Replicator) error { return r.RemovePoint(ctx, op, replica, point) })
}

// RemoveReplica removes a replica.
func (p *Platform) RemoveReplica(ctx context.Context, op sdk.Op, replica sdk.ReplicaID) error {
	return change(ctx, p, op, sdk.AbilityReplicator, "RemoveReplica", func(r sdk.Replicator) error { return r.RemoveReplica(ctx, op, replica) })
}

// Activate runs a point.
func (p *Platform) Activate(ctx context.Context, op sdk.Op, req sdk.ActivateRequest) (sdk.Instance, error) {
	return actOf(doing(ctx, op), p, sdk.AbilityActivator, "Activate", func(a sdk.Activator) (sdk.Instance, error) {
		return a.Activate(ctx, op, req)
	})
}

// Instances lists the instances of a space.
func (p *Platform) Instances(ctx context.Context, space sdk.Space) iter.Seq2[sdk.Instance, error] {
	return listOf(ctx, p, sdk.AbilityActivator, "Instances", func(a sdk.Activator) iter.Seq2[sdk.Instance, error] {
		return a.Instances(ctx, space)
	})
}

// Deactivate ends an instance.
func (p *Platform) Deactivate(ctx context.Context, op sdk.Op, instance sdk.InstanceID, layer sdk.Layer) error {
	return change(ctx, p, op, sdk.AbilityActivator, "Deactivate", func(a sdk.Activator) error { return a.Deactivate(ctx, op, instance, layer) })
}

// Finalize makes an instance permanent.
func (p *Platform) Finalize(ctx context.Context, op sdk.Op, instance sdk.InstanceID) (sdk.MachineID, error) {
	return actOf(doing(ctx, op), p, sdk.AbilityActivator, "Finalize", func(a sdk.Activator) (sdk.MachineID, error) {
		return a.Finalize(ctx, op, instance)
	})
}

// Reverse opens an instance as a source.
func (p *Platform) Reverse(ctx context.Context, op sdk.Op, instance sdk.InstanceID) (sdk.Reversal, error) {
	return actOf(doing(ctx, op), p, sdk.AbilityActivator, "Reverse", func(a sdk.Activator) (sdk.Reversal, error) {
		return a.Reverse(ctx, op, instance)
	})
}

// Networks lists networks.
func (p *Platform) Networks(ctx context.Context, space sdk.Space) iter.Seq2[sdk.Network, error] {
	return listOf(ctx, p, sdk.AbilityNetworker, "Networks", func(n sdk.Networker) iter.Seq2[sdk.Network, error] {
		return n.Networks(ctx, space)
	})
}

// CreateNetwork makes a network.
func (p *Platform) CreateNetwork(ctx context.Context, op sdk.Op, spec sdk.NetworkSpec) (sdk.Network, error) {
	return actOf(doing(ctx, op), p, sdk.AbilityNetworker, "CreateNetwork", func(n sdk.Networker) (sdk.Network, error) {
		return n.CreateNetwork(ctx, op, spec)
	})
}

// RemoveNetwork removes a network.
func (p *Platform) RemoveNetwork(ctx context.Context, op sdk.Op, name string) error {
	return change(ctx, p, op, sdk.AbilityNetworker, "RemoveNetwork", func(n sdk.Networker) error { return n.RemoveNetwork(ctx, op, name) })
}

// Capacity is what the endpoint has.
func (p *Platform) Capacity(ctx context.Context) (sdk.Capacity, error) {
	return actOf(ctx, p, sdk.AbilityPools, "Capacity", func(pools sdk.Pools) (sdk.Capacity, error) { return pools.Capacity(ctx) })
}

// SetLimits makes a space, or changes its limits.
func (p *Platform) SetLimits(ctx context.Context, op sdk.Op, limits sdk.Limits) (sdk.Enforced, error) {
	return actOf(doing(ctx, op), p, sdk.AbilityPools, "SetLimits", func(pools sdk.Pools) (sdk.Enforced, error) {
		return pools.SetLimits(ctx, op, limits)
	})
}

// Usage is what a space uses.
func (p *Platform) Usage(ctx context.Context, space sdk.Space) (sdk.Usage, error) {
	return actOf(ctx, p, sdk.AbilityPools, "Usage", func(pools sdk.Pools) (sdk.Usage, error) { return pools.Usage(ctx, space) })
}

// Screenshot is what a machine shows.
func (p *Platform) Screenshot(ctx context.Context, space sdk.Space, machine sdk.MachineID) ([]byte, error) {
	return actOf(ctx, p, sdk.AbilityConsole, "Screenshot", func(c sdk.Console) ([]byte, error) { return c.Screenshot(ctx, space, machine) })
}

// GuestInfo is what a machine's guest agent says.
func (p *Platform) GuestInfo(ctx context.Context, space sdk.Space, machine sdk.MachineID) (sdk.GuestInfo, error) {
	return actOf(ctx, p, sdk.AbilityGuest, "GuestInfo", func(g sdk.Guest) (sdk.GuestInfo, error) { return g.GuestInfo(ctx, space, machine) })
}

// pointWriter is a writer of a point's draft that counts.
type pointWriter struct {
	*writer
	readable sdk.PointWriter
}

// ReadAt reads and counts.
func (w *pointWriter) ReadAt(p []byte, off int64) (int, error) {
	n, err := w.readable.ReadAt(p, off)
	w.read(int64(n))
	return n, w.named("read", err)
}
