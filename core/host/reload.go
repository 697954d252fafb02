package host

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/holdfast-dr/holdfast/sdk"
	"github.com/holdfast-dr/holdfast/sdk/plugin"
)

const (
	// DefaultDrain is how long those who use a plugin may go on with the version
	// that they have: longer than a large first backup of one disk takes.
	DefaultDrain = 4 * time.Hour
	// MaxDrain is the longest that a version is kept beside its successor.
	MaxDrain = 7 * 24 * time.Hour
)

// errMoved is what a slot answers whose users go on with its successor.
var errMoved = errors.New("another process took over")

// ReloadRequest asks for a change to the program as it is now.
type ReloadRequest struct {
	Plugin string
	// Drain is how long users may keep the version before; 0 is DefaultDrain. A
	// negative one moves them at once: calls in flight fail as if the process
	// had ended, and disks that are open are opened again.
	Drain time.Duration
	// Force leaves out the trial of the new version, such as when the back-end
	// is down.
	Force bool
}

// Reloaded is what a reload came to. Status shows how a drain goes on.
type Reloaded struct {
	Plugin  string    `json:"plugin"`
	From    string    `json:"from" doc:"Version"`
	To      string    `json:"to" doc:"Version"`
	Changed bool      `json:"changed" doc:"The program is another one; otherwise processes were only started afresh"`
	Tried   []string  `json:"tried" doc:"Endpoints at which the new version was started and answered before anything was changed"`
	Drains  []string  `json:"drains" doc:"Endpoints at which the version before goes on until its users are done"`
	Until   time.Time `json:"until,omitzero" doc:"When those who still use it are moved"`
}

// trial is a process of the new version that waits for its endpoint.
type trial struct {
	before *slot
	after  *slot
	life   *life
}

// Reload changes an enabled plugin to its program as it is now. The program is
// started beside the old one at every endpoint that runs, and asked whether it
// works; if it does not anywhere, it is ended and all stays as it was. If it
// does, it is trusted from then on, new openings get it, and those who have the
// old one keep it until they release it, it ends, or the drain is over.
func (h *Host) Reload(ctx context.Context, r ReloadRequest) (_ Reloaded, err error) {
	switch {
	case r.Drain == 0:
		r.Drain = DefaultDrain
	case r.Drain > MaxDrain:
		return Reloaded{}, sdk.Errorf(sdk.ErrInvalid, sdk.FaultHost, "a drain of %s is too long: at most %s", r.Drain, MaxDrain)
	}
	if err := h.beginReload(r.Plugin); err != nil {
		return Reloaded{}, err
	}
	defer h.endReload(r.Plugin)
	before, err := h.enabled(ctx, r.Plugin, runtime.GOARCH)
	if err != nil {
		return Reloaded{}, err
	}
	kept := func(err error) error {
		return fmt.Errorf("reload plugin %s: version %s stays in use: %w", r.Plugin, before.Version, err)
	}
	after, err := h.candidate(ctx, r.Plugin, nil)
	if err != nil {
		return Reloaded{}, kept(err)
	}
	if err := h.checkAll(ctx, after); err != nil {
		return Reloaded{}, kept(err)
	}
	trials, err := h.try(ctx, after, r.Force)
	if err != nil {
		h.note(slog.LevelWarn, Endpoint{Plugin: r.Plugin}, "the plugin's new version does not work; the version before stays in use",
			slog.String("version", after.Version), slog.Any("err", err))
		return Reloaded{}, kept(err)
	}
	if err := h.store.PutPlugin(ctx, after); err != nil {
		end(trials)
		return Reloaded{}, kept(err)
	}
	h.forgive(r.Plugin)
	result := h.swap(trials, r)
	result.From, result.To, result.Changed = before.Version, after.Version, before.SHA256 != after.SHA256
	h.note(slog.LevelInfo, Endpoint{Plugin: r.Plugin}, "plugin reloaded", slog.String("from", result.From), slog.String("to", result.To),
		slog.String("sha256", after.SHA256), slog.Int("drains", len(result.Drains)))
	return result, nil
}

func (h *Host) beginReload(name string) error {
	h.mutex.Lock()
	defer h.mutex.Unlock()
	if h.reloading[name] {
		return sdk.Errorf(sdk.ErrBusy, sdk.FaultHost, "plugin %s is being reloaded", name)
	}
	h.reloading[name] = true
	return nil
}

func (h *Host) endReload(name string) {
	h.mutex.Lock()
	defer h.mutex.Unlock()
	delete(h.reloading, name)
}

// checkAll holds the settings of every endpoint against the schema of a new
// version.
func (h *Host) checkAll(ctx context.Context, after Enabled) error {
	d, err := descriptionOf(after)
	if err != nil {
		return err
	}
	all, err := h.store.Endpoints(ctx)
	if err != nil {
		return fmt.Errorf("list endpoints: %w", err)
	}
	for _, e := range all {
		if e.Plugin != after.Plugin {
			continue
		}
		if err := d.Config.Validate(e.Settings); err != nil {
			return fmt.Errorf("version %s does not take the settings of endpoint %s: %w", after.Version, e.Name, err)
		}
	}
	return nil
}

// try starts a new version at every endpoint on this machine that runs the
// plugin now, and has it answer a probe. After an error nothing of it runs.
func (h *Host) try(ctx context.Context, after Enabled, force bool) (trials []trial, err error) {
	defer func() {
		if err != nil {
			end(trials)
			trials = nil
		}
	}()
	for _, s := range h.slotsOf(after.Plugin) {
		t := trial{before: s}
		// A slot that has no process starts the new version at its next call.
		if s.current.Load() == nil || len(s.endpoint.Workers) > 0 || force {
			trials = append(trials, t)
			continue
		}
		h.mutex.Lock()
		t.after = newSlot(h, s.endpoint)
		h.mutex.Unlock()
		if t.life, err = t.after.start(ctx, &after); err != nil {
			return trials, fmt.Errorf("version %s does not start at endpoint %s: %w", after.Version, s.endpoint.Name, err)
		}
		trials = append(trials, t)
		if _, err := t.life.process.Platform().Probe(ctx, sdk.Subject{}); err != nil {
			return trials, fmt.Errorf("version %s does not work at endpoint %s: %w", after.Version, s.endpoint.Name, err)
		}
	}
	return trials, nil
}

func end(trials []trial) {
	for _, t := range trials {
		if t.life != nil {
			t.life.close()
		}
	}
}

// swap puts the new processes in the place of the old ones.
func (h *Host) swap(trials []trial, r ReloadRequest) Reloaded {
	result := Reloaded{Plugin: r.Plugin, Tried: []string{}, Drains: []string{}}
	now := h.now()
	for _, t := range trials {
		name := t.before.endpoint.Name
		if t.life != nil {
			result.Tried = append(result.Tried, name)
			<-t.after.turn
			t.after.adopt(t.life)
			t.after.turn <- struct{}{}
		}
		if h.exchange(t, now, r.Drain) {
			result.Drains = append(result.Drains, name)
			result.Until = now.Add(max(r.Drain, 0)).UTC()
		}
	}
	slices.SortFunc(result.Drains, strings.Compare)
	return result
}

// exchange makes a slot drain, and reports whether it has users other than watches.
func (h *Host) exchange(t trial, now time.Time, drainFor time.Duration) bool {
	h.mutex.Lock()
	defer h.mutex.Unlock()
	s := t.before
	if h.closed || h.slots[s.endpoint.ID] != s {
		// It was retired in the meantime; whoever comes next finds the new version.
		if t.life != nil {
			h.ending.Go(t.life.close)
		}
		return false
	}
	if t.after == nil {
		if s.current.Load() == nil {
			return false // its next process is of the new version
		}
		t.after = newSlot(h, s.endpoint)
	}
	h.slots[s.endpoint.ID], h.all[t.after] = t.after, true
	t.after.idle = time.AfterFunc(h.options.Idle, t.after.idled)
	if abilities := s.abilities.Load(); t.after.abilities.Load() == nil {
		t.after.abilities.Store(abilities)
	}
	s.withdraw()
	busy := s.engaged() > 0 // watches end by themselves now
	if len(s.users) == 0 {
		h.end(s)
		return false
	}
	s.drain = &drain{since: now, until: now.Add(max(drainFor, 0)), successor: t.after}
	s.drain.timer = time.AfterFunc(max(drainFor, 0), func() { h.drained(s) })
	return busy
}

// drained moves the users that a slot still has to its successor, and ends its
// process.
func (h *Host) drained(s *slot) {
	h.mutex.Lock()
	defer h.mutex.Unlock()
	if h.closed || !h.all[s] {
		return
	}
	for p := range s.users {
		h.moveLocked(p, s)
	}
	h.end(s)
}

// move has a user go on with the successor of its slot.
func (h *Host) move(p *Platform) {
	h.mutex.Lock()
	defer h.mutex.Unlock()
	s := p.slot.Load()
	if s.drain == nil || !s.users[p] {
		return
	}
	h.moveLocked(p, s)
	if len(s.users) == 0 && h.all[s] {
		h.end(s)
	}
}

func (h *Host) moveLocked(p *Platform, s *slot) {
	to := s.drain.successor
	if now, ok := h.slots[s.endpoint.ID]; ok && now.endpoint.sameProcess(s.endpoint) {
		to = now
	}
	delete(s.users, p)
	to.users[p] = true
	to.stopIdling()
	p.slot.Store(to)
}

// draining reports whether the users of a slot go on with another.
func (h *Host) draining(s *slot) bool {
	h.mutex.Lock()
	defer h.mutex.Unlock()
	return s.drain != nil
}

func descriptionOf(e Enabled) (d plugin.Description, err error) {
	if err := json.Unmarshal(e.Description, &d); err != nil {
		return d, fmt.Errorf("read the description of plugin %s: %w", e.Plugin, err)
	}
	return d, nil
}
