package repository_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"flag"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"filippo.io/age"

	"github.com/holdfast-dr/holdfast/core/blob/blobtest"
	"github.com/holdfast-dr/holdfast/core/blob/dir"
	"github.com/holdfast-dr/holdfast/core/chunk"
	"github.com/holdfast-dr/holdfast/core/point"
	"github.com/holdfast-dr/holdfast/core/repository"
	"github.com/holdfast-dr/holdfast/core/repository/repositorytest"
)

var update = flag.Bool("update", false, "write the golden repository anew; only for a new format")

// The golden repository was written once. Every later program reads it.
const (
	goldenFolder     = "testdata/golden"
	goldenRepository = "0190a000-0000-7000-8000-000000000001"
	goldenMachine    = "0190a000-0000-7000-8000-00000000000a"
)

// goldenKeyring is the JSON of a keyring of known keys, of which the second data
// key seals.
func goldenKeyring(t *testing.T) *chunk.Keyring {
	t.Helper()
	key := func(b byte) []byte { return bytes.Repeat([]byte{b}, 32) }
	type dataKey struct {
		Number int    `json:"number"`
		Key    []byte `json:"key"`
	}
	text, err := json.Marshal(map[string]any{
		"format": 1, "id": key(1), "mac": key(2), "data": []dataKey{{1, key(3)}, {2, key(4)}},
	})
	if err != nil {
		t.Fatal(err)
	}
	keys, err := chunk.UnmarshalKeyring(text)
	if err != nil {
		t.Fatal(err)
	}
	return keys
}

// goldenDisks are random, compressible and zero chunks in a tree of three
// levels, with an odd end; and a disk of zeroes.
func goldenDisks() []disk {
	r := rand.New(rand.NewPCG(1, 2))
	d := make(disk, 50*testChunk+1234)
	for i := 0; i*testChunk < len(d); i++ {
		b := d[i*testChunk : min((i+1)*testChunk, len(d))]
		switch {
		case i%5 == 1 || i > 20 && i < 38: // zeroes; some whole pages of them
		case i%5 == 2:
			copy(b, bytes.Repeat([]byte("Holdfast keeps what it was given. "), testChunk))
			b[0] = byte(i)
		default:
			for j := range b {
				b[j] = byte(r.Uint32())
			}
		}
	}
	return []disk{d, make(disk, 3*testChunk)}
}

// newGoldenSite opens a copy of the golden repository, as a provider does that
// has nothing but the store.
func newGoldenSite(t *testing.T) *site {
	t.Helper()
	root := t.TempDir()
	path := filepath.Join(root, "store")
	if *update {
		path = filepath.Join(goldenFolder, "store")
		if err := os.RemoveAll(goldenFolder); err != nil {
			t.Fatal(err)
		}
	} else if err := os.CopyFS(path, os.DirFS(filepath.Join(goldenFolder, "store"))); err != nil {
		t.Fatal(err)
	}
	store, err := dir.Open(path, dir.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = store.Close() })
	s := &site{
		t: t, id: goldenRepository, root: root, blobs: blobtest.NewFaulty(store), catalogue: &repositorytest.Catalogue{},
		spool: filepath.Join(root, "spool"), clock: blobtest.NewClock(time.UnixMicro(1_800_000_000_000_000)),
		keys: goldenKeyring(t), pack: 64 << 10, log: slog.New(slog.DiscardHandler),
	}
	s.catalogue.Add(s.id, 1<<40, 0)
	s.openIndex()
	s.open()
	t.Cleanup(s.close)
	return s
}

func writeGolden(t *testing.T) {
	s := newGoldenSite(t)
	disks := goldenDisks()
	s.keys = goldenKeyring(t)
	s.backup(goldenMachine, "", disks...)
	identity, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	wrap, err := s.keys.Wrap(identity.Recipient())
	if err != nil {
		t.Fatal(err)
	}
	if err := s.repo.PutWrap(testContext(t), "kit", wrap); err != nil {
		t.Fatal(err)
	}
	text := "# opens a repository of test data and nothing else\n" + identity.String() + "\n"
	if err := os.WriteFile(filepath.Join(goldenFolder, "identity.txt"), []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	_ = os.Remove(filepath.Join(goldenFolder, "store", ".incoming"))
}

func TestGoldenRepositoryIsRead(t *testing.T) {
	if *update {
		writeGolden(t)
		t.Skip("written anew; run again without -update")
	}
	s := newGoldenSite(t)
	ctx := testContext(t)
	disks := goldenDisks()
	// What the test expects must not change by itself.
	if got := sha256.Sum256(disks[0]); hex.EncodeToString(got[:]) != "fe59ab9c4f290124369f5019bb255960246ed4de852255c26ca499f5601c681e" {
		t.Fatalf("the golden disk has sum %x", got)
	}
	report, err := s.repo.Import(ctx, repository.ImportOptions{})
	if err != nil || report.Points != 1 || len(report.Refused) != 0 {
		t.Fatalf("import: %+v, %v", report, err)
	}
	s.epoch = s.catalogue.Epoch(s.id)
	s.restart()
	points, err := s.repo.Points(ctx, goldenMachine, "", 0)
	if err != nil || len(points) != 1 {
		t.Fatalf("points: %v, %v", points, err)
	}
	s.wantRestore(points[0].ID, disks...)
	s.wantSound()

	text, err := os.ReadFile(filepath.Join(goldenFolder, "identity.txt"))
	if err != nil {
		t.Fatal(err)
	}
	identities, err := age.ParseIdentities(bytes.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	wrap, err := s.repo.Wrap(ctx, "kit")
	if err != nil {
		t.Fatal(err)
	}
	keys, err := chunk.Unwrap(wrap, s.keys.Fingerprint(), identities...)
	if err != nil || !keys.Equal(s.keys) {
		t.Errorf("unwrap: %v", err)
	}
	// A new point on top of the old one shares what did not change.
	next := bytes.Clone(disks[0])
	next[0] ^= 1
	used, _ := s.catalogue.Used(s.id)
	two := s.backup(goldenMachine, points[0].ID, next, disks[1])
	s.wantRestore(two, next, disks[1])
	if after, _ := s.catalogue.Used(s.id); after-used > 3*testChunk {
		t.Errorf("one changed chunk took %d bytes", after-used)
	}
}

// golden bytes of what is written without randomness.
func TestGoldenBytes(t *testing.T) {
	keys := goldenKeyring(t)
	id := keys.ID([]byte("Holdfast"))
	session := chunk.SessionID{0x01, 0x90, 15: 0x0f}
	page := point.Page{Level: 1, IDs: []chunk.ID{id, {}, {31: 9}, {}}}.Append(nil)
	record := chunk.AppendPage(nil, session, point.PageID(page), page)
	mac := keys.MAC([]byte("a manifest"))
	header, footer := repository.GoldenPack(t, record)
	for name, c := range map[string]struct {
		got  []byte
		want string
	}{
		"fingerprint": {[]byte(keys.Fingerprint().String()), hex.EncodeToString([]byte("fa16-bf3c-0207-1c11-51f3-9701-d51b-d001"))},
		"chunk id":    {id[:], "73c8c0a9a0b8d35e873abff668993c9a044156ccc16447698a0b778435325e7e"},
		"mac":         {mac[:], "cea4de5429edb5d091e3ee76c339de98eb1b6b089417ce6959b35facf27602bf"},
		"page": {page, `
			48467067010104000573c8c0a9a0b8d35e873abff668993c9a044156ccc16447698a0b778435325e7e00000000000000
			00000000000000000000000000000000000000000000000009`},
		"record": {record, `
			4846726301020000490000004900000000000000929362fa0190000000000000000000000000000fd006c2a2a293acab
			6875cf8ad9e097decffcfec05b80e19b3f007514cdd260e448467067010104000573c8c0a9a0b8d35e873abff668993c
			9a044156ccc16447698a0b778435325e7e00000000000000000000000000000000000000000000000000000000000000
			09`},
		"pack header": {header, "4846706b010200000190a00000000000000000000000000e00000000b44505e8"},
		"pack footer": {footer, `
			d006c2a2a293acab6875cf8ad9e097decffcfec05b80e19b3f007514cdd260e4200000000000000091000000929362fa
			49000000000000000190000000000000000000000000000fb10000000000000001000000d5a207770190a00000000000
			000000000000000e64971cec48467065`},
	} {
		if got := hex.EncodeToString(c.got); got != strings.Join(strings.Fields(c.want), "") {
			t.Errorf("%s is\n%s, want\n%s", name, got, c.want)
		}
	}
}

// TestGoldenSealsOpen opens what was sealed once, with random nonces.
func TestGoldenSealsOpen(t *testing.T) {
	keys := goldenKeyring(t)
	data, manifests := 0, 0
	codecs := map[chunk.Codec]int{}
	err := fs.WalkDir(os.DirFS(filepath.Join(goldenFolder, "store", goldenRepository)), ".", func(name string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		b, err := os.ReadFile(filepath.Join(goldenFolder, "store", goldenRepository, name))
		if err != nil {
			return err
		}
		switch {
		case strings.HasPrefix(name, "packs/"):
			id, entries, need, err := repository.ParseFooter(b, int64(len(b)))
			if err != nil || need != 0 || id.String() != filepath.Base(name) {
				t.Errorf("%s: pack %s, %v", name, id, err)
			}
			opener := keys.NewOpener()
			for _, e := range entries {
				record, _, err := chunk.ParseRecord(b[e.Offset:])
				if err != nil {
					return err
				}
				if _, err := opener.Open(nil, record); err != nil {
					return err
				}
				data++
				codecs[record.Codec]++
			}
		case strings.HasPrefix(name, "points/"):
			m, err := point.Open(b, keys)
			if err != nil {
				return err
			}
			manifests++
			if m.Public.Machine != goldenMachine || len(m.Public.Disks) != 2 || m.Private.Machine != "a machine" || m.Public.Key != 2 {
				t.Errorf("manifest: %+v", m)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if data < 20 || manifests != 1 || codecs[chunk.CodecStored] == 0 || codecs[chunk.CodecZstd] == 0 {
		t.Errorf("%d chunks %v, %d manifests", data, codecs, manifests)
	}
}
