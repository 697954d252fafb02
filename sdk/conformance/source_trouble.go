package conformance

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/holdfast-dr/holdfast/sdk"
)

var sourceTroubleChecks = []Check{
	{"source/operation-ids", sdk.AbilitySource, "A snapshot without an Op.ID is ErrInvalid, and any other id, in any script, is found again.", sourceOperationIDs},
	{"source/calls-out-of-order", sdk.AbilitySource, "What belongs to a snapshot that has ended fails, and never shows the bytes of another moment.", sourceOutOfOrder},
	{"source/parallel-calls", sdk.AbilitySource, "The same snapshot asked for by several goroutines is one snapshot.", parallelSnapshots},
	{"source/cancelled-call-repeats", sdk.AbilitySource, "A call whose context was cancelled can be repeated with the same Op.ID.", cancelledSnapshot},
	{"source/data-cut", sdk.AbilitySource, "A disk whose connection is cut in the middle fails, and can be opened again and read to its end.", readCut},
	{"source/killed-in-snapshot", sdk.AbilitySource, "A process killed in the middle of Snapshot is no obstacle: a fresh one, asked again, answers one snapshot.", killedInSnapshot},
	{"source/killed-in-end", sdk.AbilitySource, "A process killed in the middle of EndSnapshot is no obstacle: a fresh one, asked again, ends it.", killedInEnd},
	{"source/killed-while-read", sdk.AbilitySource, "A process killed while its disks are read is no obstacle: a fresh one reads the same snapshot to its end.", killedWhileRead},
	{"source/stopped-process-is-fenced", sdk.AbilitySource, "A process that was stopped in the middle of Snapshot and wakes after a newer claim took over is fenced.", sourceStopped},
}

// take takes a snapshot of the machine on a platform.
func (c *checker) take(p sdk.Platform, op sdk.Op) (sdk.Snapshot, error) {
	source := c.source(p)
	return settle(c, func() (sdk.Snapshot, error) {
		return source.Snapshot(c.ctx, op, sdk.SnapshotRequest{Machine: c.Machine})
	})
}

// oddIDs are operation ids that differ in what a careless plugin drops.
func oddIDs() []string {
	long := strings.Repeat("0123456789", 20)
	return []string{"a/b", "a-b", "a b", "A/b", "a/b ", `a"b'c<d>&e`, "größe-数据-🐘", long + "1", long + "2", "../../x", "$(x)`y`%s"}
}

func sourceOperationIDs(c *checker) {
	op := c.op("", 0)
	op.ID = ""
	_, err := c.take(c.Platform, op)
	c.want("a snapshot without an operation id", err, sdk.ErrInvalid)
	for i, id := range []string{oddIDs()[5], oddIDs()[6], oddIDs()[7]} {
		op := c.op(id, uint64(i)+1)
		snap, err := c.take(c.Platform, op)
		c.must(fmt.Sprintf("take a snapshot as operation %q", op.ID), err)
		again, err := c.take(c.fresh(), op)
		c.must(fmt.Sprintf("repeat operation %q", op.ID), err)
		if again.ID != snap.ID {
			c.errorf("the repeat of operation %q answered snapshot %s, first %s", op.ID, again.ID, snap.ID)
		}
		c.must("end the snapshot", c.end(snap, uint64(i)+1, false))
	}
}

func sourceOutOfOrder(c *checker) {
	snap := c.snapshot("s", 0, nil)
	disk := c.usable()[0]
	late := c.open(c.Platform, snap, disk.ID)
	whole := c.content(c.Platform, snap, disk.ID)
	c.must("end the snapshot", c.end(snap, 0, false))
	if c.Write != nil {
		c.write(disk.ID, 0, bytes.Repeat([]byte("later "), 1000))
	}
	got := make([]byte, min(grain, len(whole)))
	if n, err := late.ReadAt(got, 0); err == nil && !bytes.Equal(got[:n], whole[:n]) {
		c.errorf("a disk that was opened before the end shows other bytes after it")
	}
	_, err := settle(c, func() (sdk.BlockReader, error) { return c.source(c.fresh()).OpenDisk(c.ctx, snap, disk.ID) })
	c.want("open a disk after the end", err, sdk.ErrNotFound)
	c.want("end it once more, and keep", c.end(snap, 0, true), nil)
}

func parallelSnapshots(c *checker) {
	op := c.op("same", 0)
	source := c.source(c.Platform)
	ids := make([]string, callers)
	for _, err := range c.together(func(i int) error {
		snap, err := settle(c, func() (sdk.Snapshot, error) {
			return source.Snapshot(c.ctx, op, sdk.SnapshotRequest{Machine: c.Machine})
		})
		ids[i] = snap.ID
		return err
	}) {
		c.want("the same snapshot from several goroutines", err, nil)
	}
	snap, err := c.take(c.Platform, op)
	c.must("take the snapshot once more", err)
	c.later(func() { c.want("end the snapshot", c.end(snap, 0, false), nil) })
	for _, id := range ids {
		if id != snap.ID {
			c.errorf("one operation got the snapshots %s", strings.Join(slices.Compact(slices.Sorted(slices.Values(ids))), " and "))
			return
		}
	}
	disk := c.usable()[0].ID
	whole := c.content(c.Platform, snap, disk)
	for _, err := range c.together(func(int) error {
		r, err := settle(c, func() (sdk.BlockReader, error) { return source.OpenDisk(c.ctx, snap, disk) })
		if err != nil {
			return err
		}
		defer r.Close()
		got := make([]byte, min(grain, len(whole)))
		if _, err := r.ReadAt(got, 0); err != nil && !errors.Is(err, io.EOF) {
			return err
		}
		if !bytes.Equal(got, whole[:len(got)]) {
			return errors.New("wrong bytes")
		}
		return nil
	}) {
		c.want("open and read a disk from several goroutines", err, nil)
	}
}

func cancelledSnapshot(c *checker) {
	before := c.objects()
	source, round := c.source(c.Platform), uint64(0)
	c.cancelled("a snapshot", "Snapshot", func(ctx context.Context) error {
		defer func() { round++ }()
		op := c.op(fmt.Sprint("snapshot ", round), round)
		_, cancelled := source.Snapshot(ctx, op, sdk.SnapshotRequest{Machine: c.Machine})
		snap, err := c.take(c.Platform, op)
		c.must("repeat a snapshot that was cancelled", err)
		again, err := c.take(c.fresh(), op)
		c.must("repeat it in a fresh process", err)
		if again.ID != snap.ID {
			c.errorf("the repeat of a cancelled snapshot answered %s, then %s", snap.ID, again.ID)
		}
		c.must("end the snapshot", c.end(snap, round, false))
		return cancelled
	})
	c.cancelled("the end of a snapshot", "EndSnapshot", func(ctx context.Context) error {
		defer func() { round++ }()
		snap := c.snapshot(fmt.Sprint("end ", round), round, nil)
		cancelled := source.EndSnapshot(ctx, c.op("end "+snap.ID, round), snap, false)
		c.want("repeat an end that was cancelled", c.end(snap, round, false), nil)
		return cancelled
	})
	c.leaves(before)
}

// wire skips checks for which the fixture has no wire.
func (c *checker) wire() *Wire {
	if c.Wire == nil {
		c.skipf("the fixture has no wire between host and disks")
	}
	c.later(func() { c.Wire.mend(); c.Wire.release() })
	return c.Wire
}

// readCut cuts in the handshake, in the first bytes, and further on.
func readCut(c *checker) {
	wire := c.wire()
	snap := c.snapshot("s", 0, nil)
	source := c.source(c.Platform)
	for _, d := range c.usable()[:2] {
		seen := wire.carried()
		whole := c.content(c.Platform, snap, d.ID)
		if wire.carried() == seen {
			c.fatalf("no byte of disk %s went over the wire of the fixture", d.ID)
		}
		// Ranges that are known to be zero may cost next to nothing.
		cost := wire.carried() - seen
		for _, after := range []int64{min(100, cost/2), cost / 8, cost / 2, cost * 3 / 4} {
			wire.cutAfter(after)
			reached := readUntilCut(c, source, snap, d, whole)
			wire.mend()
			if reached == d.SizeBytes {
				c.errorf("disk %s was read to its end over a connection that was cut after %d bytes", d.ID, after)
			}
			r := c.open(c.Platform, snap, d.ID)
			rest := make([]byte, d.SizeBytes-reached)
			if n, err := r.ReadAt(rest, reached); n != len(rest) || err != nil && !errors.Is(err, io.EOF) {
				c.fatalf("read disk %s from %d after the cut: %d bytes, %v", d.ID, reached, n, err)
			}
			if !bytes.Equal(rest, whole[reached:]) {
				c.errorf("disk %s has other bytes after the cut", d.ID)
			}
		}
	}
}

// readUntilCut reads a disk from its start and returns how much came.
func readUntilCut(c *checker, source sdk.Source, snap sdk.Snapshot, d sdk.Disk, whole []byte) int64 {
	r, err := source.OpenDisk(c.ctx, snap, d.ID)
	if err != nil {
		return 0
	}
	defer r.Close()
	piece := make([]byte, step)
	for off := int64(0); off < d.SizeBytes; {
		n, err := r.ReadAt(piece[:min(step, d.SizeBytes-off)], off)
		if err != nil && !errors.Is(err, io.EOF) {
			return off
		}
		if !bytes.Equal(piece[:n], whole[off:off+int64(n)]) {
			c.errorf("disk %s has wrong bytes at %d before the cut", d.ID, off)
		}
		off += int64(n)
	}
	return d.SizeBytes
}

func killedInSnapshot(c *checker) {
	before := c.objects()
	c.rounds("Snapshot", func(round uint64, after time.Duration) {
		op := c.op(fmt.Sprint("snapshot ", round), round)
		c.kill(after, func(p sdk.Platform) func() {
			source := c.source(p)
			return func() { _, _ = source.Snapshot(c.ctx, op, sdk.SnapshotRequest{Machine: c.Machine}) }
		})
		snap, err := c.take(c.fresh(), op)
		c.must("take the snapshot in a fresh process", err)
		ended := false
		c.later(func() {
			if !ended {
				c.want("end the snapshot", c.end(snap, round, false), nil)
			}
		})
		again, err := c.take(c.Platform, op)
		c.must("take it once more", err)
		if again.ID != snap.ID {
			c.errorf("the operation has two snapshots, %s and %s", snap.ID, again.ID)
		}
		c.content(c.Platform, snap, snap.Machine.Disks[0].ID)
		c.must("end the snapshot", c.end(snap, round, false))
		ended = true
	})
	c.leaves(before)
}

func killedInEnd(c *checker) {
	before := c.objects()
	c.rounds("EndSnapshot", func(round uint64, after time.Duration) {
		snap := c.snapshot(fmt.Sprint("snapshot ", round), round, nil)
		op := c.op("end "+snap.ID, round)
		c.kill(after, func(p sdk.Platform) func() {
			source := c.source(p)
			return func() { _ = source.EndSnapshot(c.ctx, op, snap, false) }
		})
		source := c.source(c.fresh())
		err := settled(c, func() error { return source.EndSnapshot(c.ctx, op, snap, false) })
		c.must("end the snapshot in a fresh process", err)
		_, err = source.OpenDisk(c.ctx, snap, snap.Machine.Disks[0].ID)
		c.want("open a disk of the ended snapshot", err, sdk.ErrNotFound)
	})
	c.leaves(before)
}

func killedWhileRead(c *checker) {
	snap := c.snapshot("s", 0, nil)
	disk := c.usable()[0]
	whole := c.content(c.Platform, snap, disk.ID)
	p := c.process()
	source := c.source(p.Platform)
	r, err := settle(c, func() (sdk.BlockReader, error) { return source.OpenDisk(c.ctx, snap, disk.ID) })
	c.must("open the disk", err)
	var group sync.WaitGroup
	started := make(chan struct{})
	group.Go(func() {
		piece := make([]byte, grain)
		for off := int64(0); off+grain <= disk.SizeBytes; off += grain {
			if off == grain {
				close(started)
			}
			if _, err := r.ReadAt(piece, off); err != nil {
				return
			}
			if !bytes.Equal(piece, whole[off:off+grain]) {
				c.errorf("disk %s has wrong bytes at %d while the process is killed", disk.ID, off)
				return
			}
		}
	})
	select {
	case <-started:
	case <-c.ctx.Done():
	}
	c.must("kill the process", p.Kill())
	group.Wait()
	_ = r.Close() // of a process that is gone
	if !bytes.Equal(c.content(c.fresh(), snap, disk.ID), whole) {
		c.errorf("a fresh process reads disk %s differently", disk.ID)
	}
}

func sourceStopped(c *checker) {
	process := c.stoppable()
	source, op := c.source(process.Platform), c.op("late", 0)
	late := c.inFlight(process, func() error {
		_, err := settle(c, func() (sdk.Snapshot, error) {
			return source.Snapshot(c.ctx, op, sdk.SnapshotRequest{Machine: c.Machine})
		})
		return err
	})
	snap := c.snapshot("taken over", 1, nil)
	c.must("wake the process", process.Resume())
	if err := <-late; !errors.Is(err, sdk.ErrFenced) {
		c.errorf("a snapshot from before the newer claim: %v, want an error that wraps %q", err, sdk.ErrFenced)
	}
	for _, d := range snap.Machine.Disks {
		c.content(c.Platform, snap, d.ID)
	}
}
