package gateway

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"sync/atomic"
	"testing"
	"time"
)

// wire is a connection that keeps what is written, until it breaks.
type wire struct {
	net.Conn
	written bytes.Buffer
	writes  int
	breaks  int // the write that fails; 0: none
}

var errBroken = errors.New("the wire broke")

func (w *wire) Write(b []byte) (int, error) {
	if w.writes++; w.writes == w.breaks {
		return 0, errBroken
	}
	return w.written.Write(b)
}

func TestRecordsGoOutTogether(t *testing.T) {
	w := new(wire)
	s := &socket{Conn: w, received: new(atomic.Int64), sent: new(atomic.Int64)}
	var want bytes.Buffer
	write := func(n int) {
		b := bytes.Repeat([]byte{byte(want.Len() >> 10)}, n)
		want.Write(b)
		if m, err := s.Write(b); m != n || err != nil {
			t.Fatalf("Write = %d, %v", m, err)
		}
	}
	write(100)
	callOff := s.gather()
	for range 80 {
		write(16<<10 + 22)
	}
	write(gatherBytes + 1)
	write(5)
	callOff()
	write(7)
	if !bytes.Equal(w.written.Bytes(), want.Bytes()) {
		t.Errorf("%d bytes went out, not the %d that were written, in their order", w.written.Len(), want.Len())
	}
	if w.writes > 15 {
		t.Errorf("84 writes went out as %d", w.writes)
	}
	if s.sent.Load() != int64(want.Len()) {
		t.Errorf("%d of %d bytes were counted", s.sent.Load(), want.Len())
	}
}

// What was gathered and lost is a gap in the stream: nothing may follow it.
func TestNothingFollowsWhatWasLost(t *testing.T) {
	for _, moment := range []string{"while gathering", "at the end"} {
		w := &wire{breaks: 1}
		s := &socket{Conn: w, received: new(atomic.Int64), sent: new(atomic.Int64)}
		callOff := s.gather()
		if _, err := s.Write(make([]byte, 10)); err != nil {
			t.Fatal(err)
		}
		if moment == "while gathering" {
			if _, err := s.Write(make([]byte, gatherBytes)); !errors.Is(err, errBroken) {
				t.Errorf("%s: Write = %v", moment, err)
			}
		}
		callOff()
		if _, err := s.Write([]byte("more")); !errors.Is(err, errBroken) || w.written.Len() > 0 {
			t.Errorf("%s: Write = %v after a lost one, and %d bytes went out", moment, err, w.written.Len())
		}
	}
}

// noticing is a log that calls itself at each line.
type noticing func()

func (noticing) Enabled(context.Context, slog.Level) bool    { return true }
func (n noticing) Handle(context.Context, slog.Record) error { n(); return nil }
func (n noticing) WithAttrs([]slog.Attr) slog.Handler        { return n }
func (n noticing) WithGroup(string) slog.Handler             { return n }

// A server that holds a batch without a word is given up long before the attempt
// is over, and asked again over another connection.
func TestQuietConnectionsAreGivenUp(t *testing.T) {
	e := newEnds(t)
	held, repeated := make(chan struct{}), 0
	e.store.held = held
	c := e.client(func(o *Options) {
		o.Log = slog.New(noticing(func() {
			if repeated++; repeated == 1 {
				close(held) // it answers from now on
			}
		}))
	})
	s := e.begin(c)
	batch, _ := pages(s.ID(), 4, 64)
	answers := 0
	err := c.do(t.Context(), exchange{method: "POST", path: s.path + "/records", body: batch, kind: "application/octet-stream", attempt: time.Hour,
		quiet: 500 * time.Millisecond, answer: func(*http.Response) error { answers++; return nil }})
	if err != nil || answers != 1 || repeated == 0 {
		t.Errorf("put: %v, answered %d times, repeated %d times", err, answers, repeated)
	}
}
