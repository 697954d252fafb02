package backup

import (
	"bytes"
	"context"
	"fmt"

	"github.com/holdfast-dr/holdfast/core/point"
	"github.com/holdfast-dr/holdfast/sdk"
)

// Conclude ends at the source what a run left there that was killed after its
// commit: the snapshot, which would grow until the machine's next run, and the
// marks that the new point replaces. committed is the point, and req that of the
// run, with the same Op.ID.
//
// Asking for the snapshot again with the run's id is the only way to it. If it
// had been ended already, that makes another one, without a freeze, which is
// given up together with its marks. What fails is a warning: the point exists.
func Conclude(ctx context.Context, req Request, committed point.Manifest) (Result, error) {
	r, err := newRun(req)
	if err != nil {
		return Result{}, err
	}
	p := committed.Public
	r.result.Point, r.result.Previous, r.result.Taken, r.result.Kind = p.Point, p.Previous, p.Taken, p.Kind
	r.result.Consistency, r.result.Note = sdk.Quiesce(committed.Private.Consistency), committed.Private.Note
	for i, d := range committed.Private.Disks {
		disk := DiskResult{ID: sdk.DiskID(d.ID), Name: d.Name}
		disk.Kind, disk.SizeBytes = p.Kind, p.Disks[i].SizeBytes
		r.result.Disks = append(r.result.Disks, disk)
	}
	err = sdk.Await(ctx, func() (err error) {
		r.snap, err = r.source.Snapshot(ctx, r.op("snapshot"), sdk.SnapshotRequest{Machine: r.Source, Quiesce: sdk.QuiesceNone, Deadline: r.Deadline})
		return err
	})
	if err == nil {
		ours := r.marksAre(committed)
		if err = r.endSnapshot(ctx, ours); err == nil && !ours { // the marks of the point are older than this snapshot
			r.snap.Marks = marksOf(committed)
		}
	}
	if err != nil {
		r.warn(Warning{Code: CodeCleanUp, Message: fmt.Sprintf("end what a killed run left at the source: %v", err)})
		return r.finish(), ctx.Err()
	}
	r.hold()
	r.releaseMarks(ctx)
	return r.finish(), ctx.Err()
}

// marksAre reports whether the snapshot is the one that the point was made of.
func (r *run) marksAre(committed point.Manifest) bool {
	marks := marksOf(committed)
	if len(marks) != len(r.snap.Marks) {
		return false
	}
	for disk, mark := range marks {
		if !bytes.Equal(mark, r.snap.Marks[disk]) {
			return false
		}
	}
	return true
}

func marksOf(m point.Manifest) map[sdk.DiskID]sdk.Mark {
	marks := make(map[sdk.DiskID]sdk.Mark)
	for _, d := range m.Private.Disks {
		if len(d.Mark) > 0 {
			marks[sdk.DiskID(d.ID)] = d.Mark
		}
	}
	return marks
}
