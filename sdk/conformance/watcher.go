package conformance

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"time"

	"github.com/holdfast-dr/holdfast/sdk"
)

var watcherChecks = []Check{
	{"watcher/stands-first", sdk.AbilityWatcher, "The first change says that the watch stands: it comes soon and names no machine.", watchStands},
	{"watcher/tells-changes", sdk.AbilityWatcher, "What becomes of a machine is told soon, with the machine as it is then.", watchTells},
	{"watcher/killed-in-watch", sdk.AbilityWatcher, "A process killed while it watches, or begins to, is no obstacle: a watch of a fresh one stands.", killedInWatch},
	{"watcher/ends-with-its-context", sdk.AbilityWatcher, "A watch ends when its context does, with that error, and the next one works.", watchEnds},
}

// toldWithin is how soon a change has to be told: people and schedules act on
// the inventory.
const toldWithin = 10 * time.Second

// told is one item of a watch.
type told struct {
	change sdk.Change
	err    error
}

// watch starts a watch. It is stopped with the check, if it was not before.
func (c *checker) watch(p sdk.Platform) (changes <-chan told, stop func()) {
	watcher := need[sdk.Watcher](c, p)
	ctx, cancel := context.WithCancel(c.ctx)
	items := make(chan told, 1024)
	go func() {
		defer close(items)
		defer func() {
			if p := recover(); p != nil {
				items <- told{err: fmt.Errorf("the watch panicked: %v\n%s", p, debug.Stack())}
			}
		}()
		for change, err := range watcher.Watch(ctx) {
			items <- told{change, err}
			if err != nil {
				return
			}
		}
	}()
	c.later(cancel)
	return items, cancel
}

// await waits for a change that fits.
func (c *checker) await(changes <-chan told, what string, fits func(told) bool) {
	timer := time.NewTimer(toldWithin)
	defer timer.Stop()
	for {
		select {
		case item, ok := <-changes:
			switch {
			case ok && fits(item):
				return
			case !ok:
				c.fatalf("the watch ended before it told %s", what)
			case item.err != nil:
				c.fatalf("the watch failed before it told %s: %v", what, item.err)
			}
		case <-timer.C:
			c.fatalf("the watch did not tell %s within %s", what, toldWithin)
		}
	}
}

func watchStands(c *checker) {
	changes, _ := c.watch(c.Platform)
	c.await(changes, "that it stands", func(item told) bool {
		if item.err == nil && (item.change.Machine != "" || item.change.Now != nil) {
			c.errorf("the first change is of machine %q, want one that names none", item.change.Machine)
		}
		return item.err == nil
	})
}

func watchTells(c *checker) {
	if !c.offers(sdk.AbilityPower) {
		c.skipf("without the ability %s the suite cannot change a machine", sdk.AbilityPower)
	}
	c.restore()
	c.must("stop the machine", c.stop(c.Machine, 0))
	changes, _ := c.watch(c.Platform)
	c.await(changes, "that it stands", func(item told) bool { return item.err == nil })
	is := func(off bool) func(told) bool {
		return func(item told) bool {
			m := item.change.Now
			return item.change.Machine == c.Machine && m != nil && m.ID == c.Machine && (m.State == sdk.StateOff) == off
		}
	}
	c.must("start the machine", c.start(c.Machine, 1))
	c.await(changes, "that the machine was started", is(false))
	c.must("stop the machine", c.stop(c.Machine, 2))
	c.await(changes, "that the machine was stopped", is(true))
}

func watchEnds(c *checker) {
	for range 2 {
		changes, stop := c.watch(c.Platform)
		c.await(changes, "that it stands", func(item told) bool { return item.err == nil })
		stop()
		c.await(changes, "the end of its context", func(item told) bool { return errors.Is(item.err, context.Canceled) })
	}
}

func killedInWatch(c *checker) {
	stands := func(p sdk.Platform) (stop func()) {
		changes, stop := c.watch(p)
		c.await(changes, "that it stands", func(item told) bool { return item.err == nil })
		return stop
	}
	typical := timed(func() { stands(c.Platform)() })
	// Twice as long: half of the moments are after it stands.
	c.moments(2*typical, func(_ uint64, after time.Duration) {
		c.kill(after, func(p sdk.Platform) func() {
			watcher := need[sdk.Watcher](c, p)
			return func() { drain(watcher.Watch(c.ctx)) }
		})
		stands(c.fresh())()
	})
}
