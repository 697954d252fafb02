package audit

import (
	"context"
	"encoding/json"
	"errors"
	"time"

	"github.com/holdfast-dr/holdfast/core/tenant"
)

// ErrNoOrigin: a change was asked for without saying who wants it. It is a
// fault of the program, never of the user.
var ErrNoOrigin = errors.New("change without an audit origin")

// Bounds of the texts that come from callers; longer ones are cut when the
// origin is put into a context.
const (
	MaxReason = 1000
	maxText   = 200
)

// Origin is who asks for a change, and why.
type Origin struct {
	Actor   string // "user:ID", "agent:ID" or "system:PART", for programs
	Name    string // the same for people
	Address string // where the request came from, if it came over the network
	Request string // the id of the API request or run
	Reason  string // what the caller gave as its reason
}

// System is the origin of what a part of Holdfast does by itself.
func System(part, reason string) Origin {
	return Origin{Actor: "system:" + part, Name: part, Reason: reason}
}

type originKey struct{}

// With puts the origin of changes into a context.
func With(ctx context.Context, o Origin) context.Context {
	o.Actor, o.Name = cut(o.Actor, maxText), cut(o.Name, maxText)
	o.Address, o.Request = cut(o.Address, maxText), cut(o.Request, maxText)
	o.Reason = cut(o.Reason, MaxReason)
	return context.WithValue(ctx, originKey{}, o)
}

// From is the origin in a context; it answers ErrNoOrigin when there is none.
func From(ctx context.Context) (Origin, error) {
	o, ok := ctx.Value(originKey{}).(Origin)
	if !ok || o.Actor == "" {
		return Origin{}, ErrNoOrigin
	}
	return o, nil
}

// Entry is one link of a chain.
type Entry struct {
	Chain    tenant.ID // the tenant, or empty for the provider
	Sequence int64     // 1, 2, 3 … without a gap
	Time     time.Time // to the microsecond
	Origin
	Action   string          // "tenant.disable"
	Target   string          // "tenant:ID"
	Detail   json.RawMessage // facts of the change, never secrets
	Previous Hash            // of the entry before; zeros for the first
	Hash     Hash            // of this one
}

// Head is the end of a chain.
type Head struct {
	Chain    tenant.ID
	Sequence int64
	Hash     Hash
}

// Query selects entries of one chain.
type Query struct {
	Chain  tenant.ID
	After  int64 // continue after this sequence number
	Newest bool  // newest first; After then means "before", 0 from the end
	Action string
	Target string
	Actor  string
	Since  time.Time
	Until  time.Time
	Limit  int // 0: 200, at most 1000
}

// Store reads the log. Nothing but the stores' own transactions writes it.
type Store interface {
	List(ctx context.Context, q Query) ([]Entry, error)
	// Heads lists the end of every chain, for export.
	Heads(ctx context.Context) ([]Head, error)
	// Record appends an entry for an event that changes nothing else, such as a
	// refused login or a restore that was read.
	Record(ctx context.Context, chain tenant.ID, action, target string, detail any) error
}
