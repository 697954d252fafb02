package conformance

import (
	"fmt"
	"slices"
	"time"

	"github.com/holdfast-dr/holdfast/sdk"
)

var trackerTroubleChecks = []Check{
	{"change-tracker/older-claim-is-fenced", sdk.AbilityChangeTracker, "A claim older than one that was seen releases no mark.", trackerOlderClaim},
	{"change-tracker/calls-out-of-order", sdk.AbilityChangeTracker, "Changes of a snapshot that has ended are ErrNotFound, and a mark can be released while it is in use.", trackerOutOfOrder},
	{"change-tracker/parallel-calls", sdk.AbilityChangeTracker, "Changes asked for by several goroutines are the same for all.", parallelChanged},
	{"change-tracker/killed-in-changed", sdk.AbilityChangeTracker, "A process killed while it lists changes is no obstacle: a fresh one lists all of them.", killedInChanged},
	{"change-tracker/killed-in-release", sdk.AbilityChangeTracker, "A process killed in the middle of ReleaseMark is no obstacle: a fresh one, asked again, releases it.", killedInRelease},
}

// changed lists what changed, or why that is not known.
func (c *checker) changed(p sdk.Platform, snap sdk.Snapshot, disk sdk.DiskID) ([]sdk.Extent, error) {
	var list []sdk.Extent
	for e, err := range c.tracker(p).Changed(c.ctx, snap, disk) {
		if err != nil {
			return nil, err
		}
		list = append(list, e)
	}
	return list, nil
}

func trackerOlderClaim(c *checker) {
	first := c.backup("full", 1, nil, true)
	for disk, mark := range first.snap.Marks {
		c.want("release a mark under an older claim", c.release(disk, mark, 0), sdk.ErrFenced)
	}
	snap := c.snapshot("since", 2, first.snap.Marks)
	for disk := range first.snap.Marks {
		_, err := c.changed(c.Platform, snap, disk)
		c.want("the changes since a mark that was not released", err, nil)
	}
}

func trackerOutOfOrder(c *checker) {
	first := c.backup("full", 0, nil, true)
	snap := c.snapshot("since", 1, first.snap.Marks)
	disk := c.usable()[0].ID
	// Its own mark, and the one from which it is counted.
	for _, mark := range []sdk.Mark{snap.Marks[disk], first.snap.Marks[disk]} {
		if len(mark) == 0 {
			continue
		}
		c.want("release a mark while a snapshot uses it", c.release(disk, mark, 1), nil)
	}
	c.content(c.Platform, snap, disk)
	c.must("end the snapshot", c.end(snap, 1, false))
	_, err := c.changed(c.Platform, snap, disk)
	c.want("changes after the end", err, sdk.ErrNotFound)
}

func parallelChanged(c *checker) {
	c.writes()
	first := c.backup("full", 0, nil, true)
	c.scatter(31)
	snap := c.snapshot("since", 1, first.snap.Marks)
	disk := c.usable()[0].ID
	want, err := c.changed(c.Platform, snap, disk)
	c.must("list what changed", err)
	tracker := c.tracker(c.Platform)
	for _, err := range c.together(func(int) error {
		var got []sdk.Extent
		for e, err := range tracker.Changed(c.ctx, snap, disk) {
			if err != nil {
				return err
			}
			got = append(got, e)
		}
		if !slices.Equal(got, want) {
			return fmt.Errorf("%d extents, and %d when one asks alone", len(got), len(want))
		}
		return nil
	}) {
		c.want("changes from several goroutines", err, nil)
	}
}

func killedInChanged(c *checker) {
	c.writes()
	first := c.backup("full", 0, nil, true)
	c.scatter(36)
	snap := c.snapshot("since", 1, first.snap.Marks)
	disk := c.usable()[0].ID
	var want []sdk.Extent
	typical := timed(func() {
		var err error
		want, err = c.changed(c.Platform, snap, disk)
		c.must("list what changed", err)
	})
	c.moments(typical, func(_ uint64, after time.Duration) {
		c.kill(after, func(p sdk.Platform) func() {
			tracker := c.tracker(p)
			return func() { drain(tracker.Changed(c.ctx, snap, disk)) }
		})
		got, err := c.changed(c.fresh(), snap, disk)
		c.must("list what changed in a fresh process", err)
		if !slices.Equal(got, want) {
			c.errorf("a fresh process lists %d extents, want the %d of before", len(got), len(want))
		}
	})
}

func killedInRelease(c *checker) {
	c.writes()
	c.scatter(41)
	younger := c.backup("first", 0, nil, true)
	c.rounds("ReleaseMark", func(round uint64, after time.Duration) {
		oldest := younger
		c.scatter(byte(42 + round))
		younger = c.backup(fmt.Sprint("next ", round), round+1, oldest.snap.Marks, true)
		for disk, mark := range oldest.snap.Marks {
			op := c.op(fmt.Sprintf("release %s %d", disk, round), round+1)
			c.kill(after, func(p sdk.Platform) func() {
				tracker := c.tracker(p)
				return func() { _ = tracker.ReleaseMark(c.ctx, op, c.Machine, disk, mark) }
			})
			tracker := c.tracker(c.fresh())
			err := settled(c, func() error { return tracker.ReleaseMark(c.ctx, op, c.Machine, disk, mark) })
			c.must("release the mark in a fresh process", err)
			break // one disk is enough; the others' marks are released with the check
		}
	})
	c.scatter(50)
	c.complete(younger, c.backup("after", 8, younger.snap.Marks, false))
}
