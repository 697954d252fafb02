package point_test

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"github.com/holdfast-dr/holdfast/core/chunk"
	"github.com/holdfast-dr/holdfast/core/point"
)

func FuzzParsePage(f *testing.F) {
	f.Add(point.Page{IDs: []chunk.ID{{1}, {}, {2}, {}}}.Append(nil))
	f.Add(point.Page{Level: 3, IDs: append(make([]chunk.ID, 12), chunk.ID{7})}.Append(nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		page, err := point.ParsePage(b)
		if err != nil {
			return
		}
		if !bytes.Equal(page.Append(nil), b) {
			t.Error("a page has two encodings")
		}
		if page.IsZero() {
			t.Error("a page of zeroes was accepted")
		}
	})
}

func FuzzParsePublic(f *testing.F) {
	names, err := filepath.Glob(filepath.Join("..", "repository", "testdata", "golden", "store", "*", "points", "*", "*"))
	if err != nil || len(names) == 0 {
		f.Fatalf("golden manifests: %v, %v", names, err)
	}
	for _, name := range names {
		manifest, err := os.ReadFile(name)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(manifest)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := point.ParsePublic(b)
		if err != nil {
			return
		}
		for i := range p.Disks {
			if err := p.Geometry(i).Validate(); err != nil {
				t.Errorf("disk %d: %v", i, err)
			}
		}
	})
}
