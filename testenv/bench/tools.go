package main

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/holdfast-dr/holdfast/testenv"
	"github.com/holdfast-dr/holdfast/testenv/stack"
)

// tools is what all peers but Holdfast are made of: programs, a directory, an
// environment, a server.
type tools struct {
	title  string
	dir    string // of this peer in this round
	env    []string
	pair   pair
	server *stack.Process
}

func newTools(r *round, title string) tools {
	dir := filepath.Join(r.dir, title)
	env := []string{"PATH=" + os.Getenv("PATH"), "HOME=" + dir, "TMPDIR=" + dir, "LANG=C.UTF-8", "TZ=UTC"}
	return tools{title: title, dir: dir, env: env, pair: r.pair}
}

func (t *tools) name() string       { return t.title }
func (t *tools) repository() string { return filepath.Join(t.dir, "repository") }
func (t *tools) disks() string      { return filepath.Join(t.dir, "disks") }
func (t *tools) image() string      { return filepath.Join(t.disks(), "vm.img") }
func (t *tools) target() string     { return filepath.Join(t.dir, "restored") }
func (t *tools) restored() string   { return filepath.Join(t.target(), "vm.img") }

func (t *tools) check(context.Context, operation) error { return nil }

func (t *tools) daemons() []daemon {
	if t.server == nil {
		return nil
	}
	return []daemon{{pid: t.server.PID(), role: server, children: server}}
}

func (t *tools) stop() error {
	if t.server == nil {
		return nil
	}
	return t.server.Stop(20 * time.Second)
}

// findProgram finds one of the programs that setup.sh installs: what it built
// itself comes first, since another version may be in PATH.
func findProgram(name string) (string, error) {
	if root, err := stack.Module(); err == nil {
		if path, err := exec.LookPath(filepath.Join(root, "build", "tools", "bin", name)); err == nil {
			return path, nil
		}
	}
	if path, ok := testenv.FindTool(name); ok {
		return path, nil
	}
	return "", fmt.Errorf("%s is missing: testenv/setup.sh bench installs it", name)
}

// mkdirs makes the directories that every peer has.
func (t *tools) mkdirs() error {
	return errors.Join(os.MkdirAll(t.repository(), 0o700), os.MkdirAll(t.disks(), 0o700), os.MkdirAll(t.target(), 0o700))
}

// place puts the day's image in its place. Its time is new: that of a disk that
// is in use always is, and tools that trust the time would read nothing.
func (t *tools) place(day int) ([]string, error) {
	_ = os.Remove(t.image()) // the day before
	if err := os.Link(t.pair.day(day), t.image()); err != nil {
		return nil, err
	}
	now := time.Now()
	return []string{t.image()}, os.Chtimes(t.image(), now, now)
}

// input puts in place what an operation reads.
func (t *tools) input(op operation) ([]string, error) {
	switch op {
	case opIncremental:
		return t.place(2)
	case opRestore:
		return []string{t.repository()}, errors.Join(os.RemoveAll(t.target()), os.MkdirAll(t.target(), 0o700))
	default:
		return t.place(1)
	}
}

func (t *tools) command(ctx context.Context, program string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Env, cmd.Dir = t.env, t.dir
	return cmd
}

// call runs a command that is not measured.
func (t *tools) call(ctx context.Context, program string, args ...string) (string, error) {
	cmd := t.command(ctx, program, args...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("%s %s: %w: %s", filepath.Base(program), strings.Join(args, " "), err, lastLine(stderr.String()))
	}
	return string(out), nil
}

func lastLine(text string) string {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	return lines[len(lines)-1]
}

// serve starts the server and waits until it answers and ready says so.
func (t *tools) serve(ctx context.Context, port int, ready func(output string) bool, program string, args ...string) (err error) {
	t.server, err = stack.StartProcess(t.title, filepath.Join(t.dir, "server.log"), t.env, program, args...)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	return stack.Until(ctx, t.title+"'s server to answer", func() (bool, error) {
		select {
		case <-t.server.Done():
			cancel()
			return false, fmt.Errorf("it ended: %s", lastLine(t.server.Output()))
		default:
		}
		conn, err := net.DialTimeout("tcp", "127.0.0.1:"+strconv.Itoa(port), time.Second)
		if err != nil {
			return false, err
		}
		defer conn.Close()
		// A port of the ephemeral range can be connected to itself.
		return conn.LocalAddr().String() != conn.RemoteAddr().String() && ready(t.server.Output()), nil
	})
}

func anyOutput(string) bool { return true }

func freePort() (int, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	defer l.Close()
	address, ok := l.Addr().(*net.TCPAddr)
	if !ok {
		return 0, errors.New("the port is not TCP's")
	}
	return address.Port, nil
}

// certificate makes a certificate for loopback and returns its SHA-256.
func certificate(certFile, keyFile string) (fingerprint string, err error) {
	pair, err := selfSigned()
	if err != nil {
		return "", err
	}
	private, err := x509.MarshalPKCS8PrivateKey(pair.PrivateKey)
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256(pair.Certificate[0])
	return hex.EncodeToString(sum[:]), errors.Join(
		os.WriteFile(certFile, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: pair.Certificate[0]}), 0o600),
		os.WriteFile(keyFile, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private}), 0o600))
}

func selfSigned() (tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, err
	}
	now := time.Now()
	template := x509.Certificate{SerialNumber: big.NewInt(now.UnixNano()), Subject: pkix.Name{CommonName: "127.0.0.1"},
		NotBefore: now.Add(-time.Hour), NotAfter: now.Add(48 * time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}
	der, err := x509.CreateCertificate(rand.Reader, &template, &template, key.Public(), key)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, err
}
