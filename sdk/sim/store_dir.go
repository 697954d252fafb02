package sim

import (
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"os"
	"path/filepath"
	"slices"
	"syscall"

	"github.com/holdfast-dr/holdfast/sdk"
)

// dirStore keeps everything in a directory: state.json, and one sparse file
// per disk and table.
type dirStore struct{ dir string }

func newDirStore(dir string) (*dirStore, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("resolve %s: %w", dir, err)
	}
	if err := os.MkdirAll(filepath.Join(dir, "files"), 0o700); err != nil {
		return nil, fmt.Errorf("make the directory of a simulated hypervisor: %w", err)
	}
	return &dirStore{dir: dir}, nil
}

func (s *dirStore) lock() (func(), error)  { return s.flock(syscall.LOCK_EX) }
func (s *dirStore) rlock() (func(), error) { return s.flock(syscall.LOCK_SH) }

// flock opens the lock file anew each time: a lock belongs to an open file, so
// goroutines and processes exclude each other alike.
func (s *dirStore) flock(how int) (func(), error) {
	f, err := os.OpenFile(filepath.Join(s.dir, "lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open the lock: %w", err)
	}
	for {
		err = syscall.Flock(int(f.Fd()), how)
		if err == nil {
			return func() { _ = f.Close() }, nil
		}
		if !errors.Is(err, syscall.EINTR) {
			_ = f.Close()
			return nil, fmt.Errorf("lock %s: %w", f.Name(), err)
		}
	}
}

func (s *dirStore) load() ([]byte, error) {
	doc, err := os.ReadFile(filepath.Join(s.dir, "state.json"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return doc, err
}

// save replaces the document, so that a process killed inside leaves the old
// one or the new one.
func (s *dirStore) save(doc []byte) error {
	next := filepath.Join(s.dir, "state.json.new")
	if err := os.WriteFile(next, doc, 0o600); err != nil {
		return err
	}
	return os.Rename(next, filepath.Join(s.dir, "state.json"))
}

func (s *dirStore) path(name string) string { return filepath.Join(s.dir, "files", name) }

func (s *dirStore) create(name string, size int64) error {
	f, err := os.OpenFile(s.path(name), os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	return errors.Join(f.Truncate(size), f.Close())
}

func (s *dirStore) open(name string) (file, error) {
	f, err := os.OpenFile(s.path(name), os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	return &dirFile{f}, nil
}

func (s *dirStore) remove(name string) error {
	err := os.Remove(s.path(name))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

func (s *dirStore) names() ([]string, error) {
	entries, err := os.ReadDir(filepath.Join(s.dir, "files"))
	if err != nil {
		return nil, err
	}
	names := make([]string, len(entries))
	for i, e := range entries {
		names[i] = e.Name()
	}
	slices.Sort(names)
	return names, nil
}

// dirFile is a sparse file of the file system.
type dirFile struct{ *os.File }

func (f *dirFile) Punch(off, n int64) error {
	if n == 0 {
		return nil
	}
	if done, err := punch(f.File, off, n); done || err != nil {
		return err
	}
	zeroes := make([]byte, min(n, blockSize))
	for end := off + n; off < end; {
		piece := min(int64(len(zeroes)), end-off)
		if _, err := f.WriteAt(zeroes[:piece], off); err != nil {
			return err
		}
		off += piece
	}
	return nil
}

func (f *dirFile) Extents(off, n int64) iter.Seq2[sdk.Extent, error] {
	return func(yield func(sdk.Extent, error) bool) {
		for end := off + n; off < end; {
			data, err := f.seek(off, end, seekData)
			if err != nil {
				yield(sdk.Extent{}, err)
				return
			}
			if data > off {
				if !yield(sdk.Extent{Offset: off, Length: data - off, Zero: true}, nil) {
					return
				}
				off = data
				continue
			}
			hole, err := f.seek(off, end, seekHole)
			if err != nil {
				yield(sdk.Extent{}, err)
				return
			}
			// A file system without holes answers off itself; never stand still.
			if hole <= off {
				hole = end
			}
			if !yield(sdk.Extent{Offset: off, Length: hole - off}, nil) {
				return
			}
			off = hole
		}
	}
}

// seek is where the next data or hole begins, at most end.
func (f *dirFile) seek(off, end int64, whence int) (int64, error) {
	at, err := syscall.Seek(int(f.Fd()), off, whence)
	if errors.Is(err, syscall.ENXIO) {
		return end, nil
	}
	if err != nil {
		return 0, fmt.Errorf("find holes of %s: %w", f.Name(), err)
	}
	return min(at, end), nil
}
