package gateway

import (
	"encoding/json"
	"errors"
	"math"
	"net/http"
	"regexp"
	"strconv"
	"time"

	"github.com/google/uuid"

	"github.com/holdfast-dr/holdfast/core/access"
	"github.com/holdfast-dr/holdfast/core/chunk"
	"github.com/holdfast-dr/holdfast/core/point"
	"github.com/holdfast-dr/holdfast/core/tenant"
)

// route is one route of the wire.
type route struct {
	method, path string
	need         need
	limit        time.Duration // of the whole request; 0: controlTimeout
	body         int64         // most bytes of a body that is no JSON; streamed
	handle       func(*Server, *request) error
}

// streamed is a body that is never whole in memory.
const streamed = -1

const (
	inRepository = "/v1/agent/repositories/{repository}"
	inSession    = inRepository + "/sessions/{session}"
)

// most is how large the JSON of a route may be.
func (r route) most() int64 {
	if r.need == anyone {
		return maxEnrol // whoever sends it is a stranger
	}
	return maxJSON
}

// room is how much memory a body of so many bytes, -1 if that is unknown, may
// need at once.
func (r route) room(length int64) int64 {
	switch {
	case length == 0:
		return 0
	case r.body == streamed:
		return bufferSize
	}
	most := r.body
	if most == 0 {
		most = r.most()
	}
	if length < 0 || length > most {
		length = most
	}
	return 2 * length // it grows as it arrives
}

// transferLimit ends a data request that is as slow as the lowest rate allows.
const transferLimit = time.Hour

// routes is the whole wire.
var routes = []route{
	{"POST", "/v1/enrol", anyone, 0, 0, (*Server).enrol},
	{"POST", "/v1/agent/certificate", renewing, 0, 0, (*Server).renew},
	{"GET", "/v1/agent/site", known, 0, 0, (*Server).site},
	{"POST", "/v1/agent/runs/{run}/events", known, 0, 0, (*Server).event},

	{"GET", inRepository + "/keys", admitted, 0, 0, (*Server).wraps},
	{"GET", inRepository + "/keys/{wrap}", admitted, 0, 0, (*Server).wrap},
	{"PUT", inRepository + "/keys/{wrap}", admitted, 0, chunk.MaxWrap, (*Server).putWrap},

	{"POST", inRepository + "/sessions", admitted, commitTimeout, 0, (*Server).begin},
	{"GET", inSession, admitted, 0, 0, (*Server).session},
	{"DELETE", inSession, admitted, 0, 0, (*Server).abort},
	{"POST", inSession + "/have", admitted, 0, MaxIDs * int64(idSize), (*Server).have},
	{"POST", inSession + "/records", admitted, transferLimit, streamed, (*Server).records},
	{"POST", inSession + "/commit", admitted, commitTimeout, point.MaxManifest, (*Server).commit},

	{"GET", inRepository + "/points", admitted, 0, 0, (*Server).points},
	{"GET", inRepository + "/points/{point}", admitted, 0, 0, (*Server).manifest},
	{"DELETE", inRepository + "/points/{point}", admitted, 0, 0, (*Server).forget},
	{"POST", inRepository + "/read", admitted, transferLimit, MaxIDs * int64(idSize), (*Server).read},
}

func (s *Server) enrol(q *request) error {
	var in EnrolRequest
	if err := s.decode(q, &in); err != nil {
		return err
	}
	if err := s.tokens.Token(q.RemoteAddr); err != nil {
		wait := (*access.WaitError)(nil)
		p := NewProblem(http.StatusTooManyRequests, CodeBusy, err.Error()).WithHint("wait, then enrol with a new token")
		if errors.As(err, &wait) {
			p.RetryAfter = int(math.Ceil(wait.Wait.Seconds()))
		}
		return p
	}
	credentials, err := s.config.Enrol(q.Context(), in)
	if errors.Is(err, access.ErrEnrolment) {
		s.tokens.UnknownToken(q.RemoteAddr)
	}
	if err != nil {
		return err
	}
	return q.answer(http.StatusOK, credentials)
}

func (s *Server) renew(q *request) error {
	var in RenewRequest
	if err := s.decode(q, &in); err != nil {
		return err
	}
	credentials, err := s.config.Renew(q.Context(), q.agent, in.Request)
	if err != nil {
		return err
	}
	return q.answer(http.StatusOK, credentials)
}

func (s *Server) site(q *request) error {
	ctx := q.Context()
	t, err := s.config.Tenants.Get(ctx, q.agent.TenantID)
	if err != nil {
		return err
	}
	authorities, err := s.config.Authorities(ctx)
	if err != nil {
		return err
	}
	site := Site{
		Time:   s.config.Now().UTC(),
		Tenant: SiteTenant{ID: string(t.ID), Name: t.Name, MaxTasks: t.MaxTasks},
		Agent:  SiteAgent{ID: q.agent.ID, Name: q.agent.Name, CertificateEnd: q.who.NotAfter.UTC()},
		Server: s.config.Version, Versions: versions, Authorities: authorities,
		Admission: Admission{Open: true}, Repositories: []CloudRepository{},
	}
	if !t.LeaseEnd.IsZero() {
		end := t.LeaseEnd.UTC()
		site.Tenant.LeaseEnd = &end
	}
	if _, err := s.admission.admit(ctx, t.ID); err != nil {
		site.Admission = Admission{Problem: ProblemOf(err)}
	}
	repositories, err := s.config.Repositories(ctx, t.ID)
	if err != nil {
		return err
	}
	for _, r := range repositories {
		site.Repositories = append(site.Repositories, CloudRepository{ID: string(r.ID), Name: r.Name, ChunkSize: r.ChunkSize,
			FanOut: s.config.FanOut, LimitBytes: r.LimitBytes, UsedBytes: r.UsedBytes, PendingBytes: r.PendingBytes})
	}
	return q.answer(http.StatusOK, site)
}

func (s *Server) event(q *request) error {
	run := q.PathValue("run")
	if err := uuid.Validate(run); err != nil {
		return invalid("run", "is not an id")
	}
	var e RunEvent
	if err := s.decode(q, &e); err != nil {
		return err
	}
	if err := e.check(); err != nil {
		return invalid("event", "%v", err)
	}
	if err := s.config.Reports.Put(q.Context(), q.agent, run, e); err != nil {
		return err
	}
	return q.nothing()
}

// open opens the repository of the request for its agent.
func (s *Server) open(q *request) (*guard, error) {
	id := q.PathValue("repository")
	if uuid.Validate(id) != nil {
		return nil, tenant.ErrNotFound
	}
	task := q.Header.Get(HeaderTask)
	if len(task) > MaxTask {
		return nil, invalid("task", "is longer than %d bytes", MaxTask)
	}
	r, err := s.config.Open(q.Context(), q.agent.TenantID, id)
	if err != nil {
		return nil, err
	}
	return s.admission.guard(r, id, q.agent, task), nil
}

// resume finds the session of the request.
func (s *Server) resume(q *request) (Session, *guard, error) {
	id, err := parseSession(q.PathValue("session"))
	if err != nil {
		return nil, nil, err
	}
	g, err := s.open(q)
	if err != nil {
		return nil, nil, err
	}
	session, err := g.Resume(q.Context(), id, q.agent.ID)
	return session, g, err
}

var wrapName = regexp.MustCompile(`^[a-z0-9][a-z0-9._-]{0,99}$`)

func (q *request) wrapName() (string, error) {
	name := q.PathValue("wrap")
	if !wrapName.MatchString(name) {
		return "", invalid("wrap", "must be 1 to 100 lower-case letters, digits, dots, dashes and underscores")
	}
	return name, nil
}

func (s *Server) wraps(q *request) error {
	g, err := s.open(q)
	if err != nil {
		return err
	}
	wraps, err := g.Wraps(q.Context())
	if err != nil {
		return err
	}
	if wraps == nil {
		wraps = []Wrap{}
	}
	return q.answer(http.StatusOK, wraps)
}

func (s *Server) wrap(q *request) error {
	name, err := q.wrapName()
	if err != nil {
		return err
	}
	g, err := s.open(q)
	if err != nil {
		return err
	}
	wrap, err := g.Wrap(q.Context(), name)
	if err != nil {
		return err
	}
	return q.bytes(http.StatusOK, "application/octet-stream", wrap)
}

func (s *Server) putWrap(q *request) error {
	name, err := q.wrapName()
	if err != nil {
		return err
	}
	g, err := s.open(q)
	if err != nil {
		return err
	}
	wrap, err := s.readAll(q, chunk.MaxWrap)
	if err != nil {
		return err
	}
	if _, err := chunk.CheckWrap(wrap); err != nil {
		return err
	}
	if err := g.PutWrap(q.Context(), name, wrap); err != nil {
		return err
	}
	return q.nothing()
}

func (s *Server) begin(q *request) error {
	var in BeginRequest
	if err := s.decode(q, &in); err != nil {
		return err
	}
	if uuid.Validate(string(in.Machine)) != nil {
		return invalid("machine", "is not an id")
	}
	if in.Base != "" && uuid.Validate(string(in.Base)) != nil {
		return invalid("base", "is not an id")
	}
	g, err := s.open(q)
	if err != nil {
		return err
	}
	session, err := g.Begin(q.Context(), in.Machine, in.Base, q.agent.ID)
	if err != nil {
		return err
	}
	return s.describe(q, session, g)
}

func (s *Server) session(q *request) error {
	session, g, err := s.resume(q)
	if err != nil {
		return err
	}
	return s.describe(q, session, g)
}

// maxDamaged bounds the damaged chunks that one session begins with; where there
// are more, it is told to read everything.
const maxDamaged = 4096

func (s *Server) describe(q *request, session Session, g *guard) error {
	damaged, err := session.Damaged(q.Context())
	if err != nil {
		return err
	}
	return q.answer(http.StatusOK, SessionInfo{ID: sessionText(session.ID()), Machine: session.Machine(), Base: session.Base(),
		Epoch: g.Epoch(), Damaged: damaged[:min(len(damaged), maxDamaged)], DamagedMore: len(damaged) > maxDamaged})
}

func (s *Server) abort(q *request) error {
	session, _, err := s.resume(q)
	if errors.Is(err, ErrSessionClosed) {
		return q.nothing() // repeated, or never arrived
	}
	if err != nil {
		return err
	}
	if err := session.Abort(q.Context()); err != nil {
		return err
	}
	return q.nothing()
}

func (s *Server) have(q *request) error {
	kind, err := parseKind(q.URL.Query().Get("kind"))
	if err != nil {
		return invalid("kind", "%v", err)
	}
	session, _, err := s.resume(q)
	if err != nil {
		return err
	}
	body, err := s.readAll(q, MaxIDs*int64(idSize))
	if err != nil {
		return err
	}
	ids, err := parseIDs(body)
	if err != nil {
		return invalid("ids", "%v", err)
	}
	start := time.Now()
	have, err := session.Have(q.Context(), kind, ids)
	q.took = time.Since(start)
	if err != nil {
		return err
	}
	return q.bytes(http.StatusOK, "application/octet-stream", appendBits(nil, have))
}

func (s *Server) commit(q *request) error {
	session, g, err := s.resume(q)
	if err != nil && !errors.Is(err, ErrSessionClosed) {
		return err
	}
	closed := err
	manifest, err := s.readAll(q, point.MaxManifest)
	if err != nil {
		return err
	}
	public, err := point.ParsePublic(manifest)
	if err != nil {
		return err
	}
	if public.Repository != q.PathValue("repository") || public.Session != q.PathValue("session") {
		return invalid("manifest", "is of another repository or session")
	}
	err = closed
	if err == nil {
		if public.Machine != session.Machine() {
			return invalid("manifest", "is of another machine than its session")
		}
		err = session.Commit(q.Context(), manifest)
	}
	if errors.Is(err, ErrSessionClosed) {
		// Perhaps a repeated commit whose answer was lost.
		if s.committed(q, public.Point, manifest) {
			err = nil
		}
	}
	if err != nil {
		return err
	}
	_ = g
	return q.answer(http.StatusOK, Receipt{Point: public.Point, Committed: s.config.Now().UTC()})
}

// committed says whether exactly this point exists.
func (s *Server) committed(q *request, id point.ID, manifest []byte) bool {
	g, err := s.open(q)
	if err != nil {
		return false
	}
	stored, err := g.Manifest(q.Context(), id)
	return err == nil && string(stored) == string(manifest)
}

// Bounds of one page of points.
const (
	defaultPoints = 200
	maxPoints     = 1000
)

func (s *Server) points(q *request) error {
	query := q.URL.Query()
	limit := defaultPoints
	if text := query.Get("limit"); text != "" {
		n, err := strconv.Atoi(text)
		if err != nil || n < 1 || n > maxPoints {
			return invalid("limit", "must be 1 to %d", maxPoints)
		}
		limit = n
	}
	machine, after := point.MachineID(query.Get("machine")), point.ID(query.Get("after"))
	if machine != "" && uuid.Validate(string(machine)) != nil || after != "" && uuid.Validate(string(after)) != nil {
		return invalid("machine or after", "is not an id")
	}
	g, err := s.open(q)
	if err != nil {
		return err
	}
	points, err := g.Points(q.Context(), machine, after, limit+1)
	if err != nil {
		return err
	}
	page := PointPage{Points: points}
	if len(points) > limit {
		page.Points = points[:limit]
		page.Next = page.Points[limit-1].ID
	}
	if page.Points == nil {
		page.Points = []PointInfo{}
	}
	return q.answer(http.StatusOK, page)
}

// pointID is the point that a path names.
func (q *request) pointID() (point.ID, error) {
	id := q.PathValue("point")
	if uuid.Validate(id) != nil {
		return "", tenant.ErrNotFound
	}
	return point.ID(id), nil
}

func (s *Server) manifest(q *request) error {
	id, err := q.pointID()
	if err != nil {
		return err
	}
	g, err := s.open(q)
	if err != nil {
		return err
	}
	manifest, err := g.Manifest(q.Context(), id)
	if err != nil {
		return err
	}
	return q.bytes(http.StatusOK, "application/octet-stream", manifest)
}

func (s *Server) forget(q *request) error {
	id, err := q.pointID()
	if err != nil {
		return err
	}
	g, err := s.open(q)
	if err != nil {
		return err
	}
	if err := g.Forget(q.Context(), id); err != nil {
		return err
	}
	return q.nothing()
}

// bufferSize is the room in which records are taken in: a few usual ones, or
// one of the largest with the start of the next.
const bufferSize = 2 * (chunk.HeaderSize + chunk.MaxBody)

// records takes a batch in, piece by piece, so that a request needs one buffer
// whatever the size of the batch.
func (s *Server) records(q *request) error {
	switch {
	case q.ContentLength < 0:
		return NewProblem(http.StatusLengthRequired, CodeInvalid, "the length of a batch of records has to be said first")
	case q.ContentLength == 0 || q.ContentLength > MaxBatch:
		return NewProblem(http.StatusRequestEntityTooLarge, CodeTooLarge, "a batch has 1 to "+strconv.Itoa(MaxBatch)+" bytes")
	}
	session, _, err := s.resume(q)
	if err != nil {
		return err
	}
	buffer := s.buffers.Get().(*[]byte)
	defer s.buffers.Put(buffer)
	body, moved := s.body(q, MaxBatch), s.tally(q)
	filled, ended := 0, false
	for !ended {
		n, err := readFull(body, (*buffer)[filled:])
		s.bodyDone(q) // the store may take its time
		filled += n
		if err != nil && !errors.Is(err, errEnded) {
			return bodyError(err)
		}
		ended = err != nil
		whole, err := wholeRecords((*buffer)[:filled])
		if err != nil {
			return err
		}
		if whole == 0 {
			break
		}
		start := time.Now()
		fresh, err := session.Put(q.Context(), (*buffer)[:whole])
		q.took += time.Since(start)
		moved.new.Add(fresh)
		if err != nil {
			return err
		}
		moved.put.Add(int64(whole))
		filled = copy(*buffer, (*buffer)[whole:filled])
	}
	if filled > 0 {
		return errCut
	}
	q.took = max(q.took, time.Microsecond)
	return q.nothing()
}

// read streams records. A failure after the first one is told in a trailer.
func (s *Server) read(q *request) error {
	kind, err := parseKind(q.URL.Query().Get("kind"))
	if err != nil {
		return invalid("kind", "%v", err)
	}
	g, err := s.open(q)
	if err != nil {
		return err
	}
	body, err := s.readAll(q, MaxIDs*int64(idSize))
	if err != nil {
		return err
	}
	ids, err := parseIDs(body)
	if err != nil {
		return invalid("ids", "%v", err)
	}
	out, moved := &pacedWriter{piece: s.timing.piece, control: http.NewResponseController(q.w), w: q.w}, s.tally(q)
	callOff := func() {}
	defer func() { callOff() }()
	var header [chunk.HeaderSize]byte
	var sending time.Duration
	begun, start := false, time.Now()
	err = g.Read(q.Context(), kind, ids, func(r chunk.Record) error {
		if !begun {
			begun, callOff = true, q.gather() // not before: interim answers go out at once
			q.w.Header().Set("Content-Type", "application/octet-stream")
			q.w.Header().Set("Trailer", HeaderTook+", "+HeaderProblem)
			q.w.WriteHeader(http.StatusOK)
		}
		sent := time.Now()
		n, err := out.Write(r.AppendHeader(header[:0]))
		if err == nil {
			moved.read.Add(int64(n))
			n, err = out.Write(r.Body)
		}
		moved.read.Add(int64(n))
		sending += time.Since(sent)
		return err
	})
	q.took = time.Since(start) - sending
	if err != nil && !begun {
		return err
	}
	_ = out.extend() // for what is gathered and the trailer; a connection that is gone shows when they are written
	q.header()
	if err != nil {
		p := ProblemOf(err)
		p.Facts = nil // trailers are small
		s.config.Log.Info("read ended early", "request", q.id, "agent", q.agent.ID, "code", p.Code, "error", err)
		if line, e := json.Marshal(p); e == nil {
			q.w.Header().Set(HeaderProblem, string(line))
		}
	}
	return nil
}
