package host

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/holdfast-dr/holdfast/sdk"
)

// DefaultIdle is how long a process that nobody uses is kept.
const DefaultIdle = 5 * time.Minute

// Options are how a Host works. The zero value does: plugins are looked for
// beside the program.
type Options struct {
	// Dirs are searched for plugins, in this order; nil means the directory of
	// the running program.
	Dirs []string
	// RunDir belongs to this host alone; New empties it of what a killed host
	// left. "" is the system's temporary directory, which is not emptied.
	RunDir string
	// Private are directories where no disk of a plugin is: the host's own data.
	Private []string
	// Cgroup is a directory of cgroup v2 that is the host's to divide between
	// plugins; "" is none. See DelegatedCgroup.
	Cgroup string
	// Idle is how long a process that nobody uses is kept; 0 means DefaultIdle.
	Idle time.Duration
	// CallLimit is passed on to plugins; 0 means sdk.CallLimit.
	CallLimit time.Duration
	// Starter chooses where an endpoint's process runs; nil, for the function
	// or its answer, means on this machine.
	Starter func(Endpoint) (Starter, error)
	Log     *slog.Logger // nil: nothing is logged
}

// Host keeps plugin processes. Its methods may be called from several
// goroutines.
type Host struct {
	store   Store
	options Options
	log     *slog.Logger
	now     func() time.Time

	closing context.Context // ends with the host
	close   context.CancelFunc

	mutex     sync.Mutex       // guards the fields below
	slots     map[string]*slot // by endpoint
	all       map[*slot]bool   // the retired ones too
	breakers  map[string]*breaker
	changed   map[string]*Quarantine // by plugin whose program is another one now
	reloading map[string]bool        // by plugin
	closed    bool
	ending    sync.WaitGroup // what goes on in the background

	kept    sync.Mutex // guards the fields below
	meters  map[string]*meter
	records map[string]*record
	said    map[string]bool // what of policies could not be applied, and was said
	shared  string          // where plugins with users of their own have their sockets
}

// New makes a host. It starts nothing yet.
func New(store Store, o Options) (*Host, error) {
	if o.Idle <= 0 {
		o.Idle = DefaultIdle
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if len(o.Dirs) == 0 {
		program, err := os.Executable()
		if err != nil {
			return nil, fmt.Errorf("find the directory of plugins: %w", err)
		}
		o.Dirs = []string{filepath.Dir(program)}
	}
	if err := sweep(o.RunDir); err != nil {
		return nil, fmt.Errorf("prepare the run directory of plugins: %w", err)
	}
	h := &Host{
		store: store, options: o, log: o.Log, now: time.Now,
		slots: make(map[string]*slot), all: make(map[*slot]bool), breakers: make(map[string]*breaker),
		changed: make(map[string]*Quarantine), reloading: make(map[string]bool),
		meters: make(map[string]*meter), records: make(map[string]*record), said: make(map[string]bool),
	}
	h.closing, h.close = context.WithCancel(context.Background())
	return h, nil
}

// sweep makes the run directory and removes the sockets of a killed host.
func sweep(dir string) error {
	if dir == "" {
		return nil
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	stale, err := filepath.Glob(filepath.Join(dir, "plugin-*"))
	for _, path := range stale {
		err = errors.Join(err, os.RemoveAll(path))
	}
	return err
}

// Open gives the platform of an endpoint, and starts its process if there is
// none. The platform may be used until release is called, and outlives its
// process. An endpoint whose settings changed gets a process of its own; those
// who have the old one keep it until they release it.
func (h *Host) Open(ctx context.Context, e Endpoint) (platform sdk.Platform, release func(), err error) {
	p := &Platform{host: h}
	if err := h.use(e, p); err != nil {
		return nil, nil, err
	}
	if _, err := p.now(ctx); err != nil {
		p.release()
		return nil, nil, fmt.Errorf("open endpoint %s: %w", e.Name, err)
	}
	return p, p.release, nil
}

// OpenID is Open for an endpoint that the store has.
func (h *Host) OpenID(ctx context.Context, endpointID string) (sdk.Platform, func(), error) {
	e, err := h.store.Endpoint(ctx, endpointID)
	if err != nil {
		return nil, nil, fmt.Errorf("find endpoint %s: %w", endpointID, err)
	}
	return h.Open(ctx, e)
}

// use finds or makes the slot of an endpoint and counts a user of it.
func (h *Host) use(e Endpoint, p *Platform) error {
	h.mutex.Lock()
	defer h.mutex.Unlock()
	if h.closed {
		return sdk.Errorf(sdk.ErrUnavailable, sdk.FaultHost, "the plugin host is closed")
	}
	s, ok := h.slots[e.ID]
	if ok && !s.endpoint.sameProcess(e) {
		h.retireLocked(s)
		delete(h.breakers, e.ID) // what failed with the old settings may work with these
		ok = false
	}
	if !ok {
		s = newSlot(h, e)
		h.slots[e.ID], h.all[s] = s, true
	}
	s.users[p] = true
	p.slot.Store(s)
	s.stopIdling()
	return nil
}

// breakerOf is the breaker of an endpoint. It is called with mutex held.
func (h *Host) breakerOf(e Endpoint) *breaker {
	b := h.breakers[e.ID]
	if b == nil {
		b = &breaker{}
		h.breakers[e.ID] = b
	}
	return b
}

// background runs something that Close waits for. It is not called with mutex
// held.
func (h *Host) background(do func()) {
	h.mutex.Lock()
	defer h.mutex.Unlock()
	if h.closed {
		go do() // what Close still waits for ends this too
		return
	}
	h.ending.Go(do)
}

// meter and record are what is counted and kept of a plugin. They last as long
// as the host.
func (h *Host) meter(name string) *meter {
	h.kept.Lock()
	defer h.kept.Unlock()
	m := h.meters[name]
	if m == nil {
		m = newMeter()
		h.meters[name] = m
	}
	return m
}

func (h *Host) record(name string) *record {
	h.kept.Lock()
	defer h.kept.Unlock()
	r := h.records[name]
	if r == nil {
		r = &record{}
		h.records[name] = r
	}
	return r
}

// retire ends a slot when its last user leaves.
func (h *Host) retire(endpointID string) {
	h.mutex.Lock()
	defer h.mutex.Unlock()
	if s, ok := h.slots[endpointID]; ok {
		h.retireLocked(s)
	}
}

func (h *Host) retireLocked(s *slot) {
	s.withdraw()
	delete(h.slots, s.endpoint.ID)
	if len(s.users) == 0 {
		h.end(s)
	}
}

// end closes the process of a slot in the background; Close waits for it. It
// is called with mutex held.
func (h *Host) end(s *slot) {
	s.stopIdling()
	if s.drain != nil {
		s.drain.timer.Stop()
	}
	delete(h.all, s)
	h.ending.Go(s.end)
}

// Close ends every process and waits until they have ended. Platforms that
// are still out fail from now on.
func (h *Host) Close() error {
	h.mutex.Lock()
	h.closed = true
	h.close() // starts that are under way are given up
	for s := range h.all {
		s.withdraw()
		h.end(s)
	}
	clear(h.slots)
	h.mutex.Unlock()
	h.ending.Wait()
	h.kept.Lock()
	defer h.kept.Unlock()
	if h.shared != "" {
		return os.RemoveAll(h.shared)
	}
	return nil
}
