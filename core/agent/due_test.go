package agent_test

import (
	"context"
	"encoding/json"
	"log/slog"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/core/agent"
	"github.com/holdfast-dr/holdfast/core/audit"
	"github.com/holdfast-dr/holdfast/core/chunk"
	"github.com/holdfast-dr/holdfast/core/gateway"
	"github.com/holdfast-dr/holdfast/core/host"
	"github.com/holdfast-dr/holdfast/core/job"
	"github.com/holdfast-dr/holdfast/core/point"
	"github.com/holdfast-dr/holdfast/core/schedule"
	"github.com/holdfast-dr/holdfast/core/secret"
	"github.com/holdfast-dr/holdfast/core/state"
	"github.com/holdfast-dr/holdfast/sdk"
)

// provider has one cloud repository without points, and hears of runs.
type provider struct {
	agent.Wire
	heard chan report
}

type report struct {
	run   string
	event gateway.RunEvent
}

func (p *provider) dial(agent.Connection, func(context.Context, agent.Connection) (agent.Connection, error)) (agent.Wire, error) {
	return p, nil
}

func (p *provider) Site(context.Context) (gateway.Site, error) {
	return gateway.Site{Repositories: []gateway.CloudRepository{{ID: "r1", Name: "gold", ChunkSize: 256 << 10, FanOut: 128}}}, nil
}

func (p *provider) ReportRun(_ context.Context, run string, e gateway.RunEvent) error {
	p.heard <- report{run, e}
	return nil
}

func (p *provider) Repository(string) agent.Repository { return repository{} }
func (p *provider) Close() error                       { return nil }

type repository struct{ agent.Repository }

func (repository) Wraps(context.Context) ([]gateway.Wrap, error) { return nil, nil }
func (repository) Manifest(context.Context, point.ID) ([]byte, error) {
	return nil, chunk.ErrAbsent
}

// down is a hypervisor that cannot be opened.
type down struct{ agent.Plugins }

func (down) Open(context.Context, host.Endpoint) (sdk.Platform, func(), error) {
	return nil, nil, sdk.Errorf(sdk.ErrUnavailable, sdk.FaultBackend, "nobody answers at kvm1")
}

const maximal = 128 // characters of a job's name

// A scheduled job that cannot even begin is seen to have failed, and why, at the
// site and at the provider, whatever the reason and however long its name.
func TestDueJobThatCannotBeginFailsInSight(t *testing.T) {
	keys, err := chunk.NewKeyring().Marshal()
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		kit      agent.KitState
		endpoint bool
		job      string
		want     string
	}{
		"the recovery kit was never written": {agent.KitMissing, true, "nightly", "no keyring that is accepted"},
		"the endpoint is gone":               {agent.KitDeclined, false, "nightly", `endpoint "e1": not found`},
		"the endpoint cannot be opened":      {agent.KitWritten, true, strings.Repeat("晩", maximal), "nobody answers at kvm1"},
	} {
		t.Run(name, func(t *testing.T) {
			db, err := state.OpenAgent(t.Context(), "sqlite:"+filepath.Join(t.TempDir(), "agent.db"))
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { db.Close() })
			key, wire := secret.NewKey(), &provider{heard: make(chan report, 100)}
			a := &agent.Agent{Name: "berlin", Version: "1", Instance: "one", Log: slog.New(slog.DiscardHandler), Store: db.Site(key), Runs: db.Runs(),
				Claims: db.Claims(), Host: db.Hosts(key), Plugins: down{}, Dial: wire.dial}
			ctx := audit.With(t.Context(), audit.System("test", "set up"))
			now := time.Now()
			must(t, a.Store.PutConnection(ctx, agent.Connection{ID: "c1", Name: "provider", AgentID: "agent", TenantID: "tenant", Created: now}))
			must(t, a.Store.PutKeyring(ctx, agent.Keyring{Fingerprint: "f", Secret: keys, Current: true, Kit: c.kit, Created: now}))
			if c.endpoint {
				must(t, a.Host.PutEndpoint(ctx, host.Endpoint{ID: "e1", Name: "lab", Plugin: "sim", Settings: json.RawMessage("{}")}))
			}
			must(t, a.Store.PutJob(ctx, agent.Job{ID: "j1", Name: c.job, Enabled: true, EndpointID: "e1", ConnectionID: "c1", Repository: "r1", RepositoryName: "gold",
				Selection: agent.Selection{All: true}, Schedule: &schedule.Schedule{Cron: "0 3 * * *"}, Next: now.Add(-time.Minute), Created: now, Updated: now}))
			serve(t, a)

			for heard := range wire.heard { // the test's own deadline ends a wait for nothing
				e := heard.event
				if !job.State(e.State).Final() {
					continue
				}
				if e.State != string(job.Failed) || e.Side != "tenant" || !strings.Contains(e.Failure, c.want) || e.Kind != string(agent.RunBackup) {
					t.Errorf("the provider heard %+v, want a failure of the tenant's: %q", e, c.want)
				}
				if len(e.Job) > 200 || !strings.HasPrefix(c.job, strings.TrimSuffix(e.Job, "…")) || e.Job == "" {
					t.Errorf("the provider heard of job %q (%d bytes), which is %q", e.Job, len(e.Job), c.job)
				}
				run := final(t, a, heard.run)
				if run.State != job.Failed || run.Trigger != agent.BySchedule || run.Failure == nil || !strings.Contains(run.Failure.Message, c.want) {
					t.Errorf("the run is %+v (%+v)", run, run.Failure)
				}
				if shown, err := a.Job(t.Context(), "j1"); err != nil || shown.Last == nil || shown.Last.ID != heard.run || !shown.Next.After(now) {
					t.Errorf("the job is %+v, %v", shown, err)
				}
				return
			}
		})
	}
}

// A provider sees restores and verifications as it sees backups, but not the
// names of machines.
func TestProviderHearsOfRestores(t *testing.T) {
	db, err := state.OpenAgent(t.Context(), "sqlite:"+filepath.Join(t.TempDir(), "agent.db"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	key, wire := secret.NewKey(), &provider{heard: make(chan report, 100)}
	a := &agent.Agent{Name: "berlin", Version: "1", Instance: "one", Log: slog.New(slog.DiscardHandler), Store: db.Site(key), Runs: db.Runs(),
		Claims: db.Claims(), Host: db.Hosts(key), Plugins: down{}, Dial: wire.dial}
	ctx := audit.With(t.Context(), audit.System("test", "set up"))
	must(t, a.Store.PutConnection(ctx, agent.Connection{ID: "c1", Name: "provider", AgentID: "agent", TenantID: "tenant", Created: time.Now()}))
	const of = "0198c0de-0000-7000-8000-000000000001"
	spec, err := json.Marshal(map[string]any{"name": "web", "connection": "c1", "verify": map[string]string{"point": of}})
	must(t, err)
	run, err := a.Runs.Create(ctx, job.Run{Kind: agent.RunVerify, Subject: "point:" + of, Spec: spec})
	must(t, err)
	open, err := agent.ReportRuns(a, t.Context())
	must(t, err)
	if heard := <-wire.heard; !open || heard.run != run.ID || heard.event.State != string(job.Waiting) || heard.event.Kind != string(agent.RunVerify) ||
		heard.event.Job != of || heard.event.Ended != nil {
		t.Errorf("of a run that waits the provider heard %+v", heard)
	}
	serve(t, a)
	for heard := range wire.heard {
		if !job.State(heard.event.State).Final() {
			continue
		}
		if heard.run != run.ID || heard.event.State != string(job.Failed) || heard.event.Ended == nil || heard.event.Job != of || heard.event.Failure == "" {
			t.Errorf("of the end the provider heard %+v", heard)
		}
		return
	}
}

func serve(t *testing.T, a *agent.Agent) {
	ctx, stop := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() { served <- a.Serve(ctx) }()
	t.Cleanup(func() {
		stop()
		must(t, <-served)
		must(t, a.Close())
	})
}

// final waits for the end of a run: the provider hears of it a moment before it
// is written.
func final(t *testing.T, a *agent.Agent, id string) (last agent.RunStatus) {
	t.Helper()
	must(t, a.WatchRun(t.Context(), id, func(r agent.RunStatus) error {
		last = r
		return nil
	}))
	return last
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
