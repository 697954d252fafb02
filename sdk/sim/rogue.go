package sim

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"sync"
	"time"

	"github.com/holdfast-dr/holdfast/sdk"
)

// rogue is a Platform that breaks one rule.
type rogue struct {
	*Platform
	breach Breach
	memory *memory
}

// memory is what breaches remember.
type memory struct {
	mutex  sync.Mutex // guards all below
	counts map[string]int
	values map[string]any
}

// add changes a count and returns what it is then.
func (m *memory) add(key string, n int) int {
	m.mutex.Lock()
	defer m.mutex.Unlock()
	if m.counts == nil {
		m.counts = make(map[string]int)
	}
	m.counts[key] += n
	return m.counts[key]
}

func (m *memory) set(key string, value any) {
	m.mutex.Lock()
	defer m.mutex.Unlock()
	if m.values == nil {
		m.values = make(map[string]any)
	}
	m.values[key] = value
}

func (m *memory) get(key string) any {
	m.mutex.Lock()
	defer m.mutex.Unlock()
	return m.values[key]
}

// take takes a lock and returns nil, or who has it.
func (m *memory) take(key string, p *Platform) *Platform {
	m.mutex.Lock()
	defer m.mutex.Unlock()
	if holder, ok := m.values[key].(*Platform); ok {
		return holder
	}
	if m.values == nil {
		m.values = make(map[string]any)
	}
	m.values[key] = p
	return nil
}

const (
	// linger is how long a call that minds others at its side waits for them.
	linger = 20 * time.Millisecond
	// lockGap is how long a call holds the lock that a kill leaves behind.
	lockGap = 30 * time.Millisecond
)

// crowded reports whether the same call is being made already.
func (r *rogue) crowded(breach Breach, key string) (alone func(), crowded bool) {
	if r.breach != breach {
		return func() {}, false
	}
	key = "crowd " + key
	if r.memory.add(key, 1) > 1 {
		return func() { r.memory.add(key, -1) }, true
	}
	r.wait(linger)
	return func() { r.memory.add(key, -1) }, false
}

// wait waits, unless the process is killed.
func (r *rogue) wait(d time.Duration) (killed bool) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return false
	case <-r.process.killed:
		return true
	}
}

// locked does work under a lock that a process which is killed meanwhile keeps
// for ever.
func (r *rogue) locked(breach Breach, op sdk.Op, work func() error) error {
	if r.breach != breach {
		return work()
	}
	key := "lock " + op.ID
	for {
		holder := r.memory.take(key, r.Platform)
		if holder == nil {
			break
		}
		if holder.turnIsOver() {
			return sdk.Errorf(sdk.ErrBusy, sdk.FaultBackend, "operation %s is locked", op.ID)
		}
		r.wait(time.Millisecond)
	}
	if r.wait(lockGap) {
		return errClosed
	}
	defer r.memory.set(key, nil)
	return work()
}

// lookLocked is locked for calls that only look. Whoever finds the lock of a
// killed process is turned away, and the next one is not.
func (r *rogue) lookLocked(breach Breach, what string) error {
	if r.breach != breach {
		return nil
	}
	key := "lock " + what
	for {
		holder := r.memory.take(key, r.Platform)
		if holder == nil {
			break
		}
		if holder.turnIsOver() {
			r.memory.set(key, nil)
			return sdk.Errorf(sdk.ErrBusy, sdk.FaultBackend, "%s is locked", what)
		}
		r.wait(time.Millisecond)
	}
	if r.wait(lockGap) {
		return errClosed
	}
	r.memory.set(key, nil)
	return nil
}

// early looks at an epoch before it waits its turn, and no more after it: the
// operation goes on as the newest that there is.
func (r *rogue) early(breach Breach, op sdk.Op, recorded func(*state) uint64) sdk.Op {
	if r.breach != breach || r.epochIs(recorded) > op.Epoch {
		return op
	}
	if r.turn() == nil {
		op.Epoch = max(op.Epoch, r.epochIs(recorded))
	}
	return op
}

// lifted is an operation that no epoch can fence.
func (r *rogue) lifted(breach Breach, op sdk.Op, recorded func(*state) uint64) sdk.Op {
	if r.breach == breach {
		op.Epoch = max(op.Epoch, r.epochIs(recorded))
	}
	return op
}

func (r *rogue) epochIs(recorded func(*state) uint64) uint64 {
	epoch := uint64(0)
	_ = r.hypervisor.view(func(st *state) error { epoch = recorded(st); return nil })
	return epoch
}

func machineEpoch(id sdk.MachineID) func(*state) uint64 {
	return func(st *state) uint64 {
		if m, ok := st.Machines[id]; ok {
			return m.Epoch
		}
		return 0
	}
}

func draftEpoch(id string) func(*state) uint64 {
	return func(st *state) uint64 {
		if d, ok := st.Drafts[id]; ok {
			return d.Epoch
		}
		return 0
	}
}

// litter leaves a file behind.
func (r *rogue) litter(what string) error {
	return r.hypervisor.change(func(*state) error { return r.hypervisor.store.create("left-by-"+what, 1) })
}

// As finds an ability that the settings do not leave out.
func (r *rogue) As(target any) bool { return sdk.Grant(target, r, r.offers) }

// Close closes, or does not.
func (r *rogue) Close() error {
	if r.breach == BreachCloseDoesNothing {
		return nil
	}
	return r.Platform.Close()
}

// Cancel cancels.
func (r *rogue) Cancel(ctx context.Context, opID string) error {
	if r.breach == BreachCancelFails {
		return sdk.Errorf(sdk.ErrNotFound, sdk.FaultBackend, "operation %s", opID)
	}
	return r.Platform.Cancel(ctx, opID)
}

// Machines lists.
func (r *rogue) Machines(ctx context.Context) iter.Seq2[sdk.Machine, error] {
	if r.breach == BreachContextIgnored {
		ctx = context.WithoutCancel(ctx)
	}
	return func(yield func(sdk.Machine, error) bool) {
		if err := r.lookLocked(BreachListingLocks, "the inventory"); err != nil {
			yield(sdk.Machine{}, err)
			return
		}
		if r.breach == BreachListingSpoilsNext && r.memory.get("given up") == true {
			r.memory.set("given up", false)
			return
		}
		n := 0
		for m, err := range r.Platform.Machines(ctx) {
			if r.breach == BreachProcessesDiffer && len(m.Disks) > 0 {
				m.Disks[0].Pool = fmt.Sprintf("pool of %p", r.Platform)
			}
			if n++; n == 1 && err == nil && r.breach == BreachInventoryRepeats && !yield(m, nil) {
				return
			}
			if !yield(m, err) {
				if err == nil {
					r.memory.set("given up", true)
				}
				return
			}
		}
		if r.breach != BreachDraftsListed {
			return
		}
		var drafts []sdk.Machine
		_ = r.hypervisor.view(func(st *state) error {
			for id, d := range st.Drafts {
				if d.Committed == "" {
					drafts = append(drafts, sdk.Machine{ID: sdk.MachineID(id), Name: d.Spec.Machine.Name, State: sdk.StateOff})
				}
			}
			return nil
		})
		for _, m := range drafts {
			if !yield(m, nil) {
				return
			}
		}
	}
}

// Probe says what works.
func (r *rogue) Probe(ctx context.Context, subject sdk.Subject) (sdk.Report, error) {
	if r.breach == BreachContextIgnored {
		ctx = context.WithoutCancel(ctx)
	}
	leave, crowded := r.crowded(BreachOneProbeAtATime, "probe")
	defer leave()
	if crowded {
		return sdk.Report{}, errors.New("somebody else is probing")
	}
	report, err := r.Platform.Probe(ctx, subject)
	switch {
	case r.breach == BreachProbeKnowsAll && errors.Is(err, sdk.ErrNotFound) && subject.Machine != "":
		return report, nil
	case r.breach == BreachErrorIsTwo && errors.Is(err, sdk.ErrNotFound) && subject.Machine != "":
		return report, errors.Join(err, sdk.ErrBusy)
	case r.breach == BreachHintLost:
		var e *sdk.Error
		if errors.As(err, &e) {
			e.Hint = ""
		}
	case r.breach == BreachProbeWithoutReason:
		for i, f := range report.Findings {
			if f.Ability == sdk.AbilityChangeTracker {
				report.Findings[i].Works, report.Findings[i].Reason = false, ""
			}
		}
	}
	return report, err
}

// Start starts.
func (r *rogue) Start(ctx context.Context, op sdk.Op, id sdk.MachineID) error {
	if r.breach == BreachForeignSpaceStarts {
		op.Space = ""
	}
	op = r.early(BreachStartFencedEarly, op, machineEpoch(id))
	err := r.locked(BreachStartLocks, op, func() error { return r.Platform.Start(ctx, op, id) })
	switch {
	case r.breach == BreachUnknownStartInvalid && errors.Is(err, sdk.ErrNotFound):
		return sdk.Errorf(sdk.ErrInvalid, sdk.FaultHost, "machine %s", id)
	case r.breach == BreachStartedIsPaused && err == nil:
		return r.hypervisor.SetState(id, sdk.StatePaused)
	}
	return err
}

// Stop stops.
func (r *rogue) Stop(ctx context.Context, op sdk.Op, id sdk.MachineID, grace time.Duration) error {
	if r.breach == BreachGraceHasNoEnd && grace > 0 {
		return nil
	}
	leave, crowded := r.crowded(BreachParallelStopIsBusy, op.ID)
	defer leave()
	if crowded {
		return sdk.Errorf(sdk.ErrBusy, sdk.FaultBackend, "machine %s is being stopped", id)
	}
	op = r.lifted(BreachOlderClaimStops, op, machineEpoch(id))
	return r.locked(BreachStopLocks, op, func() error { return r.Platform.Stop(ctx, op, id, grace) })
}
