package conformance

import (
	"bytes"
	"errors"
	"image/png"
	"slices"

	"github.com/holdfast-dr/holdfast/sdk"
)

var surroundingsChecks = []Check{
	{"networker/create-repeats", sdk.AbilityNetworker, "A network that is made is listed for its space, and a fresh process, asked again, answers the same one.", networkRepeats},
	{"networker/foreign-space-is-denied", sdk.AbilityNetworker, "A network is neither listed for, nor removed from, another space.", networkForeignSpace},
	{"networker/refusals", sdk.AbilityNetworker, "A name that is taken is ErrInvalid, a network of somebody else is ErrDenied, and an unknown one is removed already.", networkRefusals},
	{"networker/used-is-busy", sdk.AbilityNetworker, "A network to which a machine is connected stays.", usedNetwork},
	{"networker/older-claim-is-fenced", sdk.AbilityNetworker, "An older claim removes no network.", networkOlderClaim},

	{"pools/capacity", sdk.AbilityPools, "An endpoint says what its hosts and pools have, and no more is free than there is.", capacity},
	{"pools/usage", sdk.AbilityPools, "What is replicated and run in a space is used there, and is not when it is gone.", usage},
	{"pools/enforced-limits", sdk.AbilityPools, "A limit that the back-end says it enforces refuses what would exceed it.", enforcedLimits},

	{"console/screenshot", sdk.AbilityConsole, "A machine that runs shows a PNG; one that is off is ErrInvalid, an unknown one ErrNotFound.", screenshot},
	{"console/foreign-space-is-denied", sdk.AbilityConsole, "No machine is looked at from another space.", screenshotForeign},

	{"guest/info", sdk.AbilityGuest, "A machine whose guest answers tells its addresses; one that is off is ErrUnavailable, an unknown one ErrNotFound.", guestInfo},
	{"guest/foreign-space-is-denied", sdk.AbilityGuest, "No guest is asked from another space.", guestForeign},
}

// network makes a network that stays inside, and removes it with the check.
func (c *checker) network(p sdk.Platform, name string) (sdk.Network, error) {
	n, err := settle(c, func() (sdk.Network, error) {
		return c.networker(p).CreateNetwork(c.ctx, c.draftOp("network "+name, 0), sdk.NetworkSpec{Name: c.networkName(name)})
	})
	if errors.Is(err, sdk.ErrUnsupported) {
		c.skipf("the back-end makes no networks")
	}
	if err == nil {
		c.later(func() { _ = c.removeNetwork(c.Platform, n.Name, epochsPerCheck-1) })
	}
	return n, err
}

// networkName is short, for some are names of network devices.
func (c *checker) networkName(name string) string {
	unique := c.unique("")
	return "hf" + unique[max(len(unique)-6, 0):] + name
}

func (c *checker) removeNetwork(p sdk.Platform, name string, newer uint64) error {
	return settled(c, func() error {
		return c.networker(p).RemoveNetwork(c.ctx, c.draftOp("remove network "+name, newer), name)
	})
}

func (c *checker) networks(p sdk.Platform, space sdk.Space) map[string]sdk.Network {
	found := make(map[string]sdk.Network)
	for n, err := range c.networker(p).Networks(c.ctx, space) {
		c.must("list networks", err)
		found[n.Name] = n
	}
	return found
}

func networkRepeats(c *checker) {
	before := c.objects()
	n, err := c.network(c.Platform, "a")
	c.must("make a network", err)
	again, err := c.network(c.fresh(), "a")
	c.must("make it again in a fresh process", err)
	if again != n || !n.Ours || n.Space != c.Space {
		c.errorf("a network was made as %+v, and then as %+v", n, again)
	}
	if listed, ok := c.networks(c.fresh(), c.Space)[n.Name]; !ok || listed != n {
		c.errorf("network %+v is listed as %+v", n, listed)
	}
	for range 2 {
		c.want("remove a network, and again", c.removeNetwork(c.Platform, n.Name, 0), nil)
	}
	if _, ok := c.networks(c.Platform, c.Space)[n.Name]; ok {
		c.errorf("network %s is listed after it was removed", n.Name)
	}
	c.leaves(before)
}

func networkForeignSpace(c *checker) {
	if c.Foreign == "" {
		c.skipf("the fixture has no foreign space")
	}
	n, err := c.network(c.Platform, "b")
	c.must("make a network", err)
	if _, ok := c.networks(c.Platform, c.Foreign)[n.Name]; ok {
		c.errorf("network %s of space %q is listed for space %q", n.Name, c.Space, c.Foreign)
	}
	op := c.op("foreign", 1)
	op.Space = c.Foreign
	c.want("remove a network from a foreign space", settled(c, func() error {
		return c.networker(c.Platform).RemoveNetwork(c.ctx, op, n.Name)
	}), sdk.ErrDenied)
	if _, ok := c.networks(c.Platform, c.Space)[n.Name]; !ok {
		c.errorf("network %s is gone after a foreign space was refused", n.Name)
	}
}

func networkRefusals(c *checker) {
	n, err := c.network(c.Platform, "c")
	c.must("make a network", err)
	_, err = settle(c, func() (sdk.Network, error) {
		return c.networker(c.Platform).CreateNetwork(c.ctx, c.draftOp("taken", 0), sdk.NetworkSpec{Name: n.Name})
	})
	c.want("make a network under a name that is taken", err, sdk.ErrInvalid)
	c.want("remove an unknown network", c.removeNetwork(c.Platform, unknown, 0), nil)
	for name, other := range c.networks(c.Platform, c.Space) {
		if !other.Ours {
			c.want("remove a network that is somebody else's", c.removeNetwork(c.Platform, name, 0), sdk.ErrDenied)
			return
		}
	}
	c.leaveOut("networks of somebody else: there are none")
}

func usedNetwork(c *checker) {
	if !c.offers(sdk.AbilityActivator) || !c.offers(sdk.AbilityReplicator) {
		c.skipf("the platform runs no points that could use a network")
	}
	n, err := c.network(c.Platform, "d")
	c.must("make a network", err)
	r := c.replica("used")
	m := c.replicaMachine()
	m.NICs = []sdk.NIC{{MAC: "52:54:00:0a:0b:03", Network: "home", Model: "virtio"}}
	point, _ := c.committed(r, "used", "", nil, 1, m)
	req := c.request(r.ID, point.ID, sdk.PurposeTest, "used")
	req.Networks = map[string]string{"home": n.Name}
	i := c.runs("used", req)
	c.want("remove a network in use", c.removeNetwork(c.Platform, n.Name, 0), sdk.ErrBusy)
	if _, ok := c.networks(c.Platform, c.Space)[n.Name]; !ok {
		c.errorf("network %s is gone although it is in use", n.Name)
	}
	c.must("deactivate the instance", c.deactivate(c.Platform, i.ID, 0, sdk.DiscardLayer))
	c.want("remove a network that is used no more", c.removeNetwork(c.Platform, n.Name, 0), nil)
}

func networkOlderClaim(c *checker) {
	n, err := settle(c, func() (sdk.Network, error) {
		return c.networker(c.Platform).CreateNetwork(c.ctx, c.draftOp("network", 2), sdk.NetworkSpec{Name: c.networkName("e")})
	})
	if errors.Is(err, sdk.ErrUnsupported) {
		c.skipf("the back-end makes no networks")
	}
	c.must("make a network", err)
	c.later(func() { _ = c.removeNetwork(c.Platform, n.Name, epochsPerCheck-1) })
	c.want("remove a network under an older claim", c.removeNetwork(c.Platform, n.Name, 1), sdk.ErrFenced)
	if _, ok := c.networks(c.Platform, c.Space)[n.Name]; !ok {
		c.errorf("network %s is gone after an older claim was refused", n.Name)
	}
}

func capacity(c *checker) {
	got, err := c.pools(c.Platform).Capacity(c.ctx)
	c.must("ask for the capacity", err)
	if len(got.Hosts) == 0 || len(got.Pools) == 0 {
		c.errorf("an endpoint with %d hosts and %d pools", len(got.Hosts), len(got.Pools))
	}
	for _, h := range got.Hosts {
		if h.Name == "" || h.CPUs <= 0 || h.MemoryBytes <= 0 || h.FreeBytes < 0 || h.FreeBytes > h.MemoryBytes {
			c.errorf("host %q has %d CPUs, and %d of %d bytes free", h.Name, h.CPUs, h.FreeBytes, h.MemoryBytes)
		}
	}
	for _, p := range got.Pools {
		if p.Name == "" || p.SizeBytes <= 0 || p.FreeBytes < 0 || p.FreeBytes > p.SizeBytes {
			c.errorf("pool %q has %d of %d bytes free", p.Name, p.FreeBytes, p.SizeBytes)
		}
	}
}

// stored is what a space uses of all pools.
func stored(u sdk.Usage) (total int64) {
	for _, n := range u.StorageBytes {
		total += n
	}
	return total
}

func (c *checker) usage() sdk.Usage {
	u, err := c.pools(c.fresh()).Usage(c.ctx, c.Space)
	c.must("ask what a space uses", err)
	return u
}

func usage(c *checker) {
	if !c.offers(sdk.AbilityActivator) || !c.offers(sdk.AbilityReplicator) {
		c.skipf("the platform has nothing that could be used")
	}
	before := c.usage()
	r, points, shown := c.chain("usage", 1)
	data := int64(0)
	for _, piece := range shown[0] {
		for chunk := range slices.Chunk(piece, grain) {
			if !bytes.Equal(chunk, make([]byte, len(chunk))) {
				data += int64(len(chunk))
			}
		}
	}
	replicated := c.usage()
	if grown := stored(replicated) - stored(before); grown < data {
		c.errorf("a point with %d bytes of data uses %d", data, grown)
	}
	req := c.request(r.ID, points[0].ID, sdk.PurposeTest, "usage")
	req.CPUs, req.MemoryBytes = 3, 128<<20
	i := c.runs("usage", req)
	running := c.usage()
	if running.CPUs != before.CPUs+3 || running.MemoryBytes != before.MemoryBytes+128<<20 {
		c.errorf("an instance of 3 CPUs and %d bytes uses %d and %d", 128<<20, running.CPUs-before.CPUs, running.MemoryBytes-before.MemoryBytes)
	}
	c.must("deactivate the instance", c.deactivate(c.Platform, i.ID, 0, sdk.DiscardLayer))
	c.must("remove the replica", settled(c, func() error {
		return c.replicator(c.Platform).RemoveReplica(c.ctx, c.draftOp("remove", 0), r.ID)
	}))
	after := c.usage()
	if after.CPUs != before.CPUs || after.MemoryBytes != before.MemoryBytes || stored(after) >= stored(replicated) {
		c.errorf("after all was removed %d CPUs, %d bytes of memory and %d of storage are used; before it was %d, %d and %d",
			after.CPUs, after.MemoryBytes, stored(after), before.CPUs, before.MemoryBytes, stored(before))
	}
}

func enforcedLimits(c *checker) {
	if c.Space == "" || !c.offers(sdk.AbilityActivator) || !c.offers(sdk.AbilityReplicator) {
		c.skipf("the fixture has no space in which points run")
	}
	limit := func(newer uint64, l sdk.Limits) sdk.Enforced {
		enforced, err := settle(c, func() (sdk.Enforced, error) {
			return c.pools(c.Platform).SetLimits(c.ctx, c.draftOp("limits", newer), l)
		})
		c.must("set limits", err)
		return enforced
	}
	r, points, _ := c.chain("limits", 1)
	used := c.usage()
	c.later(func() { limit(epochsPerCheck-1, sdk.Limits{}) })
	enforced := limit(0, sdk.Limits{CPUs: used.CPUs + 2, MemoryBytes: used.MemoryBytes + 64<<20})
	try := func(name string, cpus int, memory int64) error {
		req := c.request(r.ID, points[0].ID, sdk.PurposeTest, name)
		req.CPUs, req.MemoryBytes = cpus, memory
		i, err := c.activate(c.Platform, name, 0, req)
		if err == nil {
			c.must("deactivate the instance", c.deactivate(c.Platform, i.ID, 0, sdk.DiscardLayer))
		}
		return err
	}
	c.want("run within the limits", try("within", 2, 64<<20), nil)
	if enforced.CPUs {
		c.want("run more CPUs than the limit", try("cpus", 3, 64<<20), sdk.ErrBusy)
	}
	if enforced.Memory {
		c.want("run in more memory than the limit", try("memory", 1, 65<<20), sdk.ErrBusy)
	}
	if !enforced.CPUs && !enforced.Memory {
		c.leaveOut("limits: the back-end leaves them to the core")
	}
	limit(1, sdk.Limits{})
	c.want("run without limits", try("without", 3, 65<<20), nil)
}

// powered starts the machine of the fixture, or stops it, if the platform can,
// and reports whether it is so now.
func (c *checker) powered(on bool) bool {
	if c.offers(sdk.AbilityPower) {
		power := c.power(c.Platform)
		c.must("switch the machine", settled(c, func() error {
			if on {
				return power.Start(c.ctx, c.op("start", 0), c.Machine)
			}
			return power.Stop(c.ctx, c.op("stop", 0), c.Machine, 0)
		}))
	}
	want := sdk.StateOff
	if on {
		want = sdk.StateRunning
	}
	return c.machine().State == want
}

func screenshot(c *checker) {
	console := need[sdk.Console](c, c.Platform)
	_, err := console.Screenshot(c.ctx, "", unknown)
	c.want("look at an unknown machine", err, sdk.ErrNotFound)
	if c.powered(true) {
		shot, err := console.Screenshot(c.ctx, "", c.Machine)
		if errors.Is(err, sdk.ErrUnsupported) {
			c.skipf("the machine has no screen")
		}
		c.must("look at a machine", err)
		if _, err := png.Decode(bytes.NewReader(shot)); err != nil || len(shot) > sdk.MaxScreenshot {
			c.errorf("a screenshot of %d bytes is no PNG: %v", len(shot), err)
		}
	}
	if c.powered(false) {
		c.later(func() { c.powered(true) })
		_, err := console.Screenshot(c.ctx, "", c.Machine)
		c.want("look at a machine that is off", err, sdk.ErrInvalid)
	}
}

func screenshotForeign(c *checker) {
	if c.Foreign == "" {
		c.skipf("the fixture has no foreign space")
	}
	c.powered(true)
	_, err := need[sdk.Console](c, c.Platform).Screenshot(c.ctx, c.Foreign, c.Machine)
	c.want("look at a machine from a foreign space", err, sdk.ErrDenied)
}

func guestInfo(c *checker) {
	guest := need[sdk.Guest](c, c.Platform)
	_, err := guest.GuestInfo(c.ctx, "", unknown)
	c.want("ask the guest of an unknown machine", err, sdk.ErrNotFound)
	if c.powered(true) {
		info, err := guest.GuestInfo(c.ctx, "", c.Machine)
		if err != nil {
			c.want("ask a guest", err, sdk.ErrUnavailable) // it may have no agent
		}
		for _, i := range info.Interfaces {
			for _, a := range i.Addresses {
				if !a.IsValid() {
					c.errorf("interface %s has an address that is none", i.Name)
				}
			}
		}
	}
	if c.powered(false) {
		c.later(func() { c.powered(true) })
		_, err := guest.GuestInfo(c.ctx, "", c.Machine)
		c.want("ask the guest of a machine that is off", err, sdk.ErrUnavailable)
	}
}

func guestForeign(c *checker) {
	if c.Foreign == "" {
		c.skipf("the fixture has no foreign space")
	}
	c.powered(true)
	_, err := need[sdk.Guest](c, c.Platform).GuestInfo(c.ctx, c.Foreign, c.Machine)
	c.want("ask a guest from a foreign space", err, sdk.ErrDenied)
}
