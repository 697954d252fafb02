package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"github.com/google/uuid"

	"github.com/holdfast-dr/holdfast/core/agent"
	"github.com/holdfast-dr/holdfast/core/api"
	"github.com/holdfast-dr/holdfast/core/audit"
	"github.com/holdfast-dr/holdfast/core/client"
	"github.com/holdfast-dr/holdfast/core/host"
	"github.com/holdfast-dr/holdfast/core/pki"
	"github.com/holdfast-dr/holdfast/core/secret"
	"github.com/holdfast-dr/holdfast/core/state"
	"github.com/holdfast-dr/holdfast/core/worker"
)

// siteConfig is the agent's process configuration.
type siteConfig struct {
	Data    string   `mapstructure:"data"`       // directory of everything that the agent keeps
	Name    string   `mapstructure:"name"`       // of the site
	Key     string   `mapstructure:"master_key"` // file:PATH
	Plugins []string `mapstructure:"plugins"`    // directories with plugin programs
	Workers struct {
		Listen  string `mapstructure:"listen"`  // "" is off
		Address string `mapstructure:"address"` // what workers are told
	} `mapstructure:"workers"`
	Log      logConfig `mapstructure:"log"`
	Profiles string    `mapstructure:"profiles"` // socket on which profiles are served; "" is none

	cgroup string // to divide between plugins; "" is none
}

// site is an agent that was constructed, with what has to be closed after it.
type site struct {
	agent  *agent.Agent
	hub    *hub // nil: no workers connect
	closes []func() error
}

// longestRunDir leaves room for the names of plugins' sockets, which a unix
// socket's address bounds to 108 bytes.
const longestRunDir = 50

// openSite constructs the agent of a data directory. Only one process has it.
func openSite(ctx context.Context, c siteConfig, log *slog.Logger) (_ *site, err error) {
	if err := os.MkdirAll(c.Data, 0o700); err != nil {
		return nil, fmt.Errorf("make the agent's data directory: %w", err)
	}
	s := &site{}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.close())
		}
	}()
	db, err := state.OpenAgent(ctx, "sqlite:"+filepath.Join(c.Data, "agent.db"))
	if err != nil {
		return nil, withHint(err, "if an agent runs already, talk to it through its socket; else check the owner of %s", c.Data)
	}
	s.closes = append(s.closes, db.Close)
	key, created, err := secret.Open(c.Key)
	if err != nil {
		return nil, withHint(err, "the master key opens the credentials and keys in %s; restore it from your copy", c.Data)
	}
	if created {
		log.InfoContext(ctx, "master key made; it protects a stolen database, not this machine from its own root", "key", c.Key)
	}
	options := host.Options{Dirs: c.Plugins, Private: []string{c.Data}, Cgroup: c.cgroup, Log: log}
	if run := filepath.Join(c.Data, "run"); len(run) <= longestRunDir {
		options.RunDir = run
	}
	if c.Workers.Listen != "" {
		if s.hub, err = openHub(ctx, db, key, c, log); err != nil {
			return nil, err
		}
		s.closes = append(s.closes, s.hub.close) // after the plugins, which are ended through it
	}
	options.Starter = host.OnWorkers(s.workers())
	plugins, err := host.New(db.Hosts(key), options)
	if err != nil {
		return nil, err
	}
	s.closes = append(s.closes, plugins.Close)
	wire := agent.Gateway{Version: versionText(), Log: log}
	s.agent = &agent.Agent{
		Name: c.Name, Version: versionText(), Instance: uuid.Must(uuid.NewV7()).String(), Log: log,
		Store: db.Site(key), Runs: db.Runs(), Claims: db.Claims(), Host: db.Hosts(key), Plugins: plugins,
		Workers: s.workers(), WorkersAddress: c.Workers.Address,
		Dial: wire.Dial, Enrol: wire.Enrol,
	}
	s.closes = append(s.closes, s.agent.Close)
	return s, nil
}

// hub is where workers connect. It serves longer than the agent's other parts:
// what stops there in good order may need its plugins for that.
type hub struct {
	*worker.Hub
	serving context.Context
	stop    context.CancelFunc
	ended   chan struct{} // nil: it never served
}

// openHub makes where workers connect. Its authority is made at the first time.
func openHub(ctx context.Context, db *state.DB, key *secret.Key, c siteConfig, log *slog.Logger) (*hub, error) {
	if _, _, err := net.SplitHostPort(c.Workers.Listen); err != nil {
		return nil, withHint(fmt.Errorf("listen for workers: %w", err), "want ADDRESS:PORT, such as :%s", worker.DefaultPort)
	}
	authority, err := pki.LoadAuthority(audit.With(ctx, audit.System("agent", "first start")), db.Trust(), key, "Holdfast workers of "+c.Name, time.Now())
	if err != nil {
		return nil, err
	}
	at, _, _ := net.SplitHostPort(c.Workers.Address) // without a port it names nobody, which a pin allows
	h := &hub{}
	if h.Hub, err = worker.NewHub(ctx, worker.HubOptions{Store: db.Workers(), Authority: authority, Names: []string{at}, Log: log}); err != nil {
		return nil, err
	}
	h.serving, h.stop = context.WithCancel(context.WithoutCancel(ctx))
	return h, nil
}

// serve listens for workers, and returns when ctx ends; they stay connected
// until close.
func (h *hub) serve(ctx context.Context, address string, log *slog.Logger) error {
	listener, err := net.Listen("tcp", address)
	if err != nil {
		return withHint(fmt.Errorf("listen for workers: %w", err), "choose another address with --workers-listen")
	}
	log.InfoContext(ctx, "workers may connect", "address", listener.Addr().String(), "fingerprint", h.Fingerprint().String())
	h.ended = make(chan struct{})
	failed := make(chan error, 1)
	go func() {
		defer close(h.ended)
		failed <- h.Serve(h.serving, listener)
	}()
	select {
	case err := <-failed:
		return err
	case <-ctx.Done():
		return nil
	}
}

// close cuts off the workers and waits until they are.
func (h *hub) close() error {
	h.stop()
	if h.ended != nil {
		<-h.ended
	}
	return nil
}

// workers is the hub, or nil and no interface that holds one.
func (s *site) workers() agent.Workers {
	if s.hub == nil {
		return nil
	}
	return s.hub.Hub
}

// close ends everything, the newest first.
func (s *site) close() error {
	var failures []error
	for i := len(s.closes) - 1; i >= 0; i-- {
		failures = append(failures, s.closes[i]())
	}
	s.closes = nil
	return errors.Join(failures...)
}

// complete fills in what nobody configured.
func (c *siteConfig) complete(a *app) {
	if c.Data == "" {
		c.Data = a.dataDir("agent")
	}
	if abs, err := filepath.Abs(c.Data); err == nil { // plugins have another working directory
		c.Data = abs
	}
	hostname, _ := os.Hostname()
	if c.Workers.Address == "" {
		c.Workers.Address = agent.WorkersAddress(c.Workers.Listen, hostname)
	}
	if c.Name == "" {
		c.Name = hostname // without one the site has no name, which is allowed
	}
	if c.Key == "" {
		c.Key = "file:" + filepath.Join(c.Data, "master.key")
		if dir := a.env("CREDENTIALS_DIRECTORY"); dir != "" { // of systemd, which keeps it in memory
			if path := filepath.Join(dir, "holdfast-agent.key"); fileExists(path) {
				c.Key = "file:" + path
			}
		}
	}
}

func fileExists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// agentOrSite is the running agent, or, if none runs, the site in its data
// directory, opened for this one command.
func (a *app) agentOrSite(ctx context.Context, dir string) (c *client.Client, release func(), err error) {
	if dir != "" && a.socket == "" {
		a.socket = filepath.Join(dir, "agent.sock")
	}
	if conn, err := net.Dial("unix", a.socketPath()); err == nil {
		_ = conn.Close()
		c, err := a.agent()
		return c, func() {}, err
	}
	config := siteConfig{Data: dir}
	config.complete(a)
	quiet := slog.New(slog.DiscardHandler)
	slog.SetDefault(quiet) // the command prints its own error
	s, err := openSite(ctx, config, quiet)
	if err != nil {
		return nil, nil, err
	}
	server := &http.Server{Handler: api.NewAgentHandler(&api.Agent{Site: s.agent}), ReadHeaderTimeout: headerTimeout}
	listener := newPipes()
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	release = func() {
		_ = server.Close() // the command has its answer
		if err := <-served; !errors.Is(err, http.ErrServerClosed) {
			a.note("serve the command: %v", err)
		}
		if err := s.close(); err != nil {
			a.note("close the site: %v", err)
		}
	}
	transport := &http.Transport{DialContext: listener.dial}
	c, err = client.NewClient("http://agent", client.WithHTTPClient(&http.Client{Transport: transport}))
	return c, release, err
}

// pipes is a listener inside one process.
type pipes struct {
	conns chan net.Conn
	done  chan struct{}
}

func newPipes() *pipes { return &pipes{conns: make(chan net.Conn), done: make(chan struct{})} }

func (p *pipes) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	ours, theirs := net.Pipe()
	select {
	case p.conns <- theirs:
		return ours, nil
	case <-p.done:
		return nil, net.ErrClosed
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// Accept waits for a dial.
func (p *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.conns:
		return c, nil
	case <-p.done:
		return nil, net.ErrClosed
	}
}

// Close ends Accept. The server calls it once.
func (p *pipes) Close() error {
	select {
	case <-p.done:
	default:
		close(p.done)
	}
	return nil
}

// Addr is no address.
func (p *pipes) Addr() net.Addr { return &net.UnixAddr{Name: "pipe", Net: "unix"} }

// headerTimeout bounds how long a request's header may take.
const headerTimeout = 30 * time.Second

const jsonType = "application/json"

// content is the body of a request.
func content(v any) io.Reader {
	b, err := json.Marshal(v)
	if err != nil {
		r, w := io.Pipe()
		w.CloseWithError(err)
		return r
	}
	return bytes.NewReader(b)
}

// given is a pointer to a value that is not the zero value, for optional
// parameters.
func given[T comparable](v T) *T {
	var zero T
	if v == zero {
		return nil
	}
	return &v
}
