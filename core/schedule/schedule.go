package schedule

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
	_ "time/tzdata" // a server without a zone database still knows every zone

	"github.com/robfig/cron/v3"
)

// Schedule is a cron line and the zone in which it is read. It is data: keep it,
// compare it, send it.
type Schedule struct {
	Cron string `json:"cron"`
	Zone string `json:"zone"` // IANA name; empty means UTC
}

// maxCron bounds what is parsed.
const maxCron = 256

// Error is a schedule that cannot be understood.
type Error struct {
	Schedule Schedule
	Reason   string
}

// Error quotes the schedule.
func (e *Error) Error() string {
	return fmt.Sprintf("schedule %q in zone %q: %s", e.Schedule.Cron, e.Schedule.Zone, e.Reason)
}

// Hint gives an example.
func (e *Error) Hint() string {
	return `five fields: minute hour day-of-month month day-of-week, as in "30 22 * * mon-fri"; the zone is a name like Europe/Berlin`
}

// Daily runs every day at a time of day.
func Daily(hour, minute int, zone string) Schedule {
	return Schedule{Cron: fmt.Sprintf("%d %d * * *", minute, hour), Zone: zone}
}

// Weekly runs on some days of the week at a time of day.
func Weekly(hour, minute int, zone string, days ...time.Weekday) Schedule {
	days = slices.Clone(days)
	slices.Sort(days)
	names := make([]string, 0, len(days))
	for _, d := range slices.Compact(days) {
		names = append(names, strconv.Itoa(int(d)))
	}
	return Schedule{Cron: fmt.Sprintf("%d %d * * %s", minute, hour, strings.Join(names, ",")), Zone: zone}
}

// Calendar is a parsed schedule.
type Calendar struct {
	spec    cron.Schedule
	zone    *time.Location
	elapsed bool // every hour: follow elapsed time
}

// Check says whether a schedule can be understood.
func (s Schedule) Check() error {
	_, err := s.Parse()
	return err
}

// String is the schedule for people.
func (s Schedule) String() string {
	if s.Zone == "" {
		return s.Cron + " UTC"
	}
	return s.Cron + " " + s.Zone
}

// Parse reads a schedule.
func (s Schedule) Parse() (*Calendar, error) {
	refuse := func(reason string) (*Calendar, error) { return nil, &Error{Schedule: s, Reason: reason} }
	line := strings.TrimSpace(s.Cron)
	switch {
	case line == "":
		return refuse("it is empty")
	case len(line) > maxCron:
		return refuse(fmt.Sprintf("it is longer than %d characters", maxCron))
	case strings.HasPrefix(line, "TZ=") || strings.HasPrefix(line, "CRON_TZ="):
		return refuse("the zone belongs into its own field")
	case strings.HasPrefix(line, "@every"):
		return refuse("an interval has no fixed times; name minutes and hours instead")
	case s.Zone == "Local":
		return refuse("the zone must be named")
	}
	zone, err := time.LoadLocation(s.Zone)
	if err != nil {
		return refuse("the zone is unknown")
	}
	spec, err := cron.ParseStandard(line)
	if err != nil {
		return refuse(err.Error())
	}
	c := &Calendar{spec: spec, zone: zone, elapsed: everyHour(line)}
	if c.Next(time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)).IsZero() {
		return refuse("it never comes")
	}
	return c, nil
}

func everyHour(line string) bool {
	if line == "@hourly" {
		return true
	}
	fields := strings.Fields(line)
	return len(fields) == 5 && (fields[1] == "*" || fields[1] == "?" || fields[1] == "*/1")
}

// Next is the first time after t, in UTC; zero if there is none within five years.
func (c *Calendar) Next(t time.Time) time.Time {
	if c.elapsed {
		return c.nextElapsed(t)
	}
	// Walk the wall clock as if it were UTC, where every day has 24 hours, and
	// look up each time found. The walk begins a day early, since around a change
	// the wall clock does not say which side of it t is on.
	local := t.In(c.zone)
	wall := time.Date(local.Year(), local.Month(), local.Day(), local.Hour(), local.Minute(), local.Second(), 0, time.UTC).Add(-24 * time.Hour)
	for {
		wall = c.spec.Next(wall)
		if wall.IsZero() {
			return time.Time{}
		}
		if at := instant(wall, c.zone); at.After(t) {
			return at.UTC()
		}
	}
}

// nextElapsed lets cron walk the real hours of the zone.
func (c *Calendar) nextElapsed(t time.Time) time.Time {
	next := c.spec.Next(t.In(c.zone))
	if next.IsZero() {
		return time.Time{}
	}
	return next.UTC()
}

// instant is the moment at which the wall clock of a zone shows wall: the first
// of two, or the end of the gap that skips it.
func instant(wall time.Time, zone *time.Location) time.Time {
	// The offsets in force a day before and after bracket any change.
	_, before := wall.Add(-24 * time.Hour).In(zone).Zone()
	_, after := wall.Add(24 * time.Hour).In(zone).Zone()
	early := wall.Add(-time.Duration(max(before, after)) * time.Second)
	late := wall.Add(-time.Duration(min(before, after)) * time.Second)
	for _, at := range []time.Time{early, late} {
		if showsWall(at.In(zone), wall) {
			return at
		}
	}
	// Skipped. The gap ends at the change, which lies between the two; find it.
	for late.Sub(early) > time.Second {
		middle := early.Add(late.Sub(early) / 2).Truncate(time.Second)
		if !middle.After(early) {
			break
		}
		if _, offset := middle.In(zone).Zone(); offset == before {
			early = middle
		} else {
			late = middle
		}
	}
	return late.Truncate(time.Second)
}

func showsWall(local, wall time.Time) bool {
	return local.Year() == wall.Year() && local.YearDay() == wall.YearDay() &&
		local.Hour() == wall.Hour() && local.Minute() == wall.Minute() && local.Second() == wall.Second()
}
