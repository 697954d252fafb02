package conformance

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/holdfast-dr/holdfast/sdk"
)

var platformChecks = []Check{
	{"platform/inventory", "", "The inventory lists machines and disks with ids of their own, in known states, within the bounds.", inventory},
	{"platform/inventory-given-up", "", "A listing that its caller gives up does not spoil the next.", inventoryGivenUp},
	{"platform/fresh-process-agrees", "", "A fresh process sees the same machines and offers the same abilities.", freshProcessAgrees},
	{"platform/probe", "", "Probe says what works, and of what does not, why.", probe},
	{"platform/probe-unknown", "", "Probe answers ErrNotFound for a machine or a disk that does not exist.", probeUnknown},
	{"platform/cancel-unknown", "", "Cancelling an operation that nobody knows is nil, and can be repeated.", cancelUnknown},
	{"platform/cancelled-context", "", "A call whose context has ended fails with that, and the next one works.", cancelledContext},
	{"platform/closed-is-closed", "", "Close can be repeated, and a call after it fails instead of working or hanging.", closedIsClosed},
	{"platform/sentinels-arrive", "", "Every sentinel reaches the caller as itself, with its hint and whose fault it is.", sentinelsArrive},
	{"platform/parallel-calls", "", "Calls from several goroutines do not disturb each other.", parallelCalls},
	{"platform/killed-in-listing", "", "A process killed while it lists machines or probes is no obstacle: a fresh one does it.", killedInListing},
}

// unknown is a name that no back-end has given to anything.
const unknown = "00000000-holdfast-conformance-unknown"

func inventory(c *checker) {
	seen := make(map[sdk.MachineID]bool)
	for m, err := range c.Platform.Machines(c.ctx) {
		c.must("list machines", err)
		if m.ID == "" || seen[m.ID] {
			c.errorf("machine %q has the id %q, which is empty or another's", m.Name, m.ID)
		}
		seen[m.ID] = true
		if len(m.Native) > sdk.MaxNative {
			c.errorf("machine %s has a native description of %d bytes, at most %d", m.ID, len(m.Native), sdk.MaxNative)
		}
		disks := make(map[sdk.DiskID]bool)
		for _, d := range m.Disks {
			if d.ID == "" || disks[d.ID] {
				c.errorf("disk %q of machine %s has the id %q, which is empty or another's", d.Name, m.ID, d.ID)
			}
			disks[d.ID] = true
			if d.Skip == "" && d.SizeBytes < 0 {
				c.errorf("disk %s of machine %s has %d bytes", d.ID, m.ID, d.SizeBytes)
			}
		}
		switch m.State {
		case sdk.StateUnknown, sdk.StateOff, sdk.StateRunning, sdk.StatePaused:
		default:
			c.errorf("machine %s is in state %q", m.ID, m.State)
		}
	}
	if !seen[c.Machine] {
		c.errorf("machine %s of the fixture is not in the inventory", c.Machine)
	}
}

func inventoryGivenUp(c *checker) {
	for _, err := range c.Platform.Machines(c.ctx) {
		c.must("list the first machine", err)
		break
	}
	if _, ok := c.find(c.Platform, c.Machine); !ok {
		c.errorf("a listing after one that was given up lacks machine %s", c.Machine)
	}
}

func killedInListing(c *checker) {
	c.moments(timed(func() { c.machine() }), func(_ uint64, after time.Duration) {
		c.kill(after, func(p sdk.Platform) func() {
			return func() { drain(p.Machines(c.ctx)) }
		})
		if _, ok := c.find(c.fresh(), c.Machine); !ok {
			c.errorf("after a listing whose process was killed, the next lacks machine %s", c.Machine)
		}
	})
	subject := sdk.Subject{Machine: c.Machine}
	c.rounds("Probe", func(_ uint64, after time.Duration) {
		c.kill(after, func(p sdk.Platform) func() {
			return func() { _, _ = p.Probe(c.ctx, subject) }
		})
		_, err := c.fresh().Probe(c.ctx, subject)
		c.want("probe in a fresh process", err, nil)
	})
}

func freshProcessAgrees(c *checker) {
	here := c.machine()
	there, ok := c.find(c.fresh(), c.Machine)
	if !ok {
		c.fatalf("a fresh process does not list machine %s", c.Machine)
	}
	if here.UUID != there.UUID || !slices.Equal(here.Disks, there.Disks) {
		c.errorf("a fresh process sees machine %s differently", c.Machine)
	}
	for _, a := range sdk.Abilities() {
		other := *c
		other.Platform = c.fresh()
		if c.offers(a) != other.offers(a) {
			c.errorf("a fresh process offers other abilities: %s", a)
		}
	}
}

func probe(c *checker) {
	subjects := []sdk.Subject{{}, {Machine: c.Machine}}
	for _, d := range c.machine().Disks {
		subjects = append(subjects, sdk.Subject{Machine: c.Machine, Disk: d.ID})
	}
	for _, s := range subjects {
		report, err := c.Platform.Probe(c.ctx, s)
		if err != nil {
			c.errorf("probe %+v: %v", s, err)
			continue
		}
		// Those that every host of the protocol knows: an older one does not see what a plugin offers beyond them.
		for _, a := range []sdk.Ability{sdk.AbilitySource, sdk.AbilityChangeTracker, sdk.AbilityTarget, sdk.AbilityPower} {
			works, reason := report.Works(a)
			if works && !c.offers(a) {
				c.errorf("probe %+v says that %s works, but the platform does not offer it", s, a)
			}
			if !works && reason == "" {
				c.errorf("probe %+v does not say why %s does not work", s, a)
			}
		}
	}
}

func probeUnknown(c *checker) {
	_, err := c.Platform.Probe(c.ctx, sdk.Subject{Machine: unknown})
	c.want("probe an unknown machine", err, sdk.ErrNotFound)
	_, err = c.Platform.Probe(c.ctx, sdk.Subject{Machine: c.Machine, Disk: unknown})
	c.want("probe an unknown disk", err, sdk.ErrNotFound)
}

func cancelUnknown(c *checker) {
	for range 2 {
		c.want("cancel an unknown operation", c.Platform.Cancel(c.ctx, c.prefix+"/never"), nil)
	}
}

func cancelledContext(c *checker) {
	ctx, cancel := context.WithCancel(c.ctx)
	cancel()
	if _, err := c.Platform.Probe(ctx, sdk.Subject{}); !errors.Is(err, context.Canceled) {
		c.errorf("probe with a cancelled context: %v, want context.Canceled", err)
	}
	var err error
	for _, err = range c.Platform.Machines(ctx) {
		if err != nil {
			break
		}
	}
	if !errors.Is(err, context.Canceled) {
		c.errorf("listing with a cancelled context: %v, want context.Canceled", err)
	}
	_, err = c.Platform.Probe(c.ctx, sdk.Subject{})
	c.want("the call after", err, nil)
}

func parallelCalls(c *checker) {
	const callers = 8
	var group sync.WaitGroup
	faults := make(chan error, 2*callers)
	for range callers {
		group.Go(func() {
			_, err := c.Platform.Probe(c.ctx, sdk.Subject{Machine: c.Machine})
			faults <- err
			for _, err := range c.Platform.Machines(c.ctx) {
				if err != nil {
					faults <- err
					return
				}
			}
		})
	}
	group.Wait()
	close(faults)
	for err := range faults {
		c.want("calls from several goroutines", err, nil)
	}
}

func closedIsClosed(c *checker) {
	p, err := c.Fresh()
	c.must("open a fresh platform", err)
	g := &guard{p, c.ledger}
	for range 2 {
		c.want("close, and again", g.Close(), nil)
	}
	if _, err := g.Probe(c.ctx, sdk.Subject{}); err == nil {
		c.errorf("probe works after the platform was closed")
	}
	_, err = c.Platform.Probe(c.ctx, sdk.Subject{})
	c.want("probe on the platform that is still open", err, nil)
}

// sentinelsArrive has the back-end fail in every way that it can be made to.
func sentinelsArrive(c *checker) {
	if c.Provoke == nil {
		c.skipf("the fixture cannot make the back-end fail")
	}
	provoked := 0
	for _, code := range sdk.Codes() {
		err := c.Provoke(code)
		if errors.Is(err, sdk.ErrUnsupported) {
			continue
		}
		c.must("make the back-end fail with "+string(code), err)
		provoked++
		_, err = c.Platform.Probe(c.ctx, sdk.Subject{})
		c.want("a probe that fails with "+string(code), err, code.Sentinel())
		if err != nil && sdk.HintOf(err) == "" {
			c.errorf("the error %q has lost its hint", err)
		}
		var e *sdk.Error
		if !errors.As(err, &e) {
			c.errorf("the error %q does not say whose fault it is", err)
		}
		_, err = c.Platform.Probe(c.ctx, sdk.Subject{})
		c.want("the probe after it", err, nil)
	}
	if provoked == 0 {
		c.skipf("the fixture cannot make the back-end fail with any sentinel")
	}
}
