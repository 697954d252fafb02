package api

import (
	"context"
	"crypto/tls"
	"errors"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/holdfast-dr/holdfast/core/access"
	"github.com/holdfast-dr/holdfast/core/audit"
	"github.com/holdfast-dr/holdfast/core/blob"
	"github.com/holdfast-dr/holdfast/core/gateway"
	"github.com/holdfast-dr/holdfast/core/job"
	"github.com/holdfast-dr/holdfast/core/pki"
	"github.com/holdfast-dr/holdfast/core/point"
	"github.com/holdfast-dr/holdfast/core/quota"
	"github.com/holdfast-dr/holdfast/core/tenant"
)

// Provider is what the operations of the provider's server call. Stores that
// take a tenant repeat the scope in their queries.
type Provider struct {
	Version   string // of the program
	Now       func() time.Time
	Ping      func(context.Context) error // reaches the database
	Status    func(context.Context) Status
	Users     access.Users
	Passwords *access.Passwords
	Attempts  *access.Attempts
	Agents    access.Agents
	Reports   gateway.Reports // what agents tell of their runs
	Traffic   func(tenant.ID) gateway.Traffic
	Tenants   tenant.Store
	Locations blob.LocationStore
	Quotas    quota.Store
	Runs      job.Store
	Wake      func() // tells the runner that there is a new run
	Audit     audit.Store

	// Prepare checks, before a repository is added, that its place can be used.
	Prepare func(ctx context.Context, l blob.Location) error
	// Find looks at what lies in a repository under an id; tenant.ErrNotFound if
	// that is nothing.
	Find func(ctx context.Context, l blob.Location, id string) (UnknownRepository, error)
	// Unknown lists what lies in a repository and belongs to no cloud repository.
	Unknown func(ctx context.Context, l blob.Location, after string, limit int) (UnknownPage, error)
	// Points lists the points of a cloud repository, oldest first.
	Points func(ctx context.Context, cloud string, machine point.MachineID, after point.ID, limit int) ([]gateway.PointInfo, error)
	// Sessions lists the sessions that brought what is in a cloud repository, in
	// the order in which they began.
	Sessions func(ctx context.Context, cloud string, q SessionQuery) ([]Session, error)
	// Notice describes the certificate that the server presents.
	Notice func() (pki.Notice, error)
	// SetCertificate imports a certificate, or with nil goes back to issued ones,
	// and presents it.
	SetCertificate func(ctx context.Context, c *tls.Certificate) error
	// DisconnectTenant and DisconnectAgent close open connections.
	DisconnectTenant func(tenant.ID)
	DisconnectAgent  func(id string)

	touched sync.Map // token id → time.Time of the last TouchToken
}

// touchEvery is how often the use of a token is written down.
const touchEvery = time.Minute

// identify finds the caller of a request by its bearer token.
func (p *Provider) identify(r *http.Request) (access.Caller, error) {
	header := r.Header.Get("Authorization")
	if header == "" {
		return access.Caller{}, nil
	}
	scheme, text, _ := strings.Cut(header, " ")
	if !strings.EqualFold(scheme, "Bearer") {
		return access.Caller{}, access.ErrCredentials
	}
	if err := p.Attempts.Token(r.RemoteAddr); err != nil {
		return access.Caller{}, err
	}
	hash, err := access.HashToken(strings.TrimSpace(text))
	if err != nil {
		return access.Caller{}, err
	}
	token, user, err := p.Users.ByToken(r.Context(), hash)
	if err != nil {
		if errors.Is(err, access.ErrCredentials) {
			p.Attempts.UnknownToken(r.RemoteAddr)
		}
		return access.Caller{}, err
	}
	now := p.Now()
	if last, ok := p.touched.Load(token.ID); !ok || now.Sub(last.(time.Time)) >= touchEvery {
		p.touched.Store(token.ID, now)
		_ = p.Users.TouchToken(r.Context(), token.ID) // a missed time stamp harms nobody
	}
	return access.Caller{Kind: access.ByUser, UserID: user.ID, Name: user.Name, Role: user.Role, TenantID: user.TenantID,
		TokenID: token.ID, Scope: token.Scope}, nil
}
