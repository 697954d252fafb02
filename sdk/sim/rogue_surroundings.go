package sim

import (
	"context"
	"errors"

	"github.com/holdfast-dr/holdfast/sdk"
)

// CreateNetwork makes a network.
func (r *rogue) CreateNetwork(ctx context.Context, op sdk.Op, spec sdk.NetworkSpec) (sdk.Network, error) {
	made, err := r.Platform.CreateNetwork(ctx, op, spec)
	switch {
	case r.breach == BreachNetworkNotOurs && r.memory.add("network "+op.ID, 1) > 1:
		made.Ours = false
	case r.breach == BreachTakenNameShared && errors.Is(err, sdk.ErrInvalid):
		err = r.hypervisor.view(func(st *state) error {
			if there, ok := st.Made[spec.Name]; ok {
				made = there.Network
				return nil
			}
			return err
		})
	}
	return made, err
}

// RemoveNetwork removes a network.
func (r *rogue) RemoveNetwork(ctx context.Context, op sdk.Op, name string) error {
	if r.breach == BreachForeignSpaceDisconnects {
		op.Space = ""
	}
	op = r.lifted(BreachOlderClaimDisconnects, op, func(st *state) uint64 {
		if n, ok := st.Made[name]; ok {
			return n.Epoch
		}
		return 0
	})
	err := r.Platform.RemoveNetwork(ctx, op, name)
	if r.breach == BreachUsedNetworkRemoved && errors.Is(err, sdk.ErrBusy) {
		return r.hypervisor.change(func(st *state) error { delete(st.Made, name); return nil })
	}
	return err
}

// Capacity is what there is.
func (r *rogue) Capacity(ctx context.Context) (sdk.Capacity, error) {
	capacity, err := r.Platform.Capacity(ctx)
	if r.breach == BreachMoreFreeThanThereIs && err == nil {
		capacity.Pools[0].FreeBytes = capacity.Pools[0].SizeBytes + 1
	}
	return capacity, err
}

// SetLimits sets limits.
func (r *rogue) SetLimits(ctx context.Context, op sdk.Op, set sdk.Limits) (sdk.Enforced, error) {
	if r.breach == BreachLimitsNotKept {
		set = sdk.Limits{}
	}
	return r.Platform.SetLimits(ctx, op, set)
}

// Usage is what is used.
func (r *rogue) Usage(ctx context.Context, space sdk.Space) (sdk.Usage, error) {
	used, err := r.Platform.Usage(ctx, space)
	if r.breach == BreachStorageNotCounted {
		used.StorageBytes = nil
	}
	return used, err
}

// Screenshot shows.
func (r *rogue) Screenshot(ctx context.Context, space sdk.Space, id sdk.MachineID) ([]byte, error) {
	if r.breach == BreachForeignSpaceLooks {
		space = ""
	}
	shot, err := r.Platform.Screenshot(ctx, space, id)
	if r.breach == BreachScreenshotIsNone && err == nil {
		shot = shot[:len(shot)/2]
	}
	return shot, err
}

// GuestInfo asks.
func (r *rogue) GuestInfo(ctx context.Context, space sdk.Space, id sdk.MachineID) (sdk.GuestInfo, error) {
	if r.breach == BreachForeignSpaceAsks {
		space = ""
	}
	info, err := r.Platform.GuestInfo(ctx, space, id)
	if r.breach == BreachOffGuestInvalid && errors.Is(err, sdk.ErrUnavailable) {
		return info, sdk.Errorf(sdk.ErrInvalid, sdk.FaultHost, "machine %s", id)
	}
	return info, err
}
