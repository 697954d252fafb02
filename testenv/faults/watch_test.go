package faults

import (
	"encoding/binary"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// changes counts what happens in directory trees: files that appear, are
// written, renamed and removed. It is how a round meets the moments that matter,
// such as the link of a pack or a write to the database's log, on a machine of
// any speed.
type changes struct {
	fd   int
	file *os.File
	wait sync.WaitGroup

	mutex sync.Mutex // guards the fields below
	names map[int32]string
	left  int
	match string        // part of the path of what counts
	seen  chan struct{} // closed when none is left
}

const watched = unix.IN_CREATE | unix.IN_MODIFY | unix.IN_MOVED_TO | unix.IN_DELETE

// watchChanges closes seen at the nth change of something below these
// directories whose path has match in it.
func watchChanges(t *testing.T, nth int, match string, roots ...string) *changes {
	t.Helper()
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		t.Fatal(err)
	}
	c := &changes{fd: fd, file: os.NewFile(uintptr(fd), "inotify"), names: map[int32]string{}, left: nth, match: match, seen: make(chan struct{})}
	for _, root := range roots {
		c.add(root)
	}
	c.wait.Go(c.read)
	return c
}

// add watches a directory and all below it. One that vanishes meanwhile has
// nothing to say.
func (c *changes) add(root string) {
	_ = filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.IsDir() {
			return nil //nolint:nilerr // it is gone
		}
		if id, err := unix.InotifyAddWatch(c.fd, path, watched); err == nil {
			c.mutex.Lock()
			c.names[int32(id)] = path
			c.mutex.Unlock()
		}
		return nil
	})
}

func (c *changes) read() {
	buf := make([]byte, 64<<10)
	for {
		n, err := c.file.Read(buf)
		if err != nil {
			if !errors.Is(err, os.ErrClosed) {
				panic(err)
			}
			return
		}
		for b := buf[:n]; len(b) >= unix.SizeofInotifyEvent; {
			id, mask := int32(binary.NativeEndian.Uint32(b)), binary.NativeEndian.Uint32(b[4:])
			size := int(binary.NativeEndian.Uint32(b[12:]))
			name := strings.TrimRight(string(b[unix.SizeofInotifyEvent:unix.SizeofInotifyEvent+size]), "\x00")
			b = b[unix.SizeofInotifyEvent+size:]
			c.mutex.Lock()
			path := filepath.Join(c.names[id], name)
			c.mutex.Unlock()
			if mask&unix.IN_ISDIR != 0 {
				if mask&unix.IN_CREATE != 0 {
					c.add(path)
				}
				continue
			}
			c.count(path)
		}
	}
}

func (c *changes) count(path string) {
	c.mutex.Lock()
	defer c.mutex.Unlock()
	if !strings.Contains(path, c.match) {
		return
	}
	if c.left--; c.left == 0 {
		close(c.seen)
	}
}

// close ends the watch.
func (c *changes) close() {
	_ = c.file.Close()
	c.wait.Wait()
}
