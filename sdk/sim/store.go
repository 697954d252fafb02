package sim

import (
	"io"
	"iter"
	"sync"

	"github.com/holdfast-dr/holdfast/sdk"
)

// store is where a Hypervisor keeps its state and its files. Its two
// implementations differ in nothing else than the place.
type store interface {
	// lock and rlock guard everything below against all users of the store,
	// in any process. They return what unlocks.
	lock() (func(), error)
	rlock() (func(), error)

	load() ([]byte, error) // nil: nothing was saved yet
	save(doc []byte) error

	create(name string, size int64) error
	open(name string) (file, error) // fs.ErrNotExist if there is none
	remove(name string) error       // nil if there is none
	names() ([]string, error)       // sorted
}

// file is a sparse file of a fixed size. What was never written reads as zero.
type file interface {
	io.ReaderAt
	io.WriterAt
	io.Closer
	// Punch makes [off, off+n) a hole.
	Punch(off, n int64) error
	// Extents describes [off, off+n) without gaps.
	Extents(off, n int64) iter.Seq2[sdk.Extent, error]
	Sync() error
}

// memoryStore keeps everything in this process.
type memoryStore struct {
	guard sync.RWMutex

	mutex sync.Mutex // guards the fields below
	doc   []byte
	files map[string]*memoryFile
}

func newMemoryStore() *memoryStore {
	return &memoryStore{files: make(map[string]*memoryFile)}
}

func (s *memoryStore) lock() (func(), error) {
	s.guard.Lock()
	return s.guard.Unlock, nil
}

func (s *memoryStore) rlock() (func(), error) {
	s.guard.RLock()
	return s.guard.RUnlock, nil
}

func (s *memoryStore) load() ([]byte, error) {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	return s.doc, nil
}

func (s *memoryStore) save(doc []byte) error {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	s.doc = doc
	return nil
}
