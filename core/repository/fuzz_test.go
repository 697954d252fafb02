package repository_test

import (
	"bytes"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/holdfast-dr/holdfast/core/chunk"
	"github.com/holdfast-dr/holdfast/core/point"
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

// records calls add with the records of a golden pack.
func records(pack []byte, add func(chunk.Record, []byte)) {
	_, entries, _, err := repository.ParseFooter(pack, int64(len(pack)))
	if err != nil {
		return
	}
	for _, e := range entries {
		b := pack[e.Offset : e.Offset+int64(e.Length)]
		if r, _, err := chunk.ParseRecord(b); err == nil {
			add(r, b)
		}
	}
}

func FuzzParseRecord(f *testing.F) {
	seeds(f, "maps", func(b []byte) { records(b, func(_ chunk.Record, record []byte) { f.Add(record) }) })
	seeds(f, "packs", func(b []byte) { records(b, func(_ chunk.Record, record []byte) { f.Add(record[:100]) }) })
	f.Fuzz(func(t *testing.T, b []byte) {
		r, rest, err := chunk.ParseRecord(b)
		if err != nil {
			return
		}
		if r.Size()+len(rest) != len(b) || !bytes.Equal(r.Append(nil), b[:r.Size()]) {
			t.Errorf("record of %d bytes does not encode to what it was parsed from", r.Size())
		}
	})
}

func FuzzParsePage(f *testing.F) {
	seeds(f, "maps", func(b []byte) { records(b, func(r chunk.Record, _ []byte) { f.Add(r.Body) }) })
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
	seeds(f, "points", func(b []byte) { f.Add(b) })
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

func FuzzCheckWrap(f *testing.F) {
	seeds(f, "keys", func(b []byte) { f.Add(b) })
	f.Fuzz(func(t *testing.T, b []byte) {
		if _, err := chunk.CheckWrap(b); err == nil && (len(b) <= 28 || len(b) > chunk.MaxWrap) {
			t.Errorf("a wrap of %d bytes was accepted", len(b))
		}
	})
}

func FuzzUnmarshalKeyring(f *testing.F) {
	for _, keys := range []*chunk.Keyring{chunk.NewKeyring(), chunk.NewKeyring().Rotated()} {
		b, err := keys.Marshal()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Add([]byte(`{"format":1,"id":"AA==","mac":"","data":[{"number":0}]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		keys, err := chunk.UnmarshalKeyring(b)
		if err != nil {
			if len(b) > 40 && strings.Contains(err.Error(), string(b[:40])) {
				t.Error("an error quotes a keyring")
			}
			return
		}
		text, err := keys.Marshal()
		if err != nil {
			t.Fatal(err)
		}
		again, err := chunk.UnmarshalKeyring(text)
		if err != nil || !again.Equal(keys) {
			t.Errorf("a keyring changes when it is encoded: %v", err)
		}
	})
}
