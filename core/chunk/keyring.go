package chunk

import (
	"crypto/rand"
	"crypto/subtle"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/zeebo/blake3"
)

const keySize = 32

// Keyring is the secret of one trust circle: an id key that never rotates, a
// MAC key, and numbered data keys of which the highest seals. It stays with the
// tenant. A Keyring is not changed after it is made and may be shared between
// goroutines.
type Keyring struct {
	id   [keySize]byte
	mac  [keySize]byte
	data map[uint32][keySize]byte
	last uint32
}

// Fingerprint identifies a keyring without telling anything of it. It does not
// change when data keys are added.
type Fingerprint [16]byte

// String is the fingerprint in hexadecimal, in groups of four digits.
func (f Fingerprint) String() string {
	s := hex.EncodeToString(f[:])
	groups := make([]byte, 0, len(s)+len(s)/4)
	for i := 0; i < len(s); i += 4 {
		if i > 0 {
			groups = append(groups, '-')
		}
		groups = append(groups, s[i:i+4]...)
	}
	return string(groups)
}

// ParseFingerprint decodes what String writes, with or without the dashes.
func ParseFingerprint(s string) (Fingerprint, error) {
	digits := make([]byte, 0, len(s))
	for i := range len(s) {
		if s[i] != '-' {
			digits = append(digits, s[i])
		}
	}
	var f Fingerprint
	if len(digits) != hex.EncodedLen(len(f)) {
		return Fingerprint{}, fmt.Errorf("parse keyring fingerprint %.80q: want %d hexadecimal digits", s, hex.EncodedLen(len(f)))
	}
	if _, err := hex.Decode(f[:], digits); err != nil {
		return Fingerprint{}, fmt.Errorf("parse keyring fingerprint %q: %w", s, err)
	}
	return f, nil
}

// NewKeyring makes a keyring of random keys, with one data key.
func NewKeyring() *Keyring {
	k := &Keyring{data: map[uint32][keySize]byte{1: randomKey()}, last: 1}
	k.id, k.mac = randomKey(), randomKey()
	return k
}

func randomKey() (key [keySize]byte) {
	_, _ = rand.Read(key[:]) // crypto/rand.Read never fails
	return key
}

// Rotated is k with one more data key, which seals from now on.
func (k *Keyring) Rotated() *Keyring {
	next := &Keyring{id: k.id, mac: k.mac, data: maps.Clone(k.data), last: k.last + 1}
	next.data[next.last] = randomKey()
	return next
}

// ID names a plaintext.
func (k *Keyring) ID(plain []byte) ID {
	return k.NewHasher().ID(plain)
}

// Hasher computes ids. It belongs to one goroutine.
type Hasher struct {
	h *blake3.Hasher
}

// NewHasher returns a Hasher of the keyring.
func (k *Keyring) NewHasher() *Hasher {
	h, err := blake3.NewKeyed(k.id[:])
	if err != nil {
		panic(err) // only for a key of another length
	}
	return &Hasher{h: h}
}

// ID names a plaintext.
func (h *Hasher) ID(plain []byte) ID {
	h.h.Reset()
	_, _ = h.h.Write(plain) // a hash never fails
	var id ID
	h.h.Sum(id[:0])
	return id
}

// MAC authenticates a manifest.
func (k *Keyring) MAC(message []byte) [32]byte {
	h, err := blake3.NewKeyed(k.mac[:])
	if err != nil {
		panic(err) // only for a key of another length
	}
	_, _ = h.Write(message)
	var mac [32]byte
	h.Sum(mac[:0])
	return mac
}

// CheckMAC reports whether mac is MAC(message), in constant time.
func (k *Keyring) CheckMAC(message, mac []byte) bool {
	want := k.MAC(message)
	return subtle.ConstantTimeCompare(want[:], mac) == 1
}

// KeyNumber is the number of the data key that seals.
func (k *Keyring) KeyNumber() uint32 { return k.last }

// Fingerprint identifies the keyring.
func (k *Keyring) Fingerprint() Fingerprint {
	h := blake3.New()
	_, _ = h.Write([]byte("holdfast keyring 1"))
	_, _ = h.Write(k.id[:])
	_, _ = h.Write(k.mac[:])
	var f Fingerprint
	sum := h.Sum(nil)
	copy(f[:], sum)
	return f
}

type keyringJSON struct {
	Format int       `json:"format"`
	ID     []byte    `json:"id"`
	MAC    []byte    `json:"mac"`
	Data   []dataKey `json:"data"`
}

type dataKey struct {
	Number uint32 `json:"number"`
	Key    []byte `json:"key"`
}

// Marshal encodes the secret keys, to be wrapped at once and never stored bare.
func (k *Keyring) Marshal() ([]byte, error) {
	out := keyringJSON{Format: Format, ID: k.id[:], MAC: k.mac[:]}
	for _, n := range slices.Sorted(maps.Keys(k.data)) {
		key := k.data[n]
		out.Data = append(out.Data, dataKey{Number: n, Key: key[:]})
	}
	return json.Marshal(out)
}

// UnmarshalKeyring decodes what Marshal wrote.
func UnmarshalKeyring(b []byte) (*Keyring, error) {
	var in keyringJSON
	if err := json.Unmarshal(b, &in); err != nil {
		return nil, errors.New("decode keyring: not the JSON of a keyring") // err could quote a key
	}
	if in.Format != Format {
		return nil, fmt.Errorf("decode keyring: format %d, this program reads format %d", in.Format, Format)
	}
	if len(in.ID) != keySize || len(in.MAC) != keySize || len(in.Data) == 0 {
		return nil, errors.New("decode keyring: a key is missing or has another length")
	}
	k := &Keyring{id: [keySize]byte(in.ID), mac: [keySize]byte(in.MAC), data: make(map[uint32][keySize]byte, len(in.Data))}
	for _, d := range in.Data {
		if _, twice := k.data[d.Number]; twice || d.Number == 0 || len(d.Key) != keySize {
			return nil, fmt.Errorf("decode keyring: data key %d is repeated or has another length", d.Number)
		}
		k.data[d.Number] = [keySize]byte(d.Key)
		k.last = max(k.last, d.Number)
	}
	return k, nil
}

// Equal reports whether two keyrings hold the same keys.
func (k *Keyring) Equal(other *Keyring) bool {
	if other == nil || k.id != other.id || k.mac != other.mac {
		return false
	}
	return maps.Equal(k.data, other.data)
}
