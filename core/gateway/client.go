package gateway

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	"golang.org/x/sync/errgroup"

	"github.com/holdfast-dr/holdfast/core/pki"
)

// The client's defaults and bounds.
const (
	// DefaultConnections carry enough in flight for a few hundred milliseconds of
	// round trip with batches of 4 MiB.
	DefaultConnections = 8
	// DefaultPatience outlasts the restart of a server.
	DefaultPatience = 2 * time.Minute

	handshakeAttempt = 20 * time.Second

	firstWait      = 100 * time.Millisecond
	lastWait       = 10 * time.Second
	controlAttempt = 2 * time.Minute
	dataAttempt    = 10 * time.Minute // a batch of 16 MiB at 27 KiB/s
	commitAttempt  = commitTimeout + time.Minute
	// maxRenewals bounds how often one request is repeated with a new certificate:
	// it may meet connections that others opened with the old one.
	maxRenewals = DefaultConnections + 1
	maxAnswer   = 16 << 20 // of a JSON answer
)

// Options say which provider a Client speaks to, and as whom.
type Options struct {
	Address string    // host or host:port
	Trust   pki.Trust // how the provider is known; judged in the handshake, before anything is sent
	// Certificate is asked at every new connection, so a renewed one comes into
	// use by itself. Nil before the agent is enrolled.
	Certificate func() (*tls.Certificate, error)
	// Expired is called when the provider says that the certificate has expired,
	// whatever the clock here says. If it succeeds, Certificate has another one,
	// and the request is repeated with it. May be nil.
	Expired     func(context.Context) error
	Connections int           // 0: DefaultConnections
	Patience    time.Duration // how long a request is repeated after it first failed; 0: DefaultPatience
	Version     string        // of the program
	Log         *slog.Logger  // nil: slog.Default
	// Dial replaces the network, for tests.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)

	protocol string        // another version of the wire, for tests
	silence  time.Duration // 0: silence
}

// Client is the agent's end of the wire. It is safe for several goroutines.
type Client struct {
	options Options
	base    string
	http    *http.Client
	serving atomic.Int64 // nanoseconds that the server said it took, in sum
	reached atomic.Int64 // nanoseconds that a quick connection took to be there
	beats   atomic.Bool  // the server promises interim answers
	tally   tally
}

// NewClient makes a client. It connects when it is first used.
func NewClient(o Options) (*Client, error) {
	address, err := Address(o.Address)
	if err != nil {
		return nil, err
	}
	if len(o.Trust.Pins) == 0 && !o.Trust.System {
		return nil, errors.New("connect to the provider: neither a fingerprint nor the system's authorities say how to verify it")
	}
	if o.Connections <= 0 {
		o.Connections = DefaultConnections
	}
	if o.Patience <= 0 {
		o.Patience = DefaultPatience
	}
	if o.Log == nil {
		o.Log = slog.Default()
	}
	if o.Dial == nil {
		o.Dial = (&net.Dialer{Timeout: 15 * time.Second,
			KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: 15 * time.Second, Interval: 15 * time.Second, Count: 4}}).DialContext
	}
	if o.silence <= 0 {
		o.silence = silence
	}
	if o.protocol == "" {
		o.protocol = strconv.Itoa(Version)
	}
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	config := o.Trust.ClientConfig(host, o.Certificate)
	config.DynamicRecordSizingDisabled = true // batches: throughput counts, not the first byte
	c := &Client{options: o, base: "https://" + address}
	transport := &http.Transport{
		DialTLSContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			return c.dial(ctx, network, address, config)
		},
		MaxConnsPerHost: o.Connections, MaxIdleConnsPerHost: o.Connections, IdleConnTimeout: idleTimeout / 2,
		DisableCompression: true, WriteBufferSize: 128 << 10,
		ReadBufferSize:        16 << 10, // what one TLS record carries; larger reads pass it by
		ExpectContinueTimeout: time.Second, Protocols: new(http.Protocols),
	}
	transport.Protocols.SetHTTP1(true)
	c.http = &http.Client{Transport: transport, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	return c, nil
}

// dial connects, with a socket below TLS that counts, and gathers what is sent.
func (c *Client) dial(ctx context.Context, network, address string, config *tls.Config) (net.Conn, error) {
	began := time.Now()
	conn, err := c.options.Dial(ctx, network, address)
	if err != nil {
		return nil, err
	}
	c.reach(time.Since(began))
	secure := tls.Client(&socket{Conn: conn, received: &c.tally.received, sent: &c.tally.sent}, config)
	ctx, cancel := context.WithTimeoutCause(ctx, handshakeAttempt, errHandshake)
	defer cancel()
	if err := secure.HandshakeContext(ctx); err != nil {
		_ = conn.Close()
		if errors.Is(context.Cause(ctx), errHandshake) {
			err = fmt.Errorf("%w: %w", errHandshake, err)
		}
		return nil, err
	}
	return secure, nil
}

// Address completes a provider's address with the port.
func Address(s string) (string, error) {
	if s == "" {
		return "", errors.New("the provider's address is missing")
	}
	host, port, err := net.SplitHostPort(s)
	if err != nil {
		host, port = s, Port
		if len(s) > 1 && s[0] == '[' && s[len(s)-1] == ']' {
			host = s[1 : len(s)-1]
		}
	}
	if n, err := strconv.Atoi(port); err != nil || n < 1 || n > 65535 || host == "" {
		return "", fmt.Errorf("address %.200q: want HOST or HOST:PORT", s)
	}
	if u, err := url.Parse("https://" + net.JoinHostPort(host, port)); err != nil || u.Host != net.JoinHostPort(host, port) || strings.ContainsAny(host, "[]") {
		return "", fmt.Errorf("address %.200q: want HOST or HOST:PORT", s)
	}
	return net.JoinHostPort(host, port), nil
}

// Close ends idle connections. Requests in flight end with their contexts.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// ServerTime is how long the server worked on this client's requests, as it
// said itself.
func (c *Client) ServerTime() time.Duration { return time.Duration(c.serving.Load()) }

// reach notes how long a connection took to be there. What counts is the
// quickest of late, which says how long the line is, and not how busy both ends
// are.
func (c *Client) reach(took time.Duration) {
	if last := c.reached.Load(); last > 0 {
		took = min(took, time.Duration(last+last/8))
	}
	c.reached.Store(int64(took))
}

// Connect opens connections until there are n, with as many small questions at
// once. On a long line a connection that is opened when it is needed finds the line
// full of those before it, and stays behind them for long.
func (c *Client) Connect(ctx context.Context, n int) error {
	var g errgroup.Group
	for range min(n, c.options.Connections) {
		g.Go(func() error { _, err := c.Site(ctx); return err })
	}
	return g.Wait()
}

// RoundTripTime is about the time of the line, as connections found it: once
// there and back, and looking up the name before. 0 if there was none yet.
func (c *Client) RoundTripTime() time.Duration { return time.Duration(c.reached.Load()) }

// Enrol redeems a one-time token for the key of a certificate request (DER). It
// may be repeated with the same key.
func (c *Client) Enrol(ctx context.Context, token string, request []byte) (Credentials, error) {
	var out Credentials
	err := c.call(ctx, "POST", "/v1/enrol", EnrolRequest{Token: token, Request: request}, &out)
	return out, wrap(err, "enrol")
}

const renewPath = "/v1/agent/certificate"

// Renew gets the next certificate for the same key.
func (c *Client) Renew(ctx context.Context, request []byte) (Credentials, error) {
	var out Credentials
	err := c.call(ctx, "POST", renewPath, RenewRequest{Request: request}, &out)
	return out, wrap(err, "renew certificate")
}

// Site asks for the agent's place at the provider.
func (c *Client) Site(ctx context.Context) (Site, error) {
	var out Site
	err := c.call(ctx, "GET", "/v1/agent/site", nil, &out)
	return out, wrap(err, "ask the provider for the site")
}

// Report tells the provider of a run.
func (c *Client) Report(ctx context.Context, run string, e RunEvent) error {
	return wrap(c.call(ctx, "POST", "/v1/agent/runs/"+url.PathEscape(run)+"/events", e, nil), "report run")
}

func wrap(err error, what string) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s: %w", what, err)
}

type taskKey struct{}

// WithTask says for which disk the requests of a context work; the provider
// limits how many disks a tenant moves at once. Without it a session is one
// task, and so is all reading of an agent.
func WithTask(ctx context.Context, name string) context.Context {
	return context.WithValue(ctx, taskKey{}, name)
}

// exchange is one request of the client, which can be repeated.
type exchange struct {
	method, path string
	body         []byte
	kind         string // media type of the body
	attempt      time.Duration
	// quiet, if set, ends an attempt during which no byte moves on its connection
	// for so long, also if the server never promised to beat: for what it answers
	// without much thought.
	quiet time.Duration
	// answer reads a good answer. An error that is not final repeats the
	// exchange.
	answer func(*http.Response) error
}

// call exchanges JSON for JSON.
func (c *Client) call(ctx context.Context, method, path string, in, out any) error {
	x := exchange{method: method, path: path, attempt: controlAttempt}
	if in != nil {
		body, err := json.Marshal(in)
		if err != nil {
			return fmt.Errorf("encode request: %w", err)
		}
		x.body, x.kind = body, "application/json"
	}
	x.answer = func(r *http.Response) error { return readJSON(r, out) }
	return c.do(ctx, x)
}

func readJSON(r *http.Response, out any) error {
	if out == nil {
		return nil
	}
	b, err := readAnswer(r, maxAnswer)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(b, out); err != nil {
		return finally(fmt.Errorf("the server's answer is not of this wire: %w", err))
	}
	return nil
}

// readAnswer reads a whole body of at most limit bytes.
func readAnswer(r *http.Response, limit int64) ([]byte, error) {
	b, err := io.ReadAll(io.LimitReader(r.Body, limit+1))
	if err != nil {
		return nil, fmt.Errorf("read answer: %w", err)
	}
	if int64(len(b)) > limit {
		return nil, finally(fmt.Errorf("the server's answer is larger than %d bytes", limit))
	}
	return b, nil
}

// finalError is one that repeating does not help.
type finalError struct{ error }

func (e finalError) Unwrap() error { return e.error }

func finally(err error) error { return finalError{err} }

// Temporary tells whoever repeats requests that repeating this one can help.
func (p *Problem) Temporary() bool { return p.RetryAfter > 0 }

// do repeats an exchange until it succeeds, is refused for good, or patience
// ends. Waiting for the tenant's own tasks has no end but the context's.
func (c *Client) do(ctx context.Context, x exchange) error {
	id := uuid.Must(uuid.NewV7()).String() // the same for every attempt, so that logs show them together
	wait := firstWait
	var failed time.Time // first; the attempt that failed then may have taken long
	for renewals := 0; ; {
		err := c.once(ctx, x, id)
		if err == nil {
			return nil
		}
		if x.path != renewPath && renewals < maxRenewals && c.renewed(ctx, err) {
			renewals++
			continue
		}
		if final, ok := errors.AsType[finalError](err); ok {
			return final.error
		}
		if ctx.Err() != nil {
			return fmt.Errorf("%w (%w)", context.Cause(ctx), err)
		}
		pause, again := c.pause(err, wait)
		if failed.IsZero() {
			failed = time.Now()
		}
		if _, tasks := errors.AsType[*TasksError](err); !tasks && time.Since(failed)+pause > c.options.Patience {
			again = false
		}
		if !again {
			return err
		}
		c.options.Log.Debug("request is repeated", "request", id, "path", x.path, "in", pause, "error", err)
		timer := time.NewTimer(pause)
		select {
		case <-ctx.Done():
			timer.Stop()
			return fmt.Errorf("%w (%w)", context.Cause(ctx), err)
		case <-timer.C:
		}
		wait = min(2*wait, lastWait)
	}
}

// renewed reports whether an exchange failed because the certificate had
// expired, and another one has come into use. Connections carry the old one, so
// they are closed.
func (c *Client) renewed(ctx context.Context, err error) bool {
	p, ok := errors.AsType[*Problem](err)
	if !ok || p.Code != CodeExpired || c.options.Expired == nil {
		return false
	}
	if err := c.options.Expired(ctx); err != nil {
		c.options.Log.Warn("renew the expired certificate", "error", err)
		return false
	}
	c.http.CloseIdleConnections()
	return true
}

// pause is how long to wait before the next attempt, with jitter, so that a
// thousand agents do not return to a restarted server at one moment.
func (c *Client) pause(err error, wait time.Duration) (pause time.Duration, again bool) {
	if _, ok := errors.AsType[*TasksError](err); ok {
		return time.Second/2 + rand.N(time.Second), true
	}
	if p, ok := errors.AsType[*Problem](err); ok {
		if !p.Temporary() {
			return 0, false
		}
		return max(wait, min(time.Duration(p.RetryAfter)*time.Second, lastWait))/2 + rand.N(wait), true
	}
	if !transient(err) {
		return 0, false
	}
	return wait/2 + rand.N(wait), true
}

// transient says whether an error that did not come from the server may go
// away by itself. Distrust never does.
func transient(err error) bool {
	if _, ok := errors.AsType[*pki.UntrustedError](err); ok {
		return false
	}
	if _, ok := errors.AsType[tls.AlertError](err); ok {
		return false
	}
	if _, ok := errors.AsType[tls.RecordHeaderError](err); ok {
		return false // not TLS at all
	}
	if dns, ok := errors.AsType[*net.DNSError](err); ok {
		return !dns.IsNotFound
	}
	return !isTyped(err)
}

// isTyped says whether an error is a refusal in the form of its own type.
func isTyped(err error) bool {
	for _, m := range mappings {
		if m.code == CodeUnavailable {
			continue // a time-out of one attempt
		}
		if _, ok := m.match(err); ok {
			return true
		}
	}
	return errors.Is(err, ErrSessionClosed)
}

// once makes one attempt.
func (c *Client) once(ctx context.Context, x exchange, id string) error {
	ctx, cancel := context.WithTimeoutCause(ctx, x.attempt, errLate)
	defer cancel()
	ctx, watch := newWatch(ctx, x.quiet, c.options.silence, c.beats.Load(), len(x.body) > recordBytes)
	defer watch.end()
	var body io.Reader
	if x.body != nil {
		body = bytes.NewReader(x.body)
	}
	r, err := http.NewRequestWithContext(ctx, x.method, c.base+x.path, body)
	if err != nil {
		return finally(fmt.Errorf("make request: %w", err))
	}
	r.Header.Set(HeaderVersion, c.options.protocol)
	r.Header.Set(HeaderRequest, id)
	r.Header.Set(HeaderAgent, c.options.Version)
	r.Header.Set("User-Agent", "holdfast/"+c.options.Version)
	if x.kind != "" {
		r.Header.Set("Content-Type", x.kind)
	}
	if task, ok := ctx.Value(taskKey{}).(string); ok {
		r.Header.Set(HeaderTask, task)
	}
	err = c.exchange(r, x)
	if err != nil {
		if cause := context.Cause(ctx); errors.Is(cause, errLate) || errors.Is(cause, errSilent) {
			if _, final := errors.AsType[finalError](err); !final {
				return fmt.Errorf("%w: %w", cause, err)
			}
		}
	}
	return err
}

func (c *Client) exchange(r *http.Request, x exchange) error {
	answer, err := c.http.Do(r)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	c.took(answer.Header)
	c.beats.Store(answer.Header.Get(HeaderAlive) != "")
	if answer.StatusCode/100 != 2 {
		return ReadProblem(answer.StatusCode, answer.Header.Get("Content-Type"), answer.Body).Err()
	}
	if err := x.answer(answer); err != nil {
		return err
	}
	_, _ = io.CopyN(io.Discard, answer.Body, 1) // the end of the body frees the connection
	return nil
}

// took adds what the server says of its own time.
func (c *Client) took(h http.Header) {
	if n, err := strconv.ParseInt(h.Get(HeaderTook), 10, 64); err == nil && n > 0 && n < int64(24*time.Hour/time.Microsecond) {
		c.serving.Add(n * int64(time.Microsecond))
	}
}

var (
	errLate      = errors.New("the server did not answer in time")
	errSilent    = errors.New("nothing moved on the connection for too long")
	errHandshake = errors.New("the server did not end the TLS handshake in time")
)
