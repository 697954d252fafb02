package point_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"os"
	"path/filepath"
	"testing"
	"time"

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

// FuzzOpen: a manifest that carries the tenant's MAC can still hold anything, for
// it may have been made by another version or a broken agent.
func FuzzOpen(f *testing.F) {
	keys := chunk.NewKeyring()
	made, err := point.Manifest{
		Public: point.Public{Repository: "0190a000-0000-7000-8000-000000000001", Point: "0190a000-0000-7000-8000-000000000002",
			Machine: "0190a000-0000-7000-8000-000000000003", Session: "00000000000000000000000000000000", Taken: time.Unix(1e9, 0), Kind: point.KindFull,
			ChunkSize: chunk.Size, FanOut: 128, Disks: []point.Disk{{SizeBytes: 1 << 30, Root: chunk.ID{1}}}},
		Private: point.Private{Disks: []point.PrivateDisk{{ID: "vda"}}},
	}.Seal(keys)
	if err != nil {
		f.Fatal(err)
	}
	public := made[16 : 16+binary.LittleEndian.Uint32(made[8:])]
	f.Add(public, []byte(`{"machine":"m","disks":[{"id":"vda"}]}`))
	f.Add(public, []byte(`{"disks":[]}`))
	f.Add([]byte(`{"format":1}`), []byte(`null`))
	f.Fuzz(func(t *testing.T, public, private []byte) {
		b := frame(t, keys, public, private)
		m, err := point.Open(b, keys)
		if err != nil {
			return
		}
		if len(m.Private.Disks) != len(m.Public.Disks) || len(m.Public.Disks) == 0 {
			t.Errorf("%d disks and %d descriptions", len(m.Public.Disks), len(m.Private.Disks))
		}
	})
}

// frame makes a manifest of any two parts, as whoever has the keyring can.
func frame(t *testing.T, keys *chunk.Keyring, public, private []byte) []byte {
	t.Helper()
	name := ""
	if p, err := point.ParsePublic(sum(point.FrameManifest(public, nil, make([]byte, 32)))); err == nil {
		name = string(p.Point)
	}
	sealed, err := keys.SealManifest(name, public, private)
	if err != nil {
		t.Fatal(err)
	}
	b := point.FrameManifest(public, sealed, nil)
	mac := keys.MAC(b)
	return sum(append(b, mac[:]...))
}

func sum(b []byte) []byte {
	return binary.LittleEndian.AppendUint32(b, crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)))
}

// FuzzTree: the ids of pages are hashes without a key, so a provider, or a tenant
// towards the provider, can build any tree of pages that exist. A walk of it
// ends, in order, inside the disk, or says what is wrong.
func FuzzTree(f *testing.F) {
	f.Add([]byte{0, 1, 2, 3, 1, 4, 4, 4, 4, 2, 5, 5, 0, 5}, int64(100<<20))
	f.Add([]byte{0, 1, 0, 0, 0, 0, 1, 1, 1, 1}, int64(1))
	f.Fuzz(func(t *testing.T, b []byte, size int64) {
		const fanOut = 4
		tree := point.Tree{Geometry: point.Geometry{SizeBytes: size, ChunkSize: chunk.Size, FanOut: fanOut}}
		if tree.Validate() != nil || tree.Chunks() > 1<<12 {
			return
		}
		// Each five bytes are a page: its level, and four numbers of earlier pages.
		store := pageMap{}
		made := []chunk.ID{{}, {0xc0}}
		for ; len(b) >= 1+fanOut && len(made) < 256; b = b[1+fanOut:] {
			p := point.Page{Level: int(b[0] % 8)}
			for _, n := range b[1 : 1+fanOut] {
				p.IDs = append(p.IDs, made[int(n)%len(made)])
			}
			encoded := p.Append(nil)
			id := point.PageID(encoded)
			store[id] = encoded
			made = append(made, id)
		}
		tree.Root, tree.Pages = made[len(made)-1], store
		last := int64(-1)
		visits := 0
		err := tree.Walk(t.Context(), 0, tree.Chunks(), func(i int64, id chunk.ID) error {
			if i <= last || i >= tree.Chunks() || id.IsZero() {
				t.Fatalf("chunk %d (%s) after %d of %d", i, id, last, tree.Chunks())
			}
			last = i
			visits++
			return nil
		})
		if err != nil && !errors.Is(err, chunk.ErrDamaged) && !errors.Is(err, errNoPage) {
			t.Fatalf("an error of no kind: %v", err)
		}
		if int64(visits) > tree.Chunks() {
			t.Fatalf("%d visits of %d chunks", visits, tree.Chunks())
		}
	})
}

var errNoPage = errors.New("no such page")

// pageMap is a source of pages by their ids.
type pageMap map[chunk.ID][]byte

func (p pageMap) Pages(_ context.Context, ids []chunk.ID) (out [][]byte, err error) {
	for _, id := range ids {
		b, ok := p[id]
		if !ok {
			return nil, errNoPage
		}
		out = append(out, b)
	}
	return out, nil
}
