package plugin

import (
	"context"
	"fmt"
	"iter"
	"math"
	"slices"
	"time"

	"google.golang.org/grpc"

	"github.com/holdfast-dr/holdfast/sdk"
	pluginv1 "github.com/holdfast-dr/holdfast/sdk/plugin/v1"
)

// Bounds of what a plugin may list of replicas.
const (
	maxReplicas = 1 << 20
	maxPoints   = 1 << 16 // of one replica
	maxHolders  = 1024    // of one point
)

// Replicas sends a replica and then its points, one a message: all points of
// one may be larger than a message may be.
func (s *server) Replicas(req *pluginv1.ReplicasRequest, out grpc.ServerStreamingServer[pluginv1.ReplicasResponse]) error {
	replicator, err := ability[sdk.Replicator](s, sdk.AbilityReplicator)
	if err != nil {
		return err
	}
	for replica, err := range replicator.Replicas(out.Context(), sdk.Space(req.GetSpace())) {
		if err != nil {
			return err
		}
		if err := out.Send(&pluginv1.ReplicasResponse{Replica: toReplica(replica)}); err != nil {
			return err
		}
		for _, point := range replica.Points {
			if err := out.Send(&pluginv1.ReplicasResponse{Point: toPoint(point)}); err != nil {
				return err
			}
		}
	}
	return nil
}

func (s *server) CreateReplica(ctx context.Context, req *pluginv1.CreateReplicaRequest) (*pluginv1.CreateReplicaResponse, error) {
	replicator, err := ability[sdk.Replicator](s, sdk.AbilityReplicator)
	if err != nil {
		return nil, err
	}
	replica, err := replicator.CreateReplica(ctx, fromOp(req.GetOp()), sdk.ReplicaSpec{
		Name: req.GetName(), Pool: req.GetPool(), Label: req.GetLabel(), Seed: sdk.MachineID(req.GetSeed()),
	})
	if err != nil {
		return nil, err
	}
	resp := &pluginv1.CreateReplicaResponse{Replica: toReplica(replica)}
	for _, point := range replica.Points {
		resp.Points = append(resp.Points, toPoint(point))
	}
	return resp, nil
}

func (s *server) DraftPoint(ctx context.Context, req *pluginv1.DraftPointRequest) (*pluginv1.DraftPointResponse, error) {
	replicator, err := ability[sdk.Replicator](s, sdk.AbilityReplicator)
	if err != nil {
		return nil, err
	}
	draft, err := replicator.DraftPoint(ctx, fromOp(req.GetOp()), sdk.PointSpec{
		Replica: sdk.ReplicaID(req.GetReplica()), Base: sdk.PointID(req.GetBase()), Machine: fromMachine(req.GetMachine()),
	})
	if err != nil {
		return nil, err
	}
	s.data.closeOthers(draftsOwner(req.GetReplica()), draftOwner(draft)) // the one before, if there was one, was ended
	return &pluginv1.DraftPointResponse{Draft: toPointDraft(draft)}, nil
}

// OpenPointDraftDisk ends the writer before only after the author's own call
// has succeeded, as OpenDraftDisk does.
func (s *server) OpenPointDraftDisk(ctx context.Context, req *pluginv1.OpenPointDraftDiskRequest) (*pluginv1.OpenPointDraftDiskResponse, error) {
	replicator, err := ability[sdk.Replicator](s, sdk.AbilityReplicator)
	if err != nil {
		return nil, err
	}
	draft := fromPointDraft(req.GetDraft())
	writer, err := replicator.OpenPointDraftDisk(ctx, fromOp(req.GetOp()), draft, sdk.DiskID(req.GetDisk()))
	if err != nil {
		return nil, err
	}
	opened, err := s.data.offerReadableWriter(draftOwner(draft), req.GetDisk(), writer, writer)
	if err != nil {
		return nil, err
	}
	return &pluginv1.OpenPointDraftDiskResponse{Disk: opened}, nil
}

// The owners of open disks are quoted, so that no two ids run into each other.

func draftsOwner(replica string) string { return fmt.Sprintf("point-drafts %q ", replica) }

func draftOwner(draft sdk.PointDraft) string { return draftsOwner(string(draft.Replica)) + draft.ID }

func pointsOwner(replica string) string { return fmt.Sprintf("points %q ", replica) }

func pointOwner(replica, point string) string { return pointsOwner(replica) + point }

func (s *server) CommitPoint(ctx context.Context, req *pluginv1.CommitPointRequest) (*pluginv1.CommitPointResponse, error) {
	replicator, err := ability[sdk.Replicator](s, sdk.AbilityReplicator)
	if err != nil {
		return nil, err
	}
	draft := fromPointDraft(req.GetDraft())
	point, err := replicator.CommitPoint(ctx, fromOp(req.GetOp()), draft, fromLabel(req.GetLabel()))
	if err != nil {
		return nil, err
	}
	s.data.closeOwner(draftOwner(draft))
	return &pluginv1.CommitPointResponse{Point: toPoint(point)}, nil
}

func (s *server) AbortPoint(ctx context.Context, req *pluginv1.AbortPointRequest) (*pluginv1.AbortPointResponse, error) {
	replicator, err := ability[sdk.Replicator](s, sdk.AbilityReplicator)
	if err != nil {
		return nil, err
	}
	draft := fromPointDraft(req.GetDraft())
	if err := replicator.AbortPoint(ctx, fromOp(req.GetOp()), draft); err != nil {
		return nil, err
	}
	s.data.closeOwner(draftOwner(draft))
	return &pluginv1.AbortPointResponse{}, nil
}

func (s *server) OpenPoint(ctx context.Context, req *pluginv1.OpenPointRequest) (*pluginv1.OpenPointResponse, error) {
	replicator, err := ability[sdk.Replicator](s, sdk.AbilityReplicator)
	if err != nil {
		return nil, err
	}
	reader, err := replicator.OpenPoint(ctx, sdk.Space(req.GetSpace()), sdk.ReplicaID(req.GetReplica()),
		sdk.PointID(req.GetPoint()), sdk.DiskID(req.GetDisk()))
	if err != nil {
		return nil, err
	}
	opened, err := s.data.offerReader(pointOwner(req.GetReplica(), req.GetPoint()), reader)
	if err != nil {
		return nil, err
	}
	return &pluginv1.OpenPointResponse{Disk: opened}, nil
}

func (s *server) HoldPoint(ctx context.Context, req *pluginv1.HoldPointRequest) (*pluginv1.HoldPointResponse, error) {
	replicator, err := ability[sdk.Replicator](s, sdk.AbilityReplicator)
	if err != nil {
		return nil, err
	}
	return &pluginv1.HoldPointResponse{}, replicator.HoldPoint(ctx, fromOp(req.GetOp()),
		sdk.ReplicaID(req.GetReplica()), sdk.PointID(req.GetPoint()), req.GetHolder())
}

func (s *server) ReleasePoint(ctx context.Context, req *pluginv1.ReleasePointRequest) (*pluginv1.ReleasePointResponse, error) {
	replicator, err := ability[sdk.Replicator](s, sdk.AbilityReplicator)
	if err != nil {
		return nil, err
	}
	return &pluginv1.ReleasePointResponse{}, replicator.ReleasePoint(ctx, fromOp(req.GetOp()),
		sdk.ReplicaID(req.GetReplica()), sdk.PointID(req.GetPoint()), req.GetHolder())
}

func (s *server) RemovePoint(ctx context.Context, req *pluginv1.RemovePointRequest) (*pluginv1.RemovePointResponse, error) {
	replicator, err := ability[sdk.Replicator](s, sdk.AbilityReplicator)
	if err != nil {
		return nil, err
	}
	if err := replicator.RemovePoint(ctx, fromOp(req.GetOp()), sdk.ReplicaID(req.GetReplica()), sdk.PointID(req.GetPoint())); err != nil {
		return nil, err
	}
	s.data.closeOwner(pointOwner(req.GetReplica(), req.GetPoint()))
	return &pluginv1.RemovePointResponse{}, nil
}

func (s *server) RemoveReplica(ctx context.Context, req *pluginv1.RemoveReplicaRequest) (*pluginv1.RemoveReplicaResponse, error) {
	replicator, err := ability[sdk.Replicator](s, sdk.AbilityReplicator)
	if err != nil {
		return nil, err
	}
	if err := replicator.RemoveReplica(ctx, fromOp(req.GetOp()), sdk.ReplicaID(req.GetReplica())); err != nil {
		return nil, err
	}
	s.data.closeOthers(draftsOwner(req.GetReplica()), "")
	s.data.closeOthers(pointsOwner(req.GetReplica()), "")
	return &pluginv1.RemoveReplicaResponse{}, nil
}

var _ sdk.Replicator = (*remote)(nil)

// Replicas puts the points of each replica together again.
func (r *remote) Replicas(ctx context.Context, space sdk.Space) iter.Seq2[sdk.Replica, error] {
	return func(yield func(sdk.Replica, error) bool) {
		var replica *sdk.Replica // that gathers its points
		replicas := 0
		pass := func() (bool, error) {
			if replica == nil {
				return true, nil
			}
			if err := checkReplica(*replica, space); err != nil {
				return false, err
			}
			whole := *replica
			replica = nil
			return yield(whole, nil), nil
		}
		for message, err := range stream(ctx, r, "Replicas", r.client.Replicas, &pluginv1.ReplicasRequest{Space: string(space)}) {
			more := true
			switch {
			case err != nil:
			case message.GetReplica() != nil:
				if more, err = pass(); err == nil && more {
					head := fromReplica(message.GetReplica())
					replica = &head
				}
				if replicas++; err == nil && replicas > maxReplicas {
					err = broken("more than %d replicas", maxReplicas)
				}
			case message.GetPoint() == nil || replica == nil:
				err = broken("a point of no replica, or a listing of nothing")
			case len(replica.Points) >= maxPoints:
				err = broken("replica %s has more than %d points", clip(string(replica.ID), maxID), maxPoints)
			default:
				replica.Points = append(replica.Points, fromPoint(message.GetPoint()))
			}
			if err != nil {
				yield(sdk.Replica{}, err)
			}
			if err != nil || !more {
				return
			}
		}
		if _, err := pass(); err != nil {
			yield(sdk.Replica{}, err)
		}
	}
}

func (r *remote) CreateReplica(ctx context.Context, op sdk.Op, spec sdk.ReplicaSpec) (sdk.Replica, error) {
	resp, err := call(ctx, r, "CreateReplica", r.client.CreateReplica, &pluginv1.CreateReplicaRequest{
		Op: toOp(op), Name: spec.Name, Pool: spec.Pool, Label: spec.Label, Seed: string(spec.Seed),
	})
	if err != nil {
		return sdk.Replica{}, err
	}
	replica := fromReplica(resp.GetReplica())
	for _, point := range resp.GetPoints() {
		replica.Points = append(replica.Points, fromPoint(point))
	}
	return replica, checkReplica(replica, op.Space)
}

func (r *remote) DraftPoint(ctx context.Context, op sdk.Op, spec sdk.PointSpec) (sdk.PointDraft, error) {
	resp, err := call(ctx, r, "DraftPoint", r.client.DraftPoint, &pluginv1.DraftPointRequest{
		Op: toOp(op), Replica: string(spec.Replica), Base: string(spec.Base), Machine: toMachine(spec.Machine),
	})
	if err != nil {
		return sdk.PointDraft{}, err
	}
	draft := fromPointDraft(resp.GetDraft())
	if err := checkPointDraft(draft, spec.Replica); err != nil {
		return sdk.PointDraft{}, err
	}
	asked := make([]sdk.DiskID, len(spec.Machine.Disks))
	for i, d := range spec.Machine.Disks {
		asked[i] = d.ID
	}
	if draft.Base != spec.Base || !slices.Equal(draft.Disks, asked) {
		return sdk.PointDraft{}, broken("draft %s has another base or other disks than were asked for", draft.ID)
	}
	return draft, nil
}

func (r *remote) OpenPointDraftDisk(ctx context.Context, op sdk.Op, draft sdk.PointDraft, disk sdk.DiskID) (sdk.PointWriter, error) {
	resp, err := call(ctx, r, "OpenPointDraftDisk", r.client.OpenPointDraftDisk,
		&pluginv1.OpenPointDraftDiskRequest{Op: toOp(op), Draft: toPointDraft(draft), Disk: string(disk)})
	if err != nil {
		return nil, err
	}
	w, err := r.openWriter(ctx, resp.GetDisk())
	if err != nil {
		return nil, err
	}
	return &remotePointWriter{w}, nil
}

// remotePointWriter is an author's PointWriter at the host.
type remotePointWriter struct{ *remoteWriter }

// ReadAt reads what the draft shows now.
func (w *remotePointWriter) ReadAt(p []byte, off int64) (int, error) {
	if w.shape == sdk.ShapeSequential {
		return 0, sdk.Errorf(sdk.ErrUnsupported, sdk.FaultBackend, "a disk that is written in ascending order cannot be read meanwhile")
	}
	return w.disk.ReadAt(p, off)
}

func (r *remote) CommitPoint(ctx context.Context, op sdk.Op, draft sdk.PointDraft, label sdk.PointLabel) (sdk.Point, error) {
	resp, err := call(ctx, r, "CommitPoint", r.client.CommitPoint,
		&pluginv1.CommitPointRequest{Op: toOp(op), Draft: toPointDraft(draft), Label: toLabel(label)})
	if err != nil {
		return sdk.Point{}, err
	}
	point := fromPoint(resp.GetPoint())
	return point, checkPoint(point)
}

func (r *remote) AbortPoint(ctx context.Context, op sdk.Op, draft sdk.PointDraft) error {
	_, err := call(ctx, r, "AbortPoint", r.client.AbortPoint, &pluginv1.AbortPointRequest{Op: toOp(op), Draft: toPointDraft(draft)})
	return err
}

func (r *remote) OpenPoint(ctx context.Context, space sdk.Space, replica sdk.ReplicaID, point sdk.PointID, disk sdk.DiskID) (sdk.BlockReader, error) {
	resp, err := call(ctx, r, "OpenPoint", r.client.OpenPoint, &pluginv1.OpenPointRequest{
		Space: string(space), Replica: string(replica), Point: string(point), Disk: string(disk),
	})
	if err != nil {
		return nil, err
	}
	return r.openReader(ctx, resp.GetDisk(), -1)
}

func (r *remote) HoldPoint(ctx context.Context, op sdk.Op, replica sdk.ReplicaID, point sdk.PointID, holder string) error {
	_, err := call(ctx, r, "HoldPoint", r.client.HoldPoint,
		&pluginv1.HoldPointRequest{Op: toOp(op), Replica: string(replica), Point: string(point), Holder: holder})
	return err
}

func (r *remote) ReleasePoint(ctx context.Context, op sdk.Op, replica sdk.ReplicaID, point sdk.PointID, holder string) error {
	_, err := call(ctx, r, "ReleasePoint", r.client.ReleasePoint,
		&pluginv1.ReleasePointRequest{Op: toOp(op), Replica: string(replica), Point: string(point), Holder: holder})
	return err
}

func (r *remote) RemovePoint(ctx context.Context, op sdk.Op, replica sdk.ReplicaID, point sdk.PointID) error {
	_, err := call(ctx, r, "RemovePoint", r.client.RemovePoint,
		&pluginv1.RemovePointRequest{Op: toOp(op), Replica: string(replica), Point: string(point)})
	return err
}

func (r *remote) RemoveReplica(ctx context.Context, op sdk.Op, replica sdk.ReplicaID) error {
	_, err := call(ctx, r, "RemoveReplica", r.client.RemoveReplica, &pluginv1.RemoveReplicaRequest{Op: toOp(op), Replica: string(replica)})
	return err
}

func toReplica(replica sdk.Replica) *pluginv1.Replica {
	wire := &pluginv1.Replica{
		Id: string(replica.ID), Space: string(replica.Space), Name: replica.Name, Pool: replica.Pool, Label: replica.Label,
		Epoch: replica.Epoch, MaxPoints: toCount(replica.MaxPoints),
	}
	if replica.Draft != nil {
		wire.Draft = toPointDraft(*replica.Draft)
	}
	return wire
}

func fromReplica(wire *pluginv1.Replica) sdk.Replica {
	replica := sdk.Replica{
		ID: sdk.ReplicaID(wire.GetId()), Space: sdk.Space(wire.GetSpace()), Name: wire.GetName(), Pool: wire.GetPool(),
		Label: wire.GetLabel(), Epoch: wire.GetEpoch(), MaxPoints: int(wire.GetMaxPoints()),
	}
	if wire.GetDraft() != nil {
		draft := fromPointDraft(wire.GetDraft())
		replica.Draft = &draft
	}
	return replica
}

// toCount is a number of things on the wire.
func toCount(n int) int32 { return int32(min(max(n, 0), math.MaxInt32)) }

func toPointDraft(draft sdk.PointDraft) *pluginv1.PointDraft {
	wire := &pluginv1.PointDraft{Id: draft.ID, Replica: string(draft.Replica), Base: string(draft.Base), Epoch: draft.Epoch}
	for _, id := range draft.Disks {
		wire.Disks = append(wire.Disks, string(id))
	}
	return wire
}

func fromPointDraft(wire *pluginv1.PointDraft) sdk.PointDraft {
	draft := sdk.PointDraft{
		ID: wire.GetId(), Replica: sdk.ReplicaID(wire.GetReplica()), Base: sdk.PointID(wire.GetBase()), Epoch: wire.GetEpoch(),
	}
	for _, id := range wire.GetDisks() {
		draft.Disks = append(draft.Disks, sdk.DiskID(id))
	}
	return draft
}

func toPoint(point sdk.Point) *pluginv1.Point {
	return &pluginv1.Point{
		Id: string(point.ID), Machine: toMachine(point.Machine), Label: toLabel(point.PointLabel),
		Holders: point.Holders, StoredBytes: point.StoredBytes,
	}
}

func fromPoint(wire *pluginv1.Point) sdk.Point {
	return sdk.Point{
		ID: sdk.PointID(wire.GetId()), Machine: fromMachine(wire.GetMachine()), PointLabel: fromLabel(wire.GetLabel()),
		Holders: wire.GetHolders(), StoredBytes: wire.GetStoredBytes(),
	}
}

func toLabel(label sdk.PointLabel) *pluginv1.PointLabel {
	wire := &pluginv1.PointLabel{Label: label.Label, Achieved: string(label.Achieved)}
	if !label.Taken.IsZero() {
		wire.TakenMicros = label.Taken.UnixMicro()
	}
	return wire
}

func fromLabel(wire *pluginv1.PointLabel) sdk.PointLabel {
	label := sdk.PointLabel{Label: wire.GetLabel(), Achieved: sdk.Quiesce(wire.GetAchieved())}
	if micros := wire.GetTakenMicros(); micros != 0 {
		label.Taken = time.UnixMicro(micros).UTC()
	}
	return label
}

// checkReplica holds a replica that a plugin answered against the contract.
// space is the one that was asked for; "" is all of them.
func checkReplica(replica sdk.Replica, space sdk.Space) error {
	switch {
	case replica.ID == "" || len(replica.ID) > maxID:
		return broken("a replica's id has %d bytes", len(replica.ID))
	case space != "" && replica.Space != space || len(replica.Space) > maxText:
		return broken("replica %s is in space %q instead of %q", replica.ID, clip(string(replica.Space), maxID), space)
	case len(replica.Name) > maxText || len(replica.Pool) > maxText || len(replica.Label) > sdk.MaxLabel || replica.MaxPoints < 0:
		return broken("replica %s has an impossible name, pool, label or number of points", replica.ID)
	}
	seen := make(map[sdk.PointID]bool, len(replica.Points))
	for _, point := range replica.Points {
		if err := checkPoint(point); err != nil {
			return err
		}
		if seen[point.ID] {
			return broken("replica %s has two points %s", replica.ID, point.ID)
		}
		seen[point.ID] = true
	}
	if replica.Draft == nil {
		return nil
	}
	return checkPointDraft(*replica.Draft, replica.ID)
}

func checkPoint(point sdk.Point) error {
	switch {
	case point.ID == "" || len(point.ID) > maxID:
		return broken("a point's id has %d bytes", len(point.ID))
	case len(point.Label) > sdk.MaxLabel || len(point.Holders) > maxHolders || point.StoredBytes < 0:
		return broken("point %s has a label of %d bytes, %d holders and %d bytes", point.ID, len(point.Label), len(point.Holders), point.StoredBytes)
	}
	switch point.Achieved {
	case "", sdk.QuiesceNone, sdk.QuiesceFileSystem, sdk.QuiesceApplication:
	default:
		return broken("point %s achieved %q", point.ID, clip(string(point.Achieved), maxID))
	}
	for _, holder := range point.Holders {
		if holder == "" || len(holder) > sdk.MaxHolder {
			return broken("a holder of point %s has a name of %d bytes", point.ID, len(holder))
		}
	}
	// It is a state of a machine that lives elsewhere, so it may have no id here.
	machine := point.Machine
	if machine.ID == "" {
		machine.ID = "-"
	}
	return checkMachine(machine)
}

func checkPointDraft(draft sdk.PointDraft, replica sdk.ReplicaID) error {
	switch {
	case draft.ID == "" || len(draft.ID) > maxID || len(draft.Base) > maxID:
		return broken("a point's draft has an id of %d bytes and a base of %d", len(draft.ID), len(draft.Base))
	case draft.Replica != replica:
		return broken("draft %s is one of replica %q instead of %q", draft.ID, clip(string(draft.Replica), maxID), replica)
	case len(draft.Disks) > maxDisks:
		return broken("draft %s has %d disks", draft.ID, len(draft.Disks))
	}
	return nil
}
