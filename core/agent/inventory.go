package agent

import (
	"context"
	"errors"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/holdfast-dr/holdfast/core/host"
	"github.com/holdfast-dr/holdfast/sdk"
)

const (
	// rewatchSoon and rewatchLate bound the pause after a watch that failed;
	// each failure doubles it.
	rewatchSoon = 5 * time.Second
	rewatchLate = 2 * time.Minute
	// rewatchNew is the pause for a plugin that offers no watch: a newer one may.
	rewatchNew = time.Hour
)

// inventories are the machines of the endpoints whose plugins tell of changes.
// Whoever asks for the machines of another endpoint has them listed.
type inventories struct {
	mu   sync.Mutex // guards kept
	kept map[string]map[sdk.MachineID]sdk.Machine
}

// of is what an endpoint has, in the order of names; ok is false unless its
// watch stands.
func (i *inventories) of(endpointID string) (machines []sdk.Machine, ok bool) {
	i.mu.Lock()
	defer i.mu.Unlock()
	kept, ok := i.kept[endpointID]
	machines = slices.Collect(maps.Values(kept))
	slices.SortFunc(machines, func(x, y sdk.Machine) int {
		return strings.Compare(x.Name+"\x00"+string(x.ID), y.Name+"\x00"+string(y.ID))
	})
	return machines, ok
}

// put replaces what an endpoint has; nil means that nothing is known.
func (i *inventories) put(endpointID string, machines map[sdk.MachineID]sdk.Machine) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if machines == nil {
		delete(i.kept, endpointID)
		return
	}
	if i.kept == nil {
		i.kept = make(map[string]map[sdk.MachineID]sdk.Machine)
	}
	i.kept[endpointID] = machines
}

// apply follows one change, and says whether the machine was known before.
func (i *inventories) apply(endpointID string, c sdk.Change) (before bool) {
	i.mu.Lock()
	defer i.mu.Unlock()
	kept, ok := i.kept[endpointID]
	_, before = kept[c.Machine]
	switch {
	case !ok:
	case c.Now == nil:
		delete(kept, c.Machine)
	case before || len(kept) < maxMachines:
		kept[c.Machine] = listed(*c.Now)
	}
	return before
}

// listed is what is kept of a machine: all but the back-end's own description,
// which may be long, and which backups ask for anew.
func listed(m sdk.Machine) sdk.Machine {
	m.Native = nil
	return m
}

// watchInventories follows every endpoint for as long as it is there.
func (a *Agent) watchInventories(ctx context.Context) error {
	var group sync.WaitGroup
	defer group.Wait()
	watched := make(map[string]context.CancelFunc)
	for {
		all, err := a.Host.Endpoints(ctx)
		if err != nil && ctx.Err() == nil {
			a.Log.WarnContext(ctx, "read the endpoints to watch", "error", err)
		}
		there := make(map[string]bool)
		for _, e := range all {
			there[e.ID] = true
			if watched[e.ID] != nil {
				continue
			}
			watching, cancel := context.WithCancel(ctx)
			watched[e.ID] = cancel
			group.Go(func() { a.follow(watching, e.ID) })
		}
		for id, cancel := range watched {
			if err == nil && !there[id] {
				cancel()
				delete(watched, id)
			}
		}
		if !pause(ctx, dueEvery, a.endpointsChanged()) {
			for _, cancel := range watched {
				cancel()
			}
			return nil
		}
	}
}

// follow watches an endpoint again and again.
func (a *Agent) follow(ctx context.Context, endpointID string) {
	for wait := rewatchSoon; ; {
		stood, err := a.followOnce(ctx, endpointID)
		a.inventories.put(endpointID, nil)
		if ctx.Err() != nil {
			return
		}
		switch {
		case errors.Is(err, sdk.ErrUnsupported):
			wait = rewatchNew
		case stood:
			wait = rewatchSoon
			a.Log.InfoContext(ctx, "the watch of an endpoint's machines ended and begins anew", "endpoint", endpointID, "error", err)
		default:
			a.Log.DebugContext(ctx, "watch the machines of an endpoint", "endpoint", endpointID, "error", err)
		}
		if !pause(ctx, wait, nil) {
			return
		}
		wait = min(2*wait, rewatchLate)
	}
}

// followOnce watches until the watch ends, and says whether it ever stood.
func (a *Agent) followOnce(ctx context.Context, endpointID string) (stood bool, err error) {
	e, err := a.endpoint(ctx, endpointID)
	if err != nil {
		return false, err
	}
	err = a.withPlatform(ctx, e, func(p sdk.Platform) error {
		watcher, ok := sdk.As[sdk.Watcher](p)
		if !ok {
			return sdk.Errorf(sdk.ErrUnsupported, sdk.FaultHost, "plugin %s offers no %s", e.Plugin, sdk.AbilityWatcher)
		}
		for change, err := range watcher.Watch(ctx) {
			if err == nil && change.Machine == "" {
				err = a.takeStock(ctx, e, p)
				stood = stood || err == nil
			}
			if err != nil {
				return err
			}
			if change.Machine != "" {
				known := a.inventories.apply(e.ID, change)
				a.noteChange(ctx, e, change, known)
			}
		}
		return nil
	})
	return stood, err
}

// takeStock lists an endpoint's machines.
func (a *Agent) takeStock(ctx context.Context, e host.Endpoint, p sdk.Platform) error {
	machines := make(map[sdk.MachineID]sdk.Machine)
	for m, err := range p.Machines(ctx) {
		if err != nil {
			return err
		}
		if len(machines) < maxMachines {
			machines[m.ID] = listed(m)
		}
	}
	a.inventories.put(e.ID, machines)
	return nil
}

// noteChange says what appeared, with the jobs that cover it, and what is gone.
func (a *Agent) noteChange(ctx context.Context, e host.Endpoint, c sdk.Change, known bool) {
	switch {
	case c.Now == nil && known:
		a.Log.InfoContext(ctx, "a machine is gone", "endpoint", e.Name, "machine", c.Machine)
	case c.Now != nil && !known:
		jobs, err := a.Store.Jobs(ctx)
		if err != nil {
			a.Log.WarnContext(ctx, "find the jobs of a new machine", "machine", c.Now.Name, "error", err)
		}
		a.Log.InfoContext(ctx, "a machine appeared", "endpoint", e.Name, "machine", c.Now.Name, "jobs", machineStatus(*c.Now, e, jobs).Jobs)
	}
}

// endpointsChanged wakes the watcher of endpoints.
func (a *Agent) endpointsChanged() chan struct{} {
	a.endpointsOnce.Do(func() { a.endpointsWake = make(chan struct{}, 1) })
	return a.endpointsWake
}

func (a *Agent) wakeWatches() {
	select {
	case a.endpointsChanged() <- struct{}{}:
	default:
	}
}
