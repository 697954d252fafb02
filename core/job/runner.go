package job

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"sync"
	"time"

	"github.com/holdfast-dr/holdfast/core/claim"
)

// Handler does the work of one kind of run. It may be called again for the same
// run after a crash; what must not be done twice goes into steps. A nil error
// means success. The context ends when the run is cancelled, taken over, or the
// process stops; the handler then returns as soon as it safely can.
type Handler func(ctx context.Context, x *Execution) error

// Defaults of a Runner.
const (
	DefaultParallel    = 4
	DefaultPoll        = 2 * time.Second
	DefaultMaxAttempts = 20
)

// settleTimeout bounds the last write of a run when the process is stopping.
const settleTimeout = 10 * time.Second

// errStopping is the cause when the process stops in an orderly way.
var errStopping = errors.New("process is stopping")

// RetryError gives a run back, to be taken again later.
type RetryError struct {
	After time.Duration
	Err   error
}

// Error is the reason.
func (e *RetryError) Error() string { return fmt.Sprintf("retry in %s: %v", e.After, e.Err) }

// Unwrap is the reason.
func (e *RetryError) Unwrap() error { return e.Err }

// Runner takes runs and executes them. Zero fields have useful defaults, but
// Store, Holder and Handlers must be set.
type Runner struct {
	Store       Store
	Holder      claim.Holder
	Handlers    map[Kind]Handler
	Parallel    int           // runs at the same time
	TTL         time.Duration // claim.DefaultTTL
	Poll        time.Duration // how often to look for work
	MaxAttempts int           // a run that was taken more often fails: it may be what kills the process
	Log         *slog.Logger
	// Settled is called, by several goroutines, when it is written what became of
	// an execution; may be nil. It must not block.
	Settled func()

	once sync.Once
	wake chan struct{}
}

func (r *Runner) init() {
	r.once.Do(func() {
		r.wake = make(chan struct{}, 1)
		if r.Parallel == 0 {
			r.Parallel = DefaultParallel
		}
		if r.TTL == 0 {
			r.TTL = claim.DefaultTTL
		}
		if r.Poll == 0 {
			r.Poll = DefaultPoll
		}
		if r.MaxAttempts == 0 {
			r.MaxAttempts = DefaultMaxAttempts
		}
		if r.Log == nil {
			r.Log = slog.New(slog.DiscardHandler)
		}
	})
}

// Wake makes the runner look for work at once. Call it after Create.
func (r *Runner) Wake() {
	r.init()
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// Run executes runs until ctx ends. It then cancels the handlers, waits for
// them, and gives their runs back, so that the next process continues them.
func (r *Runner) Run(ctx context.Context) error {
	r.init()
	kinds := make([]Kind, 0, len(r.Handlers))
	for k := range r.Handlers {
		kinds = append(kinds, k)
	}
	if len(kinds) == 0 {
		return errors.New("run jobs: no handlers")
	}
	var running sync.WaitGroup
	defer running.Wait()
	slots := make(chan struct{}, r.Parallel)
	for {
		select {
		case <-ctx.Done():
			return nil
		case slots <- struct{}{}:
		}
		run, ok, err := r.Store.Take(ctx, r.Holder.String(), r.TTL, kinds)
		if err == nil && ok {
			running.Add(1)
			go func() {
				defer running.Done()
				defer func() { <-slots; r.Wake() }()
				r.execute(ctx, run)
			}()
			continue
		}
		<-slots
		if err != nil && ctx.Err() == nil {
			r.Log.Error("look for runs", "error", err)
		}
		if !r.pause(ctx) {
			return nil
		}
	}
}

func (r *Runner) pause(ctx context.Context) bool {
	timer := time.NewTimer(r.Poll)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
	case <-r.wake:
	}
	return true
}

// execute works on one run: the handler in this goroutine, the renewal of the
// claim and the writing of progress in another.
func (r *Runner) execute(ctx context.Context, run Run) {
	log := r.Log.With("run", run.ID, "kind", string(run.Kind), "tenant", string(run.TenantID))
	work, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	defer cancel(nil)
	stop := context.AfterFunc(ctx, func() { cancel(errStopping) })
	defer stop()

	x := &Execution{run: run, store: r.Store, lock: Lock{RunID: run.ID, Epoch: run.Epoch}}
	// The claim is kept until the handler has returned, however long it takes to
	// wind down after its context ended.
	live, end := context.WithCancel(context.WithoutCancel(ctx))
	defer end()
	kept := make(chan struct{})
	go func() {
		defer close(kept)
		r.keep(live, x, cancel)
	}()
	var err error
	switch {
	case run.Cancel:
		err = ErrCancelled
	case run.Attempts > r.MaxAttempts:
		err = fmt.Errorf("given up: it was started %d times and never ended", run.Attempts-1)
	default:
		err = r.call(work, x, log)
	}
	cause := context.Cause(work)
	end()
	<-kept
	last, done := context.WithTimeout(context.WithoutCancel(ctx), settleTimeout)
	defer done()
	if err := r.settle(last, x, err, cause); err != nil {
		log.Warn("end run", "error", err)
	}
	if r.Settled != nil {
		r.Settled()
	}
}

func (r *Runner) call(ctx context.Context, x *Execution, log *slog.Logger) (err error) {
	defer func() {
		if v := recover(); v != nil {
			log.Error("handler panicked", "panic", v, "stack", string(debug.Stack()))
			err = fmt.Errorf("internal fault: %v", v)
		}
	}()
	return r.Handlers[x.run.Kind](ctx, x)
}

// progressEvery is how often progress is written at most.
const progressEvery = time.Second

// keep renews the claim at a third of its time and writes progress, until the
// handler has returned. It ends the handler's work when the run is cancelled or
// the claim cannot be kept.
func (r *Runner) keep(live context.Context, x *Execution, cancel context.CancelCauseFunc) {
	deadline := time.Now().Add(r.TTL - r.TTL/10)
	renew := time.NewTicker(r.TTL / 3)
	defer renew.Stop()
	report := time.NewTicker(min(progressEvery, r.TTL/3))
	defer report.Stop()
	for {
		select {
		case <-live.Done():
			return
		case <-report.C:
			if err := x.flush(live); errors.Is(err, ErrFenced) {
				cancel(err)
				return
			}
		case <-renew.C:
			begin := time.Now()
			attempt, done := context.WithDeadline(live, deadline)
			asked, err := r.Store.Renew(attempt, x.lock, r.TTL)
			done()
			switch {
			case err == nil:
				deadline = begin.Add(r.TTL - r.TTL/10)
				if asked {
					cancel(ErrCancelled)
				}
			case live.Err() != nil:
				return
			case errors.Is(err, ErrFenced):
				cancel(err)
				return
			case !time.Now().Before(deadline):
				cancel(fmt.Errorf("%w: claim not renewed: %w", ErrFenced, err))
				return
			}
		}
	}
}

// settle writes how a run ended, or gives it back.
func (r *Runner) settle(ctx context.Context, x *Execution, err, cause error) error {
	if errors.Is(cause, ErrFenced) || errors.Is(err, ErrFenced) {
		return ErrFenced // another process has it; every write would be refused
	}
	if e := x.flush(ctx); e != nil {
		return e
	}
	var retry *RetryError
	switch {
	case err == nil: // also when a request to cancel came too late
		state, failure := Succeeded, x.warning()
		if failure != nil {
			state = Warned
		}
		return r.Store.Finish(ctx, x.lock, state, x.resultJSON(), failure)
	case errors.Is(cause, ErrCancelled), errors.Is(err, ErrCancelled):
		return r.Store.Finish(ctx, x.lock, Cancelled, x.resultJSON(), &Failure{Message: ErrCancelled.Error()})
	case errors.Is(cause, errStopping):
		return r.Store.Requeue(ctx, x.lock, time.Now())
	case errors.As(err, &retry):
		return r.Store.Requeue(ctx, x.lock, time.Now().Add(retry.After))
	}
	return r.Store.Finish(ctx, x.lock, Failed, x.resultJSON(), FailureOf(err))
}

// FailureOf is an error as people read it. An error may offer Hint() string and
// Side() string.
func FailureOf(err error) *Failure {
	f := &Failure{Message: err.Error()}
	var hint interface{ Hint() string }
	if errors.As(err, &hint) {
		f.Hint = hint.Hint()
	}
	var side interface{ Side() string }
	if errors.As(err, &side) {
		f.Side = side.Side()
	}
	return f
}
