package agent

import (
	"bytes"
	"errors"
	"testing"
	"time"

	"filippo.io/age"

	"github.com/holdfast-dr/holdfast/core/chunk"
)

func newKit(t *testing.T) (Kit, *chunk.Keyring) {
	t.Helper()
	identity, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	keys := chunk.NewKeyring()
	wrap, err := keys.Wrap(identity.Recipient())
	if err != nil {
		t.Fatal(err)
	}
	return Kit{Tenant: "Acme & Söhne", Address: "backup.example:6180", CA: "SHA256:abc", Fingerprint: keys.Fingerprint(),
		Created: time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC), Identity: identity, Wrap: wrap}, keys
}

func TestKitAloneOpensTheKeyring(t *testing.T) {
	kit, keys := newKit(t)
	for _, passphrase := range []string{"", "correct horse"} {
		text, err := kit.Encode(passphrase)
		if err != nil {
			t.Fatal(err)
		}
		if passphrase != "" && bytes.Contains(text, []byte("AGE-SECRET-KEY")) {
			t.Error("an encrypted kit shows its identity")
		}
		read, err := DecodeKit(text, passphrase)
		if err != nil {
			t.Fatalf("passphrase %q: %v", passphrase, err)
		}
		opened, err := read.Open()
		if err != nil {
			t.Fatal(err)
		}
		if !opened.Equal(keys) {
			t.Error("the kit opens another keyring")
		}
		if read.Tenant != kit.Tenant || read.Address != kit.Address || read.CA != kit.CA || !read.Created.Equal(kit.Created) {
			t.Errorf("kit read back as %+v", read)
		}
	}
}

func TestEncryptedKitNeedsItsPassphrase(t *testing.T) {
	kit, _ := newKit(t)
	text, err := kit.Encode("right")
	if err != nil {
		t.Fatal(err)
	}
	for _, passphrase := range []string{"", "wrong"} {
		if _, err := DecodeKit(text, passphrase); !errors.Is(err, ErrKitPassphrase) {
			t.Errorf("passphrase %q: %v, want ErrKitPassphrase", passphrase, err)
		}
	}
}

// Somebody who knows the kit's public recipient can wrap a keyring of his own
// choosing; backups sealed with it would be his to read.
func TestKitRefusesAForeignKeyring(t *testing.T) {
	kit, _ := newKit(t)
	foreign, err := chunk.NewKeyring().Wrap(kit.Identity.Recipient())
	if err != nil {
		t.Fatal(err)
	}
	good := kit.Wrap
	kit.Wrap = foreign
	if _, err := kit.Open(); !errors.Is(err, chunk.ErrForeignKeyring) {
		t.Errorf("open a foreign keyring: %v, want ErrForeignKeyring", err)
	}
	if _, err := kit.Open(foreign, good); err != nil {
		t.Errorf("the provider's good copy did not help: %v", err)
	}
}

func TestEveryCutKitIsRefused(t *testing.T) {
	kit, _ := newKit(t)
	text, err := kit.Encode("")
	if err != nil {
		t.Fatal(err)
	}
	for n := 0; n < len(text)-1; n += 7 {
		if _, err := DecodeKit(text[:n], ""); err == nil {
			t.Fatalf("a kit cut to %d of %d bytes was accepted", n, len(text))
		}
	}
}

func FuzzDecodeKit(f *testing.F) {
	f.Add([]byte(kitHead+"\n"+wrapHead+"\n"+wrapTail), "")
	f.Add([]byte("-----BEGIN AGE ENCRYPTED FILE-----\n"), "")
	f.Fuzz(func(t *testing.T, b []byte, passphrase string) {
		if bytes.Contains(b, []byte("AGE ENCRYPTED")) {
			passphrase = "" // scrypt is too slow to fuzz
		}
		if kit, err := DecodeKit(b, passphrase); err == nil && kit.Identity == nil {
			t.Error("accepted without an identity")
		}
	})
}
