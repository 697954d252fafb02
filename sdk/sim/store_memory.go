package sim

import (
	"fmt"
	"io"
	"io/fs"
	"iter"
	"maps"
	"slices"
	"sync"

	"github.com/holdfast-dr/holdfast/sdk"
)

func (s *memoryStore) create(name string, size int64) error {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	s.files[name] = &memoryFile{size: size, blocks: make(map[int64][]byte)}
	return nil
}

func (s *memoryStore) open(name string) (file, error) {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	f, ok := s.files[name]
	if !ok {
		return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
	}
	return f, nil
}

func (s *memoryStore) remove(name string) error {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	delete(s.files, name)
	return nil
}

func (s *memoryStore) names() ([]string, error) {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	return slices.Sorted(maps.Keys(s.files)), nil
}

// memoryFile is a sparse file of blocks; a block that is absent is a hole.
type memoryFile struct {
	size int64

	mutex  sync.RWMutex // guards blocks and their bytes
	blocks map[int64][]byte
}

func (f *memoryFile) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, fmt.Errorf("read at %d: negative offset", off)
	}
	if off >= f.size {
		return 0, io.EOF
	}
	n := int(min(int64(len(p)), f.size-off))
	f.mutex.RLock()
	defer f.mutex.RUnlock()
	for done := 0; done < n; {
		block, at := (off+int64(done))/blockSize, (off+int64(done))%blockSize
		piece := p[done:min(n, done+int(blockSize-at))]
		if bytes, ok := f.blocks[block]; ok {
			copy(piece, bytes[at:])
		} else {
			clear(piece)
		}
		done += len(piece)
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

func (f *memoryFile) WriteAt(p []byte, off int64) (int, error) {
	if off < 0 || off+int64(len(p)) > f.size {
		return 0, fmt.Errorf("write %d bytes at %d: outside of %d", len(p), off, f.size)
	}
	f.mutex.Lock()
	defer f.mutex.Unlock()
	for done := 0; done < len(p); {
		block, at := (off+int64(done))/blockSize, (off+int64(done))%blockSize
		bytes, ok := f.blocks[block]
		if !ok {
			bytes = make([]byte, blockSize)
			f.blocks[block] = bytes
		}
		done += copy(bytes[at:], p[done:])
	}
	return len(p), nil
}

func (f *memoryFile) Punch(off, n int64) error {
	f.mutex.Lock()
	defer f.mutex.Unlock()
	for end := off + n; off < end; {
		block, at := off/blockSize, off%blockSize
		piece := min(blockSize-at, end-off)
		if piece == blockSize {
			delete(f.blocks, block)
		} else if bytes, ok := f.blocks[block]; ok {
			clear(bytes[at : at+piece])
		}
		off += piece
	}
	return nil
}

func (f *memoryFile) Extents(off, n int64) iter.Seq2[sdk.Extent, error] {
	return func(yield func(sdk.Extent, error) bool) {
		for end := min(off+n, f.size); off < end; {
			e := f.run(off, end)
			if !yield(e, nil) {
				return
			}
			off = e.End()
		}
	}
}

// run is the longest extent from off to at most end that is all hole or all
// data.
func (f *memoryFile) run(off, end int64) sdk.Extent {
	f.mutex.RLock()
	defer f.mutex.RUnlock()
	_, data := f.blocks[off/blockSize]
	next := off
	for next < end {
		if _, d := f.blocks[next/blockSize]; d != data {
			break
		}
		next = (next/blockSize + 1) * blockSize
	}
	return sdk.Extent{Offset: off, Length: min(next, end) - off, Zero: !data}
}

func (f *memoryFile) Sync() error  { return nil }
func (f *memoryFile) Close() error { return nil }
