package pki

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"errors"
	"fmt"
	"time"
)

func fingerprintOfSPKI(spki []byte) Fingerprint { return sha256.Sum256(spki) }

// Trust is how a client knows the provider: by the fingerprint of its CA, by a
// CA that the system trusts, or either.
type Trust struct {
	Pins   []Fingerprint // of the CA; a second one while the CA is being replaced
	System bool          // also accept what the system's roots vouch for, by name
	Roots  *x509.CertPool
}

// UntrustedError refuses a provider whose certificate is not what was expected.
type UntrustedError struct {
	Presented Fingerprint // of the last certificate of the chain: the CA, when the provider sends it
	Pinned    bool
	Err       error
}

// Error shows the fingerprint that was presented, so that people can compare.
func (e *UntrustedError) Error() string {
	if e.Pinned {
		return fmt.Sprintf("provider presented the key %s, which is not the one that was agreed on: %v", e.Presented, e.Err)
	}
	return fmt.Sprintf("provider's certificate is not trusted (its key is %s): %v", e.Presented, e.Err)
}

// Unwrap is the finding of the verification.
func (e *UntrustedError) Unwrap() error { return e.Err }

// Hint says what is safe to do.
func (e *UntrustedError) Hint() string {
	return "nothing was sent; ask the provider for the fingerprint of its CA over another channel and compare"
}

// ClientConfig makes a TLS 1.3 configuration that knows the provider by t.
// serverName is the host that was dialled; identity is the client's own
// certificate, or nil. The check runs in the handshake, before anything is sent,
// and also when a session is resumed.
func (t Trust) ClientConfig(serverName string, identity func() (*tls.Certificate, error)) *tls.Config {
	config := &tls.Config{
		MinVersion: tls.VersionTLS13,
		ServerName: serverName,
		// The standard verification knows no pins; VerifyConnection replaces it whole.
		InsecureSkipVerify: true, //nolint:gosec // G402: VerifyConnection below verifies every handshake, resumed ones too
		VerifyConnection:   func(state tls.ConnectionState) error { return t.VerifyProvider(state, serverName, time.Now()) },
	}
	for _, pin := range t.Pins {
		config.NextProtos = append(config.NextProtos, pin.protocol())
	}
	config.NextProtos = append(config.NextProtos, protocol)
	if identity != nil {
		config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return identity() }
	}
	return config
}

// protocol is what is spoken over TLS. The names that begin with pinProtocol
// are offered beside it and never chosen: with them a client says which CA it
// pinned, so that a server with several certificates presents the right one.
const (
	protocol    = "http/1.1"
	pinProtocol = "holdfast-pin-"
)

// protocol is how a client says that it pinned this fingerprint. A part of it
// is enough to choose by.
func (f Fingerprint) protocol() string { return pinProtocol + hex.EncodeToString(f[:8]) }

// VerifyProvider checks the certificates that a server presented. With pins, the
// chain must lead to a CA in it whose key is pinned, and the leaf must carry the
// name that was dialled or ProviderName. A leaf whose own key is pinned is
// accepted as well: that is how a self-signed certificate is pinned.
func (t Trust) VerifyProvider(state tls.ConnectionState, serverName string, now time.Time) error {
	chain := state.PeerCertificates
	if len(chain) == 0 {
		return &UntrustedError{Err: errors.New("it presented none"), Pinned: len(t.Pins) > 0}
	}
	presented := FingerprintOf(chain[len(chain)-1])
	err := errors.New("no fingerprint is known and the system's roots are not trusted")
	if len(t.Pins) > 0 {
		if err = t.verifyPin(chain, serverName, now); err == nil {
			return nil
		}
	}
	if t.System {
		if err = verifyChain(chain, t.Roots, now, serverName); err == nil {
			return nil
		}
	}
	return &UntrustedError{Presented: presented, Pinned: len(t.Pins) > 0, Err: err}
}

func (t Trust) verifyPin(chain []*x509.Certificate, serverName string, now time.Time) error {
	last := errors.New("no certificate of the chain has that key")
	for i, c := range chain {
		if !t.pinned(FingerprintOf(c)) {
			continue
		}
		if i == 0 {
			if last = verifyPinnedLeaf(c, now); last == nil {
				return nil
			}
			continue
		}
		// A copied public key in a made-up certificate gains nothing: the leaf has to
		// be signed by that key, under a name that its owner vouches for.
		if !c.IsCA {
			last = errors.New("the pinned key is not that of a CA")
			continue
		}
		roots := x509.NewCertPool()
		roots.AddCert(c)
		if last = verifyChain(chain, roots, now, serverName); last == nil {
			return nil
		}
		if verifyChain(chain, roots, now, ProviderName) == nil {
			return nil
		}
	}
	return last
}

func (t Trust) pinned(f Fingerprint) bool {
	for _, pin := range t.Pins {
		if pin.Equal(f) && !pin.IsZero() {
			return true
		}
	}
	return false
}

// verifyPinnedLeaf checks what the pin does not say. The handshake has proved
// that the server has the key.
func verifyPinnedLeaf(c *x509.Certificate, now time.Time) error {
	if now.Before(c.NotBefore) || now.After(c.NotAfter) {
		return x509.CertificateInvalidError{Cert: c, Reason: x509.Expired}
	}
	return nil
}

// verifyChain is the standard verification; nil roots are the system's.
func verifyChain(chain []*x509.Certificate, roots *x509.CertPool, now time.Time, name string) error {
	between := x509.NewCertPool()
	for _, c := range chain[1:] {
		between.AddCert(c)
	}
	_, err := chain[0].Verify(x509.VerifyOptions{Roots: roots, Intermediates: between, DNSName: name, CurrentTime: now,
		KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}})
	return err
}

// NewAgentKey makes the key that an agent keeps for its life.
func NewAgentKey() (*ecdsa.PrivateKey, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make agent key: %w", err)
	}
	return key, nil
}

// NewRequest makes the certificate request (DER) for an agent's key.
func NewRequest(key *ecdsa.PrivateKey) ([]byte, error) {
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: "Holdfast agent"}}, key)
	if err != nil {
		return nil, fmt.Errorf("make certificate request: %w", err)
	}
	return der, nil
}
