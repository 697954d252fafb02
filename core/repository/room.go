package repository

import (
	"fmt"
	"sync/atomic"
	"time"

	"github.com/holdfast-dr/holdfast/core/blob"
)

// spoolReserve stays free on the disk of spool and index: what the index, the
// database beside it and the commits that are on their way still write fits in
// here. It is four of the index's tables, of 16 MiB each, and as much again.
const spoolReserve = 128 << 20

// fullLogEvery is how often an operator is told, who may be filling other disks.
const fullLogEvery = time.Minute

// room is what the sessions of all repositories of an index are about to write.
type room struct {
	promised atomic.Int64
	told     atomic.Int64 // when the log last said that there is none, in microseconds
}

// take makes sure that bytes can be spooled without touching the reserve. The
// caller gives them back when they are written.
func (r *Repository) takeRoom(bytes int64) (giveBack func(), err error) {
	own := &r.space.index.room
	promised := own.promised.Add(bytes)
	giveBack = func() { own.promised.Add(-bytes) }
	free, err := blob.FreeBytes(r.spool)
	if err != nil || free-promised >= spoolReserve {
		return giveBack, nil //nolint:nilerr // the write will tell
	}
	giveBack()
	now := r.clock().UnixMicro()
	if told := own.told.Load(); now-told > fullLogEvery.Microseconds() && own.told.CompareAndSwap(told, now) {
		r.log.Error("the disk of the server's data directory is nearly full: backups are refused until there is room",
			"directory", r.spool, "free_bytes", free, "reserve_bytes", int64(spoolReserve))
	}
	return nil, fmt.Errorf("spool %d bytes: %w", bytes, &blob.FullError{Disk: "spool", Directory: r.spool, FreeBytes: free, NeededBytes: spoolReserve + promised})
}
