package worker

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/core/access"
	"github.com/holdfast-dr/holdfast/core/audit"
	"github.com/holdfast-dr/holdfast/core/pki"
	"github.com/holdfast-dr/holdfast/core/tenant"
	"github.com/holdfast-dr/holdfast/sdk"
	"github.com/holdfast-dr/holdfast/sdk/plugin"
	"github.com/holdfast-dr/holdfast/sdk/sim"
)

// TestMain is two programs: the tests, and the plugin that workers start.
func TestMain(m *testing.M) {
	if os.Getenv("HOLDFAST_PLUGIN") != "" || len(os.Args) == 2 && os.Args[1] == "describe" {
		plugin.Serve(author)
	}
	os.Exit(m.Run())
}

type config struct {
	Dir      string `json:"dir" help:"of the simulated hypervisor" required:"true"`
	Password string `json:"password" help:"not used" secret:"true"`
	sim.Settings
}

var author = plugin.Author{
	Name: "sim", Version: "1.2.3", Config: &config{}, Type: (*puppet)(nil),
	Open: func(_ context.Context, c any) (sdk.Platform, error) {
		config := c.(*config)
		hv, err := sim.Open(config.Dir)
		if err != nil {
			return nil, err
		}
		return &puppet{Platform: hv.Connect(config.Settings), password: config.Password}, nil
	},
}

// puppet does as it is told by the machine that is probed.
type puppet struct {
	*sim.Platform
	password string
}

func (p *puppet) Probe(ctx context.Context, subject sdk.Subject) (sdk.Report, error) {
	switch subject.Machine {
	case "leak":
		plugin.Log(ctx).Info("connecting", "password", p.password)
		return sdk.Report{}, fmt.Errorf("login with %s: %w", p.password, sdk.ErrDenied)
	case "hang":
		<-ctx.Done()
		return sdk.Report{}, ctx.Err()
	case "chatter":
		line := strings.Repeat("chatter ", 1000)
		for range 500 {
			plugin.Log(ctx).Info(line)
		}
		return sdk.Report{Product: "said it"}, nil
	case "exit":
		plugin.Log(ctx).Error("last words")
		os.Exit(3)
	}
	return p.Platform.Probe(ctx, subject)
}

// until polls a condition; a test that needs more than the limit has failed.
func until(t testing.TB, what string, done func() bool) {
	t.Helper()
	deadline := time.After(time.Minute)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !done() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("waited in vain: %s", what)
		}
	}
}

// logged keeps what is logged.
type logged struct {
	mutex sync.Mutex
	text  bytes.Buffer
}

func (l *logged) Write(p []byte) (int, error) {
	l.mutex.Lock()
	defer l.mutex.Unlock()
	return l.text.Write(p)
}

func (l *logged) String() string {
	l.mutex.Lock()
	defer l.mutex.Unlock()
	return l.text.String()
}

func (l *logged) logger() *slog.Logger {
	return slog.New(slog.NewTextHandler(l, &slog.HandlerOptions{Level: slog.LevelDebug}))
}

// memory is a Store.
type memory struct {
	clock  func() time.Time
	mutex  sync.Mutex
	rows   map[string]*Record
	tokens map[access.Hash]string // to ids
	bound  map[access.Hash]access.Hash
}

func newMemory(clock func() time.Time) *memory {
	return &memory{clock: clock, rows: map[string]*Record{}, tokens: map[access.Hash]string{}, bound: map[access.Hash]access.Hash{}}
}

func (m *memory) Workers(context.Context) ([]Record, error) {
	m.mutex.Lock()
	defer m.mutex.Unlock()
	var all []Record
	for _, r := range m.rows {
		all = append(all, *r)
	}
	return all, nil
}

func (m *memory) Worker(_ context.Context, id string) (Record, error) {
	m.mutex.Lock()
	defer m.mutex.Unlock()
	if r := m.rows[id]; r != nil {
		return *r, nil
	}
	return Record{}, tenant.ErrNotFound
}

func (m *memory) Invite(ctx context.Context, name string, token access.Hash, expires time.Time) (Record, error) {
	if _, err := audit.From(ctx); err != nil {
		return Record{}, err
	}
	m.mutex.Lock()
	defer m.mutex.Unlock()
	r := m.rows["id-"+name]
	if r == nil {
		r = &Record{ID: "id-" + name, Name: name}
		m.rows[r.ID] = r
	}
	r.Invited, r.Expires = m.clock(), expires
	m.tokens[token] = r.ID
	return *r, nil
}

func (m *memory) Enrol(ctx context.Context, token, key access.Hash) (Record, error) {
	if _, err := audit.From(ctx); err != nil {
		return Record{}, err
	}
	m.mutex.Lock()
	defer m.mutex.Unlock()
	r := m.rows[m.tokens[token]]
	if bound, used := m.bound[token]; r == nil || !m.clock().Before(r.Expires) || used && bound != key {
		return Record{}, access.ErrEnrolment
	}
	m.bound[token] = key
	r.Key, r.Enrolled = key, m.clock()
	return *r, nil
}

func (m *memory) Remove(ctx context.Context, id string) error {
	if _, err := audit.From(ctx); err != nil {
		return err
	}
	m.mutex.Lock()
	defer m.mutex.Unlock()
	delete(m.rows, id)
	return nil
}

// house is a hub that listens on loopback, and what belongs to it.
type house struct {
	*Hub
	address string
	log     *logged
	clock   *clock
	silence time.Duration
}

// clock is what time it is for both ends.
type clock struct {
	mutex sync.Mutex
	ahead time.Duration
}

func (c *clock) now() time.Time {
	c.mutex.Lock()
	defer c.mutex.Unlock()
	return time.Now().Add(c.ahead)
}

func (c *clock) forward(d time.Duration) {
	c.mutex.Lock()
	defer c.mutex.Unlock()
	c.ahead += d
}

// operator is who changes things in tests.
func operator(t testing.TB) context.Context {
	return audit.With(t.Context(), audit.System("test", "test"))
}

// open makes a house, in which nobody is called lost because the machine is busy.
func open(t testing.TB) *house {
	t.Helper()
	return openWith(t, Silence)
}

// openWith makes a house in which silence lasts as long.
func openWith(t testing.TB, silence time.Duration) *house {
	t.Helper()
	h := &house{log: &logged{}, clock: &clock{}, silence: silence}
	authority, err := pki.NewAuthority("Test", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	h.Hub, err = NewHub(t.Context(), HubOptions{Store: newMemory(h.clock.now), Authority: authority, Log: h.log.logger(),
		Clock: h.clock.now, Beat: h.silence / 8, Silence: h.silence})
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	h.address = l.Addr().String()
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- h.Serve(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		if err := <-served; err != nil {
			t.Errorf("serve: %v", err)
		}
		if n := len(h.strangers); n != 0 {
			t.Errorf("%d places for strangers are not given back", n)
		}
		if len(h.sessions) != 0 {
			t.Errorf("%d sessions are left", len(h.sessions))
		}
	})
	return h
}

// enrol makes the directory of an enrolled worker.
func (h *house) enrol(t testing.TB, name string) (dir string) {
	t.Helper()
	dir = filepath.Join(t.TempDir(), "w")
	h.enrolIn(t, dir, name, h.address)
	return dir
}

func (h *house) enrolIn(t testing.TB, dir, name, address string) {
	t.Helper()
	invitation, err := h.Invite(operator(t), name, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Enrol(t.Context(), Enrolment{Dir: dir, Address: address, Fingerprint: h.Fingerprint().String(), Token: invitation.Token}); err != nil {
		t.Fatal(err)
	}
}

// employed is a worker that serves.
type employed struct {
	*Worker
	log  *logged
	dir  string
	stop func()
}

// programs is a directory in which this test binary is the plugin sim.
func programs(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(self, filepath.Join(dir, "holdfast-plugin-sim")); err != nil {
		t.Fatal(err)
	}
	return dir
}

// employ starts a worker in a directory.
func (h *house) employ(t testing.TB, dir string) *employed {
	t.Helper()
	w := &employed{log: &logged{}, dir: dir}
	var err error
	w.Worker, err = New(Options{Dir: dir, Plugins: []string{programs(t)}, Version: "test", Log: w.log.logger(), Clock: h.clock.now,
		Beat: h.silence / 8, Silence: h.silence})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- w.Serve(ctx) }()
	w.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-served; err != nil {
			t.Errorf("serve: %v", err)
		}
		if err := w.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	t.Cleanup(w.stop)
	return w
}

// connected waits until a worker is.
func (h *house) connected(t testing.TB, name string) {
	t.Helper()
	until(t, "worker "+name+" to be connected", func() bool {
		s, err := h.session(name)
		return err == nil && s.isLost() == nil // one that is lost is still there for a moment
	})
}

// gone waits until a worker is not connected.
func (h *house) gone(t testing.TB, name string) {
	t.Helper()
	until(t, "worker "+name+" to be gone", func() bool {
		_, err := h.session(name)
		return err != nil
	})
}

// checksum is that of this test binary.
func checksum(t testing.TB) string {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	sum, err := plugin.Checksum(self)
	if err != nil {
		t.Fatal(err)
	}
	return sum
}

func launch(t testing.TB, settings map[string]any) plugin.Launch {
	t.Helper()
	doc, err := json.Marshal(settings)
	if err != nil {
		t.Fatal(err)
	}
	return plugin.Launch{SHA256: checksum(t), Settings: doc}
}

// start starts the plugin on a worker.
// restart starts a plugin on a worker that was lost. A session that the worker
// gave up while it was cut off may still arrive, and end at once.
func (h *house) restart(t testing.TB, name string, l plugin.Launch) *plugin.Process {
	t.Helper()
	var p *plugin.Process
	until(t, "worker "+name+" to start a plugin", func() bool {
		var err error
		if p, err = h.Start(t.Context(), name, "sim", l); err != nil && !errors.Is(err, sdk.ErrUnavailable) {
			t.Fatal(err)
		}
		return err == nil
	})
	t.Cleanup(func() { _ = p.Close() })
	return p
}

func (h *house) start(t testing.TB, name string, l plugin.Launch) *plugin.Process {
	t.Helper()
	p, err := h.Start(t.Context(), name, "sim", l)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.Close() })
	return p
}

func probe(p *plugin.Process, machine sdk.MachineID) error {
	_, err := p.Platform().Probe(context.Background(), sdk.Subject{Machine: machine})
	return err
}

// cable is a path between a worker and its hub that can be cut.
type cable struct {
	address string
	mutex   sync.Mutex
	cut     bool
	lifted  *sync.Cond
}

// lay lays a cable to an address.
func lay(t testing.TB, to string) *cable {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c := &cable{address: l.Addr().String()}
	c.lifted = sync.NewCond(&c.mutex)
	var running sync.WaitGroup
	var mutex sync.Mutex
	var conns []net.Conn
	running.Go(func() {
		for {
			near, err := l.Accept()
			if err != nil {
				return
			}
			far, err := net.Dial("tcp", to)
			if err != nil {
				_ = near.Close()
				continue
			}
			mutex.Lock()
			conns = append(conns, near, far)
			mutex.Unlock()
			running.Go(func() { c.copy(far, near) })
			running.Go(func() { c.copy(near, far) })
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		c.set(false)
		mutex.Lock()
		for _, conn := range conns {
			_ = conn.Close()
		}
		mutex.Unlock()
		running.Wait()
	})
	return c
}

// set cuts the cable, or mends it. Nothing that is sent over a cut cable is
// answered, not even the end of a connection.
func (c *cable) set(cut bool) {
	c.mutex.Lock()
	defer c.mutex.Unlock()
	c.cut = cut
	c.lifted.Broadcast()
}

func (c *cable) copy(to, from net.Conn) {
	buffer := make([]byte, 32<<10)
	for {
		n, err := from.Read(buffer)
		c.mutex.Lock()
		for c.cut {
			c.lifted.Wait()
		}
		c.mutex.Unlock()
		if n > 0 {
			if _, err := to.Write(buffer[:n]); err != nil {
				return
			}
		}
		if err != nil {
			if errors.Is(err, io.EOF) {
				_ = to.Close()
			}
			return
		}
	}
}
