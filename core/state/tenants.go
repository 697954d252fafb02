package state

import (
	"context"
	"fmt"

	"github.com/holdfast-dr/holdfast/core/tenant"
)

type tenants struct{ db *DB }

var _ tenant.Store = tenants{}

// Tenants keeps tenants.
func (db *DB) Tenants() tenant.Store { return tenants{db} }

const tenantColumns = "id, type, name, description, enabled, lease_end, max_tasks, created, updated, version"

func scanTenant(s scanner) (t tenant.Tenant, err error) {
	var leaseEnd, created, updated int64
	err = s.Scan(&t.ID, &t.Type, &t.Name, &t.Description, &t.Enabled, &leaseEnd, &t.MaxTasks, &created, &updated, &t.Version)
	t.LeaseEnd, t.Created, t.Updated = moment(leaseEnd), moment(created), moment(updated)
	return t, err
}

// tenant reads a tenant that is not deleted.
func (t *tx) tenant(ctx context.Context, id tenant.ID) (tenant.Tenant, error) {
	v, err := scanTenant(t.row(ctx, "SELECT "+tenantColumns+" FROM tenants WHERE id = $1 AND deleted = 0", string(id)))
	return v, notFound(err, "tenant", string(id))
}

// lockTenant keeps a tenant from being deleted until the transaction ends.
func (t *tx) lockTenant(ctx context.Context, id tenant.ID) error {
	n, err := t.exec(ctx, "UPDATE tenants SET deleted = deleted WHERE id = $1 AND deleted = 0", string(id))
	if err != nil {
		return fmt.Errorf("lock tenant %s: %w", id, err)
	}
	if n == 0 {
		return fmt.Errorf("tenant %s: %w", id, tenant.ErrNotFound)
	}
	return nil
}

// auditTenant writes into the tenant's chain and, for what concerns the
// provider's list of tenants, into the provider's.
func (t *tx) auditTenant(ctx context.Context, action string, v tenant.Tenant) error {
	detail := map[string]any{"name": v.Name, "enabled": v.Enabled, "max_tasks": v.MaxTasks}
	if !v.LeaseEnd.IsZero() {
		detail["lease_end"] = v.LeaseEnd
	}
	target := "tenant:" + string(v.ID)
	if err := t.audit(ctx, v.ID, action, target, detail); err != nil {
		return err
	}
	return t.audit(ctx, tenant.Provider, action, target, detail)
}

func (s tenants) Create(ctx context.Context, v tenant.Tenant) (tenant.Tenant, error) {
	if v.Type == "" {
		v.Type = tenant.Standalone
	}
	if v.MaxTasks == 0 {
		v.MaxTasks = tenant.DefaultTasks
	}
	if err := v.Check(); err != nil {
		return tenant.Tenant{}, err
	}
	if v.ID == "" {
		v.ID = tenant.ID(newID())
	}
	v.Version = 1
	v.LeaseEnd = moment(micros(v.LeaseEnd))
	err := s.db.change(ctx, func(t *tx) error {
		now, err := t.now(ctx)
		if err != nil {
			return err
		}
		v.Created, v.Updated = now, now
		_, err = t.exec(ctx, `INSERT INTO tenants
			(id, type, name, name_fold, description, enabled, lease_end, max_tasks, created, updated, version, deleted)
			VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $9, 1, 0)`,
			string(v.ID), string(v.Type), v.Name, tenant.Fold(v.Name), v.Description, v.Enabled, micros(v.LeaseEnd), v.MaxTasks, micros(now))
		if isUnique(err) {
			return fmt.Errorf("tenant %q: %w", v.Name, tenant.ErrExists)
		}
		if err != nil {
			return fmt.Errorf("create tenant: %w", err)
		}
		return t.auditTenant(ctx, "tenant.create", v)
	})
	if err != nil {
		return tenant.Tenant{}, err
	}
	return v, nil
}

func (s tenants) Get(ctx context.Context, id tenant.ID) (v tenant.Tenant, err error) {
	err = s.db.read(ctx, func(t *tx) error {
		v, err = t.tenant(ctx, id)
		return err
	})
	return v, err
}

func (s tenants) ByName(ctx context.Context, name string) (v tenant.Tenant, err error) {
	err = s.db.read(ctx, func(t *tx) error {
		v, err = scanTenant(t.row(ctx, "SELECT "+tenantColumns+" FROM tenants WHERE name_fold = $1 AND deleted = 0", tenant.Fold(name)))
		return notFound(err, "tenant", name)
	})
	return v, err
}

func (s tenants) List(ctx context.Context, q tenant.Query) (all []tenant.Tenant, err error) {
	var w where
	w.and("deleted = 0")
	if q.Text != "" {
		w.and(`(name_fold LIKE ? ESCAPE '\' OR lower(description) LIKE ? ESCAPE '\')`, like(tenant.Fold(q.Text)), like(tenant.Fold(q.Text)))
	}
	if q.After != "" {
		w.and("name_fold > ?", tenant.Fold(q.After))
	}
	query := fmt.Sprintf("SELECT %s FROM tenants%s ORDER BY name_fold LIMIT %d",
		tenantColumns, w.sql(), bounded(q.Limit, tenant.DefaultLimit, tenant.MaxLimit))
	err = s.db.read(ctx, func(t *tx) error {
		all, err = collect(ctx, t, scanTenant, query, w.args...)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("list tenants: %w", err)
	}
	return all, nil
}

func (s tenants) Update(ctx context.Context, v tenant.Tenant) (stored tenant.Tenant, err error) {
	err = s.db.change(ctx, func(t *tx) error {
		old, err := t.tenant(ctx, v.ID)
		if err != nil {
			return err
		}
		v.Type, v.Enabled = old.Type, old.Enabled
		if err := v.Check(); err != nil {
			return err
		}
		now, err := t.now(ctx)
		if err != nil {
			return err
		}
		n, err := t.exec(ctx, `UPDATE tenants SET name = $1, name_fold = $2, description = $3, lease_end = $4, max_tasks = $5,
			updated = $6, version = version + 1 WHERE id = $7 AND version = $8 AND deleted = 0`,
			v.Name, tenant.Fold(v.Name), v.Description, micros(v.LeaseEnd), v.MaxTasks, micros(now), string(v.ID), v.Version)
		if isUnique(err) {
			return fmt.Errorf("tenant %q: %w", v.Name, tenant.ErrExists)
		}
		if err != nil {
			return fmt.Errorf("update tenant %s: %w", v.ID, err)
		}
		if n == 0 {
			return fmt.Errorf("tenant %s: %w", v.ID, tenant.ErrChanged)
		}
		if stored, err = t.tenant(ctx, v.ID); err != nil {
			return err
		}
		return t.auditTenant(ctx, "tenant.update", stored)
	})
	if err != nil {
		return tenant.Tenant{}, err
	}
	return stored, nil
}

func (s tenants) SetEnabled(ctx context.Context, id tenant.ID, enabled bool) (stored tenant.Tenant, err error) {
	action := "tenant.disable"
	if enabled {
		action = "tenant.enable"
	}
	err = s.db.change(ctx, func(t *tx) error {
		now, err := t.now(ctx)
		if err != nil {
			return err
		}
		n, err := t.exec(ctx, "UPDATE tenants SET enabled = $1, updated = $2, version = version + 1 WHERE id = $3 AND deleted = 0",
			enabled, micros(now), string(id))
		if err != nil {
			return fmt.Errorf("set tenant %s: %w", id, err)
		}
		if n == 0 {
			return fmt.Errorf("tenant %s: %w", id, tenant.ErrNotFound)
		}
		if stored, err = t.tenant(ctx, id); err != nil {
			return err
		}
		return t.auditTenant(ctx, action, stored)
	})
	return stored, err
}

func (s tenants) Delete(ctx context.Context, id tenant.ID, backups tenant.Backups) error {
	if err := backups.Check(); err != nil {
		return err
	}
	return s.db.change(ctx, func(t *tx) error {
		v, err := t.tenant(ctx, id)
		if err != nil {
			return err
		}
		if err := t.lockTenant(ctx, id); err != nil {
			return err
		}
		now, err := t.now(ctx)
		if err != nil {
			return err
		}
		if err := t.retireRepositories(ctx, v, backups, micros(now)); err != nil {
			return err
		}
		// Agents stay as rows, revoked: the listener has to recognise them.
		for _, statement := range []string{
			"DELETE FROM users WHERE tenant_id = $1", // their tokens go with them
			"DELETE FROM enrolments WHERE tenant_id = $1",
		} {
			if _, err := t.exec(ctx, statement, string(id)); err != nil {
				return fmt.Errorf("delete tenant %s: %w", id, err)
			}
		}
		for _, statement := range []string{
			"UPDATE agents SET revoked = $1 WHERE tenant_id = $2 AND revoked = 0",
			"UPDATE tenants SET deleted = $1, enabled = FALSE WHERE id = $2 AND deleted = 0",
		} {
			if _, err := t.exec(ctx, statement, micros(now), string(id)); err != nil {
				return fmt.Errorf("delete tenant %s: %w", id, err)
			}
		}
		return t.auditTenant(ctx, "tenant.delete", v)
	})
}

// retireRepositories takes a tenant's cloud repositories out of use, or refuses
// while they store something and the caller has not said what becomes of it.
func (t *tx) retireRepositories(ctx context.Context, v tenant.Tenant, backups tenant.Backups, now int64) error {
	// The lock of the rows comes first, so that no commit slips in between the
	// count and the retirement.
	if _, err := t.exec(ctx, "UPDATE cloud_repositories SET version = version + 1, updated = $1 WHERE tenant_id = $2 AND retired = 0",
		now, string(v.ID)); err != nil {
		return fmt.Errorf("lock cloud repositories of tenant %s: %w", v.ID, err)
	}
	var count int
	var used int64
	err := t.row(ctx, `SELECT count(*), CAST(coalesce(sum(used_bytes), 0) AS BIGINT) FROM cloud_repositories
		WHERE tenant_id = $1 AND retired = 0 AND used_bytes > 0`, string(v.ID)).Scan(&count, &used)
	if err != nil {
		return fmt.Errorf("count backups of tenant %s: %w", v.ID, err)
	}
	if count > 0 && backups == tenant.BackupsRefuse {
		return &tenant.HasBackupsError{Name: v.Name, Repositories: count, UsedBytes: used}
	}
	if backups == tenant.BackupsRefuse {
		backups = tenant.BackupsDelete // nothing but what sessions left behind
	}
	if _, err := t.exec(ctx, `DELETE FROM reservations WHERE repository_id IN
		(SELECT id FROM cloud_repositories WHERE tenant_id = $1 AND retired = 0)`, string(v.ID)); err != nil {
		return fmt.Errorf("release quota of tenant %s: %w", v.ID, err)
	}
	if _, err := t.exec(ctx, "UPDATE cloud_repositories SET retired = $1, backups = $2, pending_bytes = 0, unreferenced_bytes = 0 WHERE tenant_id = $3 AND retired = 0",
		now, string(backups), string(v.ID)); err != nil {
		return fmt.Errorf("retire cloud repositories of tenant %s: %w", v.ID, err)
	}
	return nil
}
