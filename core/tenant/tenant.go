package tenant

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// ID is a tenant's id. The empty ID stands for the provider itself: provider
// users, runs and audit entries carry it.
type ID string

// Provider is the empty scope: what belongs to no tenant.
const Provider ID = ""

// Type is a kind of tenant.
type Type string

// The types. CloudDirector is known by name, so that a request for it gets a
// reason and not a spelling lesson.
const (
	Standalone    Type = "standalone"
	CloudDirector Type = "vcd"
)

// Bounds of what an operator may type.
const (
	MaxName        = 128
	MaxDescription = 1024
	MaxTasks       = 1024 // a task is one disk; more than this on one tenant is a typing error
)

// DefaultTasks is the number of disks that a tenant moves at once when nobody
// said otherwise. Two keep a slow source busy without starving the neighbours.
const DefaultTasks = 2

// Tenant is one customer of the provider.
type Tenant struct {
	ID          ID
	Type        Type
	Name        string
	Description string
	Enabled     bool
	LeaseEnd    time.Time // zero: the contract has no end
	MaxTasks    int       // disks that move at the same time
	Created     time.Time
	Updated     time.Time
	Version     int64 // grows with each change
}

// The errors of every scoped store.
var (
	// ErrNotFound: it does not exist, or not for this tenant.
	ErrNotFound = errors.New("not found")
	// ErrExists: the name is taken within its scope.
	ErrExists = errors.New("already exists")
	// ErrChanged: somebody else changed it first; read it again.
	ErrChanged = errors.New("changed by somebody else in the meantime")
)

// InvalidError is a field that breaks a rule. The request has to be changed.
type InvalidError struct {
	Field  string
	Reason string
}

// Error names the field and the rule.
func (e *InvalidError) Error() string { return e.Field + ": " + e.Reason }

// DisabledError refuses work for a tenant that the provider has disabled.
type DisabledError struct{ Name string }

// Error names the tenant.
func (e *DisabledError) Error() string { return fmt.Sprintf("tenant %q is disabled", e.Name) }

// Hint says who can help.
func (e *DisabledError) Hint() string {
	return "stored data is kept; ask the provider to enable the tenant again"
}

// HasBackupsError refuses the deletion of a tenant while it has stored data and
// the caller has not said what becomes of it.
type HasBackupsError struct {
	Name         string
	Repositories int
	UsedBytes    int64
}

// Error says how much is stored.
func (e *HasBackupsError) Error() string {
	return fmt.Sprintf("tenant %q still stores %s in %d cloud repositories", e.Name, SizeText(e.UsedBytes), e.Repositories)
}

// Hint says what the caller has to decide.
func (e *HasBackupsError) Hint() string {
	return "deleting a tenant cannot be undone: say whether its backups are to be kept on the repository or deleted"
}

// Backups says what becomes of a deleted tenant's stored data.
type Backups string

// BackupsRefuse, the zero value, refuses the deletion while there are any.
// BackupsKeep leaves the objects in the repository, out of everybody's reach
// until an operator imports them for another tenant. BackupsDelete marks them
// for collection.
const (
	BackupsRefuse Backups = ""
	BackupsKeep   Backups = "keep"
	BackupsDelete Backups = "delete"
)

// Query selects tenants by name order.
type Query struct {
	Text  string // part of the name or description; empty: all
	After string // continue after this name
	Limit int    // 0: DefaultLimit
}

// DefaultLimit and MaxLimit bound what one List returns.
const (
	DefaultLimit = 200
	MaxLimit     = 1000
)

// Store keeps tenants. Mutating methods need audit.With in the context and
// record the change in the same transaction. They check the rules of this
// package themselves, so there is no way around them.
type Store interface {
	// Create stores a new tenant and returns it as stored, with its id if t had none.
	Create(ctx context.Context, t Tenant) (Tenant, error)
	Get(ctx context.Context, id ID) (Tenant, error)
	// ByName finds a tenant by its name, regardless of case.
	ByName(ctx context.Context, name string) (Tenant, error)
	List(ctx context.Context, q Query) ([]Tenant, error)
	// Update changes name, description, lease end and tasks of the version that t carries.
	Update(ctx context.Context, t Tenant) (Tenant, error)
	// SetEnabled is idempotent. Disabling does not touch data or tokens; the
	// caller closes the tenant's open connections.
	SetEnabled(ctx context.Context, id ID, enabled bool) (Tenant, error)
	// Delete is irreversible: users, tokens, agents and enrolments of the tenant
	// go with it and its cloud repositories are retired as backups says. The
	// audit log stays.
	Delete(ctx context.Context, id ID, backups Backups) error
}
