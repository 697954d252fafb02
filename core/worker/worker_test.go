package worker

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/sdk"
	"github.com/holdfast-dr/holdfast/sdk/conformance"
	"github.com/holdfast-dr/holdfast/sdk/plugin"
	"github.com/holdfast-dr/holdfast/sdk/sim"
)

// lab is a simulated hypervisor with one machine of one disk.
func lab(t testing.TB, size int) (dir string, machine sdk.MachineID, content []byte) {
	t.Helper()
	dir = t.TempDir()
	hv, err := sim.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	m, err := hv.CreateMachine(sim.MachineSpec{Name: "web", DiskBytes: []int64{int64(size)}})
	if err != nil {
		t.Fatal(err)
	}
	content = make([]byte, size)
	rand.Read(content)
	if err := hv.WriteDisk(m.ID, m.Disks[0].ID, 0, content); err != nil {
		t.Fatal(err)
	}
	return dir, m.ID, content
}

// openDisk opens the disk of a lab's machine.
func openDisk(t testing.TB, p *plugin.Process, machine sdk.MachineID, epoch uint64) sdk.BlockReader {
	t.Helper()
	source, ok := sdk.As[sdk.Source](p.Platform())
	if !ok {
		t.Fatal("the platform is no source")
	}
	snap, err := source.Snapshot(t.Context(), sdk.Op{ID: rand.Text(), Epoch: epoch}, sdk.SnapshotRequest{Machine: machine})
	if err != nil {
		t.Fatal(err)
	}
	disk, err := source.OpenDisk(t.Context(), snap, snap.Machine.Disks[0].ID)
	if err != nil {
		t.Fatal(err)
	}
	return disk
}

func TestPluginRunsOnTheWorker(t *testing.T) {
	h := open(t)
	w := h.employ(t, h.enrol(t, "w1"))
	h.connected(t, "w1")
	dir, machine, content := lab(t, 8<<20)

	if arch, err := h.Arch(t.Context(), "W1"); err != nil || arch == "" {
		t.Errorf("architecture %q, %v", arch, err)
	}
	sum, d, err := h.Inspect(t.Context(), "w1", "sim")
	if err != nil || sum != checksum(t) || d.Version != "1.2.3" {
		t.Errorf("inspect: %s, %+v, %v", sum, d, err)
	}
	p := h.start(t, "w1", launch(t, map[string]any{"dir": dir}))
	disk := openDisk(t, p, machine, 1)
	got := make([]byte, len(content))
	if _, err := disk.ReadAt(got, 0); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, content) {
		t.Error("other bytes came through")
	}
	if err := disk.Close(); err != nil {
		t.Error(err)
	}
	all, err := h.Workers(t.Context())
	if err != nil || len(all) != 1 || all[0].Processes != 1 || all[0].Connected.IsZero() || all[0].About.Version != "test" {
		t.Errorf("workers: %+v, %v", all, err)
	}
	pid := p.PID()
	if err := p.Close(); err != nil {
		t.Error(err)
	}
	if alive(pid) {
		t.Error("the process is there after its Close")
	}
	w.stop()
	h.gone(t, "w1")
	if left, _ := filepath.Glob(filepath.Join(w.dir, "run", "*")); len(left) > 0 {
		t.Errorf("left behind: %q", left)
	}
}

// alive says whether a process of this test exists and is no zombie.
func alive(pid int) bool {
	stat, err := os.ReadFile(filepath.Join("/proc", itoa(pid), "stat"))
	if err != nil {
		return false
	}
	_, state, _ := strings.Cut(string(stat), ") ")
	return !strings.HasPrefix(state, "Z")
}

func itoa(n int) string { return string(appendInt(nil, n)) }

func appendInt(b []byte, n int) []byte {
	if n >= 10 {
		b = appendInt(b, n/10)
	}
	return append(b, byte('0'+n%10))
}

// throughWorker are the checks that the way through a worker could break, and
// that are soon over: calls, errors and streams of every kind, and bytes.
var throughWorker = regexp.MustCompile("^(platform|power|watcher|networker|pools|console|guest)/|reader|data-cut|becomes-a-machine|what-was-written|can-be-read")

func TestConformanceThroughAWorker(t *testing.T) {
	h := open(t)
	h.employ(t, h.enrol(t, "w1"))
	h.connected(t, "w1")
	conformance.Run(t, func(t *testing.T) conformance.Fixture {
		dir := t.TempDir()
		hv, err := sim.Open(dir)
		if err != nil {
			t.Fatal(err)
		}
		m, err := hv.CreateMachine(sim.MachineSpec{
			Name: "conformance", DiskBytes: []int64{4 << 20, 2<<20 + 512}, State: sdk.StateRunning, Space: "ours",
		})
		if err != nil {
			t.Fatal(err)
		}
		wire := new(conformance.Wire)
		l := launch(t, map[string]any{"dir": dir})
		l.WrapData = wire.Wrap
		// The worker's processes are on this machine, too, and get its signals.
		process := func() (conformance.Process, error) {
			p, err := h.Start(context.Background(), "w1", "sim", l)
			if err != nil {
				return conformance.Process{}, err
			}
			t.Cleanup(func() { _ = p.Close() })
			return conformance.Control(p), nil
		}
		p, err := process()
		if err != nil {
			t.Fatal(err)
		}
		f := conformance.Fixture{
			Platform: p.Platform, Process: process, Wire: wire, Machine: m.ID,
			Fresh: func() (sdk.Platform, error) {
				p, err := process()
				return p.Platform, err
			},
			Write: func(disk sdk.DiskID, off int64, data []byte) error { return hv.WriteDisk(m.ID, disk, off, data) },
			Read:  hv.ReadDisk, Remove: hv.DeleteMachine, Objects: hv.Objects,
			Draft: sdk.DraftSpec{Machine: sdk.Machine{Name: "new", CPUs: 2, MemoryBytes: 1 << 30,
				NICs: []sdk.NIC{{MAC: "52:54:00:aa:bb:cc", Network: "default", Model: "virtio"}}}},
			Space: "ours", Foreign: "theirs", Epoch: 1,
		}
		if testing.Short() {
			f.Only = throughWorker
		}
		return f
	})
}

// However a worker is lost, what it did fails with ErrUnavailable within a
// bound, its processes end, and it can be used again when it is back.
func TestLostWorker(t *testing.T) {
	for _, way := range []struct {
		name string
		lose func(*cable, *employed)
		back func(*testing.T, *house, *cable, *employed)
	}{
		{"stopped", func(_ *cable, w *employed) { w.stop() },
			func(t *testing.T, h *house, _ *cable, w *employed) { h.employ(t, w.dir) }},
		{"cut off", func(c *cable, _ *employed) { c.set(true) },
			func(_ *testing.T, _ *house, c *cable, _ *employed) { c.set(false) }},
	} {
		t.Run(way.name, func(t *testing.T) {
			t.Parallel()
			h := openWith(t, 6*time.Second) // which the second way waits for
			c := lay(t, h.address)
			work := filepath.Join(t.TempDir(), "w")
			h.enrolIn(t, work, "w1", c.address)
			w := h.employ(t, work)
			h.connected(t, "w1")
			dir, machine, content := lab(t, 1<<20)
			l := launch(t, map[string]any{"dir": dir})
			p := h.start(t, "w1", l)
			disk := openDisk(t, p, machine, 1)
			defer disk.Close()
			hanging := make(chan error, 1)
			go func() { hanging <- probe(p, "hang") }()
			reading := make(chan error, 1)
			go func() {
				block := make([]byte, 64<<10)
				for {
					if _, err := disk.ReadAt(block, 0); err != nil {
						reading <- err
						return
					}
				}
			}()

			way.lose(c, w)
			<-p.Done()
			if err := <-hanging; !errors.Is(err, sdk.ErrUnavailable) {
				t.Errorf("the call: %v, want ErrUnavailable", err)
			}
			if err := <-reading; !errors.Is(err, sdk.ErrUnavailable) {
				t.Errorf("the disk: %v, want ErrUnavailable", err)
			}
			if err := probe(p, ""); !errors.Is(err, sdk.ErrUnavailable) {
				t.Errorf("a later call: %v, want ErrUnavailable", err)
			}
			if _, err := h.Start(t.Context(), "w1", "sim", l); !errors.Is(err, sdk.ErrUnavailable) {
				t.Errorf("a start meanwhile: %v, want ErrUnavailable", err)
			}
			until(t, "the end of the orphan", func() bool { return !alive(p.PID()) })

			way.back(t, h, c, w)
			h.connected(t, "w1")
			again := openDisk(t, h.restart(t, "w1", l), machine, 2)
			got := make([]byte, len(content))
			if _, err := again.ReadAt(got, 0); err != nil || !bytes.Equal(got, content) {
				t.Errorf("read again: %v, equal %t", err, bytes.Equal(got, content))
			}
			if err := again.Close(); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestProcessThatDiesOnTheWorker(t *testing.T) {
	h := open(t)
	h.employ(t, h.enrol(t, "w1"))
	h.connected(t, "w1")
	var log logged
	l := launch(t, map[string]any{"dir": t.TempDir()})
	l.Log = log.logger()
	p := h.start(t, "w1", l)
	if err := syscall.Kill(p.PID(), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	<-p.Done()
	if err := probe(p, ""); !errors.Is(err, sdk.ErrUnavailable) {
		t.Errorf("a call after it: %v, want ErrUnavailable", err)
	}
	if err := p.Close(); err != nil {
		t.Error(err)
	}
	// What it says last is heard.
	p = h.start(t, "w1", l)
	if err := probe(p, "exit"); !errors.Is(err, sdk.ErrUnavailable) {
		t.Errorf("the call during which it ended: %v, want ErrUnavailable", err)
	}
	if err := p.Close(); err != nil {
		t.Error(err)
	}
	if !strings.Contains(log.String(), "last words") {
		t.Error("its last words were not heard")
	}
	until(t, "the session to have no processes", func() bool {
		all, err := h.Workers(t.Context())
		return err == nil && all[0].Processes == 0
	})
}

func TestSettingsStayOffTheWorker(t *testing.T) {
	const secret = "correct horse battery"
	h := open(t)
	w := h.employ(t, h.enrol(t, "w1"))
	h.connected(t, "w1")
	var log logged
	l := launch(t, map[string]any{"dir": t.TempDir(), "password": secret})
	l.Log = log.logger()
	p := h.start(t, "w1", l)
	if err := probe(p, "leak"); !errors.Is(err, sdk.ErrDenied) || strings.Contains(err.Error(), secret) {
		t.Errorf("a leaking error: %v", err)
	}
	until(t, "the plugin's log at the hub", func() bool { return strings.Contains(log.String(), "connecting") })
	if strings.Contains(log.String(), secret) || strings.Contains(h.log.String(), secret) || strings.Contains(w.log.String(), secret) {
		t.Error("a log holds the secret")
	}
	err := filepath.WalkDir(w.dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		text, err := os.ReadFile(path)
		if bytes.Contains(text, []byte(secret)) {
			t.Errorf("%s holds the secret", path)
		}
		if info, err := e.Info(); err == nil && info.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s has mode %v", path, info.Mode())
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

// A plugin that floods its log is not held up, nor is anybody else.
func TestChatteringPlugin(t *testing.T) {
	h := open(t)
	h.employ(t, h.enrol(t, "w1"))
	h.connected(t, "w1")
	p := h.start(t, "w1", launch(t, map[string]any{"dir": t.TempDir()}))
	if err := probe(p, "chatter"); err != nil {
		t.Error(err)
	}
	if err := probe(p, ""); err != nil {
		t.Error(err)
	}
}

func TestOtherProgramsAreRefused(t *testing.T) {
	h := open(t)
	h.employ(t, h.enrol(t, "w1"))
	h.connected(t, "w1")
	l := launch(t, map[string]any{"dir": t.TempDir()})
	l.SHA256 = strings.Repeat("0", 64)
	if _, err := h.Start(t.Context(), "w1", "sim", l); !errors.Is(err, sdk.ErrDenied) {
		t.Errorf("another checksum: %v, want ErrDenied", err)
	}
	for _, name := range []string{"vsphere", "", "../sim", "sim/../../sh", "SIM"} {
		if _, err := h.Start(t.Context(), "w1", name, l); !errors.Is(err, sdk.ErrNotFound) {
			t.Errorf("plugin %q: %v, want ErrNotFound", name, err)
		}
		if _, _, err := h.Inspect(t.Context(), "w1", name); !errors.Is(err, sdk.ErrNotFound) {
			t.Errorf("inspect plugin %q: %v, want ErrNotFound", name, err)
		}
	}
	// Wrong settings end the process again.
	l = launch(t, map[string]any{"dir": 7})
	if _, err := h.Start(t.Context(), "w1", "sim", l); !errors.Is(err, sdk.ErrInvalid) {
		t.Errorf("wrong settings: %v, want ErrInvalid", err)
	}
	if all, err := h.Workers(t.Context()); err != nil || all[0].Processes != 0 {
		t.Errorf("workers: %+v, %v; want no processes", all, err)
	}
}

func TestStartThatIsGivenUp(t *testing.T) {
	h := open(t)
	h.employ(t, h.enrol(t, "w1"))
	h.connected(t, "w1")
	l := launch(t, map[string]any{"dir": t.TempDir()})
	for after := range 10 {
		ctx, cancel := context.WithTimeout(t.Context(), time.Duration(after)*10*time.Millisecond)
		if p, err := h.Start(ctx, "w1", "sim", l); err == nil {
			_ = p.Close()
		}
		cancel()
	}
	if all, err := h.Workers(t.Context()); err != nil || all[0].Processes != 0 {
		t.Errorf("workers: %+v, %v; want no processes", all, err)
	}
	until(t, "the end of what was started", func() bool { return len(children(t)) == 0 })
}

// children lists the processes that this one has.
func children(t testing.TB) []string {
	t.Helper()
	tasks, err := filepath.Glob("/proc/self/task/*/children")
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for _, path := range tasks {
		b, _ := os.ReadFile(path) // the thread may have ended
		all = append(all, strings.Fields(string(b))...)
	}
	return all
}
