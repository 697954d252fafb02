package sim

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"syscall"
	"time"

	"github.com/holdfast-dr/holdfast/sdk"
)

// Action is what a fault does to a call.
type Action string

// The actions.
const (
	ActionError   Action = "error"   // fails with Code, before anything is done
	ActionHang    Action = "hang"    // never returns, whatever the context says, until the platform is closed
	ActionPanic   Action = "panic"   // panics
	ActionKill    Action = "kill"    // kills the process before anything is done
	ActionDie     Action = "die"     // does the work, then kills the process before the answer
	ActionPending Action = "pending" // ErrPending for the first Times calls with each Op.ID
	ActionDelay   Action = "delay"   // waits for Delay first
	ActionLie     Action = "lie"     // Changed leaves out its first extent
)

var actions = []Action{ActionError, ActionHang, ActionPanic, ActionKill, ActionDie, ActionPending, ActionDelay, ActionLie}

// Fault is something that goes wrong on request. Calls are counted in the
// hypervisor, so a fault that killed a process does not hit the next process
// again.
type Fault struct {
	// Call is the name of a method: Machines, Probe, Cancel, Snapshot, OpenDisk,
	// EndSnapshot, Changed, ReleaseMark, CreateDraft, OpenDraftDisk,
	// CommitDraft, AbortDraft, Start, Stop, Watch, one of Replicator, Activator,
	// Networker, Pools, Console or Guest, or of a disk ReadAt, Extents, WriteAt,
	// Zero, Flush. "*" is every method that is not of a disk.
	Call   string `json:"call"`
	Action Action `json:"action"`
	// Nth is the first call that is hit, counted from 1; 0 means 1.
	Nth int `json:"nth,omitempty"`
	// Times is how many calls are hit; 0 means 1, and below 0 all.
	Times   int           `json:"times,omitempty"`
	Code    sdk.Code      `json:"code,omitempty"`
	Fault   sdk.Fault     `json:"fault,omitempty"`
	Message string        `json:"message,omitempty"`
	Hint    string        `json:"hint,omitempty"`
	Delay   time.Duration `json:"delay,omitempty"` // nanoseconds
}

func (f Fault) check() error {
	if f.Call == "" || !slices.Contains(actions, f.Action) {
		return sdk.Errorf(sdk.ErrInvalid, sdk.FaultHost, "fault %q on call %q: want a call and one of the actions %v", f.Action, f.Call, actions)
	}
	return nil
}

// key is how calls are counted: faults that are alike share a count.
func (f Fault) key() string {
	key, err := json.Marshal(f)
	if err != nil {
		panic(err) // plain data always encodes
	}
	return string(key)
}

func (f Fault) hits(call string) bool {
	return f.Call == call || f.Call == "*" && !slices.Contains(diskCalls, call)
}

var diskCalls = []string{"ReadAt", "Extents", "WriteAt", "Zero", "Flush"}

// due counts the call and says which faults hit it.
func (h *Hypervisor) due(settings []Fault, call, opID string) (due []Fault, pending *sdk.Error, err error) {
	relevant := func(all []Fault) bool {
		return slices.ContainsFunc(all, func(f Fault) bool { return f.hits(call) })
	}
	if !relevant(settings) {
		faults, err := h.faults()
		if err != nil || !relevant(faults) {
			return nil, nil, err
		}
	}
	err = h.change(func(st *state) error {
		for _, f := range slices.Concat(settings, st.Faults) {
			if !f.hits(call) {
				continue
			}
			if f.Action == ActionPending {
				key := call + "/" + opID
				if n := st.Pending[key]; n < max(f.Times, 1) {
					st.Pending[key] = n + 1
					pending = sdk.Errorf(sdk.ErrPending, sdk.FaultBackend, "%s", call)
					pending.Progress = float64(n) / float64(max(f.Times, 1))
					pending.After = max(f.Delay, time.Millisecond)
				}
				continue
			}
			st.Calls[f.key()]++
			n, nth := st.Calls[f.key()], max(f.Nth, 1)
			if n >= nth && (f.Times < 0 || n < nth+max(f.Times, 1)) {
				due = append(due, f)
			}
		}
		return nil
	})
	return due, pending, err
}

// faults are the hypervisor's own. Nearly always there are none, and then the
// state, which every call would have to decode for it, is not.
func (h *Hypervisor) faults() ([]Fault, error) {
	unlock, err := h.store.rlock()
	if err != nil {
		return nil, err
	}
	defer unlock()
	doc, err := h.store.load()
	if err != nil || !bytes.Contains(doc, []byte(`"Faults":[`)) {
		return nil, err
	}
	st, err := readState(h.store)
	if err != nil {
		return nil, err
	}
	return st.Faults, nil
}

// during runs work, the body of a call, with the faults that hit it. lie is
// true when Changed has to.
func (p *Platform) during(ctx context.Context, call string, op sdk.Op, work func(lie bool) error) error {
	if err := p.open(); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("%s: %w", call, err)
	}
	due, pending, err := p.hypervisor.due(p.settings.Faults, call, op.ID)
	if err != nil {
		return err
	}
	lie, die := false, false
	for _, f := range due {
		switch f.Action {
		case ActionLie:
			lie = true
		case ActionDie:
			die = true
		default:
			if err := p.suffer(f, call); err != nil {
				return err
			}
		}
	}
	if pending != nil {
		return pending
	}
	err = work(lie)
	if die {
		p.die()
	}
	return err
}

// suffer is the part of a fault that comes before the work.
func (p *Platform) suffer(f Fault, call string) error {
	switch f.Action {
	case ActionError:
		e := sdk.Errorf(f.Code.Sentinel(), f.Fault, "%s", f.Message)
		e.Hint = f.Hint
		if f.Message == "" {
			e.Message = call + " fails on request"
		}
		return e
	case ActionHang:
		<-p.closed
		return errClosed
	case ActionPanic:
		panic(call + " panics on request")
	case ActionKill:
		p.die()
	case ActionDelay:
		timer := time.NewTimer(f.Delay)
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-p.closed:
			return errClosed
		}
	}
	return nil
}

// die ends the process without a word, as the kernel's OOM killer would.
func (p *Platform) die() {
	if p.settings.Die != nil {
		p.settings.Die()
		return
	}
	_ = syscall.Kill(syscall.Getpid(), syscall.SIGKILL)
	select {} // the signal is on its way
}
