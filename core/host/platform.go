package host

import (
	"context"
	"errors"
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
	host     *Host
	slot     atomic.Pointer[slot] // changes when a drain is over
	released atomic.Bool
	watching atomic.Bool // it was opened for a watch, which goes on
}

var (
	_ sdk.Platform      = (*Platform)(nil)
	_ sdk.Source        = (*Platform)(nil)
	_ sdk.ChangeTracker = (*Platform)(nil)
	_ sdk.Target        = (*Platform)(nil)
	_ sdk.Power         = (*Platform)(nil)
	_ sdk.Watcher       = (*Platform)(nil)
)

func (p *Platform) release() {
	if p.released.Swap(true) {
		return
	}
	p.host.mutex.Lock()
	defer p.host.mutex.Unlock()
	p.slot.Load().leave(p)
}

// now is the process that runs at this moment.
func (p *Platform) now(ctx context.Context) (*life, error) {
	for {
		s := p.slot.Load()
		if p.released.Load() {
			return nil, sdk.Errorf(sdk.ErrInvalid, sdk.FaultHost, "endpoint %s was released", s.endpoint.Name)
		}
		l, err := s.running(ctx)
		if !errors.Is(err, errMoved) {
			return l, err
		}
		p.host.move(p)
	}
}

// act makes one call of the process of this moment.
func act[T any](ctx context.Context, p *Platform, method string, call func(sdk.Platform) (T, error)) (T, error) {
	var none T
	l, err := p.now(ctx)
	if err != nil {
		return none, err
	}
	end, began := l.begin(ctx, method), time.Now()
	answer, err := call(l.process.Platform())
	if err := end(time.Since(began), err); err != nil {
		return none, err
	}
	return answer, nil
}

// actOf is act for a call of an ability.
func actOf[A, T any](ctx context.Context, p *Platform, name sdk.Ability, method string, call func(A) (T, error)) (T, error) {
	return act(ctx, p, method, func(now sdk.Platform) (T, error) {
		found, ok := sdk.As[A](now)
		if !ok {
			var none T
			return none, sdk.Errorf(sdk.ErrUnsupported, sdk.FaultPlugin, "it does not offer %s", name)
		}
		return call(found)
	})
}

// nothing is what a call answers that only works or not.
type nothing = struct{}

// change is actOf for a call that changes something and answers nothing.
func change[A any](ctx context.Context, p *Platform, op sdk.Op, name sdk.Ability, method string, call func(A) error) error {
	_, err := actOf(doing(ctx, op), p, name, method, func(found A) (nothing, error) { return nothing{}, call(found) })
	return err
}

// list makes a call that answers many. The time that the reader takes is not
// the plugin's.
func list[T any](ctx context.Context, p *Platform, method string, open func(sdk.Platform) (iter.Seq2[T, error], error)) iter.Seq2[T, error] {
	return func(yield func(T, error) bool) {
		var none T
		l, err := p.now(ctx)
		if err != nil {
			yield(none, err)
			return
		}
		var (
			end    = l.begin(ctx, method)
			began  = time.Now()
			took   time.Duration
			failed error
		)
		all, err := open(l.process.Platform())
		if err != nil {
			yield(none, end(time.Since(began), err))
			return
		}
		for v, err := range all {
			took += time.Since(began)
			if err != nil {
				failed = err
				break
			}
			if !yield(v, nil) {
				_ = end(took, nil)
				return
			}
			began = time.Now()
		}
		if failed == nil {
			took += time.Since(began)
		}
		if err := end(took, failed); err != nil {
			yield(none, err)
		}
	}
}

// listOf is list for a call of an ability.
func listOf[A, T any](ctx context.Context, p *Platform, name sdk.Ability, method string, call func(A) iter.Seq2[T, error]) iter.Seq2[T, error] {
	return list(ctx, p, method, func(now sdk.Platform) (iter.Seq2[T, error], error) {
		found, ok := sdk.As[A](now)
		if !ok {
			return nil, sdk.Errorf(sdk.ErrUnsupported, sdk.FaultPlugin, "it does not offer %s", name)
		}
		return call(found), nil
	})
}

// openOf is openOn for a call of an ability, on the process of this moment.
func openOf[A, T any](ctx context.Context, p *Platform, name sdk.Ability, method string, call func(A) (T, error), wrap func(*life, T) T) (T, error) {
	l, err := p.now(ctx)
	if err != nil {
		var none T
		return none, err
	}
	return openOn(ctx, l, method, func(now sdk.Platform) (T, error) {
		found, ok := sdk.As[A](now)
		if !ok {
			var none T
			return none, sdk.Errorf(sdk.ErrUnsupported, sdk.FaultPlugin, "it does not offer %s", name)
		}
		return call(found)
	}, func(opened T) T { return wrap(l, opened) })
}

// doing puts an operation's id into what is logged of a call.
func doing(ctx context.Context, op sdk.Op) context.Context {
	return context.WithValue(ctx, opKey{}, op)
}

// As finds an ability that the process advertised.
func (p *Platform) As(target any) bool {
	abilities := p.slot.Load().abilities.Load()
	return abilities != nil && sdk.Grant(target, p, func(a sdk.Ability) bool { return slices.Contains(*abilities, a) })
}

// Machines lists the inventory.
func (p *Platform) Machines(ctx context.Context) iter.Seq2[sdk.Machine, error] {
	return list(ctx, p, "Machines", func(now sdk.Platform) (iter.Seq2[sdk.Machine, error], error) { return now.Machines(ctx), nil })
}

// Probe says what works.
func (p *Platform) Probe(ctx context.Context, subject sdk.Subject) (sdk.Report, error) {
	return act(ctx, p, "Probe", func(now sdk.Platform) (sdk.Report, error) { return now.Probe(ctx, subject) })
}

// Cancel asks the back-end to give up an operation.
func (p *Platform) Cancel(ctx context.Context, opID string) error {
	_, err := act(doing(ctx, sdk.Op{ID: opID}), p, "Cancel", func(now sdk.Platform) (nothing, error) {
		return nothing{}, now.Cancel(ctx, opID)
	})
	return err
}

// Close is what release does; the process belongs to the host.
func (p *Platform) Close() error {
	p.release()
	return nil
}

// Snapshot fixes one moment of a machine.
func (p *Platform) Snapshot(ctx context.Context, op sdk.Op, req sdk.SnapshotRequest) (sdk.Snapshot, error) {
	return actOf(doing(ctx, op), p, sdk.AbilitySource, "Snapshot", func(source sdk.Source) (sdk.Snapshot, error) {
		return source.Snapshot(ctx, op, req)
	})
}

// OpenDisk reads one disk of a snapshot. The reader ends with its process.
func (p *Platform) OpenDisk(ctx context.Context, snap sdk.Snapshot, disk sdk.DiskID) (sdk.BlockReader, error) {
	return openOf(ctx, p, sdk.AbilitySource, "OpenDisk", func(source sdk.Source) (sdk.BlockReader, error) {
		return source.OpenDisk(ctx, snap, disk)
	}, func(l *life, r sdk.BlockReader) sdk.BlockReader { return newReader(l, r) })
}

// EndSnapshot releases a snapshot.
func (p *Platform) EndSnapshot(ctx context.Context, op sdk.Op, snap sdk.Snapshot, keep bool) error {
	return change(ctx, p, op, sdk.AbilitySource, "EndSnapshot", func(source sdk.Source) error { return source.EndSnapshot(ctx, op, snap, keep) })
}

// Changed lists what changed.
func (p *Platform) Changed(ctx context.Context, snap sdk.Snapshot, disk sdk.DiskID) iter.Seq2[sdk.Extent, error] {
	return listOf(ctx, p, sdk.AbilityChangeTracker, "Changed", func(tracker sdk.ChangeTracker) iter.Seq2[sdk.Extent, error] {
		return tracker.Changed(ctx, snap, disk)
	})
}

// ReleaseMark frees a mark.
func (p *Platform) ReleaseMark(ctx context.Context, op sdk.Op, machine sdk.MachineID, disk sdk.DiskID, mark sdk.Mark) error {
	return change(ctx, p, op, sdk.AbilityChangeTracker, "ReleaseMark", func(tracker sdk.ChangeTracker) error {
		return tracker.ReleaseMark(ctx, op, machine, disk, mark)
	})
}

// CreateDraft makes room for a machine.
func (p *Platform) CreateDraft(ctx context.Context, op sdk.Op, spec sdk.DraftSpec) (sdk.Draft, error) {
	return actOf(doing(ctx, op), p, sdk.AbilityTarget, "CreateDraft", func(target sdk.Target) (sdk.Draft, error) {
		return target.CreateDraft(ctx, op, spec)
	})
}

// OpenDraftDisk opens a disk for writing. The writer ends with its process.
func (p *Platform) OpenDraftDisk(ctx context.Context, op sdk.Op, draft sdk.Draft, disk sdk.DiskID) (sdk.BlockWriter, error) {
	return openOf(doing(ctx, op), p, sdk.AbilityTarget, "OpenDraftDisk", func(target sdk.Target) (sdk.BlockWriter, error) {
		return target.OpenDraftDisk(ctx, op, draft, disk)
	}, func(l *life, w sdk.BlockWriter) sdk.BlockWriter { return newWriter(l, w) })
}

// CommitDraft makes a draft a machine.
func (p *Platform) CommitDraft(ctx context.Context, op sdk.Op, draft sdk.Draft) (sdk.MachineID, error) {
	return actOf(doing(ctx, op), p, sdk.AbilityTarget, "CommitDraft", func(target sdk.Target) (sdk.MachineID, error) {
		return target.CommitDraft(ctx, op, draft)
	})
}

// AbortDraft removes a draft.
func (p *Platform) AbortDraft(ctx context.Context, op sdk.Op, draft sdk.Draft) error {
	return change(ctx, p, op, sdk.AbilityTarget, "AbortDraft", func(target sdk.Target) error { return target.AbortDraft(ctx, op, draft) })
}

// Start powers a machine on.
func (p *Platform) Start(ctx context.Context, op sdk.Op, machine sdk.MachineID) error {
	return change(ctx, p, op, sdk.AbilityPower, "Start", func(power sdk.Power) error { return power.Start(ctx, op, machine) })
}

// Stop powers a machine off.
func (p *Platform) Stop(ctx context.Context, op sdk.Op, machine sdk.MachineID, grace time.Duration) error {
	return change(ctx, p, op, sdk.AbilityPower, "Stop", func(power sdk.Power) error { return power.Stop(ctx, op, machine, grace) })
}
