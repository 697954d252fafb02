package blobtest

import (
	"fmt"
	"os"
	"sync"
	"syscall"
)

// Syncs is a disk whose syncs fail on request, and which then behaves as Linux
// does: the failure is told once, the pages count as clean, and the next sync of
// what was not written again succeeds although nothing reached the disk. It
// counts such lies. Its Sync takes the place of (*os.File).Sync; the zero value
// never fails.
type Syncs struct {
	// Rot makes what a failed sync left in a file unreadable, as when its clean
	// pages are dropped and read back from the disk.
	Rot bool

	mu      sync.Mutex // guards what follows
	calls   int
	failing func(call int, f *os.File) bool
	lost    map[uint64]string // inode → name, of what never reached the disk
	lies    []string
}

// neverWritten marks a file or folder whose sync failed; any later change of it
// has another time.
var neverWritten = []syscall.Timeval{{Sec: 1}, {Sec: 1}}

// Fail asks before each sync whether it fails; call counts them from 0 since the
// last Fail.
func (s *Syncs) Fail(failing func(call int, f *os.File) bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.calls, s.failing = 0, failing
}

// Calls is how many syncs there were since the last Fail.
func (s *Syncs) Calls() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.calls
}

// Lies names what a sync succeeded for although an earlier one had failed and
// nothing was written since: whoever trusted it loses data with the next power
// cut.
func (s *Syncs) Lies() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.lies
}

// Sync syncs a file or folder, fails, or lies.
func (s *Syncs) Sync(f *os.File) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	inode := info.Sys().(*syscall.Stat_t).Ino
	call := s.calls
	s.calls++
	if s.failing != nil && s.failing(call, f) {
		if s.Rot && info.Mode().IsRegular() {
			if err := rot(f.Name(), info.Size()); err != nil {
				return err
			}
		}
		if err := syscall.Futimes(int(f.Fd()), neverWritten); err != nil {
			return err
		}
		if s.lost == nil {
			s.lost = map[uint64]string{}
		}
		s.lost[inode] = f.Name()
		return fmt.Errorf("sync %s: %w", f.Name(), syscall.EIO)
	}
	if name, lost := s.lost[inode]; lost {
		if info.ModTime().Unix() == neverWritten[1].Sec {
			s.lies = append(s.lies, name)
			return nil
		}
		delete(s.lost, inode)
	}
	return f.Sync()
}

// rot overwrites the middle of a file with what the disk had there.
func rot(name string, size int64) error {
	f, err := os.OpenFile(name, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = f.WriteAt(make([]byte, min(size/2, 4096)), size/4)
	return err
}
