package host

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/sdk"
	"github.com/holdfast-dr/holdfast/sdk/sim"
)

// pluginDir has holdfast-plugin-sim, built once.
var pluginDir string

func TestMain(m *testing.M) {
	if os.Getenv("TEST_DELEGATED_CGROUP") != "" {
		sayCgroup()
		return
	}
	dir, err := os.MkdirTemp("", "plugins")
	if err != nil {
		panic(err)
	}
	build := exec.Command("go", "build", "-o", filepath.Join(dir, "holdfast-plugin-sim"), "github.com/holdfast-dr/holdfast/plugins/sim")
	if out, err := build.CombinedOutput(); err != nil {
		panic(fmt.Sprintf("build the plugin: %v\n%s", err, out))
	}
	pluginDir = dir
	code := m.Run()
	_ = os.RemoveAll(dir)
	os.Exit(code)
}

// memory is a Store.
type memory struct {
	mutex     sync.Mutex
	endpoints map[string]Endpoint
	plugins   map[string]Enabled
}

var _ Store = (*memory)(nil)

func newMemory() *memory {
	return &memory{endpoints: make(map[string]Endpoint), plugins: make(map[string]Enabled)}
}

func (m *memory) Endpoint(_ context.Context, id string) (Endpoint, error) {
	m.mutex.Lock()
	defer m.mutex.Unlock()
	e, ok := m.endpoints[id]
	if !ok {
		return e, sdk.ErrNotFound
	}
	return e, nil
}

func (m *memory) Endpoints(context.Context) ([]Endpoint, error) {
	m.mutex.Lock()
	defer m.mutex.Unlock()
	return slices.Collect(maps.Values(m.endpoints)), nil
}

func (m *memory) PutEndpoint(_ context.Context, e Endpoint) error {
	m.mutex.Lock()
	defer m.mutex.Unlock()
	m.endpoints[e.ID] = e
	return nil
}

func (m *memory) DeleteEndpoint(_ context.Context, id string) error {
	m.mutex.Lock()
	defer m.mutex.Unlock()
	delete(m.endpoints, id)
	return nil
}

func (m *memory) Plugin(_ context.Context, name, arch string) (Enabled, error) {
	m.mutex.Lock()
	defer m.mutex.Unlock()
	p, ok := m.plugins[name+"/"+arch]
	if !ok {
		return p, fmt.Errorf("plugin %s: %w", name, sdk.ErrNotFound)
	}
	return p, nil
}

func (m *memory) Plugins(context.Context) ([]Enabled, error) {
	m.mutex.Lock()
	defer m.mutex.Unlock()
	return slices.Collect(maps.Values(m.plugins)), nil
}

func (m *memory) PutPlugin(_ context.Context, p Enabled) error {
	m.mutex.Lock()
	defer m.mutex.Unlock()
	m.plugins[p.Plugin+"/"+p.Arch] = p
	return nil
}

func (m *memory) DeletePlugin(_ context.Context, name, arch string) error {
	m.mutex.Lock()
	defer m.mutex.Unlock()
	delete(m.plugins, name+"/"+arch)
	return nil
}

// newHost makes a host that has enabled the plugin sim.
func newHost(t *testing.T, o Options) *Host {
	t.Helper()
	if o.Dirs == nil {
		o.Dirs = []string{pluginDir}
	}
	h, err := New(newMemory(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { h.Close() })
	if _, err := h.Enable(t.Context(), "sim"); err != nil {
		t.Fatal(err)
	}
	return h
}

func endpoint(t *testing.T, fields map[string]any) Endpoint {
	t.Helper()
	doc, err := json.Marshal(fields)
	if err != nil {
		t.Fatal(err)
	}
	return Endpoint{ID: "e1", Name: "lab", Plugin: "sim", Settings: doc}
}

func open(t *testing.T, h *Host, e Endpoint) *Platform {
	t.Helper()
	p, release, err := h.Open(t.Context(), e)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(release)
	return p.(*Platform)
}

func pid(t *testing.T, p *Platform) int {
	t.Helper()
	life, err := p.slot.Load().running(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return life.pid()
}

// kill kills the process of a platform and waits until it is known to be dead.
func kill(t *testing.T, p *Platform) {
	t.Helper()
	life, err := p.slot.Load().running(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(life.pid(), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	<-life.process.Done()
}

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

func TestFindAndEnable(t *testing.T) {
	dir := t.TempDir()
	for name, mode := range map[string]os.FileMode{"holdfast-plugin-Bad": 0o755, "holdfast-plugin-data": 0o644, "other": 0o755} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, mode); err != nil {
			t.Fatal(err)
		}
	}
	h := newHost(t, Options{Dirs: []string{dir, filepath.Join(dir, "none"), pluginDir}})
	found, err := h.Find()
	if err != nil || len(found) != 1 || found[0].Plugin != "sim" {
		t.Fatalf("found %v, %v; want sim alone", found, err)
	}
	if _, err := h.Enable(t.Context(), "none"); !errors.Is(err, sdk.ErrNotFound) {
		t.Errorf("enable what is not there: %v, want ErrNotFound", err)
	}
	d, err := h.Describe(t.Context(), "sim")
	if err != nil || d.Name != "sim" || len(d.Abilities) != 11 {
		t.Errorf("description %+v, %v", d, err)
	}
	if err := h.Put(t.Context(), Endpoint{ID: "e", Name: "e", Plugin: "sim", Settings: json.RawMessage(`{"dirr":"x"}`)}); !errors.Is(err, sdk.ErrInvalid) {
		t.Errorf("endpoint with wrong settings: %v, want ErrInvalid", err)
	}
	if err := h.Disable(t.Context(), "sim"); err != nil {
		t.Fatal(err)
	}
	_, _, err = h.Open(t.Context(), endpoint(t, map[string]any{"dir": t.TempDir()}))
	if !errors.Is(err, sdk.ErrNotFound) || sdk.HintOf(err) == "" {
		t.Errorf("open with a disabled plugin: %v, want ErrNotFound with a hint", err)
	}
}

func TestExchangedProgramIsRefused(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "holdfast-plugin-sim")
	program, err := os.ReadFile(filepath.Join(pluginDir, "holdfast-plugin-sim"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, program, 0o755); err != nil {
		t.Fatal(err)
	}
	h := newHost(t, Options{Dirs: []string{dir}})
	p := open(t, h, endpoint(t, map[string]any{"dir": t.TempDir()}))
	// Exchanged while it runs: the one that runs goes on, no other starts.
	if err := os.Rename(path, path+".old"); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, append(program, 0), 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := p.Probe(t.Context(), sdk.Subject{}); err != nil {
		t.Errorf("probe: %v", err)
	}
	kill(t, p)
	if _, err := p.Probe(t.Context(), sdk.Subject{}); !errors.Is(err, sdk.ErrDenied) {
		t.Errorf("probe by an exchanged program: %v, want ErrDenied", err)
	}
	if _, err := h.Enable(t.Context(), "sim"); err != nil {
		t.Fatal(err)
	}
	if _, err := p.Probe(t.Context(), sdk.Subject{}); err != nil {
		t.Errorf("probe after it was enabled again: %v", err)
	}
}

func TestOneProcessForAnEndpoint(t *testing.T) {
	h := newHost(t, Options{Idle: 50 * time.Millisecond})
	e := endpoint(t, map[string]any{"dir": t.TempDir()})
	var pids [4]int
	var group sync.WaitGroup
	var releases [4]func()
	for i := range pids {
		group.Go(func() {
			p, release, err := h.Open(t.Context(), e)
			if err != nil {
				t.Error(err)
				return
			}
			releases[i] = release
			life, err := p.(*Platform).slot.Load().running(t.Context())
			if err != nil {
				t.Error(err)
				return
			}
			pids[i] = life.pid()
		})
	}
	group.Wait()
	if t.Failed() {
		t.FailNow()
	}
	if slices.Max(pids[:]) != slices.Min(pids[:]) {
		t.Errorf("processes %v, want one", pids)
	}
	for _, release := range releases {
		release()
		release() // twice is once
	}
	until(t, "the end of the idle process", func() bool { return syscall.Kill(pids[0], 0) != nil })
	if again := pid(t, open(t, h, e)); again == pids[0] {
		t.Error("the ended process was handed out")
	}
}

func TestPlatformOutlivesItsProcess(t *testing.T) {
	dir := t.TempDir()
	hv, err := sim.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	m, err := hv.CreateMachine(sim.MachineSpec{Name: "db", DiskBytes: []int64{1 << 20}})
	if err != nil {
		t.Fatal(err)
	}
	h := newHost(t, Options{RunDir: filepath.Join(t.TempDir(), "r")})
	p := open(t, h, endpoint(t, map[string]any{"dir": dir, "faults": []sim.Fault{{Call: "Snapshot", Action: sim.ActionDie}}}))
	source, ok := sdk.As[sdk.Source](sdk.Platform(p))
	if !ok {
		t.Fatal("no source")
	}
	op := sdk.Op{ID: "run-1", Epoch: 1}
	_, err = source.Snapshot(t.Context(), op, sdk.SnapshotRequest{Machine: m.ID})
	if !errors.Is(err, sdk.ErrUnavailable) {
		t.Fatalf("the call that killed the process: %v, want ErrUnavailable", err)
	}
	snap, err := source.Snapshot(t.Context(), op, sdk.SnapshotRequest{Machine: m.ID})
	if err != nil {
		t.Fatalf("the repeat: %v", err)
	}
	objects, err := hv.Objects()
	if err != nil {
		t.Fatal(err)
	}
	if n := len(slices.DeleteFunc(objects, func(o string) bool { return !strings.HasPrefix(o, "snapshot ") })); n != 1 {
		t.Errorf("%d snapshots after the repeat, want the one that was found", n)
	}
	r, err := source.OpenDisk(t.Context(), snap, m.Disks[0].ID)
	if err != nil {
		t.Fatal(err)
	}
	kill(t, p)
	if _, err := r.ReadAt(make([]byte, 512), 0); err == nil {
		t.Error("a disk of the dead process could be read")
	}
	if err := r.Close(); err != nil {
		t.Logf("close of a disk of the dead process: %v", err)
	}
}

func TestDyingPluginIsStartedLessOften(t *testing.T) {
	h := newHost(t, Options{})
	var mutex sync.Mutex
	clock := time.Now()
	h.now = func() time.Time { mutex.Lock(); defer mutex.Unlock(); return clock }
	pass := func(d time.Duration) { mutex.Lock(); defer mutex.Unlock(); clock = clock.Add(d) }
	p := open(t, h, endpoint(t, map[string]any{"dir": t.TempDir()}))
	works := func() error { _, err := p.Probe(t.Context(), sdk.Subject{}); return err }

	kill(t, p)
	if err := works(); err != nil {
		t.Fatalf("after the first death: %v, want a start at once", err)
	}
	for i, pause := range []time.Duration{firstPause, 2 * firstPause, 4 * firstPause} {
		kill(t, p)
		err := works()
		var e *sdk.Error
		if !errors.Is(err, sdk.ErrUnavailable) || !errors.As(err, &e) || e.After != pause {
			t.Fatalf("death %d: %v, want ErrUnavailable for %s", i+2, err, pause)
		}
		pass(pause)
		if err := works(); err != nil {
			t.Fatalf("death %d, after the pause: %v", i+2, err)
		}
	}
	pass(steadyAfter)
	kill(t, p)
	if err := works(); err != nil {
		t.Errorf("death after a steady life: %v, want a start at once", err)
	}
}

func TestChangedSettingsGetAProcessOfTheirOwn(t *testing.T) {
	h := newHost(t, Options{})
	before := open(t, h, endpoint(t, map[string]any{"dir": t.TempDir()}))
	after := open(t, h, endpoint(t, map[string]any{"dir": t.TempDir()}))
	first := pid(t, before)
	if first == pid(t, after) {
		t.Fatal("both have one process")
	}
	before.release()
	until(t, "the end of the process with the old settings", func() bool { return syscall.Kill(first, 0) != nil })
	if _, err := before.Probe(t.Context(), sdk.Subject{}); !errors.Is(err, sdk.ErrInvalid) {
		t.Errorf("probe of a released platform: %v, want ErrInvalid", err)
	}
	if _, err := after.Probe(t.Context(), sdk.Subject{}); err != nil {
		t.Error(err)
	}
}

func TestCloseEndsAll(t *testing.T) {
	h := newHost(t, Options{})
	old := open(t, h, endpoint(t, map[string]any{"dir": t.TempDir()}))
	p := open(t, h, endpoint(t, map[string]any{"dir": t.TempDir()}))
	pids := []int{pid(t, old), pid(t, p)}
	if err := h.Close(); err != nil {
		t.Fatal(err)
	}
	for _, n := range pids {
		if err := syscall.Kill(n, 0); err == nil {
			t.Errorf("process %d runs after Close", n)
		}
	}
	if _, err := p.Probe(t.Context(), sdk.Subject{}); !errors.Is(err, sdk.ErrUnavailable) {
		t.Errorf("probe after Close: %v, want ErrUnavailable", err)
	}
	if _, _, err := h.Open(t.Context(), endpoint(t, nil)); !errors.Is(err, sdk.ErrUnavailable) {
		t.Errorf("open after Close: %v, want ErrUnavailable", err)
	}
}
