package api

import (
	"bytes"
	"context"
	"net/http"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/sse"

	"github.com/holdfast-dr/holdfast/core/agent"
	"github.com/holdfast-dr/holdfast/core/gateway"
	"github.com/holdfast-dr/holdfast/core/host"
)

type sitePluginPath struct {
	Plugin string `path:"plugin" maxLength:"64" doc:"Name, such as libvirt"`
}

type siteEnablePluginInput struct {
	Body struct {
		Name   string             `json:"name" minLength:"1" maxLength:"64" doc:"Such as libvirt, for the program holdfast-plugin-libvirt"`
		Policy *host.PluginPolicy `json:"policy,omitempty" doc:"How closely its processes are kept from their next start on; without it, as before"`
	}
}

type siteReloadPluginInput struct {
	Plugin string `path:"plugin" maxLength:"64" doc:"Name, such as libvirt"`
	Body   struct {
		DrainSeconds int64 `json:"drain_seconds,omitempty" minimum:"-1" maximum:"604800" doc:"How long those who use the version before may keep it; 0 is four hours, -1 moves them at once"`
		Force        bool  `json:"force,omitempty" doc:"Leave out the trial of the new version, such as when the back-end is down"`
	}
}

type sitePluginLogsInput struct {
	Plugin   string `path:"plugin" maxLength:"64" doc:"Name, such as libvirt"`
	Endpoint string `query:"endpoint" maxLength:"128" doc:"Only lines about this endpoint, by name"`
	After    uint64 `query:"after" doc:"Only lines after this sequence"`
	Limit    int    `query:"limit" minimum:"1" maximum:"2000" default:"200" doc:"The newest so many"`
}

func (in *sitePluginLogsInput) request() host.LogRequest {
	return host.LogRequest{Plugin: in.Plugin, Endpoint: in.Endpoint, After: in.After, Limit: in.Limit}
}

type siteMetricsOutput struct {
	ContentType string `header:"Content-Type"`
	Body        []byte
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
		Description: "Pins the SHA-256 of the program, which is compared at every start, and ends a quarantine. " +
			"Processes that run go on; reload the plugin to change them."},
		func(ctx context.Context, in *siteEnablePluginInput) (*sitePluginOutput, error) {
			return siteBody(a.Site.EnablePlugin(ctx, in.Body.Name, in.Body.Policy))
		})
	addLocal(h, huma.Operation{OperationID: "site-describe-plugin", Method: http.MethodGet, Path: "/v1/site/plugins/{plugin}",
		Summary: "Show an enabled plugin, how it stands with it, and the settings that it takes"},
		func(ctx context.Context, in *sitePluginPath) (*sitePluginOutput, error) {
			return siteBody(a.Site.DescribePlugin(ctx, in.Plugin))
		})
	addLocal(h, huma.Operation{OperationID: "site-disable-plugin", Method: http.MethodDelete, Path: "/v1/site/plugins/{plugin}",
		DefaultStatus: http.StatusNoContent, Summary: "Trust a plugin no longer", Description: "Refused while an endpoint needs it."},
		func(ctx context.Context, in *sitePluginPath) (*struct{}, error) {
			return nil, a.Site.DisablePlugin(ctx, in.Plugin)
		})
	addLocal(h, huma.Operation{OperationID: "site-reload-plugin", Method: http.MethodPost, Path: "/v1/site/plugins/{plugin}/reload",
		Summary: "Change to a plugin's program as it is now, while jobs run",
		Description: "The new version is tried beside the old one at every endpoint that runs it. If it fails at one, all stays as it was. " +
			"Otherwise it is trusted, new work gets it, and those who use the old one keep it until they are done or the drain is over. " +
			"The plugin's endpoints show how that goes on."},
		func(ctx context.Context, in *siteReloadPluginInput) (*struct{ Body host.Reloaded }, error) {
			return siteBody(a.Site.ReloadPlugin(ctx, host.ReloadRequest{
				Plugin: in.Plugin, Drain: time.Duration(in.Body.DrainSeconds) * time.Second, Force: in.Body.Force,
			}))
		})
	addLocal(h, huma.Operation{OperationID: "site-list-plugin-logs", Method: http.MethodGet, Path: "/v1/site/plugins/{plugin}/logs",
		Summary: "Show what a plugin logged last", Description: "The newest lines are kept in memory: what the plugin logs, and what Holdfast notes about it, such as calls that failed."},
		func(ctx context.Context, in *sitePluginLogsInput) (*struct{ Body []host.LogLine }, error) {
			return siteList(a.Site.PluginLogs(ctx, in.request()))
		})
	addEvents(h, huma.Operation{OperationID: "site-follow-plugin-logs", Method: http.MethodGet, Path: "/v1/site/plugins/{plugin}/logs/events", Tags: []string{"site"},
		Summary:     "Follow what a plugin logs",
		Description: "Sends the lines that are there and those that come, until the reader leaves. A reader that is too slow misses lines, which the sequence shows.",
		Middlewares: huma.Middlewares{a.findPlugin}},
		map[string]any{"line": host.LogLine{}, "problem": gateway.Problem{}},
		func(ctx context.Context, in *sitePluginLogsInput, send sse.Sender) {
			err := a.Site.FollowPluginLogs(ctx, in.request(), func(l host.LogLine) error { return send.Data(l) })
			if err != nil && ctx.Err() == nil {
				_ = send.Data(*localProblem(err)) // a reader that is gone learns nothing
			}
		})
	addLocal(h, huma.Operation{OperationID: "site-metrics", Method: http.MethodGet, Path: "/v1/site/metrics",
		Summary: "What the site's plugins did, for Prometheus", Description: "Text in Prometheus's exposition format, version 0.0.4."},
		func(ctx context.Context, _ *struct{}) (*siteMetricsOutput, error) {
			var text bytes.Buffer
			if err := a.Site.WriteMetrics(ctx, &text); err != nil {
				return nil, err
			}
			return &siteMetricsOutput{ContentType: "text/plain; version=0.0.4; charset=utf-8", Body: text.Bytes()}, nil
		})
}

// findPlugin refuses to stream the log of a plugin that is not enabled: a
// stream's status is sent before its handler is called.
func (a *Agent) findPlugin(ctx huma.Context, next func(huma.Context)) {
	if _, err := a.Site.PluginLogs(ctx.Context(), host.LogRequest{Plugin: ctx.Param("plugin"), Limit: 1}); err != nil {
		writeProblem(ctx, localProblem(err))
		return
	}
	next(ctx)
}
