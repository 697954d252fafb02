package conformance

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/holdfast-dr/holdfast/sdk"
)

var targetTroubleChecks = []Check{
	{"target/odd-sizes", sdk.AbilityTarget, "A disk has exactly the size that was asked for, down to one sector; a size that cannot be had is ErrInvalid.", oddSizes},
	{"target/empty-disk", sdk.AbilityTarget, "A disk of no bytes works like any other, or is ErrInvalid when the draft is created.", emptyDisk},
	{"target/many-disks", sdk.AbilityTarget, "A machine of 64 disks gets all of them with their own bytes, or is ErrInvalid when the draft is created.", manyDisks},
	{"target/names-in-any-script", sdk.AbilityTarget, "A machine's name arrives as it was given, whatever it is made of, or is ErrInvalid.", namesInAnyScript},
	{"target/disk-ids-in-any-script", sdk.AbilityTarget, "The disks of a draft keep their ids and their order, whatever another back-end called them.", diskIDsInAnyScript},
	{"target/operation-ids", sdk.AbilityTarget, "Operations with different ids are different, a repeat finds its own, and none without an id is ErrInvalid.", targetOperationIDs},
	{"target/calls-out-of-order", sdk.AbilityTarget, "What belongs to a draft that was committed or aborted fails, and changes nothing.", targetOutOfOrder},
	{"target/parallel-calls", sdk.AbilityTarget, "The same draft asked for by several goroutines is one draft, and different ones are written side by side.", parallelDrafts},
	{"target/cancelled-call-repeats", sdk.AbilityTarget, "A call whose context was cancelled can be repeated with the same Op.ID, and has one effect.", cancelledDraft},
	{"target/data-cut", sdk.AbilityTarget, "A disk whose connection is cut in the middle fails, can be opened again, and has kept what was flushed.", writeCut},
	{"target/killed-in-create", sdk.AbilityTarget, "A process killed in the middle of CreateDraft is no obstacle: a fresh one, asked again, answers one draft.", killedInCreate},
	{"target/killed-in-open", sdk.AbilityTarget, "A process killed in the middle of OpenDraftDisk is no obstacle: a fresh one, asked again, opens the disk.", killedInOpen},
	{"target/killed-while-written", sdk.AbilityTarget, "A process killed while a disk is written is no obstacle: a fresh one opens it again and writes it to its end.", killedWhileWritten},
	{"target/killed-in-commit", sdk.AbilityTarget, "A process killed in the middle of CommitDraft is no obstacle: a fresh one, asked again, answers one machine.", killedInCommit},
	{"target/killed-in-abort", sdk.AbilityTarget, "A process killed in the middle of AbortDraft is no obstacle: a fresh one, asked again, removes the draft.", killedInAbort},
	{"target/stopped-host-cannot-write", sdk.AbilityTarget, "What a stopped host has on the wire when a newer claim takes over reaches no disk.", stoppedHost},
	{"target/stopped-process-cannot-write", sdk.AbilityTarget, "A process that was stopped and wakes after a newer claim took over writes not one byte.", stoppedWriter},
	{"target/stopped-process-cannot-commit", sdk.AbilityTarget, "A process that was stopped in the middle of CommitDraft and wakes after a newer claim took over makes no machine.", stoppedCommit},
}

// sized is a spec with disks of these sizes, called d0, d1, ….
func (c *checker) sized(sizes ...int64) sdk.DraftSpec {
	spec := c.spec()
	spec.Machine.Disks = nil
	for i, size := range sizes {
		id := fmt.Sprint("d", i)
		spec.Machine.Disks = append(spec.Machine.Disks, sdk.Disk{ID: sdk.DiskID(id), Name: id, SizeBytes: size})
	}
	return spec
}

// offered makes a draft that a back-end may honestly not be able to make: then
// it says ErrInvalid or ErrUnsupported, and nothing is left of it.
func (c *checker) offered(what, name string, spec sdk.DraftSpec) (sdk.Draft, bool) {
	before := c.objects()
	draft, err := settle(c, func() (sdk.Draft, error) {
		return c.target(c.Platform).CreateDraft(c.ctx, c.draftOp(name, 0), spec)
	})
	if errors.Is(err, sdk.ErrInvalid) || errors.Is(err, sdk.ErrUnsupported) {
		c.leaves(before)
		return draft, false
	}
	if err != nil {
		c.errorf("create a draft with %s: %v, want one, or an error that wraps %q", what, err, sdk.ErrInvalid)
		return draft, false
	}
	c.later(func() { _ = c.abort(draft, epochsPerCheck-1) })
	var want []sdk.DiskID
	for _, d := range spec.Machine.Disks {
		want = append(want, d.ID)
	}
	if !slices.Equal(draft.Disks, want) {
		c.errorf("a draft with %s has the disks %q, want %q", what, draft.Disks, want)
		return draft, false
	}
	return draft, true
}

// became is the machine that a commit answered.
func (c *checker) became(draft sdk.Draft) (sdk.Machine, bool) {
	id, err := c.commit(c.Platform, draft, 0)
	if err != nil {
		c.errorf("commit the draft: %v", err)
		return sdk.Machine{}, false
	}
	m, ok := c.find(c.Platform, id)
	if !ok {
		c.errorf("machine %s, which the commit answered, is not in the inventory", id)
	}
	return m, ok
}

// written fills the disks of a draft, commits it and looks at the machine.
func (c *checker) written(what string, spec sdk.DraftSpec, draft sdk.Draft) {
	want := make([][]byte, len(draft.Disks))
	for i, disk := range draft.Disks {
		w := c.writer(c.Platform, draft, disk, 0)
		if size := spec.Machine.Disks[i].SizeBytes; w.Size() != size {
			c.errorf("%s: the writer of disk %s has %d bytes, want %d", what, disk, w.Size(), size)
			return
		}
		want[i] = c.fill(w, uint64(i)+100)
	}
	m, ok := c.became(draft)
	if !ok {
		return
	}
	if len(m.Disks) != len(want) {
		c.errorf("%s: the machine has %d disks, want %d", what, len(m.Disks), len(want))
		return
	}
	for i, d := range m.Disks {
		if d.SizeBytes != int64(len(want[i])) {
			c.errorf("%s: disk %s of the machine has %d bytes, want %d", what, d.ID, d.SizeBytes, len(want[i]))
			return
		}
	}
	for i, d := range m.Disks {
		c.holds(m.ID, d.ID, want[i])
	}
}

func oddSizes(c *checker) {
	// Multiples of a sector, and of nothing larger.
	spec := c.sized(512, 3*512, 64<<10+512, 1<<20-512)
	if draft, ok := c.offered("disks of one, 3, 129 and 2047 sectors", "sectors", spec); ok {
		c.written("disks of one, 3, 129 and 2047 sectors", spec, draft)
	}
	spec = c.sized(1<<20 + 1)
	if draft, ok := c.offered("a disk that ends inside a sector", "bytes", spec); ok {
		c.written("a disk that ends inside a sector", spec, draft)
	}
}

func emptyDisk(c *checker) {
	spec := c.sized(1<<20, 0)
	if draft, ok := c.offered("a disk of no bytes", "empty", spec); ok {
		c.written("a disk of no bytes", spec, draft)
	}
}

// manyDisks is as many as a large machine has.
const many = 64

func manyDisks(c *checker) {
	sizes := make([]int64, many)
	for i := range sizes {
		sizes[i] = grain
	}
	spec := c.sized(sizes...)
	draft, ok := c.offered("64 disks", "many", spec)
	if !ok {
		return
	}
	writers := make([]sdk.BlockWriter, many)
	for i, disk := range draft.Disks {
		writers[i] = c.writer(c.Platform, draft, disk, 0)
	}
	piece := func(i int) []byte { return bytes.Repeat([]byte{byte(i) + 1}, grain) }
	for i, w := range writers {
		_, err := w.WriteAt(piece(i), 0)
		c.must("write to one disk of 64", err)
		c.must("flush", w.Flush())
		c.must("close the writer", w.Close())
	}
	m, ok := c.became(draft)
	if !ok {
		return
	}
	if len(m.Disks) != many {
		c.errorf("the machine has %d disks, want %d", len(m.Disks), many)
		return
	}
	for _, i := range []int{0, 1, 26, many - 1} {
		c.holds(m.ID, m.Disks[i].ID, piece(i))
	}
}

func namesInAnyScript(c *checker) {
	for i, name := range []string{
		"with a space", "größe", "база данных", "数据库-一", "قاعدة", "emoji 🐘", `quote"s and 'apostrophes'`, "<&>;$(x)`y`%s",
		"a/b", `a\b`, "..", "-rf", " leading", "trailing ", "two\nlines", "e\u0301", // not in the form that most use
		string(bytes.Repeat([]byte("x"), 200)), string(bytes.Repeat([]byte("ü"), 200)), string(bytes.Repeat([]byte("long "), 1000)),
	} {
		spec := c.sized(grain)
		spec.Machine.Name = name
		draft, ok := c.offered(fmt.Sprintf("the name %.40q", name), fmt.Sprint("name ", i), spec)
		if !ok {
			continue
		}
		if m, ok := c.became(draft); ok && !bytes.Contains([]byte(m.Name), []byte(name)) {
			c.errorf("a machine that was to be called %.40q is called %.40q", name, m.Name)
		}
	}
}

func diskIDsInAnyScript(c *checker) {
	spec := c.sized(grain, grain, grain, grain)
	for i, id := range []sdk.DiskID{"scsi0:1", "Hard disk 1", "硬盘/2", `a"b'<c>&`} {
		spec.Machine.Disks[i].ID, spec.Machine.Disks[i].Name = id, string(id)
	}
	if draft, ok := c.offered("the disks of another back-end", "disks", spec); ok {
		c.written("the disks of another back-end", spec, draft)
	} else {
		c.errorf("a draft with the disk ids of another back-end is refused; they mean nothing to this one, so any will do")
	}
}

func targetOperationIDs(c *checker) {
	target, spec := c.target(c.Platform), c.sized(grain)
	op := c.draftOp("", 0)
	op.ID = ""
	_, err := settle(c, func() (sdk.Draft, error) { return target.CreateDraft(c.ctx, op, spec) })
	c.want("create a draft without an operation id", err, sdk.ErrInvalid)
	made := make(map[string]string)
	for _, id := range oddIDs() {
		create := func(p sdk.Platform) string {
			t := c.target(p)
			draft, err := settle(c, func() (sdk.Draft, error) { return t.CreateDraft(c.ctx, c.draftOp(id, 0), spec) })
			c.must(fmt.Sprintf("create a draft as operation %q", id), err)
			return draft.ID
		}
		draft := create(c.Platform)
		c.later(func() { _ = c.abort(sdk.Draft{ID: draft, Disks: []sdk.DiskID{"d0"}}, epochsPerCheck-1) })
		if other, ok := made[draft]; ok {
			c.errorf("the operations %q and %q got the same draft", other, id)
		}
		made[draft] = id
		if again := create(c.Platform); again != draft {
			c.errorf("the repeat of operation %q answered draft %s, first %s", id, again, draft)
		}
	}
}

func targetOutOfOrder(c *checker) {
	target := c.target(c.Platform)
	open := func(draft sdk.Draft) error {
		w, err := settle(c, func() (sdk.BlockWriter, error) {
			return target.OpenDraftDisk(c.ctx, c.draftOp("late "+draft.ID, 0), draft, "vda")
		})
		if err == nil {
			_ = w.Close()
		}
		return err
	}
	draft := c.create("committed", 0, c.spec())
	late := c.writer(c.Platform, draft, "vda", 0)
	good := bytes.Repeat([]byte{1}, grain)
	_, err := late.WriteAt(good, 0)
	c.must("write", err)
	c.must("flush", late.Flush())
	// vdb was never opened, and the writer of vda still is.
	id, err := c.commit(c.Platform, draft, 0)
	c.must("commit the draft", err)
	if _, err := late.WriteAt(bytes.Repeat([]byte{2}, grain), grain); err == nil && late.Flush() == nil {
		c.errorf("a write after the commit succeeded")
	}
	if err := open(draft); !errors.Is(err, sdk.ErrInvalid) && !errors.Is(err, sdk.ErrNotFound) {
		c.errorf("open a disk of a committed draft: %v, want an error that wraps %q or %q", err, sdk.ErrInvalid, sdk.ErrNotFound)
	}
	again, err := settle(c, func() (sdk.Draft, error) {
		return target.CreateDraft(c.ctx, c.draftOp("committed", 0), c.spec())
	})
	if err != nil || again.ID != draft.ID {
		c.errorf("the creation repeated after the commit: draft %q, %v; want %q", again.ID, err, draft.ID)
	}
	if m, ok := c.find(c.Platform, id); ok && len(m.Disks) == 2 {
		c.holds(id, m.Disks[0].ID, append(good, make([]byte, 2*grain)...))
		c.holds(id, m.Disks[1].ID, make([]byte, draftSizes["vdb"]))
	}

	draft = c.create("aborted", 0, c.spec())
	c.must("abort the draft", c.abort(draft, 0))
	c.want("open a disk of an aborted draft", open(draft), sdk.ErrNotFound)
	_, err = c.commit(c.Platform, draft, 0)
	c.want("commit an aborted draft", err, sdk.ErrNotFound)
}

func parallelDrafts(c *checker) {
	target, spec := c.target(c.Platform), c.sized(grain)
	create := func(names func(int) string) []sdk.Draft {
		drafts := make([]sdk.Draft, callers)
		for _, err := range c.together(func(i int) (err error) {
			drafts[i], err = settle(c, func() (sdk.Draft, error) {
				return target.CreateDraft(c.ctx, c.draftOp(names(i), 0), spec)
			})
			return err
		}) {
			c.want("create drafts from several goroutines", err, nil)
		}
		for _, d := range drafts {
			c.later(func() { _ = c.abort(d, epochsPerCheck-1) })
		}
		return drafts
	}
	for _, d := range create(func(int) string { return "same" }) {
		if again, _ := settle(c, func() (sdk.Draft, error) {
			return target.CreateDraft(c.ctx, c.draftOp("same", 0), spec)
		}); d.ID != again.ID {
			c.errorf("one operation got the drafts %s and %s", d.ID, again.ID)
			break
		}
	}
	drafts := create(func(i int) string { return fmt.Sprint("own ", i) })
	if slices.ContainsFunc(drafts, func(d sdk.Draft) bool { return d.ID == "" }) {
		return
	}
	for _, err := range c.together(func(i int) error {
		w, err := settle(c, func() (sdk.BlockWriter, error) {
			return target.OpenDraftDisk(c.ctx, c.draftOp(fmt.Sprint("open ", i), 0), drafts[i], "d0")
		})
		if err != nil {
			return err
		}
		_, err = w.WriteAt(bytes.Repeat([]byte{byte(i) + 1}, grain), 0)
		return errors.Join(err, w.Flush(), w.Close())
	}) {
		c.want("write drafts from several goroutines", err, nil)
	}
	for _, i := range []int{0, callers - 1} {
		if m, ok := c.became(drafts[i]); ok && len(m.Disks) == 1 {
			c.holds(m.ID, m.Disks[0].ID, bytes.Repeat([]byte{byte(i) + 1}, grain))
		}
	}
}

func cancelledDraft(c *checker) {
	before, round := c.objects(), 0
	target, spec := c.target(c.Platform), c.sized(grain)
	c.cancelled("a creation", "CreateDraft", func(ctx context.Context) error {
		round++
		op := c.draftOp(fmt.Sprint("create ", round), 0)
		_, cancelled := target.CreateDraft(ctx, op, spec)
		draft, err := settle(c, func() (sdk.Draft, error) { return target.CreateDraft(c.ctx, op, spec) })
		c.must("repeat a creation that was cancelled", err)
		c.must("abort the draft", c.abort(draft, 0))
		return cancelled
	})
	c.cancelled("a commit", "CommitDraft", func(ctx context.Context) error {
		round++
		draft, err := settle(c, func() (sdk.Draft, error) {
			return target.CreateDraft(c.ctx, c.draftOp(fmt.Sprint("create ", round), 0), spec)
		})
		c.must("create a draft", err)
		had := c.inventory()
		_, cancelled := target.CommitDraft(ctx, c.draftOp("commit "+draft.ID, 0), draft)
		id, err := c.commit(c.Platform, draft, 0)
		c.must("repeat a commit that was cancelled", err)
		c.onlyNew(had, id)
		if c.Remove != nil {
			c.must("remove the machine", c.Remove(id))
		}
		return cancelled
	})
	c.cancelled("an abort", "AbortDraft", func(ctx context.Context) error {
		round++
		draft, err := settle(c, func() (sdk.Draft, error) {
			return target.CreateDraft(c.ctx, c.draftOp(fmt.Sprint("create ", round), 0), spec)
		})
		c.must("create a draft", err)
		cancelled := target.AbortDraft(ctx, c.draftOp("abort "+draft.ID, 0), draft)
		c.want("repeat an abort that was cancelled", c.abort(draft, 0), nil)
		return cancelled
	})
	if c.Remove != nil {
		c.leaves(before)
	}
}

// inventory is the ids of all machines.
func (c *checker) inventory() map[sdk.MachineID]bool {
	ids := make(map[sdk.MachineID]bool)
	for m, err := range c.Platform.Machines(c.ctx) {
		c.must("list machines", err)
		ids[m.ID] = true
	}
	return ids
}

// onlyNew checks that one machine came to the inventory and no other.
func (c *checker) onlyNew(had map[sdk.MachineID]bool, want sdk.MachineID) {
	for id := range c.inventory() {
		if !had[id] && id != want {
			c.errorf("besides machine %s, there is a new machine %s", want, id)
			c.removeLater(id)
		}
	}
}

func writeCut(c *checker) {
	wire := c.wire()
	started := time.Now()
	for round, after := range []int64{grain / 2, 100, grain + 100, 1000} {
		if round >= minRounds && time.Since(started) > roundBudget {
			return
		}
		draft := c.create(fmt.Sprint("draft ", round), 0, c.spec())
		kept, again := bytes.Repeat([]byte{1}, grain), bytes.Repeat([]byte{2}, 2*grain)
		w := c.writer(c.Platform, draft, "vda", 0)
		seen := wire.carried()
		_, err := w.WriteAt(kept, 0)
		c.must("write", err)
		c.must("flush", w.Flush())
		if wire.carried()-seen < grain {
			c.fatalf("what was written did not go over the wire of the fixture")
		}
		wire.cutAfter(after)
		if _, err := w.WriteAt(again, grain); err == nil && w.Flush() == nil {
			c.errorf("two grains were written over a connection that was cut after %d bytes", after)
		}
		wire.mend()
		_ = w.Close() // it is broken
		w = c.writer(c.Platform, draft, "vda", 0)
		if w.Shape() == sdk.ShapeSequential {
			_, err = w.WriteAt(kept, 0) // from the beginning, after a failure
			c.must("write from the beginning after the cut", err)
		}
		_, err = w.WriteAt(again, grain)
		c.must("write after the cut", err)
		c.must("flush", w.Flush())
		c.must("close the writer", w.Close())
		if m, ok := c.became(draft); ok && len(m.Disks) > 0 {
			c.holds(m.ID, m.Disks[0].ID, slices.Concat(kept, again, make([]byte, grain)))
		}
	}
}

func killedInCreate(c *checker) {
	before := c.objects()
	c.rounds("CreateDraft", func(round uint64, after time.Duration) {
		op := c.draftOp(fmt.Sprint("draft ", round), 0)
		c.kill(after, func(p sdk.Platform) func() {
			target := c.target(p)
			return func() { _, _ = target.CreateDraft(c.ctx, op, c.spec()) }
		})
		repeat := func(p sdk.Platform) sdk.Draft {
			target := c.target(p)
			draft, err := settle(c, func() (sdk.Draft, error) { return target.CreateDraft(c.ctx, op, c.spec()) })
			c.must("create the draft in a fresh process", err)
			return draft
		}
		draft := repeat(c.fresh())
		c.later(func() { _ = c.abort(draft, epochsPerCheck-1) })
		if again := repeat(c.Platform); again.ID != draft.ID {
			c.errorf("the operation has two drafts, %s and %s", draft.ID, again.ID)
		}
		w := c.writer(c.Platform, draft, "vdb", 0)
		c.must("close the writer", w.Close())
		c.must("abort the draft", c.abort(draft, 0))
	})
	c.leaves(before)
}

func killedInOpen(c *checker) {
	c.rounds("OpenDraftDisk", func(round uint64, after time.Duration) {
		draft := c.create(fmt.Sprint("draft ", round), 0, c.spec())
		op := c.draftOp("open "+draft.ID, 0)
		c.kill(after, func(p sdk.Platform) func() {
			target := c.target(p)
			return func() { _, _ = target.OpenDraftDisk(c.ctx, op, draft, "vda") }
		})
		want := c.fill(c.writer(c.fresh(), draft, "vda", 0), round)
		if m, ok := c.became(draft); ok && len(m.Disks) > 0 {
			c.holds(m.ID, m.Disks[0].ID, want)
		}
	})
}

func killedWhileWritten(c *checker) {
	draft := c.create("draft", 0, c.spec())
	p := c.process()
	c.killAmid(p, c.writer(p.Platform, draft, "vda", 0))
	want := c.overwrite(c.writer(c.fresh(), draft, "vda", 0))
	if m, ok := c.became(draft); ok && len(m.Disks) > 0 {
		c.holds(m.ID, m.Disks[0].ID, want)
	}
}

func killedInCommit(c *checker) {
	before := c.objects()
	c.rounds("CommitDraft", func(round uint64, after time.Duration) {
		draft := c.create(fmt.Sprint("draft ", round), 0, c.spec())
		want := c.fill(c.writer(c.Platform, draft, "vda", 0), round)
		had := c.inventory()
		op := c.draftOp("commit "+draft.ID, 0)
		c.kill(after, func(p sdk.Platform) func() {
			target := c.target(p)
			return func() { _, _ = target.CommitDraft(c.ctx, op, draft) }
		})
		id, err := c.commit(c.fresh(), draft, 0)
		c.must("commit in a fresh process", err)
		again, err := c.commit(c.Platform, draft, 0)
		c.must("commit once more", err)
		if again != id {
			c.errorf("the draft became two machines, %s and %s", id, again)
		}
		c.onlyNew(had, id)
		if m, ok := c.find(c.Platform, id); ok && len(m.Disks) > 0 {
			c.holds(id, m.Disks[0].ID, want)
		}
		if c.Remove != nil {
			c.must("remove the machine", c.Remove(id))
		}
	})
	if c.Remove != nil {
		c.leaves(before)
	}
}

func killedInAbort(c *checker) {
	before := c.objects()
	c.rounds("AbortDraft", func(round uint64, after time.Duration) {
		draft := c.create(fmt.Sprint("draft ", round), 0, c.spec())
		op := c.draftOp("abort "+draft.ID, 0)
		c.kill(after, func(p sdk.Platform) func() {
			target := c.target(p)
			return func() { _ = target.AbortDraft(c.ctx, op, draft) }
		})
		target := c.target(c.fresh())
		err := settled(c, func() error { return target.AbortDraft(c.ctx, op, draft) })
		c.must("abort in a fresh process", err)
	})
	c.leaves(before)
}

// takenOver has a newer claim open the disk and write three grains.
func (c *checker) takenOver(p sdk.Platform, draft sdk.Draft) []byte {
	good := bytes.Repeat([]byte{7}, 3*grain)
	w := c.writer(p, draft, "vda", 1)
	_, err := w.WriteAt(good, 0)
	c.must("write under the newer claim", err)
	c.must("flush", w.Flush())
	c.later(func() { _ = w.Close() })
	return good
}

// stoppedHost stops a host while half of a write is on the wire, and lets it go
// on after somebody else took the draft over.
func stoppedHost(c *checker) {
	wire := c.wire()
	draft := c.create("draft", 0, c.spec())
	w := c.writer(c.Platform, draft, "vda", 0)
	_, err := w.WriteAt(bytes.Repeat([]byte{1}, grain), 0)
	c.must("write", err)
	c.must("flush", w.Flush())
	stuck := wire.holdAfter(grain / 3)
	late := make(chan error, 1)
	go func() {
		_, err := w.WriteAt(bytes.Repeat([]byte{0xbd}, grain), grain)
		late <- err
	}()
	select {
	case <-stuck:
	case err := <-late:
		c.fatalf("what was written did not go over the wire of the fixture: %v", err)
	}
	good := c.takenOver(c.fresh(), draft)
	wire.release()
	if err := <-late; err == nil && w.Flush() == nil {
		c.errorf("a write that was on the wire when a newer claim took over succeeded")
	}
	if _, err := w.WriteAt(bytes.Repeat([]byte{0xbd}, grain), 2*grain); err == nil && w.Flush() == nil {
		c.errorf("a host that woke up after a newer claim took over wrote")
	}
	c.commitHolds(draft, good)
}

// commitHolds commits a draft that was taken over and compares its first disk.
func (c *checker) commitHolds(draft sdk.Draft, want []byte) {
	id, err := c.commit(c.Platform, draft, 1)
	c.must("commit under the newer claim", err)
	if m, ok := c.find(c.Platform, id); ok && len(m.Disks) > 0 {
		c.holds(id, m.Disks[0].ID, append(want, make([]byte, draftSizes["vda"]-int64(len(want)))...))
	}
}

func stoppedWriter(c *checker) {
	draft := c.create("draft", 0, c.spec())
	process := c.stoppable()
	var good []byte
	c.wakesTooLate(process, c.writer(process.Platform, draft, "vda", 0), func() { good = c.takenOver(c.Platform, draft) })
	c.commitHolds(draft, good)
}

func stoppedCommit(c *checker) {
	draft := c.create("draft", 0, c.spec())
	had := c.inventory()
	process := c.stoppable()
	target, op := c.target(process.Platform), c.draftOp("late", 0)
	late := c.inFlight(process, func() error {
		_, err := settle(c, func() (sdk.MachineID, error) { return target.CommitDraft(c.ctx, op, draft) })
		return err
	})
	good := c.takenOver(c.Platform, draft)
	c.must("wake the process", process.Resume())
	if err := <-late; !errors.Is(err, sdk.ErrFenced) {
		c.errorf("a commit from before the newer claim: %v, want an error that wraps %q", err, sdk.ErrFenced)
	}
	c.onlyNew(had, "")
	c.commitHolds(draft, good)
}
