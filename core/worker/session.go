package worker

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"github.com/holdfast-dr/holdfast/sdk"
	"github.com/holdfast-dr/holdfast/sdk/plugin"
)

// Bounds of one session.
const (
	maxCarried = 4096 // streams
	maxPending = 1024 // requests without an answer
)

// session is the hub's end of a connected worker.
type session struct {
	hub     *Hub
	conn    *tls.Conn
	record  Record
	about   About
	address string
	since   time.Time
	lost    chan struct{} // closed when it is over

	writing sync.Mutex // one frame at a time

	mutex     sync.Mutex // guards the fields below
	err       error      // why it is over
	last      uint64     // request
	pending   map[uint64]chan answer
	waiting   map[string]chan net.Conn // for streams, by token
	streams   map[*carried]bool
	processes map[string]*far
}

// far is a process on the worker.
type far struct {
	ended chan struct{} // closed when it has ended or cannot be reached
	once  sync.Once
}

func (f *far) end() { f.once.Do(func() { close(f.ended) }) }

func newSession(h *Hub, conn *tls.Conn, r Record, about About) *session {
	about.Version, about.OS, about.Arch = clip(about.Version, maxWord), clip(about.OS, maxWord), clip(about.Arch, maxWord)
	return &session{
		hub: h, conn: conn, record: r, about: about, address: conn.RemoteAddr().String(), since: h.now(), lost: make(chan struct{}),
		pending: make(map[uint64]chan answer), waiting: make(map[string]chan net.Conn),
		streams: make(map[*carried]bool), processes: make(map[string]*far),
	}
}

// run works until the session is over, and says why. After it nothing of the
// session is left.
func (s *session) run(ctx context.Context) error {
	defer context.AfterFunc(ctx, func() { s.fail(context.Cause(ctx)) })()
	if err := s.write(welcome{ID: s.record.ID, Name: s.record.Name}); err != nil {
		s.fail(err)
	}
	var beats sync.WaitGroup
	beats.Go(func() { beat(s.hub.beat, s.lost, func() { s.fail(s.write(nil)) }) })
	select {
	case <-s.lost: // before it began
	default:
		s.hub.log.Info("worker connected", "worker", s.record.Name, "address", s.address, "version", s.about.Version, "arch", s.about.Arch)
	}
	for {
		_ = s.conn.SetReadDeadline(time.Now().Add(s.hub.silence))
		var a answer
		isBeat, err := readFrame(s.conn, maxAnswer, &a)
		if err != nil {
			s.fail(heard(err, s.hub.silence))
			break
		}
		if !isBeat {
			s.answered(a)
		}
	}
	beats.Wait()
	s.mutex.Lock()
	defer s.mutex.Unlock()
	return s.err
}

// heard says what the end of a connection means.
func heard(err error, silence time.Duration) error {
	if e, ok := errors.AsType[net.Error](err); ok && e.Timeout() {
		return fmt.Errorf("nothing was heard for %s", silence)
	}
	if errors.Is(err, io.EOF) {
		return errors.New("it closed the connection")
	}
	return err
}

// beat calls f every so often until over is closed.
func beat(every time.Duration, over <-chan struct{}, f func()) {
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		select {
		case <-over:
			return
		case <-tick.C:
			f()
		}
	}
}

// write writes a frame; nil is a beat.
func (s *session) write(message any) error {
	s.writing.Lock()
	defer s.writing.Unlock()
	_ = s.conn.SetWriteDeadline(time.Now().Add(s.hub.silence))
	return writeFrame(s.conn, message)
}

// fail ends the session with everything in it; nil does nothing.
func (s *session) fail(err error) {
	if err == nil {
		return
	}
	s.mutex.Lock()
	if s.err != nil {
		s.mutex.Unlock()
		return
	}
	s.err = err
	close(s.lost)
	streams, processes := s.streams, s.processes
	s.streams, s.processes = nil, nil
	s.mutex.Unlock()
	_ = s.conn.NetConn().Close() // not politely: the other end may be gone
	for c := range streams {
		_ = c.Conn.Close()
	}
	for _, f := range processes {
		f.end()
	}
}

// isLost is why nothing of the session can be reached, or nil.
func (s *session) isLost() error {
	select {
	case <-s.lost:
		return s.over()
	default:
		return nil
	}
}

// over is the error of whatever a lost session cannot do.
func (s *session) over() error {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	return s.overLocked()
}

func (s *session) overLocked() error {
	return sdk.Errorf(sdk.ErrUnavailable, sdk.FaultHost, "worker %s was lost: %v", s.record.Name, s.err)
}

// answered takes an answer, or the news that a process has ended.
func (s *session) answered(a answer) {
	s.mutex.Lock()
	waiting := s.pending[a.ID]
	delete(s.pending, a.ID)
	var ended *far
	if a.ID == 0 {
		ended = s.processes[a.Ended]
		delete(s.processes, a.Ended)
	}
	s.mutex.Unlock()
	if ended != nil {
		ended.end()
	}
	if waiting != nil {
		waiting <- a // has room for the one answer
	}
}

// ask sends a request and waits for its answer.
func (s *session) ask(ctx context.Context, r request) (answer, error) {
	reply := make(chan answer, 1)
	s.mutex.Lock()
	switch {
	case s.err != nil:
		defer s.mutex.Unlock()
		return answer{}, s.overLocked()
	case len(s.pending) >= maxPending:
		defer s.mutex.Unlock()
		return answer{}, sdk.Errorf(sdk.ErrBusy, sdk.FaultHost, "worker %s has not answered %d requests", s.record.Name, maxPending)
	}
	s.last++
	r.ID = s.last
	s.pending[r.ID] = reply
	s.mutex.Unlock()
	defer func() {
		s.mutex.Lock()
		delete(s.pending, r.ID)
		s.mutex.Unlock()
	}()
	if err := s.write(r); err != nil {
		s.fail(err)
		return answer{}, s.over()
	}
	select {
	case a := <-reply:
		return a, a.Error.err()
	case <-s.lost:
		return answer{}, s.over()
	case <-ctx.Done():
		return answer{}, fmt.Errorf("wait for worker %s: %w", s.record.Name, ctx.Err())
	}
}

// stream asks for a stream and waits until the worker has brought it.
func (s *session) stream(ctx context.Context, r request) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, carryLimit)
	defer cancel()
	r.Token = rand.Text()
	arrived := make(chan net.Conn, 1)
	s.mutex.Lock()
	switch {
	case s.err != nil:
		defer s.mutex.Unlock()
		return nil, s.overLocked()
	case len(s.waiting)+len(s.streams) >= maxCarried:
		defer s.mutex.Unlock()
		return nil, sdk.Errorf(sdk.ErrBusy, sdk.FaultHost, "worker %s carries %d streams", s.record.Name, maxCarried)
	}
	s.waiting[r.Token] = arrived
	s.mutex.Unlock()
	defer func() {
		s.mutex.Lock()
		delete(s.waiting, r.Token)
		s.mutex.Unlock()
		select {
		case late := <-arrived: // nobody takes it any more
			_ = late.Close()
		default:
		}
	}()
	if _, err := s.ask(ctx, r); err != nil {
		return nil, err
	}
	select {
	case conn := <-arrived:
		return conn, nil
	case <-s.lost:
		return nil, s.over()
	case <-ctx.Done():
		return nil, fmt.Errorf("wait for a stream of worker %s: %w", s.record.Name, ctx.Err())
	}
}

// arrive hands a stream to who waits for its token.
func (s *session) arrive(token string, conn *tls.Conn) error {
	_ = conn.SetDeadline(time.Time{})
	s.mutex.Lock()
	defer s.mutex.Unlock()
	arrived, ok := s.waiting[token]
	if !ok || s.err != nil {
		return errors.New("a stream that nobody waits for")
	}
	delete(s.waiting, token) // it is good for one
	c := &carried{Conn: conn, session: s}
	s.streams[c] = true
	arrived <- c // has room
	return nil
}

// carried is a stream that ends with its session.
type carried struct {
	net.Conn
	session *session
}

// Close closes the stream.
func (c *carried) Close() error {
	c.session.mutex.Lock()
	delete(c.session.streams, c)
	c.session.mutex.Unlock()
	return c.Conn.Close()
}

// running is how many processes there are.
func (s *session) running() int {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	return len(s.processes)
}

// Arch is the architecture of a worker, as GOARCH. Like the methods below it
// answers sdk.ErrUnavailable while that worker is not connected.
func (h *Hub) Arch(_ context.Context, worker string) (string, error) {
	s, err := h.session(worker)
	if err != nil {
		return "", err
	}
	return s.about.Arch, nil
}

// Inspect asks a worker for the checksum of a plugin's program there, and what
// that program says of itself. The program is run for that.
func (h *Hub) Inspect(ctx context.Context, worker, name string) (sha256 string, d plugin.Description, err error) {
	s, err := h.session(worker)
	if err != nil {
		return "", d, err
	}
	a, err := s.ask(ctx, request{Do: doInspect, Plugin: name})
	if err != nil {
		return "", d, fmt.Errorf("inspect plugin %s on worker %s: %w", name, s.record.Name, err)
	}
	if err := json.Unmarshal(a.Description, &d); err != nil || d.Name != name || len(d.Version) > maxWord || !isChecksum(a.SHA256) {
		return "", d, sdk.Errorf(sdk.ErrInvalid, sdk.FaultPlugin, "worker %s describes plugin %s in a way that makes no sense", s.record.Name, name)
	}
	return a.SHA256, d, nil
}

// isChecksum says whether a text is a SHA-256 in lower-case hex.
func isChecksum(s string) bool {
	for _, r := range s {
		if (r < '0' || r > '9') && (r < 'a' || r > 'f') {
			return false
		}
	}
	return len(s) == 64
}

// Start starts the program of a plugin on a worker, if it has the checksum of
// the launch there, and connects it to its endpoint. Path and RunDir of the
// launch do not count. ctx bounds the start alone. The process is done when it
// has ended or its worker is lost.
func (h *Hub) Start(ctx context.Context, worker, name string, l plugin.Launch) (*plugin.Process, error) {
	s, err := h.session(worker)
	if err != nil {
		return nil, err
	}
	p, err := s.start(ctx, name, l)
	if err != nil {
		return nil, fmt.Errorf("on worker %s: %w", s.record.Name, err)
	}
	return p, nil
}

func (s *session) start(ctx context.Context, name string, l plugin.Launch) (*plugin.Process, error) {
	id, f := rand.Text(), &far{ended: make(chan struct{})}
	s.mutex.Lock()
	if s.err != nil {
		defer s.mutex.Unlock()
		return nil, s.overLocked()
	}
	s.processes[id] = f
	s.mutex.Unlock()
	end := func() { s.stop(id, f) }
	a, err := s.ask(ctx, request{Do: doStart, Process: id, Plugin: name, SHA256: l.SHA256, Limits: l.Limits})
	if err != nil {
		end() // it may have been started
		return nil, err
	}
	log, err := s.stream(ctx, request{Do: doCarryLog, Process: id})
	if err != nil {
		end()
		return nil, err
	}
	if l.Log != nil {
		l.Log = l.Log.With("worker", s.record.Name)
	}
	return plugin.Attach(ctx, plugin.Attachment{
		Plugin: name, PID: a.PID, Ended: f.ended, End: end, Log: log, Lost: s.isLost,
		Calls: func(ctx context.Context) (net.Conn, error) {
			return s.stream(ctx, request{Do: doCarryCall, Process: id})
		},
		Disk: func(ctx context.Context, handle string) (net.Conn, error) {
			return s.stream(ctx, request{Do: doCarryDisk, Process: id, Handle: handle})
		},
	}, l)
}

// stop ends a process and waits until the worker says so, within a limit.
func (s *session) stop(id string, f *far) {
	defer f.end()
	s.mutex.Lock()
	_, runs := s.processes[id]
	s.mutex.Unlock()
	if !runs {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), stopLimit)
	defer cancel()
	if _, err := s.ask(ctx, request{Do: doStop, Process: id}); err != nil && !errors.Is(err, sdk.ErrNotFound) {
		s.hub.log.Warn("end a plugin", "worker", s.record.Name, "err", err)
		return // it counts as running until the worker says otherwise
	}
	s.mutex.Lock()
	delete(s.processes, id)
	s.mutex.Unlock()
}
