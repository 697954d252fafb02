package host

import (
	"encoding/json"
	"errors"
	"net"
	"os"
	"path/filepath"
	"testing"

	"github.com/holdfast-dr/holdfast/sdk"
	"github.com/holdfast-dr/holdfast/sdk/plugin"
)

func TestReach(t *testing.T) {
	dir := shortDir(t)
	path := filepath.Join(dir, "a", "s")
	if err := os.Mkdir(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if err := os.Chmod(path, 0o660); err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(dir, "link")
	if err := os.Symlink(path, link); err != nil {
		t.Fatal(err)
	}
	nobody := &plugin.User{UID: 65600, GID: 65600, Own: true}
	member := &plugin.User{UID: 65600, GID: 65600, Groups: []uint32{uint32(os.Getgid())}}
	settings := func(text string) json.RawMessage {
		doc, err := json.Marshal(map[string]any{"list": []any{map[string]string{"x": text}}})
		if err != nil {
			t.Fatal(err)
		}
		return doc
	}
	for _, c := range []struct {
		name    string
		reach   reach
		network string
		addr    string
		ok      bool
	}{
		{"any socket, for the host's own user", reach{}, "unix", path, true},
		{"not one that is not for its user", reach{user: nobody}, "unix", path, false},
		{"one that is for a group of its", reach{user: member}, "unix", path, true},
		{"one that the settings name", reach{user: nobody, settings: settings(filepath.Dir(path))}, "unix", path, true},
		{"one that the policy names", reach{user: nobody, policy: PluginPolicy{Reach: []string{dir}}}, "unix", path, true},
		{"not by naming everything", reach{user: nobody, policy: PluginPolicy{Reach: []string{"/"}}}, "unix", path, false},
		{"not by half a name", reach{user: nobody, policy: PluginPolicy{Reach: []string{dir[:len(dir)-1]}}}, "unix", path, false},
		{"not a private one", reach{private: []string{filepath.Dir(path)}}, "unix", path, false},
		{"not a private one through a link", reach{private: []string{filepath.Dir(path)}}, "unix", link, false},
		{"not a file", reach{}, "unix", "/etc/passwd", false},
		{"not a device", reach{}, "unix", "/dev/null", false},
		{"not a relative path", reach{}, "unix", "s", false},
		{"this machine", reach{}, "tcp", "127.0.0.1:10809", true},
		{"this machine, by IPv6", reach{}, "tcp", "[::1]:10809", true},
		{"not elsewhere", reach{}, "tcp", "192.0.2.7:10809", false},
		{"where the settings say", reach{settings: settings("qemu+tls://kvm1.example.net:16514/system")}, "tcp", "KVM1.example.net:49152", true},
		{"not where a longer name says", reach{settings: settings("kvm1.example.network")}, "tcp", "kvm1.example.net:1", false},
		{"not where a part of a name says", reach{settings: settings("kvm1.example.net")}, "tcp", "example.net:1", false},
		{"the second time a text says so", reach{settings: settings("xkvm1 kvm1")}, "tcp", "kvm1:1", true},
		{"where the policy says", reach{policy: PluginPolicy{Reach: []string{"192.0.2.7"}}}, "tcp", "192.0.2.7:1", true},
		{"not without a port", reach{}, "tcp", "127.0.0.1", false},
		{"not without a host", reach{settings: settings("")}, "tcp", ":10809", false},
	} {
		a, err := c.reach.check(sdk.Address{Network: c.network, Addr: c.addr})
		if (err == nil) != c.ok {
			t.Errorf("%s: %v", c.name, err)
		}
		if err != nil && (!errors.Is(err, sdk.ErrDenied) || faultOf(err) != sdk.FaultPlugin || sdk.HintOf(err) == "" && c.network == "unix") {
			t.Errorf("%s: %v is not denied and blamed, with a hint", c.name, err)
		}
		if err == nil && a.Addr != c.addr {
			t.Errorf("%s: dials %q", c.name, a.Addr)
		}
	}
}

func TestPolicyIsChecked(t *testing.T) {
	for _, p := range []PluginPolicy{
		{}, {User: UserHost}, {User: "backup-1"}, {MemoryBytes: -1, OpenFiles: -1, Processes: -1}, {CPUPercent: 150}, {Reach: []string{"kvm1", "/run/x"}},
	} {
		if err := p.check(); err != nil {
			t.Errorf("%+v: %v", p, err)
		}
	}
	for _, p := range []PluginPolicy{
		{User: "a b"}, {MemoryBytes: 1}, {MemoryBytes: -2}, {OpenFiles: 3}, {Processes: 1}, {CPUPercent: -1}, {CPUPercent: 1},
		{Reach: []string{""}}, {Reach: []string{"a/b"}}, {Reach: make([]string, maxReach+1)},
	} {
		if err := p.check(); !errors.Is(err, sdk.ErrInvalid) {
			t.Errorf("%+v: %v, want ErrInvalid", p, err)
		}
	}
	if l := (PluginPolicy{MemoryBytes: -1}).limits(); l.MemoryBytes != 0 || l.OpenFiles != DefaultOpenFiles || l.Processes != DefaultProcesses {
		t.Errorf("limits %+v", l)
	}
}

func TestOwnUsersDifferAndStay(t *testing.T) {
	a, b := ownUser("run", "sim", "e1"), ownUser("run", "sim", "e2")
	if a == nil || b == nil {
		t.Skip("this user namespace has too few numbers")
	}
	if a.UID == b.UID || a.UID < firstOwnUser || a.UID >= firstOwnUser+ownUsers || !a.Own || len(a.Groups) != 0 {
		t.Errorf("users %+v, %+v", a, b)
	}
	if again := ownUser("run", "sim", "e1"); again.UID != a.UID {
		t.Error("an endpoint got another user")
	}
}

func TestUnknownUserIsRefused(t *testing.T) {
	h := newHost(t, Options{})
	if _, err := h.EnableAs(t.Context(), "sim", &PluginPolicy{User: "no-such-user-here"}); err != nil {
		t.Fatal(err)
	}
	_, _, err := h.Open(t.Context(), endpoint(t, map[string]any{"dir": t.TempDir()}))
	if !errors.Is(err, sdk.ErrNotFound) || sdk.HintOf(err) == "" {
		t.Errorf("open: %v, want ErrNotFound with a hint", err)
	}
	e, err := h.Enable(t.Context(), "sim")
	if err != nil || e.Policy.User != "no-such-user-here" {
		t.Errorf("enabling it again changed the policy to %+v, %v", e.Policy, err)
	}
}
