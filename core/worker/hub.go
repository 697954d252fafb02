package worker

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/holdfast-dr/holdfast/core/access"
	"github.com/holdfast-dr/holdfast/core/audit"
	"github.com/holdfast-dr/holdfast/core/pki"
	"github.com/holdfast-dr/holdfast/core/tenant"
	"github.com/holdfast-dr/holdfast/sdk"
)

const (
	// maxStrangers is how many connections at once have not said who they are.
	maxStrangers = 64
	// rotateEvery is how often the age of the hub's own certificate is looked at.
	rotateEvery = time.Hour
	// acceptPause is how long the hub waits when the system gives it no
	// connection, for want of files for instance.
	acceptPause = 100 * time.Millisecond
)

// HubOptions are what a Hub is made of.
type HubOptions struct {
	Store     Store
	Authority *pki.Authority // of the workers' certificates and the hub's own
	Names     []string       // names and addresses in the hub's certificate
	Log       *slog.Logger   // nil: nothing is logged
	Clock     func() time.Time
	// Beat and Silence are those of the package where they are 0.
	Beat, Silence time.Duration
}

// Hub is where workers connect. Its methods may be called from several
// goroutines.
type Hub struct {
	store         Store
	authority     *pki.Authority
	certificate   *pki.Server
	tls           *tls.Config
	log           *slog.Logger
	now           func() time.Time
	beat, silence time.Duration
	strangers     chan struct{}
	attempts      *access.Attempts

	mutex    sync.Mutex          // guards sessions
	sessions map[string]*session // by the worker's id
}

// NewHub makes a hub that nobody reaches before Serve.
func NewHub(ctx context.Context, o HubOptions) (*Hub, error) {
	h := &Hub{store: o.Store, authority: o.Authority, log: o.Log, now: o.Clock, beat: o.Beat, silence: o.Silence,
		strangers: make(chan struct{}, maxStrangers), sessions: make(map[string]*session)}
	if h.log == nil {
		h.log = slog.New(slog.DiscardHandler)
	}
	if h.now == nil {
		h.now = time.Now
	}
	if h.beat <= 0 {
		h.beat = Beat
	}
	if h.silence <= 0 {
		h.silence = Silence
	}
	h.attempts = access.NewAttempts(h.now)
	var err error
	h.certificate, err = pki.NewServer(ctx, pki.Source{Authority: o.Authority, Names: o.Names, Log: h.log})
	if err != nil {
		return nil, fmt.Errorf("make the certificate for workers: %w", err)
	}
	h.tls = h.certificate.Config()
	h.tls.NextProtos = []string{protocol}
	h.tls.DynamicRecordSizingDisabled = true // disks, not pages
	return h, nil
}

// Fingerprint is what a worker compares.
func (h *Hub) Fingerprint() pki.Fingerprint { return h.authority.Fingerprint() }

// Serve takes connections until ctx ends, and returns when all of them have.
// The listener is closed.
func (h *Hub) Serve(ctx context.Context, l net.Listener) error {
	ctx, cancel := context.WithCancel(ctx)
	var running sync.WaitGroup
	defer running.Wait()
	defer cancel()
	defer context.AfterFunc(ctx, func() { _ = l.Close() })()
	running.Go(func() { h.certificate.Watch(ctx, rotateEvery) })
	for {
		conn, err := l.Accept()
		switch {
		case ctx.Err() != nil:
			if err == nil {
				_ = conn.Close()
			}
			return nil
		case errors.Is(err, net.ErrClosed):
			return fmt.Errorf("listen for workers: %w", err)
		case err != nil:
			h.log.Warn("accept a worker", "err", err)
			pause(ctx, acceptPause)
			continue
		}
		select {
		case h.strangers <- struct{}{}:
			running.Go(func() { h.meet(ctx, conn) })
		default:
			_ = conn.Close() // a flood of strangers; a worker tries again
		}
	}
}

// meet finds out who is at the other end, and does what they want. It returns
// when the connection has ended or became a stream.
func (h *Hub) meet(ctx context.Context, raw net.Conn) {
	stranger := true
	known := func() {
		if stranger {
			stranger = false
			<-h.strangers
		}
	}
	defer known()
	stop := context.AfterFunc(ctx, func() { _ = raw.Close() })
	defer stop()
	_ = raw.SetDeadline(time.Now().Add(meetLimit))
	conn := tls.Server(raw, h.tls)
	var g greeting
	err := conn.HandshakeContext(ctx)
	if err == nil && conn.ConnectionState().NegotiatedProtocol != protocol {
		err = fmt.Errorf("it does not speak %s", protocol)
	}
	if err == nil {
		err = readMessage(conn, maxGreeting, &g)
	}
	if err == nil {
		switch g.Do {
		case doEnrol:
			err = h.enrol(ctx, conn, g)
		case doRenew:
			err = h.renew(ctx, conn, g)
		case doServe:
			var r Record
			if r, err = h.identify(ctx, conn); err == nil {
				known()
				h.serve(ctx, conn, r, g.About)
				return
			}
		case doCarry:
			if err = h.carry(conn, g.Token); err == nil {
				return
			}
		default:
			err = sdk.Errorf(sdk.ErrUnsupported, sdk.FaultHost, "this version does not know %q", clip(g.Do, maxWord))
		}
	}
	if err != nil && ctx.Err() == nil {
		h.log.Info("refuse a worker", "address", raw.RemoteAddr().String(), "wants", clip(g.Do, maxWord), "err", err)
		if g.Do != "" && g.Do != doCarry {
			_ = writeFrame(conn, welcome{Error: toWire(err)}) // they may have gone
		}
	}
	_ = conn.Close()
}

// refused is an answer for those who may not come in. It says no more than a
// stranger may know.
func refused(format string, args ...any) *sdk.Error {
	return sdk.Errorf(sdk.ErrDenied, sdk.FaultHost, format, args...)
}

// enrol redeems a one-time token.
func (h *Hub) enrol(ctx context.Context, conn *tls.Conn, g greeting) error {
	done, err := h.attempts.Begin(conn.RemoteAddr().String(), "", "worker")
	if err != nil {
		return sdk.Errorf(sdk.ErrBusy, sdk.FaultHost, "%v", err)
	}
	record, chain, err := h.enrolled(ctx, conn, g)
	if errors.Is(err, access.ErrEnrolment) {
		done(access.ErrCredentials)
		return refused("the token is not valid: it is mistyped, used, or has expired").
			WithHint("ask for another one: holdfast worker invite NAME, at the agent")
	}
	done(err)
	if err != nil {
		return err
	}
	h.cut(record.ID, "it enrolled again")
	h.log.Info("worker enrolled", "worker", record.Name, "address", conn.RemoteAddr().String())
	return writeFrame(conn, welcome{ID: record.ID, Name: record.Name, Certificate: chain})
}

func (h *Hub) enrolled(ctx context.Context, conn *tls.Conn, g greeting) (Record, [][]byte, error) {
	token, err := access.HashEnrolmentToken(g.Token)
	if err != nil {
		return Record{}, nil, err
	}
	csr, key, err := pki.ParseRequest(g.Request)
	if err != nil {
		return Record{}, nil, sdk.Errorf(sdk.ErrInvalid, sdk.FaultHost, "%v", err)
	}
	origin := audit.System("worker", "enrol")
	origin.Address = conn.RemoteAddr().String()
	record, err := h.store.Enrol(audit.With(ctx, origin), token, access.Hash(key))
	if err != nil {
		return Record{}, nil, err
	}
	chain, err := h.authority.IssueWorker(csr, record.ID, h.now())
	return record, chain, err
}

// renew gives a worker a certificate with a new date for the same key.
func (h *Hub) renew(ctx context.Context, conn *tls.Conn, g greeting) error {
	id, record, err := h.known(ctx, conn)
	if err != nil {
		return err
	}
	csr, key, err := pki.ParseRequest(g.Request)
	if err != nil {
		return sdk.Errorf(sdk.ErrInvalid, sdk.FaultHost, "%v", err)
	}
	if !key.Equal(id.Key) {
		return refused("a certificate is renewed for the same key")
	}
	chain, err := h.authority.IssueWorker(csr, record.ID, h.now())
	if err != nil {
		return err
	}
	h.log.Info("worker's certificate renewed", "worker", record.Name)
	return writeFrame(conn, welcome{ID: record.ID, Name: record.Name, Certificate: chain})
}

// known says which worker a certificate is of. It may have expired.
func (h *Hub) known(ctx context.Context, conn *tls.Conn) (pki.WorkerIdentity, Record, error) {
	id, err := h.authority.VerifyWorker(conn.ConnectionState(), h.now())
	if err != nil {
		return id, Record{}, refused("%v", err).WithHint("enrol again: holdfast worker invite NAME at the agent, then holdfast worker connect here")
	}
	record, err := h.store.Worker(ctx, id.WorkerID)
	switch {
	case errors.Is(err, tenant.ErrNotFound):
		return id, record, refused("this worker was removed").WithHint("if it is still wanted: holdfast worker invite NAME at the agent, then holdfast worker connect here")
	case err != nil:
		return id, record, err
	case record.Key != access.Hash(id.Key):
		return id, record, refused("this worker has enrolled again with another key, from another place")
	}
	return id, record, nil
}

// identify says which worker is at the other end, with a certificate that holds.
func (h *Hub) identify(ctx context.Context, conn *tls.Conn) (Record, error) {
	id, record, err := h.known(ctx, conn)
	if err == nil && id.RenewOnly {
		err = refused("the certificate has expired and may only be renewed")
	}
	return record, err
}

// serve runs a session until it ends. A worker has one: the newest.
func (h *Hub) serve(ctx context.Context, conn *tls.Conn, r Record, about About) {
	s := newSession(h, conn, r, about)
	h.mutex.Lock()
	before := h.sessions[r.ID]
	h.sessions[r.ID] = s
	h.mutex.Unlock()
	if before != nil {
		before.fail(errors.New("the worker connected again"))
	}
	// It may have been removed since it was identified.
	if _, _, err := h.known(ctx, conn); err != nil {
		s.fail(err)
	}
	err := s.run(ctx)
	h.mutex.Lock()
	if h.sessions[r.ID] == s {
		delete(h.sessions, r.ID)
	}
	h.mutex.Unlock()
	if ctx.Err() == nil {
		h.log.Warn("worker lost", "worker", r.Name, "address", s.address, "err", err)
	}
}

// carry gives a stream to who asked for it. Only the worker whose session asked
// may bring it.
func (h *Hub) carry(conn *tls.Conn, token string) error {
	id, err := h.authority.VerifyWorker(conn.ConnectionState(), h.now())
	if err != nil {
		return err
	}
	h.mutex.Lock()
	s := h.sessions[id.WorkerID]
	h.mutex.Unlock()
	if s == nil || s.record.Key != access.Hash(id.Key) {
		return errors.New("a stream of a worker without a session")
	}
	return s.arrive(token, conn)
}

// cut ends the session of a worker.
func (h *Hub) cut(id, why string) {
	h.mutex.Lock()
	s := h.sessions[id]
	h.mutex.Unlock()
	if s != nil {
		s.fail(errors.New(why))
	}
}

// Invitation is what the person at the worker needs.
type Invitation struct {
	Worker  string
	Token   string // shown once
	Expires time.Time
}

// Invite makes a one-time token for a worker: a new one, or one that enrols
// again because its disk was lost. life is how long the token is good for; 0
// means DefaultInvitation.
func (h *Hub) Invite(ctx context.Context, name string, life time.Duration) (Invitation, error) {
	name = strings.TrimSpace(name)
	if err := CheckName(name); err != nil {
		return Invitation{}, err
	}
	if life == 0 {
		life = DefaultInvitation
	}
	if life < 0 || life > MaxInvitation {
		return Invitation{}, &tenant.InvalidError{Field: "expires", Reason: fmt.Sprintf("must be within %d days", int(MaxInvitation.Hours()/24))}
	}
	text, token := access.NewEnrolmentToken()
	record, err := h.store.Invite(ctx, name, token, h.now().Add(life))
	if err != nil {
		return Invitation{}, err
	}
	return Invitation{Worker: record.Name, Token: text, Expires: record.Expires}, nil
}

// Status is a worker as it is now.
type Status struct {
	Record
	Connected time.Time // since when; zero: it is not
	Address   string    // from where
	About     About
	Processes int // plugins that it runs
}

// Workers lists all workers, by name.
func (h *Hub) Workers(ctx context.Context) ([]Status, error) {
	records, err := h.store.Workers(ctx)
	if err != nil {
		return nil, err
	}
	all := make([]Status, len(records))
	for i, r := range records {
		all[i].Record = r
		h.mutex.Lock()
		s := h.sessions[r.ID]
		h.mutex.Unlock()
		if s != nil {
			all[i].Connected, all[i].Address, all[i].About, all[i].Processes = s.since, s.address, s.about, s.running()
		}
	}
	return all, nil
}

// Find finds a worker by name or id; tenant.ErrNotFound without one.
func (h *Hub) Find(ctx context.Context, name string) (Record, error) {
	records, err := h.store.Workers(ctx)
	if err != nil {
		return Record{}, err
	}
	at := slices.IndexFunc(records, func(r Record) bool { return r.ID == name || strings.EqualFold(r.Name, name) })
	if at < 0 {
		return Record{}, fmt.Errorf("worker %q: %w", name, tenant.ErrNotFound)
	}
	return records[at], nil
}

// Remove forgets a worker and cuts it off.
func (h *Hub) Remove(ctx context.Context, name string) error {
	r, err := h.Find(ctx, name)
	if err != nil {
		return err
	}
	if err := h.store.Remove(ctx, r.ID); err != nil {
		return err
	}
	h.cut(r.ID, "it was removed")
	return nil
}

// session is that of a worker, by name, which has to be connected.
func (h *Hub) session(name string) (*session, error) {
	h.mutex.Lock()
	defer h.mutex.Unlock()
	for _, s := range h.sessions {
		if strings.EqualFold(s.record.Name, name) {
			return s, nil
		}
	}
	return nil, sdk.Errorf(sdk.ErrUnavailable, sdk.FaultHost, "worker %s is not connected", name).
		WithHint("is holdfast worker serve running there? holdfast worker list shows what was seen of it")
}

// pause waits; false when ctx has ended.
func pause(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}
