package state

import (
	"context"
	"fmt"

	"github.com/holdfast-dr/holdfast/core/quota"
	"github.com/holdfast-dr/holdfast/core/tenant"
)

type quotas struct{ db *DB }

var _ quota.Store = quotas{}

// Quotas keeps cloud repositories and what is reserved in them.
func (db *DB) Quotas() quota.Store { return quotas{db} }

const repositoryColumns = `id, tenant_id, name, location_id, limit_bytes, used_bytes, pending_bytes, unreferenced_bytes, chunk_size,
	created, updated, version, retired, backups`

func scanRepository(s scanner) (r quota.CloudRepository, err error) {
	var created, updated, retired int64
	err = s.Scan(&r.ID, &r.TenantID, &r.Name, &r.LocationID, &r.LimitBytes, &r.UsedBytes, &r.PendingBytes, &r.UnreferencedBytes, &r.ChunkSize,
		&created, &updated, &r.Version, &retired, &r.Backups)
	r.Created, r.Updated, r.Retired = moment(created), moment(updated), moment(retired)
	return r, err
}

// repository reads a cloud repository in a tenant's scope. Retired ones are
// seen only without a scope.
func (t *tx) repository(ctx context.Context, in tenant.ID, id quota.ID) (quota.CloudRepository, error) {
	var w where
	w.and("id = ?", string(id))
	if in != quota.AnyTenant {
		w.and("tenant_id = ? AND retired = 0", string(in))
	}
	r, err := scanRepository(t.row(ctx, "SELECT "+repositoryColumns+" FROM cloud_repositories"+w.sql(), w.args...))
	return r, notFound(err, "cloud repository", string(id))
}

func (t *tx) auditRepository(ctx context.Context, action string, r quota.CloudRepository) error {
	return t.audit(ctx, r.TenantID, action, "repository:"+string(r.ID), map[string]any{
		"name": r.Name, "location": r.LocationID, "limit_bytes": r.LimitBytes})
}

func (s quotas) Create(ctx context.Context, r quota.CloudRepository) (quota.CloudRepository, error) {
	if r.ChunkSize == 0 {
		r.ChunkSize = quota.DefaultChunkSize
	}
	if err := r.Check(); err != nil {
		return quota.CloudRepository{}, err
	}
	if r.ID == "" {
		r.ID = quota.ID(newID())
	}
	err := s.db.change(ctx, func(t *tx) error {
		if err := t.lockTenant(ctx, r.TenantID); err != nil {
			return err
		}
		if err := t.insertRepository(ctx, &r); err != nil {
			return err
		}
		return t.auditRepository(ctx, "repository.create", r)
	})
	if err != nil {
		return quota.CloudRepository{}, err
	}
	return r, nil
}

// insertRepository adds an empty cloud repository; the caller has locked its
// tenant.
func (t *tx) insertRepository(ctx context.Context, r *quota.CloudRepository) error {
	now, err := t.now(ctx)
	if err != nil {
		return err
	}
	r.UsedBytes, r.PendingBytes, r.UnreferencedBytes, r.Version = 0, 0, 0, 1
	r.Created, r.Updated = now, now
	_, err = t.exec(ctx, `INSERT INTO cloud_repositories
		(id, tenant_id, name, name_fold, location_id, limit_bytes, used_bytes, pending_bytes, chunk_size, created, updated, version, retired, backups)
		VALUES ($1, $2, $3, $4, $5, $6, 0, 0, $7, $8, $8, 1, 0, '')`,
		string(r.ID), string(r.TenantID), r.Name, tenant.Fold(r.Name), r.LocationID, r.LimitBytes, r.ChunkSize, micros(now))
	switch {
	case isUnique(err):
		return fmt.Errorf("cloud repository %q: %w", r.Name, tenant.ErrExists)
	case isForeign(err):
		return fmt.Errorf("repository %s: %w", r.LocationID, tenant.ErrNotFound)
	case err != nil:
		return fmt.Errorf("create cloud repository: %w", err)
	}
	return nil
}

func (s quotas) Get(ctx context.Context, in tenant.ID, id quota.ID) (r quota.CloudRepository, err error) {
	err = s.db.read(ctx, func(t *tx) error {
		r, err = t.repository(ctx, in, id)
		return err
	})
	return r, err
}

func (s quotas) List(ctx context.Context, q quota.Query) (all []quota.CloudRepository, err error) {
	var w where
	if q.Tenant != quota.AnyTenant {
		w.and("tenant_id = ?", string(q.Tenant))
	}
	if q.Retired {
		w.and("retired > 0")
	} else {
		w.and("retired = 0")
	}
	if q.LocationID != "" {
		w.and("location_id = ?", q.LocationID)
	}
	if q.Text != "" {
		w.and(`name_fold LIKE ? ESCAPE '\'`, like(tenant.Fold(q.Text)))
	}
	if q.After != "" {
		w.and("id > ?", string(q.After))
	}
	query := fmt.Sprintf("SELECT %s FROM cloud_repositories%s ORDER BY id LIMIT %d",
		repositoryColumns, w.sql(), bounded(q.Limit, tenant.DefaultLimit, tenant.MaxLimit))
	err = s.db.read(ctx, func(t *tx) error {
		all, err = collect(ctx, t, scanRepository, query, w.args...)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("list cloud repositories: %w", err)
	}
	return all, nil
}

func (s quotas) Update(ctx context.Context, r quota.CloudRepository) (stored quota.CloudRepository, err error) {
	err = s.db.change(ctx, func(t *tx) error {
		old, err := t.repository(ctx, r.TenantID, r.ID)
		if err != nil {
			return err
		}
		r.LocationID, r.ChunkSize = old.LocationID, old.ChunkSize
		if err := r.Check(); err != nil {
			return err
		}
		now, err := t.now(ctx)
		if err != nil {
			return err
		}
		n, err := t.exec(ctx, `UPDATE cloud_repositories SET name = $1, name_fold = $2, limit_bytes = $3, updated = $4, version = version + 1
			WHERE id = $5 AND tenant_id = $6 AND version = $7 AND retired = 0`,
			r.Name, tenant.Fold(r.Name), r.LimitBytes, micros(now), string(r.ID), string(r.TenantID), r.Version)
		if isUnique(err) {
			return fmt.Errorf("cloud repository %q: %w", r.Name, tenant.ErrExists)
		}
		if err != nil {
			return fmt.Errorf("update cloud repository %s: %w", r.ID, err)
		}
		if n == 0 {
			return fmt.Errorf("cloud repository %s: %w", r.ID, tenant.ErrChanged)
		}
		if stored, err = t.repository(ctx, r.TenantID, r.ID); err != nil {
			return err
		}
		return t.auditRepository(ctx, "repository.update", stored)
	})
	if err != nil {
		return quota.CloudRepository{}, err
	}
	return stored, nil
}

func (s quotas) Delete(ctx context.Context, in tenant.ID, id quota.ID) error {
	return s.db.change(ctx, func(t *tx) error {
		r, err := t.repository(ctx, in, id)
		if err != nil {
			return err
		}
		n, err := t.exec(ctx, `DELETE FROM cloud_repositories WHERE id = $1 AND used_bytes = 0 AND pending_bytes = unreferenced_bytes`, string(id))
		if isForeign(err) { // points of the catalogue, or charged by another way
			return &quota.NotEmptyError{Repository: r.Name, UsedBytes: r.UsedBytes, Pending: r.PendingBytes}
		}
		if err != nil {
			return fmt.Errorf("delete cloud repository %s: %w", id, err)
		}
		if n == 0 {
			return &quota.NotEmptyError{Repository: r.Name, UsedBytes: r.UsedBytes, Pending: r.PendingBytes}
		}
		return t.auditRepository(ctx, "repository.delete", r)
	})
}

func (s quotas) Reserve(ctx context.Context, in tenant.ID, id quota.ID, session string, bytes int64) (v quota.Reservation, err error) {
	err = s.db.write(ctx, func(t *tx) error {
		v, err = t.reserve(ctx, in, id, session, bytes)
		return err
	})
	return v, err
}

func (s quotas) Commit(ctx context.Context, in tenant.ID, id quota.ID, session string, charge int64) error {
	return s.db.write(ctx, func(t *tx) error { return t.settle(ctx, in, id, settlement{session: session, charge: charge}) })
}

func (s quotas) Release(ctx context.Context, in tenant.ID, id quota.ID, session string) error {
	return s.db.write(ctx, func(t *tx) error { return t.settle(ctx, in, id, settlement{session: session, release: true}) })
}

// reserve adds bytes to what a session holds. The condition in the UPDATE is the
// whole of the quota: two writers are serialised by the row.
func (t *tx) reserve(ctx context.Context, in tenant.ID, id quota.ID, session string, bytes int64) (quota.Reservation, error) {
	none := quota.Reservation{}
	if bytes < 0 || bytes > quota.MaxLimit || session == "" {
		return none, &tenant.InvalidError{Field: "reservation", Reason: "needs a session and a size within bounds"}
	}
	now, err := t.now(ctx)
	if err != nil {
		return none, err
	}
	fits, err := t.reserveBytes(ctx, in, id, bytes)
	if err == nil && !fits {
		// Nothing is locked by an UPDATE that changes nothing, so there may be room
		// by the time that the figures of a refusal are read. They are those of the
		// moment of the refusal, so it is decided again under the row's lock.
		if _, _, err = t.lockRepository(ctx, in, id); err == nil {
			fits, err = t.reserveBytes(ctx, in, id, bytes)
		}
	}
	if err != nil {
		return none, fmt.Errorf("reserve in cloud repository %s: %w", id, err)
	}
	if !fits {
		return none, t.refusal(ctx, in, id, bytes, 0)
	}
	r := quota.Reservation{RepositoryID: id, Session: session, Expires: now.Add(quota.ReservationTTL)}
	err = t.row(ctx, `INSERT INTO reservations (repository_id, session, bytes, expires) VALUES ($1, $2, $3, $4)
		ON CONFLICT (repository_id, session) DO UPDATE SET bytes = reservations.bytes + excluded.bytes, expires = excluded.expires
		RETURNING bytes`, string(id), session, bytes, micros(r.Expires)).Scan(&r.Bytes)
	if err != nil {
		return none, fmt.Errorf("reserve in cloud repository %s: %w", id, err)
	}
	return r, nil
}

// reserveBytes adds to what is pending, if there is room.
func (t *tx) reserveBytes(ctx context.Context, in tenant.ID, id quota.ID, bytes int64) (fits bool, err error) {
	n, err := t.exec(ctx, `UPDATE cloud_repositories SET pending_bytes = pending_bytes + $1
		WHERE id = $2 AND tenant_id = $3 AND retired = 0 AND (used_bytes + pending_bytes + $1 <= limit_bytes OR CAST($1 AS BIGINT) = 0)`,
		bytes, string(id), string(in))
	return n > 0, err
}

// settlement ends a session's reservation.
type settlement struct {
	session string
	charge  int64  // what its point takes
	pending *int64 // what is in no point yet, from now on; nil: unchanged
	release bool   // nothing is charged, so the limit is nobody's concern
}

// settle ends a session's reservation and charges what its point takes, if there
// is room beside what it takes the place of.
func (t *tx) settle(ctx context.Context, in tenant.ID, id quota.ID, s settlement) error {
	if s.charge < 0 || s.charge > quota.MaxLimit {
		return &tenant.InvalidError{Field: "charge", Reason: "is out of bounds"}
	}
	unreferenced, found, err := t.lockRepository(ctx, in, id)
	if err != nil {
		return err
	}
	if !found {
		return fmt.Errorf("cloud repository %s: %w", id, tenant.ErrNotFound)
	}
	held, err := collect(ctx, t, func(s scanner) (v int64, err error) { return v, s.Scan(&v) },
		"DELETE FROM reservations WHERE repository_id = $1 AND session = $2 RETURNING bytes", string(id), s.session)
	if err != nil {
		return fmt.Errorf("end reservation in cloud repository %s: %w", id, err)
	}
	var freed int64
	for _, v := range held {
		freed += v
	}
	left := unreferenced
	if s.pending != nil {
		left = *s.pending
		freed += unreferenced - left
	}
	n, err := t.exec(ctx, `UPDATE cloud_repositories SET pending_bytes = pending_bytes - $1, unreferenced_bytes = $5, used_bytes = used_bytes + $2
		WHERE id = $3 AND (used_bytes + pending_bytes - $1 + $2 <= limit_bytes OR $2 <= $1 OR $4)`,
		freed, s.charge, string(id), s.release, left)
	if err != nil {
		return fmt.Errorf("charge cloud repository %s: %w", id, err)
	}
	if n == 0 {
		return t.refusal(ctx, in, id, s.charge, freed)
	}
	return nil
}

// lockRepository locks a repository's row, as every method does before it
// touches reservations, and tells what is in no point yet. Retired ones are not
// found.
func (t *tx) lockRepository(ctx context.Context, in tenant.ID, id quota.ID) (unreferenced int64, found bool, err error) {
	rows, err := collect(ctx, t, func(s scanner) (v int64, err error) { return v, s.Scan(&v) },
		`UPDATE cloud_repositories SET pending_bytes = pending_bytes WHERE id = $1 AND tenant_id = $2 AND retired = 0
		RETURNING unreferenced_bytes`, string(id), string(in))
	if err != nil || len(rows) == 0 {
		if err != nil {
			err = fmt.Errorf("lock cloud repository %s: %w", id, err)
		}
		return 0, false, err
	}
	return rows[0], true, nil
}

// shipped moves what a session brought from its reservation to what is in no
// point yet. Nothing is refused: it is there.
func (t *tx) shipped(ctx context.Context, in tenant.ID, id quota.ID, session string, bytes, pending int64) error {
	unreferenced, found, err := t.lockRepository(ctx, in, id)
	if err != nil || !found {
		return err
	}
	var held int64
	err = t.row(ctx, "SELECT CAST(coalesce(sum(bytes), 0) AS BIGINT) FROM reservations WHERE repository_id = $1 AND session = $2",
		string(id), session).Scan(&held)
	if err != nil {
		return fmt.Errorf("find reservation in cloud repository %s: %w", id, err)
	}
	moved := min(held, bytes)
	if _, err := t.exec(ctx, "UPDATE reservations SET bytes = bytes - $1 WHERE repository_id = $2 AND session = $3",
		moved, string(id), session); err != nil {
		return fmt.Errorf("reduce reservation in cloud repository %s: %w", id, err)
	}
	return t.setPending(ctx, id, pending, pending-unreferenced-moved)
}

// reconciled sets what is in no point yet, and what sessions hold unless
// reserved is nil.
func (t *tx) reconciled(ctx context.Context, in tenant.ID, id quota.ID, pending int64, reserved map[string]int64) error {
	unreferenced, found, err := t.lockRepository(ctx, in, id)
	if err != nil || !found {
		return err
	}
	change := pending - unreferenced
	if reserved != nil {
		now, err := t.now(ctx)
		if err != nil {
			return err
		}
		gone, err := collect(ctx, t, func(s scanner) (v int64, err error) { return v, s.Scan(&v) },
			"DELETE FROM reservations WHERE repository_id = $1 RETURNING bytes", string(id))
		if err != nil {
			return fmt.Errorf("end reservations in cloud repository %s: %w", id, err)
		}
		for _, bytes := range gone {
			change -= bytes
		}
		for session, bytes := range reserved {
			_, err := t.exec(ctx, "INSERT INTO reservations (repository_id, session, bytes, expires) VALUES ($1, $2, $3, $4)",
				string(id), session, bytes, micros(now.Add(quota.ReservationTTL)))
			if err != nil {
				return fmt.Errorf("reserve in cloud repository %s: %w", id, err)
			}
			change += bytes
		}
	}
	return t.setPending(ctx, id, pending, change)
}

// setPending sets what is in no point yet, and changes the whole that it is a
// part of.
func (t *tx) setPending(ctx context.Context, id quota.ID, unreferenced, change int64) error {
	if unreferenced < 0 {
		return fmt.Errorf("settle cloud repository %s: %d bytes in no point", id, unreferenced)
	}
	_, err := t.exec(ctx, "UPDATE cloud_repositories SET unreferenced_bytes = $1, pending_bytes = pending_bytes + $2 WHERE id = $3",
		unreferenced, change, string(id))
	if err != nil {
		return fmt.Errorf("settle cloud repository %s: %w", id, err)
	}
	return nil
}

// credit gives back what forgotten points took. More than was charged is a fault
// of the caller and refused.
func (t *tx) credit(ctx context.Context, in tenant.ID, id quota.ID, bytes int64) error {
	if bytes < 0 {
		return fmt.Errorf("credit cloud repository %s: %d bytes", id, bytes)
	}
	n, err := t.exec(ctx, "UPDATE cloud_repositories SET used_bytes = used_bytes - $1 WHERE id = $2 AND tenant_id = $3 AND used_bytes >= $1",
		bytes, string(id), string(in))
	if err != nil {
		return fmt.Errorf("credit cloud repository %s: %w", id, err)
	}
	if n == 0 {
		return fmt.Errorf("credit cloud repository %s: it does not have %d bytes charged", id, bytes)
	}
	return nil
}

// refusal says why a conditional UPDATE found no row: foreign, or full. The
// figures leave the caller's own reservation out.
func (t *tx) refusal(ctx context.Context, in tenant.ID, id quota.ID, wanted, reserved int64) error {
	r, err := t.repository(ctx, in, id)
	if err != nil {
		return err
	}
	return &quota.FullError{Repository: r.Name, LimitBytes: r.LimitBytes, UsedBytes: r.UsedBytes,
		PendingBytes: r.PendingBytes - reserved, WantedBytes: wanted}
}

func (s quotas) Expire(ctx context.Context) (released int64, err error) {
	err = s.db.write(ctx, func(t *tx) error {
		released = 0
		now, err := t.now(ctx)
		if err != nil {
			return err
		}
		type idle struct {
			id    string
			bytes int64
		}
		// Rows of repositories first, in one order; then what they lose.
		if _, err := t.exec(ctx, `UPDATE cloud_repositories SET pending_bytes = pending_bytes WHERE id IN
			(SELECT repository_id FROM reservations WHERE expires <= $1)`, micros(now)); err != nil {
			return err
		}
		gone, err := collect(ctx, t, func(s scanner) (v idle, err error) { return v, s.Scan(&v.id, &v.bytes) },
			"DELETE FROM reservations WHERE expires <= $1 RETURNING repository_id, bytes", micros(now))
		if err != nil {
			return err
		}
		for _, g := range gone {
			if _, err := t.exec(ctx, "UPDATE cloud_repositories SET pending_bytes = pending_bytes - $1 WHERE id = $2", g.bytes, g.id); err != nil {
				return err
			}
			released += g.bytes
		}
		return nil
	})
	if err != nil {
		return 0, fmt.Errorf("expire reservations: %w", err)
	}
	return released, nil
}
