package conformance

import (
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/holdfast-dr/holdfast/sdk"
)

// ledgerChecks look back at every call that the checks before them have made.
// What one of them is about fails no other check, or all would fail at once.
var ledgerChecks = []Check{
	{"platform/calls-return-in-time", "", "Every call returns within the call limit: done, failed, or ErrPending.",
		func(c *checker) { c.report(&c.ledger.late) }},
	{"platform/pending-says-how-far", "", "ErrPending comes with a progress from 0 to 1 that does not fall.",
		func(c *checker) { c.report(&c.ledger.dishonest) }},
	{"platform/errors-mean-one-thing", "", "An error wraps at most one sentinel, so the caller knows what to do next, and names a known party as at fault.",
		func(c *checker) { c.report(&c.ledger.ambiguous) }},
}

func (c *checker) report(entries *[]string) {
	c.ledger.mutex.Lock()
	defer c.ledger.mutex.Unlock()
	if c.ledger.calls == 0 {
		c.skipf("no call was made before")
	}
	c.result.Problems = append(c.result.Problems, *entries...)
}

// maxEntries bounds what is remembered of one kind: the first ones say enough.
const maxEntries = 8

// ledger is what one run of the suite remembers of its calls.
type ledger struct {
	limit time.Duration

	mutex    sync.Mutex // guards the fields below
	check    string     // that runs now
	calls    int
	shortest map[string]time.Duration // by call, of those that succeeded
	progress map[string]float64       // by call and Op.ID
	// What the ledgerChecks report.
	late, dishonest, ambiguous []string
}

func newLedger(limit time.Duration) *ledger {
	return &ledger{limit: limit, shortest: make(map[string]time.Duration), progress: make(map[string]float64)}
}

func (l *ledger) begin(check string) {
	l.mutex.Lock()
	defer l.mutex.Unlock()
	l.check = check
}

// note takes down one call.
func (l *ledger) note(call, opID string, took time.Duration, err error) {
	l.mutex.Lock()
	defer l.mutex.Unlock()
	l.calls++
	if took >= l.limit {
		l.add(&l.late, "%s took %s, the limit is %s", call, took.Round(time.Millisecond), l.limit)
	}
	if err == nil {
		if best, ok := l.shortest[call]; !ok || took < best {
			l.shortest[call] = took
		}
		return
	}
	var kinds []sdk.Code
	for _, code := range sdk.Codes() {
		if errors.Is(err, code.Sentinel()) {
			kinds = append(kinds, code)
		}
	}
	var e *sdk.Error
	isError := errors.As(err, &e)
	switch {
	case len(kinds) > 1:
		l.add(&l.ambiguous, "%s: the error %q is %v at once", call, err, kinds)
	case isError && e.Fault != "" && e.Fault != sdk.FaultPlugin && e.Fault != sdk.FaultBackend && e.Fault != sdk.FaultHost:
		l.add(&l.ambiguous, "%s: the error %q is the fault of %q, which is nobody", call, err, e.Fault)
	}
	if isError && errors.Is(err, sdk.ErrPending) {
		key := call + " " + opID
		switch {
		case e.Progress < 0 || e.Progress > 1:
			l.add(&l.dishonest, "%s: progress %v, want 0 to 1", call, e.Progress)
		case e.Progress < l.progress[key]:
			l.add(&l.dishonest, "%s: progress %v after %v", call, e.Progress, l.progress[key])
		}
		l.progress[key] = e.Progress
	}
}

func (l *ledger) add(to *[]string, format string, args ...any) {
	if len(*to) < maxEntries {
		*to = append(*to, fmt.Sprintf("in %s: ", l.check)+fmt.Sprintf(format, args...))
	}
}

// typical is how long a call takes that nothing disturbs, as far as is known.
func (l *ledger) typical(call string) time.Duration {
	l.mutex.Lock()
	defer l.mutex.Unlock()
	if took, ok := l.shortest[call]; ok {
		return took
	}
	return 20 * time.Millisecond
}
