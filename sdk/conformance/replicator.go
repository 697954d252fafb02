package conformance

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/holdfast-dr/holdfast/sdk"
)

var replicatorChecks = []Check{
	{"replicator/unknown-names", sdk.AbilityReplicator, "Replicas, points, drafts and disks that do not exist are ErrNotFound; removing, aborting or releasing them is nil.", replicatorUnknownNames},
	{"replicator/point-is-what-was-written", sdk.AbilityReplicator, "A committed point shows the bytes that were written, its machine and its label.", pointIsWritten},
	{"replicator/next-point-begins-as-its-base", sdk.AbilityReplicator, "The draft of the next point shows its base, grown disks end in zeroes, and new ones are zero.", nextPoint},
	{"replicator/draft-is-no-point", sdk.AbilityReplicator, "Before its commit a draft is listed as a draft and not as a point, and no replica is in the inventory.", draftIsNoPoint},
	{"replicator/repeats", sdk.AbilityReplicator, "A fresh process, asked again with the same Op.ID, answers the same replica, draft and point, with what was flushed.", replicatorRepeats},
	{"replicator/abort-leaves-nothing", sdk.AbilityReplicator, "An aborted draft leaves nothing, takes no more writes, and its replica takes the next draft.", pointAbortLeavesNothing},
	{"replicator/removed-replica-leaves-nothing", sdk.AbilityReplicator, "A replica that is removed takes its points and its draft with it.", removedReplica},
	{"replicator/draft-can-be-read", sdk.AbilityReplicator, "A writer of any order reads what it wrote over the base.", draftCanBeRead},
	{"replicator/writer-before-is-fenced", sdk.AbilityReplicator, "Opening a disk of a draft again disconnects the writer before.", pointWriterIsFenced},
	{"replicator/newer-claim-takes-over", sdk.AbilityReplicator, "A draft of a newer claim ends the older one and its writers; one of the same claim is busy.", draftTakenOver},
	{"replicator/older-claim-is-fenced", sdk.AbilityReplicator, "An older claim drafts, commits, aborts and removes nothing.", replicatorOlderClaim},
	{"replicator/foreign-space-is-denied", sdk.AbilityReplicator, "A replica is neither listed, read nor changed from another space.", replicatorForeignSpace},
	{"replicator/base-is-the-youngest", sdk.AbilityReplicator, "A draft is based on the youngest point, and no disk shrinks.", baseIsYoungest},
	{"replicator/points-go-in-any-order", sdk.AbilityReplicator, "Removing a point, whichever it is, leaves what the others show as it was.", removedInAnyOrder},
	{"replicator/held-point-stays", sdk.AbilityReplicator, "A point that is held stays, as does what it is read through, whichever process is asked, until it is released.", heldPointStays},
	{"replicator/no-more-points-than-said", sdk.AbilityReplicator, "A replica that has as many points as it can have takes no further draft.", pointsBound},
	{"replicator/seed", sdk.AbilityReplicator, "A machine that is off becomes a replica with its disks as the first point, and is no machine any more.", replicaSeed},
}

// pointSizes are the disks of a point, smaller than those of a draft, for many
// points are made.
var pointSizes = map[sdk.DiskID]int64{"vda": 1 << 20, "vdb": 1<<19 + 3*512}

// replicaMachine is what the points of the checks are a state of.
func (c *checker) replicaMachine() sdk.Machine {
	m := c.spec().Machine
	for i, d := range m.Disks {
		m.Disks[i].SizeBytes = pointSizes[d.ID]
	}
	return m
}

// replica makes a replica, and removes all that is left of it with the check.
func (c *checker) replica(name string) sdk.Replica {
	r, err := c.createReplica(c.Platform, name)
	c.must("create a replica", err)
	return r
}

func (c *checker) createReplica(p sdk.Platform, name string) (sdk.Replica, error) {
	r, err := settle(c, func() (sdk.Replica, error) {
		return c.replicator(p).CreateReplica(c.ctx, c.draftOp("replica "+name, 0), sdk.ReplicaSpec{Name: c.unique(name), Label: "of " + name})
	})
	if err == nil {
		c.later(func() { c.removeLeft(r.ID) })
	}
	return r, err
}

// unique is a name that no other check has.
func (c *checker) unique(name string) string {
	return strings.NewReplacer("/", "-", " ", "-").Replace(c.prefix + "-" + name)
}

// removeLeft removes a replica and releases whoever holds a point of it.
func (c *checker) removeLeft(id sdk.ReplicaID) {
	replicator := c.replicator(c.Platform)
	r, ok := c.findReplica(c.Platform, id)
	if !ok {
		return
	}
	for _, point := range r.Points {
		for _, holder := range point.Holders {
			_ = settled(c, func() error {
				return replicator.ReleasePoint(c.ctx, c.draftOp("release "+holder, epochsPerCheck-1), id, point.ID, holder)
			})
		}
	}
	c.want("remove a replica", settled(c, func() error {
		return replicator.RemoveReplica(c.ctx, c.draftOp("remove left "+string(id), epochsPerCheck-1), id)
	}), nil)
}

func (c *checker) findReplica(p sdk.Platform, id sdk.ReplicaID) (found sdk.Replica, ok bool) {
	for r, err := range c.replicator(p).Replicas(c.ctx, c.Space) {
		c.must("list replicas", err)
		if r.ID == id {
			found, ok = r, true
		}
	}
	return found, ok
}

// pointsOf are the ids of a replica's points, from old to young.
func (c *checker) pointsOf(p sdk.Platform, id sdk.ReplicaID) []sdk.PointID {
	r, ok := c.findReplica(p, id)
	if !ok {
		c.fatalf("replica %s is not listed", id)
	}
	var ids []sdk.PointID
	for _, point := range r.Points {
		ids = append(ids, point.ID)
	}
	return ids
}

func (c *checker) draftPoint(p sdk.Platform, name string, newer uint64, spec sdk.PointSpec) (sdk.PointDraft, error) {
	return settle(c, func() (sdk.PointDraft, error) {
		return c.replicator(p).DraftPoint(c.ctx, c.draftOp("draft "+name, newer), spec)
	})
}

// drafted opens the draft of a first point, of the usual machine.
func (c *checker) drafted(r sdk.Replica, name string) sdk.PointDraft {
	draft, err := c.draftPoint(c.Platform, name, 0, sdk.PointSpec{Replica: r.ID, Machine: c.replicaMachine()})
	c.must("draft a point", err)
	return draft
}

// pointWriter opens a disk of a draft and closes it with the check.
func (c *checker) pointWriter(p sdk.Platform, draft sdk.PointDraft, disk sdk.DiskID, newer uint64) sdk.PointWriter {
	w, err := settle(c, func() (sdk.PointWriter, error) {
		return c.replicator(p).OpenPointDraftDisk(c.ctx, c.draftOp("open "+draft.ID, newer), draft, disk)
	})
	c.must("open disk "+string(disk)+" of a point's draft", err)
	c.later(func() { _ = w.Close() }) // fenced writers may complain
	return w
}

func (c *checker) commitPoint(p sdk.Platform, draft sdk.PointDraft, newer uint64, label sdk.PointLabel) (sdk.Point, error) {
	return settle(c, func() (sdk.Point, error) {
		return c.replicator(p).CommitPoint(c.ctx, c.draftOp("commit "+draft.ID, newer), draft, label)
	})
}

func (c *checker) abortPoint(draft sdk.PointDraft, newer uint64) error {
	return settled(c, func() error {
		return c.replicator(c.Platform).AbortPoint(c.ctx, c.draftOp("abort "+draft.ID, newer), draft)
	})
}

func (c *checker) removePoint(p sdk.Platform, r sdk.ReplicaID, point sdk.PointID, newer uint64) error {
	return settled(c, func() error {
		return c.replicator(p).RemovePoint(c.ctx, c.draftOp("remove "+string(point), newer), r, point)
	})
}

// content is what the disks of a point show.
type content map[sdk.DiskID][]byte

// committed makes a point of a machine over a base, with random writes.
func (c *checker) committed(r sdk.Replica, name string, base sdk.PointID, before content, seed uint64, m sdk.Machine) (sdk.Point, content) {
	draft, err := c.draftPoint(c.Platform, name, 0, sdk.PointSpec{Replica: r.ID, Base: base, Machine: m})
	c.must("draft a point", err)
	want := make(content)
	for i, disk := range draft.Disks {
		want[disk] = c.fillOver(c.pointWriter(c.Platform, draft, disk, 0), before[disk], seed+uint64(i))
	}
	point, err := c.commitPoint(c.Platform, draft, 0, sdk.PointLabel{Label: name})
	c.must("commit a point", err)
	return point, want
}

// chain makes a replica with points of the usual machine.
func (c *checker) chain(name string, points int) (sdk.Replica, []sdk.Point, []content) {
	r := c.replica(name)
	var made []sdk.Point
	var shown []content
	for i := range points {
		base, before := sdk.PointID(""), content(nil)
		if i > 0 {
			base, before = made[i-1].ID, shown[i-1]
		}
		point, want := c.committed(r, fmt.Sprint(name, " ", i), base, before, uint64(100*i), c.replicaMachine())
		made, shown = append(made, point), append(shown, want)
	}
	return r, made, shown
}

// shows compares the disks of a point with what they have to show.
func (c *checker) shows(p sdk.Platform, r sdk.ReplicaID, point sdk.PointID, want content) {
	for disk, bytes := range want {
		c.diskShows(p, r, point, disk, bytes)
	}
}

func (c *checker) diskShows(p sdk.Platform, r sdk.ReplicaID, point sdk.PointID, disk sdk.DiskID, want []byte) {
	what := fmt.Sprintf("disk %s of point %s", disk, point)
	reader, err := settle(c, func() (sdk.BlockReader, error) {
		return c.replicator(p).OpenPoint(c.ctx, c.Space, r, point, disk)
	})
	if err != nil {
		c.errorf("open %s: %v", what, err)
		return
	}
	defer func() { c.want("close "+what, reader.Close(), nil) }()
	if reader.Size() != int64(len(want)) {
		c.errorf("%s has %d bytes, want %d", what, reader.Size(), len(want))
		return
	}
	got := make([]byte, len(want))
	if n, err := reader.ReadAt(got, 0); n != len(got) || err != nil && !errors.Is(err, io.EOF) {
		c.errorf("read %s: %d bytes of %d, %v", what, n, len(got), err)
		return
	}
	for off := 0; off < len(want); off += 512 {
		end := min(off+512, len(want))
		if !bytes.Equal(got[off:end], want[off:end]) {
			c.errorf("%s differs at %d from what was written", what, off)
			return
		}
	}
}

func replicatorUnknownNames(c *checker) {
	replicator := c.replicator(c.Platform)
	_, err := c.draftPoint(c.Platform, "nowhere", 0, sdk.PointSpec{Replica: unknown, Machine: c.replicaMachine()})
	c.want("draft a point of an unknown replica", err, sdk.ErrNotFound)
	c.want("remove an unknown replica", settled(c, func() error {
		return replicator.RemoveReplica(c.ctx, c.draftOp("remove nothing", 0), unknown)
	}), nil)

	r := c.replica("names")
	gone := sdk.PointDraft{ID: unknown, Replica: r.ID, Disks: []sdk.DiskID{"vda"}}
	_, err = settle(c, func() (sdk.PointWriter, error) {
		return replicator.OpenPointDraftDisk(c.ctx, c.draftOp("open", 0), gone, "vda")
	})
	c.want("open a disk of an unknown draft", err, sdk.ErrNotFound)
	_, err = c.commitPoint(c.Platform, gone, 0, sdk.PointLabel{})
	c.want("commit an unknown draft", err, sdk.ErrNotFound)
	c.want("abort an unknown draft", c.abortPoint(gone, 0), nil)
	_, err = settle(c, func() (sdk.BlockReader, error) { return replicator.OpenPoint(c.ctx, c.Space, r.ID, unknown, "vda") })
	c.want("open a disk of an unknown point", err, sdk.ErrNotFound)
	c.want("remove an unknown point", c.removePoint(c.Platform, r.ID, unknown, 0), nil)
	c.want("hold an unknown point", settled(c, func() error {
		return replicator.HoldPoint(c.ctx, c.draftOp("hold", 0), r.ID, unknown, "conformance")
	}), sdk.ErrNotFound)
	c.want("release an unknown point", settled(c, func() error {
		return replicator.ReleasePoint(c.ctx, c.draftOp("release", 0), r.ID, unknown, "conformance")
	}), nil)

	draft := c.drafted(r, "draft")
	_, err = settle(c, func() (sdk.PointWriter, error) {
		return replicator.OpenPointDraftDisk(c.ctx, c.draftOp("open", 0), draft, unknown)
	})
	c.want("open an unknown disk of a draft", err, sdk.ErrNotFound)
}

func pointIsWritten(c *checker) {
	r := c.replica("written")
	m := c.replicaMachine()
	m.Native = []byte("what its own back-end says of it")
	draft, err := c.draftPoint(c.Platform, "first", 0, sdk.PointSpec{Replica: r.ID, Machine: m})
	c.must("draft a point", err)
	want := make(content)
	for i, disk := range draft.Disks {
		w := c.pointWriter(c.Platform, draft, disk, 0)
		if w.Size() != pointSizes[disk] {
			c.errorf("the writer of disk %s has %d bytes, want %d", disk, w.Size(), pointSizes[disk])
		}
		if n, err := w.WriteAt(make([]byte, 1024), w.Size()-512); err == nil && w.Flush() == nil {
			c.errorf("%d bytes were written half beyond the end of disk %s", n, disk)
		}
		if w.Shape() == sdk.ShapeSequential { // from the beginning, after a failure
			w = c.pointWriter(c.Platform, draft, disk, 0)
		}
		want[disk] = c.fill(w, uint64(i))
	}
	label := sdk.PointLabel{Label: "the caller's", Taken: time.Now().UTC().Truncate(time.Microsecond), Achieved: sdk.QuiesceFileSystem}
	point, err := c.commitPoint(c.Platform, draft, 0, label)
	c.must("commit a point", err)
	listed, ok := c.findReplica(c.fresh(), r.ID)
	if !ok || len(listed.Points) != 1 || listed.Points[0].ID != point.ID || listed.Draft != nil {
		c.fatalf("after one commit a fresh process lists %d points of replica %s, and a draft: %t", len(listed.Points), r.ID, listed.Draft != nil)
	}
	if listed.Name != c.unique("written") || listed.Label != "of written" || listed.Space != c.Space {
		c.errorf("replica %s is listed as %q, label %q, space %q", r.ID, listed.Name, listed.Label, listed.Space)
	}
	for _, seen := range []sdk.Point{point, listed.Points[0]} {
		if seen.PointLabel != label {
			c.errorf("point %s has the label %+v, want %+v", seen.ID, seen.PointLabel, label)
		}
		if seen.Machine.Name != m.Name || len(seen.Machine.Disks) != len(m.Disks) || string(seen.Machine.Native) != string(m.Native) {
			c.errorf("point %s is a state of machine %q with %d disks", seen.ID, seen.Machine.Name, len(seen.Machine.Disks))
		}
	}
	c.shows(c.fresh(), r.ID, point.ID, want)
}

func nextPoint(c *checker) {
	r, points, shown := c.chain("next", 1)
	m := c.replicaMachine()
	m.Disks[0].SizeBytes += 2 * grain
	m.Disks[1].ID = "vdc" // and without vdb
	draft, err := c.draftPoint(c.Platform, "second", 0, sdk.PointSpec{Replica: r.ID, Base: points[0].ID, Machine: m})
	c.must("draft the next point", err)
	want := content{"vda": make([]byte, m.Disks[0].SizeBytes), "vdc": make([]byte, m.Disks[1].SizeBytes)}
	copy(want["vda"], shown[0]["vda"])
	copy(want["vda"][grain:], bytes.Repeat([]byte{0x5a}, grain))
	w := c.pointWriter(c.Platform, draft, "vda", 0)
	if w.Size() != m.Disks[0].SizeBytes {
		c.errorf("a disk that grew to %d bytes is written with %d", m.Disks[0].SizeBytes, w.Size())
	}
	_, err = w.WriteAt(want["vda"][grain:2*grain], grain)
	c.must("write", err)
	c.must("flush", w.Flush())
	c.must("close the writer", w.Close())
	second, err := c.commitPoint(c.Platform, draft, 0, sdk.PointLabel{})
	c.must("commit the next point", err)
	if got := c.pointsOf(c.Platform, r.ID); !slices.Equal(got, []sdk.PointID{points[0].ID, second.ID}) {
		c.errorf("the points are %q, want %q and then %q", got, points[0].ID, second.ID)
	}
	c.shows(c.Platform, r.ID, second.ID, want)
	c.shows(c.Platform, r.ID, points[0].ID, shown[0])
	_, err = settle(c, func() (sdk.BlockReader, error) {
		return c.replicator(c.Platform).OpenPoint(c.ctx, c.Space, r.ID, second.ID, "vdb")
	})
	c.want("open a disk that the point does not have", err, sdk.ErrNotFound)
}

func draftIsNoPoint(c *checker) {
	had := c.inventory()
	r := c.replica("invisible")
	draft := c.drafted(r, "draft")
	listed, ok := c.findReplica(c.Platform, r.ID)
	if !ok || len(listed.Points) != 0 {
		c.errorf("a replica with a draft is listed with %d points", len(listed.Points))
	}
	if listed.Draft == nil || listed.Draft.ID != draft.ID || !slices.Equal(listed.Draft.Disks, draft.Disks) {
		c.errorf("draft %s is listed as %+v", draft.ID, listed.Draft)
	}
	c.onlyNew(had, "")
}

func replicatorRepeats(c *checker) {
	r := c.replica("repeats")
	again, err := c.createReplica(c.fresh(), "repeats")
	c.must("repeat the creation in a fresh process", err)
	if again.ID != r.ID {
		c.errorf("the repeat answered replica %s, first %s", again.ID, r.ID)
	}
	spec := sdk.PointSpec{Replica: r.ID, Machine: c.replicaMachine()}
	draft, err := c.draftPoint(c.Platform, "first", 0, spec)
	c.must("draft a point", err)
	kept := c.fill(c.pointWriter(c.Platform, draft, "vda", 0), 1)
	for range 2 {
		again, err := c.draftPoint(c.fresh(), "first", 0, spec)
		c.must("repeat the draft in a fresh process", err)
		if again.ID != draft.ID || again.Epoch != draft.Epoch || !slices.Equal(again.Disks, draft.Disks) {
			c.errorf("the repeat answered draft %+v, first %+v", again, draft)
		}
	}
	point, err := c.commitPoint(c.Platform, draft, 0, sdk.PointLabel{})
	c.must("commit the draft", err)
	for range 2 {
		again, err := c.commitPoint(c.fresh(), draft, 0, sdk.PointLabel{})
		c.must("repeat the commit in a fresh process", err)
		if again.ID != point.ID {
			c.errorf("the repeat answered point %s, first %s", again.ID, point.ID)
		}
	}
	c.want("abort a committed draft", c.abortPoint(draft, 0), sdk.ErrInvalid)
	c.shows(c.Platform, r.ID, point.ID, content{"vda": kept, "vdb": make([]byte, pointSizes["vdb"])})
}

func pointAbortLeavesNothing(c *checker) {
	r, points, shown := c.chain("abort", 1)
	before := c.objects()
	spec := sdk.PointSpec{Replica: r.ID, Base: points[0].ID, Machine: c.replicaMachine()}
	draft, err := c.draftPoint(c.Platform, "aborted", 0, spec)
	c.must("draft a point", err)
	w := c.pointWriter(c.Platform, draft, "vda", 0)
	_, err = w.WriteAt(bytes.Repeat([]byte{1}, grain), 0)
	c.must("write", err)
	for range 2 {
		c.want("abort a draft, and again", c.abortPoint(draft, 0), nil)
	}
	if _, err := w.WriteAt(bytes.Repeat([]byte{2}, grain), grain); err == nil && w.Flush() == nil {
		c.errorf("a write to an aborted draft succeeded")
	}
	_ = w.Close()
	c.leaves(before)
	c.shows(c.Platform, r.ID, points[0].ID, shown[0])
	next, err := c.draftPoint(c.Platform, "next", 0, spec)
	c.must("draft a point after one was aborted", err)
	c.want("abort it, too", c.abortPoint(next, 0), nil)
}

func removedReplica(c *checker) {
	before := c.objects()
	r, points, _ := c.chain("removed", 2)
	_, err := c.draftPoint(c.Platform, "open", 0, sdk.PointSpec{Replica: r.ID, Base: points[1].ID, Machine: c.replicaMachine()})
	c.must("draft a point", err)
	for range 2 {
		c.want("remove a replica, and again", settled(c, func() error {
			return c.replicator(c.Platform).RemoveReplica(c.ctx, c.draftOp("remove", 0), r.ID)
		}), nil)
	}
	if _, ok := c.findReplica(c.Platform, r.ID); ok {
		c.errorf("replica %s is listed after it was removed", r.ID)
	}
	c.leaves(before)
}

func draftCanBeRead(c *checker) {
	r, points, shown := c.chain("read", 1)
	draft, err := c.draftPoint(c.Platform, "next", 0, sdk.PointSpec{Replica: r.ID, Base: points[0].ID, Machine: c.replicaMachine()})
	c.must("draft a point", err)
	w := c.pointWriter(c.Platform, draft, "vda", 0)
	got := make([]byte, 3*grain)
	if w.Shape() == sdk.ShapeSequential {
		_, err := w.ReadAt(got, 0)
		c.want("read a disk that is written in ascending order", err, sdk.ErrUnsupported)
		return
	}
	want := slices.Clone(shown[0]["vda"][:len(got)])
	copy(want[grain:], bytes.Repeat([]byte{0x5a}, grain))
	_, err = w.WriteAt(want[grain:2*grain], grain)
	c.must("write", err)
	if n, err := w.ReadAt(got, 0); n != len(got) || err != nil && !errors.Is(err, io.EOF) {
		c.fatalf("read a draft: %d bytes of %d, %v", n, len(got), err)
	}
	if !bytes.Equal(got, want) {
		c.errorf("a draft does not read as what was written over its base")
	}
}

// stale has a writer write and flush, which has to fail.
func (c *checker) stale(w sdk.BlockWriter, off int64, what string) {
	if _, err := w.WriteAt(bytes.Repeat([]byte{0xbd}, grain), off); err == nil && w.Flush() == nil {
		c.errorf("%s wrote", what)
	}
}

func pointWriterIsFenced(c *checker) {
	r := c.replica("fenced")
	draft := c.drafted(r, "draft")
	first := c.pointWriter(c.Platform, draft, "vda", 0)
	_, err := first.WriteAt(bytes.Repeat([]byte{1}, grain), 0)
	c.must("write", err)
	want := make([]byte, pointSizes["vda"])
	copy(want, bytes.Repeat([]byte{7}, 3*grain))
	second := c.pointWriter(c.fresh(), draft, "vda", 0)
	c.stale(first, 2*grain, "a writer whose disk was opened again")
	_, err = second.WriteAt(want[:3*grain], 0)
	c.must("write with the second writer", err)
	c.must("flush", second.Flush())
	c.must("close the writer", second.Close())
	point, err := c.commitPoint(c.Platform, draft, 0, sdk.PointLabel{})
	c.must("commit the draft", err)
	c.shows(c.Platform, r.ID, point.ID, content{"vda": want})
}

func draftTakenOver(c *checker) {
	r := c.replica("taken")
	spec := sdk.PointSpec{Replica: r.ID, Machine: c.replicaMachine()}
	older := c.drafted(r, "older")
	_, err := c.draftPoint(c.Platform, "beside", 0, spec)
	c.want("draft beside an open draft", err, sdk.ErrBusy)
	w := c.pointWriter(c.Platform, older, "vda", 0)
	_, err = w.WriteAt(bytes.Repeat([]byte{1}, grain), 0)
	c.must("write", err)
	newer, err := c.draftPoint(c.fresh(), "newer", 1, spec)
	c.must("draft a point under a newer claim", err)
	c.stale(w, grain, "a writer whose draft was ended by a newer claim")
	_, err = c.commitPoint(c.Platform, older, 0, sdk.PointLabel{})
	c.want("commit the draft of the older claim", err, sdk.ErrFenced)
	want := c.fill(c.pointWriter(c.Platform, newer, "vda", 1), 5)
	point, err := c.commitPoint(c.Platform, newer, 1, sdk.PointLabel{})
	c.must("commit under the newer claim", err)
	c.shows(c.Platform, r.ID, point.ID, content{"vda": want})
}

func replicatorOlderClaim(c *checker) {
	r, points, shown := c.chain("older", 1)
	draft, err := c.draftPoint(c.Platform, "newer", 2, sdk.PointSpec{Replica: r.ID, Base: points[0].ID, Machine: c.replicaMachine()})
	c.must("draft a point under a newer claim", err)
	_, err = c.draftPoint(c.Platform, "late", 1, sdk.PointSpec{Replica: r.ID, Base: points[0].ID, Machine: c.replicaMachine()})
	c.want("draft a point under an older claim", err, sdk.ErrFenced)
	_, err = settle(c, func() (sdk.PointWriter, error) {
		return c.replicator(c.Platform).OpenPointDraftDisk(c.ctx, c.draftOp("late", 1), draft, "vda")
	})
	c.want("open a disk under an older claim", err, sdk.ErrFenced)
	c.want("abort a draft under an older claim", c.abortPoint(draft, 1), sdk.ErrFenced)
	_, err = c.commitPoint(c.Platform, draft, 1, sdk.PointLabel{})
	c.want("commit a draft under an older claim", err, sdk.ErrFenced)
	c.want("abort a draft under its own claim", c.abortPoint(draft, 2), nil)
	c.want("remove a point under an older claim", c.removePoint(c.Platform, r.ID, points[0].ID, 1), sdk.ErrFenced)
	c.want("remove a replica under an older claim", settled(c, func() error {
		return c.replicator(c.Platform).RemoveReplica(c.ctx, c.draftOp("late", 1), r.ID)
	}), sdk.ErrFenced)
	c.shows(c.Platform, r.ID, points[0].ID, shown[0])
}

func replicatorForeignSpace(c *checker) {
	if c.Foreign == "" {
		c.skipf("the fixture has no foreign space")
	}
	r, points, shown := c.chain("foreign", 1)
	replicator := c.replicator(c.Platform)
	foreign := func(name string) sdk.Op {
		op := c.op(name, 3)
		op.Space = c.Foreign
		return op
	}
	for seen, err := range replicator.Replicas(c.ctx, c.Foreign) {
		c.must("list the replicas of a foreign space", err)
		if seen.ID == r.ID {
			c.errorf("replica %s is listed in a space in which it is not", r.ID)
		}
	}
	_, err := settle(c, func() (sdk.BlockReader, error) {
		return replicator.OpenPoint(c.ctx, c.Foreign, r.ID, points[0].ID, "vda")
	})
	c.want("read a point from a foreign space", err, sdk.ErrDenied)
	_, err = settle(c, func() (sdk.PointDraft, error) {
		return replicator.DraftPoint(c.ctx, foreign("draft"), sdk.PointSpec{Replica: r.ID, Base: points[0].ID, Machine: c.replicaMachine()})
	})
	c.want("draft a point from a foreign space", err, sdk.ErrDenied)
	for what, change := range map[string]func() error{
		"hold a point":     func() error { return replicator.HoldPoint(c.ctx, foreign("hold"), r.ID, points[0].ID, "conformance") },
		"remove a point":   func() error { return replicator.RemovePoint(c.ctx, foreign("remove"), r.ID, points[0].ID) },
		"remove a replica": func() error { return replicator.RemoveReplica(c.ctx, foreign("all"), r.ID) },
	} {
		c.want(what+" from a foreign space", settled(c, change), sdk.ErrDenied)
	}
	c.shows(c.Platform, r.ID, points[0].ID, shown[0])
}

func baseIsYoungest(c *checker) {
	r, points, shown := c.chain("base", 2)
	refused := func(what string, base sdk.PointID, m sdk.Machine) {
		_, err := c.draftPoint(c.Platform, what, 0, sdk.PointSpec{Replica: r.ID, Base: base, Machine: m})
		c.want("draft a point "+what, err, sdk.ErrInvalid)
	}
	refused("on one that is not the youngest", points[0].ID, c.replicaMachine())
	refused("on one that does not exist", unknown, c.replicaMachine())
	refused("on none where there is one", "", c.replicaMachine())
	m := c.replicaMachine()
	m.Disks[0].SizeBytes -= grain
	refused("with a disk that shrank", points[1].ID, m)
	c.shows(c.Platform, r.ID, points[1].ID, shown[1])
}

func removedInAnyOrder(c *checker) {
	r, points, shown := c.chain("order", 4)
	left := map[int]bool{0: true, 1: true, 2: true, 3: true}
	for _, gone := range []int{1, 0, 3} { // in the middle, the oldest, the youngest
		for range 2 {
			c.want(fmt.Sprintf("remove point %d of 4, and again", gone+1), c.removePoint(c.Platform, r.ID, points[gone].ID, 0), nil)
		}
		delete(left, gone)
		for i := range left {
			c.shows(c.fresh(), r.ID, points[i].ID, shown[i])
		}
	}
	if got := c.pointsOf(c.Platform, r.ID); !slices.Equal(got, []sdk.PointID{points[2].ID}) {
		c.errorf("the points that are left are %q, want %q", got, points[2].ID)
	}
	next, want := c.committed(r, "after", points[2].ID, shown[2], 900, c.replicaMachine())
	c.shows(c.Platform, r.ID, next.ID, want)
}

func heldPointStays(c *checker) {
	r, points, shown := c.chain("held", 3)
	const holder = "conformance holder"
	hold := func() error {
		// Of a claim older than the replica's: holders are not writers.
		return settled(c, func() error {
			return c.replicator(c.Platform).HoldPoint(c.ctx, sdk.Op{ID: c.prefix + "/hold", Space: c.Space}, r.ID, points[1].ID, holder)
		})
	}
	c.want("hold a point", hold(), nil)
	c.want("hold it again", hold(), nil)
	listed, _ := c.findReplica(c.fresh(), r.ID)
	if len(listed.Points) != 3 || !slices.Equal(listed.Points[1].Holders, []string{holder}) {
		c.errorf("the holder of the second of 3 points is not listed: %d points", len(listed.Points))
	}
	err := c.removePoint(c.fresh(), r.ID, points[1].ID, 0)
	c.want("remove a point that is held", err, sdk.ErrBusy)
	if err != nil && !strings.Contains(err.Error(), holder) {
		c.errorf("the error %q does not name the holder", err)
	}
	// The older one may have to stay, too.
	if err := c.removePoint(c.fresh(), r.ID, points[0].ID, 0); err != nil {
		c.want("remove the point before one that is held", err, sdk.ErrBusy)
	}
	c.want("remove a replica with a point that is held", settled(c, func() error {
		return c.replicator(c.fresh()).RemoveReplica(c.ctx, c.draftOp("remove", 0), r.ID)
	}), sdk.ErrBusy)
	c.shows(c.Platform, r.ID, points[1].ID, shown[1])
	c.shows(c.Platform, r.ID, points[2].ID, shown[2])
	release := func() error {
		return settled(c, func() error {
			return c.replicator(c.fresh()).ReleasePoint(c.ctx, c.draftOp("release", 0), r.ID, points[1].ID, holder)
		})
	}
	c.want("release a point", release(), nil)
	c.want("release it again", release(), nil)
	c.want("remove a point that is held no more", c.removePoint(c.Platform, r.ID, points[1].ID, 0), nil)
	c.shows(c.Platform, r.ID, points[2].ID, shown[2])
}

// manyPoints is up to how many points the check of the bound makes.
const manyPoints = 32

func pointsBound(c *checker) {
	r := c.replica("bound")
	if r.MaxPoints == 0 || r.MaxPoints > manyPoints {
		c.skipf("its replicas have no bound that can be reached")
	}
	m := c.replicaMachine()
	m.Disks = m.Disks[:1]
	base, before := sdk.PointID(""), content(nil)
	for i := range r.MaxPoints {
		var point sdk.Point
		point, before = c.committed(r, fmt.Sprint("point ", i), base, before, uint64(i), m)
		base = point.ID
	}
	spec := sdk.PointSpec{Replica: r.ID, Base: base, Machine: m}
	_, err := c.draftPoint(c.Platform, "one more", 0, spec)
	c.want(fmt.Sprintf("draft a point beside %d", r.MaxPoints), err, sdk.ErrBusy)
	first := c.pointsOf(c.Platform, r.ID)[0]
	c.must("remove the oldest point", c.removePoint(c.Platform, r.ID, first, 0))
	_, err = c.draftPoint(c.Platform, "in its place", 0, spec)
	c.want("draft a point after one was removed", err, nil)
	c.shows(c.Platform, r.ID, base, before)
}

func replicaSeed(c *checker) {
	if !c.offers(sdk.AbilityTarget) {
		c.skipf("the platform makes no machines that could be a seed")
	}
	draft := c.create("seed", 0, c.spec())
	want := make(content)
	for i, disk := range draft.Disks {
		want[disk] = c.fill(c.writer(c.Platform, draft, disk, 0), uint64(i)+40)
	}
	id, err := c.commit(c.Platform, draft, 0)
	c.must("commit the draft", err)
	m, _ := c.find(c.Platform, id)
	seed := func(p sdk.Platform) (sdk.Replica, error) {
		return settle(c, func() (sdk.Replica, error) {
			return c.replicator(p).CreateReplica(c.ctx, c.draftOp("seeded", 0), sdk.ReplicaSpec{Name: c.unique("seeded"), Seed: id})
		})
	}
	if c.offers(sdk.AbilityPower) {
		power, op := c.power(c.Platform), c.draftOp("start", 0)
		c.must("start the seed", settled(c, func() error { return power.Start(c.ctx, op, id) }))
		_, err := seed(c.Platform)
		c.want("make a replica of a machine that runs", err, sdk.ErrBusy)
		op.ID += " stop"
		c.must("stop the seed", settled(c, func() error { return power.Stop(c.ctx, op, id, 0) }))
	}
	r, err := seed(c.Platform)
	c.must("make a replica of a machine", err)
	c.later(func() { c.removeLeft(r.ID) })
	again, err := seed(c.fresh())
	c.must("make it again in a fresh process", err)
	if again.ID != r.ID || len(r.Points) != 1 || len(again.Points) != 1 {
		c.fatalf("a machine became replicas %s and %s with %d and %d points", r.ID, again.ID, len(r.Points), len(again.Points))
	}
	if _, ok := c.find(c.Platform, id); ok {
		c.errorf("machine %s is in the inventory after it became a replica", id)
	}
	for i, d := range m.Disks {
		c.diskShows(c.Platform, r.ID, r.Points[0].ID, d.ID, want[draft.Disks[i]])
	}
}
