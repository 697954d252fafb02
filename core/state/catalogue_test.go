package state

import (
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/core/claim"
	"github.com/holdfast-dr/holdfast/core/quota"
	"github.com/holdfast-dr/holdfast/core/repository/repositorytest"
	"github.com/holdfast-dr/holdfast/core/tenant"
)

var _ = both("Catalogue", func(t *testing.T, db *DB) {
	a := newTenant(t, db, "acme")
	repositorytest.RunCatalogue(t, func(t *testing.T) repositorytest.Books {
		r := must[quota.CloudRepository](t)(db.Quotas().Create(asAdmin(t), quota.CloudRepository{
			TenantID: a.ID, Name: t.Name(), LocationID: newRepositoryLocation(t, db, a.ID), LimitBytes: 1000}))
		resource, holder := RepositoryResource(string(r.ID)), claim.Holder{Node: "node", Instance: "1"}
		next := func() uint64 {
			t.Helper()
			held := must[claim.Claim](t)(db.Claims().Current(t.Context(), resource))
			if err := db.Claims().Release(t.Context(), held); err != nil {
				t.Fatal(err)
			}
			return uint64(must[claim.Claim](t)(db.Claims().Acquire(t.Context(), resource, holder, time.Hour)).Epoch)
		}
		next()
		return repositorytest.Books{
			Catalogue: db.Catalogue(), Repository: string(r.ID), Epoch: next(), NextEpoch: next,
			Reserve: func(session string, n int64) {
				t.Helper()
				must[quota.Reservation](t)(db.Quotas().Reserve(t.Context(), a.ID, r.ID, session, n))
			},
			Used: func() (used, pending int64) { return usage(t, db, r) },
		}
	})
})

// newRepositoryLocation is the location of the test's repositories.
func newRepositoryLocation(t *testing.T, db *DB, owner tenant.ID) string {
	t.Helper()
	all, err := db.Locations().List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if len(all) > 0 {
		return all[0].ID
	}
	return newRepository(t, db, owner, 1).LocationID
}
