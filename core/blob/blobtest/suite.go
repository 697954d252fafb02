package blobtest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/core/blob"
)

// Fixture is an empty store whose clock the suite may move.
type Fixture struct {
	Store blob.Store
	Clock *Clock
}

// Clock is a clock that only moves when told.
type Clock struct {
	mu  sync.Mutex
	now time.Time
}

// NewClock starts a clock at a moment.
func NewClock(now time.Time) *Clock { return &Clock{now: now} }

// Now is the clock's time.
func (c *Clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

// Advance moves the clock.
func (c *Clock) Advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

// Run holds a store against the contract. open makes an empty one each time.
func Run(t *testing.T, open func(t *testing.T) Fixture) {
	tests := []struct {
		name string
		run  func(t *testing.T, f Fixture)
	}{
		{"ReadsBackAnyRange", readsBack},
		{"RefusesToOverwrite", refusesToOverwrite},
		{"OneOfManyPutsWins", oneWins},
		{"ShortContentLeavesNothing", shortContent},
		{"RefusesOddNames", oddNames},
		{"ListsInOrder", listsInOrder},
		{"NamesFolders", namesFolders},
		{"DeletesOnce", deletes},
		{"RetainsUntilTheDate", retains},
		{"AdoptsAFile", adopts},
		{"StopsWithTheContext", stops},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) { test.run(t, open(t)) })
	}
}

func put(t *testing.T, s blob.Store, name, content string) {
	t.Helper()
	if err := s.Put(t.Context(), name, strings.NewReader(content), int64(len(content))); err != nil {
		t.Fatalf("put %s: %v", name, err)
	}
}

func wantError(t *testing.T, what string, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("%s: error %v, want %v", what, err, want)
	}
}

func wantContent(t *testing.T, s blob.Store, name, want string) {
	t.Helper()
	got, err := blob.Read(t.Context(), s, name, 1<<20)
	if err != nil || string(got) != want {
		t.Errorf("read %s: %q, %v, want %q", name, got, err, want)
	}
}

func readsBack(t *testing.T, f Fixture) {
	content := strings.Repeat("0123456789", 1000)
	put(t, f.Store, "a/b/object", content)
	put(t, f.Store, "a/b/empty", "")
	for _, r := range []struct{ offset, length int }{{0, 10000}, {0, 0}, {9999, 1}, {10000, 0}, {5003, 17}} {
		p := make([]byte, r.length)
		if err := f.Store.ReadAt(t.Context(), "a/b/object", p, int64(r.offset)); err != nil {
			t.Errorf("read %d bytes at %d: %v", r.length, r.offset, err)
		}
		if want := content[r.offset : r.offset+r.length]; string(p) != want {
			t.Errorf("read %d bytes at %d: wrong bytes", r.length, r.offset)
		}
	}
	wantError(t, "read beyond the end", f.Store.ReadAt(t.Context(), "a/b/object", make([]byte, 2), 9999), io.ErrUnexpectedEOF)
	wantError(t, "read what is not there", f.Store.ReadAt(t.Context(), "a/b/other", make([]byte, 1), 0), blob.ErrNotFound)
	wantError(t, "read a folder", f.Store.ReadAt(t.Context(), "a/b", make([]byte, 1), 0), blob.ErrNotFound)
	wantError(t, "read below an object", f.Store.ReadAt(t.Context(), "a/b/object/c", make([]byte, 1), 0), blob.ErrNotFound)
	wantContent(t, f.Store, "a/b/empty", "")
	object, err := blob.Stat(t.Context(), f.Store, "a/b/object")
	if err != nil || object.SizeBytes != 10000 || object.Created.IsZero() {
		t.Errorf("stat: %+v, %v", object, err)
	}
	_, err = blob.Stat(t.Context(), f.Store, "a/b/obj")
	wantError(t, "stat a part of a name", err, blob.ErrNotFound)
}

func refusesToOverwrite(t *testing.T, f Fixture) {
	put(t, f.Store, "object", "first")
	wantError(t, "put again", f.Store.Put(t.Context(), "object", strings.NewReader("other"), 5), blob.ErrExists)
	wantContent(t, f.Store, "object", "first")
}

func oneWins(t *testing.T, f Fixture) {
	const writers = 8
	var wg sync.WaitGroup
	errs := make([]error, writers)
	for i := range writers {
		wg.Go(func() {
			content := bytes.Repeat([]byte{byte('a' + i)}, 4096)
			errs[i] = f.Store.Put(t.Context(), "r/object", bytes.NewReader(content), 4096)
		})
	}
	wg.Wait()
	winner := slices.Index(errs, nil)
	for i, err := range errs {
		if i != winner && !errors.Is(err, blob.ErrExists) {
			t.Errorf("writer %d: %v, want %v", i, err, blob.ErrExists)
		}
	}
	if winner < 0 {
		t.Fatal("nobody won")
	}
	wantContent(t, f.Store, "r/object", strings.Repeat(string(rune('a'+winner)), 4096))
}

func shortContent(t *testing.T, f Fixture) {
	err := f.Store.Put(t.Context(), "object", strings.NewReader("cut"), 10)
	wantError(t, "put less than promised", err, io.ErrUnexpectedEOF)
	_, err = blob.Stat(t.Context(), f.Store, "object")
	wantError(t, "stat after a failed put", err, blob.ErrNotFound)
	put(t, f.Store, "object", "whole")
}

func oddNames(t *testing.T, f Fixture) {
	names := []string{
		"", "/", "/a", "a/", "a//b", ".", "..", "../a", "a/../b", "a/..", "./a", ".incoming/x", "a/.hidden", "a\\b", "a b", "A",
		"a\x00b", "ä", "a\n", strings.Repeat("a", 200), strings.Repeat("abcdefg/", 100) + "a", "c:d", "*", "%2e",
	}
	for _, name := range names {
		wantError(t, fmt.Sprintf("put %q", name), f.Store.Put(t.Context(), name, strings.NewReader(""), 0), blob.ErrName)
		wantError(t, fmt.Sprintf("read %q", name), f.Store.ReadAt(t.Context(), name, nil, 0), blob.ErrName)
		wantError(t, fmt.Sprintf("delete %q", name), f.Store.Delete(t.Context(), name), blob.ErrName)
		wantError(t, fmt.Sprintf("retain %q", name), f.Store.Retain(t.Context(), name, time.Now()), blob.ErrName)
	}
	for _, prefix := range []string{"..", "../", "/", "a/../", ".incoming/"} {
		for _, err := range f.Store.List(t.Context(), prefix) {
			wantError(t, fmt.Sprintf("list %q", prefix), err, blob.ErrName)
		}
	}
}

func list(t *testing.T, s blob.Store, prefix string) []string {
	t.Helper()
	var names []string
	for object, err := range s.List(t.Context(), prefix) {
		if err != nil {
			t.Fatalf("list %q: %v", prefix, err)
		}
		names = append(names, object.Name)
	}
	return names
}

func listsInOrder(t *testing.T, f Fixture) {
	names := []string{"a-b/x", "a.b", "a/b", "a/b.c", "a/c/d", "ab/c", "b"}
	for i := range names {
		put(t, f.Store, names[len(names)-1-i], "content")
	}
	cases := map[string][]string{
		"":       names,
		"a":      names[:6],
		"a/":     {"a/b", "a/b.c", "a/c/d"},
		"a/b":    {"a/b", "a/b.c"},
		"a/c":    {"a/c/d"},
		"a/c/":   {"a/c/d"},
		"a/c/d":  {"a/c/d"},
		"c":      nil,
		"c/d/":   nil,
		"a/b/":   nil,
		"a-":     {"a-b/x"},
		"a/c/d/": nil,
	}
	for prefix, want := range cases {
		if got := list(t, f.Store, prefix); !slices.Equal(got, want) {
			t.Errorf("list %q: %q, want %q", prefix, got, want)
		}
	}
	seen := 0
	for _, err := range f.Store.List(t.Context(), "") {
		if err != nil {
			t.Fatalf("list: %v", err)
		}
		if seen++; seen == 2 {
			break
		}
	}
}

func namesFolders(t *testing.T, f Fixture) {
	for _, name := range []string{"a-b/x", "a.b", "a/b", "a/c/d", "a/c/e", "b"} {
		put(t, f.Store, name, "content")
	}
	for prefix, want := range map[string][]string{"": {"a-b", "a"}, "a/": {"c"}, "a/c/": nil, "c/": nil, "b/": nil} {
		var got []string
		for name, err := range blob.Folders(t.Context(), f.Store, prefix) {
			if err != nil {
				t.Fatalf("folders below %q: %v", prefix, err)
			}
			got = append(got, name)
		}
		if !slices.Equal(got, want) {
			t.Errorf("folders below %q: %q, want %q", prefix, got, want)
		}
	}
}

func deletes(t *testing.T, f Fixture) {
	put(t, f.Store, "a/b", "one")
	put(t, f.Store, "a/c", "two")
	if err := f.Store.Delete(t.Context(), "a/b"); err != nil {
		t.Fatal(err)
	}
	wantError(t, "delete again", f.Store.Delete(t.Context(), "a/b"), blob.ErrNotFound)
	wantError(t, "delete a folder", f.Store.Delete(t.Context(), "a"), blob.ErrNotFound)
	wantContent(t, f.Store, "a/c", "two")
	put(t, f.Store, "a/b", "three")
	wantContent(t, f.Store, "a/b", "three")
}

func retains(t *testing.T, f Fixture) {
	put(t, f.Store, "r/object", "kept")
	now := f.Clock.Now()
	for _, until := range []time.Time{now.Add(time.Hour), now.Add(time.Minute)} { // the second must not shorten
		if err := f.Store.Retain(t.Context(), "r/object", until); err != nil {
			t.Fatal(err)
		}
	}
	f.Clock.Advance(30 * time.Minute)
	wantError(t, "delete too early", f.Store.Delete(t.Context(), "r/object"), blob.ErrRetained)
	wantContent(t, f.Store, "r/object", "kept")
	if got := list(t, f.Store, ""); !slices.Equal(got, []string{"r/object"}) {
		t.Errorf("list with a retention: %q", got)
	}
	f.Clock.Advance(time.Hour)
	if err := f.Store.Delete(t.Context(), "r/object"); err != nil {
		t.Errorf("delete after the date: %v", err)
	}
	put(t, f.Store, "r/object", "again")
	if err := f.Store.Delete(t.Context(), "r/object"); err != nil {
		t.Errorf("a retention outlived its object: %v", err)
	}
	wantError(t, "retain nothing", f.Store.Retain(t.Context(), "r/object", f.Clock.Now()), blob.ErrNotFound)
}

func adopts(t *testing.T, f Fixture) {
	adopter, ok := f.Store.(blob.Adopter)
	if !ok {
		t.Skip("the store has no Adopt")
	}
	file := filepath.Join(t.TempDir(), "spool")
	if err := os.WriteFile(file, []byte("finished"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := adopter.Adopt(t.Context(), "packs/one", file); err != nil {
		t.Fatal(err)
	}
	wantError(t, "adopt again", adopter.Adopt(t.Context(), "packs/one", file), blob.ErrExists)
	wantError(t, "adopt nothing", adopter.Adopt(t.Context(), "packs/two", file+"x"), blob.ErrNotFound)
	wantError(t, "adopt to an odd name", adopter.Adopt(t.Context(), "../one", file), blob.ErrName)
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	wantContent(t, f.Store, "packs/one", "finished")
}

func stops(t *testing.T, f Fixture) {
	put(t, f.Store, "object", "content")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	wantError(t, "put", f.Store.Put(ctx, "other", strings.NewReader(""), 0), context.Canceled)
	wantError(t, "read", f.Store.ReadAt(ctx, "object", make([]byte, 1), 0), context.Canceled)
	wantError(t, "delete", f.Store.Delete(ctx, "object"), context.Canceled)
	for _, err := range f.Store.List(ctx, "") {
		wantError(t, "list", err, context.Canceled)
	}
}
