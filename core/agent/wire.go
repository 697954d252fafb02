package agent

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/holdfast-dr/holdfast/core/backup"
	"github.com/holdfast-dr/holdfast/core/chunk"
	"github.com/holdfast-dr/holdfast/core/gateway"
	"github.com/holdfast-dr/holdfast/core/pki"
	"github.com/holdfast-dr/holdfast/core/point"
	"github.com/holdfast-dr/holdfast/core/tenant"
)

// enrolPatience is short: somebody waits for the answer, and the likeliest
// cause of silence is a mistyped address.
const enrolPatience = 10 * time.Second

// Gateway reaches providers over the tenant wire. Its methods fill Agent.Dial
// and Agent.Enrol.
type Gateway struct {
	Version string // of the program
	Log     *slog.Logger
}

// Dial opens the wire to a provider that has enrolled the site. renewed is asked
// for the connection with another certificate when the provider says that this
// one has expired.
func (g Gateway) Dial(c Connection, renewed func(context.Context, Connection) (Connection, error)) (Wire, error) {
	var mutex sync.Mutex // guards what follows
	present, inUse := c, (*tls.Certificate)(nil)
	use := func(next Connection) error {
		cert, err := tls.X509KeyPair(next.Certificate, next.Key)
		if err != nil {
			return errors.New("the site's certificate and private key do not fit together") // err could quote the key
		}
		mutex.Lock()
		defer mutex.Unlock()
		present, inUse = next, &cert
		return nil
	}
	if err := use(c); err != nil {
		return nil, err
	}
	client, err := g.client(c, gateway.Options{Patience: gateway.DefaultPatience, Certificate: func() (*tls.Certificate, error) {
		mutex.Lock()
		defer mutex.Unlock()
		return inUse, nil
	}, Expired: func(ctx context.Context) error {
		mutex.Lock()
		old := present
		mutex.Unlock()
		next, err := renewed(ctx, old)
		if err != nil {
			return err
		}
		return use(next)
	}})
	if err != nil {
		return nil, err
	}
	return &remote{client}, nil
}

// Enrol gets a connection's first certificate.
func (g Gateway) Enrol(ctx context.Context, e Enrolment) (Connection, error) {
	client, err := g.client(e.Connection, gateway.Options{Patience: enrolPatience})
	if err != nil {
		return Connection{}, err
	}
	defer client.Close()
	got, err := client.Enrol(ctx, e.Token, e.Request)
	if err != nil {
		return Connection{}, err
	}
	c := e.Connection
	c.AgentID, c.TenantID, c.TenantName = got.AgentID, got.TenantID, got.TenantName
	c.Certificate, c.Authorities = []byte(got.Certificate), []byte(got.Authorities)
	return c, nil
}

func (g Gateway) client(c Connection, o gateway.Options) (*gateway.Client, error) {
	var err error
	if o.Trust, err = trustOf(c); err != nil {
		return nil, err
	}
	o.Address, o.Version, o.Log = c.Address, g.Version, g.Log
	return gateway.NewClient(o)
}

// trustOf is the pin that a person gave, and the CAs that the provider
// announced over connections that the pin vouched for. Without a pin, public
// authorities vouch for the address.
func trustOf(c Connection) (pki.Trust, error) {
	if c.CAFingerprint == "" {
		return pki.Trust{System: true}, nil
	}
	pin, err := pki.ParseFingerprint(c.CAFingerprint)
	if err != nil {
		return pki.Trust{}, &tenant.InvalidError{Field: "fingerprint", Reason: err.Error()}
	}
	trust := pki.Trust{Pins: []pki.Fingerprint{pin}}
	for rest := c.Authorities; ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			return trust, nil
		}
		ca, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return pki.Trust{}, fmt.Errorf("read the provider's authorities: %w", err)
		}
		trust.Pins = append(trust.Pins, pki.FingerprintOf(ca))
	}
}

type remote struct{ *gateway.Client }

var _ Wire = (*remote)(nil)

func (r *remote) ReportRun(ctx context.Context, run string, event gateway.RunEvent) error {
	return r.Client.Report(ctx, run, event)
}

func (r *remote) Repository(id string) Repository {
	return &remoteRepository{r.Client.Repository(id)}
}

func (r *remote) Close() error {
	r.Client.Close()
	return nil
}

type remoteRepository struct{ *gateway.RemoteRepository }

var _ Repository = (*remoteRepository)(nil)

func (r *remoteRepository) Points(ctx context.Context, machine point.MachineID, after point.ID, limit int) (gateway.PointPage, error) {
	return r.PointPage(ctx, machine, after, limit)
}

// Last is the manifest of the machine's point that was taken last.
func (r *remoteRepository) Last(ctx context.Context, machine point.MachineID) ([]byte, error) {
	var last gateway.PointInfo
	for p, err := range r.RemoteRepository.Points(ctx, machine) {
		if err != nil {
			return nil, err
		}
		if last.ID == "" || !p.Taken.Before(last.Taken) {
			last = p
		}
	}
	if last.ID == "" {
		return nil, nil
	}
	return r.Manifest(ctx, last.ID)
}

func (r *remoteRepository) Begin(ctx context.Context, machine point.MachineID, base point.ID, _ string) (backup.Session, error) {
	s, err := r.RemoteRepository.Begin(ctx, machine, base)
	if err != nil {
		return nil, err
	}
	return &remoteSession{s}, nil
}

func (r *remoteRepository) Resume(ctx context.Context, id chunk.SessionID, base point.ID) (backup.Session, error) {
	s, err := r.RemoteRepository.Resume(ctx, id)
	if err != nil {
		return nil, err
	}
	if s.Info().Base != base {
		return nil, gateway.ErrSessionClosed
	}
	return &remoteSession{s}, nil
}

type remoteSession struct{ *gateway.RemoteSession }

func (s *remoteSession) DamagedChunks() (ids []chunk.ID, more bool) {
	return s.Info().Damaged, s.Info().DamagedMore
}

func (s *remoteSession) Commit(ctx context.Context, manifest []byte) error {
	return s.RemoteSession.Commit(ctx, manifest)
}
