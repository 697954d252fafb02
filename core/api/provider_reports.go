package api

import (
	"context"
	"net/http"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/holdfast-dr/holdfast/core/gateway"
	"github.com/holdfast-dr/holdfast/core/tenant"
)

// SiteRun is a run at a tenant's site, as its agent last told of it.
type SiteRun struct {
	Run        string     `json:"run"`
	Agent      string     `json:"agent" doc:"Id of the agent"`
	Kind       string     `json:"kind" example:"backup"`
	Job        string     `json:"job" doc:"What the site calls the job; of a restore or a verification the id of its point"`
	State      string     `json:"state" enum:"waiting,running,succeeded,warned,failed,cancelled"`
	Machines   int        `json:"machines" doc:"That have ended"`
	DoneBytes  int64      `json:"done_bytes"`
	TotalBytes int64      `json:"total_bytes"`
	SentBytes  int64      `json:"sent_bytes" doc:"Sealed bytes that a backup sent, or that a restore or a verification fetched"`
	Bottleneck string     `json:"bottleneck,omitempty"`
	Failure    string     `json:"failure,omitempty"`
	Side       string     `json:"side,omitempty" doc:"Where the cause lies: tenant or provider"`
	Started    time.Time  `json:"started"`
	Ended      *time.Time `json:"ended,omitempty"`
	Received   time.Time  `json:"received" doc:"When the agent last told of it"`
}

func siteRunOf(r gateway.Report) SiteRun {
	e := r.Event
	return SiteRun{Run: r.Run, Agent: r.Agent, Kind: e.Kind, Job: e.Job, State: e.State, Machines: e.Machines, DoneBytes: e.DoneBytes,
		TotalBytes: e.TotalBytes, SentBytes: e.SentBytes, Bottleneck: e.Bottleneck, Failure: e.Failure, Side: e.Side,
		Started: e.Started.UTC(), Ended: e.Ended, Received: r.Received.UTC()}
}

// Traffic is what moved between this server and a tenant's agents.
type Traffic struct {
	Since         time.Time `json:"since" doc:"When this server started"`
	ReceivedBytes int64     `json:"received_bytes" doc:"From the agents' connections, everything included"`
	SentBytes     int64     `json:"sent_bytes" doc:"The other way"`
	PutBytes      int64     `json:"put_bytes" doc:"Of sealed chunks and map pages that arrived"`
	NewBytes      int64     `json:"new_bytes" doc:"Of those, what was not there yet"`
	ReadBytes     int64     `json:"read_bytes" doc:"Of sealed chunks and map pages that agents fetched"`
}

type listSiteRunsInput struct {
	TenantPath
	Before time.Time `query:"before" doc:"Only runs that started before this moment"`
	Limit  int       `query:"limit" minimum:"1" maximum:"1000" default:"100"`
}

func registerReports(h huma.API, p *Provider) {
	add(h, huma.Operation{OperationID: "list-site-runs", Method: http.MethodGet, Path: "/v1/tenants/{tenant}/runs", Tags: []string{"agents"},
		Summary: "List the runs that a tenant's agents report", Description: "Newest first. What a site says of itself: a failure at the site is a failure here."}, p.listSiteRuns)
	add(h, huma.Operation{OperationID: "get-traffic", Method: http.MethodGet, Path: "/v1/tenants/{tenant}/traffic", Tags: []string{"agents"},
		Summary: "Show what moved between this server and a tenant's agents", Description: "Counted at this server's sockets and sessions since it started."}, p.getTraffic)
}

func (p *Provider) getTraffic(ctx context.Context, in *TenantPath) (*struct{ Body Traffic }, error) {
	if _, err := p.Tenants.Get(ctx, tenant.ID(in.Tenant)); err != nil {
		return nil, err
	}
	t := p.Traffic(tenant.ID(in.Tenant))
	return &struct{ Body Traffic }{Traffic{Since: p.Status(ctx).Started, ReceivedBytes: t.ReceivedBytes, SentBytes: t.SentBytes,
		PutBytes: t.PutBytes, NewBytes: t.NewBytes, ReadBytes: t.ReadBytes}}, nil
}

func (p *Provider) listSiteRuns(ctx context.Context, in *listSiteRunsInput) (*struct{ Body []SiteRun }, error) {
	all, err := p.Reports.List(ctx, tenant.ID(in.Tenant), in.Before, in.Limit)
	if err != nil {
		return nil, err
	}
	return &struct{ Body []SiteRun }{each(all, siteRunOf)}, nil
}
