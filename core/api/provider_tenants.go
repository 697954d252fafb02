package api

import (
	"context"
	"net/http"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/holdfast-dr/holdfast/core/access"
	"github.com/holdfast-dr/holdfast/core/tenant"
)

// Tenant is a tenant as the API shows it.
type Tenant struct {
	ID          string     `json:"id"`
	Type        string     `json:"type"`
	Name        string     `json:"name"`
	Description string     `json:"description,omitempty"`
	Enabled     bool       `json:"enabled"`
	LeaseEnd    *time.Time `json:"lease_end,omitempty" doc:"From this moment backup and restore are refused; stored data is kept. Absent: the contract has no end"`
	MaxTasks    int        `json:"max_tasks" doc:"Disks that move at the same time"`
	Created     time.Time  `json:"created"`
	Version     int64      `json:"version" doc:"Grows with each change; an update names the one it read"`
}

func tenantOf(t tenant.Tenant) Tenant {
	return Tenant{ID: string(t.ID), Type: string(t.Type), Name: t.Name, Description: t.Description, Enabled: t.Enabled,
		LeaseEnd: optionalTime(t.LeaseEnd), MaxTasks: t.MaxTasks, Created: t.Created.UTC(), Version: t.Version}
}

// TenantPath names a tenant in a path.
type TenantPath struct {
	Tenant string `path:"tenant" maxLength:"64" doc:"Id of the tenant"`
}

type tenantOutput struct{ Body Tenant }

// TenantPage is a part of the list of tenants.
type TenantPage struct {
	Items []Tenant `json:"items"`
	Next  string   `json:"next,omitempty" doc:"Pass it as after to continue; absent at the end"`
}

type listTenantsInput struct {
	Text  string `query:"text" maxLength:"128" doc:"Part of the name or description"`
	Name  string `query:"name" maxLength:"128" doc:"Exactly this name, regardless of case"`
	After string `query:"after" maxLength:"128"`
	Limit int    `query:"limit" minimum:"1" maximum:"1000" default:"200"`
}

type createTenantInput struct {
	Idempotent
	Body struct {
		Name        string     `json:"name" minLength:"1" maxLength:"128" example:"Acme"`
		Description string     `json:"description,omitempty" maxLength:"1024"`
		LeaseEnd    *time.Time `json:"lease_end,omitempty" doc:"End of the contract, in the future; leave it out for none"`
		MaxTasks    int        `json:"max_tasks,omitempty" minimum:"0" maximum:"1024" doc:"Disks that move at the same time; 0 for the default of 2"`
	}
}

type updateTenantInput struct {
	TenantPath
	Body struct {
		Version     int64   `json:"version" minimum:"1" doc:"The version that was read"`
		Name        *string `json:"name,omitempty" minLength:"1" maxLength:"128"`
		Description *string `json:"description,omitempty" maxLength:"1024"`
		MaxTasks    *int    `json:"max_tasks,omitempty" minimum:"1" maximum:"1024"`
	}
}

type setLeaseInput struct {
	TenantPath
	Body struct {
		End *time.Time `json:"end,omitempty" doc:"End of the contract; leave it out for none"`
	}
}

type deleteTenantInput struct {
	TenantPath
	Backups string `query:"backups" enum:"keep,delete" doc:"What becomes of stored backups; without it a tenant that has any is not deleted"`
}

func registerTenants(h huma.API, p *Provider) {
	tags := []string{"tenants"}
	add(h, huma.Operation{OperationID: "list-tenants", Method: http.MethodGet, Path: "/v1/tenants", Tags: tags,
		Summary: "List tenants"}, p.listTenants)
	add(h, huma.Operation{OperationID: "create-tenant", Method: http.MethodPost, Path: "/v1/tenants", Tags: tags,
		Summary: "Create a tenant", DefaultStatus: http.StatusCreated}, p.createTenant)
	add(h, huma.Operation{OperationID: "get-tenant", Method: http.MethodGet, Path: "/v1/tenants/{tenant}", Tags: tags,
		Summary: "Show a tenant"}, p.getTenant)
	add(h, huma.Operation{OperationID: "update-tenant", Method: http.MethodPatch, Path: "/v1/tenants/{tenant}", Tags: tags,
		Summary: "Change a tenant"}, p.updateTenant)
	add(h, huma.Operation{OperationID: "set-lease", Method: http.MethodPut, Path: "/v1/tenants/{tenant}/lease", Tags: tags,
		Summary: "Set the end of a tenant's contract", Description: "An ended lease refuses backup and restore and keeps all data; a later end revives everything. An end in the past ends the contract at once."}, p.setLease)
	add(h, huma.Operation{OperationID: "enable-tenant", Method: http.MethodPost, Path: "/v1/tenants/{tenant}/enable", Tags: tags,
		Summary: "Enable a tenant"}, p.enableTenant)
	add(h, huma.Operation{OperationID: "disable-tenant", Method: http.MethodPost, Path: "/v1/tenants/{tenant}/disable", Tags: tags,
		Summary: "Disable a tenant", Description: "Its open connections are closed and everything that moves data is refused. Data is kept."}, p.disableTenant)
	add(h, huma.Operation{OperationID: "delete-tenant", Method: http.MethodDelete, Path: "/v1/tenants/{tenant}", Tags: tags,
		Summary: "Delete a tenant, for good", DefaultStatus: http.StatusNoContent}, p.deleteTenant)
}

func (p *Provider) listTenants(ctx context.Context, in *listTenantsInput) (*struct{ Body TenantPage }, error) {
	out := &struct{ Body TenantPage }{TenantPage{Items: []Tenant{}}}
	if in.Name != "" {
		t, err := p.Tenants.ByName(ctx, in.Name)
		if isNotFound(err) {
			return out, nil
		}
		if err != nil {
			return nil, err
		}
		out.Body.Items = append(out.Body.Items, tenantOf(t))
		return out, nil
	}
	tenants, err := p.Tenants.List(ctx, tenant.Query{Text: in.Text, After: in.After, Limit: in.Limit})
	if err != nil {
		return nil, err
	}
	out.Body.Items = each(tenants, tenantOf)
	if len(tenants) == in.Limit {
		out.Body.Next = tenants[len(tenants)-1].Name
	}
	return out, nil
}

func (p *Provider) createTenant(ctx context.Context, in *createTenantInput) (*tenantOutput, error) {
	t := tenant.Tenant{Type: tenant.Standalone, Name: in.Body.Name, Description: in.Body.Description, Enabled: true,
		LeaseEnd: timeOf(in.Body.LeaseEnd), MaxTasks: in.Body.MaxTasks}
	if t.MaxTasks == 0 {
		t.MaxTasks = tenant.DefaultTasks
	}
	if !t.LeaseEnd.IsZero() && !t.LeaseEnd.After(time.Now()) {
		return nil, &tenant.InvalidError{Field: "lease end", Reason: "has passed: a tenant begins with a contract that runs, and can be ended afterwards"}
	}
	t, err := p.Tenants.Create(ctx, t)
	if err != nil {
		return nil, err
	}
	return &tenantOutput{tenantOf(t)}, nil
}

func (p *Provider) getTenant(ctx context.Context, in *TenantPath) (*tenantOutput, error) {
	t, err := p.Tenants.Get(ctx, tenant.ID(in.Tenant))
	if err != nil {
		return nil, err
	}
	return &tenantOutput{tenantOf(t)}, nil
}

func (p *Provider) updateTenant(ctx context.Context, in *updateTenantInput) (*tenantOutput, error) {
	t, err := p.Tenants.Get(ctx, tenant.ID(in.Tenant))
	if err != nil {
		return nil, err
	}
	t.Version = in.Body.Version
	if in.Body.Name != nil {
		t.Name = *in.Body.Name
	}
	if in.Body.Description != nil {
		t.Description = *in.Body.Description
	}
	if in.Body.MaxTasks != nil {
		t.MaxTasks = *in.Body.MaxTasks
	}
	if t, err = p.Tenants.Update(ctx, t); err != nil {
		return nil, err
	}
	return &tenantOutput{tenantOf(t)}, nil
}

func (p *Provider) setLease(ctx context.Context, in *setLeaseInput) (*tenantOutput, error) {
	t, err := p.Tenants.Get(ctx, tenant.ID(in.Tenant))
	if err != nil {
		return nil, err
	}
	t.LeaseEnd = timeOf(in.Body.End)
	if t, err = p.Tenants.Update(ctx, t); err != nil {
		return nil, err
	}
	return &tenantOutput{tenantOf(t)}, nil
}

func (p *Provider) enableTenant(ctx context.Context, in *TenantPath) (*tenantOutput, error) {
	return p.setEnabled(ctx, in.Tenant, true)
}

func (p *Provider) disableTenant(ctx context.Context, in *TenantPath) (*tenantOutput, error) {
	return p.setEnabled(ctx, in.Tenant, false)
}

func (p *Provider) setEnabled(ctx context.Context, id string, enabled bool) (*tenantOutput, error) {
	t, err := p.Tenants.SetEnabled(ctx, tenant.ID(id), enabled)
	if err != nil {
		return nil, err
	}
	if !enabled {
		p.DisconnectTenant(t.ID)
	}
	return &tenantOutput{tenantOf(t)}, nil
}

func (p *Provider) deleteTenant(ctx context.Context, in *deleteTenantInput) (*struct{}, error) {
	if err := p.Tenants.Delete(ctx, tenant.ID(in.Tenant), tenant.Backups(in.Backups)); err != nil {
		return nil, err
	}
	p.DisconnectTenant(tenant.ID(in.Tenant))
	return nil, nil
}

// timeOf is the zero time for nil.
func timeOf(t *time.Time) time.Time {
	if t == nil {
		return time.Time{}
	}
	return *t
}

// Enrolment is a one-time token for an agent, without its text.
type Enrolment struct {
	ID      string    `json:"id"`
	Site    string    `json:"site" doc:"Name of the site whose agent is to enrol"`
	Created time.Time `json:"created"`
	Ends    time.Time `json:"ends"`
	Agent   string    `json:"agent,omitempty" doc:"Id of the agent that enrolled with it"`
}

func enrolmentOf(e access.Enrolment) Enrolment {
	return Enrolment{ID: e.ID, Site: e.Site, Created: e.Created.UTC(), Ends: e.Expires.UTC(), Agent: e.AgentID}
}

// NewEnrolment is a one-time token with its text, which is shown this once, and
// what the tenant needs besides.
type NewEnrolment struct {
	Enrolment
	Token       string `json:"token" doc:"The one-time token; it is shown this once and cannot be read again"`
	Address     string `json:"address" doc:"Where the agent connects"`
	Fingerprint string `json:"fingerprint" doc:"Of the provider's CA, for the agent to pin"`
}

type createEnrolmentInput struct {
	TenantPath
	Idempotent
	Body struct {
		Site  string `json:"site" minLength:"1" maxLength:"128" example:"berlin"`
		Hours int    `json:"hours,omitempty" minimum:"0" maximum:"720" doc:"How long the token is good for; 0 for a day"`
	}
}

// Agent is an agent as the provider knows it.
type SiteAgent struct {
	ID       string     `json:"id"`
	Tenant   string     `json:"tenant"`
	Name     string     `json:"name" doc:"The site"`
	Version  string     `json:"version,omitempty" doc:"Of its program, as it last said"`
	Enrolled time.Time  `json:"enrolled"`
	LastSeen *time.Time `json:"last_seen,omitempty"`
	Revoked  *time.Time `json:"revoked,omitempty"`
}

func agentOf(a access.Agent) SiteAgent {
	return SiteAgent{ID: a.ID, Tenant: string(a.TenantID), Name: a.Name, Version: a.Version, Enrolled: a.Enrolled.UTC(),
		LastSeen: optionalTime(a.LastSeen), Revoked: optionalTime(a.Revoked)}
}

func registerAgents(h huma.API, p *Provider) {
	tags := []string{"agents"}
	add(h, huma.Operation{OperationID: "list-enrolments", Method: http.MethodGet, Path: "/v1/tenants/{tenant}/enrolments", Tags: tags,
		Summary: "List one-time tokens of agents"}, p.listEnrolments)
	add(h, huma.Operation{OperationID: "create-enrolment", Method: http.MethodPost, Path: "/v1/tenants/{tenant}/enrolments", Tags: tags,
		Summary: "Make a one-time token for an agent", DefaultStatus: http.StatusCreated}, p.createEnrolment)
	add(h, huma.Operation{OperationID: "delete-enrolment", Method: http.MethodDelete, Path: "/v1/tenants/{tenant}/enrolments/{enrolment}", Tags: tags,
		Summary: "Withdraw a one-time token", DefaultStatus: http.StatusNoContent}, p.deleteEnrolment)
	add(h, huma.Operation{OperationID: "list-agents", Method: http.MethodGet, Path: "/v1/tenants/{tenant}/agents", Tags: tags,
		Summary: "List a tenant's agents"}, p.listAgents)
	add(h, huma.Operation{OperationID: "revoke-agent", Method: http.MethodPost, Path: "/v1/tenants/{tenant}/agents/{agent}/revoke", Tags: tags,
		Summary: "Revoke an agent, for good", Description: "Its connections are closed and none of its certificates is accepted any more."}, p.revokeAgent)
}

func (p *Provider) listEnrolments(ctx context.Context, in *TenantPath) (*struct{ Body []Enrolment }, error) {
	list, err := p.Agents.ListEnrolments(ctx, tenant.ID(in.Tenant))
	if err != nil {
		return nil, err
	}
	return &struct{ Body []Enrolment }{each(list, enrolmentOf)}, nil
}

func (p *Provider) createEnrolment(ctx context.Context, in *createEnrolmentInput) (*struct{ Body NewEnrolment }, error) {
	life := access.DefaultEnrolment
	if in.Body.Hours > 0 {
		life = time.Duration(in.Body.Hours) * time.Hour
	}
	notice, err := p.Notice()
	if err != nil {
		return nil, err
	}
	text, hash := access.NewEnrolmentToken()
	e, err := p.Agents.CreateEnrolment(ctx, access.Enrolment{TenantID: tenant.ID(in.Tenant), Site: in.Body.Site, Hash: hash, Expires: p.Now().Add(life)})
	if err != nil {
		return nil, err
	}
	return &struct{ Body NewEnrolment }{NewEnrolment{Enrolment: enrolmentOf(e), Token: text, Address: notice.Address, Fingerprint: notice.Pin}}, nil
}

func (p *Provider) deleteEnrolment(ctx context.Context, in *struct {
	TenantPath
	Enrolment string `path:"enrolment" maxLength:"64"`
}) (*struct{}, error) {
	return nil, p.Agents.DeleteEnrolment(ctx, tenant.ID(in.Tenant), in.Enrolment)
}

func (p *Provider) listAgents(ctx context.Context, in *TenantPath) (*struct{ Body []SiteAgent }, error) {
	list, err := p.Agents.ListAgents(ctx, tenant.ID(in.Tenant))
	if err != nil {
		return nil, err
	}
	return &struct{ Body []SiteAgent }{each(list, agentOf)}, nil
}

func (p *Provider) revokeAgent(ctx context.Context, in *struct {
	TenantPath
	Agent string `path:"agent" maxLength:"64"`
}) (*struct{ Body SiteAgent }, error) {
	a, err := p.Agents.RevokeAgent(ctx, tenant.ID(in.Tenant), in.Agent)
	if err != nil {
		return nil, err
	}
	p.DisconnectAgent(a.ID)
	return &struct{ Body SiteAgent }{agentOf(a)}, nil
}
