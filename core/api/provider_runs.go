package api

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/sse"

	"github.com/holdfast-dr/holdfast/core/gateway"
	"github.com/holdfast-dr/holdfast/core/job"
	"github.com/holdfast-dr/holdfast/core/quota"
	"github.com/holdfast-dr/holdfast/core/tenant"
)

// The kinds of the provider's own runs. Their subject is SubjectOf a cloud
// repository and their spec a RunSpec.
const (
	RunVerify  job.Kind = "verify"
	RunCollect job.Kind = "collect"
	RunImport  job.Kind = "import"
	RunAccount job.Kind = "account"
	// RunDistrust also gives trust back.
	RunDistrust job.Kind = "distrust"
)

// RunSpec says which cloud repository a run of the provider is about.
type RunSpec struct {
	Tenant string `json:"tenant"`
	Cloud  string `json:"cloud"`
	// AcceptLoss is repository.ImportOptions.AcceptLoss.
	AcceptLoss bool `json:"accept_loss,omitempty"`
	// Distrust is for RunDistrust.
	Distrust *DistrustSpec `json:"distrust,omitempty"`
}

// SubjectOf is what a run about a cloud repository is about.
func SubjectOf(cloud string) string { return "repository:" + cloud }

// Run is one durable execution.
type Run struct {
	ID       string          `json:"id"`
	Tenant   string          `json:"tenant,omitempty"`
	Kind     string          `json:"kind" example:"verify"`
	Subject  string          `json:"subject"`
	State    string          `json:"state" enum:"waiting,running,succeeded,warned,failed,cancelled"`
	Cancel   bool            `json:"cancel" doc:"A request to cancel is there"`
	Progress RunProgress     `json:"progress"`
	Result   json.RawMessage `json:"result,omitempty" doc:"What the kind of run reports"`
	Failure  *RunFailure     `json:"failure,omitempty"`
	Created  time.Time       `json:"created"`
	Started  *time.Time      `json:"started,omitempty"`
	Ended    *time.Time      `json:"ended,omitempty"`
}

// RunProgress is what a run last said of itself.
type RunProgress struct {
	Phase      string  `json:"phase,omitempty"`
	DoneBytes  int64   `json:"done_bytes"`
	TotalBytes int64   `json:"total_bytes" doc:"0: not known yet"`
	Rate       float64 `json:"rate" doc:"Bytes per second"`
	ETASeconds int64   `json:"eta_seconds" doc:"0: not known"`
	Bottleneck string  `json:"bottleneck,omitempty"`
}

// RunFailure is why a run failed, or what it warns of.
type RunFailure struct {
	Message string `json:"message"`
	Hint    string `json:"hint,omitempty"`
	Side    string `json:"side,omitempty" doc:"Where the cause lies: tenant or provider"`
}

// RunOf is a run as the API shows it.
func RunOf(r job.Run) Run {
	out := Run{ID: r.ID, Tenant: string(r.TenantID), Kind: string(r.Kind), Subject: r.Subject, State: string(r.State), Cancel: r.Cancel,
		Result: r.Result, Created: r.Created.UTC(), Started: optionalTime(r.Started), Ended: optionalTime(r.Ended),
		Progress: RunProgress{Phase: r.Progress.Phase, DoneBytes: r.Progress.DoneBytes, TotalBytes: r.Progress.TotalBytes,
			Rate: r.Progress.Rate, ETASeconds: int64(r.Progress.ETA / time.Second), Bottleneck: r.Progress.Bottleneck}}
	if r.Failure != nil {
		out.Failure = &RunFailure{Message: r.Failure.Message, Hint: r.Failure.Hint, Side: r.Failure.Side}
	}
	return out
}

// RunPage is a part of a list of runs, newest first.
type RunPage struct {
	Items []Run  `json:"items"`
	Next  string `json:"next,omitempty" doc:"Pass it as before to continue; absent at the end"`
}

// RunQuery selects runs.
type RunQuery struct {
	Kind    string `query:"kind" maxLength:"64"`
	Subject string `query:"subject" maxLength:"200"`
	Open    bool   `query:"open" doc:"Only runs that have not ended"`
	Before  string `query:"before" maxLength:"64"`
	Limit   int    `query:"limit" minimum:"1" maximum:"1000" default:"100"`
}

// RunPath names a run in a path.
type RunPath struct {
	Run string `path:"run" maxLength:"64"`
}

type startedOutput struct{ Body Run }

func registerRuns(h huma.API, p *Provider) {
	tags := []string{"runs"}
	const cloud = "/v1/tenants/{tenant}/cloud-repositories/{cloud}"
	for _, r := range []struct {
		kind          job.Kind
		summary, more string
	}{
		{RunVerify, "Verify a cloud repository", "Reads everything and checks it without keys; damage is re-supplied by the next backup that still has the block."},
		{RunCollect, "Collect a cloud repository", "Frees the space of what no point uses any more."},
		{RunAccount, "Account for every byte of a cloud repository", "Finds what needs each record in the store, and compares it with what is charged. Live, pending, bin, waste and overhead add up to the bytes on disk."},
	} {
		add(h, huma.Operation{OperationID: string(r.kind) + "-cloud-repository", Method: http.MethodPost, Path: cloud + "/" + string(r.kind), Tags: tags,
			Summary: r.summary, Description: r.more + " Answers the run that does it.", DefaultStatus: http.StatusAccepted},
			func(ctx context.Context, in *struct {
				CloudPath
				Idempotent
			}) (*startedOutput, error) {
				return p.start(ctx, r.kind, in.CloudPath, RunSpec{})
			})
	}
	add(h, huma.Operation{OperationID: "import-cloud-repository", Method: http.MethodPost, Path: cloud + "/" + string(RunImport), Tags: tags,
		Summary: "Rebuild a cloud repository's catalogue", DefaultStatus: http.StatusAccepted,
		Description: "Reads the manifests that lie in the store; needed after the database was restored from a backup, and after a cloud repository was created with an id. Answers the run that does it."},
		p.startImport)
	registerTrust(h, p)
	add(h, huma.Operation{OperationID: "list-runs", Method: http.MethodGet, Path: "/v1/runs", Tags: tags,
		Summary: "List the provider's runs"}, p.listRuns)
	add(h, huma.Operation{OperationID: "get-run", Method: http.MethodGet, Path: "/v1/runs/{run}", Tags: tags,
		Summary: "Show a run"}, p.getRun)
	add(h, huma.Operation{OperationID: "cancel-run", Method: http.MethodPost, Path: "/v1/runs/{run}/cancel", Tags: tags,
		Summary: "Ask a run to end", DefaultStatus: http.StatusAccepted}, p.cancelRun)
	addEvents(h, huma.Operation{OperationID: "watch-run", Method: http.MethodGet, Path: "/v1/runs/{run}/events", Tags: tags,
		Summary: "Watch a run", Description: "Server-sent events: run whenever it changed, and once it has ended, after which the stream ends; problem if it cannot be watched."},
		RunEvents, func(ctx context.Context, in *RunPath, send sse.Sender) {
			WatchRun(ctx, p.Runs, tenant.Provider, in.Run, send)
		})
}

// RunFor is a new run of the provider about a cloud repository, which it enters
// into the spec.
func RunFor(kind job.Kind, r quota.CloudRepository, spec RunSpec) (job.Run, error) {
	spec.Tenant, spec.Cloud = string(r.TenantID), string(r.ID)
	text, err := json.Marshal(spec)
	return job.Run{Kind: kind, Subject: SubjectOf(string(r.ID)), Exclusive: true, Spec: text}, err
}

func (p *Provider) startImport(ctx context.Context, in *struct {
	CloudPath
	Idempotent
	AcceptLoss bool `query:"accept_loss" doc:"What the catalogue knows and the store has not is really gone, even if that is every point"`
}) (*startedOutput, error) {
	return p.start(ctx, RunImport, in.CloudPath, RunSpec{AcceptLoss: in.AcceptLoss})
}

func (p *Provider) start(ctx context.Context, kind job.Kind, in CloudPath, spec RunSpec) (*startedOutput, error) {
	r, err := p.cloud(ctx, in)
	if err != nil {
		return nil, err
	}
	run, err := RunFor(kind, r, spec)
	if err != nil {
		return nil, err
	}
	if run, err = p.Runs.Create(ctx, run); err != nil {
		return nil, err
	}
	p.Wake()
	return &startedOutput{RunOf(run)}, nil
}

func (p *Provider) listRuns(ctx context.Context, in *RunQuery) (*struct{ Body RunPage }, error) {
	return ListRuns(ctx, p.Runs, tenant.Provider, *in)
}

// ListRuns answers one page of a scope's runs.
func ListRuns(ctx context.Context, runs job.Store, t tenant.ID, q RunQuery) (*struct{ Body RunPage }, error) {
	list, err := runs.List(ctx, job.Query{Tenant: t, Kind: job.Kind(q.Kind), Subject: q.Subject, Open: q.Open, Before: q.Before, Limit: q.Limit})
	if err != nil {
		return nil, err
	}
	page := RunPage{Items: each(list, RunOf)}
	if len(list) == q.Limit {
		page.Next = list[len(list)-1].ID
	}
	return &struct{ Body RunPage }{page}, nil
}

func (p *Provider) getRun(ctx context.Context, in *RunPath) (*startedOutput, error) {
	r, err := p.Runs.Get(ctx, tenant.Provider, in.Run)
	if err != nil {
		return nil, err
	}
	return &startedOutput{RunOf(r)}, nil
}

func (p *Provider) cancelRun(ctx context.Context, in *RunPath) (*startedOutput, error) {
	r, err := p.Runs.RequestCancel(ctx, tenant.Provider, in.Run)
	if err != nil {
		return nil, err
	}
	return &startedOutput{RunOf(r)}, nil
}

// RunEvents are the events of a stream that watches a run.
var RunEvents = map[string]any{"run": Run{}, "problem": gateway.Problem{}}

// watchEvery is how often a watched run is read, keepAlive how often its state
// is sent though nothing changed, so that a dead connection is noticed.
const (
	watchEvery = 500 * time.Millisecond
	keepAlive  = 15 * time.Second
)

// WatchRun sends the state of a run whenever it changes, until it has ended or
// the reader is gone. The run is read from the store, so whichever process
// works on it can be watched from everywhere.
func WatchRun(ctx context.Context, runs job.Store, t tenant.ID, id string, send sse.Sender) {
	tick := time.NewTicker(watchEvery)
	defer tick.Stop()
	var last []byte
	var sent time.Time
	for {
		r, err := runs.Get(ctx, t, id)
		if err != nil {
			if p := new(gateway.Problem); errors.As(refuse(ctx, "watch-run", err), &p) {
				_ = send.Data(*p) // the stream ends either way
			}
			return
		}
		out := RunOf(r)
		text, _ := json.Marshal(out) // a struct of texts and numbers
		if string(text) != string(last) || time.Since(sent) >= keepAlive {
			if send.Data(out) != nil {
				return
			}
			last, sent = text, time.Now()
		}
		if r.State.Final() {
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}
