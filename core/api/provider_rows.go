package api

import (
	"github.com/danielgtaylor/huma/v2"

	"github.com/holdfast-dr/holdfast/core/access"
)

// providerRows has a row for every operation of the provider's server.
var providerRows = map[string]Row{
	"get-health": {Side: ProviderServer, Open: true},
	"login":      {Side: ProviderServer, Open: true},
	"logout":     {Side: ProviderServer, Signed: true},
	"get-me":     {Side: ProviderServer, Signed: true},

	"list-users":   scoped(access.View),
	"create-user":  scoped(access.Manage),
	"update-user":  scoped(access.Manage),
	"delete-user":  scoped(access.Manage),
	"list-tokens":  scoped(access.Manage),
	"create-token": scoped(access.Manage),
	"delete-token": scoped(access.Manage),

	"list-tenants":   provider(access.View),
	"create-tenant":  provider(access.Manage),
	"get-tenant":     inTenant(access.View),
	"get-traffic":    inTenant(access.View),
	"update-tenant":  provider(access.Manage),
	"set-lease":      provider(access.Manage),
	"enable-tenant":  provider(access.Manage),
	"disable-tenant": provider(access.Manage),
	"delete-tenant":  provider(access.Manage),

	"list-enrolments":  inTenant(access.View),
	"create-enrolment": inTenant(access.Manage),
	"delete-enrolment": inTenant(access.Manage),
	"list-agents":      inTenant(access.View),
	"list-site-runs":   inTenant(access.View),
	"revoke-agent":     inTenant(access.Manage),

	"list-repositories": provider(access.View),
	"add-repository":    provider(access.Manage),
	"update-repository": provider(access.Manage),
	"remove-repository": provider(access.Manage),

	"list-unknown-repositories": provider(access.View),

	"list-all-cloud-repositories": provider(access.View),
	"list-cloud-repositories":     inTenant(access.View),
	"create-cloud-repository":     provider(access.Manage),
	"get-cloud-repository":        inTenant(access.View),
	"update-cloud-repository":     provider(access.Manage),
	"delete-cloud-repository":     provider(access.Manage),
	"list-points":                 inTenant(access.View),

	"verify-cloud-repository":   provider(access.Operate),
	"collect-cloud-repository":  provider(access.Operate),
	"account-cloud-repository":  provider(access.Operate),
	"import-cloud-repository":   provider(access.Manage),
	"distrust-cloud-repository": provider(access.Manage),
	"list-sessions":             inTenant(access.View),
	"list-runs":                 provider(access.View),
	"get-run":                   provider(access.View),
	"cancel-run":                provider(access.Operate),
	"watch-run":                 provider(access.View),

	"get-status":          provider(access.View),
	"get-certificate":     {Side: ProviderServer, Signed: true},
	"replace-certificate": provider(access.Manage),
	"remove-certificate":  provider(access.Manage),
	"list-audit":          scoped(access.View),
	"verify-audit":        scoped(access.View),
}

func registerProvider(h huma.API, p *Provider) {
	registerServer(h, p)
	registerSession(h, p)
	registerUsers(h, p)
	registerTenants(h, p)
	registerAgents(h, p)
	registerReports(h, p)
	registerRepositories(h, p)
	registerRuns(h, p)
}
