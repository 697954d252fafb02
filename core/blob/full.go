package blob

import "fmt"

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
