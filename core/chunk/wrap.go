package chunk

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"

	"filippo.io/age"
)

// MaxWrap bounds the size of a wrapped keyring, in bytes.
const MaxWrap = 1 << 20

var wrapMagic = [4]byte{'H', 'F', 'k', 'r'}

const wrapHeader = 4 + 4 + 16 + 4

// ErrForeignKeyring means that a wrap opened, but to another keyring than the
// one that was expected: anyone who knows a public recipient can make such a
// wrap, and its keys must not be used.
var ErrForeignKeyring = errors.New("wrap holds another keyring")

// Wrap encrypts the keyring to age recipients (a passphrase recipient must be
// alone). Layout: magic "HFkr", format 1 and three zero bytes, the keyring's
// fingerprint (16), CRC-32C of all other bytes (4), then an age file.
func (k *Keyring) Wrap(recipients ...age.Recipient) ([]byte, error) {
	secret, err := k.Marshal()
	if err != nil {
		return nil, err
	}
	var out bytes.Buffer
	out.Write(wrapMagic[:])
	out.Write([]byte{Format, 0, 0, 0})
	fingerprint := k.Fingerprint()
	out.Write(fingerprint[:])
	out.Write(make([]byte, 4))
	w, err := age.Encrypt(&out, recipients...)
	if err != nil {
		return nil, fmt.Errorf("wrap keyring: %w", err)
	}
	if _, err := w.Write(secret); err != nil {
		return nil, fmt.Errorf("wrap keyring: %w", err)
	}
	if err := w.Close(); err != nil {
		return nil, fmt.Errorf("wrap keyring: %w", err)
	}
	wrap := out.Bytes()
	binary.LittleEndian.PutUint32(wrap[wrapHeader-4:], wrapSum(wrap))
	return wrap, nil
}

func wrapSum(wrap []byte) uint32 {
	sum := crc32.Update(0, castagnoli, wrap[:wrapHeader-4])
	return crc32.Update(sum, castagnoli, wrap[wrapHeader:])
}

// CheckWrap verifies a wrap's form and checksum, without keys, and returns the
// fingerprint that it claims.
func CheckWrap(wrap []byte) (Fingerprint, error) {
	switch {
	case len(wrap) <= wrapHeader || len(wrap) > MaxWrap:
		return Fingerprint{}, fmt.Errorf("keyring wrap of %d bytes: %w", len(wrap), ErrDamaged)
	case [4]byte(wrap[:4]) != wrapMagic || [3]byte(wrap[5:8]) != [3]byte{}:
		return Fingerprint{}, fmt.Errorf("keyring wrap without its magic: %w", ErrDamaged)
	case wrap[4] != Format:
		return Fingerprint{}, UnknownFormat("keyring wrap", wrap[4])
	case binary.LittleEndian.Uint32(wrap[wrapHeader-4:]) != wrapSum(wrap):
		return Fingerprint{}, fmt.Errorf("keyring wrap fails its checksum: %w", ErrDamaged)
	}
	return Fingerprint(wrap[8:24]), nil
}

// Unwrap opens a wrap with any of the identities. A keyring whose fingerprint
// is not want is refused with ErrForeignKeyring.
func Unwrap(wrap []byte, want Fingerprint, identities ...age.Identity) (*Keyring, error) {
	if _, err := CheckWrap(wrap); err != nil {
		return nil, err
	}
	r, err := age.Decrypt(bytes.NewReader(wrap[wrapHeader:]), identities...)
	if err != nil {
		return nil, fmt.Errorf("unwrap keyring: %w", err)
	}
	secret, err := io.ReadAll(io.LimitReader(r, MaxWrap))
	if err != nil {
		return nil, fmt.Errorf("unwrap keyring: %w", err)
	}
	k, err := UnmarshalKeyring(secret)
	if err != nil {
		return nil, err
	}
	if got := k.Fingerprint(); got != want {
		return nil, fmt.Errorf("unwrap keyring: have %s, expected %s: %w", got, want, ErrForeignKeyring)
	}
	return k, nil
}
