package schedule

import (
	"errors"
	"testing"
	"time"

	"pgregory.net/rapid"
)

func next(t *testing.T, s Schedule, after string, want ...string) {
	t.Helper()
	c, err := s.Parse()
	if err != nil {
		t.Fatal(err)
	}
	at, err := time.Parse(time.RFC3339, after)
	if err != nil {
		t.Fatal(err)
	}
	for _, w := range want {
		at = c.Next(at)
		if got := at.Format(time.RFC3339); got != w {
			t.Fatalf("%s: got %s, want %s", s, got, w)
		}
		if at.Location() != time.UTC {
			t.Errorf("%s: not in UTC", s)
		}
	}
}

func TestNext(t *testing.T) {
	next(t, Daily(22, 30, ""), "2026-11-23T22:30:00Z", "2026-11-24T22:30:00Z", "2026-11-25T22:30:00Z")
	next(t, Daily(22, 30, "Europe/Berlin"), "2026-11-23T21:29:59Z", "2026-11-23T21:30:00Z")
	next(t, Weekly(6, 0, "America/New_York", time.Saturday, time.Monday, time.Monday), "2026-11-23T11:00:00Z",
		"2026-11-28T11:00:00Z", "2026-11-30T11:00:00Z")
	next(t, Schedule{Cron: "0 0 29 2 *"}, "2026-01-01T00:00:00Z", "2028-02-29T00:00:00Z")
	next(t, Schedule{Cron: "@monthly", Zone: "Asia/Kolkata"}, "2026-11-23T00:00:00Z", "2026-11-30T18:30:00Z")
	next(t, Schedule{Cron: "*/20 9 * * mon-fri", Zone: "Asia/Tokyo"}, "2026-11-27T00:21:00Z",
		"2026-11-27T00:40:00Z", "2026-11-30T00:00:00Z")
}

// Europe/Berlin: on 2026-03-29 the clock goes from 02:00 to 03:00 (01:00Z), on
// 2026-10-25 from 03:00 back to 02:00 (01:00Z).
func TestClockChanges(t *testing.T) {
	const zone = "Europe/Berlin"
	// Skipped: runs when the gap ends. Twice: runs the first time only.
	next(t, Daily(2, 30, zone), "2026-03-28T12:00:00Z", "2026-03-29T01:00:00Z", "2026-03-30T00:30:00Z")
	next(t, Daily(2, 30, zone), "2026-10-24T12:00:00Z", "2026-10-25T00:30:00Z", "2026-10-26T01:30:00Z")
	next(t, Daily(2, 0, zone), "2026-03-28T12:00:00Z", "2026-03-29T01:00:00Z", "2026-03-30T00:00:00Z")
	next(t, Daily(3, 0, zone), "2026-10-24T12:00:00Z", "2026-10-25T02:00:00Z", "2026-10-26T02:00:00Z")
	// Asked between the two.
	next(t, Daily(2, 30, zone), "2026-10-25T00:45:00Z", "2026-10-26T01:30:00Z")
	next(t, Daily(2, 30, zone), "2026-10-25T01:15:00Z", "2026-10-26T01:30:00Z")
	// Every hour and every half hour follow elapsed time.
	next(t, Schedule{Cron: "0 * * * *", Zone: zone}, "2026-10-24T23:30:00Z",
		"2026-10-25T00:00:00Z", "2026-10-25T01:00:00Z", "2026-10-25T02:00:00Z")
	next(t, Schedule{Cron: "30 * * * *", Zone: zone}, "2026-03-29T00:00:00Z", "2026-03-29T00:30:00Z", "2026-03-29T01:30:00Z")
	// Half an hour: Lord Howe goes from 02:00 to 02:30 on 2026-10-04 (15:30Z the day before).
	next(t, Daily(2, 15, "Australia/Lord_Howe"), "2026-10-03T00:00:00Z", "2026-10-03T15:30:00Z", "2026-10-04T15:15:00Z")
	// Midnight itself is skipped in Beirut on 2026-03-29 (22:00Z the day before).
	next(t, Daily(0, 0, "Asia/Beirut"), "2026-03-28T12:00:00Z", "2026-03-28T22:00:00Z", "2026-03-29T21:00:00Z")
}

func TestRefusals(t *testing.T) {
	for _, s := range []Schedule{{}, {Cron: "* * *"}, {Cron: "61 * * * *"}, {Cron: "@every 5m"}, {Cron: "TZ=UTC 0 0 * * *"},
		{Cron: "0 0 30 2 *"}, {Cron: "0 0 * * *", Zone: "Mars/Olympus"}, {Cron: "0 0 * * *", Zone: "Local"},
		{Cron: "0 0 * * *", Zone: "../../etc/passwd"}, Daily(24, 0, ""), Weekly(1, 0, "")} {
		var refused *Error
		if err := s.Check(); !errors.As(err, &refused) || refused.Hint() == "" {
			t.Errorf("%q in %q: %v", s.Cron, s.Zone, err)
		}
	}
}

// Once a day means once on every local date, whatever the clock does, and never
// at or before the time that was asked about.
func TestDailyRunsOncePerDate(t *testing.T) {
	zones := []string{"UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Asia/Beirut", "America/Sao_Paulo", "Africa/Casablanca"}
	rapid.Check(t, func(rt *rapid.T) {
		s := Daily(rapid.IntRange(0, 23).Draw(rt, "hour"), rapid.IntRange(0, 59).Draw(rt, "minute"), rapid.SampledFrom(zones).Draw(rt, "zone"))
		c, err := s.Parse()
		if err != nil {
			rt.Fatal(err)
		}
		at := time.Unix(rapid.Int64Range(1262304000, 2051222400).Draw(rt, "from"), 0)
		before := c.Next(at)
		for range 40 {
			now := c.Next(before)
			gap := now.Sub(before)
			if !now.After(before) || gap < 22*time.Hour || gap > 26*time.Hour {
				rt.Fatalf("%s: %s after %s", s, now, before)
			}
			before = now
		}
	})
}

func FuzzParse(f *testing.F) {
	f.Add("0 22 * * *", "Europe/Berlin")
	f.Add("@daily", "")
	f.Fuzz(func(t *testing.T, line, zone string) {
		c, err := Schedule{Cron: line, Zone: zone}.Parse()
		if err != nil {
			return
		}
		at := time.Date(2026, 3, 28, 23, 59, 59, 0, time.UTC)
		if n := c.Next(at); !n.IsZero() && !n.After(at) {
			t.Errorf("%q: %s is not after %s", line, n, at)
		}
	})
}
