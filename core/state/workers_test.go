package state

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/holdfast-dr/holdfast/core/access"
	"github.com/holdfast-dr/holdfast/core/audit"
	"github.com/holdfast-dr/holdfast/core/pki"
	"github.com/holdfast-dr/holdfast/core/secret"
	"github.com/holdfast-dr/holdfast/core/tenant"
	"github.com/holdfast-dr/holdfast/core/worker"
)

func TestWorkersEnrolOnce(t *testing.T) {
	db, _ := openSite(t, filepath.Join(t.TempDir(), "agent.db"), secret.NewKey())
	now := siteDay
	db.clock = func() time.Time { return now }
	ctx, s := siteOrigin(t), db.Workers()
	_, token := access.NewEnrolmentToken()
	one, two := access.Hash{1}, access.Hash{2}

	if _, err := s.Invite(t.Context(), "rack-1", token, now.Add(time.Hour)); !errors.Is(err, audit.ErrNoOrigin) {
		t.Errorf("an invitation of nobody: %v", err)
	}
	invited := must[worker.Record](t)(s.Invite(ctx, "Rack-1", token, now.Add(time.Hour)))
	if invited.Name != "Rack-1" || !invited.Key.IsZero() || !invited.Enrolled.IsZero() || !invited.Expires.Equal(now.Add(time.Hour)) {
		t.Errorf("invited: %+v", invited)
	}
	enrolled := must[worker.Record](t)(s.Enrol(ctx, token, one))
	if enrolled.ID != invited.ID || enrolled.Key != one || !enrolled.Enrolled.Equal(now) {
		t.Errorf("enrolled: %+v", enrolled)
	}
	if again := must[worker.Record](t)(s.Enrol(ctx, token, one)); again.ID != enrolled.ID {
		t.Errorf("a repeat: %+v", again)
	}
	wantErr(t, second(s.Enrol(ctx, token, two)), access.ErrEnrolment)
	wantErr(t, second(s.Enrol(ctx, access.Hash{9}, one)), access.ErrEnrolment)
	wantErr(t, second(s.Enrol(ctx, access.Hash{}, one)), access.ErrEnrolment)
	wantErr(t, second(s.Enrol(ctx, token, access.Hash{})), access.ErrEnrolment)

	// Another invitation: the key before holds until the token is used.
	_, next := access.NewEnrolmentToken()
	renewed := must[worker.Record](t)(s.Invite(ctx, "rack-1", next, now.Add(time.Hour)))
	if renewed.ID != enrolled.ID || renewed.Key != one || renewed.Name != "Rack-1" {
		t.Errorf("invited again: %+v", renewed)
	}
	wantErr(t, second(s.Enrol(ctx, token, one)), access.ErrEnrolment)
	now = now.Add(2 * time.Hour)
	wantErr(t, second(s.Enrol(ctx, next, two)), access.ErrEnrolment)
	now = siteDay
	if r := must[worker.Record](t)(s.Enrol(ctx, next, two)); r.Key != two {
		t.Errorf("enrolled again: %+v", r)
	}

	all := must[[]worker.Record](t)(s.Workers(ctx))
	if diff := cmp.Diff([]worker.Record{must[worker.Record](t)(s.Worker(ctx, invited.ID))}, all); diff != "" {
		t.Error(diff)
	}
	if err := s.Remove(ctx, invited.ID); err != nil {
		t.Fatal(err)
	}
	wantErr(t, s.Remove(ctx, invited.ID), tenant.ErrNotFound)
	wantErr(t, second(s.Worker(ctx, invited.ID)), tenant.ErrNotFound)
	wantErr(t, second(s.Enrol(ctx, next, two)), access.ErrEnrolment)
}

// The authority of a site's workers outlives the agent, and its key is sealed.
func TestSiteKeepsItsAuthority(t *testing.T) {
	path, key := filepath.Join(t.TempDir(), "agent.db"), secret.NewKey()
	db, _ := openSite(t, path, key)
	ctx := siteOrigin(t)
	first := must[*pki.Authority](t)(pki.LoadAuthority(ctx, db.Trust(), key, "Test", siteDay))
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(raw, []byte{0x02, 0x01, 0x01, 0x04, 0x20}) { // how an EC private key begins in DER
		t.Error("the key lies in the database in the clear")
	}
	db, _ = openSite(t, path, key)
	again := must[*pki.Authority](t)(pki.LoadAuthority(ctx, db.Trust(), key, "Test", siteDay.Add(time.Hour)))
	if first.Fingerprint() != again.Fingerprint() {
		t.Error("the authority is another one")
	}
	if _, err := pki.LoadAuthority(ctx, db.Trust(), secret.NewKey(), "Test", siteDay); err == nil {
		t.Error("another master key opened it")
	}
}
