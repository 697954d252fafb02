package gateway

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/holdfast-dr/holdfast/core/chunk"
)

// from dials from one of this machine's own addresses.
func (e *ends) from(address string) net.Conn {
	e.t.Helper()
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(address)}}
	conn, err := d.DialContext(e.t.Context(), "tcp", e.address)
	if err != nil {
		e.t.Fatal(err)
	}
	e.t.Cleanup(func() { conn.Close() })
	return conn
}

// tls is a connection over which a test speaks HTTP by hand.
func (e *ends) tls(certificate bool) net.Conn {
	e.t.Helper()
	config := &tls.Config{InsecureSkipVerify: true}
	if certificate {
		own, err := e.own()
		if err != nil {
			e.t.Fatal(err)
		}
		config.Certificates = []tls.Certificate{*own}
	}
	conn, err := tls.Dial("tcp", e.address, config)
	if err != nil {
		e.t.Fatal(err)
	}
	e.t.Cleanup(func() { conn.Close() })
	return conn
}

// patient is far beyond every time-out that a test sets, also on a slow machine.
const patient = time.Minute

// ends waits for the end of a connection, and returns what came before it.
func ended(t *testing.T, conn net.Conn) (said string) {
	t.Helper()
	_ = conn.SetReadDeadline(time.Now().Add(patient))
	b, err := io.ReadAll(io.LimitReader(conn, 1<<20))
	if n, ok := errors.AsType[net.Error](err); ok && n.Timeout() {
		t.Fatalf("the server keeps the connection (after %q)", b)
	}
	return string(b)
}

// open says whether the server still holds a connection that it has said nothing
// on.
func isOpen(conn net.Conn) bool {
	_ = conn.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
	_, err := conn.Read(make([]byte, 1))
	return isTimeout(err)
}

func (e *ends) strangers() int { return e.server.door.count(func(l *line) bool { return !l.known }) }

// Who holds connections open without saying who they are runs out of them, by
// address and in all; agents do not notice.
func TestStrangersCompeteWithStrangers(t *testing.T) {
	var log lines
	e := newEnds(t, func(c *Config) {
		c.Limits = Limits{Strangers: 5, StrangersByAddress: 3}
		c.Log = slog.New(slog.NewTextHandler(&log, nil))
	})
	own := e.client(func(o *Options) { o.Patience = patient })
	s := e.begin(own)
	var held []net.Conn
	for range 3 {
		held = append(held, e.from("127.0.0.2"))
	}
	within(t, func() bool { return e.strangers() == 3 })
	for range 20 {
		if said := ended(t, e.from("127.0.0.2")); said != "" {
			t.Errorf("one connection too many is told %q", said)
		}
	}
	for i, conn := range held {
		if !isOpen(conn) {
			t.Errorf("connection %d was closed for another one of the same address", i)
		}
	}
	if n := strings.Count(log.String(), "too many"); n != 1 || !strings.Contains(log.String(), "address=127.0.0.2") {
		t.Errorf("20 refused connections are logged %d times:\n%s", n, log.String())
	}
	late := []net.Conn{e.from("127.0.0.3"), e.from("127.0.0.3"), e.from("127.0.0.4")}
	within(t, func() bool { return e.strangers() == 5 && !isOpen(held[0]) })
	for i, conn := range append(held[1:], late...) {
		if !isOpen(conn) {
			t.Errorf("connection %d of those that came later was closed", i)
		}
	}
	// The agent's connection is no stranger's, and a new one of its address gets in.
	fresh := e.client(func(o *Options) { o.Patience = patient })
	for _, c := range []*Client{own, fresh} {
		if _, err := c.Site(t.Context()); err != nil {
			t.Errorf("the agent: %v", err)
		}
	}
	batch, _ := pages(s.ID(), 4, 64<<10)
	if err := s.Put(t.Context(), batch); err != nil {
		t.Errorf("the agent: %v", err)
	}
	for _, conn := range append(held, late...) {
		conn.Close()
	}
	within(t, func() bool { return e.strangers() == 0 })
}

// A server that is full of known callers turns strangers away; one that is full
// of strangers never turns a known caller away.
func TestFullServer(t *testing.T) {
	e := newEnds(t, func(c *Config) { c.Limits = Limits{Connections: 4} })
	var held []net.Conn
	for i := range 4 {
		held = append(held, e.from(fmt.Sprintf("127.0.0.%d", 10+i)))
	}
	within(t, func() bool { return e.strangers() == 4 })
	own := e.client(func(o *Options) { o.Patience = patient })
	if _, err := own.Site(t.Context()); err != nil {
		t.Fatalf("the agent, on a server full of strangers: %v", err)
	}
	if isOpen(held[0]) {
		t.Error("nobody gave way to the agent")
	}
}

func TestATenantCompetesWithItself(t *testing.T) {
	var log lines
	e := newEnds(t, func(c *Config) {
		c.Limits = Limits{ByTenant: 3}
		c.Log = slog.New(slog.NewTextHandler(&log, nil))
	})
	var held []net.Conn
	for range 3 {
		conn := e.tls(true)
		fmt.Fprintf(conn, "GET /v1/agent/site HTTP/1.1\r\nHost: x\r\n%s: 1\r\n\r\n", HeaderVersion)
		if r, err := http.ReadResponse(bufio.NewReader(conn), nil); err != nil || r.StatusCode != http.StatusOK {
			t.Fatalf("%v, %v", r, err)
		}
		held = append(held, conn)
	}
	for range 10 {
		conn := e.tls(true)
		fmt.Fprintf(conn, "GET /v1/agent/site HTTP/1.1\r\nHost: x\r\n%s: 1\r\n\r\n", HeaderVersion)
		said := ended(t, conn)
		if !strings.HasPrefix(said, "HTTP/1.1 429") || !strings.Contains(said, "Connection: close") || !strings.Contains(said, "Retry-After") {
			t.Fatalf("a connection too many is told %q", said)
		}
	}
	if n := strings.Count(log.String(), "too many connections"); n != 1 || !strings.Contains(log.String(), "tenant=t1") || !strings.Contains(log.String(), "request=") {
		t.Errorf("ten refusals are logged %d times:\n%s", n, log.String())
	}
	patience := e.client(func(o *Options) { o.Patience = patient })
	done := make(chan error, 1)
	go func() {
		_, err := patience.Site(t.Context())
		done <- err
	}()
	held[0].Close() // and the next one gets its turn
	if err := <-done; err != nil {
		t.Errorf("a patient client: %v", err)
	}
}

// A body that stops coming ends its request and its connection, wherever it was
// sent, and whether or not somebody wants it.
func TestSlowBodiesEnd(t *testing.T) {
	e := newEnds(t, func(c *Config) { c.timing = timing{piece: 300 * time.Millisecond} })
	s := e.begin(e.client())
	for name, c := range map[string]struct {
		path        string
		certificate bool
	}{
		"enrolment of a stranger": {"/v1/enrol", false},
		"no such operation":       {"/v1/nothing", false},
		"no such route":           {"/v1/agent/nothing", true},
		"without a certificate":   {s.path + "/records", false},
		"records":                 {s.path + "/records", true},
		"ids":                     {s.path + "/have?kind=data", true},
		"manifest":                {s.path + "/commit", true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			conn := e.tls(c.certificate)
			fmt.Fprintf(conn, "POST %s HTTP/1.1\r\nHost: x\r\n%s: 1\r\nContent-Length: 100000\r\n\r\nonly so much", c.path, HeaderVersion)
			ended(t, conn)
		})
	}
}

// Bytes that come one by one, each in time, end a request, too: there is a lowest
// rate for the whole.
func TestABodyHasALowestRate(t *testing.T) {
	now := time.Now()
	p := &pacedReader{control: http.NewResponseController(&answerWriter{header: http.Header{}}), r: strings.NewReader(strings.Repeat("x", 100)),
		piece: pieceTimeout, start: now.Add(-pieceTimeout - time.Second)}
	if _, err := p.Read(make([]byte, 1)); err == nil {
		t.Error("a byte after more than the time for a first piece is taken")
	}
}

func TestOversizedHeadersAreRefused(t *testing.T) {
	e := newEnds(t)
	for name, header := range map[string]string{
		"one long header": "X: " + strings.Repeat("x", 2*maxHeader) + "\r\n",
		"many headers":    strings.Repeat("X: y\r\n", maxHeader),
		"a long line":     "",
	} {
		conn := e.tls(false)
		path := "/"
		if header == "" {
			path += strings.Repeat("x", 2*maxHeader)
		}
		_, _ = fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: x\r\n%s\r\n", path, header) // it may be cut off before its end
		if said := ended(t, conn); said != "" && !strings.HasPrefix(said, "HTTP/1.1 431") && !strings.HasPrefix(said, "HTTP/1.1 414") {
			t.Errorf("%s: %.80q", name, said)
		}
	}
}

// A million ids, or sixteen, or as many as a body may have, are refused before
// they are read; JSON of any depth and width is refused or understood.
func TestHugeAndStrangeBodiesAreRefused(t *testing.T) {
	e := newEnds(t)
	c := e.client()
	s := e.begin(c)
	conn := e.tls(true)
	fmt.Fprintf(conn, "POST %s/have?kind=data HTTP/1.1\r\nHost: x\r\n%s: 1\r\nContent-Length: %d\r\n\r\n", s.path, HeaderVersion, 32*1000*1000)
	if r, err := http.ReadResponse(bufio.NewReader(conn), nil); err != nil || r.StatusCode != http.StatusRequestEntityTooLarge {
		t.Errorf("a million ids: %v, %v; want 413 before the first of them", r, err)
	}
	events := "/v1/agent/runs/" + uuid.NewString() + "/events"
	for name, b := range map[string]struct {
		path, body string
		code       Code
	}{
		"deep":             {s.repository.path + "/sessions", strings.Repeat(`{"machine":`, 90000), CodeInvalid},
		"deep list":        {s.repository.path + "/sessions", strings.Repeat("[", maxJSON), CodeInvalid},
		"wide":             {events, "{" + strings.Repeat(`"a":1,`, 100000) + `"kind":"backup"}`, CodeInvalid},
		"a number":         {events, `{"sequence":1e400,"kind":"backup"}`, CodeInvalid},
		"no UTF-8":         {events, "{\"sequence\":0,\"kind\":\"\xff\xfe\"}", CodeInvalid},
		"enrolment":        {"/v1/enrol", `{"token":"` + strings.Repeat("x", maxEnrol) + `"}`, CodeTooLarge},
		"more than JSON":   {events, `{"sequence":1,"kind":"backup"}` + strings.Repeat(" ", maxJSON), CodeTooLarge},
		"two at once":      {events, `{"sequence":1,"kind":"backup"}{}`, CodeInvalid},
		"a path, escaped":  {"/v1/agent/repositories/..%2f..%2fetc/sessions", `{}`, CodeInvalid},
		"somebody else's":  {"/v1/agent/repositories/" + uuid.NewString() + "/sessions", `{"machine":"` + uuid.NewString() + `"}`, CodeNotFound},
		"a session's path": {s.repository.path + "/sessions/%00%00/have?kind=data", strings.Repeat("x", 32), CodeSessionClosed},
	} {
		err := c.do(t.Context(), exchange{method: "POST", path: b.path, body: []byte(b.body), attempt: patient, answer: func(*http.Response) error { return nil }})
		got := ProblemOf(err).Code
		if errors.Is(err, ErrSessionClosed) {
			got = CodeSessionClosed
		}
		if got != b.code {
			t.Errorf("%s: %v (%s), want %s", name, err, got, b.code)
		}
	}
}

// A tenant that holds room with bodies that come slowly is told to come back,
// and holds no more; others have room.
func TestRoomIsSharedOut(t *testing.T) {
	r := newRooms()
	var leave []func()
	held := int64(0)
	for {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
		l, err := r.take(ctx, "greedy", 2<<20)
		cancel()
		if err != nil {
			if p := ProblemOf(err); p.Code != CodeBusy || !p.Temporary() {
				t.Errorf("one too many: %v", err)
			}
			break
		}
		leave, held = append(leave, l), held+2<<20
	}
	if held != tenantRoom {
		t.Errorf("one tenant holds %d bytes, want %d", held, tenantRoom)
	}
	other, err := r.take(t.Context(), "other", 16<<20)
	if err != nil {
		t.Fatalf("another tenant: %v", err)
	}
	other()
	for _, l := range leave {
		l()
	}
	if len(r.byTenant) != 0 {
		t.Errorf("%d tenants are remembered", len(r.byTenant))
	}
	for _, route := range routes {
		if n := route.room(-1); n <= 0 || n > tenantRoom/2 {
			t.Errorf("%s %s takes %d bytes", route.method, route.path, n)
		}
	}
}

// lines is a log that may be read while it is written.
type lines struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// A caller that is refused the same thing a thousand times is one line, with the
// tenant and the request, and one more each minute that says how often.
func TestRefusalsAreLoggedOnceAndCounted(t *testing.T) {
	var log lines
	var shift atomic.Int64
	e := newEnds(t, func(c *Config) {
		c.Log = slog.New(slog.NewJSONHandler(&log, nil))
		c.Now = func() time.Time { return time.Now().Add(time.Duration(shift.Load())) }
	})
	c := e.client()
	ask := func() {
		t.Helper()
		if _, err := c.Repository(uuid.NewString()).Wraps(t.Context()); ProblemOf(err).Code != CodeNotFound {
			t.Fatalf("another's repository: %v", err)
		}
	}
	refused := func() (all []map[string]any) {
		for line := range strings.Lines(log.String()) {
			var m map[string]any
			if err := json.Unmarshal([]byte(line), &m); err != nil {
				t.Fatal(err)
			}
			if m["msg"] == "request refused" {
				all = append(all, m)
			}
		}
		return all
	}
	for range 100 {
		ask()
	}
	all := refused()
	if len(all) != 1 || all[0]["tenant"] != "t1" || all[0]["agent"] != "a1" || uuid.Validate(fmt.Sprint(all[0]["request"])) != nil || all[0]["code"] != "not-found" {
		t.Fatalf("100 refusals are logged as %v", all)
	}
	shift.Store(int64(2 * sameRefusal))
	ask()
	if all = refused(); len(all) != 2 || all[1]["repeated"] != float64(99) {
		t.Errorf("a minute later: %v", all)
	}
	// Who invents new kinds of refusal gains nothing.
	for i := range 3 * maxRefusals {
		e.server.refusals.Note(t.Context(), slog.LevelInfo, fmt.Sprint("kind ", i), "x")
	}
	if n := len(e.server.refusals.known); n > maxRefusals+1 {
		t.Errorf("%d kinds are remembered", n)
	}
	if n := strings.Count(log.String(), "\n"); n > maxRefusals+10 {
		t.Errorf("%d lines", n)
	}
}

// A server that takes long says so, and is waited for.
func TestLongWorkIsNoSilence(t *testing.T) {
	e := newEnds(t, func(c *Config) { c.timing = timing{beat: 20 * time.Millisecond} })
	c := e.client(func(o *Options) { o.silence, o.Patience = 500*time.Millisecond, time.Nanosecond })
	s := e.begin(c)
	e.store.held = make(chan struct{})
	batch, _ := pages(s.ID(), 2, 64<<10)
	put := make(chan error, 1)
	go func() { put <- s.Put(t.Context(), batch) }()
	select {
	case err := <-put:
		t.Fatalf("a server that works is given up: %v", err)
	case <-time.After(4 * 500 * time.Millisecond): // how long it works
	}
	close(e.store.held)
	if err := <-put; err != nil {
		t.Errorf("after the server's work: %v", err)
	}
	if c.ServerTime() < time.Second {
		t.Errorf("the server says that it took %s", c.ServerTime())
	}
}

// A connection on which nothing moves any more, in whatever direction and
// whatever the request was doing, is given up after the silence, and the request
// goes on over another one.
func TestSilenceIsNoticed(t *testing.T) {
	for _, when := range []struct {
		name string
		do   func(s *RemoteSession, batch []byte, ids []chunk.ID) error
	}{
		{"sending", func(s *RemoteSession, batch []byte, _ []chunk.ID) error { return s.Put(t.Context(), batch) }},
		{"asking", func(s *RemoteSession, _ []byte, ids []chunk.ID) error {
			_, err := s.Have(t.Context(), chunk.KindPage, ids)
			return err
		}},
		{"reading", func(s *RemoteSession, _ []byte, ids []chunk.ID) error {
			return s.repository.Read(t.Context(), chunk.KindPage, ids, func(chunk.Record) error { return nil })
		}},
	} {
		t.Run(when.name, func(t *testing.T) {
			e := newEnds(t, func(c *Config) { c.timing = timing{beat: 20 * time.Millisecond} })
			var dialled atomic.Int64
			var stalled atomic.Pointer[stallConn]
			c := e.client(func(o *Options) {
				o.silence, o.Patience = time.Second, patient
				o.Dial = func(ctx context.Context, network, address string) (net.Conn, error) {
					conn, err := (&net.Dialer{}).DialContext(ctx, network, address)
					if err != nil {
						return nil, err
					}
					dialled.Add(1)
					s := &stallConn{Conn: conn, closed: make(chan struct{})}
					s.left.Store(1 << 40)
					stalled.CompareAndSwap(nil, s)
					return s, nil
				}
			})
			s := e.begin(c)
			batch, ids := pages(s.ID(), 40, 64<<10)
			if err := s.Put(t.Context(), batch); err != nil {
				t.Fatal(err)
			}
			stalled.Load().left.Store(1000) // in the middle of what comes next
			if err := when.do(s, batch, ids); err != nil {
				t.Fatal(err)
			}
			if dialled.Load() < 2 {
				t.Error("it went on over the connection that is dead")
			}
		})
	}
}

// stallConn passes so many more bytes and then none, in both directions, without
// an error.
type stallConn struct {
	net.Conn
	left   atomic.Int64
	once   sync.Once
	closed chan struct{}
}

func (c *stallConn) Close() error {
	c.once.Do(func() { close(c.closed) })
	return c.Conn.Close()
}

func (c *stallConn) pass(n int) error {
	if c.left.Add(-int64(n)) >= 0 {
		return nil
	}
	<-c.closed
	return net.ErrClosed
}

func (c *stallConn) Write(b []byte) (int, error) {
	if err := c.pass(len(b)); err != nil {
		return 0, err
	}
	return c.Conn.Write(b)
}

func (c *stallConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if stall := c.pass(n); stall != nil {
		return 0, stall
	}
	return n, err
}

// Whoever takes records may take longer than the silence allows.
func TestSlowReaderIsNoSilence(t *testing.T) {
	e := newEnds(t, func(c *Config) { c.timing = timing{beat: 20 * time.Millisecond} })
	var dialled atomic.Int64
	c := e.client(func(o *Options) {
		o.silence, o.Connections = 300*time.Millisecond, 1
		o.Dial = func(ctx context.Context, network, address string) (net.Conn, error) {
			dialled.Add(1)
			return (&net.Dialer{}).DialContext(ctx, network, address)
		}
	})
	s := e.begin(c)
	batch, ids := pages(s.ID(), 3, 512<<10)
	if err := s.Put(t.Context(), batch); err != nil {
		t.Fatal(err)
	}
	got := 0
	err := s.repository.Read(t.Context(), chunk.KindPage, ids, func(chunk.Record) error {
		got++
		<-time.After(time.Second) // a slow disk
		return nil
	})
	if err != nil || got != 3 || dialled.Load() != 1 {
		t.Errorf("%d records over %d connections, %v", got, dialled.Load(), err)
	}
}

// within waits for what happens soon.
func within(t *testing.T, done func() bool) {
	t.Helper()
	deadline := time.After(patient)
	for tick := time.NewTicker(5 * time.Millisecond); !done(); {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatal("it does not happen")
		}
	}
}
