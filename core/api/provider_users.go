package api

import (
	"context"
	"net/http"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/holdfast-dr/holdfast/core/access"
	"github.com/holdfast-dr/holdfast/core/tenant"
)

// User is a user without anything secret.
type User struct {
	ID          string    `json:"id"`
	Tenant      string    `json:"tenant,omitempty" doc:"Id of the user's tenant; empty for the provider's people"`
	Name        string    `json:"name"`
	Role        string    `json:"role" doc:"What the user may do"`
	Enabled     bool      `json:"enabled"`
	HasPassword bool      `json:"has_password" doc:"False for a user who works with tokens only"`
	Created     time.Time `json:"created"`
	Version     int64     `json:"version" doc:"Grows with each change; an update names the one it read"`
}

func userOf(u access.User) User {
	return User{ID: u.ID, Tenant: string(u.TenantID), Name: u.Name, Role: string(u.Role), Enabled: u.Enabled,
		HasPassword: u.PasswordHash != "", Created: u.Created.UTC(), Version: u.Version}
}

// Token is a token without its text.
type Token struct {
	ID       string     `json:"id"`
	User     string     `json:"user" doc:"Id of the user"`
	Name     string     `json:"name" doc:"What it is for"`
	Scope    string     `json:"scope" doc:"How far it goes at most"`
	Created  time.Time  `json:"created"`
	Ends     *time.Time `json:"ends,omitempty"`
	LastUsed *time.Time `json:"last_used,omitempty"`
}

func tokenOf(t access.Token) Token {
	return Token{ID: t.ID, User: t.UserID, Name: t.Name, Scope: levelName(t.Scope), Created: t.Created.UTC(),
		Ends: optionalTime(t.Expires), LastUsed: optionalTime(t.LastUsed)}
}

// TenantQuery names whose users an operation is about.
type TenantQuery struct {
	Tenant string `query:"tenant" maxLength:"64" doc:"Id of a tenant, for its users; leave it out for the provider's own"`
}

type UserPath struct {
	TenantQuery
	User string `path:"user" maxLength:"64"`
}

type createUserInput struct {
	TenantQuery
	Idempotent
	Body struct {
		Name     string `json:"name" minLength:"1" maxLength:"128"`
		Role     string `json:"role" enum:"provider-admin,provider-operator,provider-auditor,tenant-admin,tenant-operator,tenant-viewer"`
		Password string `json:"password,omitempty" maxLength:"1024" writeOnly:"true" doc:"At least 12 characters; leave it out for a user who works with tokens only"`
	}
}

type updateUserInput struct {
	UserPath
	Body struct {
		Version  int64   `json:"version" minimum:"1" doc:"The version that was read"`
		Name     *string `json:"name,omitempty" minLength:"1" maxLength:"128"`
		Role     *string `json:"role,omitempty" enum:"provider-admin,provider-operator,provider-auditor,tenant-admin,tenant-operator,tenant-viewer"`
		Enabled  *bool   `json:"enabled,omitempty"`
		Password *string `json:"password,omitempty" maxLength:"1024" writeOnly:"true" doc:"A new password ends the user's tokens"`
	}
}

type createTokenInput struct {
	UserPath
	Idempotent
	Body struct {
		Name  string     `json:"name" minLength:"1" maxLength:"128" doc:"What it is for"`
		Scope string     `json:"scope,omitempty" enum:"view,operate,manage,all" default:"all" doc:"How far it goes at most"`
		Ends  *time.Time `json:"ends,omitempty" doc:"Leave it out for a token that lasts until it is deleted"`
	}
}

type usersOutput struct{ Body []User }
type userOutput struct{ Body User }
type tokensOutput struct{ Body []Token }

func registerUsers(h huma.API, p *Provider) {
	tags := []string{"users"}
	add(h, huma.Operation{OperationID: "list-users", Method: http.MethodGet, Path: "/v1/users", Tags: tags,
		Summary: "List users"}, p.listUsers)
	add(h, huma.Operation{OperationID: "create-user", Method: http.MethodPost, Path: "/v1/users", Tags: tags,
		Summary: "Create a user", DefaultStatus: http.StatusCreated}, p.createUser)
	add(h, huma.Operation{OperationID: "update-user", Method: http.MethodPatch, Path: "/v1/users/{user}", Tags: tags,
		Summary: "Change a user", Description: "A new password, or disabling, ends the user's tokens."}, p.updateUser)
	add(h, huma.Operation{OperationID: "delete-user", Method: http.MethodDelete, Path: "/v1/users/{user}", Tags: tags,
		Summary: "Delete a user and its tokens", DefaultStatus: http.StatusNoContent}, p.deleteUser)
	add(h, huma.Operation{OperationID: "list-tokens", Method: http.MethodGet, Path: "/v1/users/{user}/tokens", Tags: tags,
		Summary: "List a user's tokens"}, p.listTokens)
	add(h, huma.Operation{OperationID: "create-token", Method: http.MethodPost, Path: "/v1/users/{user}/tokens", Tags: tags,
		Summary: "Make a token for a user", DefaultStatus: http.StatusCreated}, p.createToken)
	add(h, huma.Operation{OperationID: "delete-token", Method: http.MethodDelete, Path: "/v1/tokens/{token}", Tags: tags,
		Summary: "End a token", DefaultStatus: http.StatusNoContent}, p.deleteToken)
}

func (p *Provider) listUsers(ctx context.Context, in *TenantQuery) (*usersOutput, error) {
	users, err := p.Users.ListUsers(ctx, tenant.ID(in.Tenant))
	if err != nil {
		return nil, err
	}
	return &usersOutput{each(users, userOf)}, nil
}

func (p *Provider) createUser(ctx context.Context, in *createUserInput) (*userOutput, error) {
	u := access.User{TenantID: tenant.ID(in.Tenant), Name: in.Body.Name, Role: access.Role(in.Body.Role), Enabled: true}
	if err := u.Check(); err != nil {
		return nil, err
	}
	if in.Body.Password != "" {
		var err error
		if u.PasswordHash, err = p.Passwords.Hash(ctx, in.Body.Password); err != nil {
			return nil, err
		}
	}
	created, err := p.Users.CreateUser(ctx, u)
	if err != nil {
		return nil, err
	}
	return &userOutput{userOf(created)}, nil
}

func (p *Provider) updateUser(ctx context.Context, in *updateUserInput) (*userOutput, error) {
	u, err := p.Users.User(ctx, tenant.ID(in.Tenant), in.User)
	if err != nil {
		return nil, err
	}
	u.Version = in.Body.Version
	if in.Body.Name != nil {
		u.Name = *in.Body.Name
	}
	if in.Body.Role != nil {
		u.Role = access.Role(*in.Body.Role)
	}
	if in.Body.Enabled != nil {
		u.Enabled = *in.Body.Enabled
	}
	if in.Body.Password != nil {
		if u.PasswordHash, err = p.Passwords.Hash(ctx, *in.Body.Password); err != nil {
			return nil, err
		}
	}
	if u, err = p.Users.UpdateUser(ctx, u); err != nil {
		return nil, err
	}
	return &userOutput{userOf(u)}, nil
}

func (p *Provider) deleteUser(ctx context.Context, in *UserPath) (*struct{}, error) {
	return nil, p.Users.DeleteUser(ctx, tenant.ID(in.Tenant), in.User)
}

func (p *Provider) listTokens(ctx context.Context, in *UserPath) (*tokensOutput, error) {
	tokens, err := p.Users.ListTokens(ctx, tenant.ID(in.Tenant), in.User)
	if err != nil {
		return nil, err
	}
	return &tokensOutput{each(tokens, tokenOf)}, nil
}

func (p *Provider) createToken(ctx context.Context, in *createTokenInput) (*newTokenOutput, error) {
	u, err := p.Users.User(ctx, tenant.ID(in.Tenant), in.User)
	if err != nil {
		return nil, err
	}
	var ends time.Time
	if in.Body.Ends != nil {
		if ends = *in.Body.Ends; !ends.After(p.Now()) {
			return nil, &tenant.InvalidError{Field: "ends", Reason: "must be in the future"}
		}
	}
	return p.issue(ctx, u, in.Body.Name, levelOf(in.Body.Scope), ends)
}

func (p *Provider) deleteToken(ctx context.Context, in *struct {
	TenantQuery
	Token string `path:"token" maxLength:"64"`
}) (*struct{}, error) {
	return nil, p.Users.DeleteToken(ctx, tenant.ID(in.Tenant), in.Token)
}

func levelOf(name string) access.Level {
	switch name {
	case "view":
		return access.View
	case "operate":
		return access.Operate
	case "manage":
		return access.Manage
	}
	return access.None
}

// each maps a list and never answers null.
func each[T, U any](items []T, f func(T) U) []U {
	out := make([]U, len(items))
	for i, item := range items {
		out[i] = f(item)
	}
	return out
}
