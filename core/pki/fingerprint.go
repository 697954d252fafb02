package pki

import (
	"crypto/sha256"
	"crypto/subtle"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"strings"
)

// Fingerprint is the SHA-256 of a public key (SubjectPublicKeyInfo). It names
// the key, so it survives every renewal of a certificate for it.
type Fingerprint [sha256.Size]byte

// fingerprintPrefix names the hash, as ssh does.
const fingerprintPrefix = "SHA256:"

// FingerprintOf is the fingerprint of a certificate's key.
func FingerprintOf(c *x509.Certificate) Fingerprint {
	return sha256.Sum256(c.RawSubjectPublicKeyInfo)
}

// String is SHA256: and pairs of hexadecimal digits between colons: a form that
// people compare group by group.
func (f Fingerprint) String() string {
	var s strings.Builder
	s.WriteString(fingerprintPrefix)
	for i, b := range f {
		if i > 0 {
			s.WriteByte(':')
		}
		fmt.Fprintf(&s, "%02X", b)
	}
	return s.String()
}

// Equal compares in constant time.
func (f Fingerprint) Equal(g Fingerprint) bool { return subtle.ConstantTimeCompare(f[:], g[:]) == 1 }

// IsZero says whether f is no fingerprint.
func (f Fingerprint) IsZero() bool { return f == Fingerprint{} }

// ParseFingerprint reads what people type and paste: hexadecimal with or without
// colons, spaces and case, or base64, each with or without the prefix.
func ParseFingerprint(text string) (Fingerprint, error) {
	body := strings.TrimSpace(text)
	if len(body) > 256 {
		return Fingerprint{}, fmt.Errorf("parse fingerprint: too long")
	}
	if n := len(fingerprintPrefix); len(body) > n && strings.EqualFold(body[:n], fingerprintPrefix) {
		body = body[n:]
	}
	digits := strings.NewReplacer(":", "", "-", "", " ", "").Replace(body)
	if raw, err := hex.DecodeString(digits); err == nil && len(raw) == sha256.Size {
		return Fingerprint(raw), nil
	}
	raw, err := base64.RawStdEncoding.Strict().DecodeString(strings.TrimRight(strings.TrimSpace(body), "="))
	if err != nil || len(raw) != sha256.Size {
		return Fingerprint{}, fmt.Errorf("parse fingerprint %q: want SHA256: and 64 hexadecimal digits", text)
	}
	return Fingerprint(raw), nil
}
