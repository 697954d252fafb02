package main

import (
	"context"
	"crypto/tls"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/google/uuid"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/holdfast-dr/holdfast/core/access"
	"github.com/holdfast-dr/holdfast/core/api"
	"github.com/holdfast-dr/holdfast/core/audit"
	"github.com/holdfast-dr/holdfast/core/blob"
	"github.com/holdfast-dr/holdfast/core/blob/dir"
	"github.com/holdfast-dr/holdfast/core/claim"
	"github.com/holdfast-dr/holdfast/core/gateway"
	"github.com/holdfast-dr/holdfast/core/job"
	"github.com/holdfast-dr/holdfast/core/pki"
	"github.com/holdfast-dr/holdfast/core/quota"
	"github.com/holdfast-dr/holdfast/core/repository"
	"github.com/holdfast-dr/holdfast/core/secret"
	"github.com/holdfast-dr/holdfast/core/state"
	"github.com/holdfast-dr/holdfast/core/tenant"
)

// How often the server looks after what needs it.
const (
	certificateEvery = time.Minute
	expireEvery      = 10 * time.Minute
	// passwordsAtOnce bounds the memory of logins: 64 MiB each.
	passwordsAtOnce = 2
)

// server is the provider's process, wired.
type server struct {
	config       serverConfig
	log          *slog.Logger
	started      time.Time
	holder       claim.Holder
	lock         *os.File
	db           *state.DB
	master       *secret.Key
	authority    *pki.Authority
	certificate  *pki.Server
	repositories *repositories
	runner       *job.Runner
	gateway      *gateway.Server
	api          http.Handler
	profiles     *profiles
}

// newServer constructs the rooms. What it opened it closes if it fails.
func newServer(ctx context.Context, c serverConfig, password string, log *slog.Logger) (_ *server, err error) {
	s := &server{config: c, log: log, started: time.Now()}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.close())
		}
	}()
	if err := os.MkdirAll(c.Data, 0o700); err != nil {
		return nil, fmt.Errorf("make data directory: %w", err)
	}
	if s.lock, err = lockDirectory(c.Data); err != nil {
		return nil, err
	}
	past, err := c.begin(ctx)
	if err != nil {
		return nil, err
	}
	if past.fresh {
		if err := c.forget(); err != nil {
			return nil, err
		}
	}
	if s.holder, err = holderOf(c.Data); err != nil {
		return nil, err
	}
	var created bool
	if s.master, created, err = secret.Open(c.MasterKey); err != nil {
		return nil, err
	}
	if created && !c.dev {
		log.Warn("a new master key was made: keep a copy apart from the database", "key", c.MasterKey)
	}
	if s.db, err = state.Open(ctx, c.Database); err != nil {
		return nil, err
	}
	ctx = audit.With(ctx, audit.System("server", "start"))
	if past.newTrust {
		if err := pki.ReplaceAuthority(ctx, s.db.Trust(), s.master, c.Provider, time.Now()); err != nil {
			return nil, err
		}
		log.Warn("the CA was replaced: every agent has to enrol again")
	}
	if s.authority, err = pki.LoadAuthority(ctx, s.db.Trust(), s.master, c.Provider, time.Now()); err != nil {
		return nil, err
	}
	s.certificate, err = pki.NewServer(ctx, pki.Source{Authority: s.authority, Store: s.db.Trust(), Master: s.master, Names: certificateNames(c),
		CertFile: c.Certificate.File, KeyFile: c.Certificate.Key, Password: password, Log: log})
	if err != nil {
		return nil, err
	}
	if err := s.expel(ctx); err != nil {
		return nil, err
	}
	if s.repositories, err = newRepositories(s.db, s.holder, c, log); err != nil {
		return nil, err
	}
	s.runner = &job.Runner{Store: s.db.Runs(), Holder: s.holder, Handlers: s.repositories.handlers(), Log: log}
	s.wire()
	return s, nil
}

// lockDirectory makes sure that one process uses a data directory.
func lockDirectory(path string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(path, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock data directory: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		_ = f.Close()
		return nil, withHint(fmt.Errorf("data directory %s is in use by another process", path), "end the other one, or use another directory: --data DIR")
	}
	return f, nil
}

// holderOf names this node, the same at every start, and this life of it.
func holderOf(path string) (claim.Holder, error) {
	file := filepath.Join(path, "node")
	text, err := os.ReadFile(file)
	if errors.Is(err, os.ErrNotExist) {
		text = []byte(uuid.NewString() + "\n")
		err = replaceFile(file, text)
	}
	if err != nil {
		return claim.Holder{}, fmt.Errorf("read node's id: %w", err)
	}
	h := claim.Holder{Node: strings.TrimSpace(string(text)), Instance: uuid.NewString()}
	return h, h.Check()
}

// expel frees what former lives of this node held: the lock of the data
// directory says that they have ended.
func (s *server) expel(ctx context.Context) error {
	claims, err := s.db.Claims().Expel(ctx, s.holder)
	if err != nil {
		return err
	}
	runs, err := s.db.Runs().Expel(ctx, s.holder.Node, s.holder.Instance)
	if err != nil {
		return err
	}
	if claims+runs > 0 {
		s.log.Info("taken over from the last run of this server", "claims", claims, "runs", runs)
	}
	return nil
}

// certificateNames are the names that the issued certificate carries.
func certificateNames(c serverConfig) []string {
	names := append([]string{"localhost", "127.0.0.1", "::1"}, c.Names...)
	for _, address := range append([]string{c.Address}, c.Listen...) {
		host, _, err := net.SplitHostPort(address)
		if err != nil {
			host = address
		}
		if ip := net.ParseIP(host); host != "" && (ip == nil || !ip.IsUnspecified()) {
			names = append(names, host)
		}
	}
	if host, err := os.Hostname(); err == nil {
		names = append(names, host)
	}
	seen := map[string]bool{}
	unique := names[:0]
	for _, n := range names {
		if !seen[n] {
			seen[n] = true
			unique = append(unique, n)
		}
	}
	return unique
}

// wire fills the func fields that keep the rooms apart.
func (s *server) wire() {
	s.gateway = gateway.NewServer(gateway.Config{
		Version: versionText(), Agents: s.db.Agents(), Tenants: s.db.Tenants(), Quota: s.db.Quotas(), Reports: s.db.Reports(),
		Repositories: func(ctx context.Context, t tenant.ID) ([]quota.CloudRepository, error) {
			return s.db.Quotas().List(ctx, quota.Query{Tenant: t, Limit: tenant.MaxLimit})
		},
		FanOut: repository.DefaultFanOut, Open: s.repositories.open, Verify: s.authority.VerifyAgent,
		Enrol: s.enrol, Renew: s.renew, Log: s.log, Limits: gateway.Limits(s.config.Limits),
		Authorities: func(context.Context) (string, error) { return string(s.authority.PEM()), nil },
	})
	provider := &api.Provider{
		Version: versionText(), Now: time.Now, Ping: s.db.Ping, Status: s.status,
		Users: s.db.Users(), Passwords: access.NewPasswords(passwordsAtOnce), Attempts: access.NewAttempts(time.Now), Agents: s.db.Agents(), Tenants: s.db.Tenants(),
		Locations: s.db.Locations(), Quotas: s.db.Quotas(), Runs: s.db.Runs(), Reports: s.db.Reports(), Traffic: s.gateway.Traffic, Wake: s.runner.Wake, Audit: s.db.Audits(),
		Prepare: prepareLocation, Points: s.repositories.points, Sessions: s.repositories.sessions, Find: s.repositories.find, Unknown: s.repositories.unknown, Notice: s.notice, SetCertificate: s.setCertificate,
		DisconnectTenant: func(t tenant.ID) { s.gateway.DisconnectTenant(t) },
		DisconnectAgent:  func(id string) { s.gateway.DisconnectAgent(id) },
	}
	s.api = api.NewProviderHandler(provider)
}

// prepareLocation checks that a repository's directory can be used.
func prepareLocation(_ context.Context, l blob.Location) error {
	store, err := dir.Open(l.Path, dir.Options{})
	if err != nil {
		return &blob.LocationError{Field: "path", Reason: err.Error()}
	}
	return store.Close()
}

// enrol redeems a one-time token and issues the agent's first certificate.
func (s *server) enrol(ctx context.Context, r gateway.EnrolRequest) (gateway.Credentials, error) {
	hash, err := access.HashEnrolmentToken(r.Token)
	if err != nil {
		return gateway.Credentials{}, err
	}
	request, key, err := pki.ParseRequest(r.Request)
	if err != nil {
		return gateway.Credentials{}, &tenant.InvalidError{Field: "request", Reason: err.Error()}
	}
	origin, _ := audit.From(ctx)
	origin.Actor, origin.Name = "system:enrolment", "enrolment"
	agent, err := s.db.Agents().Enrol(audit.With(ctx, origin), hash, access.Hash(key))
	if err != nil {
		return gateway.Credentials{}, err
	}
	if !agent.Revoked.IsZero() {
		return gateway.Credentials{}, access.ErrEnrolment
	}
	chain, err := s.authority.IssueAgent(request, agent.ID, agent.TenantID, time.Now())
	if err != nil {
		return gateway.Credentials{}, err
	}
	return s.credentials(ctx, agent, chain)
}

// renew issues the next certificate for the same key.
func (s *server) renew(ctx context.Context, agent access.Agent, der []byte) (gateway.Credentials, error) {
	request, key, err := pki.ParseRequest(der)
	if err != nil {
		return gateway.Credentials{}, &tenant.InvalidError{Field: "request", Reason: err.Error()}
	}
	if access.Hash(key) != agent.Key {
		return gateway.Credentials{}, &tenant.InvalidError{Field: "request", Reason: "is for another key than the agent's"}
	}
	chain, err := s.authority.IssueAgent(request, agent.ID, agent.TenantID, time.Now())
	if err != nil {
		return gateway.Credentials{}, err
	}
	return s.credentials(ctx, agent, chain)
}

func (s *server) credentials(ctx context.Context, agent access.Agent, chain [][]byte) (gateway.Credentials, error) {
	t, err := s.db.Tenants().Get(ctx, agent.TenantID)
	if err != nil {
		return gateway.Credentials{}, err
	}
	c := gateway.Credentials{AgentID: agent.ID, TenantID: string(t.ID), TenantName: t.Name,
		Authorities: string(s.authority.PEM()), NotAfter: time.Now().Add(pki.AgentLife).UTC()}
	for _, der := range chain {
		c.Certificate += string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
	}
	return c, nil
}

// notice describes the certificate that is presented now.
func (s *server) notice() (pki.Notice, error) {
	return pki.NoticeOf(s.config.Address, s.certificate.Certificate(), s.authority)
}

// setCertificate imports a certificate, or goes back to issued ones.
func (s *server) setCertificate(ctx context.Context, c *tls.Certificate) error {
	if s.config.Certificate.File != "" {
		return gateway.NewProblem(http.StatusConflict, gateway.CodeConflict, "the server's configuration names a certificate file, which wins over an imported one").
			WithHint("replace the file and send the server SIGHUP, or take it out of the configuration")
	}
	var err error
	if c == nil {
		err = s.db.Trust().SetServerCertificate(ctx, nil)
	} else {
		err = pki.Import(ctx, s.db.Trust(), s.master, c)
	}
	if err != nil {
		return err
	}
	return s.certificate.Reload(ctx)
}

func (s *server) status(context.Context) api.Status {
	return api.Status{Version: versionText(), Node: s.holder.Node, Started: s.started.UTC(), Database: s.db.Engine(),
		Connections: s.gateway.Connections(), Repositories: s.repositories.count()}
}

// bootstrap makes the first administrator of a new provider. The token lies in a
// file for whoever may read the data directory, and nowhere else.
func (s *server) bootstrap(ctx context.Context) error {
	ctx = audit.With(ctx, audit.System("server", "first start"))
	users, err := s.db.Users().ListUsers(ctx, tenant.Provider)
	if err != nil || len(users) > 0 {
		return err
	}
	admin, err := s.db.Users().CreateUser(ctx, access.User{Name: "admin", Role: access.ProviderAdmin, Enabled: true})
	if err != nil {
		return err
	}
	text, hash := access.NewToken()
	if _, err := s.db.Users().CreateToken(ctx, access.Token{UserID: admin.ID, Name: "first start", Hash: hash}); err != nil {
		return err
	}
	file := filepath.Join(s.config.Data, "admin.token")
	if err := replaceFile(file, []byte(text+"\n")); err != nil {
		return fmt.Errorf("keep the administrator's token: %w", err)
	}
	if !s.config.dev {
		s.log.Warn("the first administrator was made", "sign in with",
			fmt.Sprintf("holdfast login %s --fingerprint %s --token-file %s", s.config.Address, s.pin(), file))
	}
	return nil
}

// pin is the fingerprint by which clients know the server: of the CA of the certificate that it presents, which need not be
// the provider's own.
func (s *server) pin() string {
	notice, err := s.notice()
	if err != nil {
		s.log.Error("read the server's own certificate", "error", err)
		return s.authority.Fingerprint().String()
	}
	return notice.Pin
}

// run serves until ctx ends, and then waits for what is in flight.
func (s *server) run(ctx context.Context, hangup <-chan os.Signal, listeners ...net.Listener) error {
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error {
		return s.gateway.Serve(ctx, s.certificate.Config(), s.api, s.config.Grace, listeners...)
	})
	group.Go(func() error { return s.runner.Run(ctx) })
	group.Go(func() error { return s.profiles.serve(ctx, s.log) })
	group.Go(func() error { s.certificate.Watch(ctx, certificateEvery); return nil })
	group.Go(func() error { s.repositories.tend(ctx, expireEvery, s.config.Collect); return nil })
	group.Go(func() error {
		for {
			select {
			case <-ctx.Done():
				return nil
			case <-hangup:
				if err := s.certificate.Reload(ctx); err != nil {
					s.log.Error("keep the present server certificate", "error", err)
				}
				s.log.Info("looked for a new server certificate, as SIGHUP asks", "fingerprint", s.pin())
			}
		}
	})
	for _, l := range listeners {
		s.log.Info("serving", "address", l.Addr(), "fingerprint", s.pin())
	}
	return group.Wait()
}

// close closes what newServer opened, in the opposite order.
func (s *server) close() error {
	var errs []error
	if s.repositories != nil {
		errs = append(errs, s.repositories.close())
	}
	if s.db != nil {
		errs = append(errs, s.db.Close())
	}
	if s.lock != nil {
		errs = append(errs, s.lock.Close())
	}
	return errors.Join(errs...)
}
