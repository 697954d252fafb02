package agent

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/holdfast-dr/holdfast/core/access"
	"github.com/holdfast-dr/holdfast/core/backup"
	"github.com/holdfast-dr/holdfast/core/chunk"
	"github.com/holdfast-dr/holdfast/core/gateway"
	"github.com/holdfast-dr/holdfast/core/pki"
	"github.com/holdfast-dr/holdfast/core/point"
	"github.com/holdfast-dr/holdfast/core/tenant"
)

// Wire is one provider over the tenant wire; gateway's Client implements it.
type Wire interface {
	Site(ctx context.Context) (gateway.Site, error)
	Renew(ctx context.Context, request []byte) (gateway.Credentials, error)
	ReportRun(ctx context.Context, run string, event gateway.RunEvent) error
	Repository(id string) Repository
	Close() error
}

// Repository is one cloud repository over the wire.
type Repository interface {
	backup.Repository
	// Resume goes on with an open session that builds on base;
	// gateway.ErrSessionClosed if there is none.
	Resume(ctx context.Context, id chunk.SessionID, base point.ID) (backup.Session, error)
	Wraps(ctx context.Context) ([]gateway.Wrap, error)
	Wrap(ctx context.Context, name string) ([]byte, error)
	PutWrap(ctx context.Context, name string, wrap []byte) error
	Points(ctx context.Context, machine point.MachineID, after point.ID, limit int) (gateway.PointPage, error)
	Manifest(ctx context.Context, id point.ID) ([]byte, error)
	Forget(ctx context.Context, id point.ID) error
}

// ConnectRequest ties the site to a provider.
type ConnectRequest struct {
	Name        string `json:"name,omitempty" maxLength:"128" doc:"What the site calls the provider; the address if left out"`
	Address     string `json:"address" minLength:"1" maxLength:"300" doc:"host or host:port"`
	Fingerprint string `json:"fingerprint,omitempty" maxLength:"200" doc:"Of the provider's CA. Without it a public authority must vouch for the address"`
	Token       string `json:"token" minLength:"1" maxLength:"200" doc:"One-time enrolment token, from the provider"`
}

// Enrolment is what it takes to get a first certificate.
type Enrolment struct {
	Connection
	Token   string
	Request []byte // certificate request, DER
}

// ConnectionStatus is a provider as people at the site see it.
type ConnectionStatus struct {
	ID             string                    `json:"id"`
	Name           string                    `json:"name"`
	Address        string                    `json:"address"`
	Fingerprint    string                    `json:"fingerprint,omitempty" doc:"The pinned CA"`
	Tenant         string                    `json:"tenant"`
	AgentID        string                    `json:"agent_id"`
	CertificateEnd time.Time                 `json:"certificate_end"`
	Reachable      bool                      `json:"reachable"`
	Problem        string                    `json:"problem,omitempty" doc:"Why it is not reachable, or why it refuses data"`
	Hint           string                    `json:"hint,omitempty"`
	LeaseEnd       *time.Time                `json:"lease_end,omitempty"`
	Repositories   []gateway.CloudRepository `json:"repositories"`
}

// Connect enrols the site with a provider. The provider's pin is checked before
// the token is sent. Repeating it with the same token after a lost answer works
// as long as the token is valid, for it is bound to the site's key, which is
// kept.
func (a *Agent) Connect(ctx context.Context, req ConnectRequest) (ConnectionStatus, error) {
	address := req.Address
	if _, _, err := net.SplitHostPort(address); err != nil {
		address = net.JoinHostPort(strings.Trim(address, "[]"), gateway.Port)
	}
	c := Connection{ID: uuid.Must(uuid.NewV7()).String(), Name: strings.TrimSpace(req.Name), Address: address, CAFingerprint: strings.TrimSpace(req.Fingerprint), Created: a.now()}
	if c.Name == "" {
		c.Name, _, _ = net.SplitHostPort(address)
	}
	all, err := a.Store.Connections(ctx)
	if err != nil {
		return ConnectionStatus{}, err
	}
	for _, other := range all {
		if !strings.EqualFold(other.Name, c.Name) {
			continue
		}
		if other.AgentID != "" {
			return ConnectionStatus{}, fmt.Errorf("provider %q: %w", c.Name, tenant.ErrExists)
		}
		c.ID, c.Key = other.ID, other.Key // an attempt whose answer was lost
	}
	if c.Key == nil {
		if c.Key, err = newKey(); err != nil {
			return ConnectionStatus{}, err
		}
	}
	if err := a.Store.PutConnection(a.origin(ctx, "connect"), c); err != nil {
		return ConnectionStatus{}, err
	}
	request, err := a.request(c)
	if err != nil {
		return ConnectionStatus{}, err
	}
	attempt := c.ID
	c, err = a.Enrol(ctx, Enrolment{Connection: c, Token: strings.TrimSpace(req.Token), Request: request})
	if err != nil {
		err = fmt.Errorf("enrol with %s: %w", address, err)
		if refused(err) { // not lost: there is nothing to come back to
			err = errors.Join(err, a.Store.DeleteConnection(a.origin(ctx, "connect"), attempt))
		}
		return ConnectionStatus{}, err
	}
	if err := a.Store.PutConnection(a.origin(ctx, "connect"), c); err != nil {
		return ConnectionStatus{}, err
	}
	a.Log.InfoContext(ctx, "connected to provider", "provider", c.Name, "address", c.Address, "tenant", c.TenantName)
	return a.connectionStatus(ctx, c), nil
}

// refused says whether an enrolment failed for good, so that no certificate was
// made for its key.
func refused(err error) bool {
	_, untrusted := errors.AsType[*pki.UntrustedError](err)
	_, invalid := errors.AsType[*tenant.InvalidError](err)
	return untrusted || invalid || errors.Is(err, access.ErrEnrolment)
}

func newKey() ([]byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make a private key: %w", err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("encode private key: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}

// request is the certificate request for a connection's key.
func (a *Agent) request(c Connection) ([]byte, error) {
	block, _ := pem.Decode(c.Key)
	if block == nil {
		return nil, errors.New("the connection's private key is not PEM")
	}
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, errors.New("the connection's private key does not parse") // err could quote it
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: a.Name}}, key)
	if err != nil {
		return nil, fmt.Errorf("make certificate request: %w", err)
	}
	return der, nil
}

// Disconnect forgets a provider. Nothing at the provider changes.
func (a *Agent) Disconnect(ctx context.Context, name string) error {
	c, err := a.connection(ctx, name)
	if err != nil {
		return err
	}
	jobs, err := a.Store.Jobs(ctx)
	if err != nil {
		return err
	}
	for _, j := range jobs {
		if j.ConnectionID == c.ID {
			return &RefusedError{Reason: fmt.Sprintf("job %q backs up to provider %q", j.Name, c.Name), Next: "delete the job first: holdfast job delete " + j.Name}
		}
	}
	a.drop(c.ID)
	return a.Store.DeleteConnection(a.origin(ctx, "disconnect"), c.ID)
}

// wire is the open connection to a provider.
func (a *Agent) wire(c Connection) (Wire, error) {
	if c.AgentID == "" {
		return nil, &RefusedError{Reason: fmt.Sprintf("provider %q has not enrolled this site yet", c.Name), Next: "run holdfast agent connect again, with a valid token"}
	}
	a.wireMu.Lock()
	defer a.wireMu.Unlock()
	if w := a.wires[c.ID]; w != nil {
		return w, nil
	}
	w, err := a.Dial(c, a.expired)
	if err != nil {
		return nil, fmt.Errorf("open the connection to provider %q: %w", c.Name, err)
	}
	if a.wires == nil {
		a.wires = make(map[string]Wire)
	}
	a.wires[c.ID] = w
	return w, nil
}

// drop closes a connection whose credentials changed.
func (a *Agent) drop(id string) {
	a.wireMu.Lock()
	w := a.wires[id]
	delete(a.wires, id)
	a.wireMu.Unlock()
	if w != nil {
		_ = w.Close() // nothing is lost: requests are repeated over the next one
	}
}

// findRepository finds a cloud repository by name or id.
func (a *Agent) findRepository(ctx context.Context, c Connection, name string) (gateway.CloudRepository, error) {
	w, err := a.wire(c)
	if err != nil {
		return gateway.CloudRepository{}, err
	}
	site, err := w.Site(ctx)
	if err != nil {
		return gateway.CloudRepository{}, err
	}
	names := make([]string, len(site.Repositories))
	for i, r := range site.Repositories {
		if r.ID == name || strings.EqualFold(r.Name, name) || name == "" && len(site.Repositories) == 1 {
			return r, nil
		}
		names[i] = r.Name
	}
	if len(names) == 0 {
		return gateway.CloudRepository{}, &RefusedError{Reason: fmt.Sprintf("provider %q gives this tenant no cloud repository", c.Name), Next: "ask the provider for one"}
	}
	return gateway.CloudRepository{}, &tenant.InvalidError{Field: "repository", Reason: fmt.Sprintf("%q is not one of %s", name, strings.Join(names, ", "))}
}

// providerWraps fetches every keyring wrap that the site's providers keep.
func (a *Agent) providerWraps(ctx context.Context) ([][]byte, error) {
	conns, err := a.Store.Connections(ctx)
	if err != nil {
		return nil, err
	}
	var wraps [][]byte
	var failures []error
	for _, c := range enrolled(conns) {
		failures = append(failures, a.eachRepository(ctx, c, func(repo Repository) error {
			list, err := repo.Wraps(ctx)
			if err != nil {
				return err
			}
			for _, w := range list {
				b, err := repo.Wrap(ctx, w.Name)
				if err != nil {
					return err
				}
				wraps = append(wraps, b)
			}
			return nil
		}))
	}
	if len(wraps) > 0 {
		return wraps, nil
	}
	return nil, errors.Join(failures...)
}

func (a *Agent) eachRepository(ctx context.Context, c Connection, visit func(Repository) error) error {
	w, err := a.wire(c)
	if err != nil {
		return err
	}
	site, err := w.Site(ctx)
	if err != nil {
		return err
	}
	for _, r := range site.Repositories {
		if err := visit(w.Repository(r.ID)); err != nil {
			return fmt.Errorf("cloud repository %q: %w", r.Name, err)
		}
	}
	return nil
}

// Connections lists the providers and how they are reached now.
func (a *Agent) Connections(ctx context.Context) ([]ConnectionStatus, error) {
	all, err := a.Store.Connections(ctx)
	if err != nil {
		return nil, err
	}
	status := make([]ConnectionStatus, len(all))
	for i, c := range all {
		status[i] = a.connectionStatus(ctx, c)
	}
	return status, nil
}

// siteTimeout bounds how long a status waits for a provider.
const siteTimeout = 10 * time.Second

func (a *Agent) connectionStatus(ctx context.Context, c Connection) ConnectionStatus {
	s := ConnectionStatus{ID: c.ID, Name: c.Name, Address: c.Address, Fingerprint: c.CAFingerprint, Tenant: c.TenantName,
		AgentID: c.AgentID, Repositories: []gateway.CloudRepository{}}
	if cert, err := leaf(c.Certificate); err == nil {
		s.CertificateEnd = cert.NotAfter
	}
	ctx, cancel := context.WithTimeout(ctx, siteTimeout)
	defer cancel()
	fail := func(err error) ConnectionStatus {
		s.Problem, s.Hint = err.Error(), gateway.HintOf(err)
		return s
	}
	w, err := a.wire(c)
	if err != nil {
		return fail(err)
	}
	site, err := w.Site(ctx)
	if err != nil {
		return fail(err)
	}
	s.Reachable, s.Tenant, s.LeaseEnd = true, site.Tenant.Name, site.Tenant.LeaseEnd
	s.Repositories = append(s.Repositories, site.Repositories...)
	if p := site.Admission.Problem; p != nil {
		s.Problem, s.Hint = p.Detail, p.Hint
	}
	return s
}

func leaf(chain []byte) (*x509.Certificate, error) {
	block, _ := pem.Decode(chain)
	if block == nil {
		return nil, errors.New("no certificate")
	}
	return x509.ParseCertificate(block.Bytes)
}

// renewAll renews certificates that have lived a third of their time, and
// takes over the authorities that the provider announces.
func (a *Agent) renewAll(ctx context.Context) error {
	all, err := a.Store.Connections(ctx)
	if err != nil {
		return err
	}
	var failures []error
	for _, c := range all {
		if c.AgentID == "" {
			continue
		}
		if err := a.renew(ctx, c); err != nil {
			failures = append(failures, fmt.Errorf("renew the certificate at provider %q: %w", c.Name, err))
		}
	}
	return errors.Join(failures...)
}

func (a *Agent) renew(ctx context.Context, c Connection) error {
	cert, err := leaf(c.Certificate)
	if err != nil {
		return err
	}
	if life := cert.NotAfter.Sub(cert.NotBefore); a.now().Before(cert.NotAfter.Add(-life * 2 / 3)) {
		return nil
	}
	if _, err = a.expired(ctx, c); err != nil {
		return err
	}
	a.drop(c.ID)
	return nil
}

// expired renews the certificate of a connection, unless that was done since c
// was read, and returns the connection as it is then. What is on its way goes on
// with the old certificate for as long as the provider takes it.
func (a *Agent) expired(ctx context.Context, c Connection) (Connection, error) {
	a.renewing.Lock()
	defer a.renewing.Unlock()
	present, err := a.connection(ctx, c.ID)
	if err != nil || !bytes.Equal(present.Certificate, c.Certificate) {
		return present, err
	}
	w, err := a.wire(present)
	if err != nil {
		return present, err
	}
	request, err := a.request(present)
	if err != nil {
		return present, err
	}
	next, err := w.Renew(ctx, request)
	if err != nil {
		return present, err
	}
	present.Certificate, present.Authorities = []byte(next.Certificate), []byte(next.Authorities)
	if err := a.Store.PutConnection(a.origin(ctx, "renew certificate"), present); err != nil {
		return present, err
	}
	a.Log.InfoContext(ctx, "certificate renewed", "provider", present.Name, "until", next.NotAfter)
	return present, nil
}
