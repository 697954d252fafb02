//go:build !linux

package plugin

import (
	"os"
	"syscall"
)

// Elsewhere the end of stdin alone ends a plugin with its host, the program is
// run by its path, and nothing confines it.

func noNewPrivileges() error { return nil }

func (c *confinement) attributes() (attributes *syscall.SysProcAttr, release func()) {
	return nil, func() {}
}

func (c *confinement) apply(int) { c.lacks("limits and a user", "they are applied on Linux only") }

func (c *confinement) end(int) {}

func (c *confinement) tidy() {}

func (c *confinement) give(string) error { return nil }

func execPath(path string, _ *os.File) string { return path }
