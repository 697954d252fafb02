package api

import (
	"context"
	"net/http"

	"github.com/danielgtaylor/huma/v2"

	"github.com/holdfast-dr/holdfast/core/agent"
)

type sitePointPath struct {
	Point string `path:"point" minLength:"6" maxLength:"64" doc:"Id, or enough of its start or end"`
}

type sitePointsInput struct {
	Provider   string `query:"provider" maxLength:"128" doc:"Only at this provider"`
	Repository string `query:"repository" maxLength:"128" doc:"Only in this cloud repository"`
	Machine    string `query:"machine" maxLength:"255" doc:"Only of this machine, by name or by its id in points"`
}

type sitePointOutput = struct{ Body agent.PointStatus }

func registerPoints(h huma.API, a *Agent) {
	addLocal(h, huma.Operation{OperationID: "site-list-points", Method: http.MethodGet, Path: "/v1/site/points", Summary: "List points, newest first"},
		func(ctx context.Context, in *sitePointsInput) (*struct{ Body []agent.PointStatus }, error) {
			return siteList(a.Site.Points(ctx, agent.PointQuery{Provider: in.Provider, Repository: in.Repository, Machine: in.Machine}))
		})
	addLocal(h, huma.Operation{OperationID: "site-get-point", Method: http.MethodGet, Path: "/v1/site/points/{point}", Summary: "Show a point"},
		func(ctx context.Context, in *sitePointPath) (*sitePointOutput, error) {
			return siteBody(a.Site.Point(ctx, in.Point))
		})
	addLocal(h, huma.Operation{OperationID: "site-forget-point", Method: http.MethodDelete, Path: "/v1/site/points/{point}",
		DefaultStatus: http.StatusNoContent, Summary: "Give up a point", Description: "Other points keep what they share with it."},
		func(ctx context.Context, in *sitePointPath) (*struct{}, error) {
			return nil, a.Site.ForgetPoint(ctx, in.Point)
		})
}
