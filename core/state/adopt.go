package state

import (
	"context"
	"errors"
	"fmt"

	"github.com/holdfast-dr/holdfast/core/quota"
	"github.com/holdfast-dr/holdfast/core/tenant"
)

// Adopt creates a cloud repository of objects that are there.
func (s quotas) Adopt(ctx context.Context, a quota.Adoption) (quota.CloudRepository, error) {
	if a.ID == "" {
		return quota.CloudRepository{}, &tenant.InvalidError{Field: "id", Reason: "must be given"}
	}
	if a.ChunkSize == 0 {
		a.ChunkSize = quota.DefaultChunkSize
	}
	if err := a.Check(); err != nil {
		return quota.CloudRepository{}, err
	}
	var adopted quota.CloudRepository
	err := s.db.change(ctx, func(t *tx) error {
		if err := t.lockTenant(ctx, a.TenantID); err != nil {
			return err
		}
		taker, err := t.tenant(ctx, a.TenantID)
		if err != nil {
			return err
		}
		adopted = a.CloudRepository
		old, err := t.repository(ctx, quota.AnyTenant, a.ID)
		switch {
		case errors.Is(err, tenant.ErrNotFound):
			if err := a.Permit(taker); err != nil {
				return err
			}
			err = t.insertRepository(ctx, &adopted)
		case err == nil:
			err = t.readmit(ctx, taker, old, a, &adopted)
		}
		if err != nil {
			return err
		}
		return t.audit(ctx, adopted.TenantID, "repository.adopt", "repository:"+string(adopted.ID), map[string]any{
			"name": adopted.Name, "location": adopted.LocationID, "limit_bytes": adopted.LimitBytes, "former_tenant": a.Whose, "said": a.Said})
	})
	if err != nil {
		return quota.CloudRepository{}, err
	}
	return adopted, nil
}

// readmit takes a retired cloud repository of a deleted tenant into use again,
// with its catalogue.
func (t *tx) readmit(ctx context.Context, taker tenant.Tenant, old quota.CloudRepository, a quota.Adoption, adopted *quota.CloudRepository) error {
	switch {
	case old.Retired.IsZero():
		return &quota.TakenError{ID: old.ID, Name: old.Name}
	case old.Backups != tenant.BackupsKeep:
		return &quota.TakenError{ID: old.ID, Name: old.Name, Erased: true}
	case old.LocationID != a.LocationID:
		return &quota.ElsewhereError{ID: old.ID, LocationID: old.LocationID}
	}
	a.WhoseID = old.TenantID // the database knows better than what lies in the store
	if err := t.row(ctx, "SELECT name FROM tenants WHERE id = $1", string(old.TenantID)).Scan(&a.Whose); err != nil {
		return fmt.Errorf("read the former tenant of cloud repository %s: %w", old.ID, err)
	}
	if err := a.Permit(taker); err != nil {
		return err
	}
	now, err := t.now(ctx)
	if err != nil {
		return err
	}
	// The condition serialises two adoptions, and this one with the erasure.
	n, err := t.exec(ctx, `UPDATE cloud_repositories SET tenant_id = $1, name = $2, name_fold = $3, limit_bytes = $4, updated = $5,
		version = version + 1, retired = 0, backups = '', pending_bytes = 0 WHERE id = $6 AND retired > 0 AND backups = $7`,
		string(a.TenantID), a.Name, tenant.Fold(a.Name), a.LimitBytes, micros(now), string(a.ID), string(tenant.BackupsKeep))
	if isUnique(err) {
		return fmt.Errorf("cloud repository %q: %w", a.Name, tenant.ErrExists)
	}
	if err != nil {
		return fmt.Errorf("adopt cloud repository %s: %w", a.ID, err)
	}
	if n == 0 {
		return fmt.Errorf("cloud repository %s: %w", a.ID, tenant.ErrChanged)
	}
	*adopted, err = t.repository(ctx, a.TenantID, a.ID)
	return err
}

// Owned tells what the database has under some ids.
func (s quotas) Owned(ctx context.Context, ids []quota.ID) (owned map[quota.ID]quota.Owned, err error) {
	if len(ids) > quota.MaxOwned {
		return nil, &tenant.InvalidError{Field: "ids", Reason: fmt.Sprintf("at most %d at once", quota.MaxOwned)}
	}
	err = s.db.read(ctx, func(t *tx) error {
		owned = map[quota.ID]quota.Owned{}
		for _, id := range ids {
			r, err := t.repository(ctx, quota.AnyTenant, id)
			if errors.Is(err, tenant.ErrNotFound) {
				continue
			}
			if err != nil {
				return err
			}
			o := quota.Owned{TenantID: r.TenantID, Name: r.Name, Retired: !r.Retired.IsZero(), Backups: r.Backups}
			if err := t.row(ctx, "SELECT name FROM tenants WHERE id = $1", string(r.TenantID)).Scan(&o.TenantName); err != nil {
				return fmt.Errorf("read tenant %s: %w", r.TenantID, err)
			}
			owned[id] = o
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("look up cloud repositories: %w", err)
	}
	return owned, nil
}
