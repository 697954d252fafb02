package claim

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"
)

// releaseTimeout bounds how long giving a claim back may take; after it the
// claim just expires.
const releaseTimeout = 5 * time.Second

// LostError is the cause of a context whose claim could not be kept. It is an
// ErrFenced: from that moment somebody else may write.
type LostError struct {
	Claim Claim
	Err   error // why it was not renewed
}

// Error names the resource.
func (e *LostError) Error() string {
	return fmt.Sprintf("claim of %s (epoch %d) lost: %v", e.Claim.Resource, e.Claim.Epoch, e.Err)
}

// Is makes it an ErrFenced.
func (e *LostError) Is(target error) bool { return target == ErrFenced }

// Unwrap is why it was not renewed.
func (e *LostError) Unwrap() error { return e.Err }

// Held is a claim that is being renewed.
type Held struct {
	claim  Claim
	store  Store
	cancel context.CancelCauseFunc
	done   chan struct{} // closed when renewal has ended

	once sync.Once
	err  error
}

// Hold acquires a resource and keeps renewing it. Work under the claim uses the
// context that Hold returns: it ends with ctx, with Release, or, with a
// *LostError as its cause, a little before the claim would expire unrenewed.
// The caller must call Release. A zero ttl is DefaultTTL.
func Hold(ctx context.Context, store Store, r Resource, h Holder, ttl time.Duration) (context.Context, *Held, error) {
	if ttl == 0 {
		ttl = DefaultTTL
	}
	// Validity is counted from before the request, so that it never ends later
	// here than in the store, however long the answer took.
	start := time.Now()
	c, err := store.Acquire(ctx, r, h, ttl)
	if err != nil {
		return nil, nil, err
	}
	work, cancel := context.WithCancelCause(ctx)
	held := &Held{claim: c, store: store, cancel: cancel, done: make(chan struct{})}
	go held.renew(work, start, ttl)
	return work, held, nil
}

// Epoch is the fencing number of the claim.
func (h *Held) Epoch() int64 { return h.claim.Epoch }

// Claim is the claim as it was acquired.
func (h *Held) Claim() Claim { return h.claim }

// Release ends the work's context and gives the claim back. It is idempotent,
// and harmless when the claim was lost.
func (h *Held) Release() error {
	h.once.Do(func() {
		h.cancel(context.Canceled)
		<-h.done
		ctx, cancel := context.WithTimeout(context.Background(), releaseTimeout)
		defer cancel()
		h.err = h.store.Release(ctx, h.claim)
	})
	return h.err
}

// renew runs until the work ends. It tries at a third of the time, and after a
// failure again and again until a tenth before the end.
func (h *Held) renew(work context.Context, start time.Time, ttl time.Duration) {
	defer close(h.done)
	deadline := start.Add(ttl - ttl/10)
	next := time.NewTimer(ttl / 3)
	defer next.Stop()
	for {
		select {
		case <-work.Done():
			return
		case <-next.C:
		}
		begin := time.Now()
		attempt, cancel := context.WithDeadline(work, deadline)
		_, err := h.store.Renew(attempt, h.claim, ttl)
		cancel()
		switch {
		case err == nil:
			deadline = begin.Add(ttl - ttl/10)
			next.Reset(ttl / 3)
		case work.Err() != nil:
			return
		case errors.Is(err, ErrFenced), !time.Now().Before(deadline):
			h.cancel(&LostError{Claim: h.claim, Err: err})
			return
		default:
			next.Reset(min(ttl/10, time.Until(deadline)))
		}
	}
}
