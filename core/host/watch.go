package host

import (
	"context"
	"errors"
	"iter"

	"github.com/holdfast-dr/holdfast/sdk"
)

// Watch tells of changes of the inventory. Unlike a disk or a snapshot, a watch
// does not hold up a reload, or new settings: it ends with sdk.ErrUnavailable
// when its process gets a successor, and its caller releases the platform, which
// is used for nothing else, and watches, and lists, anew with another.
func (p *Platform) Watch(ctx context.Context) iter.Seq2[sdk.Change, error] {
	return func(yield func(sdk.Change, error) bool) {
		p.watching.Store(true)
		defer p.watching.Store(false)
		l, err := p.now(ctx)
		if err != nil {
			yield(sdk.Change{}, err)
			return
		}
		ctx, cancel := context.WithCancelCause(ctx)
		defer cancel(nil)
		go func() {
			select {
			case <-l.slot.left:
				cancel(errMoved)
			case <-ctx.Done():
			}
		}()
		// It is a call when it ends: how long it lasted says nothing about the
		// plugin.
		end := func(err error) error { return l.begin(ctx, "Watch")(0, err) }
		watcher, ok := sdk.As[sdk.Watcher](l.process.Platform())
		if !ok {
			yield(sdk.Change{}, end(sdk.Errorf(sdk.ErrUnsupported, sdk.FaultPlugin, "it does not offer %s", sdk.AbilityWatcher)))
			return
		}
		for change, err := range watcher.Watch(ctx) {
			switch {
			case err == nil && yield(change, nil):
				continue
			case err == nil:
				_ = end(nil)
			case errors.Is(context.Cause(ctx), errMoved):
				_ = end(nil)
				yield(sdk.Change{}, sdk.Errorf(sdk.ErrUnavailable, sdk.FaultHost, "endpoint %s gets another process: watch it anew", l.slot.endpoint.Name))
			default:
				yield(sdk.Change{}, end(err))
			}
			return
		}
		yield(sdk.Change{}, end(sdk.Errorf(sdk.ErrUnavailable, sdk.FaultPlugin, "the watch ended without a reason")))
	}
}
