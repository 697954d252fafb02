// Package mem is a blob store in memory, for tests and for servers that keep
// nothing.
package mem

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/holdfast-dr/holdfast/core/blob"
)

// Store is a blob store in memory. The zero value is empty and ready.
type Store struct {
	// Clock decides when a retention has ended; time.Now if nil.
	Clock func() time.Time

	mu      sync.RWMutex // guards what follows
	objects map[string]object
}

type object struct {
	content []byte // never changed
	created time.Time
	until   time.Time
}

var _ blob.Store = (*Store)(nil)

func (s *Store) now() time.Time {
	if s.Clock != nil {
		return s.Clock()
	}
	return time.Now()
}

// Put makes a new object.
func (s *Store) Put(ctx context.Context, name string, content io.ReaderAt, size int64) error {
	if err := blob.CheckName(name); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	b := make([]byte, size)
	if n, err := content.ReadAt(b, 0); int64(n) < size {
		return fmt.Errorf("put %s: read content: %w", name, short(err))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, taken := s.objects[name]; taken {
		return fmt.Errorf("put %s: %w", name, blob.ErrExists)
	}
	if s.objects == nil {
		s.objects = map[string]object{}
	}
	s.objects[name] = object{content: b, created: s.now()}
	return nil
}

func short(err error) error {
	if err == nil || errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

func (s *Store) find(name string) (object, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	o, ok := s.objects[name]
	if !ok {
		return object{}, blob.ErrNotFound
	}
	return o, nil
}

// ReadAt fills p from an object.
func (s *Store) ReadAt(ctx context.Context, name string, p []byte, offset int64) error {
	if err := blob.CheckName(name); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	o, err := s.find(name)
	if err != nil {
		return fmt.Errorf("read %s: %w", name, err)
	}
	if offset < 0 || offset+int64(len(p)) > int64(len(o.content)) {
		return fmt.Errorf("read %s: %w", name, io.ErrUnexpectedEOF)
	}
	copy(p, o.content[offset:])
	return nil
}

// List lists the objects whose names begin with prefix.
func (s *Store) List(ctx context.Context, prefix string) iter.Seq2[blob.Object, error] {
	return func(yield func(blob.Object, error) bool) {
		if err := blob.CheckPrefix(prefix); err != nil {
			yield(blob.Object{}, err)
			return
		}
		s.mu.RLock()
		names := slices.Sorted(maps.Keys(s.objects))
		s.mu.RUnlock()
		for _, name := range names {
			if err := ctx.Err(); err != nil {
				yield(blob.Object{}, err)
				return
			}
			if !strings.HasPrefix(name, prefix) {
				continue
			}
			o, err := s.find(name)
			if err != nil {
				continue // deleted meanwhile
			}
			if !yield(blob.Object{Name: name, SizeBytes: int64(len(o.content)), Created: o.created}, nil) {
				return
			}
		}
	}
}

// Delete removes an object.
func (s *Store) Delete(ctx context.Context, name string) error {
	if err := blob.CheckName(name); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	o, ok := s.objects[name]
	switch {
	case !ok:
		return fmt.Errorf("delete %s: %w", name, blob.ErrNotFound)
	case s.now().Before(o.until):
		return fmt.Errorf("delete %s: %w until %s", name, blob.ErrRetained, o.until.UTC().Format(time.RFC3339))
	}
	delete(s.objects, name)
	return nil
}

// Retain keeps an object from being deleted.
func (s *Store) Retain(ctx context.Context, name string, until time.Time) error {
	if err := blob.CheckName(name); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	o, ok := s.objects[name]
	if !ok {
		return fmt.Errorf("retain %s: %w", name, blob.ErrNotFound)
	}
	if until.After(o.until) {
		o.until = until
		s.objects[name] = o
	}
	return ctx.Err()
}

// Corrupt flips bits of an object, for tests of those who must notice.
func (s *Store) Corrupt(name string, offset int64, mask byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	o, ok := s.objects[name]
	if !ok || offset < 0 || offset >= int64(len(o.content)) {
		return fmt.Errorf("corrupt %s at %d: %w", name, offset, blob.ErrNotFound)
	}
	o.content = slices.Clone(o.content)
	o.content[offset] ^= mask
	s.objects[name] = o
	return nil
}
