package mover

import (
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"syscall"
	"time"

	"github.com/holdfast-dr/holdfast/sdk"
)

// Bounds of the waits between attempts.
const (
	firstWait = 200 * time.Millisecond
	lastWait  = 10 * time.Second
)

// IsTemporary reports whether a failed request is worth repeating: the error
// says so itself (Temporary() bool), it is one of the sdk's that ask for it, or
// the connection broke.
func IsTemporary(err error) bool {
	var last final
	if errors.As(err, &last) || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return false
	}
	var says interface{ Temporary() bool }
	if errors.As(err, &says) && says.Temporary() {
		return true
	}
	var network *net.OpError
	return errors.As(err, &network) ||
		errors.Is(err, sdk.ErrUnavailable) || errors.Is(err, sdk.ErrBusy) ||
		errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, net.ErrClosed) ||
		errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, syscall.EPIPE)
}

// final wraps an error that repeating does not help, whatever it says.
type final struct{ error }

func (f final) Unwrap() error { return f.error }

// Retry repeats a request that may be repeated.
type Retry struct {
	For       time.Duration    // how long to go on after the first failure; 0 means 10 minutes
	Temporary func(error) bool // nil: IsTemporary
	Failed    func(error)      // told of each failure that is repeated; may be nil
}

// Do calls do until it succeeds, fails for good, or the time is over. Waits
// grow, with jitter, so that many agents do not return to a restarted server at
// one moment.
func (r Retry) Do(ctx context.Context, do func() error) error {
	temporary, limit := r.Temporary, r.For
	if temporary == nil {
		temporary = IsTemporary
	}
	if limit == 0 {
		limit = 10 * time.Minute
	}
	var since time.Time
	for wait := firstWait; ; wait = min(2*wait, lastWait) {
		err := do()
		if err == nil || ctx.Err() != nil || !temporary(err) {
			return err
		}
		now := time.Now()
		if since.IsZero() {
			since = now
		}
		if now.Sub(since) >= limit {
			return err
		}
		if r.Failed != nil {
			r.Failed(err)
		}
		if err := pause(ctx, wait/2+rand.N(wait)); err != nil {
			return err
		}
	}
}

func pause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-timer.C:
		return nil
	}
}
