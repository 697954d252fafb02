package sdk

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"
)

func TestAwait(t *testing.T) {
	other := errors.New("something else")
	for name, c := range map[string]struct {
		answers []error // the last one is repeated
		calls   int
		want    error
		within  time.Duration
	}{
		"done at once":                  {[]error{nil}, 1, nil, 0},
		"any other error is final":      {[]error{other}, 1, other, 0},
		"pending, then done":            {[]error{ErrPending, ErrPending, nil}, 3, nil, 2 * time.Second},
		"pending, when to ask again":    {[]error{&Error{Kind: ErrPending, After: 7 * time.Second}, nil}, 2, nil, 7 * time.Second},
		"asked to wait too long":        {[]error{&Error{Kind: ErrPending, After: time.Hour}, nil}, 2, nil, CallLimit},
		"unavailable five times":        {[]error{ErrUnavailable}, 5, ErrUnavailable, time.Minute},
		"unavailable, then there again": {[]error{ErrUnavailable, nil}, 2, nil, time.Second},
	} {
		synctest.Test(t, func(t *testing.T) {
			calls, began := 0, time.Now()
			err := Await(t.Context(), func() error {
				calls++
				return c.answers[min(calls, len(c.answers))-1]
			})
			if !errors.Is(err, c.want) || calls != c.calls || time.Since(began) > c.within {
				t.Errorf("%s: %v after %d calls and %s, want %v after %d and at most %s", name, err, calls, time.Since(began), c.want, c.calls, c.within)
			}
		})
	}
}

func TestAwaitEndsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		calls := 0
		err := Await(ctx, func() error {
			if calls++; calls == 3 {
				cancel()
			}
			return ErrPending
		})
		if !errors.Is(err, context.Canceled) || !errors.Is(err, ErrPending) || calls != 3 {
			t.Errorf("%v after %d calls, want both reasons after 3", err, calls)
		}
	})
}

func TestAwaitGivesUpOnWorkThatNeverEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		if err := Await(t.Context(), func() error { return ErrPending }); !errors.Is(err, ErrPending) || time.Since(began) > patience+time.Minute {
			t.Errorf("%v after %s", err, time.Since(began))
		}
	})
}
