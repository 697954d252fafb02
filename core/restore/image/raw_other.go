//go:build !linux

package image

import (
	"errors"
	"os"
)

func writeBack(*os.File, int64, int64) {}

func punch(*os.File, int64, int64) error { return errors.ErrUnsupported }

func openDirect(*os.File) *os.File { return nil }
