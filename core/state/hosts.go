package state

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/holdfast-dr/holdfast/core/host"
	"github.com/holdfast-dr/holdfast/core/secret"
	"github.com/holdfast-dr/holdfast/core/tenant"
	"github.com/holdfast-dr/holdfast/sdk"
)

type hosts struct {
	db  *DB
	key *secret.Key
}

var _ host.Store = hosts{}

// Hosts keeps endpoints and enabled plugins. Settings hold credentials and are
// sealed by the master key, each for its own endpoint.
func (db *DB) Hosts(key *secret.Key) host.Store { return hosts{db: db, key: key} }

const purposeEndpoint = "endpoint/"

// missing turns the driver's answer into the contract's.
func missing(err error, thing, id string) error {
	if errors.Is(err, sql.ErrNoRows) {
		return fmt.Errorf("%s %s: %w", thing, id, sdk.ErrNotFound)
	}
	if err != nil {
		return fmt.Errorf("read %s %s: %w", thing, id, err)
	}
	return nil
}

const endpointColumns = "id, name, plugin, sealed_settings, workers"

func (s hosts) scanEndpoint(row scanner) (e host.Endpoint, err error) {
	var sealed []byte
	var workers string
	if err = row.Scan(&e.ID, &e.Name, &e.Plugin, &sealed, &workers); err != nil {
		return e, err
	}
	if workers != "" {
		if err = json.Unmarshal([]byte(workers), &e.Workers); err != nil {
			return e, fmt.Errorf("read the workers of endpoint %q: %w", e.Name, err)
		}
	}
	e.Settings, err = s.key.Open(purposeEndpoint+e.ID, sealed)
	return e, err
}

func (s hosts) Endpoint(ctx context.Context, id string) (e host.Endpoint, err error) {
	err = s.db.read(ctx, func(t *tx) error {
		e, err = s.scanEndpoint(t.row(ctx, "SELECT "+endpointColumns+" FROM endpoints WHERE id = $1", id))
		return missing(err, "endpoint", id)
	})
	return e, err
}

func (s hosts) Endpoints(ctx context.Context) (all []host.Endpoint, err error) {
	err = s.db.read(ctx, func(t *tx) error {
		all, err = collect(ctx, t, s.scanEndpoint, "SELECT "+endpointColumns+" FROM endpoints ORDER BY name_fold")
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("list endpoints: %w", err)
	}
	return all, nil
}

func (s hosts) PutEndpoint(ctx context.Context, e host.Endpoint) error {
	if e.ID == "" || e.Name == "" || e.Plugin == "" {
		return fmt.Errorf("endpoint %q: id, name and plugin must be given: %w", e.Name, sdk.ErrInvalid)
	}
	sealed, err := s.key.Seal(purposeEndpoint+e.ID, e.Settings)
	if err != nil {
		return err
	}
	var workers []byte
	if len(e.Workers) > 0 {
		if workers, err = json.Marshal(e.Workers); err != nil {
			return fmt.Errorf("store endpoint %s: %w", e.ID, err)
		}
	}
	return s.db.change(ctx, func(t *tx) error {
		_, err := t.exec(ctx, `INSERT INTO endpoints (id, name, name_fold, plugin, sealed_settings, workers) VALUES ($1, $2, $3, $4, $5, $6)
			ON CONFLICT (id) DO UPDATE SET name = excluded.name, name_fold = excluded.name_fold, plugin = excluded.plugin,
			sealed_settings = excluded.sealed_settings, workers = excluded.workers`,
			e.ID, e.Name, tenant.Fold(e.Name), e.Plugin, sealed, string(workers))
		if isUnique(err) {
			return fmt.Errorf("endpoint %q: the name is taken: %w", e.Name, sdk.ErrInvalid)
		}
		if err != nil {
			return fmt.Errorf("store endpoint %s: %w", e.ID, err)
		}
		return t.audit(ctx, tenant.Provider, "endpoint.put", "endpoint:"+e.ID,
			map[string]any{"name": e.Name, "plugin": e.Plugin, "workers": e.Workers})
	})
}

func (s hosts) DeleteEndpoint(ctx context.Context, id string) error {
	return s.db.change(ctx, func(t *tx) error {
		if _, err := t.exec(ctx, "DELETE FROM endpoints WHERE id = $1", id); err != nil {
			return fmt.Errorf("delete endpoint %s: %w", id, err)
		}
		return t.audit(ctx, tenant.Provider, "endpoint.delete", "endpoint:"+id, nil)
	})
}

const pluginColumns = "plugin, arch, path, sha256, version, protocol, description, enabled_at, policy"

func scanPlugin(row scanner) (p host.Enabled, err error) {
	var description, policy string
	var enabledAt int64
	if err = row.Scan(&p.Plugin, &p.Arch, &p.Path, &p.SHA256, &p.Version, &p.Protocol, &description, &enabledAt, &policy); err != nil {
		return p, err
	}
	p.Description, p.EnabledAt = raw(description), moment(enabledAt)
	if err := json.Unmarshal([]byte(policy), &p.Policy); err != nil {
		return p, fmt.Errorf("read the policy of plugin %s: %w", p.Plugin, err)
	}
	return p, nil
}

func (s hosts) Plugin(ctx context.Context, name, arch string) (p host.Enabled, err error) {
	err = s.db.read(ctx, func(t *tx) error {
		p, err = scanPlugin(t.row(ctx, "SELECT "+pluginColumns+" FROM plugins WHERE plugin = $1 AND arch = $2", name, arch))
		return missing(err, "plugin", name)
	})
	return p, err
}

func (s hosts) Plugins(ctx context.Context) (all []host.Enabled, err error) {
	err = s.db.read(ctx, func(t *tx) error {
		all, err = collect(ctx, t, scanPlugin, "SELECT "+pluginColumns+" FROM plugins ORDER BY plugin, arch")
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("list plugins: %w", err)
	}
	return all, nil
}

func (s hosts) PutPlugin(ctx context.Context, p host.Enabled) error {
	if p.Plugin == "" || p.Arch == "" || p.SHA256 == "" {
		return fmt.Errorf("plugin %q: name, architecture and digest must be given: %w", p.Plugin, sdk.ErrInvalid)
	}
	policy, err := json.Marshal(p.Policy)
	if err != nil {
		return fmt.Errorf("enable plugin %s: %w", p.Plugin, err)
	}
	return s.db.change(ctx, func(t *tx) error {
		_, err := t.exec(ctx, `INSERT INTO plugins (plugin, arch, path, sha256, version, protocol, description, enabled_at, policy)
			VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)
			ON CONFLICT (plugin, arch) DO UPDATE SET path = excluded.path, sha256 = excluded.sha256, version = excluded.version,
			protocol = excluded.protocol, description = excluded.description, enabled_at = excluded.enabled_at, policy = excluded.policy`,
			p.Plugin, p.Arch, p.Path, p.SHA256, p.Version, p.Protocol, string(p.Description), micros(p.EnabledAt), string(policy))
		if err != nil {
			return fmt.Errorf("enable plugin %s: %w", p.Plugin, err)
		}
		return t.audit(ctx, tenant.Provider, "plugin.enable", "plugin:"+p.Plugin,
			map[string]any{"arch": p.Arch, "sha256": p.SHA256, "version": p.Version, "policy": p.Policy})
	})
}

func (s hosts) DeletePlugin(ctx context.Context, name, arch string) error {
	return s.db.change(ctx, func(t *tx) error {
		if _, err := t.exec(ctx, "DELETE FROM plugins WHERE plugin = $1 AND arch = $2", name, arch); err != nil {
			return fmt.Errorf("disable plugin %s: %w", name, err)
		}
		return t.audit(ctx, tenant.Provider, "plugin.disable", "plugin:"+name, map[string]any{"arch": arch})
	})
}
