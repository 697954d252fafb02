package blob

import (
	"fmt"
	"syscall"
)

// FreeBytes is what may be written to the disk on which a directory lies, as the
// system tells it.
func FreeBytes(directory string) (int64, error) {
	var s syscall.Statfs_t
	if err := syscall.Statfs(directory, &s); err != nil {
		return 0, err
	}
	return int64(min(s.Bavail, 1<<40)) * int64(s.Bsize), nil //nolint:unconvert // the types differ between systems
}

// FullError says which disk has no room and how much it lacks, for whoever runs
// the server. It is an ErrFull.
type FullError struct {
	Disk        string // what it is for, as in "index"
	Directory   string // that lies on it
	FreeBytes   int64
	NeededBytes int64 // that have to be free
}

// Error names the disk and the figures.
func (e *FullError) Error() string {
	return fmt.Sprintf("the disk of the %s (%s) is full: %d bytes are free, %d are needed", e.Disk, e.Directory, e.FreeBytes, e.NeededBytes)
}

// Hint says what helps, and what does not wait for it.
func (e *FullError) Hint() string {
	return fmt.Sprintf("free at least %d bytes on the disk of %s, or enlarge it; restores go on, and what was refused goes on by itself once there is room",
		max(0, e.NeededBytes-e.FreeBytes), e.Directory)
}

// Is makes it an ErrFull.
func (e *FullError) Is(target error) bool { return target == ErrFull }
