package api

import (
	"context"
	"net/http"

	"github.com/danielgtaylor/huma/v2"

	"github.com/holdfast-dr/holdfast/core/agent"
)

type siteEndpointPath struct {
	Endpoint string `path:"endpoint" maxLength:"128" doc:"Name or id"`
}

type siteMachinesInput struct {
	Endpoint string `query:"endpoint" maxLength:"128" doc:"Name or id; all endpoints if left out"`
	Fresh    bool   `query:"fresh" doc:"Ask the hypervisor now, also where its changes are followed as they happen"`
}

func registerEndpoints(h huma.API, a *Agent) {
	addLocal(h, huma.Operation{OperationID: "site-list-endpoints", Method: http.MethodGet, Path: "/v1/site/endpoints", Summary: "List endpoints"},
		func(ctx context.Context, _ *struct{}) (*struct{ Body []agent.EndpointStatus }, error) {
			return siteList(a.Site.Endpoints(ctx))
		})
	addLocal(h, huma.Operation{OperationID: "site-add-endpoint", Method: http.MethodPost, Path: "/v1/site/endpoints",
		DefaultStatus: http.StatusCreated, Summary: "Add an endpoint",
		Description: "Asks the plugin first whether the settings can be used. Secrets in them are sealed at rest and never shown."},
		func(ctx context.Context, in *struct{ Body agent.EndpointSpec }) (*struct{ Body agent.EndpointStatus }, error) {
			return siteBody(a.Site.AddEndpoint(ctx, in.Body))
		})
	addLocal(h, huma.Operation{OperationID: "site-delete-endpoint", Method: http.MethodDelete, Path: "/v1/site/endpoints/{endpoint}",
		DefaultStatus: http.StatusNoContent, Summary: "Forget an endpoint that no job uses"},
		func(ctx context.Context, in *siteEndpointPath) (*struct{}, error) {
			return nil, a.Site.DeleteEndpoint(ctx, in.Endpoint)
		})
	addLocal(h, huma.Operation{OperationID: "site-probe-endpoint", Method: http.MethodPost, Path: "/v1/site/endpoints/{endpoint}/probe",
		Summary: "Say what works at an endpoint now, and why not"},
		func(ctx context.Context, in *siteEndpointPath) (*struct{ Body agent.ProbeResult }, error) {
			return siteBody(a.Site.ProbeEndpoint(ctx, in.Endpoint))
		})
	addLocal(h, huma.Operation{OperationID: "site-list-machines", Method: http.MethodGet, Path: "/v1/site/machines",
		Summary: "List the machines of an endpoint, or of all"},
		func(ctx context.Context, in *siteMachinesInput) (*struct{ Body []agent.MachineStatus }, error) {
			return siteList(a.Site.Machines(ctx, in.Endpoint, in.Fresh))
		})
}
