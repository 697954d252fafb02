package api

import (
	"context"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/holdfast-dr/holdfast/core/access"
	"github.com/holdfast-dr/holdfast/core/audit"
	"github.com/holdfast-dr/holdfast/core/tenant"
)

// Provider is what the operations of the provider's server call.
type Provider struct {
	Version   string // of the program
	Now       func() time.Time
	Ping      func(context.Context) error // reaches the database
	Users     access.Users
	Passwords *access.Passwords
	Tenants   tenant.Store
	Audit     audit.Store

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
	hash, err := access.HashToken(strings.TrimSpace(text))
	if err != nil {
		return access.Caller{}, err
	}
	token, user, err := p.Users.ByToken(r.Context(), hash)
	if err != nil {
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
