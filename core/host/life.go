package host

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/holdfast-dr/holdfast/sdk"
	"github.com/holdfast-dr/holdfast/sdk/plugin"
)

// life is one process of an endpoint, from its start to its end.
type life struct {
	slot    *slot
	process Process
	program Enabled // zero if a worker chose it
	user    string  // whom it runs as, for people
	started time.Time

	calls    atomic.Int64 // in flight
	disks    atomic.Int64 // open
	moved    atomic.Int64 // bytes of disks
	silences atomic.Int64 // calls in a row that were not answered in time
	quiet    atomic.Int64 // what moved was at the first of them

	closing sync.Once
	mutex   sync.Mutex // guards why
	why     string     // the host ended it because of this; "" otherwise
}

// begin counts a call; the function that it returns is told how it ended, and
// gives the error that the caller sees.
func (l *life) begin(ctx context.Context, method string) (end func(took time.Duration, err error) error) {
	meter := l.slot.host.meter(l.slot.endpoint.Plugin)
	meter.begin(method)
	l.calls.Add(1)
	return func(took time.Duration, err error) error {
		l.calls.Add(-1)
		fault, pending := faultOf(err), errors.Is(err, sdk.ErrPending)
		meter.end(method, took, fault, pending)
		l.judge(method, err)
		if fault != "" && fault != FaultCaller && !pending {
			l.logCall(ctx, method, took, fault, err)
		}
		return l.named(fault, err)
	}
}

// named is an error that says whose it is.
func (l *life) named(fault sdk.Fault, err error) error {
	if fault != sdk.FaultPlugin {
		return err
	}
	return fmt.Errorf("plugin %s at endpoint %s: %w", l.slot.endpoint.Plugin, l.slot.endpoint.Name, err)
}

// logCall keeps a failed call beside the plugin's own lines. Who made the call
// reports it.
func (l *life) logCall(ctx context.Context, method string, took time.Duration, fault sdk.Fault, err error) {
	fields := []slog.Attr{
		slog.String("call", method), slog.String("fault", string(fault)), slog.Duration("took", took.Round(time.Millisecond)),
		slog.String("error", err.Error()),
	}
	for name, value := range plugin.Labels(ctx) {
		fields = append(fields, slog.String(name, value))
	}
	if op, ok := ctx.Value(opKey{}).(sdk.Op); ok {
		fields = append(fields, slog.String("op", op.ID))
	}
	l.slot.host.remember(slog.LevelDebug, l.slot.endpoint, "call failed", fields...)
}

// opKey is where a context has the operation of a call.
type opKey struct{}

// judge draws conclusions about the process from the outcome of a call.
func (l *life) judge(method string, err error) {
	h := l.slot.host
	switch plugin.TroubleOf(err) {
	case plugin.TroubleSilence:
		if l.silences.Add(1) == 1 {
			l.quiet.Store(l.moved.Load())
		}
		if l.silences.Load() >= silenceLimit && l.quiet.Load() == l.moved.Load() {
			l.end(fmt.Sprintf("it left %d calls in a row unanswered, the last of them %s", silenceLimit, method))
		}
	case plugin.TroubleBreach:
		l.silences.Store(0)
		h.meter(l.slot.endpoint.Plugin).count(func(m *PluginMetrics) { m.Breaches++ })
		h.note(slog.LevelWarn, l.slot.endpoint, "the plugin broke the contract", slog.String("call", method), slog.Any("err", err))
		if l.slot.breaker.breach(h.now(), reasonOf(err)) {
			h.note(slog.LevelError, l.slot.endpoint, "the plugin is in quarantine at this endpoint: its answers break the contract",
				slog.String("next", "holdfast plugin enable "+l.slot.endpoint.Plugin))
			l.end("its answers break the contract")
		}
	case plugin.TroubleNone:
		if err == nil || faultOf(err) != FaultCaller {
			l.silences.Store(0)
		}
	}
	l.slot.breaker.lived(h.now().Sub(l.started))
}

// end ends the process because something is wrong with it, in the background.
func (l *life) end(why string) {
	l.mutex.Lock()
	first := l.why == ""
	if first {
		l.why = why
	}
	l.mutex.Unlock()
	if !first {
		return
	}
	l.slot.host.background(func() {
		l.slot.host.note(slog.LevelWarn, l.slot.endpoint, "ending the plugin's process", slog.String("reason", why))
		l.close()
	})
}

// close ends the process and waits until it has ended.
func (l *life) close() {
	l.closing.Do(func() {
		if err := l.process.Close(); err != nil {
			l.slot.host.note(slog.LevelWarn, l.slot.endpoint, "end plugin", slog.Any("err", err))
		}
	})
}

// over reports whether the process has ended or is being ended.
func (l *life) over() bool {
	l.mutex.Lock()
	defer l.mutex.Unlock()
	if l.why != "" {
		return true
	}
	select {
	case <-l.process.Done():
		return true
	default:
		return false
	}
}

// reason says how the process ended.
func (l *life) reason() string {
	l.mutex.Lock()
	defer l.mutex.Unlock()
	if l.why != "" {
		return l.why
	}
	return "the process ended: " + endText(l.process)
}

// pid is the process's number, or 0 if it is not on this machine.
func (l *life) pid() int {
	if p, ok := l.process.(interface{ PID() int }); ok {
		return p.PID()
	}
	return 0
}

// unmet is what of the policy could not be applied.
func (l *life) unmet() []string {
	if p, ok := l.process.(interface{ Unmet() []string }); ok {
		return p.Unmet()
	}
	return nil
}
