package host

import (
	"context"
	"iter"
	"slices"
	"sync/atomic"
	"time"

	"github.com/holdfast-dr/holdfast/sdk"
)

// Platform is an endpoint's platform, whichever process is behind it at the
// moment. sdk.As finds the abilities that the plugin advertised when it was
// last started.
type Platform struct {
	slot     *slot
	released atomic.Bool
}

var (
	_ sdk.Platform      = (*Platform)(nil)
	_ sdk.Source        = (*Platform)(nil)
	_ sdk.ChangeTracker = (*Platform)(nil)
	_ sdk.Target        = (*Platform)(nil)
	_ sdk.Power         = (*Platform)(nil)
)

func (p *Platform) release() {
	if !p.released.Swap(true) {
		p.slot.leave()
	}
}

// now is the platform of the process that runs at this moment.
func (p *Platform) now(ctx context.Context) (sdk.Platform, error) {
	if p.released.Load() {
		return nil, sdk.Errorf(sdk.ErrInvalid, sdk.FaultHost, "endpoint %s was released", p.slot.endpoint.Name)
	}
	process, err := p.slot.running(ctx)
	if err != nil {
		return nil, err
	}
	return process.Platform(), nil
}

// As finds an ability.
func (p *Platform) As(target any) bool {
	has := func(a sdk.Ability) bool {
		abilities := p.slot.abilities.Load()
		return abilities != nil && slices.Contains(*abilities, a)
	}
	switch to := target.(type) {
	case *sdk.Source:
		if has(sdk.AbilitySource) {
			*to = p
			return true
		}
	case *sdk.ChangeTracker:
		if has(sdk.AbilityChangeTracker) {
			*to = p
			return true
		}
	case *sdk.Target:
		if has(sdk.AbilityTarget) {
			*to = p
			return true
		}
	case *sdk.Power:
		if has(sdk.AbilityPower) {
			*to = p
			return true
		}
	}
	return false
}

// ability finds what a call needs in the process of this moment.
func ability[T any](ctx context.Context, p *Platform, name sdk.Ability) (T, error) {
	var none T
	now, err := p.now(ctx)
	if err != nil {
		return none, err
	}
	found, ok := sdk.As[T](now)
	if !ok {
		return none, sdk.Errorf(sdk.ErrUnsupported, sdk.FaultPlugin, "plugin %s does not offer %s", p.slot.endpoint.Plugin, name)
	}
	return found, nil
}

// Machines lists the inventory.
func (p *Platform) Machines(ctx context.Context) iter.Seq2[sdk.Machine, error] {
	return func(yield func(sdk.Machine, error) bool) {
		now, err := p.now(ctx)
		if err != nil {
			yield(sdk.Machine{}, err)
			return
		}
		now.Machines(ctx)(yield)
	}
}

// Probe says what works.
func (p *Platform) Probe(ctx context.Context, subject sdk.Subject) (sdk.Report, error) {
	now, err := p.now(ctx)
	if err != nil {
		return sdk.Report{}, err
	}
	return now.Probe(ctx, subject)
}

// Cancel asks the back-end to give up an operation.
func (p *Platform) Cancel(ctx context.Context, opID string) error {
	now, err := p.now(ctx)
	if err != nil {
		return err
	}
	return now.Cancel(ctx, opID)
}

// Close is what release does; the process belongs to the host.
func (p *Platform) Close() error {
	p.release()
	return nil
}

// Snapshot fixes one moment of a machine.
func (p *Platform) Snapshot(ctx context.Context, op sdk.Op, req sdk.SnapshotRequest) (sdk.Snapshot, error) {
	source, err := ability[sdk.Source](ctx, p, sdk.AbilitySource)
	if err != nil {
		return sdk.Snapshot{}, err
	}
	return source.Snapshot(ctx, op, req)
}

// OpenDisk reads one disk of a snapshot. The reader ends with its process.
func (p *Platform) OpenDisk(ctx context.Context, snap sdk.Snapshot, disk sdk.DiskID) (sdk.BlockReader, error) {
	source, err := ability[sdk.Source](ctx, p, sdk.AbilitySource)
	if err != nil {
		return nil, err
	}
	return source.OpenDisk(ctx, snap, disk)
}

// EndSnapshot releases a snapshot.
func (p *Platform) EndSnapshot(ctx context.Context, op sdk.Op, snap sdk.Snapshot, keep bool) error {
	source, err := ability[sdk.Source](ctx, p, sdk.AbilitySource)
	if err != nil {
		return err
	}
	return source.EndSnapshot(ctx, op, snap, keep)
}

// Changed lists what changed.
func (p *Platform) Changed(ctx context.Context, snap sdk.Snapshot, disk sdk.DiskID) iter.Seq2[sdk.Extent, error] {
	return func(yield func(sdk.Extent, error) bool) {
		tracker, err := ability[sdk.ChangeTracker](ctx, p, sdk.AbilityChangeTracker)
		if err != nil {
			yield(sdk.Extent{}, err)
			return
		}
		tracker.Changed(ctx, snap, disk)(yield)
	}
}

// ReleaseMark frees a mark.
func (p *Platform) ReleaseMark(ctx context.Context, op sdk.Op, machine sdk.MachineID, disk sdk.DiskID, mark sdk.Mark) error {
	tracker, err := ability[sdk.ChangeTracker](ctx, p, sdk.AbilityChangeTracker)
	if err != nil {
		return err
	}
	return tracker.ReleaseMark(ctx, op, machine, disk, mark)
}

// CreateDraft makes room for a machine.
func (p *Platform) CreateDraft(ctx context.Context, op sdk.Op, spec sdk.DraftSpec) (sdk.Draft, error) {
	target, err := ability[sdk.Target](ctx, p, sdk.AbilityTarget)
	if err != nil {
		return sdk.Draft{}, err
	}
	return target.CreateDraft(ctx, op, spec)
}

// OpenDraftDisk opens a disk for writing. The writer ends with its process.
func (p *Platform) OpenDraftDisk(ctx context.Context, op sdk.Op, draft sdk.Draft, disk sdk.DiskID) (sdk.BlockWriter, error) {
	target, err := ability[sdk.Target](ctx, p, sdk.AbilityTarget)
	if err != nil {
		return nil, err
	}
	return target.OpenDraftDisk(ctx, op, draft, disk)
}

// CommitDraft makes a draft a machine.
func (p *Platform) CommitDraft(ctx context.Context, op sdk.Op, draft sdk.Draft) (sdk.MachineID, error) {
	target, err := ability[sdk.Target](ctx, p, sdk.AbilityTarget)
	if err != nil {
		return "", err
	}
	return target.CommitDraft(ctx, op, draft)
}

// AbortDraft removes a draft.
func (p *Platform) AbortDraft(ctx context.Context, op sdk.Op, draft sdk.Draft) error {
	target, err := ability[sdk.Target](ctx, p, sdk.AbilityTarget)
	if err != nil {
		return err
	}
	return target.AbortDraft(ctx, op, draft)
}

// Start powers a machine on.
func (p *Platform) Start(ctx context.Context, op sdk.Op, machine sdk.MachineID) error {
	power, err := ability[sdk.Power](ctx, p, sdk.AbilityPower)
	if err != nil {
		return err
	}
	return power.Start(ctx, op, machine)
}

// Stop powers a machine off.
func (p *Platform) Stop(ctx context.Context, op sdk.Op, machine sdk.MachineID, grace time.Duration) error {
	power, err := ability[sdk.Power](ctx, p, sdk.AbilityPower)
	if err != nil {
		return err
	}
	return power.Stop(ctx, op, machine, grace)
}
