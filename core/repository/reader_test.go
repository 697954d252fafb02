package repository_test

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"filippo.io/age"

	"github.com/holdfast-dr/holdfast/core/point"
	"github.com/holdfast-dr/holdfast/testenv"
)

// reader is the independent one, in another language.
type reader struct {
	t           *testing.T
	python      string
	store       string
	identity    string
	fingerprint string
}

func newReader(t *testing.T, store, identity, fingerprint string) reader {
	t.Helper()
	return reader{t, testenv.Python(t, "numpy", "cryptography", "zstandard"), store, identity, fingerprint}
}

func (r reader) run(args ...string) (string, error) {
	args = append([]string{filepath.Join("testdata", "reader", "holdfast_read.py"), r.store, "--identity", r.identity, "--fingerprint", r.fingerprint}, args...)
	out, err := exec.CommandContext(testContext(r.t), r.python, args...).CombinedOutput()
	return string(out), err
}

func (r reader) wantDisk(id point.ID, n int, want disk) {
	r.t.Helper()
	out := filepath.Join(r.t.TempDir(), "raw")
	if text, err := r.run("--point", string(id), "--disk", strconv.Itoa(n), "--out", out); err != nil {
		r.t.Errorf("reader: %v\n%s", err, text)
		return
	}
	got, err := os.ReadFile(out)
	if err != nil || !bytes.Equal(got, want) {
		r.t.Errorf("disk %d of point %s differs, %v", n, id, err)
	}
}

func TestIndependentReaderRestoresTheGoldenPoint(t *testing.T) {
	store := filepath.Join(goldenFolder, "store", goldenRepository)
	r := newReader(t, store, filepath.Join(goldenFolder, "identity.txt"), goldenKeyring(t).Fingerprint().String())
	manifests, err := filepath.Glob(filepath.Join(store, "points", "*", "*"))
	if err != nil || len(manifests) != 1 {
		t.Fatalf("manifests: %v, %v", manifests, err)
	}
	id, _, _ := strings.Cut(filepath.Base(manifests[0]), ".")
	for n, want := range goldenDisks() {
		r.wantDisk(point.ID(id), n, want)
	}
}

func TestIndependentReaderRestoresAnyPoint(t *testing.T) {
	s, random := newSite(t), seeded(t)
	first := []disk{randomDisk(random, 150*testChunk+2500), make(disk, 9*testChunk+1), randomDisk(random, 1)}
	machine := newMachine()
	one := s.backup(machine, "", first...)
	s.keys = s.keys.Rotated()
	second := []disk{first[0].changed(random, 12), first[1].changed(random, 2), first[2]}
	two := s.backup(machine, one, second...)
	gone := s.backup(machine, two, randomDisk(random, 30*testChunk))
	s.forget(gone)

	identity, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	other, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	wrap, err := s.keys.Wrap(other.Recipient(), identity.Recipient())
	if err != nil {
		t.Fatal(err)
	}
	if err := s.repo.PutWrap(testContext(t), "kit", wrap); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(s.root, "identity")
	if err := os.WriteFile(file, []byte("# a comment\n"+identity.String()+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	r := newReader(t, filepath.Join(s.root, "store", s.id), file, s.keys.Fingerprint().String())
	list, err := r.run()
	if err != nil || !strings.Contains(list, string(one)) || !strings.Contains(list, string(two)) || strings.Contains(list, string(gone)) {
		t.Errorf("list: %v\n%s", err, list)
	}
	for n := range first {
		r.wantDisk(one, n, first[n])
		r.wantDisk(two, n, second[n])
	}

	// It is not a reader that takes anything.
	out := filepath.Join(s.root, "out")
	foreign := r
	foreign.fingerprint = "0000-" + r.fingerprint[5:]
	if text, err := foreign.run(); err == nil {
		t.Errorf("another keyring was taken:\n%s", text)
	}
	for i := 0; i*testChunk < len(second[0]); i++ {
		plain := second[0][i*testChunk : min((i+1)*testChunk, len(second[0]))]
		if len(bytes.TrimLeft(plain, "\x00")) > 0 {
			s.flip(s.find(s.keys.ID(plain)))
			break
		}
	}
	if text, err := r.run("--point", string(two), "--out", out); err == nil || !strings.Contains(text, "damaged") {
		t.Errorf("a damaged chunk was restored: %v\n%s", err, text)
	}
}
