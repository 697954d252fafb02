package claim

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"
)

// Resource names what is claimed: "repository/ID", "machine/ID".
type Resource string

// Holder names who claims: a node and one life of it. A node that starts again
// has another instance, and may free what its former lives held as soon as it
// knows that they ended (it holds the lock of the data directory).
type Holder struct {
	Node     string
	Instance string
}

// String is node/instance.
func (h Holder) String() string { return h.Node + "/" + h.Instance }

// Check says whether the holder can be written down unambiguously.
func (h Holder) Check() error {
	if h.Node == "" || h.Instance == "" || strings.Contains(h.Node, "/") || strings.Contains(h.Instance, "/") {
		return fmt.Errorf("claim holder %q: node and instance must be set and free of slashes", h)
	}
	return nil
}

// DefaultTTL is how long a claim outlives its last renewal. A busy machine can
// stall a process for seconds, so a short one misfires; renewal comes at a
// third of it.
const DefaultTTL = 30 * time.Second

// MinTTL is the shortest that a store accepts.
const MinTTL = 100 * time.Millisecond

// Claim is a held lock.
type Claim struct {
	Resource Resource
	Holder   Holder
	Epoch    int64     // at least 1
	Until    time.Time // by the store's clock
}

// HeldError refuses a claim that somebody else holds.
type HeldError struct {
	Resource Resource
	Holder   string
	Until    time.Time
}

// Error names the holder.
func (e *HeldError) Error() string {
	return fmt.Sprintf("%s is claimed by %s until %s", e.Resource, e.Holder, e.Until.UTC().Format(time.RFC3339))
}

// Hint says that waiting helps.
func (e *HeldError) Hint() string {
	return "the other writer has to finish first, or its claim to expire"
}

// ErrFenced: the claim has been lost; a newer one may exist. Stop.
var ErrFenced = errors.New("fenced by a newer claim")

// FencedError says by what a claim was overtaken. It is an ErrFenced.
type FencedError struct {
	Resource Resource
	Epoch    int64 // the caller's
	Current  int64 // the newest, 0 if unknown
}

// Error gives both epochs.
func (e *FencedError) Error() string {
	return fmt.Sprintf("claim of %s with epoch %d lost (current epoch %d)", e.Resource, e.Epoch, e.Current)
}

// Is makes it an ErrFenced.
func (e *FencedError) Is(target error) bool { return target == ErrFenced }

// Store keeps claims. Its clock is the one that counts: the database's where
// several servers share it.
type Store interface {
	// Acquire takes a free or expired resource under the next epoch, else
	// answers a *HeldError. The holder of a valid claim is refused as well.
	Acquire(ctx context.Context, r Resource, h Holder, ttl time.Duration) (Claim, error)
	// Renew extends a claim that is still held, even if it has just expired but
	// nobody took it. ErrFenced: it is lost.
	Renew(ctx context.Context, c Claim, ttl time.Duration) (Claim, error)
	// Release ends a claim. It is idempotent and never touches a newer claim.
	Release(ctx context.Context, c Claim) error
	// Current is the newest claim of a resource; its Epoch is 0 if there never
	// was one, its Until zero if it is free.
	Current(ctx context.Context, r Resource) (Claim, error)
	// Expel frees every claim that former instances of the holder's node still
	// hold. The caller knows that they have ended.
	Expel(ctx context.Context, h Holder) (freed int64, err error)
}
