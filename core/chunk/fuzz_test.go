package chunk_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"filippo.io/age"

	"github.com/holdfast-dr/holdfast/core/chunk"
)

func FuzzParseRecord(f *testing.F) {
	keys := chunk.NewKeyring()
	for _, plain := range [][]byte{[]byte("short"), bytes.Repeat([]byte("compressible "), 1000)} {
		record, err := keys.NewSealer(chunk.SessionID{1}).Append(nil, keys.ID(plain), plain)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(record)
		f.Add(record[:chunk.HeaderSize+3])
	}
	f.Add(chunk.AppendPage(nil, chunk.SessionID{2}, chunk.ID{3}, []byte("a page")))
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

func FuzzCheckWrap(f *testing.F) {
	wrap, err := os.ReadFile(filepath.Join("..", "repository", "testdata", "golden", "store", "0190a000-0000-7000-8000-000000000001", "keys", "kit"))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(wrap)
	f.Add(wrap[:28])
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

// FuzzOpen: whatever stands in a record, opening it gives the plaintext that its
// id names or an error. A record whose seal is right can still hold anything,
// for whoever has the keyring makes it: so the decompressor is tried behind the
// seal, too.
func FuzzOpen(f *testing.F) {
	keys := chunk.NewKeyring()
	plain := bytes.Repeat([]byte("compressible "), 100)
	record, err := keys.NewSealer(chunk.SessionID{1}).Append(nil, keys.ID(plain), plain)
	if err != nil {
		f.Fatal(err)
	}
	r, _, err := chunk.ParseRecord(record)
	if err != nil {
		f.Fatal(err)
	}
	packed, err := chunk.OpenBody(keys, r)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(packed, byte(chunk.CodecZstd), uint32(len(plain)), true)
	f.Add(plain, byte(chunk.CodecStored), uint32(len(plain)), true)
	f.Add(r.Body, byte(chunk.CodecZstd), uint32(len(plain)), false)
	f.Add(packed, byte(chunk.CodecZstd), uint32(1), true)
	f.Add([]byte{0x28, 0xb5, 0x2f, 0xfd, 0xe4, 0, 0, 0, 0x40, 0, 0, 0, 0}, byte(chunk.CodecZstd), uint32(chunk.MaxSize), true) // says 1 GiB
	opener := keys.NewOpener()
	f.Fuzz(func(t *testing.T, body []byte, codec byte, length uint32, sealed bool) {
		r := chunk.Record{Kind: chunk.KindData, Codec: chunk.Codec(codec), PlainLength: length, KeyNumber: 1, ID: keys.ID(plain), Body: body}
		if sealed {
			var err error
			if r.Body, err = chunk.SealBody(keys, r, body); err != nil {
				t.Fatal(err)
			}
		}
		before := []byte("before")
		got, err := opener.Open(before, r)
		if !bytes.HasPrefix(got, []byte("before")) {
			t.Fatal("what was there before is gone")
		}
		switch {
		case err == nil && !bytes.Equal(got[6:], plain):
			t.Fatalf("%d bytes under the id of others", len(got)-6)
		case err != nil && (len(got) != 6 || !errors.Is(err, chunk.ErrDamaged)):
			t.Fatalf("%d bytes beside %v", len(got)-6, err)
		}
	})
}

// FuzzUnwrap: a wrap comes from the provider. Whatever is in it, the keyring that
// comes out is the one that was asked for, and asking costs no more than usual.
func FuzzUnwrap(f *testing.F) {
	identity, err := age.GenerateX25519Identity()
	if err != nil {
		f.Fatal(err)
	}
	keys := chunk.NewKeyring()
	wrap, err := keys.Wrap(identity.Recipient())
	if err != nil {
		f.Fatal(err)
	}
	const head = 28
	f.Add(wrap[head:])
	f.Add(wrap[head : len(wrap)-1])
	f.Add([]byte("age-encryption.org/v1\n-> scrypt bBjlhJVYZeE4aqUdmtRHfw 50\nZV/AhotwSGqaPCU43cepl4WYUouAa17a3xpu4G2yi5k\n--- fgMiVLJHMlg9fW7CVG/hPS5EAU4Zeg19LyCP7SoH5nA\n"))
	passphrase, err := age.NewScryptIdentity("a passphrase")
	if err != nil {
		f.Fatal(err)
	}
	passphrase.SetMaxWorkFactor(1)
	f.Fuzz(func(t *testing.T, b []byte) {
		made := chunk.FrameWrap(keys.Fingerprint(), b)
		for _, i := range []age.Identity{identity, passphrase} {
			got, err := chunk.Unwrap(made, keys.Fingerprint(), i)
			if err == nil && !got.Equal(keys) {
				t.Fatal("another keyring came out")
			}
		}
	})
}

// FuzzWords: ids and fingerprints come as text, too.
func FuzzWords(f *testing.F) {
	keys := chunk.NewKeyring()
	f.Add(keys.Fingerprint().String())
	f.Add(keys.ID([]byte("x")).String())
	f.Add("00-00")
	f.Fuzz(func(t *testing.T, s string) {
		if print, err := chunk.ParseFingerprint(s); err == nil {
			if again, err := chunk.ParseFingerprint(print.String()); err != nil || again != print {
				t.Errorf("fingerprint %q is %s", s, print)
			}
		}
		if id, err := chunk.ParseID(s); err == nil && id.String() != strings.ToLower(s) {
			t.Errorf("id %q is %s", s, id)
		}
	})
}
