package nbd

import (
	"context"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
)

// farEnd counts what passes at the other side of a client's sockets.
type farEnd struct {
	net.Conn
	received, sent *atomic.Int64
}

func (f farEnd) Read(b []byte) (int, error) {
	n, err := f.Conn.Read(b)
	f.received.Add(int64(n))
	return n, err
}

func (f farEnd) Write(b []byte) (int, error) {
	n, err := f.Conn.Write(b)
	f.sent.Add(int64(n))
	return n, err
}

// What the client counts is what its disk's bytes are, no more, and what a
// counter below it saw.
func TestStatsAreWhatMoved(t *testing.T) {
	const size = 16 << 20
	for _, how := range []string{"TLS", "plain", "plain, through the socket itself"} {
		secure, direct := how == "TLS", strings.HasSuffix(how, "itself")
		m := randomMemory(size, 1) // data in the first and the third quarter
		s, ca := single("disk", m.export()), newAuthority(t)
		if secure {
			s = tlsServer(t, ca, m.export())
		}
		path := listen(t, s)
		o := Options{Network: "unix", Addr: path, Export: "disk", Connections: 3}
		if secure {
			a, err := AddressOptions(ca.address(path, ca.issue(t)))
			if err != nil {
				t.Fatal(err)
			}
			o.TLS, o.Export = a.TLS, a.Export
		}
		var received, sent atomic.Int64
		dialer := func(ctx context.Context) (net.Conn, error) {
			var d net.Dialer
			conn, err := d.DialContext(ctx, "unix", path)
			return farEnd{conn, &received, &sent}, err
		}
		if !direct {
			o.Dialer = dialer
		}
		c, err := Dial(t.Context(), o)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = c.Close() }()

		opened := c.Stats()
		if opened.ReadBytes != 0 || opened.WrittenBytes != 0 || opened.ReceivedBytes < 100 || opened.SentBytes < 50 {
			t.Errorf("%s: after the handshake %+v", how, opened)
		}
		var readers sync.WaitGroup
		for i := range 4 {
			readers.Go(func() {
				b := make([]byte, size/4)
				if _, err := c.ReadAt(b, int64(i)*size/4); err != nil {
					t.Error(err)
				}
			})
		}
		readers.Wait()
		read := c.Stats()
		if read.ReadBytes != size/2 || read.WrittenBytes != 0 {
			t.Errorf("%s: %d bytes read of a disk with %d of data", how, read.ReadBytes, size/2)
		}
		if more := read.ReceivedBytes - opened.ReceivedBytes; more < size/2 || more > size/2+size/50 {
			t.Errorf("%s: %d bytes received for %d", how, more, size/2)
		}
		if _, err := c.WriteAt(make([]byte, 3<<20), 512<<10); err != nil {
			t.Fatal(err)
		}
		if err := c.Zero(0, size); err != nil {
			t.Fatal(err)
		}
		if err := c.Flush(); err != nil {
			t.Fatal(err)
		}
		all := c.Stats()
		if all.WrittenBytes != 3<<20 || all.ReadBytes != size/2 {
			t.Errorf("%s: after a write of 3 MiB %+v", how, all)
		}
		if more := all.SentBytes - read.SentBytes; more < 3<<20 || more > 3<<20+100<<10 {
			t.Errorf("%s: %d bytes sent for 3 MiB", how, more)
		}
		if !direct && (all.ReceivedBytes != received.Load() || all.SentBytes != sent.Load()) {
			t.Errorf("%s: %+v, the socket saw %d received and %d sent", how, all, received.Load(), sent.Load())
		}
		_ = c.Close()
		if closed := c.Stats(); closed.ReadBytes != all.ReadBytes || closed.SentBytes < all.SentBytes {
			t.Errorf("%s: after Close %+v, before %+v", how, closed, all)
		}
	}
}
