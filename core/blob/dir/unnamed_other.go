//go:build !linux

package dir

import (
	"errors"
	"os"
)

// openUnnamed is Linux's.
func openUnnamed(*os.Root) (*os.File, error) { return nil, errors.ErrUnsupported }

func linkUnnamed(*os.Root, *os.File, string) error { return errors.ErrUnsupported }
