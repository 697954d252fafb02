//go:build !linux

package protocol1

import (
	"os"
	"syscall"
)

// Elsewhere the end of stdin alone ends a plugin with its host, and the
// program is run by its path.

func processAttributes() *syscall.SysProcAttr { return nil }

func execPath(path string, _ *os.File) string { return path }

func endGroup(int) {}
