// Package node_test builds the plugin in JavaScript of this directory and
// holds it against the contract.
package node_test

import (
	"bufio"
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"io"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/sdk"
	"github.com/holdfast-dr/holdfast/sdk/plugin"
	"github.com/holdfast-dr/holdfast/testenv"
)

// outside is a directory outside of the tree, with the programs under test. It
// is made by the first test that needs it.
var outside struct {
	once   sync.Once
	dir    string
	lacks  string // why the plugin could not be built here
	failed string
}

func TestMain(m *testing.M) {
	code := m.Run()
	_ = os.RemoveAll(outside.dir)
	os.Exit(code)
}

// program is the plugin, one file, alone in its directory.
func program(t *testing.T) string {
	t.Helper()
	testenv.Need(t, "node", "npm")
	outside.once.Do(func() { build(t) })
	switch {
	case outside.lacks != "":
		testenv.Lack(t, "%s", outside.lacks)
	case outside.failed != "":
		t.Fatal(outside.failed)
	}
	return filepath.Join(outside.dir, "bin", "holdfast-plugin-images")
}

// build does what README.md says, in a copy, so that nothing is left here.
func build(t *testing.T) {
	dir, err := os.MkdirTemp("", "holdfast-node-")
	if err != nil {
		t.Fatal(err)
	}
	outside.dir = dir
	here := filepath.Join(dir, "sdk", "example", "node")
	for _, file := range []string{"package.json", "package-lock.json", "build.mjs", "src", "../../plugin/v1/plugin.proto"} {
		copyTree(t, file, filepath.Join(here, file))
	}
	if err := os.Mkdir(filepath.Join(dir, "bin"), 0o700); err != nil {
		t.Fatal(err)
	}
	npm := func(args ...string) (string, error) {
		cmd := exec.Command(testenv.Tool(t, "npm"), args...)
		cmd.Dir = here
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	if out, err := npm("ci", "--ignore-scripts", "--no-audit", "--no-fund"); err != nil {
		outside.lacks = "needs the npm registry or a filled cache: npm ci: " + err.Error() + "\n" + out
		return
	}
	if out, err := npm("run", "build", "--", filepath.Join(dir, "bin", "holdfast-plugin-images")); err != nil {
		outside.failed = "npm run build: " + err.Error() + "\n" + out
	}
}

func copyTree(t *testing.T, from, to string) {
	t.Helper()
	info, err := os.Stat(from)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Dir(to), 0o700); err != nil {
		t.Fatal(err)
	}
	if info.IsDir() {
		if err := os.CopyFS(to, os.DirFS(from)); err != nil {
			t.Fatal(err)
		}
		return
	}
	text, err := os.ReadFile(from)
	if err == nil {
		err = os.WriteFile(to, text, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// lab is a directory with a machine of two disks.
func lab(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "scratch"), 0o700); err != nil {
		t.Fatal(err)
	}
	for disk, size := range map[string]int{"disk-0": 4 << 20, "disk-1": 2<<20 + 512} {
		content := make([]byte, size)
		_, _ = rand.Read(content)
		if err := os.WriteFile(filepath.Join(dir, "scratch", disk), content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// hook lets the suite list what the plugin could leave at the back-end. What a
// machine's claims were is remembered for good.
const hook = `#!/bin/sh
case $1 in
verbs) echo objects ;;
objects) find "$LAB" ! -name '*.json' ! -name .holdfast ;;
esac
`

// TestPassesVerify has an operator's command hold the program against the
// contract, and then a part of it again at the same place.
func TestPassesVerify(t *testing.T) {
	path := program(t)
	dir, tools := lab(t), t.TempDir()
	holdfast, script := filepath.Join(tools, "holdfast"), filepath.Join(tools, "hook.sh")
	if out, err := exec.Command("go", "build", "-buildvcs=false", "-o", holdfast, "github.com/holdfast-dr/holdfast/cmd/holdfast").CombinedOutput(); err != nil {
		t.Fatalf("build holdfast: %v\n%s", err, out)
	}
	if err := os.WriteFile(script, []byte(hook), 0o600); err != nil {
		t.Fatal(err)
	}
	all := []string{"source/snapshot-repeats", "source/reader", "platform/inventory", "source/older-claim-is-fenced", "source/extents",
		"source/leaves-nothing", "source/killed-in-snapshot", "source/stopped-process-is-fenced", "source/operation-ids"}
	for run, checks := range map[string][]string{"": all, "^source/(snapshot-repeats|reader)$": all[:2]} {
		var stdout, stderr bytes.Buffer
		verify := exec.Command(holdfast, "plugin", "verify", path, "-o", "json",
			"--set", "dir="+dir, "--machine", "scratch", "--foreign-space", "elsewhere", "--hook", "sh "+script, "--run", run)
		verify.Env = append(os.Environ(), "LAB="+dir)
		verify.Stdout, verify.Stderr = &stdout, &stderr
		if err := verify.Run(); err != nil {
			t.Fatalf("verify: %v\n%s%s", err, stdout.String(), stderr.String())
		}
		var report struct {
			Checks []struct{ Check, Ability, Result string }
		}
		if err := json.Unmarshal(stdout.Bytes(), &report); err != nil {
			t.Fatalf("%v in\n%s", err, stdout.String())
		}
		kept := make(map[string]bool)
		for _, c := range report.Checks {
			kept[c.Check] = c.Result == "kept"
		}
		for _, check := range checks {
			if !kept[check] {
				t.Errorf("check %s was not made:\n%s", check, stdout.String())
			}
		}
	}
}

// launch is how a host starts the program.
func launch(t *testing.T, path, dir string) plugin.Launch {
	t.Helper()
	sum, err := plugin.Checksum(path)
	if err != nil {
		t.Fatal(err)
	}
	settings, err := json.Marshal(map[string]string{"dir": dir})
	if err != nil {
		t.Fatal(err)
	}
	return plugin.Launch{Path: path, SHA256: sum, Settings: settings}
}

func start(t *testing.T, path, dir string) (*plugin.Process, error) {
	t.Helper()
	return plugin.Start(t.Context(), launch(t, path, dir))
}

// TestConfined runs the program as a host that is root does: as a user that may
// do nothing, within the bounds that a host sets.
func TestConfined(t *testing.T) {
	testenv.NeedRoot(t)
	path, nobody := program(t), 61234
	dir, err := os.MkdirTemp("", "lab") // not below a directory that the user may not enter
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	if err := errors.Join(os.CopyFS(dir, os.DirFS(lab(t))), os.Chmod(dir, 0o700), os.Lchown(dir, nobody, nobody)); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"scratch", "scratch/disk-0", "scratch/disk-1"} {
		if err := os.Lchown(filepath.Join(dir, name), nobody, nobody); err != nil {
			t.Fatal(err)
		}
	}
	l := launch(t, path, dir)
	l.User = &plugin.User{UID: uint32(nobody), GID: uint32(nobody), Own: true}
	l.Limits = plugin.Limits{MemoryBytes: 2 << 30, OpenFiles: 4096, Processes: 512}
	p, err := plugin.Start(t.Context(), l)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	source, ok := sdk.As[sdk.Source](p.Platform())
	if !ok {
		t.Fatal("it is no source")
	}
	snap, err := source.Snapshot(t.Context(), sdk.Op{ID: "a", Epoch: 1}, sdk.SnapshotRequest{Machine: "scratch"})
	if err != nil {
		t.Fatal(err)
	}
	disk, err := source.OpenDisk(t.Context(), snap, "disk-0")
	if err != nil {
		t.Fatal(err)
	}
	defer disk.Close()
	got := make([]byte, disk.Size())
	want, err := os.ReadFile(filepath.Join(dir, "scratch", "disk-0"))
	if err != nil {
		t.Fatal(err)
	}
	if n, err := disk.ReadAt(got, 0); n != len(got) || !bytes.Equal(got, want) {
		t.Errorf("%d bytes, %v, or other bytes than those of the disk", n, err)
	}
}

// TestErrorsArriveWhole reads an error of each kind that the plugin makes.
func TestErrorsArriveWhole(t *testing.T) {
	_, err := start(t, program(t), "relative")
	if !errors.Is(err, sdk.ErrInvalid) || !strings.Contains(sdk.HintOf(err), "absolute path") {
		t.Errorf("a relative directory: %v, hint %q", err, sdk.HintOf(err))
	}
	_, err = start(t, program(t), filepath.Join(t.TempDir(), "missing"))
	e, ok := errors.AsType[*sdk.Error](err)
	if !ok || !errors.Is(err, sdk.ErrUnavailable) || e.Fault != sdk.FaultBackend {
		t.Errorf("a missing directory: %#v", err)
	}
	p, err := start(t, program(t), lab(t))
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	source, ok := sdk.As[sdk.Source](p.Platform())
	if !ok {
		t.Fatal("it is no source")
	}
	// An epoch that does not fit into a number of JavaScript.
	op := sdk.Op{ID: "a", Epoch: 1<<63 + 1}
	snap, err := source.Snapshot(t.Context(), op, sdk.SnapshotRequest{Machine: "scratch"})
	if err != nil {
		t.Fatal(err)
	}
	op.Epoch--
	if err := source.EndSnapshot(t.Context(), op, snap, false); !errors.Is(err, sdk.ErrFenced) {
		t.Errorf("one epoch less: %v, want ErrFenced", err)
	}
	op.Epoch++
	if err := source.EndSnapshot(t.Context(), op, snap, false); err != nil {
		t.Error(err)
	}
	op.Space = "somebody else's"
	if _, err := source.Snapshot(t.Context(), op, sdk.SnapshotRequest{Machine: "scratch"}); !errors.Is(err, sdk.ErrDenied) {
		t.Errorf("a foreign space: %v, want ErrDenied", err)
	}
}

// TestEverythingIsInTheFile reads which modules the program loads: none but
// those of Node itself, so that one checksum covers all of it.
func TestEverythingIsInTheFile(t *testing.T) {
	text, err := os.ReadFile(program(t))
	if err != nil {
		t.Fatal(err)
	}
	modules := regexp.MustCompile(`\b(?:require|import)\(\s*(?:/\*.*?\*/\s*)?(?:["']([^"']*)["']\s*\))?`).FindAllSubmatch(text, -1)
	builtin, err := exec.Command(testenv.Tool(t, "node"), "-p", "require('module').builtinModules.join(' ')").Output()
	if err != nil || len(modules) == 0 {
		t.Fatal(len(modules), err)
	}
	known := strings.Fields(string(builtin))
	for _, m := range modules {
		if name := strings.TrimPrefix(string(m[1]), "node:"); !slices.Contains(known, name) {
			t.Errorf("the program loads %q from beside itself: %s", name, m[0])
		}
	}
	if at := regexp.MustCompile(`\beval\(.*`).Find(text); at != nil {
		t.Errorf("the program may load anything: %s", at)
	}
}

// TestTheCheckedFileIsRun exchanges the file, and what is beside it, between
// its check and its start. With the usual first line, Node would run neither.
func TestTheCheckedFileIsRun(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "holdfast-plugin-images")
	copyTree(t, program(t), path)
	file, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if err := errors.Join(os.Chmod(path, 0o755), os.Rename(path, path+".checked"),
		os.WriteFile(path, []byte("#!/usr/bin/env node\nconsole.log('exchanged')\n"), 0o600), os.Chmod(path, 0o755),
		os.WriteFile(filepath.Join(dir, "package.json"), []byte(`{"type":"module"}`), 0o600)); err != nil {
		t.Fatal(err)
	}
	describe := exec.Command("/proc/self/fd/3", "describe") // as plugin.Start does
	describe.ExtraFiles, describe.Env, describe.Dir = []*os.File{file}, []string{"PATH=" + os.Getenv("PATH")}, "/"
	out, err := describe.CombinedOutput()
	if err != nil || !strings.Contains(string(out), `"name": "images"`) {
		t.Errorf("described as %s, %v", out, err)
	}
}

// TestUsualFirstLine has the first line that most scripts have, which works as
// long as nobody exchanges the file.
func TestUsualFirstLine(t *testing.T) {
	text, err := os.ReadFile(program(t))
	if err != nil {
		t.Fatal(err)
	}
	_, body, _ := bytes.Cut(text, []byte("\n"))
	path := filepath.Join(t.TempDir(), "holdfast-plugin-images")
	if err := os.WriteFile(path, append([]byte("#!/usr/bin/env node\n"), body...), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, 0o755); err != nil {
		t.Fatal(err)
	}
	p, err := start(t, path, lab(t))
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	if _, err := p.Platform().Probe(t.Context(), sdk.Subject{Machine: "scratch"}); err != nil {
		t.Error(err)
	}
}

// byHand starts the program without plugin.Start, as another host could, and
// answers the parts of its first line.
func byHand(t *testing.T, certificate []byte) (line []string, stdin io.Closer, ended <-chan error) {
	t.Helper()
	dir, err := os.MkdirTemp("", "run")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	cmd := exec.Command(program(t))
	cmd.Env = []string{
		"PATH=" + os.Getenv("PATH"), "HOLDFAST_PLUGIN=a host started this process", "PLUGIN_PROTOCOL_VERSIONS=1,2",
		"PLUGIN_UNIX_SOCKET_DIR=" + dir, "PLUGIN_CLIENT_CERT=" + string(certificate),
	}
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	first, err := bufio.NewReader(out).ReadString('\n')
	go func() { done <- cmd.Wait() }()
	t.Cleanup(func() { cmd.Process.Kill() })
	if err != nil {
		t.Fatal(err)
	}
	return strings.Split(strings.TrimSpace(first), "|"), in, done
}

// identity is a certificate as AutoMTLS makes them: of P-521, signed by itself.
func identity(t *testing.T) (tls.Certificate, []byte) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P521(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "localhost"}, DNSNames: []string{"localhost"},
		NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true,
		KeyUsage:    x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

// TestOnlyItsHostMayCall dials the control socket with the host's certificate,
// with a stranger's, and with none.
func TestOnlyItsHostMayCall(t *testing.T) {
	host, certificate := identity(t)
	stranger, _ := identity(t)
	line, stdin, _ := byHand(t, certificate)
	defer stdin.Close()
	if len(line) != 6 || line[0] != "1" || line[1] != "1" || line[2] != "unix" || line[4] != "grpc" {
		t.Fatalf("the first line is %q", line)
	}
	der, err := base64.RawStdEncoding.DecodeString(line[5])
	if err != nil {
		t.Fatal(err)
	}
	own, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(own)
	for name, certificates := range map[string][]tls.Certificate{"host": {host}, "stranger": {stranger}, "nobody": nil} {
		conn, err := tls.Dial("unix", line[3], &tls.Config{
			Certificates: certificates, RootCAs: roots, ServerName: "localhost", NextProtos: []string{"h2"}, MinVersion: tls.VersionTLS13,
		})
		if err == nil {
			// In TLS 1.3 a client hears of its refusal with the first read.
			_, err = conn.Read(make([]byte, 1))
			conn.Close()
		}
		if (err == nil) != (name == "host") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestEndsWithItsHost closes the program's standard input, as the kernel does
// for a host that died.
func TestEndsWithItsHost(t *testing.T) {
	_, certificate := identity(t)
	_, stdin, ended := byHand(t, certificate)
	if err := stdin.Close(); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-ended:
		if err != nil {
			t.Errorf("it ended with %v", err)
		}
	case <-time.After(time.Minute):
		t.Error("it goes on without a host")
	}
}
