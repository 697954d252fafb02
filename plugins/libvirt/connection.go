package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/url"
	"sync"
	"syscall"
	"time"

	"github.com/digitalocean/go-libvirt"

	"github.com/holdfast-dr/holdfast/sdk"
)

const (
	// callLimit bounds one call of libvirt, far above what any that is used here takes, and below sdk.CallLimit.
	callLimit = 20 * time.Second
	// workLimit bounds a method that makes several calls.
	workLimit = 26 * time.Second
	// cancelGrace is how long a call may go on after its context has ended, before the connection is given up.
	cancelGrace = 2 * time.Second
	dialLimit   = 10 * time.Second
)

const (
	systemSocket   = "/var/run/libvirt/libvirt-sock"
	tcpDefaultPort = "16509"
	tlsDefaultPort = "16514"
)

// endpoint is where libvirt listens.
type endpoint struct {
	network string // unix or tcp
	addr    string
	host    string // of a remote one
	driver  libvirt.ConnectURI
	tls     *tls.Config
}

func (e endpoint) local() bool { return e.network == "unix" }

// parseEndpoint understands qemu:///system, qemu+unix:///system?socket=PATH, qemu+tcp://HOST/system and
// qemu+tls://HOST/system, and the same with /session.
func parseEndpoint(c Config) (endpoint, error) {
	u, err := url.Parse(c.URI)
	if err != nil {
		return endpoint{}, invalid("uri: %v", err)
	}
	var e endpoint
	switch u.Path {
	case "/system":
		e.driver = libvirt.QEMUSystem
	case "/session":
		e.driver = libvirt.QEMUSession
	default:
		return endpoint{}, invalid("uri %q ends neither in /system nor in /session", c.URI)
	}
	switch u.Scheme {
	case "qemu", "qemu+unix":
		e.network, e.addr = "unix", systemSocket
		if socket := u.Query().Get("socket"); socket != "" {
			e.addr = socket
		}
		if u.Host != "" {
			return endpoint{}, invalid("uri %q names a host: use qemu+tls", c.URI)
		}
		return e, nil
	case "qemu+tcp":
		e.network, e.addr = "tcp", hostPort(u, tcpDefaultPort)
	case "qemu+tls":
		e.network, e.addr = "tcp", hostPort(u, tlsDefaultPort)
		if e.tls, err = c.tls(u.Hostname()); err != nil {
			return endpoint{}, err
		}
	default:
		return endpoint{}, invalid("uri scheme %q is not one of qemu, qemu+unix, qemu+tcp, qemu+tls", u.Scheme)
	}
	if e.host = u.Hostname(); e.host == "" {
		return endpoint{}, invalid("uri %q names no host", c.URI)
	}
	return e, nil
}

func hostPort(u *url.URL, port string) string {
	if u.Port() != "" {
		port = u.Port()
	}
	return net.JoinHostPort(u.Hostname(), port)
}

// tls is how to reach a libvirt that demands certificates.
func (c Config) tls(host string) (*tls.Config, error) {
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM([]byte(c.CA)) {
		return nil, invalid("setting ca holds no certificate")
	}
	pair, err := tls.X509KeyPair([]byte(c.Cert), []byte(c.Key))
	if err != nil {
		// The text of the error never quotes the key.
		return nil, invalid("settings cert and key: %v", err)
	}
	return &tls.Config{RootCAs: pool, Certificates: []tls.Certificate{pair}, ServerName: host, MinVersion: tls.VersionTLS12}, nil
}

// Dial connects; it is what go-libvirt calls a dialer.
func (e endpoint) Dial() (net.Conn, error) {
	d := net.Dialer{Timeout: dialLimit}
	conn, err := d.Dial(e.network, e.addr)
	if err != nil || e.tls == nil {
		return conn, err
	}
	secure := tls.Client(conn, e.tls)
	if err := greet(secure); err != nil {
		_ = conn.Close()
		return nil, err
	}
	return secure, nil
}

// greet makes the handshake, after which libvirtd says in one byte whether it likes our certificate.
func greet(conn *tls.Conn) error {
	if err := conn.SetDeadline(time.Now().Add(dialLimit)); err != nil {
		return err
	}
	if err := conn.Handshake(); err != nil {
		return fmt.Errorf("tls handshake: %w", err)
	}
	var verdict [1]byte
	if _, err := conn.Read(verdict[:]); err != nil {
		return fmt.Errorf("wait for libvirt's opinion of our certificate: %w", err)
	}
	if verdict[0] != 1 {
		return errors.New("libvirt refuses our certificate or address")
	}
	return conn.SetDeadline(time.Time{})
}

// connection is one connection to libvirtd, made when it is needed and made again after it broke. Calls of several
// goroutines share it.
type connection struct {
	endpoint endpoint

	mu     sync.Mutex // guards what follows
	lv     *libvirt.Libvirt
	wire   net.Conn
	closed bool
}

// opening dials for go-libvirt and bounds the calls with which it opens a connection.
type opening struct {
	endpoint endpoint
	wire     net.Conn
	late     *time.Timer
}

func (o *opening) Dial() (net.Conn, error) {
	wire, err := o.endpoint.Dial()
	if err != nil {
		return nil, err
	}
	o.wire, o.late = wire, time.AfterFunc(callLimit, func() { _ = wire.Close() })
	return wire, nil
}

func (c *connection) open() (*libvirt.Libvirt, net.Conn, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil, nil, sdk.Errorf(sdk.ErrInvalid, sdk.FaultHost, "the platform is closed")
	}
	if c.lv != nil && c.lv.IsConnected() {
		return c.lv, c.wire, nil
	}
	c.drop()
	o := &opening{endpoint: c.endpoint}
	lv := libvirt.NewWithDialer(o)
	err := lv.ConnectToURI(c.endpoint.driver)
	if o.wire != nil {
		o.late.Stop()
	}
	if err != nil {
		if o.wire != nil {
			_ = o.wire.Close()
		}
		return nil, nil, unreachable(c.endpoint, err)
	}
	c.lv, c.wire = lv, o.wire
	return c.lv, c.wire, nil
}

func unreachable(e endpoint, err error) error {
	failure := sdk.Errorf(sdk.ErrUnavailable, sdk.FaultBackend, "connect to libvirt at %s: %v", e.addr, err).
		WithHint("check that libvirtd runs, listens there, and accepts these credentials")
	failure.After = 5 * time.Second
	return failure
}

// drop forgets a broken connection.
func (c *connection) drop() {
	if c.wire != nil {
		_ = c.wire.Close()
	}
	c.lv, c.wire = nil, nil
}

func (c *connection) close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closed = true
	c.drop()
	return nil
}

// ask makes one call. libvirt's protocol has no way to give up a call, so a call whose time is over takes the connection
// with it; others that wait on it fail as if libvirtd had restarted.
func ask[T any](ctx context.Context, c *connection, call func(*libvirt.Libvirt) (T, error)) (T, error) {
	answer, err := askOnce(ctx, c, call)
	if errors.Is(err, syscall.EINVAL) {
		// The connection had broken before the call was sent.
		answer, err = askOnce(ctx, c, call)
	}
	return answer, explain(err)
}

func askOnce[T any](ctx context.Context, c *connection, call func(*libvirt.Libvirt) (T, error)) (T, error) {
	var none T
	if err := ctx.Err(); err != nil {
		return none, err
	}
	lv, wire, err := c.open()
	if err != nil {
		return none, err
	}
	done := make(chan struct{})
	defer close(done)
	giveUp := func() {
		select {
		case <-done:
		default:
			_ = wire.Close()
		}
	}
	late := time.AfterFunc(callLimit, giveUp)
	defer late.Stop()
	stop := context.AfterFunc(ctx, func() { time.AfterFunc(cancelGrace, giveUp) })
	defer stop()
	return call(lv)
}

// do is ask for calls without an answer.
func do(ctx context.Context, c *connection, call func(*libvirt.Libvirt) error) error {
	_, err := ask(ctx, c, func(lv *libvirt.Libvirt) (struct{}, error) { return struct{}{}, call(lv) })
	return err
}
