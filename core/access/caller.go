package access

import (
	"context"

	"github.com/holdfast-dr/holdfast/core/tenant"
)

// Kind says what a caller is.
type Kind string

// The kinds. The zero Caller is Anonymous.
const (
	Anonymous Kind = ""
	ByUser    Kind = "user"  // a person or a script, known by a token
	ByAgent   Kind = "agent" // an agent, known by its client certificate
	BySystem  Kind = "system"
)

// Role is what a user may do, where.
type Role string

// The roles.
const (
	ProviderAdmin    Role = "provider-admin"
	ProviderOperator Role = "provider-operator"
	ProviderAuditor  Role = "provider-auditor"
	TenantAdmin      Role = "tenant-admin"
	TenantOperator   Role = "tenant-operator"
	TenantViewer     Role = "tenant-viewer"
)

// Roles lists every role, for tests and help texts.
func Roles() []Role {
	return []Role{ProviderAdmin, ProviderOperator, ProviderAuditor, TenantAdmin, TenantOperator, TenantViewer}
}

// Level is how far a permission goes. A higher level includes the lower ones.
type Level int

// The levels. View reads, Operate runs what was set up, Manage sets up.
const (
	None Level = iota
	View
	Operate
	Manage
)

// Side is whose things a permission is about.
type Side string

// The sides.
const (
	ProviderSide Side = "provider" // repositories, gateways, tenants as such
	TenantSide   Side = "tenant"   // what belongs to one tenant
)

// Permission is what an operation needs.
type Permission struct {
	Side  Side
	Level Level
}

// grants is the whole of the rights table. A provider's operator runs tenants'
// work but does not create tenants, users or repositories.
var grants = map[Role]map[Side]Level{
	ProviderAdmin:    {ProviderSide: Manage, TenantSide: Manage},
	ProviderOperator: {ProviderSide: Operate, TenantSide: Operate},
	ProviderAuditor:  {ProviderSide: View, TenantSide: View},
	TenantAdmin:      {TenantSide: Manage},
	TenantOperator:   {TenantSide: Operate},
	TenantViewer:     {TenantSide: View},
}

// Known says whether r is one of the roles.
func (r Role) Known() bool { return grants[r] != nil }

// Provider says whether r is a role of the provider's people.
func (r Role) Provider() bool { return grants[r][ProviderSide] > None }

// Level is how far the role goes on a side.
func (r Role) Level(s Side) Level { return grants[r][s] }

// Caller is who asks.
type Caller struct {
	Kind     Kind
	UserID   string
	Name     string
	Role     Role
	TenantID tenant.ID // of a tenant's user or agent; empty for the provider's
	AgentID  string
	TokenID  string
	Scope    Level // of the token: no operation above it; None means no limit
}

// May says whether the caller has a permission. For the tenant side, in is the
// tenant concerned; a tenant's own users have rights in theirs only. An agent
// is not a user and has no permissions here: its operations ask for ByAgent.
func (c Caller) May(p Permission, in tenant.ID) bool {
	if c.Kind == BySystem {
		return true
	}
	if c.Kind != ByUser || p.Level <= None {
		return false
	}
	if c.Role.Provider() == (c.TenantID != tenant.Provider) {
		return false // a role that does not fit its scope has no rights at all
	}
	if p.Side == TenantSide && !c.Role.Provider() && (in == tenant.Provider || in != c.TenantID) {
		return false
	}
	level := c.Role.Level(p.Side)
	if c.Scope != None {
		level = min(level, c.Scope)
	}
	return level >= p.Level
}

// Actor is the caller as the audit log names it.
func (c Caller) Actor() string {
	switch c.Kind {
	case ByUser:
		return "user:" + c.UserID
	case ByAgent:
		return "agent:" + c.AgentID
	case BySystem:
		return "system:" + c.Name
	}
	return "anonymous"
}

type callerKey struct{}

// With puts a caller into a context.
func With(ctx context.Context, c Caller) context.Context {
	return context.WithValue(ctx, callerKey{}, c)
}

// From is the caller in a context, the anonymous one if there is none.
func From(ctx context.Context) Caller {
	c, _ := ctx.Value(callerKey{}).(Caller)
	return c
}
