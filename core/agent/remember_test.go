package agent

import (
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/core/backup"
)

// knowing is a session that knows its line and its server.
type knowing struct{ backup.Session }

func (knowing) RoundTripTime() time.Duration { return 7 * time.Millisecond }
func (knowing) ServerTime() time.Duration    { return 9 * time.Second }

func TestKeptSessionKnowsWhatItsSessionKnows(t *testing.T) {
	var s backup.Session = &kept{Session: knowing{}}
	line, ok := s.(interface{ RoundTripTime() time.Duration })
	if !ok || line.RoundTripTime() != 7*time.Millisecond {
		t.Error("the round trip is not told, so a long line is not filled")
	}
	server, ok := s.(interface{ ServerTime() time.Duration })
	if !ok || server.ServerTime() != 9*time.Second {
		t.Error("the server's time is not told, so the network is blamed for it")
	}
	if got := (&kept{}).RoundTripTime(); got != 0 {
		t.Errorf("round trip of a session that does not know it: %s", got)
	}
}
