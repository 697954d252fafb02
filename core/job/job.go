package job

import (
	"context"
	"encoding/json"
	"errors"
	"time"

	"github.com/holdfast-dr/holdfast/core/tenant"
)

// Kind says what a run does: "backup", "restore", "verify". A handler is
// registered under it.
type Kind string

// State is where a run stands.
type State string

// The states. Waiting and Running are open, the others final.
const (
	Waiting   State = "waiting"
	Running   State = "running"
	Succeeded State = "succeeded"
	Warned    State = "warned" // succeeded, but somebody should read why
	Failed    State = "failed"
	Cancelled State = "cancelled"
)

// Final says whether nothing more will happen to the run.
func (s State) Final() bool { return s != Waiting && s != Running }

// Bounds of what is written into one run.
const (
	MaxSteps  = 10000
	MaxText   = 4000     // of an error or a hint
	MaxDetail = 64 << 10 // of a spec, a result or a progress record
)

// The refusals and causes.
var (
	// ErrFenced: another process has taken the run over. Stop.
	ErrFenced = errors.New("run taken over by another process")
	// ErrCancelled is the cause of a run's context after a cancel request.
	ErrCancelled = errors.New("run cancelled by request")
	// ErrFinal: the run has ended and cannot be changed.
	ErrFinal = errors.New("run has ended")
	// ErrActive: the subject already has an open run of this kind.
	ErrActive = errors.New("already running")
)

// Failure is how a run or step failed, as people read it.
type Failure struct {
	Message string `json:"message"`
	Hint    string `json:"hint,omitempty"`
	Side    string `json:"side,omitempty"` // "tenant" or "provider": where the cause lies
}

// Progress is what a run last said of itself. Bytes count what is known.
type Progress struct {
	Phase      string          `json:"phase,omitempty"`
	DoneBytes  int64           `json:"done_bytes"`
	TotalBytes int64           `json:"total_bytes"` // 0: not known yet
	Rate       float64         `json:"rate"`        // bytes per second
	ETA        time.Duration   `json:"eta"`         // 0: not known
	Bottleneck string          `json:"bottleneck,omitempty"`
	Detail     json.RawMessage `json:"detail,omitempty"` // what the kind adds
	Time       time.Time       `json:"time"`
}

// Run is one durable execution.
type Run struct {
	ID        string
	TenantID  tenant.ID // empty: the provider's, or any run of an agent
	Kind      Kind
	Subject   string // what it is about: "job:ID", "repository:ID"
	Exclusive bool   // at most one open run of this kind and subject
	Spec      json.RawMessage
	State     State
	Cancel    bool // a cancel request is there
	Progress  Progress
	Result    json.RawMessage
	Failure   *Failure
	Attempts  int // how many times it was taken
	Created   time.Time
	NotBefore time.Time // not taken earlier
	Started   time.Time
	Ended     time.Time

	// The claim, while Running.
	Holder string
	Epoch  int64
	Until  time.Time
}

// Lock is what a process that took a run shows with every write.
type Lock struct {
	RunID string
	Epoch int64
}

// StepState is where a step stands.
type StepState string

// The states of a step. A step found Started by a new holder was interrupted;
// whether it had an effect is unknown.
const (
	StepStarted StepState = "started"
	StepDone    StepState = "done"
	StepFailed  StepState = "failed"
)

// Step is one durable step of a run, known by its name within the run.
type Step struct {
	RunID    string
	Index    int // order of first start
	Name     string
	State    StepState
	Attempts int
	Epoch    int64
	Result   json.RawMessage
	Failure  *Failure
	Started  time.Time
	Ended    time.Time
}

// Query selects runs, newest first.
type Query struct {
	Tenant  tenant.ID // tenant.Provider: the provider's own; All lifts the scope
	All     bool      // every tenant's; only for the provider and the agent
	Kind    Kind
	Subject string
	Open    bool   // only runs that have not ended
	Before  string // continue before this run's id
	Limit   int    // 0: 100, at most 1000
}

// Store keeps runs. Create and RequestCancel are decisions of a caller and need
// audit.With; the rest is the bookkeeping of the process that holds the run.
type Store interface {
	// Create stores a waiting run. With Exclusive set it answers ErrActive while
	// another one is open.
	Create(ctx context.Context, r Run) (Run, error)
	Get(ctx context.Context, t tenant.ID, id string) (Run, error)
	List(ctx context.Context, q Query) ([]Run, error)
	Steps(ctx context.Context, t tenant.ID, id string) ([]Step, error)
	// RequestCancel ends a waiting run at once and marks a running one. It
	// answers ErrFinal for one that has ended.
	RequestCancel(ctx context.Context, t tenant.ID, id string) (Run, error)

	// Take claims the oldest run of these kinds that waits or whose claim has
	// expired, under its next epoch; ok is false if there is none.
	Take(ctx context.Context, holder string, ttl time.Duration, kinds []Kind) (r Run, ok bool, err error)
	// Renew extends the claim and tells whether a cancel request is there.
	Renew(ctx context.Context, l Lock, ttl time.Duration) (cancel bool, err error)
	// Expel makes the runs that former instances of the node hold takeable at
	// once. The node is what comes before the slash in a holder's name.
	Expel(ctx context.Context, node, instance string) (freed int64, err error)

	// BeginStep writes that a step starts, and returns it as it now stands: Done
	// with its result if it was completed before, by whomever.
	BeginStep(ctx context.Context, l Lock, name string) (Step, error)
	// EndStep writes how it ended.
	EndStep(ctx context.Context, l Lock, name string, result json.RawMessage, f *Failure) error
	SetProgress(ctx context.Context, l Lock, p Progress) error
	// Finish writes a final state and ends the claim.
	Finish(ctx context.Context, l Lock, s State, result json.RawMessage, f *Failure) error
	// Requeue gives the run back, to be taken again no earlier than at.
	Requeue(ctx context.Context, l Lock, at time.Time) error
	// Prune deletes ended runs from before a time, and their steps.
	Prune(ctx context.Context, before time.Time) (int64, error)
}
