package agent

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"time"

	"filippo.io/age"

	"github.com/holdfast-dr/holdfast/core/chunk"
	"github.com/holdfast-dr/holdfast/core/tenant"
)

// LossWarning is what losing the keys means. It is shown before it can happen.
const LossWarning = "The keyring encrypts every backup of this site, and the provider does not have it. " +
	"If this machine is lost and there is no recovery kit, all backups are lost: nobody can open them, the provider included."

// KeyStatus is a keyring as people see it.
type KeyStatus struct {
	Fingerprint string    `json:"fingerprint"`
	Current     bool      `json:"current" doc:"New backups are sealed by it"`
	Accepted    bool      `json:"accepted" doc:"Its kit was written, or declined by name"`
	Kit         KitState  `json:"kit" enum:"missing,written,declined"`
	KitTime     time.Time `json:"kit_time,omitzero"`
	Created     time.Time `json:"created"`
}

// ErrKeysNotAccepted refuses work that would seal data by a keyring that could
// be lost with this machine.
var ErrKeysNotAccepted = &RefusedError{
	Reason: "this site has no keyring that is accepted into use",
	Next:   "write the recovery kit (holdfast key export-kit FILE) and keep it away from this machine, or import one (holdfast key import-kit FILE)",
}

// RefusedError is a refusal as things are at the site, with what to do next.
type RefusedError struct{ Reason, Next string }

// Error is the reason.
func (e *RefusedError) Error() string { return e.Reason }

// Hint is what to do next.
func (e *RefusedError) Hint() string { return e.Next }

// Keys lists the site's keyrings.
func (a *Agent) Keys(ctx context.Context) ([]KeyStatus, error) {
	rings, err := a.Store.Keyrings(ctx)
	if err != nil {
		return nil, err
	}
	status := make([]KeyStatus, len(rings))
	for i, r := range rings {
		status[i] = keyStatus(r)
	}
	return status, nil
}

func keyStatus(r Keyring) KeyStatus {
	return KeyStatus{Fingerprint: r.Fingerprint, Current: r.Current, Accepted: r.Kit != KitMissing, Kit: r.Kit, KitTime: r.KitTime, Created: r.Created}
}

// currentKeys is the keyring that seals, ErrKeysNotAccepted without one.
func (a *Agent) currentKeys(ctx context.Context) (Keyring, *chunk.Keyring, error) {
	rings, err := a.Store.Keyrings(ctx)
	if err != nil {
		return Keyring{}, nil, err
	}
	for _, r := range rings {
		if r.Current && r.Kit != KitMissing {
			keys, err := chunk.UnmarshalKeyring(r.Secret)
			return r, keys, err
		}
	}
	return Keyring{}, nil, ErrKeysNotAccepted
}

// keysOf finds the keyring that sealed a point.
func (a *Agent) keysOf(ctx context.Context, fingerprint chunk.Fingerprint) (*chunk.Keyring, error) {
	rings, err := a.Store.Keyrings(ctx)
	if err != nil {
		return nil, err
	}
	for _, r := range rings {
		if r.Fingerprint == fingerprint.String() {
			return chunk.UnmarshalKeyring(r.Secret)
		}
	}
	return nil, &RefusedError{
		Reason: fmt.Sprintf("the point is sealed by keyring %s, which this site does not have", fingerprint),
		Next:   "import the recovery kit of that keyring: holdfast key import-kit FILE",
	}
}

// ExportedKit is a kit on its way to the person who keeps it.
type ExportedKit struct {
	Fingerprint string `json:"fingerprint"`
	Kit         []byte `json:"kit" doc:"The whole file, base64 in JSON"`
	SHA256      string `json:"sha256" doc:"Of the file: say it back to prove that the file was written"`
	Warning     string `json:"warning"`
}

// ExportKit makes a recovery kit of the current keyring, creating the keyring
// if the site has none. The keyring is accepted into use by AcceptKit, after
// the file has been written and read back. Each kit has an identity of its own.
func (a *Agent) ExportKit(ctx context.Context, connection, passphrase string) (ExportedKit, error) {
	a.keyMu.Lock()
	defer a.keyMu.Unlock()
	conn, err := a.connection(ctx, connection)
	if err != nil {
		return ExportedKit{}, err
	}
	ring, keys, err := a.currentOrNew(ctx)
	if err != nil {
		return ExportedKit{}, err
	}
	identity, err := age.GenerateX25519Identity()
	if err != nil {
		return ExportedKit{}, fmt.Errorf("make the kit's identity: %w", err)
	}
	wrap, err := keys.Wrap(identity.Recipient())
	if err != nil {
		return ExportedKit{}, err
	}
	kit := Kit{Tenant: conn.TenantName, Address: conn.Address, CA: conn.CAFingerprint, Fingerprint: keys.Fingerprint(),
		Created: a.now(), Identity: identity, Wrap: wrap}
	text, err := kit.Encode(passphrase)
	if err != nil {
		return ExportedKit{}, err
	}
	sum := sha256.Sum256(text)
	ring.PendingKit, ring.PendingWrap = hex.EncodeToString(sum[:]), wrap
	if err := a.Store.PutKeyring(ctx, ring); err != nil {
		return ExportedKit{}, err
	}
	return ExportedKit{Fingerprint: ring.Fingerprint, Kit: text, SHA256: ring.PendingKit, Warning: LossWarning}, nil
}

func (a *Agent) currentOrNew(ctx context.Context) (Keyring, *chunk.Keyring, error) {
	rings, err := a.Store.Keyrings(ctx)
	if err != nil {
		return Keyring{}, nil, err
	}
	for _, r := range rings {
		if r.Current {
			keys, err := chunk.UnmarshalKeyring(r.Secret)
			return r, keys, err
		}
	}
	keys := chunk.NewKeyring()
	secret, err := keys.Marshal()
	if err != nil {
		return Keyring{}, nil, err
	}
	return Keyring{Fingerprint: keys.Fingerprint().String(), Secret: secret, Current: true, Kit: KitMissing, Created: a.now()}, keys, nil
}

// AcceptKit accepts the keyring into use, because its kit was written: sha256
// is what the caller computed from the file that it read back.
func (a *Agent) AcceptKit(ctx context.Context, sum string) (KeyStatus, error) {
	a.keyMu.Lock()
	defer a.keyMu.Unlock()
	rings, err := a.Store.Keyrings(ctx)
	if err != nil {
		return KeyStatus{}, err
	}
	for _, r := range rings {
		if r.PendingKit == "" || !strings.EqualFold(r.PendingKit, sum) {
			continue
		}
		// The wrap is the provider's copy; without it the kit still has its own.
		r.Kit, r.KitTime, r.Wrap = KitWritten, a.now(), r.PendingWrap
		r.PendingKit, r.PendingWrap = "", nil
		if err := a.Store.PutKeyring(ctx, r); err != nil {
			return KeyStatus{}, err
		}
		a.Log.InfoContext(ctx, "keyring accepted: its recovery kit was written", "keyring", r.Fingerprint)
		return keyStatus(r), nil
	}
	return KeyStatus{}, &RefusedError{Reason: "no kit with this checksum was exported last", Next: "export the kit again: holdfast key export-kit FILE"}
}

// DeclineKit accepts the current keyring into use without a kit. The caller
// confirms by giving the tenant's name.
func (a *Agent) DeclineKit(ctx context.Context, connection, tenantName string) (KeyStatus, error) {
	a.keyMu.Lock()
	defer a.keyMu.Unlock()
	conn, err := a.connection(ctx, connection)
	if err != nil {
		return KeyStatus{}, err
	}
	if tenantName != conn.TenantName {
		return KeyStatus{}, &tenant.InvalidError{Field: "tenant", Reason: fmt.Sprintf("must be %q, in full, to decline the recovery kit. %s", conn.TenantName, LossWarning)}
	}
	ring, _, err := a.currentOrNew(ctx)
	if err != nil {
		return KeyStatus{}, err
	}
	if ring.Kit == KitWritten {
		return keyStatus(ring), nil
	}
	ring.Kit, ring.KitTime = KitDeclined, a.now()
	if err := a.Store.PutKeyring(ctx, ring); err != nil {
		return KeyStatus{}, err
	}
	a.Log.WarnContext(ctx, "keyring accepted without a recovery kit", "keyring", ring.Fingerprint)
	return keyStatus(ring), nil
}

// ImportKit takes a kit's keyring into use: for new backups too if the site has
// no accepted keyring yet, to read old ones otherwise. Where the kit's own copy
// is damaged, those at the provider are tried.
func (a *Agent) ImportKit(ctx context.Context, file []byte, passphrase string) (KeyStatus, error) {
	a.keyMu.Lock()
	defer a.keyMu.Unlock()
	kit, err := DecodeKit(file, passphrase)
	if err != nil {
		return KeyStatus{}, &tenant.InvalidError{Field: "kit", Reason: err.Error()}
	}
	keys, err := kit.Open()
	if err != nil {
		keys, err = a.openFromProviders(ctx, kit, err)
	}
	if err != nil {
		return KeyStatus{}, err
	}
	rings, err := a.Store.Keyrings(ctx)
	if err != nil {
		return KeyStatus{}, err
	}
	secret, err := keys.Marshal()
	if err != nil {
		return KeyStatus{}, err
	}
	ring := Keyring{Fingerprint: kit.Fingerprint.String(), Secret: secret, Current: true, Created: kit.Created,
		Kit: KitWritten, KitTime: a.now(), Wrap: kit.Wrap}
	for _, r := range rings {
		if r.Fingerprint == ring.Fingerprint {
			return keyStatus(r), nil
		}
		if !r.Current {
			continue
		}
		if r.Kit != KitMissing {
			ring.Current = false
			continue
		}
		r.Current = false // it has sealed nothing yet
		if err := a.Store.PutKeyring(ctx, r); err != nil {
			return KeyStatus{}, err
		}
	}
	if err := a.Store.PutKeyring(ctx, ring); err != nil {
		return KeyStatus{}, err
	}
	a.Log.InfoContext(ctx, "keyring imported from a recovery kit", "keyring", ring.Fingerprint, "current", ring.Current)
	return keyStatus(ring), nil
}

func (a *Agent) openFromProviders(ctx context.Context, kit Kit, failure error) (*chunk.Keyring, error) {
	wraps, err := a.providerWraps(ctx)
	if err != nil {
		return nil, errors.Join(failure, err)
	}
	return kit.Open(wraps...)
}
