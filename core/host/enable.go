package host

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/holdfast-dr/holdfast/sdk"
	"github.com/holdfast-dr/holdfast/sdk/plugin"
)

// prefix is what the names of plugin programs begin with.
const prefix = "holdfast-plugin-"

// pluginName is what a plugin may be called. It is part of a path.
var pluginName = regexp.MustCompile(`^[a-z][a-z0-9-]{0,62}$`)

// Found is a plugin program that could be enabled.
type Found struct {
	Plugin string
	Path   string
}

// Find lists the plugin programs in the host's directories, by name. Nothing
// is run.
func (h *Host) Find() ([]Found, error) {
	seen := make(map[string]bool)
	var list []Found
	for _, dir := range h.options.Dirs {
		entries, err := os.ReadDir(dir)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("look for plugins: %w", err)
		}
		for _, e := range entries {
			name, ok := strings.CutPrefix(e.Name(), prefix)
			if !ok || !pluginName.MatchString(name) || seen[name] || !executable(filepath.Join(dir, e.Name())) {
				continue
			}
			seen[name] = true
			path, err := filepath.Abs(filepath.Join(dir, e.Name()))
			if err != nil {
				return nil, fmt.Errorf("look for plugins: %w", err)
			}
			list = append(list, Found{Plugin: name, Path: path})
		}
	}
	slices.SortFunc(list, func(a, b Found) int { return strings.Compare(a.Plugin, b.Plugin) })
	return list, nil
}

func executable(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.Mode().IsRegular() && info.Mode().Perm()&0o111 != 0
}

// Enable trusts a plugin's program as it is now: it pins the program's
// checksum, asks it what it is, and stores both. Endpoints that run go on with
// the program that they have; Reload changes that. A quarantine ends. The
// policy stays as it was.
func (h *Host) Enable(ctx context.Context, name string) (Enabled, error) {
	return h.EnableAs(ctx, name, nil)
}

// EnableAs is Enable with another policy, which processes have that start from
// now on; nil leaves it as it was.
func (h *Host) EnableAs(ctx context.Context, name string, policy *PluginPolicy) (Enabled, error) {
	candidate, err := h.candidate(ctx, name, policy)
	if err != nil {
		return Enabled{}, fmt.Errorf("enable plugin %s: %w", name, err)
	}
	if err := h.store.PutPlugin(ctx, candidate); err != nil {
		return Enabled{}, fmt.Errorf("enable plugin %s: %w", name, err)
	}
	h.forgive(name)
	return candidate, nil
}

// candidate is a program as it is now, described by itself.
func (h *Host) candidate(ctx context.Context, name string, policy *PluginPolicy) (Enabled, error) {
	found, err := h.find(name)
	if err != nil {
		return Enabled{}, err
	}
	sum, err := plugin.Checksum(found.Path)
	if err != nil {
		return Enabled{}, err
	}
	e := Enabled{Plugin: name, Arch: runtime.GOARCH, Path: found.Path, SHA256: sum, EnabledAt: h.now().UTC().Truncate(time.Microsecond)}
	switch before, err := h.store.Plugin(ctx, name, runtime.GOARCH); {
	case policy != nil:
		e.Policy = *policy
	case err == nil:
		e.Policy = before.Policy
	case !errors.Is(err, sdk.ErrNotFound):
		return Enabled{}, fmt.Errorf("look up its policy: %w", err)
	}
	if err := e.Policy.check(); err != nil {
		return Enabled{}, err
	}
	description, err := h.describe(ctx, e)
	if err != nil {
		return Enabled{}, err
	}
	if description.Name != name {
		return Enabled{}, sdk.Errorf(sdk.ErrInvalid, sdk.FaultPlugin, "%s says that it is plugin %q", found.Path, description.Name)
	}
	if description.Protocol != plugin.Protocol {
		return Enabled{}, sdk.Errorf(sdk.ErrUnsupported, sdk.FaultPlugin, "plugin %s speaks protocol %d, this version %d", name, description.Protocol, plugin.Protocol)
	}
	e.Version, e.Protocol = description.Version, description.Protocol
	if e.Description, err = json.Marshal(description); err != nil {
		return Enabled{}, err
	}
	return e, nil
}

// forgive ends the quarantines of a plugin and its endpoints.
func (h *Host) forgive(name string) {
	h.mutex.Lock()
	defer h.mutex.Unlock()
	delete(h.changed, name)
	for s := range h.all {
		if s.endpoint.Plugin == name {
			s.breaker.forgive()
		}
	}
	for id, b := range h.breakers { // endpoints without a process
		if h.slots[id] == nil {
			b.forgive()
		}
	}
}

// changedProgram is the quarantine of a plugin whose program is not the one
// that was enabled, or nil.
func (h *Host) changedProgram(name string) *Quarantine {
	h.mutex.Lock()
	defer h.mutex.Unlock()
	return h.changed[name]
}

// reasonOf is the text of an error without its kind, to be part of another.
func reasonOf(err error) string {
	if e, ok := errors.AsType[*sdk.Error](err); ok && e.Message != "" {
		return e.Message
	}
	return err.Error()
}

// programChanged puts a plugin into quarantine, unless it was enabled again in
// the meantime.
func (h *Host) programChanged(e Endpoint, err error) {
	enabled, lookup := h.enabled(h.closing, e.Plugin, runtime.GOARCH)
	if sum, e := plugin.Checksum(enabled.Path); lookup == nil && e == nil && strings.EqualFold(sum, enabled.SHA256) {
		return
	}
	q := &Quarantine{Cause: CauseChanged, Reason: reasonOf(err), Since: h.now()}
	h.mutex.Lock()
	known := h.changed[e.Plugin] != nil
	h.changed[e.Plugin] = q
	h.mutex.Unlock()
	if !known {
		h.note(slog.LevelError, e, "the plugin is in quarantine: its program is not the one that was enabled", slog.Any("err", err),
			slog.String("next", "after an upgrade: holdfast plugin reload "+e.Plugin))
	}
}

func (h *Host) find(name string) (Found, error) {
	list, err := h.Find()
	if err != nil {
		return Found{}, err
	}
	for _, f := range list {
		if f.Plugin == name {
			return f, nil
		}
	}
	return Found{}, sdk.Errorf(sdk.ErrNotFound, sdk.FaultHost, "there is no program %s%s", prefix, name).
		WithHint("plugins are looked for in %s", strings.Join(h.options.Dirs, ", "))
}

// Disable trusts a plugin no longer: no process of it is started from now on,
// and those that run end when nobody uses them.
func (h *Host) Disable(ctx context.Context, name string) error {
	if err := h.store.DeletePlugin(ctx, name, runtime.GOARCH); err != nil {
		return fmt.Errorf("disable plugin %s: %w", name, err)
	}
	for _, s := range h.slotsOf(name) {
		h.retire(s.endpoint.ID)
	}
	return nil
}

func (h *Host) slotsOf(name string) []*slot {
	h.mutex.Lock()
	defer h.mutex.Unlock()
	var slots []*slot
	for _, s := range h.slots {
		if s.endpoint.Plugin == name {
			slots = append(slots, s)
		}
	}
	return slots
}

// enabled is the plugin's binary for an architecture.
func (h *Host) enabled(ctx context.Context, name, arch string) (Enabled, error) {
	enabled, err := h.store.Plugin(ctx, name, arch)
	if errors.Is(err, sdk.ErrNotFound) {
		return Enabled{}, sdk.Errorf(sdk.ErrNotFound, sdk.FaultHost, "plugin %s is not enabled for %s", name, arch).
			WithHint("enable it after checking where its program came from: holdfast plugin enable %s", name)
	}
	if err != nil {
		return Enabled{}, fmt.Errorf("look up plugin %s: %w", name, err)
	}
	return enabled, nil
}

// Describe is what an enabled plugin said of itself when it was enabled.
func (h *Host) Describe(ctx context.Context, name string) (plugin.Description, error) {
	enabled, err := h.enabledAnywhere(ctx, name)
	if err != nil {
		return plugin.Description{}, err
	}
	return descriptionOf(enabled)
}

// Check holds an endpoint's settings against the schema of its plugin. The
// error wraps sdk.ErrInvalid and names fields, never values.
func (h *Host) Check(ctx context.Context, e Endpoint) error {
	d, err := h.Describe(ctx, e.Plugin)
	if err != nil {
		return err
	}
	return d.Config.Validate(e.Settings)
}

// Put checks an endpoint and stores it.
func (h *Host) Put(ctx context.Context, e Endpoint) error {
	if e.ID == "" || e.Name == "" || len(e.Name) > 255 {
		return sdk.Errorf(sdk.ErrInvalid, sdk.FaultHost, "an endpoint has an id and a name of 1 to 255 bytes")
	}
	if err := h.Check(ctx, e); err != nil {
		return err
	}
	return h.store.PutEndpoint(ctx, e)
}

// Remove forgets an endpoint. Its process ends when nobody uses it.
func (h *Host) Remove(ctx context.Context, endpointID string) error {
	if err := h.store.DeleteEndpoint(ctx, endpointID); err != nil {
		return fmt.Errorf("remove endpoint %s: %w", endpointID, err)
	}
	h.retire(endpointID)
	h.mutex.Lock()
	defer h.mutex.Unlock()
	delete(h.breakers, endpointID)
	return nil
}

// Redact is an endpoint whose secrets are hidden, to show and to log.
func (h *Host) Redact(ctx context.Context, e Endpoint) (Endpoint, error) {
	d, err := h.Describe(ctx, e.Plugin)
	if err != nil {
		return Endpoint{}, err
	}
	e.Settings = d.Config.Redact(e.Settings)
	return e, nil
}
