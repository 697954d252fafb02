package state

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/holdfast-dr/holdfast/core/agent"
	"github.com/holdfast-dr/holdfast/core/schedule"
	"github.com/holdfast-dr/holdfast/core/secret"
	"github.com/holdfast-dr/holdfast/core/tenant"
)

type site struct {
	db  *DB
	key *secret.Key
}

var _ agent.Store = site{}

// Site keeps what an agent remembers, in an agent's database. Private keys and
// keyrings are sealed by the master key, each for its own row.
func (db *DB) Site(key *secret.Key) agent.Store { return site{db: db, key: key} }

// The purposes of what is sealed; the row's id is part of them.
const (
	purposeConnection = "site/connection/"
	purposeKeyring    = "site/keyring/"
)

// notNull is what a BYTEA column that may be empty takes.
func notNull(b []byte) []byte {
	if b == nil {
		return []byte{}
	}
	return b
}

// absent is nil for what notNull stored for nil.
func absent(b []byte) []byte {
	if len(b) == 0 {
		return nil
	}
	return b
}

// remove runs a DELETE that has to touch a row.
func (t *tx) remove(ctx context.Context, thing, id, query string) error {
	n, err := t.exec(ctx, query, id)
	if isForeign(err) {
		return fmt.Errorf("delete %s %s: it is in use: %w", thing, id, err)
	}
	if err != nil {
		return fmt.Errorf("delete %s %s: %w", thing, id, err)
	}
	if n == 0 {
		return fmt.Errorf("%s %s: %w", thing, id, tenant.ErrNotFound)
	}
	return nil
}

const connectionColumns = `id, name, address, ca_fingerprint, authorities, tenant_id, tenant_name, agent_id, certificate, sealed_key, created`

func (s site) scanConnection(row scanner) (c agent.Connection, err error) {
	var sealed []byte
	var created int64
	if err = row.Scan(&c.ID, &c.Name, &c.Address, &c.CAFingerprint, &c.Authorities, &c.TenantID, &c.TenantName, &c.AgentID,
		&c.Certificate, &sealed, &created); err != nil {
		return c, err
	}
	c.Authorities, c.Certificate, c.Created = absent(c.Authorities), absent(c.Certificate), moment(created)
	if len(sealed) > 0 {
		if c.Key, err = s.key.Open(purposeConnection+c.ID, sealed); err != nil {
			return c, fmt.Errorf("private key of provider %q: %w", c.Name, err)
		}
	}
	return c, nil
}

func (s site) Connections(ctx context.Context) (all []agent.Connection, err error) {
	err = s.db.read(ctx, func(t *tx) error {
		all, err = collect(ctx, t, s.scanConnection, "SELECT "+connectionColumns+" FROM site_connections ORDER BY name_fold")
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("list providers: %w", err)
	}
	return all, nil
}

func (s site) PutConnection(ctx context.Context, c agent.Connection) error {
	sealed := []byte{}
	if len(c.Key) > 0 {
		var err error
		if sealed, err = s.key.Seal(purposeConnection+c.ID, c.Key); err != nil {
			return err
		}
	}
	return s.db.change(ctx, func(t *tx) error {
		_, err := t.exec(ctx, `INSERT INTO site_connections
			(id, name, name_fold, address, ca_fingerprint, authorities, tenant_id, tenant_name, agent_id, certificate, sealed_key, created)
			VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)
			ON CONFLICT (id) DO UPDATE SET name = excluded.name, name_fold = excluded.name_fold, address = excluded.address,
			ca_fingerprint = excluded.ca_fingerprint, authorities = excluded.authorities, tenant_id = excluded.tenant_id,
			tenant_name = excluded.tenant_name, agent_id = excluded.agent_id, certificate = excluded.certificate,
			sealed_key = excluded.sealed_key`,
			c.ID, c.Name, tenant.Fold(c.Name), c.Address, c.CAFingerprint, notNull(c.Authorities), c.TenantID, c.TenantName, c.AgentID,
			notNull(c.Certificate), sealed, micros(c.Created))
		if isUnique(err) {
			return fmt.Errorf("provider %q: %w", c.Name, tenant.ErrExists)
		}
		if err != nil {
			return fmt.Errorf("store provider %q: %w", c.Name, err)
		}
		return t.audit(ctx, tenant.Provider, "provider.put", "provider:"+c.ID,
			map[string]any{"name": c.Name, "address": c.Address, "tenant": c.TenantName, "enrolled": c.AgentID != ""})
	})
}

func (s site) DeleteConnection(ctx context.Context, id string) error {
	return s.db.change(ctx, func(t *tx) error {
		if err := t.remove(ctx, "provider", id, "DELETE FROM site_connections WHERE id = $1"); err != nil {
			return err
		}
		return t.audit(ctx, tenant.Provider, "provider.delete", "provider:"+id, nil)
	})
}

const keyringColumns = "fingerprint, sealed_secret, is_current, kit, kit_time, wrap, pending_kit, pending_wrap, created"

func (s site) scanKeyring(row scanner) (k agent.Keyring, err error) {
	var sealed []byte
	var kitTime, created int64
	if err = row.Scan(&k.Fingerprint, &sealed, &k.Current, &k.Kit, &kitTime, &k.Wrap, &k.PendingKit, &k.PendingWrap, &created); err != nil {
		return k, err
	}
	k.KitTime, k.Created = moment(kitTime), moment(created)
	k.Wrap, k.PendingWrap = absent(k.Wrap), absent(k.PendingWrap)
	if k.Secret, err = s.key.Open(purposeKeyring+k.Fingerprint, sealed); err != nil {
		return k, fmt.Errorf("keyring %s: %w", k.Fingerprint, err)
	}
	return k, nil
}

func (s site) Keyrings(ctx context.Context) (all []agent.Keyring, err error) {
	err = s.db.read(ctx, func(t *tx) error {
		all, err = collect(ctx, t, s.scanKeyring, "SELECT "+keyringColumns+" FROM site_keyrings ORDER BY created, fingerprint")
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("list keyrings: %w", err)
	}
	return all, nil
}

func (s site) PutKeyring(ctx context.Context, k agent.Keyring) error {
	sealed, err := s.key.Seal(purposeKeyring+k.Fingerprint, k.Secret)
	if err != nil {
		return err
	}
	return s.db.change(ctx, func(t *tx) error {
		_, err := t.exec(ctx, `INSERT INTO site_keyrings
			(fingerprint, sealed_secret, is_current, kit, kit_time, wrap, pending_kit, pending_wrap, created)
			VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)
			ON CONFLICT (fingerprint) DO UPDATE SET sealed_secret = excluded.sealed_secret, is_current = excluded.is_current,
			kit = excluded.kit, kit_time = excluded.kit_time, wrap = excluded.wrap, pending_kit = excluded.pending_kit,
			pending_wrap = excluded.pending_wrap`,
			k.Fingerprint, sealed, k.Current, string(k.Kit), micros(k.KitTime), notNull(k.Wrap), k.PendingKit, notNull(k.PendingWrap),
			micros(k.Created))
		if isUnique(err) {
			return fmt.Errorf("keyring %s: another keyring is current: %w", k.Fingerprint, tenant.ErrExists)
		}
		if err != nil {
			return fmt.Errorf("store keyring %s: %w", k.Fingerprint, err)
		}
		return t.audit(ctx, tenant.Provider, "keyring.put", "keyring:"+k.Fingerprint, map[string]any{"current": k.Current, "kit": k.Kit})
	})
}

const siteJobColumns = `id, name, enabled, endpoint_id, connection_id, repository, repository_name, selection, quiesce, cron, zone,
	keep_points, keep_days, next, created, updated`

func scanSiteJob(row scanner) (j agent.Job, err error) {
	var selection, cron, zone string
	var next, created, updated int64
	if err = row.Scan(&j.ID, &j.Name, &j.Enabled, &j.EndpointID, &j.ConnectionID, &j.Repository, &j.RepositoryName, &selection, &j.Quiesce,
		&cron, &zone, &j.Retention.Points, &j.Retention.Days, &next, &created, &updated); err != nil {
		return j, err
	}
	if cron != "" {
		j.Schedule = &schedule.Schedule{Cron: cron, Zone: zone}
	}
	j.Next, j.Created, j.Updated = moment(next), moment(created), moment(updated)
	if err = json.Unmarshal([]byte(selection), &j.Selection); err != nil {
		return j, fmt.Errorf("read selection of job %q: %w", j.Name, err)
	}
	return j, nil
}

func (s site) Jobs(ctx context.Context) (all []agent.Job, err error) {
	err = s.db.read(ctx, func(t *tx) error {
		all, err = collect(ctx, t, scanSiteJob, "SELECT "+siteJobColumns+" FROM site_jobs ORDER BY name_fold")
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("list jobs: %w", err)
	}
	return all, nil
}

func (s site) PutJob(ctx context.Context, j agent.Job) error {
	selection, err := json.Marshal(j.Selection)
	if err != nil {
		return fmt.Errorf("store job %q: %w", j.Name, err)
	}
	var plan schedule.Schedule
	if j.Schedule != nil {
		plan = *j.Schedule
	}
	return s.db.change(ctx, func(t *tx) error {
		_, err := t.exec(ctx, `INSERT INTO site_jobs (id, name, name_fold, enabled, endpoint_id, connection_id, repository, repository_name,
			selection, quiesce, cron, zone, keep_points, keep_days, next, created, updated)
			VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17)
			ON CONFLICT (id) DO UPDATE SET name = excluded.name, name_fold = excluded.name_fold, enabled = excluded.enabled,
			endpoint_id = excluded.endpoint_id, connection_id = excluded.connection_id, repository = excluded.repository,
			repository_name = excluded.repository_name, selection = excluded.selection, quiesce = excluded.quiesce, cron = excluded.cron,
			zone = excluded.zone, keep_points = excluded.keep_points, keep_days = excluded.keep_days, next = excluded.next,
			updated = excluded.updated`,
			j.ID, j.Name, tenant.Fold(j.Name), j.Enabled, j.EndpointID, j.ConnectionID, j.Repository, j.RepositoryName, string(selection),
			string(j.Quiesce), plan.Cron, plan.Zone, int64(j.Retention.Points), int64(j.Retention.Days), micros(j.Next), micros(j.Created),
			micros(j.Updated))
		switch {
		case isUnique(err):
			return fmt.Errorf("job %q: %w", j.Name, tenant.ErrExists)
		case isForeign(err):
			return fmt.Errorf("provider %s: %w", j.ConnectionID, tenant.ErrNotFound)
		case err != nil:
			return fmt.Errorf("store job %q: %w", j.Name, err)
		}
		return t.audit(ctx, tenant.Provider, "job.put", "job:"+j.ID, map[string]any{"name": j.Name, "enabled": j.Enabled,
			"selection": json.RawMessage(selection), "schedule": plan, "retention": j.Retention})
	})
}

func (s site) DeleteJob(ctx context.Context, id string) error {
	return s.db.change(ctx, func(t *tx) error {
		if err := t.remove(ctx, "job", id, "DELETE FROM site_jobs WHERE id = $1"); err != nil {
			return err
		}
		return t.audit(ctx, tenant.Provider, "job.delete", "job:"+id, nil)
	})
}

func (s site) SetNext(ctx context.Context, id string, next time.Time) error {
	return s.db.write(ctx, func(t *tx) error {
		n, err := t.exec(ctx, "UPDATE site_jobs SET next = $1 WHERE id = $2", micros(next), id)
		if err != nil {
			return fmt.Errorf("set next run of job %s: %w", id, err)
		}
		if n == 0 {
			return fmt.Errorf("job %s: %w", id, tenant.ErrNotFound)
		}
		return nil
	})
}

const siteMachineColumns = "id, keyring, repository, endpoint_id, machine, name, remembered, session, held, epoch, compared, runs"

func scanSiteMachine(row scanner) (m agent.Machine, err error) {
	var remembered, held string
	var compared int64
	if err = row.Scan(&m.ID, &m.Keyring, &m.Repository, &m.EndpointID, &m.Machine, &m.Name, &remembered, &m.Session, &held, &m.Epoch, &compared, &m.Runs); err != nil {
		return m, err
	}
	m.Compared = moment(compared)
	if err = json.Unmarshal([]byte(remembered), &m.Remembered); err != nil {
		return m, fmt.Errorf("read remembered points of machine %q: %w", m.Name, err)
	}
	if err = json.Unmarshal([]byte(held), &m.Held); err != nil {
		return m, fmt.Errorf("read the marks held for machine %q: %w", m.Name, err)
	}
	return m, nil
}

func (s site) Machines(ctx context.Context) (all []agent.Machine, err error) {
	err = s.db.read(ctx, func(t *tx) error {
		all, err = collect(ctx, t, scanSiteMachine, "SELECT "+siteMachineColumns+" FROM site_machines ORDER BY name, repository, id")
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("list machines: %w", err)
	}
	return all, nil
}

func (s site) PutMachine(ctx context.Context, m agent.Machine) error {
	remembered, err := json.Marshal(m.Remembered)
	if err != nil {
		return fmt.Errorf("store machine %q: %w", m.Name, err)
	}
	held, err := json.Marshal(m.Held)
	if err != nil {
		return fmt.Errorf("store machine %q: %w", m.Name, err)
	}
	return s.db.write(ctx, func(t *tx) error {
		_, err := t.exec(ctx, `INSERT INTO site_machines
			(id, keyring, repository, endpoint_id, machine, name, remembered, session, held, epoch, compared, runs)
			VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)
			ON CONFLICT (repository, keyring, id) DO UPDATE SET endpoint_id = excluded.endpoint_id, machine = excluded.machine,
			name = excluded.name, remembered = excluded.remembered, session = excluded.session, held = excluded.held, epoch = excluded.epoch, compared = excluded.compared,
			runs = excluded.runs`,
			string(m.ID), m.Keyring, m.Repository, m.EndpointID, string(m.Machine), m.Name, string(remembered), m.Session, string(held), int64(m.Epoch),
			micros(m.Compared), int64(m.Runs))
		if err != nil {
			return fmt.Errorf("store machine %q: %w", m.Name, err)
		}
		return nil
	})
}
