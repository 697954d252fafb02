package api_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"testing"

	"github.com/holdfast-dr/holdfast/core/access"
	"github.com/holdfast-dr/holdfast/core/api"
	"github.com/holdfast-dr/holdfast/core/blob"
	"github.com/holdfast-dr/holdfast/core/gateway"
	"github.com/holdfast-dr/holdfast/core/tenant"
)

// lyingID is the id under which the world's repository has something that no
// cloud repository has.
const lyingID = "01a20ae5-76a9-70b5-927c-d0423543fd00"

func (w *world) find(_ context.Context, l blob.Location, id string) (api.UnknownRepository, error) {
	if id != lyingID {
		return api.UnknownRepository{}, fmt.Errorf("repository %s: %w", id, tenant.ErrNotFound)
	}
	return api.UnknownRepository{ID: id, Repository: l.ID, TenantName: "Lost Ltd", ChunkSize: 64 << 10}, nil
}

func TestACloudRepositoryIsCreatedForWhatLiesThere(t *testing.T) {
	w := newWorld(t)
	admin := w.tokens[access.ProviderAdmin]
	create := func(fields map[string]any) (int, []byte) {
		body := map[string]any{"name": "adopted", "repository": w.cloud.LocationID, "limit_bytes": 1 << 30}
		for k, v := range fields {
			body[k] = v
		}
		return w.call("POST", "/v1/tenants/"+string(w.first.ID)+"/cloud-repositories", admin, body)
	}
	for name, c := range map[string]struct {
		fields map[string]any
		status int
		code   gateway.Code
		hint   bool
	}{
		"no id at all":          {map[string]any{"id": "backups"}, 422, gateway.CodeInvalid, false},
		"nothing lies there":    {map[string]any{"id": "01a20ae5-76a9-70b5-927c-d0423543fd01"}, 404, gateway.CodeNotFound, true},
		"somebody else's":       {map[string]any{"id": lyingID}, 409, gateway.CodeConflict, true},
		"somebody else's still": {map[string]any{"id": lyingID, "former_tenant": "first"}, 409, gateway.CodeConflict, true},
		"former without id":     {map[string]any{"former_tenant": "Lost Ltd"}, 422, gateway.CodeInvalid, false},
	} {
		status, body := create(c.fields)
		var p gateway.Problem
		if err := json.Unmarshal(body, &p); err != nil || status != c.status || p.Code != c.code || c.hint != (p.Hint != "") {
			t.Errorf("%s: %d %s (%v), want %d %s", name, status, body, err, c.status, c.code)
		}
	}
	status, body := create(map[string]any{"id": lyingID, "former_tenant": "lost ltd"})
	var made api.CloudRepository
	if err := json.Unmarshal(body, &made); err != nil || status != http.StatusCreated || made.ID != lyingID || made.ChunkSize != 64<<10 {
		t.Fatalf("adopted: %d %s, %v", status, body, err)
	}
	if status, body := create(map[string]any{"id": lyingID, "former_tenant": "Lost Ltd", "name": "twice"}); status != http.StatusConflict || !hasHint(body) {
		t.Errorf("adopted twice: %d %s, want 409 with a hint", status, body)
	}
	// A tenant's people may neither look nor take.
	for role, token := range w.tokens {
		status, _ := w.call("GET", "/v1/repositories/"+w.cloud.LocationID+"/unknown", token, nil)
		if want := map[bool]int{true: 200, false: 403}[role.Provider()]; status != want {
			t.Errorf("%s looks at what lies there: %d, want %d", role, status, want)
		}
	}
}
