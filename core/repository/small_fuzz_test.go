package repository

import (
	"bytes"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"
	"testing"

	"github.com/holdfast-dr/holdfast/core/blob"
	"github.com/holdfast-dr/holdfast/core/chunk"
)

const fuzzRepository = "0190a000-0000-7000-8000-000000000001"

// FuzzLabel: labels, tombstones, formats and the notes of sessions are JSON with
// a checksum. One that is read is written in one way only as far as its text goes.
func FuzzLabel(f *testing.F) {
	good, err := encodeSmall(labelJSON{Repository: fuzzRepository, Tenant: "t", TenantName: "Acme", Name: "backups", LimitBytes: 1, Written: 2})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good[:bytes.IndexByte(good, '\n')])
	f.Add([]byte(`{"repository":"` + fuzzRepository + `","written":-9223372036854775808}`))
	f.Add([]byte(`{"repository":[[[[[[`))
	f.Fuzz(func(t *testing.T, text []byte) {
		if _, err := parseLabel(text, fuzzRepository); err == nil {
			t.Error("a label without a checksum")
		}
		summed := append(bytes.Clone(text), '\n')
		summed = fmt.Appendf(summed, "%s%08x\n", sumPrefix, crc32.Checksum(summed, castagnoli))
		if l, err := parseLabel(summed, fuzzRepository); err == nil {
			if _, err := parseLabel(summed, "another"); err == nil {
				t.Error("a label of another repository")
			}
			_ = l.Written.String()
		}
		for _, v := range []any{new(formatJSON), new(tombstoneJSON), new(sessionJSON)} {
			_ = decodeSmall(summed, v)
			_ = decodeSmall(text, v)
		}
	})
}

// FuzzNames: whatever objects lie in a store, each is taken for at most what its
// name says, and a name that is taken is the one that would be made.
func FuzzNames(f *testing.F) {
	r := &Repository{id: fuzzRepository}
	f.Add(fuzzRepository+"/points/0190a000-0000-7000-8000-000000000003/0190a000-0000-7000-8000-000000000002.7", int64(1))
	f.Add(fuzzRepository+"/points/0190a000-0000-7000-8000-000000000003/0190a000-0000-7000-8000-000000000002.7.void", int64(0))
	f.Add(fuzzRepository+"/packs/0e/0190a00000000000000000000000000e", int64(100))
	f.Add(fuzzRepository+"/owner/00000000000000000007", int64(0))
	f.Add("../../etc/passwd", int64(-1))
	f.Fuzz(func(t *testing.T, name string, size int64) {
		object := blob.Object{Name: name, SizeBytes: size}
		if m, ok := r.parseManifestName(object); ok {
			if blob.CheckName(m.name) != nil || !isUUID(string(m.point)) || !isUUID(string(m.machine)) {
				t.Errorf("%q is taken for %+v", name, m)
			}
		}
		for _, kind := range []PackKind{chunk.KindData, chunk.KindPage} {
			if p, ok := r.packOf(kind, object); ok && (p.name != name || blob.CheckName(name) != nil) {
				t.Errorf("%q is taken for %+v", name, p)
			}
		}
		if id, err := ParsePackID(name); err == nil && id.String() != name {
			t.Errorf("pack %q is %s", name, id)
		}
		if id, err := ParseSessionID(name); err == nil && sessionText(id) != name {
			t.Errorf("session %q is %s", name, sessionText(id))
		}
		_ = isEpochName(name)
	})
}

// FuzzSpool: after a crash a spool file may hold anything behind what was synced.
// What is recovered of it are whole records, and the file is cut after them.
func FuzzSpool(f *testing.F) {
	id := PackID{0x01, 0x90, 0xa0, 15: 0x0e}
	page := chunk.AppendPage(nil, chunk.SessionID{1}, chunk.ID{2}, []byte("a page"))
	head := appendPackHeader(nil, chunk.KindPage, id)
	whole := append(bytes.Clone(head), page...)
	entry := entryOf(mustParse(f, page), int64(len(head)))
	f.Add(whole)
	f.Add(whole[:len(whole)-1])
	f.Add(appendFooter(bytes.Clone(whole), id, int64(len(whole)), []Entry{entry}))
	f.Add(append(bytes.Clone(whole), make([]byte, 100)...))
	f.Add(head)
	dir := f.TempDir()
	r := &Repository{id: fuzzRepository}
	path := filepath.Join(dir, id.String()+mapSuffix)
	f.Fuzz(func(t *testing.T, b []byte) {
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		p, err := r.recoverSpool(path)
		if err != nil {
			t.Fatal(err)
		}
		if p == nil {
			return
		}
		defer func() {
			if err := p.discard(); err != nil {
				t.Error(err)
			}
		}()
		info, err := p.file.Stat()
		if err != nil || info.Size() != p.size || p.size > int64(len(b)) {
			t.Fatalf("the file has %d bytes, the pack %d, of %d", info.Size(), p.size, len(b))
		}
		next := int64(packHeaderSize)
		for _, e := range p.entries {
			if e.Offset != next {
				t.Fatalf("a record at %d, want %d", e.Offset, next)
			}
			if _, err := parseAt(b[e.Offset:e.Offset+int64(e.Length)], e); err != nil {
				t.Fatalf("what was recovered at %d is no record: %v", e.Offset, err)
			}
			next += int64(e.Length)
		}
	})
}

func mustParse(f *testing.F, b []byte) chunk.Record {
	f.Helper()
	r, _, err := chunk.ParseRecord(b)
	if err != nil {
		f.Fatal(err)
	}
	return r
}

// FuzzIndexValues: the index is a cache on a disk that may be damaged. Its values
// are read without a panic, whatever their length.
func FuzzIndexValues(f *testing.F) {
	f.Add(make([]byte, locationSize))
	f.Add(make([]byte, locationSize+1))
	f.Add([]byte{1, 2, 3})
	f.Fuzz(func(t *testing.T, b []byte) {
		all := parseLocations(chunk.ID{1}, b)
		var again []byte
		for _, l := range all {
			again = appendLocation(again, l)
		}
		if len(all) != len(b)/locationSize {
			t.Fatalf("%d locations in %d bytes", len(all), len(b))
		}
		if len(again) != len(all)*locationSize {
			t.Fatalf("%d locations are written as %d bytes", len(all), len(again))
		}
	})
}
