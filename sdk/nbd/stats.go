package nbd

import (
	"net"
	"sync/atomic"
)

// Stats is what moved between a Client and its server since Dial. Reads of what
// the server only named as a hole, and zeroes that were only named, move nothing.
type Stats struct {
	ReadBytes    int64 // of the disk, received as data, through the sockets or shared memory
	WrittenBytes int64 // of the disk, sent as data
	// ReceivedBytes and SentBytes are all that passed through the sockets:
	// handshakes, TLS, requests and replies.
	ReceivedBytes int64
	SentBytes     int64
}

// Add is the sum of both.
func (s Stats) Add(o Stats) Stats {
	return Stats{
		ReadBytes: s.ReadBytes + o.ReadBytes, WrittenBytes: s.WrittenBytes + o.WrittenBytes,
		ReceivedBytes: s.ReceivedBytes + o.ReceivedBytes, SentBytes: s.SentBytes + o.SentBytes,
	}
}

// Metered is a disk whose traffic is counted where it crosses the border of the
// process. A Client is one, and so is whatever reads or writes through one.
type Metered interface {
	Stats() Stats
}

var (
	_ Metered = (*Client)(nil)
	_ Metered = (*Disk)(nil)
)

// Stats is what moved so far. It may be asked while requests are in flight, and
// after Close.
func (c *Client) Stats() Stats {
	return Stats{
		ReadBytes: c.tally.read.Load(), WrittenBytes: c.tally.written.Load(),
		ReceivedBytes: c.tally.received.Load(), SentBytes: c.tally.sent.Load(),
	}
}

// tally counts what moves over the connections of one client.
type tally struct {
	read, written, received, sent atomic.Int64
}

// counted is a connection's socket.
type counted struct {
	net.Conn
	tally *tally
}

func (c *counted) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	c.tally.received.Add(int64(n))
	return n, err
}

func (c *counted) Write(b []byte) (int, error) {
	n, err := c.Conn.Write(b)
	c.tally.sent.Add(int64(n))
	return n, err
}

// writeTwo writes two buffers at once, if the socket can.
func (c *counted) writeTwo(b *net.Buffers) error {
	n, err := b.WriteTo(c.Conn)
	c.tally.sent.Add(n)
	return err
}
