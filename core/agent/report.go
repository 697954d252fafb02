package agent

import (
	"context"
	"encoding/json"
	"strings"
	"sync"
	"time"

	"github.com/holdfast-dr/holdfast/core/gateway"
	"github.com/holdfast-dr/holdfast/core/job"
)

const (
	// reportRetry is how soon the end of a run is told again that did not arrive.
	reportRetry = 30 * time.Second
	// reportBack is how old ends are that are still told, and maxReports how many
	// at once; a restarted agent does not know which of them had arrived.
	reportBack = 7 * 24 * time.Hour
	maxReports = 500
	// maxReportText and maxReportName keep a report within what a provider takes.
	maxReportText = 2000
	maxReportName = 200
)

// reports remembers which ends of runs their providers have heard.
type reports struct {
	mu    sync.Mutex // guards the field below
	heard map[string]bool
}

// note remembers that a provider has heard how a run ended.
func (r *reports) note(run string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.heard == nil {
		r.heard = map[string]bool{}
	}
	r.heard[run] = true
}

func (r *reports) has(run string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.heard[run]
}

// keepOnly forgets what is not among these runs.
func (r *reports) keepOnly(runs []job.Run) {
	r.mu.Lock()
	defer r.mu.Unlock()
	kept := make(map[string]bool, len(runs))
	for _, run := range runs {
		if r.heard[run.ID] {
			kept[run.ID] = true
		}
	}
	r.heard = kept
}

// keepReports tells providers how runs go and how they ended. A backup tells it
// itself; what of its end did not arrive then, because nobody answered, because
// the agent died, or because the run ended before it began, is told here. So a
// provider does not take a failed backup for one that goes on, or for none. Of
// restores and verifications everything is told here.
func (a *Agent) keepReports(ctx context.Context) error {
	for {
		settled := a.settled.heard() // before the runs are read, so that no end falls between
		open, err := a.reportRuns(ctx)
		if err != nil && ctx.Err() == nil {
			a.Log.WarnContext(ctx, "report how runs go", "error", err)
		}
		wait := reportRetry
		if open {
			wait = reportEvery
		}
		if !pause(ctx, wait, settled) {
			return nil
		}
	}
}

// reportRuns tells what is due, and whether there is a run of which more is to
// be told soon.
func (a *Agent) reportRuns(ctx context.Context) (open bool, err error) {
	runs, err := a.Runs.List(ctx, job.Query{All: true, Limit: maxReports})
	if err != nil {
		return false, err
	}
	a.reports.keepOnly(runs)
	silent := map[string]bool{} // connections on which nobody answers just now
	for _, run := range runs {
		if !run.State.Final() && run.Kind == RunBackup {
			continue // it speaks for itself
		}
		if run.State.Final() && (run.Ended.Before(a.now().Add(-reportBack)) || a.reports.has(run.ID)) {
			continue
		}
		open = open || !run.State.Final()
		conn, name, ok := a.reportTo(ctx, run)
		if !ok { // the job or the provider is gone
			a.reports.note(run.ID)
			continue
		}
		if silent[conn.ID] {
			continue
		}
		if err := a.report(ctx, conn, run.ID, eventOf(run, name, a.now())); err != nil {
			a.Log.DebugContext(ctx, "report how a run goes", "run", run.ID, "error", err)
			silent[conn.ID] = true
			continue
		}
		if run.State.Final() {
			a.reports.note(run.ID)
		}
	}
	return open, nil
}

// reportTo finds the provider of a run, and what the provider calls it: names of
// machines stay at the site, so a restore is known by its point.
func (a *Agent) reportTo(ctx context.Context, run job.Run) (conn Connection, name string, ok bool) {
	var spec runSpec
	if err := json.Unmarshal(run.Spec, &spec); err != nil {
		return Connection{}, "", false
	}
	if spec.Connection != "" {
		conn, err := a.connection(ctx, spec.Connection)
		return conn, spec.point(), err == nil && conn.AgentID != ""
	}
	j, err := a.job(ctx, spec.Job)
	if err != nil {
		return Connection{}, "", false
	}
	conn, err = a.connection(ctx, j.ConnectionID)
	return conn, j.Name, err == nil && conn.AgentID != ""
}

// report sends one event.
func (a *Agent) report(ctx context.Context, conn Connection, run string, e gateway.RunEvent) error {
	wire, err := a.wire(conn)
	if err != nil {
		return err
	}
	return sendReport(ctx, wire, run, e)
}

func sendReport(ctx context.Context, wire Wire, run string, e gateway.RunEvent) error {
	e.Job, e.Failure = shortened(e.Job, maxReportName), shortened(e.Failure, maxReportText)
	ctx, cancel := context.WithTimeout(ctx, siteTimeout)
	defer cancel()
	return wire.ReportRun(ctx, run, e)
}

// shortened cuts a text that is longer than so many bytes, between characters.
func shortened(s string, limit int) string {
	if len(s) <= limit {
		return s
	}
	return strings.ToValidUTF8(s[:limit-len("…")], "") + "…"
}

// eventOf is the report of a run as it is written down.
func eventOf(run job.Run, name string, now time.Time) gateway.RunEvent {
	status := runStatus(run)
	e := gateway.RunEvent{Sequence: now.UnixMicro(), Kind: string(run.Kind), Job: name, State: string(run.State), Started: run.Started,
		DoneBytes: status.Progress.DoneBytes, TotalBytes: status.Progress.TotalBytes, Bottleneck: status.Progress.Bottleneck, Machines: len(status.Machines)}
	if run.State.Final() {
		ended := run.Ended
		e.Ended = &ended
	} else {
		e.Rate = status.Progress.Rate
	}
	if e.Started.IsZero() { // it never began
		e.Started = run.Created
	}
	for _, m := range status.Machines {
		e.SentBytes += m.StoredBytes
	}
	if r := status.Restored; r != nil {
		e.SentBytes = r.FetchedBytes
	}
	if v := status.Verified; v != nil {
		e.SentBytes = v.FetchedBytes
	}
	if run.Failure != nil {
		e.Failure, e.Side = run.Failure.Message, run.Failure.Side
	}
	return e
}
