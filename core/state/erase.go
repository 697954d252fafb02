package state

import (
	"context"
	"fmt"

	"github.com/holdfast-dr/holdfast/core/quota"
	"github.com/holdfast-dr/holdfast/core/tenant"
)

// Erased forgets a cloud repository of a deleted tenant whose backups were to
// be deleted. The caller has deleted all its objects and holds its claim under
// the epoch. What was recorded of it in the tenant's audit chain stays.
func (db *DB) Erased(ctx context.Context, id quota.ID, epoch uint64) error {
	return db.change(ctx, func(t *tx) error {
		if err := t.fence(ctx, RepositoryResource(string(id)), int64(epoch)); err != nil {
			return err
		}
		var owner, name string
		err := t.row(ctx, "UPDATE cloud_repositories SET version = version + 1 WHERE id = $1 AND retired > 0 AND backups = $2 RETURNING tenant_id, name",
			string(id), string(tenant.BackupsDelete)).Scan(&owner, &name)
		if err != nil {
			return notFound(err, "retired cloud repository", string(id))
		}
		for _, statement := range []string{
			"DELETE FROM points WHERE repository_id = $1",
			"DELETE FROM cloud_repositories WHERE id = $1",
		} {
			if _, err := t.exec(ctx, statement, string(id)); err != nil {
				return fmt.Errorf("erase cloud repository %s: %w", id, err)
			}
		}
		return t.audit(ctx, tenant.ID(owner), "cloud-repository.erase", "cloud-repository:"+string(id), map[string]string{"name": name})
	})
}
