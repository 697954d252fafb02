package host

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"runtime"
	"time"

	"github.com/holdfast-dr/holdfast/sdk"
	"github.com/holdfast-dr/holdfast/sdk/plugin"
)

// Workers are other machines that run plugins, by their names.
type Workers interface {
	// Arch is a worker's architecture, as GOARCH. It is sdk.ErrUnavailable of a
	// worker that is not connected.
	Arch(ctx context.Context, worker string) (string, error)
	// Inspect is the checksum of a plugin's program there, and what it says of
	// itself.
	Inspect(ctx context.Context, worker, name string) (sha256 string, d plugin.Description, err error)
	// Start starts the program that has the checksum of the launch.
	Start(ctx context.Context, worker, name string, l plugin.Launch) (*plugin.Process, error)
}

// EnableOn trusts a program as it is now on a worker, by its checksum and by
// what it says of itself there. There is one checksum for each architecture:
// from now on every machine of that architecture, this one too, starts that
// build of the plugin and no other. The policy stays as it was.
func (h *Host) EnableOn(ctx context.Context, hub Workers, worker, name string) (Enabled, error) {
	arch, err := hub.Arch(ctx, worker)
	if err != nil {
		return Enabled{}, err
	}
	sha256, d, err := hub.Inspect(ctx, worker, name)
	if err != nil {
		return Enabled{}, err
	}
	if d.Name != name { // or one plugin would be trusted in the name of another
		return Enabled{}, sdk.Errorf(sdk.ErrInvalid, sdk.FaultPlugin, "the program of plugin %s on worker %s calls itself %q", name, worker, d.Name)
	}
	return h.enableFor(ctx, arch, sha256, d)
}

func (h *Host) enableFor(ctx context.Context, arch, sha256 string, d plugin.Description) (Enabled, error) {
	e := Enabled{Plugin: d.Name, Arch: arch, SHA256: sha256, Version: d.Version, Protocol: d.Protocol,
		EnabledAt: h.now().UTC().Truncate(time.Microsecond)}
	if !pluginName.MatchString(d.Name) || arch == "" {
		return Enabled{}, sdk.Errorf(sdk.ErrInvalid, sdk.FaultHost, "plugin %q for architecture %q cannot be enabled", d.Name, arch)
	}
	if d.Protocol != plugin.Protocol {
		return Enabled{}, sdk.Errorf(sdk.ErrUnsupported, sdk.FaultPlugin, "plugin %s speaks protocol %d, this version %d", d.Name, d.Protocol, plugin.Protocol)
	}
	before, err := h.store.Plugin(ctx, d.Name, arch)
	if err != nil && !errors.Is(err, sdk.ErrNotFound) {
		return Enabled{}, fmt.Errorf("enable plugin %s: %w", d.Name, err)
	}
	e.Path, e.Policy = before.Path, before.Policy
	if found, err := h.find(d.Name); e.Path == "" && arch == runtime.GOARCH && err == nil {
		e.Path = found.Path
	}
	if e.Description, err = json.Marshal(d); err != nil {
		return Enabled{}, fmt.Errorf("enable plugin %s: %w", d.Name, err)
	}
	if err := h.store.PutPlugin(ctx, e); err != nil {
		return Enabled{}, fmt.Errorf("enable plugin %s: %w", d.Name, err)
	}
	h.forgive(d.Name)
	return e, nil
}

// OnWorkers chooses where an endpoint's plugin runs: on the first of its workers
// that is connected; here, if it names none. hub is nil where nobody listens for
// workers.
func OnWorkers(hub Workers) func(Endpoint) (Starter, error) {
	return func(e Endpoint) (Starter, error) {
		switch {
		case len(e.Workers) == 0:
			return nil, nil
		case hub == nil:
			return nil, sdk.Errorf(sdk.ErrUnavailable, sdk.FaultHost, "its plugin runs on workers, and this agent does not listen for any").
				WithHint("start the agent with --workers-listen")
		}
		return onWorkers{hub}, nil
	}
}

type onWorkers struct{ hub Workers }

// Start starts the plugin of an endpoint on the first worker that is connected.
func (o onWorkers) Start(ctx context.Context, s Start) (Process, error) {
	var failures []error
	for _, name := range s.Endpoint.Workers {
		p, err := o.startOn(ctx, name, s)
		if err == nil {
			return p, nil
		}
		failures = append(failures, err)
		// Whatever else is wrong is wrong with the plugin or its settings.
		if !errors.Is(err, sdk.ErrUnavailable) || ctx.Err() != nil {
			break
		}
	}
	return nil, errors.Join(failures...)
}

func (o onWorkers) startOn(ctx context.Context, name string, s Start) (Process, error) {
	arch, err := o.hub.Arch(ctx, name)
	if err != nil {
		return nil, err
	}
	program, err := s.Enabled(ctx, arch)
	if err != nil {
		return nil, err
	}
	s.Launch.SHA256 = program.SHA256
	p, err := o.hub.Start(ctx, name, s.Endpoint.Plugin, s.Launch)
	if err != nil {
		return nil, err
	}
	return farProcess{p}, nil
}

// farProcess is a process on another machine: its number means nothing here.
type farProcess struct{ process *plugin.Process }

func (f farProcess) Platform() sdk.Platform       { return f.process.Platform() }
func (f farProcess) Describe() plugin.Description { return f.process.Describe() }
func (f farProcess) Done() <-chan struct{}        { return f.process.Done() }
func (f farProcess) Close() error                 { return f.process.Close() }

// Lost says why the worker cannot be reached any more; nil while it can.
func (f farProcess) Lost() error { return f.process.Lost() }

// away reports whether a start came to nothing because none of the endpoint's
// workers can be reached, which says nothing about the plugin.
func (e Endpoint) away(err error) bool {
	cause, ok := errors.AsType[*sdk.Error](err)
	return len(e.Workers) > 0 && ok && cause.Fault == sdk.FaultHost && errors.Is(cause, sdk.ErrUnavailable)
}

// lost is why the machine of a process cannot be reached any more, or nil.
func (l *life) lost() error {
	if p, ok := l.process.(interface{ Lost() error }); ok {
		return p.Lost()
	}
	return nil
}

// enabledAnywhere is the plugin's binary for this architecture, or else for
// another one: what it says of its settings is the same.
func (h *Host) enabledAnywhere(ctx context.Context, name string) (Enabled, error) {
	here, missing := h.enabled(ctx, name, runtime.GOARCH)
	if !errors.Is(missing, sdk.ErrNotFound) {
		return here, missing
	}
	all, err := h.store.Plugins(ctx)
	if err != nil {
		return Enabled{}, fmt.Errorf("look up plugin %s: %w", name, err)
	}
	for _, e := range all {
		if e.Plugin == name {
			return e, nil
		}
	}
	return Enabled{}, missing
}
