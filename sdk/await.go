package sdk

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// Bounds of Await.
const (
	firstAsk    = 500 * time.Millisecond
	lastAsk     = 10 * time.Second
	maxFailures = 5             // attempts that find the back-end unavailable
	patience    = 6 * time.Hour // with one call that is pending
)

// Await makes a call of the contract until it is done: it repeats it while it
// answers ErrPending, for up to six hours, and a few times while it answers
// ErrUnavailable. It waits between the calls as long as the error asks for, at
// most CallLimit. Any other answer is returned as it is. The call has the same
// Op.ID each time.
func Await(ctx context.Context, call func() error) error {
	began, failures := time.Now(), 0
	for wait := firstAsk; ; wait = min(2*wait, lastAsk) {
		err := call()
		switch {
		case errors.Is(err, ErrPending):
			if time.Since(began) > patience {
				return err
			}
		case errors.Is(err, ErrUnavailable):
			if failures++; failures == maxFailures {
				return err
			}
		default:
			return err
		}
		pause := wait
		if e, ok := errors.AsType[*Error](err); ok && e.After > 0 {
			pause = min(e.After, CallLimit)
		}
		timer := time.NewTimer(pause)
		select {
		case <-ctx.Done():
			timer.Stop()
			return fmt.Errorf("%w: %w", context.Cause(ctx), err)
		case <-timer.C:
		}
	}
}
