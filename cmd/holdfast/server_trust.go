package main

import (
	"context"
	"fmt"
	"time"

	"github.com/holdfast-dr/holdfast/core/api"
	"github.com/holdfast-dr/holdfast/core/job"
	"github.com/holdfast-dr/holdfast/core/point"
	"github.com/holdfast-dr/holdfast/core/quota"
	"github.com/holdfast-dr/holdfast/core/repository"
)

// distrustResult is what a distrust answers.
type distrustResult struct {
	ChangedSessions    int        `json:"changed_sessions"`
	DistrustedSessions int        `json:"distrusted_sessions"`
	AbortedSessions    int        `json:"aborted_sessions"`
	BroughtPoints      int        `json:"brought_points"`
	Brought            []point.ID `json:"brought,omitempty"`
	DoubtfulPoints     int        `json:"doubtful_points"`
	Doubtful           []point.ID `json:"doubtful,omitempty"`
	AffectedPoints     int        `json:"affected_points"`
	Affected           []point.ID `json:"affected,omitempty"`
}

// distrustRepository makes sessions distrusted, or trusted again, and names the
// points that depend on those that are.
func distrustRepository(ctx context.Context, x *job.Execution, o *openRepository, _ quota.CloudRepository) error {
	x.Report(job.Progress{Phase: "distrust", Time: time.Now()})
	var spec api.RunSpec
	if err := x.Spec(&spec); err != nil {
		return err
	}
	if spec.Distrust == nil {
		return fmt.Errorf("distrust: nobody is named: %w", repository.ErrRefused)
	}
	d := repository.Distrust{Session: spec.Distrust.Session, Owner: spec.Distrust.Agent, Lift: spec.Distrust.Lift}
	if spec.Distrust.Since != nil {
		d.Since = *spec.Distrust.Since
	}
	report, err := o.repository.Distrust(ctx, d)
	if err != nil {
		return err
	}
	switch {
	case report.Changed == 0:
		x.Warn(job.Failure{Side: "provider", Message: "nothing changed: no such session is there, or it is so already",
			Hint: "see holdfast repository sessions; what was brought before the database knew of sessions can be distrusted by the session that a backup's warning names"})
	case len(report.Doubtful)+len(report.Affected) > 0:
		x.Warn(job.Failure{Side: "provider",
			Message: fmt.Sprintf("%d points depend on what is distrusted, and %d cannot be restored whole", len(report.Doubtful), len(report.Affected)),
			Hint:    "the next backup of each machine sends again what it still has; then run holdfast repository verify, and let the tenant verify the points that are still named"})
	}
	return x.SetResult(distrustResult{ChangedSessions: report.Changed, DistrustedSessions: report.Distrusted, AbortedSessions: report.Aborted,
		BroughtPoints: len(report.Brought), Brought: named(report.Brought), DoubtfulPoints: len(report.Doubtful), Doubtful: named(report.Doubtful),
		AffectedPoints: len(report.Affected), Affected: named(report.Affected)})
}

// sessions lists who brought what is in a cloud repository, without opening it.
func (s *repositories) sessions(ctx context.Context, cloud string, q api.SessionQuery) ([]api.Session, error) {
	records, err := s.db.Catalogue().Sessions(ctx, cloud, repository.SessionQuery{Owner: q.Agent, Distrusted: q.Distrusted, After: q.After, Limit: q.Limit})
	if err != nil {
		return nil, err
	}
	out := make([]api.Session, len(records))
	for i, r := range records {
		out[i] = api.Session{ID: r.ID, Agent: r.Owner, Machine: string(r.Machine), Began: r.Began, Ended: optional(r.Ended), Distrusted: optional(r.Distrusted)}
	}
	return out, nil
}

func optional(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	return &t
}
