package api

import (
	"context"
	"net/http"

	"github.com/danielgtaylor/huma/v2"

	"github.com/holdfast-dr/holdfast/core/agent"
)

type siteProviderPath struct {
	Provider string `path:"provider" maxLength:"128" doc:"Name or id of the provider at this site"`
}

func registerSite(h huma.API, a *Agent) {
	addLocal(h, huma.Operation{OperationID: "site-status", Method: http.MethodGet, Path: "/v1/site",
		Summary: "Show the site at a glance", Description: "Says what to do next, in order, until backups run."},
		func(ctx context.Context, _ *struct{}) (*struct{ Body agent.SiteStatus }, error) {
			return siteBody(a.Site.Status(ctx))
		})
	addLocal(h, huma.Operation{OperationID: "site-list-providers", Method: http.MethodGet, Path: "/v1/site/providers",
		Summary: "List the providers that the site is connected to"},
		func(ctx context.Context, _ *struct{}) (*struct{ Body []agent.ConnectionStatus }, error) {
			return siteList(a.Site.Connections(ctx))
		})
	addLocal(h, huma.Operation{OperationID: "site-connect", Method: http.MethodPost, Path: "/v1/site/providers",
		DefaultStatus: http.StatusCreated, Summary: "Connect the site to a provider",
		Description: "Checks the provider's fingerprint before the token is sent. Repeating it after a lost answer works with the same token."},
		func(ctx context.Context, in *struct{ Body agent.ConnectRequest }) (*struct{ Body agent.ConnectionStatus }, error) {
			return siteBody(a.Site.Connect(ctx, in.Body))
		})
	addLocal(h, huma.Operation{OperationID: "site-disconnect", Method: http.MethodDelete, Path: "/v1/site/providers/{provider}",
		DefaultStatus: http.StatusNoContent, Summary: "Forget a provider", Description: "Nothing changes at the provider."},
		func(ctx context.Context, in *siteProviderPath) (*struct{}, error) {
			return nil, a.Site.Disconnect(ctx, in.Provider)
		})
}
