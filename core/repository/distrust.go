package repository

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/holdfast-dr/holdfast/core/audit"
	"github.com/holdfast-dr/holdfast/core/chunk"
	"github.com/holdfast-dr/holdfast/core/point"
)

// DistrustReport says what came of a Distrust.
type DistrustReport struct {
	Changed    int          // sessions that are distrusted, or trusted, since now
	Distrusted int          // all sessions that are
	Aborted    int          // of those that changed, the ones that were open
	Brought    []point.ID   // points that distrusted sessions committed
	Doubtful   []point.ID   // points that are whole only with what distrusted sessions brought
	Affected   []point.ID   // points that are not whole even so
	Sessions   []SessionRef // the first MaxFindings that are distrusted
}

// SessionRef names a session and who it was of.
type SessionRef struct {
	ID    string
	Owner string
}

// Distrust takes chunks for unsound because of who brought them: ids are keyed,
// so a repository cannot tell whether an agent sealed under an id what the id
// says. Have says no for them from now on, and a commit that needs them answers
// that they are missing, so the next backups of honest agents bring them again;
// sessions are told which chunks of their base they have to read. Nothing is
// deleted: where no other copy comes, what is distrusted is still read, kept and
// copied by collections. Map pages are not concerned: their ids are hashes that
// Put checks.
//
// Sessions that begin later are trusted. Whoever is not, is to be revoked first.
func (r *Repository) Distrust(ctx context.Context, d Distrust) (DistrustReport, error) {
	var report DistrustReport
	if err := r.Writable(); err != nil {
		return report, err
	}
	if _, err := audit.From(ctx); err != nil {
		return report, err
	}
	if err := r.distrust(ctx, d, &report); err != nil {
		return report, fmt.Errorf("distrust in repository %s: %w", r.id, err)
	}
	return report, nil
}

func (r *Repository) distrust(ctx context.Context, d Distrust, report *DistrustReport) error {
	if (d.Session == "") == (d.Owner == "") {
		return fmt.Errorf("a session or an owner has to be named: %w", ErrRefused)
	}
	if d.Session != "" {
		if _, err := ParseSessionID(d.Session); err != nil {
			return fmt.Errorf("%w: %w", ErrRefused, err)
		}
	}
	if err := r.change(ctx, d, report); err != nil {
		return err
	}
	if err := r.abortDistrusted(ctx, report); err != nil {
		return err
	}
	// Another copy than before may be the one that points use.
	if _, err := r.walk(ctx); err != nil {
		return err
	}
	if err := r.recountPending(ctx); err != nil {
		return err
	}
	return r.reportDistrusted(ctx, report)
}

// change makes the decision, while no commit is between its look-ups and its
// end.
func (r *Repository) change(ctx context.Context, d Distrust, report *DistrustReport) (err error) {
	r.condemning.Lock()
	defer r.condemning.Unlock()
	report.Changed, err = r.catalogue.Distrust(ctx, r.id, r.epoch, d, r.clock().UTC())
	// Whatever became of an answer that was lost, the database says.
	return errors.Join(err, r.loadDistrusted(context.WithoutCancel(ctx)))
}

// loadDistrusted learns which sessions are distrusted.
func (r *Repository) loadDistrusted(ctx context.Context) error {
	distrusted := map[chunk.SessionID]struct{}{}
	for s, err := range r.allSessions(ctx, SessionQuery{Distrusted: true}) {
		if err != nil {
			return err
		}
		if id, err := ParseSessionID(s.ID); err == nil {
			distrusted[id] = struct{}{}
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.distrusted = distrusted // a new one, so that whoever took the old one may go on reading it
	if len(distrusted) > 0 {
		r.damaged++ // sessions have to look for what their bases lost
	}
	return nil
}

// allSessions lists the sessions that a query selects.
func (r *Repository) allSessions(ctx context.Context, q SessionQuery) func(func(SessionRecord, error) bool) {
	return func(yield func(SessionRecord, error) bool) {
		for q.Limit = MaxSessions; ; {
			sessions, err := r.catalogue.Sessions(ctx, r.id, q)
			if err != nil {
				yield(SessionRecord{}, fmt.Errorf("list sessions: %w", err))
				return
			}
			for _, s := range sessions {
				if q.After = s.ID; !yield(s, nil) {
					return
				}
			}
			if len(sessions) < q.Limit {
				return
			}
		}
	}
}

// doubts reports whether a record counts only where there is no other copy;
// r.mu is held.
func (r *Repository) doubts(kind chunk.Kind, id chunk.SessionID) bool {
	if kind != chunk.KindData {
		return false
	}
	_, distrusted := r.distrusted[id]
	return distrusted
}

// enterPack makes a pack of the store known.
func (r *Repository) enterPack(p packObject, entries []Entry, pages map[chunk.ID][]byte, more func(*batch)) error {
	r.mu.Lock()
	distrusted := r.distrusted
	r.mu.Unlock()
	return r.space.enter(p, entries, pages, func(id chunk.SessionID) bool {
		_, ok := distrusted[id]
		return ok && p.kind == chunk.KindData
	}, more)
}

// abortDistrusted gives up the distrusted sessions that are open: what they
// would bring from now on would not count either.
func (r *Repository) abortDistrusted(ctx context.Context, report *DistrustReport) error {
	r.mu.Lock()
	var open []*Session
	for id, s := range r.sessions {
		if _, distrusted := r.distrusted[id]; distrusted {
			open = append(open, s)
		}
	}
	r.mu.Unlock()
	for _, s := range open {
		err := s.abort(ctx, false)
		if errors.Is(err, ErrRefused) { // it has committed meanwhile
			continue
		}
		if err != nil {
			return err
		}
		report.Aborted++
	}
	return nil
}

// reportDistrusted names the sessions that are distrusted and the points that
// depend on them.
func (r *Repository) reportDistrusted(ctx context.Context, report *DistrustReport) error {
	for s, err := range r.allSessions(ctx, SessionQuery{Distrusted: true}) {
		if err != nil {
			return err
		}
		if report.Distrusted++; len(report.Sessions) < MaxFindings {
			report.Sessions = append(report.Sessions, SessionRef{ID: s.ID, Owner: s.Owner})
		}
		brought, err := r.sessionPoint(ctx, s.ID)
		if err != nil {
			return err
		}
		if brought != "" {
			report.Brought = append(report.Brought, brought)
		}
	}
	v := &verifier{r: r}
	if err := v.points(ctx); err != nil {
		return err
	}
	report.Doubtful, report.Affected = v.report.Doubtful, v.report.Affected
	return nil
}

// endTimeout bounds how long the end of a session waits for the database.
const endTimeout = 10 * time.Second

// noteEnd records that a session is over. Where that fails, the next Open does
// it: until then it counts as open, which makes no difference but to a Distrust
// of what its owner brought since a time after it.
func (s *Session) noteEnd() {
	ctx, cancel := context.WithTimeout(context.Background(), endTimeout)
	defer cancel()
	if err := s.r.catalogue.Ended(ctx, s.r.id, s.r.epoch, []string{sessionText(s.id)}, s.r.clock().UTC()); err != nil {
		s.r.log.Warn("record the end of a session", "session", sessionText(s.id), "error", err)
	}
}

// endLost records the end of sessions that the database takes for open and this
// server does not have: their end was not recorded, or their spool is lost.
func (r *Repository) endLost(ctx context.Context) error {
	var lost []string
	for s, err := range r.allSessions(ctx, SessionQuery{Open: true}) {
		if err != nil {
			return err
		}
		id, err := ParseSessionID(s.ID)
		if err != nil {
			continue
		}
		r.mu.Lock()
		_, open := r.sessions[id]
		r.mu.Unlock()
		if !open {
			lost = append(lost, s.ID)
		}
	}
	if len(lost) == 0 {
		return nil
	}
	if err := r.catalogue.Ended(ctx, r.id, r.epoch, lost, r.clock().UTC()); err != nil {
		return fmt.Errorf("end sessions: %w", err)
	}
	return nil
}

// forgetSessions drops the sessions that had ended before the collection began
// and of which it found no record: whoever brought nothing that is left need not
// be remembered. One that committed is kept as long as its point.
func (c *collector) forgetSessions(ctx context.Context) error {
	if c.blind {
		return nil
	}
	var gone []string
	forget := func() error {
		if len(gone) == 0 {
			return nil
		}
		if err := c.r.catalogue.ForgetSessions(ctx, c.r.id, c.r.epoch, gone); err != nil {
			return fmt.Errorf("forget sessions: %w", err)
		}
		gone = nil
		return nil
	}
	for s, err := range c.r.allSessions(ctx, SessionQuery{}) {
		if err != nil {
			return err
		}
		id, err := ParseSessionID(s.ID)
		if err != nil || s.Ended.IsZero() || !s.Ended.Before(c.began) {
			continue
		}
		if _, left := c.bringer[id]; left {
			continue
		}
		if committed, err := c.r.sessionPoint(ctx, s.ID); err != nil || committed != "" {
			if err != nil {
				return err
			}
			continue
		}
		if gone = append(gone, s.ID); len(gone) >= MaxSessions {
			if err := forget(); err != nil {
				return err
			}
		}
	}
	return forget()
}

// sessionPoint is the point that a session committed, live or binned; empty if
// there is none.
func (r *Repository) sessionPoint(ctx context.Context, session string) (point.ID, error) {
	for _, binned := range []bool{false, true} {
		points, err := r.catalogue.Points(ctx, r.id, PointQuery{Session: session, Binned: binned, Limit: 1})
		if err != nil {
			return "", fmt.Errorf("list points: %w", err)
		}
		if len(points) > 0 {
			return points[0].ID, nil
		}
	}
	return "", nil
}
