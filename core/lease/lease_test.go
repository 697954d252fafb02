package lease

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/core/tenant"
)

func TestTheEndIsExclusive(t *testing.T) {
	end := time.Date(2027, 1, 1, 0, 0, 0, 0, time.UTC)
	v := tenant.Tenant{Name: "acme", Enabled: true, LeaseEnd: end}
	if err := Check(v, end.Add(-time.Microsecond)); err != nil {
		t.Errorf("before the end: %v", err)
	}
	for _, now := range []time.Time{end, end.Add(time.Hour)} {
		var ended *EndedError
		if err := Check(v, now); !errors.As(err, &ended) || !ended.End.Equal(end) || ended.Tenant != "acme" || ended.Hint() == "" {
			t.Errorf("at %s: %v", now, err)
		}
	}
	v.LeaseEnd = time.Time{}
	if err := Check(v, end); err != nil {
		t.Errorf("without an end: %v", err)
	}
}

func TestDisabledComesFirst(t *testing.T) {
	v := tenant.Tenant{Name: "acme", LeaseEnd: time.Unix(1, 0)}
	var disabled *tenant.DisabledError
	if err := Admit(v, time.Now()); !errors.As(err, &disabled) {
		t.Errorf("disabled and ended: %v", err)
	}
	v.Enabled = true
	var ended *EndedError
	if err := Admit(v, time.Now()); !errors.As(err, &ended) {
		t.Errorf("ended: %v", err)
	}
}

// A contract is shown with the last day that it was made with, also where that
// day had 23 or 25 hours, and with the moment if it was made with one.
func TestLastDay(t *testing.T) {
	berlin, err := time.LoadLocation("Europe/Berlin")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		end  time.Time
		zone *time.Location
		want string
	}{
		{time.Date(2026, 11, 2, 0, 0, 0, 0, time.UTC), time.UTC, "2026-11-01"},
		{time.Date(2027, 1, 1, 0, 0, 0, 0, berlin), berlin, "2026-12-31"},
		{time.Date(2026, 10, 26, 0, 0, 0, 0, berlin).UTC(), berlin, "2026-10-25"}, // 25 hours
		{time.Date(2026, 3, 30, 0, 0, 0, 0, berlin), berlin, "2026-03-29"},        // 23 hours
		{time.Date(2026, 11, 2, 0, 0, 0, 0, berlin), time.UTC, ""},
		{time.Date(2026, 11, 2, 18, 0, 0, 0, time.UTC), time.UTC, ""},
		{time.Date(2026, 11, 2, 0, 0, 0, 1, time.UTC), time.UTC, ""},
	} {
		day, whole := LastDay(c.end, c.zone)
		if got := day.Format(time.DateOnly); whole != (c.want != "") || whole && got != c.want {
			t.Errorf("a contract until %s in %s: last day %s (%t), want %q", c.end, c.zone, got, whole, c.want)
		}
	}
}

func TestRefusalNamesTheLastDay(t *testing.T) {
	y, m, d := time.Now().Date()
	e := &EndedError{Tenant: "acme", End: time.Date(y, m, d, 0, 0, 0, 0, time.Local)}
	want := time.Date(y, m, d-1, 0, 0, 0, 0, time.Local).Format(time.DateOnly)
	if got := e.Error(); !strings.Contains(got, "last day was "+want) {
		t.Errorf("refused with %q, want the last day %s", got, want)
	}
	e.End = e.End.Add(90 * time.Minute)
	if got, want := e.Error(), e.End.Format("2006-01-02 15:04 MST"); !strings.Contains(got, want) {
		t.Errorf("refused with %q, want the moment %s", got, want)
	}
}
