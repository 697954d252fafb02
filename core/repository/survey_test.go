package repository_test

import (
	"bytes"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"

	"github.com/holdfast-dr/holdfast/core/blob"
	"github.com/holdfast-dr/holdfast/core/claim"
	"github.com/holdfast-dr/holdfast/core/repository"
)

// A database that was restored from a backup may have the very epoch that the
// store has, since a server holds its claim for months.
func TestADatabaseThatLacksPointsReadsOnlyWhateverItsEpoch(t *testing.T) {
	s, r := newSite(t), seeded(t)
	ctx := testContext(t)
	machine := newMachine()
	d := randomDisk(r, 20*testChunk)
	one := s.backup(machine, "", d)
	yesterday := s.catalogue.Copy()
	next := d.changed(r, 5)
	two := s.backup(machine, one, next)
	s.close()

	s.catalogue = yesterday
	s.openIndex()
	s.open() // under a newer epoch than any before
	for range 3 {
		var old *repository.OldDatabaseError
		if err := s.repo.Writable(); !errors.As(err, &old) || old.Unknown != two || !errors.Is(err, claim.ErrFenced) {
			t.Fatalf("an old database with a new epoch: %v", err)
		}
		s.clock.Advance(48 * time.Hour)
		_, err := s.repo.Collect(ctx, repository.CollectOptions{})
		wantIs(t, "collect", err, claim.ErrFenced)
		s.wantRestore(one, d)
		s.restart() // starting again and again does not help
	}
	if _, err := s.repo.Import(ctx, repository.ImportOptions{}); err != nil {
		t.Fatal(err)
	}
	s.epoch = max(s.epoch, s.catalogue.Epoch(s.id))
	s.restart()
	s.collect(repository.CollectOptions{})
	s.wantRestore(two, next)
	s.wantSound()
	s.wantBooks()
}

// Where the disk is gone for good, the tenant can begin anew.
func TestLossIsAcceptedOnRequestOnly(t *testing.T) {
	s, r := newSite(t), seeded(t)
	ctx := testContext(t)
	machine := newMachine()
	d := randomDisk(r, 10*testChunk)
	s.backup(machine, "", d)
	s.close()
	var gone []string
	for object, err := range s.blobs.List(ctx, "") {
		if err != nil {
			t.Fatal(err)
		}
		gone = append(gone, object.Name)
	}
	for _, name := range gone {
		if err := s.blobs.Delete(ctx, name); err != nil {
			t.Fatal(err)
		}
	}
	s.openIndex()
	s.open()
	wantIs(t, "write to a store without anything", s.repo.Writable(), repository.ErrReadOnly)
	_, err := s.repo.Import(ctx, repository.ImportOptions{})
	wantIs(t, "import without a word", err, repository.ErrRefused)
	report, err := s.repo.Import(ctx, repository.ImportOptions{AcceptLoss: true})
	if err != nil || report.Points != 0 || len(report.Lost) != 1 || report.UsedBytes != 0 {
		t.Fatalf("accepted loss: %+v, %v", report, err)
	}
	s.restart()
	if used, _ := s.catalogue.Used(s.id); used != 0 {
		t.Errorf("%d bytes are charged for nothing", used)
	}
	s.wantRestore(s.backup(machine, "", d), d)
	s.wantSound()
}

func TestWhatLiesInAStoreIsFoundWithoutADatabase(t *testing.T) {
	s, r := newSite(t), seeded(t)
	ctx := testContext(t)
	label := repository.Label{Tenant: "7", TenantName: "Acme", Name: "backups", LimitBytes: 1 << 40}
	for range 2 { // the second changes nothing
		if err := s.repo.SetLabel(ctx, label); err != nil {
			t.Fatal(err)
		}
	}
	label.TenantName = "Acme Ltd"
	if err := s.repo.SetLabel(ctx, label); err != nil {
		t.Fatal(err)
	}
	labels := s.objects("label/")
	if len(labels) != 1 || !strings.HasSuffix(labels[0].Name, "/label/00000000000000000002") {
		t.Errorf("labels: %+v, want the second alone", labels)
	}
	machine := newMachine()
	d := randomDisk(r, 30*testChunk)
	one := s.backup(machine, "", d)
	two := s.backup(machine, one, d.changed(r, 3))
	s.backup(newMachine(), "", d)
	other := randomDisk(r, 30*testChunk)
	s.forget(one, s.backup(newMachine(), "", other))
	b, err := s.begin(ctx, machine, two) // refused: not a point
	if err != nil {
		t.Fatal(err)
	}
	manifest, err := b.send(ctx, other)
	if err != nil {
		t.Fatal(err)
	}
	used, _ := s.catalogue.Used(s.id)
	s.catalogue.SetLimit(s.id, used)
	if err := b.session.Commit(ctx, manifest); err == nil {
		t.Fatal("committed above the quota")
	}
	s.wantSound() // also the label
	var packs int64
	for _, folder := range []string{"packs/", "maps/"} {
		for _, object := range s.objects(folder) {
			packs += object.SizeBytes
		}
	}

	found, err := repository.Find(ctx, s.blobs, s.id, 1000)
	if err != nil {
		t.Fatal(err)
	}
	label.Written, label.Tenant = found.Label.Written, "7"
	want := repository.Found{ID: s.id, Label: label, ChunkSize: testChunk, Points: 2, Newest: found.Newest, Bytes: packs, Objects: found.Objects}
	if diff := cmp.Diff(want, found); diff != "" || found.Newest.IsZero() || label.Written.IsZero() {
		t.Errorf("found (-want +got):\n%s", diff)
	}
	if cut, err := repository.Find(ctx, s.blobs, s.id, 3); err != nil || !cut.Partial || cut.Label != label {
		t.Errorf("a bounded look: %+v, %v", cut, err)
	}
	// Damage costs what is damaged, and no more.
	s.flip(s.id+"/format", 20, 1)
	s.flip(labels[0].Name, 20, 1)
	if found, err = repository.Find(ctx, s.blobs, s.id, 1000); err != nil || found.ChunkSize != testChunk || found.Label != (repository.Label{}) || found.Points != 2 {
		t.Errorf("with a damaged format and label: %+v, %v", found, err)
	}

	for _, name := range []string{"lost+found/x", "not-an-id/format"} {
		if err := s.blobs.Put(ctx, strings.ReplaceAll(name, "+", "-"), bytes.NewReader(nil), 0); err != nil {
			t.Fatal(err)
		}
	}
	neighbour := uuid.NewString()
	if err := s.blobs.Put(ctx, neighbour+"/owner/00000000000000000001", bytes.NewReader(nil), 0); err != nil {
		t.Fatal(err)
	}
	var ids []string
	for id, err := range repository.IDs(ctx, s.blobs) {
		if err != nil {
			t.Fatal(err)
		}
		ids = append(ids, id)
	}
	wantIDs := []string{s.id, neighbour}
	slices.Sort(wantIDs)
	if !slices.Equal(ids, wantIDs) {
		t.Errorf("ids %v, want %v", ids, wantIDs)
	}
	for _, id := range []string{uuid.NewString(), "lost-found", ""} {
		_, err := repository.Find(ctx, s.blobs, id, 10)
		wantIs(t, "find "+id, err, repository.ErrNotFound)
	}
}

func TestLabelOfAnotherRepositoryIsRefused(t *testing.T) {
	s := newSite(t)
	ctx := testContext(t)
	if err := s.repo.SetLabel(ctx, repository.Label{TenantName: "Acme"}); err != nil {
		t.Fatal(err)
	}
	content, err := blob.Read(ctx, s.blobs, s.objects("label/")[0].Name, 1<<16)
	if err != nil {
		t.Fatal(err)
	}
	neighbour := uuid.NewString()
	if err := s.blobs.Put(ctx, neighbour+"/label/00000000000000000001", bytes.NewReader(content), int64(len(content))); err != nil {
		t.Fatal(err)
	}
	if found, err := repository.Find(ctx, s.blobs, neighbour, 10); err != nil || found.Label.TenantName != "" {
		t.Errorf("a copied label is believed: %+v, %v", found.Label, err)
	}
}
