package conformance

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/holdfast-dr/holdfast/sdk"
)

var replicatorTroubleChecks = []Check{
	{"replicator/parallel-calls", sdk.AbilityReplicator, "The same draft asked for by several goroutines is one draft.", parallelPointDrafts},
	{"replicator/killed-in-draft", sdk.AbilityReplicator, "A process killed in the middle of DraftPoint is no obstacle: a fresh one, asked again, answers one draft that shows its base.", killedInDraftPoint},
	{"replicator/killed-while-written", sdk.AbilityReplicator, "What a process wrote of a point that was killed meanwhile is in no point, and a fresh one goes on with the draft.", killedWhilePointWritten},
	{"replicator/killed-in-commit", sdk.AbilityReplicator, "A process killed in the middle of CommitPoint is no obstacle: a fresh one, asked again, answers one whole point.", killedInCommitPoint},
	{"replicator/killed-in-remove", sdk.AbilityReplicator, "A process killed in the middle of RemovePoint is no obstacle: the other points show what they did, and a fresh one ends it.", killedInRemovePoint},
	{"replicator/stopped-process-cannot-write", sdk.AbilityReplicator, "A process that was stopped and wakes after a newer claim took over writes not one byte into a point.", stoppedPointWriter},
	{"replicator/stopped-process-cannot-commit", sdk.AbilityReplicator, "A process that was stopped in the middle of CommitPoint and wakes after a newer claim took over makes no point.", stoppedPointCommit},
}

func parallelPointDrafts(c *checker) {
	r := c.replica("parallel")
	ids := make([]string, callers)
	for _, err := range c.together(func(i int) error {
		draft, err := c.draftPoint(c.Platform, "same", 0, sdk.PointSpec{Replica: r.ID, Machine: c.replicaMachine()})
		ids[i] = draft.ID
		return err
	}) {
		c.want("the same draft from several goroutines", err, nil)
	}
	slices.Sort(ids)
	if ids = slices.Compact(ids); len(ids) != 1 {
		c.errorf("the same operation made the drafts %q", ids)
	}
}

func killedInDraftPoint(c *checker) {
	r, points, shown := c.chain("killed", 1)
	before := c.objects()
	spec := sdk.PointSpec{Replica: r.ID, Base: points[0].ID, Machine: c.replicaMachine()}
	c.rounds("DraftPoint", func(round uint64, after time.Duration) {
		op := c.draftOp(fmt.Sprint("draft killed ", round), 0)
		c.kill(after, func(p sdk.Platform) func() {
			replicator := c.replicator(p)
			return func() { _, _ = replicator.DraftPoint(c.ctx, op, spec) }
		})
		draft, err := c.draftPoint(c.fresh(), fmt.Sprint("killed ", round), 0, spec)
		c.must("draft the point in a fresh process", err)
		again, err := c.draftPoint(c.Platform, fmt.Sprint("killed ", round), 0, spec)
		c.must("draft it once more", err)
		if again.ID != draft.ID {
			c.errorf("the operation has two drafts, %s and %s", draft.ID, again.ID)
		}
		w := c.pointWriter(c.Platform, draft, "vda", 0)
		if w.Shape() == sdk.ShapeRandom {
			got := make([]byte, grain)
			_, err := w.ReadAt(got, 0)
			c.must("read the draft", err)
			if !bytes.Equal(got, shown[0]["vda"][:grain]) {
				c.errorf("a draft that was made again does not show its base")
			}
		}
		c.must("close the writer", w.Close())
		c.must("abort the draft", c.abortPoint(draft, 0))
	})
	c.leaves(before)
}

func killedWhilePointWritten(c *checker) {
	r := c.replica("half")
	draft := c.drafted(r, "half")
	p := c.process()
	c.killAmid(p, c.pointWriter(p.Platform, draft, "vda", 0))
	if got := c.pointsOf(c.fresh(), r.ID); len(got) != 0 {
		c.errorf("a draft that was half written is listed as point %q", got)
	}
	want := c.overwrite(c.pointWriter(c.fresh(), draft, "vda", 0))
	point, err := c.commitPoint(c.Platform, draft, 0, sdk.PointLabel{})
	c.must("commit the draft", err)
	c.shows(c.Platform, r.ID, point.ID, content{"vda": want})
}

func killedInCommitPoint(c *checker) {
	r := c.replica("commit")
	base, before := sdk.PointID(""), content(nil)
	c.rounds("CommitPoint", func(round uint64, after time.Duration) {
		draft, err := c.draftPoint(c.Platform, fmt.Sprint("round ", round), 0, sdk.PointSpec{Replica: r.ID, Base: base, Machine: c.replicaMachine()})
		c.must("draft a point", err)
		want := make(content)
		for i, disk := range draft.Disks {
			want[disk] = c.fillOver(c.pointWriter(c.Platform, draft, disk, 0), before[disk], 10*round+uint64(i))
		}
		had := c.pointsOf(c.Platform, r.ID)
		op := c.draftOp("commit "+draft.ID, 0)
		c.kill(after, func(p sdk.Platform) func() {
			replicator := c.replicator(p)
			return func() { _, _ = replicator.CommitPoint(c.ctx, op, draft, sdk.PointLabel{}) }
		})
		point, err := c.commitPoint(c.fresh(), draft, 0, sdk.PointLabel{})
		c.must("commit in a fresh process", err)
		again, err := c.commitPoint(c.Platform, draft, 0, sdk.PointLabel{})
		c.must("commit once more", err)
		if got := c.pointsOf(c.Platform, r.ID); again.ID != point.ID || !slices.Equal(got, append(had, point.ID)) {
			c.errorf("the draft became the points %s and %s; listed are %q after %q", point.ID, again.ID, got, had)
		}
		c.shows(c.Platform, r.ID, point.ID, want)
		base, before = point.ID, want
	})
}

func killedInRemovePoint(c *checker) {
	c.rounds("RemovePoint", func(round uint64, after time.Duration) {
		r, points, shown := c.chain(fmt.Sprint("remove ", round), 3)
		gone := int(round) % 2 // the oldest, and one in the middle
		op := c.draftOp("remove "+string(points[gone].ID), 0)
		c.kill(after, func(p sdk.Platform) func() {
			replicator := c.replicator(p)
			return func() { _ = replicator.RemovePoint(c.ctx, op, r.ID, points[gone].ID) }
		})
		for i := range points {
			if i != gone {
				c.shows(c.fresh(), r.ID, points[i].ID, shown[i])
			}
		}
		c.must("remove the point in a fresh process", c.removePoint(c.fresh(), r.ID, points[gone].ID, 0))
		for i := range points {
			if i != gone {
				c.shows(c.fresh(), r.ID, points[i].ID, shown[i])
			}
		}
		if got := c.pointsOf(c.Platform, r.ID); len(got) != 2 || slices.Contains(got, points[gone].ID) {
			c.errorf("after one of 3 points was removed, %q are left", got)
		}
	})
}

// pointTakenOver has a newer claim draft the point anew and write three grains.
func (c *checker) pointTakenOver(p sdk.Platform, r sdk.Replica) (sdk.PointDraft, content) {
	draft, err := c.draftPoint(p, "newer", 1, sdk.PointSpec{Replica: r.ID, Machine: c.replicaMachine()})
	c.must("draft the point under a newer claim", err)
	want := make([]byte, pointSizes["vda"])
	copy(want, bytes.Repeat([]byte{7}, 3*grain))
	w := c.pointWriter(p, draft, "vda", 1)
	_, err = w.WriteAt(want[:3*grain], 0)
	c.must("write under the newer claim", err)
	c.must("flush", w.Flush())
	return draft, content{"vda": want}
}

func stoppedPointWriter(c *checker) {
	r := c.replica("stopped")
	older := c.drafted(r, "older")
	process := c.stoppable()
	var newer sdk.PointDraft
	var want content
	c.wakesTooLate(process, c.pointWriter(process.Platform, older, "vda", 0), func() { newer, want = c.pointTakenOver(c.Platform, r) })
	point, err := c.commitPoint(c.Platform, newer, 1, sdk.PointLabel{})
	c.must("commit under the newer claim", err)
	c.shows(c.Platform, r.ID, point.ID, want)
}

func stoppedPointCommit(c *checker) {
	r := c.replica("stopped")
	older := c.drafted(r, "older")
	process := c.stoppable()
	replicator, op := c.replicator(process.Platform), c.draftOp("commit "+older.ID, 0)
	late := c.inFlight(process, func() error {
		_, err := settle(c, func() (sdk.Point, error) { return replicator.CommitPoint(c.ctx, op, older, sdk.PointLabel{}) })
		return err
	})
	newer, want := c.pointTakenOver(c.Platform, r)
	c.must("wake the process", process.Resume())
	if err := <-late; !errors.Is(err, sdk.ErrFenced) {
		c.errorf("a commit from before the newer claim: %v, want an error that wraps %q", err, sdk.ErrFenced)
	}
	if got := c.pointsOf(c.Platform, r.ID); len(got) != 0 {
		c.errorf("a draft that was taken over is point %q", got)
	}
	point, err := c.commitPoint(c.Platform, newer, 1, sdk.PointLabel{})
	c.must("commit under the newer claim", err)
	c.shows(c.Platform, r.ID, point.ID, want)
}
