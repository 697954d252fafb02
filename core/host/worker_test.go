package host

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/holdfast-dr/holdfast/sdk"
	"github.com/holdfast-dr/holdfast/sdk/plugin"
	"github.com/holdfast-dr/holdfast/sdk/sim"
)

// others are the methods that are not called here.
type others interface{ Workers }

// farms are workers by name, with their architectures; those that are not there
// are away.
type farms struct {
	others
	arch    map[string]string
	failing error // of every start
	started []string
}

func (f *farms) Arch(_ context.Context, name string) (string, error) {
	if arch, ok := f.arch[name]; ok {
		return arch, nil
	}
	return "", sdk.Errorf(sdk.ErrUnavailable, sdk.FaultHost, "worker %s is not connected", name)
}

func (f *farms) Start(ctx context.Context, name, pluginName string, l plugin.Launch) (*plugin.Process, error) {
	f.started = append(f.started, name+" "+pluginName+" "+l.SHA256)
	if f.failing != nil {
		return nil, f.failing
	}
	hv := sim.New()
	return plugin.Local(ctx, plugin.Author{Name: pluginName, Version: "1", Type: (*sim.Platform)(nil),
		Open: func(context.Context, any) (sdk.Platform, error) { return hv.Connect(sim.Settings{}), nil }}, l)
}

func start(t *testing.T, hub Workers, workers ...string) (Process, error) {
	t.Helper()
	e := Endpoint{Name: "lab", Plugin: "sim", Workers: workers}
	starter, err := OnWorkers(hub)(e)
	if err != nil {
		return nil, err
	}
	pinned := map[string]string{"amd64": "digest-of-amd64", "arm64": "digest-of-arm64"}
	p, err := starter.Start(t.Context(), Start{Endpoint: e, Enabled: func(_ context.Context, arch string) (Enabled, error) {
		if sum := pinned[arch]; sum != "" {
			return Enabled{Plugin: "sim", Arch: arch, SHA256: sum}, nil
		}
		return Enabled{}, sdk.Errorf(sdk.ErrNotFound, sdk.FaultHost, "plugin sim is not enabled for %s", arch)
	}})
	if err == nil {
		t.Cleanup(func() { _ = p.Close() })
	}
	return p, err
}

func TestWorkersAreTriedInTheirOrder(t *testing.T) {
	hub := &farms{arch: map[string]string{"two": "arm64", "three": "amd64"}}
	p, err := start(t, hub, "one", "two", "three")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"two sim digest-of-arm64"}, hub.started); diff != "" {
		t.Error(diff)
	}
	if _, ok := p.(interface{ PID() int }); ok {
		t.Error("a process on another machine gives a number that means nothing here")
	}
	if lost, ok := p.(interface{ Lost() error }); !ok || lost.Lost() != nil {
		t.Error("the process does not say whether its worker is lost")
	}

	// All are away.
	if _, err := start(t, hub, "one", "zero"); !errors.Is(err, sdk.ErrUnavailable) || !strings.Contains(err.Error(), "one") || !strings.Contains(err.Error(), "zero") {
		t.Errorf("workers that are away: %v, want ErrUnavailable that names both", err)
	}
	// What is wrong with the plugin is wrong with it everywhere.
	hub.started, hub.failing = nil, sdk.Errorf(sdk.ErrInvalid, sdk.FaultPlugin, "bad settings")
	if _, err := start(t, hub, "two", "three"); !errors.Is(err, sdk.ErrInvalid) || len(hub.started) != 1 {
		t.Errorf("a plugin that refuses: %v after %q; want ErrInvalid of the first worker", err, hub.started)
	}
	// A worker that is lost during the start is not the last.
	hub.started, hub.failing = nil, sdk.Errorf(sdk.ErrUnavailable, sdk.FaultHost, "worker was lost")
	if _, err := start(t, hub, "two", "three"); !errors.Is(err, sdk.ErrUnavailable) || len(hub.started) != 2 {
		t.Errorf("workers that are lost: %v after %q; want both tried", err, hub.started)
	}
	// No build is trusted for its architecture.
	hub.arch["four"], hub.started = "riscv64", nil
	if _, err := start(t, hub, "four"); !errors.Is(err, sdk.ErrNotFound) || len(hub.started) != 0 {
		t.Errorf("an architecture without a pinned build: %v after %q; want ErrNotFound", err, hub.started)
	}
}

func TestWithoutWorkersPluginsRunHere(t *testing.T) {
	if starter, err := OnWorkers(&farms{})(Endpoint{Name: "lab"}); starter != nil || err != nil {
		t.Errorf("an endpoint without workers: %v, %v", starter, err)
	}
	if _, err := OnWorkers(nil)(Endpoint{Name: "lab", Workers: []string{"one"}}); !errors.Is(err, sdk.ErrUnavailable) || sdk.HintOf(err) == "" {
		t.Errorf("an agent that does not listen: %v, want ErrUnavailable with a hint", err)
	}
}

// A worker may not have one plugin trusted in the name of another.
func TestAPluginIsEnabledByItsOwnName(t *testing.T) {
	hub := &liars{}
	h := newHost(t, Options{})
	if _, err := h.EnableOn(t.Context(), hub, "one", "acme"); !errors.Is(err, sdk.ErrInvalid) {
		t.Errorf("acme that calls itself sim: %v, want ErrInvalid", err)
	}
	e, err := h.EnableOn(t.Context(), hub, "one", "sim")
	if err != nil || e.Arch != "arm64" || e.SHA256 != "ab" || e.Version != "3" {
		t.Errorf("enabled %+v, %v", e, err)
	}
}

// liars have one plugin under every name.
type liars struct{ farms }

func (*liars) Arch(context.Context, string) (string, error) { return "arm64", nil }

func (*liars) Inspect(context.Context, string, string) (string, plugin.Description, error) {
	return "ab", plugin.Description{Name: "sim", Version: "3", Protocol: plugin.Protocol}, nil
}
