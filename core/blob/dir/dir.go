// Package dir is a blob store in a directory.
//
// An object is a regular file at its name below the root. A new one is written
// to a temporary file, synced, linked to its name, which fails if the name is
// taken, and the folders are synced; so whoever sees a name sees the whole
// object, and nothing is ever overwritten. A temporary file has no name where
// the file system allows that, so a process that is killed leaves nothing. What
// begins with a dot is not an object: .incoming holds temporary files with a
// name, .retained the dates before which objects are not deleted.
//
// Retention in a directory keeps this program from deleting too early. It does
// not protect from anybody who may write to the directory by other means.
package dir

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/holdfast-dr/holdfast/core/blob"
)

const (
	incoming = ".incoming"
	retained = ".retained"
	stirring = ".stir-" // and a random text: a file of no moment

	// leftoverAge is after how long a temporary file is taken for that of a
	// process that ended. Other servers may be writing to the same directory, and
	// no Put takes a day.
	leftoverAge = 24 * time.Hour

	lastYear = 9999 // that the text of a date can say
)

// Objects of more than smallBytes do not take the last bigReserve of the disk.
// What is left is for small ones: a full repository still takes the tombstones
// without which nothing can be deleted, and the claim of a server that starts.
const (
	smallBytes = 64 << 10
	bigReserve = 16 << 20
)

// Options change how a directory is used. The zero value works.
type Options struct {
	Clock func() time.Time // decides when a retention has ended; time.Now if nil
	// Sync brings a file or folder to the disk; (*os.File).Sync if nil. Tests make
	// it fail.
	Sync func(*os.File) error
}

// Store is a blob store in a directory.
type Store struct {
	root  *os.Root
	path  string
	clock func() time.Time
	sync  func(*os.File) error

	mu       sync.Mutex      // guards what follows
	settled  map[string]bool // folders whose own names are durable
	doubtful map[string]bool // folders that could not be synced, and have not been since
}

// maxSettled bounds what is remembered of folders; without it, they are synced
// once more.
const maxSettled = 1 << 16

var (
	_ blob.Store    = (*Store)(nil)
	_ blob.Adopter  = (*Store)(nil)
	_ blob.Foldered = (*Store)(nil)
)

// Open uses a directory, which is made if it does not exist.
func Open(directory string, o Options) (*Store, error) {
	directory, err := filepath.Abs(directory)
	if err != nil {
		return nil, fmt.Errorf("open blob directory: %w", err)
	}
	if err := os.MkdirAll(directory, 0o700); err != nil {
		return nil, fmt.Errorf("open blob directory: %w", err)
	}
	root, err := os.OpenRoot(directory)
	if err != nil {
		return nil, fmt.Errorf("open blob directory: %w", err)
	}
	s := &Store{root: root, path: directory, clock: o.Clock, sync: o.Sync, settled: map[string]bool{}, doubtful: map[string]bool{}}
	if s.clock == nil {
		s.clock = time.Now
	}
	if s.sync == nil {
		s.sync = (*os.File).Sync
	}
	if err := root.MkdirAll(incoming, 0o700); err != nil {
		return nil, errors.Join(fmt.Errorf("open blob directory: %w", err), root.Close())
	}
	s.clear()
	return s, nil
}

// Close ends the use of the directory.
func (s *Store) Close() error { return s.root.Close() }

// clear removes temporary files of processes that ended. What cannot be removed
// costs space and nothing else.
func (s *Store) clear() {
	folder, err := s.root.Open(incoming)
	if err != nil {
		return
	}
	defer folder.Close()
	entries, _ := folder.ReadDir(-1)
	for _, entry := range entries {
		info, err := entry.Info()
		if err == nil && time.Since(info.ModTime()) > leftoverAge {
			_ = s.root.Remove(path.Join(incoming, entry.Name()))
		}
	}
}

// translate turns the file system's errors into those of the contract.
func translate(err error) error {
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ENOTDIR):
		return fmt.Errorf("%w: %w", blob.ErrNotFound, err)
	case errors.Is(err, fs.ErrExist):
		return fmt.Errorf("%w: %w", blob.ErrExists, err)
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return fmt.Errorf("%w: %w", blob.ErrFull, err)
	}
	return err
}

// Put makes a new object.
func (s *Store) Put(ctx context.Context, name string, content io.ReaderAt, size int64) error {
	if err := blob.CheckName(name); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if _, err := s.root.Lstat(name); err == nil { // spares the copy
		err := s.link(name, func() error { return fs.ErrExist })
		return fmt.Errorf("put %s: %w", name, translate(err))
	}
	if size > smallBytes {
		if free, err := blob.FreeBytes(s.path); err == nil && free < size+bigReserve {
			return fmt.Errorf("put %s: %d bytes, of %d that are free %d are reserved for small objects: %w", name, size, free, int64(bigReserve), blob.ErrFull)
		}
	}
	link, discard, err := s.stage(content, size)
	if err != nil {
		return fmt.Errorf("put %s: %w", name, translate(err))
	}
	defer discard()
	if err := s.link(name, func() error { return link(name) }); err != nil {
		return fmt.Errorf("put %s: %w", name, translate(err))
	}
	return nil
}

// stage writes and syncs a temporary file, and returns what gives it a name and
// what ends it. It is one without a name where the file system has those.
func (s *Store) stage(content io.ReaderAt, size int64) (link func(name string) error, discard func(), err error) {
	if f, err := openUnnamed(s.root); err == nil {
		if err := s.fill(f, content, size); err != nil {
			return nil, nil, errors.Join(err, f.Close())
		}
		return func(name string) error { return linkUnnamed(s.root, f, name) }, func() { _ = f.Close() }, nil
	}
	temporary := path.Join(incoming, rand.Text())
	discard = func() { _ = s.root.Remove(temporary) }
	if err := s.write(temporary, content, size); err != nil {
		discard()
		return nil, nil, err
	}
	return func(name string) error { return s.root.Link(temporary, name) }, discard, nil
}

func (s *Store) write(file string, content io.ReaderAt, size int64) (err error) {
	f, err := s.root.OpenFile(file, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	return errors.Join(s.fill(f, content, size), f.Close())
}

// fill writes a file and syncs it.
func (s *Store) fill(f *os.File, content io.ReaderAt, size int64) error {
	n, err := io.Copy(f, io.NewSectionReader(content, 0, size))
	if err != nil {
		return err
	}
	if n != size {
		return fmt.Errorf("content has %d of %d bytes: %w", n, size, io.ErrUnexpectedEOF)
	}
	return unsynced(s.sync(f))
}

// Adopt makes a new object of a file on the same file system.
func (s *Store) Adopt(ctx context.Context, name, file string) error {
	if err := blob.CheckName(name); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := s.syncFile(file); err != nil {
		return fmt.Errorf("adopt %s: %w", name, translate(err))
	}
	err := s.link(name, func() error { return os.Link(file, filepath.Join(s.path, filepath.FromSlash(name))) })
	if errors.Is(err, syscall.EXDEV) || errors.Is(err, syscall.EPERM) || errors.Is(err, syscall.EMLINK) {
		return fmt.Errorf("adopt %s: %w: %w", name, errors.ErrUnsupported, err)
	}
	if err != nil {
		return fmt.Errorf("adopt %s: %w", name, translate(err))
	}
	return nil
}

func (s *Store) syncFile(name string) (err error) {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		return errors.Join(err, fmt.Errorf("%s is not a regular file: %w", name, errors.ErrUnsupported))
	}
	return unsynced(s.sync(f))
}

// ReadAt fills p from an object.
func (s *Store) ReadAt(ctx context.Context, name string, p []byte, offset int64) (err error) {
	if err := blob.CheckName(name); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	f, err := s.root.OpenFile(name, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if err != nil {
		return fmt.Errorf("read %s: %w", name, translate(err))
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		return fmt.Errorf("read %s: %w", name, errors.Join(blob.ErrNotFound, err))
	}
	if n, err := f.ReadAt(p, offset); n < len(p) {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return fmt.Errorf("read %s: %w", name, err)
	}
	return nil
}

// List lists the objects whose names begin with prefix.
func (s *Store) List(ctx context.Context, prefix string) iter.Seq2[blob.Object, error] {
	return func(yield func(blob.Object, error) bool) {
		if err := blob.CheckPrefix(prefix); err != nil {
			yield(blob.Object{}, err)
			return
		}
		folder := path.Dir(prefix) // "." for one element
		if strings.HasSuffix(prefix, "/") {
			folder = path.Clean(prefix)
		}
		s.walk(ctx, folder, prefix, yield)
	}
}

// walk lists a folder in the order of whole names; it reports whether to go on.
func (s *Store) walk(ctx context.Context, folder, prefix string, yield func(blob.Object, error) bool) bool {
	entries, err := s.entries(folder)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) {
			return true
		}
		return yield(blob.Object{}, fmt.Errorf("list %s: %w", folder, err))
	}
	for _, entry := range entries {
		if err := ctx.Err(); err != nil {
			yield(blob.Object{}, err)
			return false
		}
		name := path.Join(folder, strings.TrimSuffix(entry.name, "/"))
		switch {
		case blob.CheckName(name) != nil:
			continue
		case entry.dir:
			if below := name + "/"; strings.HasPrefix(below, prefix) || strings.HasPrefix(prefix, below) {
				if !s.walk(ctx, name, prefix, yield) {
					return false
				}
			}
		case strings.HasPrefix(name, prefix):
			info, err := s.root.Lstat(name)
			if err != nil {
				continue // deleted meanwhile
			}
			if !yield(blob.Object{Name: name, SizeBytes: info.Size(), Created: info.ModTime()}, nil) {
				return false
			}
		}
	}
	return true
}

// Folders names the folders directly below a prefix.
func (s *Store) Folders(ctx context.Context, prefix string) iter.Seq2[string, error] {
	return func(yield func(string, error) bool) {
		if err := blob.CheckPrefix(prefix); err != nil {
			yield("", err)
			return
		}
		entries, err := s.entries(path.Clean(prefix))
		if err != nil {
			if !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, syscall.ENOTDIR) {
				yield("", fmt.Errorf("list %s: %w", prefix, err))
			}
			return
		}
		for _, entry := range entries {
			name := strings.TrimSuffix(entry.name, "/")
			if !entry.dir || blob.CheckName(name) != nil {
				continue
			}
			if err := ctx.Err(); err != nil {
				yield("", err)
				return
			}
			if !yield(name, nil) {
				return
			}
		}
	}
}

type entry struct {
	name string // a folder's ends in '/', which sorts it as its objects sort
	dir  bool
}

func (s *Store) entries(folder string) ([]entry, error) {
	f, err := s.root.Open(folder)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	found, err := f.ReadDir(-1)
	if err != nil {
		return nil, err
	}
	entries := make([]entry, 0, len(found))
	for _, e := range found {
		switch {
		case e.IsDir():
			entries = append(entries, entry{name: e.Name() + "/", dir: true})
		case e.Type().IsRegular():
			entries = append(entries, entry{name: e.Name()})
		}
	}
	slices.SortFunc(entries, func(a, b entry) int { return strings.Compare(a.name, b.name) })
	return entries, nil
}

// Delete removes an object. Its folder stays: a Put may be about to use it.
func (s *Store) Delete(ctx context.Context, name string) error {
	if err := blob.CheckName(name); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	info, err := s.root.Lstat(name)
	if errors.Is(err, fs.ErrNotExist) {
		if unsure := s.syncDoubtful(path.Dir(name)); unsure != nil { // it was deleted, and may come back
			return fmt.Errorf("delete %s: %w", name, unsure)
		}
	}
	if err != nil {
		return fmt.Errorf("delete %s: %w", name, translate(err))
	}
	if !info.Mode().IsRegular() {
		return fmt.Errorf("delete %s: %w", name, blob.ErrNotFound)
	}
	until, err := s.retention(name)
	if err != nil {
		return fmt.Errorf("delete %s: %w", name, err)
	}
	if s.clock().Before(until) {
		return fmt.Errorf("delete %s: %w until %s", name, blob.ErrRetained, until.UTC().Format(time.RFC3339))
	}
	if err := s.root.Remove(name); err != nil {
		return fmt.Errorf("delete %s: %w", name, translate(err))
	}
	if err := s.root.Remove(path.Join(retained, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("delete %s: %w", name, err)
	}
	if err := s.syncFolder(path.Dir(name)); err != nil {
		return fmt.Errorf("delete %s: %w", name, err)
	}
	return nil
}

// retention is the date before which an object is not deleted; a date that
// cannot be read is an error, because the object may be retained.
func (s *Store) retention(name string) (time.Time, error) {
	b, err := s.root.ReadFile(path.Join(retained, name))
	if errors.Is(err, fs.ErrNotExist) {
		return time.Time{}, nil
	}
	if err != nil {
		return time.Time{}, err
	}
	until, err := time.Parse(time.RFC3339Nano, strings.TrimSpace(string(b)))
	if err != nil {
		return time.Time{}, fmt.Errorf("read retention of %s: %w", name, err)
	}
	return until, nil
}

// Retain keeps an object from being deleted.
func (s *Store) Retain(ctx context.Context, name string, until time.Time) error {
	if err := blob.CheckName(name); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if until.UTC().Year() > lastYear {
		return fmt.Errorf("retain %s: %s is too far away", name, until.UTC())
	}
	if info, err := s.root.Lstat(name); err != nil || !info.Mode().IsRegular() {
		return fmt.Errorf("retain %s: %w", name, errors.Join(blob.ErrNotFound, err))
	}
	present, err := s.retention(name)
	if err != nil {
		return fmt.Errorf("retain %s: %w", name, err)
	}
	if !until.After(present) { // an attempt that failed may have come so far
		return s.syncDoubtful(path.Dir(path.Join(retained, name)))
	}
	if err := s.writeRetention(name, until); err != nil {
		return fmt.Errorf("retain %s: %w", name, translate(err))
	}
	return nil
}

// writeRetention replaces the date of an object, which is no object itself.
func (s *Store) writeRetention(name string, until time.Time) error {
	temporary := path.Join(incoming, rand.Text())
	defer func() { _ = s.root.Remove(temporary) }()
	text := until.UTC().Format(time.RFC3339Nano) + "\n"
	if err := s.write(temporary, strings.NewReader(text), int64(len(text))); err != nil {
		return err
	}
	return s.link(path.Join(retained, name), func() error { return s.root.Rename(temporary, path.Join(retained, name)) })
}
