package secret

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
)

const (
	keySize  = 32
	idSize   = 8
	saltSize = 32
	version  = 1
	// headerSize is the version byte, the key's id and the salt.
	headerSize = 1 + idSize + saltSize
	tagSize    = 16

	// MaxPlain bounds what is sealed in one text: settings and keys, not data.
	MaxPlain = 16 << 20
)

// The refusals.
var (
	// ErrOtherKey: it was sealed by another master key.
	ErrOtherKey = errors.New("sealed by another master key")
	// ErrSealed: damaged, or sealed for another purpose.
	ErrSealed = errors.New("sealed text does not open")
)

// Key is a master key. It is safe for concurrent use and never printed.
type Key struct {
	key [keySize]byte
	id  [idSize]byte
}

// NewKey makes a random key that lives as long as the process.
func NewKey() *Key {
	var raw [keySize]byte
	rand.Read(raw[:])
	return newKey(raw)
}

func newKey(raw [keySize]byte) *Key {
	sum, err := hkdf.Key(sha256.New, raw[:], nil, "holdfast master key id", idSize)
	if err != nil {
		panic(err) // the lengths are constants
	}
	return &Key{key: raw, id: [idSize]byte(sum)}
}

// ID names the key without telling anything about it.
func (k *Key) ID() string { return hex.EncodeToString(k.id[:]) }

// String is the key's id, so that a key in a log line gives nothing away.
func (k *Key) String() string { return "master key " + k.ID() }

// GoString is String, for the same reason.
func (k *Key) GoString() string { return k.String() }

// Seal encrypts plain for a purpose.
//
// Each text has a key and a nonce of its own, derived from the master key and
// 256 random bits, so there is no number of texts after which nonces repeat.
func (k *Key) Seal(purpose string, plain []byte) ([]byte, error) {
	if len(plain) > MaxPlain {
		return nil, fmt.Errorf("seal %s: %d bytes are more than %d", purpose, len(plain), MaxPlain)
	}
	header := make([]byte, headerSize, headerSize+len(plain)+tagSize)
	header[0] = version
	copy(header[1:], k.id[:])
	rand.Read(header[1+idSize:])
	aead, nonce, err := k.derive(purpose, header)
	if err != nil {
		return nil, fmt.Errorf("seal %s: %w", purpose, err)
	}
	return aead.Seal(header, nonce, plain, header), nil
}

// Open decrypts what Seal made for the same purpose.
func (k *Key) Open(purpose string, sealed []byte) ([]byte, error) {
	if len(sealed) < headerSize+tagSize || len(sealed) > headerSize+MaxPlain+tagSize || sealed[0] != version {
		return nil, fmt.Errorf("open %s: %w", purpose, ErrSealed)
	}
	if !bytes.Equal(sealed[1:1+idSize], k.id[:]) {
		return nil, fmt.Errorf("open %s: %w: it needs key %x, this is %s", purpose, ErrOtherKey, sealed[1:1+idSize], k.ID())
	}
	header := sealed[:headerSize:headerSize]
	aead, nonce, err := k.derive(purpose, header)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", purpose, err)
	}
	plain, err := aead.Open(nil, nonce, sealed[headerSize:], header)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", purpose, ErrSealed)
	}
	return plain, nil
}

// derive makes the cipher of one text: salt and purpose go into the key, the
// header is authenticated besides.
func (k *Key) derive(purpose string, header []byte) (cipher.AEAD, []byte, error) {
	const nonceSize = 12
	salt := header[1+idSize : headerSize]
	okm, err := hkdf.Key(sha256.New, k.key[:], salt, "holdfast seal 1\x00"+purpose, keySize+nonceSize)
	if err != nil {
		return nil, nil, err
	}
	block, err := aes.NewCipher(okm[:keySize])
	if err != nil {
		return nil, nil, err
	}
	aead, err := cipher.NewGCM(block)
	return aead, okm[keySize:], err
}
