package api

import (
	"context"
	"net/http"
	"strings"

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

type sitePointsOutput struct {
	Incomplete string `header:"Holdfast-Incomplete" doc:"Why points may be missing; absent if none is"`
	Body       []agent.PointStatus
}

type sitePointOutput = struct{ Body agent.PointStatus }

func registerPoints(h huma.API, a *Agent) {
	addLocal(h, huma.Operation{OperationID: "site-list-points", Method: http.MethodGet, Path: "/v1/site/points", Summary: "List points, newest first",
		Description: "A provider that cannot be reached does not hide the points of the others."},
		func(ctx context.Context, in *sitePointsInput) (*sitePointsOutput, error) {
			points, err := a.Site.Points(ctx, agent.PointQuery{Provider: in.Provider, Repository: in.Repository, Machine: in.Machine})
			out := &sitePointsOutput{Body: points}
			switch {
			case err == nil:
			case len(points) == 0:
				return nil, err
			default:
				out.Incomplete = strings.ReplaceAll(localProblem(err).Error(), "\n", "; ")
			}
			return out, nil
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
