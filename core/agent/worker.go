package agent

import (
	"context"
	"fmt"
	"net"
	"slices"
	"strings"
	"time"

	"github.com/holdfast-dr/holdfast/core/host"
	"github.com/holdfast-dr/holdfast/core/pki"
	"github.com/holdfast-dr/holdfast/core/tenant"
	"github.com/holdfast-dr/holdfast/core/worker"
)

// Workers are the other machines that run plugins for this site; worker.Hub
// implements it.
type Workers interface {
	host.Workers
	Invite(ctx context.Context, name string, life time.Duration) (worker.Invitation, error)
	Workers(ctx context.Context) ([]worker.Status, error)
	Find(ctx context.Context, name string) (worker.Record, error)
	Remove(ctx context.Context, name string) error
	Fingerprint() pki.Fingerprint
}

// WorkerStatus is a worker as people at the site see it.
type WorkerStatus struct {
	ID        string    `json:"id"`
	Name      string    `json:"name"`
	State     string    `json:"state" enum:"invited,away,connected"`
	Since     time.Time `json:"since,omitzero" doc:"When it connected"`
	Address   string    `json:"address,omitempty" doc:"Where it connected from"`
	Version   string    `json:"version,omitempty"`
	OS        string    `json:"os,omitempty"`
	Arch      string    `json:"arch,omitempty"`
	Processes int       `json:"processes" doc:"Plugins that it runs"`
	Endpoints []string  `json:"endpoints,omitempty" doc:"That name it"`
	Enrolled  time.Time `json:"enrolled,omitzero"`
	Expires   time.Time `json:"invitation_expires,omitzero" doc:"When its last invitation is worth nothing any more"`
}

// The states of a worker.
const (
	WorkerInvited   = "invited" // nobody has used its invitation
	WorkerAway      = "away"
	WorkerConnected = "connected"
)

// WorkerInvitation is what is needed at the worker.
type WorkerInvitation struct {
	Worker      string    `json:"worker"`
	Address     string    `json:"address" doc:"Where this agent listens for workers"`
	Fingerprint string    `json:"fingerprint" doc:"To be compared before the token is sent"`
	Token       string    `json:"token" doc:"Good for one worker; shown once"`
	Expires     time.Time `json:"expires"`
}

// workers is the hub, if this agent listens for workers.
func (a *Agent) workers() (Workers, error) {
	if a.Workers == nil {
		return nil, &RefusedError{Reason: "this agent does not listen for workers", Next: "start it with --workers-listen, such as holdfast agent serve --workers-listen :" + worker.DefaultPort}
	}
	return a.Workers, nil
}

// InviteWorker makes a one-time token for a worker. life is how long it is good
// for; 0 means a day.
func (a *Agent) InviteWorker(ctx context.Context, name string, life time.Duration) (WorkerInvitation, error) {
	hub, err := a.workers()
	if err != nil {
		return WorkerInvitation{}, err
	}
	invitation, err := hub.Invite(a.origin(ctx, "worker invite"), name, life)
	if err != nil {
		return WorkerInvitation{}, err
	}
	a.Log.InfoContext(ctx, "worker invited", "worker", invitation.Worker, "expires", invitation.Expires)
	return WorkerInvitation{Worker: invitation.Worker, Address: a.WorkersAddress, Fingerprint: hub.Fingerprint().String(),
		Token: invitation.Token, Expires: invitation.Expires}, nil
}

// ListWorkers lists the site's workers by name, as they are now.
func (a *Agent) ListWorkers(ctx context.Context) ([]WorkerStatus, error) {
	hub, err := a.workers()
	if err != nil {
		return nil, err
	}
	all, err := hub.Workers(ctx)
	if err != nil {
		return nil, err
	}
	endpoints, err := a.Host.Endpoints(ctx)
	if err != nil {
		return nil, err
	}
	list := make([]WorkerStatus, len(all))
	for i, w := range all {
		s := WorkerStatus{ID: w.ID, Name: w.Name, State: WorkerAway, Since: w.Connected, Address: w.Address, Version: w.About.Version,
			OS: w.About.OS, Arch: w.About.Arch, Processes: w.Processes, Enrolled: w.Enrolled, Expires: w.Expires}
		switch {
		case !w.Connected.IsZero():
			s.State = WorkerConnected
		case w.Enrolled.IsZero():
			s.State = WorkerInvited
		}
		for _, e := range endpoints {
			if slices.ContainsFunc(e.Workers, func(name string) bool { return strings.EqualFold(name, w.Name) }) {
				s.Endpoints = append(s.Endpoints, e.Name)
			}
		}
		list[i] = s
	}
	return list, nil
}

// RemoveWorker forgets a worker and cuts it off at once. Endpoints that name it
// go on with their other workers, or fail until it is invited again.
func (a *Agent) RemoveWorker(ctx context.Context, name string) error {
	hub, err := a.workers()
	if err != nil {
		return err
	}
	if err := hub.Remove(a.origin(ctx, "worker remove"), name); err != nil {
		return err
	}
	a.Log.InfoContext(ctx, "worker removed", "worker", name)
	return nil
}

// WorkerPlugin is a plugin's program that was enabled as it is on a worker.
type WorkerPlugin struct {
	Plugin  string `json:"plugin"`
	Worker  string `json:"worker"`
	Arch    string `json:"arch" doc:"Whose machines all start this build from now on"`
	Version string `json:"version"`
	SHA256  string `json:"sha256"`
}

// EnableWorkerPlugin trusts a plugin's program as it is now on a worker, for
// every machine of that worker's architecture.
func (a *Agent) EnableWorkerPlugin(ctx context.Context, name, pluginName string) (WorkerPlugin, error) {
	hub, err := a.workers()
	if err != nil {
		return WorkerPlugin{}, err
	}
	record, err := hub.Find(ctx, name)
	if err != nil {
		return WorkerPlugin{}, err
	}
	e, err := a.Plugins.EnableOn(a.origin(ctx, "plugin enable"), hub, record.Name, pluginName)
	if err != nil {
		return WorkerPlugin{}, err
	}
	a.Log.InfoContext(ctx, "plugin enabled", "plugin", e.Plugin, "version", e.Version, "arch", e.Arch, "sha256", e.SHA256, "worker", record.Name)
	return WorkerPlugin{Plugin: e.Plugin, Worker: record.Name, Arch: e.Arch, Version: e.Version, SHA256: e.SHA256}, nil
}

// maxEndpointWorkers bounds how many workers one endpoint names.
const maxEndpointWorkers = 16

// namedWorkers are the workers that an endpoint may name, as they are called.
func (a *Agent) namedWorkers(ctx context.Context, names []string) ([]string, error) {
	if len(names) == 0 {
		return nil, nil
	}
	if len(names) > maxEndpointWorkers {
		return nil, &tenant.InvalidError{Field: "workers", Reason: fmt.Sprintf("at most %d", maxEndpointWorkers)}
	}
	hub, err := a.workers()
	if err != nil {
		return nil, err
	}
	var known []string
	for _, name := range names {
		record, err := hub.Find(ctx, name)
		if err != nil {
			return nil, err
		}
		if slices.Contains(known, record.Name) {
			return nil, &tenant.InvalidError{Field: "workers", Reason: fmt.Sprintf("%s is named twice", record.Name)}
		}
		known = append(known, record.Name)
	}
	return known, nil
}

// WorkersAddress is what workers are told to connect to, if nobody said: the
// address on which the agent listens, or this machine's name if that is all of
// its addresses.
func WorkersAddress(listen, hostname string) string {
	at, port, err := net.SplitHostPort(listen)
	if err != nil {
		return listen
	}
	if ip := net.ParseIP(at); at == "" || ip != nil && ip.IsUnspecified() {
		at = hostname
	}
	return net.JoinHostPort(at, port)
}
