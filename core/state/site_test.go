package state

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/holdfast-dr/holdfast/core/agent"
	"github.com/holdfast-dr/holdfast/core/audit"
	"github.com/holdfast-dr/holdfast/core/point"
	"github.com/holdfast-dr/holdfast/core/schedule"
	"github.com/holdfast-dr/holdfast/core/secret"
	"github.com/holdfast-dr/holdfast/core/tenant"
)

// siteDay is a time as the database keeps it.
var siteDay = time.Date(2026, 11, 20, 2, 0, 0, 123000, time.UTC)

func openSite(t *testing.T, path string, key *secret.Key) (*DB, agent.Store) {
	t.Helper()
	db, err := OpenAgent(t.Context(), "sqlite:"+path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	return db, db.Site(key)
}

func siteOrigin(t *testing.T) context.Context {
	return audit.With(t.Context(), audit.System("test", "because"))
}

func siteConnection() agent.Connection {
	return agent.Connection{ID: "c1", Name: "Provider", Address: "backup.example.com:6180", CAFingerprint: "ca-1",
		Authorities: []byte("authorities"), TenantID: "t1", TenantName: "Acme", AgentID: "a1", Certificate: []byte("certificate"),
		Key: []byte("the private key of the connection"), Created: siteDay}
}

func siteJob() agent.Job {
	return agent.Job{ID: "j1", Name: "Nightly", Enabled: true, EndpointID: "e1", ConnectionID: "c1", Repository: "r1", RepositoryName: "main",
		Selection: agent.Selection{Names: []string{"web-*"}, ExcludeDisks: []string{"vdb"}}, Quiesce: "file-system",
		Schedule:  &schedule.Schedule{Cron: "0 2 * * *", Zone: "Europe/Berlin"},
		Retention: agent.Retention{Points: 14, Days: 30}, Next: siteDay.Add(time.Hour), Created: siteDay, Updated: siteDay}
}

func TestSiteRemembersWhatItWasGiven(t *testing.T) {
	path := filepath.Join(t.TempDir(), "agent.db")
	key := secret.NewKey()
	db, store := openSite(t, path, key)
	ctx := siteOrigin(t)
	connection, job := siteConnection(), siteJob()
	keyring := agent.Keyring{Fingerprint: "f1", Secret: []byte("the secret of the keyring"), Current: true, Kit: agent.KitWritten,
		KitTime: siteDay, Wrap: []byte("wrap"), PendingKit: "sum", PendingWrap: []byte("pending"), Created: siteDay}
	machine := agent.Machine{ID: "m1", Keyring: "f1", Repository: "r1", EndpointID: "e1", Machine: "vm-1", Name: "web-01",
		Remembered: []point.ID{"p2", "p1"}, Session: "5e55", Compared: siteDay, Runs: 3}
	elsewhere := machine
	elsewhere.Repository, elsewhere.Remembered = "r2", nil
	for name, err := range map[string]error{
		"connection": store.PutConnection(ctx, connection), "keyring": store.PutKeyring(ctx, keyring), "job": store.PutJob(ctx, job),
		"machine": store.PutMachine(t.Context(), machine), "machine in another repository": store.PutMachine(t.Context(), elsewhere),
	} {
		if err != nil {
			t.Fatalf("store %s: %v", name, err)
		}
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}

	_, store = openSite(t, path, key)
	connections, err := store.Connections(ctx)
	check(t, err, cmp.Diff([]agent.Connection{connection}, connections))
	keyrings, err := store.Keyrings(ctx)
	check(t, err, cmp.Diff([]agent.Keyring{keyring}, keyrings))
	jobs, err := store.Jobs(ctx)
	check(t, err, cmp.Diff([]agent.Job{job}, jobs))
	machines, err := store.Machines(ctx)
	check(t, err, cmp.Diff([]agent.Machine{machine, elsewhere}, machines))

	next := siteDay.Add(24 * time.Hour)
	if err := store.SetNext(t.Context(), "j1", next); err != nil {
		t.Fatal(err)
	}
	job.Name, job.Schedule, job.Next = "nightly", nil, time.Time{}
	if err := store.PutJob(ctx, job); err != nil {
		t.Fatal(err)
	}
	jobs, err = store.Jobs(ctx)
	check(t, err, cmp.Diff([]agent.Job{job}, jobs))
}

func check(t *testing.T, err error, diff string) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	if diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestSiteDatabaseHasNoSecretInClear(t *testing.T) {
	dir := t.TempDir()
	db, store := openSite(t, filepath.Join(dir, "agent.db"), secret.NewKey())
	ctx := siteOrigin(t)
	connection := siteConnection()
	secrets := [][]byte{connection.Key, []byte("the secret of the keyring")}
	if err := store.PutConnection(ctx, connection); err != nil {
		t.Fatal(err)
	}
	if err := store.PutKeyring(ctx, agent.Keyring{Fingerprint: "f1", Secret: secrets[1], Kit: agent.KitMissing, Created: siteDay}); err != nil {
		t.Fatal(err)
	}
	look := func(when string) {
		files, err := filepath.Glob(filepath.Join(dir, "agent.db*"))
		if err != nil || len(files) == 0 {
			t.Fatalf("%v: no files, %v", files, err)
		}
		found := false
		for _, file := range files {
			content, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			found = found || bytes.Contains(content, []byte(connection.Address))
			for _, s := range secrets {
				if bytes.Contains(content, s) {
					t.Errorf("%s, %s holds %q", when, filepath.Base(file), s)
				}
			}
		}
		if !found {
			t.Errorf("%s: what is no secret was not found either; the search is broken", when)
		}
	}
	look("while it is open")
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	look("after it was closed")
}

func TestSiteSecretsOpenInTheirOwnRowOnly(t *testing.T) {
	path := filepath.Join(t.TempDir(), "agent.db")
	db, store := openSite(t, path, secret.NewKey())
	ctx := siteOrigin(t)
	first := siteConnection()
	second := siteConnection()
	second.ID, second.Name = "c2", "Other"
	for _, c := range []agent.Connection{first, second} {
		if err := store.PutConnection(ctx, c); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := db.writer.Exec("UPDATE site_connections SET sealed_key = (SELECT sealed_key FROM site_connections WHERE id = 'c1')"); err != nil {
		t.Fatal(err)
	}
	if _, err := store.Connections(ctx); !errors.Is(err, secret.ErrSealed) {
		t.Errorf("a key that was moved to another row: %v, want ErrSealed", err)
	}
	if _, err := db.Site(secret.NewKey()).Connections(ctx); !errors.Is(err, secret.ErrOtherKey) {
		t.Errorf("with another master key: %v, want ErrOtherKey", err)
	}
}

func TestSiteRefusals(t *testing.T) {
	_, store := openSite(t, filepath.Join(t.TempDir(), "agent.db"), secret.NewKey())
	ctx := siteOrigin(t)
	connection := siteConnection()
	if err := store.PutConnection(ctx, connection); err != nil {
		t.Fatal(err)
	}
	other := connection
	other.ID, other.Name = "c2", "PROVIDER"
	if err := store.PutConnection(ctx, other); !errors.Is(err, tenant.ErrExists) {
		t.Errorf("a provider's name in other case: %v, want ErrExists", err)
	}
	if err := store.PutJob(t.Context(), siteJob()); !errors.Is(err, audit.ErrNoOrigin) {
		t.Errorf("a decision without an origin: %v, want ErrNoOrigin", err)
	}
	orphan := siteJob()
	orphan.ConnectionID = "c9"
	if err := store.PutJob(ctx, orphan); !errors.Is(err, tenant.ErrNotFound) {
		t.Errorf("a job to an unknown provider: %v, want ErrNotFound", err)
	}
	if err := store.PutJob(ctx, siteJob()); err != nil {
		t.Fatal(err)
	}
	same := siteJob()
	same.ID, same.Name = "j2", "nightly"
	if err := store.PutJob(ctx, same); !errors.Is(err, tenant.ErrExists) {
		t.Errorf("a job's name in other case: %v, want ErrExists", err)
	}
	if err := store.DeleteConnection(ctx, "c1"); err == nil {
		t.Error("a provider that a job backs up to was deleted")
	}
	if err := store.PutKeyring(ctx, agent.Keyring{Fingerprint: "f1", Current: true}); err != nil {
		t.Fatal(err)
	}
	if err := store.PutKeyring(ctx, agent.Keyring{Fingerprint: "f2", Current: true}); !errors.Is(err, tenant.ErrExists) {
		t.Errorf("a second current keyring: %v, want ErrExists", err)
	}
	for name, err := range map[string]error{
		"job": store.DeleteJob(ctx, "j9"), "provider": store.DeleteConnection(ctx, "c9"), "next": store.SetNext(ctx, "j9", siteDay),
	} {
		if !errors.Is(err, tenant.ErrNotFound) {
			t.Errorf("unknown %s: %v, want ErrNotFound", name, err)
		}
	}
	if err := store.DeleteJob(ctx, "j1"); err != nil {
		t.Fatal(err)
	}
	if err := store.DeleteConnection(ctx, "c1"); err != nil {
		t.Errorf("a provider without jobs: %v", err)
	}
}
