package host

import (
	"context"
	"errors"
	"iter"

	"github.com/holdfast-dr/holdfast/sdk"
)

// Watch tells of changes of the inventory. Unlike a disk or a snapshot, a watch
// does not hold up a reload, or new settings: it ends with sdk.ErrUnavailable
// when its process gets a successor, and its caller watches, and lists, anew
// with a platform that Open gives.
func (p *Platform) Watch(ctx context.Context) iter.Seq2[sdk.Change, error] {
	return func(yield func(sdk.Change, error) bool) {
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
		// How long a watch lasts says nothing about the plugin.
		end := l.begin(ctx, "Watch")
		watcher, ok := sdk.As[sdk.Watcher](l.process.Platform())
		if !ok {
			yield(sdk.Change{}, end(0, sdk.Errorf(sdk.ErrUnsupported, sdk.FaultPlugin, "it does not offer %s", sdk.AbilityWatcher)))
			return
		}
		for change, err := range watcher.Watch(ctx) {
			switch {
			case err == nil && yield(change, nil):
				continue
			case err == nil:
				_ = end(0, nil)
			case errors.Is(context.Cause(ctx), errMoved):
				_ = end(0, nil)
				yield(sdk.Change{}, sdk.Errorf(sdk.ErrUnavailable, sdk.FaultHost, "endpoint %s gets another process: watch it anew", l.slot.endpoint.Name))
			default:
				yield(sdk.Change{}, end(0, err))
			}
			return
		}
		yield(sdk.Change{}, end(0, sdk.Errorf(sdk.ErrUnavailable, sdk.FaultPlugin, "the watch ended without a reason")))
	}
}
