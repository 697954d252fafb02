package api

import (
	"context"
	"net/http"

	"github.com/danielgtaylor/huma/v2"

	"github.com/holdfast-dr/holdfast/core/agent"
)

// SiteJobPath names a job of the site.
type SiteJobPath struct {
	Job string `path:"job" maxLength:"128" doc:"Name or id"`
}

type siteUpdateJobInput struct {
	SiteJobPath
	Body agent.JobSpec
}

type siteJobOutput = struct{ Body agent.JobStatus }

func registerJobs(h huma.API, a *Agent) {
	addLocal(h, huma.Operation{OperationID: "site-list-jobs", Method: http.MethodGet, Path: "/v1/site/jobs", Summary: "List jobs"},
		func(ctx context.Context, _ *struct{}) (*struct{ Body []agent.JobStatus }, error) {
			return siteList(a.Site.Jobs(ctx))
		})
	addLocal(h, huma.Operation{OperationID: "site-create-job", Method: http.MethodPost, Path: "/v1/site/jobs",
		DefaultStatus: http.StatusCreated, Summary: "Create a job", Description: "What it names has to exist."},
		func(ctx context.Context, in *struct{ Body agent.JobSpec }) (*siteJobOutput, error) {
			return siteBody(a.Site.CreateJob(ctx, in.Body))
		})
	addLocal(h, huma.Operation{OperationID: "site-get-job", Method: http.MethodGet, Path: "/v1/site/jobs/{job}", Summary: "Show a job"},
		func(ctx context.Context, in *SiteJobPath) (*siteJobOutput, error) {
			return siteBody(a.Site.Job(ctx, in.Job))
		})
	addLocal(h, huma.Operation{OperationID: "site-update-job", Method: http.MethodPut, Path: "/v1/site/jobs/{job}", Summary: "Replace a job's settings"},
		func(ctx context.Context, in *siteUpdateJobInput) (*siteJobOutput, error) {
			return siteBody(a.Site.UpdateJob(ctx, in.Job, in.Body))
		})
	addLocal(h, huma.Operation{OperationID: "site-enable-job", Method: http.MethodPost, Path: "/v1/site/jobs/{job}/enable",
		Summary: "Let the schedule start a job"},
		func(ctx context.Context, in *SiteJobPath) (*siteJobOutput, error) {
			return siteBody(a.Site.EnableJob(ctx, in.Job, true))
		})
	addLocal(h, huma.Operation{OperationID: "site-disable-job", Method: http.MethodPost, Path: "/v1/site/jobs/{job}/disable",
		Summary: "Keep the schedule from starting a job", Description: "By hand it still runs."},
		func(ctx context.Context, in *SiteJobPath) (*siteJobOutput, error) {
			return siteBody(a.Site.EnableJob(ctx, in.Job, false))
		})
	addLocal(h, huma.Operation{OperationID: "site-delete-job", Method: http.MethodDelete, Path: "/v1/site/jobs/{job}",
		DefaultStatus: http.StatusNoContent, Summary: "Delete a job", Description: "The points that it made stay."},
		func(ctx context.Context, in *SiteJobPath) (*struct{}, error) {
			return nil, a.Site.DeleteJob(ctx, in.Job)
		})
	addLocal(h, huma.Operation{OperationID: "site-run-job", Method: http.MethodPost, Path: "/v1/site/jobs/{job}/runs",
		DefaultStatus: http.StatusAccepted, Summary: "Start a job now", Description: "Answers the run, to be watched."},
		func(ctx context.Context, in *SiteJobPath) (*siteRunOutput, error) {
			return siteBody(a.Site.RunJob(ctx, in.Job, agent.ByHand))
		})
}
