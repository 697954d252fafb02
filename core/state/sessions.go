package state

import (
	"context"
	"fmt"
	"time"

	"github.com/holdfast-dr/holdfast/core/point"
	"github.com/holdfast-dr/holdfast/core/repository"
	"github.com/holdfast-dr/holdfast/core/tenant"
)

func (s catalogue) Began(ctx context.Context, id string, epoch uint64, r repository.SessionRecord) error {
	return s.fenced(ctx, id, epoch, func(t *tx) error {
		_, err := t.exec(ctx, `INSERT INTO repository_sessions (repository_id, id, owner, machine, began, ended, distrusted)
			VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT (repository_id, id) DO NOTHING`,
			id, r.ID, r.Owner, string(r.Machine), micros(r.Began), micros(r.Ended), micros(r.Distrusted))
		if err != nil {
			return fmt.Errorf("record session %s: %w", r.ID, err)
		}
		return nil
	})
}

func (s catalogue) Ended(ctx context.Context, id string, epoch uint64, sessions []string, at time.Time) error {
	return s.fenced(ctx, id, epoch, func(t *tx) error {
		for _, session := range sessions {
			_, err := t.exec(ctx, "UPDATE repository_sessions SET ended = $1 WHERE repository_id = $2 AND id = $3 AND ended = 0", micros(at), id, session)
			if err != nil {
				return fmt.Errorf("record the end of session %s: %w", session, err)
			}
		}
		return nil
	})
}

func (s catalogue) ForgetSessions(ctx context.Context, id string, epoch uint64, sessions []string) error {
	return s.fenced(ctx, id, epoch, func(t *tx) error {
		for _, session := range sessions {
			if _, err := t.exec(ctx, "DELETE FROM repository_sessions WHERE repository_id = $1 AND id = $2", id, session); err != nil {
				return fmt.Errorf("forget session %s: %w", session, err)
			}
		}
		return nil
	})
}

func scanSession(s scanner) (r repository.SessionRecord, err error) {
	var machine string
	var began, ended, distrusted int64
	err = s.Scan(&r.ID, &r.Owner, &machine, &began, &ended, &distrusted)
	r.Machine, r.Began, r.Ended, r.Distrusted = point.MachineID(machine), moment(began), moment(ended), moment(distrusted)
	return r, err
}

func (s catalogue) Sessions(ctx context.Context, id string, q repository.SessionQuery) (sessions []repository.SessionRecord, err error) {
	if q.Limit <= 0 || q.Limit > repository.MaxSessions {
		q.Limit = repository.MaxSessions
	}
	var w where
	w.and("repository_id = ?", id)
	w.and("id > ?", q.After)
	if q.Owner != "" {
		w.and("owner = ?", q.Owner)
	}
	if q.Open {
		w.and("ended = 0")
	}
	if q.Distrusted {
		w.and("distrusted > 0")
	}
	err = s.db.read(ctx, func(t *tx) error {
		sessions, err = collect(ctx, t, scanSession, fmt.Sprintf(
			"SELECT id, owner, machine, began, ended, distrusted FROM repository_sessions"+w.sql()+" ORDER BY id LIMIT %d", q.Limit), w.args...)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("list sessions of repository %s: %w", id, err)
	}
	return sessions, nil
}

func (s catalogue) Distrust(ctx context.Context, id string, epoch uint64, d repository.Distrust, at time.Time) (changed int, err error) {
	err = s.fencedChange(ctx, id, epoch, func(t *tx, owner tenant.ID) error {
		if changed, err = t.distrust(ctx, id, d, at); err != nil {
			return err
		}
		action := "repository.distrust"
		if d.Lift {
			action = "repository.trust"
		}
		facts := map[string]any{"sessions": changed}
		if d.Session != "" {
			facts["session"] = d.Session
		} else {
			facts["agent"], facts["since"] = d.Owner, d.Since
		}
		return t.audit(ctx, owner, action, "repository:"+id, facts)
	})
	return changed, err
}

func (t *tx) distrust(ctx context.Context, id string, d repository.Distrust, at time.Time) (changed int, err error) {
	if d.Session != "" && !d.Lift { // of before the database was made, or lost
		_, err := t.exec(ctx, `INSERT INTO repository_sessions (repository_id, id, owner, machine, began, ended, distrusted)
			VALUES ($1, $2, '', '', $3, $4, 0) ON CONFLICT (repository_id, id) DO NOTHING`, id, d.Session, micros(at), micros(at))
		if err != nil {
			return 0, fmt.Errorf("record session %s: %w", d.Session, err)
		}
	}
	var w where
	w.and("repository_id = ?", id)
	if d.Session != "" {
		w.and("id = ?", d.Session)
	} else {
		w.and("owner = ?", d.Owner)
		w.and("(ended = 0 OR ended >= ?)", micros(d.Since))
	}
	set := fmt.Sprintf("distrusted = %d", micros(at))
	if d.Lift {
		w.and("distrusted > 0")
		set = "distrusted = 0"
	} else {
		w.and("distrusted = 0")
	}
	n, err := t.exec(ctx, "UPDATE repository_sessions SET "+set+w.sql(), w.args...)
	if err != nil {
		return 0, fmt.Errorf("distrust sessions of repository %s: %w", id, err)
	}
	return int(n), nil
}
