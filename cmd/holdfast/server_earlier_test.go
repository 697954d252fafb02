package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/core/access"
	"github.com/holdfast-dr/holdfast/core/audit"
	"github.com/holdfast-dr/holdfast/core/gateway"
	"github.com/holdfast-dr/holdfast/core/pki"
	"github.com/holdfast-dr/holdfast/core/secret"
	"github.com/holdfast-dr/holdfast/core/state"
	"github.com/holdfast-dr/holdfast/core/tenant"
)

// usedServer is the data directory of a server that has run.
func usedServer(t *testing.T) serverConfig {
	t.Helper()
	dir := t.TempDir()
	c := serverConfig{Data: dir, Database: "sqlite:" + filepath.Join(dir, "state.db"), MasterKey: "file:" + filepath.Join(dir, "master.key")}
	if _, err := holderOf(dir); err != nil {
		t.Fatal(err)
	}
	key, _, err := secret.Open(c.MasterKey)
	if err != nil {
		t.Fatal(err)
	}
	ctx := audit.With(t.Context(), audit.System("test", "a test"))
	db, err := state.Open(ctx, c.Database)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if _, err := pki.LoadAuthority(ctx, db.Trust(), key, "test", time.Now()); err != nil {
		t.Fatal(err)
	}
	return c
}

func remove(t *testing.T, c serverConfig, names ...string) {
	t.Helper()
	for _, name := range names {
		if err := os.Remove(filepath.Join(c.Data, name)); err != nil {
			t.Fatal(err)
		}
	}
}

func TestAServerThatLostSomethingDoesNotStart(t *testing.T) {
	for name, c := range map[string]struct {
		lose                      []string
		newDatabase, newAuthority bool
		refusal, hint             string
		want                      beginning
	}{
		"nothing lost":                     {},
		"new machine":                      {lose: []string{"state.db", "state.db.lock", "master.key", "node"}, want: beginning{fresh: true}},
		"database lost":                    {lose: []string{"state.db"}, refusal: "was in use before (it has node, master.key)", hint: "--new-database"},
		"all but the key lost":             {lose: []string{"state.db", "node"}, refusal: "was in use before (it has master.key)", hint: "restore its backup"},
		"database lost, and said so":       {lose: []string{"state.db"}, newDatabase: true, want: beginning{fresh: true}},
		"both lost, and said so":           {lose: []string{"state.db", "master.key"}, newDatabase: true, want: beginning{fresh: true}},
		"key lost":                         {lose: []string{"master.key"}, refusal: "is missing", hint: "--new-authority"},
		"key lost, and said so":            {lose: []string{"master.key"}, newAuthority: true, want: beginning{newTrust: true}},
		"new database over an old one":     {newDatabase: true, refusal: "is not new", hint: "without --new-database"},
		"new authority without need":       {newAuthority: true, refusal: "nothing to replace", hint: "without --new-authority"},
		"new authority without a database": {lose: []string{"state.db"}, newAuthority: true, refusal: "has no provider", hint: "without --new-authority"},
	} {
		config := usedServer(t)
		remove(t, config, c.lose...)
		before, err := os.ReadDir(config.Data)
		if err != nil {
			t.Fatal(err)
		}
		config.newDatabase, config.newAuthority = c.newDatabase, c.newAuthority
		got, err := config.begin(t.Context())
		switch {
		case c.refusal == "" && (err != nil || got != c.want):
			t.Errorf("%s: %+v, %v; want %+v", name, got, err, c.want)
		case c.refusal != "" && (err == nil || !strings.Contains(err.Error(), c.refusal) || !strings.Contains(gateway.HintOf(err), c.hint)):
			t.Errorf("%s: %v (hint %q), want a refusal with %q and a hint with %q", name, err, gateway.HintOf(err), c.refusal, c.hint)
		}
		if after, err := os.ReadDir(config.Data); err != nil || len(after) != len(before) {
			t.Errorf("%s: looking changed %v to %v, %v", name, before, after, err)
		}
	}
}

func TestTheWrongMasterKeyIsSaidBeforeAnythingIsDone(t *testing.T) {
	c := usedServer(t)
	remove(t, c, "master.key")
	if _, _, err := secret.Open(c.MasterKey); err != nil { // another one
		t.Fatal(err)
	}
	if _, err := c.begin(t.Context()); err == nil || !strings.Contains(err.Error(), "is not the one that sealed") {
		t.Errorf("another master key: %v", err)
	}
	// With the CA replaced, the server starts, agents enrol again, and what is not
	// sealed is there.
	ctx := audit.With(t.Context(), audit.System("test", "a test"))
	key, _, err := secret.Open(c.MasterKey)
	if err != nil {
		t.Fatal(err)
	}
	db, err := state.Open(ctx, c.Database)
	if err != nil {
		t.Fatal(err)
	}
	acme, err := db.Tenants().Create(ctx, tenant.Tenant{Name: "Acme", Enabled: true})
	if err != nil {
		t.Fatal(err)
	}
	_, hash := access.NewEnrolmentToken()
	if _, err := db.Agents().CreateEnrolment(ctx, access.Enrolment{TenantID: acme.ID, Site: "berlin", Hash: hash, Expires: time.Now().Add(time.Hour)}); err != nil {
		t.Fatal(err)
	}
	agent, err := db.Agents().Enrol(ctx, hash, access.Hash{1})
	if err != nil {
		t.Fatal(err)
	}
	if err := pki.ReplaceAuthority(ctx, db.Trust(), key, "test", time.Now()); err != nil {
		t.Fatal(err)
	}
	if _, err := pki.LoadAuthority(ctx, db.Trust(), key, "test", time.Now()); err != nil {
		t.Errorf("the new CA: %v", err)
	}
	all, err := db.Agents().ListAgents(ctx, acme.ID)
	if err != nil || len(all) != 1 || all[0].ID != agent.ID || all[0].Revoked.IsZero() {
		t.Errorf("agents of the old CA: %+v, %v; want them revoked", all, err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	if b, err := c.begin(t.Context()); err != nil || b != (beginning{}) {
		t.Errorf("after the replacement: %+v, %v", b, err)
	}
}
