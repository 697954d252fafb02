package conformance

import (
	"net"
	"sync"
)

// Wire is the way of disk data from a host to the back-end. Checks cut it in
// the middle of a transfer, and hold what is on it as long as a host that was
// stopped would. The zero Wire passes everything.
type Wire struct {
	mutex sync.Mutex // guards the fields below
	conns map[*strand]bool
	seen  int64         // bytes in both directions, ever
	cut   int64         // at which count everything is cut; 0: never
	stuck chan struct{} // closed when something is held
}

// Wrap puts a connection on the wire.
func (w *Wire) Wrap(conn net.Conn) net.Conn {
	s := &strand{Conn: conn, wire: w, closed: make(chan struct{})}
	w.mutex.Lock()
	defer w.mutex.Unlock()
	if w.conns == nil {
		w.conns = make(map[*strand]bool)
	}
	w.conns[s] = true
	return s
}

// carried is how many bytes the wire has seen.
func (w *Wire) carried() int64 {
	w.mutex.Lock()
	defer w.mutex.Unlock()
	return w.seen
}

// cutAfter ends every connection once n more bytes have passed.
func (w *Wire) cutAfter(n int64) {
	w.mutex.Lock()
	defer w.mutex.Unlock()
	w.cut = w.seen + n
}

// mend lets everything pass again that is connected from now on.
func (w *Wire) mend() {
	w.mutex.Lock()
	defer w.mutex.Unlock()
	w.cut = 0
}

// holdAfter lets n more bytes from the host pass on each connection that there
// is now, and holds the others until release. The channel is closed when
// something is held.
func (w *Wire) holdAfter(n int64) <-chan struct{} {
	w.mutex.Lock()
	defer w.mutex.Unlock()
	w.stuck = make(chan struct{})
	for s := range w.conns {
		s.allowance, s.released = n, make(chan struct{})
	}
	return w.stuck
}

// release lets everything pass that is held.
func (w *Wire) release() {
	w.mutex.Lock()
	defer w.mutex.Unlock()
	for s := range w.conns {
		if s.released != nil {
			close(s.released)
			s.released = nil
		}
	}
}

// strand is one connection of a Wire.
type strand struct {
	net.Conn
	wire    *Wire
	closing sync.Once
	closed  chan struct{}

	// Guarded by the wire's mutex.
	allowance int64         // from the host, while released is not nil
	released  chan struct{} // nil: nothing is held
}

func (s *strand) Read(p []byte) (int, error) {
	n, err := s.Conn.Read(p)
	s.wire.count(n)
	return n, err
}

// Write passes p on in up to two parts, when it has to wait between them.
func (s *strand) Write(p []byte) (int, error) {
	now, wait := s.admit(len(p))
	n, err := s.pass(p[:now])
	if err != nil || wait == nil {
		return n, err
	}
	select {
	case <-wait:
	case <-s.closed:
		return n, net.ErrClosed
	}
	after, err := s.pass(p[now:])
	return n + after, err
}

// admit says how much of a write may pass now, and what the rest waits for.
func (s *strand) admit(n int) (now int, wait chan struct{}) {
	s.wire.mutex.Lock()
	defer s.wire.mutex.Unlock()
	if s.released == nil || int64(n) <= s.allowance {
		s.allowance -= int64(n)
		return n, nil
	}
	now = int(max(s.allowance, 0))
	s.allowance = 0
	select {
	case <-s.wire.stuck:
	default:
		close(s.wire.stuck)
	}
	return now, s.released
}

// pass writes, up to the byte at which the wire is cut.
func (s *strand) pass(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	s.wire.mutex.Lock()
	if left := s.wire.cut - s.wire.seen; s.wire.cut > 0 && left < int64(len(p)) {
		p = p[:max(left, 0)]
	}
	s.wire.mutex.Unlock()
	n, err := s.Conn.Write(p)
	if s.wire.count(max(n, 1)) && err == nil {
		err = net.ErrClosed
	}
	return n, err
}

// count notes bytes that have passed, and reports whether that cut the wire.
func (w *Wire) count(n int) bool {
	w.mutex.Lock()
	w.seen += int64(n)
	var ended []*strand
	if w.cut > 0 && w.seen >= w.cut {
		for s := range w.conns {
			ended = append(ended, s)
		}
	}
	w.mutex.Unlock()
	for _, s := range ended {
		_ = s.Close()
	}
	return len(ended) > 0
}

// Close takes the connection off the wire.
func (s *strand) Close() error {
	err := net.ErrClosed
	s.closing.Do(func() {
		close(s.closed)
		s.wire.mutex.Lock()
		delete(s.wire.conns, s)
		s.wire.mutex.Unlock()
		err = s.Conn.Close()
	})
	return err
}
