package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"github.com/holdfast-dr/holdfast/core/api"
	"github.com/holdfast-dr/holdfast/core/blob"
	"github.com/holdfast-dr/holdfast/core/blob/dir"
	"github.com/holdfast-dr/holdfast/core/quota"
	"github.com/holdfast-dr/holdfast/core/repository"
	"github.com/holdfast-dr/holdfast/core/tenant"
)

// Bounds of a look at what lies in a location: of the objects that are counted
// for one repository (64 MiB each, mostly), and after how many a page ends.
const (
	countOne  = 50_000
	countPage = 200_000
	// ownedPage is how many ids the database is asked for at once.
	ownedPage = 200
)

// labelOf is what the database says of a cloud repository.
func (s *repositories) labelOf(ctx context.Context, id quota.ID) (repository.Label, error) {
	r, err := s.db.Quotas().Get(ctx, quota.AnyTenant, id)
	if err != nil {
		return repository.Label{}, err
	}
	owned, err := s.db.Quotas().Owned(ctx, []quota.ID{id})
	return repository.Label{Tenant: string(r.TenantID), TenantName: owned[id].TenantName, Name: r.Name, LimitBytes: r.LimitBytes}, err
}

// label writes into the store whose the repository is, if it takes writes.
func (o *openRepository) label(ctx context.Context) error {
	if o.repository.Writable() != nil {
		return nil
	}
	l, err := o.named(ctx)
	if err != nil {
		return err
	}
	return o.repository.SetLabel(ctx, l)
}

// look opens a location to look at what is there, and makes nothing.
func look(l blob.Location) (*dir.Store, error) {
	if _, err := os.Stat(l.Path); errors.Is(err, fs.ErrNotExist) {
		return nil, &blob.LocationError{Field: "path", Reason: fmt.Sprintf("%s does not exist: is its disk mounted?", l.Path)}
	} else if err != nil {
		return nil, fmt.Errorf("open repository %q: %w", l.Name, err)
	}
	return dir.Open(l.Path, dir.Options{})
}

// find looks at what lies in a location under an id.
func (s *repositories) find(ctx context.Context, l blob.Location, id string) (_ api.UnknownRepository, err error) {
	blobs, err := look(l)
	if err != nil {
		return api.UnknownRepository{}, err
	}
	defer func() { err = errors.Join(err, blobs.Close()) }()
	f, err := repository.Find(ctx, blobs, id, countOne)
	if errors.Is(err, repository.ErrNotFound) {
		return api.UnknownRepository{}, fmt.Errorf("repository %s: %w", id, tenant.ErrNotFound)
	}
	if errors.Is(err, repository.ErrRefused) {
		return api.UnknownRepository{}, &tenant.InvalidError{Field: "id", Reason: err.Error()}
	}
	return unknownOf(l, f), err
}

func unknownOf(l blob.Location, f repository.Found) api.UnknownRepository {
	u := api.UnknownRepository{ID: f.ID, Repository: l.ID, Tenant: f.Label.Tenant, TenantName: f.Label.TenantName, Name: f.Label.Name,
		LimitBytes: f.Label.LimitBytes, Points: f.Points, Bytes: f.Bytes, Partial: f.Partial, ChunkSize: f.ChunkSize}
	if !f.Newest.IsZero() {
		newest := f.Newest.UTC().Truncate(time.Second)
		u.Newest = &newest
	}
	return u
}

// unknown lists what lies in a location and belongs to no cloud repository in
// use, in the order of the ids.
func (s *repositories) unknown(ctx context.Context, l blob.Location, after string, limit int) (page api.UnknownPage, err error) {
	page.Items = []api.UnknownRepository{}
	blobs, err := look(l)
	if err != nil {
		return page, err
	}
	defer func() { err = errors.Join(err, blobs.Close()) }()
	counted := 0
	var ids []quota.ID
	// judge goes through ids and reports whether the page is full.
	judge := func() (bool, error) {
		owned, err := s.db.Quotas().Owned(ctx, ids)
		if err != nil {
			return false, err
		}
		for _, id := range ids {
			o, known := owned[id]
			if known && (!o.Retired || o.Backups != tenant.BackupsKeep) {
				continue
			}
			f, err := repository.Find(ctx, blobs, string(id), countOne)
			if errors.Is(err, repository.ErrNotFound) { // an empty folder
				continue
			}
			if err != nil && !errors.Is(err, repository.ErrRefused) {
				return false, err
			}
			counted += f.Objects
			u := unknownOf(l, f)
			if known {
				u.Kept, u.Tenant, u.TenantName, u.Name = true, string(o.TenantID), o.TenantName, o.Name
			}
			page.Items = append(page.Items, u)
			if len(page.Items) == limit || counted >= countPage {
				page.Next = string(id)
				return true, nil
			}
		}
		ids = ids[:0]
		return false, nil
	}
	for id, err := range repository.IDs(ctx, blobs) {
		if err != nil {
			return page, err
		}
		if id <= after {
			continue
		}
		if ids = append(ids, quota.ID(id)); len(ids) < ownedPage {
			continue
		}
		if full, err := judge(); err != nil || full {
			return page, err
		}
	}
	_, err = judge()
	return page, err
}
