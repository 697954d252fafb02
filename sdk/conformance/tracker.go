package conformance

import (
	"bytes"
	"crypto/sha256"
	"fmt"

	"github.com/holdfast-dr/holdfast/sdk"
)

var trackerChecks = []Check{
	{"change-tracker/marks", sdk.AbilityChangeTracker, "Every disk whose changes are tracked has a mark within the bounds, and no other disk has one.", marks},
	{"change-tracker/changed-is-complete", sdk.AbilityChangeTracker, "Changed leaves out nothing that differs, also what was written while the snapshot before was open.", changedIsComplete},
	{"change-tracker/failed-run-keeps-the-mark", sdk.AbilityChangeTracker, "A run that failed leaves the marks before it worth as much as they were.", failedRunKeepsTheMark},
	{"change-tracker/worthless-marks-are-lost", sdk.AbilityChangeTracker, "A mark of nobody, or of another disk, is ErrMarkLost and not a guess.", worthlessMarks},
	{"change-tracker/release", sdk.AbilityChangeTracker, "Releasing marks can be repeated, and keeps younger ones valid.", release},
	{"change-tracker/unknown-names", sdk.AbilityChangeTracker, "Changed answers ErrNotFound for a disk or a snapshot that does not exist.", trackerUnknownNames},
	{"change-tracker/leaves-nothing", sdk.AbilityChangeTracker, "Marks that are released leave nothing at the back-end.", trackerLeavesNothing},
}

// run is one run of a backup: a snapshot that is kept, and what it showed.
type run struct {
	snap    sdk.Snapshot
	content map[sdk.DiskID][]byte
	changed map[sdk.DiskID][]sdk.Extent
}

// backup takes a snapshot since marks, reads everything, and keeps the new
// marks, which are released with the check.
func (c *checker) backup(name string, newer uint64, since map[sdk.DiskID]sdk.Mark, keep bool) run {
	snap, err := settle(c, func() (sdk.Snapshot, error) {
		return c.source(c.Platform).Snapshot(c.ctx, c.op(name, newer), sdk.SnapshotRequest{Machine: c.Machine, Since: since})
	})
	c.must("take a snapshot", err)
	ended := false
	c.later(func() {
		if !ended {
			c.want("end the snapshot", c.end(snap, newer, false), nil)
		}
	})
	r := run{snap: snap, content: make(map[sdk.DiskID][]byte), changed: make(map[sdk.DiskID][]sdk.Extent)}
	for _, d := range snap.Machine.Disks {
		r.content[d.ID] = c.content(c.Platform, snap, d.ID)
		if since[d.ID] == nil {
			continue
		}
		end := int64(0)
		for e, err := range c.tracker(c.fresh()).Changed(c.ctx, snap, d.ID) {
			c.must("list what changed on disk "+string(d.ID), err)
			if e.Offset < end || e.Length <= 0 || e.End() > d.SizeBytes {
				c.fatalf("disk %s of %d bytes: changed extent %d+%d after %d; want ascending, without overlap, inside",
					d.ID, d.SizeBytes, e.Offset, e.Length, end)
			}
			end = e.End()
			r.changed[d.ID] = append(r.changed[d.ID], e)
		}
	}
	c.must("end the snapshot", c.end(snap, newer, keep))
	ended = true
	if keep {
		c.later(func() {
			for disk, mark := range snap.Marks {
				c.want("release the mark of disk "+string(disk), c.release(disk, mark, epochsPerCheck-1), nil)
			}
		})
	}
	return r
}

func (c *checker) release(disk sdk.DiskID, mark sdk.Mark, newer uint64) error {
	return settled(c, func() error {
		return c.tracker(c.Platform).ReleaseMark(c.ctx, c.op(fmt.Sprintf("release %x", sha256.Sum256(mark)), newer), c.Machine, disk, mark)
	})
}

// complete checks that everything that differs between two runs was listed by
// the later one.
func (c *checker) complete(first, after run) {
	for disk, old := range first.content {
		listed := after.changed[disk]
		for off := int64(0); off < int64(len(old)); off += 512 {
			end := min(off+512, int64(len(old)))
			if bytes.Equal(old[off:end], after.content[disk][off:end]) {
				continue
			}
			covered := false
			for _, e := range listed {
				covered = covered || e.Offset <= off && end <= e.End()
			}
			if !covered {
				c.errorf("disk %s differs at %d, which Changed left out", disk, off)
				break
			}
		}
	}
}

// scatter writes single sectors and runs over a disk, its ends among them.
func (c *checker) scatter(round byte) {
	for _, d := range c.usable() {
		last := d.SizeBytes - 512
		for _, off := range []int64{0, 5 * 512, 3*grain - 512, last / 2 / 512 * 512, last} {
			c.write(d.ID, off, bytes.Repeat([]byte{round, 0xa5}, 256))
		}
		c.write(d.ID, d.SizeBytes/4/512*512, bytes.Repeat([]byte{round}, 2*grain))
	}
}

func marks(c *checker) {
	snap := c.snapshot("s", 0, nil)
	for _, d := range snap.Machine.Disks {
		mark := snap.Marks[d.ID]
		if works, _ := c.tracks(d.ID); works && len(mark) == 0 {
			c.errorf("disk %s has no mark, although Probe says that changes are tracked", d.ID)
		}
		if len(mark) > sdk.MaxMark {
			c.errorf("the mark of disk %s has %d bytes, at most %d", d.ID, len(mark), sdk.MaxMark)
		}
	}
	for disk := range snap.Marks {
		found := false
		for _, d := range snap.Machine.Disks {
			found = found || d.ID == disk
		}
		if !found {
			c.errorf("a mark of disk %s, which is not in the snapshot", disk)
		}
	}
}

func (c *checker) tracks(disk sdk.DiskID) (bool, string) {
	report, err := c.Platform.Probe(c.ctx, sdk.Subject{Machine: c.Machine, Disk: disk})
	c.must("probe disk "+string(disk), err)
	return report.Works(sdk.AbilityChangeTracker)
}

func changedIsComplete(c *checker) {
	c.writes()
	c.scatter(1)
	before := c.backup("full", 0, nil, true)
	for round := range byte(3) {
		if round == 1 {
			// What is written while a snapshot is open belongs to the next.
			open := c.snapshot("open", 2*uint64(round)+1, nil)
			c.scatter(100)
			c.must("end the snapshot", c.end(open, 2*uint64(round)+1, false))
		} else {
			c.scatter(round + 2)
		}
		after := c.backup("incremental", 2*uint64(round)+2, before.snap.Marks, true)
		c.complete(before, after)
		before = after
	}
}

// failedRunKeepsTheMark has a run fail, which releases its new marks, and goes
// on from the old ones.
func failedRunKeepsTheMark(c *checker) {
	c.writes()
	first := c.backup("full", 0, nil, true)
	c.scatter(11)
	c.backup("fails", 1, first.snap.Marks, false)
	c.scatter(12)
	after := c.backup("goes on", 2, first.snap.Marks, true)
	c.complete(first, after)
}

func worthlessMarks(c *checker) {
	first := c.backup("full", 0, nil, true)
	disks := c.usable()
	foreign := first.snap.Marks[disks[1].ID]
	for newer, mark := range []sdk.Mark{sdk.Mark("no mark of anybody"), bytes.Repeat([]byte{0xff}, sdk.MaxMark), foreign} {
		if len(mark) == 0 {
			continue
		}
		snap := c.snapshot("worthless", uint64(newer)+1, map[sdk.DiskID]sdk.Mark{disks[0].ID: mark})
		var err error
		for _, err = range c.tracker(c.Platform).Changed(c.ctx, snap, disks[0].ID) {
			if err != nil {
				break
			}
		}
		c.want("changes since a mark that is worth nothing", err, sdk.ErrMarkLost)
		c.must("end the snapshot", c.end(snap, uint64(newer)+1, false))
	}
}

func release(c *checker) {
	c.writes()
	oldest := c.backup("oldest", 0, nil, true)
	c.scatter(21)
	younger := c.backup("younger", 1, oldest.snap.Marks, true)
	for disk, mark := range oldest.snap.Marks {
		for range 2 {
			c.want("release a mark, and again", c.release(disk, mark, 1), nil)
		}
		c.want("release an unknown mark", c.release(disk, sdk.Mark("no mark of anybody"), 1), nil)
	}
	c.scatter(22)
	after := c.backup("after", 2, younger.snap.Marks, true)
	c.complete(younger, after)
}

func trackerUnknownNames(c *checker) {
	first := c.backup("full", 0, nil, true)
	snap := c.snapshot("s", 1, first.snap.Marks)
	for name, changed := range map[string]func() (sdk.Snapshot, sdk.DiskID){
		"an unknown disk": func() (sdk.Snapshot, sdk.DiskID) { return snap, unknown },
		"an unknown snapshot": func() (sdk.Snapshot, sdk.DiskID) {
			gone := snap
			gone.ID = unknown
			return gone, snap.Machine.Disks[0].ID
		},
	} {
		s, disk := changed()
		var err error
		for _, err = range c.tracker(c.Platform).Changed(c.ctx, s, disk) {
			if err != nil {
				break
			}
		}
		c.want("changes of "+name, err, sdk.ErrNotFound)
	}
}

func trackerLeavesNothing(c *checker) {
	if c.Objects == nil {
		c.skipf("the fixture cannot list the objects of the back-end")
	}
	before := c.objects()
	first := c.backup("full", 0, nil, true)
	after := c.backup("incremental", 1, first.snap.Marks, true)
	for _, r := range []run{first, after} {
		for disk, mark := range r.snap.Marks {
			c.want("release the mark of disk "+string(disk), c.release(disk, mark, 1), nil)
		}
	}
	c.leaves(before)
}
