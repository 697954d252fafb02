//go:build !(linux && amd64)

package clock

import (
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/testenv"
)

// Clock is the wall clock of the programs that were started with its prefix.
type Clock struct{}

// New says that clocks cannot be moved here.
func New(t testing.TB) *Clock {
	t.Helper()
	testenv.Lack(t, "clocks are moved on Linux on amd64 only")
	return nil
}

// Prefix goes before the command of a program.
func (*Clock) Prefix() []string { return nil }

// Move moves the clock.
func (*Clock) Move(time.Duration) {}

// Now is what the programs see.
func (*Clock) Now() time.Time { return time.Now() }
