package state

import (
	"errors"
	"testing"

	"github.com/google/uuid"

	"github.com/holdfast-dr/holdfast/core/blob"
	"github.com/holdfast-dr/holdfast/core/quota"
	"github.com/holdfast-dr/holdfast/core/repository"
	"github.com/holdfast-dr/holdfast/core/tenant"
)

func adoption(owner tenant.ID, location string, id quota.ID) quota.Adoption {
	return quota.Adoption{CloudRepository: quota.CloudRepository{ID: id, TenantID: owner, Name: "adopted", LocationID: location, LimitBytes: 1 << 30, ChunkSize: 64 << 10}}
}

var _ = both("AdoptionOfWhatAnotherDatabaseKnew", func(t *testing.T, db *DB) {
	acme, other := newTenant(t, db, "Acme"), newTenant(t, db, "Other")
	location := newRepository(t, db, other.ID, 100).LocationID
	id := quota.ID(uuid.NewString())
	a := adoption(other.ID, location, id)
	a.Whose, a.WhoseID = "acme", "an id of the lost database"

	var stranger *quota.StrangerError
	if _, err := db.Quotas().Adopt(asAdmin(t), a); !errors.As(err, &stranger) || stranger.Whose != "acme" || stranger.Taker != "Other" {
		t.Fatalf("another tenant's backups: %v", err)
	}
	if len(must[map[quota.ID]quota.Owned](t)(db.Quotas().Owned(t.Context(), []quota.ID{id}))) != 0 {
		t.Error("the refused adoption left a cloud repository")
	}
	a.TenantID = acme.ID
	r := must[quota.CloudRepository](t)(db.Quotas().Adopt(asAdmin(t), a))
	if r.ID != id || r.TenantID != acme.ID || r.UsedBytes != 0 || r.ChunkSize != 64<<10 || r.Version != 1 {
		t.Errorf("adopted: %+v", r)
	}
	owned := must[map[quota.ID]quota.Owned](t)(db.Quotas().Owned(t.Context(), []quota.ID{id, "unknown"}))
	if len(owned) != 1 || owned[id] != (quota.Owned{TenantID: acme.ID, TenantName: "Acme", Name: "adopted"}) {
		t.Errorf("owned: %+v", owned)
	}
	var taken *quota.TakenError
	for _, again := range []tenant.ID{acme.ID, other.ID} {
		a.TenantID, a.Name, a.Said = again, "again", "acme"
		_, err := db.Quotas().Adopt(asAdmin(t), a)
		if !errors.As(err, &taken) || taken.Name != "adopted" || taken.Erased || !errors.Is(err, tenant.ErrExists) {
			t.Errorf("an id in use: %v", err)
		}
	}
})

var _ = both("AdoptionOfWhatADeletedTenantLeft", func(t *testing.T, db *DB) {
	acme, other := newTenant(t, db, "Acme"), newTenant(t, db, "Other")
	kept := newRepository(t, db, acme.ID, 1000)
	must[quota.Reservation](t)(db.Quotas().Reserve(t.Context(), acme.ID, kept.ID, "s", 700))
	if err := db.Quotas().Commit(t.Context(), acme.ID, kept.ID, "s", 600); err != nil {
		t.Fatal(err)
	}
	if err := db.Catalogue().Import(asAdmin(t), string(kept.ID), 3, []repository.PointRecord{{ID: "p", Machine: "m", ChargedBytes: 600}}, 600); err != nil {
		t.Fatal(err)
	}
	if err := db.Tenants().Delete(asAdmin(t), acme.ID, tenant.BackupsKeep); err != nil {
		t.Fatal(err)
	}
	a := adoption(other.ID, kept.LocationID, kept.ID)
	a.Whose = "Other" // what lies in the store does not overrule the database
	var stranger *quota.StrangerError
	if _, err := db.Quotas().Adopt(asAdmin(t), a); !errors.As(err, &stranger) || stranger.Whose != "Acme" {
		t.Fatalf("a deleted tenant's backups for another one: %v", err)
	}
	a.Said = "Acme"
	elsewhere := must[blob.Location](t)(db.Locations().Create(asAdmin(t), blob.Location{Name: "elsewhere", Kind: blob.LocationDir, Path: t.TempDir()}))
	a.LocationID = elsewhere.ID
	var wrong *quota.ElsewhereError
	if _, err := db.Quotas().Adopt(asAdmin(t), a); !errors.As(err, &wrong) || wrong.LocationID != kept.LocationID {
		t.Fatalf("from another location: %v", err)
	}
	a.LocationID, a.LimitBytes = kept.LocationID, 50
	r := must[quota.CloudRepository](t)(db.Quotas().Adopt(asAdmin(t), a))
	if r.TenantID != other.ID || r.Name != "adopted" || r.UsedBytes != 600 || r.LimitBytes != 50 || r.ChunkSize != kept.ChunkSize || !r.Retired.IsZero() {
		t.Errorf("readmitted: %+v", r)
	}
	points := must[[]repository.PointRecord](t)(db.Catalogue().Points(t.Context(), string(kept.ID), repository.PointQuery{}))
	if len(points) != 1 {
		t.Errorf("its catalogue has %d points, want the one that was there", len(points))
	}
	var full *quota.FullError
	if _, err := db.Quotas().Reserve(t.Context(), other.ID, kept.ID, "s", 1); !errors.As(err, &full) || full.UsedBytes != 600 {
		t.Errorf("more than the quota is kept: %v", err)
	}

	gone := newTenant(t, db, "Gone")
	dropped := newRepository(t, db, gone.ID, 10)
	if err := db.Tenants().Delete(asAdmin(t), gone.ID, tenant.BackupsDelete); err != nil {
		t.Fatal(err)
	}
	a = adoption(other.ID, dropped.LocationID, dropped.ID)
	a.Name, a.Said = "late", "Gone"
	var taken *quota.TakenError
	if _, err := db.Quotas().Adopt(asAdmin(t), a); !errors.As(err, &taken) || !taken.Erased {
		t.Errorf("what is being erased: %v", err)
	}
})
