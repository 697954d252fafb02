package host

import (
	"fmt"
	"sync"
	"time"
)

const (
	// A process that ends by itself is started again at once; one that ends
	// again before it lived for steadyAfter waits firstPause, then twice as
	// long each time, up to longestPause.
	steadyAfter  = time.Minute
	firstPause   = time.Second
	longestPause = time.Minute
	// After tripAfter deaths in a row the endpoint is in quarantine. One process
	// is tried after firstTrial, then after twice as long each time, up to
	// longestTrial; one that lives for steadyAfter ends the quarantine.
	tripAfter    = 5
	firstTrial   = 2 * time.Minute
	longestTrial = time.Hour
	// breachLimit answers that break the contract, within breachWindow, put an
	// endpoint into quarantine until an operator ends it. One alone may come
	// from one odd machine, which is no reason to stop the backups of all.
	breachLimit  = 3
	breachWindow = 10 * time.Minute
	// silenceLimit calls in a row that are not answered in time, while no byte
	// of a disk moves, end the process: it hangs.
	silenceLimit = 3
)

// Cause is why something is in quarantine.
type Cause string

// The causes.
const (
	CauseChanged  Cause = "changed"  // the program is not the one that was enabled
	CauseContract Cause = "contract" // its answers broke the contract
	CauseDying    Cause = "dying"    // its processes end or hang again and again
)

// Quarantine says why no process is started.
type Quarantine struct {
	Cause  Cause     `json:"cause" enum:"changed,contract,dying"`
	Reason string    `json:"reason"`
	Since  time.Time `json:"since"`
	Trial  time.Time `json:"trial,omitzero" doc:"When one process is tried again; without it, an operator ends the quarantine: plugin enable, or plugin reload after an upgrade"`
}

// breaker decides when a process of an endpoint may be started. It outlives
// the processes.
type breaker struct {
	mutex      sync.Mutex // guards the fields below
	failures   int        // starts and processes in a row that came to nothing
	deaths     int        // of them, those that are the plugin's doing
	notUntil   time.Time
	trips      int
	onTrial    bool // the process that starts or runs is a trial
	breaches   []time.Time
	quarantine *Quarantine
}

// permit says whether a process may be started now: after which pause, or not
// at all.
func (b *breaker) permit(now time.Time) (wait time.Duration, q *Quarantine) {
	b.mutex.Lock()
	defer b.mutex.Unlock()
	if b.quarantine == nil {
		return b.notUntil.Sub(now), nil
	}
	if b.quarantine.Trial.IsZero() || now.Before(b.quarantine.Trial) {
		held := *b.quarantine
		return 0, &held
	}
	b.onTrial = true
	return 0, nil
}

// died counts a process that ended by itself, hung, or never became a plugin.
func (b *breaker) died(now time.Time, reason string) {
	b.mutex.Lock()
	defer b.mutex.Unlock()
	b.deaths++
	b.fail(now)
	if b.quarantine != nil && !b.onTrial || b.deaths < tripAfter && !b.onTrial {
		return
	}
	pause := min(firstTrial<<min(b.trips, 16), longestTrial)
	since := now
	if b.quarantine != nil {
		since = b.quarantine.Since
	}
	b.quarantine = &Quarantine{Cause: CauseDying, Since: since, Trial: now.Add(pause),
		Reason: fmt.Sprintf("it failed %d times in a row, at last: %s", b.deaths, reason)}
	b.trips++
	b.onTrial = false
}

// refused counts a start that the plugin answered with an error, such as that
// its back-end is down. That alone is no reason for a quarantine.
func (b *breaker) refused(now time.Time) {
	b.mutex.Lock()
	defer b.mutex.Unlock()
	b.fail(now)
	if b.onTrial {
		b.quarantine.Trial, b.onTrial = now.Add(longestPause), false
	}
}

// fail is called with mutex held.
func (b *breaker) fail(now time.Time) {
	if b.failures++; b.failures < 2 {
		return
	}
	pause := firstPause << min(b.failures-2, 16)
	b.notUntil = now.Add(min(pause, longestPause))
}

// lived is told how long a process has lived: long enough, and what was before
// is forgotten. An operator's quarantine stays.
func (b *breaker) lived(d time.Duration) {
	b.mutex.Lock()
	defer b.mutex.Unlock()
	if d < steadyAfter {
		return
	}
	b.failures, b.deaths, b.trips = 0, 0, 0
	if b.onTrial {
		b.quarantine, b.onTrial = nil, false
	}
}

// breach counts an answer that breaks the contract, and reports whether that
// was one too many.
func (b *breaker) breach(now time.Time, reason string) bool {
	b.mutex.Lock()
	defer b.mutex.Unlock()
	recent := b.breaches[:0]
	for _, at := range b.breaches {
		if now.Sub(at) < breachWindow {
			recent = append(recent, at)
		}
	}
	if b.breaches = append(recent, now); len(b.breaches) < breachLimit {
		return false
	}
	b.forbidLocked(now, CauseContract, fmt.Sprintf("%d answers broke the contract within %s, the last: %s", len(b.breaches), breachWindow, reason))
	return true
}

// forbid is a quarantine that an operator ends.
func (b *breaker) forbid(now time.Time, c Cause, reason string) {
	b.mutex.Lock()
	defer b.mutex.Unlock()
	b.forbidLocked(now, c, reason)
}

func (b *breaker) forbidLocked(now time.Time, c Cause, reason string) {
	b.quarantine, b.onTrial, b.breaches = &Quarantine{Cause: c, Reason: reason, Since: now}, false, nil
}

// forgive forgets everything.
func (b *breaker) forgive() {
	b.mutex.Lock()
	defer b.mutex.Unlock()
	b.failures, b.deaths, b.trips, b.notUntil = 0, 0, 0, time.Time{}
	b.quarantine, b.onTrial, b.breaches = nil, false, nil
}

// clean reports whether there is nothing to remember.
func (b *breaker) clean() bool {
	b.mutex.Lock()
	defer b.mutex.Unlock()
	return b.failures == 0 && b.quarantine == nil && len(b.breaches) == 0
}

// breakerState is a breaker at one moment.
type breakerState struct {
	failures   int
	notUntil   time.Time
	onTrial    bool
	quarantine *Quarantine
}

func (b *breaker) state() breakerState {
	b.mutex.Lock()
	defer b.mutex.Unlock()
	s := breakerState{failures: b.failures, notUntil: b.notUntil, onTrial: b.onTrial}
	if b.quarantine != nil {
		held := *b.quarantine
		s.quarantine = &held
	}
	return s
}
