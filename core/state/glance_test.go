package state

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/holdfast-dr/holdfast/core/pki"
	"github.com/holdfast-dr/holdfast/testenv/postgres"
)

func TestGlanceMakesNothing(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "state.db")
	glance(t, "sqlite:"+file, func() {
		if left, err := os.ReadDir(dir); err != nil || len(left) != 0 {
			t.Errorf("looking for a database made %v, %v", left, err)
		}
	})
	glance(t, postgres.Start(t).Database(t), func() {})
}

func glance(t *testing.T, url string, unchanged func()) {
	t.Helper()
	for range 2 {
		if sealed, err := Glance(t.Context(), url); err != nil || sealed != nil {
			t.Fatalf("before the first start: %x, %v", sealed, err)
		}
	}
	unchanged()
	db := openTest(t, url)
	if sealed, err := Glance(t.Context(), url); err != nil || sealed != nil {
		t.Errorf("without a provider: %x, %v", sealed, err)
	}
	must[pki.AuthorityRecord](t)(db.Trust().CreateAuthority(asAdmin(t), pki.AuthorityRecord{Certificate: []byte("c"), SealedKey: []byte("k")}))
	if sealed, err := Glance(t.Context(), url); err != nil || string(sealed) != "k" { // beside a running server
		t.Errorf("of a provider: %x, %v", sealed, err)
	}
	must[pki.AuthorityRecord](t)(db.Trust().ReplaceAuthority(asAdmin(t), pki.AuthorityRecord{Certificate: []byte("c"), SealedKey: []byte("k2")}))
	if sealed, err := Glance(t.Context(), url); err != nil || string(sealed) != "k2" {
		t.Errorf("of a replaced CA: %x, %v", sealed, err)
	}
}
