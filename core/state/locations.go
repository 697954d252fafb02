package state

import (
	"context"
	"database/sql"
	"errors"
	"fmt"

	"github.com/holdfast-dr/holdfast/core/blob"
	"github.com/holdfast-dr/holdfast/core/tenant"
)

type locations struct{ db *DB }

var _ blob.LocationStore = locations{}

// Locations keeps the provider's own repositories.
func (db *DB) Locations() blob.LocationStore { return locations{db} }

const locationColumns = "id, name, kind, path, read_only, created, updated, version"

func scanLocation(s scanner) (l blob.Location, err error) {
	var created, updated int64
	err = s.Scan(&l.ID, &l.Name, &l.Kind, &l.Path, &l.ReadOnly, &created, &updated, &l.Version)
	l.Created, l.Updated = moment(created), moment(updated)
	return l, err
}

func (t *tx) location(ctx context.Context, id string) (blob.Location, error) {
	l, err := scanLocation(t.row(ctx, "SELECT "+locationColumns+" FROM locations WHERE id = $1", id))
	if errors.Is(err, sql.ErrNoRows) {
		return l, fmt.Errorf("repository %s: %w", id, blob.ErrLocationNotFound)
	}
	if err != nil {
		return l, fmt.Errorf("read repository %s: %w", id, err)
	}
	return l, nil
}

func (t *tx) locations(ctx context.Context) ([]blob.Location, error) {
	all, err := collect(ctx, t, scanLocation, "SELECT "+locationColumns+" FROM locations ORDER BY name_fold")
	if err != nil {
		return nil, fmt.Errorf("list repositories: %w", err)
	}
	return all, nil
}

func (t *tx) auditLocation(ctx context.Context, action string, l blob.Location) error {
	return t.audit(ctx, tenant.Provider, action, "location:"+l.ID,
		map[string]any{"name": l.Name, "kind": l.Kind, "path": l.Path, "read_only": l.ReadOnly})
}

// lockLocations serialises the creation of locations: two that would contain
// each other must not both find themselves alone.
func (t *tx) lockLocations(ctx context.Context) error {
	if t.db.engine != enginePostgres {
		return nil // one writer anyway
	}
	if _, err := t.exec(ctx, "LOCK TABLE locations IN SHARE ROW EXCLUSIVE MODE"); err != nil {
		return fmt.Errorf("lock repositories: %w", err)
	}
	return nil
}

func (s locations) Create(ctx context.Context, l blob.Location) (blob.Location, error) {
	l, err := l.Clean()
	if err != nil {
		return blob.Location{}, err
	}
	if l.ID == "" {
		l.ID = newID()
	}
	l.Version = 1
	err = s.db.change(ctx, func(t *tx) error {
		if err := t.lockLocations(ctx); err != nil {
			return err
		}
		others, err := t.locations(ctx)
		if err != nil {
			return err
		}
		for _, other := range others {
			if err := l.Apart(other); err != nil {
				return err
			}
		}
		now, err := t.now(ctx)
		if err != nil {
			return err
		}
		l.Created, l.Updated = now, now
		_, err = t.exec(ctx, `INSERT INTO locations (id, name, name_fold, kind, path, read_only, created, updated, version)
			VALUES ($1, $2, $3, $4, $5, $6, $7, $7, 1)`,
			l.ID, l.Name, tenant.Fold(l.Name), l.Kind, l.Path, l.ReadOnly, micros(now))
		if isUnique(err) {
			return fmt.Errorf("%q: %w", l.Name, blob.ErrLocationExists)
		}
		if err != nil {
			return fmt.Errorf("create repository: %w", err)
		}
		return t.auditLocation(ctx, "location.create", l)
	})
	if err != nil {
		return blob.Location{}, err
	}
	return l, nil
}

func (s locations) Get(ctx context.Context, id string) (l blob.Location, err error) {
	err = s.db.read(ctx, func(t *tx) error {
		l, err = t.location(ctx, id)
		return err
	})
	return l, err
}

func (s locations) List(ctx context.Context) (all []blob.Location, err error) {
	err = s.db.read(ctx, func(t *tx) error {
		all, err = t.locations(ctx)
		return err
	})
	return all, err
}

func (s locations) Update(ctx context.Context, l blob.Location) (stored blob.Location, err error) {
	err = s.db.change(ctx, func(t *tx) error {
		old, err := t.location(ctx, l.ID)
		if err != nil {
			return err
		}
		l.Kind, l.Path = old.Kind, old.Path
		if err := l.Check(); err != nil {
			return err
		}
		now, err := t.now(ctx)
		if err != nil {
			return err
		}
		n, err := t.exec(ctx, "UPDATE locations SET name = $1, name_fold = $2, read_only = $3, updated = $4, version = version + 1 WHERE id = $5 AND version = $6",
			l.Name, tenant.Fold(l.Name), l.ReadOnly, micros(now), l.ID, l.Version)
		if isUnique(err) {
			return fmt.Errorf("%q: %w", l.Name, blob.ErrLocationExists)
		}
		if err != nil {
			return fmt.Errorf("update repository %s: %w", l.ID, err)
		}
		if n == 0 {
			return fmt.Errorf("repository %s: %w", l.ID, blob.ErrLocationChanged)
		}
		if stored, err = t.location(ctx, l.ID); err != nil {
			return err
		}
		return t.auditLocation(ctx, "location.update", stored)
	})
	if err != nil {
		return blob.Location{}, err
	}
	return stored, nil
}

func (s locations) Delete(ctx context.Context, id string) error {
	return s.db.change(ctx, func(t *tx) error {
		l, err := t.location(ctx, id)
		if err != nil {
			return err
		}
		// Retired cloud repositories count: their objects lie there still. The foreign
		// key refuses what is created between the count and the deletion.
		var used int
		if err := t.row(ctx, "SELECT count(*) FROM cloud_repositories WHERE location_id = $1", id).Scan(&used); err != nil {
			return fmt.Errorf("count cloud repositories: %w", err)
		}
		if used > 0 {
			return &blob.InUseError{Name: l.Name, Repositories: used}
		}
		_, err = t.exec(ctx, "DELETE FROM locations WHERE id = $1", id)
		if isForeign(err) {
			return &blob.InUseError{Name: l.Name, Repositories: 1}
		}
		if err != nil {
			return fmt.Errorf("delete repository %s: %w", id, err)
		}
		return t.auditLocation(ctx, "location.delete", l)
	})
}
