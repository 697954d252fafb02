package host

import (
	"context"
	"slices"
	"strings"
	"time"
)

// State is how it stands with a plugin at an endpoint.
type State string

// The states.
const (
	StateIdle        State = "idle"        // no process; the next use starts one
	StateRunning     State = "running"     //
	StateTrial       State = "trial"       // runs on trial, after a quarantine
	StateDraining    State = "draining"    // an older version runs until its users are done
	StateWaiting     State = "waiting"     // it failed, and is started again at Next
	StateQuarantined State = "quarantined" // nothing is started
)

// EndpointState is a plugin at one endpoint. While it is reloaded, an endpoint
// has two.
type EndpointState struct {
	Endpoint   string      `json:"endpoint"`
	EndpointID string      `json:"endpoint_id"`
	State      State       `json:"state" enum:"idle,running,trial,draining,waiting,quarantined"`
	Version    string      `json:"version,omitempty"`
	SHA256     string      `json:"sha256,omitempty"`
	PID        int         `json:"pid,omitempty"`
	User       string      `json:"user,omitempty" doc:"The number of its user, if that is not Holdfast's"`
	Started    time.Time   `json:"started,omitzero"`
	Users      int         `json:"users" doc:"Jobs and requests that hold the endpoint open"`
	InFlight   int64       `json:"in_flight" doc:"Calls"`
	OpenDisks  int64       `json:"open_disks"`
	Failures   int         `json:"failures,omitempty" doc:"In a row"`
	Next       time.Time   `json:"next,omitzero" doc:"When it may be started again"`
	Drains     time.Time   `json:"drain_until,omitzero" doc:"When those who still use the older version are moved"`
	Quarantine *Quarantine `json:"quarantine,omitempty"`
	Unmet      []string    `json:"unmet,omitempty" doc:"Bounds that this system does not let Holdfast apply"`
}

// PluginHealth is how it stands with a plugin.
type PluginHealth struct {
	State      State           `json:"state" enum:"idle,running,trial,draining,waiting,quarantined"`
	Quarantine *Quarantine     `json:"quarantine,omitempty" doc:"Of the plugin everywhere"`
	Endpoints  []EndpointState `json:"endpoints"`
	Metrics    PluginMetrics   `json:"metrics"`
}

// severity orders states: a plugin's is the worst of its endpoints'.
var severity = []State{StateIdle, StateRunning, StateDraining, StateTrial, StateWaiting, StateQuarantined}

// Status is how it stands with a plugin now.
func (h *Host) Status(ctx context.Context, name string) (PluginHealth, error) {
	stored, err := h.store.Endpoints(ctx)
	if err != nil {
		return PluginHealth{}, err
	}
	s := PluginHealth{State: StateIdle, Endpoints: []EndpointState{}, Metrics: h.meter(name).snapshot()}
	seen := make(map[string]bool)
	h.mutex.Lock()
	if q := h.changed[name]; q != nil {
		held := *q
		s.Quarantine = &held
	}
	for slot := range h.all {
		if slot.endpoint.Plugin == name {
			s.Endpoints = append(s.Endpoints, slot.state())
			seen[slot.endpoint.ID] = true
		}
	}
	for _, e := range stored {
		if e.Plugin == name && !seen[e.ID] {
			idle := EndpointState{Endpoint: e.Name, EndpointID: e.ID, State: StateIdle}
			if b := h.breakers[e.ID]; b != nil {
				idle.refine(b.state(), h.now())
			}
			s.Endpoints = append(s.Endpoints, idle)
		}
	}
	h.mutex.Unlock()
	slices.SortFunc(s.Endpoints, func(a, b EndpointState) int {
		if c := strings.Compare(a.Endpoint, b.Endpoint); c != 0 {
			return c
		}
		return a.Started.Compare(b.Started)
	})
	for _, e := range s.Endpoints {
		if slices.Index(severity, e.State) > slices.Index(severity, s.State) {
			s.State = e.State
		}
	}
	if s.Quarantine != nil {
		s.State = StateQuarantined
	}
	return s, nil
}

// state is called with host.mutex held.
func (s *slot) state() EndpointState {
	e := EndpointState{Endpoint: s.endpoint.Name, EndpointID: s.endpoint.ID, State: StateIdle, Users: s.engaged()}
	if l := s.current.Load(); l != nil {
		s.breaker.lived(s.host.now().Sub(l.started))
		e.State, e.Version, e.SHA256 = StateRunning, l.process.Describe().Version, l.program.SHA256
		e.PID, e.User, e.Started, e.Unmet = l.pid(), l.user, l.started.UTC(), l.unmet()
		e.InFlight, e.OpenDisks = l.calls.Load(), l.disks.Load()
	}
	if s.drain != nil {
		e.State, e.Drains = StateDraining, s.drain.until.UTC()
		return e
	}
	e.refine(s.breaker.state(), s.host.now())
	return e
}

// refine adds what the breaker knows.
func (e *EndpointState) refine(b breakerState, now time.Time) {
	e.Failures = b.failures
	switch {
	case b.quarantine != nil && b.onTrial && e.State == StateRunning:
		e.State, e.Quarantine = StateTrial, b.quarantine
	case b.quarantine != nil:
		e.State, e.Quarantine, e.Next = StateQuarantined, b.quarantine, b.quarantine.Trial
	case e.State == StateIdle && b.notUntil.After(now):
		e.State, e.Next = StateWaiting, b.notUntil.UTC()
	}
}
