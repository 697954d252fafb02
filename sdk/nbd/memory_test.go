package nbd

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"math/rand/v2"
	"net"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/sdk"
)

// memory is a disk in memory with every optional method. Whole zero blocks are
// its holes.
type memory struct {
	mu      sync.RWMutex // guards the fields below
	data    []byte
	zeroed  int
	flushed int
	trimmed int
	fault   error // what every access answers, if set
}

const memoryBlock = 4096

func newMemory(size int) *memory { return &memory{data: make([]byte, size)} }

// randomMemory has data in the first and third quarter and holes elsewhere.
func randomMemory(size int, seed uint64) *memory {
	m := newMemory(size)
	source := rand.NewChaCha8([32]byte{byte(seed)})
	quarter := size / 4 / memoryBlock * memoryBlock
	_, _ = source.Read(m.data[:quarter])
	_, _ = source.Read(m.data[2*quarter : 3*quarter])
	return m
}

func (m *memory) ReadAt(p []byte, off int64) (int, error) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	if m.fault != nil {
		return 0, m.fault
	}
	return bytes.NewReader(m.data).ReadAt(p, off)
}

func (m *memory) WriteAt(p []byte, off int64) (int, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.fault != nil {
		return 0, m.fault
	}
	return copy(m.data[off:], p), nil
}

func (m *memory) Zero(off, n int64) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.zeroed++
	clear(m.data[off : off+n])
	return m.fault
}

func (m *memory) Trim(off, n int64) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.trimmed++
	return m.fault
}

func (m *memory) Flush() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.flushed++
	return m.fault
}

func (m *memory) Extents(ctx context.Context, off, n int64) iter.Seq2[sdk.Extent, error] {
	return func(yield func(sdk.Extent, error) bool) {
		for at := off; at < off+n; {
			after := min(at/memoryBlock*memoryBlock+memoryBlock, off+n)
			m.mu.RLock()
			zero := isZero(m.data[at:after])
			m.mu.RUnlock()
			if !yield(sdk.Extent{Offset: at, Length: after - at, Zero: zero}, nil) {
				return
			}
			at = after
		}
	}
}

func (m *memory) content() []byte {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return bytes.Clone(m.data)
}

func (m *memory) export() Export {
	return Export{Size: int64(len(m.data)), Reader: m, Writer: m, MultiConn: true, Description: "memory"}
}

// plain hides the optional methods of a disk.
type plain struct {
	io.ReaderAt
	io.WriterAt
}

// single is a server with one export.
func single(name string, e Export) *Server {
	return &Server{Exports: func(n string) (Export, error) {
		if n != name {
			return Export{}, fmt.Errorf("export %q: %w", n, sdk.ErrNotFound)
		}
		return e, nil
	}}
}

// listen serves on a unix socket until the test ends, and returns its path.
func listen(t testing.TB, s *Server) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "nbd")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- s.Serve(context.Background(), l) }()
	t.Cleanup(func() {
		_ = s.Close()
		if err := <-done; !errors.Is(err, ErrServerClosed) {
			t.Errorf("serve: %v", err)
		}
	})
	return path
}

// open dials the export "disk" of a server.
func dialServer(t testing.TB, s *Server, change ...func(*Options)) *Client {
	t.Helper()
	o := Options{Network: "unix", Addr: listen(t, s), Export: "disk", MetaContexts: []string{ContextAllocation}}
	for _, f := range change {
		f(&o)
	}
	c, err := Dial(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// within fails the test when f takes longer than anybody would wait.
func within(t testing.TB, f func()) {
	t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		f()
	}()
	select {
	case <-done:
	case <-time.After(time.Minute):
		t.Fatal("still waiting")
	}
}
