package state

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"

	"pgregory.net/rapid"

	"github.com/holdfast-dr/holdfast/core/quota"
	"github.com/holdfast-dr/holdfast/core/tenant"
)

func usage(t testing.TB, db *DB, r quota.CloudRepository) (used, pending int64) {
	t.Helper()
	v := must[quota.CloudRepository](t)(db.Quotas().Get(context.Background(), r.TenantID, r.ID))
	return v.UsedBytes, v.PendingBytes
}

var _ = both("QuotaLife", func(t *testing.T, db *DB) {
	ctx, s := t.Context(), db.Quotas()
	a := newTenant(t, db, "acme")
	r := newRepository(t, db, a.ID, 100)
	must[quota.Reservation](t)(s.Reserve(ctx, a.ID, r.ID, "s1", 40))
	if v := must[quota.Reservation](t)(s.Reserve(ctx, a.ID, r.ID, "s1", 20)); v.Bytes != 60 {
		t.Errorf("the session holds %d, want 60", v.Bytes)
	}
	var full *quota.FullError
	_, err := s.Reserve(ctx, a.ID, r.ID, "s2", 41)
	if !errors.As(err, &full) {
		t.Fatalf("reserve above the limit: %v", err)
	}
	if *full != (quota.FullError{Repository: "repo", LimitBytes: 100, UsedBytes: 0, PendingBytes: 60, WantedBytes: 41}) {
		t.Errorf("figures of the refusal: %+v", *full)
	}
	if err := s.Commit(ctx, a.ID, r.ID, "s1", 50); err != nil {
		t.Fatal(err)
	}
	if used, pending := usage(t, db, r); used != 50 || pending != 0 {
		t.Errorf("used %d pending %d, want 50 and 0", used, pending)
	}
	must[quota.Reservation](t)(s.Reserve(ctx, a.ID, r.ID, "s2", 10))
	if err := s.Commit(ctx, a.ID, r.ID, "s2", 51); !errors.As(err, &full) || full.PendingBytes != 0 || full.WantedBytes != 51 {
		t.Fatalf("commit of more than fits: %v", err)
	}
	if used, pending := usage(t, db, r); used != 50 || pending != 10 {
		t.Errorf("a refused commit changed something: used %d pending %d", used, pending)
	}
	for range 2 { // releasing twice is releasing once
		if err := s.Release(ctx, a.ID, r.ID, "s2"); err != nil {
			t.Fatal(err)
		}
	}
	if used, pending := usage(t, db, r); used != 50 || pending != 0 {
		t.Errorf("used %d pending %d, want 50 and 0", used, pending)
	}
	// Less room than is used blocks what is new, and nothing else.
	v := must[quota.CloudRepository](t)(s.Get(ctx, a.ID, r.ID))
	v.LimitBytes = 30
	must[quota.CloudRepository](t)(s.Update(asAdmin(t), v))
	if _, err := s.Reserve(ctx, a.ID, r.ID, "s3", 1); !errors.As(err, &full) {
		t.Errorf("reserve in an overfull repository: %v", err)
	}
	wantErr(t, second(s.Update(asAdmin(t), v)), tenant.ErrChanged)
	var notEmpty *quota.NotEmptyError
	if err := s.Delete(asAdmin(t), a.ID, r.ID); !errors.As(err, &notEmpty) || notEmpty.UsedBytes != 50 {
		t.Errorf("delete a repository that stores something: %v", err)
	}
	if err := db.write(ctx, func(x *tx) error { return x.credit(ctx, a.ID, r.ID, 51) }); err == nil {
		t.Error("more was credited than was charged")
	}
	if err := db.write(ctx, func(x *tx) error { return x.credit(ctx, a.ID, r.ID, 50) }); err != nil {
		t.Fatal(err)
	}
	if err := s.Delete(asAdmin(t), a.ID, r.ID); err != nil {
		t.Fatal(err)
	}
})

func second[T any](_ T, err error) error { return err }

var _ = both("AForeignRepositoryIsNotFound", func(t *testing.T, db *DB) {
	ctx, s := t.Context(), db.Quotas()
	a, b := newTenant(t, db, "acme"), newTenant(t, db, "bolt")
	r := newRepository(t, db, a.ID, 100)
	stolen := r
	stolen.TenantID = b.ID
	for verb, err := range map[string]error{
		"get":      second(s.Get(ctx, b.ID, r.ID)),
		"provider": second(s.Get(ctx, tenant.Provider, r.ID)),
		"update":   second(s.Update(asAdmin(t), stolen)),
		"delete":   s.Delete(asAdmin(t), b.ID, r.ID),
		"reserve":  second(s.Reserve(ctx, b.ID, r.ID, "s", 1)),
		"commit":   s.Commit(ctx, b.ID, r.ID, "s", 1),
		"release":  s.Release(ctx, b.ID, r.ID, "s"),
	} {
		if !errors.Is(err, tenant.ErrNotFound) {
			t.Errorf("%s of a foreign repository: %v", verb, err)
		}
	}
	if all := must[[]quota.CloudRepository](t)(s.List(ctx, quota.Query{Tenant: b.ID})); len(all) != 0 {
		t.Errorf("listed %+v", all)
	}
	if all := must[[]quota.CloudRepository](t)(s.List(ctx, quota.Query{Tenant: quota.AnyTenant})); len(all) != 1 {
		t.Errorf("the provider sees %d repositories, want 1", len(all))
	}
})

var _ = both("IdleReservationsExpire", func(t *testing.T, db *DB) {
	ctx, s := t.Context(), db.Quotas()
	a := newTenant(t, db, "acme")
	r := newRepository(t, db, a.ID, 100)
	must[quota.Reservation](t)(s.Reserve(ctx, a.ID, r.ID, "old", 30))
	must[quota.Reservation](t)(s.Reserve(ctx, a.ID, r.ID, "new", 20))
	if err := db.write(ctx, func(x *tx) error {
		_, err := x.exec(ctx, "UPDATE reservations SET expires = 1 WHERE session = 'old'")
		return err
	}); err != nil {
		t.Fatal(err)
	}
	if n := must[int64](t)(s.Expire(ctx)); n != 30 {
		t.Errorf("released %d bytes, want 30", n)
	}
	if _, pending := usage(t, db, r); pending != 20 {
		t.Errorf("pending %d, want 20", pending)
	}
})

// Many sessions reserve, commit and release at once. At every moment the sum of
// what was granted fits, and at the end the books agree with the sessions'.
var _ = both("QuotaNeverOversubscribesConcurrently", func(t *testing.T, db *DB) {
	s := db.Quotas()
	a := newTenant(t, db, "acme")
	const limit = 1000
	r := newRepository(t, db, a.ID, limit)
	var mu sync.Mutex // guards used and held
	var used int64
	held := map[string]int64{}
	var workers sync.WaitGroup
	for w := range 8 {
		workers.Go(func() {
			random := rand.New(rand.NewPCG(7, uint64(w)))
			session := fmt.Sprintf("s%d", w)
			var mine int64
			for range 40 {
				var err error
				switch random.IntN(4) {
				case 0, 1:
					n := random.Int64N(120)
					if _, err = s.Reserve(t.Context(), a.ID, r.ID, session, n); err == nil {
						mine += n
					}
				case 2:
					charge := random.Int64N(mine + 1)
					if err = s.Commit(t.Context(), a.ID, r.ID, session, charge); err == nil {
						mine = 0
						mu.Lock()
						used += charge
						mu.Unlock()
					}
				case 3:
					err = s.Release(t.Context(), a.ID, r.ID, session)
					mine = 0
				}
				var full *quota.FullError
				if err != nil && !errors.As(err, &full) {
					t.Error(err)
					return
				}
				if u, p := usage(t, db, r); u+p > limit {
					t.Errorf("oversubscribed: %d used + %d pending > %d", u, p, limit)
				}
			}
			mu.Lock()
			held[session] = mine
			mu.Unlock()
		})
	}
	workers.Wait()
	var pending int64
	for _, n := range held {
		pending += n
	}
	if u, p := usage(t, db, r); u != used || p != pending {
		t.Errorf("books say %d used, %d pending; the sessions say %d and %d", u, p, used, pending)
	}
})

// The same against a model, with sequences that rapid shrinks to the shortest
// that fails.
var _ = both("QuotaFollowsItsModel", func(t *testing.T, db *DB) {
	s := db.Quotas()
	a := newTenant(t, db, "acme")
	r := newRepository(t, db, a.ID, 100)
	ctx := t.Context()
	rapid.Check(t, func(rt *rapid.T) {
		// Each run begins with an empty repository.
		if err := db.write(ctx, func(x *tx) error {
			if _, err := x.exec(ctx, "DELETE FROM reservations"); err != nil {
				return err
			}
			_, err := x.exec(ctx, "UPDATE cloud_repositories SET used_bytes = 0, pending_bytes = 0")
			return err
		}); err != nil {
			rt.Fatal(err)
		}
		var used, pending int64
		held := map[string]int64{}
		for range rapid.IntRange(1, 12).Draw(rt, "steps") {
			session := rapid.SampledFrom([]string{"x", "y", "z"}).Draw(rt, "session")
			n := rapid.Int64Range(0, 70).Draw(rt, "bytes")
			var err error
			fits := true
			switch op := rapid.SampledFrom([]string{"reserve", "commit", "release", "credit"}).Draw(rt, "op"); op {
			case "reserve":
				_, err = s.Reserve(ctx, a.ID, r.ID, session, n)
				if fits = used+pending+n <= 100; fits {
					held[session] += n
					pending += n
				}
			case "commit":
				err = s.Commit(ctx, a.ID, r.ID, session, n)
				if fits = used+pending-held[session]+n <= 100; fits {
					used, pending, held[session] = used+n, pending-held[session], 0
				}
			case "release":
				err = s.Release(ctx, a.ID, r.ID, session)
				pending, held[session] = pending-held[session], 0
			case "credit":
				err = db.write(ctx, func(x *tx) error { return x.credit(ctx, a.ID, r.ID, n) })
				if n > used {
					if err == nil {
						rt.Fatalf("credited %d of %d", n, used)
					}
					continue
				}
				used -= n
			}
			var full *quota.FullError
			if fits != (err == nil) || !fits && !errors.As(err, &full) {
				rt.Fatalf("fits is %v, error is %v", fits, err)
			}
			if u, p := usage(t, db, r); u != used || p != pending || u+p > 100 {
				rt.Fatalf("books say %d used, %d pending; the model %d and %d", u, p, used, pending)
			}
		}
	})
})

var _ = both("DeletingATenantDecidesOnItsBackups", func(t *testing.T, db *DB) {
	ctx := t.Context()
	for _, choice := range []tenant.Backups{tenant.BackupsKeep, tenant.BackupsDelete} {
		a := newTenant(t, db, "acme") // the name is free again after each deletion
		r := newRepository(t, db, a.ID, 100)
		must[quota.Reservation](t)(db.Quotas().Reserve(ctx, a.ID, r.ID, "s", 10))
		if err := db.Quotas().Commit(ctx, a.ID, r.ID, "s", 10); err != nil {
			t.Fatal(err)
		}
		must[quota.Reservation](t)(db.Quotas().Reserve(ctx, a.ID, r.ID, "s2", 5))
		var has *tenant.HasBackupsError
		if err := db.Tenants().Delete(asAdmin(t), a.ID, tenant.BackupsRefuse); !errors.As(err, &has) || has.UsedBytes != 10 || has.Repositories != 1 {
			t.Fatalf("delete without a decision: %v", err)
		}
		if err := db.Tenants().Delete(asAdmin(t), a.ID, choice); err != nil {
			t.Fatal(err)
		}
		wantErr(t, second(db.Tenants().Get(ctx, a.ID)), tenant.ErrNotFound)
		wantErr(t, db.Tenants().Delete(asAdmin(t), a.ID, choice), tenant.ErrNotFound)
		wantErr(t, second(db.Quotas().Get(ctx, a.ID, r.ID)), tenant.ErrNotFound)
		wantErr(t, second(db.Quotas().Reserve(ctx, a.ID, r.ID, "s3", 1)), tenant.ErrNotFound)
		left := must[quota.CloudRepository](t)(db.Quotas().Get(ctx, quota.AnyTenant, r.ID))
		if left.Retired.IsZero() || left.Backups != choice || left.UsedBytes != 10 || left.PendingBytes != 0 {
			t.Errorf("retired repository %+v, want %q", left, choice)
		}
		chain := must[[]int64](t)(auditNumbers(ctx, db, a.ID))
		if len(chain) < 3 {
			t.Errorf("the tenant's audit log has %d entries left", len(chain))
		}
	}
	if all := must[[]quota.CloudRepository](t)(db.Quotas().List(ctx, quota.Query{Tenant: quota.AnyTenant, Retired: true})); len(all) != 2 {
		t.Errorf("%d retired repositories, want 2", len(all))
	}
})
