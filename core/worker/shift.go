package worker

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/holdfast-dr/holdfast/sdk"
	"github.com/holdfast-dr/holdfast/sdk/plugin"
)

// Bounds of what one hub may ask for.
const (
	maxTasks     = 256 // requests that are worked on
	maxProcesses = 256
)

// copyBuffer is how much of a disk is copied at once: several TLS records for
// each read of the local socket.
const copyBuffer = 256 << 10

// shift is the worker's end of a session. What it started ends with it.
type shift struct {
	worker *Worker
	conn   *tls.Conn
	own    atomic.Pointer[Identity]
	lost   chan struct{} // closed when it is over
	ctx    context.Context
	cancel context.CancelFunc

	writing sync.Mutex // one frame at a time
	tasks   sync.WaitGroup
	room    chan struct{} // for tasks

	mutex     sync.Mutex // guards the fields below
	err       error      // why it is over
	processes map[string]*process
	streams   map[net.Conn]bool
}

// process is a plugin that runs for the hub, or is being started.
type process struct {
	ctx     context.Context // of its start
	cancel  context.CancelFunc
	started chan struct{} // closed when relay is set, or the start has failed
	relay   *plugin.Relay
	log     *backlog
}

func newProcess(ctx context.Context) *process {
	p := &process{started: make(chan struct{}), log: newBacklog()}
	p.ctx, p.cancel = context.WithCancel(ctx)
	return p
}

func newShift(w *Worker, id Identity, conn *tls.Conn) *shift {
	s := &shift{worker: w, conn: conn, lost: make(chan struct{}), room: make(chan struct{}, maxTasks),
		processes: make(map[string]*process), streams: make(map[net.Conn]bool)}
	s.own.Store(&id)
	s.ctx, s.cancel = context.WithCancel(context.Background())
	return s
}

func (s *shift) identity() Identity { return *s.own.Load() }

// run works until the session is over, and says why. After it nothing that the
// session started is left.
func (s *shift) run(ctx context.Context) error {
	defer context.AfterFunc(ctx, func() { s.fail(context.Cause(ctx)) })()
	s.tasks.Go(func() { beat(s.worker.options.Beat, s.lost, func() { s.fail(s.write(nil)) }) })
	for {
		_ = s.conn.SetReadDeadline(time.Now().Add(s.worker.options.Silence))
		var r request
		isBeat, err := readFrame(s.conn, maxRequest, &r)
		if err != nil {
			s.fail(heard(err, s.worker.options.Silence))
			break
		}
		if isBeat {
			continue
		}
		do := s.prepare(r)
		select {
		case s.room <- struct{}{}:
			s.tasks.Go(func() {
				defer func() { <-s.room }()
				s.work(r.ID, do)
			})
		default:
			if r.Do == doStart {
				s.forget(r.Process)
			}
			err = s.write(answer{ID: r.ID, Error: toWire(sdk.Errorf(sdk.ErrBusy, sdk.FaultHost, "the worker works on %d requests", maxTasks))})
			s.fail(err)
		}
	}
	s.endAll()
	s.tasks.Wait()
	s.mutex.Lock()
	defer s.mutex.Unlock()
	return sdk.Errorf(sdk.ErrUnavailable, sdk.FaultHost, "the agent was lost: %v", s.err)
}

func (s *shift) write(message any) error {
	s.writing.Lock()
	defer s.writing.Unlock()
	_ = s.conn.SetWriteDeadline(time.Now().Add(s.worker.options.Silence))
	return writeFrame(s.conn, message)
}

// fail ends the session; nil does nothing.
func (s *shift) fail(err error) {
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
	s.cancel()
	streams := s.streams
	s.streams = nil
	s.mutex.Unlock()
	_ = s.conn.NetConn().Close()
	for c := range streams {
		_ = c.Close()
	}
}

// endAll ends every process, all at once, and waits for their ends.
func (s *shift) endAll() {
	s.mutex.Lock()
	all := s.processes
	s.processes = nil
	s.mutex.Unlock()
	if len(all) > 0 {
		s.worker.log.Warn("the agent is gone: its plugins are ended", "plugins", len(all))
	}
	var ending sync.WaitGroup
	for _, p := range all {
		ending.Go(p.end)
	}
	ending.Wait()
}

// end ends a process and returns when it has ended.
func (p *process) end() {
	p.cancel()
	<-p.started
	if p.relay != nil {
		_ = p.relay.Close() // it only waits
	}
	_ = p.log.Close()
}

// work does what the hub asked for and answers.
func (s *shift) work(id uint64, do func() (answer, error)) {
	a, err := do()
	a.ID = id
	if err != nil {
		a = answer{ID: id, Error: toWire(err)}
	}
	s.fail(s.write(a))
}

// prepare is what a request asks for. Requests are worked on side by side, but a
// process is known from here on, so that a request which follows finds it.
func (s *shift) prepare(r request) func() (answer, error) {
	refuse := func(err error) func() (answer, error) {
		return func() (answer, error) { return answer{}, err }
	}
	if len(r.Process) > maxWord || len(r.Plugin) > maxWord || len(r.Handle) > maxHandle || len(r.Token) > maxWord {
		return refuse(sdk.Errorf(sdk.ErrInvalid, sdk.FaultHost, "a request that is too long"))
	}
	switch r.Do {
	case doInspect:
		return func() (answer, error) { return s.inspect(r) }
	case doStart:
		p := newProcess(s.ctx)
		if err := s.admit(r.Process, p); err != nil {
			p.cancel()
			return refuse(err)
		}
		return func() (answer, error) { return s.start(r, p) }
	case doStop:
		return func() (answer, error) { return answer{}, s.stop(r.Process) }
	case doCarryCall, doCarryLog, doCarryDisk:
		return func() (answer, error) { return answer{}, s.carry(r) }
	default:
		return refuse(sdk.Errorf(sdk.ErrUnsupported, sdk.FaultHost, "the worker does not know %q", clip(r.Do, maxWord)).
			WithHint("it runs version %s", s.worker.options.Version))
	}
}

func (s *shift) inspect(r request) (answer, error) {
	sum, d, err := s.worker.inspect(s.ctx, r.Plugin)
	if err != nil {
		return answer{}, err
	}
	doc, err := json.Marshal(d)
	return answer{SHA256: sum, Description: doc}, err
}

// start starts a process that was admitted.
func (s *shift) start(r request, p *process) (answer, error) {
	path, err := s.worker.find(r.Plugin)
	if err == nil {
		p.relay, err = plugin.StartRelay(p.ctx, plugin.Launch{Path: path, SHA256: r.SHA256, RunDir: s.worker.runDir, Limits: r.Limits}, p.log)
	}
	close(p.started)
	if err != nil {
		p.cancel()
		s.forget(r.Process)
		return answer{}, err
	}
	log := s.worker.log.With("plugin", r.Plugin, "pid", p.relay.PID())
	log.Info("plugin started")
	s.tasks.Go(func() {
		<-p.relay.Done()
		p.end()
		log.Info("plugin ended")
		if s.forget(r.Process) { // nobody asked for it
			s.fail(s.write(answer{Ended: r.Process}))
		}
	})
	return answer{PID: p.relay.PID()}, nil
}

// admit makes a process known.
func (s *shift) admit(id string, p *process) error {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	switch {
	case s.processes == nil || s.err != nil:
		return sdk.Errorf(sdk.ErrUnavailable, sdk.FaultHost, "the session is over")
	case id == "" || s.processes[id] != nil:
		return sdk.Errorf(sdk.ErrInvalid, sdk.FaultHost, "a process needs a name of its own")
	case len(s.processes) >= maxProcesses:
		return sdk.Errorf(sdk.ErrBusy, sdk.FaultHost, "the worker runs %d plugins", maxProcesses)
	}
	s.processes[id] = p
	return nil
}

// forget says whether the process was still known.
func (s *shift) forget(id string) bool {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	_, known := s.processes[id]
	delete(s.processes, id)
	return known
}

// stop ends a process; sdk.ErrNotFound if there is none.
func (s *shift) stop(id string) error {
	s.mutex.Lock()
	p := s.processes[id]
	delete(s.processes, id)
	s.mutex.Unlock()
	if p == nil {
		return sdk.Errorf(sdk.ErrNotFound, sdk.FaultHost, "there is no such process")
	}
	p.end()
	return nil
}

// gone is the error for a stream of a process that has ended.
func gone() error {
	return sdk.Errorf(sdk.ErrUnavailable, sdk.FaultPlugin, "the plugin's process has ended")
}

// carry opens what the hub wants to reach, and then a connection to the hub for
// it.
func (s *shift) carry(r request) error {
	s.mutex.Lock()
	p := s.processes[r.Process]
	s.mutex.Unlock()
	if p == nil {
		return gone()
	}
	select {
	case <-p.started:
	case <-s.lost:
	}
	if p.relay == nil {
		return gone()
	}
	ctx, cancel := context.WithTimeout(s.ctx, carryLimit)
	defer cancel()
	var disk net.Conn
	if r.Do == doCarryDisk {
		var err error
		if disk, err = p.relay.Dial(ctx, r.Handle); err != nil {
			return err
		}
	}
	id := s.identity()
	conn, err := id.dial(ctx, greeting{Do: doCarry, Token: r.Token})
	if err == nil {
		_ = conn.SetDeadline(time.Time{})
		err = s.keep(conn, disk)
	}
	if err != nil {
		if disk != nil {
			_ = disk.Close()
		}
		return fmt.Errorf("bring a stream: %w", err)
	}
	switch r.Do {
	case doCarryCall:
		p.relay.Serve(&kept{Conn: conn, shift: s})
	case doCarryLog:
		s.tasks.Go(func() {
			_, _ = io.Copy(conn, p.log)
			s.drop(conn)
		})
	case doCarryDisk:
		s.tasks.Go(func() { s.splice(conn, disk) })
	}
	return nil
}

// keep makes connections known, to be closed when the session is over.
func (s *shift) keep(conns ...net.Conn) error {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	for _, c := range conns {
		if c == nil {
			continue
		}
		if s.streams == nil {
			_ = c.Close()
			continue
		}
		s.streams[c] = true
	}
	if s.streams == nil {
		return errors.New("the session is over")
	}
	return nil
}

// drop closes a connection.
func (s *shift) drop(c net.Conn) {
	s.mutex.Lock()
	delete(s.streams, c)
	s.mutex.Unlock()
	_ = c.Close()
}

// kept is a connection that somebody else closes.
type kept struct {
	net.Conn
	shift *shift
}

// Close closes it.
func (k *kept) Close() error {
	k.shift.mutex.Lock()
	delete(k.shift.streams, k.Conn)
	k.shift.mutex.Unlock()
	return k.Conn.Close()
}

// splice copies both ways until one end closes.
func (s *shift) splice(a, b net.Conn) {
	var ways sync.WaitGroup
	one := func(to, from net.Conn) {
		// What hides the connections' own ReadFrom and WriteTo makes the
		// buffer count.
		_, _ = io.CopyBuffer(struct{ io.Writer }{to}, struct{ io.Reader }{from}, make([]byte, copyBuffer))
		s.drop(a)
		s.drop(b)
	}
	ways.Go(func() { one(a, b) })
	one(b, a)
	ways.Wait()
}
