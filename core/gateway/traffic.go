package gateway

import (
	"net"
	"sync/atomic"

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

// socket is a connection below TLS whose bytes are counted.
type socket struct {
	net.Conn
	received, sent *atomic.Int64
}

func (s *socket) Read(b []byte) (int, error) {
	n, err := s.Conn.Read(b)
	s.received.Add(int64(n))
	return n, err
}

func (s *socket) Write(b []byte) (int, error) {
	n, err := s.Conn.Write(b)
	s.sent.Add(int64(n))
	return n, err
}

// counting is a listener whose connections are sockets that count for
// themselves: whose they are turns out later.
type counting struct{ net.Listener }

func (l counting) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &socket{Conn: conn, received: new(atomic.Int64), sent: new(atomic.Int64)}, nil
}

// Traffic is what moved between this server and a tenant's agents, over the
// connections that are open and those that are not any more.
func (s *Server) Traffic(id tenant.ID) Traffic {
	s.mu.Lock()
	defer s.mu.Unlock()
	var sum Traffic
	if t := s.tallies[id]; t != nil {
		sum = t.traffic()
	}
	for l := range s.lines {
		l.mu.Lock()
		c, ok := l.conn.(*socket)
		if ok && l.agent != "" && l.tenant == id {
			sum.ReceivedBytes += c.received.Load()
			sum.SentBytes += c.sent.Load()
		}
		l.mu.Unlock()
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

// settle adds what a connection moved to its tenant's counters when it has
// ended; s.mu is held.
func (s *Server) settle(l *line) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if c, ok := l.conn.(*socket); ok && l.agent != "" {
		t := s.tallyOf(l.tenant)
		t.received.Add(c.received.Load())
		t.sent.Add(c.sent.Load())
	}
}

// tally is that of the request's tenant.
func (s *Server) tally(q *request) *tally {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.tallyOf(q.agent.TenantID)
}

// Traffic is what moved between this client and the server.
func (c *Client) Traffic() Traffic { return c.tally.traffic() }
