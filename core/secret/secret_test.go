package secret

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

func TestSealIsBoundToKeyAndPurpose(t *testing.T) {
	k := NewKey()
	sealed, err := k.Seal("endpoint/1", []byte("password"))
	if err != nil {
		t.Fatal(err)
	}
	if plain, err := k.Open("endpoint/1", sealed); err != nil || string(plain) != "password" {
		t.Fatalf("open: %q, %v", plain, err)
	}
	if _, err := k.Open("endpoint/2", sealed); !errors.Is(err, ErrSealed) {
		t.Errorf("another purpose: %v", err)
	}
	if _, err := NewKey().Open("endpoint/1", sealed); !errors.Is(err, ErrOtherKey) {
		t.Errorf("another key: %v", err)
	}
	again, _ := k.Seal("endpoint/1", []byte("password"))
	if bytes.Equal(again, sealed) {
		t.Error("sealing twice gives the same text")
	}
	for i := range sealed {
		damaged := bytes.Clone(sealed)
		damaged[i] ^= 1
		if _, err := k.Open("endpoint/1", damaged); err == nil {
			t.Fatalf("a flipped bit in byte %d goes unnoticed", i)
		}
	}
	if _, err := k.Open("endpoint/1", sealed[:len(sealed)-1]); err == nil {
		t.Error("a cut text opens")
	}
	if _, err := k.Seal("x", make([]byte, MaxPlain+1)); err == nil {
		t.Error("too much was sealed")
	}
}

// What was sealed by a released version opens for ever.
func TestGoldenSealedText(t *testing.T) {
	var raw [keySize]byte
	for i := range raw {
		raw[i] = byte(i)
	}
	k := newKey(raw)
	const golden = "01acb3588a6b11fffa2717b05fcd77b9ec0c339bbb95eb76a0c7dbea45b9f4b7bd5cadd2825dce5fe22f011f20539b4b3c6702406a5987a05269316465291e9d50"
	sealed, err := hex.DecodeString(golden)
	if err != nil {
		t.Fatal(err)
	}
	if plain, err := k.Open("golden", sealed); err != nil || string(plain) != "Holdfast" {
		t.Errorf("open: %q, %v", plain, err)
	}
}

func TestAKeyIsNeverPrinted(t *testing.T) {
	k := NewKey()
	text := fmt.Sprintf("%v %+v %#v %s", k, k, k, k)
	if want := strings.TrimSpace(strings.Repeat(k.String()+" ", 4)); text != want {
		t.Errorf("printed as %q, want %q", text, want)
	}
}

func TestFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "master.key")
	first, created, err := Open("file:" + path)
	if err != nil || !created {
		t.Fatalf("first open: created %v, %v", created, err)
	}
	if info, _ := os.Stat(path); info.Mode().Perm() != 0o600 {
		t.Errorf("mode %o", info.Mode().Perm())
	}
	if again, created, err := Open("file://" + path); err != nil || created || again.ID() != first.ID() {
		t.Errorf("second open: %v, created %v, %v", again, created, err)
	}
	if err := os.Chmod(path, 0o640); err != nil {
		t.Fatal(err)
	}
	if _, _, err := Open("file:" + path); err == nil || !strings.Contains(err.Error(), "chmod 600") {
		t.Errorf("readable by others: %v", err)
	}
	for name, text := range map[string]string{"empty": "", "short": "AAAA\n", "comment": fileHeader} {
		path := filepath.Join(t.TempDir(), name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, _, err := Open("file:" + path); err == nil {
			t.Errorf("%s: a key was found", name)
		}
		if got, _ := os.ReadFile(path); string(got) != text {
			t.Errorf("%s: the file was changed", name)
		}
	}
	if _, _, err := Open("awskms://x"); err == nil {
		t.Error("an unknown URL was accepted")
	}
}

func TestManyProcessesCreateOneKey(t *testing.T) {
	dir := t.TempDir()
	ids := make([]string, 8)
	var all sync.WaitGroup
	for i := range ids {
		all.Go(func() {
			if k, _, err := Open("file:" + filepath.Join(dir, "k")); err != nil {
				t.Error(err)
			} else {
				ids[i] = k.ID()
			}
		})
	}
	all.Wait()
	for _, id := range ids {
		if id != ids[0] {
			t.Fatalf("several keys: %v", ids)
		}
	}
	if left, _ := os.ReadDir(dir); len(left) != 1 {
		t.Errorf("files left: %v", left)
	}
}

func FuzzOpen(f *testing.F) {
	k := NewKey()
	sealed, _ := k.Seal("p", []byte("x"))
	f.Add(sealed)
	f.Add([]byte{version})
	f.Fuzz(func(t *testing.T, b []byte) {
		if _, err := k.Open("p", b); err == nil && !bytes.Equal(b, sealed) {
			t.Error("something that was never sealed opens")
		}
	})
}
