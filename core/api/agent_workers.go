package api

import (
	"context"
	"net/http"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/holdfast-dr/holdfast/core/agent"
)

type siteWorkerPath struct {
	Worker string `path:"worker" maxLength:"128" doc:"Name or id"`
}

type siteInviteWorkerInput struct {
	Body struct {
		Name         string `json:"name" minLength:"1" maxLength:"64" doc:"Of a new worker, or of one that enrols again" example:"kvm1"`
		ExpiresHours int    `json:"expires_hours,omitempty" minimum:"1" maximum:"720" doc:"How long the token is good for; a day if left out"`
	}
}

type siteEnableWorkerPluginInput struct {
	Worker string `path:"worker" maxLength:"128" doc:"Name or id"`
	Body   struct {
		Name string `json:"name" minLength:"1" maxLength:"64" doc:"Such as libvirt, for the program holdfast-plugin-libvirt" example:"libvirt"`
	}
}

func registerWorkers(h huma.API, a *Agent) {
	addLocal(h, huma.Operation{OperationID: "site-list-workers", Method: http.MethodGet, Path: "/v1/site/workers",
		Summary: "List the other machines that run plugins for the site"},
		func(ctx context.Context, _ *struct{}) (*struct{ Body []agent.WorkerStatus }, error) {
			return siteList(a.Site.ListWorkers(ctx))
		})
	addLocal(h, huma.Operation{OperationID: "site-invite-worker", Method: http.MethodPost, Path: "/v1/site/workers",
		DefaultStatus: http.StatusCreated, Summary: "Invite a worker",
		Description: "Makes a one-time token, which is shown once. It is bound to the first key that shows it; repeating the enrolment after a lost answer works with the same token. " +
			"For a worker that exists, what enrolled before goes on until the new token is used."},
		func(ctx context.Context, in *siteInviteWorkerInput) (*struct{ Body agent.WorkerInvitation }, error) {
			return siteBody(a.Site.InviteWorker(ctx, in.Body.Name, time.Duration(in.Body.ExpiresHours)*time.Hour))
		})
	addLocal(h, huma.Operation{OperationID: "site-remove-worker", Method: http.MethodDelete, Path: "/v1/site/workers/{worker}",
		DefaultStatus: http.StatusNoContent, Summary: "Forget a worker and cut it off at once",
		Description: "Endpoints that name it go on with their other workers, or fail until it is invited again."},
		func(ctx context.Context, in *siteWorkerPath) (*struct{}, error) {
			return nil, a.Site.RemoveWorker(ctx, in.Worker)
		})
	addLocal(h, huma.Operation{OperationID: "site-enable-worker-plugin", Method: http.MethodPost, Path: "/v1/site/workers/{worker}/plugins",
		DefaultStatus: http.StatusCreated, Summary: "Trust a plugin's program as it is now on a worker",
		Description: "Pins its SHA-256 for the worker's architecture: every machine of that architecture starts that build from then on. " +
			"A plugin that is enabled at the agent needs this only where the worker has another architecture, or the agent does not have the plugin."},
		func(ctx context.Context, in *siteEnableWorkerPluginInput) (*struct{ Body agent.WorkerPlugin }, error) {
			return siteBody(a.Site.EnableWorkerPlugin(ctx, in.Worker, in.Body.Name))
		})
}
