package agent

import (
	"context"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/core/backup"
)

// knowing is a session that knows its line and its server.
type knowing struct {
	backup.Session
	connected *int
}

func (knowing) RoundTripTime() time.Duration { return 7 * time.Millisecond }
func (k knowing) Connect(_ context.Context, n int) error {
	*k.connected = n
	return nil
}
func (knowing) ServerTime() time.Duration { return 9 * time.Second }

func TestKeptSessionKnowsWhatItsSessionKnows(t *testing.T) {
	connected := 0
	var s backup.Session = &kept{Session: knowing{connected: &connected}}
	line, ok := s.(interface{ RoundTripTime() time.Duration })
	if !ok || line.RoundTripTime() != 7*time.Millisecond {
		t.Error("the round trip is not told, so a long line is not filled")
	}
	server, ok := s.(interface{ ServerTime() time.Duration })
	if !ok || server.ServerTime() != 9*time.Second {
		t.Error("the server's time is not told, so the network is blamed for it")
	}
	far, ok := s.(interface {
		Connect(context.Context, int) error
	})
	if !ok || far.Connect(t.Context(), 8) != nil || connected != 8 {
		t.Error("connections are not opened beforehand, so a long line is filled late")
	}
	if err := (&kept{}).Connect(t.Context(), 8); err != nil {
		t.Error(err)
	}
	if got := (&kept{}).RoundTripTime(); got != 0 {
		t.Errorf("round trip of a session that does not know it: %s", got)
	}
}
