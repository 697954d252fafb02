package chunk_test

import (
	"errors"
	"strings"
	"testing"

	"filippo.io/age"
	"pgregory.net/rapid"

	"github.com/holdfast-dr/holdfast/core/chunk"
)

// rotated is a keyring with n data keys.
func rotated(n int) *chunk.Keyring {
	k := chunk.NewKeyring()
	for range n - 1 {
		k = k.Rotated()
	}
	return k
}

func TestRotationKeepsIdsAndOldChunks(t *testing.T) {
	first := chunk.NewKeyring()
	plain := text(9000)
	old := parse(t, record(t, first, first.ID(plain), plain))
	next := first.Rotated()
	if next.ID(plain) != first.ID(plain) || next.Fingerprint() != first.Fingerprint() {
		t.Error("rotation changes ids or the fingerprint")
	}
	if next.KeyNumber() != 2 || first.KeyNumber() != 1 || next.Equal(first) {
		t.Errorf("key numbers %d and %d", next.KeyNumber(), first.KeyNumber())
	}
	if _, err := next.NewOpener().Open(nil, old); err != nil {
		t.Errorf("an old chunk under the rotated ring: %v", err)
	}
	fresh := parse(t, record(t, next, next.ID(plain), plain))
	if fresh.KeyNumber != 2 {
		t.Errorf("sealed by key %d", fresh.KeyNumber)
	}
	if _, err := first.NewOpener().Open(nil, fresh); err == nil || errors.Is(err, chunk.ErrDamaged) {
		t.Errorf("a ring without the key = %v, want an error that does not call the data damaged", err)
	}
}

func TestForeignKeyringOpensNothing(t *testing.T) {
	mine, theirs := chunk.NewKeyring(), chunk.NewKeyring()
	plain := text(9000)
	r := parse(t, record(t, mine, mine.ID(plain), plain))
	if _, err := theirs.NewOpener().Open(nil, r); !errors.Is(err, chunk.ErrDamaged) {
		t.Errorf("Open = %v", err)
	}
	if mine.ID(plain) == theirs.ID(plain) || mine.Fingerprint() == theirs.Fingerprint() {
		t.Error("two keyrings agree on an id or a fingerprint")
	}
	mac := mine.MAC(plain)
	if !mine.CheckMAC(plain, mac[:]) || theirs.CheckMAC(plain, mac[:]) || mine.CheckMAC(plain[1:], mac[:]) || mine.CheckMAC(plain, nil) {
		t.Error("a MAC is accepted by the wrong ring, for the wrong message, or not at all")
	}
}

func TestKeyringSurvivesItsEncoding(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		k := rotated(rapid.IntRange(1, 5).Draw(t, "keys"))
		b, err := k.Marshal()
		if err != nil {
			t.Fatal(err)
		}
		again, err := chunk.UnmarshalKeyring(b)
		if err != nil || !again.Equal(k) || again.KeyNumber() != k.KeyNumber() {
			t.Fatalf("UnmarshalKeyring: %v", err)
		}
	})
}

func TestBrokenKeyringIsRefusedWithoutQuotingIt(t *testing.T) {
	b, err := rotated(2).Marshal()
	if err != nil {
		t.Fatal(err)
	}
	sound := string(b)
	for name, broken := range map[string]string{
		"cut":         sound[:len(sound)/2],
		"format":      strings.Replace(sound, `"format":1`, `"format":9`, 1),
		"twice":       strings.Replace(sound, `"number":2`, `"number":1`, 1),
		"number zero": strings.Replace(sound, `"number":2`, `"number":0`, 1),
		"short key":   strings.Replace(sound, `"mac":"`, `"mac":"AA==","was":"`, 1),
		"no keys":     sound[:strings.Index(sound, `"data"`)] + `"data":[]}`,
		"empty":       "",
	} {
		_, err := chunk.UnmarshalKeyring([]byte(broken))
		if err == nil {
			t.Errorf("%s: accepted", name)
		} else if len(err.Error()) > 100 {
			t.Errorf("%s: the error may hold a key: %v", name, err)
		}
	}
}

func TestFingerprintReadsBack(t *testing.T) {
	f := chunk.NewKeyring().Fingerprint()
	for _, s := range []string{f.String(), strings.ReplaceAll(f.String(), "-", "")} {
		if got, err := chunk.ParseFingerprint(s); err != nil || got != f {
			t.Errorf("ParseFingerprint(%q) = %v, %v", s, got, err)
		}
	}
	for _, bad := range []string{"", "12", f.String() + "00", strings.Replace(f.String(), f.String()[:1], "x", 1)} {
		if _, err := chunk.ParseFingerprint(bad); err == nil {
			t.Errorf("ParseFingerprint(%q) succeeds", bad)
		}
	}
	id := chunk.NewKeyring().ID([]byte("x"))
	if got, err := chunk.ParseID(id.String()); err != nil || got != id {
		t.Errorf("ParseID = %v, %v", got, err)
	}
}

func TestWrapOpensForItsRecipientsAlone(t *testing.T) {
	k := rotated(3)
	mine, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	other, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	wrap, err := k.Wrap(mine.Recipient())
	if err != nil {
		t.Fatal(err)
	}
	if f, err := chunk.CheckWrap(wrap); err != nil || f != k.Fingerprint() {
		t.Errorf("CheckWrap = %v, %v", f, err)
	}
	got, err := chunk.Unwrap(wrap, k.Fingerprint(), other, mine)
	if err != nil || !got.Equal(k) {
		t.Fatalf("Unwrap: %v", err)
	}
	if _, err := chunk.Unwrap(wrap, k.Fingerprint(), other); err == nil {
		t.Error("another identity opens the wrap")
	}
	for i := range wrap {
		b := append([]byte(nil), wrap...)
		b[i] ^= 1
		if _, err := chunk.CheckWrap(b); err == nil {
			t.Errorf("byte %d flipped: not found", i)
		}
	}
}

func TestPassphraseWraps(t *testing.T) {
	k := chunk.NewKeyring()
	recipient, err := age.NewScryptRecipient("correct horse battery staple")
	if err != nil {
		t.Fatal(err)
	}
	recipient.SetWorkFactor(10)
	wrap, err := k.Wrap(recipient)
	if err != nil {
		t.Fatal(err)
	}
	identity, err := age.NewScryptIdentity("correct horse battery staple")
	if err != nil {
		t.Fatal(err)
	}
	if got, err := chunk.Unwrap(wrap, k.Fingerprint(), identity); err != nil || !got.Equal(k) {
		t.Errorf("Unwrap: %v", err)
	}
}

// TestPlantedKeyringIsRefused: anyone who knows a public recipient can wrap
// keys of his own choosing for it.
func TestPlantedKeyringIsRefused(t *testing.T) {
	mine, planted := chunk.NewKeyring(), chunk.NewKeyring()
	identity, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	wrap, err := planted.Wrap(identity.Recipient())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := chunk.Unwrap(wrap, mine.Fingerprint(), identity); !errors.Is(err, chunk.ErrForeignKeyring) {
		t.Errorf("Unwrap = %v, want %v", err, chunk.ErrForeignKeyring)
	}
}
