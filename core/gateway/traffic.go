package gateway

import (
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/holdfast-dr/holdfast/core/tenant"
)

// Traffic is what moved over the wire since the process started, as one end
// counted it.
type Traffic struct {
	ReceivedBytes int64 // from the sockets: handshakes, TLS, headers and all
	SentBytes     int64
	PutBytes      int64 // of records that agents sent and sessions took
	NewBytes      int64 // of those, what the repositories did not have; told by a server only
	ReadBytes     int64 // of records that agents fetched
}

// tally counts for one tenant, or for one client.
type tally struct {
	received, sent, put, new, read atomic.Int64
}

func (t *tally) traffic() Traffic {
	return Traffic{ReceivedBytes: t.received.Load(), SentBytes: t.sent.Load(), PutBytes: t.put.Load(),
		NewBytes: t.new.Load(), ReadBytes: t.read.Load()}
}

// socket is a connection below TLS whose bytes are counted. TLS writes a record
// at a time, of 16 KiB; while it gathers, they go out gatherBytes at once, which
// spares both ends most system calls and wake-ups.
type socket struct {
	net.Conn
	received, sent *atomic.Int64
	moved          atomic.Int64 // when bytes moved last, in nanoseconds since 1970

	mu       sync.Mutex // guards what follows, and keeps writes in order
	gathers  bool
	gathered []byte // written and not sent
	failed   error  // what was gathered did not go out whole: nothing may follow it
}

func (s *socket) Read(b []byte) (int, error) {
	n, err := s.Conn.Read(b)
	s.count(s.received, n)
	return n, err
}

func (s *socket) Write(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.gathered)+len(b) > cap(s.gathered) {
		s.flush()
	}
	switch {
	case s.failed != nil:
		return 0, s.failed
	case !s.gathers || len(b) > cap(s.gathered):
		return s.write(b)
	}
	s.gathered = append(s.gathered, b...)
	return len(b), nil
}

func (s *socket) write(b []byte) (int, error) {
	n, err := s.Conn.Write(b)
	s.count(s.sent, n)
	return n, err
}

// flush sends what was gathered; mu is held.
func (s *socket) flush() {
	if len(s.gathered) > 0 && s.failed == nil {
		_, s.failed = s.write(s.gathered)
	}
	s.gathered = s.gathered[:0]
}

const (
	recordBytes = 16 << 10 // of content in a TLS record, at most
	// gatherBytes is what a socket gathers before it writes: eight whole records.
	gatherBytes = 8 * (recordBytes + 256)
)

var gatherBuffers = sync.Pool{New: func() any { b := make([]byte, 0, gatherBytes); return &b }}

// gather makes the socket gather what is written until that is called off. An
// error of the last write is found by the next one, as with any socket.
func (s *socket) gather() (callOff func()) {
	buffer := gatherBuffers.Get().(*[]byte)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.gathers, s.gathered = true, *buffer
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.flush()
		s.gathers, s.gathered = false, nil
		gatherBuffers.Put(buffer)
	}
}

// gather makes the connection of a request gather, until the answer is written.
func (q *request) gather() (callOff func()) {
	if l, ok := q.Context().Value(lineKey{}).(*line); ok {
		return l.gather()
	}
	return func() {}
}

func (s *socket) count(sum *atomic.Int64, n int) {
	if n > 0 {
		sum.Add(int64(n))
		s.moved.Store(time.Now().UnixNano())
	}
}

// Traffic is what moved between this server and a tenant's agents, over the
// connections that are open and those that are not any more.
func (s *Server) Traffic(id tenant.ID) Traffic {
	s.door.mu.Lock() // before s.mu, as when a connection leaves: it is counted here or there
	defer s.door.mu.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	var sum Traffic
	if t := s.tallies[id]; t != nil {
		sum = t.traffic()
	}
	for l := range s.door.lines {
		if l.agent != "" && l.tenant == id {
			sum.ReceivedBytes += l.counted.received.Load()
			sum.SentBytes += l.counted.sent.Load()
		}
	}
	return sum
}

// tallyOf is a tenant's counters; s.mu is held.
func (s *Server) tallyOf(id tenant.ID) *tally {
	t := s.tallies[id]
	if t == nil {
		t = new(tally)
		s.tallies[id] = t
	}
	return t
}

// settle adds what a connection moved to its tenant's counters when it ends; the
// door's lock is held.
func (s *Server) settle(l *line) {
	if l.agent == "" {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	t := s.tallyOf(l.tenant)
	t.received.Add(l.counted.received.Load())
	t.sent.Add(l.counted.sent.Load())
}

// tally is that of the request's tenant.
func (s *Server) tally(q *request) *tally {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.tallyOf(q.agent.TenantID)
}

// Traffic is what moved between this client and the server.
func (c *Client) Traffic() Traffic { return c.tally.traffic() }
