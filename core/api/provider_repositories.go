package api

import (
	"context"
	"net/http"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/holdfast-dr/holdfast/core/blob"
	"github.com/holdfast-dr/holdfast/core/gateway"
	"github.com/holdfast-dr/holdfast/core/point"
	"github.com/holdfast-dr/holdfast/core/quota"
	"github.com/holdfast-dr/holdfast/core/tenant"
)

// Repository is one of the provider's own repositories.
type Repository struct {
	ID       string    `json:"id"`
	Name     string    `json:"name"`
	Kind     string    `json:"kind" doc:"dir: a directory"`
	Path     string    `json:"path,omitempty"`
	ReadOnly bool      `json:"read_only" doc:"Restores go on, nothing new is written"`
	Created  time.Time `json:"created"`
	Version  int64     `json:"version" doc:"Grows with each change; an update names the one it read"`
}

func repositoryOf(l blob.Location) Repository {
	return Repository{ID: l.ID, Name: l.Name, Kind: l.Kind, Path: l.Path, ReadOnly: l.ReadOnly, Created: l.Created.UTC(), Version: l.Version}
}

// RepositoryPath names a repository in a path.
type RepositoryPath struct {
	Repository string `path:"repository" maxLength:"64" doc:"Id of the repository"`
}

type repositoryOutput struct{ Body Repository }

type addRepositoryInput struct {
	Idempotent
	Body struct {
		Name string `json:"name" minLength:"1" maxLength:"128" example:"store-1"`
		Kind string `json:"kind,omitempty" enum:"dir" default:"dir"`
		Path string `json:"path" minLength:"1" maxLength:"4096" doc:"Directory on the server, absolute" example:"/srv/holdfast"`
	}
}

type updateRepositoryInput struct {
	RepositoryPath
	Body struct {
		Version  int64   `json:"version" minimum:"1" doc:"The version that was read"`
		Name     *string `json:"name,omitempty" minLength:"1" maxLength:"128"`
		ReadOnly *bool   `json:"read_only,omitempty"`
	}
}

// CloudRepository is a tenant's named share of a repository.
type CloudRepository struct {
	ID           string    `json:"id"`
	Tenant       string    `json:"tenant"`
	Name         string    `json:"name"`
	Repository   string    `json:"repository,omitempty" doc:"Id of the provider's repository behind it; not shown to tenants"`
	LimitBytes   int64     `json:"limit_bytes"`
	UsedBytes    int64     `json:"used_bytes" doc:"Charged to points"`
	PendingBytes int64     `json:"pending_bytes" doc:"Counted beside them: reserved by running backups, or arrived and in no point yet"`
	Unreferenced int64     `json:"unreferenced_bytes" doc:"The part of pending_bytes that arrived. A point that uses it takes it over; what was idle for seven days goes with the next collections, and counts until then"`
	ChunkSize    int64     `json:"chunk_size"`
	Created      time.Time `json:"created"`
	Version      int64     `json:"version" doc:"Grows with each change; an update names the one it read"`
}

// cloudOf hides what lies behind the cloud from tenants.
func cloudOf(ctx context.Context, r quota.CloudRepository) CloudRepository {
	c := CloudRepository{ID: string(r.ID), Tenant: string(r.TenantID), Name: r.Name, LimitBytes: r.LimitBytes, UsedBytes: r.UsedBytes,
		PendingBytes: r.PendingBytes, Unreferenced: r.UnreferencedBytes, ChunkSize: r.ChunkSize, Created: r.Created.UTC(), Version: r.Version}
	if ofProvider(ctx) {
		c.Repository = r.LocationID
	}
	return c
}

// CloudPath names a cloud repository in a path.
type CloudPath struct {
	TenantPath
	Cloud string `path:"cloud" maxLength:"64" doc:"Id of the cloud repository"`
}

type cloudOutput struct{ Body CloudRepository }

// CloudPage is a part of a list of cloud repositories.
type CloudPage struct {
	Items []CloudRepository `json:"items"`
	Next  string            `json:"next,omitempty" doc:"Pass it as after to continue; absent at the end"`
}

// CloudQuery selects cloud repositories.
type CloudQuery struct {
	Text  string `query:"text" maxLength:"128" doc:"Part of the name"`
	After string `query:"after" maxLength:"64"`
	Limit int    `query:"limit" minimum:"1" maximum:"1000" default:"200"`
}

type createCloudInput struct {
	TenantPath
	Idempotent
	Body struct {
		Name       string `json:"name" minLength:"1" maxLength:"128" example:"backups"`
		Repository string `json:"repository" minLength:"1" maxLength:"64" doc:"Id of the provider's repository behind it"`
		LimitBytes int64  `json:"limit_bytes" minimum:"1" maximum:"1152921504606846976" doc:"The quota"`

		ID           string `json:"id,omitempty" format:"uuid" maxLength:"36" doc:"Takes what lies in the repository under this id into use; leave it out for a new, empty one"`
		FormerTenant string `json:"former_tenant,omitempty" maxLength:"128" doc:"Name of the tenant whose backups lie under the id; needed unless they are those of the tenant itself"`
	}
}

type updateCloudInput struct {
	CloudPath
	Body struct {
		Version    int64   `json:"version" minimum:"1" doc:"The version that was read"`
		Name       *string `json:"name,omitempty" minLength:"1" maxLength:"128"`
		LimitBytes *int64  `json:"limit_bytes,omitempty" minimum:"1" maximum:"1152921504606846976" doc:"The quota; below what is used it blocks new backups and deletes nothing"`
	}
}

// Point is a point as the provider sees it: no names, no content.
type Point struct {
	ID           string    `json:"id"`
	Machine      string    `json:"machine" doc:"An id that the agent made; its name is known to the tenant only"`
	Previous     string    `json:"previous,omitempty"`
	Kind         string    `json:"kind" doc:"How it was read; every point is a full one"`
	Taken        time.Time `json:"taken"`
	Committed    time.Time `json:"committed"`
	Disks        int       `json:"disks"`
	SizeBytes    int64     `json:"size_bytes" doc:"Of all disks"`
	ChargedBytes int64     `json:"charged_bytes" doc:"What it added to the repository"`
}

// PointPage is a part of a list of points, oldest first.
type PointPage struct {
	Items []Point `json:"items"`
	Next  string  `json:"next,omitempty" doc:"Pass it as after to continue; absent at the end"`
}

type listPointsInput struct {
	CloudPath
	Machine string `query:"machine" maxLength:"64"`
	After   string `query:"after" maxLength:"64"`
	Limit   int    `query:"limit" minimum:"1" maximum:"999" default:"200"`
}

func registerRepositories(h huma.API, p *Provider) {
	tags := []string{"repositories"}
	add(h, huma.Operation{OperationID: "list-repositories", Method: http.MethodGet, Path: "/v1/repositories", Tags: tags,
		Summary: "List the provider's repositories"}, p.listRepositories)
	add(h, huma.Operation{OperationID: "add-repository", Method: http.MethodPost, Path: "/v1/repositories", Tags: tags,
		Summary: "Add a repository", DefaultStatus: http.StatusCreated}, p.addRepository)
	add(h, huma.Operation{OperationID: "update-repository", Method: http.MethodPatch, Path: "/v1/repositories/{repository}", Tags: tags,
		Summary: "Change a repository"}, p.updateRepository)
	add(h, huma.Operation{OperationID: "remove-repository", Method: http.MethodDelete, Path: "/v1/repositories/{repository}", Tags: tags,
		Summary: "Forget a repository", Description: "Its objects stay where they are.", DefaultStatus: http.StatusNoContent}, p.removeRepository)

	registerUnknown(h, p)

	tags = []string{"cloud repositories"}
	const cloud = "/v1/tenants/{tenant}/cloud-repositories"
	add(h, huma.Operation{OperationID: "list-all-cloud-repositories", Method: http.MethodGet, Path: "/v1/cloud-repositories", Tags: tags,
		Summary: "List the cloud repositories of all tenants"}, p.listAllClouds)
	add(h, huma.Operation{OperationID: "list-cloud-repositories", Method: http.MethodGet, Path: cloud, Tags: tags,
		Summary: "List a tenant's cloud repositories"}, p.listClouds)
	add(h, huma.Operation{OperationID: "create-cloud-repository", Method: http.MethodPost, Path: cloud, Tags: tags,
		Summary: "Give a tenant a cloud repository", DefaultStatus: http.StatusCreated,
		Description: "With an id, what lies in the repository under it is taken into use again. Its catalogue is rebuilt by import-cloud-repository, before which it takes no writes."}, p.createCloud)
	add(h, huma.Operation{OperationID: "get-cloud-repository", Method: http.MethodGet, Path: cloud + "/{cloud}", Tags: tags,
		Summary: "Show a cloud repository"}, p.getCloud)
	add(h, huma.Operation{OperationID: "update-cloud-repository", Method: http.MethodPatch, Path: cloud + "/{cloud}", Tags: tags,
		Summary: "Change a cloud repository's name or quota"}, p.updateCloud)
	add(h, huma.Operation{OperationID: "delete-cloud-repository", Method: http.MethodDelete, Path: cloud + "/{cloud}", Tags: tags,
		Summary: "Delete an empty cloud repository", DefaultStatus: http.StatusNoContent}, p.deleteCloud)
	add(h, huma.Operation{OperationID: "list-points", Method: http.MethodGet, Path: cloud + "/{cloud}/points", Tags: tags,
		Summary: "List the points in a cloud repository"}, p.listPoints)
}

func (p *Provider) listRepositories(ctx context.Context, _ *struct{}) (*struct{ Body []Repository }, error) {
	list, err := p.Locations.List(ctx)
	if err != nil {
		return nil, err
	}
	return &struct{ Body []Repository }{each(list, repositoryOf)}, nil
}

func (p *Provider) addRepository(ctx context.Context, in *addRepositoryInput) (*repositoryOutput, error) {
	l, err := blob.Location{Name: in.Body.Name, Kind: blob.LocationDir, Path: in.Body.Path}.Clean()
	if err != nil {
		return nil, err
	}
	if err := p.Prepare(ctx, l); err != nil {
		return nil, err
	}
	if l, err = p.Locations.Create(ctx, l); err != nil {
		return nil, err
	}
	return &repositoryOutput{repositoryOf(l)}, nil
}

func (p *Provider) updateRepository(ctx context.Context, in *updateRepositoryInput) (*repositoryOutput, error) {
	l, err := p.Locations.Get(ctx, in.Repository)
	if err != nil {
		return nil, err
	}
	l.Version = in.Body.Version
	if in.Body.Name != nil {
		l.Name = *in.Body.Name
	}
	if in.Body.ReadOnly != nil {
		l.ReadOnly = *in.Body.ReadOnly
	}
	if l, err = p.Locations.Update(ctx, l); err != nil {
		return nil, err
	}
	return &repositoryOutput{repositoryOf(l)}, nil
}

func (p *Provider) removeRepository(ctx context.Context, in *RepositoryPath) (*struct{}, error) {
	return nil, p.Locations.Delete(ctx, in.Repository)
}

func (p *Provider) listAllClouds(ctx context.Context, in *CloudQuery) (*struct{ Body CloudPage }, error) {
	return p.clouds(ctx, quota.AnyTenant, *in)
}

func (p *Provider) listClouds(ctx context.Context, in *struct {
	TenantPath
	CloudQuery
}) (*struct{ Body CloudPage }, error) {
	if _, err := p.Tenants.Get(ctx, tenant.ID(in.Tenant)); err != nil {
		return nil, err
	}
	return p.clouds(ctx, tenant.ID(in.Tenant), in.CloudQuery)
}

func (p *Provider) clouds(ctx context.Context, t tenant.ID, q CloudQuery) (*struct{ Body CloudPage }, error) {
	list, err := p.Quotas.List(ctx, quota.Query{Tenant: t, Text: q.Text, After: quota.ID(q.After), Limit: q.Limit})
	if err != nil {
		return nil, err
	}
	page := CloudPage{Items: each(list, func(r quota.CloudRepository) CloudRepository { return cloudOf(ctx, r) })}
	if len(list) == q.Limit {
		page.Next = string(list[len(list)-1].ID)
	}
	return &struct{ Body CloudPage }{page}, nil
}

func (p *Provider) createCloud(ctx context.Context, in *createCloudInput) (*cloudOutput, error) {
	if _, err := p.Locations.Get(ctx, in.Body.Repository); err != nil {
		return nil, err
	}
	r := quota.CloudRepository{ID: quota.ID(strings.ToLower(in.Body.ID)), TenantID: tenant.ID(in.Tenant), Name: in.Body.Name,
		LocationID: in.Body.Repository, LimitBytes: in.Body.LimitBytes, ChunkSize: quota.DefaultChunkSize}
	var err error
	switch {
	case r.ID != "":
		r, err = p.adopt(ctx, r, in.Body.FormerTenant)
	case in.Body.FormerTenant != "":
		err = &tenant.InvalidError{Field: "former_tenant", Reason: "belongs to an id"}
	default:
		r, err = p.Quotas.Create(ctx, r)
	}
	if err != nil {
		return nil, err
	}
	return &cloudOutput{cloudOf(ctx, r)}, nil
}

func (p *Provider) getCloud(ctx context.Context, in *CloudPath) (*cloudOutput, error) {
	r, err := p.cloud(ctx, *in)
	if err != nil {
		return nil, err
	}
	return &cloudOutput{cloudOf(ctx, r)}, nil
}

func (p *Provider) cloud(ctx context.Context, in CloudPath) (quota.CloudRepository, error) {
	return p.Quotas.Get(ctx, tenant.ID(in.Tenant), quota.ID(in.Cloud))
}

func (p *Provider) updateCloud(ctx context.Context, in *updateCloudInput) (*cloudOutput, error) {
	r, err := p.cloud(ctx, in.CloudPath)
	if err != nil {
		return nil, err
	}
	r.Version = in.Body.Version
	if in.Body.Name != nil {
		r.Name = *in.Body.Name
	}
	if in.Body.LimitBytes != nil {
		r.LimitBytes = *in.Body.LimitBytes
	}
	if r, err = p.Quotas.Update(ctx, r); err != nil {
		return nil, err
	}
	return &cloudOutput{cloudOf(ctx, r)}, nil
}

func (p *Provider) deleteCloud(ctx context.Context, in *CloudPath) (*struct{}, error) {
	return nil, p.Quotas.Delete(ctx, tenant.ID(in.Tenant), quota.ID(in.Cloud))
}

func (p *Provider) listPoints(ctx context.Context, in *listPointsInput) (*struct{ Body PointPage }, error) {
	if _, err := p.cloud(ctx, in.CloudPath); err != nil {
		return nil, err
	}
	list, err := p.Points(ctx, in.Cloud, point.MachineID(in.Machine), point.ID(in.After), in.Limit+1)
	if err != nil {
		return nil, err
	}
	page := PointPage{}
	if len(list) > in.Limit {
		list = list[:in.Limit]
		page.Next = string(list[in.Limit-1].ID)
	}
	page.Items = each(list, pointOf)
	return &struct{ Body PointPage }{page}, nil
}

func pointOf(p gateway.PointInfo) Point {
	return Point{ID: string(p.ID), Machine: string(p.Machine), Previous: string(p.Previous), Kind: string(p.Kind), Taken: p.Taken.UTC(),
		Committed: p.Committed.UTC(), Disks: p.Disks, SizeBytes: p.SizeBytes, ChargedBytes: p.ChargedBytes}
}
