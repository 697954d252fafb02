package gateway

import (
	"context"
	"log/slog"
	"sync"
	"time"
)

// How often the same refusal of the same caller is logged, and how many are told
// apart: who repeats a mistake, or an attack, must not fill the provider's disk
// or hide what else happens.
const (
	sameRefusal  = time.Minute
	maxRefusals  = 2048
	restRefusals = "of many others"
)

// Refusals is a log of refused requests: each kind of refusal of each caller at
// once, and from then on once a minute, with how often it was repeated. It is
// safe for several goroutines.
type Refusals struct {
	log *slog.Logger
	now func() time.Time

	mu    sync.Mutex
	known map[string]*refusal
}

type refusal struct {
	logged time.Time
	silent int // since then
}

// NewRefusals makes a log of refusals.
func NewRefusals(log *slog.Logger, now func() time.Time) *Refusals {
	return &Refusals{log: log, now: now, known: map[string]*refusal{}}
}

// Note logs a refusal, unless one of the same kind was just logged.
func (r *Refusals) Note(ctx context.Context, level slog.Level, kind, message string, attributes ...any) {
	repeated, say := r.count(kind)
	if !say {
		return
	}
	if repeated > 0 {
		attributes = append(attributes, "repeated", repeated)
	}
	r.log.Log(ctx, level, message, attributes...)
}

// count says whether to speak, and what happened silently since the last time.
func (r *Refusals) count(kind string) (repeated int, say bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := r.now()
	known := r.known[kind]
	if known == nil && len(r.known) >= maxRefusals {
		r.forget(now)
		if len(r.known) >= maxRefusals {
			kind = restRefusals
			known = r.known[kind]
		}
	}
	if known == nil {
		r.known[kind] = &refusal{logged: now}
		return 0, true
	}
	if now.Sub(known.logged) < sameRefusal {
		known.silent++
		return 0, false
	}
	repeated = known.silent
	known.logged, known.silent = now, 0
	return repeated, true
}

// forget drops what is over. What it drops is not told any more.
func (r *Refusals) forget(now time.Time) {
	for kind, known := range r.known {
		if now.Sub(known.logged) >= sameRefusal {
			delete(r.known, kind)
		}
	}
}
