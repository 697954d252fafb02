package nbd

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/holdfast-dr/holdfast/sdk"
)

func TestReadsWhatTheDiskHolds(t *testing.T) {
	for _, size := range []int{1, 511, 4096, 5<<20 + 3, 40 << 20} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			m := randomMemory(size, 1)
			c := dialServer(t, single("disk", m.export()))
			if c.Size() != int64(size) {
				t.Fatalf("size %d", c.Size())
			}
			got := make([]byte, size)
			if n, err := c.ReadAt(got, 0); n != size || err != nil {
				t.Fatalf("read: %d, %v", n, err)
			}
			if !bytes.Equal(got, m.data) {
				t.Fatal("the bytes differ")
			}
		})
	}
}

func TestReadAtFollowsReaderAt(t *testing.T) {
	m := randomMemory(1000, 2)
	c := dialServer(t, single("disk", m.export()))
	p := make([]byte, 100)
	for _, k := range []struct {
		off int64
		n   int
		err error
	}{{0, 100, nil}, {900, 100, nil}, {901, 99, io.EOF}, {1000, 0, io.EOF}, {5000, 0, io.EOF}, {-1, 0, sdk.ErrInvalid}} {
		n, err := c.ReadAt(p, k.off)
		if n != k.n || !errors.Is(err, k.err) {
			t.Errorf("read at %d: %d, %v", k.off, n, err)
		}
	}
	if n, err := c.ReadAt(nil, 0); n != 0 || err != nil {
		t.Errorf("empty read: %d, %v", n, err)
	}
}

func TestWritesZeroesTrimsFlushes(t *testing.T) {
	m := newMemory(20 << 20)
	c := dialServer(t, single("disk", m.export()))
	want := make([]byte, len(m.data))
	source := rand.NewChaCha8([32]byte{3})
	_, _ = source.Read(want[100 : 18<<20])
	if n, err := c.WriteAt(want[100:18<<20], 100); n != 18<<20-100 || err != nil {
		t.Fatalf("write: %d, %v", n, err)
	}
	if err := c.Zero(5000, 3<<20); err != nil {
		t.Fatal(err)
	}
	clear(want[5000 : 5000+3<<20])
	if err := c.Trim(0, 4096); err != nil {
		t.Fatal(err)
	}
	if _, err := c.WriteThrough([]byte("through"), 7); err != nil {
		t.Fatal(err)
	}
	copy(want[7:], "through")
	if m.flushed != 1 {
		t.Errorf("%d flushes after a write-through", m.flushed)
	}
	if err := c.Flush(); err != nil {
		t.Fatal(err)
	}
	if err := c.Cache(0, 4096); err != nil {
		t.Fatal(err)
	}
	if m.flushed != 2 || m.zeroed != 1 || m.trimmed != 1 {
		t.Errorf("%d flushes, %d zeroes, %d trims", m.flushed, m.zeroed, m.trimmed)
	}
	if !bytes.Equal(m.content(), want) {
		t.Error("the bytes differ")
	}
	for _, bad := range [][2]int64{{-1, 1}, {20 << 20, 1}, {0, 20<<20 + 1}, {0, -1}} {
		if err := c.Zero(bad[0], bad[1]); !errors.Is(err, sdk.ErrInvalid) {
			t.Errorf("zero %v: %v", bad, err)
		}
	}
}

func TestManyGoroutinesAndConnections(t *testing.T) {
	const part, parts = 64 << 10, 64
	m := newMemory(part * parts)
	c := dialServer(t, single("disk", m.export()), func(o *Options) { o.Connections = 3 })
	if c.Connections() != 3 {
		t.Fatalf("%d connections", c.Connections())
	}
	var group sync.WaitGroup
	for i := range parts {
		group.Go(func() {
			want := bytes.Repeat([]byte{byte(i + 1)}, part)
			got := make([]byte, part)
			for range 10 {
				if _, err := c.WriteAt(want, int64(i*part)); err != nil {
					t.Error(err)
				}
				if _, err := c.ReadAt(got, int64(i*part)); err != nil || !bytes.Equal(got, want) {
					t.Errorf("part %d: %v", i, err)
				}
			}
		})
	}
	group.Wait()
}

func TestWritableExportGetsOneConnectionWithoutItsPromise(t *testing.T) {
	e := newMemory(4096).export()
	e.MultiConn = false
	c := dialServer(t, single("disk", e), func(o *Options) { o.Connections = 3 })
	if c.Connections() != 1 {
		t.Errorf("%d connections to a writable export", c.Connections())
	}
	e.Writer = nil
	c = dialServer(t, single("disk", e), func(o *Options) { o.Connections = 3 })
	if c.Connections() != 3 {
		t.Errorf("%d connections to a read-only export", c.Connections())
	}
}

func TestReadOnlyExportRefusesWrites(t *testing.T) {
	e := newMemory(8192).export()
	e.Writer = nil
	c := dialServer(t, single("disk", e))
	if !c.ReadOnly() {
		t.Fatal("not read-only")
	}
	check := func(err error) {
		t.Helper()
		if !errors.Is(err, sdk.ErrDenied) {
			t.Errorf("got %v", err)
		}
	}
	_, err := c.WriteAt([]byte{1}, 0)
	check(err)
	check(c.Zero(0, 1))
	check(c.Trim(0, 1))
	// The server does not rely on the client's manners.
	c.details.flags &^= flagReadOnly
	c.details.flags |= flagWriteZeroes | flagTrim
	_, err = c.WriteAt([]byte{1}, 0)
	check(err)
	check(c.Zero(0, 1))
	check(c.Trim(0, 1))
	if _, err := c.ReadAt(make([]byte, 10), 0); err != nil {
		t.Errorf("read after refusals: %v", err)
	}
}

func TestEmptyDisk(t *testing.T) {
	c := dialServer(t, single("disk", newMemory(0).export()))
	if n, err := c.ReadAt(make([]byte, 1), 0); n != 0 || err != io.EOF { //nolint:errorlint // io.ReaderAt promises it bare
		t.Errorf("read: %d, %v", n, err)
	}
	if n, err := c.WriteAt(nil, 0); n != 0 || err != nil {
		t.Errorf("write: %d, %v", n, err)
	}
	for e, err := range c.Extents(t.Context(), 0, 0) {
		t.Errorf("extent %v, %v", e, err)
	}
	if err := c.Zero(0, 0); err != nil {
		t.Error(err)
	}
}

func TestExtentsShowHoles(t *testing.T) {
	m := randomMemory(16*memoryBlock+10, 4)
	c := dialServer(t, single("disk", m.export()))
	got := collect(t, c.Extents(t.Context(), 0, c.Size()))
	q := int64(4 * memoryBlock)
	want := []sdk.Extent{{Offset: 0, Length: q}, {Offset: q, Length: q, Zero: true}, {Offset: 2 * q, Length: q},
		{Offset: 3 * q, Length: q + 10, Zero: true}}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	got = collect(t, c.Extents(t.Context(), 100, q))
	want = []sdk.Extent{{Offset: 100, Length: q - 100}, {Offset: q, Length: 100, Zero: true}}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
}

func collect[T any](t testing.TB, list iter.Seq2[T, error]) []T {
	t.Helper()
	var all []T
	for e, err := range list {
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, e)
	}
	return all
}

func TestDirtyBitmapLoopsOverManyReplies(t *testing.T) {
	// Every other block is dirty: more extents than one reply may hold, on a
	// disk that needs several requests.
	const block, count = 64 << 10, 3 * maxReplyExtents
	size := int64(2*block*count) + 1
	list := func(_ context.Context, off, n int64) iter.Seq2[sdk.Extent, error] {
		return func(yield func(sdk.Extent, error) bool) {
			for i := off / (2 * block); i < count && i*2*block < off+n; i++ {
				if !yield(sdk.Extent{Offset: i * 2 * block, Length: block}, nil) {
					return
				}
			}
		}
	}
	e := Export{Size: size, Reader: bytes.NewReader(nil), Dirty: map[string]func(context.Context, int64, int64) iter.Seq2[sdk.Extent, error]{"changed": list}}
	path := listen(t, single("disk", e))
	d, err := Open(t.Context(), sdk.Address{Network: "unix", Addr: path, Export: "disk", DirtyBitmap: "qemu:dirty-bitmap:changed", Connections: 2})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = d.Close() }()
	got := collect(t, d.Dirty(t.Context()))
	if len(got) != count {
		t.Fatalf("%d extents", len(got))
	}
	for i, e := range got {
		if e != (sdk.Extent{Offset: int64(i) * 2 * block, Length: block}) {
			t.Fatalf("extent %d: %v", i, e)
		}
	}
}

func TestMissingBitmapIsALostMark(t *testing.T) {
	path := listen(t, single("disk", newMemory(10).export()))
	for _, name := range []string{"", "qemu:dirty-bitmap:gone"} {
		d, err := Open(t.Context(), sdk.Address{Network: "unix", Addr: path, Export: "disk", DirtyBitmap: name})
		if err != nil {
			t.Fatal(err)
		}
		for _, err := range d.Dirty(t.Context()) {
			if !errors.Is(err, sdk.ErrMarkLost) {
				t.Errorf("%q: %v", name, err)
			}
		}
		_ = d.Close()
	}
}
