package access

import (
	"context"
	"errors"
	"fmt"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/holdfast-dr/holdfast/core/tenant"
)

// The refusals. They say no more than a stranger may know.
var (
	// ErrCredentials: unknown, expired or revoked token, wrong user or password.
	ErrCredentials = errors.New("credentials not accepted")
	// ErrEnrolment: the one-time token is unknown, expired or used by another key.
	ErrEnrolment = errors.New("enrolment token not accepted")
	// ErrBusy: too many logins at this moment.
	ErrBusy = errors.New("too many logins at once")
	// ErrLastAdmin refuses to take the last provider-admin away.
	ErrLastAdmin = errors.New("this is the last enabled provider-admin")
)

// Bounds of what a caller may type.
const (
	MaxName     = 128
	MinPassword = 12
	MaxPassword = 1024
	MaxTokens   = 100 // of one user
)

// User is a person or a script of the provider or of a tenant. Names are unique
// within their scope, regardless of case.
type User struct {
	ID           string
	TenantID     tenant.ID
	Name         string
	Role         Role
	PasswordHash string // argon2id in PHC form; empty: tokens only
	Enabled      bool
	Created      time.Time
	Updated      time.Time
	Version      int64
}

// Check says whether a user keeps every rule.
func (u User) Check() error {
	if err := checkName("name", u.Name); err != nil {
		return err
	}
	switch {
	case !u.Role.Known():
		return &tenant.InvalidError{Field: "role", Reason: fmt.Sprintf("%q is unknown; the roles are %v", u.Role, Roles())}
	case u.Role.Provider() && u.TenantID != tenant.Provider:
		return &tenant.InvalidError{Field: "role", Reason: fmt.Sprintf("%s is a role of the provider's users", u.Role)}
	case !u.Role.Provider() && u.TenantID == tenant.Provider:
		return &tenant.InvalidError{Field: "role", Reason: fmt.Sprintf("%s is a role of a tenant's users", u.Role)}
	}
	return nil
}

func checkName(field, name string) error {
	n := utf8.RuneCountInString(name)
	if n == 0 || n > MaxName || !utf8.ValidString(name) {
		return &tenant.InvalidError{Field: field, Reason: fmt.Sprintf("must be 1 to %d characters", MaxName)}
	}
	for _, r := range name {
		if unicode.IsControl(r) || unicode.In(r, unicode.Cf) {
			return &tenant.InvalidError{Field: field, Reason: "must not contain control characters"}
		}
	}
	return nil
}

// Token is a bearer token, without its text.
type Token struct {
	ID       string
	UserID   string
	TenantID tenant.ID // of its user
	Name     string    // what it is for
	Hash     Hash
	Scope    Level // None: as far as the role goes
	Created  time.Time
	Expires  time.Time // zero: never
	LastUsed time.Time // to the minute
}

// Agent is one installation of the agent at a tenant.
type Agent struct {
	ID       string
	TenantID tenant.ID
	Name     string // the site
	Key      Hash   // SHA-256 of the public key in its certificates
	Version  string // of its program, as it last said
	Enrolled time.Time
	LastSeen time.Time
	Revoked  time.Time // not zero: none of its certificates is accepted any more
}

// Enrolment is a one-time token for an agent, without its text.
type Enrolment struct {
	ID       string
	TenantID tenant.ID
	Site     string // proposed name of the agent
	Hash     Hash
	Created  time.Time
	Expires  time.Time
	Key      Hash   // of the first request; zeros: not used yet
	AgentID  string // that it enrolled
}

// Used says whether an agent has enrolled with it.
func (e Enrolment) Used() bool { return e.AgentID != "" }

// Check says whether an enrolment may be issued at now.
func (e Enrolment) Check(now time.Time) error {
	if err := checkName("site", e.Site); err != nil {
		return err
	}
	if e.TenantID == tenant.Provider {
		return &tenant.InvalidError{Field: "tenant", Reason: "must be given"}
	}
	if d := e.Expires.Sub(now); d <= 0 || d > MaxEnrolment {
		return &tenant.InvalidError{Field: "expires", Reason: fmt.Sprintf("must be in the future and within %d days", int(MaxEnrolment.Hours()/24))}
	}
	return nil
}

// How long a one-time token is good for.
const (
	DefaultEnrolment = 24 * time.Hour
	MaxEnrolment     = 30 * 24 * time.Hour
)

// Users keeps users and their tokens. Mutating methods need audit.With, except
// TouchToken. Methods that take a tenant answer tenant.ErrNotFound outside it;
// the provider's people are users of tenant.Provider.
type Users interface {
	CreateUser(ctx context.Context, u User) (User, error)
	User(ctx context.Context, t tenant.ID, id string) (User, error)
	UserByName(ctx context.Context, t tenant.ID, name string) (User, error)
	ListUsers(ctx context.Context, t tenant.ID) ([]User, error)
	// UpdateUser changes name, role, password and enabled of the version that u
	// carries. A new password or a disabled user ends the user's tokens.
	UpdateUser(ctx context.Context, u User) (User, error)
	DeleteUser(ctx context.Context, t tenant.ID, id string) error

	CreateToken(ctx context.Context, tk Token) (Token, error)
	ListTokens(ctx context.Context, t tenant.ID, userID string) ([]Token, error)
	DeleteToken(ctx context.Context, t tenant.ID, id string) error
	// ByToken finds a token that has not expired with its enabled user, whose
	// tenant exists; ErrCredentials otherwise.
	ByToken(ctx context.Context, h Hash) (Token, User, error)
	// TouchToken remembers that a token was used. Callers do this at most once a minute.
	TouchToken(ctx context.Context, id string) error
}

// Agents keeps agents and enrolments. Mutating methods need audit.With, except
// TouchAgent.
type Agents interface {
	CreateEnrolment(ctx context.Context, e Enrolment) (Enrolment, error)
	ListEnrolments(ctx context.Context, t tenant.ID) ([]Enrolment, error)
	DeleteEnrolment(ctx context.Context, t tenant.ID, id string) error
	// Enrol redeems a one-time token for the agent with this key. The first key
	// binds the token; the same key gets the same agent again until the token
	// expires, any other ErrEnrolment.
	Enrol(ctx context.Context, token Hash, key Hash) (Agent, error)

	Agent(ctx context.Context, t tenant.ID, id string) (Agent, error)
	// AgentByID is for the listener, which knows nothing but a certificate.
	AgentByID(ctx context.Context, id string) (Agent, error)
	ListAgents(ctx context.Context, t tenant.ID) ([]Agent, error)
	// RevokeAgent is final: the site enrols again as a new agent. It is idempotent.
	RevokeAgent(ctx context.Context, t tenant.ID, id string) (Agent, error)
	// TouchAgent remembers when an agent was last seen and its version. Callers
	// do this at most once a minute.
	TouchAgent(ctx context.Context, id, version string) error
}
