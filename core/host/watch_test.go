package host

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/sdk"
	"github.com/holdfast-dr/holdfast/sdk/sim"
)

// item is what a watch gave.
type item struct {
	change sdk.Change
	err    error
}

// watch reads a watch until it ends.
func watch(t *testing.T, ctx context.Context, p sdk.Platform) <-chan item {
	t.Helper()
	watcher, ok := sdk.As[sdk.Watcher](p)
	if !ok {
		t.Fatal("the plugin offers no watch")
	}
	items := make(chan item, 100)
	go func() {
		defer close(items)
		for change, err := range watcher.Watch(ctx) {
			items <- item{change, err}
		}
	}()
	return items
}

func next(t *testing.T, items <-chan item) item {
	t.Helper()
	select {
	case i, ok := <-items:
		if !ok {
			t.Fatal("the watch ended without an error")
		}
		return i
	case <-time.After(time.Minute):
		t.Fatal("the watch tells nothing")
	}
	return item{}
}

func stands(t *testing.T, items <-chan item) {
	t.Helper()
	if i := next(t, items); i.err != nil || i.change.Machine != "" {
		t.Fatalf("the first change: %+v %v", i.change, i.err)
	}
}

func TestWatchTellsChangesAndOutlivesTheLimitOfCalls(t *testing.T) {
	t.Parallel() // it waits
	dir := t.TempDir()
	hv, err := sim.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	h := newHost(t, Options{CallLimit: 8 * time.Second})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	items := watch(t, ctx, open(t, h, endpoint(t, map[string]any{"dir": dir})))
	stands(t, items)
	// Nothing but beats comes for longer than a call may take.
	select {
	case i := <-items:
		t.Fatalf("a quiet watch told %+v %v", i.change, i.err)
	case <-time.After(9 * time.Second):
	}
	m, err := hv.CreateMachine(sim.MachineSpec{Name: "db", Tags: []string{"gold"}, DiskBytes: []int64{1 << 20}})
	if err != nil {
		t.Fatal(err)
	}
	if i := next(t, items); i.err != nil || i.change.Machine != m.ID || i.change.Now == nil || i.change.Now.Tags[0] != "gold" {
		t.Errorf("a new machine was told as %+v %v", i.change, i.err)
	}
	if err := hv.DeleteMachine(m.ID); err != nil {
		t.Fatal(err)
	}
	if i := next(t, items); i.err != nil || i.change.Machine != m.ID || i.change.Now != nil {
		t.Errorf("a machine that is gone was told as %+v %v", i.change, i.err)
	}
	cancel()
	if i := next(t, items); !errors.Is(i.err, context.Canceled) {
		t.Errorf("the end of the context: %v", i.err)
	}
}

func TestWatchDoesNotHoldUpASuccessor(t *testing.T) {
	h := newHost(t, Options{})
	old := open(t, h, endpoint(t, map[string]any{"dir": t.TempDir()}))
	items := watch(t, t.Context(), old)
	stands(t, items)
	new := open(t, h, endpoint(t, map[string]any{"dir": t.TempDir()}))
	if i := next(t, items); !errors.Is(i.err, sdk.ErrUnavailable) {
		t.Errorf("a watch whose endpoint has other settings: %v", i.err)
	}
	items = watch(t, t.Context(), new)
	stands(t, items)
	kill(t, new)
	if i := next(t, items); !errors.Is(i.err, sdk.ErrUnavailable) {
		t.Errorf("a watch whose process was killed: %v", i.err)
	}
}

func TestHangingWatchEnds(t *testing.T) {
	t.Parallel()
	h := newHost(t, Options{CallLimit: 5 * time.Second})
	p := open(t, h, endpoint(t, map[string]any{"dir": t.TempDir(), "faults": []sim.Fault{{Call: "Watch", Action: sim.ActionHang}}}))
	// The plugin beats while its author hangs.
	if i := next(t, watch(t, t.Context(), p)); !errors.Is(i.err, sdk.ErrUnavailable) {
		t.Errorf("a watch that never stands: %+v %v", i.change, i.err)
	}
	stands(t, watch(t, t.Context(), p))
}
