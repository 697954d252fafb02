package plugin_test

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/holdfast-dr/holdfast/sdk"
	"github.com/holdfast-dr/holdfast/sdk/plugin"
	"github.com/holdfast-dr/holdfast/sdk/sim"
)

// until polls a condition; a test that needs more than the limit has failed.
func until(t *testing.T, what string, done func() bool) {
	t.Helper()
	deadline := time.After(time.Minute)
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for !done() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("waited in vain: %s", what)
		}
	}
}

func TestErrorsSurviveTheWire(t *testing.T) {
	both(t, map[string]any{"dir": t.TempDir()}, func(t *testing.T, p *plugin.Process) {
		for _, form := range errorForms() {
			_, got := probe(p, "error "+form.name)
			if got == nil {
				t.Errorf("%s: no error", form.name)
				continue
			}
			for _, code := range sdk.Codes() {
				want := errors.Is(form.err, code.Sentinel())
				if errors.Is(got, code.Sentinel()) != want {
					t.Errorf("%s: errors.Is(%v, %v) is %t here, %t there", form.name, got, code.Sentinel(), !want, want)
				}
			}
			if sdk.CodeOf(got) != sdk.CodeOf(form.err) {
				t.Errorf("%s: code %s, want %s", form.name, sdk.CodeOf(got), sdk.CodeOf(form.err))
			}
			if sdk.HintOf(got) != sdk.HintOf(form.err) {
				t.Errorf("%s: hint %q, want %q", form.name, sdk.HintOf(got), sdk.HintOf(form.err))
			}
			var want, have *sdk.Error
			if !errors.As(got, &have) {
				t.Errorf("%s: %T is not an sdk.Error", form.name, got)
				continue
			}
			fault := sdk.FaultPlugin
			if errors.As(form.err, &want) {
				fault = want.Fault
				if have.Progress != want.Progress || have.After != want.After {
					t.Errorf("%s: progress %v after %v, want %v after %v", form.name, have.Progress, have.After, want.Progress, want.After)
				}
			}
			if have.Fault != fault {
				t.Errorf("%s: fault of %s, want %s", form.name, have.Fault, fault)
			}
			if strings.HasPrefix(form.name, "wrapped") || strings.HasPrefix(form.name, "typed") || strings.HasPrefix(form.name, "bare") {
				if got.Error() != form.err.Error() {
					t.Errorf("%s: text %q, want %q", form.name, got, form.err)
				}
			}
			if len(got.Error()) > 8<<10 {
				t.Errorf("%s: a text of %d bytes came through", form.name, len(got.Error()))
			}
		}
	})
}

func TestWrongChecksumIsRefused(t *testing.T) {
	l := launch(t, map[string]any{"dir": t.TempDir()})
	for _, sum := range []string{"", strings.Repeat("0", 64), l.SHA256[:63]} {
		l.SHA256 = sum
		p, err := plugin.Start(t.Context(), l)
		if !errors.Is(err, sdk.ErrDenied) {
			t.Errorf("start with checksum %q: %v, want ErrDenied", sum, err)
		}
		if p != nil {
			p.Close()
		}
		if _, err := plugin.Describe(t.Context(), l.Path, sum); !errors.Is(err, sdk.ErrDenied) {
			t.Errorf("describe with checksum %q: %v, want ErrDenied", sum, err)
		}
	}
}

func TestEnvironmentIsNotPassedOn(t *testing.T) {
	t.Setenv("HOLDFAST_CANARY", "sings")
	p := start(t, launch(t, map[string]any{"dir": t.TempDir()}))
	r, err := probe(p, "environment")
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(r.Product, "CANARY") || strings.Contains(r.Product, "HOME=") {
		t.Errorf("the plugin sees %s", r.Product)
	}
}

// TestOnlyItsHostMayCall reads which certificate a process trusts, and calls it
// with another and with none.
func TestOnlyItsHostMayCall(t *testing.T) {
	p := start(t, launch(t, map[string]any{"dir": t.TempDir()}))
	r, err := probe(p, "environment")
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode([]byte(r.Product[strings.Index(r.Product, "-----BEGIN"):]))
	certificate, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	if key, ok := certificate.PublicKey.(*ecdsa.PublicKey); !ok || key.Curve != elliptic.P256() {
		t.Errorf("the host's key is a %T, want one of P-256, which every TLS library takes", certificate.PublicKey)
	}
	if strings.Contains(r.Product, "PRIVATE") {
		t.Error("the process has a private key of its host")
	}
	_, dir, _ := strings.Cut(r.Product, "PLUGIN_UNIX_SOCKET_DIR=")
	dir, _, _ = strings.Cut(dir, "\n")
	sockets, err := filepath.Glob(filepath.Join(dir, "plugin*"))
	if err != nil || len(sockets) != 1 {
		t.Fatal(sockets, err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	forged := *certificate // all but the key is the host's
	forged.PublicKey = nil
	der, err := x509.CreateCertificate(rand.Reader, &forged, &forged, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	stranger := tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
	for name, certificates := range map[string][]tls.Certificate{"a stranger": {stranger}, "nobody": nil} {
		conn, err := tls.Dial("unix", sockets[0], &tls.Config{
			Certificates: certificates, InsecureSkipVerify: true, NextProtos: []string{"h2"}, MinVersion: tls.VersionTLS13,
		})
		if err == nil {
			_, err = conn.Read(make([]byte, 1)) // where a client hears of its refusal
			conn.Close()
		}
		if err == nil {
			t.Errorf("%s was let in", name)
		}
	}
}

func TestPanicBecomesAnError(t *testing.T) {
	var log logged
	l := launch(t, map[string]any{"dir": t.TempDir()})
	l.Log = log.logger()
	p := start(t, l)
	_, err := probe(p, "panic")
	var e *sdk.Error
	if !errors.As(err, &e) || e.Fault != sdk.FaultPlugin || !strings.Contains(e.Message, "Probe panicked: on request") {
		t.Fatalf("probe: %v, want the panic as the plugin's fault", err)
	}
	if _, err := probe(p, ""); err != nil {
		t.Errorf("the call after the panic: %v", err)
	}
	until(t, "the stack in the log", func() bool { return strings.Contains(log.String(), "puppet).Probe") })
	if n := strings.Count(log.String(), "the plugin panicked"); n != 1 {
		t.Errorf("the panic was logged %d times:\n%s", n, log.String())
	}
}

func TestSecretsAreHidden(t *testing.T) {
	const secret = `hunter"2\x`
	var log logged
	l := launch(t, map[string]any{"dir": t.TempDir(), "password": secret})
	l.Log = log.logger()
	p := start(t, l)
	_, err := probe(p, "leak")
	if !errors.Is(err, sdk.ErrDenied) || strings.Contains(err.Error(), "hunter") || !strings.Contains(err.Error(), plugin.Redacted) {
		t.Errorf("error: %v", err)
	}
	until(t, "both lines in the log", func() bool {
		return strings.Contains(log.String(), "connecting") && strings.Contains(log.String(), "raw line")
	})
	if strings.Contains(log.String(), "hunter") {
		t.Errorf("the secret is in the log:\n%s", log.String())
	}
	if !strings.Contains(log.String(), "call=Probe") {
		t.Errorf("the log does not name the call:\n%s", log.String())
	}
	redacted := string(p.Describe().Config.Redact(l.Settings))
	if strings.Contains(redacted, "hunter") || !strings.Contains(redacted, plugin.Redacted) {
		t.Errorf("redacted settings: %s", redacted)
	}
}

func TestBadSettingsNeverReachThePlugin(t *testing.T) {
	_, err := plugin.Start(t.Context(), launch(t, map[string]any{"password": "hunter2", "colour": "red"}))
	if !errors.Is(err, sdk.ErrInvalid) {
		t.Fatalf("start: %v, want ErrInvalid", err)
	}
	for _, part := range []string{`"colour" is unknown`, "dir is required"} {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("%q lacks %q", err, part)
		}
	}
	if strings.Contains(err.Error(), "hunter2") {
		t.Errorf("%q tells the secret", err)
	}
}

func TestDescribe(t *testing.T) {
	l := launch(t, nil)
	got, err := plugin.Describe(t.Context(), l.Path, l.SHA256)
	if err != nil {
		t.Fatal(err)
	}
	want, err := author.Describe()
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("description (-want +got):\n%s", diff)
	}
	if _, err := plugin.Describe(t.Context(), "/bin/false", sumOf(t, "/bin/false")); err == nil {
		t.Error("a program that fails was described")
	}
}

// TestDescribeFindsInterpreters has a script whose interpreter is looked for
// described where it is also found when the script is started.
func TestDescribeFindsInterpreters(t *testing.T) {
	const script = `#!/bin/sh
path=$(tr '\0' '\n' </proc/$$/environ | sed -n 's/^PATH=//p')
case $path in /usr/local/sbin:/usr/local/bin:*) found=yes ;; *) found=no ;; esac
echo '{"name": "script", "version": "'$found'", "protocol": 1}'
`
	path := filepath.Join(t.TempDir(), "holdfast-plugin-script")
	if err := os.WriteFile(path, []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	d, err := plugin.Describe(t.Context(), path, sumOf(t, path))
	if err != nil || d.Version != "yes" {
		t.Errorf("its PATH is that of a started plugin: %q, %v", d.Version, err)
	}
}

func sumOf(t *testing.T, path string) string {
	t.Helper()
	sum, err := plugin.Checksum(path)
	if err != nil {
		t.Fatal(err)
	}
	return sum
}

func TestWhatIsNoPlugin(t *testing.T) {
	_, err := plugin.Start(t.Context(), plugin.Launch{Path: "/bin/true", SHA256: sumOf(t, "/bin/true")})
	if !errors.Is(err, sdk.ErrUnavailable) {
		t.Errorf("start of a program that is no plugin: %v, want ErrUnavailable", err)
	}
	if _, err := plugin.Start(t.Context(), plugin.Launch{Path: "/nowhere"}); !errors.Is(err, sdk.ErrNotFound) {
		t.Errorf("start of nothing: %v, want ErrNotFound", err)
	}
}

func TestCallLimit(t *testing.T) {
	t.Parallel()
	both := map[string]func(testing.TB, plugin.Launch) *plugin.Process{"local": local, "process": start}
	for name, open := range both {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := launch(t, map[string]any{"dir": t.TempDir(), "faults": []sim.Fault{
				{Call: "Probe", Action: sim.ActionHang}, {Call: "Machines", Action: sim.ActionHang, Nth: 2},
			}})
			l.CallLimit = 3 * time.Second // the calls that do not hang come nowhere near it, on a busy machine either
			p := open(t, l)
			if _, err := probe(p, ""); !errors.Is(err, sdk.ErrUnavailable) {
				t.Errorf("probe that hangs: %v, want ErrUnavailable", err)
			}
			for range 2 {
				for _, err := range p.Platform().Machines(t.Context()) {
					if !errors.Is(err, sdk.ErrUnavailable) {
						t.Errorf("listing that hangs: %v, want ErrUnavailable", err)
					}
				}
			}
			if _, err := probe(p, ""); err != nil {
				t.Errorf("the call after: %v", err)
			}
		})
	}
}

// TestPendingAtTheLimitIsHeard has an author wait for the end of its context
// and answer only then.
func TestPendingAtTheLimitIsHeard(t *testing.T) {
	t.Parallel()
	l := launch(t, map[string]any{"dir": t.TempDir()})
	l.CallLimit = 8 * time.Second // a tenth of it is there for the answer
	p := start(t, l)
	late := make(chan error, 1)
	go func() {
		_, err := probe(p, "late")
		late <- err
	}()
	_, err := probe(p, "slow")
	var e *sdk.Error
	if !errors.Is(err, sdk.ErrPending) || !errors.As(err, &e) || e.Progress != 0.5 {
		t.Errorf("a slow call: %v, want its ErrPending with progress", err)
	}
	if err := <-late; !errors.Is(err, sdk.ErrUnavailable) {
		t.Errorf("a call that gave up with its context: %v, want ErrUnavailable", err)
	}
}

func TestFailedStartLeavesNothing(t *testing.T) {
	run, err := os.MkdirTemp("", "run")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(run)
	l := launch(t, map[string]any{"dir": "/dev/null/nowhere"})
	l.RunDir = run
	if _, err := plugin.Start(t.Context(), l); err == nil {
		t.Fatal("a plugin without its back-end started")
	}
	if left, _ := filepath.Glob(filepath.Join(run, "*")); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
}

func TestCancelledCallerSeesItsOwnCancellation(t *testing.T) {
	both(t, map[string]any{"dir": t.TempDir(), "faults": []sim.Fault{{Call: "Probe", Action: sim.ActionHang}}}, func(t *testing.T, p *plugin.Process) {
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { _, err := p.Platform().Probe(ctx, sdk.Subject{}); done <- err }()
		cancel()
		err := <-done
		if !errors.Is(err, context.Canceled) || sdk.CodeOf(err) != sdk.CodeUnknown {
			t.Errorf("probe: %v, want context.Canceled alone", err)
		}
	})
}

func TestHugeAnswerIsRefused(t *testing.T) {
	both(t, map[string]any{"dir": t.TempDir()}, func(t *testing.T, p *plugin.Process) {
		_, err := probe(p, "huge")
		var e *sdk.Error
		if !errors.As(err, &e) || e.Fault != sdk.FaultPlugin {
			t.Errorf("probe: %v, want a fault of the plugin", err)
		}
		if _, err := probe(p, ""); err != nil {
			t.Errorf("the call after: %v", err)
		}
	})
}

// TestKilledInMidCall has the process die after it did the work and before it
// answered; a fresh process, asked again, finds it.
func TestKilledInMidCall(t *testing.T) {
	dir := t.TempDir()
	hv, err := sim.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	fields := map[string]any{"dir": dir, "faults": []sim.Fault{
		{Call: "CreateDraft", Action: sim.ActionDie}, {Call: "CommitDraft", Action: sim.ActionDie},
	}}
	p := start(t, launch(t, fields))
	target := func() sdk.Target {
		target, ok := sdk.As[sdk.Target](p.Platform())
		if !ok {
			t.Fatal("no target")
		}
		return target
	}
	fresh := func(err error) {
		t.Helper()
		if !errors.Is(err, sdk.ErrUnavailable) {
			t.Fatalf("the call that killed the process: %v, want ErrUnavailable", err)
		}
		<-p.Done()
		p = start(t, launch(t, fields))
	}
	spec := sdk.DraftSpec{Machine: sdk.Machine{Name: "new", Disks: []sdk.Disk{{ID: "vda", SizeBytes: 1 << 20}}}}
	create := sdk.Op{ID: "create", Epoch: 1}
	_, err = target().CreateDraft(t.Context(), create, spec)
	fresh(err)
	draft, err := target().CreateDraft(t.Context(), create, spec)
	if err != nil {
		t.Fatal(err)
	}
	commit := sdk.Op{ID: "commit", Epoch: 1}
	_, err = target().CommitDraft(t.Context(), commit, draft)
	fresh(err)
	id, err := target().CommitDraft(t.Context(), commit, draft)
	if err != nil {
		t.Fatal(err)
	}
	machines, err := hv.Machines()
	if err != nil {
		t.Fatal(err)
	}
	if len(machines) != 1 || machines[0].ID != id {
		t.Errorf("machines %v, want the one that was committed, %s", machines, id)
	}
	objects, err := hv.Objects()
	if err != nil {
		t.Fatal(err)
	}
	for _, o := range objects {
		if strings.HasPrefix(o, "draft") {
			t.Errorf("left behind: %s", o)
		}
	}
}

func TestSocketsArePrivateAndRemoved(t *testing.T) {
	run, err := os.MkdirTemp("", "run")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(run)
	l := launch(t, map[string]any{"dir": t.TempDir()})
	l.RunDir = run
	p := start(t, l)
	entries, err := os.ReadDir(run)
	if err != nil || len(entries) != 1 {
		t.Fatalf("run directory has %v, %v; want one entry", entries, err)
	}
	info, err := entries[0].Info()
	if err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("mode %v, %v; want 0700", info.Mode(), err)
	}
	p.Close()
	if left, _ := filepath.Glob(filepath.Join(run, "*")); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
}

func TestNormalEndIsLoggedAsNormal(t *testing.T) {
	var log logged
	l := launch(t, map[string]any{"dir": t.TempDir()})
	l.Log = log.logger()
	start(t, l).Close()
	if text := log.String(); !strings.Contains(text, "plugin ended") || strings.Contains(text, "level=WARN") || strings.Contains(text, "level=ERROR") {
		t.Errorf("log of a normal life:\n%s", text)
	}
}

// hostThatIsKilled starts a plugin, says so, and waits for its end.
func hostThatIsKilled(dir string) {
	path, err := os.Executable()
	if err != nil {
		panic(err)
	}
	sum, err := plugin.Checksum(path)
	if err != nil {
		panic(err)
	}
	doc, err := json.Marshal(map[string]any{"dir": dir})
	if err != nil {
		panic(err)
	}
	p, err := plugin.Start(context.Background(), plugin.Launch{Path: path, SHA256: sum, Settings: doc, RunDir: dir})
	if err != nil {
		panic(err)
	}
	fmt.Println(p.PID())
	select {}
}

func TestPluginEndsWithItsHost(t *testing.T) {
	path, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	host := exec.Command(path)
	host.Env = append(os.Environ(), "TEST_HOST_DIR="+t.TempDir())
	out, err := host.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := host.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(line))
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(pid, 0); err != nil {
		t.Fatalf("the plugin does not run: %v", err)
	}
	if err := host.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = host.Wait()
	until(t, "the end of the plugin", func() bool { return gone(pid) })
}

// gone reports whether a process has ended. Whoever adopted it may not have
// waited for it yet.
func gone(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return true
	}
	_, after, _ := strings.Cut(string(stat), ") ")
	return strings.HasPrefix(after, "Z")
}
