package conformance

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/sdk"
)

// Run runs every check as a test of its own.
func Run(t *testing.T, open func(t *testing.T) Fixture) {
	s := newSession(open(t))
	var skipped []string
	for i, check := range Checks() {
		if !s.picks(check) {
			continue
		}
		t.Run(check.Name, func(t *testing.T) {
			r := s.run(t.Context(), check, i)
			for _, problem := range r.Problems {
				t.Error(problem)
			}
			if len(r.Problems) > 0 {
				t.Log("the rule: " + check.Rule)
			}
			for _, what := range r.Unchecked {
				t.Log("not checked: " + what)
			}
			if r.Skipped != "" {
				skipped = append(skipped, check.Name+": "+r.Skipped)
				t.Skip(r.Skipped)
			}
		})
	}
	if len(skipped) > 0 {
		t.Logf("not checked:\n  %s", strings.Join(skipped, "\n  "))
	}
}

// session is one run of the suite over one fixture.
type session struct {
	fixture Fixture
	ledger  *ledger
}

func newSession(f Fixture) *session {
	s := &session{fixture: f, ledger: newLedger(f.callLimit())}
	s.fixture.Platform = &guard{f.Platform, s.ledger}
	return s
}

func (s *session) picks(k Check) bool {
	return s.fixture.Only == nil || s.fixture.Only.MatchString(k.Name)
}

// run runs one check. number is different for every check, and ascends.
func (s *session) run(ctx context.Context, k Check, number int) Result {
	started := time.Now()
	ctx, cancel := context.WithTimeout(ctx, s.fixture.timeout())
	defer cancel()
	c := &checker{
		Fixture: s.fixture, ctx: ctx, result: Result{Check: k.Name}, ledger: s.ledger, started: started,
		// Many epochs for a check: some need newer claims.
		epoch: s.fixture.Epoch + uint64(number)*epochsPerCheck, prefix: fmt.Sprintf("%s/%d", k.Name, started.UnixNano()),
	}
	s.ledger.begin(k.Name)
	if k.Ability != "" && !c.offers(k.Ability) {
		c.result.Skipped = "the platform does not offer " + string(k.Ability)
		return c.result
	}
	// A goroutine of its own, so that fatalf can leave from anywhere.
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer c.cleanUp()
		defer func() {
			if p := recover(); p != nil {
				c.errorf("panic: %v\n%s", p, debug.Stack())
			}
		}()
		k.run(c)
	}()
	<-done
	c.result.Took = time.Since(started)
	return c.result
}

// epochsPerCheck is how many epochs a check has; the last one is for tidying up.
const epochsPerCheck = 64

// checker is what a check works with.
type checker struct {
	Fixture
	ctx     context.Context
	result  Result
	ledger  *ledger
	started time.Time
	epoch   uint64
	prefix  string
	cleanup []func()
}

func (c *checker) offers(a sdk.Ability) bool { return sdk.Offers(c.Platform, a) }

func (c *checker) errorf(format string, args ...any) {
	c.result.Problems = append(c.result.Problems, fmt.Sprintf(format, args...))
}

// leaveOut notes what the check does not look at.
func (c *checker) leaveOut(what string) {
	if !slices.Contains(c.result.Unchecked, what) {
		c.result.Unchecked = append(c.result.Unchecked, what)
	}
}

func (c *checker) fatalf(format string, args ...any) {
	c.errorf(format, args...)
	runtime.Goexit()
}

// must ends the check if a step that has to work does not.
func (c *checker) must(what string, err error) {
	if err != nil {
		c.fatalf("%s: %v", what, err)
	}
}

// want holds an error against a sentinel; nil wants success.
func (c *checker) want(what string, err, sentinel error) {
	if !errors.Is(err, sentinel) {
		if sentinel == nil {
			c.errorf("%s: %v", what, err)
			return
		}
		c.errorf("%s: got %v, want an error that wraps %q", what, err, sentinel)
	}
}

func (c *checker) skipf(format string, args ...any) {
	c.result.Skipped = fmt.Sprintf(format, args...)
	runtime.Goexit()
}

// later is run at the end of the check, the last first.
func (c *checker) later(f func()) { c.cleanup = append(c.cleanup, f) }

func (c *checker) cleanUp() {
	// The check's own context may have ended; tidying up gets some more time.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(c.ctx), c.timeout())
	defer cancel()
	c.ctx = ctx
	for i := len(c.cleanup) - 1; i >= 0; i-- {
		done := make(chan struct{})
		go func() { defer close(done); c.cleanup[i]() }()
		<-done
	}
	if len(c.result.Problems) > 0 && c.offers(sdk.AbilitySource) {
		c.endLeft()
	}
}

// endLeft ends what a check that failed may have left open, as any run under a
// newer claim would, so that it is not held against the next check.
func (c *checker) endLeft() {
	source, _ := sdk.As[sdk.Source](c.Platform)
	snap, err := settle(c, func() (sdk.Snapshot, error) {
		return source.Snapshot(c.ctx, c.op("left", epochsPerCheck-1), sdk.SnapshotRequest{Machine: c.Machine})
	})
	if err == nil {
		_ = settled(c, func() error { return source.EndSnapshot(c.ctx, c.op("end left", epochsPerCheck-1), snap, false) })
	}
}

// op is an operation of this check under its epoch plus newer.
func (c *checker) op(name string, newer uint64) sdk.Op {
	return sdk.Op{ID: c.prefix + "/" + name, Epoch: c.epoch + newer}
}

// draftOp is op in the space where drafts go.
func (c *checker) draftOp(name string, newer uint64) sdk.Op {
	op := c.op(name, newer)
	op.Space = c.Space
	return op
}

// fresh is a platform of a fresh process, closed with the check.
func (c *checker) fresh() sdk.Platform {
	p, err := c.Fresh()
	c.must("open a fresh platform", err)
	c.later(func() { c.want("close a fresh platform", p.Close(), nil) })
	return &guard{p, c.ledger}
}

func (c *checker) source(p sdk.Platform) sdk.Source         { return need[sdk.Source](c, p) }
func (c *checker) tracker(p sdk.Platform) sdk.ChangeTracker { return need[sdk.ChangeTracker](c, p) }
func (c *checker) target(p sdk.Platform) sdk.Target         { return need[sdk.Target](c, p) }
func (c *checker) power(p sdk.Platform) sdk.Power           { return need[sdk.Power](c, p) }
func (c *checker) replicator(p sdk.Platform) sdk.Replicator { return need[sdk.Replicator](c, p) }
func (c *checker) activator(p sdk.Platform) sdk.Activator   { return need[sdk.Activator](c, p) }
func (c *checker) networker(p sdk.Platform) sdk.Networker   { return need[sdk.Networker](c, p) }
func (c *checker) pools(p sdk.Platform) sdk.Pools           { return need[sdk.Pools](c, p) }

func need[T any](c *checker, p sdk.Platform) T {
	found, ok := sdk.As[T](p)
	if !ok {
		c.fatalf("a fresh platform lacks the ability %T that the first one has", *new(T))
	}
	return found
}

// settle repeats a call while it answers ErrPending.
func settle[T any](c *checker, call func() (T, error)) (T, error) {
	for {
		v, err := call()
		if !errors.Is(err, sdk.ErrPending) {
			return v, err
		}
		pause := 10 * time.Millisecond
		var e *sdk.Error
		if errors.As(err, &e) && e.After > 0 {
			pause = min(e.After, 5*time.Second)
		}
		if err := c.pause(pause); err != nil {
			return v, err
		}
	}
}

// pause waits; it fails if the check has no more time.
func (c *checker) pause(d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-c.ctx.Done():
		return c.ctx.Err()
	}
}

// settled is settle for calls that answer nothing.
func settled(c *checker, call func() error) error {
	_, err := settle(c, func() (struct{}, error) { return struct{}{}, call() })
	return err
}

// machine is the machine of the fixture as the inventory has it.
func (c *checker) machine() sdk.Machine {
	m, ok := c.find(c.Platform, c.Machine)
	if !ok {
		c.fatalf("machine %s of the fixture is not in the inventory", c.Machine)
	}
	return m
}

func (c *checker) find(p sdk.Platform, id sdk.MachineID) (found sdk.Machine, ok bool) {
	for m, err := range p.Machines(c.ctx) {
		c.must("list machines", err)
		if m.ID == id {
			found, ok = m, true
		}
	}
	return found, ok
}

// objects is what there is at the back-end, or nil.
func (c *checker) objects() []string {
	if c.Objects == nil {
		return nil
	}
	list, err := c.Objects()
	c.must("list the objects of the back-end", err)
	return list
}

// leaves compares the objects with those of before.
func (c *checker) leaves(before []string) {
	if c.Objects == nil {
		c.leaveOut("what is left at the back-end: the fixture cannot list its objects")
		return
	}
	had := make(map[string]bool, len(before))
	for _, o := range before {
		had[o] = true
	}
	for _, o := range c.objects() {
		if !had[o] {
			c.errorf("left behind: %s", o)
		}
		delete(had, o)
	}
	for o := range had {
		c.errorf("gone: %s", o)
	}
}
