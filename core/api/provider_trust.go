package api

import (
	"context"
	"net/http"
	"time"

	"github.com/danielgtaylor/huma/v2"
)

// Session is one backup on its way into a cloud repository, or what it was:
// every record that it brought carries its id.
type Session struct {
	ID         string     `json:"id"`
	Agent      string     `json:"agent,omitempty" doc:"Id of the agent; absent if it is not known who brought what it did"`
	Machine    string     `json:"machine,omitempty"`
	Began      time.Time  `json:"began"`
	Ended      *time.Time `json:"ended,omitempty" doc:"Absent while it is open"`
	Distrusted *time.Time `json:"distrusted,omitempty" doc:"Since when its chunks do not count; absent while they do"`
}

// SessionPage is a part of a list of sessions, in the order in which they began.
type SessionPage struct {
	Items []Session `json:"items"`
	Next  string    `json:"next,omitempty" doc:"Pass it as after to continue; absent at the end"`
}

// SessionQuery selects sessions.
type SessionQuery struct {
	Agent      string `query:"agent" maxLength:"64"`
	Distrusted bool   `query:"distrusted" doc:"Only sessions that are distrusted"`
	After      string `query:"after" maxLength:"64"`
	Limit      int    `query:"limit" minimum:"1" maximum:"999" default:"200"`
}

// DistrustSpec says which sessions are distrusted: one, or an agent's.
type DistrustSpec struct {
	Agent   string     `json:"agent,omitempty" maxLength:"64" doc:"Every session of the agent that had not ended before since. Revoke the agent first: what it begins later is trusted."`
	Session string     `json:"session,omitempty" pattern:"^[0-9a-f]{32}$" doc:"One session, as the warning of a backup names it; instead of an agent"`
	Since   *time.Time `json:"since,omitempty" doc:"With an agent; absent: ever"`
	Lift    bool       `json:"lift,omitempty" doc:"They are trusted again"`
}

type distrustInput struct {
	CloudPath
	Idempotent
	Body DistrustSpec
}

// Resolve refuses a request that names nobody, or two.
func (in *distrustInput) Resolve(huma.Context) []error {
	switch b := in.Body; {
	case (b.Agent == "") == (b.Session == ""):
		return []error{&huma.ErrorDetail{Location: "body", Message: "name either an agent or a session"}}
	case b.Session != "" && b.Since != nil:
		return []error{&huma.ErrorDetail{Location: "body.since", Message: "is for an agent"}}
	}
	return nil
}

type listSessionsInput struct {
	CloudPath
	SessionQuery
}

func registerTrust(h huma.API, p *Provider) {
	const cloud = "/v1/tenants/{tenant}/cloud-repositories/{cloud}"
	add(h, huma.Operation{OperationID: "distrust-cloud-repository", Method: http.MethodPost, Path: cloud + "/" + string(RunDistrust), Tags: []string{"runs"},
		Summary: "Distrust what an agent brought", DefaultStatus: http.StatusAccepted,
		Description: "A repository cannot tell whether an agent sealed under an id what the id says. The chunks of distrusted sessions count only where there is no other copy: backups send them again, and the points that depend on them are named. Nothing is deleted. Answers the run that does it."},
		func(ctx context.Context, in *distrustInput) (*startedOutput, error) {
			return p.start(ctx, RunDistrust, in.CloudPath, RunSpec{Distrust: &in.Body})
		})
	add(h, huma.Operation{OperationID: "list-sessions", Method: http.MethodGet, Path: cloud + "/sessions", Tags: []string{"cloud repositories"},
		Summary: "List the sessions that brought what is in a cloud repository", Description: "Those of which nothing is left are forgotten."}, p.listSessions)
}

func (p *Provider) listSessions(ctx context.Context, in *listSessionsInput) (*struct{ Body SessionPage }, error) {
	if _, err := p.cloud(ctx, in.CloudPath); err != nil {
		return nil, err
	}
	q := in.SessionQuery
	q.Limit++
	list, err := p.Sessions(ctx, in.Cloud, q)
	if err != nil {
		return nil, err
	}
	page := SessionPage{Items: list}
	if len(list) > in.Limit {
		page.Items = list[:in.Limit]
		page.Next = list[in.Limit-1].ID
	}
	return &struct{ Body SessionPage }{page}, nil
}
