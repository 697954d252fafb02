package scenario

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/core/agent"
	"github.com/holdfast-dr/holdfast/testenv/stack"
)

// canary is a secret, with the files that may have it.
type canary struct {
	name   string
	homes  []string // parts of their paths
	traces [][]byte // its forms
}

// newCanary makes the forms in which a secret may turn up: as it is, in hex, and
// in base64, wherever it begins in what was encoded.
func newCanary(name string, secret []byte, homes ...string) canary {
	c := canary{name: name, homes: homes, traces: [][]byte{secret, []byte(hex.EncodeToString(secret)), []byte(strings.ToUpper(hex.EncodeToString(secret)))}}
	for shift := range 3 {
		padded := append(make([]byte, shift), secret...)
		for _, encoding := range []*base64.Encoding{base64.RawStdEncoding, base64.RawURLEncoding} {
			text := []byte(encoding.EncodeToString(padded))
			c.traces = append(c.traces, text[min(4, 2*shift):len(text)-2]) // without what is shared with the neighbours
		}
	}
	return c
}

// in says whether a text has the secret in any form.
func (c canary) in(b []byte) bool {
	return slices.ContainsFunc(c.traces, func(trace []byte) bool { return bytes.Contains(b, trace) })
}

func (c canary) mayBeIn(path string) bool {
	return slices.ContainsFunc(c.homes, func(home string) bool { return strings.Contains(path, home) })
}

// walk looks for secrets.
type walk struct {
	canaries []canary
	mu       sync.Mutex // guards what follows
	found    map[string]bool
	looked   int
}

// look notes which secrets a text has that it must not have.
func (w *walk) look(place string, b []byte) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.looked++
	for _, c := range w.canaries {
		if !c.mayBeIn(place) && c.in(b) {
			w.found[c.name+" in "+place] = true
		}
	}
}

// files looks into every file below a directory.
func (w *walk) files(dir string) error {
	return filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) || err == nil && !entry.Type().IsRegular() {
			return nil
		}
		if err != nil {
			return err
		}
		b, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err == nil {
			w.look(path, b)
		}
		return err
	})
}

// processes looks at the arguments and the environment of every process of the
// programs under test. environ is for those that have no business with a secret:
// the operator's own commands get theirs that way.
func (w *walk) processes(dir string) {
	all, _ := filepath.Glob("/proc/[0-9]*")
	for _, process := range all {
		arguments, err := os.ReadFile(process + "/cmdline")
		if err != nil || !bytes.Contains(arguments, []byte(dir)) {
			continue
		}
		w.look(process+"/cmdline", bytes.ReplaceAll(arguments, []byte{0}, []byte{' '}))
		if environ, err := os.ReadFile(process + "/environ"); err == nil && (bytes.Contains(arguments, []byte("\x00serve")) ||
			bytes.Contains(arguments, []byte("\x00server")) || bytes.Contains(arguments, []byte("holdfast-plugin-"))) {
			w.look(process+"/environ", environ)
		}
	}
}

// A search that finds nothing proves nothing, unless it finds what is there.
func TestCanariesAreFoundInEveryForm(t *testing.T) {
	secret := []byte("a secret of some length, with ÿ>? in it")
	c := newCanary("it", secret)
	for name, form := range map[string]string{
		"plain": string(secret), "hex": hex.EncodeToString(secret), "HEX": fmt.Sprintf("%X", secret),
		"base64": base64.StdEncoding.EncodeToString(secret), "url": base64.URLEncoding.EncodeToString(secret),
		"inside 1": base64.StdEncoding.EncodeToString([]byte("x" + string(secret) + "yz")),
		"inside 2": base64.StdEncoding.EncodeToString([]byte(`{"k":"` + string(secret) + `"}`)),
		"inside 3": base64.RawURLEncoding.EncodeToString([]byte(`ab` + string(secret) + `"}`)),
	} {
		if !c.in([]byte("before " + form + " after")) {
			t.Errorf("%s is not found in %q", name, form)
		}
	}
	if c.in([]byte("a secret of some length")) {
		t.Error("a part of it is taken for it")
	}
}

// Secrets stay where they belong, whatever is done and whatever fails: none is
// in a log, an answer, an argument, the environment of a daemon, a database, a
// profile or a repository, in plain, base64 or hexadecimal.
func TestSecretsStayWhereTheyBelong(t *testing.T) {
	l := newLab(t, stack.Options{})
	ctx := t.Context()
	profiles := filepath.Join(l.dir, "profiles.sock")
	l.must(l.Server.Stop(20 * time.Second))
	l.ServerFlags = []string{"--profiles", profiles}
	l.must(l.StartServer(ctx))

	const (
		password, wrongPassword = "Canary-password-7Qv2xLr9", "Canary-wrong-password-Zt4m"
		newPassword             = "Canary-other-password-b8Wq1s"
		passphrase, wrongPhrase = "canary passphrase orchid lantern ferry", "canary wrong passphrase velvet"
		wrongToken              = "hf_CanaryCanaryCanaryCanaryCanaryCanaryCanary0"
		wrongEnrolment          = "hfe_CanaryEnrolmentCanaryEnrolmentCanary00001"
		pluginSecret            = "-----BEGIN PRIVATE KEY-----\nCanaryPluginKeyCanaryPluginKeyCanaryPluginKey\n-----END PRIVATE KEY-----\n"
		content                 = "Canary-of-the-guest's-disk-"
	)
	b, err := os.ReadFile(l.kit)
	l.must(err)
	kit, err := agent.DecodeKit(b, "")
	l.must(err)
	keys, err := kit.Open()
	l.must(err)
	text, err := keys.Marshal()
	l.must(err)
	w := &walk{found: map[string]bool{}, canaries: []canary{
		newCanary("the password", []byte(password)), newCanary("the new password", []byte(newPassword)), newCanary("a wrong password", []byte(wrongPassword)),
		newCanary("the kit's passphrase", []byte(passphrase)), newCanary("a wrong passphrase", []byte(wrongPhrase)),
		newCanary("a wrong token", []byte(wrongToken)), newCanary("a wrong enrolment token", []byte(wrongEnrolment)),
		newCanary("the provider's token", []byte(l.Token), "/dev.env", "/admin.token", "/server.log"),
		newCanary("the enrolment token", []byte(l.Enrolment), "/dev.env", "/server.log"),
		newCanary("the plugin's key", []byte("CanaryPluginKeyCanaryPluginKeyCanaryPluginKey")),
		newCanary("the kit's identity", []byte(kit.Identity.String()), "/kit.txt"),
		newCanary("the guest's data", []byte(content), "/hypervisor/"),
		// PKCS #8 of a P-256 key up to the key itself: the CA's, the server's, the agent's.
		newCanary("a private key", []byte("\x30\x81\x87\x02\x01\x00\x30\x13\x06\x07\x2a\x86\x48\xce\x3d\x02\x01\x06\x08\x2a\x86\x48\xce\x3d\x03\x01\x07\x04\x6d")),
	}}
	var ring any
	l.must(json.Unmarshal(text, &ring))
	for name, key := range keysOf("", ring) {
		w.canaries = append(w.canaries, newCanary("the keyring's "+name, key))
	}
	if len(w.canaries) < 16 {
		t.Fatalf("only %d canaries", len(w.canaries))
	}
	for _, owner := range []string{l.ServerData(), l.AgentData()} {
		if key, err := os.ReadFile(filepath.Join(owner, "master.key")); err == nil {
			w.canaries = append(w.canaries, newCanary("the master key of "+filepath.Base(owner), bytes.TrimSpace(key), "/master.key"))
		} else if owner == l.ServerData() {
			t.Fatal(err)
		}
	}
	stop, watching := make(chan struct{}), sync.WaitGroup{}
	watching.Go(func() {
		for {
			w.processes(programs)
			select {
			case <-stop:
				return
			case <-time.After(20 * time.Millisecond): // a command lives longer
			}
		}
	})

	said := func(stdin string, run func(stdin io.Reader) (string, error), args ...string) {
		out, err := run(strings.NewReader(stdin))
		if err != nil {
			out += err.Error()
		}
		w.look("what holdfast "+strings.Join(args, " ")+" says", []byte(out))
	}
	tenant := func(stdin string, args ...string) {
		said(stdin, func(stdin io.Reader) (string, error) { return l.RunWith(ctx, stdin, args...) }, args...)
	}
	provider := func(args ...string) {
		said("", func(io.Reader) (string, error) { return l.Provider(ctx, args...) }, args...)
	}
	secretFile := func(name, secret string) string { // the operator's own, outside of what is searched
		path := filepath.Join(t.TempDir(), name)
		l.must(os.WriteFile(path, []byte(secret), 0o600))
		return path
	}

	// What succeeds.
	web := l.machine("web", 16*mib)
	l.noise(web, 0, 0, mib, 1)
	l.must(l.hv.WriteDisk(web.ID, web.Disks[0].ID, 2*mib, bytes.Repeat([]byte(content), int(mib)/len(content))))
	l.do("job", "create", "nightly", "--endpoint", "lab", "--machine", "web")
	point := l.backup("nightly").Machines[0].Point
	l.restoreDisk(point, string(web.Disks[0].ID), "raw")
	l.do("point", "verify", point, "--wait")
	if _, err := l.Provider(ctx, "user", "create", "anna", "--role", "provider-operator", "--password-file", secretFile("p", password)); err != nil {
		t.Fatal(err)
	}
	if _, err := l.Provider(ctx, "user", "update", "anna", "--password-file", secretFile("n", newPassword)); err != nil {
		t.Fatal(err)
	}
	safe := filepath.Join(t.TempDir(), "safe-kit")
	if _, err := l.RunWith(ctx, strings.NewReader(passphrase+"\n"), "key", "export-kit", safe, "--passphrase-file", "-"); err != nil {
		t.Fatal(err)
	}

	// What fails, and says why.
	tenant(wrongPassword+"\n", "login", l.Address, "--fingerprint", l.Fingerprint, "--user", "anna", "--password-file", "-")
	tenant(password+"\n", "login", l.Address, "--fingerprint", l.Fingerprint, "--user", "anna", "--password-file", "-") // it is another one now
	tenant(wrongEnrolment+"\n", "agent", "connect", l.Address, "--fingerprint", l.Fingerprint, "--token-file", "-")
	tenant(l.Enrolment+"\n", "agent", "connect", l.Address, "--fingerprint", l.Fingerprint, "--token-file", "-") // it is spent
	tenant(wrongPhrase+"\n", "key", "import-kit", safe, "--passphrase-file", "-")
	tenant("", "plugin", "enable", "libvirt")
	tenant("", "endpoint", "add", "far", "--plugin", "libvirt", "--set", "uri=qemu+tls://127.0.0.1:1/system",
		"--set-file", "key="+secretFile("k", pluginSecret), "--set-file", "cert="+secretFile("c", pluginSecret), "--set-file", "ca="+secretFile("ca", "no certificate"))
	tenant("", "restore", "disk", point, "--disk", "none", "--to", filepath.Join(t.TempDir(), "x"), "--format", "raw", "--wait")
	api, err := l.ServerAPI()
	l.must(err)
	for _, path := range []string{"/v1/me", "/v1/status", "/v1/users", "/v1/certificate", "/v1/audit", "/v1/runs"} {
		var answer json.RawMessage
		l.must(api.Do(ctx, "GET", path, nil, &answer))
		w.look("the answer to "+path, answer)
	}
	l.refuseToken(wrongToken)
	l.must(l.hv.SetState(web.ID, "stopped"))
	tenant("", "job", "run", "nightly", "--wait")

	// What people look at.
	for _, list := range [][]string{{"tenant", "list"}, {"user", "list"}, {"token", "list"}, {"cloud-repository", "list"}, {"repository", "list"}, {"audit"}, {"run", "list", "--provider"},
		{"certificate"}, {"status", "--provider"}, {"tenant", "agents", "--tenant", "demo"}, {"tenant", "runs", "--tenant", "demo"}, {"repository", "sessions", "backups", "--tenant", "demo"}} {
		provider(append(list, "-o", "json")...)
	}
	for _, list := range [][]string{{"job", "list"}, {"point", "list"}, {"key", "list"}, {"endpoint", "list"}, {"plugin", "list"}, {"plugin", "describe", "libvirt"},
		{"run", "list"}, {"status"}, {"machine", "list"}, {"plugin", "logs", "sim"}, {"plugin", "logs", "libvirt"}} {
		tenant("", append(list, "-o", "json")...)
	}
	w.profiles(t, profiles)
	close(stop)
	watching.Wait()
	l.must(l.Agent.Stop(20 * time.Second))
	l.must(l.Server.Stop(20 * time.Second))
	l.must(w.files(l.dir))
	// A server for trying things out prints its tokens, once, for whoever started
	// it: not as an entry of its log.
	for line := range strings.Lines(l.Server.Output()) {
		if strings.Contains(line, "level=") {
			w.look("the server's log", []byte(line))
		}
	}
	for _, leak := range slices.Sorted(maps.Keys(w.found)) {
		t.Error(leak)
	}
	t.Logf("%d canaries, %d places", len(w.canaries), w.looked)
}

// keysOf are the keys in the JSON of a keyring.
func keysOf(name string, v any) map[string][]byte {
	out := map[string][]byte{}
	switch v := v.(type) {
	case map[string]any:
		for member, inner := range v {
			maps.Copy(out, keysOf(name+" "+member, inner))
		}
	case []any:
		for i, inner := range v {
			maps.Copy(out, keysOf(fmt.Sprintf("%s %d", name, i), inner))
		}
	case string:
		if key, err := base64.StdEncoding.DecodeString(v); err == nil && len(key) == 32 {
			out[name] = key
		}
	}
	return out
}

// refuseToken shows the API a token that nobody knows.
func (l *lab) refuseToken(token string) {
	l.t.Helper()
	known := l.Token
	l.Token = token
	defer func() { l.Token = known }()
	if _, err := l.Provider(l.t.Context(), "tenant", "list"); err == nil {
		l.t.Error("an unknown token is accepted")
	}
}

// profiles looks at what the server says of itself to whoever may ask.
func (w *walk) profiles(t *testing.T, socket string) {
	t.Helper()
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", socket)
	}
	c := &http.Client{Timeout: time.Minute, Transport: &http.Transport{DisableKeepAlives: true, DialContext: dial}}
	for _, what := range []string{"cmdline", "goroutine?debug=2", "heap?debug=1", "allocs?debug=1", "heap"} {
		answer, err := c.Get("http://server/debug/pprof/" + what)
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(answer.Body)
		if err := errors.Join(err, answer.Body.Close()); err != nil {
			t.Fatal(err)
		}
		w.look("the profile "+what, b)
	}
}
