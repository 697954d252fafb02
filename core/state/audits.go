package state

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/holdfast-dr/holdfast/core/audit"
	"github.com/holdfast-dr/holdfast/core/tenant"
)

type audits struct{ db *DB }

var _ audit.Store = audits{}

// Audits reads the audit log.
func (db *DB) Audits() audit.Store { return audits{db} }

func scanEntry(s scanner) (e audit.Entry, err error) {
	var us int64
	var detail, previous, hash string
	if err = s.Scan(&e.Chain, &e.Sequence, &us, &e.Actor, &e.Name, &e.Address, &e.Request, &e.Reason,
		&e.Action, &e.Target, &detail, &previous, &hash); err != nil {
		return e, err
	}
	e.Time = moment(us)
	if detail != "" {
		e.Detail = json.RawMessage(detail)
	}
	if e.Previous, err = audit.ParseHash(previous); err != nil {
		return e, err
	}
	e.Hash, err = audit.ParseHash(hash)
	return e, err
}

func (s audits) List(ctx context.Context, q audit.Query) (all []audit.Entry, err error) {
	var w where
	w.and("chain = ?", string(q.Chain))
	order := "ASC"
	if q.Newest {
		order = "DESC"
		if q.After > 0 {
			w.and("sequence < ?", q.After)
		}
	} else {
		w.and("sequence > ?", q.After)
	}
	for _, c := range []struct{ column, value string }{{"action", q.Action}, {"target", q.Target}, {"actor", q.Actor}} {
		if c.value != "" {
			w.and(c.column+" = ?", c.value)
		}
	}
	if !q.Since.IsZero() {
		w.and("time >= ?", micros(q.Since))
	}
	if !q.Until.IsZero() {
		w.and("time < ?", micros(q.Until))
	}
	query := fmt.Sprintf(`SELECT chain, sequence, time, actor, name, address, request, reason, action, target, detail, previous, hash
		FROM audit_entries%s ORDER BY sequence %s LIMIT %d`, w.sql(), order, bounded(q.Limit, 200, 1000))
	err = s.db.read(ctx, func(t *tx) error {
		all, err = collect(ctx, t, scanEntry, query, w.args...)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("list audit entries: %w", err)
	}
	return all, nil
}

func (s audits) Heads(ctx context.Context) (all []audit.Head, err error) {
	err = s.db.read(ctx, func(t *tx) error {
		all, err = collect(ctx, t, func(s scanner) (h audit.Head, err error) {
			var hash string
			if err = s.Scan(&h.Chain, &h.Sequence, &hash); err == nil {
				h.Hash, err = audit.ParseHash(hash)
			}
			return h, err
		}, "SELECT chain, sequence, hash FROM audit_heads ORDER BY chain")
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("list audit heads: %w", err)
	}
	return all, nil
}

func (s audits) Record(ctx context.Context, chain tenant.ID, action, target string, detail any) error {
	return s.db.change(ctx, func(t *tx) error { return t.audit(ctx, chain, action, target, detail) })
}
