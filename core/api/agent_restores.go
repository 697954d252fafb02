package api

import (
	"context"
	"net/http"

	"github.com/danielgtaylor/huma/v2"

	"github.com/holdfast-dr/holdfast/core/agent"
)

func registerRestores(h huma.API, a *Agent) {
	addLocal(h, huma.Operation{OperationID: "site-restore-machine", Method: http.MethodPost, Path: "/v1/site/restores/machine",
		DefaultStatus: http.StatusAccepted, Summary: "Restore a machine", Description: "Answers the run, to be watched."},
		func(ctx context.Context, in *struct{ Body agent.MachineRestore }) (*siteRunOutput, error) {
			return siteBody(a.Site.RestoreMachine(ctx, in.Body))
		})
	addLocal(h, huma.Operation{OperationID: "site-restore-disk", Method: http.MethodPost, Path: "/v1/site/restores/disk",
		DefaultStatus: http.StatusAccepted, Summary: "Restore a disk to a file on the agent's machine", Description: "Answers the run, to be watched."},
		func(ctx context.Context, in *struct{ Body agent.DiskRestore }) (*siteRunOutput, error) {
			return siteBody(a.Site.RestoreDisk(ctx, in.Body))
		})
	addLocal(h, huma.Operation{OperationID: "site-verify-point", Method: http.MethodPost, Path: "/v1/site/points/{point}/verify",
		DefaultStatus: http.StatusAccepted, Summary: "Fetch, open and hash every chunk of a point",
		Description: "Answers the run, to be watched. Damage is sent again by the next backup of a machine that still has the blocks."},
		func(ctx context.Context, in *sitePointPath) (*siteRunOutput, error) {
			return siteBody(a.Site.VerifyPoint(ctx, agent.VerifyRequest{Point: in.Point}))
		})
}
