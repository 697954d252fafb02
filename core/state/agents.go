package state

import (
	"context"
	"errors"
	"fmt"
	"unicode/utf8"

	"github.com/holdfast-dr/holdfast/core/access"
	"github.com/holdfast-dr/holdfast/core/tenant"
)

type agents struct{ db *DB }

var _ access.Agents = agents{}

// Agents keeps agents and enrolments.
func (db *DB) Agents() access.Agents { return agents{db} }

const agentColumns = "id, tenant_id, name, key, version, enrolled, last_seen, revoked"

func scanAgent(s scanner) (a access.Agent, err error) {
	var key string
	var enrolled, lastSeen, revoked int64
	if err = s.Scan(&a.ID, &a.TenantID, &a.Name, &key, &a.Version, &enrolled, &lastSeen, &revoked); err != nil {
		return a, err
	}
	a.Enrolled, a.LastSeen, a.Revoked = moment(enrolled), moment(lastSeen), moment(revoked)
	a.Key, err = access.ParseHash(key)
	return a, err
}

const enrolmentColumns = "id, tenant_id, site, hash, created, expires, key, agent_id"

func scanEnrolment(s scanner) (e access.Enrolment, err error) {
	var hash, key string
	var created, expires int64
	if err = s.Scan(&e.ID, &e.TenantID, &e.Site, &hash, &created, &expires, &key, &e.AgentID); err != nil {
		return e, err
	}
	e.Created, e.Expires = moment(created), moment(expires)
	if e.Hash, err = access.ParseHash(hash); err != nil {
		return e, err
	}
	e.Key, err = access.ParseHash(key)
	return e, err
}

func (s agents) CreateEnrolment(ctx context.Context, e access.Enrolment) (access.Enrolment, error) {
	if e.Hash.IsZero() {
		return access.Enrolment{}, &tenant.InvalidError{Field: "enrolment", Reason: "needs the hash of its token"}
	}
	if e.ID == "" {
		e.ID = newID()
	}
	e.Key, e.AgentID = access.Hash{}, ""
	err := s.db.change(ctx, func(t *tx) error {
		now, err := t.now(ctx)
		if err != nil {
			return err
		}
		if err := e.Check(now); err != nil {
			return err
		}
		if err := t.lockTenant(ctx, e.TenantID); err != nil {
			return err
		}
		e.Created = now
		// Old ones are of no use to anybody; the audit log remembers them.
		if _, err := t.exec(ctx, "DELETE FROM enrolments WHERE tenant_id = $1 AND expires < $2",
			string(e.TenantID), micros(now.Add(-access.MaxEnrolment))); err != nil {
			return fmt.Errorf("remove old enrolments: %w", err)
		}
		if _, err := t.exec(ctx, `INSERT INTO enrolments (id, tenant_id, site, hash, created, expires, key, agent_id)
			VALUES ($1, $2, $3, $4, $5, $6, '', '')`,
			e.ID, string(e.TenantID), e.Site, e.Hash.String(), micros(now), micros(e.Expires)); err != nil {
			return fmt.Errorf("create enrolment: %w", err)
		}
		return t.audit(ctx, e.TenantID, "enrolment.create", "enrolment:"+e.ID, map[string]any{"site": e.Site, "expires": e.Expires})
	})
	if err != nil {
		return access.Enrolment{}, err
	}
	return e, nil
}

func (s agents) ListEnrolments(ctx context.Context, in tenant.ID) (all []access.Enrolment, err error) {
	err = s.db.read(ctx, func(t *tx) error {
		all, err = collect(ctx, t, scanEnrolment, "SELECT "+enrolmentColumns+" FROM enrolments WHERE tenant_id = $1 ORDER BY id", string(in))
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("list enrolments: %w", err)
	}
	return all, nil
}

func (s agents) DeleteEnrolment(ctx context.Context, in tenant.ID, id string) error {
	return s.db.change(ctx, func(t *tx) error {
		n, err := t.exec(ctx, "DELETE FROM enrolments WHERE id = $1 AND tenant_id = $2", id, string(in))
		if err != nil {
			return fmt.Errorf("delete enrolment %s: %w", id, err)
		}
		if n == 0 {
			return fmt.Errorf("enrolment %s: %w", id, tenant.ErrNotFound)
		}
		return t.audit(ctx, in, "enrolment.delete", "enrolment:"+id, nil)
	})
}

// Enrol binds the token to the first key in one conditional UPDATE, so of two
// keys that come at once one wins.
func (s agents) Enrol(ctx context.Context, token, key access.Hash) (a access.Agent, err error) {
	if key.IsZero() {
		return access.Agent{}, access.ErrEnrolment
	}
	err = s.db.change(ctx, func(t *tx) error {
		now, err := t.now(ctx)
		if err != nil {
			return err
		}
		e, err := scanEnrolment(t.row(ctx, `UPDATE enrolments SET key = $1, agent_id = CASE WHEN agent_id = '' THEN $2 ELSE agent_id END
			WHERE hash = $3 AND expires > $4 AND (key = '' OR key = $1) RETURNING `+enrolmentColumns,
			key.String(), newID(), token.String(), micros(now)))
		if errors.Is(notFound(err, "enrolment", ""), tenant.ErrNotFound) {
			return access.ErrEnrolment
		}
		if err != nil {
			return fmt.Errorf("redeem enrolment: %w", err)
		}
		n, err := t.exec(ctx, `INSERT INTO agents (id, tenant_id, name, key, version, enrolled, last_seen, revoked)
			VALUES ($1, $2, $3, $4, '', $5, $5, 0) ON CONFLICT (id) DO NOTHING`,
			e.AgentID, string(e.TenantID), e.Site, key.String(), micros(now))
		if err != nil {
			return fmt.Errorf("create agent: %w", err)
		}
		if a, err = t.agent(ctx, e.AgentID); err != nil {
			return err
		}
		if !a.Revoked.IsZero() {
			return access.ErrEnrolment
		}
		action := "agent.enrol"
		if n == 0 {
			action = "agent.enrol-again"
		}
		return t.audit(ctx, a.TenantID, action, "agent:"+a.ID, map[string]any{"site": a.Name, "enrolment": e.ID})
	})
	if err != nil {
		return access.Agent{}, err
	}
	return a, nil
}

func (t *tx) agent(ctx context.Context, id string) (access.Agent, error) {
	a, err := scanAgent(t.row(ctx, "SELECT "+agentColumns+" FROM agents WHERE id = $1", id))
	return a, notFound(err, "agent", id)
}

func (t *tx) agentOf(ctx context.Context, in tenant.ID, id string) (access.Agent, error) {
	a, err := scanAgent(t.row(ctx, "SELECT "+agentColumns+" FROM agents WHERE id = $1 AND tenant_id = $2", id, string(in)))
	return a, notFound(err, "agent", id)
}

func (s agents) Agent(ctx context.Context, in tenant.ID, id string) (a access.Agent, err error) {
	err = s.db.read(ctx, func(t *tx) error {
		a, err = t.agentOf(ctx, in, id)
		return err
	})
	return a, err
}

func (s agents) AgentByID(ctx context.Context, id string) (a access.Agent, err error) {
	err = s.db.read(ctx, func(t *tx) error {
		a, err = t.agent(ctx, id)
		return err
	})
	return a, err
}

func (s agents) ListAgents(ctx context.Context, in tenant.ID) (all []access.Agent, err error) {
	err = s.db.read(ctx, func(t *tx) error {
		all, err = collect(ctx, t, scanAgent, "SELECT "+agentColumns+" FROM agents WHERE tenant_id = $1 ORDER BY id", string(in))
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("list agents: %w", err)
	}
	return all, nil
}

func (s agents) RevokeAgent(ctx context.Context, in tenant.ID, id string) (a access.Agent, err error) {
	err = s.db.change(ctx, func(t *tx) error {
		now, err := t.now(ctx)
		if err != nil {
			return err
		}
		if _, err := t.exec(ctx, "UPDATE agents SET revoked = $1 WHERE id = $2 AND tenant_id = $3 AND revoked = 0",
			micros(now), id, string(in)); err != nil {
			return fmt.Errorf("revoke agent %s: %w", id, err)
		}
		if a, err = t.agentOf(ctx, in, id); err != nil {
			return err
		}
		return t.audit(ctx, in, "agent.revoke", "agent:"+id, map[string]any{"site": a.Name})
	})
	if err != nil {
		return access.Agent{}, err
	}
	return a, nil
}

// maxAgentVersion bounds what an agent says of itself.
const maxAgentVersion = 100

func (s agents) TouchAgent(ctx context.Context, id, version string) error {
	if len(version) > maxAgentVersion || !utf8.ValidString(version) {
		return &tenant.InvalidError{Field: "version", Reason: "is too long"}
	}
	err := s.db.write(ctx, func(t *tx) error {
		now, err := t.now(ctx)
		if err != nil {
			return err
		}
		_, err = t.exec(ctx, "UPDATE agents SET last_seen = $1, version = $2 WHERE id = $3", micros(now), version, id)
		return err
	})
	if err != nil {
		return fmt.Errorf("touch agent %s: %w", id, err)
	}
	return nil
}
