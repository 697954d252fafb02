package api

import (
	"fmt"
	"maps"
	"net/http"

	"github.com/holdfast-dr/holdfast/core/access"
	"github.com/holdfast-dr/holdfast/core/gateway"
	"github.com/holdfast-dr/holdfast/core/tenant"
)

// Server is the process that serves an operation.
type Server string

// The servers.
const (
	ProviderServer Server = "provider"
	AgentSocket    Server = "agent"
)

// Row says who may call an operation.
type Row struct {
	Side   Server
	Open   bool              // anybody, without a token
	Signed bool              // anybody with a token, for what is their own
	Need   access.Permission // else: this permission
	Tenant string            // path parameter that names the tenant concerned; "" for the provider's own things
	// Scoped: the query parameter "tenant" names the tenant concerned; without
	// it, the operation is about the provider's own things.
	Scoped bool
}

// allow decides, given the values of path parameters. A foreign tenant answers
// as one that does not exist.
func (r Row) allow(c access.Caller, param, query func(string) string) *gateway.Problem {
	if r.Side == AgentSocket || r.Open || r.Signed {
		return nil
	}
	need, in := r.Need, tenant.Provider
	switch {
	case r.Tenant != "":
		in = tenant.ID(param(r.Tenant))
	case r.Scoped && query("tenant") != "":
		in, need.Side = tenant.ID(query("tenant")), access.TenantSide
	}
	if c.May(need, in) {
		return nil
	}
	if in != tenant.Provider && c.TenantID != tenant.Provider && c.TenantID != in {
		return gateway.ProblemOf(fmt.Errorf("tenant %.80q: %w", in, tenant.ErrNotFound))
	}
	return gateway.NewProblem(http.StatusForbidden, gateway.CodeDenied,
		fmt.Sprintf("the role %s (scope %s) may not do this: it takes the %s level", c.Role, levelName(c.Scope), levelName(r.Need.Level))).
		WithHint("sign in as somebody who may, or ask an administrator for the role")
}

func levelName(l access.Level) string {
	switch l {
	case access.View:
		return "view"
	case access.Operate:
		return "operate"
	case access.Manage:
		return "manage"
	}
	return "all"
}

// describe is the sentence that the document says about a row.
func (r Row) describe() string {
	switch {
	case r.Side == AgentSocket:
		return "Served by the agent on its local socket."
	case r.Open:
		return "Needs no token."
	case r.Signed:
		return "For every signed-in user."
	case r.Scoped:
		return fmt.Sprintf("Needs the %s level on the tenant that is named, else at the provider.", levelName(r.Need.Level))
	case r.Tenant != "":
		return fmt.Sprintf("Needs the %s level on the tenant.", levelName(r.Need.Level))
	}
	return fmt.Sprintf("Needs the %s level at the provider.", levelName(r.Need.Level))
}

// rows is the table of rights: every operation has a row, by its id.
var rows = merge(providerRows, agentRows)

// Rows is the table of rights, by operation, for tests and documents.
func Rows() map[string]Row { return maps.Clone(rows) }

// local is the row of every operation of the agent.
var local = Row{Side: AgentSocket}

func provider(level access.Level) Row {
	return Row{Side: ProviderServer, Need: access.Permission{Side: access.ProviderSide, Level: level}}
}

func scoped(level access.Level) Row {
	row := provider(level)
	row.Scoped = true
	return row
}

func inTenant(level access.Level) Row {
	return Row{Side: ProviderServer, Need: access.Permission{Side: access.TenantSide, Level: level}, Tenant: "tenant"}
}

func merge(tables ...map[string]Row) map[string]Row {
	all := map[string]Row{}
	for _, t := range tables {
		for id, row := range t {
			if _, twice := all[id]; twice {
				panic("two rows for operation " + id)
			}
			all[id] = row
		}
	}
	return all
}
