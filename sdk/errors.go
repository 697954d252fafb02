package sdk

import (
	"errors"
	"fmt"
	"time"
)

// The sentinels. Each tells the caller what to do next.
var (
	ErrNotFound     = errors.New("not found")               // give up, or look elsewhere
	ErrInvalid      = errors.New("invalid request")         // fix the request
	ErrUnsupported  = errors.New("not supported")           // use another way
	ErrDenied       = errors.New("denied")                  // fix the permissions or the space
	ErrBusy         = errors.New("busy")                    // retry when the holder is done
	ErrUnavailable  = errors.New("unavailable")             // retry with back-off
	ErrPending      = errors.New("still working")           // ask again with the same Op.ID
	ErrFenced       = errors.New("fenced by a newer claim") // stop: somebody else took over
	ErrMarkLost     = errors.New("change mark lost")        // compare everything
	ErrCannotCancel = errors.New("cannot be cancelled")     // wait for its end
)

// Code is a sentinel's name on the wire. Codes are only ever added.
type Code string

// The codes. CodeUnknown stands for an error that wraps no sentinel.
const (
	CodeUnknown      Code = "unknown"
	CodeNotFound     Code = "not-found"
	CodeInvalid      Code = "invalid"
	CodeUnsupported  Code = "unsupported"
	CodeDenied       Code = "denied"
	CodeBusy         Code = "busy"
	CodeUnavailable  Code = "unavailable"
	CodePending      Code = "pending"
	CodeFenced       Code = "fenced"
	CodeMarkLost     Code = "mark-lost"
	CodeCannotCancel Code = "cannot-cancel"
)

var sentinels = []struct {
	code Code
	err  error
}{
	{CodeNotFound, ErrNotFound},
	{CodeInvalid, ErrInvalid},
	{CodeUnsupported, ErrUnsupported},
	{CodeDenied, ErrDenied},
	{CodeBusy, ErrBusy},
	{CodeUnavailable, ErrUnavailable},
	{CodePending, ErrPending},
	{CodeFenced, ErrFenced},
	{CodeMarkLost, ErrMarkLost},
	{CodeCannotCancel, ErrCannotCancel},
}

// Codes lists every code that stands for a sentinel, for tests and suites.
func Codes() []Code {
	codes := make([]Code, len(sentinels))
	for i, s := range sentinels {
		codes[i] = s.code
	}
	return codes
}

// CodeOf is the code of the first sentinel that err wraps.
func CodeOf(err error) Code {
	for _, s := range sentinels {
		if errors.Is(err, s.err) {
			return s.code
		}
	}
	return CodeUnknown
}

// Sentinel is the error that a code stands for, or nil for an unknown one.
func (c Code) Sentinel() error {
	for _, s := range sentinels {
		if s.code == c {
			return s.err
		}
	}
	return nil
}

// Fault is whose fault an error is; support teams need exactly that.
type Fault string

// The parties.
const (
	FaultPlugin  Fault = "plugin"
	FaultBackend Fault = "back-end"
	FaultHost    Fault = "holdfast"
)

// Error is an error that keeps its meaning across a process border.
type Error struct {
	Kind     error         // a sentinel of this package, or nil
	Fault    Fault         // "" counts as FaultPlugin
	Message  string        // what happened, to what
	Hint     string        // what to try next
	Progress float64       // with ErrPending: 0 to 1, or 0 if unknown
	After    time.Duration // with ErrPending, ErrBusy, ErrUnavailable: when to ask again
}

// Errorf makes an Error of a kind; the message is formatted.
func Errorf(kind error, fault Fault, format string, args ...any) *Error {
	return &Error{Kind: kind, Fault: fault, Message: fmt.Sprintf(format, args...)}
}

// WithHint returns e with a hint.
func (e *Error) WithHint(format string, args ...any) *Error {
	e.Hint = fmt.Sprintf(format, args...)
	return e
}

// Error is the message and the kind. The hint is apart, for interfaces that
// show it on a line of its own.
func (e *Error) Error() string {
	switch {
	case e.Kind == nil:
		return e.Message
	case e.Message == "":
		return e.Kind.Error()
	default:
		return e.Message + ": " + e.Kind.Error()
	}
}

// Unwrap gives errors.Is the kind.
func (e *Error) Unwrap() error { return e.Kind }

// HintOf is the hint of the first Error in err's chain that has one.
func HintOf(err error) string {
	var e *Error
	for errors.As(err, &e) {
		if e.Hint != "" {
			return e.Hint
		}
		err = e.Kind
	}
	return ""
}
