package gateway

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"time"

	"github.com/holdfast-dr/holdfast/core/access"
	"github.com/holdfast-dr/holdfast/core/blob"
	"github.com/holdfast-dr/holdfast/core/chunk"
	"github.com/holdfast-dr/holdfast/core/claim"
	"github.com/holdfast-dr/holdfast/core/lease"
	"github.com/holdfast-dr/holdfast/core/point"
	"github.com/holdfast-dr/holdfast/core/quota"
	"github.com/holdfast-dr/holdfast/core/tenant"
)

// ProblemType is the media type of a refusal, RFC 9457.
const ProblemType = "application/problem+json"

// maxProblem bounds the refusal that a client reads: a MissingError names up to
// twice point.MaxMissing ids of 64 digits.
const maxProblem = 2 << 20

// Code names a refusal for programs. Codes are only ever added.
type Code string

// The codes.
const (
	CodeInvalid       Code = "invalid"             // fix the request
	CodeNotFound      Code = "not-found"           // or it belongs to somebody else
	CodeExists        Code = "exists"              // the name is taken
	CodeChanged       Code = "changed"             // read it again, then decide again
	CodeConflict      Code = "conflict"            // something else has to go first
	CodeAnonymous     Code = "not-signed-in"       // no credentials, or not accepted
	CodeDenied        Code = "denied"              // the caller's role does not allow it
	CodeCertificate   Code = "certificate"         // none, of another authority, unknown
	CodeExpired       Code = "certificate-expired" // it may only renew
	CodeRevoked       Code = "revoked"             // the site enrols again
	CodeEnrolment     Code = "enrolment-token"     // unknown, expired, or used by another key
	CodeVersion       Code = "unknown-version"     // of the wire
	CodeDisabled      Code = "tenant-disabled"     // ask the provider
	CodeLeaseEnded    Code = "lease-ended"         // ask the provider
	CodeQuotaFull     Code = "quota-full"          // forget points or ask for more
	CodeSecondWriter  Code = "second-writer"       // wait for the other one
	CodeFenced        Code = "fenced"              // somebody else took over: begin again
	CodeMissing       Code = "missing"             // send these again
	CodeDamaged       Code = "damaged"             // these bytes are not what was written
	CodeAbsent        Code = "absent"              // the repository does not hold this record
	CodeTooManyTasks  Code = "too-many-tasks"      // wait for one of the own to end
	CodeBusy          Code = "busy"                // repeat later
	CodeUnavailable   Code = "unavailable"         // repeat later
	CodeTooLarge      Code = "too-large"           // a bound of the wire
	CodeNotAvailable  Code = "not-available"       // this process cannot do it
	CodeInternal      Code = "internal"            // the server's fault
	CodeReadOnly      Code = "read-only"           // the repository takes nothing new
	CodeSessionClosed Code = "session-closed"      // begin another one
	CodeStorageFull   Code = "storage-full"        // the provider's store has no room
)

// Problem is a refusal on the wire, and the error that it becomes where its
// code stands for no other type.
type Problem struct {
	Status int    `json:"status" doc:"HTTP status"`
	Title  string `json:"title" doc:"The HTTP status in words"`
	Detail string `json:"detail" doc:"What happened, to what"`
	Code   Code   `json:"code" doc:"What happened, for programs"`
	Hint   string `json:"hint,omitempty" doc:"What to try next"`
	// RetryAfter is set when repeating the same request can help.
	RetryAfter int             `json:"retry_after,omitempty" doc:"Seconds after which to repeat the request"`
	Fields     []FieldProblem  `json:"fields,omitempty" doc:"Which parts of the request break which rule"`
	Facts      json.RawMessage `json:"facts,omitempty" doc:"Figures of the refusal; their form depends on the code"`
}

// FieldProblem is one part of a request that breaks a rule.
type FieldProblem struct {
	Field  string `json:"field"`
	Reason string `json:"reason"`
}

// Error is the detail.
func (p *Problem) Error() string {
	if len(p.Fields) == 0 {
		return p.Detail
	}
	s := p.Detail
	for i, f := range p.Fields {
		sep := "; "
		if i == 0 {
			sep = ": "
		}
		s += sep + f.Field + " " + f.Reason
	}
	return s
}

// GetStatus is the HTTP status.
func (p *Problem) GetStatus() int { return p.Status }

// ContentType makes the body a problem whatever was negotiated.
func (p *Problem) ContentType(string) string { return ProblemType }

// Unwrap gives errors.Is the sentinels that a problem stands for.
func (p *Problem) Unwrap() error { return sentinelOf[p.Code] }

var sentinelOf = map[Code]error{
	CodeNotFound:  tenant.ErrNotFound,
	CodeExists:    tenant.ErrExists,
	CodeChanged:   tenant.ErrChanged,
	CodeAnonymous: access.ErrCredentials,
	CodeEnrolment: access.ErrEnrolment,
	CodeFenced:    claim.ErrFenced,
	CodeDamaged:   chunk.ErrDamaged,
	CodeAbsent:    chunk.ErrAbsent,
	CodeReadOnly:  ErrRepositoryReadOnly,
}

// HintOf is the first hint in err's chain, "" if there is none.
func HintOf(err error) string {
	for err != nil {
		switch e := err.(type) { //nolint:errorlint // the loop walks the chain itself
		case *Problem:
			if e.Hint != "" {
				return e.Hint
			}
		case interface{ Hint() string }:
			if h := e.Hint(); h != "" {
				return h
			}
		case interface{ Unwrap() []error }:
			for _, inner := range e.Unwrap() {
				if h := HintOf(inner); h != "" {
					return h
				}
			}
			return ""
		}
		err = errors.Unwrap(err)
	}
	return ""
}

// VersionError refuses a version of the wire that this server does not speak.
type VersionError struct {
	Asked  string
	Speaks []int
}

// Error names both.
func (e *VersionError) Error() string {
	if e.Asked == "" {
		return fmt.Sprintf("the request names no version of the tenant wire; this server speaks %v", e.Speaks)
	}
	return fmt.Sprintf("version %.20q of the tenant wire is unknown; this server speaks %v", e.Asked, e.Speaks)
}

// Hint says which side is older.
func (e *VersionError) Hint() string {
	if e.Asked == "" {
		return "these routes are for agents: holdfast agent connect; people and scripts use the REST API"
	}
	if n, err := strconv.Atoi(e.Asked); err == nil && len(e.Speaks) > 0 && n < e.Speaks[0] {
		return "the agent is too old for this provider: install a newer holdfast at the tenant's site"
	}
	return "the agent is newer than the provider's server: ask the provider to upgrade, or install the version that it names"
}

// TasksError says that the tenant moves as many disks at once as it may.
type TasksError struct{ Limit int }

// Error gives the limit.
func (e *TasksError) Error() string {
	return fmt.Sprintf("the tenant already moves %d disks at once, which is its limit", e.Limit)
}

// Hint says that waiting helps.
func (e *TasksError) Hint() string { return "the work continues as soon as another disk is done" }

// WriterError refuses a second writer of one machine's points.
type WriterError struct {
	Machine point.MachineID
	Until   time.Time // when the first one counts as gone if nothing is heard of it
}

// Error names the machine.
func (e *WriterError) Error() string {
	return fmt.Sprintf("another site is writing a point of machine %s; without a sign of life its turn ends at %s",
		e.Machine, e.Until.UTC().Format(time.RFC3339))
}

// Hint says what helps.
func (e *WriterError) Hint() string {
	return "let the other backup of this machine finish, and give each machine one job only"
}

// ErrRepositoryReadOnly: the repository takes nothing new.
var ErrRepositoryReadOnly = errors.New("the repository takes nothing new at this moment")

// ErrSessionClosed: the session does not exist any more, or is another agent's.
var ErrSessionClosed = errors.New("the session is closed or unknown")

// mapping is one error type's place on the wire.
type mapping struct {
	code   Code
	status int
	after  int // seconds
	match  func(error) (facts any, ok bool)
	decode func(json.RawMessage) error
}

// typed makes the mapping of an error type whose fields are its facts.
func typed[T any, P interface {
	*T
	error
}](code Code, status, after int) mapping {
	return mapping{code: code, status: status, after: after,
		match: func(err error) (any, bool) {
			e, ok := errors.AsType[P](err)
			return e, ok
		},
		decode: func(facts json.RawMessage) error {
			e := P(new(T))
			if json.Unmarshal(facts, e) != nil {
				return nil
			}
			return e
		}}
}

func sentinel(code Code, status, after int, err error) mapping {
	return mapping{code: code, status: status, after: after,
		match:  func(got error) (any, bool) { return nil, errors.Is(got, err) },
		decode: func(json.RawMessage) error { return nil }} // Problem.Unwrap has it
}

// mappings is the one table of refusals, used in both directions. The first
// match counts, so types stand before the sentinels that they wrap.
var mappings = []mapping{
	typed[VersionError](CodeVersion, http.StatusBadRequest, 0),
	typed[tenant.InvalidError](CodeInvalid, http.StatusUnprocessableEntity, 0),
	typed[tenant.DisabledError](CodeDisabled, http.StatusForbidden, 0),
	typed[lease.EndedError](CodeLeaseEnded, http.StatusForbidden, 0),
	typed[quota.FullError](CodeQuotaFull, http.StatusInsufficientStorage, 0),
	typed[WriterError](CodeSecondWriter, http.StatusConflict, 0),
	typed[TasksError](CodeTooManyTasks, http.StatusTooManyRequests, 1),
	typed[point.MissingError](CodeMissing, http.StatusConflict, 0),
	// Another server holds the repository: the tenant need not know which.
	{code: CodeUnavailable, status: http.StatusServiceUnavailable, after: 2,
		match:  func(err error) (any, bool) { _, ok := errors.AsType[*claim.HeldError](err); return nil, ok },
		decode: func(json.RawMessage) error { return nil }},
	sentinel(CodeAbsent, http.StatusNotFound, 0, chunk.ErrAbsent), // also a "not found", so it stands first
	sentinel(CodeNotFound, http.StatusNotFound, 0, tenant.ErrNotFound),
	sentinel(CodeExists, http.StatusConflict, 0, tenant.ErrExists),
	sentinel(CodeChanged, http.StatusConflict, 0, tenant.ErrChanged),
	sentinel(CodeAnonymous, http.StatusUnauthorized, 0, access.ErrCredentials),
	sentinel(CodeEnrolment, http.StatusUnauthorized, 0, access.ErrEnrolment),
	sentinel(CodeBusy, http.StatusServiceUnavailable, 2, access.ErrBusy),
	sentinel(CodeFenced, http.StatusServiceUnavailable, 1, claim.ErrFenced),
	sentinel(CodeSessionClosed, http.StatusGone, 0, ErrSessionClosed),
	sentinel(CodeReadOnly, http.StatusConflict, 0, ErrRepositoryReadOnly),
	sentinel(CodeDamaged, http.StatusUnprocessableEntity, 0, chunk.ErrDamaged),
	sentinel(CodeStorageFull, http.StatusInsufficientStorage, 0, blob.ErrFull),
	sentinel(CodeUnavailable, http.StatusServiceUnavailable, 1, context.Canceled),
	sentinel(CodeUnavailable, http.StatusServiceUnavailable, 1, context.DeadlineExceeded),
}

// ProblemOf is how an error looks on the wire. An error that the table does not
// know says nothing of itself: it is logged, and the caller learns that it is
// the server's fault.
func ProblemOf(err error) *Problem {
	if p, ok := errors.AsType[*Problem](err); ok {
		return p
	}
	for _, m := range mappings {
		facts, ok := m.match(err)
		if !ok {
			continue
		}
		p := NewProblem(m.status, m.code, err.Error())
		p.Hint, p.RetryAfter = HintOf(err), m.after
		if inner, isError := facts.(error); isError {
			p.Detail = inner.Error() // without the server's wrapping
		}
		if m.code == CodeUnavailable {
			p.Detail, p.Hint = "the server cannot take the request at this moment", "it is repeated by itself; nothing is lost"
		}
		if m.code == CodeStorageFull { // where the provider keeps things is not the tenants' business
			p.Detail, p.Hint = "the provider has no room", "what is stored stays restorable; tell the provider"
		}
		if m.code == CodeEnrolment { // whatever the reason, so that nobody can tell a token that is known
			p.Hint = "a token is good for one agent and a limited time; ask the provider for a new one: holdfast token create --site NAME"
		}
		if facts != nil {
			p = p.WithFacts(facts)
		}
		return p
	}
	p := NewProblem(http.StatusInternalServerError, CodeInternal, "the server failed to answer the request")
	p.Hint = "the provider's log says why; look for the request id"
	return p
}

// NewProblem makes a refusal without a type of its own.
func NewProblem(status int, code Code, detail string) *Problem {
	return &Problem{Status: status, Title: http.StatusText(status), Code: code, Detail: detail}
}

// WithHint is p with a hint.
func (p *Problem) WithHint(hint string) *Problem {
	p.Hint = hint
	return p
}

// WithFacts is p with the exact figures of the refusal, a plain struct of numbers
// and texts: the detail rounds them for people.
func (p *Problem) WithFacts(facts any) *Problem {
	p.Facts, _ = json.Marshal(facts)
	return p
}

// Err is the error that a received problem stands for: the same type as on the
// other end where the code has one, the problem itself otherwise.
func (p *Problem) Err() error {
	for _, m := range mappings {
		if m.code == p.Code && len(p.Facts) > 0 {
			if err := m.decode(p.Facts); err != nil {
				return err
			}
		}
	}
	if p.Code == CodeSessionClosed {
		return ErrSessionClosed
	}
	return p
}

// Write answers a request with the problem.
func (p *Problem) Write(w http.ResponseWriter) {
	body, err := json.Marshal(p)
	if err != nil {
		w.WriteHeader(http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", ProblemType)
	w.Header().Set("Cache-Control", "no-store")
	if p.RetryAfter > 0 {
		w.Header().Set("Retry-After", strconv.Itoa(p.RetryAfter))
	}
	if p.Status == http.StatusUnauthorized {
		w.Header().Set("WWW-Authenticate", `Bearer realm="holdfast"`)
	}
	w.WriteHeader(p.Status)
	_, _ = w.Write(append(body, '\n')) // a reader that is gone learns nothing
}

// ReadProblem decodes a refusal. Whatever answers without being Holdfast makes
// a Problem, too.
func ReadProblem(status int, contentType string, body io.Reader) *Problem {
	b, err := io.ReadAll(io.LimitReader(body, maxProblem))
	var p Problem
	if err == nil && contentType == ProblemType && json.Unmarshal(b, &p) == nil && p.Code != "" {
		p.Status = status
		return &p
	}
	out := NewProblem(status, CodeInternal, fmt.Sprintf("the server answered %d %s without saying why", status, http.StatusText(status)))
	if status == http.StatusBadGateway || status == http.StatusServiceUnavailable || status == http.StatusGatewayTimeout {
		out.Code, out.RetryAfter = CodeUnavailable, 1
	}
	return out
}
