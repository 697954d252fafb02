package worker

import (
	"context"
	"fmt"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/holdfast-dr/holdfast/core/access"
	"github.com/holdfast-dr/holdfast/core/tenant"
)

// How long an invitation is good for.
const (
	DefaultInvitation = 24 * time.Hour
	MaxInvitation     = 30 * 24 * time.Hour
)

// MaxWorkers bounds how many workers one hub has.
const MaxWorkers = 1000

// maxName bounds a worker's name, in characters.
const maxName = 64

// Record is a worker that was invited, and may have enrolled.
type Record struct {
	ID       string
	Name     string      // unique regardless of case
	Key      access.Hash // SHA-256 of the public key that enrolled; zeros: none has
	Invited  time.Time
	Expires  time.Time // of the last invitation
	Enrolled time.Time // zero: not yet
}

// Store keeps workers. Each method is one transaction; those that change
// something need audit.With.
type Store interface {
	// Workers lists all, by name.
	Workers(ctx context.Context) ([]Record, error)
	// Worker finds one by id; tenant.ErrNotFound without one.
	Worker(ctx context.Context, id string) (Record, error)
	// Invite makes a worker, or gives one that exists another token; what
	// enrolled before goes on until the new token is used. MaxWorkers bounds them.
	Invite(ctx context.Context, name string, token access.Hash, expires time.Time) (Record, error)
	// Enrol redeems a token for a key. The first key binds the token; the same
	// key may repeat it until it expires, any other gets access.ErrEnrolment.
	Enrol(ctx context.Context, token, key access.Hash) (Record, error)
	// Remove forgets a worker; tenant.ErrNotFound without one.
	Remove(ctx context.Context, id string) error
}

// CheckName says whether a worker may be called so.
func CheckName(name string) error {
	if n := utf8.RuneCountInString(name); n == 0 || n > maxName || !utf8.ValidString(name) {
		return &tenant.InvalidError{Field: "name", Reason: fmt.Sprintf("must be 1 to %d characters", maxName)}
	}
	for _, r := range name {
		if unicode.IsControl(r) || unicode.IsSpace(r) || unicode.In(r, unicode.Cf) || r == ',' || r == '/' {
			return &tenant.InvalidError{Field: "name", Reason: "must not contain spaces, commas, slashes or control characters"}
		}
	}
	return nil
}
