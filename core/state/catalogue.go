package state

import (
	"context"
	"fmt"
	"iter"
	"time"

	"github.com/holdfast-dr/holdfast/core/chunk"
	"github.com/holdfast-dr/holdfast/core/claim"
	"github.com/holdfast-dr/holdfast/core/point"
	"github.com/holdfast-dr/holdfast/core/quota"
	"github.com/holdfast-dr/holdfast/core/repository"
	"github.com/holdfast-dr/holdfast/core/tenant"
)

type catalogue struct{ db *DB }

var _ repository.Catalogue = catalogue{}

// Catalogue keeps the points of cloud repositories. The claim that its epochs
// belong to is that of RepositoryResource.
func (db *DB) Catalogue() repository.Catalogue { return catalogue{db} }

// RepositoryResource is what is claimed to write to a cloud repository.
func RepositoryResource(id string) claim.Resource { return claim.Resource("repository/" + id) }

// fenced runs f as bookkeeping under the claim of a repository.
func (s catalogue) fenced(ctx context.Context, id string, epoch uint64, f func(*tx) error) error {
	return s.db.write(ctx, func(t *tx) error {
		if err := t.fence(ctx, RepositoryResource(id), int64(epoch)); err != nil {
			return err
		}
		return f(t)
	})
}

// fencedChange runs f as a decision, with the tenant whose repository it is.
func (s catalogue) fencedChange(ctx context.Context, id string, epoch uint64, f func(*tx, tenant.ID) error) error {
	return s.db.change(ctx, func(t *tx) error {
		if err := t.fence(ctx, RepositoryResource(id), int64(epoch)); err != nil {
			return err
		}
		owner, err := t.repositoryOwner(ctx, id)
		if err != nil {
			return err
		}
		return f(t, owner)
	})
}

func (t *tx) repositoryOwner(ctx context.Context, id string) (owner tenant.ID, err error) {
	err = t.row(ctx, "SELECT tenant_id FROM cloud_repositories WHERE id = $1", id).Scan(&owner)
	return owner, notFound(err, "cloud repository", id)
}

func (s catalogue) Check(ctx context.Context, id string, epoch uint64) error {
	return s.fenced(ctx, id, epoch, func(*tx) error { return nil })
}

const pointColumns = "id, machine, previous, session, epoch, kind, taken, committed, disks, size_bytes, charged_bytes, forgotten"

func scanPoint(s scanner) (p repository.PointRecord, err error) {
	var taken, committed, forgotten, epoch int64
	err = s.Scan(&p.ID, &p.Machine, &p.Previous, &p.Session, &epoch, &p.Kind, &taken, &committed, &p.Disks, &p.SizeBytes,
		&p.ChargedBytes, &forgotten)
	p.Epoch, p.Taken, p.Committed, p.Forgotten = uint64(epoch), moment(taken), moment(committed), moment(forgotten)
	return p, err
}

func (t *tx) insertPoint(ctx context.Context, id string, p repository.PointRecord) error {
	_, err := t.exec(ctx, "INSERT INTO points (repository_id, "+pointColumns+") VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)",
		id, string(p.ID), string(p.Machine), string(p.Previous), p.Session, int64(p.Epoch), string(p.Kind), micros(p.Taken),
		micros(p.Committed), p.Disks, p.SizeBytes, p.ChargedBytes, micros(p.Forgotten))
	if isUnique(err) {
		return fmt.Errorf("point %s: %w", p.ID, tenant.ErrExists)
	}
	if err != nil {
		return fmt.Errorf("record point %s: %w", p.ID, err)
	}
	return nil
}

func (s catalogue) Commit(ctx context.Context, id string, epoch uint64, p repository.PointRecord, pendingBytes int64) error {
	return s.fencedChange(ctx, id, epoch, func(t *tx, owner tenant.ID) error {
		if err := t.insertPoint(ctx, id, p); err != nil {
			return err
		}
		if err := t.settle(ctx, owner, quota.ID(id), settlement{session: p.Session, charge: p.ChargedBytes, pending: &pendingBytes}); err != nil {
			return err
		}
		return t.auditPoint(ctx, owner, "point.commit", id, p)
	})
}

func (s catalogue) Shipped(ctx context.Context, id string, epoch uint64, session string, shippedBytes, pendingBytes int64) error {
	return s.fenced(ctx, id, epoch, func(t *tx) error {
		owner, err := t.repositoryOwner(ctx, id)
		if err != nil {
			return err
		}
		return t.shipped(ctx, owner, quota.ID(id), session, shippedBytes, pendingBytes)
	})
}

func (s catalogue) Reconciled(ctx context.Context, id string, epoch uint64, pendingBytes int64, reserved map[string]int64) error {
	return s.fenced(ctx, id, epoch, func(t *tx) error {
		owner, err := t.repositoryOwner(ctx, id)
		if err != nil {
			return err
		}
		return t.reconciled(ctx, owner, quota.ID(id), pendingBytes, reserved)
	})
}

func (t *tx) auditPoint(ctx context.Context, owner tenant.ID, action, id string, p repository.PointRecord) error {
	return t.audit(ctx, owner, action, "point:"+string(p.ID), map[string]any{
		"repository": id, "machine": p.Machine, "taken": p.Taken, "size_bytes": p.SizeBytes, "charged_bytes": p.ChargedBytes})
}

func (t *tx) point(ctx context.Context, id string, pointID point.ID) (repository.PointRecord, error) {
	p, err := scanPoint(t.row(ctx, "SELECT "+pointColumns+" FROM points WHERE repository_id = $1 AND id = $2", id, string(pointID)))
	return p, notFound(err, "point", string(pointID))
}

func (s catalogue) Point(ctx context.Context, id string, pointID point.ID) (p repository.PointRecord, err error) {
	err = s.db.read(ctx, func(t *tx) error {
		p, err = t.point(ctx, id, pointID)
		return err
	})
	return p, err
}

func (s catalogue) Points(ctx context.Context, id string, q repository.PointQuery) (points []repository.PointRecord, err error) {
	if q.Limit <= 0 || q.Limit > repository.MaxPoints {
		q.Limit = repository.MaxPoints
	}
	var w where
	w.and("repository_id = ?", id)
	w.and("id > ?", string(q.After))
	if q.Machine != "" {
		w.and("machine = ?", string(q.Machine))
	}
	if q.Session != "" {
		w.and("session = ?", q.Session)
	}
	if q.Binned {
		w.and("forgotten > 0")
	} else {
		w.and("forgotten = 0")
	}
	err = s.db.read(ctx, func(t *tx) error {
		points, err = collect(ctx, t, scanPoint, fmt.Sprintf("SELECT "+pointColumns+" FROM points"+w.sql()+" ORDER BY id LIMIT %d", q.Limit), w.args...)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("list points of repository %s: %w", id, err)
	}
	return points, nil
}

func (s catalogue) Forget(ctx context.Context, id string, epoch uint64, pointID point.ID, at time.Time) error {
	return s.fencedChange(ctx, id, epoch, func(t *tx, owner tenant.ID) error {
		p, err := t.point(ctx, id, pointID)
		if err != nil {
			return err
		}
		if _, err := t.exec(ctx, "UPDATE points SET forgotten = $1 WHERE repository_id = $2 AND id = $3 AND forgotten = 0",
			micros(at), id, string(pointID)); err != nil {
			return fmt.Errorf("forget point %s: %w", pointID, err)
		}
		return t.auditPoint(ctx, owner, "point.forget", id, p)
	})
}

func (s catalogue) Purge(ctx context.Context, id string, epoch uint64, ids []point.ID) error {
	return s.fencedChange(ctx, id, epoch, func(t *tx, owner tenant.ID) error {
		purged := make([]point.ID, 0, len(ids))
		for _, pointID := range ids {
			n, err := t.exec(ctx, "DELETE FROM points WHERE repository_id = $1 AND id = $2 AND forgotten > 0", id, string(pointID))
			if err != nil {
				return fmt.Errorf("purge point %s: %w", pointID, err)
			}
			if n == 1 {
				purged = append(purged, pointID)
			}
		}
		return t.audit(ctx, owner, "point.purge", "repository:"+id, map[string]any{"points": purged})
	})
}

func (s catalogue) Settle(ctx context.Context, id string, epoch uint64, usedBytes int64) error {
	return s.fenced(ctx, id, epoch, func(t *tx) error {
		_, err := t.exec(ctx, "UPDATE cloud_repositories SET used_bytes = $1 WHERE id = $2", usedBytes, id)
		if err != nil {
			return fmt.Errorf("settle cloud repository %s: %w", id, err)
		}
		return nil
	})
}

func (s catalogue) Condemn(ctx context.Context, id string, epoch uint64, packs []repository.PackID, at time.Time) error {
	return s.fenced(ctx, id, epoch, func(t *tx) error {
		for _, pack := range packs {
			_, err := t.exec(ctx, `INSERT INTO condemned_packs (repository_id, pack, condemned) VALUES ($1, $2, $3)
				ON CONFLICT (repository_id, pack) DO NOTHING`, id, pack.String(), micros(at))
			if err != nil {
				return fmt.Errorf("condemn pack %s: %w", pack, err)
			}
		}
		return nil
	})
}

func (s catalogue) Condemned(ctx context.Context, id string, after repository.PackID, limit int) (packs []repository.CondemnedPack, err error) {
	from := "" // before every id
	if after != (repository.PackID{}) {
		from = after.String()
	}
	err = s.db.read(ctx, func(t *tx) error {
		packs, err = collect(ctx, t, func(s scanner) (p repository.CondemnedPack, err error) {
			var text string
			var at int64
			if err := s.Scan(&text, &at); err != nil {
				return p, err
			}
			p.At = moment(at)
			p.Pack, err = repository.ParsePackID(text)
			return p, err
		}, "SELECT pack, condemned FROM condemned_packs WHERE repository_id = $1 AND pack > $2 ORDER BY pack LIMIT $3", id, from, limit)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("list condemned packs of repository %s: %w", id, err)
	}
	return packs, nil
}

func (s catalogue) Removed(ctx context.Context, id string, epoch uint64, packs []repository.PackID) error {
	return s.fenced(ctx, id, epoch, func(t *tx) error {
		for _, pack := range packs {
			for _, table := range []string{"condemned_packs", "damaged_records"} {
				if _, err := t.exec(ctx, "DELETE FROM "+table+" WHERE repository_id = $1 AND pack = $2", id, pack.String()); err != nil {
					return fmt.Errorf("remove pack %s: %w", pack, err)
				}
			}
		}
		return nil
	})
}

func (s catalogue) MarkDamaged(ctx context.Context, id string, damage []repository.Damage) error {
	return s.db.write(ctx, func(t *tx) error {
		for _, d := range damage {
			_, err := t.exec(ctx, `INSERT INTO damaged_records (repository_id, pack, kind, id, found) VALUES ($1, $2, $3, $4, $5)
				ON CONFLICT (repository_id, pack, kind, id) DO NOTHING`, id, d.Pack.String(), int64(d.Kind), d.ID.String(), micros(d.At))
			if err != nil {
				return fmt.Errorf("record damage of %s: %w", d.ID, err)
			}
		}
		return nil
	})
}

// damagePage is how many records one query of Damage reads.
const damagePage = 1000

func (s catalogue) Damage(ctx context.Context, id string) iter.Seq2[repository.Damage, error] {
	return func(yield func(repository.Damage, error) bool) {
		pack, kind, record := "", int64(0), ""
		for {
			page, err := s.damage(ctx, id, pack, kind, record)
			if err != nil {
				yield(repository.Damage{}, fmt.Errorf("list damage of repository %s: %w", id, err))
				return
			}
			for _, d := range page {
				if !yield(d, nil) {
					return
				}
				pack, kind, record = d.Pack.String(), int64(d.Kind), d.ID.String()
			}
			if len(page) < damagePage {
				return
			}
		}
	}
}

func (s catalogue) damage(ctx context.Context, id, pack string, kind int64, record string) (page []repository.Damage, err error) {
	err = s.db.read(ctx, func(t *tx) error {
		page, err = collect(ctx, t, scanDamage, fmt.Sprintf(`SELECT pack, kind, id, found FROM damaged_records
			WHERE repository_id = $1 AND (pack, kind, id) > ($2, $3, $4) ORDER BY pack, kind, id LIMIT %d`, damagePage), id, pack, kind, record)
		return err
	})
	return page, err
}

func scanDamage(s scanner) (d repository.Damage, err error) {
	var pack, record string
	var kind, at int64
	if err := s.Scan(&pack, &kind, &record, &at); err != nil {
		return d, err
	}
	d.Kind, d.At = chunk.Kind(kind), moment(at)
	if d.Pack, err = repository.ParsePackID(pack); err != nil {
		return d, err
	}
	d.ID, err = chunk.ParseID(record)
	return d, err
}

func (s catalogue) Import(ctx context.Context, id string, floor uint64, points []repository.PointRecord, usedBytes int64) error {
	return s.db.change(ctx, func(t *tx) error {
		if err := t.raiseEpoch(ctx, RepositoryResource(id), int64(floor)); err != nil {
			return err
		}
		owner, err := t.repositoryOwner(ctx, id)
		if err != nil {
			return err
		}
		if _, err := t.exec(ctx, "DELETE FROM points WHERE repository_id = $1", id); err != nil {
			return fmt.Errorf("import into repository %s: %w", id, err)
		}
		for _, p := range points {
			if err := t.insertPoint(ctx, id, p); err != nil {
				return err
			}
		}
		if _, err := t.exec(ctx, "UPDATE cloud_repositories SET used_bytes = $1 WHERE id = $2", usedBytes, id); err != nil {
			return fmt.Errorf("import into repository %s: %w", id, err)
		}
		return t.audit(ctx, owner, "repository.import", "repository:"+id, map[string]any{
			"points": len(points), "used_bytes": usedBytes, "epoch": floor})
	})
}

// raiseEpoch makes the next claim of a resource newer than floor. A claim that
// is held with a lower epoch ends at once: the store has seen newer ones.
func (t *tx) raiseEpoch(ctx context.Context, r claim.Resource, floor int64) error {
	_, err := t.exec(ctx, `INSERT INTO claims (resource, holder, epoch, until) VALUES ($1, '', $2, 0)
		ON CONFLICT (resource) DO UPDATE SET epoch = excluded.epoch, until = 0 WHERE claims.epoch < excluded.epoch`, string(r), floor)
	if err != nil {
		return fmt.Errorf("raise epoch of %s: %w", r, err)
	}
	return nil
}
