package conformance

import (
	"bytes"
	"context"
	"errors"
	"iter"
	"sync"
	"time"

	"github.com/holdfast-dr/holdfast/sdk"
)

// callers is how many goroutines make the same call at once.
const callers = 6

// together makes a call from several goroutines at once.
func (c *checker) together(call func(i int) error) []error {
	errs := make([]error, callers)
	var group sync.WaitGroup
	for i := range callers {
		group.Go(func() { errs[i] = call(i) })
	}
	group.Wait()
	return errs
}

// process is a process of the check's own, which ends with it.
func (c *checker) process() Process {
	if c.Process == nil {
		c.skipf("the fixture has no process that may be killed")
	}
	p, err := c.Fixture.Process()
	c.must("start a process", err)
	p.Platform = &guard{p.Platform, c.ledger}
	c.later(func() { c.want("end a process", p.Kill(), nil) })
	return p
}

// stoppable is a process that can be stopped, and runs again before it is
// killed.
func (c *checker) stoppable() Process {
	p := c.process()
	if p.Suspend == nil || p.Resume == nil {
		c.skipf("the fixture has no process that may be stopped")
	}
	c.later(func() { c.want("let the process run", p.Resume(), nil) })
	return p
}

// arrival is how long a call is given to reach a process. When it is not
// enough, less is proved, and nothing fails.
const arrival = 100 * time.Millisecond

// inFlight stops a process and makes a call that reaches it while it does not
// run.
func (c *checker) inFlight(p Process, call func() error) <-chan error {
	c.must("stop the process", p.Suspend())
	done := make(chan error, 1)
	go func() { done <- call() }()
	c.must("wait for the call to arrive", c.pause(arrival))
	return done
}

const (
	// minRounds is how often a process is killed in the middle of a call, at
	// different moments; while there is time, it is done as often as there are
	// moments.
	minRounds   = 2
	roundBudget = 3 * time.Second
)

// rounds runs body for several moments in the middle of a call, given by how
// long it usually takes.
func (c *checker) rounds(call string, body func(round uint64, after time.Duration)) {
	c.moments(c.ledger.typical(call), body)
}

// timed is how long something takes that nothing disturbs.
func timed(do func()) time.Duration {
	started := time.Now()
	do()
	return time.Since(started)
}

// moments runs body for several moments in the middle of what usually takes
// this long.
func (c *checker) moments(typical time.Duration, body func(round uint64, after time.Duration)) {
	if c.Process == nil {
		c.skipf("the fixture has no process that may be killed")
	}
	started := time.Now()
	for i, after := range []time.Duration{typical / 2, typical / 8, typical * 7 / 8, 0} {
		if i >= minRounds && time.Since(started) > roundBudget {
			return
		}
		body(uint64(i), after)
	}
}

// kill has a process make a call and kills it in the middle. What the call
// answers, if it does, counts for nothing.
func (c *checker) kill(after time.Duration, prepare func(sdk.Platform) (call func())) {
	p := c.process()
	call := prepare(p.Platform)
	done := make(chan struct{})
	go func() { defer close(done); call() }()
	timer := time.NewTimer(after)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-done:
	}
	c.must("kill the process", p.Kill())
	<-done
}

// amid is after how many grains a process that writes is killed.
const amid = 4

// killAmid writes a disk in a process of its own, and kills that in the middle.
func (c *checker) killAmid(p Process, w sdk.BlockWriter) {
	reached := make(chan struct{})
	done := make(chan struct{})
	go func() {
		defer close(done)
		piece := bytes.Repeat([]byte{9}, grain)
		for off := int64(0); off+grain <= w.Size(); off += grain {
			if off == amid*grain {
				close(reached)
			}
			if _, err := w.WriteAt(piece, off); err != nil {
				return
			}
		}
	}()
	select {
	case <-reached:
	case <-done: // it failed before; what is written over it tells whether that matters
	}
	c.must("kill the process", p.Kill())
	<-done
	_ = w.Close() // of a process that is gone
}

// overwrite writes every grain of a disk, in ascending order, and returns what
// it shows then.
func (c *checker) overwrite(w sdk.BlockWriter) []byte {
	want := make([]byte, w.Size())
	for off := int64(0); off < w.Size(); off += grain {
		piece := want[off:min(off+grain, w.Size())]
		for i := range piece {
			piece[i] = byte(off/grain) + 1
		}
		_, err := w.WriteAt(piece, off)
		c.must("write in a fresh process", err)
	}
	c.must("flush", w.Flush())
	c.must("close the writer", w.Close())
	return want
}

// wakesTooLate stops a process that writes, has a newer claim take over, and
// wakes it.
func (c *checker) wakesTooLate(p Process, w sdk.BlockWriter, takeOver func()) {
	write := func(off int64) error {
		if _, err := w.WriteAt(bytes.Repeat([]byte{0xbd}, grain), off); err != nil {
			return err
		}
		return w.Flush()
	}
	// The back-end may serve the disk itself: then this one lands before the
	// take-over, which is right.
	early := c.inFlight(p, func() error {
		_ = write(0) // it counts by what the disk holds
		return nil
	})
	takeOver()
	late := make(chan error, 1)
	go func() { late <- write(2 * grain) }()
	c.must("wait for the write to arrive", c.pause(arrival))
	c.must("wake the process", p.Resume())
	c.must("wait for the first write", <-early)
	if err := <-late; err == nil {
		c.errorf("a process that woke up after a newer claim took over wrote")
	}
}

// drain reads a call of many answers to its end. Its process is killed
// meanwhile, so how it ends counts for nothing.
func drain[T any](answers iter.Seq2[T, error]) {
	for _, err := range answers {
		if err != nil {
			return
		}
	}
}

// cancelled makes a call whose context ends at once, or in the middle, and
// reports what breaks the contract. It is for its caller to repeat it.
func (c *checker) cancelled(what, call string, do func(context.Context) error) {
	for _, after := range []time.Duration{0, c.ledger.typical(call) / 2} {
		ctx, cancel := context.WithCancel(c.ctx)
		if after == 0 {
			cancel()
		} else {
			time.AfterFunc(after, cancel)
		}
		err := do(ctx)
		cancel()
		if err != nil && !errors.Is(err, context.Canceled) && !errors.Is(err, sdk.ErrPending) {
			c.errorf("%s with a context that was cancelled: %v, want context.Canceled", what, err)
		}
	}
}
