package access

import (
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"time"

	"github.com/holdfast-dr/holdfast/core/tenant"
)

// How failed logins slow down the next ones. An address may fail as often as a
// person with a wrong keyboard does; then every failure doubles its wait. All
// addresses together may fail more often for one user, and wait less: a stranger
// who guesses from many places is slowed down, and cannot lock the user out.
const (
	freeByAddress = 10
	waitByAddress = 5 * time.Minute // at most
	freeByUser    = 50
	waitByUser    = 10 * time.Second // at most
	// A token cannot be guessed, so an address may show many that nobody knows, as
	// a program does whose token was deleted, before each costs it a wait.
	freeTokens  = 200
	waitByToken = time.Minute // at most
	// forgetAttempts is how long after its last failure nothing is remembered.
	forgetAttempts = 30 * time.Minute
	// maxAttempts bounds what is remembered. Beyond it the oldest are forgotten.
	maxAttempts = 10000
)

// WaitError refuses a login or a token because too many failed before it. It was
// not looked at.
type WaitError struct {
	Wait  time.Duration // until the next one is looked at
	Token bool          // it was a token
}

func (e *WaitError) Error() string {
	what := "failed logins"
	if e.Token {
		what = "unknown tokens from this address"
	}
	return fmt.Sprintf("too many %s: the next one is looked at in %s", what, e.Wait.Round(time.Second))
}

// Attempts remembers failed logins and unknown tokens, in memory, and says who has to wait.
type Attempts struct {
	now   func() time.Time
	mu    sync.Mutex
	known map[string]attempt
}

type attempt struct {
	failed int
	last   time.Time
}

// NewAttempts remembers nothing yet.
func NewAttempts(now func() time.Time) *Attempts {
	return &Attempts{now: now, known: map[string]attempt{}}
}

// Begin answers a WaitError if a login has to wait, and otherwise a function
// that is told what came of it. Until then the login counts as failed, so that
// many at once get no further than one after the other. address is that of a
// connection, with its port; in and user are names as they were typed.
func (a *Attempts) Begin(address, in, user string) (done func(error), err error) {
	now := a.now()
	from, to := "address "+Neighbourhood(address), "user "+tenant.Fold(in)+"\x00"+tenant.Fold(user)
	a.mu.Lock()
	defer a.mu.Unlock()
	wait := max(a.wait(now, from, freeByAddress, waitByAddress), a.wait(now, to, freeByUser, waitByUser))
	if wait > 0 {
		return nil, &WaitError{Wait: wait}
	}
	a.count(now, from)
	a.count(now, to)
	return func(err error) {
		if errors.Is(err, ErrCredentials) {
			return
		}
		a.mu.Lock()
		defer a.mu.Unlock()
		// Only this login is given back to the address: one good account must not
		// pay for guessing at others.
		a.uncount(from)
		if err == nil {
			delete(a.known, to) // who knows the password did not guess
		} else {
			a.uncount(to)
		}
	}, nil
}

// Token answers a WaitError if a token from an address is not to be looked at
// yet, because of others that nobody knew.
func (a *Attempts) Token(address string) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if wait := a.wait(a.now(), tokensOf(address), freeTokens, waitByToken); wait > 0 {
		return &WaitError{Wait: wait, Token: true}
	}
	return nil
}

// UnknownToken counts a token that nobody knows.
func (a *Attempts) UnknownToken(address string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.count(a.now(), tokensOf(address))
}

func tokensOf(address string) string { return "tokens " + Neighbourhood(address) }

// wait is how long somebody still has to wait.
func (a *Attempts) wait(now time.Time, key string, free int, longest time.Duration) time.Duration {
	k, ok := a.known[key]
	if !ok || now.Sub(k.last) > forgetAttempts || k.failed < free {
		return 0
	}
	pause := longest
	if doublings := k.failed - free; doublings < 10 {
		pause = min(longest, time.Second<<doublings)
	}
	return k.last.Add(pause).Sub(now)
}

func (a *Attempts) count(now time.Time, key string) {
	k := a.known[key]
	if now.Sub(k.last) > forgetAttempts {
		k = attempt{}
	}
	if len(a.known) >= maxAttempts {
		a.forget(now)
	}
	a.known[key] = attempt{failed: k.failed + 1, last: now}
}

func (a *Attempts) uncount(key string) {
	if k := a.known[key]; k.failed > 1 {
		a.known[key] = attempt{failed: k.failed - 1, last: k.last}
	} else {
		delete(a.known, key)
	}
}

// forget makes room: it drops what is over, and the oldest if nothing is.
func (a *Attempts) forget(now time.Time) {
	var oldest string
	for key, k := range a.known {
		if now.Sub(k.last) > forgetAttempts {
			delete(a.known, key)
		} else if oldest == "" || k.last.Before(a.known[oldest].last) {
			oldest = key
		}
	}
	if len(a.known) >= maxAttempts {
		delete(a.known, oldest)
	}
}

// Neighbourhood is the part of an address that one person has: the whole of an
// IPv4 address, the first half of an IPv6 one.
func Neighbourhood(address string) string {
	at, err := netip.ParseAddrPort(address)
	if err != nil {
		return address
	}
	ip := at.Addr().Unmap().WithZone("")
	if ip.Is6() {
		if p, err := ip.Prefix(64); err == nil {
			return p.String()
		}
	}
	return ip.String()
}
