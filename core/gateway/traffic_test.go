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

	"github.com/holdfast-dr/holdfast/core/chunk"
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

// counting is a connection that counts how often it is written to.
type counting struct {
	net.Conn
	writes *atomic.Int64
}

func (c counting) Write(b []byte) (int, error) {
	c.writes.Add(1)
	return c.Conn.Write(b)
}

// A batch goes out in a few writes, and what follows on the connection is not
// held back.
func TestClientGathersWhatItSends(t *testing.T) {
	e := newEnds(t)
	var writes atomic.Int64
	c := e.client(func(o *Options) {
		o.Connections = 1
		o.Dial = func(ctx context.Context, network, address string) (net.Conn, error) {
			var d net.Dialer
			conn, err := d.DialContext(ctx, network, address)
			return counting{conn, &writes}, err
		}
	})
	session := e.begin(c)
	batch, ids := pages(session.ID(), 200, 20<<10)
	for range 2 {
		before := writes.Load()
		if err := session.Put(t.Context(), batch); err != nil {
			t.Fatal(err)
		}
		if n, records := writes.Load()-before, int64(len(batch)/recordBytes); n > records/4 {
			t.Errorf("a batch of %d records went out in %d writes", records, n)
		}
	}
	if have, err := session.Have(t.Context(), chunk.KindPage, ids[:1]); err != nil || !have[0] {
		t.Errorf("what was sent is there: %v, %v", have, err)
	}
}
