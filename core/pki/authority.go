package pki

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/url"
	"strings"
	"time"

	"github.com/holdfast-dr/holdfast/core/secret"
	"github.com/holdfast-dr/holdfast/core/tenant"
)

// What sealed keys are bound to.
const (
	purposeCA     = "pki/ca"
	purposeServer = "pki/server"
)

// Lifetimes.
const (
	authorityLife = 20 * 365 * 24 * time.Hour
	// ServerLife is short, since nobody pins a server certificate.
	ServerLife = 90 * 24 * time.Hour
	// AgentLife is how long an agent works without hearing from the provider.
	AgentLife = 30 * 24 * time.Hour
	// RenewGrace is how long an expired agent certificate may still be renewed.
	RenewGrace = 90 * 24 * time.Hour
	// backdate forgives clocks that are behind.
	backdate = time.Hour
)

// ProviderName stands in every server certificate that the CA issues. A client
// that pinned the CA accepts it in place of the address that it dialled; no
// public CA may issue a name under .internal, so a pin of a public CA never
// excuses a wrong name.
const ProviderName = "provider.holdfast.internal"

// Authority is the provider's CA.
type Authority struct {
	certificate *x509.Certificate
	key         *ecdsa.PrivateKey
}

// NewAuthority makes a CA that nothing has stored yet.
func NewAuthority(name string, now time.Time) (*Authority, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make CA key: %w", err)
	}
	template := &x509.Certificate{
		SerialNumber:          serial(),
		Subject:               pkix.Name{CommonName: name, Organization: []string{"Holdfast provider"}},
		NotBefore:             now.Add(-backdate),
		NotAfter:              now.Add(authorityLife),
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
		MaxPathLenZero:        true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("make CA: %w", err)
	}
	return newAuthority(der, key)
}

func newAuthority(der []byte, key *ecdsa.PrivateKey) (*Authority, error) {
	certificate, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("read CA: %w", err)
	}
	public, ok := certificate.PublicKey.(*ecdsa.PublicKey)
	if !ok || !public.Equal(key.Public()) {
		return nil, errors.New("read CA: certificate and key do not belong together")
	}
	return &Authority{certificate: certificate, key: key}, nil
}

// LoadAuthority opens the stored CA, or creates it at the first start. The
// context carries an audit origin for that case.
func LoadAuthority(ctx context.Context, store Store, master *secret.Key, name string, now time.Time) (*Authority, error) {
	record, err := store.Authority(ctx)
	if errors.Is(err, ErrNone) {
		record, err = createAuthority(ctx, store, master, name, now)
	}
	if err != nil {
		return nil, fmt.Errorf("load CA: %w", err)
	}
	plain, err := master.Open(purposeCA, record.SealedKey)
	if err != nil {
		return nil, fmt.Errorf("load CA: %w", err)
	}
	key, err := parseKey(plain)
	if err != nil {
		return nil, fmt.Errorf("load CA: %w", err)
	}
	ec, ok := key.(*ecdsa.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("load CA: key is a %T", key)
	}
	return newAuthority(record.Certificate, ec)
}

func createAuthority(ctx context.Context, store Store, master *secret.Key, name string, now time.Time) (AuthorityRecord, error) {
	record, err := newRecord(master, name, now)
	if err != nil {
		return AuthorityRecord{}, err
	}
	return store.CreateAuthority(ctx, record)
}

// ReplaceAuthority stores a new CA in the place of one whose key cannot be
// opened any more.
func ReplaceAuthority(ctx context.Context, store Store, master *secret.Key, name string, now time.Time) error {
	record, err := newRecord(master, name, now)
	if err == nil {
		_, err = store.ReplaceAuthority(ctx, record)
	}
	if err != nil {
		return fmt.Errorf("replace CA: %w", err)
	}
	return nil
}

// Opens says whether a master key opens the sealed key of a CA.
func Opens(master *secret.Key, sealedKey []byte) error {
	_, err := master.Open(purposeCA, sealedKey)
	return err
}

func newRecord(master *secret.Key, name string, now time.Time) (AuthorityRecord, error) {
	a, err := NewAuthority(name, now)
	if err != nil {
		return AuthorityRecord{}, err
	}
	plain, err := x509.MarshalPKCS8PrivateKey(a.key)
	if err != nil {
		return AuthorityRecord{}, err
	}
	sealed, err := master.Seal(purposeCA, plain)
	if err != nil {
		return AuthorityRecord{}, err
	}
	return AuthorityRecord{Certificate: a.certificate.Raw, SealedKey: sealed}, nil
}

// Certificate is the CA's own.
func (a *Authority) Certificate() *x509.Certificate { return a.certificate }

// Fingerprint is what tenants pin.
func (a *Authority) Fingerprint() Fingerprint { return FingerprintOf(a.certificate) }

// PEM is the CA's certificate as text.
func (a *Authority) PEM() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.certificate.Raw})
}

// IssueServer makes a server certificate with a new key for names and addresses.
// Its chain contains the CA, so that a client that knows only the pin can check it.
func (a *Authority) IssueServer(names []string, now time.Time) (*tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make server key: %w", err)
	}
	template := &x509.Certificate{
		Subject:     pkix.Name{CommonName: "Holdfast server"},
		NotAfter:    now.Add(ServerLife),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		DNSNames:    []string{ProviderName},
	}
	for _, name := range names {
		if ip := net.ParseIP(strings.Trim(name, "[]")); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else if name != "" && name != ProviderName {
			template.DNSNames = append(template.DNSNames, name)
		}
	}
	der, err := a.issue(template, key.Public(), now)
	if err != nil {
		return nil, fmt.Errorf("issue server certificate: %w", err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("issue server certificate: %w", err)
	}
	return &tls.Certificate{Certificate: [][]byte{der, a.certificate.Raw}, PrivateKey: key, Leaf: leaf}, nil
}

// issue fills in what every certificate has and signs it.
func (a *Authority) issue(template *x509.Certificate, public any, now time.Time) ([]byte, error) {
	template.SerialNumber = serial()
	template.NotBefore = now.Add(-backdate)
	template.KeyUsage = x509.KeyUsageDigitalSignature
	template.BasicConstraintsValid = true
	if template.NotAfter.After(a.certificate.NotAfter) {
		template.NotAfter = a.certificate.NotAfter
	}
	return x509.CreateCertificate(rand.Reader, template, a.certificate, public, a.key)
}

// serial is 127 random bits: positive, never zero in practice, known to nobody
// beforehand.
func serial() *big.Int {
	var b [16]byte
	rand.Read(b[:])
	b[0] &= 0x7f
	return new(big.Int).SetBytes(b[:])
}

// maxRequest bounds a certificate request of a peer.
const maxRequest = 16 << 10

// ParseRequest reads an agent's certificate request (DER), checks that its
// sender has the key, and names the key. Nothing else in it counts.
func ParseRequest(der []byte) (*x509.CertificateRequest, Fingerprint, error) {
	if len(der) > maxRequest {
		return nil, Fingerprint{}, fmt.Errorf("read certificate request: %d bytes are more than %d", len(der), maxRequest)
	}
	request, err := x509.ParseCertificateRequest(der)
	if err != nil {
		return nil, Fingerprint{}, fmt.Errorf("read certificate request: %w", err)
	}
	key, ok := request.PublicKey.(*ecdsa.PublicKey)
	if !ok || key.Curve != elliptic.P256() {
		return nil, Fingerprint{}, errors.New("read certificate request: the key must be ECDSA on P-256")
	}
	if err := request.CheckSignature(); err != nil {
		return nil, Fingerprint{}, fmt.Errorf("read certificate request: %w", err)
	}
	spki, err := x509.MarshalPKIXPublicKey(key) // the one encoding of the key, whatever the peer wrote
	if err != nil {
		return nil, Fingerprint{}, fmt.Errorf("read certificate request: %w", err)
	}
	return request, fingerprintOfSPKI(spki), nil
}

// IssueAgent signs an agent's request and returns its certificate (DER) followed
// by the CA's. The caller has checked that the agent may have it.
func (a *Authority) IssueAgent(request *x509.CertificateRequest, agentID string, t tenant.ID, now time.Time) ([][]byte, error) {
	if agentID == "" || t == tenant.Provider {
		return nil, errors.New("issue agent certificate: agent and tenant must be given")
	}
	der, err := a.issue(&x509.Certificate{
		Subject:     pkix.Name{CommonName: "Holdfast agent " + agentID},
		NotAfter:    now.Add(AgentLife),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
		URIs:        []*url.URL{agentURI(agentID, t)},
	}, request.PublicKey, now)
	if err != nil {
		return nil, fmt.Errorf("issue agent certificate: %w", err)
	}
	return [][]byte{der, a.certificate.Raw}, nil
}

// What client certificates say: holdfast://KIND/WHO.
const (
	peerScheme = "holdfast"
	agentHost  = "agent"
	workerHost = "worker"
)

func agentURI(agentID string, t tenant.ID) *url.URL {
	return &url.URL{Scheme: peerScheme, Host: agentHost, Path: "/" + string(t) + "/" + agentID}
}

// The refusals of an agent's certificate.
var (
	ErrNoCertificate = errors.New("no client certificate")
	ErrForeign       = errors.New("client certificate not issued by this provider")
	ErrExpired       = errors.New("client certificate expired too long ago to be renewed")
)

// VerifyAgent says who is at the other end of a TLS connection whose listener
// requested a certificate (tls.RequestClientCert). The handshake has proved that
// the peer has the key. Whether the agent was revoked, and whether Key is still
// its key, is for the caller to look up.
func (a *Authority) VerifyAgent(state tls.ConnectionState, now time.Time) (Identity, error) {
	leaf, path, err := a.verifyPeer(state, agentHost, now)
	if err != nil {
		return Identity{}, err
	}
	tenantID, agentID, ok := strings.Cut(path, "/")
	if !ok || tenantID == "" || agentID == "" {
		return Identity{}, ErrForeign
	}
	return Identity{AgentID: agentID, TenantID: tenant.ID(tenantID), Key: FingerprintOf(leaf),
		NotAfter: leaf.NotAfter, RenewOnly: now.After(leaf.NotAfter)}, nil
}

// verifyPeer checks the certificate of a client of one kind and gives the path
// in it, which says who it is.
func (a *Authority) verifyPeer(state tls.ConnectionState, kind string, now time.Time) (leaf *x509.Certificate, path string, err error) {
	if len(state.PeerCertificates) == 0 {
		return nil, "", ErrNoCertificate
	}
	leaf = state.PeerCertificates[0]
	roots := x509.NewCertPool()
	roots.AddCert(a.certificate)
	// The chain is judged at a moment inside the certificate's own life. Its
	// expiry is judged below, for it has a grace; and one from the future, which
	// this authority issued, only says that a clock was or is wrong, which must not
	// keep every tenant from his backups.
	at := now
	switch {
	case at.After(leaf.NotAfter):
		at = leaf.NotAfter
	case at.Before(leaf.NotBefore):
		at = leaf.NotBefore
	}
	if _, err := leaf.Verify(x509.VerifyOptions{Roots: roots, CurrentTime: at,
		KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}); err != nil {
		return nil, "", fmt.Errorf("%w: %w", ErrForeign, err)
	}
	if len(leaf.URIs) != 1 || leaf.URIs[0].Scheme != peerScheme || leaf.URIs[0].Host != kind {
		return nil, "", ErrForeign
	}
	if now.After(leaf.NotAfter.Add(RenewGrace)) {
		return nil, "", ErrExpired
	}
	return leaf, strings.TrimPrefix(leaf.URIs[0].Path, "/"), nil
}

// RenewAt is when a certificate is to be renewed: after a third of its life.
func RenewAt(c *x509.Certificate) time.Time {
	return c.NotBefore.Add(c.NotAfter.Sub(c.NotBefore) / 3)
}
