package api_test

import (
	"net/http"
	"strings"
	"testing"
)

// An agent that does not listen for workers says how it would.
func TestWorkersNeedAListener(t *testing.T) {
	s := newSite(t)
	for _, call := range []struct {
		method, path string
		in           any
	}{
		{http.MethodGet, "/v1/site/workers", nil},
		{http.MethodPost, "/v1/site/workers", map[string]any{"name": "kvm1"}},
		{http.MethodDelete, "/v1/site/workers/kvm1", nil},
		{http.MethodPost, "/v1/site/workers/kvm1/plugins", map[string]any{"name": "sim"}},
		{http.MethodPost, "/v1/site/endpoints", map[string]any{"name": "far", "plugin": "sim", "settings": map[string]any{}, "workers": []string{"kvm1"}}},
	} {
		if status, p := s.call(call.method, call.path, call.in, nil); status != http.StatusConflict || !strings.Contains(p.Hint, "--workers-listen") {
			t.Errorf("%s %s: %d %s, hint %q; want a conflict with a hint", call.method, call.path, status, p.Error(), p.Hint)
		}
	}
	// What a caller sends is bounded before anybody looks at it.
	for _, in := range []map[string]any{{}, {"name": strings.Repeat("x", 65)}, {"name": "kvm1", "expires_hours": 721}} {
		if status, _ := s.call(http.MethodPost, "/v1/site/workers", in, nil); status != http.StatusUnprocessableEntity {
			t.Errorf("invite %v: %d, want 422", in, status)
		}
	}
}
