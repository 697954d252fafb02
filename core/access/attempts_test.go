package access

import (
	"errors"
	"fmt"
	"testing"
	"time"
)

// clock stands still until a test moves it.
type clock struct{ at time.Time }

func (c *clock) now() time.Time { return c.at }

func waited(t *testing.T, a *Attempts, address, user string, outcome error) time.Duration {
	t.Helper()
	done, err := a.Begin(address, "", user)
	if e, ok := errors.AsType[*WaitError](err); ok {
		return e.Wait
	} else if err != nil {
		t.Fatal(err)
	}
	done(outcome)
	return 0
}

func TestFailedLoginsOfOneAddressWaitLongerAndLonger(t *testing.T) {
	c := &clock{at: time.Unix(1e9, 0)}
	a := NewAttempts(c.now)
	for i := range freeByAddress {
		if w := waited(t, a, fmt.Sprintf("192.0.2.1:%d", 1000+i), fmt.Sprint("user", i), ErrCredentials); w != 0 {
			t.Fatalf("failure %d already waited %s", i+1, w)
		}
	}
	for _, want := range []time.Duration{time.Second, 2 * time.Second, 4 * time.Second, 8 * time.Second} {
		if w := waited(t, a, "192.0.2.1:7", "other", nil); w != want {
			t.Fatalf("waits %s, want %s", w, want)
		}
		if w := waited(t, a, "192.0.2.2:7", "other", nil); w != 0 {
			t.Fatalf("another address waits %s", w)
		}
		c.at = c.at.Add(want)
		if w := waited(t, a, "192.0.2.1:7", "x", ErrCredentials); w != 0 {
			t.Fatalf("waits %s after the wait", w)
		}
	}
	for range 20 {
		c.at = c.at.Add(waited(t, a, "192.0.2.1:7", "x", ErrCredentials))
	}
	if w := waited(t, a, "192.0.2.1:7", "x", ErrCredentials); w > waitByAddress {
		t.Fatalf("waits %s, more than the bound %s", w, waitByAddress)
	}
	c.at = c.at.Add(forgetAttempts + time.Second)
	if w := waited(t, a, "192.0.2.1:7", "x", ErrCredentials); w != 0 {
		t.Fatalf("still waits %s after everything should be forgotten", w)
	}
}

func TestAGoodLoginDoesNotPayForGuessing(t *testing.T) {
	c := &clock{at: time.Unix(1e9, 0)}
	a := NewAttempts(c.now)
	for range freeByAddress {
		waited(t, a, "[2001:db8::1]:1", "victim", ErrCredentials)
		waited(t, a, "192.0.2.9:1", "mine", nil)
	}
	if w := waited(t, a, "[2001:db8::ffff]:1", "victim", ErrCredentials); w != time.Second {
		t.Fatalf("a neighbour in the same /64 waits %s, want 1s", w)
	}
	done, err := a.Begin("192.0.2.9:1", "", "mine")
	if err != nil {
		t.Fatal("an address whose logins all succeeded waits:", err)
	}
	done(nil)
}

func TestGuessingFromEverywhereSlowsOneUserDown(t *testing.T) {
	c := &clock{at: time.Unix(1e9, 0)}
	a := NewAttempts(c.now)
	for i := range freeByUser + 20 {
		address := fmt.Sprintf("198.51.100.%d:9", i)
		if w := waited(t, a, address, "Admin", ErrCredentials); w > waitByUser {
			t.Fatalf("waits %s, which locks the user out", w)
		} else if w > 0 {
			c.at = c.at.Add(w)
			waited(t, a, address, "admin", ErrCredentials)
		}
	}
	if w := waited(t, a, "203.0.113.1:1", "ADMIN", nil); w != waitByUser {
		t.Fatalf("waits %s, want %s", w, waitByUser)
	}
	c.at = c.at.Add(waitByUser)
	if w := waited(t, a, "203.0.113.1:1", "admin", nil); w != 0 {
		t.Fatalf("the user waits %s after the wait", w)
	}
	if w := waited(t, a, "203.0.113.2:1", "admin", ErrCredentials); w != 0 {
		t.Fatalf("waits %s after a good login", w)
	}
}

func TestLoginsAtOnceCountAsFailedUntilTheyEnd(t *testing.T) {
	c := &clock{at: time.Unix(1e9, 0)}
	a := NewAttempts(c.now)
	var open []func(error)
	for range freeByAddress {
		done, err := a.Begin("192.0.2.1:1", "", "x")
		if err != nil {
			t.Fatal(err)
		}
		open = append(open, done)
	}
	if w := waited(t, a, "192.0.2.1:1", "x", nil); w == 0 {
		t.Fatal("guesses made at once got further than guesses made one after the other")
	}
	for _, done := range open {
		done(ErrBusy) // the password was not looked at: nothing is counted
	}
	if len(a.known) != 0 {
		t.Fatalf("remembers %v of logins that were not looked at", a.known)
	}
}

func TestAttemptsAreBounded(t *testing.T) {
	c := &clock{at: time.Unix(1e9, 0)}
	a := NewAttempts(c.now)
	for i := range maxAttempts/2 + 500 { // each is an address and a user
		c.at = c.at.Add(time.Microsecond)
		waited(t, a, fmt.Sprintf("10.%d.%d.%d:1", i>>16, i>>8&255, i&255), fmt.Sprint(i), ErrCredentials)
	}
	if len(a.known) > maxAttempts {
		t.Fatalf("remembers %d, bound is %d", len(a.known), maxAttempts)
	}
}

// Whoever shows tokens that nobody knows, again and again, is refused without a
// look into the database, and nobody at another address notices.
func TestUnknownTokensSlowTheirAddressDown(t *testing.T) {
	c := &clock{at: time.Unix(1e9, 0)}
	a := NewAttempts(c.now)
	for i := range freeTokens {
		if err := a.Token("192.0.2.1:1"); err != nil {
			t.Fatalf("token %d: %v", i, err)
		}
		a.UnknownToken("192.0.2.1:2")
	}
	var wait *WaitError
	if err := a.Token("192.0.2.1:3"); !errors.As(err, &wait) || wait.Wait != time.Second || !wait.Token {
		t.Errorf("token %d: %v, want to wait a second", freeTokens, err)
	}
	if err := a.Token("192.0.2.2:1"); err != nil {
		t.Errorf("another address: %v", err)
	}
	if done, err := a.Begin("192.0.2.1:1", "", "user"); err != nil {
		t.Errorf("a login from the address: %v", err)
	} else {
		done(nil)
	}
	for range 20 {
		c.at = c.at.Add(waitByToken)
		if err := a.Token("192.0.2.1:1"); err != nil {
			t.Errorf("after a wait of %s: %v", waitByToken, err)
		}
		a.UnknownToken("192.0.2.1:1")
	}
	for i := range 2 * maxAttempts { // memory is bounded
		a.UnknownToken(fmt.Sprintf("10.%d.%d.%d:1", i>>16, i>>8&255, i&255))
	}
	if len(a.known) > maxAttempts {
		t.Errorf("%d addresses are remembered, at most %d should be", len(a.known), maxAttempts)
	}
}
