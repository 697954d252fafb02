package plugin

import (
	"context"
	"errors"
	"math"
	"strings"
	"time"
	"unicode/utf8"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/holdfast-dr/holdfast/sdk"
	pluginv1 "github.com/holdfast-dr/holdfast/sdk/plugin/v1"
)

// Bounds of an error on the wire. They keep it inside one HTTP/2 trailer.
const (
	maxErrorText = 4 << 10
	maxErrorHint = 1 << 10
	maxAfter     = time.Hour
)

// encodeError makes the gRPC error of what an author's method returned.
func encodeError(err error) error {
	if err == nil {
		return nil
	}
	wire := &pluginv1.Error{Fault: string(sdk.FaultPlugin), Hint: clip(sdk.HintOf(err), maxErrorHint)}
	for _, code := range sdk.Codes() {
		if errors.Is(err, code.Sentinel()) {
			wire.Codes = append(wire.Codes, string(code))
		}
	}
	var e *sdk.Error
	if errors.As(err, &e) {
		if e.Fault != "" {
			wire.Fault = string(e.Fault)
		}
		wire.Progress, wire.AfterMicros = e.Progress, e.After.Microseconds()
	}
	wire.Message = clip(withoutKind(err.Error(), kindOf(wire.Codes)), maxErrorText)
	return toStatus(wire)
}

func toStatus(wire *pluginv1.Error) error {
	st, err := status.New(codes.Unknown, "plugin error").WithDetails(wire)
	if err != nil {
		return status.Error(codes.Internal, "encode the error of the plugin")
	}
	return st.Err()
}

// withoutKind cuts off the text of the kind, which sdk.Error adds again.
func withoutKind(text string, kind error) string {
	switch {
	case kind == nil:
		return text
	case text == kind.Error():
		return ""
	default:
		return strings.TrimSuffix(text, ": "+kind.Error())
	}
}

// kinds are several sentinels in one error.
type kinds []error

func (k kinds) Error() string {
	text := make([]string, len(k))
	for i, err := range k {
		text[i] = err.Error()
	}
	return strings.Join(text, ", ")
}

func (k kinds) Unwrap() []error { return k }

// kindOf is the error that wire codes stand for. Codes of a later version are
// left out; a plugin names the older ones beside them.
func kindOf(names []string) error {
	var known kinds
	for _, code := range sdk.Codes() {
		for _, name := range names {
			if name == string(code) {
				known = append(known, code.Sentinel())
				break
			}
		}
	}
	switch len(known) {
	case 0:
		return nil
	case 1:
		return known[0]
	default:
		return known
	}
}

// decodeError makes an sdk.Error of a gRPC error that carries one.
func decodeError(err error) (*sdk.Error, bool) {
	for _, detail := range status.Convert(err).Details() {
		wire, ok := detail.(*pluginv1.Error)
		if !ok {
			continue
		}
		e := &sdk.Error{
			Kind:    kindOf(wire.GetCodes()),
			Fault:   sdk.FaultPlugin,
			Message: clip(wire.GetMessage(), maxErrorText),
			Hint:    clip(wire.GetHint(), maxErrorHint),
		}
		switch fault := sdk.Fault(wire.GetFault()); fault {
		case sdk.FaultBackend, sdk.FaultHost:
			e.Fault = fault
		}
		if p := wire.GetProgress(); !math.IsNaN(p) {
			e.Progress = min(max(p, 0), 1)
		}
		e.After = time.Duration(min(max(wire.GetAfterMicros(), 0), maxAfter.Microseconds())) * time.Microsecond
		if e.Kind == nil && e.Message == "" {
			e.Message = "the plugin gave no reason"
		}
		return e, true
	}
	return nil, false
}

// callError says what a failed call means: the author's error, the caller's
// own cancellation, the call limit, or the death of the process. An error
// without a kind after the context has ended is but the echo of that end.
func callError(caller, limited context.Context, call string, limit time.Duration, err error) error {
	e, ok := decodeError(err)
	if ok && e.Kind != nil || ok && limited.Err() == nil {
		return e
	}
	code := status.Code(err)
	switch {
	case caller.Err() != nil:
		return &canceledError{call: call, cause: caller.Err()}
	case limited.Err() != nil, code == codes.DeadlineExceeded, code == codes.Canceled:
		return troubled(TroubleSilence, sdk.Errorf(sdk.ErrUnavailable, sdk.FaultPlugin, "%s took longer than %s", call, limit))
	case code == codes.Unavailable:
		return troubled(TroubleDeath, sdk.Errorf(sdk.ErrUnavailable, sdk.FaultPlugin, "the plugin process ended during %s", call))
	case code == codes.ResourceExhausted:
		return troubled(TroubleBreach, sdk.Errorf(nil, sdk.FaultPlugin, "a message of %s is larger than %d bytes", call, MaxMessage))
	case code == codes.Unimplemented:
		return sdk.Errorf(sdk.ErrUnsupported, sdk.FaultPlugin, "the plugin does not know %s", call)
	default:
		return sdk.Errorf(nil, sdk.FaultPlugin, "%s: %s", call, clip(status.Convert(err).Message(), maxErrorText))
	}
}

// canceledError is a call that its caller gave up.
type canceledError struct {
	call  string
	cause error
}

func (e *canceledError) Error() string { return e.call + ": " + e.cause.Error() }
func (e *canceledError) Unwrap() error { return e.cause }

// clip cuts a text to at most n bytes of valid UTF-8.
func clip(text string, n int) string {
	if len(text) > n {
		text = text[:n]
	}
	if utf8.ValidString(text) {
		return text
	}
	text = strings.ToValidUTF8(text, "�")
	for len(text) > n {
		_, size := utf8.DecodeLastRuneInString(text)
		text = text[:len(text)-size]
	}
	return text
}
