package host

import (
	"strings"
	"testing"
	"time"
)

// steps drives a breaker on a clock of its own.
type steps struct {
	t   *testing.T
	b   breaker
	now time.Time
}

func (s *steps) pass(d time.Duration) { s.now = s.now.Add(d) }

func (s *steps) wants(what string, wait time.Duration, cause Cause) {
	s.t.Helper()
	got, q := s.b.permit(s.now)
	var held Cause
	if q != nil {
		held = q.Cause
	}
	if max(got, 0) != wait || held != cause {
		s.t.Fatalf("%s: wait %s, quarantine %q; want %s, %q", what, got, held, wait, cause)
	}
}

func TestBreakerTripsAndTries(t *testing.T) {
	s := &steps{t: t, now: time.Unix(1e9, 0)}
	for i, pause := range []time.Duration{0, firstPause, 2 * firstPause, 4 * firstPause} {
		s.b.died(s.now, "exit 1")
		s.wants("after a death", pause, "")
		if i == 3 {
			break
		}
		s.pass(pause)
	}
	s.pass(4 * firstPause)
	s.b.died(s.now, "exit 2")
	s.wants("after the last straw", 0, CauseDying)
	since := s.now
	if q := s.b.state().quarantine; !strings.Contains(q.Reason, "5 times") || !strings.Contains(q.Reason, "exit 2") || !q.Trial.Equal(since.Add(firstTrial)) {
		t.Errorf("quarantine %+v", q)
	}
	for i, pause := range []time.Duration{firstTrial, 2 * firstTrial, 4 * firstTrial} {
		s.pass(pause - 1)
		s.wants("before the trial", 0, CauseDying)
		s.pass(1)
		s.wants("the trial", 0, "")
		if i < 2 {
			s.b.died(s.now, "again")
			s.wants("after a failed trial", 0, CauseDying)
		}
	}
	if q := s.b.state(); !q.onTrial || !q.quarantine.Since.Equal(since) {
		t.Errorf("on trial: %+v", q)
	}
	s.b.lived(steadyAfter - 1)
	if !s.b.state().onTrial {
		t.Error("a short life ended the trial")
	}
	s.b.lived(steadyAfter)
	if !s.b.clean() {
		t.Errorf("after a steady life: %+v", s.b.state())
	}
	s.b.died(s.now, "once")
	s.wants("after a death in a new life", 0, "")
}

func TestTrialsComeAtLeastHourly(t *testing.T) {
	s := &steps{now: time.Unix(1e9, 0)}
	for range 40 {
		s.b.died(s.now, "exit 1")
		if q := s.b.state().quarantine; q != nil {
			if q.Trial.Sub(s.now) > longestTrial {
				t.Fatalf("the next trial is in %s", q.Trial.Sub(s.now))
			}
			s.now = q.Trial
		}
		s.b.permit(s.now)
	}
}

// A back-end that is down is nobody's crime.
func TestRefusalsNeverTrip(t *testing.T) {
	s := &steps{t: t, now: time.Unix(1e9, 0)}
	for range 50 {
		s.b.refused(s.now)
		s.pass(longestPause)
		s.wants("after a refusal", 0, "")
	}
	s.b.refused(s.now)
	s.wants("at once after a refusal", longestPause, "")
	// A trial that finds the back-end down proves nothing.
	s = &steps{t: t, now: time.Unix(1e9, 0)}
	for range tripAfter {
		s.b.died(s.now, "exit 1")
	}
	s.pass(firstTrial)
	s.wants("the trial", 0, "")
	s.b.refused(s.now)
	s.wants("after the trial", 0, CauseDying)
	s.pass(longestPause)
	s.wants("the next trial", 0, "")
}

func TestBreachesAreForgottenWithTime(t *testing.T) {
	s := &steps{t: t, now: time.Unix(1e9, 0)}
	for range 10 {
		if s.b.breach(s.now, "odd") {
			t.Fatal("rare breaches tripped")
		}
		s.pass(breachWindow / 2)
	}
	s.b.forgive()
	for i := range breachLimit {
		if s.b.breach(s.now, "odd") != (i == breachLimit-1) {
			t.Fatalf("breach %d", i)
		}
	}
	s.pass(1000 * time.Hour)
	s.wants("until an operator acts", 0, CauseContract)
	s.b.lived(1000 * time.Hour)
	s.b.died(s.now, "exit 1")
	s.wants("whatever else happens", 0, CauseContract)
	s.b.forgive()
	s.wants("after that", 0, "")
}
