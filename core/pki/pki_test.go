package pki

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	pkcs12 "software.sslmate.com/src/go-pkcs12"
)

func authority(t testing.TB) *Authority {
	t.Helper()
	ca, err := NewAuthority("Test CA", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return ca
}

func server(t testing.TB, source Source) *Server {
	t.Helper()
	s, err := NewServer(t.Context(), source)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// shake joins both ends with a pipe and returns what each says.
func shake(t testing.TB, serverSide, clientSide *tls.Config) (state tls.ConnectionState, serverErr, clientErr error) {
	t.Helper()
	a, b := net.Pipe()
	defer a.Close()
	defer b.Close()
	s, c := tls.Server(a, serverSide), tls.Client(b, clientSide)
	done := make(chan error, 1)
	go func() {
		err := c.Handshake()
		if err == nil {
			_, err = c.Write([]byte("x"))
		}
		if err != nil {
			b.Close()
		}
		done <- err
	}()
	if serverErr = s.Handshake(); serverErr == nil {
		_, serverErr = s.Read(make([]byte, 1))
	}
	if serverErr != nil {
		a.Close()
	}
	return s.ConnectionState(), serverErr, <-done
}

func agentCertificate(t testing.TB, ca *Authority, now time.Time) *tls.Certificate {
	t.Helper()
	key, err := NewAgentKey()
	if err != nil {
		t.Fatal(err)
	}
	der, err := NewRequest(key)
	if err != nil {
		t.Fatal(err)
	}
	request, print, err := ParseRequest(der)
	if err != nil {
		t.Fatal(err)
	}
	chain, err := ca.IssueAgent(request, "agent-1", "tenant-1", now)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(chain[0])
	if err != nil {
		t.Fatal(err)
	}
	if FingerprintOf(leaf) != print {
		t.Fatal("the certificate is for another key than the request")
	}
	return &tls.Certificate{Certificate: chain, PrivateKey: key, Leaf: leaf}
}

func TestBothSidesKnowEachOther(t *testing.T) {
	ca := authority(t)
	s := server(t, Source{Authority: ca, Names: []string{"backup.example.com", "192.0.2.1"}})
	agent := agentCertificate(t, ca, time.Now())
	trust := Trust{Pins: []Fingerprint{ca.Fingerprint()}}
	// The address that was dialled stands in no certificate: a bare address behind a gateway.
	for _, name := range []string{"backup.example.com", "192.0.2.1", "198.51.100.7", "gateway.example.net"} {
		state, serverErr, clientErr := shake(t, s.Config(), trust.ClientConfig(name, func() (*tls.Certificate, error) { return agent, nil }))
		if serverErr != nil || clientErr != nil {
			t.Fatalf("%s: server %v, client %v", name, serverErr, clientErr)
		}
		if state.Version != tls.VersionTLS13 {
			t.Errorf("version %x", state.Version)
		}
		id, err := ca.VerifyAgent(state, time.Now())
		if err != nil || id.AgentID != "agent-1" || id.TenantID != "tenant-1" || id.RenewOnly || id.Key != FingerprintOf(agent.Leaf) {
			t.Errorf("%s: %+v, %v", name, id, err)
		}
	}
	state, serverErr, clientErr := shake(t, s.Config(), trust.ClientConfig("x", nil))
	if serverErr != nil || clientErr != nil {
		t.Fatalf("without a certificate: server %v, client %v", serverErr, clientErr)
	}
	if _, err := ca.VerifyAgent(state, time.Now()); !errors.Is(err, ErrNoCertificate) {
		t.Errorf("without a certificate: %v", err)
	}
}

func TestAWrongProviderIsRefusedBeforeAnythingIsSent(t *testing.T) {
	ca, other := authority(t), authority(t)
	s := server(t, Source{Authority: other, Names: []string{"backup.example.com"}})
	for name, trust := range map[string]Trust{
		"another pin": {Pins: []Fingerprint{ca.Fingerprint()}},
		"no trust":    {},
		"system":      {System: true},
		"zero pin":    {Pins: []Fingerprint{{}}},
		"both":        {Pins: []Fingerprint{ca.Fingerprint()}, System: true},
	} {
		_, serverErr, clientErr := shake(t, s.Config(), trust.ClientConfig("backup.example.com", nil))
		var untrusted *UntrustedError
		if !errors.As(clientErr, &untrusted) || untrusted.Presented != other.Fingerprint() || serverErr == nil {
			t.Errorf("%s: client %v, server %v", name, clientErr, serverErr)
		}
		if untrusted != nil && (!strings.Contains(untrusted.Error(), other.Fingerprint().String()) || untrusted.Hint() == "") {
			t.Errorf("%s: the refusal does not help: %v", name, untrusted)
		}
	}
	next := Trust{Pins: []Fingerprint{ca.Fingerprint(), other.Fingerprint()}}
	if _, _, err := shake(t, s.Config(), next.ClientConfig("x", nil)); err != nil {
		t.Errorf("a second pin, while the CA is being replaced: %v", err)
	}
}

// An agent's certificate comes from the pinned CA, but must not pass for a server.
func TestAnAgentCannotPlayTheProvider(t *testing.T) {
	ca := authority(t)
	agent := agentCertificate(t, ca, time.Now())
	config := &tls.Config{Certificates: []tls.Certificate{*agent}}
	_, _, err := shake(t, config, Trust{Pins: []Fingerprint{ca.Fingerprint()}}.ClientConfig("x", nil))
	var untrusted *UntrustedError
	if !errors.As(err, &untrusted) {
		t.Errorf("got %v", err)
	}
}

// A made-up CA that copies the pinned public key gains nothing.
func TestACopiedKeyIsNotThePin(t *testing.T) {
	ca := authority(t)
	forger, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: serial(), Subject: ca.certificate.Subject, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageCertSign}
	copied, err := x509.CreateCertificate(rand.Reader, template, template, ca.key.Public(), forger)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{SerialNumber: serial(), DNSNames: []string{ProviderName},
		NotBefore: template.NotBefore, NotAfter: template.NotAfter, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}},
		template, forger.Public(), forger)
	if err != nil {
		t.Fatal(err)
	}
	config := &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{leaf, copied}, PrivateKey: forger}}}
	_, _, err = shake(t, config, Trust{Pins: []Fingerprint{ca.Fingerprint()}}.ClientConfig("x", nil))
	var untrusted *UntrustedError
	if !errors.As(err, &untrusted) {
		t.Errorf("got %v", err)
	}
}

// A pin of a CA that serves others, too, never excuses a wrong name.
func TestAPublicCAVouchesForNamesOnly(t *testing.T) {
	public := authority(t)
	key, _ := NewAgentKey()
	der, err := public.issue(&x509.Certificate{DNSNames: []string{"backup.example.com"}, NotAfter: time.Now().Add(time.Hour),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}, key.Public(), time.Now())
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(public.certificate)
	config := &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der, public.certificate.Raw}, PrivateKey: key}}}
	leaf, _ := x509.ParseCertificate(der)
	for name, trust := range map[string]Trust{"pin": {Pins: []Fingerprint{public.Fingerprint()}}, "system": {System: true, Roots: roots}} {
		if _, _, err := shake(t, config, trust.ClientConfig("backup.example.com", nil)); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if _, _, err := shake(t, config, trust.ClientConfig("other.example.com", nil)); err == nil {
			t.Errorf("%s: a wrong name was accepted", name)
		}
	}
	if _, _, err := shake(t, config, Trust{Pins: []Fingerprint{FingerprintOf(leaf)}}.ClientConfig("anything", nil)); err != nil {
		t.Errorf("the leaf itself is pinned: %v", err)
	}
}

func TestLifeOfAnAgentCertificate(t *testing.T) {
	ca := authority(t)
	issued := time.Now()
	agent := agentCertificate(t, ca, issued)
	state := tls.ConnectionState{PeerCertificates: []*x509.Certificate{agent.Leaf}}
	for _, c := range []struct {
		after     time.Duration
		renewOnly bool
		want      error
	}{
		{0, false, nil},
		{AgentLife - time.Minute, false, nil},
		{AgentLife + time.Minute, true, nil},
		{AgentLife + RenewGrace - time.Minute, true, nil},
		{AgentLife + RenewGrace + time.Minute, false, ErrExpired},
	} {
		id, err := ca.VerifyAgent(state, issued.Add(c.after))
		if !errors.Is(err, c.want) || id.RenewOnly != c.renewOnly {
			t.Errorf("after %s: %+v, %v", c.after, id, err)
		}
	}
	// A clock that was set back says nothing against the agent.
	if id, err := ca.VerifyAgent(state, issued.Add(-24*time.Hour)); err != nil || id.RenewOnly {
		t.Errorf("before its time: %+v, %v", id, err)
	}
	if _, err := authority(t).VerifyAgent(state, issued); !errors.Is(err, ErrForeign) {
		t.Errorf("of another provider: %v", err)
	}
	own, err := ca.IssueServer(nil, issued)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ca.VerifyAgent(tls.ConnectionState{PeerCertificates: []*x509.Certificate{own.Leaf}}, issued); !errors.Is(err, ErrForeign) {
		t.Errorf("a server's certificate as an agent's: %v", err)
	}
	if at := RenewAt(agent.Leaf).Sub(issued); at < AgentLife/3-time.Hour || at > AgentLife/3+time.Hour {
		t.Errorf("renewed after %s", at)
	}
}

func TestRequestsAreJudgedByTheirKeyAlone(t *testing.T) {
	key, _ := NewAgentKey()
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: "Holdfast CA"},
		DNSNames: []string{"backup.example.com", ProviderName}}, key)
	if err != nil {
		t.Fatal(err)
	}
	request, _, err := ParseRequest(der)
	if err != nil {
		t.Fatal(err)
	}
	chain, err := authority(t).IssueAgent(request, "a", "t", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	leaf, _ := x509.ParseCertificate(chain[0])
	if len(leaf.DNSNames) != 0 || leaf.IsCA || leaf.Subject.CommonName != "Holdfast agent a" {
		t.Errorf("the request chose the content: %+v", leaf.Subject)
	}
	der[len(der)-1] ^= 1
	if _, _, err := ParseRequest(der); err == nil {
		t.Error("a forged signature was accepted")
	}
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	der, _ = x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, rsaKey)
	if _, _, err := ParseRequest(der); err == nil {
		t.Error("an RSA key was accepted")
	}
	if _, _, err := ParseRequest(make([]byte, maxRequest+1)); err == nil {
		t.Error("a huge request was read")
	}
}

func FuzzParseRequest(f *testing.F) {
	key, _ := NewAgentKey()
	der, _ := NewRequest(key)
	f.Add(der)
	f.Fuzz(func(t *testing.T, b []byte) {
		request, fingerprint, err := ParseRequest(b)
		if err == nil && (request == nil || fingerprint == Fingerprint{}) || err != nil && request != nil {
			t.Errorf("got %v, %v, %v", request, fingerprint, err)
		}
	})
}

func TestFingerprintsAreReadAsPeopleWriteThem(t *testing.T) {
	f := authority(t).Fingerprint()
	text := f.String()
	if len(text) != len("SHA256:")+32*3-1 {
		t.Errorf("written as %q", text)
	}
	body := strings.TrimPrefix(text, "SHA256:")
	for _, s := range []string{text, body, strings.ToLower(text), strings.ReplaceAll(body, ":", ""), strings.ReplaceAll(body, ":", " "), " " + text + "\n",
		"sha256:" + base64.StdEncoding.EncodeToString(f[:]), base64.RawStdEncoding.EncodeToString(f[:])} {
		if got, err := ParseFingerprint(s); err != nil || got != f {
			t.Errorf("%q: %v", s, err)
		}
	}
	for _, s := range []string{"", "SHA256:", text[:len(text)-2], text + "AA", "MD5:" + body, strings.Repeat("A", 300)} {
		if _, err := ParseFingerprint(s); err == nil {
			t.Errorf("%q was accepted", s)
		}
	}
}

func FuzzParseFingerprint(f *testing.F) {
	f.Add("SHA256:00")
	f.Fuzz(func(t *testing.T, s string) {
		if p, err := ParseFingerprint(s); err == nil {
			if again, err := ParseFingerprint(p.String()); err != nil || again != p {
				t.Errorf("%q does not survive: %v", s, err)
			}
		}
	})
}

// FuzzImport: an administrator imports what somebody sent. It is a certificate
// that a server can present, with its key, or an error.
func FuzzImport(f *testing.F) {
	a, err := NewAuthority("test", time.Now())
	if err != nil {
		f.Fatal(err)
	}
	c, err := a.IssueServer([]string{"localhost"}, time.Now())
	if err != nil {
		f.Fatal(err)
	}
	chain, key := pemOf(f, c)
	f.Add(append(bytes.Clone(chain), key...), "")
	f.Add(chain, "")
	f.Add(key, "")
	pfx, err := pkcs12.Modern.Encode(c.PrivateKey, c.Leaf, nil, "x")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(pfx, "x")
	f.Fuzz(func(t *testing.T, b []byte, password string) {
		text, err := ParsePEM(b)
		binary, other := ParsePFX(b, password)
		for _, got := range []struct {
			c   *tls.Certificate
			err error
		}{{text, err}, {binary, other}} {
			if got.err == nil && (got.c == nil || got.c.Leaf == nil || got.c.PrivateKey == nil || len(got.c.Certificate) > maxChain) {
				t.Errorf("accepted %+v", got.c)
			}
		}
	})
}

// FuzzVerifyAgent: whatever certificate a client shows, it is an agent only if
// this authority signed that.
func FuzzVerifyAgent(f *testing.F) {
	a, err := NewAuthority("test", time.Now())
	if err != nil {
		f.Fatal(err)
	}
	key, _ := NewAgentKey()
	der, _ := NewRequest(key)
	request, print, err := ParseRequest(der)
	if err != nil {
		f.Fatal(err)
	}
	chain, err := a.IssueAgent(request, "agent", "tenant", time.Now())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(chain[0])
	f.Add(chain[1])
	f.Fuzz(func(t *testing.T, der []byte) {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return
		}
		who, err := a.VerifyAgent(tls.ConnectionState{PeerCertificates: []*x509.Certificate{c}}, time.Now())
		if err == nil && (who.AgentID != "agent" || who.TenantID != "tenant" || who.Key != print) {
			t.Errorf("a forged certificate is %+v", who)
		}
	})
}

func pemOf(t testing.TB, c *tls.Certificate) (chain, key []byte) {
	t.Helper()
	for _, der := range c.Certificate {
		chain = append(chain, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})...)
	}
	der, err := x509.MarshalPKCS8PrivateKey(c.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	return chain, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
}

func TestImports(t *testing.T) {
	ca := authority(t)
	c, err := ca.IssueServer([]string{"backup.example.com"}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	chain, key := pemOf(t, c)
	same := func(got *tls.Certificate, err error) {
		t.Helper()
		if err != nil || len(got.Certificate) != 2 || !got.Leaf.Equal(c.Leaf) || string(got.Certificate[1]) != string(ca.certificate.Raw) {
			t.Errorf("imported %v, %v", got, err)
		}
	}
	same(ParsePEM(chain, key))
	same(ParsePEM(append(append([]byte{}, key...), chain...)))
	// The root first, as some authorities deliver it.
	same(ParsePEM(ca.PEM(), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Certificate[0]}), key))
	pfx, err := pkcs12.Modern.Encode(c.PrivateKey, c.Leaf, []*x509.Certificate{ca.certificate}, "geheim")
	if err != nil {
		t.Fatal(err)
	}
	same(ParsePFX(pfx, "geheim"))
	if _, err := ParsePFX(pfx, "falsch"); err == nil || !strings.Contains(err.Error(), "password is wrong") {
		t.Errorf("a wrong password: %v", err)
	}
	_, otherKey := pemOf(t, agentCertificate(t, ca, time.Now()))
	agentChain, agentKey := pemOf(t, agentCertificate(t, ca, time.Now()))
	old, err := ca.IssueServer(nil, time.Now().Add(-ServerLife-time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	oldChain, oldKey := pemOf(t, old)
	for name, texts := range map[string][][]byte{
		"nothing": {}, "no key": {chain}, "no certificate": {key}, "another key": {chain, otherKey}, "two keys": {chain, key, otherKey},
		"an agent's": {agentChain, agentKey}, "expired": {oldChain, oldKey}, "garbage": {[]byte("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")},
		"encrypted": {chain, pem.EncodeToMemory(&pem.Block{Type: "ENCRYPTED PRIVATE KEY", Bytes: []byte("x")})},
		"huge":      {make([]byte, maxImport+1)},
	} {
		if _, err := ParsePEM(texts...); err == nil {
			t.Errorf("%s was imported", name)
		}
	}
}

func TestFilesAreReloadedWhileConnectionsGoOn(t *testing.T) {
	ca := authority(t)
	dir := t.TempDir()
	certFile, keyFile := filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	put := func(age time.Duration) *tls.Certificate {
		c, err := ca.IssueServer([]string{"a.example.com"}, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		chain, key := pemOf(t, c)
		for path, text := range map[string][]byte{certFile: chain, keyFile: key} {
			if err := os.WriteFile(path, text, 0o600); err != nil {
				t.Fatal(err)
			}
			at := time.Now().Add(-age)
			if err := os.Chtimes(path, at, at); err != nil {
				t.Fatal(err)
			}
		}
		return c
	}
	first := put(2 * time.Hour)
	s := server(t, Source{CertFile: certFile, KeyFile: keyFile})
	config := s.Config()
	presented := func() *x509.Certificate {
		t.Helper()
		var got *x509.Certificate
		client := Trust{Pins: []Fingerprint{ca.Fingerprint()}}.ClientConfig("a.example.com", nil)
		check := client.VerifyConnection
		client.VerifyConnection = func(state tls.ConnectionState) error { got = state.PeerCertificates[0]; return check(state) }
		if _, serverErr, clientErr := shake(t, config, client); serverErr != nil || clientErr != nil {
			t.Fatalf("server %v, client %v", serverErr, clientErr)
		}
		return got
	}
	if !presented().Equal(first.Leaf) {
		t.Fatal("the first certificate is not presented")
	}
	next := put(time.Hour)
	if err := s.Reload(t.Context()); err != nil {
		t.Fatal(err)
	}
	if !presented().Equal(next.Leaf) {
		t.Error("the new certificate is not presented")
	}
	if err := os.WriteFile(certFile, []byte("half a fi"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := s.Reload(t.Context()); err == nil {
		t.Error("a broken file was loaded")
	}
	if !presented().Equal(next.Leaf) {
		t.Error("the good certificate was dropped for a broken file")
	}
}

// A certificate from elsewhere is for those who pinned nothing, or that one.
// Whoever pinned the provider's own CA is presented its certificates as before.
func TestSuppliedCertificateCutsNobodyOff(t *testing.T) {
	own, other := authority(t), authority(t)
	supplied, err := other.IssueServer([]string{"backup.example.com"}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	chain, key := pemOf(t, supplied)
	dir := t.TempDir()
	file := filepath.Join(dir, "server.pem")
	if err := os.WriteFile(file, append(chain, key...), 0o600); err != nil {
		t.Fatal(err)
	}
	s := server(t, Source{Authority: own, Names: []string{"backup.example.com"}, CertFile: file})
	roots := x509.NewCertPool()
	roots.AddCert(other.certificate)
	for name, c := range map[string]struct {
		trust Trust
		ca    *Authority // nil: refused
	}{
		"pinned the provider's CA":      {Trust{Pins: []Fingerprint{own.Fingerprint()}}, own},
		"pinned the certificate's CA":   {Trust{Pins: []Fingerprint{other.Fingerprint()}}, other},
		"pinned both":                   {Trust{Pins: []Fingerprint{own.Fingerprint(), other.Fingerprint()}}, other},
		"trusts the certificate's CA":   {Trust{System: true, Roots: roots}, other},
		"pinned something else":         {Trust{Pins: []Fingerprint{authority(t).Fingerprint()}}, nil},
		"trusts public authorities":     {Trust{System: true}, nil},
		"pinned, and trusts the public": {Trust{Pins: []Fingerprint{own.Fingerprint()}, System: true, Roots: roots}, own},
	} {
		var got []*x509.Certificate
		client := c.trust.ClientConfig("backup.example.com", nil)
		check := client.VerifyConnection
		client.VerifyConnection = func(state tls.ConnectionState) error {
			if err := check(state); err != nil {
				return err
			}
			got = state.PeerCertificates
			if state.NegotiatedProtocol != protocol {
				t.Errorf("%s: protocol %q", name, state.NegotiatedProtocol)
			}
			return nil
		}
		_, _, clientErr := shake(t, s.Config(), client)
		switch {
		case c.ca == nil:
			if clientErr == nil {
				t.Errorf("%s: the provider was accepted", name)
			}
		case clientErr != nil:
			t.Errorf("%s: %v", name, clientErr)
		case !got[len(got)-1].Equal(c.ca.certificate):
			t.Errorf("%s: presented was a certificate of %s", name, got[len(got)-1].Subject)
		}
	}
	// What tenants are to pin does not change with the certificate.
	if n, err := NoticeOf("backup.example.com:6180", s.Certificate(), own); err != nil || n.Fingerprint != own.Fingerprint() || !n.Imported {
		t.Errorf("notice: %+v, %v", n, err)
	}
}

func TestNotice(t *testing.T) {
	ca := authority(t)
	s := server(t, Source{Authority: ca, Names: []string{"backup.example.com", "192.0.2.1"}})
	n, err := NoticeOf("backup.example.com:6180", s.Certificate(), ca)
	if err != nil {
		t.Fatal(err)
	}
	if n.Fingerprint != ca.Fingerprint() || n.Imported {
		t.Errorf("%+v", n)
	}
	text := n.Text()
	for _, want := range []string{ca.Fingerprint().String(), "backup.example.com:6180", "backup.example.com, 192.0.2.1", n.Serial} {
		if !strings.Contains(text, want) {
			t.Errorf("%q is missing in\n%s", want, text)
		}
	}
	if strings.Contains(text, ProviderName) {
		t.Error("the internal name is shown")
	}
	if n, err := NoticeOf("x", s.Certificate(), authority(t)); err != nil || !n.Imported {
		t.Errorf("a certificate of another CA: %+v, %v", n, err)
	}
}
