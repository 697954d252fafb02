package conformance

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"

	"github.com/holdfast-dr/holdfast/sdk"
)

var targetChecks = []Check{
	{"target/unknown-names", sdk.AbilityTarget, "Drafts, disks and machines that do not exist are ErrNotFound; aborting an unknown draft is nil.", targetUnknownNames},
	{"target/unknown-network", sdk.AbilityTarget, "A network that does not exist is ErrInvalid, with the existing ones in the hint.", unknownNetwork},
	{"target/draft-becomes-a-machine", sdk.AbilityTarget, "A committed draft is a machine that is off, with a new identity and the bytes that were written.", draftBecomesMachine},
	{"target/draft-is-invisible", sdk.AbilityTarget, "A draft is not in the inventory.", draftIsInvisible},
	{"target/repeats", sdk.AbilityTarget, "A fresh process, asked again with the same Op.ID, answers the same draft and the same machine.", targetRepeats},
	{"target/abort-leaves-nothing", sdk.AbilityTarget, "An aborted draft leaves nothing, and takes no more writes.", abortLeavesNothing},
	{"target/shape", sdk.AbilityTarget, "A writer takes what its shape allows, refuses what it does not, and nothing beyond the end.", shape},
	{"target/writer-before-is-fenced", sdk.AbilityTarget, "Opening a disk again disconnects the writer before.", writerIsFenced},
	{"target/older-claim-is-fenced", sdk.AbilityTarget, "A draft belongs to the newest claim that opened, committed or aborted it.", draftOlderClaim},
	{"target/foreign-space-is-denied", sdk.AbilityTarget, "Nothing can be done to a draft or a machine from another space.", foreignSpace},
	{"target/replace", sdk.AbilityTarget, "A machine that is restored over keeps its identity and gets new disks.", replace},
	{"target/replace-of-a-running-machine-is-busy", sdk.AbilityTarget, "A machine that runs is not restored over.", replaceRunning},
}

// draftSizes are the disks of a draft: one of an odd number of grains, so that
// ends are tested.
var draftSizes = map[sdk.DiskID]int64{"vda": 4 << 20, "vdb": 1<<20 + 3*512}

// spec is what a draft of the checks is like.
func (c *checker) spec() sdk.DraftSpec {
	spec := c.Draft
	if spec.Machine.Name == "" {
		spec.Machine.Name, spec.Machine.CPUs, spec.Machine.MemoryBytes = "conformance", 1, 64<<20
	}
	spec.Machine.Disks = nil
	for _, id := range []sdk.DiskID{"vda", "vdb"} {
		spec.Machine.Disks = append(spec.Machine.Disks, sdk.Disk{ID: id, Name: string(id), SizeBytes: draftSizes[id]})
	}
	return spec
}

// create makes a draft, and aborts it with the check unless it is committed.
func (c *checker) create(name string, newer uint64, spec sdk.DraftSpec) sdk.Draft {
	draft, err := settle(c, func() (sdk.Draft, error) {
		return c.target(c.Platform).CreateDraft(c.ctx, c.draftOp(name, newer), spec)
	})
	c.must("create a draft", err)
	if draft.ID == "" || !slices.Equal(draft.Disks, []sdk.DiskID{"vda", "vdb"}) {
		c.errorf("draft %q has the disks %v, want vda and vdb", draft.ID, draft.Disks)
	}
	c.later(func() {
		// A committed draft is refused, and that is right.
		_ = c.abort(draft, epochsPerCheck-1)
	})
	return draft
}

func (c *checker) abort(draft sdk.Draft, newer uint64) error {
	return settled(c, func() error {
		return c.target(c.Platform).AbortDraft(c.ctx, c.draftOp("abort "+draft.ID, newer), draft)
	})
}

// commit makes a draft a machine, which is removed with the check.
func (c *checker) commit(p sdk.Platform, draft sdk.Draft, newer uint64) (sdk.MachineID, error) {
	id, err := settle(c, func() (sdk.MachineID, error) {
		return c.target(p).CommitDraft(c.ctx, c.draftOp("commit "+draft.ID, newer), draft)
	})
	if err == nil {
		c.removeLater(id)
	}
	return id, err
}

func (c *checker) removeLater(id sdk.MachineID) {
	c.later(func() {
		if _, ok := c.find(c.Platform, id); ok && c.Remove != nil {
			c.must("remove a machine", c.Remove(id))
		}
	})
}

// writer opens a disk of a draft for writing and closes it with the check.
func (c *checker) writer(p sdk.Platform, draft sdk.Draft, disk sdk.DiskID, newer uint64) sdk.BlockWriter {
	w, err := settle(c, func() (sdk.BlockWriter, error) {
		return c.target(p).OpenDraftDisk(c.ctx, c.draftOp("open "+draft.ID, newer), draft, disk)
	})
	c.must("open disk "+string(disk)+" of a draft", err)
	c.later(func() { _ = w.Close() }) // fenced writers may complain
	return w
}

// fill writes a disk in ascending order, which suits every shape, with holes
// and zeroed ranges, and returns what a reader has to see.
func (c *checker) fill(w sdk.BlockWriter, seed uint64) []byte { return c.fillOver(w, nil, seed) }

// fillOver is fill for a disk that is not zero at first; what is skipped stays
// as it was.
func (c *checker) fillOver(w sdk.BlockWriter, before []byte, seed uint64) []byte {
	noise := rand.New(rand.NewPCG(seed, uint64(w.Size())))
	want := make([]byte, w.Size())
	copy(want, before)
	for off := int64(0); off < w.Size(); off += grain {
		piece := want[off:min(off+grain, w.Size())]
		switch noise.IntN(4) {
		case 0: // a hole
		case 1:
			clear(piece)
			c.must("zero a range", w.Zero(off, int64(len(piece))))
		default:
			var word [8]byte
			for i := 0; i < len(piece); i += len(word) {
				binary.LittleEndian.PutUint64(word[:], noise.Uint64())
				copy(piece[i:], word[:])
			}
			n, err := w.WriteAt(piece, off)
			c.must("write", err)
			if n != len(piece) {
				c.errorf("write of %d bytes at %d: %d without an error", len(piece), off, n)
			}
		}
	}
	c.must("flush", w.Flush())
	c.must("close the writer", w.Close())
	return want
}

// holds compares the beginning of a disk of a machine with what was written.
func (c *checker) holds(id sdk.MachineID, disk sdk.DiskID, want []byte) {
	if len(want) == 0 {
		return
	}
	got, ok := c.readBack(id, disk, int64(len(want)))
	if !ok {
		return
	}
	for off := 0; off < len(want); off += 512 {
		end := min(off+512, len(want))
		if !bytes.Equal(got[off:end], want[off:end]) {
			c.errorf("disk %s of the machine differs at %d from what was written", disk, off)
			return
		}
	}
}

// readBack reads n bytes of a machine that is off: as the fixture can, or else
// through a snapshot, if one can be taken.
func (c *checker) readBack(id sdk.MachineID, disk sdk.DiskID, n int64) ([]byte, bool) {
	got := make([]byte, n)
	if c.Read != nil {
		c.must("read disk "+string(disk)+" of the new machine", c.Read(id, disk, 0, got))
		return got, true
	}
	const unread = "the bytes of new machines: the fixture cannot read them, and no snapshot of them can be taken"
	if !c.offers(sdk.AbilitySource) {
		c.leaveOut(unread)
		return nil, false
	}
	report, err := c.Platform.Probe(c.ctx, sdk.Subject{Machine: id})
	c.must("probe the new machine", err)
	if works, _ := report.Works(sdk.AbilitySource); !works {
		c.leaveOut(unread)
		return nil, false
	}
	source, op := c.source(c.Platform), c.op(fmt.Sprintf("read %s %s", id, disk), epochsPerCheck-2)
	snap, err := settle(c, func() (sdk.Snapshot, error) {
		return source.Snapshot(c.ctx, op, sdk.SnapshotRequest{Machine: id, Disks: []sdk.DiskID{disk}})
	})
	c.must("take a snapshot of the new machine", err)
	defer func() { c.want("end the snapshot of the new machine", c.end(snap, epochsPerCheck-2, false), nil) }()
	r, err := settle(c, func() (sdk.BlockReader, error) { return source.OpenDisk(c.ctx, snap, disk) })
	c.must("open disk "+string(disk)+" of the new machine", err)
	defer func() { c.want("close disk "+string(disk), r.Close(), nil) }()
	if m, err := r.ReadAt(got, 0); int64(m) != n || err != nil && !errors.Is(err, io.EOF) {
		c.fatalf("read disk %s of the new machine: %d bytes of %d, %v", disk, m, n, err)
	}
	return got, true
}

func targetUnknownNames(c *checker) {
	target := c.target(c.Platform)
	gone := sdk.Draft{ID: unknown, Disks: []sdk.DiskID{"vda"}}
	_, err := settle(c, func() (sdk.BlockWriter, error) {
		return target.OpenDraftDisk(c.ctx, c.draftOp("open", 0), gone, "vda")
	})
	c.want("open a disk of an unknown draft", err, sdk.ErrNotFound)
	_, err = settle(c, func() (sdk.MachineID, error) {
		return target.CommitDraft(c.ctx, c.draftOp("commit", 0), gone)
	})
	c.want("commit an unknown draft", err, sdk.ErrNotFound)
	c.want("abort an unknown draft", c.abort(gone, 0), nil)

	draft := c.create("draft", 0, c.spec())
	_, err = settle(c, func() (sdk.BlockWriter, error) {
		return target.OpenDraftDisk(c.ctx, c.draftOp("open", 0), draft, unknown)
	})
	c.want("open an unknown disk of a draft", err, sdk.ErrNotFound)
	spec := c.spec()
	spec.Replace = unknown
	_, err = settle(c, func() (sdk.Draft, error) {
		return target.CreateDraft(c.ctx, c.draftOp("replace", 0), spec)
	})
	c.want("create a draft over an unknown machine", err, sdk.ErrNotFound)
}

func unknownNetwork(c *checker) {
	before := c.objects()
	spec := c.spec()
	spec.Machine.NICs = []sdk.NIC{{MAC: "52:54:00:00:00:01", Network: "here", Model: "virtio"}}
	spec.Networks = map[string]string{"here": unknown}
	_, err := settle(c, func() (sdk.Draft, error) {
		return c.target(c.Platform).CreateDraft(c.ctx, c.draftOp("draft", 0), spec)
	})
	c.want("create a draft in a network that does not exist", err, sdk.ErrInvalid)
	if err != nil && sdk.HintOf(err) == "" {
		c.errorf("the error %q does not list the networks in its hint", err)
	}
	c.leaves(before)
}

func draftBecomesMachine(c *checker) {
	spec := c.spec()
	spec.Machine.UUID = "0e3f7a52-6f5c-4b0e-9d43-6d2f1d6f2a11"
	draft := c.create("draft", 0, spec)
	want := make(map[sdk.DiskID][]byte)
	for i, disk := range draft.Disks {
		w := c.writer(c.Platform, draft, disk, 0)
		if w.Size() != draftSizes[disk] {
			c.errorf("the writer of disk %s has %d bytes, want %d", disk, w.Size(), draftSizes[disk])
		}
		want[disk] = c.fill(w, uint64(i))
	}
	id, err := c.commit(c.fresh(), draft, 0)
	c.must("commit the draft", err)
	m, ok := c.find(c.fresh(), id)
	if !ok {
		c.fatalf("machine %s, which the commit answered, is not in the inventory", id)
	}
	if m.State != sdk.StateOff {
		c.errorf("the new machine is %s, want off", m.State)
	}
	if m.UUID == spec.Machine.UUID {
		c.errorf("the new machine has the UUID of the one that it was made from")
	}
	if m.Name == "" || m.CPUs != spec.Machine.CPUs || len(m.NICs) != len(spec.Machine.NICs) {
		c.errorf("the new machine is called %q, with %d CPUs and %d interfaces; want %d and %d",
			m.Name, m.CPUs, len(m.NICs), spec.Machine.CPUs, len(spec.Machine.NICs))
	}
	for _, old := range spec.Machine.NICs {
		if slices.ContainsFunc(m.NICs, func(n sdk.NIC) bool { return n.MAC != "" && n.MAC == old.MAC }) {
			c.errorf("the new machine has the MAC address %s of the one that it was made from", old.MAC)
		}
	}
	if len(m.Disks) != len(draft.Disks) {
		c.fatalf("the new machine has %d disks, want %d", len(m.Disks), len(draft.Disks))
	}
	for i, d := range m.Disks {
		if d.SizeBytes != draftSizes[draft.Disks[i]] {
			c.errorf("disk %s of the new machine has %d bytes, want %d", d.ID, d.SizeBytes, draftSizes[draft.Disks[i]])
		}
		c.holds(id, d.ID, want[draft.Disks[i]])
	}
}

func draftIsInvisible(c *checker) {
	seen := make(map[sdk.MachineID]bool)
	for m, err := range c.Platform.Machines(c.ctx) {
		c.must("list machines", err)
		seen[m.ID] = true
	}
	c.create("draft", 0, c.spec())
	for m, err := range c.Platform.Machines(c.ctx) {
		c.must("list machines", err)
		if !seen[m.ID] {
			c.errorf("the inventory shows a draft as machine %s", m.ID)
		}
	}
}

func targetRepeats(c *checker) {
	before := c.objects()
	draft := c.create("draft", 0, c.spec())
	for range 2 {
		again, err := settle(c, func() (sdk.Draft, error) {
			return c.target(c.fresh()).CreateDraft(c.ctx, c.draftOp("draft", 0), c.spec())
		})
		c.must("repeat the creation in a fresh process", err)
		if again.ID != draft.ID || !slices.Equal(again.Disks, draft.Disks) {
			c.errorf("the repeat answered draft %s, first %s", again.ID, draft.ID)
		}
	}
	id, err := c.commit(c.Platform, draft, 0)
	c.must("commit the draft", err)
	for range 2 {
		again, err := settle(c, func() (sdk.MachineID, error) {
			return c.target(c.fresh()).CommitDraft(c.ctx, c.draftOp("commit "+draft.ID, 0), draft)
		})
		c.must("repeat the commit in a fresh process", err)
		if again != id {
			c.errorf("the repeat answered machine %s, first %s", again, id)
			c.removeLater(again)
		}
	}
	c.want("abort a committed draft", c.abort(draft, 0), sdk.ErrInvalid)
	if _, ok := c.find(c.Platform, id); !ok {
		c.errorf("the refused abort removed the machine")
	}
	if c.Remove == nil {
		return
	}
	c.must("remove the machine", c.Remove(id))
	c.leaves(before)
}

func abortLeavesNothing(c *checker) {
	before := c.objects()
	draft := c.create("draft", 0, c.spec())
	w := c.writer(c.Platform, draft, "vda", 0)
	_, err := w.WriteAt(bytes.Repeat([]byte{1}, grain), 0)
	c.must("write", err)
	// Once with the writer open, as after a failure.
	for range 2 {
		c.want("abort a draft, and again", c.abort(draft, 0), nil)
	}
	if _, err := w.WriteAt(bytes.Repeat([]byte{2}, grain), grain); err == nil && w.Flush() == nil {
		c.errorf("a write to an aborted draft succeeded")
	}
	_ = w.Close()
	c.leaves(before)
}

func shape(c *checker) {
	draft := c.create("draft", 0, c.spec())
	w := c.writer(c.Platform, draft, "vda", 0)
	first, after := bytes.Repeat([]byte{1}, grain), bytes.Repeat([]byte{2}, grain)
	_, err := w.WriteAt(first, 3*grain)
	c.must("write", err)
	_, back := w.WriteAt(after, 0)
	want := make([]byte, 4*grain)
	copy(want[3*grain:], first)
	switch w.Shape() {
	case sdk.ShapeSequential:
		c.want("a step back", back, sdk.ErrInvalid)
		// From zero again, after a failure.
		w = c.writer(c.Platform, draft, "vda", 0)
		clear(want)
		copy(want[grain:], after)
		_, err = w.WriteAt(after, grain)
		c.must("write from the beginning again", err)
	case sdk.ShapeRandom:
		c.want("a step back", back, nil)
		copy(want, after)
		_, err = w.WriteAt(after, 3*grain)
		c.must("write again what was written", err)
		copy(want[3*grain:], after)
		c.must("zero what was written", w.Zero(0, grain/2))
		clear(want[:grain/2])
	default:
		c.errorf("the writer has the shape %q", w.Shape())
	}
	if _, err := w.WriteAt(first, w.Size()-512); err == nil {
		c.errorf("a write over the end of the disk succeeded")
	}
	c.must("flush", w.Flush())
	c.must("close the writer", w.Close())
	id, err := c.commit(c.Platform, draft, 0)
	c.must("commit the draft", err)
	m, ok := c.find(c.Platform, id)
	if !ok || len(m.Disks) == 0 {
		c.fatalf("machine %s is not in the inventory, or without disks", id)
	}
	c.holds(id, m.Disks[0].ID, want)
}

func writerIsFenced(c *checker) {
	draft := c.create("draft", 0, c.spec())
	first := c.writer(c.Platform, draft, "vda", 0)
	_, err := first.WriteAt(bytes.Repeat([]byte{1}, grain), 0)
	c.must("write", err)
	second := c.writer(c.fresh(), draft, "vda", 0)
	good := bytes.Repeat([]byte{2}, grain)
	_, err = second.WriteAt(good, 0)
	c.must("write by the later writer", err)
	_, late := first.WriteAt(bytes.Repeat([]byte{3}, grain), grain)
	if late == nil {
		late = first.Flush()
	}
	if late == nil {
		c.errorf("the writer before wrote after the disk was opened again")
	}
	c.must("flush", second.Flush())
	c.must("close the writer", second.Close())
	id, err := c.commit(c.Platform, draft, 0)
	c.must("commit the draft", err)
	m, _ := c.find(c.Platform, id)
	if len(m.Disks) > 0 {
		c.holds(id, m.Disks[0].ID, append(good, make([]byte, grain)...))
	}
}

func draftOlderClaim(c *checker) {
	draft := c.create("draft", 1, c.spec())
	_, err := settle(c, func() (sdk.BlockWriter, error) {
		return c.target(c.fresh()).OpenDraftDisk(c.ctx, c.draftOp("open", 0), draft, "vda")
	})
	c.want("open a disk under an older claim", err, sdk.ErrFenced)
	_, err = c.commit(c.fresh(), draft, 0)
	c.want("commit under an older claim", err, sdk.ErrFenced)
	c.want("abort under an older claim", c.abort(draft, 0), sdk.ErrFenced)
	c.writer(c.Platform, draft, "vda", 1)
	// A newer claim takes the draft over, and the older one has lost it.
	c.writer(c.fresh(), draft, "vda", 2)
	_, err = c.commit(c.Platform, draft, 1)
	c.want("commit after a newer claim has opened a disk", err, sdk.ErrFenced)
	_, err = c.commit(c.Platform, draft, 2)
	c.must("commit under the newest claim", err)
}

func foreignSpace(c *checker) {
	if c.Foreign == "" {
		c.skipf("the fixture has no foreign space")
	}
	foreign := func(name string) sdk.Op {
		op := c.op(name, 2)
		op.Space = c.Foreign
		return op
	}
	target := c.target(c.Platform)
	draft := c.create("draft", 0, c.spec())
	_, err := settle(c, func() (sdk.BlockWriter, error) {
		return target.OpenDraftDisk(c.ctx, foreign("open"), draft, "vda")
	})
	c.want("open a disk from a foreign space", err, sdk.ErrDenied)
	_, err = settle(c, func() (sdk.MachineID, error) { return target.CommitDraft(c.ctx, foreign("commit"), draft) })
	c.want("commit from a foreign space", err, sdk.ErrDenied)
	err = settled(c, func() error { return target.AbortDraft(c.ctx, foreign("abort"), draft) })
	c.want("abort from a foreign space", err, sdk.ErrDenied)
	spec := c.spec()
	spec.Replace = c.Machine
	_, err = settle(c, func() (sdk.Draft, error) { return target.CreateDraft(c.ctx, foreign("replace"), spec) })
	c.want("replace a machine of another space", err, sdk.ErrDenied)
	// None of it moved the epoch: the rightful owner goes on.
	c.writer(c.Platform, draft, "vda", 0)
}

func replace(c *checker) {
	first := c.create("first", 0, c.spec())
	id, err := c.commit(c.Platform, first, 0)
	c.must("commit the draft", err)
	old, _ := c.find(c.Platform, id)

	spec := c.spec()
	spec.Replace = id
	over := c.create("over", 1, spec)
	want := c.fill(c.writer(c.Platform, over, "vda", 1), 77)
	again, err := c.commit(c.Platform, over, 1)
	c.must("commit over the machine", err)
	if again != id {
		c.errorf("the machine was %s and is %s; a replaced one keeps its id", id, again)
	}
	now, ok := c.find(c.fresh(), again)
	if !ok {
		c.fatalf("the replaced machine %s is not in the inventory", again)
	}
	if now.UUID != old.UUID || !slices.Equal(now.NICs, old.NICs) {
		c.errorf("the replaced machine has another UUID or other interfaces")
	}
	if len(now.Disks) != 2 {
		c.fatalf("the replaced machine has %d disks, want 2", len(now.Disks))
	}
	c.holds(again, now.Disks[0].ID, want)
	c.holds(again, now.Disks[1].ID, make([]byte, draftSizes["vdb"]))
}

func replaceRunning(c *checker) {
	if !c.offers(sdk.AbilityPower) {
		c.skipf("the platform cannot start a machine")
	}
	first := c.create("first", 0, c.spec())
	id, err := c.commit(c.Platform, first, 0)
	c.must("commit the draft", err)
	c.must("start the machine", c.start(id, 0))
	c.later(func() { c.must("stop the machine", c.stop(id, epochsPerCheck-1)) })
	spec := c.spec()
	spec.Replace = id
	_, err = settle(c, func() (sdk.Draft, error) {
		return c.target(c.Platform).CreateDraft(c.ctx, c.draftOp("over", 0), spec)
	})
	c.want("create a draft over a running machine", err, sdk.ErrBusy)
}
