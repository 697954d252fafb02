package state

import (
	"context"
	"database/sql"
	"errors"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/core/audit"
	"github.com/holdfast-dr/holdfast/core/blob"
	"github.com/holdfast-dr/holdfast/core/quota"
	"github.com/holdfast-dr/holdfast/core/tenant"
	"github.com/holdfast-dr/holdfast/testenv/postgres"
)

// suite is what both databases must pass; each test gets an empty one.
var suite = map[string]func(*testing.T, *DB){}

// both adds a test to the suite.
func both(name string, f func(*testing.T, *DB)) struct{} {
	suite[name] = f
	return struct{}{}
}

func TestSQLite(t *testing.T) {
	for name, f := range suite {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f(t, openTest(t, "sqlite:"+filepath.Join(t.TempDir(), "state.db")))
		})
	}
}

func TestPostgres(t *testing.T) {
	server := postgres.Start(t)
	t.Run("suite", func(t *testing.T) { // waits for the parallel ones before the server stops
		for name, f := range suite {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				f(t, openTest(t, server.Database(t)))
			})
		}
	})
}

func openTest(t *testing.T, url string) *DB {
	t.Helper()
	db, err := Open(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := db.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return db
}

// asAdmin is a context in which changes are allowed.
func asAdmin(t testing.TB) context.Context {
	return audit.With(t.Context(), audit.Origin{Actor: "user:admin", Name: "admin", Reason: "test"})
}

func must[T any](t testing.TB) func(T, error) T {
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func wantErr(t testing.TB, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Fatalf("got error %v, want %v", err, want)
	}
}

func newTenant(t testing.TB, db *DB, name string) tenant.Tenant {
	t.Helper()
	return must[tenant.Tenant](t)(db.Tenants().Create(asAdmin(t), tenant.Tenant{Name: name, Enabled: true}))
}

func newRepository(t testing.TB, db *DB, owner tenant.ID, limit int64) quota.CloudRepository {
	t.Helper()
	all := must[[]blob.Location](t)(db.Locations().List(t.Context()))
	var location blob.Location
	if len(all) > 0 {
		location = all[0]
	} else {
		location = must[blob.Location](t)(db.Locations().Create(asAdmin(t), blob.Location{Name: "store", Kind: blob.LocationDir, Path: t.TempDir()}))
	}
	return must[quota.CloudRepository](t)(db.Quotas().Create(asAdmin(t),
		quota.CloudRepository{TenantID: owner, Name: "repo", LocationID: location.ID, LimitBytes: limit}))
}

// The two engines must read $n as a number. Two of the three SQLite drivers for
// Go take it for a name and swap the arguments here.
var _ = both("ParametersAreNumbered", func(t *testing.T, db *DB) {
	err := db.read(t.Context(), func(x *tx) error {
		var got string
		if err := x.row(t.Context(), "SELECT CAST($2 AS TEXT) || '-' || CAST($1 AS TEXT)", "one", "two").Scan(&got); err != nil {
			return err
		}
		if got != "two-one" {
			t.Errorf("got %q, want two-one", got)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
})

var _ = both("AChangeNeedsAnOriginAndAnEntry", func(t *testing.T, db *DB) {
	_, err := db.Tenants().Create(t.Context(), tenant.Tenant{Name: "acme"})
	wantErr(t, err, audit.ErrNoOrigin)
	err = db.change(asAdmin(t), func(x *tx) error {
		_, err := x.exec(t.Context(), "INSERT INTO audit_heads (chain, sequence, hash) VALUES ('x', 0, '')")
		return err
	})
	if err == nil || !strings.Contains(err.Error(), "no audit entry") {
		t.Fatalf("a change without an entry: %v", err)
	}
	for _, h := range must[[]audit.Head](t)(db.Audits().Heads(t.Context())) {
		t.Errorf("head %+v is there after a refused change", h)
	}
})

var _ = both("AFailedChangeLeavesNothing", func(t *testing.T, db *DB) {
	boom := errors.New("boom")
	wantErr(t, db.change(asAdmin(t), func(x *tx) error {
		if err := x.audit(t.Context(), tenant.Provider, "a.b", "c:d", nil); err != nil {
			return err
		}
		return boom
	}), boom)
	if all := must[[]audit.Entry](t)(db.Audits().List(t.Context(), audit.Query{})); len(all) != 0 {
		t.Errorf("entries after a rollback: %+v", all)
	}
})

var _ = both("ReadsSeeOneMomentAndWriteNothing", func(t *testing.T, db *DB) {
	newTenant(t, db, "acme")
	err := db.read(t.Context(), func(x *tx) error {
		var n int
		if err := x.row(t.Context(), "SELECT count(*) FROM tenants").Scan(&n); err != nil {
			return err
		}
		newTenant(t, db, "other") // writers go on beside readers
		if err := x.row(t.Context(), "SELECT count(*) FROM tenants").Scan(&n); err != nil {
			return err
		}
		if n != 1 {
			t.Errorf("the view changed: %d tenants", n)
		}
		_, err := x.exec(t.Context(), "DELETE FROM tenants")
		return err
	})
	if err == nil {
		t.Error("a reader could write")
	}
	if all := must[[]tenant.Tenant](t)(db.Tenants().List(t.Context(), tenant.Query{})); len(all) != 2 {
		t.Errorf("%d tenants, want 2", len(all))
	}
})

var _ = both("AuditChainsVerifyAndBreak", func(t *testing.T, db *DB) {
	a := newTenant(t, db, "acme")
	var all sync.WaitGroup
	for range 20 {
		all.Go(func() {
			for range 5 {
				if err := db.Audits().Record(asAdmin(t), a.ID, "test.event", "thing:1", map[string]int{"n": 1}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	all.Wait()
	head, err := audit.Verify(t.Context(), db.Audits(), a.ID)
	if err != nil {
		t.Fatal(err)
	}
	if head.Sequence != 101 { // the creation, and 100 events
		t.Errorf("chain ends at %d, want 101", head.Sequence)
	}
	heads := must[[]audit.Head](t)(db.Audits().Heads(t.Context()))
	if len(heads) != 2 || heads[1] != head {
		t.Errorf("heads %+v do not hold %+v", heads, head)
	}
	newest := must[[]audit.Entry](t)(db.Audits().List(t.Context(), audit.Query{Chain: a.ID, Newest: true, Limit: 1}))
	if len(newest) != 1 || newest[0].Sequence != 101 || newest[0].Reason != "test" {
		t.Errorf("newest entry %+v", newest)
	}
	if err := db.write(t.Context(), func(x *tx) error {
		_, err := x.exec(t.Context(), "UPDATE audit_entries SET actor = 'user:nobody' WHERE chain = $1 AND sequence = 50", string(a.ID))
		return err
	}); err != nil {
		t.Fatal(err)
	}
	var broken *audit.BrokenError
	if _, err := audit.Verify(t.Context(), db.Audits(), a.ID); !errors.As(err, &broken) || broken.Sequence != 50 {
		t.Errorf("a forged entry: %v, want broken at 50", err)
	}
})

func TestOneProcessPerSQLiteFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state.db")
	db := openTest(t, "sqlite:"+path)
	if _, err := Open(t.Context(), "sqlite:"+path); err == nil || !strings.Contains(err.Error(), "in use by another process") {
		t.Fatalf("second open: %v", err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	again, err := Open(t.Context(), "sqlite:"+path)
	if err != nil {
		t.Fatal(err)
	}
	again.Close()
}

func TestSQLiteSettings(t *testing.T) {
	db := openTest(t, "sqlite:"+filepath.Join(t.TempDir(), "a b%3F?#.db")) // a path that a URL would mistake
	for pragma, want := range map[string]string{"journal_mode": "wal", "synchronous": "2", "foreign_keys": "1", "busy_timeout": "10000"} {
		for pool, p := range map[string]*sql.DB{"writer": db.writer, "reader": db.reader} {
			var got string
			if err := p.QueryRowContext(t.Context(), "PRAGMA "+pragma).Scan(&got); err != nil || got != want {
				t.Errorf("%s: %s is %q (%v), want %q", pool, pragma, got, err, want)
			}
		}
	}
}

func TestANewerSchemaIsRefused(t *testing.T) {
	path := "sqlite:" + filepath.Join(t.TempDir(), "state.db")
	db := openTest(t, path)
	if _, err := db.writer.ExecContext(t.Context(), "INSERT INTO goose_db_version (version_id, is_applied) VALUES (99999, 1)"); err != nil {
		t.Fatal(err)
	}
	db.Close()
	if _, err := Open(t.Context(), path); err == nil || !strings.Contains(err.Error(), "newer than this program") {
		t.Fatalf("open: %v", err)
	}
}

func TestOpenRefusesUnknownURLs(t *testing.T) {
	for _, url := range []string{"", "mysql://x", "sqlite:", "sqlite::memory:"} {
		if db, err := Open(t.Context(), url); err == nil {
			db.Close()
			t.Errorf("%q was opened", url)
		}
	}
	_, err := Open(t.Context(), "postgres://u:hunter2@h:not-a-port/db")
	if err == nil || strings.Contains(err.Error(), "hunter2") {
		t.Errorf("bad URL: %v", err)
	}
}

func TestAgentSchema(t *testing.T) {
	db, err := OpenAgent(t.Context(), "sqlite:"+filepath.Join(t.TempDir(), "agent.db"))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if _, err := db.Claims().Acquire(t.Context(), "machine/1", holder(1), time.Minute); err != nil {
		t.Fatal(err)
	}
}

func auditNumbers(ctx context.Context, db *DB, chain tenant.ID) (all []int64, err error) {
	entries, err := db.Audits().List(ctx, audit.Query{Chain: chain})
	for _, e := range entries {
		all = append(all, e.Sequence)
	}
	return all, err
}
