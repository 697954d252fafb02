package state

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"sync"
	"time"

	sqlite3 "modernc.org/sqlite/lib"

	"github.com/holdfast-dr/holdfast/core/blob"
)

// ballastBytes is what a file beside a SQLite database holds, to be given up
// when the disk is full. Bookkeeping lives on it: claims are renewed, so that
// restores go on, and runs come to their end. Renewing changes a row in place,
// so what it takes is the log between two checkpoints, some 4 MiB.
const ballastBytes = 8 << 20

// roomBytes have to be free for the ballast to be put back, and with it for
// decisions to be taken again.
const roomBytes = ballastBytes + 4<<20

// ballast is the reserve of a SQLite database; PostgreSQL has none here.
type ballast struct {
	dir  string
	path string // empty: none

	mu    sync.Mutex // guards what follows
	tight bool       // it was given up
}

// openBallast makes the ballast. Where there is no room for it, the database is
// as one whose ballast was given up.
func openBallast(dir, path string) *ballast {
	b := &ballast{dir: dir, path: path, tight: true}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.restore()
	return b
}

// restore puts the ballast back if there is room; b.mu is held.
func (b *ballast) restore() {
	info, err := os.Stat(b.path)
	if err == nil && info.Size() >= ballastBytes { // of an earlier life
		b.tight = false
		return
	}
	if free, err := blob.FreeBytes(b.dir); err == nil && free < roomBytes {
		return
	}
	if err := writeBallast(b.path); err != nil {
		_ = os.Truncate(b.path, 0)
		return
	}
	b.tight = false
}

// writeBallast writes zeroes: a file with holes would take no room.
func writeBallast(path string) (err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if _, err := io.CopyN(f, zeroes{}, ballastBytes); err != nil {
		return err
	}
	return f.Sync()
}

type zeroes struct{}

func (zeroes) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// release gives the ballast up.
func (b *ballast) release() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.tight {
		return
	}
	b.tight = true
	free, _ := blob.FreeBytes(b.dir)
	if err := os.Truncate(b.path, 0); err != nil {
		slog.Error("give up the reserve of the state database", "file", b.path, "error", err)
	}
	slog.Error("the disk of the state database is full: nothing new is recorded until there is room; restores go on",
		"directory", b.dir, "free_bytes", free, "needed_bytes", int64(roomBytes))
}

// room answers a *blob.FullError while the ballast is given up and cannot be
// put back.
func (b *ballast) room() error {
	if b == nil {
		return nil
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.tight {
		return nil
	}
	if b.restore(); !b.tight {
		slog.Info("the disk of the state database has room again", "directory", b.dir)
		return nil
	}
	return b.full()
}

func (b *ballast) full() error {
	free, err := blob.FreeBytes(b.dir)
	if err != nil {
		free = 0
	}
	return &blob.FullError{Disk: "state database", Directory: b.dir, FreeBytes: free, NeededBytes: roomBytes}
}

// sqliteFull says that a statement found no room. What the log's index lacks is
// an input or output error to SQLite.
func sqliteFull(err error) bool {
	code := sqliteCode(err)
	return code == sqlite3.SQLITE_FULL || code == sqlite3.SQLITE_IOERR_SHMSIZE
}

// checkpointWait bounds the attempt to make the log start anew.
const checkpointWait = 10 * time.Second

// relieve makes what room there is: the ballast's, and the log's, which starts
// anew once its pages are in the database.
func (db *DB) relieve(ctx context.Context) {
	db.ballast.release()
	ctx, cancel := context.WithTimeout(ctx, checkpointWait)
	defer cancel()
	// The answer is a row; what it says shows in the next attempt.
	_, _ = db.writer.ExecContext(ctx, "PRAGMA wal_checkpoint(RESTART)")
}

// short runs a transaction of the only writer of a SQLite database, whose disk
// may be full: what somebody decided is refused then, and bookkeeping has the
// ballast.
func (db *DB) short(ctx context.Context, decision bool, once func() error) error {
	if decision {
		if err := db.ballast.room(); err != nil {
			return fmt.Errorf("begin transaction: %w", err)
		}
	}
	err := once()
	if !sqliteFull(err) {
		return err
	}
	db.relieve(ctx)
	if !decision {
		err = once()
	}
	if sqliteFull(err) {
		return errors.Join(db.ballast.full(), err)
	}
	return err
}
