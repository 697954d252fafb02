package sim

import (
	"context"
	"iter"

	"github.com/holdfast-dr/holdfast/sdk"
)

// Watch breaks what a watch promises.
func (r *rogue) Watch(ctx context.Context) iter.Seq2[sdk.Change, error] {
	if r.breach == BreachWatchOutlivesContext {
		ctx = context.WithoutCancel(ctx)
	}
	return func(yield func(sdk.Change, error) bool) {
		if err := r.lookLocked(BreachWatchLocks, "the watch"); err != nil {
			yield(sdk.Change{}, err)
			return
		}
		first := true
		for change, err := range r.Platform.Watch(ctx) {
			switch {
			case err != nil:
			case first && r.breach == BreachWatchStandsUnsaid:
				change.Machine = "somebody"
			case !first && r.breach == BreachChangesUntold:
				continue
			}
			first = false
			if !yield(change, err) {
				return
			}
		}
	}
}
