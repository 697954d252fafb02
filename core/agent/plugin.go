package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/holdfast-dr/holdfast/core/host"
	"github.com/holdfast-dr/holdfast/sdk"
)

// PluginStatus is a plugin program that is installed or enabled, and how it
// stands with it.
type PluginStatus struct {
	Name      string             `json:"name"`
	Path      string             `json:"path"`
	Enabled   bool               `json:"enabled" doc:"Its binary is trusted, as it was then"`
	Version   string             `json:"version,omitempty"`
	SHA256    string             `json:"sha256,omitempty" doc:"Of the binary that is trusted; another one is not started"`
	Protocol  int                `json:"protocol,omitempty"`
	Abilities []sdk.Ability      `json:"abilities,omitempty"`
	EnabledAt time.Time          `json:"enabled_at,omitzero"`
	HostUser  bool               `json:"host_user,omitempty" doc:"It says that it needs Holdfast's own user"`
	Guards    bool               `json:"guards,omitempty" doc:"It says that processes of it outlive it on purpose"`
	Policy    *host.PluginPolicy `json:"policy,omitempty" doc:"How closely its processes are kept"`
	Running   *host.PluginHealth `json:"running,omitempty" doc:"How it stands with it at each endpoint, and what it did since Holdfast started"`
	// Config is the schema of an endpoint's settings.
	Config json.RawMessage `json:"config,omitempty"`
}

// InstalledPlugins lists plugins that could be enabled, and those that are.
func (a *Agent) InstalledPlugins(ctx context.Context) ([]PluginStatus, error) {
	found, err := a.Plugins.Find()
	if err != nil {
		return nil, err
	}
	enabled, err := a.Host.Plugins(ctx)
	if err != nil {
		return nil, err
	}
	list := []PluginStatus{}
	for _, e := range enabled {
		if e.Arch != runtime.GOARCH {
			continue
		}
		status, err := a.pluginStatus(ctx, e)
		if err != nil {
			return nil, err
		}
		list = append(list, status)
	}
	for _, f := range found {
		if !slices.ContainsFunc(list, func(p PluginStatus) bool { return p.Name == f.Plugin }) {
			list = append(list, PluginStatus{Name: f.Plugin, Path: f.Path})
		}
	}
	slices.SortFunc(list, func(x, y PluginStatus) int { return strings.Compare(x.Name, y.Name) })
	return list, nil
}

// EnablePlugin trusts a plugin's program as it is now; nil leaves its policy as
// it was.
func (a *Agent) EnablePlugin(ctx context.Context, name string, policy *host.PluginPolicy) (PluginStatus, error) {
	e, err := a.Plugins.EnableAs(a.origin(ctx, "plugin enable"), name, policy)
	if err != nil {
		return PluginStatus{}, err
	}
	a.Log.InfoContext(ctx, "plugin enabled", "plugin", e.Plugin, "version", e.Version, "sha256", e.SHA256)
	return a.pluginStatus(ctx, e)
}

// ReloadPlugin changes an enabled plugin to its program as it is now. Jobs that
// run go on; see host.Host.Reload.
func (a *Agent) ReloadPlugin(ctx context.Context, r host.ReloadRequest) (host.Reloaded, error) {
	done, err := a.Plugins.Reload(a.origin(ctx, "plugin reload"), r)
	if err != nil && sdk.CodeOf(err) == sdk.CodeUnknown && ctx.Err() == nil {
		return done, &RefusedError{Reason: err.Error(), Next: "see what it says: holdfast plugin logs " + r.Plugin}
	}
	return done, err
}

// PluginLogs are the lines that are kept of an enabled plugin's log.
func (a *Agent) PluginLogs(ctx context.Context, r host.LogRequest) ([]host.LogLine, error) {
	if _, err := a.enabledPlugin(ctx, r.Plugin); err != nil {
		return nil, err
	}
	return a.Plugins.Logs(r), nil
}

// FollowPluginLogs calls notice with each line that is kept of a plugin's log,
// and with each that comes, until ctx ends.
func (a *Agent) FollowPluginLogs(ctx context.Context, r host.LogRequest, notice func(host.LogLine) error) error {
	if _, err := a.enabledPlugin(ctx, r.Plugin); err != nil {
		return err
	}
	return a.Plugins.FollowLogs(ctx, r, notice)
}

// WriteMetrics writes what the site's plugins did as Prometheus text.
func (a *Agent) WriteMetrics(ctx context.Context, w io.Writer) error {
	return a.Plugins.WriteMetrics(ctx, w)
}

// DisablePlugin trusts a plugin no longer, if no endpoint needs it.
func (a *Agent) DisablePlugin(ctx context.Context, name string) error {
	endpoints, err := a.Host.Endpoints(ctx)
	if err != nil {
		return err
	}
	for _, e := range endpoints {
		if e.Plugin == name {
			return &RefusedError{Reason: fmt.Sprintf("endpoint %q needs plugin %s", e.Name, name), Next: "delete the endpoint first: holdfast endpoint delete " + e.Name}
		}
	}
	return a.Plugins.Disable(a.origin(ctx, "plugin disable"), name)
}

// DescribePlugin is what an enabled plugin said of itself, and how it stands
// with it.
func (a *Agent) DescribePlugin(ctx context.Context, name string) (PluginStatus, error) {
	e, err := a.enabledPlugin(ctx, name)
	if err != nil {
		return PluginStatus{}, err
	}
	return a.pluginStatus(ctx, e)
}

func (a *Agent) enabledPlugin(ctx context.Context, name string) (host.Enabled, error) {
	e, err := a.Host.Plugin(ctx, name, runtime.GOARCH)
	if !errors.Is(err, sdk.ErrNotFound) {
		return e, err
	}
	all, listErr := a.Host.Plugins(ctx)
	if listErr != nil {
		return host.Enabled{}, listErr
	}
	for _, e := range all { // of a worker with another architecture
		if e.Plugin == name {
			return e, nil
		}
	}
	return host.Enabled{}, err
}

func (a *Agent) pluginStatus(ctx context.Context, e host.Enabled) (PluginStatus, error) {
	s := PluginStatus{Name: e.Plugin, Path: e.Path, Enabled: true, Version: e.Version, SHA256: e.SHA256, Protocol: e.Protocol,
		EnabledAt: e.EnabledAt, Policy: &e.Policy}
	var described struct {
		Abilities []sdk.Ability   `json:"abilities"`
		HostUser  bool            `json:"host_user"`
		Guards    bool            `json:"guards"`
		Config    json.RawMessage `json:"config"`
	}
	if json.Unmarshal(e.Description, &described) == nil {
		s.Abilities, s.Config, s.HostUser, s.Guards = described.Abilities, described.Config, described.HostUser, described.Guards
	}
	running, err := a.Plugins.Status(ctx, e.Plugin)
	if err != nil {
		return s, err
	}
	s.Running = &running
	return s, nil
}
