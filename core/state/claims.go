package state

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/holdfast-dr/holdfast/core/claim"
)

type claims struct{ db *DB }

var _ claim.Store = claims{}

// Claims keeps claims.
func (db *DB) Claims() claim.Store { return claims{db} }

func scanClaim(s scanner) (c claim.Claim, err error) {
	var holder string
	var until int64
	err = s.Scan(&c.Resource, &holder, &c.Epoch, &until)
	c.Holder.Node, c.Holder.Instance, _ = strings.Cut(holder, "/")
	c.Until = moment(until)
	return c, err
}

const claimColumns = "resource, holder, epoch, until"

func (s claims) Acquire(ctx context.Context, r claim.Resource, h claim.Holder, ttl time.Duration) (c claim.Claim, err error) {
	if err := checkClaim(r, h, ttl); err != nil {
		return claim.Claim{}, err
	}
	err = s.db.write(ctx, func(t *tx) error {
		now, err := t.now(ctx)
		if err != nil {
			return err
		}
		// The condition is repeated on the row that is changed, so two that come at
		// once are told apart by the row's lock.
		c, err = scanClaim(t.row(ctx, `INSERT INTO claims (resource, holder, epoch, until) VALUES ($1, $2, 1, $3)
			ON CONFLICT (resource) DO UPDATE SET holder = excluded.holder, epoch = claims.epoch + 1, until = excluded.until
			WHERE claims.until <= $4 RETURNING `+claimColumns,
			string(r), h.String(), micros(now.Add(ttl)), micros(now)))
		if !errors.Is(err, sql.ErrNoRows) {
			return err
		}
		held, err := scanClaim(t.row(ctx, "SELECT "+claimColumns+" FROM claims WHERE resource = $1", string(r)))
		if err != nil {
			return err
		}
		return &claim.HeldError{Resource: r, Holder: held.Holder.String(), Until: held.Until}
	})
	var held *claim.HeldError
	if errors.As(err, &held) {
		return claim.Claim{}, held
	}
	if err != nil {
		return claim.Claim{}, fmt.Errorf("claim %s: %w", r, err)
	}
	return c, nil
}

func checkClaim(r claim.Resource, h claim.Holder, ttl time.Duration) error {
	if err := h.Check(); err != nil {
		return err
	}
	if r == "" || ttl < claim.MinTTL {
		return fmt.Errorf("claim %q for %s: want a resource and at least %s", r, ttl, claim.MinTTL)
	}
	return nil
}

func (s claims) Renew(ctx context.Context, c claim.Claim, ttl time.Duration) (renewed claim.Claim, err error) {
	if err := checkClaim(c.Resource, c.Holder, ttl); err != nil {
		return claim.Claim{}, err
	}
	err = s.db.write(ctx, func(t *tx) error {
		now, err := t.now(ctx)
		if err != nil {
			return err
		}
		renewed, err = scanClaim(t.row(ctx, `UPDATE claims SET until = $1 WHERE resource = $2 AND epoch = $3 AND holder = $4 AND until > 0
			RETURNING `+claimColumns, micros(now.Add(ttl)), string(c.Resource), c.Epoch, c.Holder.String()))
		if !errors.Is(err, sql.ErrNoRows) {
			return err
		}
		if err := t.fence(ctx, c.Resource, c.Epoch); err != nil {
			return err
		}
		return &claim.FencedError{Resource: c.Resource, Epoch: c.Epoch, Current: c.Epoch} // released
	})
	if err != nil {
		return claim.Claim{}, fmt.Errorf("renew claim: %w", err)
	}
	return renewed, nil
}

func (s claims) Release(ctx context.Context, c claim.Claim) error {
	err := s.db.write(ctx, func(t *tx) error {
		_, err := t.exec(ctx, "UPDATE claims SET until = 0 WHERE resource = $1 AND epoch = $2", string(c.Resource), c.Epoch)
		return err
	})
	if err != nil {
		return fmt.Errorf("release claim of %s: %w", c.Resource, err)
	}
	return nil
}

func (s claims) Current(ctx context.Context, r claim.Resource) (c claim.Claim, err error) {
	err = s.db.read(ctx, func(t *tx) error {
		c, err = scanClaim(t.row(ctx, "SELECT "+claimColumns+" FROM claims WHERE resource = $1", string(r)))
		return err
	})
	if errors.Is(err, sql.ErrNoRows) {
		return claim.Claim{Resource: r}, nil
	}
	if err != nil {
		return claim.Claim{}, fmt.Errorf("read claim of %s: %w", r, err)
	}
	return c, nil
}

func (s claims) Expel(ctx context.Context, h claim.Holder) (freed int64, err error) {
	if err := h.Check(); err != nil {
		return 0, err
	}
	err = s.db.write(ctx, func(t *tx) error {
		// substr instead of LIKE: a node's name may hold a wildcard.
		freed, err = t.exec(ctx, `UPDATE claims SET until = 0
			WHERE until > 0 AND substr(holder, 1, length(CAST($1 AS TEXT))) = $1 AND holder <> $2`, h.Node+"/", h.String())
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("expel former instances of %s: %w", h.Node, err)
	}
	return freed, nil
}
