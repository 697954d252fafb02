package api

import (
	"context"
	"net/http"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/holdfast-dr/holdfast/core/gateway"
	"github.com/holdfast-dr/holdfast/core/quota"
	"github.com/holdfast-dr/holdfast/core/tenant"
)

// UnknownRepository is what lies in one of the provider's repositories under the
// id of a cloud repository that the database does not have, or has only as that
// of a deleted tenant whose backups were kept.
type UnknownRepository struct {
	ID         string     `json:"id"`
	Repository string     `json:"repository" doc:"Id of the provider's repository in which it lies"`
	Tenant     string     `json:"tenant,omitempty" doc:"Id of the tenant whose it was, as far as that is written down"`
	TenantName string     `json:"tenant_name,omitempty"`
	Name       string     `json:"name,omitempty" doc:"Its name when it was in use"`
	LimitBytes int64      `json:"limit_bytes,omitempty" doc:"Its quota when it was in use"`
	Kept       bool       `json:"kept" doc:"Its tenant was deleted and its backups were kept; it comes back with its catalogue"`
	Points     int        `json:"points" doc:"That seem to be there; only an import judges them"`
	Newest     *time.Time `json:"newest,omitempty" doc:"When the newest of them was written"`
	Bytes      int64      `json:"bytes" doc:"Stored, including what no point uses"`
	Partial    bool       `json:"partial" doc:"Not everything was counted, so points and bytes are lower bounds"`
	ChunkSize  int64      `json:"-"` // 0 if nothing tells
}

// UnknownPage is a part of a list of unknown repositories, by id. It may be
// empty and still not be the last one.
type UnknownPage struct {
	Items []UnknownRepository `json:"items"`
	Next  string              `json:"next,omitempty" doc:"Pass it as after to continue; absent at the end"`
}

type listUnknownInput struct {
	RepositoryPath
	After string `query:"after" maxLength:"64"`
	Limit int    `query:"limit" minimum:"1" maximum:"100" default:"50"`
}

func registerUnknown(h huma.API, p *Provider) {
	add(h, huma.Operation{OperationID: "list-unknown-repositories", Method: http.MethodGet, Path: "/v1/repositories/{repository}/unknown",
		Tags: []string{"repositories"}, Summary: "List what lies in a repository and belongs to no cloud repository",
		Description: "After the loss of the database, or of a tenant whose backups were kept. Creating a cloud repository with the id of one takes it into use again."},
		p.listUnknown)
}

func (p *Provider) listUnknown(ctx context.Context, in *listUnknownInput) (*struct{ Body UnknownPage }, error) {
	l, err := p.Locations.Get(ctx, in.Repository)
	if err != nil {
		return nil, err
	}
	page, err := p.Unknown(ctx, l, in.After, in.Limit)
	if err != nil {
		return nil, err
	}
	return &struct{ Body UnknownPage }{page}, nil
}

// adopt creates a cloud repository of objects that are there.
func (p *Provider) adopt(ctx context.Context, r quota.CloudRepository, former string) (quota.CloudRepository, error) {
	l, err := p.Locations.Get(ctx, r.LocationID)
	if err != nil {
		return r, err
	}
	found, err := p.Find(ctx, l, string(r.ID))
	if isNotFound(err) {
		return r, gateway.NewProblem(http.StatusNotFound, gateway.CodeNotFound, "repository \""+l.Name+"\" has nothing under the id "+string(r.ID)).
			WithHint("see what it has: holdfast cloud-repository list --unknown; is its disk mounted? For a new, empty cloud repository leave the id out")
	}
	if err != nil {
		return r, err
	}
	if found.ChunkSize != 0 {
		r.ChunkSize = found.ChunkSize
	}
	return p.Quotas.Adopt(ctx, quota.Adoption{CloudRepository: r, Whose: found.TenantName, WhoseID: tenant.ID(found.Tenant), Said: former})
}
