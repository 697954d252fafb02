package claim

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// table is a Store in memory with one resource; renew decides what Renew does.
type table struct {
	mu       sync.Mutex
	claim    Claim
	renewals int
	released bool
	renew    func(n int) error
}

func (s *table) Acquire(_ context.Context, r Resource, h Holder, ttl time.Duration) (Claim, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if time.Now().Before(s.claim.Until) {
		return Claim{}, &HeldError{Resource: r, Holder: s.claim.Holder.String(), Until: s.claim.Until}
	}
	s.claim = Claim{Resource: r, Holder: h, Epoch: s.claim.Epoch + 1, Until: time.Now().Add(ttl)}
	return s.claim, nil
}

func (s *table) Renew(_ context.Context, c Claim, ttl time.Duration) (Claim, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.renewals++
	if s.renew != nil {
		if err := s.renew(s.renewals); err != nil {
			return Claim{}, err
		}
	}
	s.claim.Until = time.Now().Add(ttl)
	return s.claim, nil
}

func (s *table) Release(context.Context, Claim) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.claim.Until, s.released = time.Time{}, true
	return nil
}

func (s *table) Current(context.Context, Resource) (Claim, error) { return s.claim, nil }
func (s *table) Expel(context.Context, Holder) (int64, error)     { return 0, nil }
func (s *table) until() time.Time                                 { s.mu.Lock(); defer s.mu.Unlock(); return s.claim.Until }

var me = Holder{Node: "n", Instance: "1"}

func release(t *testing.T, held *Held) {
	t.Helper()
	if err := held.Release(); err != nil {
		t.Errorf("release: %v", err)
	}
}

func TestHoldRenewsAndReleases(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &table{}
		work, held, err := Hold(t.Context(), s, "r", me, 0)
		if err != nil {
			t.Fatal(err)
		}
		<-time.After(10 * DefaultTTL)
		synctest.Wait() // for what is due at this very moment
		if work.Err() != nil || s.renewals < 29 || held.Epoch() != 1 {
			t.Fatalf("after ten lifetimes: %v, %d renewals", context.Cause(work), s.renewals)
		}
		for range 2 {
			if err := held.Release(); err != nil {
				t.Error(err)
			}
		}
		if work.Err() == nil || !s.released {
			t.Error("the work goes on after the release")
		}
	})
}

func TestABlipIsSurvived(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &table{renew: func(n int) error {
			if n%3 != 0 {
				return errors.New("database restarts")
			}
			return nil
		}}
		work, held, err := Hold(t.Context(), s, "r", me, 0)
		if err != nil {
			t.Fatal(err)
		}
		<-time.After(5 * DefaultTTL)
		synctest.Wait() // for what is due at this very moment
		if work.Err() != nil {
			t.Errorf("lost: %v", context.Cause(work))
		}
		release(t, held)
	})
}

// When nothing can be renewed, the work ends before anybody else can get the claim.
func TestAnOutageEndsTheWorkInTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &table{renew: func(int) error { return errors.New("database gone") }}
		work, held, err := Hold(t.Context(), s, "r", me, 0)
		if err != nil {
			t.Fatal(err)
		}
		<-work.Done()
		if !time.Now().Before(s.until()) {
			t.Errorf("ended %s after the claim", time.Since(s.until()))
		}
		var lost *LostError
		if cause := context.Cause(work); !errors.As(cause, &lost) || !errors.Is(cause, ErrFenced) {
			t.Errorf("cause %v", cause)
		}
		release(t, held)
	})
}

func TestBeingFencedEndsTheWorkAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &table{renew: func(int) error { return &FencedError{Resource: "r", Epoch: 1, Current: 2} }}
		start := time.Now()
		work, held, err := Hold(t.Context(), s, "r", me, 0)
		if err != nil {
			t.Fatal(err)
		}
		<-work.Done()
		if time.Since(start) > DefaultTTL/3 {
			t.Errorf("it took %s", time.Since(start))
		}
		release(t, held)
	})
}

func TestHoldOfAHeldResource(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &table{}
		_, held, err := Hold(t.Context(), s, "r", me, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer release(t, held)
		var refused *HeldError
		if _, _, err := Hold(t.Context(), s, "r", me, 0); !errors.As(err, &refused) || refused.Hint() == "" {
			t.Errorf("got %v", err)
		}
	})
}

func TestHolderNames(t *testing.T) {
	for _, h := range []Holder{{}, {Node: "a"}, {Node: "a/b", Instance: "c"}, {Node: "a", Instance: "b/c"}} {
		if h.Check() == nil {
			t.Errorf("%q is accepted", h)
		}
	}
}
