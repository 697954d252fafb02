package repository_test

import (
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/holdfast-dr/holdfast/core/repository"
)

// seeds are the golden objects of a folder.
func seeds(f *testing.F, folder string, add func([]byte)) {
	f.Helper()
	root := filepath.Join(goldenFolder, "store", goldenRepository, folder)
	err := filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		b, err := os.ReadFile(path)
		add(b)
		return err
	})
	if err != nil {
		f.Fatal(err)
	}
	add(nil)
}

func FuzzParseFooter(f *testing.F) {
	for _, folder := range []string{"packs", "maps"} {
		seeds(f, folder, func(b []byte) {
			if _, entries, _, err := repository.ParseFooter(b, int64(len(b))); err == nil {
				f.Add(b[len(b)-len(entries)*72-40:], int64(len(b)))
			}
		})
	}
	f.Add([]byte(nil), int64(0))
	f.Fuzz(func(t *testing.T, tail []byte, size int64) {
		_, entries, need, err := repository.ParseFooter(tail, size)
		if err != nil || need != 0 {
			if need < 0 || need > size && err == nil {
				t.Errorf("%d bytes are needed of a pack of %d", need, size)
			}
			return
		}
		for _, e := range entries {
			if e.Offset < 32 || e.Offset+int64(e.Length) > size {
				t.Errorf("entry %+v leaves the pack of %d bytes", e, size)
			}
		}
	})
}
