package agent

import (
	"context"
	"encoding/json"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/holdfast-dr/holdfast/core/host"
	"github.com/holdfast-dr/holdfast/sdk"
)

// PluginStatus is a plugin program that is installed or enabled.
type PluginStatus struct {
	Name      string        `json:"name"`
	Path      string        `json:"path"`
	Enabled   bool          `json:"enabled" doc:"Its binary is trusted, as it was then"`
	Version   string        `json:"version,omitempty"`
	SHA256    string        `json:"sha256,omitempty" doc:"Of the binary that is trusted; another one is not started"`
	Protocol  int           `json:"protocol,omitempty"`
	Abilities []sdk.Ability `json:"abilities,omitempty"`
	EnabledAt time.Time     `json:"enabled_at,omitzero"`
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
		if e.Arch == runtime.GOARCH {
			list = append(list, pluginStatus(e))
		}
	}
	for _, f := range found {
		if !slices.ContainsFunc(list, func(p PluginStatus) bool { return p.Name == f.Plugin }) {
			list = append(list, PluginStatus{Name: f.Plugin, Path: f.Path})
		}
	}
	slices.SortFunc(list, func(x, y PluginStatus) int { return strings.Compare(x.Name, y.Name) })
	return list, nil
}

// EnablePlugin trusts a plugin's program as it is now.
func (a *Agent) EnablePlugin(ctx context.Context, name string) (PluginStatus, error) {
	e, err := a.Plugins.Enable(a.origin(ctx, "plugin enable"), name)
	if err != nil {
		return PluginStatus{}, err
	}
	a.Log.InfoContext(ctx, "plugin enabled", "plugin", e.Plugin, "version", e.Version, "sha256", e.SHA256)
	return pluginStatus(e), nil
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

// DescribePlugin is what an enabled plugin said of itself.
func (a *Agent) DescribePlugin(ctx context.Context, name string) (PluginStatus, error) {
	e, err := a.Host.Plugin(ctx, name, runtime.GOARCH)
	if err != nil {
		return PluginStatus{}, err
	}
	return pluginStatus(e), nil
}

func pluginStatus(e host.Enabled) PluginStatus {
	s := PluginStatus{Name: e.Plugin, Path: e.Path, Enabled: true, Version: e.Version, SHA256: e.SHA256, Protocol: e.Protocol, EnabledAt: e.EnabledAt}
	var described struct {
		Abilities []sdk.Ability   `json:"abilities"`
		Config    json.RawMessage `json:"config"`
	}
	if json.Unmarshal(e.Description, &described) == nil {
		s.Abilities, s.Config = described.Abilities, described.Config
	}
	return s
}
