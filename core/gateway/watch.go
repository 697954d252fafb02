package gateway

import (
	"context"
	"crypto/tls"
	"net/http/httptrace"
	"net/textproto"
	"sync"
	"time"
)

// silence is how long nothing at all may move on the connection of a request
// before the connection counts as lost. A server that works says a word every
// beat.
const silence = 30 * time.Second

// mute is the same for a question or a batch, where the server does not say that
// it works.
const mute = time.Minute

// watch ends an attempt on whose connection nothing moves although the other end
// has something to say: it promised interim answers, or is in the middle of one.
type watch struct {
	limit  time.Duration
	cancel context.CancelCauseFunc

	mu    sync.Mutex
	armed bool
	conn  *socket
	timer *time.Timer

	gathers bool   // the connection gathers while the request is written
	callOff func() // ends that; nil: it does not gather
}

type watchKey struct{}

// newWatch begins to watch an attempt, from the moment that it has a connection:
// with quiet, if that is not 0, and with limit if the server promised to beat; the
// shorter one counts. Without either it watches from the first call of expect. With
// gathers, the records of the request are sent several at a time.
func newWatch(ctx context.Context, quiet, limit time.Duration, beats, gathers bool) (context.Context, *watch) {
	armed := beats || quiet > 0
	if quiet > 0 && (!beats || quiet < limit) {
		limit = quiet
	}
	ctx, cancel := context.WithCancelCause(ctx)
	w := &watch{limit: limit, cancel: cancel, armed: armed, gathers: gathers}
	w.timer = time.AfterFunc(limit, w.look)
	w.timer.Stop()
	trace := &httptrace.ClientTrace{
		GotConn: func(i httptrace.GotConnInfo) {
			conn := i.Conn
			if t, ok := conn.(*tls.Conn); ok {
				conn = t.NetConn()
			}
			if s, ok := conn.(*socket); ok {
				w.on(s)
			}
		},
		WroteRequest:   func(httptrace.WroteRequestInfo) { w.wrote() },
		Got1xxResponse: func(int, textproto.MIMEHeader) error { return nil }, // any number of them
	}
	return context.WithValue(httptrace.WithClientTrace(ctx, trace), watchKey{}, w), w
}

// on watches a connection. An attempt that goes over to another one begins anew.
func (w *watch) on(s *socket) {
	s.moved.Store(time.Now().UnixNano())
	w.wrote() // to the one before
	w.mu.Lock()
	defer w.mu.Unlock()
	w.conn = s
	if w.gathers {
		w.callOff = s.gather()
	}
	if w.armed {
		w.timer.Reset(w.limit)
	}
}

// wrote has what the connection gathered sent, when all of the request was
// written, or nothing more of it will be. It may be called again.
func (w *watch) wrote() {
	w.mu.Lock()
	callOff := w.callOff
	w.callOff = nil
	w.mu.Unlock()
	if callOff != nil {
		callOff() // without the lock: sending may take as long as the line is slow
	}
}

// expect says whether bytes are to come now; it is this end that takes its time
// otherwise.
func (w *watch) expect(bytes bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.armed = bytes
	if w.conn == nil {
		return
	}
	if !bytes {
		w.timer.Stop()
		return
	}
	w.conn.moved.Store(time.Now().UnixNano())
	w.timer.Reset(w.limit)
}

func (w *watch) look() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.armed {
		return
	}
	if quiet := time.Since(time.Unix(0, w.conn.moved.Load())); quiet < w.limit {
		w.timer.Reset(w.limit - quiet)
		return
	}
	w.cancel(errSilent)
}

func (w *watch) end() {
	w.expect(false)
	w.cancel(nil)
	w.wrote() // after that: what was not written whole needs not go out
}
