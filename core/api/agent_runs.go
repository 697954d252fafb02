package api

import (
	"context"
	"net/http"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/sse"

	"github.com/holdfast-dr/holdfast/core/agent"
	"github.com/holdfast-dr/holdfast/core/gateway"
)

type siteRunPath struct {
	Run string `path:"run" maxLength:"64" doc:"Id, or last"`
}

type siteRunsInput struct {
	Job    string `query:"job" maxLength:"128" doc:"Only runs of this job, by name or id"`
	Before string `query:"before" maxLength:"64" doc:"Continue after this run of the page before"`
	Limit  int    `query:"limit" minimum:"1" maximum:"1000" default:"50"`
}

type siteRunOutput = struct{ Body agent.RunStatus }

func registerSiteRuns(h huma.API, a *Agent) {
	addLocal(h, huma.Operation{OperationID: "site-list-runs", Method: http.MethodGet, Path: "/v1/site/runs", Summary: "List runs, newest first"},
		func(ctx context.Context, in *siteRunsInput) (*struct{ Body []agent.RunStatus }, error) {
			return siteList(a.Site.RunsOf(ctx, in.Job, in.Before, in.Limit))
		})
	addLocal(h, huma.Operation{OperationID: "site-get-run", Method: http.MethodGet, Path: "/v1/site/runs/{run}", Summary: "Show a run"},
		func(ctx context.Context, in *siteRunPath) (*siteRunOutput, error) {
			return siteBody(a.Site.Run(ctx, in.Run))
		})
	addLocal(h, huma.Operation{OperationID: "site-cancel-run", Method: http.MethodPost, Path: "/v1/site/runs/{run}/cancel",
		DefaultStatus: http.StatusAccepted, Summary: "Ask a run to stop", Description: "What arrived at the provider stays there for the next run to find."},
		func(ctx context.Context, in *siteRunPath) (*siteRunOutput, error) {
			return siteBody(a.Site.CancelRun(ctx, in.Run))
		})
	addEvents(h, huma.Operation{OperationID: "site-watch-run", Method: http.MethodGet, Path: "/v1/site/runs/{run}/events", Tags: []string{"site"},
		Summary:     "Watch a run",
		Description: "Sends the run as it is now and after each change, and ends after its final state.",
		Middlewares: huma.Middlewares{a.findRun}},
		map[string]any{"run": agent.RunStatus{}, "problem": gateway.Problem{}},
		func(ctx context.Context, in *siteRunPath, send sse.Sender) {
			err := a.Site.WatchRun(ctx, in.Run, func(run agent.RunStatus) error { return send.Data(run) })
			if err != nil && ctx.Err() == nil {
				_ = send.Data(*localProblem(err)) // a reader that is gone learns nothing
			}
		})
}

// findRun refuses to stream a run that does not exist: a stream's status is
// sent before its handler is called.
func (a *Agent) findRun(ctx huma.Context, next func(huma.Context)) {
	if _, err := a.Site.Run(ctx.Context(), ctx.Param("run")); err != nil {
		writeProblem(ctx, localProblem(err))
		return
	}
	next(ctx)
}
