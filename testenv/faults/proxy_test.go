package faults

import (
	"net"
	"sync"
	"sync/atomic"
	"testing"
)

// proxy stands between agent and server. It can lead elsewhere, leave the
// connections that are there without a byte and without an end, and reset them.
type proxy struct {
	address string
	// up and down are the bytes that connections carried to the server and back.
	up, down atomic.Int64
	listen   net.Listener
	work     sync.WaitGroup
	backend  atomic.Pointer[string]

	mutex sync.Mutex // guards the field below
	links map[*link]struct{}
}

// link is one connection through the proxy, both its halves.
type link struct {
	ends [2]*net.TCPConn
	gate chan struct{} // nil: open; else closed when the link goes on
}

func newProxy(t *testing.T, backend string) *proxy {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return newProxyAt(t, l, backend)
}

// newProxyAt is newProxy with the socket that it listens on, which it closes.
func newProxyAt(t *testing.T, l net.Listener, backend string) *proxy {
	t.Helper()
	p := &proxy{address: l.Addr().String(), listen: l, links: map[*link]struct{}{}}
	p.lead(backend)
	p.work.Go(p.accept)
	t.Cleanup(func() {
		_ = l.Close()
		p.reset()
		p.work.Wait()
	})
	return p
}

// freeAddress is an address on loopback that nobody listens on.
func freeAddress(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// lead sends new connections elsewhere.
func (p *proxy) lead(backend string) { p.backend.Store(&backend) }

func (p *proxy) accept() {
	for {
		from, err := p.listen.Accept()
		if err != nil {
			return
		}
		to, err := net.Dial("tcp", *p.backend.Load())
		if err != nil {
			_ = from.Close()
			continue
		}
		l := &link{ends: [2]*net.TCPConn{from.(*net.TCPConn), to.(*net.TCPConn)}}
		p.mutex.Lock()
		p.links[l] = struct{}{}
		p.mutex.Unlock()
		p.work.Go(func() { p.pass(l, 0, 1, &p.up) })
		p.work.Go(func() { p.pass(l, 1, 0, &p.down) })
	}
}

// pass copies one direction of a link until it ends, which ends the link.
func (p *proxy) pass(l *link, from, to int, carried *atomic.Int64) {
	buf := make([]byte, 32<<10)
	for {
		n, err := l.ends[from].Read(buf)
		carried.Add(int64(n))
		p.mutex.Lock()
		gate := l.gate
		p.mutex.Unlock()
		if gate != nil {
			<-gate
		}
		if n > 0 && err == nil {
			_, err = l.ends[to].Write(buf[:n])
		}
		if err != nil {
			break
		}
	}
	for _, end := range l.ends {
		_ = end.Close()
	}
	p.mutex.Lock()
	defer p.mutex.Unlock()
	delete(p.links, l)
}

// stall leaves every connection as it is: nothing passes, nothing is closed, for
// as long as they exist. New ones work.
func (p *proxy) stall() (stalled int) {
	p.mutex.Lock()
	defer p.mutex.Unlock()
	for l := range p.links {
		if l.gate == nil {
			l.gate = make(chan struct{})
			stalled++
		}
	}
	return stalled
}

// reset breaks every connection.
func (p *proxy) reset() {
	p.mutex.Lock()
	defer p.mutex.Unlock()
	for l := range p.links {
		for _, end := range l.ends {
			_ = end.SetLinger(0)
			_ = end.Close()
		}
		if l.gate != nil {
			close(l.gate)
			l.gate = nil
		}
	}
}
