package conformance

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"sync"

	"github.com/holdfast-dr/holdfast/sdk"
)

var sourceChecks = []Check{
	{"source/unknown-names", sdk.AbilitySource, "Machines, disks and snapshots that do not exist are ErrNotFound; ending an unknown snapshot is nil.", sourceUnknownNames},
	{"source/snapshot-repeats", sdk.AbilitySource, "A fresh process, asked again with the same Op.ID, answers the same snapshot.", snapshotRepeats},
	{"source/second-snapshot-is-busy", sdk.AbilitySource, "A second snapshot of a machine under the same claim is ErrBusy.", secondSnapshotIsBusy},
	{"source/newer-claim-ends-older-snapshot", sdk.AbilitySource, "A snapshot under a newer claim ends one that an older claim left open.", newerClaimEndsOlder},
	{"source/older-claim-is-fenced", sdk.AbilitySource, "A claim older than one that was seen is ErrFenced.", olderClaimIsFenced},
	{"source/some-disks", sdk.AbilitySource, "A snapshot of some disks holds those and no others.", someDisks},
	{"source/quiesce-says-what-was-achieved", sdk.AbilitySource, "A snapshot says how still the machine got, and if less than asked, why.", quiesce},
	{"source/reader", sdk.AbilitySource, "A reader follows io.ReaderAt, for any offset and length, from several goroutines.", reader},
	{"source/extents", sdk.AbilitySource, "Extents are ascending, without gaps, inside the range, and zero where they say so.", extents},
	{"source/snapshot-stays-as-it-was", sdk.AbilitySource, "A snapshot shows its moment, whatever the guest writes after it.", snapshotStays},
	{"source/one-moment-of-all-disks", sdk.AbilitySource, "All disks of a snapshot show the same moment.", oneMoment},
	{"source/end-repeats", sdk.AbilitySource, "Ending a snapshot can be repeated, and frees the machine for the same claim.", endRepeats},
	{"source/leaves-nothing", sdk.AbilitySource, "A snapshot that has ended leaves nothing at the back-end.", sourceLeavesNothing},
}

// grain is the size of what the checks write and compare.
const grain = 64 << 10

// step is how much is read in one go. What a range costs on the wire depends
// on it: zeroes may travel as a note.
const step = 1 << 20

// snapshot takes a snapshot of the machine and ends it with the check.
func (c *checker) snapshot(name string, newer uint64, since map[sdk.DiskID]sdk.Mark) sdk.Snapshot {
	source, op := c.source(c.Platform), c.op(name, newer)
	snap, err := settle(c, func() (sdk.Snapshot, error) {
		return source.Snapshot(c.ctx, op, sdk.SnapshotRequest{Machine: c.Machine, Since: since})
	})
	c.must("take a snapshot", err)
	c.later(func() { c.want("end the snapshot", c.end(snap, newer, false), nil) })
	return snap
}

func (c *checker) end(snap sdk.Snapshot, newer uint64, keep bool) error {
	return settled(c, func() error {
		return c.source(c.Platform).EndSnapshot(c.ctx, c.op("end "+snap.ID, newer), snap, keep)
	})
}

// open opens a disk of a snapshot and closes it with the check.
func (c *checker) open(p sdk.Platform, snap sdk.Snapshot, disk sdk.DiskID) sdk.BlockReader {
	r, err := settle(c, func() (sdk.BlockReader, error) { return c.source(p).OpenDisk(c.ctx, snap, disk) })
	c.must("open disk "+string(disk), err)
	c.later(func() { c.want("close disk "+string(disk), r.Close(), nil) })
	return r
}

// content reads a whole disk.
func (c *checker) content(p sdk.Platform, snap sdk.Snapshot, disk sdk.DiskID) []byte {
	r := c.open(p, snap, disk)
	if r.Size() > 64<<20 {
		c.fatalf("disk %s has %d bytes; the machine of the fixture has disks of at most 64 MiB", disk, r.Size())
	}
	data := make([]byte, r.Size())
	for off := int64(0); off < r.Size(); off += step {
		piece := data[off:min(off+step, r.Size())]
		n, err := r.ReadAt(piece, off)
		if n != len(piece) || err != nil && !errors.Is(err, io.EOF) {
			c.fatalf("read disk %s at %d: %d bytes, %v", disk, off, n, err)
		}
	}
	return data
}

// writes skips checks for which the fixture cannot write.
func (c *checker) writes() {
	if c.Write == nil {
		c.skipf("the fixture cannot write to the machine's disks")
	}
}

func (c *checker) write(disk sdk.DiskID, off int64, data []byte) {
	c.must("write to disk "+string(disk), c.Write(disk, off, data))
}

func sourceUnknownNames(c *checker) {
	source := c.source(c.Platform)
	_, err := settle(c, func() (sdk.Snapshot, error) {
		return source.Snapshot(c.ctx, c.op("machine", 0), sdk.SnapshotRequest{Machine: unknown})
	})
	c.want("snapshot of an unknown machine", err, sdk.ErrNotFound)
	_, err = settle(c, func() (sdk.Snapshot, error) {
		return source.Snapshot(c.ctx, c.op("disk", 0), sdk.SnapshotRequest{Machine: c.Machine, Disks: []sdk.DiskID{unknown}})
	})
	c.want("snapshot of an unknown disk", err, sdk.ErrNotFound)
	snap := c.snapshot("known", 0, nil)
	_, err = source.OpenDisk(c.ctx, snap, unknown)
	c.want("open an unknown disk", err, sdk.ErrNotFound)
	gone := snap
	gone.ID = unknown
	_, err = source.OpenDisk(c.ctx, gone, snap.Machine.Disks[0].ID)
	c.want("open a disk of an unknown snapshot", err, sdk.ErrNotFound)
	c.want("end an unknown snapshot", c.end(gone, 0, true), nil)
}

func snapshotRepeats(c *checker) {
	first := c.snapshot("same", 0, nil)
	for range 2 {
		again, err := settle(c, func() (sdk.Snapshot, error) {
			return c.source(c.fresh()).Snapshot(c.ctx, c.op("same", 0), sdk.SnapshotRequest{Machine: c.Machine})
		})
		c.must("repeat a snapshot in a fresh process", err)
		if again.ID != first.ID || len(again.Machine.Disks) != len(first.Machine.Disks) || again.Achieved != first.Achieved || !again.Taken.Equal(first.Taken) {
			c.errorf("the repeat answered another snapshot: %s of %s, first %s of %s", again.ID, again.Taken, first.ID, first.Taken)
		}
		for disk, mark := range first.Marks {
			if !bytes.Equal(again.Marks[disk], mark) {
				c.errorf("the repeat answered another mark for disk %s", disk)
			}
		}
	}
	for _, d := range first.Machine.Disks {
		if got, want := c.content(c.fresh(), first, d.ID), c.content(c.Platform, first, d.ID); !bytes.Equal(got, want) {
			c.errorf("a fresh process reads disk %s differently", d.ID)
		}
	}
}

func secondSnapshotIsBusy(c *checker) {
	snap := c.snapshot("first", 0, nil)
	_, err := settle(c, func() (sdk.Snapshot, error) {
		return c.source(c.Platform).Snapshot(c.ctx, c.op("second", 0), sdk.SnapshotRequest{Machine: c.Machine})
	})
	c.want("a second snapshot under the same claim", err, sdk.ErrBusy)
	c.content(c.Platform, snap, snap.Machine.Disks[0].ID)
}

func newerClaimEndsOlder(c *checker) {
	old := c.snapshot("old", 0, nil)
	next := c.snapshot("new", 1, nil)
	if next.ID == old.ID {
		c.errorf("the newer claim got the older one's snapshot")
	}
	_, err := c.source(c.fresh()).OpenDisk(c.ctx, old, old.Machine.Disks[0].ID)
	c.want("open a disk of the snapshot that was ended", err, sdk.ErrNotFound)
	c.content(c.Platform, next, next.Machine.Disks[0].ID)
}

func olderClaimIsFenced(c *checker) {
	snap := c.snapshot("new", 1, nil)
	_, err := settle(c, func() (sdk.Snapshot, error) {
		return c.source(c.fresh()).Snapshot(c.ctx, c.op("old", 0), sdk.SnapshotRequest{Machine: c.Machine})
	})
	c.want("a snapshot under an older claim", err, sdk.ErrFenced)
	err = c.end(snap, 0, false)
	c.want("the end of a newer claim's snapshot", err, sdk.ErrFenced)
	c.content(c.Platform, snap, snap.Machine.Disks[0].ID)
}

func someDisks(c *checker) {
	disks := c.usable()
	snap, err := settle(c, func() (sdk.Snapshot, error) {
		return c.source(c.Platform).Snapshot(c.ctx, c.op("one", 0), sdk.SnapshotRequest{Machine: c.Machine, Disks: []sdk.DiskID{disks[1].ID}})
	})
	c.must("take a snapshot of one disk", err)
	c.later(func() { c.want("end the snapshot", c.end(snap, 0, false), nil) })
	if len(snap.Machine.Disks) != 1 || snap.Machine.Disks[0].ID != disks[1].ID {
		c.errorf("a snapshot of disk %s has %d disks", disks[1].ID, len(snap.Machine.Disks))
	}
	_, err = c.source(c.Platform).OpenDisk(c.ctx, snap, disks[0].ID)
	c.want("open a disk that is not in the snapshot", err, sdk.ErrNotFound)
}

// usable are the disks that can be part of a snapshot, at least two.
func (c *checker) usable() []sdk.Disk {
	var usable []sdk.Disk
	for _, d := range c.machine().Disks {
		if d.Skip == "" {
			usable = append(usable, d)
		}
	}
	if len(usable) < 2 {
		c.fatalf("machine %s has %d disks that can be part of a snapshot; the fixture needs two", c.Machine, len(usable))
	}
	return usable
}

func quiesce(c *checker) {
	for newer, want := range []sdk.Quiesce{sdk.QuiesceNone, sdk.QuiesceFileSystem, sdk.QuiesceApplication} {
		snap, err := settle(c, func() (sdk.Snapshot, error) {
			return c.source(c.Platform).Snapshot(c.ctx, c.op(string(want), uint64(newer)), sdk.SnapshotRequest{Machine: c.Machine, Quiesce: want})
		})
		c.must("take a snapshot, quiesced to "+string(want), err)
		switch snap.Achieved {
		case want:
		case sdk.QuiesceNone, sdk.QuiesceFileSystem, sdk.QuiesceApplication:
			if snap.Note == "" && want != sdk.QuiesceNone {
				c.errorf("asked for %s, achieved %s, and the note does not say why", want, snap.Achieved)
			}
		default:
			c.errorf("asked for %s, achieved %q", want, snap.Achieved)
		}
		if snap.Taken.IsZero() {
			c.errorf("the snapshot does not say when it was taken")
		}
		c.must("end the snapshot", c.end(snap, uint64(newer), false))
	}
}

func reader(c *checker) {
	if c.Write != nil {
		noise := make([]byte, 4*grain)
		for i := range noise {
			noise[i] = byte(i*7 + i>>8)
		}
		for _, d := range c.usable() {
			c.write(d.ID, 0, noise)
		}
	}
	snap := c.snapshot("s", 0, nil)
	for _, d := range snap.Machine.Disks {
		whole := c.content(c.Platform, snap, d.ID)
		r := c.open(c.Platform, snap, d.ID)
		if r.Size() != d.SizeBytes {
			c.errorf("disk %s has %d bytes in the inventory and %d when it is read", d.ID, d.SizeBytes, r.Size())
		}
		tail := make([]byte, 1024)
		n, err := r.ReadAt(tail, r.Size()-512)
		if n != 512 || !errors.Is(err, io.EOF) || !bytes.Equal(tail[:n], whole[len(whole)-512:]) {
			c.errorf("read over the end of disk %s: %d bytes, %v; want 512 and io.EOF", d.ID, n, err)
		}
		if n, err := r.ReadAt(tail, r.Size()); n != 0 || !errors.Is(err, io.EOF) {
			c.errorf("read behind the end of disk %s: %d bytes, %v; want io.EOF", d.ID, n, err)
		}
		var group sync.WaitGroup
		var mutex sync.Mutex
		for i := range 8 {
			group.Go(func() {
				piece := make([]byte, 10_000) // of no alignment
				for off := int64(i) * 9_999; off+int64(len(piece)) < r.Size(); off += 8 * 9_999 * 7 {
					if _, err := r.ReadAt(piece, off); err != nil || !bytes.Equal(piece, whole[off:off+int64(len(piece))]) {
						mutex.Lock()
						c.errorf("read disk %s at %d from several goroutines: wrong bytes or %v", d.ID, off, err)
						mutex.Unlock()
						return
					}
				}
			})
		}
		group.Wait()
	}
}

func extents(c *checker) {
	snap := c.snapshot("s", 0, nil)
	for _, d := range snap.Machine.Disks {
		whole := c.content(c.Platform, snap, d.ID)
		r := c.open(c.Platform, snap, d.ID)
		for _, span := range []sdk.Extent{{Length: r.Size()}, {Offset: 512, Length: min(3*grain, r.Size()-512)}} {
			at := span.Offset
			for e, err := range r.Extents(c.ctx, span.Offset, span.Length) {
				c.must("list extents of disk "+string(d.ID), err)
				if e.Offset != at || e.Length <= 0 || e.End() > span.End() {
					c.fatalf("disk %s: extent %d+%d after %d, asked for %d+%d; want ascending, without gaps, inside",
						d.ID, e.Offset, e.Length, at, span.Offset, span.Length)
				}
				at = e.End()
				if e.Zero && len(bytes.Trim(whole[e.Offset:e.End()], "\x00")) > 0 {
					c.errorf("disk %s: extent %d+%d is said to be zero and is not", d.ID, e.Offset, e.Length)
				}
			}
			if at != span.End() {
				c.errorf("disk %s: the extents of %d+%d end at %d", d.ID, span.Offset, span.Length, at)
			}
		}
	}
}

func snapshotStays(c *checker) {
	c.writes()
	disks := c.usable()
	for _, d := range disks {
		c.write(d.ID, 0, bytes.Repeat([]byte("before"), 1000))
	}
	snap := c.snapshot("s", 0, nil)
	before := make(map[sdk.DiskID][]byte)
	for _, d := range disks {
		before[d.ID] = c.content(c.Platform, snap, d.ID)
		if !bytes.HasPrefix(before[d.ID], []byte("beforebefore")) {
			c.errorf("the snapshot of disk %s lacks what was written before it", d.ID)
		}
	}
	for _, d := range disks {
		for off := int64(0); off+grain <= d.SizeBytes; off += d.SizeBytes / 4 / 512 * 512 {
			c.write(d.ID, off, bytes.Repeat([]byte("after "), 1000))
		}
	}
	for _, d := range disks {
		if !bytes.Equal(c.content(c.fresh(), snap, d.ID), before[d.ID]) {
			c.errorf("the snapshot of disk %s changed when the machine wrote", d.ID)
		}
	}
}

// oneMoment counts across two disks, first on the one and then on the other,
// while a snapshot is taken. At any one moment the first is at most one ahead.
func oneMoment(c *checker) {
	c.writes()
	disks := c.usable()
	stop := make(chan struct{})
	counted := make(chan error, 1)
	begun := make(chan struct{})
	count := func() error {
		for n := uint64(1); ; n++ {
			if n == 3 {
				close(begun)
			}
			select {
			case <-stop:
				return nil
			default:
			}
			for _, d := range disks[:2] {
				if err := c.Write(d.ID, 512, binary.LittleEndian.AppendUint64(nil, n)); err != nil {
					return err
				}
			}
		}
	}
	go func() { counted <- count() }()
	ended := false
	c.later(func() {
		if !ended {
			close(stop)
			c.want("write while snapshots are taken", <-counted, nil)
		}
	})
	select {
	case <-begun:
	case err := <-counted:
		ended = true
		c.fatalf("write while no snapshot is open: %v", err)
	}
	for round := range uint64(3) {
		snap, err := settle(c, func() (sdk.Snapshot, error) {
			return c.source(c.Platform).Snapshot(c.ctx, c.op("count", round), sdk.SnapshotRequest{Machine: c.Machine})
		})
		c.must("take a snapshot while the machine writes", err)
		var seen [2]uint64
		for i, d := range disks[:2] {
			var b [8]byte
			_, err := c.open(c.Platform, snap, d.ID).ReadAt(b[:], 512)
			c.must("read the counter", err)
			seen[i] = binary.LittleEndian.Uint64(b[:])
		}
		if seen[0] != seen[1] && seen[0] != seen[1]+1 {
			c.errorf("the disks of one snapshot show two moments: %d and %d", seen[0], seen[1])
		}
		c.must("end the snapshot", c.end(snap, round, false))
	}
	close(stop)
	ended = true
	c.want("write while snapshots are taken", <-counted, nil)
}

func endRepeats(c *checker) {
	snap := c.snapshot("s", 0, nil)
	for range 2 {
		err := settled(c, func() error {
			return c.source(c.fresh()).EndSnapshot(c.ctx, c.op("end", 0), snap, false)
		})
		c.want("end a snapshot, and again", err, nil)
	}
	_, err := c.source(c.Platform).OpenDisk(c.ctx, snap, snap.Machine.Disks[0].ID)
	c.want("open a disk of an ended snapshot", err, sdk.ErrNotFound)
	// The machine is free again, for the same claim.
	again := c.snapshot("again", 0, nil)
	if again.ID == snap.ID {
		c.errorf("a new snapshot has the id of the ended one")
	}
}

func sourceLeavesNothing(c *checker) {
	if c.Objects == nil {
		c.skipf("the fixture cannot list the objects of the back-end")
	}
	before := c.objects()
	snap := c.snapshot("s", 0, nil)
	for _, d := range snap.Machine.Disks {
		c.content(c.Platform, snap, d.ID)
	}
	c.must("end the snapshot", c.end(snap, 0, false))
	c.leaves(before)
}
