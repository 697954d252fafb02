package chunk

import (
	"encoding/hex"
	"fmt"
)

// Size is the bytes of plaintext in a whole chunk; the last chunk of a disk may
// be shorter. Four times the usual 64 KiB granule of change tracking: smaller
// costs more ids and requests, larger reads and sends more per scattered
// change (core/mover/DESIGN.md has the figures).
const Size = 256 << 10

// MaxSize bounds the plaintext length that a decoder accepts.
const MaxSize = 1 << 20

// ID names the content of a chunk or of a page. The zero ID stands for content
// that is all zeroes; such content is never stored.
type ID [32]byte

// IsZero reports whether id is the zero ID.
func (id ID) IsZero() bool { return id == ID{} }

// String is the id in lower-case hexadecimal.
func (id ID) String() string { return hex.EncodeToString(id[:]) }

// MarshalText encodes the id in hexadecimal.
func (id ID) MarshalText() ([]byte, error) { return []byte(id.String()), nil }

// UnmarshalText decodes what MarshalText wrote.
func (id *ID) UnmarshalText(text []byte) error {
	parsed, err := ParseID(string(text))
	if err != nil {
		return err
	}
	*id = parsed
	return nil
}

// ParseID decodes 64 hexadecimal digits.
func ParseID(s string) (ID, error) {
	var id ID
	if len(s) != hex.EncodedLen(len(id)) {
		return ID{}, fmt.Errorf("parse id %.80q: want %d hexadecimal digits", s, hex.EncodedLen(len(id)))
	}
	if _, err := hex.Decode(id[:], []byte(s)); err != nil {
		return ID{}, fmt.Errorf("parse id %q: %w", s, err)
	}
	return id, nil
}

// Kind tells chunks of data from pages of a map. Each kind is a namespace of
// its own: ids of different kinds are never compared.
type Kind uint8

// The kinds of record.
const (
	KindData Kind = 1 // sealed; ID is keyed BLAKE3 of the plaintext
	KindPage Kind = 2 // plain; ID is BLAKE3 of the page
)

// SessionID names the session that first brought a record to a repository.
type SessionID [16]byte
