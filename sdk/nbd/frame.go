package nbd

import (
	"crypto/tls"
	"net"
	"sync/atomic"
	"time"
)

const (
	// writePiece is how much of a message has to leave within one time-out, so
	// that a large message on a slow link is not taken for a dead peer.
	writePiece = 1 << 20
	// joinLimit is how much of a body is copied behind its header where the
	// connection cannot write two buffers at once, so that the header does not
	// become a TLS record and a packet of its own.
	joinLimit = 16 << 10
	// readAhead is the buffer in front of a connection. Headers come out of it;
	// a payload's first bytes too, and the rest is received in place.
	readAhead = 8 << 10
)

// frameWriter writes a header and a body as one message. Its caller sees to it
// that one message is written at a time.
type frameWriter struct {
	conn    net.Conn
	timeout time.Duration
	joined  bool // the connection cannot gather

	scratch []byte
	pair    [2][]byte
	gather  net.Buffers
}

func newFrameWriter(conn net.Conn, timeout time.Duration) *frameWriter {
	w := &frameWriter{conn: conn, timeout: timeout, joined: true}
	socket := conn
	if c, ok := conn.(*counted); ok {
		socket = c.Conn
	}
	switch socket.(type) {
	case *net.TCPConn, *net.UnixConn:
		w.joined = false
	}
	return w
}

// secured reports whether the connection is encrypted.
func secured(conn net.Conn) bool {
	_, ok := conn.(*tls.Conn)
	return ok
}

func (w *frameWriter) write(head, body []byte) error {
	first := min(len(body), writePiece)
	if w.joined {
		first = min(len(body), joinLimit)
	}
	if err := w.writeFirst(head, body[:first]); err != nil {
		return err
	}
	for body = body[first:]; len(body) > 0; {
		n := min(len(body), writePiece)
		if err := w.push(body[:n]); err != nil {
			return err
		}
		body = body[n:]
	}
	return nil
}

func (w *frameWriter) writeFirst(head, body []byte) error {
	switch {
	case len(body) == 0:
		return w.push(head)
	case w.joined:
		w.scratch = append(append(w.scratch[:0], head...), body...)
		return w.push(w.scratch)
	}
	if err := w.conn.SetWriteDeadline(time.Now().Add(w.timeout)); err != nil {
		return err
	}
	w.pair = [2][]byte{head, body}
	w.gather = w.pair[:]
	var err error
	if c, ok := w.conn.(*counted); ok {
		err = c.writeTwo(&w.gather)
	} else {
		_, err = w.gather.WriteTo(w.conn)
	}
	w.pair = [2][]byte{}
	return err
}

func (w *frameWriter) push(b []byte) error {
	if err := w.conn.SetWriteDeadline(time.Now().Add(w.timeout)); err != nil {
		return err
	}
	_, err := w.conn.Write(b)
	return err
}

// pulse is a connection's reading side that remembers when it last gave bytes.
type pulse struct {
	conn  net.Conn
	start time.Time
	last  atomic.Int64 // nanoseconds since start
}

func newPulse(conn net.Conn) *pulse { return &pulse{conn: conn, start: time.Now()} }

func (p *pulse) Read(b []byte) (int, error) {
	n, err := p.conn.Read(b)
	if n > 0 {
		p.last.Store(int64(time.Since(p.start)))
	}
	return n, err
}

// beat is when the peer last sent something.
func (p *pulse) beat() time.Time { return p.start.Add(time.Duration(p.last.Load())) }
