package dir_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/core/blob"
	"github.com/holdfast-dr/holdfast/core/blob/blobtest"
	"github.com/holdfast-dr/holdfast/core/blob/dir"
)

// Whichever sync of a call fails, the call fails, and repeating it until it
// succeeds, or is told that the work is done, ends with everything on the disk:
// no sync is trusted that had nothing left to write.
func TestAFailedSyncIsNeverTakenForSuccess(t *testing.T) {
	put := func(s *dir.Store) error { return s.Put(t.Context(), "a/b/c", strings.NewReader("whole"), 5) }
	for name, c := range map[string]struct {
		before, call func(s *dir.Store, root string) error
		done         error // what a repeated call may answer, beside success
	}{
		"put": {
			call: func(s *dir.Store, _ string) error { return put(s) },
			done: blob.ErrExists,
		},
		"adopt": {
			call: func(s *dir.Store, root string) error {
				file := filepath.Join(root, "finished")
				if err := errors.Join(os.RemoveAll(file), os.WriteFile(file, []byte("whole"), 0o600)); err != nil {
					return err // it is written anew, as ErrUnsynced demands
				}
				return s.Adopt(t.Context(), "a/b/c", file)
			},
			done: blob.ErrExists,
		},
		"retain": {
			before: func(s *dir.Store, _ string) error { return put(s) },
			call: func(s *dir.Store, _ string) error {
				return s.Retain(t.Context(), "a/b/c", time.Unix(1<<33, 0))
			},
		},
		"delete": {
			before: func(s *dir.Store, _ string) error { return put(s) },
			call:   func(s *dir.Store, _ string) error { return s.Delete(t.Context(), "a/b/c") },
			done:   blob.ErrNotFound,
		},
	} {
		t.Run(name, func(t *testing.T) {
			for failing := 0; ; failing++ {
				root := t.TempDir()
				disk := &blobtest.Syncs{}
				s, err := dir.Open(filepath.Join(root, "store"), dir.Options{Sync: disk.Sync})
				if err != nil {
					t.Fatal(err)
				}
				if c.before != nil {
					if err := c.before(s, root); err != nil {
						t.Fatal(err)
					}
				}
				failed := false
				disk.Fail(func(call int, _ *os.File) bool {
					failed = failed || call == failing
					return call == failing
				})
				err = c.call(s, root)
				if failed && !errors.Is(err, blob.ErrUnsynced) {
					t.Errorf("sync %d failed, and the call answered %v", failing, err)
				}
				for range 5 {
					if err == nil || c.done != nil && errors.Is(err, c.done) {
						break
					}
					err = c.call(s, root)
				}
				if err != nil && !(failed && c.done != nil && errors.Is(err, c.done)) {
					t.Errorf("after sync %d had failed: %v", failing, err)
				}
				if lies := disk.Lies(); len(lies) != 0 {
					t.Errorf("after sync %d had failed, a sync was trusted that wrote nothing: %v", failing, lies)
				}
				if err := s.Close(); err != nil {
					t.Error(err)
				}
				if !failed {
					if failing == 0 {
						t.Error("the call syncs nothing")
					}
					return
				}
			}
		})
	}
}

// Whoever is told that a name is taken may rely on the object, although the one
// who made it was killed before its names were durable.
func TestATakenNameIsDurable(t *testing.T) {
	root := t.TempDir()
	if err := os.MkdirAll(filepath.Join(root, "a", "b"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(root, "a", "b", "c"), []byte("whole"), 0o600); err != nil {
		t.Fatal(err)
	}
	disk := &blobtest.Syncs{}
	synced := map[string]bool{}
	s, err := dir.Open(root, dir.Options{Sync: func(f *os.File) error {
		rel, err := filepath.Rel(root, f.Name())
		synced[rel] = true
		return errors.Join(err, disk.Sync(f))
	}})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if err := s.Put(t.Context(), "a/b/c", strings.NewReader("whole"), 5); !errors.Is(err, blob.ErrExists) {
		t.Errorf("put of a taken name: %v", err)
	}
	for _, folder := range []string{".", "a", "a/b"} {
		if !synced[folder] {
			t.Errorf("folder %s was not synced; %v were", folder, synced)
		}
	}
}

func TestARetentionThatCannotBeWrittenIsRefused(t *testing.T) {
	s := open(t, t.TempDir())
	if err := s.Put(t.Context(), "a", strings.NewReader("x"), 1); err != nil {
		t.Fatal(err)
	}
	if err := s.Retain(t.Context(), "a", time.Unix(1<<40, 0)); err == nil {
		t.Error("kept until a year that no date can say")
	}
	if err := s.Delete(t.Context(), "a"); err != nil {
		t.Errorf("delete what is not retained: %v", err)
	}
}
