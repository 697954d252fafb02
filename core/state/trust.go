package state

import (
	"context"
	"database/sql"
	"errors"
	"fmt"

	"github.com/holdfast-dr/holdfast/core/pki"
	"github.com/holdfast-dr/holdfast/core/tenant"
)

type trust struct{ db *DB }

var _ pki.Store = trust{}

// Trust keeps the provider's CA and imported certificate.
func (db *DB) Trust() pki.Store { return trust{db} }

func (t *tx) authority(ctx context.Context) (r pki.AuthorityRecord, err error) {
	var created int64
	err = t.row(ctx, "SELECT id, certificate, sealed_key, created FROM authorities WHERE slot = 'current'").
		Scan(&r.ID, &r.Certificate, &r.SealedKey, &created)
	r.Created = moment(created)
	return r, none(err, "authority")
}

// none turns the driver's answer into pki's.
func none(err error, thing string) error {
	if errors.Is(err, sql.ErrNoRows) {
		return pki.ErrNone
	}
	if err != nil {
		return fmt.Errorf("read %s: %w", thing, err)
	}
	return nil
}

func (s trust) Authority(ctx context.Context) (r pki.AuthorityRecord, err error) {
	err = s.db.read(ctx, func(t *tx) error {
		r, err = t.authority(ctx)
		return err
	})
	return r, err
}

func (s trust) CreateAuthority(ctx context.Context, r pki.AuthorityRecord) (stored pki.AuthorityRecord, err error) {
	if r.ID == "" {
		r.ID = newID()
	}
	err = s.db.change(ctx, func(t *tx) error {
		now, err := t.now(ctx)
		if err != nil {
			return err
		}
		n, err := t.exec(ctx, `INSERT INTO authorities (slot, id, certificate, sealed_key, created) VALUES ('current', $1, $2, $3, $4)
			ON CONFLICT (slot) DO NOTHING`, r.ID, r.Certificate, r.SealedKey, micros(now))
		if err != nil {
			return fmt.Errorf("create authority: %w", err)
		}
		if stored, err = t.authority(ctx); err != nil {
			return err
		}
		action := "authority.create"
		if n == 0 {
			action = "authority.keep" // another server was first
		}
		return t.audit(ctx, tenant.Provider, action, "authority:"+stored.ID, nil)
	})
	return stored, err
}

func (s trust) ReplaceAuthority(ctx context.Context, r pki.AuthorityRecord) (stored pki.AuthorityRecord, err error) {
	if r.ID == "" {
		r.ID = newID()
	}
	err = s.db.change(ctx, func(t *tx) error {
		now, err := t.now(ctx)
		if err != nil {
			return err
		}
		if _, err := t.exec(ctx, `INSERT INTO authorities (slot, id, certificate, sealed_key, created) VALUES ('current', $1, $2, $3, $4)
			ON CONFLICT (slot) DO UPDATE SET id = excluded.id, certificate = excluded.certificate, sealed_key = excluded.sealed_key,
			created = excluded.created`, r.ID, r.Certificate, r.SealedKey, micros(now)); err != nil {
			return fmt.Errorf("replace authority: %w", err)
		}
		if _, err := t.exec(ctx, "DELETE FROM server_certificates WHERE slot = 'current'"); err != nil {
			return fmt.Errorf("remove the server certificate: %w", err)
		}
		revoked, err := t.exec(ctx, "UPDATE agents SET revoked = $1 WHERE revoked = 0", micros(now))
		if err != nil {
			return fmt.Errorf("revoke agents: %w", err)
		}
		if stored, err = t.authority(ctx); err != nil {
			return err
		}
		return t.audit(ctx, tenant.Provider, "authority.replace", "authority:"+stored.ID, map[string]any{"revoked_agents": revoked})
	})
	return stored, err
}

func (s trust) ServerCertificate(ctx context.Context) (r pki.ServerRecord, err error) {
	err = s.db.read(ctx, func(t *tx) error {
		var imported int64
		err := t.row(ctx, "SELECT chain, sealed_key, imported FROM server_certificates WHERE slot = 'current'").
			Scan(&r.Chain, &r.SealedKey, &imported)
		r.Imported = moment(imported)
		return none(err, "server certificate")
	})
	return r, err
}

func (s trust) SetServerCertificate(ctx context.Context, r *pki.ServerRecord) error {
	return s.db.change(ctx, func(t *tx) error {
		now, err := t.now(ctx)
		if err != nil {
			return err
		}
		action := "certificate.import"
		if r == nil {
			action = "certificate.remove"
			_, err = t.exec(ctx, "DELETE FROM server_certificates WHERE slot = 'current'")
		} else {
			_, err = t.exec(ctx, `INSERT INTO server_certificates (slot, chain, sealed_key, imported) VALUES ('current', $1, $2, $3)
				ON CONFLICT (slot) DO UPDATE SET chain = excluded.chain, sealed_key = excluded.sealed_key, imported = excluded.imported`,
				r.Chain, r.SealedKey, micros(now))
		}
		if err != nil {
			return fmt.Errorf("set server certificate: %w", err)
		}
		return t.audit(ctx, tenant.Provider, action, "certificate:server", nil)
	})
}
