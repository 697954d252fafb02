package sim

import (
	"bytes"
	"context"
	"fmt"
	"iter"
	"reflect"
	"time"

	"github.com/holdfast-dr/holdfast/sdk"
)

var _ sdk.Watcher = (*Platform)(nil)

// lookEvery is how often a watch looks at the state, which another process may
// have changed.
const lookEvery = 100 * time.Millisecond

// Watch tells of changes of the inventory.
func (p *Platform) Watch(ctx context.Context) iter.Seq2[sdk.Change, error] {
	return func(yield func(sdk.Change, error) bool) {
		var seen inventory
		err := p.during(ctx, "Watch", sdk.Op{}, func(bool) (err error) {
			seen, err = p.hypervisor.inventory(seen)
			return err
		})
		if err != nil || !yield(sdk.Change{}, nil) {
			if err != nil {
				yield(sdk.Change{}, err)
			}
			return
		}
		tick := time.NewTicker(lookEvery)
		defer tick.Stop()
		for {
			var now inventory
			select {
			case <-tick.C:
				err = p.open()
			case <-p.closed:
				err = errClosed
			case <-ctx.Done():
				err = fmt.Errorf("Watch: %w", ctx.Err())
			}
			if err == nil {
				now, err = p.hypervisor.inventory(seen)
			}
			if err != nil {
				yield(sdk.Change{}, err)
				return
			}
			for _, change := range seen.changes(now) {
				if !yield(change, nil) {
					return
				}
			}
			seen = now
		}
	}
}

// inventory is the machines of one moment.
type inventory struct {
	doc      []byte // the state that they were read from
	machines map[sdk.MachineID]sdk.Machine
}

// inventory reads the machines, unless the state is as it was before.
func (h *Hypervisor) inventory(before inventory) (inventory, error) {
	unlock, err := h.store.rlock()
	if err != nil {
		return inventory{}, err
	}
	doc, err := h.store.load()
	unlock()
	if err != nil {
		return inventory{}, fmt.Errorf("read the state: %w", err)
	}
	if before.machines != nil && bytes.Equal(doc, before.doc) {
		return before, nil
	}
	list, err := h.Machines()
	if err != nil {
		return inventory{}, err
	}
	now := inventory{doc: doc, machines: make(map[sdk.MachineID]sdk.Machine, len(list))}
	for _, m := range list {
		now.machines[m.ID] = m
	}
	return now, nil
}

// changes are what makes now of it.
func (i inventory) changes(now inventory) []sdk.Change {
	var changes []sdk.Change
	for id, m := range now.machines {
		if was, ok := i.machines[id]; !ok || !reflect.DeepEqual(was, m) {
			changes = append(changes, sdk.Change{Machine: id, Now: &m})
		}
	}
	for id := range i.machines {
		if _, ok := now.machines[id]; !ok {
			changes = append(changes, sdk.Change{Machine: id})
		}
	}
	return changes
}
