package state

import (
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/core/access"
	"github.com/holdfast-dr/holdfast/core/audit"
	"github.com/holdfast-dr/holdfast/core/blob"
	"github.com/holdfast-dr/holdfast/core/pki"
	"github.com/holdfast-dr/holdfast/core/secret"
	"github.com/holdfast-dr/holdfast/core/tenant"
)

var _ = both("TenantLife", func(t *testing.T, db *DB) {
	ctx, s := asAdmin(t), db.Tenants()
	a := newTenant(t, db, "Acme")
	if a.ID == "" || a.Type != tenant.Standalone || a.MaxTasks != tenant.DefaultTasks || a.Version != 1 || !a.LeaseEnd.IsZero() {
		t.Errorf("created %+v", a)
	}
	wantErr(t, second(s.Create(ctx, tenant.Tenant{Name: "ACME"})), tenant.ErrExists)
	var invalid *tenant.InvalidError
	if _, err := s.Create(ctx, tenant.Tenant{Name: "x", Type: tenant.CloudDirector}); !errors.As(err, &invalid) || invalid.Field != "type" {
		t.Errorf("a Cloud Director tenant: %v", err)
	}
	if got := must[tenant.Tenant](t)(s.ByName(ctx, "acme")); got != a {
		t.Errorf("by name %+v, want %+v", got, a)
	}
	a.LeaseEnd, a.Description = time.Date(2027, 1, 1, 0, 0, 0, 0, time.UTC), "100%_sure"
	changed := must[tenant.Tenant](t)(s.Update(ctx, a))
	if !changed.LeaseEnd.Equal(a.LeaseEnd) || changed.Version != 2 || !changed.Enabled {
		t.Errorf("changed %+v", changed)
	}
	wantErr(t, second(s.Update(ctx, a)), tenant.ErrChanged)
	off := must[tenant.Tenant](t)(s.SetEnabled(ctx, a.ID, false))
	if off.Enabled || !must[tenant.Tenant](t)(s.SetEnabled(ctx, a.ID, true)).Enabled {
		t.Error("disable and enable have no effect")
	}
	newTenant(t, db, "bolt")
	for query, want := range map[tenant.Query]int{{}: 2, {Text: "%_"}: 1, {Text: "CM"}: 1, {After: "Acme"}: 1, {Limit: 1}: 1, {Text: `\`}: 0} {
		if all := must[[]tenant.Tenant](t)(s.List(ctx, query)); len(all) != want {
			t.Errorf("%+v lists %d, want %d", query, len(all), want)
		}
	}
	wantErr(t, second(s.SetEnabled(ctx, "nobody", true)), tenant.ErrNotFound)
	for _, chain := range []tenant.ID{a.ID, tenant.Provider} {
		if _, err := audit.Verify(ctx, db.Audits(), chain); err != nil {
			t.Error(err)
		}
	}
})

var _ = both("UsersAndTokens", func(t *testing.T, db *DB) {
	ctx, s := asAdmin(t), db.Users()
	a := newTenant(t, db, "acme")
	admin := must[access.User](t)(s.CreateUser(ctx, access.User{Name: "root", Role: access.ProviderAdmin, Enabled: true}))
	u := must[access.User](t)(s.CreateUser(ctx, access.User{TenantID: a.ID, Name: "Ann", Role: access.TenantAdmin, Enabled: true, PasswordHash: "x"}))
	wantErr(t, second(s.CreateUser(ctx, access.User{TenantID: a.ID, Name: "ann", Role: access.TenantViewer})), tenant.ErrExists)
	wantErr(t, second(s.CreateUser(ctx, access.User{TenantID: "nobody", Name: "ann", Role: access.TenantViewer})), tenant.ErrNotFound)
	var invalid *tenant.InvalidError
	if _, err := s.CreateUser(ctx, access.User{TenantID: a.ID, Name: "eve", Role: access.ProviderAdmin}); !errors.As(err, &invalid) {
		t.Errorf("a tenant's user with a provider's role: %v", err)
	}
	wantErr(t, second(s.User(ctx, tenant.Provider, u.ID)), tenant.ErrNotFound)

	text, hash := access.NewToken()
	k := must[access.Token](t)(s.CreateToken(ctx, access.Token{UserID: u.ID, TenantID: a.ID, Name: "laptop", Hash: hash, Scope: access.View}))
	wantErr(t, second(s.CreateToken(ctx, access.Token{UserID: u.ID, TenantID: tenant.Provider, Hash: hash})), tenant.ErrNotFound)
	sent, err := access.HashToken(text)
	if err != nil {
		t.Fatal(err)
	}
	got, owner, err := s.ByToken(ctx, sent)
	if err != nil || got.ID != k.ID || got.Scope != access.View || owner.ID != u.ID || owner.TenantID != a.ID || owner.Role != access.TenantAdmin {
		t.Fatalf("by token %+v of %+v (%v)", got, owner, err)
	}
	if err := s.TouchToken(ctx, k.ID); err != nil {
		t.Fatal(err)
	}
	if all := must[[]access.Token](t)(s.ListTokens(ctx, a.ID, u.ID)); len(all) != 1 || all[0].LastUsed.IsZero() {
		t.Errorf("tokens %+v", all)
	}
	_, expired := access.NewToken()
	must[access.Token](t)(s.CreateToken(ctx, access.Token{UserID: u.ID, TenantID: a.ID, Hash: expired, Expires: time.Now().Add(-time.Second)}))
	_, _, err = s.ByToken(ctx, expired)
	wantErr(t, err, access.ErrCredentials)
	wantErr(t, s.DeleteToken(ctx, tenant.Provider, k.ID), tenant.ErrNotFound)

	u.PasswordHash = "y" // a new password ends the tokens
	u = must[access.User](t)(s.UpdateUser(ctx, u))
	_, _, err = s.ByToken(ctx, sent)
	wantErr(t, err, access.ErrCredentials)
	wantErr(t, second(s.UserByName(ctx, tenant.Provider, "ann")), tenant.ErrNotFound)
	if must[access.User](t)(s.UserByName(ctx, a.ID, "ANN")) != u {
		t.Error("by name differs")
	}

	wantErr(t, s.DeleteUser(ctx, tenant.Provider, admin.ID), access.ErrLastAdmin)
	admin.Enabled = false
	wantErr(t, second(s.UpdateUser(ctx, admin)), access.ErrLastAdmin)
	wantErr(t, s.DeleteUser(ctx, tenant.Provider, u.ID), tenant.ErrNotFound)
	if err := db.Tenants().Delete(ctx, a.ID, tenant.BackupsRefuse); err != nil {
		t.Fatal(err)
	}
	if all := must[[]access.User](t)(s.ListUsers(ctx, a.ID)); len(all) != 0 {
		t.Errorf("users of a deleted tenant: %+v", all)
	}
})

var _ = both("TwoAdminsCannotRemoveEachOther", func(t *testing.T, db *DB) {
	var ids []string
	for _, name := range []string{"one", "two"} {
		u := must[access.User](t)(db.Users().CreateUser(asAdmin(t), access.User{Name: name, Role: access.ProviderAdmin, Enabled: true}))
		ids = append(ids, u.ID)
	}
	var gone atomic.Int64
	var all sync.WaitGroup
	for _, id := range ids {
		all.Go(func() {
			if err := db.Users().DeleteUser(asAdmin(t), tenant.Provider, id); err == nil {
				gone.Add(1)
			} else if !errors.Is(err, access.ErrLastAdmin) {
				t.Error(err)
			}
		})
	}
	all.Wait()
	if gone.Load() != 1 {
		t.Errorf("%d administrators were removed, want 1", gone.Load())
	}
})

var _ = both("Enrolment", func(t *testing.T, db *DB) {
	ctx, s := asAdmin(t), db.Agents()
	a, b := newTenant(t, db, "acme"), newTenant(t, db, "bolt")
	enrolment := func(expires time.Duration) access.Hash {
		_, hash := access.NewEnrolmentToken()
		must[access.Enrolment](t)(s.CreateEnrolment(ctx, access.Enrolment{TenantID: a.ID, Site: "home", Hash: hash, Expires: time.Now().Add(expires)}))
		return hash
	}
	key, other := access.Hash{1}, access.Hash{2}
	token := enrolment(time.Hour)
	wantErr(t, second(s.Enrol(t.Context(), token, key)), audit.ErrNoOrigin)
	agent := must[access.Agent](t)(s.Enrol(ctx, token, key))
	if agent.TenantID != a.ID || agent.Key != key || agent.Name != "home" {
		t.Errorf("enrolled %+v", agent)
	}
	if again := must[access.Agent](t)(s.Enrol(ctx, token, key)); again.ID != agent.ID {
		t.Errorf("the same key became another agent: %+v", again)
	}
	wantErr(t, second(s.Enrol(ctx, token, other)), access.ErrEnrolment)
	wantErr(t, second(s.Enrol(ctx, access.Hash{9}, key)), access.ErrEnrolment)
	wantErr(t, second(s.Enrol(ctx, enrolment(time.Hour), access.Hash{})), access.ErrEnrolment)
	late := enrolment(2 * time.Second)
	eventually(t, "expiry", func() bool {
		_, err := s.Enrol(ctx, late, other)
		if err == nil { // bound to other before it expired; it stays other's until then
			return false
		}
		return errors.Is(err, access.ErrEnrolment)
	})

	wantErr(t, second(s.Agent(ctx, b.ID, agent.ID)), tenant.ErrNotFound)
	wantErr(t, second(s.RevokeAgent(ctx, b.ID, agent.ID)), tenant.ErrNotFound)
	if err := s.TouchAgent(ctx, agent.ID, "1.0"); err != nil {
		t.Fatal(err)
	}
	if got := must[access.Agent](t)(s.AgentByID(ctx, agent.ID)); got.Version != "1.0" || got.LastSeen.Before(agent.Enrolled) {
		t.Errorf("after a touch %+v", got)
	}
	gone := must[access.Agent](t)(s.RevokeAgent(ctx, a.ID, agent.ID))
	if gone.Revoked.IsZero() || must[access.Agent](t)(s.RevokeAgent(ctx, a.ID, agent.ID)) != gone {
		t.Errorf("revoked %+v", gone)
	}
	wantErr(t, second(s.Enrol(ctx, token, key)), access.ErrEnrolment)

	// Of many keys that come at once for one token, one wins.
	token = enrolment(time.Hour)
	var won atomic.Int64
	var all sync.WaitGroup
	for i := range 8 {
		all.Go(func() {
			if _, err := s.Enrol(ctx, token, access.Hash{byte(10 + i)}); err == nil {
				won.Add(1)
			} else if !errors.Is(err, access.ErrEnrolment) {
				t.Error(err)
			}
		})
	}
	all.Wait()
	if won.Load() != 1 {
		t.Errorf("%d keys were enrolled with one token", won.Load())
	}
	if err := db.Tenants().Delete(ctx, a.ID, tenant.BackupsRefuse); err != nil {
		t.Fatal(err)
	}
	for _, left := range must[[]access.Agent](t)(s.ListAgents(ctx, a.ID)) {
		if left.Revoked.IsZero() {
			t.Errorf("agent %s of a deleted tenant is not revoked", left.ID)
		}
	}
	wantErr(t, second(s.Enrol(ctx, token, key)), access.ErrEnrolment)
})

var _ = both("Locations", func(t *testing.T, db *DB) {
	ctx, s := asAdmin(t), db.Locations()
	dir := t.TempDir()
	l := must[blob.Location](t)(s.Create(ctx, blob.Location{Name: "Fast", Kind: blob.LocationDir, Path: dir + "/a/"}))
	if l.Path != dir+"/a" {
		t.Errorf("path %q", l.Path)
	}
	var rule *blob.LocationError
	for _, path := range []string{dir + "/a", dir + "/a/b", dir, dir + "/x/../a/c"} {
		if _, err := s.Create(ctx, blob.Location{Name: "other", Kind: blob.LocationDir, Path: path}); !errors.As(err, &rule) || rule.Field != "path" {
			t.Errorf("%s beside %s: %v", path, l.Path, err)
		}
	}
	wantErr(t, second(s.Create(ctx, blob.Location{Name: "fast", Kind: blob.LocationDir, Path: dir + "/ab"})), blob.ErrLocationExists)
	next := must[blob.Location](t)(s.Create(ctx, blob.Location{Name: "slow", Kind: blob.LocationDir, Path: dir + "/ab"}))
	next.ReadOnly, next.Path = true, "/elsewhere"
	if got := must[blob.Location](t)(s.Update(ctx, next)); !got.ReadOnly || got.Path != dir+"/ab" || got.Version != 2 {
		t.Errorf("updated %+v", got)
	}
	wantErr(t, second(s.Update(ctx, next)), blob.ErrLocationChanged)
	a := newTenant(t, db, "acme")
	r := newRepository(t, db, a.ID, 10) // in the first by name, Fast
	var used *blob.InUseError
	if err := s.Delete(ctx, r.LocationID); !errors.As(err, &used) || used.Repositories != 1 {
		t.Errorf("delete a repository in use: %v", err)
	}
	if err := s.Delete(ctx, next.ID); err != nil {
		t.Fatal(err)
	}
	wantErr(t, second(s.Get(ctx, next.ID)), blob.ErrLocationNotFound)
})

var _ = both("TrustIsCreatedOnceAndSealed", func(t *testing.T, db *DB) {
	ctx, master, now := asAdmin(t), secret.NewKey(), time.Now()
	var prints [4]pki.Fingerprint
	var all sync.WaitGroup
	for i := range prints {
		all.Go(func() {
			ca, err := pki.LoadAuthority(ctx, db.Trust(), master, "Test CA", now)
			if err != nil {
				t.Error(err)
				return
			}
			prints[i] = ca.Fingerprint()
		})
	}
	all.Wait()
	for _, p := range prints {
		if p != prints[0] || p.IsZero() {
			t.Fatalf("servers that start together have several CAs: %v", prints)
		}
	}
	if _, err := pki.LoadAuthority(ctx, db.Trust(), secret.NewKey(), "Test CA", now); !errors.Is(err, secret.ErrOtherKey) {
		t.Errorf("another master key: %v", err)
	}
	ca := must[*pki.Authority](t)(pki.LoadAuthority(ctx, db.Trust(), master, "", now))
	server := must[*pki.Server](t)(pki.NewServer(ctx, pki.Source{Authority: ca, Store: db.Trust(), Master: master}))
	issued := server.Certificate()
	imported, err := ca.IssueServer([]string{"backup.example.com"}, now)
	if err != nil {
		t.Fatal(err)
	}
	if err := pki.Import(ctx, db.Trust(), master, imported); err != nil {
		t.Fatal(err)
	}
	if err := server.Reload(ctx); err != nil {
		t.Fatal(err)
	}
	if got := server.Certificate().Leaf; !got.Equal(imported.Leaf) {
		t.Errorf("presents %v after the import", got.Subject)
	}
	if err := db.Trust().SetServerCertificate(ctx, nil); err != nil {
		t.Fatal(err)
	}
	if err := server.Reload(ctx); err != nil {
		t.Fatal(err)
	}
	if got := server.Certificate().Leaf; got.Equal(imported.Leaf) || got.Equal(issued.Leaf) {
		t.Error("presents an old certificate after the import was removed")
	}
})
