package agent

import (
	"time"

	"github.com/holdfast-dr/holdfast/core/point"
)

// Kept is a point as retention looks at it.
type Kept struct {
	ID    point.ID
	Taken time.Time
}

// Expired lists the points of one machine that retention lets go, given all of
// them, newest first. A rule that is not set keeps nothing, but without any
// rule everything is kept, and the newest point always is. A point dated in
// the future is kept: a clock that jumped frees nothing.
func (r Retention) Expired(points []Kept, now time.Time) []point.ID {
	if r.Points <= 0 && r.Days <= 0 {
		return nil
	}
	var expired []point.ID
	for i, p := range points {
		young := r.Days > 0 && p.Taken.After(now.AddDate(0, 0, -r.Days))
		if i == 0 || i < r.Points || young || p.Taken.After(now) {
			continue
		}
		expired = append(expired, p.ID)
	}
	return expired
}

// earlier is the moment that retention counts from: of the site's clock and the
// provider's, the one that is behind, so that neither frees anything by jumping
// ahead.
func earlier(site, provider time.Time) time.Time {
	if !provider.IsZero() && provider.Before(site) {
		return provider
	}
	return site
}
