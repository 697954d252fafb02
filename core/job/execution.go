package job

import (
	"context"
	"encoding/json"
	"fmt"
	"sync"
)

// Execution is a handler's view of its run. Its methods may be called from
// several goroutines.
type Execution struct {
	run   Run
	store Store
	lock  Lock

	mu       sync.Mutex // guards what follows
	progress *Progress  // not written yet
	result   json.RawMessage
	warnings *Failure

	writing sync.Mutex // one writer of progress at a time, so that the last one wins
}

// Run is the run as it was taken.
func (x *Execution) Run() Run { return x.run }

// Lock is what a store wants to see of whoever writes for this run.
func (x *Execution) Lock() Lock { return x.lock }

// Spec reads what the run was created with.
func (x *Execution) Spec(into any) error {
	if err := json.Unmarshal(x.run.Spec, into); err != nil {
		return fmt.Errorf("read spec of run %s: %w", x.run.ID, err)
	}
	return nil
}

// Once does a step: it is written before and after, and when the run is
// taken over, a step that is done answers with its result without being done
// again. One that was interrupted is done again, so f must be safe to repeat.
func Once[T any](ctx context.Context, x *Execution, name string, f func(ctx context.Context) (T, error)) (T, error) {
	var value T
	s, err := x.store.BeginStep(ctx, x.lock, name)
	if err != nil {
		return value, err
	}
	if s.State == StepDone {
		if err := json.Unmarshal(s.Result, &value); err != nil {
			return value, fmt.Errorf("read result of step %s: %w", name, err)
		}
		return value, nil
	}
	value, err = f(ctx)
	if err != nil {
		if ctx.Err() == nil { // an interrupted step stays open, for the next holder
			if e := x.store.EndStep(ctx, x.lock, name, nil, FailureOf(err)); e != nil {
				return value, fmt.Errorf("%w (and writing that: %w)", err, e)
			}
		}
		return value, err
	}
	result, err := json.Marshal(value)
	if err != nil {
		return value, fmt.Errorf("write result of step %s: %w", name, err)
	}
	return value, x.store.EndStep(context.WithoutCancel(ctx), x.lock, name, result, nil)
}

// Do is Once without a result.
func (x *Execution) Do(ctx context.Context, name string, f func(ctx context.Context) error) error {
	_, err := Once(ctx, x, name, func(ctx context.Context) (struct{}, error) { return struct{}{}, f(ctx) })
	return err
}

// Report says how far the run is. It never blocks; what comes faster than it is
// written replaces what came before.
func (x *Execution) Report(p Progress) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.progress = &p
}

// SetResult keeps what the run answers at its end.
func (x *Execution) SetResult(v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("write result of run %s: %w", x.run.ID, err)
	}
	if len(b) > MaxDetail {
		return fmt.Errorf("write result of run %s: %d bytes are more than %d", x.run.ID, len(b), MaxDetail)
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	x.result = b
	return nil
}

// Warn makes a successful run end as Warned. Several warnings become one text.
func (x *Execution) Warn(f Failure) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.warnings == nil {
		x.warnings = &f
		return
	}
	x.warnings.Message += "\n" + f.Message
}

func (x *Execution) warning() *Failure {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.warnings
}

func (x *Execution) resultJSON() json.RawMessage {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.result
}

// flush writes the newest progress, if there is one.
func (x *Execution) flush(ctx context.Context) error {
	x.writing.Lock()
	defer x.writing.Unlock()
	x.mu.Lock()
	p := x.progress
	x.progress = nil
	x.mu.Unlock()
	if p == nil {
		return nil
	}
	err := x.store.SetProgress(ctx, x.lock, *p)
	if err != nil {
		x.mu.Lock()
		if x.progress == nil { // nothing newer: try again later
			x.progress = p
		}
		x.mu.Unlock()
	}
	return err
}
