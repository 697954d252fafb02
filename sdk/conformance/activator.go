package conformance

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/holdfast-dr/holdfast/sdk"
)

var activatorChecks = []Check{
	{"activator/unknown-names", sdk.AbilityActivator, "Points and instances that do not exist are ErrNotFound; deactivating one is nil.", activatorUnknownNames},
	{"activator/runs-a-point", sdk.AbilityActivator, "An activated point is a machine that runs, in the networks that were chosen and in no other.", runsAPoint},
	{"activator/point-stays-as-it-was", sdk.AbilityActivator, "What an instance writes is in no point.", pointStaysAsItWas},
	{"activator/repeats", sdk.AbilityActivator, "A fresh process, asked again with the same Op.ID, answers the same instance, and starts one that is off.", activationRepeats},
	{"activator/needs-its-point", sdk.AbilityActivator, "A point that is run stays, and so does its replica.", runningPointStays},
	{"activator/second-real-is-busy", sdk.AbilityActivator, "A replica has one real instance at a time, and any number of tests.", secondReal},
	{"activator/real-ends-older-writers", sdk.AbilityActivator, "Once a real instance runs, no writer of an older claim goes on, or begins.", realEndsWriters},
	{"activator/test-leaves-replication-alone", sdk.AbilityActivator, "A test neither fences the replication nor is fenced by it.", testBesideReplication},
	{"activator/deactivate-leaves-nothing", sdk.AbilityActivator, "An instance that is discarded leaves neither a machine nor what it wrote.", deactivateLeavesNothing},
	{"activator/kept-layer-runs-again", sdk.AbilityActivator, "What a kept instance wrote is there when it runs again.", keptRunsAgain},
	{"activator/older-claim-is-fenced", sdk.AbilityActivator, "An older claim neither activates, ends nor finalizes a real instance.", activatorOlderClaim},
	{"activator/foreign-space-is-denied", sdk.AbilityActivator, "An instance is neither listed, made nor ended from another space.", activatorForeignSpace},
	{"activator/finalize", sdk.AbilityActivator, "A finalized instance is an ordinary machine with all that it wrote, and its replica is gone.", finalizes},
	{"activator/reverse", sdk.AbilityActivator, "An instance as a source knows all that is no longer as in its point, however late it is asked.", reverses},
	{"activator/killed-in-activate", sdk.AbilityActivator, "A process killed in the middle of Activate is no obstacle: a fresh one, asked again, answers one instance that runs.", killedInActivate},
	{"activator/killed-in-deactivate", sdk.AbilityActivator, "A process killed in the middle of Deactivate is no obstacle: a fresh one, asked again, ends the instance.", killedInDeactivate},
	{"activator/killed-in-finalize", sdk.AbilityActivator, "A process killed in the middle of Finalize is no obstacle: a fresh one, asked again, answers the one machine.", killedInFinalize},
	{"activator/stopped-process-is-fenced", sdk.AbilityActivator, "A process that was stopped in the middle of Activate and wakes after a newer claim took over runs nothing.", stoppedActivate},
}

// request asks for a point to be run, in no network.
func (c *checker) request(r sdk.ReplicaID, point sdk.PointID, purpose sdk.Purpose, name string) sdk.ActivateRequest {
	return sdk.ActivateRequest{Replica: r, Point: point, Purpose: purpose, Name: c.unique(name)}
}

// activate runs a point, and discards the instance with the check.
func (c *checker) activate(p sdk.Platform, name string, newer uint64, req sdk.ActivateRequest) (sdk.Instance, error) {
	i, err := settle(c, func() (sdk.Instance, error) {
		return c.activator(p).Activate(c.ctx, c.draftOp("activate "+name, newer), req)
	})
	if err == nil {
		c.later(func() { _ = c.deactivate(c.Platform, i.ID, epochsPerCheck-1, sdk.DiscardLayer) })
	}
	return i, err
}

func (c *checker) runs(name string, req sdk.ActivateRequest) sdk.Instance {
	i, err := c.activate(c.Platform, name, 0, req)
	c.must("activate a point", err)
	return i
}

func (c *checker) deactivate(p sdk.Platform, id sdk.InstanceID, newer uint64, layer sdk.Layer) error {
	return settled(c, func() error {
		return c.activator(p).Deactivate(c.ctx, c.draftOp(fmt.Sprint("deactivate ", id, " ", layer), newer), id, layer)
	})
}

func (c *checker) finalize(p sdk.Platform, id sdk.InstanceID, newer uint64) (sdk.MachineID, error) {
	machine, err := settle(c, func() (sdk.MachineID, error) {
		return c.activator(p).Finalize(c.ctx, c.draftOp("finalize "+string(id), newer), id)
	})
	if err == nil {
		c.removeLater(machine)
	}
	return machine, err
}

func (c *checker) findInstance(p sdk.Platform, id sdk.InstanceID) (found sdk.Instance, ok bool) {
	for i, err := range c.activator(p).Instances(c.ctx, c.Space) {
		c.must("list instances", err)
		if i.ID == id {
			found, ok = i, true
		}
	}
	return found, ok
}

// guestWrites writes as an instance's guest would; without that hand of the fixture
// it answers false, and the check leaves out what hangs on it.
func (c *checker) guestWrites(i sdk.Instance, disk sdk.DiskID, off int64, data []byte) bool {
	if c.WriteInstance == nil {
		c.leaveOut("what instances write: the fixture cannot write as their guests")
		return false
	}
	c.must("write as the guest of an instance", c.WriteInstance(i.Machine, disk, off, data))
	return true
}

func activatorUnknownNames(c *checker) {
	r, _, _ := c.chain("names", 1)
	_, err := c.activate(c.Platform, "nothing", 0, c.request(unknown, unknown, sdk.PurposeTest, "nothing"))
	c.want("activate a point of an unknown replica", err, sdk.ErrNotFound)
	_, err = c.activate(c.Platform, "no point", 0, c.request(r.ID, unknown, sdk.PurposeTest, "no-point"))
	c.want("activate an unknown point", err, sdk.ErrNotFound)
	c.want("deactivate an unknown instance", c.deactivate(c.Platform, unknown, 0, sdk.DiscardLayer), nil)
	_, err = c.finalize(c.Platform, unknown, 0)
	c.want("finalize an unknown instance", err, sdk.ErrNotFound)
	_, err = settle(c, func() (sdk.Reversal, error) {
		return c.activator(c.Platform).Reverse(c.ctx, c.draftOp("reverse", 0), unknown)
	})
	c.want("reverse an unknown instance", err, sdk.ErrNotFound)
}

func runsAPoint(c *checker) {
	r := c.replica("runs")
	m := c.replicaMachine()
	networks := map[string]string{}
	var chosen string
	if len(m.NICs) > 0 {
		chosen = m.NICs[0].Network
		networks["in the first"] = chosen
	}
	m.NICs = []sdk.NIC{
		{MAC: "52:54:00:0a:0b:01", Network: "in the first", Model: "virtio"},
		{MAC: "52:54:00:0a:0b:02", Network: "in the second", Model: "virtio"},
	}
	point, _ := c.committed(r, "point", "", nil, 1, m)
	req := c.request(r.ID, point.ID, sdk.PurposeTest, "runs")
	req.Networks, req.CPUs = networks, m.CPUs+1
	i := c.runs("runs", req)
	if i.State != sdk.InstanceRunning || i.Purpose != sdk.PurposeTest || i.Space != c.Space || i.Point != point.ID || i.Replica != r.ID {
		c.errorf("the instance is %+v", i)
	}
	listed, ok := c.findInstance(c.fresh(), i.ID)
	if !ok || listed.Machine != i.Machine || listed.State != sdk.InstanceRunning {
		c.errorf("instance %s is listed by a fresh process as %+v", i.ID, listed)
	}
	got, ok := c.find(c.fresh(), i.Machine)
	if !ok {
		c.fatalf("machine %s of instance %s is not in the inventory", i.Machine, i.ID)
	}
	if got.State != sdk.StateRunning || got.Name != req.Name || got.CPUs != req.CPUs || len(got.Disks) != len(m.Disks) || len(got.NICs) != 2 {
		c.errorf("the machine is %q, %s, with %d CPUs, %d disks and %d interfaces; want %q, running, %d, %d and 2",
			got.Name, got.State, got.CPUs, len(got.Disks), len(got.NICs), req.Name, req.CPUs, len(m.Disks))
	}
	for n, nic := range got.NICs {
		want := ""
		if n == 0 {
			want = chosen
		}
		if nic.Network != want || n < len(m.NICs) && nic.MAC != m.NICs[n].MAC {
			c.errorf("interface %d is %s in network %q, want %s in %q", n, nic.MAC, nic.Network, m.NICs[n].MAC, want)
		}
	}
	req = c.request(r.ID, point.ID, sdk.PurposeTest, "nowhere")
	req.Networks = map[string]string{"in the first": unknown}
	_, err := c.activate(c.Platform, "nowhere", 0, req)
	c.want("activate a point in a network that does not exist", err, sdk.ErrInvalid)
}

func pointStaysAsItWas(c *checker) {
	r, points, shown := c.chain("stays", 1)
	i := c.runs("stays", c.request(r.ID, points[0].ID, sdk.PurposeTest, "stays"))
	if !c.guestWrites(i, "vda", 0, bytes.Repeat([]byte{0xee}, 2*grain)) {
		return
	}
	c.shows(c.Platform, r.ID, points[0].ID, shown[0])
	if listed, _ := c.findInstance(c.Platform, i.ID); listed.WrittenBytes < 2*grain {
		c.errorf("an instance that wrote %d bytes says %d", 2*grain, listed.WrittenBytes)
	}
	next, want := c.committed(r, "next", points[0].ID, shown[0], 50, c.replicaMachine())
	c.shows(c.Platform, r.ID, next.ID, want)
}

func activationRepeats(c *checker) {
	r, points, _ := c.chain("again", 1)
	req := c.request(r.ID, points[0].ID, sdk.PurposeReal, "again")
	i := c.runs("again", req)
	for round := range 2 {
		if round == 1 {
			if !c.offers(sdk.AbilityPower) {
				c.leaveOut("an instance that is off: the platform stops no machines")
				return
			}
			power := c.power(c.Platform)
			c.must("stop the machine", settled(c, func() error { return power.Stop(c.ctx, c.draftOp("stop", 0), i.Machine, 0) }))
			if off, _ := c.findInstance(c.Platform, i.ID); off.State != sdk.InstanceOff {
				c.errorf("an instance whose machine was stopped is %q", off.State)
			}
		}
		again, err := c.activate(c.fresh(), "again", 0, req)
		c.must("repeat the activation in a fresh process", err)
		if again.ID != i.ID || again.State != sdk.InstanceRunning {
			c.errorf("the repeat answered instance %s, %s; first %s", again.ID, again.State, i.ID)
		}
		if m, _ := c.find(c.Platform, again.Machine); m.State != sdk.StateRunning {
			c.errorf("after the repeat the machine is %s", m.State)
		}
	}
}

func runningPointStays(c *checker) {
	r, points, shown := c.chain("needed", 2)
	i := c.runs("needed", c.request(r.ID, points[0].ID, sdk.PurposeTest, "needed"))
	c.want("remove a point that is run", c.removePoint(c.fresh(), r.ID, points[0].ID, 0), sdk.ErrBusy)
	c.want("remove a replica that is run", settled(c, func() error {
		return c.replicator(c.fresh()).RemoveReplica(c.ctx, c.draftOp("remove", 0), r.ID)
	}), sdk.ErrBusy)
	c.shows(c.Platform, r.ID, points[0].ID, shown[0])
	c.must("deactivate the instance", c.deactivate(c.Platform, i.ID, 0, sdk.DiscardLayer))
	c.want("remove a point that is run no more", c.removePoint(c.Platform, r.ID, points[0].ID, 0), nil)
}

func secondReal(c *checker) {
	r, points, _ := c.chain("second", 1)
	c.runs("first", c.request(r.ID, points[0].ID, sdk.PurposeReal, "first"))
	for n := range 2 {
		name := fmt.Sprint("test-", n)
		_, err := c.activate(c.Platform, name, 0, c.request(r.ID, points[0].ID, sdk.PurposeTest, name))
		c.want("activate a test beside a real instance", err, nil)
	}
	_, err := c.activate(c.Platform, "second", 0, c.request(r.ID, points[0].ID, sdk.PurposeReal, "second"))
	c.want("activate a second real instance", err, sdk.ErrBusy)
}

func realEndsWriters(c *checker) {
	r, points, shown := c.chain("writers", 1)
	spec := sdk.PointSpec{Replica: r.ID, Base: points[0].ID, Machine: c.replicaMachine()}
	draft, err := c.draftPoint(c.Platform, "open", 0, spec)
	c.must("draft a point", err)
	w := c.pointWriter(c.Platform, draft, "vda", 0)
	_, err = w.WriteAt(bytes.Repeat([]byte{1}, grain), 0)
	c.must("write", err)
	_, err = c.activate(c.fresh(), "real", 1, c.request(r.ID, points[0].ID, sdk.PurposeReal, "real"))
	c.must("activate under a newer claim", err)
	c.stale(w, grain, "a writer of a replica that was activated")
	_, err = c.commitPoint(c.Platform, draft, 0, sdk.PointLabel{})
	c.want("commit a draft of a replica that was activated", err, sdk.ErrFenced)
	_, err = c.draftPoint(c.Platform, "late", 0, spec)
	c.want("draft a point of a replica that was activated", err, sdk.ErrFenced)
	c.shows(c.Platform, r.ID, points[0].ID, shown[0])
}

func testBesideReplication(c *checker) {
	r, points, shown := c.chain("beside", 1)
	draft, err := c.draftPoint(c.Platform, "open", 2, sdk.PointSpec{Replica: r.ID, Base: points[0].ID, Machine: c.replicaMachine()})
	c.must("draft a point", err)
	w := c.pointWriter(c.Platform, draft, "vda", 2)
	for newer, name := range map[uint64]string{1: "older", 3: "newer"} {
		_, err := c.activate(c.Platform, name, newer, c.request(r.ID, points[0].ID, sdk.PurposeTest, name))
		c.want("activate a test under an "+name+" claim than the replication's", err, nil)
	}
	want := content{"vda": c.fillOver(w, shown[0]["vda"], 60), "vdb": shown[0]["vdb"]}
	point, err := c.commitPoint(c.Platform, draft, 2, sdk.PointLabel{})
	c.must("commit beside a test", err)
	c.shows(c.Platform, r.ID, point.ID, want)
}

func deactivateLeavesNothing(c *checker) {
	r, points, _ := c.chain("ends", 1)
	before := c.objects()
	i := c.runs("ends", c.request(r.ID, points[0].ID, sdk.PurposeReal, "ends"))
	c.guestWrites(i, "vda", 0, bytes.Repeat([]byte{0xee}, grain))
	for range 2 {
		c.want("deactivate an instance, and again", c.deactivate(c.Platform, i.ID, 0, sdk.DiscardLayer), nil)
	}
	if _, ok := c.findInstance(c.Platform, i.ID); ok {
		c.errorf("instance %s is listed after it was discarded", i.ID)
	}
	if _, ok := c.find(c.Platform, i.Machine); ok {
		c.errorf("machine %s is in the inventory after its instance was discarded", i.Machine)
	}
	c.leaves(before)
}

func keptRunsAgain(c *checker) {
	r, points, shown := c.chain("kept", 1)
	i := c.runs("kept", c.request(r.ID, points[0].ID, sdk.PurposeReal, "kept"))
	mark := bytes.Repeat([]byte{0xee}, grain)
	wrote := c.guestWrites(i, "vda", grain, mark)
	err := c.deactivate(c.Platform, i.ID, 0, sdk.KeepLayer)
	if errors.Is(err, sdk.ErrUnsupported) {
		if now, _ := c.findInstance(c.Platform, i.ID); now.State != sdk.InstanceRunning {
			c.errorf("a layer cannot be kept, and yet the instance is %q", now.State)
		}
		c.skipf("the back-end keeps no layers")
	}
	c.must("keep what an instance wrote", err)
	kept, ok := c.findInstance(c.fresh(), i.ID)
	if !ok || kept.State != sdk.InstanceKept || kept.Machine != "" {
		c.errorf("a kept instance is listed as %+v", kept)
	}
	if _, ok := c.find(c.Platform, i.Machine); ok {
		c.errorf("machine %s of a kept instance is in the inventory", i.Machine)
	}
	c.want("remove the point of a kept instance", c.removePoint(c.Platform, r.ID, points[0].ID, 0), sdk.ErrBusy)
	req := c.request(r.ID, points[0].ID, sdk.PurposeReal, "kept again")
	req.Kept = i.ID
	again, err := c.activate(c.fresh(), "kept again", 0, req)
	c.must("run a kept instance again", err)
	if again.ID != i.ID || again.State != sdk.InstanceRunning {
		c.errorf("a kept instance runs again as %+v", again)
	}
	if !wrote {
		return
	}
	machine, err := c.finalize(c.Platform, again.ID, 0)
	c.must("finalize the instance", err)
	want := slices.Clone(shown[0]["vda"])
	copy(want[grain:], mark)
	c.stoppedHolds(machine, "vda", want)
}

// stoppedHolds stops a machine and compares a disk of it.
func (c *checker) stoppedHolds(id sdk.MachineID, disk sdk.DiskID, want []byte) {
	if !c.offers(sdk.AbilityPower) {
		c.leaveOut("the bytes of permanent machines: the platform stops no machines")
		return
	}
	power := c.power(c.Platform)
	c.must("stop the machine", settled(c, func() error {
		return power.Stop(c.ctx, c.draftOp("stop "+string(id), epochsPerCheck-2), id, 0)
	}))
	c.holds(id, disk, want)
}

func activatorOlderClaim(c *checker) {
	r, points, _ := c.chain("claims", 1)
	i, err := c.activate(c.Platform, "newer", 2, c.request(r.ID, points[0].ID, sdk.PurposeReal, "newer"))
	c.must("activate a point", err)
	c.want("deactivate under an older claim", c.deactivate(c.Platform, i.ID, 1, sdk.DiscardLayer), sdk.ErrFenced)
	_, err = c.finalize(c.Platform, i.ID, 1)
	c.want("finalize under an older claim", err, sdk.ErrFenced)
	_, err = c.activate(c.Platform, "older", 1, c.request(r.ID, points[0].ID, sdk.PurposeReal, "older"))
	c.want("activate under an older claim", err, sdk.ErrFenced)
	if now, _ := c.findInstance(c.Platform, i.ID); now.State != sdk.InstanceRunning {
		c.errorf("after an older claim was refused, the instance is %q", now.State)
	}
}

func activatorForeignSpace(c *checker) {
	if c.Foreign == "" {
		c.skipf("the fixture has no foreign space")
	}
	r, points, _ := c.chain("foreign", 1)
	i := c.runs("ours", c.request(r.ID, points[0].ID, sdk.PurposeTest, "ours"))
	activator := c.activator(c.Platform)
	foreign := func(name string) sdk.Op {
		op := c.op(name, 3)
		op.Space = c.Foreign
		return op
	}
	for seen, err := range activator.Instances(c.ctx, c.Foreign) {
		c.must("list the instances of a foreign space", err)
		if seen.ID == i.ID {
			c.errorf("instance %s is listed in a space in which it is not", i.ID)
		}
	}
	theirs, err := settle(c, func() (sdk.Instance, error) {
		return activator.Activate(c.ctx, foreign("activate"), c.request(r.ID, points[0].ID, sdk.PurposeTest, "theirs"))
	})
	if err == nil {
		c.later(func() { _ = c.deactivate(c.Platform, theirs.ID, epochsPerCheck-1, sdk.DiscardLayer) })
	}
	c.want("activate a point from a foreign space", err, sdk.ErrDenied)
	c.want("deactivate an instance from a foreign space", settled(c, func() error {
		return activator.Deactivate(c.ctx, foreign("deactivate"), i.ID, sdk.DiscardLayer)
	}), sdk.ErrDenied)
	if now, _ := c.findInstance(c.Platform, i.ID); now.State != sdk.InstanceRunning {
		c.errorf("after a foreign space was refused, the instance is %q", now.State)
	}
}

func finalizes(c *checker) {
	r, points, shown := c.chain("permanent", 2)
	test := c.runs("test", c.request(r.ID, points[0].ID, sdk.PurposeTest, "test"))
	_, err := c.finalize(c.Platform, test.ID, 0)
	c.want("finalize a test", err, sdk.ErrInvalid)
	i := c.runs("real", c.request(r.ID, points[1].ID, sdk.PurposeReal, "real"))
	_, err = c.finalize(c.Platform, i.ID, 0)
	c.want("finalize beside a test of the replica", err, sdk.ErrBusy)
	c.must("end the test", c.deactivate(c.Platform, test.ID, 0, sdk.DiscardLayer))
	want := slices.Clone(shown[1]["vda"])
	if c.guestWrites(i, "vda", 0, bytes.Repeat([]byte{0xee}, grain)) {
		copy(want, bytes.Repeat([]byte{0xee}, grain))
	}
	machine, err := c.finalize(c.Platform, i.ID, 0)
	c.must("finalize a real instance", err)
	again, err := c.finalize(c.fresh(), i.ID, 0)
	c.must("finalize it again in a fresh process", err)
	if machine != i.Machine || again != machine {
		c.errorf("machine %s became %s, and then %s", i.Machine, machine, again)
	}
	if m, ok := c.find(c.Platform, machine); !ok || m.State != sdk.StateRunning {
		c.errorf("the permanent machine is there: %t, and %s", ok, m.State)
	}
	if _, ok := c.findReplica(c.Platform, r.ID); ok {
		c.errorf("replica %s is listed after its instance became permanent", r.ID)
	}
	if _, ok := c.findInstance(c.Platform, i.ID); ok {
		c.errorf("instance %s is listed after it became permanent", i.ID)
	}
	c.stoppedHolds(machine, "vda", want)
	if c.offers(sdk.AbilityPower) {
		c.holds(machine, "vdb", shown[1]["vdb"])
	}
}

func reverses(c *checker) {
	if !c.offers(sdk.AbilitySource) || !c.offers(sdk.AbilityChangeTracker) {
		c.skipf("the platform is no source that tracks changes")
	}
	r, points, shown := c.chain("reverse", 1)
	i := c.runs("reverse", c.request(r.ID, points[0].ID, sdk.PurposeReal, "reverse"))
	const early, late = 2 * grain, 7 * grain
	wrote := c.guestWrites(i, "vda", early, bytes.Repeat([]byte{0xe1}, 100))
	reverse := func(p sdk.Platform) sdk.Reversal {
		reversal, err := settle(c, func() (sdk.Reversal, error) {
			return c.activator(p).Reverse(c.ctx, c.draftOp("reverse", 0), i.ID)
		})
		c.must("reverse an instance", err)
		return reversal
	}
	reversal := reverse(c.Platform)
	if wrote {
		c.guestWrites(i, "vda", late, bytes.Repeat([]byte{0xe2}, 100))
	}
	if again := reverse(c.fresh()); again.Machine != i.Machine || !bytes.Equal(again.Since["vda"], reversal.Since["vda"]) {
		c.errorf("machine %s, reversed again, is %s with another mark", i.Machine, again.Machine)
	}
	source, tracker := c.source(c.Platform), c.tracker(c.Platform)
	op := c.draftOp("snapshot", 0)
	snap, err := settle(c, func() (sdk.Snapshot, error) {
		return source.Snapshot(c.ctx, op, sdk.SnapshotRequest{Machine: reversal.Machine, Since: reversal.Since})
	})
	c.must("take a snapshot of an instance", err)
	defer func() {
		op.ID += " end"
		c.want("end the snapshot", settled(c, func() error { return source.EndSnapshot(c.ctx, op, snap, true) }), nil)
	}()
	if len(reversal.Since["vda"]) == 0 {
		c.leaveOut("the changes of an instance: the back-end has no mark of the point, so everything is compared")
		return
	}
	changed := make([]bool, len(shown[0]["vda"]))
	for e, err := range tracker.Changed(c.ctx, snap, "vda") {
		c.must("list what changed since the point", err)
		for at := e.Offset; at < e.End(); at++ {
			changed[at] = true
		}
	}
	reader, err := settle(c, func() (sdk.BlockReader, error) { return source.OpenDisk(c.ctx, snap, "vda") })
	c.must("open a disk of the snapshot", err)
	defer func() { c.want("close the disk", reader.Close(), nil) }()
	now := make([]byte, len(changed))
	if n, err := reader.ReadAt(now, 0); n != len(now) {
		c.fatalf("read a disk of the snapshot: %d bytes of %d, %v", n, len(now), err)
	}
	if wrote && (now[early] != 0xe1 || now[late] != 0xe2) {
		c.errorf("the snapshot does not show what the instance wrote")
	}
	for at := range now {
		if now[at] != shown[0]["vda"][at] && !changed[at] {
			c.errorf("byte %d of the instance is not as in its point, and no change", at)
			return
		}
	}
}

func killedInActivate(c *checker) {
	r, points, _ := c.chain("killed", 1)
	before := c.objects()
	c.rounds("Activate", func(round uint64, after time.Duration) {
		name := fmt.Sprint("killed ", round)
		req := c.request(r.ID, points[0].ID, sdk.PurposeReal, name)
		op := c.draftOp("activate "+name, 0)
		c.kill(after, func(p sdk.Platform) func() {
			activator := c.activator(p)
			return func() { _, _ = activator.Activate(c.ctx, op, req) }
		})
		i, err := c.activate(c.fresh(), name, 0, req)
		c.must("activate in a fresh process", err)
		again, err := c.activate(c.Platform, name, 0, req)
		c.must("activate once more", err)
		if again.ID != i.ID || again.State != sdk.InstanceRunning {
			c.errorf("the operation has the instances %s and %s, %s", i.ID, again.ID, again.State)
		}
		c.must("deactivate", c.deactivate(c.Platform, i.ID, 0, sdk.DiscardLayer))
	})
	c.leaves(before)
}

func killedInDeactivate(c *checker) {
	r, points, shown := c.chain("ended", 1)
	before := c.objects()
	c.rounds("Deactivate", func(round uint64, after time.Duration) {
		name := fmt.Sprint("ended ", round)
		i := c.runs(name, c.request(r.ID, points[0].ID, sdk.PurposeReal, name))
		op := c.draftOp(fmt.Sprint("deactivate ", i.ID, " ", sdk.DiscardLayer), 0)
		c.kill(after, func(p sdk.Platform) func() {
			activator := c.activator(p)
			return func() { _ = activator.Deactivate(c.ctx, op, i.ID, sdk.DiscardLayer) }
		})
		c.must("deactivate in a fresh process", c.deactivate(c.fresh(), i.ID, 0, sdk.DiscardLayer))
		if _, ok := c.findInstance(c.Platform, i.ID); ok {
			c.errorf("instance %s is listed after it was discarded", i.ID)
		}
	})
	c.leaves(before)
	c.shows(c.Platform, r.ID, points[0].ID, shown[0])
}

func killedInFinalize(c *checker) {
	c.rounds("Finalize", func(round uint64, after time.Duration) {
		name := fmt.Sprint("final ", round)
		r, points, shown := c.chain(name, 1)
		i := c.runs(name, c.request(r.ID, points[0].ID, sdk.PurposeReal, name))
		op := c.draftOp("finalize "+string(i.ID), 0)
		c.kill(after, func(p sdk.Platform) func() {
			activator := c.activator(p)
			return func() { _, _ = activator.Finalize(c.ctx, op, i.ID) }
		})
		machine, err := c.finalize(c.fresh(), i.ID, 0)
		c.must("finalize in a fresh process", err)
		if machine != i.Machine {
			c.errorf("machine %s became %s", i.Machine, machine)
		}
		if _, ok := c.findReplica(c.Platform, r.ID); ok {
			c.errorf("replica %s is listed after its instance became permanent", r.ID)
		}
		c.stoppedHolds(machine, "vda", shown[0]["vda"])
	})
}

func stoppedActivate(c *checker) {
	r, points, _ := c.chain("stopped", 1)
	had := c.inventory()
	process := c.stoppable()
	activator, op := c.activator(process.Platform), c.draftOp("late", 0)
	req := c.request(r.ID, points[0].ID, sdk.PurposeReal, "late")
	late := c.inFlight(process, func() error {
		i, err := settle(c, func() (sdk.Instance, error) { return activator.Activate(c.ctx, op, req) })
		if err == nil {
			c.later(func() { _ = c.deactivate(c.Platform, i.ID, epochsPerCheck-1, sdk.DiscardLayer) })
		}
		return err
	})
	draft, err := c.draftPoint(c.Platform, "newer", 1, sdk.PointSpec{Replica: r.ID, Base: points[0].ID, Machine: c.replicaMachine()})
	c.must("draft a point under a newer claim", err)
	c.must("wake the process", process.Resume())
	if err := <-late; !errors.Is(err, sdk.ErrFenced) {
		c.errorf("an activation from before the newer claim: %v, want an error that wraps %q", err, sdk.ErrFenced)
	}
	c.onlyNew(had, "")
	c.must("abort the draft", c.abortPoint(draft, 1))
}
