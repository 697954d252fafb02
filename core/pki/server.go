package pki

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	pkcs12 "software.sslmate.com/src/go-pkcs12"

	"github.com/holdfast-dr/holdfast/core/secret"
)

// maxImport bounds an imported file, maxChain the certificates in it.
const (
	maxImport = 1 << 20
	maxChain  = 10
	minRSA    = 2048
)

// ParsePEM reads a certificate with its chain and key from one or two PEM texts,
// in any order.
func ParsePEM(texts ...[]byte) (*tls.Certificate, error) {
	var key crypto.PrivateKey
	var chain []*x509.Certificate
	for _, text := range texts {
		if len(text) > maxImport {
			return nil, fmt.Errorf("import certificate: file is larger than %d bytes", maxImport)
		}
		for block, rest := pem.Decode(text); block != nil; block, rest = pem.Decode(rest) {
			switch {
			case block.Type == "CERTIFICATE":
				c, err := x509.ParseCertificate(block.Bytes)
				if err != nil {
					return nil, fmt.Errorf("import certificate: %w", err)
				}
				chain = append(chain, c)
			case block.Type == "ENCRYPTED PRIVATE KEY" || block.Headers["DEK-Info"] != "":
				return nil, errors.New("import certificate: the key is encrypted; decrypt it, or import a PFX file with its password")
			case strings.HasSuffix(block.Type, "PRIVATE KEY"):
				k, err := parseKey(block.Bytes)
				if err != nil {
					return nil, fmt.Errorf("import certificate: %w", err)
				}
				if key != nil {
					return nil, errors.New("import certificate: more than one private key")
				}
				key = k
			}
		}
	}
	return assemble(chain, key)
}

// ParsePFX reads a PFX (PKCS #12) file.
func ParsePFX(data []byte, password string) (*tls.Certificate, error) {
	if len(data) > maxImport {
		return nil, fmt.Errorf("import PFX: file is larger than %d bytes", maxImport)
	}
	key, leaf, others, err := pkcs12.DecodeChain(data, password)
	if errors.Is(err, pkcs12.ErrIncorrectPassword) {
		return nil, errors.New("import PFX: the password is wrong")
	}
	if err != nil {
		return nil, fmt.Errorf("import PFX: %w", err)
	}
	return assemble(append([]*x509.Certificate{leaf}, others...), key)
}

func parseKey(der []byte) (crypto.PrivateKey, error) {
	if k, err := x509.ParsePKCS8PrivateKey(der); err == nil {
		return k, nil
	}
	if k, err := x509.ParseECPrivateKey(der); err == nil {
		return k, nil
	}
	if k, err := x509.ParsePKCS1PrivateKey(der); err == nil {
		return k, nil
	}
	return nil, errors.New("the private key is in no known form (PKCS #8, PKCS #1, SEC 1)")
}

// assemble finds the leaf that belongs to the key and puts the chain in order,
// each certificate followed by its issuer.
func assemble(pool []*x509.Certificate, key crypto.PrivateKey) (*tls.Certificate, error) {
	signer, ok := key.(crypto.Signer)
	switch {
	case len(pool) == 0:
		return nil, errors.New("import certificate: no certificate found")
	case len(pool) > maxChain:
		return nil, fmt.Errorf("import certificate: more than %d certificates", maxChain)
	case key == nil:
		return nil, errors.New("import certificate: no private key found")
	case !ok:
		return nil, fmt.Errorf("import certificate: a %T cannot sign", key)
	}
	if k, ok := key.(*rsa.PrivateKey); ok && k.N.BitLen() < minRSA {
		return nil, fmt.Errorf("import certificate: RSA key of %d bits; at least %d are needed", k.N.BitLen(), minRSA)
	}
	var leaf *x509.Certificate
	for _, c := range pool {
		if public, ok := c.PublicKey.(interface{ Equal(crypto.PublicKey) bool }); ok && public.Equal(signer.Public()) {
			leaf = c
			break
		}
	}
	if leaf == nil {
		return nil, errors.New("import certificate: no certificate belongs to the private key")
	}
	out := &tls.Certificate{PrivateKey: key, Leaf: leaf, Certificate: [][]byte{leaf.Raw}}
	for at := leaf; at.CheckSignatureFrom(at) != nil && len(out.Certificate) < len(pool); {
		issuer := issuerOf(at, pool)
		if issuer == nil {
			break
		}
		out.Certificate = append(out.Certificate, issuer.Raw)
		at = issuer
	}
	return out, checkServer(leaf)
}

func issuerOf(c *x509.Certificate, pool []*x509.Certificate) *x509.Certificate {
	for _, p := range pool {
		if p != c && c.CheckSignatureFrom(p) == nil {
			return p
		}
	}
	return nil
}

// checkServer says whether a certificate can serve at all.
func checkServer(leaf *x509.Certificate) error {
	if time.Now().After(leaf.NotAfter) {
		return fmt.Errorf("import certificate: it expired on %s", leaf.NotAfter.UTC().Format(time.DateOnly))
	}
	if len(leaf.ExtKeyUsage) == 0 {
		return nil
	}
	for _, u := range leaf.ExtKeyUsage {
		if u == x509.ExtKeyUsageServerAuth || u == x509.ExtKeyUsageAny {
			return nil
		}
	}
	return errors.New("import certificate: it is not meant for servers")
}

// Import stores a certificate for every server of the provider. The context
// carries an audit origin.
func Import(ctx context.Context, store Store, master *secret.Key, c *tls.Certificate) error {
	key, err := x509.MarshalPKCS8PrivateKey(c.PrivateKey)
	if err != nil {
		return fmt.Errorf("import certificate: %w", err)
	}
	sealed, err := master.Seal(purposeServer, key)
	if err != nil {
		return fmt.Errorf("import certificate: %w", err)
	}
	var chain []byte
	for _, der := range c.Certificate {
		chain = append(chain, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})...)
	}
	return store.SetServerCertificate(ctx, &ServerRecord{Chain: chain, SealedKey: sealed})
}

// Source is where a server's certificate comes from. Files win over the
// database, the database over issuing.
type Source struct {
	Authority *Authority
	Store     Store       // may be nil: nothing imported
	Master    *secret.Key // with Store
	Names     []string    // for an issued certificate
	CertFile  string      // PEM, or PFX if it ends in .pfx or .p12
	KeyFile   string      // PEM; empty if CertFile has the key, too
	Password  string      // of a PFX
	Log       *slog.Logger
}

// Server presents the provider's certificate and replaces it while connections
// go on. It is safe for concurrent use.
//
// Whoever pinned the provider's own CA is presented a certificate of that CA,
// whatever certificate was supplied: who says in the handshake what it pinned
// gets the chain that has it. So a certificate can be supplied, replaced and
// taken away again without a word to tenants.
type Server struct {
	source  Source
	current atomic.Pointer[tls.Certificate]
	own     atomic.Pointer[tls.Certificate] // of the provider's own CA; nil without one

	mu     sync.Mutex // guards what follows; one reload at a time
	seen   string     // what current was made from
	issued bool
}

// NewServer loads the certificate that the source gives now.
func NewServer(ctx context.Context, source Source) (*Server, error) {
	if source.Log == nil {
		source.Log = slog.New(slog.DiscardHandler)
	}
	s := &Server{source: source}
	if err := s.Reload(ctx); err != nil {
		return nil, err
	}
	return s, nil
}

// Config is the TLS configuration of a listener. Client certificates are
// requested and judged later, by VerifyAgent: people and scripts have none, and
// an expired one may still renew.
func (s *Server) Config() *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		ClientAuth: tls.RequestClientCert,
		GetCertificate: func(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
			return s.choose(hello.SupportedProtos), nil
		},
		NextProtos: []string{protocol},
		// A resumed session would carry an identity past its revocation.
		SessionTicketsDisabled: true,
	}
}

// choose is the certificate for a client that offers these protocols.
func (s *Server) choose(offered []string) *tls.Certificate {
	current, own := s.current.Load(), s.own.Load()
	if own == nil || own == current || hasPinned(current, offered) || !hasPinned(own, offered) {
		return current
	}
	return own
}

// hasPinned says whether a chain has a key that a client says it pinned.
func hasPinned(c *tls.Certificate, offered []string) bool {
	if !slices.ContainsFunc(offered, func(p string) bool { return strings.HasPrefix(p, pinProtocol) }) {
		return false
	}
	for _, der := range c.Certificate {
		link, err := x509.ParseCertificate(der)
		if err == nil && slices.Contains(offered, FingerprintOf(link).protocol()) {
			return true
		}
	}
	return false
}

// Certificate is the one that is presented now to whoever pinned nothing.
func (s *Server) Certificate() *tls.Certificate { return s.current.Load() }

// Reload looks at the source again. On failure the present certificate stays in
// use.
func (s *Server) Reload(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	seen, err := s.state(ctx)
	if err != nil {
		return fmt.Errorf("load server certificate: %w", err)
	}
	if c := s.current.Load(); c != nil && seen == s.seen && !(s.issued && time.Now().After(RenewAt(c.Leaf))) {
		return s.renewOwn()
	}
	certificate, issued, err := s.load(ctx)
	if err != nil {
		return fmt.Errorf("load server certificate: %w", err)
	}
	s.current.Store(certificate)
	s.seen, s.issued = seen, issued
	if issued {
		s.own.Store(certificate)
	}
	s.source.Log.Info("server certificate in use", "serial", certificate.Leaf.SerialNumber.Text(16),
		"expires", certificate.Leaf.NotAfter, "issued", issued)
	return s.renewOwn()
}

// renewOwn issues the certificate for those who pinned the provider's own CA,
// where another one is presented to everybody else.
func (s *Server) renewOwn() error {
	own := s.own.Load()
	if s.source.Authority == nil || own != nil && !time.Now().After(RenewAt(own.Leaf)) {
		return nil
	}
	c, err := s.source.Authority.IssueServer(s.source.Names, time.Now())
	if err != nil {
		return fmt.Errorf("issue server certificate: %w", err)
	}
	s.own.Store(c)
	return nil
}

// Watch reloads every so often until ctx ends: files by their time and size, the
// database by the date of the import, an issued certificate by its age.
func (s *Server) Watch(ctx context.Context, every time.Duration) {
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			if err := s.Reload(ctx); err != nil && ctx.Err() == nil {
				s.source.Log.Error("keep the present server certificate", "error", err)
			}
		}
	}
}

// state describes what the source gives, cheaply.
func (s *Server) state(ctx context.Context) (string, error) {
	if s.source.CertFile != "" {
		var b strings.Builder
		for _, path := range []string{s.source.CertFile, s.source.KeyFile} {
			if path == "" {
				continue
			}
			info, err := os.Stat(path)
			if err != nil {
				return "", err
			}
			fmt.Fprintf(&b, "%s %d %d;", path, info.ModTime().UnixNano(), info.Size())
		}
		return b.String(), nil
	}
	if s.source.Store == nil {
		return "issued", nil
	}
	r, err := s.source.Store.ServerCertificate(ctx)
	if errors.Is(err, ErrNone) {
		return "issued", nil
	}
	return fmt.Sprintf("imported %d", r.Imported.UnixMicro()), err
}

func (s *Server) load(ctx context.Context) (c *tls.Certificate, issued bool, err error) {
	switch {
	case s.source.CertFile != "":
		c, err = s.loadFiles()
		return c, false, err
	case s.source.Store != nil:
		r, err := s.source.Store.ServerCertificate(ctx)
		if errors.Is(err, ErrNone) {
			break
		}
		if err != nil {
			return nil, false, err
		}
		key, err := s.source.Master.Open(purposeServer, r.SealedKey)
		if err != nil {
			return nil, false, err
		}
		c, err = ParsePEM(r.Chain, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key}))
		return c, false, err
	}
	if s.source.Authority == nil {
		return nil, false, errors.New("no certificate is given and no CA can issue one")
	}
	c, err = s.source.Authority.IssueServer(s.source.Names, time.Now())
	return c, true, err
}

func (s *Server) loadFiles() (*tls.Certificate, error) {
	cert, err := os.ReadFile(s.source.CertFile)
	if err != nil {
		return nil, err
	}
	if name := strings.ToLower(s.source.CertFile); strings.HasSuffix(name, ".pfx") || strings.HasSuffix(name, ".p12") {
		return ParsePFX(cert, s.source.Password)
	}
	if s.source.KeyFile == "" {
		return ParsePEM(cert)
	}
	key, err := os.ReadFile(s.source.KeyFile)
	if err != nil {
		return nil, err
	}
	return ParsePEM(cert, key)
}

// MarshalKey is a private key as PKCS #8, for sealing.
func MarshalKey(key *ecdsa.PrivateKey) ([]byte, error) { return x509.MarshalPKCS8PrivateKey(key) }

// ParseKey reads what MarshalKey wrote.
func ParseKey(der []byte) (*ecdsa.PrivateKey, error) {
	key, err := x509.ParsePKCS8PrivateKey(der)
	if err != nil {
		return nil, fmt.Errorf("read private key: %w", err)
	}
	ec, ok := key.(*ecdsa.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("read private key: it is a %T", key)
	}
	return ec, nil
}
