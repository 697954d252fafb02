package state

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/holdfast-dr/holdfast/core/access"
	"github.com/holdfast-dr/holdfast/core/tenant"
	"github.com/holdfast-dr/holdfast/core/worker"
)

type workers struct{ db *DB }

var _ worker.Store = workers{}

// Workers keeps an agent's workers. Their authority is in Trust.
func (db *DB) Workers() worker.Store { return workers{db} }

const workerColumns = "id, name, key, invited, expires, enrolled"

func scanWorker(row scanner) (r worker.Record, err error) {
	var key string
	var invited, expires, enrolled int64
	if err = row.Scan(&r.ID, &r.Name, &key, &invited, &expires, &enrolled); err != nil {
		return r, err
	}
	r.Invited, r.Expires, r.Enrolled = moment(invited), moment(expires), moment(enrolled)
	r.Key, err = access.ParseHash(key)
	return r, err
}

func (s workers) Workers(ctx context.Context) (all []worker.Record, err error) {
	err = s.db.read(ctx, func(t *tx) error {
		all, err = collect(ctx, t, scanWorker, "SELECT "+workerColumns+" FROM workers ORDER BY name_fold")
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("list workers: %w", err)
	}
	return all, nil
}

func (s workers) Worker(ctx context.Context, id string) (r worker.Record, err error) {
	err = s.db.read(ctx, func(t *tx) error {
		r, err = scanWorker(t.row(ctx, "SELECT "+workerColumns+" FROM workers WHERE id = $1", id))
		return notFound(err, "worker", id)
	})
	return r, err
}

func (s workers) Invite(ctx context.Context, name string, token access.Hash, expires time.Time) (r worker.Record, err error) {
	if err := worker.CheckName(name); err != nil {
		return r, err
	}
	if token.IsZero() {
		return r, &tenant.InvalidError{Field: "token", Reason: "must be given"}
	}
	err = s.db.change(ctx, func(t *tx) error {
		now, err := t.now(ctx)
		if err != nil {
			return err
		}
		r, err = scanWorker(t.row(ctx, `INSERT INTO workers (id, name, name_fold, hash, token_key, invited, expires, key, enrolled)
			VALUES ($1, $2, $3, $4, '', $5, $6, '', 0)
			ON CONFLICT (name_fold) DO UPDATE SET hash = excluded.hash, token_key = '', invited = excluded.invited, expires = excluded.expires
			RETURNING `+workerColumns, newID(), name, tenant.Fold(name), token.String(), micros(now), micros(expires)))
		if err != nil {
			return fmt.Errorf("invite worker %q: %w", name, err)
		}
		var n int
		if err := t.row(ctx, "SELECT count(*) FROM workers").Scan(&n); err != nil {
			return fmt.Errorf("count workers: %w", err)
		}
		if n > worker.MaxWorkers {
			return &tenant.InvalidError{Field: "name", Reason: fmt.Sprintf("there are %d workers already; remove one that is not used", worker.MaxWorkers)}
		}
		return t.audit(ctx, tenant.Provider, "worker.invite", "worker:"+r.ID, map[string]any{"name": r.Name, "expires": r.Expires})
	})
	if err != nil {
		return worker.Record{}, err
	}
	return r, nil
}

// Enrol binds the token to the first key in one conditional UPDATE, so of two
// keys that come at once one wins.
func (s workers) Enrol(ctx context.Context, token, key access.Hash) (r worker.Record, err error) {
	if key.IsZero() || token.IsZero() {
		return r, access.ErrEnrolment
	}
	err = s.db.change(ctx, func(t *tx) error {
		now, err := t.now(ctx)
		if err != nil {
			return err
		}
		r, err = scanWorker(t.row(ctx, `UPDATE workers SET token_key = $1, key = $1, enrolled = $2
			WHERE hash = $3 AND expires > $2 AND (token_key = '' OR token_key = $1) RETURNING `+workerColumns,
			key.String(), micros(now), token.String()))
		if errors.Is(notFound(err, "worker", ""), tenant.ErrNotFound) {
			return access.ErrEnrolment
		}
		if err != nil {
			return fmt.Errorf("enrol worker: %w", err)
		}
		return t.audit(ctx, tenant.Provider, "worker.enrol", "worker:"+r.ID, map[string]any{"name": r.Name})
	})
	if err != nil {
		return worker.Record{}, err
	}
	return r, nil
}

func (s workers) Remove(ctx context.Context, id string) error {
	return s.db.change(ctx, func(t *tx) error {
		if err := t.remove(ctx, "worker", id, "DELETE FROM workers WHERE id = $1"); err != nil {
			return err
		}
		return t.audit(ctx, tenant.Provider, "worker.remove", "worker:"+id, nil)
	})
}
