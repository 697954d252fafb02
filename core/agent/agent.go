package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/holdfast-dr/holdfast/core/claim"
	"github.com/holdfast-dr/holdfast/core/host"
	"github.com/holdfast-dr/holdfast/core/job"
	"github.com/holdfast-dr/holdfast/core/tenant"
	"github.com/holdfast-dr/holdfast/sdk"
)

// Agent is one site. Its exported fields are set before first use and not
// changed; its methods may be called from several goroutines.
type Agent struct {
	Name    string // of the site; what its certificate requests say
	Version string
	// Instance names this life of the agent; runs of another life are taken up.
	Instance string
	Store    Store
	Runs     job.Store
	Claims   claim.Store
	Host     host.Store // endpoints and enabled plugins
	Plugins  Plugins
	Workers  Workers // nil: this agent does not listen for workers
	// WorkersAddress is what workers are told to connect to.
	WorkersAddress string
	Dial           func(c Connection, renewed func(context.Context, Connection) (Connection, error)) (Wire, error)
	Enrol          func(ctx context.Context, e Enrolment) (Connection, error)
	Log            *slog.Logger
	Clock          func() time.Time // nil: time.Now

	keyMu sync.Mutex // serialises changes of the keyrings

	reports     reports
	manifests   manifestCache
	inventories inventories

	renewing sync.Mutex // one renewal at a time

	wireMu sync.Mutex // guards the fields below
	wires  map[string]Wire

	wakeOnce sync.Once
	wakeUp   chan struct{}
	settled  bell // rings when a run has ended, or is to be tried again

	endpointsOnce sync.Once
	endpointsWake chan struct{}
}

// Plugins runs plugin processes; host.Host implements it.
type Plugins interface {
	// Open gives the platform of an endpoint until release is called.
	Open(ctx context.Context, e host.Endpoint) (p sdk.Platform, release func(), err error)
	// Check holds an endpoint's settings against its plugin's schema.
	Check(ctx context.Context, e host.Endpoint) error
	// Remove forgets an endpoint and ends its process.
	Remove(ctx context.Context, endpointID string) error
	Find() ([]host.Found, error)
	// EnableAs trusts a program as it is now; nil leaves its policy as it was.
	EnableAs(ctx context.Context, name string, policy *host.PluginPolicy) (host.Enabled, error)
	// EnableOn trusts a program as it is now on a worker.
	EnableOn(ctx context.Context, hub host.Workers, worker, name string) (host.Enabled, error)
	Disable(ctx context.Context, name string) error
	// Reload changes to the program as it is now while jobs run.
	Reload(ctx context.Context, r host.ReloadRequest) (host.Reloaded, error)
	Status(ctx context.Context, name string) (host.PluginHealth, error)
	// Logs are the lines that are kept; FollowLogs goes on with those that come.
	Logs(r host.LogRequest) []host.LogLine
	FollowLogs(ctx context.Context, r host.LogRequest, notice func(host.LogLine) error) error
	// WriteMetrics writes Prometheus text.
	WriteMetrics(ctx context.Context, w io.Writer) error
}

func (a *Agent) now() time.Time {
	if a.Clock != nil {
		return a.Clock()
	}
	return time.Now()
}

// wake makes the scheduler look at the jobs again.
func (a *Agent) wake() {
	select {
	case a.wakes() <- struct{}{}:
	default:
	}
}

func (a *Agent) wakes() chan struct{} {
	a.wakeOnce.Do(func() { a.wakeUp = make(chan struct{}, 1) })
	return a.wakeUp
}

// bell wakes everybody who waits for it.
type bell struct {
	mu   sync.Mutex // guards next
	next chan struct{}
}

// heard is closed when the bell rings the next time.
func (b *bell) heard() <-chan struct{} {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.next == nil {
		b.next = make(chan struct{})
	}
	return b.next
}

func (b *bell) ring() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.next != nil {
		close(b.next)
		b.next = nil
	}
}

// Close ends the connections to the providers.
func (a *Agent) Close() error {
	a.wireMu.Lock()
	defer a.wireMu.Unlock()
	var failures []error
	for _, w := range a.wires {
		failures = append(failures, w.Close())
	}
	a.wires = nil
	return errors.Join(failures...)
}

// endpoint finds an endpoint by name or id.
func (a *Agent) endpoint(ctx context.Context, name string) (host.Endpoint, error) {
	all, err := a.Host.Endpoints(ctx)
	if err != nil {
		return host.Endpoint{}, err
	}
	for _, e := range all {
		if e.ID == name || strings.EqualFold(e.Name, name) {
			return e, nil
		}
	}
	return host.Endpoint{}, notFound("endpoint", name)
}

// connection finds a provider by name or id; "" means the only one.
func (a *Agent) connection(ctx context.Context, name string) (Connection, error) {
	all, err := a.Store.Connections(ctx)
	if err != nil {
		return Connection{}, err
	}
	if name == "" {
		all = enrolled(all)
		switch len(all) {
		case 0:
			return Connection{}, &RefusedError{Reason: "this site is not connected to a provider", Next: "connect it: holdfast agent connect ADDRESS --fingerprint FINGERPRINT"}
		case 1:
			return all[0], nil
		}
		names := make([]string, len(all))
		for i, c := range all {
			names[i] = c.Name
		}
		return Connection{}, &tenant.InvalidError{Field: "provider", Reason: "name one of " + strings.Join(names, ", ")}
	}
	for _, c := range all {
		if c.ID == name || strings.EqualFold(c.Name, name) {
			return c, nil
		}
	}
	return Connection{}, fmt.Errorf("provider %q: %w", name, tenant.ErrNotFound)
}

// enrolled leaves out attempts to connect that no provider has answered.
func enrolled(all []Connection) []Connection {
	return slices.DeleteFunc(slices.Clone(all), func(c Connection) bool { return c.AgentID == "" })
}
