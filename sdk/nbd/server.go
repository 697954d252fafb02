package nbd

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/holdfast-dr/holdfast/sdk"
)

// Server serves disks over NBD. Only Exports is needed. A Server is not copied
// and its fields are not changed after the first Serve.
type Server struct {
	// Exports gives the export of a name. Each connection asks once for a name,
	// so a client of several connections asks several times. The name "" is the
	// default export. An error refuses the client, which is told no more than
	// its kind: sdk.ErrNotFound, sdk.ErrDenied (also for ErrFenced).
	Exports func(name string) (Export, error)

	// List names the exports for clients that ask. Nil: clients are told that
	// they may not ask, and a name can be a secret.
	List func() []string

	// TLS, if set, is offered with STARTTLS; its ClientAuth and ClientCAs say
	// whose certificates are wanted. The version is at least 1.3 unless
	// AllowTLS12 is set. RequireTLS refuses everything before STARTTLS.
	TLS        *tls.Config
	AllowTLS12 bool
	RequireTLS bool

	// HandshakeTimeout bounds the time from connection to transmission, TLS
	// included; 0 means DefaultHandshakeTimeout.
	HandshakeTimeout time.Duration

	// Timeout is how long a client may stop in the middle of sending a request
	// or of receiving a reply; 0 means DefaultTransferTimeout. A client may be
	// idle between requests for as long as it likes.
	Timeout time.Duration

	// MaxConnections is how many connections are served at a time, those in
	// the handshake included; 0 means DefaultMaxConnections. The ones above
	// are closed at once.
	MaxConnections int

	// Log is told about failed connections and panics of exports; nil: nobody.
	Log *slog.Logger

	mu       sync.Mutex // guards the fields below
	closed   bool
	sessions map[*session]struct{}
	serving  sync.WaitGroup // sessions and Serve calls; added to under mu
	stop     chan struct{}  // closed by Close
}

// Defaults of a Server.
const (
	DefaultHandshakeTimeout = 15 * time.Second
	// DefaultTransferTimeout is longer than the client's: a stopped client
	// costs the server memory, a stopped server costs the client its job.
	DefaultTransferTimeout = 2 * time.Minute
	DefaultMaxConnections  = 256
)

// ErrServerClosed is what Serve returns after Close.
var ErrServerClosed = fmt.Errorf("nbd server: %w", net.ErrClosed)

// errKicked is why a session ended that Kick cut. Kick cannot tell a disk that
// was closed in good order from one that a later claim took over, so neither
// does this; who kicks knows, and a fenced writer is told by Exports.
var errKicked = errors.New("cut by this server: the disk was closed or opened anew")

func (s *Server) handshakeTimeout() time.Duration {
	if s.HandshakeTimeout > 0 {
		return s.HandshakeTimeout
	}
	return DefaultHandshakeTimeout
}

func (s *Server) timeout() time.Duration {
	if s.Timeout > 0 {
		return s.Timeout
	}
	return DefaultTransferTimeout
}

func (s *Server) maxConnections() int {
	if s.MaxConnections > 0 {
		return s.MaxConnections
	}
	return DefaultMaxConnections
}

func (s *Server) log() *slog.Logger {
	if s.Log != nil {
		return s.Log
	}
	return slog.New(slog.DiscardHandler)
}

// Serve accepts connections until ctx ends, Close is called or the listener
// fails, and returns when its connections have ended: each gets to answer the
// requests that it had received. The listener is closed.
func (s *Server) Serve(ctx context.Context, listener net.Listener) error {
	stop, ok := s.enter()
	if !ok {
		_ = listener.Close()
		return ErrServerClosed
	}
	defer s.serving.Done()
	ctx, cancel := context.WithCancel(ctx)
	var group sync.WaitGroup
	group.Go(func() {
		select {
		case <-stop:
		case <-ctx.Done():
		}
		cancel()
		_ = listener.Close()
	})
	err := s.accept(ctx, listener, &group)
	reason := context.Cause(ctx)
	cancel()
	group.Wait()
	select {
	case <-stop:
		return ErrServerClosed
	default:
	}
	if reason != nil {
		return reason
	}
	return fmt.Errorf("accept nbd client: %w", err)
}

// enter registers a call that Close waits for.
func (s *Server) enter() (<-chan struct{}, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stop == nil {
		s.stop = make(chan struct{})
	}
	if s.closed {
		return nil, false
	}
	s.serving.Add(1)
	return s.stop, true
}

// acceptPause is how long a server waits that ran out of file descriptors.
const acceptPause = 50 * time.Millisecond

func (s *Server) accept(ctx context.Context, listener net.Listener, group *sync.WaitGroup) error {
	for {
		conn, err := listener.Accept()
		if err == nil {
			group.Go(func() { s.serveAccepted(ctx, conn) })
			continue
		}
		var passing interface{ Temporary() bool }
		if ctx.Err() != nil || !errors.As(err, &passing) || !passing.Temporary() {
			return err
		}
		s.log().Warn("accept nbd client", "error", err)
		select {
		case <-ctx.Done():
			return err
		case <-time.After(acceptPause):
		}
	}
}

func (s *Server) serveAccepted(ctx context.Context, conn net.Conn) {
	err := s.ServeConn(ctx, conn)
	if err == nil || ctx.Err() != nil {
		return
	}
	level := slog.LevelInfo
	if errors.Is(err, errKicked) {
		level = slog.LevelDebug // what the server itself asked for, as at the end of every disk
	}
	s.log().Log(ctx, level, "nbd client", "peer", conn.RemoteAddr().String(), "error", err)
}

// ServeConn serves one connection until the client leaves, ctx ends or Close
// is called, and closes it. A client that leaves as it should is nil.
func (s *Server) ServeConn(ctx context.Context, conn net.Conn) error {
	n := newSession(s, conn)
	if err := s.admit(n); err != nil {
		_ = conn.Close()
		return err
	}
	defer s.dismiss(n)
	detach := context.AfterFunc(ctx, n.wind)
	defer detach()
	return n.serve(ctx)
}

func (s *Server) admit(n *session) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.closed:
		return ErrServerClosed
	case len(s.sessions) >= s.maxConnections():
		return fmt.Errorf("nbd server: %d connections already: %w", len(s.sessions), sdk.ErrBusy)
	}
	if s.sessions == nil {
		s.sessions = make(map[*session]struct{})
	}
	s.sessions[n] = struct{}{}
	s.serving.Add(1)
	return nil
}

func (s *Server) dismiss(n *session) {
	s.mu.Lock()
	delete(s.sessions, n)
	s.mu.Unlock()
	close(n.ended)
	s.serving.Done()
}

// Close stops accepting, lets every connection answer the requests that it has
// received, closes them and waits until all is done.
func (s *Server) Close() error {
	s.mu.Lock()
	if s.stop == nil {
		s.stop = make(chan struct{})
	}
	if !s.closed {
		s.closed = true
		close(s.stop)
	}
	for n := range s.sessions {
		n.wind()
	}
	s.mu.Unlock()
	s.serving.Wait()
	return nil
}

// Kick cuts every connection that opened, or is opening, the export of this
// name, and returns when no request of theirs is being carried out any more. To
// keep a fenced writer out, make Exports refuse the name first: a connection
// that is not cut asks Exports afterwards.
func (s *Server) Kick(ctx context.Context, name string) error {
	s.mu.Lock()
	var kicked []*session
	for n := range s.sessions {
		if n.cut(name) {
			kicked = append(kicked, n)
		}
	}
	s.mu.Unlock()
	for _, n := range kicked {
		select {
		case <-n.ended:
		case <-ctx.Done():
			return fmt.Errorf("kick nbd clients: %w", context.Cause(ctx))
		}
	}
	return nil
}

// left reports whether err means no more than that the client went away
// between two messages.
func left(err error) bool {
	return err == nil || errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF)
}
