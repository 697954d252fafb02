package api

import (
	"context"
	"net/http"

	"github.com/danielgtaylor/huma/v2"

	"github.com/holdfast-dr/holdfast/core/agent"
)

type sitePluginPath struct {
	Plugin string `path:"plugin" maxLength:"64" doc:"Name, such as libvirt"`
}

type siteEnablePluginInput struct {
	Body struct {
		Name string `json:"name" minLength:"1" maxLength:"64" doc:"Such as libvirt, for the program holdfast-plugin-libvirt"`
	}
}

type sitePluginOutput = struct{ Body agent.PluginStatus }

func registerPlugins(h huma.API, a *Agent) {
	addLocal(h, huma.Operation{OperationID: "site-list-plugins", Method: http.MethodGet, Path: "/v1/site/plugins",
		Summary: "List plugins that are installed or enabled"},
		func(ctx context.Context, _ *struct{}) (*struct{ Body []agent.PluginStatus }, error) {
			return siteList(a.Site.InstalledPlugins(ctx))
		})
	addLocal(h, huma.Operation{OperationID: "site-enable-plugin", Method: http.MethodPost, Path: "/v1/site/plugins",
		DefaultStatus: http.StatusCreated, Summary: "Trust a plugin's program as it is now",
		Description: "Pins the SHA-256 of the program, which is compared at every start. Enable it again after an upgrade."},
		func(ctx context.Context, in *siteEnablePluginInput) (*sitePluginOutput, error) {
			return siteBody(a.Site.EnablePlugin(ctx, in.Body.Name))
		})
	addLocal(h, huma.Operation{OperationID: "site-describe-plugin", Method: http.MethodGet, Path: "/v1/site/plugins/{plugin}",
		Summary: "Show an enabled plugin and the settings that it takes"},
		func(ctx context.Context, in *sitePluginPath) (*sitePluginOutput, error) {
			return siteBody(a.Site.DescribePlugin(ctx, in.Plugin))
		})
	addLocal(h, huma.Operation{OperationID: "site-disable-plugin", Method: http.MethodDelete, Path: "/v1/site/plugins/{plugin}",
		DefaultStatus: http.StatusNoContent, Summary: "Trust a plugin no longer", Description: "Refused while an endpoint needs it."},
		func(ctx context.Context, in *sitePluginPath) (*struct{}, error) {
			return nil, a.Site.DisablePlugin(ctx, in.Plugin)
		})
}
