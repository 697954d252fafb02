package plugin

import (
	"context"
	"iter"

	"google.golang.org/grpc"

	"github.com/holdfast-dr/holdfast/sdk"
	pluginv1 "github.com/holdfast-dr/holdfast/sdk/plugin/v1"
)

// maxInstances is how many instances a plugin may list.
const maxInstances = 1 << 20

func (s *server) Activate(ctx context.Context, req *pluginv1.ActivateRequest) (*pluginv1.ActivateResponse, error) {
	activator, err := ability[sdk.Activator](s, sdk.AbilityActivator)
	if err != nil {
		return nil, err
	}
	instance, err := activator.Activate(ctx, fromOp(req.GetOp()), sdk.ActivateRequest{
		Replica: sdk.ReplicaID(req.GetReplica()), Point: sdk.PointID(req.GetPoint()), Kept: sdk.InstanceID(req.GetKept()),
		Purpose: sdk.Purpose(req.GetPurpose()), Name: req.GetName(), Networks: req.GetNetworks(),
		CPUs: int(req.GetCpus()), MemoryBytes: req.GetMemoryBytes(),
	})
	if err != nil {
		return nil, err
	}
	return &pluginv1.ActivateResponse{Instance: toInstance(instance)}, nil
}

func (s *server) Instances(req *pluginv1.InstancesRequest, out grpc.ServerStreamingServer[pluginv1.InstancesResponse]) error {
	activator, err := ability[sdk.Activator](s, sdk.AbilityActivator)
	if err != nil {
		return err
	}
	for instance, err := range activator.Instances(out.Context(), sdk.Space(req.GetSpace())) {
		if err != nil {
			return err
		}
		if err := out.Send(&pluginv1.InstancesResponse{Instance: toInstance(instance)}); err != nil {
			return err
		}
	}
	return nil
}

func (s *server) Deactivate(ctx context.Context, req *pluginv1.DeactivateRequest) (*pluginv1.DeactivateResponse, error) {
	activator, err := ability[sdk.Activator](s, sdk.AbilityActivator)
	if err != nil {
		return nil, err
	}
	return &pluginv1.DeactivateResponse{},
		activator.Deactivate(ctx, fromOp(req.GetOp()), sdk.InstanceID(req.GetInstance()), sdk.Layer(req.GetLayer()))
}

func (s *server) Finalize(ctx context.Context, req *pluginv1.FinalizeRequest) (*pluginv1.FinalizeResponse, error) {
	activator, err := ability[sdk.Activator](s, sdk.AbilityActivator)
	if err != nil {
		return nil, err
	}
	machine, err := activator.Finalize(ctx, fromOp(req.GetOp()), sdk.InstanceID(req.GetInstance()))
	if err != nil {
		return nil, err
	}
	return &pluginv1.FinalizeResponse{Machine: string(machine)}, nil
}

func (s *server) Reverse(ctx context.Context, req *pluginv1.ReverseRequest) (*pluginv1.ReverseResponse, error) {
	activator, err := ability[sdk.Activator](s, sdk.AbilityActivator)
	if err != nil {
		return nil, err
	}
	reversal, err := activator.Reverse(ctx, fromOp(req.GetOp()), sdk.InstanceID(req.GetInstance()))
	if err != nil {
		return nil, err
	}
	return &pluginv1.ReverseResponse{Machine: string(reversal.Machine), Since: toMarks(reversal.Since)}, nil
}

var _ sdk.Activator = (*remote)(nil)

func (r *remote) Activate(ctx context.Context, op sdk.Op, req sdk.ActivateRequest) (sdk.Instance, error) {
	resp, err := call(ctx, r, "Activate", r.client.Activate, &pluginv1.ActivateRequest{
		Op: toOp(op), Replica: string(req.Replica), Point: string(req.Point), Kept: string(req.Kept), Purpose: string(req.Purpose),
		Name: req.Name, Networks: req.Networks, Cpus: toCount(req.CPUs), MemoryBytes: req.MemoryBytes,
	})
	if err != nil {
		return sdk.Instance{}, err
	}
	instance := fromInstance(resp.GetInstance())
	if err := checkInstance(instance, op.Space); err != nil {
		return sdk.Instance{}, err
	}
	if instance.Replica != req.Replica || instance.Point != req.Point || instance.Purpose != req.Purpose {
		return sdk.Instance{}, broken("instance %s is of point %q of replica %q (%s), another was asked for",
			instance.ID, instance.Point, instance.Replica, instance.Purpose)
	}
	return instance, nil
}

func (r *remote) Instances(ctx context.Context, space sdk.Space) iter.Seq2[sdk.Instance, error] {
	return func(yield func(sdk.Instance, error) bool) {
		n := 0
		for message, err := range stream(ctx, r, "Instances", r.client.Instances, &pluginv1.InstancesRequest{Space: string(space)}) {
			instance := fromInstance(message.GetInstance())
			if err == nil {
				err = checkInstance(instance, space)
			}
			if n++; err == nil && n > maxInstances {
				err = broken("more than %d instances", maxInstances)
			}
			if err != nil {
				yield(sdk.Instance{}, err)
				return
			}
			if !yield(instance, nil) {
				return
			}
		}
	}
}

func (r *remote) Deactivate(ctx context.Context, op sdk.Op, instance sdk.InstanceID, layer sdk.Layer) error {
	_, err := call(ctx, r, "Deactivate", r.client.Deactivate,
		&pluginv1.DeactivateRequest{Op: toOp(op), Instance: string(instance), Layer: string(layer)})
	return err
}

func (r *remote) Finalize(ctx context.Context, op sdk.Op, instance sdk.InstanceID) (sdk.MachineID, error) {
	resp, err := call(ctx, r, "Finalize", r.client.Finalize, &pluginv1.FinalizeRequest{Op: toOp(op), Instance: string(instance)})
	if err != nil {
		return "", err
	}
	if id := resp.GetMachine(); id == "" || len(id) > maxID {
		return "", broken("a permanent machine's id has %d bytes", len(id))
	}
	return sdk.MachineID(resp.GetMachine()), nil
}

func (r *remote) Reverse(ctx context.Context, op sdk.Op, instance sdk.InstanceID) (sdk.Reversal, error) {
	resp, err := call(ctx, r, "Reverse", r.client.Reverse, &pluginv1.ReverseRequest{Op: toOp(op), Instance: string(instance)})
	if err != nil {
		return sdk.Reversal{}, err
	}
	reversal := sdk.Reversal{Machine: sdk.MachineID(resp.GetMachine()), Since: fromMarks(resp.GetSince())}
	if reversal.Machine == "" || len(reversal.Machine) > maxID || len(reversal.Since) > maxDisks {
		return sdk.Reversal{}, broken("a reversal with a machine's id of %d bytes and %d marks", len(reversal.Machine), len(reversal.Since))
	}
	for id, mark := range reversal.Since {
		if id == "" || len(id) > maxID || len(mark) == 0 || len(mark) > sdk.MaxMark {
			return sdk.Reversal{}, broken("a mark of %d bytes for a disk with an id of %d", len(mark), len(id))
		}
	}
	return reversal, nil
}

func toInstance(i sdk.Instance) *pluginv1.Instance {
	return &pluginv1.Instance{
		Id: string(i.ID), Space: string(i.Space), Machine: string(i.Machine), Replica: string(i.Replica), Point: string(i.Point),
		Purpose: string(i.Purpose), State: string(i.State), Epoch: i.Epoch, WrittenBytes: i.WrittenBytes,
	}
}

func fromInstance(wire *pluginv1.Instance) sdk.Instance {
	return sdk.Instance{
		ID: sdk.InstanceID(wire.GetId()), Space: sdk.Space(wire.GetSpace()), Machine: sdk.MachineID(wire.GetMachine()),
		Replica: sdk.ReplicaID(wire.GetReplica()), Point: sdk.PointID(wire.GetPoint()), Purpose: sdk.Purpose(wire.GetPurpose()),
		State: sdk.InstanceState(wire.GetState()), Epoch: wire.GetEpoch(), WrittenBytes: wire.GetWrittenBytes(),
	}
}

// checkInstance holds an instance that a plugin answered against the contract.
func checkInstance(i sdk.Instance, space sdk.Space) error {
	switch {
	case i.ID == "" || len(i.ID) > maxID:
		return broken("an instance's id has %d bytes", len(i.ID))
	case space != "" && i.Space != space || len(i.Space) > maxText:
		return broken("instance %s is in space %q instead of %q", i.ID, clip(string(i.Space), maxID), space)
	case len(i.Machine) > maxID || i.Replica == "" || len(i.Replica) > maxID || i.Point == "" || len(i.Point) > maxID:
		return broken("instance %s is of machine %q, replica %q and point %q", i.ID,
			clip(string(i.Machine), maxID), clip(string(i.Replica), maxID), clip(string(i.Point), maxID))
	case i.Purpose != sdk.PurposeReal && i.Purpose != sdk.PurposeTest:
		return broken("instance %s is for %q", i.ID, clip(string(i.Purpose), maxID))
	case i.WrittenBytes < 0:
		return broken("instance %s has written %d bytes", i.ID, i.WrittenBytes)
	}
	switch i.State {
	case sdk.InstanceRunning, sdk.InstanceOff:
		if i.Machine == "" {
			return broken("instance %s is %s and has no machine", i.ID, i.State)
		}
	case sdk.InstanceKept:
	default:
		return broken("instance %s is in state %q", i.ID, clip(string(i.State), maxID))
	}
	return nil
}
