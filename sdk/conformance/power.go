package conformance

import "github.com/holdfast-dr/holdfast/sdk"

var powerChecks = []Check{
	{"power/start-and-stop", sdk.AbilityPower, startAndStop},
	{"power/unknown-machine", sdk.AbilityPower, powerUnknown},
	{"power/older-claim-is-fenced", sdk.AbilityPower, powerOlderClaim},
	{"power/foreign-space-is-denied", sdk.AbilityPower, powerForeign},
}

func (c *checker) start(id sdk.MachineID, newer uint64) error {
	return settled(c, func() error {
		return c.power(c.Platform).Start(c.ctx, c.op("start "+string(id), newer), id)
	})
}

// stop pulls the plug: the guest may have no system to shut down.
func (c *checker) stop(id sdk.MachineID, newer uint64) error {
	return settled(c, func() error {
		return c.power(c.Platform).Stop(c.ctx, c.op("stop "+string(id), newer), id, 0)
	})
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
