package state

import (
	"context"
	"errors"
	"fmt"

	"github.com/holdfast-dr/holdfast/core/access"
	"github.com/holdfast-dr/holdfast/core/tenant"
)

type users struct{ db *DB }

var _ access.Users = users{}

// Users keeps users and their tokens.
func (db *DB) Users() access.Users { return users{db} }

const userColumns = "users.id, users.tenant_id, users.name, users.role, users.password, users.enabled, users.created, users.updated, users.version"

func userFields(u *access.User, created, updated *int64) []any {
	return []any{&u.ID, &u.TenantID, &u.Name, &u.Role, &u.PasswordHash, &u.Enabled, created, updated, &u.Version}
}

func scanUser(s scanner) (u access.User, err error) {
	var created, updated int64
	err = s.Scan(userFields(&u, &created, &updated)...)
	u.Created, u.Updated = moment(created), moment(updated)
	return u, err
}

func (t *tx) user(ctx context.Context, in tenant.ID, id string) (access.User, error) {
	u, err := scanUser(t.row(ctx, "SELECT "+userColumns+" FROM users WHERE id = $1 AND tenant_id = $2", id, string(in)))
	return u, notFound(err, "user", id)
}

func (t *tx) auditUser(ctx context.Context, action string, u access.User) error {
	return t.audit(ctx, u.TenantID, action, "user:"+u.ID, map[string]any{"name": u.Name, "role": u.Role, "enabled": u.Enabled})
}

func (s users) CreateUser(ctx context.Context, u access.User) (access.User, error) {
	if err := u.Check(); err != nil {
		return access.User{}, err
	}
	if u.ID == "" {
		u.ID = newID()
	}
	u.Version = 1
	err := s.db.change(ctx, func(t *tx) error {
		if u.TenantID != tenant.Provider {
			if err := t.lockTenant(ctx, u.TenantID); err != nil {
				return err
			}
		}
		now, err := t.now(ctx)
		if err != nil {
			return err
		}
		u.Created, u.Updated = now, now
		_, err = t.exec(ctx, `INSERT INTO users (id, tenant_id, name, name_fold, role, password, enabled, created, updated, version)
			VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $8, 1)`,
			u.ID, string(u.TenantID), u.Name, tenant.Fold(u.Name), string(u.Role), u.PasswordHash, u.Enabled, micros(now))
		if isUnique(err) {
			return fmt.Errorf("user %q: %w", u.Name, tenant.ErrExists)
		}
		if err != nil {
			return fmt.Errorf("create user: %w", err)
		}
		return t.auditUser(ctx, "user.create", u)
	})
	if err != nil {
		return access.User{}, err
	}
	return u, nil
}

func (s users) User(ctx context.Context, in tenant.ID, id string) (u access.User, err error) {
	err = s.db.read(ctx, func(t *tx) error {
		u, err = t.user(ctx, in, id)
		return err
	})
	return u, err
}

func (s users) UserByName(ctx context.Context, in tenant.ID, name string) (u access.User, err error) {
	err = s.db.read(ctx, func(t *tx) error {
		u, err = scanUser(t.row(ctx, "SELECT "+userColumns+" FROM users WHERE tenant_id = $1 AND name_fold = $2",
			string(in), tenant.Fold(name)))
		return notFound(err, "user", name)
	})
	return u, err
}

func (s users) ListUsers(ctx context.Context, in tenant.ID) (all []access.User, err error) {
	err = s.db.read(ctx, func(t *tx) error {
		all, err = collect(ctx, t, scanUser, "SELECT "+userColumns+" FROM users WHERE tenant_id = $1 ORDER BY name_fold", string(in))
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("list users: %w", err)
	}
	return all, nil
}

func (s users) UpdateUser(ctx context.Context, u access.User) (stored access.User, err error) {
	err = s.db.change(ctx, func(t *tx) error {
		if err := t.lockAdmins(ctx, u.TenantID); err != nil {
			return err
		}
		old, err := t.user(ctx, u.TenantID, u.ID)
		if err != nil {
			return err
		}
		if err := u.Check(); err != nil {
			return err
		}
		now, err := t.now(ctx)
		if err != nil {
			return err
		}
		n, err := t.exec(ctx, `UPDATE users SET name = $1, name_fold = $2, role = $3, password = $4, enabled = $5, updated = $6,
			version = version + 1 WHERE id = $7 AND tenant_id = $8 AND version = $9`,
			u.Name, tenant.Fold(u.Name), string(u.Role), u.PasswordHash, u.Enabled, micros(now), u.ID, string(u.TenantID), u.Version)
		if isUnique(err) {
			return fmt.Errorf("user %q: %w", u.Name, tenant.ErrExists)
		}
		if err != nil {
			return fmt.Errorf("update user %s: %w", u.ID, err)
		}
		if n == 0 {
			return fmt.Errorf("user %s: %w", u.ID, tenant.ErrChanged)
		}
		if u.PasswordHash != old.PasswordHash || !u.Enabled {
			if _, err := t.exec(ctx, "DELETE FROM tokens WHERE user_id = $1", u.ID); err != nil {
				return fmt.Errorf("end tokens of user %s: %w", u.ID, err)
			}
		}
		if err := t.keepAdmin(ctx, old); err != nil {
			return err
		}
		if stored, err = t.user(ctx, u.TenantID, u.ID); err != nil {
			return err
		}
		return t.auditUser(ctx, "user.update", stored)
	})
	if err != nil {
		return access.User{}, err
	}
	return stored, nil
}

func (s users) DeleteUser(ctx context.Context, in tenant.ID, id string) error {
	return s.db.change(ctx, func(t *tx) error {
		if err := t.lockAdmins(ctx, in); err != nil {
			return err
		}
		u, err := t.user(ctx, in, id)
		if err != nil {
			return err
		}
		if _, err := t.exec(ctx, "DELETE FROM users WHERE id = $1 AND tenant_id = $2", id, string(in)); err != nil {
			return fmt.Errorf("delete user %s: %w", id, err)
		}
		if err := t.keepAdmin(ctx, u); err != nil {
			return err
		}
		return t.auditUser(ctx, "user.delete", u)
	})
}

// lockAdmins serialises changes of the provider's administrators: two that
// remove each other must not both succeed.
func (t *tx) lockAdmins(ctx context.Context, in tenant.ID) error {
	if in != tenant.Provider {
		return nil
	}
	_, err := t.exec(ctx, "UPDATE users SET role = role WHERE tenant_id = '' AND role = $1", string(access.ProviderAdmin))
	if err != nil {
		return fmt.Errorf("lock provider-admins: %w", err)
	}
	return nil
}

// keepAdmin refuses a change of a user after which nobody could undo it.
func (t *tx) keepAdmin(ctx context.Context, old access.User) error {
	if old.Role != access.ProviderAdmin || !old.Enabled {
		return nil
	}
	var left int
	err := t.row(ctx, "SELECT count(*) FROM users WHERE tenant_id = '' AND role = $1 AND enabled", string(access.ProviderAdmin)).Scan(&left)
	if err != nil {
		return fmt.Errorf("count provider-admins: %w", err)
	}
	if left == 0 {
		return fmt.Errorf("user %q: %w", old.Name, access.ErrLastAdmin)
	}
	return nil
}

const tokenColumns = "tokens.id, tokens.user_id, tokens.tenant_id, tokens.name, tokens.hash, tokens.scope, tokens.created, tokens.expires, tokens.last_used"

// tokenRow is a token as it is scanned.
type tokenRow struct {
	token                      access.Token
	hash                       string
	created, expires, lastUsed int64
}

func (r *tokenRow) fields() []any {
	k := &r.token
	return []any{&k.ID, &k.UserID, &k.TenantID, &k.Name, &r.hash, &k.Scope, &r.created, &r.expires, &r.lastUsed}
}

func (r *tokenRow) value() (k access.Token, err error) {
	k = r.token
	k.Created, k.Expires, k.LastUsed = moment(r.created), moment(r.expires), moment(r.lastUsed)
	k.Hash, err = access.ParseHash(r.hash)
	return k, err
}

func scanToken(s scanner) (access.Token, error) {
	var r tokenRow
	if err := s.Scan(r.fields()...); err != nil {
		return access.Token{}, err
	}
	return r.value()
}

func (s users) CreateToken(ctx context.Context, k access.Token) (access.Token, error) {
	if k.Hash.IsZero() || k.Scope < access.None || k.Scope > access.Manage || len(k.Name) > access.MaxName {
		return access.Token{}, &tenant.InvalidError{Field: "token", Reason: "needs a hash, a scope and a short name"}
	}
	if k.ID == "" {
		k.ID = newID()
	}
	err := s.db.change(ctx, func(t *tx) error {
		n, err := t.exec(ctx, "UPDATE users SET version = version WHERE id = $1 AND tenant_id = $2 AND enabled", k.UserID, string(k.TenantID))
		if err != nil {
			return fmt.Errorf("lock user %s: %w", k.UserID, err)
		}
		if n == 0 {
			return fmt.Errorf("user %s: %w", k.UserID, tenant.ErrNotFound)
		}
		now, err := t.now(ctx)
		if err != nil {
			return err
		}
		// What has expired makes room; it is of no use to anybody.
		if _, err := t.exec(ctx, "DELETE FROM tokens WHERE user_id = $1 AND expires > 0 AND expires <= $2", k.UserID, micros(now)); err != nil {
			return fmt.Errorf("remove expired tokens: %w", err)
		}
		var count int
		if err := t.row(ctx, "SELECT count(*) FROM tokens WHERE user_id = $1", k.UserID).Scan(&count); err != nil {
			return fmt.Errorf("count tokens: %w", err)
		}
		if count >= access.MaxTokens {
			return &tenant.InvalidError{Field: "token", Reason: fmt.Sprintf("the user has %d already; delete some", count)}
		}
		k.Created = now
		if _, err := t.exec(ctx, `INSERT INTO tokens (id, user_id, tenant_id, name, hash, scope, created, expires, last_used)
			VALUES ($1, $2, $3, $4, $5, $6, $7, $8, 0)`,
			k.ID, k.UserID, string(k.TenantID), k.Name, k.Hash.String(), int64(k.Scope), micros(now), micros(k.Expires)); err != nil {
			return fmt.Errorf("create token: %w", err)
		}
		return t.audit(ctx, k.TenantID, "token.create", "token:"+k.ID, map[string]any{"user": k.UserID, "name": k.Name})
	})
	if err != nil {
		return access.Token{}, err
	}
	return k, nil
}

func (s users) ListTokens(ctx context.Context, in tenant.ID, userID string) (all []access.Token, err error) {
	err = s.db.read(ctx, func(t *tx) error {
		all, err = collect(ctx, t, scanToken, "SELECT "+tokenColumns+" FROM tokens WHERE tenant_id = $1 AND user_id = $2 ORDER BY id",
			string(in), userID)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("list tokens: %w", err)
	}
	return all, nil
}

func (s users) DeleteToken(ctx context.Context, in tenant.ID, id string) error {
	return s.db.change(ctx, func(t *tx) error {
		n, err := t.exec(ctx, "DELETE FROM tokens WHERE id = $1 AND tenant_id = $2", id, string(in))
		if err != nil {
			return fmt.Errorf("delete token %s: %w", id, err)
		}
		if n == 0 {
			return fmt.Errorf("token %s: %w", id, tenant.ErrNotFound)
		}
		return t.audit(ctx, in, "token.delete", "token:"+id, nil)
	})
}

func (s users) ByToken(ctx context.Context, h access.Hash) (k access.Token, u access.User, err error) {
	err = s.db.read(ctx, func(t *tx) error {
		now, err := t.now(ctx)
		if err != nil {
			return err
		}
		var r tokenRow
		var created, updated int64
		err = t.row(ctx, "SELECT "+tokenColumns+", "+userColumns+` FROM tokens JOIN users ON users.id = tokens.user_id
			WHERE tokens.hash = $1 AND users.enabled AND (tokens.expires = 0 OR tokens.expires > $2)`,
			h.String(), micros(now)).Scan(append(r.fields(), userFields(&u, &created, &updated)...)...)
		if err != nil {
			return err
		}
		u.Created, u.Updated = moment(created), moment(updated)
		k, err = r.value()
		return err
	})
	if errors.Is(notFound(err, "token", ""), tenant.ErrNotFound) {
		return access.Token{}, access.User{}, access.ErrCredentials
	}
	if err != nil {
		return access.Token{}, access.User{}, fmt.Errorf("look up token: %w", err)
	}
	return k, u, nil
}

func (s users) TouchToken(ctx context.Context, id string) error {
	err := s.db.write(ctx, func(t *tx) error {
		now, err := t.now(ctx)
		if err != nil {
			return err
		}
		_, err = t.exec(ctx, "UPDATE tokens SET last_used = $1 WHERE id = $2", micros(now), id)
		return err
	})
	if err != nil {
		return fmt.Errorf("touch token %s: %w", id, err)
	}
	return nil
}
