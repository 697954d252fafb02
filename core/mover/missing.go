package mover

import (
	"context"
	"errors"
	"fmt"
	"iter"

	"github.com/holdfast-dr/holdfast/core/chunk"
	"github.com/holdfast-dr/holdfast/core/point"
	"github.com/holdfast-dr/holdfast/sdk"
)

// SendMissing sends again what a refused commit named: it reads those chunks of
// the disk, whose map sent is, from the source. Ids that other disks of the
// point have are none of its business. Where the map cannot be read back, the
// whole disk is sent again, which finds what is there.
func SendMissing(ctx context.Context, disk Disk, sent point.Disk, missing *point.MissingError, to Repository, opts Options) (Stats, error) {
	if len(missing.Pages) == 0 && to.Reader != nil {
		stats, err := sendChunks(ctx, disk, sent, missing.Chunks, to, opts)
		if err == nil || !isBad(err) {
			return stats, err
		}
	}
	disk.Suspect = append(append([]chunk.ID(nil), disk.Suspect...), missing.Chunks...)
	opts.AuditChunks, opts.VerifyChunks = -1, -1
	again, stats, err := Send(ctx, disk, to, opts)
	if err == nil && again != sent {
		err = errors.New("send the disk again: the source reads otherwise than before")
	}
	return stats, err
}

// sendChunks finds the places of the ids in the new map and sends only those,
// as an incremental of that map with itself.
func sendChunks(ctx context.Context, disk Disk, sent point.Disk, ids []chunk.ID, to Repository, opts Options) (Stats, error) {
	tree := point.Tree{Geometry: disk.Geometry, Root: sent.Root, Pages: Pages(to.Reader, opts.Retry)}
	part := Disk{Reader: disk.Reader, Geometry: disk.Geometry, Base: &tree, Changed: nothing, Suspect: ids}
	opts.AuditChunks, opts.VerifyChunks = -1, -1
	again, stats, err := Send(ctx, part, to, opts)
	if err == nil && again.Root != sent.Root {
		err = errors.New("the source reads otherwise than before")
	}
	if err != nil {
		return stats, fmt.Errorf("send %d missing chunks: %w", len(ids), err)
	}
	return stats, nil
}

// nothing is what a change tracker says of a disk that did not change.
func nothing(context.Context) iter.Seq2[sdk.Extent, error] {
	return func(func(sdk.Extent, error) bool) {}
}
