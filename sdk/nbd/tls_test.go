package nbd

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/sdk"
	"github.com/holdfast-dr/holdfast/testenv"
)

// authority is a throwaway certificate authority.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pem  []byte
}

// identity is a certificate with its key, in PEM.
type identity struct{ cert, key []byte }

func newAuthority(t testing.TB) *authority {
	t.Helper()
	key := newKey(t)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test authority"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &authority{cert, key, pemBlock("CERTIFICATE", der)}
}

func newKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func pemBlock(kind string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}

// issue makes an identity that is good for both ends on this machine.
func (a *authority) issue(t testing.TB) identity {
	t.Helper()
	key := newKey(t)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "localhost"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		DNSNames:    []string{"localhost"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, &key.PublicKey, a.key)
	if err != nil {
		t.Fatal(err)
	}
	secret, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return identity{pemBlock("CERTIFICATE", der), pemBlock("PRIVATE KEY", secret)}
}

// serverTLS demands client certificates of the authority.
func (a *authority) serverTLS(t testing.TB) *tls.Config {
	t.Helper()
	id := a.issue(t)
	pair, err := tls.X509KeyPair(id.cert, id.key)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(a.cert)
	return &tls.Config{Certificates: []tls.Certificate{pair}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: pool}
}

// address is how a client with an identity reaches a socket.
func (a *authority) address(path string, id identity) sdk.Address {
	return sdk.Address{Network: "unix", Addr: path, Export: "disk",
		TLS: &sdk.AddressTLS{CA: a.pem, Cert: id.cert, Key: id.key, ServerName: "localhost"}}
}

// directory writes the files that GnuTLS programs expect.
func (a *authority) directory(t testing.TB, role string) string {
	t.Helper()
	dir := t.TempDir()
	id := a.issue(t)
	for name, b := range map[string][]byte{"ca-cert.pem": a.pem, role + "-cert.pem": id.cert, role + "-key.pem": id.key} {
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// tlsServer demands TLS.
func tlsServer(t testing.TB, ca *authority, e Export) *Server {
	s := single("disk", e)
	s.TLS, s.RequireTLS = ca.serverTLS(t), true
	return s
}

func TestTLSCarriesTheDisk(t *testing.T) {
	ca := newAuthority(t)
	m := randomMemory(5<<20+1, 8)
	a := ca.address(listen(t, tlsServer(t, ca, m.export())), ca.issue(t))
	a.Connections = 2
	d, err := Open(t.Context(), a)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = d.Close() }()
	got := make([]byte, d.Size())
	if _, err := d.ReadAt(got, 0); err != nil || !bytes.Equal(got, m.data) {
		t.Fatalf("read: %v", err)
	}
	if _, err := d.WriteAt(got[:3<<20], 1<<20); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(m.content()[1<<20:4<<20], got[:3<<20]) {
		t.Error("written: the bytes differ")
	}
	if state := d.links[0].conn.(*tls.Conn).ConnectionState(); state.Version != tls.VersionTLS13 {
		t.Errorf("TLS version %#x", state.Version)
	}
}

func TestTLSIsRefusedWhereItShouldBe(t *testing.T) {
	ca, stranger := newAuthority(t), newAuthority(t)
	e := newMemory(10).export()
	secure := listen(t, tlsServer(t, ca, e))
	plaintext := listen(t, single("disk", e))
	good := ca.issue(t)

	if _, err := Dial(t.Context(), Options{Network: "unix", Addr: secure, Export: "disk"}); !errors.Is(err, sdk.ErrDenied) {
		t.Errorf("plaintext to a server that demands TLS: %v", err)
	}
	if _, err := List(t.Context(), Options{Network: "unix", Addr: secure}); !errors.Is(err, sdk.ErrDenied) {
		t.Errorf("list in plaintext: %v", err)
	}
	if _, err := Open(t.Context(), ca.address(plaintext, good)); !errors.Is(err, sdk.ErrDenied) {
		t.Errorf("TLS to a server without: %v", err)
	}
	if _, err := Open(t.Context(), ca.address(secure, stranger.issue(t))); err == nil {
		t.Error("a stranger's certificate was accepted")
	}
	if _, err := Open(t.Context(), ca.address(secure, identity{})); err == nil {
		t.Error("no certificate was accepted")
	}
	if _, err := Open(t.Context(), stranger.address(secure, good)); err == nil {
		t.Error("a stranger's server was accepted")
	}
	a := ca.address(secure, good)
	a.TLS.ServerName = "elsewhere"
	if _, err := Open(t.Context(), a); err == nil {
		t.Error("another server's name was accepted")
	}
	for _, broken := range []*sdk.AddressTLS{{CA: []byte("no")}, {CA: ca.pem, Cert: []byte("no")}} {
		a.TLS = broken
		if _, err := Open(t.Context(), a); !errors.Is(err, sdk.ErrInvalid) {
			t.Errorf("broken PEM: %v", err)
		}
	}
}

func TestTLS12NeedsToBeAllowed(t *testing.T) {
	ca := newAuthority(t)
	s := single("disk", newMemory(10).export())
	s.TLS, s.AllowTLS12 = ca.serverTLS(t), true
	s.TLS.MaxVersion = tls.VersionTLS12
	o, err := AddressOptions(ca.address(listen(t, s), ca.issue(t)))
	if err != nil {
		t.Fatal(err)
	}
	o.TLS.MinVersion = 0
	if _, err := Dial(t.Context(), o); err == nil {
		t.Error("TLS 1.2 was accepted unasked")
	}
	o.AllowTLS12 = true
	c, err := Dial(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	_ = c.Close()
}

func TestNbdcopyOverTLS(t *testing.T) {
	testenv.Need(t, "nbdcopy")
	ca := newAuthority(t)
	m := randomMemory(3<<20, 9)
	path := listen(t, tlsServer(t, ca, m.export()))
	file := filepath.Join(t.TempDir(), "disk")
	run(t, "nbdcopy", "nbds+unix://localhost/disk?socket="+path+"&tls-certificates="+ca.directory(t, "client"), file)
	if got, err := os.ReadFile(file); err != nil || !bytes.Equal(got, m.data) {
		t.Fatalf("copied out: %v", err)
	}
}
