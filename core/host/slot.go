package host

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/holdfast-dr/holdfast/sdk"
	"github.com/holdfast-dr/holdfast/sdk/plugin"
)

const (
	// A process that ends by itself is started again at once; one that ends
	// again before it lived for steadyAfter waits firstPause, then twice as
	// long each time, up to longestPause.
	steadyAfter  = time.Minute
	firstPause   = time.Second
	longestPause = time.Minute
	// startLimit bounds one start, whoever waits for it.
	startLimit = time.Minute
)

// slot is the place of one endpoint's process.
type slot struct {
	host     *Host
	endpoint Endpoint

	// Guarded by host.mutex.
	users   int
	retired bool
	idle    *time.Timer

	abilities atomic.Pointer[[]sdk.Ability] // as the last process advertised

	turn chan struct{} // holds one token; who took it may use the fields below

	process  Process
	started  time.Time
	failures int       // since the last process that lived
	notUntil time.Time // when the next start may be
	ended    bool
}

func newSlot(h *Host, e Endpoint) *slot {
	s := &slot{host: h, endpoint: e, turn: make(chan struct{}, 1)}
	s.turn <- struct{}{}
	return s
}

// running gives the process, and starts one if there is none.
func (s *slot) running(ctx context.Context) (Process, error) {
	select {
	case <-s.turn:
	case <-ctx.Done():
		return nil, fmt.Errorf("wait for plugin %s: %w", s.endpoint.Plugin, ctx.Err())
	}
	defer func() { s.turn <- struct{}{} }()
	if s.ended {
		return nil, sdk.Errorf(sdk.ErrUnavailable, sdk.FaultHost, "endpoint %s is closed", s.endpoint.Name)
	}
	if s.process != nil {
		select {
		case <-s.process.Done():
			s.died()
		default:
			return s.process, nil
		}
	}
	if wait := s.notUntil.Sub(s.host.now()); wait > 0 {
		e := sdk.Errorf(sdk.ErrUnavailable, sdk.FaultPlugin, "plugin %s failed %d times; it is started again in %s",
			s.endpoint.Plugin, s.failures, wait.Round(time.Millisecond)).WithHint("the log says why it ended")
		e.After = wait
		return nil, e
	}
	p, err := s.start(ctx)
	if err != nil {
		// A caller who gave up says nothing about the plugin.
		if ctx.Err() == nil {
			s.failed()
			s.host.log.Warn("start plugin", "plugin", s.endpoint.Plugin, "endpoint", s.endpoint.Name, "failures", s.failures, "err", err)
		}
		return nil, err
	}
	abilities := plugin.Abilities(p.Platform())
	s.abilities.Store(&abilities)
	s.process, s.started = p, s.host.now()
	return p, nil
}

// start starts the enabled binary for this architecture.
func (s *slot) start(ctx context.Context) (Process, error) {
	ctx, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	defer context.AfterFunc(s.host.closing, cancel)()
	starter, err := s.host.starter(s.endpoint)
	if err != nil {
		return nil, err
	}
	return starter.Start(ctx, Start{
		Endpoint: s.endpoint,
		Enabled: func(ctx context.Context, arch string) (Enabled, error) {
			return s.host.enabled(ctx, s.endpoint.Plugin, arch)
		},
		Launch: plugin.Launch{
			Settings: s.endpoint.Settings,
			RunDir:   s.host.options.RunDir, CallLimit: s.host.options.CallLimit,
			Log: s.host.log.With("endpoint", s.endpoint.Name),
		},
	})
}

// starter is who starts the process of an endpoint.
func (h *Host) starter(e Endpoint) (Starter, error) {
	if h.options.Starter == nil {
		return onThisMachine{}, nil
	}
	starter, err := h.options.Starter(e)
	if err != nil {
		return nil, fmt.Errorf("choose where plugin %s runs for endpoint %s: %w", e.Plugin, e.Name, err)
	}
	if starter == nil {
		starter = onThisMachine{}
	}
	return starter, nil
}

// died forgets a process that ended by itself.
func (s *slot) died() {
	if s.host.now().Sub(s.started) >= steadyAfter {
		s.failures = 0
	}
	_ = s.process.Close()
	s.process = nil
	s.failed()
}

// failed counts a failure and says when the next attempt may be.
func (s *slot) failed() {
	s.failures++
	if s.failures < 2 {
		return
	}
	pause := firstPause << min(s.failures-2, 16)
	s.notUntil = s.host.now().Add(min(pause, longestPause))
}

// forgive lets the next start be at once.
func (s *slot) forgive() {
	<-s.turn
	s.failures, s.notUntil = 0, time.Time{}
	s.turn <- struct{}{}
}

// end closes the process for good.
func (s *slot) end() {
	<-s.turn
	defer func() { s.turn <- struct{}{} }()
	s.ended = true
	s.stop()
}

func (s *slot) stop() {
	if s.process == nil {
		return
	}
	if err := s.process.Close(); err != nil {
		s.host.log.Warn("end plugin", "plugin", s.endpoint.Plugin, "endpoint", s.endpoint.Name, "err", err)
	}
	s.process = nil
}

// leave is what a user does at the end. The last one starts the clock.
func (s *slot) leave() {
	h := s.host
	h.mutex.Lock()
	defer h.mutex.Unlock()
	s.users--
	switch {
	case s.users > 0 || h.closed:
	case s.retired:
		h.end(s)
	default:
		s.idle = time.AfterFunc(h.options.Idle, s.idled)
	}
}

// idled ends a slot that was not used for long. The next Open makes another.
func (s *slot) idled() {
	h := s.host
	h.mutex.Lock()
	if s.users > 0 || s.retired || h.closed {
		h.mutex.Unlock()
		return
	}
	h.retireLocked(s)
	h.mutex.Unlock()
}

// stopIdling is called with host.mutex held.
func (s *slot) stopIdling() {
	if s.idle != nil {
		s.idle.Stop()
		s.idle = nil
	}
}

// enabled is the plugin's binary for an architecture.
func (h *Host) enabled(ctx context.Context, name, arch string) (Enabled, error) {
	enabled, err := h.store.Plugin(ctx, name, arch)
	if errors.Is(err, sdk.ErrNotFound) {
		return Enabled{}, sdk.Errorf(sdk.ErrNotFound, sdk.FaultHost, "plugin %s is not enabled for %s", name, arch).
			WithHint("enable it after checking where its program came from: holdfast plugin enable %s", name)
	}
	if err != nil {
		return Enabled{}, fmt.Errorf("look up plugin %s: %w", name, err)
	}
	return enabled, nil
}
