package gateway

import (
	"context"
	"encoding/hex"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/holdfast-dr/holdfast/core/access"
	"github.com/holdfast-dr/holdfast/core/chunk"
	"github.com/holdfast-dr/holdfast/core/point"
	"github.com/holdfast-dr/holdfast/core/tenant"
)

// Port is where providers listen.
const Port = "6180"

// Version is the newest version of the wire. A server speaks versions; a
// change that an old agent cannot live with makes a new one.
const Version = 1

var versions = []int{1}

// The headers of the wire.
const (
	HeaderVersion = "Holdfast-Protocol" // request and answer
	HeaderRequest = "Holdfast-Request"  // id of the request, for logs of both sides
	HeaderTook    = "Holdfast-Took"     // answer or trailer: microseconds that the server itself took
	HeaderTask    = "Holdfast-Task"     // which disk the request works for; admission counts them
	HeaderProblem = "Holdfast-Problem"  // trailer: a problem after the answer began, JSON on one line
	HeaderAgent   = "Holdfast-Agent"    // version of the agent's program
	HeaderAlive   = "Holdfast-Alive"    // answer: seconds between the interim answers (102) of a request that takes long
)

// The bounds of the wire.
const (
	MaxBatch = 16 << 20 // bytes of records in one request
	MaxIDs   = 16384    // ids in one request
	MaxTask  = 64       // bytes of a task's name
	maxJSON  = 1 << 20  // of a control request
	maxEnrol = 64 << 10 // of a stranger's
	idSize   = len(chunk.ID{})
)

// RequestID is the id under which a request is logged: the caller's if it is
// one, else a new one.
func RequestID(r *http.Request) string {
	if id, err := uuid.Parse(r.Header.Get(HeaderRequest)); err == nil {
		return id.String()
	}
	return uuid.Must(uuid.NewV7()).String()
}

// Site is what an agent learns of its place at the provider. It names nothing
// of the provider's inside.
type Site struct {
	Time         time.Time         `json:"time"` // the server's
	Tenant       SiteTenant        `json:"tenant"`
	Agent        SiteAgent         `json:"agent"`
	Admission    Admission         `json:"admission"`
	Repositories []CloudRepository `json:"repositories"`
	// Authorities is the PEM of the CA certificates to trust from now on: the
	// present one, and the next one once it is announced.
	Authorities string `json:"authorities"`
	Server      string `json:"server"` // version of its program
	Versions    []int  `json:"versions"`
}

// SiteTenant is the tenant as its agent sees it.
type SiteTenant struct {
	ID       string     `json:"id"`
	Name     string     `json:"name"`
	LeaseEnd *time.Time `json:"lease_end,omitempty"`
	MaxTasks int        `json:"max_tasks"`
}

// SiteAgent is the agent as the provider knows it.
type SiteAgent struct {
	ID             string    `json:"id"`
	Name           string    `json:"name"`
	CertificateEnd time.Time `json:"certificate_end"`
}

// Admission says whether data requests are taken at this moment, and if not,
// exactly what they would be answered.
type Admission struct {
	Open    bool     `json:"open"`
	Problem *Problem `json:"problem,omitempty"`
}

// CloudRepository is a cloud repository as a tenant sees it.
type CloudRepository struct {
	ID           string `json:"id"`
	Name         string `json:"name"`
	ChunkSize    int64  `json:"chunk_size"`
	FanOut       int    `json:"fan_out"`
	LimitBytes   int64  `json:"limit_bytes"`
	UsedBytes    int64  `json:"used_bytes"`
	PendingBytes int64  `json:"pending_bytes"`
}

// EnrolRequest asks for an agent's first certificate. The token is bound to the
// key of the first request that it comes with.
type EnrolRequest struct {
	Token   string `json:"token"`
	Request []byte `json:"request"` // certificate request, DER
}

// RenewRequest asks for the next certificate of the same key.
type RenewRequest struct {
	Request []byte `json:"request"` // certificate request, DER
}

// Credentials are what an agent works with.
type Credentials struct {
	AgentID     string    `json:"agent_id"`
	TenantID    string    `json:"tenant_id"`
	TenantName  string    `json:"tenant_name,omitempty"`
	Certificate string    `json:"certificate"` // PEM chain, leaf first
	Authorities string    `json:"authorities"` // PEM of the provider's CA certificates
	NotAfter    time.Time `json:"not_after"`
}

// Wrap is a wrapped keyring kept at a cloud repository, without its bytes.
type Wrap struct {
	Name      string `json:"name"`
	SizeBytes int64  `json:"size_bytes"`
}

// BeginRequest opens a session.
type BeginRequest struct {
	Machine point.MachineID `json:"machine"`
	Base    point.ID        `json:"base,omitempty"` // the point that the new one builds on
}

// SessionInfo is an open session.
type SessionInfo struct {
	ID      string          `json:"id"` // hexadecimal of chunk.SessionID
	Machine point.MachineID `json:"machine"`
	Base    point.ID        `json:"base,omitempty"`
	Epoch   uint64          `json:"epoch"`
	// Damaged are the base point's chunks that have to be read and sent again.
	// With DamagedMore there are more than these: everything has to be read.
	Damaged     []chunk.ID `json:"damaged,omitempty"`
	DamagedMore bool       `json:"damaged_more,omitempty"`
}

// Receipt is the answer to a commit: the point exists.
type Receipt struct {
	Point     point.ID  `json:"point"`
	Committed time.Time `json:"committed"`
}

// PointInfo is a point as the provider lists it.
type PointInfo struct {
	ID            point.ID        `json:"id"`
	Machine       point.MachineID `json:"machine"`
	Previous      point.ID        `json:"previous,omitempty"`
	Kind          point.Kind      `json:"kind"`
	Taken         time.Time       `json:"taken"`
	Committed     time.Time       `json:"committed"`
	Disks         int             `json:"disks"`
	SizeBytes     int64           `json:"size_bytes"`
	ChargedBytes  int64           `json:"charged_bytes"`
	Keyring       string          `json:"keyring"`
	ManifestBytes int64           `json:"manifest_bytes,omitempty"`
}

// PointPage is a part of a list of points, oldest first.
type PointPage struct {
	Points []PointInfo `json:"points"`
	Next   point.ID    `json:"next,omitempty"` // continue after it; empty at the end
}

// RunEvent is what an agent tells of one of its runs: the whole state of it at
// a moment, so that repeating it, or losing an earlier one, does no harm.
type RunEvent struct {
	Sequence   int64      `json:"sequence"` // grows; an older event never overwrites a newer one
	Kind       string     `json:"kind"`     // backup, restore …
	Job        string     `json:"job"`      // its name at the site, or the point that is restored
	State      string     `json:"state"`    // a job.State
	Started    time.Time  `json:"started"`
	Ended      *time.Time `json:"ended,omitempty"`
	DoneBytes  int64      `json:"done_bytes"`
	TotalBytes int64      `json:"total_bytes"`
	SentBytes  int64      `json:"sent_bytes"`
	Rate       float64    `json:"rate"`
	Bottleneck string     `json:"bottleneck,omitempty"`
	Machines   int        `json:"machines"`
	Failure    string     `json:"failure,omitempty"`
	Side       string     `json:"side,omitempty"` // whose fault: tenant or provider
}

// Report is the newest that an agent told of a run.
type Report struct {
	Run      string
	Agent    string // id
	Received time.Time
	Event    RunEvent
}

// Reports keeps what agents tell of their runs, the newest event of each. It is
// bookkeeping: what a site says of itself decides nothing.
type Reports interface {
	// Put keeps an event that is newer than what is there, and passes over any
	// other.
	Put(ctx context.Context, a access.Agent, run string, e RunEvent) error
	// List is newest first, of runs that started before a moment if it is given.
	List(ctx context.Context, t tenant.ID, before time.Time, limit int) ([]Report, error)
}

// Bounds of the texts of a RunEvent.
const (
	maxEventText = 4000
	maxEventName = 200
)

// check bounds an event.
func (e RunEvent) check() error {
	switch {
	case e.Sequence < 1:
		return fmt.Errorf("sequence %d", e.Sequence)
	case e.Kind == "" || len(e.Kind) > maxEventName || len(e.Job) > maxEventName || len(e.State) > maxEventName ||
		len(e.Bottleneck) > maxEventName || len(e.Side) > maxEventName || len(e.Failure) > maxEventText:
		return fmt.Errorf("a text is missing or too long")
	case e.DoneBytes < 0 || e.TotalBytes < 0 || e.SentBytes < 0 || e.Machines < 0:
		return fmt.Errorf("a negative number")
	}
	return nil
}

// appendIDs encodes ids back to back.
func appendIDs(dst []byte, ids []chunk.ID) []byte {
	for i := range ids {
		dst = append(dst, ids[i][:]...)
	}
	return dst
}

// parseIDs decodes ids, at least one.
func parseIDs(b []byte) ([]chunk.ID, error) {
	if len(b) == 0 || len(b)%idSize != 0 || len(b)/idSize > MaxIDs {
		return nil, fmt.Errorf("%d bytes are not 1 to %d ids", len(b), MaxIDs)
	}
	ids := make([]chunk.ID, len(b)/idSize)
	for i := range ids {
		ids[i] = chunk.ID(b[i*idSize:])
	}
	return ids, nil
}

// appendBits encodes one bit per answer: answer i is bit i%8 of byte i/8.
func appendBits(dst []byte, have []bool) []byte {
	start := len(dst)
	dst = append(dst, make([]byte, (len(have)+7)/8)...)
	for i, yes := range have {
		if yes {
			dst[start+i/8] |= 1 << (i % 8)
		}
	}
	return dst
}

// parseBits decodes n answers and refuses any other length and stray bits.
func parseBits(b []byte, n int) ([]bool, error) {
	if len(b) != (n+7)/8 || n%8 != 0 && b[len(b)-1]>>(n%8) != 0 {
		return nil, fmt.Errorf("bitmap of %d bytes does not answer %d ids", len(b), n)
	}
	have := make([]bool, n)
	for i := range have {
		have[i] = b[i/8]&(1<<(i%8)) != 0
	}
	return have, nil
}

// kindName and parseKind are the query parameter of a record's kind.
func kindName(k chunk.Kind) string {
	if k == chunk.KindPage {
		return "page"
	}
	return "data"
}

func parseKind(s string) (chunk.Kind, error) {
	switch s {
	case "data":
		return chunk.KindData, nil
	case "page":
		return chunk.KindPage, nil
	}
	return 0, fmt.Errorf("kind %.20q is neither data nor page", s)
}

// parseSession decodes a session's id.
func parseSession(s string) (chunk.SessionID, error) {
	var id chunk.SessionID
	if len(s) != 2*len(id) || strings.ToLower(s) != s {
		return id, ErrSessionClosed
	}
	if _, err := hex.Decode(id[:], []byte(s)); err != nil {
		return id, ErrSessionClosed
	}
	return id, nil
}

func sessionText(id chunk.SessionID) string { return hex.EncodeToString(id[:]) }
