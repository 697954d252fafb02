package agent

import (
	"context"
	"time"

	"github.com/holdfast-dr/holdfast/core/backup"
	"github.com/holdfast-dr/holdfast/core/point"
	"github.com/holdfast-dr/holdfast/core/schedule"
	"github.com/holdfast-dr/holdfast/sdk"
)

// Connection is the site's tie to one provider.
type Connection struct {
	ID            string
	Name          string // what people at the site call the provider; unique
	Address       string // host:port
	CAFingerprint string // pinned; "" when a public authority vouches
	Authorities   []byte // PEM, the provider's CA certificates that we trust
	TenantID      string
	TenantName    string
	AgentID       string
	Certificate   []byte // PEM chain, ours
	Key           []byte // PEM of its private key; a Store seals it at rest
	Created       time.Time
}

// KitState is what became of a keyring's recovery kit.
type KitState string

// The states of a kit. Only the last two accept the keyring into use.
const (
	KitMissing  KitState = "missing"
	KitWritten  KitState = "written"
	KitDeclined KitState = "declined"
)

// Keyring is a keyring as the site keeps it.
type Keyring struct {
	Fingerprint string
	Secret      []byte // chunk.Keyring, marshalled; a Store seals it at rest
	Current     bool   // new backups are sealed by it
	Kit         KitState
	KitTime     time.Time
	// Wrap is the keyring wrapped for the kit's recipient, to be kept at every
	// cloud repository that the site uses; nil without a kit.
	Wrap []byte
	// PendingKit is the SHA-256, in hexadecimal, of a kit that was exported and
	// not yet confirmed as written; PendingWrap becomes Wrap then.
	PendingKit  string
	PendingWrap []byte
	Created     time.Time
}

// Selection says which machines of an endpoint a job covers. Names are those of
// the inventory, may hold * and ?, and compare without regard to case.
type Selection struct {
	All          bool     `json:"all,omitempty" doc:"Every machine of the endpoint, new ones too"`
	Names        []string `json:"names,omitempty" maxItems:"1000" doc:"Machines by name; * and ? match"`
	Tags         []string `json:"tags,omitempty" maxItems:"100" doc:"Machines that carry any of these tags"`
	ExcludeNames []string `json:"exclude_names,omitempty" maxItems:"1000" doc:"Never these, by name; * and ? match"`
	ExcludeTags  []string `json:"exclude_tags,omitempty" maxItems:"100" doc:"Never machines that carry any of these tags"`
	ExcludeDisks []string `json:"exclude_disks,omitempty" maxItems:"1000" doc:"Disks to leave out, by name, in every machine"`
}

// Retention says which points of a machine a job keeps. A point is forgotten
// when every rule that is set lets it go; the newest is never forgotten.
type Retention struct {
	Points int `json:"points,omitempty" minimum:"0" maximum:"100000" doc:"Keep at least this many of the newest points; 0 sets no such rule"`
	Days   int `json:"days,omitempty" minimum:"0" maximum:"36500" doc:"Keep points at least this many days; 0 sets no such rule"`
}

// Job is what the site backs up, when, where to, and for how long.
type Job struct {
	ID             string
	Name           string // unique
	Enabled        bool
	EndpointID     string
	ConnectionID   string
	Repository     string // cloud repository id
	RepositoryName string // as it was called when the job was made
	Selection      Selection
	Quiesce        sdk.Quiesce
	Schedule       *schedule.Schedule // nil: by hand only
	Retention      Retention
	Next           time.Time // when the schedule starts it next; zero without one
	Created        time.Time
	Updated        time.Time
}

// Machine is what the site remembers of a machine that it backs up. There is
// one for each machine, cloud repository and keyring.
type Machine struct {
	ID         point.MachineID // in points
	Keyring    string          // fingerprint
	Repository string
	EndpointID string
	Machine    sdk.MachineID
	Name       string
	// Remembered are the points that we saw committed, the newest first, at most
	// MaxRemembered; what the provider shows is held against them.
	Remembered []point.ID
	// Session is the upload that a run left open when it broke off, "" for none.
	Session string
	// Held is what the source may still keep for us; see backup.Request.
	Held []backup.HeldMark
	// Epoch is the highest that we have shown the machine's back-end.
	Epoch    uint64
	Compared time.Time // when everything was last compared
	Runs     int       // runs since then
}

// MaxRemembered bounds Machine.Remembered.
const MaxRemembered = 16

// Store keeps what the agent remembers. Each method is one transaction. What
// does not exist is tenant.ErrNotFound, a name that is taken tenant.ErrExists.
// Methods that change what a person decided need audit.With.
type Store interface {
	Connections(ctx context.Context) ([]Connection, error)
	PutConnection(ctx context.Context, c Connection) error
	DeleteConnection(ctx context.Context, id string) error

	Keyrings(ctx context.Context) ([]Keyring, error)
	PutKeyring(ctx context.Context, k Keyring) error

	Jobs(ctx context.Context) ([]Job, error)
	PutJob(ctx context.Context, j Job) error
	DeleteJob(ctx context.Context, id string) error
	// SetNext writes when a job is due next, without touching anything else.
	SetNext(ctx context.Context, id string, next time.Time) error

	Machines(ctx context.Context) ([]Machine, error)
	PutMachine(ctx context.Context, m Machine) error
}
