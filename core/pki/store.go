package pki

import (
	"context"
	"errors"
	"time"

	"github.com/holdfast-dr/holdfast/core/tenant"
)

// AuthorityRecord is the CA as the database keeps it.
type AuthorityRecord struct {
	ID          string
	Certificate []byte // DER
	SealedKey   []byte // PKCS #8, sealed by the master key for purposeCA
	Created     time.Time
}

// ServerRecord is an imported server certificate as the database keeps it, so
// that every server of the provider presents it.
type ServerRecord struct {
	Chain     []byte // PEM, leaf first
	SealedKey []byte // PKCS #8, sealed by the master key for purposeServer
	Imported  time.Time
}

// ErrNone: there is no such record yet.
var ErrNone = errors.New("no certificate stored")

// Store keeps the provider's trust. Mutating methods need audit.With.
type Store interface {
	// Authority answers ErrNone before the first start.
	Authority(ctx context.Context) (AuthorityRecord, error)
	// CreateAuthority stores the first CA and returns the stored one: of two
	// servers that start at once, the second gets the first one's.
	CreateAuthority(ctx context.Context, r AuthorityRecord) (AuthorityRecord, error)
	// ReplaceAuthority puts a new CA in the place of one whose key is lost. What
	// the old one vouched for, or the lost key sealed, goes with it: every agent
	// is revoked, and an imported server certificate is removed.
	ReplaceAuthority(ctx context.Context, r AuthorityRecord) (AuthorityRecord, error)
	// ServerCertificate answers ErrNone when the provider uses issued ones.
	ServerCertificate(ctx context.Context) (ServerRecord, error)
	// SetServerCertificate replaces the imported certificate; nil removes it.
	SetServerCertificate(ctx context.Context, r *ServerRecord) error
}

// Identity is who an agent's certificate speaks for.
type Identity struct {
	AgentID  string
	TenantID tenant.ID
	Key      Fingerprint // of the agent's public key
	NotAfter time.Time
	// RenewOnly: the certificate has expired; nothing but its renewal is allowed.
	RenewOnly bool
}
