package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"
)

// writeCertificate replaces a PEM file, as the tools that renew certificates do.
func writeCertificate(t *testing.T, file string, serial int64) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(serial), NotAfter: time.Now().Add(time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}}
	certificate, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	writeFile(t, file, append(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: certificate}),
		pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private})...))
}

func writeFile(t *testing.T, file string, content []byte) {
	t.Helper()
	if err := os.WriteFile(file+".new", content, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(file+".new", file); err != nil {
		t.Fatal(err)
	}
}

// SIGHUP makes the real process look at its certificate's files: new connections
// get the new certificate, and files that are no certificate change nothing.
func TestHangupChangesTheCertificate(t *testing.T) {
	program, err := exec.LookPath("holdfast") // testscript.Main puts it on PATH
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	file, log := filepath.Join(dir, "server.pem"), filepath.Join(dir, "log")
	writeCertificate(t, file, 1)
	out, err := os.Create(log)
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	cmd := exec.Command(program, "server", "--data", filepath.Join(dir, "data"), "--listen", "127.0.0.1:0", "--address", "127.0.0.1", "--certificate-file", file)
	cmd.Stdout, cmd.Stderr = out, out
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = cmd.Wait() // what it said is in the log
	}()
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		<-ended
	})
	said := func() string {
		b, err := os.ReadFile(log)
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	wait := func(what string, is func(log string) bool) {
		t.Helper()
		deadline := time.After(3 * time.Minute)
		for !is(said()) {
			select {
			case <-ended:
				t.Fatalf("the server ended before %s:\n%s", what, said())
			case <-deadline:
				t.Fatalf("waited in vain for %s:\n%s", what, said())
			case <-time.After(20 * time.Millisecond):
			}
		}
	}
	serving := regexp.MustCompile(`msg=serving address=(\S+)`)
	wait("it serves", serving.MatchString)
	address := serving.FindStringSubmatch(said())[1]
	dial := func() *tls.Conn {
		t.Helper()
		c, err := tls.Dial("tcp", address, &tls.Config{InsecureSkipVerify: true}) // its serial number is compared instead
		if err != nil {
			t.Fatalf("%v\n%s", err, said())
		}
		t.Cleanup(func() { c.Close() })
		return c
	}
	serial := func(c *tls.Conn) int64 { return c.ConnectionState().PeerCertificates[0].SerialNumber.Int64() }
	hangups := 0
	hangup := func() {
		t.Helper()
		hangups++
		if err := cmd.Process.Signal(syscall.SIGHUP); err != nil {
			t.Fatal(err)
		}
		wait("SIGHUP is answered", func(log string) bool { return strings.Count(log, "as SIGHUP asks") == hangups })
	}

	if got := serial(dial()); got != 1 {
		t.Fatalf("at first the certificate has serial number %d", got)
	}
	writeCertificate(t, file, 2)
	hangup()
	if got := serial(dial()); got != 2 {
		t.Errorf("after SIGHUP the certificate has serial number %d", got)
	}
	writeFile(t, file, []byte("half a certificate"))
	hangup()
	if got := serial(dial()); got != 2 || !strings.Contains(said(), "keep the present server certificate") {
		t.Errorf("with a broken file the certificate has serial number %d:\n%s", got, said())
	}
}
