package api

import (
	"context"
	"errors"
	"net"
	"net/http"

	"github.com/danielgtaylor/huma/v2"

	"github.com/holdfast-dr/holdfast/core/agent"
	"github.com/holdfast-dr/holdfast/core/gateway"
	"github.com/holdfast-dr/holdfast/core/pki"
	"github.com/holdfast-dr/holdfast/sdk"
)

// Agent is what the operations of the agent call.
type Agent struct {
	Site *agent.Agent
}

// agentRows has a row for every operation of the agent.
var agentRows = localRows(
	"site-status",
	"site-connect", "site-list-providers", "site-disconnect",
	"site-list-keys", "site-export-kit", "site-accept-kit", "site-decline-kit", "site-import-kit",
	"site-list-plugins", "site-enable-plugin", "site-describe-plugin", "site-disable-plugin", "site-reload-plugin",
	"site-list-plugin-logs", "site-follow-plugin-logs", "site-metrics",
	"site-list-workers", "site-invite-worker", "site-remove-worker", "site-enable-worker-plugin",
	"site-list-endpoints", "site-add-endpoint", "site-delete-endpoint", "site-probe-endpoint", "site-list-machines",
	"site-list-jobs", "site-create-job", "site-get-job", "site-update-job", "site-enable-job", "site-disable-job", "site-delete-job",
	"site-run-job", "site-list-runs", "site-get-run", "site-watch-run", "site-cancel-run",
	"site-list-points", "site-get-point", "site-forget-point", "site-verify-point",
	"site-restore-machine", "site-restore-disk",
)

// localRows is a row for each operation, all of them local: whoever may open
// the socket is the agent's operator.
func localRows(ids ...string) map[string]Row {
	table := make(map[string]Row, len(ids))
	for _, id := range ids {
		table[id] = local
	}
	return table
}

// registerAgent registers the operations of the agent, below /v1/site.
func registerAgent(h huma.API, a *Agent) {
	registerSite(h, a)
	registerKeys(h, a)
	registerPlugins(h, a)
	registerEndpoints(h, a)
	registerWorkers(h, a)
	registerJobs(h, a)
	registerSiteRuns(h, a)
	registerPoints(h, a)
	registerRestores(h, a)
}

// addLocal registers an operation of the agent.
func addLocal[I, O any](h huma.API, op huma.Operation, handler func(context.Context, *I) (*O, error)) {
	op.Tags = append([]string{"site"}, op.Tags...)
	add(h, op, func(ctx context.Context, in *I) (*O, error) {
		out, err := handler(ctx, in)
		if err != nil {
			return nil, localProblem(err)
		}
		return out, nil
	})
}

// siteBody is an answer with a body.
func siteBody[T any](v T, err error) (*struct{ Body T }, error) {
	if err != nil {
		return nil, err
	}
	return &struct{ Body T }{v}, nil
}

// siteList is an answer with a list, which is never null.
func siteList[T any](v []T, err error) (*struct{ Body []T }, error) {
	if v == nil {
		v = []T{}
	}
	return siteBody(v, err)
}

// backEnd is how a plugin's sentinels look to people at the site.
var backEnd = []struct {
	kind   error
	status int
	code   gateway.Code
}{
	{sdk.ErrNotFound, http.StatusNotFound, gateway.CodeNotFound},
	{sdk.ErrInvalid, http.StatusUnprocessableEntity, gateway.CodeInvalid},
	{sdk.ErrUnsupported, http.StatusConflict, gateway.CodeNotAvailable},
	{sdk.ErrDenied, http.StatusForbidden, gateway.CodeDenied},
	{sdk.ErrBusy, http.StatusServiceUnavailable, gateway.CodeBusy},
	{sdk.ErrUnavailable, http.StatusServiceUnavailable, gateway.CodeUnavailable},
	{sdk.ErrPending, http.StatusServiceUnavailable, gateway.CodeBusy},
}

// localProblem is an error as the agent's operator reads it. Unlike a
// provider's callers, the operator may know everything, so the text of an error
// that no table knows is shown.
func localProblem(err error) *gateway.Problem {
	if e, ok := errors.AsType[*agent.RefusedError](err); ok {
		return gateway.NewProblem(http.StatusConflict, gateway.CodeConflict, err.Error()).WithHint(e.Hint())
	}
	if e, ok := errors.AsType[*pki.UntrustedError](err); ok {
		return gateway.NewProblem(http.StatusBadGateway, gateway.CodeCertificate, e.Error()).WithHint(e.Hint())
	}
	for _, b := range backEnd {
		if errors.Is(err, b.kind) {
			return gateway.NewProblem(b.status, b.code, err.Error()).WithHint(hintOf(err))
		}
	}
	p := *problemOf(err)
	if e, ok := errors.AsType[*net.OpError](err); ok && p.Code == gateway.CodeInternal {
		p = *gateway.NewProblem(http.StatusServiceUnavailable, gateway.CodeUnavailable, err.Error())
		p.Hint = "check the address and the network; is " + addressOf(e) + " up?"
	}
	if p.Code == gateway.CodeInternal || p.Code == gateway.CodeUnavailable {
		p.Detail = err.Error()
		if hint := hintOf(err); hint != "" || p.Code == gateway.CodeInternal {
			p.Hint = hint
		}
	}
	return &p
}

func addressOf(e *net.OpError) string {
	if e.Addr == nil {
		return "it"
	}
	return e.Addr.String()
}

func hintOf(err error) string {
	if hint := sdk.HintOf(err); hint != "" {
		return hint
	}
	return gateway.HintOf(err)
}
