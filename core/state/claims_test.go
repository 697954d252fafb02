package state

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/core/claim"
)

func holder(n int) claim.Holder { return claim.Holder{Node: fmt.Sprintf("node%d", n), Instance: "a"} }

// eventually polls a condition; it fails the test when a generous time is over.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("never happened: %s", what)
		}
		<-tick.C
	}
}

var _ = both("ClaimLife", func(t *testing.T, db *DB) {
	ctx, s := t.Context(), db.Claims()
	first := must[claim.Claim](t)(s.Acquire(ctx, "repository/1", holder(1), time.Minute))
	if first.Epoch != 1 || first.Holder != holder(1) || first.Resource != "repository/1" {
		t.Fatalf("first claim %+v", first)
	}
	var held *claim.HeldError
	for _, h := range []claim.Holder{holder(2), holder(1)} {
		if _, err := s.Acquire(ctx, "repository/1", h, time.Minute); !errors.As(err, &held) {
			t.Fatalf("second claim by %s: %v", h, err)
		}
	}
	if held.Holder != "node1/a" || !held.Until.Equal(first.Until) {
		t.Errorf("refusal %+v does not name the holder of %+v", held, first)
	}
	renewed := must[claim.Claim](t)(s.Renew(ctx, first, 2*time.Minute))
	if !renewed.Until.After(first.Until) || renewed.Epoch != 1 {
		t.Errorf("renewed %+v", renewed)
	}
	if err := s.Release(ctx, first); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Renew(ctx, first, time.Minute); !errors.Is(err, claim.ErrFenced) {
		t.Errorf("renew after release: %v", err)
	}
	if now := must[claim.Claim](t)(s.Current(ctx, "repository/1")); now.Epoch != 1 || !now.Until.IsZero() {
		t.Errorf("after release %+v; the epoch must stay", now)
	}
	second := must[claim.Claim](t)(s.Acquire(ctx, "repository/1", holder(1), time.Minute))
	if second.Epoch != 2 {
		t.Errorf("epoch after release %d, want 2", second.Epoch)
	}
	if _, err := s.Renew(ctx, first, time.Hour); !errors.Is(err, claim.ErrFenced) {
		t.Errorf("the same holder renews by its old epoch: %v", err)
	}
	if err := s.Release(ctx, first); err != nil {
		t.Fatal(err)
	}
	if now := must[claim.Claim](t)(s.Current(ctx, "repository/1")); !now.Until.Equal(second.Until) {
		t.Errorf("a late release touched the newer claim: %+v", now)
	}
})

var _ = both("AnExpiredClaimIsTakenOver", func(t *testing.T, db *DB) {
	ctx, s := t.Context(), db.Claims()
	first := must[claim.Claim](t)(s.Acquire(ctx, "r", holder(1), claim.MinTTL))
	var second claim.Claim
	eventually(t, "takeover", func() (ok bool) {
		c, err := s.Acquire(ctx, "r", holder(2), time.Minute)
		second = c
		return err == nil
	})
	if second.Epoch != 2 {
		t.Errorf("epoch %d, want 2", second.Epoch)
	}
	var fenced *claim.FencedError
	if _, err := s.Renew(ctx, first, time.Minute); !errors.As(err, &fenced) || fenced.Current != 2 {
		t.Errorf("late renewal: %v", err)
	}
	err := db.write(ctx, func(x *tx) error { return x.fence(ctx, "r", first.Epoch) })
	if !errors.Is(err, claim.ErrFenced) {
		t.Errorf("a write under the old epoch: %v", err)
	}
	if err := db.write(ctx, func(x *tx) error { return x.fence(ctx, "r", second.Epoch) }); err != nil {
		t.Errorf("a write under the new epoch: %v", err)
	}
})

var _ = both("ExpelFreesFormerInstancesOnly", func(t *testing.T, db *DB) {
	ctx, s := t.Context(), db.Claims()
	old := claim.Holder{Node: "n_1", Instance: "old"} // the underscore must not act as a wildcard
	for r, h := range map[claim.Resource]claim.Holder{"mine": old, "other": {Node: "nX1", Instance: "x"}, "new": {Node: "n_1", Instance: "new"}} {
		must[claim.Claim](t)(s.Acquire(ctx, r, h, time.Minute))
	}
	if n := must[int64](t)(s.Expel(ctx, claim.Holder{Node: "n_1", Instance: "new"})); n != 1 {
		t.Fatalf("freed %d claims, want 1", n)
	}
	if c := must[claim.Claim](t)(s.Acquire(ctx, "mine", holder(3), time.Minute)); c.Epoch != 2 {
		t.Errorf("epoch %d, want 2", c.Epoch)
	}
})

// Many writers want one resource. At no time two hold it, and every epoch is
// given once, in order.
var _ = both("ClaimsAreLinear", func(t *testing.T, db *DB) {
	ctx, s := t.Context(), db.Claims()
	var inside, last atomic.Int64
	var taken [100]atomic.Bool
	var all sync.WaitGroup
	for w := range 8 {
		all.Go(func() {
			for n := 0; n < 10; {
				c, err := s.Acquire(ctx, "hot", holder(w), time.Minute)
				var held *claim.HeldError
				if errors.As(err, &held) {
					continue
				}
				if err != nil {
					t.Error(err)
					return
				}
				if inside.Add(1) != 1 {
					t.Error("two hold the claim")
				}
				if before := last.Swap(c.Epoch); before >= c.Epoch {
					t.Errorf("epoch %d after %d", c.Epoch, before)
				}
				if taken[c.Epoch].Swap(true) {
					t.Errorf("epoch %d was given twice", c.Epoch)
				}
				inside.Add(-1)
				if err := s.Release(ctx, c); err != nil {
					t.Error(err)
					return
				}
				n++
			}
		})
	}
	all.Wait()
	if last.Load() != 80 {
		t.Errorf("last epoch %d, want 80", last.Load())
	}
})

var _ = both("HoldKeepsTheClaimAndLosingItCancels", func(t *testing.T, db *DB) {
	s := db.Claims()
	ttl := 5 * time.Second // long enough for a machine that stalls
	work, held, err := claim.Hold(t.Context(), s, "r", holder(1), ttl)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = held.Release() }() // checked below, unless the test ends before
	until := held.Claim().Until
	eventually(t, "renewal", func() bool {
		return must[claim.Claim](t)(s.Current(t.Context(), "r")).Until.After(until.Add(ttl))
	})
	if work.Err() != nil {
		t.Fatalf("work ended while the claim was held: %v", context.Cause(work))
	}
	// An operator frees the claim; another takes it.
	must[int64](t)(s.Expel(t.Context(), claim.Holder{Node: "node1", Instance: "b"}))
	must[claim.Claim](t)(s.Acquire(t.Context(), "r", holder(2), time.Minute))
	eventually(t, "cancellation", func() bool { return work.Err() != nil })
	var lost *claim.LostError
	if cause := context.Cause(work); !errors.As(cause, &lost) || !errors.Is(cause, claim.ErrFenced) {
		t.Errorf("cause %v", cause)
	}
	if err := held.Release(); err != nil {
		t.Error(err)
	}
	if c := must[claim.Claim](t)(s.Current(t.Context(), "r")); c.Epoch != 2 || c.Until.IsZero() {
		t.Errorf("the loser's release freed the winner's claim: %+v", c)
	}
})
