package wan

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/testenv"
)

// Mbit is a rate of a million bits per second.
const Mbit = 1_000_000

// Quality is what one direction of a line is like. The zero value is a perfect
// line.
type Quality struct {
	Delay  time.Duration // of each packet; the round trip has it twice
	Jitter time.Duration // added to the delay, evenly from 0 to this; packets keep their order
	Rate   int64         // bits per second, headers included; 0: no limit
	// Queue is how many bytes wait before the narrowest place at most; beyond it
	// packets are dropped. 0: what passes in 100 ms, at least 64 KiB.
	Queue int64
	Loss  float64 // share of packets that are lost
	// Reorder is the share of packets that are held back by Behind and so are
	// overtaken. Behind is 5 ms if it is 0.
	Reorder float64
	Behind  time.Duration
}

const (
	defaultQueueTime = 100 * time.Millisecond
	leastQueue       = 64 << 10
	defaultBehind    = 5 * time.Millisecond
)

func (q Quality) check() error {
	switch {
	case q.Delay < 0 || q.Jitter < 0 || q.Behind < 0 || q.Rate < 0 || q.Queue < 0:
		return errors.New("line: times, rates and queues are not negative")
	case q.Loss < 0 || q.Loss > 1 || q.Reorder < 0 || q.Reorder > 1:
		return errors.New("line: a share lies between 0 and 1")
	}
	return nil
}

func (q Quality) withDefaults() Quality {
	if q.Queue == 0 {
		q.Queue = max(leastQueue, int64(float64(q.Rate)/8*defaultQueueTime.Seconds()))
	}
	if q.Behind == 0 {
		q.Behind = defaultBehind
	}
	return q
}

// Options say what a line is like at first. The zero value is a perfect line.
type Options struct {
	Up, Down Quality // from the tenant to the provider, and back
	Seed     uint64  // of losses, jitter and reordering; the two directions draw apart
	MTU      int     // of both ends; 0: 1500
}

// Line joins a tenant and a provider. Its methods may be called by several
// goroutines, while packets travel.
type Line struct {
	Tenant, Provider *End
	Up, Down         *Way
}

// New makes a line whose directions are alike, for a test. It ends with the
// test, after everything that the test cleans up later than this call.
func New(t testing.TB, q Quality) *Line {
	t.Helper()
	return NewWith(t, Options{Up: q, Down: q, Seed: 1})
}

// NewWith is New for a line that is not the same in both directions.
func NewWith(t testing.TB, o Options) *Line {
	t.Helper()
	Need(t)
	l, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
		if t.Failed() {
			t.Logf("the line (seed %d): up %v; down %v", o.Seed, l.Up.Stats(), l.Down.Stats())
		}
	})
	return l
}

// Need lets a test go on only where lines can be laid.
func Need(t testing.TB) {
	t.Helper()
	testenv.NeedRoot(t)
	testenv.Need(t, "ip", "nsenter")
	if err := Possible(); err != nil {
		testenv.Lack(t, "%v", err)
	}
}

// Open lays a line. It has to be closed.
func Open(o Options) (*Line, error) {
	if err := errors.Join(o.Up.check(), o.Down.check()); err != nil {
		return nil, err
	}
	if err := allowCongestion(); err != nil {
		return nil, err
	}
	if o.MTU == 0 {
		o.MTU = 1500
	}
	tenant, err := newEnd("tenant", addresses{own: "192.0.2.1", other: "192.0.2.2", own6: "2001:db8::1", other6: "2001:db8::2"}, o.MTU)
	if err != nil {
		return nil, fmt.Errorf("lay a line: %w", err)
	}
	provider, err := newEnd("provider", addresses{own: "192.0.2.2", other: "192.0.2.1", own6: "2001:db8::2", other6: "2001:db8::1"}, o.MTU)
	if err != nil {
		return nil, fmt.Errorf("lay a line: %w", errors.Join(err, tenant.close()))
	}
	l := &Line{Tenant: tenant, Provider: provider,
		Up:   newWay(tenant, provider, o.Up, o.Seed, 1),
		Down: newWay(provider, tenant, o.Down, o.Seed, 2)}
	l.Up.start()
	l.Down.start()
	return l, nil
}

// Close takes the line away. Sockets and processes at its ends live on alone.
func (l *Line) Close() error {
	l.Up.stop()
	l.Down.stop()
	err := errors.Join(l.Tenant.close(), l.Provider.close())
	l.Up.wait()
	l.Down.wait()
	return err
}

// Set changes both directions, for packets that are sent from now on.
func (l *Line) Set(q Quality) error {
	return errors.Join(l.Up.Set(q), l.Down.Set(q))
}

// Cut loses everything that is on the line, and all that is sent until Heal. No
// end is told.
func (l *Line) Cut() {
	l.Up.Cut()
	l.Down.Cut()
}

// Stall keeps what is on the line, and takes more, until Heal.
func (l *Line) Stall() {
	l.Up.Stall()
	l.Down.Stall()
}

// Heal ends a cut or a stall of either direction.
func (l *Line) Heal() {
	l.Up.Heal()
	l.Down.Heal()
}
