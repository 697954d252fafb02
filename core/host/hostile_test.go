package host

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/sdk"
	"github.com/holdfast-dr/holdfast/sdk/sim"
)

// placeholder is the version in the program as it is built.
const placeholder = "version: written by the tests   "

// hostileProgram is testdata/hostile, built once.
var hostileProgram = sync.OnceValues(func() ([]byte, error) {
	path := filepath.Join(pluginDir, "hostile")
	if out, err := exec.Command("go", "build", "-o", path, "./testdata/hostile").CombinedOutput(); err != nil {
		return nil, fmt.Errorf("%w\n%s", err, out)
	}
	return os.ReadFile(path)
})

// install puts a version of the hostile plugin into a directory.
func install(t *testing.T, dir, version string) string {
	t.Helper()
	program, err := hostileProgram()
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Contains(program, []byte(placeholder)) {
		t.Fatal("the program has no place for a version")
	}
	written := version + strings.Repeat(" ", len(placeholder)-len(version))
	path := filepath.Join(dir, "holdfast-plugin-hostile")
	if err := os.WriteFile(path+".new", bytes.ReplaceAll(program, []byte(placeholder), []byte(written)), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
	return path
}

// scene is a host with a hostile plugin, and a good endpoint beside it.
type scene struct {
	*Host
	t    *testing.T
	dir  string // of the hostile program
	good *Platform
	id   sdk.MachineID
}

const goodSize = 4 << 20

func newScene(t *testing.T, version string, o Options, policy PluginPolicy) *scene {
	t.Helper()
	s := &scene{t: t, dir: t.TempDir()}
	install(t, s.dir, version)
	o.Dirs = []string{s.dir, pluginDir}
	if o.RunDir == "" {
		run, err := os.MkdirTemp("", "run") // a socket's path is bounded
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { os.RemoveAll(run) })
		o.RunDir = run
	}
	s.Host = newHost(t, o)
	if _, err := s.EnableAs(t.Context(), "hostile", &policy); err != nil {
		t.Fatal(err)
	}
	lab := t.TempDir()
	hv, err := sim.Open(lab)
	if err != nil {
		t.Fatal(err)
	}
	m, err := hv.CreateMachine(sim.MachineSpec{Name: "db", DiskBytes: []int64{goodSize}})
	if err != nil {
		t.Fatal(err)
	}
	s.id = m.ID
	e := endpoint(t, map[string]any{"dir": lab})
	e.ID, e.Name = "good", "good"
	s.good = open(t, s.Host, e)
	return s
}

// bad is an endpoint of the hostile plugin.
func (s *scene) bad(mode, text string) Endpoint {
	s.t.Helper()
	doc, err := json.Marshal(map[string]string{"mode": mode, "text": text})
	if err != nil {
		s.t.Fatal(err)
	}
	e := Endpoint{ID: "bad-" + mode, Name: "bad", Plugin: "hostile", Settings: doc}
	if err := s.store.PutEndpoint(s.t.Context(), e); err != nil {
		s.t.Fatal(err)
	}
	return e
}

// job is a small backup of the good endpoint's machine.
func (s *scene) job(n int) error {
	ctx, cancel := context.WithTimeout(s.t.Context(), time.Minute)
	defer cancel()
	op := sdk.Op{ID: fmt.Sprint("job-", n), Epoch: 1}
	snap, err := s.good.Snapshot(ctx, op, sdk.SnapshotRequest{Machine: s.id})
	if err != nil {
		return err
	}
	r, err := s.good.OpenDisk(ctx, snap, snap.Machine.Disks[0].ID)
	if err != nil {
		return err
	}
	_, err = r.ReadAt(make([]byte, goodSize), 0)
	return errors.Join(err, r.Close(), s.good.EndSnapshot(ctx, op, snap, false))
}

// beside runs jobs of the good endpoint while attack goes on, and at least one.
func (s *scene) beside(attack func()) {
	s.t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		attack()
	}()
	for n := 0; ; n++ {
		if err := s.job(n); err != nil {
			s.t.Errorf("job %d of the good endpoint: %v", n, err)
			<-done
			return
		}
		select {
		case <-done:
			return
		default:
		}
	}
}

// blames holds an error against what every error of a hostile plugin says.
func blames(t *testing.T, err error, part string) {
	t.Helper()
	switch {
	case err == nil:
		t.Errorf("no error, want %q", part)
	case !strings.Contains(err.Error(), part):
		t.Errorf("error %q, want %q in it", err, part)
	case !strings.Contains(err.Error(), "plugin hostile") || !strings.Contains(err.Error(), "endpoint bad"):
		t.Errorf("error %q does not name the plugin and the endpoint", err)
	case faultOf(err) != sdk.FaultPlugin:
		t.Errorf("error %q is the fault of %s, want plugin", err, faultOf(err))
	}
}

// The calls of a job.

func machines(ctx context.Context, p *Platform) error { return drained(p.Machines(ctx)) }

func probe(ctx context.Context, p *Platform) error {
	_, err := p.Probe(ctx, sdk.Subject{})
	return err
}

func snapshot(ctx context.Context, p *Platform) error {
	_, err := p.Snapshot(ctx, sdk.Op{ID: "s", Epoch: 1}, sdk.SnapshotRequest{Machine: "m1"})
	return err
}

var badSnap = sdk.Snapshot{ID: "s1", Achieved: sdk.QuiesceNone, Machine: sdk.Machine{ID: "m1", Disks: []sdk.Disk{{ID: "vda", SizeBytes: 16 << 20}}}}

func openDisk(ctx context.Context, p *Platform) error {
	r, err := p.OpenDisk(ctx, badSnap, "vda")
	if err != nil {
		return err
	}
	return r.Close()
}

func changed(ctx context.Context, p *Platform) error { return drained(p.Changed(ctx, badSnap, "vda")) }

func drained[T any](all iter.Seq2[T, error]) error {
	for _, err := range all {
		if err != nil {
			return err
		}
	}
	return nil
}

func TestLiesAreRefusedAndNamed(t *testing.T) {
	elsewhere, err := net.Listen("unix", filepath.Join(shortDir(t), "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer elsewhere.Close()
	if err := os.Chmod(elsewhere.Addr().String(), 0o600); err != nil {
		t.Fatal(err)
	}
	s := newScene(t, "1.0.0", Options{}, PluginPolicy{})
	raw := newScene(t, "raw-lies", Options{}, PluginPolicy{})
	private := filepath.Join(s.options.RunDir, "control.sock")
	own, err := net.Listen("unix", private)
	if err != nil {
		t.Fatal(err)
	}
	defer own.Close()
	for _, lie := range []struct {
		name, mode, text string
		scene            *scene
		call             func(context.Context, *Platform) error
		want             string
	}{
		{"a negative size", "negative", "", s, machines, "-1 bytes"},
		{"another machine's snapshot", "other", "", s, snapshot, `machine "m2" instead of "m1"`},
		{"a disk of another size", "shrunk", "", s, openDisk, "has 8388608 when it is opened"},
		{"a disk of a negative size", "minus", "", s, openDisk, "has -1 when it is opened"},
		{"more changes than there can be", "endless", "", s, changed, "changed extents on a disk"},
		{"a file as a disk", "unix", "/etc/passwd", s, openDisk, "no socket"},
		{"nothing as a disk", "unix", "/nowhere/s", s, openDisk, "not there"},
		{"somebody else's socket", "unix", "|" + elsewhere.Addr().String()[:3] + "|" + elsewhere.Addr().String()[3:], s, openDisk, "may not use"},
		{"the host's own socket", "unix", private, s, openDisk, "Holdfast's own"},
		{"a host elsewhere", "tcp", "192.0|.2.7:10809", s, openDisk, "do not name"},
		{"a huge answer", "raw", "", raw, probe, "larger than"},
		{"a listing without end", "raw2", "", raw, machines, "machines"},
		{"empty messages without end", "raw3", "", raw, changed, "or none in a message"},
		{"a disk without a handle", "raw4", "", raw, openDisk, "with a handle of 0"},
	} {
		t.Run(lie.name, func(t *testing.T) {
			if lie.want == "may not use" && os.Geteuid() != 0 {
				t.Skip("only root can give a plugin a user of its own")
			}
			p := open(t, lie.scene.Host, lie.scene.bad(lie.mode, lie.text))
			lie.scene.t = t
			lie.scene.beside(func() { blames(t, lie.call(t.Context(), p), lie.want) })
		})
	}
}

func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "hf")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func TestFloodIsCutAndCounted(t *testing.T) {
	for _, mode := range []string{"flood", "line"} {
		t.Run(mode, func(t *testing.T) {
			s := newScene(t, "1.0.0", Options{}, PluginPolicy{})
			began := time.Now()
			p := open(t, s.Host, s.bad(mode, ""))
			s.beside(func() {
				until(t, "calls beside the flood", func() bool {
					if err := probe(t.Context(), p); err != nil {
						t.Errorf("probe: %v", err)
						return true
					}
					return mode == "line" || s.meter("hostile").snapshot().DroppedLines > 0
				})
			})
			lines := s.Logs(LogRequest{Plugin: "hostile"})
			// A burst, what passes in a second, and a few words of the host's own.
			if most := 500 + 50*int(time.Since(began)/time.Second+1) + 20; len(lines) > most {
				t.Errorf("%d lines were kept, want at most %d", len(lines), most)
			}
			for _, l := range lines {
				if len(l.Message) > 16<<10 {
					t.Errorf("a line of %d bytes was kept", len(l.Message))
				}
			}
		})
	}
}

func TestLeakEndsTheLeaker(t *testing.T) {
	s := newScene(t, "1.0.0", Options{}, PluginPolicy{MemoryBytes: 256 << 20})
	p := open(t, s.Host, s.bad("leak", ""))
	s.beside(func() { blames(t, probe(t.Context(), p), "process ended during Probe") })
	until(t, "the reason in the log", func() bool {
		for _, l := range s.Logs(LogRequest{Plugin: "hostile", Endpoint: "bad"}) {
			if strings.Contains(l.Message, "out of memory") || strings.Contains(l.Message, "cannot allocate memory") {
				return true
			}
		}
		return false
	})
}

func TestHangingPluginIsEndedAndStopped(t *testing.T) {
	t.Parallel()                  // it waits
	const limit = 5 * time.Second // the good endpoint's calls return in it
	tooLong := fmt.Sprint("took longer than ", limit)
	s := newScene(t, "1.0.0", Options{CallLimit: limit}, PluginPolicy{})
	p := open(t, s.Host, s.bad("hang", ""))
	first := pid(t, p)
	s.beside(func() {
		for range silenceLimit {
			blames(t, probe(t.Context(), p), tooLong)
		}
		until(t, "the end of the process that hangs", func() bool { return ended(first) })
	})
	if again := pid(t, p); again == first {
		t.Error("the process that hangs is still there")
	}
	// A listing that hangs after its first machine is no better.
	trickle := open(t, s.Host, s.bad("trickle", ""))
	s.beside(func() { blames(t, machines(t.Context(), trickle), tooLong) })
	m := s.meter("hostile").snapshot()
	for _, c := range m.Calls {
		if c.Method == "Probe" && (c.Calls != silenceLimit || c.Errors[sdk.FaultPlugin] != silenceLimit || c.InFlight != 0) {
			t.Errorf("metrics of Probe: %+v", c)
		}
	}
	if m.Restarts != 1 {
		t.Errorf("%d restarts, want 1", m.Restarts)
	}
}

// TestHangingDiskFailsItsReader reads a disk that answers nothing.
func TestHangingDiskFailsItsReader(t *testing.T) {
	s := newScene(t, "1.0.0", Options{}, PluginPolicy{})
	p := open(t, s.Host, s.bad("sleepy", ""))
	r, err := p.OpenDisk(t.Context(), badSnap, "vda")
	if err != nil {
		t.Fatal(err)
	}
	s.beside(func() {
		read := make(chan error, 1)
		go func() {
			_, err := r.ReadAt(make([]byte, 4096), 0)
			read <- err
		}()
		kill(t, p)
		err := <-read
		if err == nil || !strings.Contains(err.Error(), "read a disk of plugin hostile at endpoint bad") {
			t.Errorf("read of a disk whose process was killed: %v", err)
		}
	})
	_ = r.Close() // its process is gone
}

// ended reports whether a process has ended; one that nobody has waited for has.
func ended(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return true
	}
	_, after, _ := strings.Cut(string(stat), ") ")
	return strings.HasPrefix(after, "Z")
}

func TestChildrenEndWithTheirPlugin(t *testing.T) {
	s := newScene(t, "1.0.0", Options{}, PluginPolicy{})
	p := open(t, s.Host, s.bad("fork", ""))
	report, err := p.Probe(t.Context(), sdk.Subject{})
	if err != nil {
		t.Fatal(err)
	}
	child, err := strconv.Atoi(report.Product)
	if err != nil || ended(child) {
		t.Fatalf("child %q, %v", report.Product, err)
	}
	kill(t, p)
	until(t, "the end of the child, which left the group", func() bool { return ended(child) })
}

func TestStubbornPluginsEnd(t *testing.T) {
	for _, mode := range []string{"stubborn", "deaf", "stopped"} {
		t.Run(mode, func(t *testing.T) {
			s := newScene(t, "1.0.0", Options{}, PluginPolicy{})
			p, release, err := s.Open(t.Context(), s.bad(mode, ""))
			if err != nil {
				// Its first word was its last: the end of stdin ends a process.
				if mode == "deaf" {
					return
				}
				t.Fatal(err)
			}
			defer release()
			n := p.(*Platform).slot.Load().current.Load().pid()
			if mode == "stopped" { // it does not even hear that it is to end
				if err := syscall.Kill(n, syscall.SIGSTOP); err != nil {
					t.Fatal(err)
				}
			}
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			if !ended(n) {
				t.Errorf("process %d runs after Close", n)
			}
		})
	}
}

func TestChangedProgramIsQuarantinedUntilReload(t *testing.T) {
	s := newScene(t, "1.0.0", Options{}, PluginPolicy{User: UserHost})
	path := filepath.Join(s.dir, "holdfast-plugin-hostile")
	p := open(t, s.Host, s.bad("rewrite", path))
	if err := probe(t.Context(), p); err != nil {
		t.Fatal(err)
	}
	kill(t, p)
	s.beside(func() {
		for range 2 {
			if err := probe(t.Context(), p); !errors.Is(err, sdk.ErrDenied) || !strings.Contains(err.Error(), "hostile") {
				t.Errorf("probe by a changed program: %v, want ErrDenied", err)
			}
		}
	})
	health, err := s.Status(t.Context(), "hostile")
	if err != nil || health.State != StateQuarantined || health.Quarantine == nil || health.Quarantine.Cause != CauseChanged {
		t.Fatalf("status %+v, %v; want quarantined because it changed", health, err)
	}
	if _, err := s.Reload(t.Context(), ReloadRequest{Plugin: "hostile"}); err == nil || !strings.Contains(err.Error(), "version 1.0.0 stays in use") {
		t.Errorf("reload to a program that is no plugin: %v", err)
	}
	install(t, s.dir, "1.0.1")
	if _, err := s.Reload(t.Context(), ReloadRequest{Plugin: "hostile"}); err != nil {
		t.Fatalf("reload after an upgrade: %v", err)
	}
	if err := probe(t.Context(), p); err != nil {
		t.Errorf("probe after the reload: %v", err)
	}
}

func TestWhatIsNotWhatItSaysIsQuarantined(t *testing.T) {
	for version, want := range map[string]string{
		"raw-protocol": "99",
		"raw-other":    `says that it is "hostile" "2.0.0"`,
		"raw-garbage":  "not JSON",
		"raw-noise":    "noise",
	} {
		t.Run(version, func(t *testing.T) {
			s := newScene(t, version, Options{}, PluginPolicy{})
			e := s.bad("", "")
			s.beside(func() {
				for range 2 { // the second is not even tried
					_, _, err := s.Open(t.Context(), e)
					if err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "hostile") || faultOf(err) != sdk.FaultPlugin {
						t.Errorf("open: %v, want %q, named and blamed", err, want)
					}
				}
			})
			health, err := s.Status(t.Context(), "hostile")
			if err != nil || health.State != StateQuarantined || health.Endpoints[0].Quarantine.Cause != CauseContract || health.Metrics.FailedStarts != 1 {
				t.Errorf("status %+v, %v; want one start, and quarantine", health, err)
			}
			if _, err := s.Enable(t.Context(), "hostile"); err != nil {
				t.Fatal(err)
			}
			if health, _ := s.Status(t.Context(), "hostile"); health.State == StateQuarantined {
				t.Error("enabling did not end the quarantine")
			}
		})
	}
}

func TestBreachesAddUpToQuarantine(t *testing.T) {
	s := newScene(t, "1.0.0", Options{}, PluginPolicy{})
	p := open(t, s.Host, s.bad("negative", ""))
	first := pid(t, p)
	for range breachLimit {
		blames(t, machines(t.Context(), p), "-1 bytes")
	}
	until(t, "the end of the process", func() bool { return ended(first) })
	s.beside(func() { blames(t, probe(t.Context(), p), "in quarantine") })
	if _, err := s.Enable(t.Context(), "hostile"); err != nil {
		t.Fatal(err)
	}
	if err := probe(t.Context(), p); err != nil {
		t.Errorf("probe after an operator ended the quarantine: %v", err)
	}
}

func TestImpostorIsSeenThrough(t *testing.T) {
	s := newScene(t, "1.0.0", Options{}, PluginPolicy{})
	p := open(t, s.Host, s.bad("impostor", ""))
	if err := probe(t.Context(), p); err != nil {
		t.Fatal(err)
	}
	until(t, "the line", func() bool { return len(s.Logs(LogRequest{Plugin: "hostile", Endpoint: "bad"})) > 0 })
	for _, l := range s.Logs(LogRequest{Plugin: "hostile"}) {
		if l.From == "plugin" && (l.Plugin != "hostile" || l.Endpoint != "bad" || l.Fields["plugin_plugin"] != "sim" || l.Fields["plugin"] != nil) {
			t.Errorf("line %+v", l)
		}
	}
}

func TestProcessesAreConfined(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can give a plugin a user of its own")
	}
	s := newScene(t, "1.0.0", Options{}, PluginPolicy{MemoryBytes: 512 << 20, OpenFiles: 100, Processes: 50})
	p := open(t, s.Host, s.bad("status", ""))
	report, err := p.Probe(t.Context(), sdk.Subject{})
	if err != nil {
		t.Fatal(err)
	}
	user := ownUser(s.options.RunDir, "hostile", "bad-status")
	fields := make(map[string]string)
	for line := range strings.Lines(report.Product) {
		name, value, _ := strings.Cut(line, ":")
		fields[name] = strings.Join(strings.Fields(value), " ")
	}
	for name, want := range map[string]string{
		"Uid": fmt.Sprint(user.UID, user.UID, user.UID, user.UID), "Gid": fmt.Sprint(user.GID, user.GID, user.GID, user.GID), "Groups": "",
		"NoNewPrivs": "1", "CapEff": "0000000000000000", "CapPrm": "0000000000000000",
	} {
		if fields[name] != want {
			t.Errorf("%s is %q, want %q", name, fields[name], want)
		}
	}
	for _, want := range []string{"Max data size 536870912 536870912", "Max open files 100 100", "Max processes 50 50", "Max core file size 0 0"} {
		if !strings.Contains(strings.Join(strings.Fields(report.Product), " "), want) {
			t.Errorf("the limits lack %q:\n%s", want, report.Product)
		}
	}
	health, err := s.Status(t.Context(), "hostile")
	if err != nil || len(health.Endpoints) != 1 || health.Endpoints[0].User != fmt.Sprint(user.UID) {
		t.Errorf("status %+v, %v; want user %d", health.Endpoints, err, user.UID)
	}
	if err := syscall.Kill(health.Endpoints[0].PID, 0); err != nil {
		t.Errorf("process %d: %v", health.Endpoints[0].PID, err)
	}
}
