package repository_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"math/rand/v2"
	"os"
	"sync"
	"time"

	"github.com/holdfast-dr/holdfast/core/blob"
	"github.com/holdfast-dr/holdfast/core/point"
	"github.com/holdfast-dr/holdfast/core/repository"
)

// A moment is when a process dies, told by what it has done and not by a clock,
// so that it is reached on a machine of any speed: after so many commits and then
// so many events, which are the beginning and the end of each call of the store
// and of the catalogue, and each piece of an object that the store takes. A
// linger puts the end between two events, where spool and index are written: the
// process goes on for so long after the last one.
type moment struct {
	Commits int
	Events  int
	Linger  time.Duration
}

// A backup of the child has 16 to 28 events, a collection 100 to 400. Half of the
// lives are to end in the one, half in the other.
const (
	backupEvents  = 28
	collectEvents = 400
)

// crashMoment draws when a life ends.
func crashMoment(r *rand.Rand) moment {
	m := moment{Commits: r.IntN(4), Events: r.IntN(backupEvents)}
	if r.IntN(2) == 0 {
		m.Events = r.IntN(collectEvents)
	}
	if r.IntN(3) == 0 {
		m.Linger = time.Duration(1+r.IntN(3000)) * time.Microsecond
	}
	return m
}

// String is what parseMoment reads.
func (m moment) String() string {
	return fmt.Sprintf("%d commits, %d events, %d us", m.Commits, m.Events, m.Linger.Microseconds())
}

func parseMoment(s string) (moment, error) {
	var m moment
	var micros int64
	if _, err := fmt.Sscanf(s, "%d commits, %d events, %d us", &m.Commits, &m.Events, &micros); err != nil {
		return moment{}, fmt.Errorf("read the moment %q: %w", s, err)
	}
	m.Linger = time.Duration(micros) * time.Microsecond
	return m, nil
}

// countdown ends this process at a moment.
type countdown struct {
	mu    sync.Mutex // guards what follows
	left  moment
	begun bool // until then nothing counts
	die   func()
}

// begin lets events count from now on.
func (c *countdown) begin() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.begun = true
}

// committed counts a commit.
func (c *countdown) committed() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.left.Commits--
}

// event counts one, and kills the process when it was the last.
func (c *countdown) event() {
	if c == nil {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.begun || c.left.Commits > 0 {
		return
	}
	c.left.Events--
	if c.left.Events >= 0 {
		return
	}
	c.begun = false
	if c.left.Linger > 0 {
		time.AfterFunc(c.left.Linger, c.die)
		return
	}
	c.die()
}

// killSelf is what kill -9 does: no deferred call, no flush, no exit handler.
func killSelf() {
	self, err := os.FindProcess(os.Getpid())
	if err == nil {
		err = self.Kill()
	}
	if err != nil {
		panic(err)
	}
	select {} // the signal is on its way; nothing more is to be done in the name of this process
}

// mortalStore is a store whose calls are events.
type mortalStore struct {
	blob.Store
	c *countdown
}

var (
	_ blob.Store   = mortalStore{}
	_ blob.Adopter = mortalStore{}
)

// during makes a call between two events.
func (c *countdown) during(call func() error) error {
	c.event()
	err := call()
	c.event()
	return err
}

// mortalContent is an object on its way into the store.
type mortalContent struct {
	io.ReaderAt
	c *countdown
}

func (m mortalContent) ReadAt(p []byte, off int64) (int, error) {
	n, err := m.ReaderAt.ReadAt(p, off)
	m.c.event()
	return n, err
}

func (s mortalStore) Put(ctx context.Context, name string, content io.ReaderAt, size int64) error {
	return s.c.during(func() error { return s.Store.Put(ctx, name, mortalContent{content, s.c}, size) })
}

func (s mortalStore) Adopt(ctx context.Context, name, file string) error {
	adopter, ok := s.Store.(blob.Adopter)
	if !ok {
		return fmt.Errorf("adopt %s: %w", name, errors.ErrUnsupported)
	}
	return s.c.during(func() error { return adopter.Adopt(ctx, name, file) })
}

func (s mortalStore) ReadAt(ctx context.Context, name string, p []byte, offset int64) error {
	return s.c.during(func() error { return s.Store.ReadAt(ctx, name, p, offset) })
}

func (s mortalStore) List(ctx context.Context, prefix string) iter.Seq2[blob.Object, error] {
	return func(yield func(blob.Object, error) bool) {
		for object, err := range s.Store.List(ctx, prefix) {
			s.c.event()
			if !yield(object, err) {
				return
			}
		}
	}
}

func (s mortalStore) Delete(ctx context.Context, name string) error {
	return s.c.during(func() error { return s.Store.Delete(ctx, name) })
}

// mortalCatalogue is a catalogue whose writing calls are events.
type mortalCatalogue struct {
	repository.Catalogue
	c *countdown
}

func (m mortalCatalogue) Commit(ctx context.Context, id string, epoch uint64, p repository.PointRecord, pending int64) error {
	return m.c.during(func() error { return m.Catalogue.Commit(ctx, id, epoch, p, pending) })
}

func (m mortalCatalogue) Shipped(ctx context.Context, id string, epoch uint64, session string, shipped, pending int64) error {
	return m.c.during(func() error { return m.Catalogue.Shipped(ctx, id, epoch, session, shipped, pending) })
}

func (m mortalCatalogue) Reconciled(ctx context.Context, id string, epoch uint64, pending int64, reserved map[string]int64) error {
	return m.c.during(func() error { return m.Catalogue.Reconciled(ctx, id, epoch, pending, reserved) })
}

func (m mortalCatalogue) Forget(ctx context.Context, id string, epoch uint64, p point.ID, at time.Time) error {
	return m.c.during(func() error { return m.Catalogue.Forget(ctx, id, epoch, p, at) })
}

func (m mortalCatalogue) Purge(ctx context.Context, id string, epoch uint64, ids []point.ID) error {
	return m.c.during(func() error { return m.Catalogue.Purge(ctx, id, epoch, ids) })
}

func (m mortalCatalogue) Settle(ctx context.Context, id string, epoch uint64, used int64) error {
	return m.c.during(func() error { return m.Catalogue.Settle(ctx, id, epoch, used) })
}

func (m mortalCatalogue) Condemn(ctx context.Context, id string, epoch uint64, packs []repository.PackID, at time.Time) error {
	return m.c.during(func() error { return m.Catalogue.Condemn(ctx, id, epoch, packs, at) })
}

func (m mortalCatalogue) Removed(ctx context.Context, id string, epoch uint64, packs []repository.PackID) error {
	return m.c.during(func() error { return m.Catalogue.Removed(ctx, id, epoch, packs) })
}
