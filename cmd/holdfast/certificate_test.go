package main

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"log/slog"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/core/pki"
)

// Whoever follows the server's first words has to get in, also where the certificate is not of the provider's own CA.
func TestFirstSignInNamesWhatCanBePinned(t *testing.T) {
	dir := t.TempDir()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), DNSNames: []string{"backup.example.com"}}
	certificate, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "server.pem")
	text := append(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: certificate}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private})...)
	if err := os.WriteFile(file, text, 0o600); err != nil {
		t.Fatal(err)
	}
	parsed, err := x509.ParseCertificate(certificate)
	if err != nil {
		t.Fatal(err)
	}

	c := serverConfig{Data: dir, Address: "backup.example.com:6180", Provider: "Test provider", Database: "sqlite:" + filepath.Join(dir, "state.db"),
		MasterKey: "file:" + filepath.Join(dir, "master.key"), Grace: time.Second}
	c.Certificate.File = file
	var log bytes.Buffer
	s, err := newServer(t.Context(), c, "", slog.New(slog.NewTextHandler(&log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.close(); err != nil {
			t.Error(err)
		}
	})
	if err := s.bootstrap(t.Context()); err != nil {
		t.Fatal(err)
	}
	_, said, _ := strings.Cut(log.String(), "--fingerprint ")
	said, _, _ = strings.Cut(said, " ")
	pin, err := pki.ParseFingerprint(strings.Trim(said, "\"\n"))
	if err != nil {
		t.Fatalf("the log names no fingerprint: %v\n%s", err, log.String())
	}
	near, far := net.Pipe()
	done := make(chan error, 1)
	go func() { done <- tls.Server(far, s.certificate.Config()).HandshakeContext(t.Context()) }()
	err = tls.Client(near, pki.Trust{Pins: []pki.Fingerprint{pin}}.ClientConfig("backup.example.com", nil)).HandshakeContext(t.Context())
	if err := errors.Join(err, <-done); err != nil {
		t.Errorf("whoever pins %s does not get in: %v", pin, err)
	}
	if !s.certificate.Certificate().Leaf.Equal(parsed) {
		t.Error("everybody else is not presented the certificate of the configuration")
	}
}
