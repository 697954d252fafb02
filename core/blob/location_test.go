package blob

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
)

func TestNestedDirectoriesAreRefused(t *testing.T) {
	at := func(path string) Location { return Location{ID: path, Name: "n", Kind: LocationDir, Path: path} }
	for _, pair := range [][2]string{{"/a", "/a"}, {"/a/b", "/a"}, {"/a", "/a/b/c"}} {
		var rule *LocationError
		if err := at(pair[0]).Apart(Location{ID: "other", Name: "o", Kind: LocationDir, Path: pair[1]}); !errors.As(err, &rule) {
			t.Errorf("%s beside %s: %v", pair[0], pair[1], err)
		}
	}
	for _, pair := range [][2]string{{"/a", "/b"}, {"/a/b", "/a/bc"}, {"/ab", "/a"}} {
		if err := at(pair[0]).Apart(at(pair[1])); err != nil {
			t.Errorf("%s beside %s: %v", pair[0], pair[1], err)
		}
	}
	if err := at("/a").Apart(at("/a")); err != nil {
		t.Errorf("beside itself: %v", err)
	}
}

func TestPathsAreComparedWithoutLinks(t *testing.T) {
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(dir, "real"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(filepath.Join(dir, "real"), filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	l, err := Location{Name: "n", Kind: LocationDir, Path: dir + "/link/not/yet/"}.Clean()
	if err != nil || l.Path != dir+"/real/not/yet" {
		t.Errorf("%q, %v", l.Path, err)
	}
	for _, bad := range []Location{{Name: "n", Kind: LocationDir, Path: "relative"}, {Name: "n", Kind: LocationDir, Path: "/"},
		{Name: "", Kind: LocationDir, Path: dir}, {Name: "n", Kind: "ftp", Path: dir}, {Name: "n", Kind: LocationDir, Path: dir + "/a\nb"}} {
		var rule *LocationError
		if _, err := bad.Clean(); !errors.As(err, &rule) {
			t.Errorf("%+v: %v", bad, err)
		}
	}
}
