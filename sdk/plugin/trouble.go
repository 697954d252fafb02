package plugin

import (
	"errors"

	"github.com/holdfast-dr/holdfast/sdk"
)

// Trouble is what an error says about the plugin's program, beyond the call
// that failed.
type Trouble string

// The troubles, and none.
const (
	TroubleNone    Trouble = ""
	TroubleChanged Trouble = "changed" // the binary is not the one that is trusted
	TroubleBreach  Trouble = "breach"  // an answer broke the contract
	TroubleSilence Trouble = "silence" // a call was not answered in time
	TroubleDeath   Trouble = "death"   // the process ended by itself
)

// TroubleOf is the trouble that an error of a Process or of Start tells of.
func TroubleOf(err error) Trouble {
	if t, ok := errors.AsType[*troubledError](err); ok {
		return t.trouble
	}
	return TroubleNone
}

// troubledError is an sdk.Error that says more about the plugin than about the
// call.
type troubledError struct {
	trouble Trouble
	err     *sdk.Error
}

func troubled(t Trouble, err *sdk.Error) error { return &troubledError{trouble: t, err: err} }

func (e *troubledError) Error() string { return e.err.Error() }
func (e *troubledError) Unwrap() error { return e.err }
