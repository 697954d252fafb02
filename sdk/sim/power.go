package sim

import (
	"context"
	"time"

	"github.com/holdfast-dr/holdfast/sdk"
)

// Start powers a machine on.
func (p *Platform) Start(ctx context.Context, op sdk.Op, id sdk.MachineID) error {
	return p.power(ctx, "Start", op, id, sdk.StateRunning)
}

// Stop powers a machine off. A simulated guest always shuts down at once.
func (p *Platform) Stop(ctx context.Context, op sdk.Op, id sdk.MachineID, _ time.Duration) error {
	return p.power(ctx, "Stop", op, id, sdk.StateOff)
}

func (p *Platform) power(ctx context.Context, call string, op sdk.Op, id sdk.MachineID, to sdk.State) error {
	return p.during(ctx, call, op, func(bool) error {
		return p.hypervisor.change(func(st *state) error {
			m, err := st.machine(op, id)
			if err != nil {
				return err
			}
			if to == sdk.StateRunning {
				return st.startIn(m)
			}
			m.State = to
			return nil
		})
	})
}
