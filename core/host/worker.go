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

// EnableThere trusts a program that lies on another machine, by its checksum
// and by what it said of itself there. There is one checksum for each
// architecture: from now on every machine of that architecture, this one too,
// starts that build of the plugin and no other. The policy stays as it was.
func (h *Host) EnableThere(ctx context.Context, arch, sha256 string, d plugin.Description) (Enabled, error) {
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
