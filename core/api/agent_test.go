package api_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/holdfast-dr/holdfast/core/agent"
	"github.com/holdfast-dr/holdfast/core/api"
	"github.com/holdfast-dr/holdfast/core/backup"
	"github.com/holdfast-dr/holdfast/core/gateway"
	"github.com/holdfast-dr/holdfast/core/host"
	"github.com/holdfast-dr/holdfast/core/point"
	"github.com/holdfast-dr/holdfast/core/secret"
	"github.com/holdfast-dr/holdfast/core/state"
	"github.com/holdfast-dr/holdfast/sdk"
	"github.com/holdfast-dr/holdfast/sdk/sim"
)

// site is an agent behind a real unix socket, with a real database, a simulated
// hypervisor, and a provider that has one empty cloud repository and takes no
// backup.
type site struct {
	t      *testing.T
	client *http.Client
}

func newSite(t *testing.T) *site {
	t.Helper()
	dir, err := os.MkdirTemp("", "hf") // a socket's path is bounded
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	db, err := state.OpenAgent(t.Context(), "sqlite:"+filepath.Join(dir, "agent.db"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	key := secret.NewKey()
	hypervisor := sim.New()
	if _, err := hypervisor.CreateMachine(sim.MachineSpec{Name: "web", DiskBytes: []int64{1 << 20}}); err != nil {
		t.Fatal(err)
	}
	hosts := db.Hosts(key)
	a := &agent.Agent{Name: "test", Version: "1", Instance: "one", Log: slog.New(slog.DiscardHandler),
		Store: db.Site(key), Runs: db.Runs(), Claims: db.Claims(), Host: hosts, Plugins: &plugins{hosts, hypervisor},
		Dial: func(agent.Connection, func(context.Context, agent.Connection) (agent.Connection, error)) (agent.Wire, error) {
			return &wire{}, nil
		},
		Enrol: func(_ context.Context, e agent.Enrolment) (agent.Connection, error) {
			if e.Token != "good" {
				return agent.Connection{}, gateway.NewProblem(http.StatusUnauthorized, gateway.CodeEnrolment, "enrolment token not accepted")
			}
			e.AgentID, e.TenantID, e.TenantName = "agent", "tenant", "Acme"
			return e.Connection, nil
		}}
	ctx, stop := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() { served <- a.Serve(ctx) }()
	socket := filepath.Join(dir, "agent.sock")
	listener, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: api.NewAgentHandler(&api.Agent{Site: a})}
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(listener) }()
	t.Cleanup(func() {
		server.Close()
		if err := <-ended; !errors.Is(err, http.ErrServerClosed) {
			t.Errorf("serve the socket: %v", err)
		}
		stop()
		if err := <-served; err != nil {
			t.Errorf("serve: %v", err)
		}
	})
	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", socket)
	}}
	t.Cleanup(transport.CloseIdleConnections)
	return &site{t: t, client: &http.Client{Transport: transport}}
}

type plugins struct {
	hosts      host.Store
	hypervisor *sim.Hypervisor
}

func (p *plugins) Open(_ context.Context, e host.Endpoint) (sdk.Platform, func(), error) {
	if bytes.Contains(e.Settings, []byte("unreachable")) {
		return nil, nil, sdk.Errorf(sdk.ErrUnavailable, sdk.FaultBackend, "nobody answers at kvm1").WithHint("is it on?")
	}
	return p.hypervisor.Connect(sim.Settings{}), func() {}, nil
}

func (p *plugins) Check(context.Context, host.Endpoint) error { return nil }

func (p *plugins) Remove(ctx context.Context, id string) error {
	return p.hosts.DeleteEndpoint(ctx, id)
}

func (p *plugins) Find() ([]host.Found, error) {
	return []host.Found{{Plugin: "sim", Path: "/usr/lib/holdfast/holdfast-plugin-sim"}}, nil
}

func (p *plugins) EnableAs(ctx context.Context, name string, policy *host.PluginPolicy) (host.Enabled, error) {
	if name == "sim" && policy != nil {
		e := host.Enabled{Plugin: name, Arch: runtime.GOARCH, Path: "/p", SHA256: "ab", Version: "1", Description: json.RawMessage("{}"), Policy: *policy}
		return e, p.hosts.PutPlugin(ctx, e)
	}
	return host.Enabled{}, sdk.Errorf(sdk.ErrNotFound, sdk.FaultHost, "there is no program holdfast-plugin-%s", name)
}

func (p *plugins) EnableOn(ctx context.Context, hub host.Workers, worker, name string) (host.Enabled, error) {
	sum, d, err := hub.Inspect(ctx, worker, name)
	return host.Enabled{Plugin: d.Name, Arch: "amd64", SHA256: sum, Version: d.Version}, err
}

func (p *plugins) Disable(context.Context, string) error { return nil }

func (p *plugins) Reload(_ context.Context, r host.ReloadRequest) (host.Reloaded, error) {
	if r.Plugin != "sim" {
		return host.Reloaded{}, sdk.Errorf(sdk.ErrNotFound, sdk.FaultHost, "plugin %s is not enabled", r.Plugin)
	}
	return host.Reloaded{Plugin: r.Plugin, From: "1", To: "2", Tried: []string{"lab"}, Drains: []string{r.Drain.String()}}, nil
}

func (p *plugins) Status(context.Context, string) (host.PluginHealth, error) {
	return host.PluginHealth{State: host.StateIdle, Endpoints: []host.EndpointState{}}, nil
}

var pluginLines = []host.LogLine{{Sequence: 1, Plugin: "sim", Message: "first"}, {Sequence: 2, Plugin: "sim", Message: "second"}}

func (p *plugins) Logs(r host.LogRequest) []host.LogLine { return pluginLines[r.After:] }

func (p *plugins) FollowLogs(_ context.Context, r host.LogRequest, notice func(host.LogLine) error) error {
	for _, l := range p.Logs(r) {
		if err := notice(l); err != nil {
			return err
		}
	}
	return nil
}

func (p *plugins) WriteMetrics(_ context.Context, w io.Writer) error {
	_, err := io.WriteString(w, "holdfast_plugin_starts_total{plugin=\"sim\"} 1\n")
	return err
}

// wire is a provider with an empty repository.
type wire struct{ agent.Wire }

func (*wire) Site(context.Context) (gateway.Site, error) {
	return gateway.Site{Tenant: gateway.SiteTenant{ID: "tenant", Name: "Acme", MaxTasks: 2}, Admission: gateway.Admission{Open: true},
		Repositories: []gateway.CloudRepository{{ID: "r1", Name: "gold", ChunkSize: 256 << 10, FanOut: 128}}}, nil
}

func (*wire) ReportRun(context.Context, string, gateway.RunEvent) error { return nil }
func (*wire) Repository(string) agent.Repository                        { return &emptyRepository{} }
func (*wire) Close() error                                              { return nil }

// emptyRepository refuses new points.
type emptyRepository struct{ agent.Repository }

var errFull = errors.New("the repository takes nothing today")

func (*emptyRepository) Wraps(context.Context) ([]gateway.Wrap, error)         { return nil, nil }
func (*emptyRepository) PutWrap(context.Context, string, []byte) error         { return nil }
func (*emptyRepository) Last(context.Context, point.MachineID) ([]byte, error) { return nil, nil }
func (*emptyRepository) Points(context.Context, point.MachineID, point.ID, int) (gateway.PointPage, error) {
	return gateway.PointPage{}, nil
}

func (*emptyRepository) Begin(context.Context, point.MachineID, point.ID, string) (backup.Session, error) {
	return nil, errFull
}

// call sends a request and decodes the answer into out, unless that is nil.
func (s *site) call(method, path string, in, out any) (int, gateway.Problem) {
	s.t.Helper()
	var body io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			s.t.Fatal(err)
		}
		body = bytes.NewReader(b)
	}
	r, err := http.NewRequestWithContext(s.t.Context(), method, "http://agent"+path, body)
	if err != nil {
		s.t.Fatal(err)
	}
	r.Header.Set("Content-Type", "application/json")
	response, err := s.client.Do(r)
	if err != nil {
		s.t.Fatal(err)
	}
	defer response.Body.Close()
	b, err := io.ReadAll(response.Body)
	if err != nil {
		s.t.Fatal(err)
	}
	var p gateway.Problem
	if response.StatusCode/100 != 2 {
		if kind := response.Header.Get("Content-Type"); kind != gateway.ProblemType {
			s.t.Errorf("%s %s: refusal of type %s: %s", method, path, kind, b)
		}
		out = &p
	}
	if out != nil {
		if err := json.Unmarshal(b, out); err != nil {
			s.t.Fatalf("%s %s: %v in %s", method, path, err, b)
		}
	}
	return response.StatusCode, p
}

// do is call that has to succeed.
func (s *site) do(method, path string, in, out any) {
	s.t.Helper()
	if status, p := s.call(method, path, in, out); status/100 != 2 {
		s.t.Fatalf("%s %s: %d %s", method, path, status, p.Error())
	}
}

// ready connects the site, accepts its keys, and adds the hypervisor.
func (s *site) ready() {
	s.t.Helper()
	s.do("POST", "/v1/site/providers", map[string]string{"address": "provider.example", "fingerprint": "ca", "token": "good"}, nil)
	s.exportKit()
	s.do("POST", "/v1/site/endpoints", map[string]any{"name": "lab", "plugin": "sim", "settings": map[string]string{"password": "hush"}}, nil)
}

func (s *site) exportKit() {
	s.t.Helper()
	var kit agent.ExportedKit
	s.do("POST", "/v1/site/keys/kit", map[string]string{}, &kit)
	sum := sha256.Sum256(kit.Kit)
	var accepted agent.KeyStatus
	s.do("POST", "/v1/site/keys/kit/accept", map[string]string{"sha256": hex.EncodeToString(sum[:])}, &accepted)
	if !accepted.Accepted || !accepted.Current || accepted.Kit != agent.KitWritten {
		s.t.Errorf("after the kit was written the keyring is %+v", accepted)
	}
}

func TestSiteConnectsAndAcceptsKeys(t *testing.T) {
	s := newSite(t)
	if status, p := s.call("POST", "/v1/site/keys/kit", map[string]string{}, nil); status != http.StatusConflict || p.Hint == "" {
		t.Errorf("a kit before there is a provider: %d %+v, want 409 with a hint", status, p)
	}
	if status, p := s.call("POST", "/v1/site/providers", map[string]string{"address": "provider.example", "token": "bad"}, nil); status != http.StatusUnauthorized || p.Code != gateway.CodeEnrolment {
		t.Errorf("a bad token: %d %s", status, p.Code)
	}
	var status agent.SiteStatus
	s.do("GET", "/v1/site", nil, &status)
	if len(status.Providers) != 0 || len(status.Advice) == 0 {
		t.Errorf("after a refusal: providers %v, advice %v; want none, some", status.Providers, status.Advice)
	}
	s.do("POST", "/v1/site/providers", map[string]string{"address": "provider.example", "fingerprint": "ca", "token": "good"}, nil)
	s.do("GET", "/v1/site", nil, &status)
	if len(status.Providers) != 1 || !status.Providers[0].Reachable || status.Providers[0].Repositories[0].Name != "gold" {
		t.Errorf("providers %+v", status.Providers)
	}
	if code, p := s.call("POST", "/v1/site/keys/kit/accept", map[string]string{"sha256": strings.Repeat("0", 64)}, nil); code != http.StatusConflict {
		t.Errorf("a checksum of nothing: %d %s, want 409", code, p.Error())
	}
	if code, p := s.call("POST", "/v1/site/keys/kit/decline", map[string]string{"tenant": "Acm"}, nil); code != http.StatusUnprocessableEntity {
		t.Errorf("declining with half a name: %d %s, want 422", code, p.Error())
	}
	s.exportKit()
	var kit agent.ExportedKit
	s.do("POST", "/v1/site/keys/kit", map[string]string{"passphrase": "xyzzy"}, &kit)
	if code, _ := s.call("POST", "/v1/site/keys/import", map[string]any{"kit": kit.Kit, "passphrase": "plugh"}, nil); code != http.StatusUnprocessableEntity {
		t.Errorf("importing with a wrong passphrase: %d, want 422", code)
	}
	s.do("POST", "/v1/site/keys/import", map[string]any{"kit": kit.Kit, "passphrase": "xyzzy"}, nil)
}

func TestSiteEndpointsShowNoSecret(t *testing.T) {
	s := newSite(t)
	s.ready()
	for _, path := range []string{"/v1/site", "/v1/site/endpoints", "/v1/site/providers"} {
		var raw json.RawMessage
		s.do("GET", path, nil, &raw)
		if bytes.Contains(raw, []byte("hush")) || bytes.Contains(raw, []byte("PRIVATE KEY")) {
			t.Errorf("%s shows a secret: %s", path, raw)
		}
	}
	status, p := s.call("POST", "/v1/site/endpoints", map[string]any{"name": "far", "plugin": "sim", "settings": map[string]string{"at": "unreachable"}}, nil)
	if status != http.StatusServiceUnavailable || p.Code != gateway.CodeUnavailable || p.Hint != "is it on?" || !strings.Contains(p.Detail, "nobody answers at kvm1") {
		t.Errorf("an endpoint that does not answer: %d %+v; want 503 with the plugin's words", status, p)
	}
	if status, p := s.call("POST", "/v1/site/endpoints", map[string]any{"name": "LAB", "plugin": "sim", "settings": map[string]string{}}, nil); status != http.StatusConflict || p.Code != gateway.CodeExists {
		t.Errorf("a name that is taken, in other case: %d %s", status, p.Code)
	}
	var machines []agent.MachineStatus
	s.do("GET", "/v1/site/machines?endpoint=lab", nil, &machines)
	if len(machines) != 1 || machines[0].Name != "web" {
		t.Errorf("machines %+v", machines)
	}
	if status, _ := s.call("GET", "/v1/site/machines?endpoint=nowhere", nil, nil); status != http.StatusNotFound {
		t.Errorf("machines of an unknown endpoint: %d, want 404", status)
	}
	if status, _ := s.call("POST", "/v1/site/plugins", map[string]string{"name": "nothing"}, nil); status != http.StatusNotFound {
		t.Errorf("a plugin that is not installed: %d, want 404", status)
	}
}

func TestSitePluginReloadLogsAndMetrics(t *testing.T) {
	s := newSite(t)
	s.ready()
	s.do("POST", "/v1/site/plugins", map[string]any{"name": "sim", "policy": map[string]any{"user": "backup", "memory_bytes": -1}}, nil)
	var p agent.PluginStatus
	s.do("GET", "/v1/site/plugins/sim", nil, &p)
	if p.Running == nil || p.Running.State != host.StateIdle || p.Policy == nil || p.Policy.User != "backup" || p.Policy.MemoryBytes != -1 {
		t.Errorf("plugin %+v", p)
	}
	var done host.Reloaded
	s.do("POST", "/v1/site/plugins/sim/reload", map[string]any{"drain_seconds": 90}, &done)
	if done.From != "1" || done.To != "2" || len(done.Drains) != 1 || done.Drains[0] != "1m30s" {
		t.Errorf("reloaded %+v", done)
	}
	if status, _ := s.call("POST", "/v1/site/plugins/sim/reload", map[string]any{"drain_seconds": 604801}, nil); status != http.StatusUnprocessableEntity {
		t.Errorf("a drain of more than a week: %d, want 422", status)
	}
	var lines []host.LogLine
	s.do("GET", "/v1/site/plugins/sim/logs?after=1", nil, &lines)
	if len(lines) != 1 || lines[0].Message != "second" {
		t.Errorf("lines %+v", lines)
	}
	for path, want := range map[string]string{
		"/v1/site/plugins/sim/logs/events": "event: line\ndata: {\"sequence\":1",
		"/v1/site/metrics":                 "holdfast_plugin_starts_total{plugin=\"sim\"} 1\n",
	} {
		r, err := s.client.Get("http://agent" + path)
		if err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(r.Body)
		_ = r.Body.Close()
		if err != nil || r.StatusCode != http.StatusOK || !strings.Contains(string(text), want) {
			t.Errorf("%s: %d %v\n%s\nwant %q", path, r.StatusCode, err, text, want)
		}
		if path == "/v1/site/metrics" && !strings.HasPrefix(r.Header.Get("Content-Type"), "text/plain; version=0.0.4") {
			t.Errorf("metrics are of type %q", r.Header.Get("Content-Type"))
		}
	}
	for _, path := range []string{"/logs", "/logs/events"} {
		if status, _ := s.call("GET", "/v1/site/plugins/none"+path, nil, nil); status != http.StatusNotFound {
			t.Errorf("%s of a plugin that is not enabled: %d, want 404", path, status)
		}
	}
	if status, _ := s.call("POST", "/v1/site/plugins/none/reload", map[string]any{}, nil); status != http.StatusNotFound {
		t.Errorf("reload of a plugin that is not enabled: %d, want 404", status)
	}
}

func TestSiteJobsByAwkwardNames(t *testing.T) {
	s := newSite(t)
	s.ready()
	const name = "every night / 50% & more"
	spec := map[string]any{"name": name, "enabled": true, "endpoint": "lab", "repository": "gold", "machines": map[string]any{"all": true},
		"schedule": map[string]string{"cron": "0 2 * * *", "zone": "Europe/Berlin"}, "retention": map[string]int{"points": 3}}
	s.do("POST", "/v1/site/jobs", spec, nil)
	path := "/v1/site/jobs/" + url.PathEscape(name)
	var j agent.JobStatus
	s.do("GET", path, nil, &j)
	if j.Name != name || j.Quiesce != sdk.QuiesceFileSystem || j.Next.IsZero() || j.Retention.Points != 3 {
		t.Errorf("job %+v", j)
	}
	j = agent.JobStatus{}
	s.do("POST", path+"/disable", nil, &j)
	if j.Enabled || !j.Next.IsZero() {
		t.Errorf("after disabling: enabled %v, next %v", j.Enabled, j.Next)
	}
	for what, bad := range map[string]map[string]any{
		"machines": {"machines": map[string]any{}}, "schedule": {"schedule": map[string]string{"cron": "whenever", "zone": ""}},
		"quiesce": {"quiesce": "deeply"}, "repository": {"repository": "lead"},
	} {
		changed := map[string]any{}
		for k, v := range spec {
			changed[k] = v
		}
		for k, v := range bad {
			changed[k] = v
		}
		status, p := s.call("PUT", path, changed, nil)
		if status != http.StatusUnprocessableEntity || !strings.Contains(p.Error(), what) {
			t.Errorf("a job with bad %s: %d %s, want 422 that names it", what, status, p.Error())
		}
	}
	if status, _ := s.call("DELETE", "/v1/site/endpoints/lab", nil, nil); status != http.StatusConflict {
		t.Errorf("deleting an endpoint that a job uses: %d, want 409", status)
	}
	s.do("DELETE", path, nil, nil)
	if status, _ := s.call("GET", path, nil, nil); status != http.StatusNotFound {
		t.Errorf("a deleted job: %d, want 404", status)
	}
}

func TestSiteRunIsWatchedToItsEnd(t *testing.T) {
	s := newSite(t)
	s.ready()
	s.do("POST", "/v1/site/jobs", map[string]any{"name": "n", "enabled": true, "endpoint": "lab", "repository": "gold", "machines": map[string]any{"all": true}}, nil)
	var run agent.RunStatus
	s.do("POST", "/v1/site/jobs/n/runs", nil, &run)
	states := s.watch(run.ID)
	if len(states) == 0 || states[len(states)-1].State != "failed" {
		t.Fatalf("the stream ended with %+v", states)
	}
	last := states[len(states)-1]
	if last.ID != run.ID || len(last.Machines) != 1 || last.Machines[0].Failure == nil || !strings.Contains(last.Machines[0].Failure.Message, errFull.Error()) {
		t.Errorf("the run ended as %+v; want the machine's failure", last)
	}
	if again := s.watch("last"); len(again) != 1 || again[0].State != "failed" {
		t.Errorf("watching an ended run sends %d events, want its final state alone", len(again))
	}
	var runs []agent.RunStatus
	s.do("GET", "/v1/site/runs?job=n&limit=5", nil, &runs)
	if len(runs) != 1 || runs[0].ID != run.ID {
		t.Errorf("runs of the job: %+v", runs)
	}
	if status, p := s.call("POST", "/v1/site/runs/"+run.ID+"/cancel", nil, nil); status != http.StatusConflict {
		t.Errorf("cancelling an ended run: %d %s, want 409", status, p.Error())
	}
	for _, path := range []string{"/v1/site/runs/" + rand.Text() + "/events", "/v1/site/runs/nothing", "/v1/site/runs?job=nothing"} {
		if status, p := s.call("GET", path, nil, nil); status != http.StatusNotFound {
			t.Errorf("%s: %d %s, want 404", path, status, p.Error())
		}
	}
}

// watch reads a run's events to the end of the stream.
func (s *site) watch(id string) (states []agent.RunStatus) {
	s.t.Helper()
	response, err := s.client.Get("http://agent/v1/site/runs/" + id + "/events")
	if err != nil {
		s.t.Fatal(err)
	}
	defer response.Body.Close()
	if kind := response.Header.Get("Content-Type"); !strings.HasPrefix(kind, "text/event-stream") {
		s.t.Fatalf("the stream is of type %q", kind)
	}
	lines := bufio.NewScanner(response.Body)
	lines.Buffer(nil, 1<<20)
	event := ""
	for lines.Scan() {
		name, value, _ := strings.Cut(lines.Text(), ": ")
		switch name {
		case "event":
			event = value
		case "data":
			if event != "run" {
				s.t.Fatalf("event %q: %s", event, value)
			}
			var run agent.RunStatus
			if err := json.Unmarshal([]byte(value), &run); err != nil {
				s.t.Fatal(err)
			}
			states = append(states, run)
		}
	}
	return states
}

func TestSitePointsAndRestoresOfNothing(t *testing.T) {
	s := newSite(t)
	s.ready()
	var points []agent.PointStatus
	s.do("GET", "/v1/site/points", nil, &points)
	if points == nil || len(points) != 0 {
		t.Errorf("points %v, want an empty list", points)
	}
	for method, path := range map[string]string{"GET": "/v1/site/points/abcdef", "DELETE": "/v1/site/points/abcdef", "POST": "/v1/site/points/abcdef/verify"} {
		if status, _ := s.call(method, path, nil, nil); status != http.StatusNotFound {
			t.Errorf("%s %s: %d, want 404", method, path, status)
		}
	}
	if status, _ := s.call("GET", "/v1/site/points/abc", nil, nil); status != http.StatusUnprocessableEntity {
		t.Errorf("a point named by three characters: %d, want 422", status)
	}
	if status, _ := s.call("POST", "/v1/site/restores/machine", map[string]string{"point": "abcdef"}, nil); status != http.StatusNotFound {
		t.Errorf("restoring an unknown point: %d, want 404", status)
	}
	if status, p := s.call("POST", "/v1/site/restores/disk", map[string]string{"point": "abcdef", "file": "/tmp/x", "format": "floppy"}, nil); status != http.StatusUnprocessableEntity {
		t.Errorf("an unknown format: %d %s, want 422", status, p.Error())
	}
	if status, p := s.call("POST", "/v1/site/restores/disk", map[string]string{"point": "abcdef", "colour": "red"}, nil); status != http.StatusUnprocessableEntity {
		t.Errorf("an unknown field: %d %s, want 422", status, p.Error())
	}
}
