package restore

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/holdfast-dr/holdfast/core/mover"
	"github.com/holdfast-dr/holdfast/core/restore/image"
	"github.com/holdfast-dr/holdfast/sdk"
)

// FileRequest says how to restore a disk to a file.
type FileRequest struct {
	Point     *Point
	Disk      int // its place in the point; Point.Disk finds it
	Path      string
	Format    image.Format
	Overwrite bool // a file that has the name; otherwise it is an error
	Mover     mover.Options
	Progress  func(Progress)
}

// File restores one disk to an image file. Until it is complete and synced the
// file is called Path.part, which one restore at a time may have, and nothing
// remains of a restore that fails.
func File(ctx context.Context, req FileRequest) (res Result, err error) {
	began := time.Now()
	defer func() { res.Duration = time.Since(began) }()
	if req.Disk < 0 || req.Disk >= len(req.Point.Manifest.Public.Disks) {
		return res, fmt.Errorf("restore disk %d of %d: %w", req.Disk, len(req.Point.Manifest.Public.Disks), sdk.ErrNotFound)
	}
	if _, err := os.Lstat(req.Path); !req.Overwrite && !errors.Is(err, fs.ErrNotExist) {
		return res, fmt.Errorf("restore to %s: %w", req.Path, fs.ErrExist)
	}
	disk := req.Point.Manifest.Private.Disks[req.Disk]
	part := req.Path + ".part"
	w, err := image.Create(part, req.Format, req.Point.Manifest.Public.Disks[req.Disk].SizeBytes)
	if errors.Is(err, fs.ErrExist) {
		return res, fmt.Errorf("restore to %s: another restore writes to %s, or one was killed and it can be removed: %w", req.Path, part, fs.ErrExist)
	}
	if err != nil {
		return res, err
	}
	stats, err := fetch(ctx, req, w)
	if closed := w.Close(); err == nil && closed != nil {
		err = fmt.Errorf("close %s: %w", part, closed)
	}
	if err == nil {
		err = publish(part, req.Path, req.Overwrite)
	}
	if err != nil {
		return res, errors.Join(fmt.Errorf("restore disk %s: %w", disk.Name, err), discard(part))
	}
	res.Disks = []DiskResult{{ID: sdk.DiskID(disk.ID), Name: disk.Name, FetchStats: stats}}
	res.WrittenBytes = stats.WrittenBytes
	return res, nil
}

func fetch(ctx context.Context, req FileRequest, w sdk.BlockWriter) (mover.FetchStats, error) {
	opts := req.Mover
	opts.Damaged, opts.Progress = nil, nil
	if req.Progress != nil {
		opts.Progress = func(p mover.Progress) {
			req.Progress(Progress{TotalBytes: p.TotalBytes, DoneBytes: p.DoneBytes, Rate: p.Rate, Bottleneck: p.Bottleneck})
		}
	}
	return mover.Fetch(ctx, req.Point.Tree(req.Disk, opts.Retry), req.Point.From(), w, opts)
}

// publish gives a complete file its name and syncs the directory.
func publish(part, path string, overwrite bool) error {
	if _, err := os.Lstat(path); !overwrite && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("name the file %s: %w", path, fs.ErrExist) // it came in between
	}
	if err := os.Rename(part, path); err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	err = dir.Sync()
	return errors.Join(err, dir.Close())
}

// discard removes what a failed restore wrote.
func discard(part string) error {
	if err := os.Remove(part); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
