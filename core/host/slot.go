package host

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/holdfast-dr/holdfast/sdk"
	"github.com/holdfast-dr/holdfast/sdk/plugin"
)

// startLimit bounds one start, whoever waits for it.
const startLimit = time.Minute

// slot is the place of one endpoint's process. While a plugin is reloaded,
// or an endpoint's settings change, an endpoint has two: the older one drains.
type slot struct {
	host     *Host
	endpoint Endpoint
	breaker  *breaker // of the endpoint, shared by its slots

	// Guarded by host.mutex.
	users   map[*Platform]bool
	retired bool
	left    chan struct{} // closed when retired is set
	drain   *drain        // nil unless a newer version takes its place
	idle    *time.Timer

	abilities atomic.Pointer[[]sdk.Ability] // as the last process advertised
	current   atomic.Pointer[life]          // for those who only look; nil: there is no process

	turn chan struct{} // holds one token; who took it may use the fields below

	life  *life
	ended bool
}

// drain says that a slot's users go on with what they have until a deadline.
type drain struct {
	since     time.Time
	until     time.Time
	successor *slot
	timer     *time.Timer
}

func newSlot(h *Host, e Endpoint) *slot {
	s := &slot{host: h, endpoint: e, breaker: h.breakerOf(e), users: make(map[*Platform]bool), left: make(chan struct{}), turn: make(chan struct{}, 1)}
	s.turn <- struct{}{}
	return s
}

// engaged is how many users do more than watch. It is called with host.mutex
// held.
func (s *slot) engaged() (n int) {
	for p := range s.users {
		if !p.watching.Load() {
			n++
		}
	}
	return n
}

// withdraw gives the slot no new users, and ends the watches of those it has:
// they would keep it for ever. It is called with host.mutex held.
func (s *slot) withdraw() {
	if !s.retired {
		s.retired = true
		close(s.left)
	}
}

// running gives the process, and starts one if there is none.
func (s *slot) running(ctx context.Context) (*life, error) {
	select {
	case <-s.turn:
	case <-ctx.Done():
		return nil, fmt.Errorf("wait for plugin %s: %w", s.endpoint.Plugin, ctx.Err())
	}
	defer func() { s.turn <- struct{}{} }()
	if s.life != nil && s.life.over() {
		s.bury()
	}
	if s.life == nil && s.host.draining(s) {
		return nil, errMoved
	}
	if s.ended {
		return nil, sdk.Errorf(sdk.ErrUnavailable, sdk.FaultHost, "endpoint %s is closed", s.endpoint.Name)
	}
	if s.life != nil {
		return s.life, nil
	}
	if err := s.mayStart(); err != nil {
		return nil, err
	}
	l, err := s.start(ctx, nil)
	if err != nil {
		// A caller who gave up says nothing about the plugin.
		if ctx.Err() == nil {
			s.failed(err)
		}
		return nil, err
	}
	s.adopt(l)
	return l, nil
}

// mayStart says why no process is started now, or nil.
func (s *slot) mayStart() error {
	name := s.endpoint.Plugin
	if q := s.host.changedProgram(name); q != nil && len(s.endpoint.Workers) == 0 {
		return sdk.Errorf(sdk.ErrDenied, sdk.FaultHost, "plugin %s is in quarantine since %s: %s", name, q.Since.UTC().Format(time.RFC3339), q.Reason).
			WithHint("if the program was upgraded: holdfast plugin reload %s; if not, find out who changed it", name)
	}
	wait, q := s.breaker.permit(s.host.now())
	switch {
	case q != nil:
		e := sdk.Errorf(sdk.ErrUnavailable, sdk.FaultPlugin, "plugin %s at endpoint %s is in quarantine since %s: %s",
			name, s.endpoint.Name, q.Since.UTC().Format(time.RFC3339), q.Reason)
		e = e.WithHint("see holdfast plugin logs %s; to try again at once: holdfast plugin enable %s", name, name)
		if !q.Trial.IsZero() {
			e.After = q.Trial.Sub(s.host.now())
		}
		return e
	case wait > 0:
		e := sdk.Errorf(sdk.ErrUnavailable, sdk.FaultPlugin, "plugin %s failed %d times at endpoint %s; it is started again in %s",
			name, s.breaker.state().failures, s.endpoint.Name, wait.Round(time.Millisecond)).WithHint("see holdfast plugin logs %s", name)
		e.After = wait
		return e
	}
	return nil
}

// start starts a program: the one that is enabled, or, to try it, another for
// this machine's architecture.
func (s *slot) start(ctx context.Context, other *Enabled) (*life, error) {
	ctx, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	defer context.AfterFunc(s.host.closing, cancel)()
	starter, err := s.host.starter(s.endpoint)
	if err != nil {
		return nil, err
	}
	l := &life{slot: s}
	launch, err := s.host.launch(ctx, s.endpoint, other)
	if err != nil {
		return nil, err
	}
	if launch.User != nil {
		l.user = userText(launch.User)
	}
	p, err := starter.Start(ctx, Start{
		Endpoint: s.endpoint,
		Enabled: func(ctx context.Context, arch string) (Enabled, error) {
			if other != nil && other.Arch == arch {
				l.program = *other
				return *other, nil
			}
			enabled, err := s.host.enabled(ctx, s.endpoint.Plugin, arch)
			l.program = enabled
			return enabled, err
		},
		Launch: launch,
	})
	if err != nil {
		s.host.meter(s.endpoint.Plugin).count(func(m *PluginMetrics) { m.FailedStarts++ })
		return nil, err
	}
	l.process, l.started = p, s.host.now()
	if err := l.asEnabled(); err != nil {
		s.host.meter(s.endpoint.Plugin).count(func(m *PluginMetrics) { m.FailedStarts++ })
		l.close()
		return nil, err
	}
	s.host.meter(s.endpoint.Plugin).count(func(m *PluginMetrics) { m.Starts++ })
	s.host.remember(slog.LevelInfo, s.endpoint, "process started", slog.Int("pid", l.pid()), slog.String("version", p.Describe().Version))
	s.host.background(func() { s.watch(l) })
	return l, nil
}

// asEnabled holds what a process says of itself against what the operator saw
// when the plugin was enabled.
func (l *life) asEnabled() error {
	d := l.process.Describe()
	said, err := descriptionOf(l.program)
	if l.program.Plugin == "" || err == nil && d.Name == l.program.Plugin && d.Version == l.program.Version &&
		d.Protocol == l.program.Protocol && d.Guards == said.Guards {
		return nil
	}
	return &otherProgramError{err: sdk.Errorf(sdk.ErrUnavailable, sdk.FaultPlugin,
		"plugin %s %s (protocol %d) says that it is %q %q (protocol %d) when it runs",
		l.program.Plugin, l.program.Version, l.program.Protocol, d.Name, d.Version, d.Protocol)}
}

// otherProgramError is a program that is not what it said it is.
type otherProgramError struct{ err *sdk.Error }

func (e *otherProgramError) Error() string { return e.err.Error() }
func (e *otherProgramError) Unwrap() error { return e.err }

// adopt makes a process the slot's. Who calls it has the turn.
func (s *slot) adopt(l *life) {
	abilities := sdk.AbilitiesOf(l.process.Platform())
	s.abilities.Store(&abilities)
	s.life = l
	s.current.Store(l)
	s.host.sayUnmet(s.endpoint, l.unmet())
}

// failed draws conclusions from a start that came to nothing.
func (s *slot) failed(err error) {
	h, now := s.host, s.host.now()
	if s.endpoint.away(err) {
		h.note(slog.LevelWarn, s.endpoint, "no worker of the endpoint can be reached", slog.Any("err", err))
		return
	}
	_, lied := errors.AsType[*otherProgramError](err)
	switch trouble := plugin.TroubleOf(err); {
	case trouble == plugin.TroubleChanged:
		h.programChanged(s.endpoint, err)
		return
	case lied, trouble == plugin.TroubleBreach:
		s.breaker.forbid(now, CauseContract, reasonOf(err))
		h.note(slog.LevelError, s.endpoint, "the plugin is in quarantine at this endpoint: it is not what it should be", slog.Any("err", err))
		return
	case trouble == plugin.TroubleDeath, trouble == plugin.TroubleSilence:
		s.breaker.died(now, reasonOf(err))
	default:
		s.breaker.refused(now)
	}
	h.note(slog.LevelWarn, s.endpoint, "start plugin", slog.Int("failures", s.breaker.state().failures), slog.Any("err", err))
}

// watch notices the end of a process when it happens; the next call draws the
// conclusions.
func (s *slot) watch(l *life) {
	<-l.process.Done()
	s.current.CompareAndSwap(l, nil)
	s.host.remember(slog.LevelInfo, s.endpoint, "process ended", slog.Int("pid", l.pid()), slog.String("state", endText(l.process)))
}

// endText is how a process ended, as far as it is known.
func endText(p Process) string {
	if p, ok := p.(interface{ Ended() string }); ok && p.Ended() != "" {
		return p.Ended()
	}
	return "unknown"
}

// bury forgets a process that has ended by itself, or that the host ended
// because something was wrong with it. Who calls it has the turn.
func (s *slot) bury() {
	l, h := s.life, s.host
	l.close()
	s.life = nil
	s.current.Store(nil)
	s.breaker.lived(h.now().Sub(l.started))
	if err := l.lost(); err != nil { // which says nothing about the plugin
		h.note(slog.LevelWarn, s.endpoint, "the plugin's worker was lost", slog.Any("err", err))
		return
	}
	reason := l.reason()
	s.breaker.died(h.now(), reason)
	h.meter(s.endpoint.Plugin).count(func(m *PluginMetrics) { m.Restarts++ })
	h.note(slog.LevelWarn, s.endpoint, "the plugin's process is gone", slog.String("reason", reason))
	if q := s.breaker.state().quarantine; q != nil && q.Cause == CauseDying {
		h.note(slog.LevelError, s.endpoint, "the plugin is in quarantine at this endpoint", slog.String("reason", q.Reason), slog.Time("trial", q.Trial))
	}
}

// end closes the process for good.
func (s *slot) end() {
	<-s.turn
	defer func() { s.turn <- struct{}{} }()
	s.ended = true
	if s.life == nil {
		return
	}
	s.life.close()
	s.life = nil
	s.current.Store(nil)
}

// leave is what a user does at the end. The last one starts the clock. It is
// called with host.mutex held.
func (s *slot) leave(p *Platform) {
	h := s.host
	delete(s.users, p)
	switch {
	case len(s.users) > 0 || h.closed:
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
	defer h.mutex.Unlock()
	if len(s.users) > 0 || s.retired || h.closed {
		return
	}
	h.retireLocked(s)
	if s.breaker.clean() {
		delete(h.breakers, s.endpoint.ID)
	}
}

// stopIdling is called with host.mutex held.
func (s *slot) stopIdling() {
	if s.idle != nil {
		s.idle.Stop()
		s.idle = nil
	}
}
