// Package schedule says when: calendars in the tenant's own time zone.
//
// The specification is a cron line of five fields, or one that Daily or Weekly
// writes. Only the question "when is the next time after t" is answered here;
// the answer is kept in the database, so that nothing is forgotten by a restart
// and nothing runs on two servers.
//
// On the days when clocks change, a time of day that a schedule names runs
// exactly once: a time that is skipped runs when the gap ends, a time that
// comes twice runs the first time. A schedule that runs every hour, or every
// few minutes of every hour, follows elapsed time instead, so that it neither
// pauses for an hour nor doubles.
package schedule
