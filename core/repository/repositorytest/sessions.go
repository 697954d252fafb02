package repositorytest

import (
	"cmp"
	"context"
	"slices"
	"time"

	"github.com/holdfast-dr/holdfast/core/audit"
	"github.com/holdfast-dr/holdfast/core/repository"
)

// Began records a session.
func (c *Catalogue) Began(ctx context.Context, id string, epoch uint64, s repository.SessionRecord) error {
	return c.write(ctx, "Began", id, epoch, func(b *books) error {
		if _, known := b.sessions[s.ID]; !known {
			b.sessions[s.ID] = s
		}
		return nil
	})
}

// Ended records that sessions ended.
func (c *Catalogue) Ended(ctx context.Context, id string, epoch uint64, sessions []string, at time.Time) error {
	return c.write(ctx, "Ended", id, epoch, func(b *books) error {
		for _, session := range sessions {
			if s, known := b.sessions[session]; known && s.Ended.IsZero() {
				s.Ended = at
				b.sessions[session] = s
			}
		}
		return nil
	})
}

// ForgetSessions drops sessions.
func (c *Catalogue) ForgetSessions(ctx context.Context, id string, epoch uint64, sessions []string) error {
	return c.write(ctx, "ForgetSessions", id, epoch, func(b *books) error {
		for _, session := range sessions {
			delete(b.sessions, session)
		}
		return nil
	})
}

// Sessions lists them.
func (c *Catalogue) Sessions(ctx context.Context, id string, q repository.SessionQuery) (sessions []repository.SessionRecord, err error) {
	if q.Limit <= 0 || q.Limit > repository.MaxSessions {
		q.Limit = repository.MaxSessions
	}
	err = c.locked(ctx, id, anyEpoch, func(b *books) error {
		for _, s := range b.sessions {
			if s.ID > q.After && (q.Owner == "" || s.Owner == q.Owner) && (!q.Open || s.Ended.IsZero()) && (!q.Distrusted || !s.Distrusted.IsZero()) {
				sessions = append(sessions, s)
			}
		}
		return nil
	})
	slices.SortFunc(sessions, func(a, b repository.SessionRecord) int { return cmp.Compare(a.ID, b.ID) })
	return sessions[:min(len(sessions), q.Limit)], err
}

// Distrust makes sessions distrusted, or trusted again.
func (c *Catalogue) Distrust(ctx context.Context, id string, epoch uint64, d repository.Distrust, at time.Time) (changed int, err error) {
	if _, err := audit.From(ctx); err != nil {
		return 0, err
	}
	err = c.write(ctx, "Distrust", id, epoch, func(b *books) error {
		if _, known := b.sessions[d.Session]; d.Session != "" && !d.Lift && !known {
			b.sessions[d.Session] = repository.SessionRecord{ID: d.Session, Began: at, Ended: at}
		}
		for session, s := range b.sessions {
			chosen := session == d.Session
			if d.Session == "" {
				chosen = s.Owner == d.Owner && (s.Ended.IsZero() || !s.Ended.Before(d.Since))
			}
			if !chosen || s.Distrusted.IsZero() == d.Lift {
				continue
			}
			if s.Distrusted = at; d.Lift {
				s.Distrusted = time.Time{}
			}
			b.sessions[session] = s
			changed++
		}
		return nil
	})
	return changed, err
}
