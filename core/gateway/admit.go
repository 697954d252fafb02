package gateway

import (
	"context"
	"errors"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/holdfast-dr/holdfast/core/access"
	"github.com/holdfast-dr/holdfast/core/chunk"
	"github.com/holdfast-dr/holdfast/core/lease"
	"github.com/holdfast-dr/holdfast/core/point"
	"github.com/holdfast-dr/holdfast/core/quota"
	"github.com/holdfast-dr/holdfast/core/tenant"
)

// Tenants is where admission looks a tenant up, for every request.
type Tenants interface {
	Get(ctx context.Context, id tenant.ID) (tenant.Tenant, error)
}

// Reserver is the part of quota.Store that admission needs.
type Reserver interface {
	Reserve(ctx context.Context, t tenant.ID, id quota.ID, session string, bytes int64) (quota.Reservation, error)
	Release(ctx context.Context, t tenant.ID, id quota.ID, session string) error
}

const (
	// recheck is how often a request that takes long asks again whether its
	// tenant is still admitted.
	recheck = 2 * time.Second
	// stride is how many bytes a session reserves at once: fewer writes to the
	// database, at the price of reserving up to so much more than it sends.
	stride = 16 << 20
	// writerIdle is how long a machine's writer may be silent before another
	// may take its turn. Its session stays: a late return loses nothing.
	writerIdle = 5 * time.Minute
	// taskIdle is how long a task counts after its last request.
	taskIdle = 10 * time.Second
	// maxSessions bounds the sessions that a server remembers per repository;
	// the oldest is forgotten here, not ended.
	maxSessions = 4096
)

// admission decides whether a request may pass, and wraps what it then uses.
// What it remembers is a convenience: a server that starts anew admits alike.
type admission struct {
	tenants Tenants
	quota   Reserver
	now     func() time.Time

	mu       sync.Mutex
	writers  map[writerKey]*writer
	sessions map[sessionKey]*openSession
	tasks    map[tenant.ID]map[string]*task
}

type writerKey struct {
	repository string
	machine    point.MachineID
}

type writer struct {
	agent string
	until time.Time
}

type sessionKey struct {
	repository string
	id         chunk.SessionID
}

// openSession is a session that this server has seen.
type openSession struct {
	Session
	home  Repository // that it was begun or resumed in; another one, opened later, resumes it anew
	agent string
	seen  time.Time

	mu     sync.Mutex
	credit int64 // reserved and not yet used
}

type task struct {
	active  int
	last    time.Time
	session chunk.SessionID
}

func newAdmission(tenants Tenants, q Reserver, now func() time.Time) *admission {
	return &admission{tenants: tenants, quota: q, now: now, writers: map[writerKey]*writer{},
		sessions: map[sessionKey]*openSession{}, tasks: map[tenant.ID]map[string]*task{}}
}

// admit is what every data request passes: enabled, and under contract.
func (a *admission) admit(ctx context.Context, id tenant.ID) (tenant.Tenant, error) {
	t, err := a.tenants.Get(ctx, id)
	if err != nil {
		return tenant.Tenant{}, err
	}
	return t, lease.Admit(t, a.now())
}

// guard is a repository as one agent may use it in one request: every method
// asks the admission first.
type guard struct {
	Repository
	admission *admission
	id        string // of the repository
	agent     access.Agent
	task      string // named by the request, may be empty

	mu      sync.Mutex
	checked time.Time
	tasks   int // that the tenant may have
}

var _ Repository = (*guard)(nil)

func (a *admission) guard(r Repository, id string, agent access.Agent, task string) *guard {
	return &guard{Repository: r, admission: a, id: id, agent: agent, task: task}
}

// admit asks again when the last answer is old.
func (g *guard) admit(ctx context.Context) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	now := g.admission.now()
	if !g.checked.IsZero() && now.Sub(g.checked) < recheck {
		return nil
	}
	t, err := g.admission.admit(ctx, g.agent.TenantID)
	if err != nil {
		return err
	}
	g.checked, g.tasks = now, t.MaxTasks
	return nil
}

// Begin gives the machine's turn to the agent and opens a session.
func (g *guard) Begin(ctx context.Context, machine point.MachineID, base point.ID, owner string) (Session, error) {
	if err := g.admit(ctx); err != nil {
		return nil, err
	}
	if err := g.admission.takeTurn(g.id, machine, g.agent.ID); err != nil {
		return nil, err
	}
	s, err := g.Repository.Begin(ctx, machine, base, owner)
	if err != nil {
		g.admission.endTurn(g.id, machine, g.agent.ID)
		return nil, err
	}
	return g.wrap(g.admission.remember(g.id, g.Repository, s, g.agent.ID)), nil
}

// Resume finds a session of the same agent.
func (g *guard) Resume(ctx context.Context, id chunk.SessionID, owner string) (Session, error) {
	if err := g.admit(ctx); err != nil {
		return nil, err
	}
	known := g.admission.recall(g.id, g.Repository, id)
	if known == nil {
		s, err := g.Repository.Resume(ctx, id, owner)
		if err != nil {
			return nil, err
		}
		known = g.admission.remember(g.id, g.Repository, s, g.agent.ID)
	}
	if known.agent != g.agent.ID {
		return nil, ErrSessionClosed
	}
	if err := g.admission.takeTurn(g.id, known.Machine(), g.agent.ID); err != nil {
		return nil, err
	}
	return g.wrap(known), nil
}

func (g *guard) wrap(s *openSession) Session { return &guardedSession{openSession: s, guard: g} }

// Read counts as a task and is cut off when the tenant stops being admitted.
func (g *guard) Read(ctx context.Context, kind chunk.Kind, ids []chunk.ID, emit func(chunk.Record) error) error {
	if err := g.admit(ctx); err != nil {
		return err
	}
	leave, err := g.enter("read", chunk.SessionID{})
	if err != nil {
		return err
	}
	defer leave()
	return g.Repository.Read(ctx, kind, ids, func(r chunk.Record) error {
		if err := g.admit(ctx); err != nil {
			return err
		}
		return emit(r)
	})
}

// Manifest reads a manifest.
func (g *guard) Manifest(ctx context.Context, id point.ID) ([]byte, error) {
	if err := g.admit(ctx); err != nil {
		return nil, err
	}
	return g.Repository.Manifest(ctx, id)
}

// Points lists points.
func (g *guard) Points(ctx context.Context, machine point.MachineID, after point.ID, limit int) ([]PointInfo, error) {
	if err := g.admit(ctx); err != nil {
		return nil, err
	}
	return g.Repository.Points(ctx, machine, after, limit)
}

// Forget forgets a point.
func (g *guard) Forget(ctx context.Context, id point.ID) error {
	if err := g.admit(ctx); err != nil {
		return err
	}
	return g.Repository.Forget(ctx, id)
}

// PutWrap keeps a wrap.
func (g *guard) PutWrap(ctx context.Context, name string, wrap []byte) error {
	if err := g.admit(ctx); err != nil {
		return err
	}
	return g.Repository.PutWrap(ctx, name, wrap)
}

// Wrap reads a wrap.
func (g *guard) Wrap(ctx context.Context, name string) ([]byte, error) {
	if err := g.admit(ctx); err != nil {
		return nil, err
	}
	return g.Repository.Wrap(ctx, name)
}

// Wraps lists the wraps.
func (g *guard) Wraps(ctx context.Context) ([]Wrap, error) {
	if err := g.admit(ctx); err != nil {
		return nil, err
	}
	return g.Repository.Wraps(ctx)
}

// guardedSession is a session under admission, for one request.
type guardedSession struct {
	*openSession
	guard *guard
}

var _ Session = (*guardedSession)(nil)

// Have counts as the task's sign of life.
func (s *guardedSession) Have(ctx context.Context, kind chunk.Kind, ids []chunk.ID) ([]bool, error) {
	leave, err := s.enter(ctx)
	if err != nil {
		return nil, err
	}
	defer leave()
	return s.Session.Have(ctx, kind, ids)
}

// Put takes records for which there is room.
func (s *guardedSession) Put(ctx context.Context, batch []byte) (int64, error) {
	leave, err := s.enter(ctx)
	if err != nil {
		return 0, err
	}
	defer leave()
	room := int64(len(batch))
	if err := s.reserve(ctx, room); err != nil {
		_, full := errors.AsType[*quota.FullError](err)
		lacking, known := s.lacking(ctx, batch)
		if !full || !known || lacking == room {
			return 0, err
		}
		// A batch that is sent again, since its answer was lost, needs no more room.
		if room = lacking; room > 0 {
			if err := s.reserve(ctx, room); err != nil {
				return 0, err
			}
		}
	}
	taken, err := s.Session.Put(ctx, batch)
	s.giveBack(room - taken)
	return taken, err
}

// lacking is how many bytes of a batch the repository does not have, if that can
// be told.
func (s *guardedSession) lacking(ctx context.Context, batch []byte) (lacking int64, known bool) {
	sizes := map[chunk.Kind]map[chunk.ID]int64{}
	for rest := batch; len(rest) > 0; {
		r, next, err := chunk.ParseRecord(rest)
		if err != nil {
			return 0, false // Put says what is wrong with it
		}
		if sizes[r.Kind] == nil {
			sizes[r.Kind] = map[chunk.ID]int64{}
		}
		sizes[r.Kind][r.ID], rest = int64(r.Size()), next
	}
	for kind, of := range sizes {
		ids := slices.Collect(maps.Keys(of))
		for part := range slices.Chunk(ids, MaxIDs) {
			have, err := s.Session.Have(ctx, kind, part)
			if err != nil {
				return 0, false
			}
			for i, id := range part {
				if !have[i] {
					lacking += of[id]
				}
			}
		}
	}
	return lacking, true
}

// Commit ends the session when it succeeds; a refusal leaves it open.
func (s *guardedSession) Commit(ctx context.Context, manifest []byte) error {
	if err := s.guard.admit(ctx); err != nil {
		return err
	}
	if err := s.Session.Commit(ctx, manifest); err != nil {
		return err
	}
	s.end(ctx)
	return nil
}

// Abort ends the session and frees what it reserved.
func (s *guardedSession) Abort(ctx context.Context) error {
	if err := s.Session.Abort(ctx); err != nil {
		return err
	}
	s.end(ctx)
	return nil
}

// end gives back what the session held. A reservation that cannot be released
// now expires.
func (s *guardedSession) end(ctx context.Context) {
	g := s.guard
	_ = g.admission.quota.Release(ctx, g.agent.TenantID, quota.ID(g.id), sessionText(s.ID()))
	g.admission.forget(g.id, s.openSession)
	g.admission.endTurn(g.id, s.Machine(), g.agent.ID)
	g.admission.endTasks(g.agent.TenantID, s.ID())
}

func (s *guardedSession) enter(ctx context.Context) (leave func(), err error) {
	if err := s.guard.admit(ctx); err != nil {
		return nil, err
	}
	return s.guard.enter("session "+sessionText(s.ID()), s.ID())
}

// reserve takes room for n bytes, from what is already reserved if possible.
func (s *guardedSession) reserve(ctx context.Context, n int64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.credit < n {
		got, err := s.ask(ctx, n-s.credit)
		if err != nil {
			return err
		}
		s.credit += got
	}
	s.credit -= n
	return nil
}

// giveBack keeps room that a batch did not need for the next one.
func (s *guardedSession) giveBack(n int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.credit += max(0, n)
}

// ask reserves a stride, or exactly what is needed where a stride is too much.
func (s *guardedSession) ask(ctx context.Context, need int64) (got int64, err error) {
	g := s.guard
	try := func(n int64) error {
		_, err := g.admission.quota.Reserve(ctx, g.agent.TenantID, quota.ID(g.id), sessionText(s.ID()), n)
		return err
	}
	if need < stride {
		err := try(stride)
		if err == nil {
			return stride, nil
		}
		if _, full := errors.AsType[*quota.FullError](err); !full {
			return 0, err
		}
	}
	return need, try(need)
}

// enter counts a request for the tenant's tasks and refuses one too many.
func (g *guard) enter(fallback string, session chunk.SessionID) (leave func(), err error) {
	name := g.task
	if name == "" {
		name = fallback
	}
	return g.admission.enter(g.agent.TenantID, g.agent.ID+" "+name, session, g.tasks)
}

func (a *admission) enter(id tenant.ID, name string, session chunk.SessionID, limit int) (leave func(), err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	now, tasks := a.now(), a.tasks[id]
	for other, t := range tasks {
		if t.active == 0 && now.Sub(t.last) >= taskIdle {
			delete(tasks, other)
		}
	}
	t := tasks[name]
	if t == nil {
		if len(tasks) >= limit {
			return nil, &TasksError{Limit: limit}
		}
		if tasks == nil {
			tasks = map[string]*task{}
			a.tasks[id] = tasks
		}
		t = &task{session: session}
		tasks[name] = t
	}
	t.active++
	t.last = now
	return func() {
		a.mu.Lock()
		defer a.mu.Unlock()
		t.active--
		t.last = a.now()
	}, nil
}

// endTasks lets a finished session's tasks make room at once.
func (a *admission) endTasks(id tenant.ID, session chunk.SessionID) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for name, t := range a.tasks[id] {
		if t.session == session && t.active == 0 {
			delete(a.tasks[id], name)
		}
	}
	if len(a.tasks[id]) == 0 {
		delete(a.tasks, id)
	}
}

// takeTurn makes the agent the one writer of a machine's points.
func (a *admission) takeTurn(repository string, machine point.MachineID, agent string) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	now, key := a.now(), writerKey{repository, machine}
	for k, w := range a.writers {
		if !now.Before(w.until) {
			delete(a.writers, k)
		}
	}
	if w := a.writers[key]; w != nil && w.agent != agent {
		return &WriterError{Machine: machine, Until: w.until}
	}
	a.writers[key] = &writer{agent: agent, until: now.Add(writerIdle)}
	return nil
}

func (a *admission) endTurn(repository string, machine point.MachineID, agent string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if w := a.writers[writerKey{repository, machine}]; w != nil && w.agent == agent {
		delete(a.writers, writerKey{repository, machine})
	}
}

// remember keeps a session at hand for its next request.
func (a *admission) remember(repository string, home Repository, s Session, agent string) *openSession {
	a.mu.Lock()
	defer a.mu.Unlock()
	key := sessionKey{repository, s.ID()}
	if known := a.sessions[key]; known != nil && known.home == home {
		return known // two requests resumed it at the same time
	}
	if len(a.sessions) >= maxSessions {
		var oldest sessionKey
		var seen time.Time
		for k, o := range a.sessions {
			if seen.IsZero() || o.seen.Before(seen) {
				oldest, seen = k, o.seen
			}
		}
		delete(a.sessions, oldest)
	}
	o := &openSession{Session: s, home: home, agent: agent, seen: a.now()}
	a.sessions[key] = o
	return o
}

func (a *admission) recall(repository string, home Repository, id chunk.SessionID) *openSession {
	a.mu.Lock()
	defer a.mu.Unlock()
	o := a.sessions[sessionKey{repository, id}]
	if o == nil || o.home != home {
		return nil
	}
	o.seen = a.now()
	return o
}

func (a *admission) forget(repository string, o *openSession) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.sessions, sessionKey{repository, o.ID()})
}
