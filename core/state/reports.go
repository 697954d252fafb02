package state

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/holdfast-dr/holdfast/core/access"
	"github.com/holdfast-dr/holdfast/core/gateway"
	"github.com/holdfast-dr/holdfast/core/tenant"
)

type reports struct{ db *DB }

var _ gateway.Reports = reports{}

// Reports keeps what agents tell of their runs.
func (db *DB) Reports() gateway.Reports { return reports{db} }

func (s reports) Put(ctx context.Context, a access.Agent, run string, e gateway.RunEvent) error {
	text, err := json.Marshal(e)
	if err != nil {
		return fmt.Errorf("keep report of run %s: %w", run, err)
	}
	err = s.db.write(ctx, func(t *tx) error {
		now, err := t.now(ctx)
		if err != nil {
			return err
		}
		// The run of another agent of the tenant, or a newer event, stays as it is.
		_, err = t.exec(ctx, `INSERT INTO reports (tenant_id, run_id, agent_id, sequence, started, received, event)
			VALUES ($1, $2, $3, $4, $5, $6, $7)
			ON CONFLICT (tenant_id, run_id) DO UPDATE SET sequence = excluded.sequence, started = excluded.started,
				received = excluded.received, event = excluded.event
			WHERE reports.agent_id = excluded.agent_id AND reports.sequence < excluded.sequence`,
			string(a.TenantID), run, a.ID, e.Sequence, micros(e.Started), micros(now), string(text))
		return err
	})
	if err != nil {
		return fmt.Errorf("keep report of run %s: %w", run, err)
	}
	return nil
}

func (s reports) List(ctx context.Context, in tenant.ID, before time.Time, limit int) (all []gateway.Report, err error) {
	var w where
	w.and("tenant_id = ?", string(in))
	if !before.IsZero() {
		w.and("started < ?", micros(before))
	}
	query := fmt.Sprintf("SELECT run_id, agent_id, received, event FROM reports%s ORDER BY started DESC LIMIT %d", w.sql(), bounded(limit, 100, 1000))
	err = s.db.read(ctx, func(t *tx) error {
		all, err = collect(ctx, t, func(row scanner) (r gateway.Report, err error) {
			var received int64
			var text string
			if err := row.Scan(&r.Run, &r.Agent, &received, &text); err != nil {
				return r, err
			}
			r.Received = moment(received)
			return r, json.Unmarshal([]byte(text), &r.Event)
		}, query, w.args...)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("list reports of runs: %w", err)
	}
	return all, nil
}

// PruneReports forgets what agents told before a time, and says how much.
func (db *DB) PruneReports(ctx context.Context, before time.Time) (n int64, err error) {
	err = db.write(ctx, func(t *tx) error {
		n, err = t.exec(ctx, "DELETE FROM reports WHERE received < $1", micros(before))
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("prune reports of runs: %w", err)
	}
	return n, nil
}
