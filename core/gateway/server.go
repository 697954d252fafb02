package gateway

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/holdfast-dr/holdfast/core/access"
	"github.com/holdfast-dr/holdfast/core/audit"
	"github.com/holdfast-dr/holdfast/core/pki"
	"github.com/holdfast-dr/holdfast/core/quota"
	"github.com/holdfast-dr/holdfast/core/tenant"
)

// The bounds of a server, beside Limits and rooms. Time-outs of bodies are per
// piece, with a lowest rate for the whole.
const (
	maxHeader      = 32 << 10
	headerTimeout  = 10 * time.Second
	idleTimeout    = 2 * time.Minute
	pieceTimeout   = 30 * time.Second // for some bytes to come or go
	lowestRate     = 8 << 10          // bytes per second of a body; slower senders are cut off
	controlTimeout = 2 * time.Minute  // of a handler that moves no data
	commitTimeout  = 30 * time.Minute // syncing packs and looking up the ids of many chunks
	touchEvery     = time.Minute
)

// Agents is where the listener looks up whose certificate it sees.
type Agents interface {
	AgentByID(ctx context.Context, id string) (access.Agent, error)
	TouchAgent(ctx context.Context, id, version string) error
}

// Config is what a server of the wire works with.
type Config struct {
	Version string // of the program
	Agents  Agents
	Tenants Tenants
	Quota   Reserver
	// Repositories lists what a tenant sees.
	Repositories func(ctx context.Context, t tenant.ID) ([]quota.CloudRepository, error)
	FanOut       int
	Open         Opener
	// Verify checks a client certificate and says whose it is. It knows nothing
	// of revocation.
	Verify func(state tls.ConnectionState, now time.Time) (pki.Identity, error)
	Enrol  func(ctx context.Context, r EnrolRequest) (Credentials, error)
	Renew  func(ctx context.Context, a access.Agent, request []byte) (Credentials, error)
	// Authorities is the PEM of the CA certificates that agents are to trust.
	Authorities func(ctx context.Context) (string, error)
	Reports     Reports
	Limits      Limits
	Now         func() time.Time // nil: time.Now
	Log         *slog.Logger     // nil: slog.Default

	timing timing // shorter in tests
}

// timing is when a server loses patience with a peer. A field that is 0 has its
// constant.
type timing struct{ header, idle, piece, beat time.Duration }

func (t timing) complete() timing {
	set := func(d *time.Duration, fallback time.Duration) {
		if *d == 0 {
			*d = fallback
		}
	}
	set(&t.header, headerTimeout)
	set(&t.idle, idleTimeout)
	set(&t.piece, pieceTimeout)
	set(&t.beat, beat)
	return t
}

// Server is the provider's end of the wire. The zero value is of no use; see
// NewServer.
type Server struct {
	config    Config
	admission *admission
	mux       *http.ServeMux
	buffers   sync.Pool
	timing    timing
	door      *door
	rooms     *rooms
	refusals  *Refusals
	tokens    *access.Attempts // of enrolment

	mu      sync.Mutex
	touched map[string]time.Time // agent → when it was last written down
	tallies map[tenant.ID]*tally // without what open connections moved
}

// NewServer makes a server of the wire.
func NewServer(c Config) *Server {
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Log == nil {
		c.Log = slog.Default()
	}
	s := &Server{config: c, admission: newAdmission(c.Tenants, c.Quota, c.Now), mux: http.NewServeMux(),
		timing: c.timing.complete(), rooms: newRooms(), refusals: NewRefusals(c.Log, c.Now), tokens: access.NewAttempts(c.Now),
		touched: map[string]time.Time{}, tallies: map[tenant.ID]*tally{}}
	s.door = newDoor(c.Limits, s.settle)
	s.buffers.New = func() any { b := make([]byte, bufferSize); return &b }
	for _, r := range routes {
		s.mux.Handle(r.method+" "+r.path, s.route(r))
	}
	return s
}

// Serve answers the wire and, for all other paths, the API, on listeners that
// it closes. It returns when ctx ends and the requests in flight are done, or
// grace is over.
func (s *Server) Serve(ctx context.Context, config *tls.Config, api http.Handler, grace time.Duration, listeners ...net.Listener) error {
	server := &http.Server{
		Handler:           s.Handler(api),
		TLSConfig:         Harden(config),
		ReadHeaderTimeout: s.timing.header, // of the handshake, too
		IdleTimeout:       s.timing.idle,
		MaxHeaderBytes:    maxHeader,
		ErrorLog:          slog.NewLogLogger(s.config.Log.Handler(), slog.LevelDebug),
		ConnContext:       withLine,
		Protocols:         new(http.Protocols),
	}
	server.Protocols.SetHTTP1(true)
	ended := make(chan error, len(listeners))
	for _, l := range listeners {
		go func() { ended <- server.ServeTLS(doored{l, s.door, s.turnedAway}, "", "") }()
	}
	var err error
	running := len(listeners)
	select {
	case <-ctx.Done():
	case err = <-ended:
		running--
	}
	stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), grace)
	defer cancel()
	if server.Shutdown(stop) != nil {
		_ = server.Close() // what did not end by itself is cut off; clients repeat it
	}
	for range running {
		if e := <-ended; err == nil && !errors.Is(e, http.ErrServerClosed) {
			err = e
		}
	}
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return err
}

// Harden is a server's TLS configuration with what the wire demands: TLS 1.3,
// HTTP/1.1, and client certificates that are asked for here and judged per
// request.
func Harden(c *tls.Config) *tls.Config {
	c = c.Clone()
	c.MinVersion = tls.VersionTLS13
	c.NextProtos = []string{"http/1.1"}
	c.ClientAuth = tls.RequestClientCert
	c.DynamicRecordSizingDisabled = true // batches: throughput counts, not the first byte
	c.SessionTicketsDisabled = true      // a resumed session would not show a renewed certificate
	return c
}

// Handler is the wire and, for all other paths, the API.
func (s *Server) Handler(api http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		control := http.NewResponseController(w)
		if r.ContentLength != 0 {
			// Whoever reads the body sets deadlines of its own. This one ends what
			// nobody wants and the server would read to keep the connection.
			_ = control.SetReadDeadline(time.Now().Add(s.timing.piece))
		}
		if r.URL.Path == "/v1/enrol" || r.URL.Path == "/v1/agent" || strings.HasPrefix(r.URL.Path, "/v1/agent/") {
			s.ServeHTTP(w, r)
			return
		}
		_ = control.SetWriteDeadline(time.Now().Add(controlTimeout)) // a stream of events pushes it out itself
		api.ServeHTTP(w, r)
	})
}

// ServeHTTP answers the wire.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	id := RequestID(r)
	w.Header().Set(HeaderRequest, id)
	w.Header().Set(HeaderVersion, strconv.Itoa(Version))
	r.Header.Set(HeaderRequest, id)
	defer func() {
		if fault := recover(); fault != nil {
			if fault == http.ErrAbortHandler { //nolint:errorlint // a panic's value, compared as net/http does
				panic(fault)
			}
			s.config.Log.Error("request panicked", "request", id, "path", r.URL.Path, "panic", fault, "stack", string(debug.Stack()))
			NewProblem(http.StatusInternalServerError, CodeInternal, "the server failed to answer the request").Write(w)
		}
	}()
	if _, pattern := s.mux.Handler(r); pattern == "" {
		NewProblem(http.StatusNotFound, CodeNotFound, "the tenant wire has no such route").Write(w)
		return
	}
	s.mux.ServeHTTP(w, r)
}

// turnedAway tells of a connection for which there was no room.
func (s *Server) turnedAway(c net.Conn) {
	address := access.Neighbourhood(c.RemoteAddr().String())
	s.refusals.Note(context.Background(), slog.LevelWarn, "connection "+address, "connection refused: there are too many", "address", address)
}

// Connections is how many connections of agents are open.
func (s *Server) Connections() int { return s.door.count(func(l *line) bool { return l.agent != "" }) }

// DisconnectTenant closes every open connection of a tenant's agents.
func (s *Server) DisconnectTenant(id tenant.ID) int {
	return s.door.close(func(l *line) bool { return l.agent != "" && l.tenant == id })
}

// DisconnectAgent closes every open connection of an agent.
func (s *Server) DisconnectAgent(id string) int {
	return s.door.close(func(l *line) bool { return l.agent != "" && l.agent == id })
}

// access levels of routes, in growing order of what a caller must be.
type need int

const (
	anyone   need = iota // no certificate: the body convinces
	renewing             // a certificate that may have expired
	known                // a valid certificate; the tenant may be shut out
	admitted             // and the tenant is enabled and under contract
)

// request is one request of the wire, on its way through a handler.
type request struct {
	*http.Request
	w     http.ResponseWriter
	route route
	id    string
	agent access.Agent
	who   pki.Identity
	took  time.Duration // of the server's own work, if the handler measured it
	start time.Time
}

// route is a handler behind what its route needs.
func (s *Server) route(r route) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, hr *http.Request) {
		limit := controlTimeout
		if r.limit != 0 {
			limit = r.limit
		}
		ctx, cancel := context.WithTimeout(hr.Context(), limit)
		defer cancel()
		control := http.NewResponseController(w)
		_ = control.SetWriteDeadline(time.Now().Add(limit + pieceTimeout))
		beating := newBeating(w, s.timing.beat)
		defer beating.stop()
		q := &request{Request: hr.WithContext(ctx), w: beating, route: r, id: hr.Header.Get(HeaderRequest), start: time.Now()}
		err := s.serve(r, q)
		if err != nil {
			s.refuse(q, err)
		}
	})
}

func (s *Server) serve(r route, q *request) error {
	if err := checkVersion(q.Header.Get(HeaderVersion)); err != nil {
		return err
	}
	if r.need > anyone {
		if err := s.identify(q, r.need); err != nil {
			return err
		}
	}
	if r.need >= admitted {
		if _, err := s.admission.admit(q.Context(), q.agent.TenantID); err != nil {
			return err
		}
	}
	if n := r.room(q.ContentLength); n > 0 {
		leave, err := s.rooms.take(q.Context(), q.agent.TenantID, n)
		if err != nil {
			return err
		}
		defer leave()
	}
	q.Request = q.WithContext(audit.With(q.Context(), audit.Origin{
		Actor: "agent:" + q.agent.ID, Name: q.agent.Name, Address: q.RemoteAddr, Request: q.id}))
	return r.handle(s, q)
}

func checkVersion(asked string) error {
	for _, v := range versions {
		if asked == strconv.Itoa(v) {
			return nil
		}
	}
	return &VersionError{Asked: asked, Speaks: versions}
}

// identify finds the agent behind the connection's certificate.
func (s *Server) identify(q *request, need need) error {
	if q.TLS == nil || len(q.TLS.PeerCertificates) == 0 {
		return NewProblem(http.StatusUnauthorized, CodeCertificate, "the connection shows no client certificate").
			WithHint("enrol the agent: holdfast agent connect")
	}
	who, err := s.config.Verify(*q.TLS, s.config.Now())
	if err != nil {
		s.refusals.Note(q.Context(), slog.LevelInfo, "certificate "+access.Neighbourhood(q.RemoteAddr), "client certificate refused",
			"request", q.id, "address", q.RemoteAddr, "error", err)
		return NewProblem(http.StatusUnauthorized, CodeCertificate, "the client certificate is not accepted by this provider").
			WithHint("enrol the agent again with a new token of this provider")
	}
	agent, err := s.config.Agents.AgentByID(q.Context(), who.AgentID)
	switch {
	case errors.Is(err, tenant.ErrNotFound):
		return revoked()
	case err != nil:
		return err
	case !agent.Revoked.IsZero() || agent.TenantID != who.TenantID || agent.Key != access.Hash(who.Key):
		return revoked()
	}
	if who.RenewOnly && need > renewing {
		return NewProblem(http.StatusForbidden, CodeExpired,
			fmt.Sprintf("the agent's certificate ended on %s; it may do nothing but renew", who.NotAfter.UTC().Format(time.RFC3339))).
			WithHint("the agent renews it by itself; if this stays, restart it")
	}
	q.agent, q.who = agent, who
	if err := recognise(q.Context(), agent.TenantID, agent.ID); err != nil {
		q.w.Header().Set("Connection", "close")
		return err
	}
	s.touch(q)
	return nil
}

func revoked() error {
	return NewProblem(http.StatusUnauthorized, CodeRevoked, "this agent has been revoked by the provider").
		WithHint("ask the provider for a new enrolment token, then: holdfast agent connect")
}

// touch writes down that an agent was seen, at most once a minute.
func (s *Server) touch(q *request) {
	now := s.config.Now()
	s.mu.Lock()
	due := now.Sub(s.touched[q.agent.ID]) >= touchEvery
	if due {
		s.touched[q.agent.ID] = now
	}
	s.mu.Unlock()
	if due {
		version := q.Header.Get(HeaderAgent)
		_ = s.config.Agents.TouchAgent(q.Context(), q.agent.ID, version[:min(len(version), 64)]) // a missed time stamp harms nobody
	}
}

// refuse answers an error, and reads what the client is still sending, so that
// the answer is not lost in a reset of the connection.
func (s *Server) refuse(q *request, err error) {
	p := ProblemOf(err)
	attributes := []any{"request", q.id, "method", q.Method, "path", q.URL.Path, "address", q.RemoteAddr,
		"agent", q.agent.ID, "tenant", q.agent.TenantID, "code", p.Code, "error", err}
	if p.Status == http.StatusInternalServerError {
		p.Detail += " (request " + q.id + ")"
		s.config.Log.ErrorContext(q.Context(), "request refused", attributes...) // each, for it is this server's fault
	} else {
		who := q.agent.ID
		if who == "" {
			who = access.Neighbourhood(q.RemoteAddr)
		}
		s.refusals.Note(q.Context(), slog.LevelInfo, who+" "+q.route.method+" "+q.route.path+" "+string(p.Code), "request refused", attributes...)
	}
	s.drain(q)
	q.header()
	p.Write(q.w)
}

// drain reads the rest of a body, within the bounds that it had anyway.
func (s *Server) drain(q *request) {
	if q.ContentLength == 0 || q.ContentLength > MaxBatch {
		return
	}
	_, _ = io.Copy(io.Discard, s.body(q, MaxBatch)) // whatever is wrong with it, the answer is already known
}

// header sets how long the server took.
func (q *request) header() {
	took := q.took
	if took == 0 {
		took = time.Since(q.start)
	}
	q.w.Header().Set(HeaderTook, strconv.FormatInt(took.Microseconds(), 10))
}

// answer writes a JSON answer.
func (q *request) answer(status int, v any) error {
	body, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode answer: %w", err)
	}
	return q.bytes(status, "application/json", body)
}

func (q *request) bytes(status int, kind string, body []byte) error {
	q.header()
	q.w.Header().Set("Content-Type", kind)
	q.w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	q.w.WriteHeader(status)
	_, _ = q.w.Write(body) // a client that is gone asks again
	return nil
}

func (q *request) nothing() error {
	q.header()
	q.w.WriteHeader(http.StatusNoContent)
	return nil
}

// decode reads a JSON body, strictly.
func (s *Server) decode(q *request, v any) error {
	b, err := s.readAll(q, q.route.most())
	if err != nil {
		return err
	}
	if err := json.Unmarshal(b, v); err != nil {
		return invalid("body", "is not the JSON of this request: %v", err)
	}
	return nil
}

// readAll reads a whole body of at most limit bytes, and lifts the deadline of
// reading.
func (s *Server) readAll(q *request, limit int64) ([]byte, error) {
	if q.ContentLength > limit {
		return nil, tooLarge()
	}
	b, err := io.ReadAll(s.body(q, limit))
	if err != nil {
		return nil, bodyError(err)
	}
	s.bodyDone(q)
	return b, nil
}

// bodyDone lifts the deadline of reading, so that it does not end a long
// handler.
func (s *Server) bodyDone(q *request) {
	_ = http.NewResponseController(q.w).SetReadDeadline(time.Time{})
}

func bodyError(err error) error {
	if _, ok := errors.AsType[*http.MaxBytesError](err); ok {
		return tooLarge()
	}
	p := NewProblem(http.StatusRequestTimeout, CodeUnavailable, "the body of the request did not arrive: "+err.Error())
	p.RetryAfter = 1
	return p
}

func tooLarge() error {
	return NewProblem(http.StatusRequestEntityTooLarge, CodeTooLarge, "the request is larger than the wire allows")
}

func invalid(field, format string, args ...any) error {
	return &tenant.InvalidError{Field: field, Reason: fmt.Sprintf(format, args...)}
}

// body reads a request's body with a deadline for each piece and a lowest rate
// for the whole.
func (s *Server) body(q *request, limit int64) io.Reader {
	return &pacedReader{control: http.NewResponseController(q.w), r: http.MaxBytesReader(q.w, q.Body, limit), piece: s.timing.piece, start: time.Now()}
}

type pacedReader struct {
	piece   time.Duration
	control *http.ResponseController
	r       io.Reader
	start   time.Time
	read    int64
}

func (p *pacedReader) Read(b []byte) (int, error) {
	now := time.Now()
	latest := p.start.Add(p.piece + time.Duration(p.read/lowestRate)*time.Second)
	if now.After(latest) {
		return 0, fmt.Errorf("slower than %d bytes per second", lowestRate)
	}
	if err := p.control.SetReadDeadline(now.Add(p.piece)); err != nil && !errors.Is(err, http.ErrNotSupported) {
		return 0, err
	}
	n, err := p.r.Read(b)
	p.read += int64(n)
	return n, err
}

// pacedWriter writes an answer with a deadline for each piece.
type pacedWriter struct {
	piece   time.Duration
	control *http.ResponseController
	w       io.Writer
}

func (p *pacedWriter) Write(b []byte) (int, error) {
	if err := p.extend(); err != nil {
		return 0, err
	}
	return p.w.Write(b)
}

// extend puts the deadline off.
func (p *pacedWriter) extend() error {
	err := p.control.SetWriteDeadline(time.Now().Add(p.piece))
	if errors.Is(err, http.ErrNotSupported) {
		return nil
	}
	return err
}
