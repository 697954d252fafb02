package dir_test

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/core/blob"
	"github.com/holdfast-dr/holdfast/core/blob/blobtest"
	"github.com/holdfast-dr/holdfast/core/blob/dir"
)

func open(t *testing.T, path string) *dir.Store {
	t.Helper()
	s, err := dir.Open(path, dir.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func TestStore(t *testing.T) {
	blobtest.Run(t, func(t *testing.T) blobtest.Fixture {
		clock := blobtest.NewClock(time.Now())
		s, err := dir.Open(t.TempDir(), dir.Options{Clock: clock.Now})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = s.Close() })
		return blobtest.Fixture{Store: s, Clock: clock}
	})
}

func TestNothingOddIsFollowedOrListed(t *testing.T) {
	outside := t.TempDir()
	secret := filepath.Join(outside, "secret")
	if err := os.WriteFile(secret, []byte("secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	root := t.TempDir()
	s := open(t, root)
	for name, make := range map[string]func(string) error{
		"link":   func(p string) error { return os.Symlink(secret, p) },
		"folder": func(p string) error { return os.Symlink(outside, p) },
		"fifo":   func(p string) error { return syscall.Mkfifo(p, 0o600) },
		".dot":   func(p string) error { return os.WriteFile(p, nil, 0o600) },
		"UPPER":  func(p string) error { return os.WriteFile(p, nil, 0o600) },
	} {
		if err := make(filepath.Join(root, name)); err != nil {
			t.Fatal(err)
		}
	}
	for object, err := range s.List(t.Context(), "") {
		t.Errorf("listed %q, %v", object.Name, err)
	}
	for _, name := range []string{"link", "folder/secret", "fifo"} {
		if err := s.ReadAt(t.Context(), name, make([]byte, 1), 0); err == nil {
			t.Errorf("read %s", name)
		}
		if err := s.Delete(t.Context(), name); err == nil {
			t.Errorf("deleted %s", name)
		}
	}
	if err := s.Put(t.Context(), "folder/new", strings.NewReader("x"), 1); err == nil {
		t.Error("put through a link that leaves the root")
	}
	if err := s.Put(t.Context(), "link", strings.NewReader("x"), 1); !errors.Is(err, blob.ErrExists) {
		t.Errorf("put over a link: %v", err)
	}
	if b, err := os.ReadFile(secret); err != nil || string(b) != "secret" {
		t.Errorf("outside the root: %q, %v", b, err)
	}
	if _, err := os.Stat(filepath.Join(outside, "new")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a file appeared outside the root: %v", err)
	}
}

func TestLeftoversAreClearedOnlyWhenOld(t *testing.T) {
	root := t.TempDir()
	open(t, root)
	fresh, old := filepath.Join(root, ".incoming", "fresh"), filepath.Join(root, ".incoming", "old")
	for _, file := range []string{fresh, old} {
		if err := os.WriteFile(file, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	past := time.Now().Add(-48 * time.Hour)
	if err := os.Chtimes(old, past, past); err != nil {
		t.Fatal(err)
	}
	open(t, root)
	if _, err := os.Stat(fresh); err != nil {
		t.Errorf("the temporary file of a running process is gone: %v", err)
	}
	if _, err := os.Stat(old); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("an old temporary file is still there: %v", err)
	}
}

func TestFailedPutLeavesNoTemporaryFile(t *testing.T) {
	root := t.TempDir()
	s := open(t, root)
	_ = s.Put(t.Context(), "a/b", strings.NewReader("cut"), 10)
	_ = s.Put(t.Context(), "a/b", strings.NewReader("whole"), 5)
	_ = s.Put(t.Context(), "a/b", strings.NewReader("again"), 5)
	entries, err := os.ReadDir(filepath.Join(root, ".incoming"))
	if err != nil || len(entries) != 0 {
		t.Errorf("temporary files: %v, %v", entries, err)
	}
}

// slowly is content that comes after somebody looked at the store.
type slowly struct {
	io.ReaderAt
	look func()
}

func (s slowly) ReadAt(p []byte, off int64) (int, error) {
	s.look()
	return s.ReaderAt.ReadAt(p, off)
}

// A process that is killed while it writes leaves nothing behind, since what it
// writes has no name yet.
func TestWhatIsBeingWrittenHasNoName(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Log("temporary files have names on this system")
		return
	}
	root := t.TempDir()
	s := open(t, root)
	looked := false
	content := slowly{strings.NewReader("content"), func() {
		looked = true
		entries, err := os.ReadDir(filepath.Join(root, ".incoming"))
		if err != nil || len(entries) != 0 {
			t.Errorf("temporary files: %v, %v", entries, err)
		}
	}}
	if err := s.Put(t.Context(), "a/b", content, 7); err != nil || !looked {
		t.Fatalf("put: %v, looked %v", err, looked)
	}
	if b, err := os.ReadFile(filepath.Join(root, "a", "b")); err != nil || string(b) != "content" {
		t.Errorf("object: %q, %v", b, err)
	}
}
