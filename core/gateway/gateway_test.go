package gateway

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"

	"github.com/holdfast-dr/holdfast/core/access"
	"github.com/holdfast-dr/holdfast/core/chunk"
	"github.com/holdfast-dr/holdfast/core/claim"
	"github.com/holdfast-dr/holdfast/core/lease"
	"github.com/holdfast-dr/holdfast/core/pki"
	"github.com/holdfast-dr/holdfast/core/point"
	"github.com/holdfast-dr/holdfast/core/quota"
	"github.com/holdfast-dr/holdfast/core/tenant"
)

func TestBatchesArriveWholeInSmallPieces(t *testing.T) {
	e := newEnds(t)
	c := e.client()
	s := e.begin(c)
	if len(s.Info().Damaged) != 2 || s.Info().Epoch != 7 {
		t.Errorf("session = %+v", s.Info())
	}
	batch, ids := pages(s.ID(), 60, 256<<10)
	if len(batch) < 15<<20 {
		t.Fatalf("the batch has %d bytes", len(batch))
	}
	if err := s.Put(t.Context(), batch); err != nil {
		t.Fatal(err)
	}
	for _, n := range e.store.puts {
		if n > bufferSize {
			t.Errorf("a piece of %d bytes, want at most %d", n, bufferSize)
		}
	}
	have, err := s.Have(t.Context(), chunk.KindPage, append(ids, chunk.ID{9}))
	if err != nil || !have[0] || !have[59] || have[60] {
		t.Errorf("have = %v, %v", have, err)
	}
	got, err := read(t, c.Repository(e.store.id), ids)
	if err != nil || !sameIDs(got, ids) {
		t.Errorf("read %d records, %v", len(got), err)
	}
	if c.ServerTime() <= 0 {
		t.Error("the server did not say how long it took")
	}
}

func TestRoundTripIsKnownOnceConnected(t *testing.T) {
	e := newEnds(t)
	const line = 30 * time.Millisecond
	c := e.client(func(o *Options) {
		o.Dial = func(ctx context.Context, network, address string) (net.Conn, error) {
			select {
			case <-time.After(line): // as long as the packets of a handshake take
			case <-ctx.Done():
				return nil, ctx.Err()
			}
			return new(net.Dialer).DialContext(ctx, network, address)
		}
	})
	if got := c.RoundTripTime(); got != 0 {
		t.Errorf("round trip before any connection: %s", got)
	}
	if got := e.begin(c).RoundTripTime(); got < line {
		t.Errorf("round trip of a line of %s: %s", line, got)
	}
}

func TestConnectionsAreOpenedBeforehand(t *testing.T) {
	e := newEnds(t)
	var opened, arrived atomic.Int64
	c := e.client(func(o *Options) {
		o.Dial = func(ctx context.Context, network, address string) (net.Conn, error) {
			opened.Add(1)
			conn, err := new(net.Dialer).DialContext(ctx, network, address)
			for arrived.Add(1); arrived.Load() < DefaultConnections && ctx.Err() == nil; {
				runtime.Gosched() // none is there before all were asked for
			}
			return conn, err
		}
	})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := c.Connect(ctx, DefaultConnections+5); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Site(t.Context()); err != nil || opened.Load() != DefaultConnections {
		t.Errorf("%d connections, %v", opened.Load(), err)
	}
}

func TestReservationsAreFewAndExactAtTheEnd(t *testing.T) {
	e := newEnds(t)
	s := e.begin(e.client())
	batch, _ := pages(s.ID(), 40, 256<<10)
	if err := s.Put(t.Context(), batch); err != nil {
		t.Fatal(err)
	}
	if e.store.reserves != 1 || e.store.reserved < int64(len(batch)) {
		t.Errorf("%d reservations of %d bytes for %d", e.store.reserves, e.store.reserved, len(batch))
	}
	for range 5 { // what was reserved for records that were there already serves the next
		if err := s.Put(t.Context(), batch); err != nil {
			t.Fatal(err)
		}
	}
	if e.store.reserves > 2 {
		t.Errorf("%d reservations for what was sent again", e.store.reserves)
	}
	s = e.begin(e.client())
	batch, _ = pages(s.ID(), 40, 260<<10)
	if err := s.Put(t.Context(), batch); err != nil {
		t.Fatal(err)
	}
	e.store.limit = e.store.reserved + 1<<20 // less than a stride is left, but some is
	more, _ := pages(s.ID(), 42, 150<<10)
	if err := s.Put(t.Context(), more); err != nil {
		t.Errorf("what still fits: %v", err)
	}
	reserved := e.store.reserved
	// What is sent again, because its answer was lost, needs no room.
	for range 3 {
		if err := s.Put(t.Context(), batch); err != nil || e.store.reserved > reserved+1<<20 {
			t.Errorf("sent again: %v, %d bytes reserved, %d before", err, e.store.reserved, reserved)
		}
	}
	third, _ := pages(s.ID(), 8, 512<<10)
	err := s.Put(t.Context(), third)
	if full, ok := errors.AsType[*quota.FullError](err); !ok || full.LimitBytes != e.store.limit {
		t.Errorf("what does not fit: %v, want FullError", err)
	}
}

func TestUnknownVersionIsRefusedOnEveryRoute(t *testing.T) {
	e := newEnds(t)
	c := e.client(func(o *Options) { o.protocol = "99" })
	for _, r := range routes {
		path := strings.NewReplacer("{repository}", e.store.id, "{session}", strings.Repeat("0", 32)).Replace(r.path)
		err := c.do(t.Context(), exchange{method: r.method, path: path, attempt: time.Minute, answer: func(*http.Response) error { return nil }})
		if v, ok := errors.AsType[*VersionError](err); !ok || v.Asked != "99" || len(v.Speaks) == 0 || HintOf(err) == "" {
			t.Errorf("%s %s: %v, want VersionError", r.method, r.path, err)
		}
	}
}

// Every route but enrolment needs a certificate; what belongs to data needs an
// admitted tenant; an expired certificate opens renewal alone.
func TestEveryRouteKnowsItsCallers(t *testing.T) {
	e := newEnds(t)
	try := func(c *Client, r route) Code {
		path := strings.NewReplacer("{repository}", e.store.id, "{session}", strings.Repeat("0", 32), "{run}", uuid.NewString(),
			"{point}", uuid.NewString(), "{wrap}", "w").Replace(r.path)
		err := c.do(t.Context(), exchange{method: r.method, path: path, attempt: time.Minute, answer: func(*http.Response) error { return nil }})
		return ProblemOf(errors.Join(err, nil)).Code
	}
	stranger, own := e.client(func(o *Options) { o.Certificate = nil }), e.client()
	for _, r := range routes {
		if got := try(stranger, r); (got == CodeCertificate) != (r.need > anyone) {
			t.Errorf("%s %s without a certificate: %s", r.method, r.path, got)
		}
	}
	e.store.tenant.Enabled = false
	for _, r := range routes {
		if got := try(own, r); (got == CodeDisabled) != (r.need == admitted) {
			t.Errorf("%s %s of a disabled tenant: %s", r.method, r.path, got)
		}
	}
	verify := e.server.config.Verify
	e.server.config.Verify = func(state tls.ConnectionState, now time.Time) (pki.Identity, error) {
		who, err := verify(state, now)
		who.RenewOnly = true
		return who, err
	}
	for _, r := range routes {
		if got := try(own, r); (got == CodeExpired) != (r.need > renewing) {
			t.Errorf("%s %s with an expired certificate: %s", r.method, r.path, got)
		}
	}
}

func TestReadThatBreaksOffSaysWhy(t *testing.T) {
	e := newEnds(t)
	c := e.client()
	s := e.begin(c)
	batch, ids := pages(s.ID(), 5, 64<<10)
	if err := s.Put(t.Context(), batch); err != nil {
		t.Fatal(err)
	}
	e.store.broken[ids[3]] = fmt.Errorf("record %s: %w", ids[3], chunk.ErrDamaged)
	got, err := read(t, c.Repository(e.store.id), ids)
	if !errors.Is(err, chunk.ErrDamaged) || !strings.Contains(err.Error(), ids[3].String()) || len(got) != 3 {
		t.Errorf("read %d records, %v; want 3, and the damaged one named", len(got), err)
	}
	delete(e.store.broken, ids[3])
	e.store.broken[ids[3]] = claim.ErrFenced // the claim was lost; the next server answers
	time.AfterFunc(200*time.Millisecond, func() {
		e.store.mu.Lock()
		defer e.store.mu.Unlock()
		delete(e.store.broken, ids[3])
	})
	if got, err = read(t, c.Repository(e.store.id), ids); err != nil || !sameIDs(got, ids) {
		t.Errorf("read across a lost claim: %d records, %v", len(got), err)
	}
}

// A connection that is cut at any moment costs a repetition.
func TestCutConnectionsCostNothing(t *testing.T) {
	e := newEnds(t)
	var cuts atomic.Int64
	c := e.client(func(o *Options) {
		o.Dial = func(ctx context.Context, network, address string) (net.Conn, error) {
			conn, err := (&net.Dialer{}).DialContext(ctx, network, address)
			if err != nil {
				return nil, err
			}
			if n := cuts.Add(1); n <= 6 {
				return &cutConn{Conn: conn, left: 40000 * n}, nil
			}
			return conn, nil
		}
	})
	s := e.begin(c)
	batch, ids := pages(s.ID(), 20, 64<<10)
	if err := s.Put(t.Context(), batch); err != nil {
		t.Fatal(err)
	}
	if cuts.Load() < 3 {
		t.Fatalf("only %d connections; nothing was cut", cuts.Load())
	}
	got, err := read(t, c.Repository(e.store.id), ids)
	if err != nil || !sameIDs(got, ids) {
		t.Errorf("read %d records, %v", len(got), err)
	}
}

// cutConn breaks after so many bytes.
type cutConn struct {
	net.Conn
	left int64
}

func (c *cutConn) Write(b []byte) (int, error) {
	if atomic.AddInt64(&c.left, -int64(len(b))) < 0 {
		c.Conn.Close()
		return 0, net.ErrClosed
	}
	return c.Conn.Write(b)
}

func (c *cutConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if atomic.AddInt64(&c.left, -int64(n)) < 0 {
		c.Conn.Close()
		return 0, net.ErrClosed
	}
	return n, err
}

func TestOversizedRequestsAreRefused(t *testing.T) {
	e := newEnds(t)
	c := e.client()
	s := e.begin(c)
	send := func(path string, size int) Code {
		err := c.do(t.Context(), exchange{method: "POST", path: path, body: make([]byte, size), attempt: time.Minute, answer: func(*http.Response) error { return nil }})
		return ProblemOf(err).Code
	}
	for path, size := range map[string]int{
		s.path + "/records":                   MaxBatch + 1,
		s.path + "/have?kind=data":            (MaxIDs + 1) * idSize,
		s.repository.path + "/sessions":       maxJSON + 1,
		s.repository.path + "/read?kind=data": (MaxIDs + 1) * idSize,
	} {
		if got := send(path, size); got != CodeTooLarge {
			t.Errorf("%s with %d bytes: %s, want %s", path, size, got, CodeTooLarge)
		}
	}
	if got := send(s.path+"/have?kind=data", 33); got != CodeInvalid {
		t.Errorf("a part of an id: %s", got)
	}
	if got := send(s.path+"/records", 100); got != CodeDamaged {
		t.Errorf("bytes that are no record: %s", got)
	}
	batch, _ := pages(s.ID(), 2, 64)
	err := s.Put(t.Context(), batch[:len(batch)-1])
	if !errors.Is(err, chunk.ErrDamaged) {
		t.Errorf("a batch that ends inside a record: %v, want ErrDamaged", err)
	}
}

func TestDisconnectEndsWhatIsOnItsWay(t *testing.T) {
	e := newEnds(t)
	e.store.held = make(chan struct{})
	c := e.client(func(o *Options) { o.Patience = time.Nanosecond })
	s := e.begin(c)
	batch, _ := pages(s.ID(), 1, 64)
	put := make(chan error, 1)
	go func() { put <- s.Put(t.Context(), batch) }()
	deadline := time.Now().Add(10 * time.Second)
	for e.server.DisconnectTenant("another") != 0 || e.server.DisconnectTenant("t1") == 0 {
		if time.Now().After(deadline) {
			t.Fatal("there is no connection to close")
		}
	}
	close(e.store.held)
	// Nil if it had not been on its way yet, and went over a new connection.
	if err := <-put; err != nil && ProblemOf(err).Code != CodeInternal {
		t.Errorf("over a closed connection: %v", err)
	}
}

func TestStalledHandshakesAndHeadersEnd(t *testing.T) {
	if testing.Short() {
		t.Skip("waits for time-outs")
	}
	e := newEnds(t)
	silent, err := net.Dial("tcp", e.address)
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	slow, err := tls.Dial("tcp", e.address, &tls.Config{InsecureSkipVerify: true})
	if err != nil {
		t.Fatal(err)
	}
	defer slow.Close()
	if _, err := io.WriteString(slow, "GET /v1/agent/site HTTP/1.1\r\nHost: x\r\n"); err != nil {
		t.Fatal(err)
	}
	for name, conn := range map[string]net.Conn{"no handshake": silent, "no end of the header": slow} {
		_ = conn.SetReadDeadline(time.Now().Add(headerTimeout + 10*time.Second))
		answer, err := bufio.NewReader(conn).ReadString('\n')
		if err == nil && !strings.Contains(answer, "408") || errors.Is(err, context.DeadlineExceeded) || isTimeout(err) {
			t.Errorf("%s: the server is still waiting (%q, %v)", name, answer, err)
		}
	}
}

func isTimeout(err error) bool {
	n, ok := errors.AsType[net.Error](err)
	return ok && n.Timeout()
}

func TestProblemsMeanTheSameOnBothEnds(t *testing.T) {
	end := time.Date(2027, 1, 2, 3, 4, 5, 0, time.UTC)
	for _, want := range []error{
		&VersionError{Asked: "9", Speaks: []int{1}},
		&tenant.InvalidError{Field: "name", Reason: "is empty"},
		&tenant.DisabledError{Name: "Acme"},
		&lease.EndedError{Tenant: "Acme", End: end},
		&quota.FullError{Repository: "r", LimitBytes: 1, UsedBytes: 2, PendingBytes: 3, WantedBytes: 4},
		&WriterError{Machine: "m", Until: end},
		&TasksError{Limit: 3},
		&point.MissingError{Chunks: []chunk.ID{{1}, {2}}, Pages: []chunk.ID{{3}}},
	} {
		got := overTheWire(t, fmt.Errorf("some server's inside: %w", want))
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%T (-want +got):\n%s", want, diff)
		}
		if strings.Contains(got.Error(), "inside") {
			t.Errorf("%T tells the server's inside: %v", want, got)
		}
	}
	for _, want := range []error{tenant.ErrNotFound, tenant.ErrExists, tenant.ErrChanged, access.ErrCredentials, access.ErrEnrolment,
		claim.ErrFenced, ErrSessionClosed, ErrRepositoryReadOnly, chunk.ErrDamaged} {
		if got := overTheWire(t, fmt.Errorf("thing: %w", want)); !errors.Is(got, want) {
			t.Errorf("%v became %v", want, got)
		}
	}
	secret := overTheWire(t, errors.New("password hunter2 in /etc/secret"))
	if strings.Contains(secret.Error(), "hunter2") || ProblemOf(secret).Status != http.StatusInternalServerError {
		t.Errorf("an unknown error became %v", secret)
	}
	held := overTheWire(t, &claim.HeldError{Resource: "repository/x", Holder: "node-7/abc"})
	if p, ok := errors.AsType[*Problem](held); !ok || !p.Temporary() || strings.Contains(p.Detail, "node-7") {
		t.Errorf("another server's claim became %v", held)
	}
}

func overTheWire(t *testing.T, err error) error {
	t.Helper()
	w := &answerWriter{header: http.Header{}}
	ProblemOf(err).Write(w)
	return ReadProblem(w.status, w.header.Get("Content-Type"), &w.body).Err()
}

type answerWriter struct {
	header http.Header
	status int
	body   bytes.Buffer
}

func (w *answerWriter) Header() http.Header         { return w.header }
func (w *answerWriter) WriteHeader(status int)      { w.status = status }
func (w *answerWriter) Write(b []byte) (int, error) { return w.body.Write(b) }

func TestAddress(t *testing.T) {
	for in, want := range map[string]string{
		"backup.example.com": "backup.example.com:6180", "10.0.0.1": "10.0.0.1:6180", "::1": "[::1]:6180", "[::1]": "[::1]:6180",
		"[2001:db8::1]:443": "[2001:db8::1]:443", "host:1": "host:1",
		"": "", "host:": "", "host:70000": "", "a/b": "", "user@host": "", ":1": "",
	} {
		got, err := Address(in)
		if got != want || (err == nil) != (want != "") {
			t.Errorf("Address(%q) = %q, %v; want %q", in, got, err, want)
		}
	}
}

func TestBits(t *testing.T) {
	golden := appendBits(nil, []bool{true, false, false, true, false, false, false, false, true})
	if !bytes.Equal(golden, []byte{0x09, 0x01}) {
		t.Errorf("bits = %x, want 0901", golden)
	}
	for _, bad := range [][]byte{nil, {1}, {0x09, 0x03}, {9, 1, 0}} {
		if _, err := parseBits(bad, 9); err == nil {
			t.Errorf("parseBits(%x, 9) was accepted", bad)
		}
	}
}

func FuzzBits(f *testing.F) {
	f.Add([]byte{0x09, 0x01}, 9)
	f.Fuzz(func(t *testing.T, b []byte, n int) {
		if n < 0 || n > MaxIDs {
			return
		}
		have, err := parseBits(b, n)
		if err == nil && !bytes.Equal(appendBits(nil, have), b) {
			t.Errorf("%x for %d ids is encoded in two ways", b, n)
		}
	})
}

func FuzzIDs(f *testing.F) {
	f.Add(bytes.Repeat([]byte{1}, 64))
	f.Fuzz(func(t *testing.T, b []byte) {
		ids, err := parseIDs(b)
		if err == nil && !bytes.Equal(appendIDs(nil, ids), b) {
			t.Errorf("%x is encoded in two ways", b)
		}
	})
}

func FuzzRecordStream(f *testing.F) {
	batch, _ := pages(chunk.SessionID{1}, 3, 64)
	f.Add(batch)
	f.Add(batch[:len(batch)-5])
	f.Fuzz(func(t *testing.T, b []byte) {
		whole, err := wholeRecords(b)
		if err == nil && (whole < 0 || whole > len(b)) {
			t.Fatalf("%d of %d bytes are whole", whole, len(b))
		}
		in, total := bytes.NewReader(b), 0
		buffer := make([]byte, chunk.HeaderSize)
		for {
			r, e := readRecord(in, &buffer)
			if e != nil {
				break
			}
			total += r.Size()
			if len(buffer) > chunk.HeaderSize+chunk.MaxBody {
				t.Fatalf("a record of %d bytes", len(buffer))
			}
		}
		if err == nil && total != whole {
			t.Fatalf("both ends disagree: %d and %d bytes", whole, total)
		}
	})
}

func FuzzProblem(f *testing.F) {
	f.Add(403, []byte(`{"code":"lease-ended","facts":{"End":"2027-01-02T03:04:05Z"}}`))
	f.Add(409, []byte(`{"code":"missing","facts":{"Chunks":["00"]}}`))
	f.Fuzz(func(t *testing.T, status int, b []byte) {
		err := ReadProblem(status, ProblemType, bytes.NewReader(b)).Err()
		if err == nil {
			t.Fatal("a refusal became success")
		}
		_, _ = err.Error(), HintOf(err)
	})
}

func TestRunEventsAreBounded(t *testing.T) {
	e := newEnds(t)
	c := e.client()
	good := RunEvent{Sequence: 1, Kind: "backup", State: "running", Started: time.Now()}
	if err := c.Report(t.Context(), uuid.NewString(), good); err != nil {
		t.Fatal(err)
	}
	noise := make([]byte, maxEventText)
	rand.Read(noise)
	for name, bad := range map[string]RunEvent{
		"no sequence": {Kind: "backup"},
		"long":        {Sequence: 1, Kind: "backup", Failure: fmt.Sprintf("%x", noise)},
		"negative":    {Sequence: 1, Kind: "backup", SentBytes: -1},
	} {
		err := c.Report(t.Context(), uuid.NewString(), bad)
		if _, ok := errors.AsType[*tenant.InvalidError](err); !ok {
			t.Errorf("%s: %v, want InvalidError", name, err)
		}
	}
	if len(e.store.events) != 1 {
		t.Errorf("%d events were kept", len(e.store.events))
	}
}
