package main

import (
	"context"
	"errors"
	"io"
	"net"
	"syscall"
	"time"

	"github.com/digitalocean/go-libvirt"

	"github.com/holdfast-dr/holdfast/sdk"
)

func invalid(format string, args ...any) *sdk.Error {
	return sdk.Errorf(sdk.ErrInvalid, sdk.FaultHost, format, args...)
}

func notFound(format string, args ...any) *sdk.Error {
	return sdk.Errorf(sdk.ErrNotFound, sdk.FaultBackend, format, args...)
}

func busy(format string, args ...any) *sdk.Error {
	e := sdk.Errorf(sdk.ErrBusy, sdk.FaultBackend, format, args...)
	e.After = 10 * time.Second
	return e
}

// kinds say what the caller does next about libvirt's errors.
var kinds = map[libvirt.ErrorNumber]error{
	libvirt.ErrNoDomain:               sdk.ErrNotFound,
	libvirt.ErrNoNetwork:              sdk.ErrNotFound,
	libvirt.ErrNoStoragePool:          sdk.ErrNotFound,
	libvirt.ErrNoStorageVol:           sdk.ErrNotFound,
	libvirt.ErrNoDomainCheckpoint:     sdk.ErrNotFound,
	libvirt.ErrNoDomainBackup:         sdk.ErrNotFound,
	libvirt.ErrNoDomainMetadata:       sdk.ErrNotFound,
	libvirt.ErrNoDomainSnapshot:       sdk.ErrNotFound,
	libvirt.ErrNoSupport:              sdk.ErrUnsupported,
	libvirt.ErrConfigUnsupported:      sdk.ErrUnsupported,
	libvirt.ErrOperationUnsupported:   sdk.ErrUnsupported,
	libvirt.ErrArgumentUnsupported:    sdk.ErrUnsupported,
	libvirt.ErrInvalidArg:             sdk.ErrInvalid,
	libvirt.ErrXMLError:               sdk.ErrInvalid,
	libvirt.ErrXMLDetail:              sdk.ErrInvalid,
	libvirt.ErrXMLInvalidSchema:       sdk.ErrInvalid,
	libvirt.ErrOperationDenied:        sdk.ErrDenied,
	libvirt.ErrAccessDenied:           sdk.ErrDenied,
	libvirt.ErrAuthFailed:             sdk.ErrDenied,
	libvirt.ErrAuthCancelled:          sdk.ErrDenied,
	libvirt.ErrAuthUnavailable:        sdk.ErrDenied,
	libvirt.ErrOperationInvalid:       sdk.ErrBusy, // the object is in a state that does not allow it now
	libvirt.ErrResourceBusy:           sdk.ErrBusy,
	libvirt.ErrOperationTimeout:       sdk.ErrUnavailable,
	libvirt.ErrAgentUnresponsive:      sdk.ErrUnavailable,
	libvirt.ErrAgentUnsynced:          sdk.ErrUnavailable,
	libvirt.ErrCheckpointInconsistent: sdk.ErrMarkLost,
}

// failure is libvirt's error as the rest of Holdfast understands it; errors.As still finds libvirt's own.
type failure struct {
	meaning *sdk.Error
	cause   error
}

func (f *failure) Error() string   { return f.meaning.Error() }
func (f *failure) Unwrap() []error { return []error{f.meaning, f.cause} }

// explain gives an error of go-libvirt its meaning.
func explain(err error) error {
	var known *sdk.Error
	if err == nil || errors.As(err, &known) || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	var fault libvirt.Error
	if errors.As(err, &fault) {
		kind := kinds[libvirt.ErrorNumber(fault.Code)]
		return &failure{sdk.Errorf(kind, sdk.FaultBackend, "libvirt: %s", fault.Message), err}
	}
	if errors.Is(err, libvirt.ErrUnsupported) {
		return &failure{sdk.Errorf(sdk.ErrUnsupported, sdk.FaultBackend, "this libvirt is too old: %v", err), err}
	}
	var broken net.Error
	if errors.Is(err, libvirt.ErrInterrupted) || errors.Is(err, syscall.EINVAL) || errors.Is(err, net.ErrClosed) ||
		errors.Is(err, syscall.EPIPE) || errors.Is(err, io.EOF) || errors.As(err, &broken) {
		lost := sdk.Errorf(sdk.ErrUnavailable, sdk.FaultBackend, "the connection to libvirt broke: %v", err)
		lost.After = time.Second
		return &failure{lost, err}
	}
	return &failure{sdk.Errorf(nil, sdk.FaultBackend, "libvirt: %v", err), err}
}

// is reports whether err is a certain one of libvirt's.
func is(err error, code libvirt.ErrorNumber) bool {
	var fault libvirt.Error
	return errors.As(err, &fault) && libvirt.ErrorNumber(fault.Code) == code
}
