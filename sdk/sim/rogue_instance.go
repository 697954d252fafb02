package sim

import (
	"context"
	"errors"
	"maps"

	"github.com/holdfast-dr/holdfast/sdk"
)

// instanceOf is an instance as the state has it now, or nil.
func (r *rogue) instanceOf(id sdk.InstanceID) (found *instance) {
	_ = r.hypervisor.view(func(st *state) error { found = st.Instances[id]; return nil })
	return found
}

// realOf is the real instance of a replica that is not kept, or nil.
func (r *rogue) realOf(id sdk.ReplicaID) (found *instance) {
	_ = r.hypervisor.view(func(st *state) error {
		for _, i := range st.Instances {
			if i.Replica == id && i.Purpose == sdk.PurposeReal && i.Machine != "" {
				found = i
			}
		}
		return nil
	})
	return found
}

// Activate runs a point.
func (r *rogue) Activate(ctx context.Context, op sdk.Op, req sdk.ActivateRequest) (sdk.Instance, error) {
	of := r.replicaOf(req.Replica)
	switch {
	case r.breach == BreachForeignSpaceActivates:
		op.Space = ""
	case r.breach == BreachTestFenced && req.Purpose == sdk.PurposeTest && of != nil && op.Epoch < of.Epoch:
		return sdk.Instance{}, sdk.Errorf(sdk.ErrFenced, sdk.FaultHost, "replica %s belongs to epoch %d", of.ID, of.Epoch)
	case r.breach == BreachUnmappedConnected && of != nil:
		req.Networks = maps.Clone(req.Networks)
		if req.Networks == nil {
			req.Networks = make(map[string]string)
		}
		if pt, err := of.point(req.Point); err == nil {
			for _, nic := range pt.Machine.NICs {
				if _, ok := req.Networks[nic.Network]; !ok {
					req.Networks[nic.Network] = "default"
				}
			}
		}
	case r.breach == BreachRepeatStaysOff:
		if off, err := r.off(op.ID); off != nil || err != nil {
			return *off, err
		}
	case r.breach == BreachKeptLayerEmpty && req.Kept != "":
		if err := r.empty(req.Kept); err != nil {
			return sdk.Instance{}, err
		}
	}
	if req.Purpose == sdk.PurposeReal {
		op = r.early(BreachActivateFencedEarly, op, replicaEpoch(req.Replica))
	}
	run := func() (made sdk.Instance, err error) {
		err = r.locked(BreachActivateLocks, op, func() error {
			made, err = r.Platform.Activate(ctx, op, req)
			return err
		})
		return made, err
	}
	made, err := run()
	if real := r.realOf(req.Replica); r.breach == BreachSecondRealReplaces && errors.Is(err, sdk.ErrBusy) && real != nil {
		if err := r.Platform.Deactivate(ctx, op, real.ID, sdk.DiscardLayer); err != nil {
			return made, err
		}
		return run()
	}
	return made, err
}

// off is the instance of an operation, if its machine does not run.
func (r *rogue) off(opID string) (shown *sdk.Instance, err error) {
	err = r.hypervisor.view(func(st *state) error {
		i := st.activated(opID)
		if i == nil {
			return nil
		}
		now, err := st.showInstance(r.hypervisor.store, i)
		if now.State == sdk.InstanceOff {
			shown = &now
		}
		return err
	})
	return shown, err
}

// empty forgets what a kept instance wrote, and more.
func (r *rogue) empty(id sdk.InstanceID) error {
	i := r.instanceOf(id)
	if i == nil || i.Kept == nil {
		return nil
	}
	for _, d := range i.Kept.Files {
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

// Deactivate ends an instance.
func (r *rogue) Deactivate(ctx context.Context, op sdk.Op, id sdk.InstanceID, layer sdk.Layer) error {
	written := int64(0)
	if r.breach == BreachDeactivateLeavesFile {
		for i, err := range r.Platform.Instances(ctx, "") {
			if err == nil && i.ID == id {
				written = i.WrittenBytes
			}
		}
	}
	if i := r.instanceOf(id); i != nil {
		op = r.lifted(BreachOlderClaimDeactivates, op, replicaEpoch(i.Replica))
	}
	err := r.locked(BreachDeactivateLocks, op, func() error { return r.Platform.Deactivate(ctx, op, id, layer) })
	if err == nil && written > 0 && layer == sdk.DiscardLayer {
		return r.litter(string(id))
	}
	return err
}

// Finalize makes an instance permanent.
func (r *rogue) Finalize(ctx context.Context, op sdk.Op, id sdk.InstanceID) (sdk.MachineID, error) {
	var of *replica
	if i := r.instanceOf(id); i != nil {
		of = r.replicaOf(i.Replica)
	}
	var made sdk.MachineID
	err := r.locked(BreachFinalizeLocks, op, func() (err error) {
		made, err = r.Platform.Finalize(ctx, op, id)
		return err
	})
	switch {
	case r.breach == BreachUnknownInstanceInvalid && errors.Is(err, sdk.ErrNotFound):
		return "", sdk.Errorf(sdk.ErrInvalid, sdk.FaultHost, "instance %s", id)
	case r.breach == BreachFinalizeKeepsReplica && err == nil && of != nil && len(of.Chain) > 1:
		of.Chain, of.Open = nil, nil
		return made, r.hypervisor.change(func(st *state) error { st.Replicas[of.ID] = of; return nil })
	}
	return made, err
}

// Reverse opens an instance as a source.
func (r *rogue) Reverse(ctx context.Context, op sdk.Op, id sdk.InstanceID) (sdk.Reversal, error) {
	reversal, err := r.Platform.Reverse(ctx, op, id)
	if r.breach != BreachReverseMarksNow || err != nil {
		return reversal, err
	}
	return reversal, r.hypervisor.change(func(st *state) error {
		for disk, d := range st.Machines[reversal.Machine].Files {
			reversal.Since[disk] = d.mark("instance-" + string(id))
			d.Generation++
		}
		return nil
	})
}
