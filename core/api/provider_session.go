package api

import (
	"context"
	"net/http"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/holdfast-dr/holdfast/core/access"
	"github.com/holdfast-dr/holdfast/core/audit"
	"github.com/holdfast-dr/holdfast/core/tenant"
)

// sessionToken is how long the token of a login lasts.
const sessionToken = 12 * time.Hour

// maxLogin bounds a body that anybody may send.
const maxLogin = 8 << 10

type loginInput struct {
	Body struct {
		Tenant   string `json:"tenant,omitempty" maxLength:"128" doc:"Name of the tenant; leave it out for a user of the provider"`
		User     string `json:"user" minLength:"1" maxLength:"128" example:"admin"`
		Password string `json:"password" minLength:"1" maxLength:"1024" writeOnly:"true"`
	}
}

// NewToken is a token with its text, which is shown this once.
type NewToken struct {
	Token string     `json:"token" doc:"The bearer token; it is shown this once and cannot be read again"`
	ID    string     `json:"id"`
	Ends  *time.Time `json:"ends,omitempty" doc:"When it stops working"`
	User  User       `json:"user"`
}

type newTokenOutput struct {
	Body NewToken
}

// Me is who calls.
type Me struct {
	Kind   string `json:"kind"`
	User   string `json:"user,omitempty" doc:"Id of the user"`
	Name   string `json:"name,omitempty"`
	Role   string `json:"role,omitempty"`
	Tenant string `json:"tenant,omitempty" doc:"Id of the user's tenant; empty for the provider's people"`
	Scope  string `json:"scope" doc:"How far the token goes at most"`
}

// Health is what load balancers and people ask first.
type Health struct {
	Status  string    `json:"status" enum:"ok" doc:"ok while the server answers and reaches its database"`
	Version string    `json:"version" doc:"Version of the server's program"`
	Time    time.Time `json:"time" doc:"The server's clock"`
}

func registerSession(h huma.API, p *Provider) {
	add(h, huma.Operation{OperationID: "get-health", Method: http.MethodGet, Path: "/v1/health", Tags: []string{"server"},
		Summary: "Say whether the server works"}, p.health)
	add(h, huma.Operation{OperationID: "login", Method: http.MethodPost, Path: "/v1/login", Tags: []string{"session"},
		MaxBodyBytes: maxLogin, Summary: "Sign in with a password", Description: "Answers a bearer token that lasts 12 hours."}, p.login)
	add(h, huma.Operation{OperationID: "logout", Method: http.MethodPost, Path: "/v1/logout", Tags: []string{"session"},
		Summary: "End the token of this request", DefaultStatus: http.StatusNoContent}, p.logout)
	add(h, huma.Operation{OperationID: "get-me", Method: http.MethodGet, Path: "/v1/me", Tags: []string{"session"},
		Summary: "Say who calls"}, p.me)
}

func (p *Provider) health(ctx context.Context, _ *struct{}) (*struct{ Body Health }, error) {
	if err := p.Ping(ctx); err != nil {
		return nil, err
	}
	return &struct{ Body Health }{Health{Status: "ok", Version: p.Version, Time: p.Now().UTC()}}, nil
}

func (p *Provider) login(ctx context.Context, in *loginInput) (_ *newTokenOutput, err error) {
	origin, _ := audit.From(ctx)
	// By the name that was typed: what exists cannot be told from who has to wait.
	finish, err := p.Attempts.Begin(origin.Address, in.Body.Tenant, in.Body.User)
	if err != nil {
		return nil, err
	}
	defer func() { finish(err) }()
	scope := tenant.Provider
	if in.Body.Tenant != "" {
		t, err := p.Tenants.ByName(ctx, in.Body.Tenant)
		if err != nil {
			scope = "unknown" // falls through to a verification that takes as long and fails
		} else {
			scope = t.ID
		}
	}
	user, err := p.Users.UserByName(ctx, scope, in.Body.User)
	known := err == nil && user.Enabled
	hash := ""
	if known {
		hash = user.PasswordHash
	}
	if err := p.Passwords.Verify(ctx, hash, in.Body.Password); err != nil {
		chain := user.TenantID
		if known {
			_ = p.Audit.Record(ctx, chain, "login.refused", "user:"+user.ID, nil) // the refusal stands with or without the entry
		}
		return nil, err
	}
	ctx = p.as(ctx, user)
	return p.issue(ctx, user, "login", access.None, p.Now().Add(sessionToken))
}

// as makes a user the origin of what follows in a request that came without a
// token.
func (p *Provider) as(ctx context.Context, u access.User) context.Context {
	origin, _ := audit.From(ctx)
	origin.Actor, origin.Name = "user:"+u.ID, u.Name
	return audit.With(ctx, origin)
}

// issue makes a token for a user.
func (p *Provider) issue(ctx context.Context, u access.User, name string, scope access.Level, ends time.Time) (*newTokenOutput, error) {
	text, hash := access.NewToken()
	token, err := p.Users.CreateToken(ctx, access.Token{UserID: u.ID, TenantID: u.TenantID, Name: name, Hash: hash, Scope: scope, Expires: ends})
	if err != nil {
		return nil, err
	}
	return &newTokenOutput{NewToken{Token: text, ID: token.ID, Ends: optionalTime(token.Expires), User: userOf(u)}}, nil
}

func (p *Provider) logout(ctx context.Context, _ *struct{}) (*struct{}, error) {
	c := access.From(ctx)
	return nil, p.Users.DeleteToken(ctx, c.TenantID, c.TokenID)
}

func (p *Provider) me(ctx context.Context, _ *struct{}) (*struct{ Body Me }, error) {
	c := access.From(ctx)
	return &struct{ Body Me }{Me{Kind: string(c.Kind), User: c.UserID, Name: c.Name, Role: string(c.Role),
		Tenant: string(c.TenantID), Scope: levelName(c.Scope)}}, nil
}

// optionalTime is nil for the zero time.
func optionalTime(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	t = t.UTC()
	return &t
}
