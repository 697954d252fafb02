package scenario

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/core/audit"
	"github.com/holdfast-dr/holdfast/core/pki"
	"github.com/holdfast-dr/holdfast/core/secret"
	"github.com/holdfast-dr/holdfast/core/state"
	"github.com/holdfast-dr/holdfast/core/worker"
	"github.com/holdfast-dr/holdfast/sdk"
	"github.com/holdfast-dr/holdfast/sdk/conformance"
	"github.com/holdfast-dr/holdfast/sdk/plugin"
	"github.com/holdfast-dr/holdfast/sdk/sim"
	"github.com/holdfast-dr/holdfast/testenv"
	"github.com/holdfast-dr/holdfast/testenv/guest"
	"github.com/holdfast-dr/holdfast/testenv/site"
	"github.com/holdfast-dr/holdfast/testenv/stack"
)

// far is a network namespace that nothing reaches but over one cable.
type far struct {
	t     *testing.T
	name  string
	cable string // our end
	here  string // our address on it
}

// newFar makes a namespace, for root alone.
func newFar(t *testing.T) *far {
	t.Helper()
	testenv.NeedRoot(t)
	testenv.Need(t, "ip")
	f := &far{t: t}
	for n := range 200 {
		f.name, f.cable = fmt.Sprintf("hf-far-%d-%d", os.Getpid(), n), fmt.Sprintf("hfw%d", n)
		f.here = fmt.Sprintf("10.214.%d.1", n)
		if f.ip("netns", "add", f.name) != nil {
			continue
		}
		// The link's name says whether somebody else has this network.
		if f.ip("link", "add", f.cable, "type", "veth", "peer", "name", "uplink", "netns", f.name) == nil {
			break
		}
		_ = f.ip("netns", "del", f.name) // the next number is tried
	}
	t.Cleanup(func() {
		if err := errors.Join(f.ip("link", "del", f.cable), f.ip("netns", "del", f.name)); err != nil {
			t.Error(err)
		}
	})
	there := strings.TrimSuffix(f.here, "1") + "2"
	for _, command := range []string{
		"addr add " + f.here + "/30 dev " + f.cable, "link set " + f.cable + " up",
		"-n " + f.name + " addr add " + there + "/30 dev uplink", "-n " + f.name + " link set uplink up", "-n " + f.name + " link set lo up",
	} {
		if err := f.ip(strings.Fields(command)...); err != nil {
			t.Fatal(err)
		}
	}
	return f
}

func (f *far) ip(args ...string) error {
	path := testenv.Tool(f.t, "ip")
	if out, err := exec.Command(path, args...).CombinedOutput(); err != nil {
		return fmt.Errorf("ip %s: %w: %s", strings.Join(args, " "), err, bytes.TrimSpace(out))
	}
	return nil
}

// cut cuts the cable, or mends it: packets are lost on it, and nobody is told.
func (f *far) cut(cut bool) {
	f.t.Helper()
	way := "up"
	if cut {
		way = "down"
	}
	if err := f.ip("-n", f.name, "link", "set", "uplink", way); err != nil {
		f.t.Fatal(err)
	}
}

// there is a command that runs in the namespace.
func (f *far) there(args ...string) []string {
	return append([]string{testenv.Tool(f.t, "ip"), "netns", "exec", f.name}, args...)
}

// employed is a worker in a namespace.
type employed struct {
	*stack.Process
	far  *far
	name string
	dir  string
}

// enrol connects a worker to whom the invitation is from.
func (f *far) enrol(name, dir, address, fingerprint, token string) *employed {
	f.t.Helper()
	w := &employed{far: f, name: name, dir: dir}
	file := filepath.Join(f.t.TempDir(), "token")
	if err := os.WriteFile(file, []byte(token+"\n"), 0o600); err != nil {
		f.t.Fatal(err)
	}
	command := f.there(filepath.Join(programs, "holdfast"), "worker", "connect", address, "--fingerprint", fingerprint, "--token-file", file, "--data", dir)
	connect := exec.CommandContext(f.t.Context(), command[0], command[1:]...)
	connect.Env = environment(filepath.Dir(dir))
	if out, err := connect.CombinedOutput(); err != nil {
		f.t.Fatalf("connect worker %s: %v\n%s", name, err, out)
	}
	return w
}

// serve starts the worker's process, or starts it again.
func (w *employed) serve() {
	w.far.t.Helper()
	command := w.far.there(filepath.Join(programs, "holdfast"), "worker", "serve", "--data", w.dir)
	p, err := stack.StartProcess("worker "+w.name, filepath.Join(filepath.Dir(w.dir), w.name+".log"), environment(filepath.Dir(w.dir)), command[0], command[1:]...)
	if err != nil {
		w.far.t.Fatal(err)
	}
	w.Process = p
	w.far.t.Cleanup(func() {
		select {
		case <-p.Done():
		default:
			p.Kill()
		}
		if w.far.t.Failed() && w.Process == p {
			w.far.t.Logf("worker %s printed:\n%s", w.name, p.Output())
		}
	})
}

// plugins are the plugin processes that the worker has.
func (w *employed) plugins() int {
	w.far.t.Helper()
	children, err := w.Children()
	if err != nil {
		w.far.t.Fatal(err)
	}
	return len(children)
}

func environment(home string) []string {
	return []string{"PATH=" + os.Getenv("PATH"), "HOME=" + home, "TMPDIR=" + os.TempDir(), "TZ=UTC", "LANG=C.UTF-8"}
}

// invitation is what holdfast worker invite prints.
type invitation struct{ Address, Fingerprint, Token string }

// newFarLab is a lab whose agent listens for workers, with one worker that is
// connected, and the endpoint far through it.
func newFarLab(t *testing.T) (*lab, *employed) {
	t.Helper()
	f := newFar(t)
	l := newLab(t, stack.Options{Env: []string{"HOLDFAST_WORKERS_LISTEN=" + f.here + ":6181"}})
	var i invitation
	l.must(l.JSON(t.Context(), &i, "worker", "invite", "kvm1"))
	w := f.enrol("kvm1", filepath.Join(l.dir, "kvm1"), i.Address, i.Fingerprint, i.Token)
	w.serve()
	l.connected("kvm1", true)
	l.do("endpoint", "add", "far", "--plugin", "sim", "--set", "dir="+filepath.Join(l.dir, "hypervisor"), "--worker", "kvm1")
	return l, w
}

// connected waits until a worker is, or is not.
func (l *lab) connected(name string, want bool) {
	l.t.Helper()
	ctx, cancel := context.WithTimeout(l.t.Context(), time.Minute)
	defer cancel()
	l.must(stack.Until(ctx, fmt.Sprintf("worker %s to be connected: %t", name, want), func() (bool, error) {
		var all []struct{ Name, State string }
		if err := l.JSON(ctx, &all, "worker", "list"); err != nil {
			return false, err
		}
		for _, w := range all {
			if w.Name == name {
				return (w.State == "connected") == want, nil
			}
		}
		return false, nil
	}))
}

func TestBackupAndRestoreThroughAWorker(t *testing.T) {
	l, w := newFarLab(t)
	m := l.machine("web", 64*mib, 10*mib+512)
	l.noise(m, 0, 0, 9*mib, 1)
	l.noise(m, 1, 10*mib, 512, 2)
	l.do("job", "create", "nightly", "--endpoint", "far", "--repository", "backups", "--machine", "web")
	if got := l.backup("nightly").Machines[0]; got.Kind != "full" {
		t.Errorf("first backup: %+v", got)
	}
	l.noise(m, 0, 20*mib, mib, 3)
	second := l.backup("nightly").Machines[0]
	if second.Kind != "incremental" || second.ReadBytes > 12*mib {
		t.Errorf("second backup: %+v", second)
	}
	if w.plugins() == 0 {
		t.Error("the plugin does not run on the worker")
	}
	var restored run
	l.must(l.JSON(t.Context(), &restored, "restore", "machine", second.Point, "--endpoint", "far", "--name", "restored", "--wait"))
	equal(t, "machine restored through the worker", l.hashes(sdk.MachineID(restored.Restored.MachineID)), l.hashes(m.ID))

	l.do("worker", "remove", "kvm1")
	if _, err := l.Run(t.Context(), "endpoint", "probe", "far"); err == nil || !strings.Contains(err.Error(), "not connected") {
		t.Errorf("probe through a removed worker: %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	l.must(stack.Until(ctx, "the removed worker to end its plugins", func() (bool, error) { return w.plugins() == 0, nil }))
}

// The libvirt plugin on a worker backs a running machine up and brings it back:
// the agent reaches neither libvirtd nor QEMU, whose disks come through the cable.
func TestRealMachineThroughAWorker(t *testing.T) {
	testenv.Need(t, site.Tools...)
	l, w := newFarLab(t)
	ctx := t.Context()
	s, err := site.Start(ctx, site.Options{})
	l.must(err)
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	image, err := guest.Build(ctx, guest.Options{Agent: true})
	if err != nil {
		testenv.Lack(t, "%v", err)
	}
	g, err := s.Define(ctx, site.Spec{Name: "web", Image: image})
	l.must(err)
	l.must(g.Start(ctx))
	l.do("plugin", "enable", "libvirt")
	l.do("endpoint", "add", "host", "--plugin", "libvirt", "--set", "uri="+s.URI, "--set", "scratch_dir="+s.Scratch(), "--worker", "kvm1")
	l.do("job", "create", "real", "--endpoint", "host", "--repository", "backups", "--machine", "web")
	before, err := g.Leftovers(ctx)
	l.must(err)

	first := l.backup("real").Machines[0]
	l.console(g, "echo 'the second state' >/data/note; dd if=/dev/urandom of=/data/blob bs=1M count=2 2>/dev/null; sync")
	sum := l.console(g, "md5sum /data/blob")
	second := l.backup("real").Machines[0]
	if first.Kind != "full" || second.Kind != "incremental" || second.ReadBytes >= first.ReadBytes {
		t.Errorf("a full and an incremental backup: %+v, %+v", first, second)
	}
	if w.plugins() == 0 {
		t.Error("the plugin does not run on the worker")
	}
	after, err := g.Leftovers(ctx)
	l.must(err)
	if _, others := ours(after); !slices.Equal(others, before) {
		t.Errorf("left at the hypervisor: %v; before: %v", others, before)
	}
	l.must(g.Remove(ctx))
	l.do("restore", "machine", second.Point, "--endpoint", "host", "--name", "risen", "--start", "--wait")
	risen := s.Guest("risen")
	l.must(risen.WaitReady(ctx))
	if got := l.console(risen, "cat /data/note; md5sum /data/blob"); !strings.Contains(got, "the second state") || !strings.Contains(got, sum) {
		t.Errorf("the restored machine shows %q, want the note and %q", got, sum)
	}
}

// However the worker is lost in the middle of a backup, the run ends by itself,
// the next one succeeds as soon as the worker is back, and nothing is left.
func TestWorkerLostInTheMiddleOfABackup(t *testing.T) {
	l, w := newFarLab(t)
	const size = 512 * mib
	m := l.machine("big", size)
	l.do("job", "create", "nightly", "--endpoint", "far", "--repository", "backups", "--machine", "big")
	for i, way := range []struct {
		name string
		lose func()
		back func()
	}{
		{"killed", func() { w.Kill() }, func() { w.serve() }},
		{"stopped", func() { l.must(w.Signal(syscall.SIGSTOP)) }, func() { l.must(w.Signal(syscall.SIGCONT)) }},
		{"cut off", func() { w.far.cut(true) }, func() { w.far.cut(false) }},
	} {
		for j := range int64(size / (32 * mib)) { // all of it is new each time
			l.noise(m, 0, j*32*mib, 32*mib, byte(int64(i)*64+j+1))
		}
		l.slow(true)
		var started run
		l.must(l.JSON(t.Context(), &started, "job", "run", "nightly", "--no-wait"))
		l.waitSent(started.ID, size/16)
		way.lose()
		l.connected("kvm1", false)
		l.slow(false)
		way.back()
		ended := l.waitRun(started.ID)
		if ended.State != "succeeded" && (ended.Failure.Message == "" || ended.Failure.Side == "provider") {
			t.Errorf("%s: the run ended as %+v, want success, or a failure that says where", way.name, ended)
		}
		t.Logf("%s: the run ended as %s: %s", way.name, ended.State, ended.Failure.Message)
		l.connected("kvm1", true)
		next := l.backup("nightly").Machines[0]
		equal(t, way.name, []string{hashFile(t, l.restoreDisk(next.Point, string(m.Disks[0].ID), "raw"))}, l.hashes(m.ID))
		if objects, err := l.hv.Objects(); err != nil || !onlyMarks(objects) {
			t.Errorf("%s: left at the hypervisor: %v %v", way.name, objects, err)
		}
	}
}

// hub is where workers connect, in this process.
func hub(t *testing.T, f *far) (h *worker.Hub, address string) {
	t.Helper()
	db, err := state.OpenAgent(t.Context(), "sqlite:"+filepath.Join(t.TempDir(), "agent.db"))
	if err != nil {
		t.Fatal(err)
	}
	ctx := audit.With(t.Context(), audit.System("test", "test"))
	authority, err := pki.LoadAuthority(ctx, db.Trust(), secret.NewKey(), "Test", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	if h, err = worker.NewHub(ctx, worker.HubOptions{Store: db.Workers(), Authority: authority}); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", f.here+":0")
	if err != nil {
		t.Fatal(err)
	}
	serving, stop := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- h.Serve(serving, l) }()
	t.Cleanup(func() {
		stop()
		if err := errors.Join(<-served, db.Close()); err != nil {
			t.Error(err)
		}
	})
	return h, l.Addr().String()
}

// employ makes a worker of a hub that is connected.
func employ(t *testing.T, f *far, h *worker.Hub, address, name string) *employed {
	t.Helper()
	i, err := h.Invite(audit.With(t.Context(), audit.System("test", "test")), name, 0)
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "hf-worker-") // a socket's path is bounded
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	w := f.enrol(name, filepath.Join(dir, "w"), address, h.Fingerprint().String(), i.Token)
	w.serve()
	awaitWorker(t, h, name)
	return w
}

func awaitWorker(t *testing.T, h *worker.Hub, name string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := stack.Until(ctx, "worker "+name, func() (bool, error) {
		_, err := h.Arch(ctx, name)
		return err == nil, err
	}); err != nil {
		t.Fatal(err)
	}
}

// The whole suite passes through a worker in another network, and so do the
// checks that kill and stop the plugin's process when it is the worker that is
// killed and stopped.
func TestConformanceThroughAWorker(t *testing.T) {
	f := newFar(t)
	h, address := hub(t, f)
	employ(t, f, h, address, "steady")
	path := filepath.Join(programs, "holdfast-plugin-sim")
	sum, err := plugin.Checksum(path)
	if err != nil {
		t.Fatal(err)
	}
	fixture := func(t *testing.T, process func(start func(worker string) (*plugin.Process, error)) (conformance.Process, error)) conformance.Fixture {
		dir := t.TempDir()
		hv, err := sim.Open(dir)
		if err != nil {
			t.Fatal(err)
		}
		m, err := hv.CreateMachine(sim.MachineSpec{Name: "conformance", DiskBytes: []int64{4 << 20, 2<<20 + 512}, State: sdk.StateRunning, Space: "ours"})
		if err != nil {
			t.Fatal(err)
		}
		settings, err := json.Marshal(map[string]string{"dir": dir})
		if err != nil {
			t.Fatal(err)
		}
		wire := new(conformance.Wire)
		start := func(worker string) (*plugin.Process, error) {
			p, err := h.Start(context.Background(), worker, "sim", plugin.Launch{SHA256: sum, Settings: settings, WrapData: wire.Wrap})
			if err == nil {
				t.Cleanup(func() { _ = p.Close() })
			}
			return p, err
		}
		fresh := func() (sdk.Platform, error) {
			p, err := start("steady")
			if err != nil {
				return nil, err
			}
			return p.Platform(), nil
		}
		platform, err := fresh()
		if err != nil {
			t.Fatal(err)
		}
		return conformance.Fixture{
			Platform: platform, Fresh: fresh, Machine: m.ID, Wire: wire,
			Process: func() (conformance.Process, error) { return process(start) },
			Write:   func(disk sdk.DiskID, off int64, data []byte) error { return hv.WriteDisk(m.ID, disk, off, data) },
			Read:    hv.ReadDisk, Remove: hv.DeleteMachine, Objects: hv.Objects,
			Draft: sdk.DraftSpec{Machine: sdk.Machine{Name: "new", CPUs: 2, MemoryBytes: 1 << 30,
				NICs: []sdk.NIC{{MAC: "52:54:00:aa:bb:cc", Network: "default", Model: "virtio"}}}},
			Space: "ours", Foreign: "theirs", Epoch: 1,
		}
	}
	t.Run("plugin", func(t *testing.T) {
		conformance.Run(t, func(t *testing.T) conformance.Fixture {
			return fixture(t, func(start func(string) (*plugin.Process, error)) (conformance.Process, error) {
				p, err := start("steady")
				if err != nil {
					return conformance.Process{}, err
				}
				return conformance.Control(p), nil
			})
		})
	})
	t.Run("worker", func(t *testing.T) {
		w := employ(t, f, h, address, "shaky")
		conformance.Run(t, func(t *testing.T) conformance.Fixture {
			fix := fixture(t, func(start func(string) (*plugin.Process, error)) (conformance.Process, error) {
				select {
				case <-w.Done(): // the check before has killed it
					w.serve()
				default:
				}
				awaitWorker(t, h, "shaky")
				p, err := start("shaky")
				if err != nil {
					return conformance.Process{}, err
				}
				alone, once := conformance.Control(p), sync.Once{}
				return conformance.Process{
					Platform: p.Platform(),
					Kill: func() error {
						once.Do(w.Kill)
						return p.Close()
					},
					// The plugin too, as on a machine that stands still.
					Suspend: func() error { return errors.Join(alone.Suspend(), w.Signal(syscall.SIGSTOP)) },
					Resume:  func() error { return errors.Join(w.Signal(syscall.SIGCONT), alone.Resume()) },
				}, nil
			})
			fix.Only = regexp.MustCompile(`killed|stopped`)
			return fix
		})
	})
}
