package conformance

import (
	"errors"
	"fmt"
	"time"

	"github.com/holdfast-dr/holdfast/sdk"
)

var powerChecks = []Check{
	{"power/start-and-stop", sdk.AbilityPower, "Start and Stop do what they say, can be repeated, and the inventory shows it.", startAndStop},
	{"power/unknown-machine", sdk.AbilityPower, "A machine that does not exist is ErrNotFound.", powerUnknown},
	{"power/older-claim-is-fenced", sdk.AbilityPower, "A claim older than one that was seen is ErrFenced, and switches nothing.", powerOlderClaim},
	{"power/stop-within-grace", sdk.AbilityPower, "A guest that does not shut down within the grace loses its power.", stopWithinGrace},
	{"power/parallel-calls", sdk.AbilityPower, "The same call from several goroutines is done once and answered to all.", powerParallel},
	{"power/killed-in-start", sdk.AbilityPower, "A process killed in the middle of Start is no obstacle: a fresh one, asked again, starts the machine.", killedInStart},
	{"power/killed-in-stop", sdk.AbilityPower, "A process killed in the middle of Stop is no obstacle: a fresh one, asked again, stops the machine.", killedInStop},
	{"power/stopped-process-is-fenced", sdk.AbilityPower, "A process that was stopped in the middle of Start and wakes after a newer claim took over switches nothing.", powerStopped},
	{"power/foreign-space-is-denied", sdk.AbilityPower, "A machine of another space is ErrDenied.", powerForeign},
}

func (c *checker) start(id sdk.MachineID, newer uint64) error {
	power := c.power(c.Platform)
	return settled(c, func() error { return power.Start(c.ctx, c.op(fmt.Sprintf("start %s %d", id, newer), newer), id) })
}

// stop pulls the plug: the guest may have no system to shut down.
func (c *checker) stop(id sdk.MachineID, newer uint64) error {
	power := c.power(c.Platform)
	return settled(c, func() error { return power.Stop(c.ctx, c.op(fmt.Sprintf("stop %s %d", id, newer), newer), id, 0) })
}

// restore leaves the machine at the end as it was.
func (c *checker) restore() {
	was := c.machine().State
	c.later(func() {
		switch now := c.machine().State; {
		case was == now:
		case was == sdk.StateOff:
			c.must("stop the machine again", c.stop(c.Machine, epochsPerCheck-1))
		default:
			c.must("start the machine again", c.start(c.Machine, epochsPerCheck-1))
		}
	})
}

func startAndStop(c *checker) {
	c.restore()
	for round := range uint64(2) {
		for range 2 {
			c.want("stop the machine, and again", c.stop(c.Machine, 2*round), nil)
		}
		if state := c.machine().State; state != sdk.StateOff {
			c.errorf("the machine is %s after it was stopped", state)
		}
		for range 2 {
			c.want("start the machine, and again", c.start(c.Machine, 2*round+1), nil)
		}
		if state := c.machine().State; state != sdk.StateRunning {
			c.errorf("the machine is %s after it was started", state)
		}
	}
}

func powerUnknown(c *checker) {
	c.want("start an unknown machine", c.start(unknown, 0), sdk.ErrNotFound)
	c.want("stop an unknown machine", c.stop(unknown, 0), sdk.ErrNotFound)
}

func powerOlderClaim(c *checker) {
	c.restore()
	state := c.machine().State
	same, opposite := c.start, c.stop
	if state == sdk.StateOff {
		same, opposite = c.stop, c.start
	}
	c.must("do nothing under a newer claim", same(c.Machine, 1))
	c.want("switch under an older claim", opposite(c.Machine, 0), sdk.ErrFenced)
	if now := c.machine().State; now != state {
		c.errorf("the machine was %s and is %s after a fenced call", state, now)
	}
}

func powerForeign(c *checker) {
	if c.Foreign == "" {
		c.skipf("the fixture has no foreign space")
	}
	op := c.op("start", 0)
	op.Space = c.Foreign
	err := settled(c, func() error { return c.power(c.Platform).Start(c.ctx, op, c.Machine) })
	c.want("start a machine of another space", err, sdk.ErrDenied)
}

// stopWithinGrace asks a guest that may have no system to hear it.
func stopWithinGrace(c *checker) {
	c.restore()
	c.must("start the machine", c.start(c.Machine, 0))
	power, op := c.power(c.Platform), c.op("stop", 1)
	err := settled(c, func() error { return power.Stop(c.ctx, op, c.Machine, 2*time.Second) })
	c.want("stop the machine within two seconds of grace", err, nil)
	if state := c.machine().State; state != sdk.StateOff {
		c.errorf("the machine is %s after its grace was over", state)
	}
}

func powerParallel(c *checker) {
	c.restore()
	power := c.power(c.Platform)
	for newer, call := range []struct {
		name string
		do   func(sdk.Op) error
	}{
		{"stop", func(op sdk.Op) error { return power.Stop(c.ctx, op, c.Machine, 0) }},
		{"start", func(op sdk.Op) error { return power.Start(c.ctx, op, c.Machine) }},
	} {
		op := c.op(call.name, uint64(newer))
		for _, err := range c.together(func(int) error { return settled(c, func() error { return call.do(op) }) }) {
			c.want(call.name+" from several goroutines", err, nil)
		}
		if off := c.machine().State == sdk.StateOff; off != (call.name == "stop") {
			c.errorf("the machine is %s after %s from several goroutines", c.machine().State, call.name)
		}
	}
}

func killedInStart(c *checker) {
	c.restore()
	c.rounds("Start", func(round uint64, after time.Duration) {
		c.must("stop the machine", c.stop(c.Machine, 2*round))
		op := c.op(fmt.Sprint("start ", round), 2*round+1)
		c.kill(after, func(p sdk.Platform) func() {
			power := c.power(p)
			return func() { _ = power.Start(c.ctx, op, c.Machine) }
		})
		power := c.power(c.fresh())
		c.must("start in a fresh process", settled(c, func() error { return power.Start(c.ctx, op, c.Machine) }))
		if c.machine().State == sdk.StateOff {
			c.errorf("the machine is off after it was started in a fresh process")
		}
	})
}

func killedInStop(c *checker) {
	c.restore()
	c.rounds("Stop", func(round uint64, after time.Duration) {
		c.must("start the machine", c.start(c.Machine, 2*round))
		op := c.op(fmt.Sprint("stop ", round), 2*round+1)
		c.kill(after, func(p sdk.Platform) func() {
			power := c.power(p)
			return func() { _ = power.Stop(c.ctx, op, c.Machine, 0) }
		})
		power := c.power(c.fresh())
		c.must("stop in a fresh process", settled(c, func() error { return power.Stop(c.ctx, op, c.Machine, 0) }))
		if state := c.machine().State; state != sdk.StateOff {
			c.errorf("the machine is %s after it was stopped in a fresh process", state)
		}
	})
}

func powerStopped(c *checker) {
	c.restore()
	c.must("stop the machine", c.stop(c.Machine, 0))
	process := c.stoppable()
	power, op := c.power(process.Platform), c.op("late", 1)
	late := c.inFlight(process, func() error {
		return settled(c, func() error { return power.Start(c.ctx, op, c.Machine) })
	})
	c.must("stop under a newer claim", c.stop(c.Machine, 2))
	c.must("wake the process", process.Resume())
	if err := <-late; !errors.Is(err, sdk.ErrFenced) {
		c.errorf("a start from before the newer claim: %v, want an error that wraps %q", err, sdk.ErrFenced)
	}
	if state := c.machine().State; state != sdk.StateOff {
		c.errorf("the machine is %s: a process that woke up late switched it", state)
	}
}
