package repository_test

import (
	"bytes"
	"errors"
	"path/filepath"
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"golang.org/x/sys/unix"

	"github.com/holdfast-dr/holdfast/core/blob"
	"github.com/holdfast-dr/holdfast/core/repository"
	"github.com/holdfast-dr/holdfast/testenv"
)

// The index's disk is full: what is sent is refused, with the disk and what it
// lacks, what is there restores and can be given up, and once there is room the
// session goes on where it was.
func TestAFullDiskOfTheIndexEndsNothing(t *testing.T) {
	s, r := newSite(t), seeded(t)
	ctx := testContext(t)
	machine := newMachine()
	d := randomDisk(r, 100*testChunk)
	one := s.backup(machine, "", d)
	s.close()
	var free atomic.Int64
	free.Store(1 << 40)
	index, err := repository.OpenIndex(filepath.Join(s.root, "index"), repository.IndexOptions{CacheBytes: 4 << 20,
		Free: func(string) (int64, error) { return free.Load(), nil }})
	if err != nil {
		t.Fatal(err)
	}
	s.index = index
	s.open()
	old := d.changed(r, 10)
	two := s.backup(machine, one, old)
	next := old.changed(r, 60)
	b, err := s.begin(ctx, machine, two)
	if err != nil {
		t.Fatal(err)
	}
	free.Store(1 << 20)
	manifest, err := b.send(ctx, next)
	if err == nil {
		err = b.session.Commit(ctx, manifest)
	}
	wantIs(t, "a backup while the index's disk is full", err, blob.ErrFull)
	var full *blob.FullError
	if !errors.As(err, &full) || full.Directory != filepath.Join(s.root, "index") || full.FreeBytes != 1<<20 || full.NeededBytes <= full.FreeBytes || full.Hint() == "" {
		t.Errorf("the error does not say which disk, and what it lacks: %v (%+v)", err, full)
	}
	s.wantRestore(one, d)
	s.wantRestore(two, old)
	if err := s.repo.Forget(ctx, one); err != nil {
		t.Errorf("forget while the index's disk is full: %v", err)
	}
	s.wantRestore(two, old)
	free.Store(1 << 40)
	if b.session, err = s.repo.Resume(ctx, b.session.ID()); err != nil {
		t.Fatal(err)
	}
	if manifest, err = b.send(ctx, next); err != nil {
		t.Fatal(err)
	}
	if err := b.session.Commit(ctx, manifest); err != nil {
		t.Fatalf("commit once there is room: %v", err)
	}
	s.wantRestore(b.point, next)
	if _, err := s.repo.Collect(ctx, repository.CollectOptions{}); err != nil {
		t.Fatal(err)
	}
	s.wantRestore(two, old)
	s.wantRestore(b.point, next)
	s.restart()
	s.wantSound()
	s.wantBooks()
}

// An index whose disk is full does not open, and says why.
func TestAnIndexWithoutRoomDoesNotOpen(t *testing.T) {
	_, err := repository.OpenIndex(filepath.Join(t.TempDir(), "index"), repository.IndexOptions{
		Free: func(string) (int64, error) { return 0, nil }})
	wantIs(t, "open", err, blob.ErrFull)
}

// Other programs take the last byte between the index's look at the disk and its
// write, which Pebble does not survive: the write waits, others are refused, all
// that was written is read, and everything is there when there is room.
func TestAnIndexOutlivesTheLastByte(t *testing.T) {
	testenv.NeedRoot(t)
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "mode=0700,size=24m"); err != nil {
		t.Fatalf("mount a small disk: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	index, err := repository.OpenIndex(filepath.Join(dir, "index"), repository.IndexOptions{CacheBytes: 4 << 20,
		Free: func(string) (int64, error) { return 1 << 40, nil }}) // as it was a moment ago
	if err != nil {
		t.Fatal(err)
	}
	id, r := uuid.NewString(), seeded(t)
	values := make([][]byte, 4000) // more than the disk has room for
	for i := range values {
		values[i] = make([]byte, 16<<10)
		for j := range values[i] {
			values[i][j] = byte(r.Uint32())
		}
	}
	var written atomic.Int64
	ended := make(chan error, 1)
	go func() { // it may be refused, or have to wait itself
		for n, value := range values {
			if err := index.Write(id, uint32(n), value); err != nil {
				ended <- err
				return
			}
			written.Store(int64(n + 1))
		}
		ended <- nil
	}()
	check := func() {
		t.Helper()
		for n := range written.Load() {
			if got, err := index.Value(id, uint32(n)); err != nil || !bytes.Equal(got, values[n]) {
				t.Fatalf("value %d of %d is not what was written: %v", n, written.Load(), err)
			}
		}
	}
	until := func(what string, condition func() bool) {
		t.Helper()
		for deadline := time.Now().Add(time.Minute); !condition(); runtime.Gosched() {
			if time.Now().After(deadline) {
				t.Fatalf("%s did not happen within a minute", what)
			}
		}
	}
	until("a write that waits for room", index.Stuck)
	wantIs(t, "a write while another one waits for room", index.Write(id, 1<<20, []byte("refused")), blob.ErrFull)
	check()
	if err := unix.Mount("tmpfs", dir, "tmpfs", unix.MS_REMOUNT, "mode=0700,size=400m"); err != nil {
		t.Fatal(err)
	}
	if err := <-ended; err != nil {
		wantIs(t, "the writer's end", err, blob.ErrFull)
	}
	until("the end of waiting", func() bool { return index.Write(id, 1<<20, []byte("after")) == nil })
	check()
	if err := index.Close(); err != nil {
		t.Fatal(err)
	}
	if index, err = repository.OpenIndex(filepath.Join(dir, "index"), repository.IndexOptions{}); err != nil {
		t.Fatal(err)
	}
	check()
	if err := index.Close(); err != nil {
		t.Error(err)
	}
}
