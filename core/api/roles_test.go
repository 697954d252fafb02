package api_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/holdfast-dr/holdfast/core/access"
	"github.com/holdfast-dr/holdfast/core/api"
	"github.com/holdfast-dr/holdfast/core/audit"
	"github.com/holdfast-dr/holdfast/core/blob"
	"github.com/holdfast-dr/holdfast/core/gateway"
	"github.com/holdfast-dr/holdfast/core/pki"
	"github.com/holdfast-dr/holdfast/core/point"
	"github.com/holdfast-dr/holdfast/core/quota"
	"github.com/holdfast-dr/holdfast/core/state"
	"github.com/holdfast-dr/holdfast/core/tenant"
)

// world is a provider with two tenants, a user of every role, and the API.
type world struct {
	t       testing.TB
	ctx     context.Context
	db      *state.DB
	handler http.Handler
	closed  []tenant.ID
	tokens  map[access.Role]string // of the first tenant and the provider
	foreign map[access.Role]string // of the second tenant
	first   tenant.Tenant
	cloud   quota.CloudRepository
	agent   access.Agent
}

func newWorld(t testing.TB) *world {
	t.Helper()
	dir := t.TempDir()
	w := &world{t: t, ctx: audit.With(t.Context(), audit.System("test", "a test")), tokens: map[access.Role]string{}, foreign: map[access.Role]string{}}
	db, err := state.Open(w.ctx, "sqlite:"+filepath.Join(dir, "state.db"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	w.db = db
	authority, err := pki.NewAuthority("test", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	certificate, err := authority.IssueServer([]string{"localhost"}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	w.handler = api.NewProviderHandler(&api.Provider{
		Version: "test", Now: time.Now, Ping: db.Ping, Status: func(context.Context) api.Status { return api.Status{Version: "test"} },
		Users: db.Users(), Passwords: access.NewPasswords(1), Attempts: access.NewAttempts(time.Now), Agents: db.Agents(), Tenants: db.Tenants(), Locations: db.Locations(),
		Quotas: db.Quotas(), Runs: db.Runs(), Reports: db.Reports(), Traffic: func(tenant.ID) gateway.Traffic { return gateway.Traffic{} }, Wake: func() {}, Audit: db.Audits(),
		Prepare: func(context.Context, blob.Location) error { return nil },
		Points: func(context.Context, string, point.MachineID, point.ID, int) ([]gateway.PointInfo, error) {
			return nil, nil
		},
		Sessions: func(context.Context, string, api.SessionQuery) ([]api.Session, error) { return nil, nil },
		Find:     w.find,
		Unknown: func(_ context.Context, l blob.Location, _ string, _ int) (api.UnknownPage, error) {
			return api.UnknownPage{Items: []api.UnknownRepository{{ID: lyingID, Repository: l.ID, TenantName: "Lost Ltd", Points: 3}}}, nil
		},
		Notice:           func() (pki.Notice, error) { return pki.NoticeOf("localhost", certificate, authority) },
		SetCertificate:   w.setCertificate,
		DisconnectTenant: func(id tenant.ID) { w.closed = append(w.closed, id) },
		DisconnectAgent:  func(string) {},
	})
	w.first = w.tenant("first", w.tokens)
	w.tenant("second", w.foreign)
	for _, role := range access.Roles() {
		if role.Provider() {
			w.tokens[role] = w.user(tenant.Provider, role)
		}
	}
	location, err := db.Locations().Create(w.ctx, blob.Location{Name: "store", Kind: blob.LocationDir, Path: dir})
	if err != nil {
		t.Fatal(err)
	}
	w.cloud, err = db.Quotas().Create(w.ctx, quota.CloudRepository{TenantID: w.first.ID, Name: "backups", LocationID: location.ID, LimitBytes: 1 << 30, ChunkSize: quota.DefaultChunkSize})
	if err != nil {
		t.Fatal(err)
	}
	_, hash := access.NewEnrolmentToken()
	if _, err := db.Agents().CreateEnrolment(w.ctx, access.Enrolment{TenantID: w.first.ID, Site: "site", Hash: hash, Expires: time.Now().Add(time.Hour)}); err != nil {
		t.Fatal(err)
	}
	if w.agent, err = db.Agents().Enrol(w.ctx, hash, access.Hash{1}); err != nil {
		t.Fatal(err)
	}
	return w
}

func (w *world) tenant(name string, tokens map[access.Role]string) tenant.Tenant {
	w.t.Helper()
	v, err := w.db.Tenants().Create(w.ctx, tenant.Tenant{Type: tenant.Standalone, Name: name, Enabled: true, MaxTasks: 2})
	if err != nil {
		w.t.Fatal(err)
	}
	for _, role := range access.Roles() {
		if !role.Provider() {
			tokens[role] = w.user(v.ID, role)
		}
	}
	return v
}

func (w *world) user(in tenant.ID, role access.Role) string {
	w.t.Helper()
	u, err := w.db.Users().CreateUser(w.ctx, access.User{TenantID: in, Name: string(role), Role: role, Enabled: true})
	if err != nil {
		w.t.Fatal(err)
	}
	text, hash := access.NewToken()
	if _, err := w.db.Users().CreateToken(w.ctx, access.Token{UserID: u.ID, TenantID: in, Name: "test", Hash: hash}); err != nil {
		w.t.Fatal(err)
	}
	return text
}

// call makes a request and returns the status and the body.
func (w *world) call(method, path, token string, body any, header ...string) (int, []byte) {
	w.t.Helper()
	var content io.Reader
	if body != nil {
		b, err := json.Marshal(body)
		if err != nil {
			w.t.Fatal(err)
		}
		content = bytes.NewReader(b)
	}
	r := httptest.NewRequestWithContext(w.t.Context(), method, path, content)
	r.Header.Set("Content-Type", "application/json")
	if token != "" {
		r.Header.Set("Authorization", "Bearer "+token)
	}
	for i := 0; i+1 < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	answer := httptest.NewRecorder()
	w.handler.ServeHTTP(answer, r)
	return answer.Code, answer.Body.Bytes()
}

// operation is one operation of the document.
type operation struct{ id, method, path string }

var parameter = regexp.MustCompile(`\{(\w+)\}`)

func operations(t testing.TB) []operation {
	t.Helper()
	text, err := api.Document()
	if err != nil {
		t.Fatal(err)
	}
	var document struct {
		Paths map[string]map[string]struct {
			ID string `json:"operationId"`
		} `json:"paths"`
	}
	if err := json.Unmarshal(text, &document); err != nil {
		t.Fatal(err)
	}
	var all []operation
	for path, methods := range document.Paths {
		for method, o := range methods {
			all = append(all, operation{o.ID, strings.ToUpper(method), path})
		}
	}
	if len(all) < 60 {
		t.Fatalf("the document has %d operations; the walk is broken", len(all))
	}
	return all
}

// at fills an operation's path with ids of the first tenant.
func (w *world) at(o operation) string {
	return parameter.ReplaceAllStringFunc(o.path, func(p string) string {
		switch p {
		case "{tenant}":
			return string(w.first.ID)
		case "{cloud}":
			return string(w.cloud.ID)
		case "{agent}":
			return w.agent.ID
		}
		return "01a20ae5-76a9-70b5-927c-d0423543fde9"
	})
}

// refused says whether an answer is a refusal of the caller, and not of what it
// asked for.
func refused(status int, body []byte) bool {
	var p gateway.Problem
	_ = json.Unmarshal(body, &p) // a body that is none is no refusal
	return status == http.StatusUnauthorized || p.Code == gateway.CodeDenied
}

func TestEveryOperationKnowsItsCallers(t *testing.T) {
	w := newWorld(t)
	for _, o := range operations(t) {
		row, ok := api.Rows()[o.id]
		if !ok {
			t.Errorf("operation %s has no row: say in rows.go who may call it", o.id)
			continue
		}
		if strings.HasPrefix(o.path, "/v1/site") != (row.Side == api.AgentSocket) {
			t.Errorf("operation %s is at %s but its row says %s", o.id, o.path, row.Side)
		}
		if row.Side == api.AgentSocket {
			if status, _ := w.call(o.method, w.at(o), w.tokens[access.ProviderAdmin], nil); status != http.StatusNotFound {
				t.Errorf("%s: the provider answers the agent's operation with %d", o.id, status)
			}
			continue
		}
		t.Run(o.id, func(t *testing.T) { w.walk(t, o, row) })
	}
}

// walk calls an operation as every kind of caller. Bodies are empty, so who is
// allowed gets an answer about the request, not a change.
func (w *world) walk(t *testing.T, o operation, row api.Row) {
	if row.Open {
		if status, body := w.call(o.method, w.at(o), "", nil); refused(status, body) {
			t.Errorf("anonymous: %d, but it is open to everybody", status)
		}
		return
	}
	if status, body := w.call(o.method, w.at(o), "", nil); status != http.StatusUnauthorized || !hasHint(body) {
		t.Errorf("anonymous: %d %s, want 401 with a hint", status, body)
	}
	if status, _ := w.call(o.method, w.at(o), "hf_"+strings.Repeat("A", 43), nil); status != http.StatusUnauthorized {
		t.Errorf("unknown token: %d, want 401", status)
	}
	for role, token := range w.tokens {
		want := w.allowed(row, role)
		if want && changes(o) {
			continue // tested elsewhere, with what it changes
		}
		status, body := w.call(o.method, w.at(o), token, nil)
		if got := !refused(status, body); got != want {
			t.Errorf("%s: allowed %v (%d %s), want %v", role, got, status, body, want)
		}
	}
	if row.Tenant == "" {
		return
	}
	for role, token := range w.foreign {
		status, body := w.call(o.method, w.at(o), token, nil)
		var p gateway.Problem
		if err := json.Unmarshal(body, &p); err != nil || status != http.StatusNotFound || p.Code != gateway.CodeNotFound {
			t.Errorf("%s of another tenant: %d %s, want 404 as if it did not exist", role, status, body)
		}
	}
}

// allowed is the table of rights, read independently of the code that decides.
func (w *world) allowed(row api.Row, role access.Role) bool {
	if row.Signed {
		return true
	}
	level := map[access.Role]access.Level{
		access.ProviderAdmin: access.Manage, access.ProviderOperator: access.Operate, access.ProviderAuditor: access.View,
		access.TenantAdmin: access.Manage, access.TenantOperator: access.Operate, access.TenantViewer: access.View,
	}[role]
	if row.Need.Side == access.ProviderSide && !role.Provider() {
		return false
	}
	return level >= row.Need.Level
}

// changes says whether an operation does something even with an empty body.
func changes(o operation) bool {
	switch o.method {
	case http.MethodDelete:
		return true
	case http.MethodPost:
		return !strings.HasPrefix(o.id, "create-") && !strings.HasPrefix(o.id, "add-")
	}
	return o.id == "set-lease"
}

func hasHint(body []byte) bool {
	var p gateway.Problem
	return json.Unmarshal(body, &p) == nil && p.Hint != ""
}

func (w *world) setCertificate(context.Context, *tls.Certificate) error { return nil }

func TestTenantsPeopleStayInTheirOwnScope(t *testing.T) {
	w := newWorld(t)
	admin := w.foreign[access.TenantAdmin]
	for _, path := range []string{"/v1/users", "/v1/audit", "/v1/audit/proof"} {
		if status, body := w.call("GET", path+"?tenant="+string(w.first.ID), admin, nil); status != http.StatusNotFound {
			t.Errorf("%s of another tenant: %d %s, want 404", path, status, body)
		}
		if status, _ := w.call("GET", path, admin, nil); status != http.StatusForbidden {
			t.Errorf("%s of the provider: %d, want 403", path, status)
		}
		own := w.tokens[access.TenantAdmin]
		if status, body := w.call("GET", path+"?tenant="+string(w.first.ID), own, nil); status != http.StatusOK {
			t.Errorf("%s of the own tenant: %d %s", path, status, body)
		}
	}
	// A tenant's administrator cannot make provider's people.
	status, body := w.call("POST", "/v1/users?tenant="+string(w.first.ID), w.tokens[access.TenantAdmin], map[string]string{"name": "x", "role": "provider-admin"})
	if status != http.StatusUnprocessableEntity {
		t.Errorf("a provider-admin in a tenant: %d %s, want 422", status, body)
	}
	// What lies behind the cloud is not shown.
	_, body = w.call("GET", "/v1/tenants/"+string(w.first.ID)+"/cloud-repositories", w.tokens[access.TenantViewer], nil)
	if bytes.Contains(body, []byte(w.cloud.LocationID)) || !bytes.Contains(body, []byte("backups")) {
		t.Errorf("a tenant sees %s", body)
	}
}

func TestDisablingClosesConnections(t *testing.T) {
	w := newWorld(t)
	if status, body := w.call("POST", "/v1/tenants/"+string(w.first.ID)+"/disable", w.tokens[access.ProviderAdmin], nil); status != http.StatusOK {
		t.Fatalf("disable: %d %s", status, body)
	}
	if diff := cmp.Diff([]tenant.ID{w.first.ID}, w.closed); diff != "" {
		t.Errorf("closed connections (-want +got):\n%s", diff)
	}
}

func TestChangesAreAudited(t *testing.T) {
	w := newWorld(t)
	status, _ := w.call("PUT", "/v1/tenants/"+string(w.first.ID)+"/lease", w.tokens[access.ProviderAdmin], map[string]any{"end": "2030-01-01T00:00:00Z"},
		"Holdfast-Reason", "ticket 4711")
	if status != http.StatusOK {
		t.Fatalf("set lease: %d", status)
	}
	entries, err := w.db.Audits().List(w.ctx, audit.Query{Chain: w.first.ID, Newest: true, Limit: 1})
	if err != nil || len(entries) != 1 {
		t.Fatalf("audit: %v, %v", entries, err)
	}
	e := entries[0]
	if !strings.HasPrefix(e.Actor, "user:") || e.Reason != "ticket 4711" || e.Request == "" || e.Address == "" {
		t.Errorf("entry = %+v, want who, why, from where", e)
	}
}

// A mistyped year shuts nobody out in silence: a new tenant's contract has to
// run, and ending one is a decision of its own.
func TestContractsThatHavePassed(t *testing.T) {
	w := newWorld(t)
	admin := w.tokens[access.ProviderAdmin]
	past := time.Now().Add(-time.Hour).UTC().Format(time.RFC3339)
	status, body := w.call("POST", "/v1/tenants", admin, map[string]string{"name": "Late", "lease_end": past})
	if status != http.StatusUnprocessableEntity || !bytes.Contains(body, []byte("has passed")) {
		t.Errorf("a new tenant whose contract has passed: %d %s", status, body)
	}
	status, body = w.call("PUT", "/v1/tenants/"+string(w.first.ID)+"/lease", admin, map[string]string{"end": past})
	if status != http.StatusOK || !bytes.Contains(body, []byte(past)) {
		t.Errorf("a contract that is ended: %d %s", status, body)
	}
}

// Texts round sizes for people; programs find the exact ones beside them.
func TestRefusalsHaveExactSizes(t *testing.T) {
	w := newWorld(t)
	if _, err := w.db.Quotas().Reserve(w.ctx, w.first.ID, w.cloud.ID, "session", 1<<20+1); err != nil {
		t.Fatal(err)
	}
	status, body := w.call("DELETE", "/v1/tenants/"+string(w.first.ID)+"/cloud-repositories/"+string(w.cloud.ID), w.tokens[access.ProviderAdmin], nil)
	var p gateway.Problem
	var facts quota.NotEmptyError
	if err := errors.Join(json.Unmarshal(body, &p), json.Unmarshal(p.Facts, &facts)); err != nil || status != http.StatusConflict || facts.Pending != 1<<20+1 {
		t.Errorf("%d %s: %v", status, body, err)
	}
	if !strings.Contains(p.Detail, "has 1.0 MiB pending") {
		t.Errorf("detail %q", p.Detail)
	}
}

func TestRepeatedPostIsDoneOnce(t *testing.T) {
	w := newWorld(t)
	admin := w.tokens[access.ProviderAdmin]
	status, first := w.call("POST", "/v1/tenants", admin, map[string]string{"name": "Acme"}, "Idempotency-Key", "one")
	if status != http.StatusCreated {
		t.Fatalf("create: %d %s", status, first)
	}
	status, again := w.call("POST", "/v1/tenants", admin, map[string]string{"name": "Acme"}, "Idempotency-Key", "one")
	if status != http.StatusCreated || !bytes.Equal(first, again) {
		t.Errorf("repeated: %d %s, want the first answer %s", status, again, first)
	}
	status, body := w.call("POST", "/v1/tenants", admin, map[string]string{"name": "Other"}, "Idempotency-Key", "one")
	if status != http.StatusUnprocessableEntity {
		t.Errorf("the key of another request: %d %s, want 422", status, body)
	}
	status, body = w.call("POST", "/v1/tenants", admin, map[string]string{"name": "Acme"}, "Idempotency-Key", "two")
	if status != http.StatusConflict {
		t.Errorf("without the key: %d %s, want 409", status, body)
	}
	other := w.tokens[access.ProviderOperator]
	if status, body := w.call("POST", "/v1/tenants", other, map[string]string{"name": "Acme"}, "Idempotency-Key", "one"); status != http.StatusForbidden {
		t.Errorf("another caller's key: %d %s, want 403", status, body)
	}
	viewer := w.narrowed(admin, access.View)
	if status, body := w.call("POST", "/v1/tenants", viewer, map[string]string{"name": "Acme"}, "Idempotency-Key", "one"); status != http.StatusForbidden {
		t.Errorf("the same user's token that may only look: %d %s, want 403", status, body)
	}
}

// narrowed is another token of the same user, with a scope.
func (w *world) narrowed(token string, scope access.Level) string {
	w.t.Helper()
	hash, err := access.HashToken(token)
	if err != nil {
		w.t.Fatal(err)
	}
	_, user, err := w.db.Users().ByToken(w.ctx, hash)
	if err != nil {
		w.t.Fatal(err)
	}
	text, hash := access.NewToken()
	if _, err := w.db.Users().CreateToken(w.ctx, access.Token{UserID: user.ID, TenantID: user.TenantID, Name: "narrow", Hash: hash, Scope: scope}); err != nil {
		w.t.Fatal(err)
	}
	return text
}

func TestRefusalsHaveOneForm(t *testing.T) {
	w := newWorld(t)
	admin := w.tokens[access.ProviderAdmin]
	for name, c := range map[string]struct {
		method, path string
		body         any
		status       int
		code         gateway.Code
	}{
		"no such path":      {"GET", "/v1/nothing", nil, 404, gateway.CodeNotFound},
		"no such tenant":    {"GET", "/v1/tenants/x", nil, 404, gateway.CodeNotFound},
		"missing field":     {"POST", "/v1/tenants", map[string]string{}, 422, gateway.CodeInvalid},
		"unknown field":     {"POST", "/v1/tenants", map[string]any{"name": "A", "nmae": "B"}, 422, gateway.CodeInvalid},
		"unknown parameter": {"GET", "/v1/tenants?nmae=x", nil, 422, gateway.CodeInvalid},
		"bad name":          {"POST", "/v1/tenants", map[string]string{"name": "a/b"}, 422, gateway.CodeInvalid},
		"taken name":        {"POST", "/v1/tenants", map[string]string{"name": "First"}, 409, gateway.CodeExists},
		"old version":       {"PATCH", "/v1/tenants/" + string(w.first.ID), map[string]any{"version": 99, "name": "x"}, 409, gateway.CodeChanged},
		"last admin":        {"POST", "/v1/login", map[string]string{"user": "nobody", "password": "x"}, 401, gateway.CodeAnonymous},
	} {
		status, body := w.call(c.method, c.path, admin, c.body)
		var p gateway.Problem
		if err := json.Unmarshal(body, &p); err != nil || status != c.status || p.Code != c.code || p.Detail == "" || p.Status != status {
			t.Errorf("%s: %d %s (%v), want %d %s", name, status, body, err, c.status, c.code)
		}
	}
}

func TestCommittedDocumentIsCurrent(t *testing.T) {
	want, err := api.Document()
	if err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile("openapi.json")
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Error("openapi.json is not what the program prints: go generate ./core/client")
	}
}

func TestUnknownTokensAreSlowedDown(t *testing.T) {
	w := newWorld(t)
	refusal := func() *httptest.ResponseRecorder {
		r := httptest.NewRequestWithContext(t.Context(), "GET", "/v1/me", nil)
		r.RemoteAddr = "198.51.100.7:1234"
		r.Header.Set("Authorization", "Bearer hf_"+strings.Repeat("A", 43))
		answer := httptest.NewRecorder()
		w.handler.ServeHTTP(answer, r)
		return answer
	}
	for i := 1; ; i++ {
		answer := refusal()
		if answer.Code == http.StatusUnauthorized && i <= 1000 {
			continue
		}
		var p gateway.Problem
		if err := json.Unmarshal(answer.Body.Bytes(), &p); err != nil || answer.Code != http.StatusTooManyRequests || answer.Header().Get("Retry-After") == "" || p.Hint == "" {
			t.Fatalf("token %d: %d %s (%v), want 429 that says when to try again", i, answer.Code, answer.Body, err)
		}
		break
	}
	if status, body := w.call("GET", "/v1/me", w.tokens[access.ProviderAdmin], nil); status != http.StatusOK { // from another address
		t.Errorf("an honest user: %d %s", status, body)
	}
}

func TestGuessingPasswordsIsSlowedDown(t *testing.T) {
	w := newWorld(t)
	body := map[string]string{"user": "nobody", "password": "x"}
	for i := 1; ; i++ {
		status, answer := w.call("POST", "/v1/login", "", body)
		if status == http.StatusUnauthorized && i <= 20 {
			continue
		}
		var p gateway.Problem
		if err := json.Unmarshal(answer, &p); err != nil || status != http.StatusTooManyRequests || p.Code != gateway.CodeBusy || p.RetryAfter < 1 || p.Hint == "" {
			t.Fatalf("login %d: %d %s (%v), want 429 that says when to try again", i, status, answer, err)
		}
		break
	}
}
