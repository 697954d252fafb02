package repository

import (
	"errors"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/holdfast-dr/holdfast/core/blob"
)

// indexReserve is what has to be free on the index's disk for anything to be
// written to it: one of its tables while it is flushed, and its log. Below it
// every write is refused with a *blob.FullError and every look-up goes on.
const indexReserve = 32 << 20

// indexLook is for how long one look at the disk counts: a walk writes a hundred
// thousand batches a second, and no program fills the reserve in that time.
const indexLook = 20 * time.Millisecond

// indexWait is how often a write of Pebble's own looks for room again.
const indexWait = 100 * time.Millisecond

// indexDisk is the file system below Pebble, which ends the process when it
// cannot write its log or its list of tables. The reserve is there so that it
// always can; where other programs take the reserve, too, what it had begun to
// write waits here until there is room, for as long as it takes, and the index
// refuses everything else meanwhile.
type indexDisk struct {
	vfs.FS
	dir  string
	free func(dir string) (int64, error)

	opened  atomic.Bool  // until then errors are answered: an index that does not open ends nothing
	waiting atomic.Int64 // writes that wait for room

	mu     sync.Mutex // guards what follows
	looked time.Time
	last   int64
}

// room answers a *blob.FullError when the disk is as good as full.
func (d *indexDisk) room() error {
	if d.waiting.Load() > 0 {
		return d.full(0)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if now := time.Now(); now.Sub(d.looked) >= indexLook || d.last < indexReserve {
		free, err := d.free(d.dir)
		if err != nil {
			return nil //nolint:nilerr // the write will tell
		}
		d.looked, d.last = now, free
	}
	if d.last < indexReserve {
		return d.full(d.last)
	}
	return nil
}

func (d *indexDisk) full(free int64) error {
	return &blob.FullError{Disk: "index", Directory: d.dir, FreeBytes: free, NeededBytes: indexReserve}
}

func isFull(err error) bool {
	return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT)
}

// await repeats a write until it is not refused for want of room.
func (d *indexDisk) await(write func() error) error {
	err := write()
	if !isFull(err) || !d.opened.Load() {
		return err
	}
	d.waiting.Add(1)
	defer d.waiting.Add(-1)
	tick := time.NewTicker(indexWait)
	defer tick.Stop()
	for isFull(err) {
		<-tick.C
		err = write()
	}
	return err
}

func (d *indexDisk) file(f vfs.File, err error) (vfs.File, error) {
	if err != nil {
		return nil, err
	}
	return &indexFile{File: f, disk: d}, nil
}

// Create makes a file.
func (d *indexDisk) Create(name string, c vfs.DiskWriteCategory) (f vfs.File, err error) {
	err = d.await(func() error { f, err = d.FS.Create(name, c); return err })
	return d.file(f, err)
}

// OpenReadWrite opens a file, which is made if there is none.
func (d *indexDisk) OpenReadWrite(name string, c vfs.DiskWriteCategory, o ...vfs.OpenOption) (f vfs.File, err error) {
	err = d.await(func() error { f, err = d.FS.OpenReadWrite(name, c, o...); return err })
	return d.file(f, err)
}

// ReuseForWrite makes a file of an old one.
func (d *indexDisk) ReuseForWrite(old, name string, c vfs.DiskWriteCategory) (f vfs.File, err error) {
	err = d.await(func() error { f, err = d.FS.ReuseForWrite(old, name, c); return err })
	return d.file(f, err)
}

// Rename gives a file its name.
func (d *indexDisk) Rename(old, name string) error {
	return d.await(func() error { return d.FS.Rename(old, name) })
}

// Link gives a file another name.
func (d *indexDisk) Link(old, name string) error {
	return d.await(func() error { return d.FS.Link(old, name) })
}

// MkdirAll makes a folder.
func (d *indexDisk) MkdirAll(dir string, mode os.FileMode) error {
	return d.await(func() error { return d.FS.MkdirAll(dir, mode) })
}

// Unwrap is the file system below.
func (d *indexDisk) Unwrap() vfs.FS { return d.FS }

// indexFile is a file whose writes wait for room.
type indexFile struct {
	vfs.File
	disk *indexDisk
}

// Write goes on where a short write ended.
func (f *indexFile) Write(p []byte) (n int, err error) {
	err = f.disk.await(func() error {
		m, err := f.File.Write(p[n:])
		n += m
		return err
	})
	return n, err
}

// WriteAt goes on where a short write ended.
func (f *indexFile) WriteAt(p []byte, off int64) (n int, err error) {
	err = f.disk.await(func() error {
		m, err := f.File.WriteAt(p[n:], off+int64(n))
		n += m
		return err
	})
	return n, err
}

// Preallocate is for speed only, so a disk that has no room is no error.
func (f *indexFile) Preallocate(off, n int64) error {
	if err := f.File.Preallocate(off, n); !isFull(err) {
		return err
	}
	return nil
}
