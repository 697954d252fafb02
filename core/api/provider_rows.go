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
}

func registerProvider(h huma.API, p *Provider) {
	registerSession(h, p)
	registerUsers(h, p)
}
