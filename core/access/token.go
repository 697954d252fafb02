package access

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"strings"
)

// The prefixes by which people and secret scanners recognise a token.
const (
	tokenPrefix     = "hf_"
	enrolmentPrefix = "hfe_"
)

// secretSize is 256 bits: nobody guesses one, so a plain SHA-256 at rest is
// enough and keeps the check of each request cheap.
const secretSize = 32

// Hash is a SHA-256: of a token's text, or of a public key.
type Hash [sha256.Size]byte

// String is the hash in hexadecimal.
func (h Hash) String() string { return hex.EncodeToString(h[:]) }

// IsZero says whether h is no hash.
func (h Hash) IsZero() bool { return h == Hash{} }

// ParseHash reads what String wrote; the empty text is the zero Hash.
func ParseHash(s string) (Hash, error) {
	var h Hash
	if s == "" {
		return h, nil
	}
	if len(s) != 2*len(h) {
		return h, fmt.Errorf("parse hash: %d characters, want %d", len(s), 2*len(h))
	}
	if _, err := hex.Decode(h[:], []byte(s)); err != nil {
		return Hash{}, fmt.Errorf("parse hash: %w", err)
	}
	return h, nil
}

// NewToken makes a bearer token. The text is shown once and never stored.
func NewToken() (text string, h Hash) { return newSecret(tokenPrefix) }

// NewEnrolmentToken makes a one-time token for an agent.
func NewEnrolmentToken() (text string, h Hash) { return newSecret(enrolmentPrefix) }

// HashToken is the hash of a bearer token, if the text can be one.
func HashToken(text string) (Hash, error) { return hashSecret(tokenPrefix, text, ErrCredentials) }

// HashEnrolmentToken is the hash of a one-time token, if the text can be one.
func HashEnrolmentToken(text string) (Hash, error) {
	return hashSecret(enrolmentPrefix, text, ErrEnrolment)
}

func newSecret(prefix string) (string, Hash) {
	var b [secretSize]byte
	rand.Read(b[:]) // never fails
	text := prefix + base64.RawURLEncoding.EncodeToString(b[:])
	return text, sha256.Sum256([]byte(text))
}

func hashSecret(prefix, text string, refusal error) (Hash, error) {
	body, ok := strings.CutPrefix(text, prefix)
	if !ok || len(body) != base64.RawURLEncoding.EncodedLen(secretSize) {
		return Hash{}, refusal
	}
	if _, err := base64.RawURLEncoding.Strict().DecodeString(body); err != nil {
		return Hash{}, refusal
	}
	return sha256.Sum256([]byte(text)), nil
}
