package nbd

import (
	"errors"
	"fmt"
	"strings"
	"syscall"

	"github.com/holdfast-dr/holdfast/sdk"
)

// Errno is an error number of the protocol. The numbers are those of Linux on
// every system.
type Errno uint32

// The error numbers.
const (
	EPERM     Errno = 1
	EIO       Errno = 5
	ENOMEM    Errno = 12
	EINVAL    Errno = 22
	ENOSPC    Errno = 28
	EOVERFLOW Errno = 75
	ENOTSUP   Errno = 95
	ESHUTDOWN Errno = 108
)

func (e Errno) Error() string {
	switch e {
	case EPERM:
		return "operation not permitted"
	case EIO:
		return "input/output error"
	case ENOMEM:
		return "out of memory"
	case EINVAL:
		return "invalid argument"
	case ENOSPC:
		return "no space left"
	case EOVERFLOW:
		return "value too large"
	case ENOTSUP:
		return "operation not supported"
	case ESHUTDOWN:
		return "server is shutting down"
	}
	return fmt.Sprintf("error %d", uint32(e))
}

// Is makes errors.Is answer for the sentinels of package sdk and for ENOSPC of
// the system.
func (e Errno) Is(target error) bool {
	switch e {
	case EPERM:
		return target == sdk.ErrDenied
	case EINVAL, EOVERFLOW:
		return target == sdk.ErrInvalid
	case ENOTSUP:
		return target == sdk.ErrUnsupported
	case ENOMEM, ESHUTDOWN:
		return target == sdk.ErrUnavailable
	case ENOSPC:
		return target == syscall.ENOSPC
	}
	return false
}

// ReplyError is a server's refusal of one request. The connection lives on.
type ReplyError struct {
	Command string
	Errno   Errno
	Message string // the server's own words, or empty
	kind    error  // the sentinel of sdk that the message names, or nil
}

func (e *ReplyError) Error() string {
	if e.Message == "" {
		return fmt.Sprintf("nbd %s: %s", e.Command, e.Errno)
	}
	return fmt.Sprintf("nbd %s: %s: %s", e.Command, e.Errno, e.Message)
}

// Unwrap gives the sentinel, where the server is one of ours and named it, or
// else the number. It is not both: a number stands for several sentinels, and
// the caller has to know what to do next.
func (e *ReplyError) Unwrap() error {
	if e.kind != nil {
		return e.kind
	}
	return e.Errno
}

// As gives the number in any case.
func (e *ReplyError) As(target any) bool {
	number, ok := target.(*Errno)
	if ok {
		*number = e.Errno
	}
	return ok
}

// newReplyError understands the messages that replyMessage makes. A message of
// another server that happens to start with a code means the same thing.
func newReplyError(c command, errno Errno, message string) *ReplyError {
	e := &ReplyError{Command: c.String(), Errno: errno, Message: message}
	if code, _, found := strings.Cut(message, ": "); found {
		e.kind = sdk.Code(code).Sentinel()
	}
	return e
}

// replyMessage is what the server says about err in an error chunk: the code
// of the sdk first where the number does not say it, so that errors.Is gives
// the same answer at the client.
func replyMessage(err error) string {
	message := err.Error()
	if code := sdk.CodeOf(err); code != sdk.CodeUnknown && !errors.Is(errnoOf(err), code.Sentinel()) {
		message = string(code) + ": " + message
	}
	if len(message) > maxString {
		message = strings.ToValidUTF8(message[:maxString], "")
	}
	return strings.ReplaceAll(message, "\x00", "")
}

// refusal is why the server does not try a request.
type refusal struct {
	errno Errno
	text  string
}

func refuse(errno Errno, format string, args ...any) error {
	return &refusal{errno, fmt.Sprintf(format, args...)}
}

func (r *refusal) Error() string { return r.text }

func (r *refusal) Unwrap() error { return r.errno }

// errnoOf is the number that stands for err on the wire.
func errnoOf(err error) Errno {
	var errno Errno
	var system syscall.Errno
	switch {
	case errors.As(err, &errno):
		return errno
	case errors.Is(err, sdk.ErrDenied), errors.Is(err, sdk.ErrFenced):
		return EPERM
	case errors.Is(err, sdk.ErrInvalid):
		return EINVAL
	case errors.Is(err, sdk.ErrUnsupported), errors.Is(err, errors.ErrUnsupported):
		return ENOTSUP
	case errors.As(err, &system):
		return errnoOfSystem(system)
	}
	return EIO
}

func errnoOfSystem(e syscall.Errno) Errno {
	switch e {
	case syscall.EPERM, syscall.EACCES, syscall.EROFS:
		return EPERM
	case syscall.ENOSPC, syscall.EDQUOT, syscall.EFBIG:
		return ENOSPC
	case syscall.ENOMEM:
		return ENOMEM
	case syscall.EINVAL:
		return EINVAL
	}
	return EIO
}

// optionError is a server's refusal of an option, as a sentinel of sdk.
func optionError(opt option, typ optReply, message []byte) error {
	kind, text := sdk.ErrUnavailable, fmt.Sprintf("reply %#x", uint32(typ))
	switch typ {
	case repErrUnsup:
		kind, text = sdk.ErrUnsupported, "the server does not know it"
	case repErrPolicy:
		kind, text = sdk.ErrDenied, "forbidden by the server"
	case repErrInvalid:
		kind, text = sdk.ErrInvalid, "the server finds it malformed"
	case repErrPlatform:
		kind, text = sdk.ErrUnsupported, "not possible on the server's platform"
	case repErrTLS:
		kind, text = sdk.ErrDenied, "the server demands TLS"
	case repErrUnknown:
		kind, text = sdk.ErrNotFound, "no such export"
	case repErrShutdown:
		text = "the server is shutting down"
	case repErrBlockSize:
		kind, text = sdk.ErrUnsupported, "the server demands block size constraints"
	case repErrTooBig:
		kind, text = sdk.ErrInvalid, "too big for the server"
	}
	if len(message) > 0 && len(message) <= maxString {
		text += fmt.Sprintf(" (%q)", message)
	}
	return fmt.Errorf("nbd %s: %s: %w", opt, text, kind)
}
