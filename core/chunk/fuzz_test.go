package chunk_test

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

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
