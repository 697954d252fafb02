package state

import (
	"bytes"
	"encoding/json"
	"errors"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/holdfast-dr/holdfast/core/audit"
	"github.com/holdfast-dr/holdfast/core/host"
	"github.com/holdfast-dr/holdfast/core/secret"
	"github.com/holdfast-dr/holdfast/sdk"
)

var _ = both("EndpointsAndPlugins", func(t *testing.T, db *DB) {
	key := secret.NewKey()
	ctx, s := asAdmin(t), db.Hosts(key)
	e := host.Endpoint{ID: "e1", Name: "Rack 1", Plugin: "libvirt", Settings: json.RawMessage(`{"password":"correct horse"}`),
		Workers: []string{"rack-1", "rack-2"}}
	wantErr(t, s.PutEndpoint(t.Context(), e), audit.ErrNoOrigin)
	for range 2 {
		if err := s.PutEndpoint(ctx, e); err != nil {
			t.Fatal(err)
		}
	}
	wantErr(t, s.PutEndpoint(ctx, host.Endpoint{ID: "e2", Name: "rack 1", Plugin: "x"}), sdk.ErrInvalid)
	got := must[host.Endpoint](t)(s.Endpoint(ctx, "e1"))
	if diff := cmp.Diff(e, got); diff != "" {
		t.Error(diff)
	}
	if err := db.read(ctx, func(x *tx) error {
		var raw []byte
		if err := x.row(ctx, "SELECT sealed_settings FROM endpoints").Scan(&raw); err != nil {
			return err
		}
		if bytes.Contains(raw, []byte("horse")) {
			t.Error("the settings lie in the database in the clear")
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if _, err := db.Hosts(secret.NewKey()).Endpoints(ctx); !errors.Is(err, secret.ErrOtherKey) {
		t.Errorf("another master key: %v", err)
	}
	p := host.Enabled{Plugin: "sim", Arch: "amd64", Path: "/p", SHA256: "ab", Version: "1", Protocol: 1,
		Description: json.RawMessage(`{}`), EnabledAt: time.UnixMicro(1e15).UTC()}
	if err := s.PutPlugin(ctx, p); err != nil {
		t.Fatal(err)
	}
	p.SHA256, p.Policy = "cd", host.PluginPolicy{User: "backup", MemoryBytes: -1, Reach: []string{"kvm2"}}
	if err := s.PutPlugin(ctx, p); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]host.Enabled{p}, must[[]host.Enabled](t)(s.Plugins(ctx))); diff != "" {
		t.Error(diff)
	}
	wantErr(t, second(s.Plugin(ctx, "sim", "arm64")), sdk.ErrNotFound)
	for range 2 {
		if err := s.DeletePlugin(ctx, "sim", "amd64"); err != nil {
			t.Fatal(err)
		}
		if err := s.DeleteEndpoint(ctx, "e1"); err != nil {
			t.Fatal(err)
		}
	}
	wantErr(t, second(s.Endpoint(ctx, "e1")), sdk.ErrNotFound)
})
