package repositorytest

import (
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"

	"github.com/holdfast-dr/holdfast/core/claim"
	"github.com/holdfast-dr/holdfast/core/point"
	"github.com/holdfast-dr/holdfast/core/repository"
)

// noon is when the sessions of the suite begin.
var noon = time.UnixMicro(1_700_000_000_000_000).UTC()

func newSession(owner string, minute int) repository.SessionRecord {
	return repository.SessionRecord{ID: fmt.Sprintf("%032x", minute), Owner: owner, Machine: point.MachineID(uuid.NewString()),
		Began: noon.Add(time.Duration(minute) * time.Minute)}
}

func sessions(t *testing.T, b Books, q repository.SessionQuery) []repository.SessionRecord {
	t.Helper()
	list, err := b.Catalogue.Sessions(t.Context(), b.Repository, q)
	must(t, err)
	return list
}

func wantSessions(t *testing.T, b Books, q repository.SessionQuery, want ...repository.SessionRecord) {
	t.Helper()
	if diff := cmp.Diff(append([]repository.SessionRecord{}, want...), append([]repository.SessionRecord{}, sessions(t, b, q)...)); diff != "" {
		t.Errorf("sessions of %+v (-want +got):\n%s", q, diff)
	}
}

func keepsSessions(t *testing.T, b Books) {
	ctx := t.Context()
	first, second, third := newSession("a", 1), newSession("b", 2), newSession("a", 3)
	for _, s := range []repository.SessionRecord{third, first, second} {
		must(t, b.Catalogue.Began(ctx, b.Repository, b.Epoch, s))
	}
	again := first
	again.Owner = "b"
	must(t, b.Catalogue.Began(ctx, b.Repository, b.Epoch, again)) // nobody takes over what another one began
	wantSessions(t, b, repository.SessionQuery{}, first, second, third)
	wantSessions(t, b, repository.SessionQuery{Owner: "a"}, first, third)
	wantSessions(t, b, repository.SessionQuery{After: first.ID, Limit: 1}, second)
	first.Ended = noon.Add(time.Hour)
	must(t, b.Catalogue.Ended(ctx, b.Repository, b.Epoch, []string{first.ID, "unknown"}, first.Ended))
	must(t, b.Catalogue.Ended(ctx, b.Repository, b.Epoch, []string{first.ID}, noon.Add(2*time.Hour)))
	wantSessions(t, b, repository.SessionQuery{}, first, second, third)
	wantSessions(t, b, repository.SessionQuery{Open: true}, second, third)
	must(t, b.Catalogue.ForgetSessions(ctx, b.Repository, b.Epoch, []string{first.ID, "unknown"}))
	wantSessions(t, b, repository.SessionQuery{}, second, third)

	old := b.Epoch
	b.NextEpoch()
	wantError(t, "begin under an old epoch", b.Catalogue.Began(ctx, b.Repository, old, newSession("a", 4)), claim.ErrFenced)
	wantError(t, "end under an old epoch", b.Catalogue.Ended(ctx, b.Repository, old, []string{second.ID}, noon), claim.ErrFenced)
	wantError(t, "forget under an old epoch", b.Catalogue.ForgetSessions(ctx, b.Repository, old, []string{second.ID}), claim.ErrFenced)
	_, err := b.Catalogue.Distrust(origin(t), b.Repository, old, repository.Distrust{Owner: "a"}, noon)
	wantError(t, "distrust under an old epoch", err, claim.ErrFenced)
	wantSessions(t, b, repository.SessionQuery{}, second, third)
}

// Distrusted are those that had not ended before the time, of one owner; or one
// session, also of nobody that is known.
func distrusts(t *testing.T, b Books) {
	early, late, open, other := newSession("a", 1), newSession("a", 2), newSession("a", 3), newSession("b", 4)
	early.Ended, late.Ended, other.Ended = noon.Add(10*time.Minute), noon.Add(20*time.Minute), noon.Add(20*time.Minute)
	for _, s := range []repository.SessionRecord{early, late, open, other} {
		must(t, b.Catalogue.Began(t.Context(), b.Repository, b.Epoch, s))
	}
	distrust := func(want int, d repository.Distrust, at time.Time) {
		t.Helper()
		changed, err := b.Catalogue.Distrust(origin(t), b.Repository, b.Epoch, d, at)
		must(t, err)
		if changed != want {
			t.Errorf("%+v changed %d sessions, want %d", d, changed, want)
		}
	}
	at := noon.Add(time.Hour)
	distrust(2, repository.Distrust{Owner: "a", Since: late.Ended}, at)
	late.Distrusted, open.Distrusted = at, at
	wantSessions(t, b, repository.SessionQuery{}, early, late, open, other)
	wantSessions(t, b, repository.SessionQuery{Distrusted: true}, late, open)
	distrust(1, repository.Distrust{Owner: "a"}, at.Add(time.Hour)) // those that are stay so since when they were
	early.Distrusted = at.Add(time.Hour)
	distrust(1, repository.Distrust{Session: late.ID, Lift: true}, at)
	late.Distrusted = time.Time{}
	distrust(0, repository.Distrust{Owner: "nobody"}, at)
	wantSessions(t, b, repository.SessionQuery{}, early, late, open, other)
	distrust(2, repository.Distrust{Owner: "a", Lift: true}, at)
	wantSessions(t, b, repository.SessionQuery{Distrusted: true})

	unknown := fmt.Sprintf("%032x", 99)
	distrust(0, repository.Distrust{Session: unknown, Lift: true}, at)
	distrust(1, repository.Distrust{Session: unknown}, at)
	wantSessions(t, b, repository.SessionQuery{Distrusted: true}, repository.SessionRecord{ID: unknown, Began: at, Ended: at, Distrusted: at})
}
