package repository_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/core/blob/blobtest"
	"github.com/holdfast-dr/holdfast/core/quota"
	"github.com/holdfast-dr/holdfast/core/repository"
)

// give brings a disk in a session of its own, which is given up then.
func (s *site) give(d disk) (records int) {
	s.t.Helper()
	ctx := testContext(s.t)
	b, err := s.begin(ctx, newMachine(), "")
	if err != nil {
		s.t.Fatal(err)
	}
	if _, err := b.send(ctx, d); err != nil {
		s.t.Fatal(err)
	}
	if err := b.session.Abort(ctx); err != nil {
		s.t.Fatal(err)
	}
	return b.sent
}

func (s *site) wantPending(when string, want int64) {
	s.t.Helper()
	u := s.wantBooks()
	if _, pending := s.catalogue.Used(s.id); u.PendingBytes != want || pending != want {
		s.t.Errorf("%s: %d bytes are pending in packs, %d are charged, want %d", when, u.PendingBytes, pending, want)
	}
}

// What an aborted session brought is charged once: beside the points until one
// uses it, and as a part of that one from then on.
func TestPendingBytesAreCountedOnce(t *testing.T) {
	s, r := newSite(t), seeded(t)
	d := randomDisk(r, 100*testChunk)
	if s.give(d) == 0 {
		t.Fatal("nothing was sent")
	}
	_, pending := s.catalogue.Used(s.id)
	if pending < 20*testChunk {
		t.Fatalf("%d bytes are pending", pending)
	}
	s.wantPending("after an abort", pending)
	if s.give(d) != 0 {
		t.Error("records were sent again")
	}
	s.wantPending("after a second one with the same content", pending)

	// The quota fits what the point takes, to the byte.
	s.catalogue.SetLimit(s.id, pending)
	id := s.backup(newMachine(), "", d)
	if used, left := s.catalogue.Used(s.id); used != pending || left != 0 {
		t.Errorf("the point takes %d bytes and leaves %d pending, want %d and none", used, left, pending)
	}
	s.wantPending("after the commit", 0)
	s.wantRestore(id, d)

	// One byte less, and something that is not there yet does not fit beside it.
	s.catalogue.SetLimit(s.id, pending+100)
	s.forget(id) // the bin's bytes are not charged until they are used again
	s.give(randomDisk(r, 2*testChunk).changed(r, 0))
	held := s.wantBooks().PendingBytes
	if held <= 100 {
		t.Skip("two zero chunks")
	}
	_, err := s.run(testContext(t), newMachine(), "", d)
	var full *quota.FullError
	if !errors.As(err, &full) || full.PendingBytes != held || full.UsedBytes != 0 || full.WantedBytes != pending || full.LimitBytes != pending+100 {
		t.Errorf("commit beside %d pending bytes: %v", held, err)
	}
}

// Two sessions that bring the same content at the same time store it twice, and
// both copies count until the second is collected.
func TestCopiesThatNobodyUsesArePending(t *testing.T) {
	s, r := newSite(t), seeded(t)
	ctx := testContext(t)
	s.close()
	s.pack = 64 << 20 // nothing is in the store before the end of its session
	s.openIndex()
	s.open()
	d := randomDisk(r, 50*testChunk)
	var both [2]*backup
	for i := range both {
		var err error
		if both[i], err = s.begin(ctx, newMachine(), ""); err != nil {
			t.Fatal(err)
		}
		if _, err := both[i].send(ctx, d); err != nil {
			t.Fatal(err)
		}
	}
	for _, b := range both {
		if err := b.session.Abort(ctx); err != nil {
			t.Fatal(err)
		}
	}
	twice := s.wantBooks().PendingBytes
	id := s.backup(newMachine(), "", d)
	used, _ := s.catalogue.Used(s.id)
	if used != twice/2 {
		t.Errorf("the point takes %d bytes of %d", used, twice)
	}
	s.wantPending("with one copy used", twice-used)
	s.restart()
	s.wantPending("after a restart", twice-used)
	s.clock.Advance(8 * 24 * time.Hour)
	s.collect(repository.CollectOptions{})
	s.wantPending("condemned", twice-used)
	s.clock.Advance(25 * time.Hour)
	s.collect(repository.CollectOptions{})
	s.wantPending("collected", 0)
	s.wantRestore(id, d)
}

// Pending bytes give their room back when they have been idle for a week, and
// then a collection has deleted them; not earlier.
func TestOnlyCollectionGivesPendingBytesBack(t *testing.T) {
	s, r := newSite(t), seeded(t)
	d := randomDisk(r, 100*testChunk)
	s.give(d)
	_, pending := s.catalogue.Used(s.id)
	s.clock.Advance(7*24*time.Hour - time.Hour)
	if report := s.collect(repository.CollectOptions{}); report.CondemnedPacks != 0 {
		t.Errorf("condemned before its time: %+v", report)
	}
	s.wantPending("before the period is over", pending)
	if s.give(d) != 0 {
		t.Error("records were sent again within the period")
	}
	s.clock.Advance(2 * time.Hour)
	report := s.collect(repository.CollectOptions{})
	if report.CondemnedPacks == 0 || report.DeletedPacks != 0 {
		t.Errorf("after the period: %+v", report)
	}
	s.wantPending("condemned", pending)
	s.restart()
	s.wantPending("condemned, after a restart", pending)
	s.clock.Advance(25 * time.Hour)
	stop := errors.New("stop")
	report, err := s.repo.Collect(testContext(t), repository.CollectOptions{Pause: func(_ context.Context, done repository.CollectStage) error {
		if done == repository.StageDeleted {
			return stop // what is deleted needs no end of the collection to be free
		}
		return nil
	}})
	if !errors.Is(err, stop) || report.DeletedPacks == 0 {
		t.Errorf("after the longest read: %+v, %v", report, err)
	}
	s.wantPending("deleted", 0)
	if left := len(s.objects("packs/")) + len(s.objects("maps/")); left != 0 {
		t.Errorf("%d packs are left", left)
	}
}

// A session that went on for longer than the period is as new, when it is given
// up, as one of a minute.
func TestPendingPeriodBeginsWhenTheSessionIsGivenUp(t *testing.T) {
	s, r := newSite(t), seeded(t)
	ctx := testContext(t)
	d := randomDisk(r, 100*testChunk)
	b, err := s.begin(ctx, newMachine(), "")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := b.send(ctx, d); err != nil {
		t.Fatal(err)
	}
	s.clock.Advance(30 * 24 * time.Hour)
	s.collect(repository.CollectOptions{})
	if err := b.session.Abort(ctx); err != nil {
		t.Fatal(err)
	}
	for range 2 { // also for a server that was not there
		s.clock.Advance(3 * 24 * time.Hour)
		if report := s.collect(repository.CollectOptions{}); report.CondemnedPacks != 0 {
			t.Errorf("condemned within the period: %+v", report)
		}
		s.restart()
	}
	if s.give(d) != 0 {
		t.Error("records were sent again within the period")
	}
	s.clock.Advance(2 * 24 * time.Hour)
	if report := s.collect(repository.CollectOptions{}); report.CondemnedPacks == 0 {
		t.Errorf("after the period: %+v", report)
	}
}

// What is kept of an old pack because most of it is used is waste, and nobody
// pays for it.
func TestPendingBytesBesideUsedOnesBecomeWaste(t *testing.T) {
	s, r := newSite(t), seeded(t)
	ctx := testContext(t)
	d := randomDisk(r, 100*testChunk)
	b, err := s.begin(ctx, newMachine(), "")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := b.send(ctx, randomDisk(r, 10*testChunk)); err != nil { // changed while it was read, say
		t.Fatal(err)
	}
	manifest, err := b.send(ctx, d)
	if err != nil {
		t.Fatal(err)
	}
	if err := b.session.Commit(ctx, manifest); err != nil {
		t.Fatal(err)
	}
	if u := s.wantBooks(); u.PendingBytes == 0 || u.WasteBytes != 0 {
		t.Fatalf("after a commit that leaves something: %+v", u)
	}
	s.clock.Advance(8 * 24 * time.Hour)
	s.collect(repository.CollectOptions{Threshold: 0.99})
	s.clock.Advance(25 * time.Hour)
	s.collect(repository.CollectOptions{Threshold: 0.99})
	if u := s.wantBooks(); u.PendingBytes != 0 || u.WasteBytes == 0 {
		t.Errorf("after the period: %+v", u)
	}
	s.wantRestore(b.point, d)
}

// A server that starts again charges what is there: from its index, without it,
// after a crash between the store and the database, and after an import.
func TestPendingBytesAreCountedAnew(t *testing.T) {
	s, r := newSite(t), seeded(t)
	ctx := testContext(t)
	one := s.backup(newMachine(), "", randomDisk(r, 30*testChunk))
	s.give(randomDisk(r, 100*testChunk))
	_, pending := s.catalogue.Used(s.id)

	// The database has figures of another time, the spool a session.
	b, err := s.begin(ctx, newMachine(), "")
	if err != nil {
		t.Fatal(err)
	}
	open := randomDisk(r, 3*testChunk)
	open[0] |= 1
	if _, err := b.send(ctx, open); err != nil {
		t.Fatal(err)
	}
	id, ended := b.session.ID(), repository.NewPackID()
	for i, when := range []string{"index kept", "index lost"} {
		s.catalogue.Reserve(s.id, sessionText(b.session), 1<<20)
		s.catalogue.Reserve(s.id, ended.String(), 1<<20)
		if err := s.catalogue.Shipped(ctx, s.id, s.epoch, "", 0, int64(i)*7777); err != nil {
			t.Fatal(err)
		}
		s.close()
		if i == 1 {
			if err := os.RemoveAll(filepath.Join(s.root, "index")); err != nil {
				t.Fatal(err)
			}
		}
		s.openIndex()
		s.open()
		u := s.wantBooks()
		_, charged := s.catalogue.Used(s.id)
		if reserved := charged - u.PendingBytes; u.PendingBytes != pending || reserved <= 0 || reserved > u.SpooledBytes {
			t.Errorf("%s: %d pending in packs, want %d; %d reserved for %d in the spool", when, u.PendingBytes, pending, reserved, u.SpooledBytes)
		}
	}
	again, err := s.repo.Resume(ctx, id)
	if err != nil {
		t.Fatal(err)
	}
	if err := again.Abort(ctx); err != nil {
		t.Fatal(err)
	}

	// The pack is in the store, and the process dies before the database hears.
	s.catalogue.Fault = func(method, when string) error {
		if method == "Shipped" && when == "before" {
			return errors.New("no database")
		}
		return nil
	}
	s.give(randomDisk(r, 60*testChunk))
	s.catalogue.Fault = nil
	s.restart()
	whole := s.wantBooks().PendingBytes
	if whole <= pending {
		t.Errorf("%d bytes are pending after more was brought, %d before", whole, pending)
	}
	s.wantPending("after a crash", whole)

	// An older database: import, and open again.
	s.catalogue.Add(s.id, 1<<40, 1)
	s.epoch = 0
	s.restart()
	if _, err := s.repo.Import(ctx, repository.ImportOptions{}); err != nil {
		t.Fatal(err)
	}
	s.epoch = s.catalogue.Epoch(s.id)
	s.restart()
	s.wantPending("after an import", whole)
	if _, err := s.repo.Manifest(ctx, one); err != nil {
		t.Error(err)
	}
	if len(s.repo.Sessions()) != 0 {
		t.Errorf("sessions are open: %v", s.repo.Sessions())
	}
}

// A pending record of which the copy that points use turns out to be damaged
// takes its place, and is not charged as pending beside that: neither after the
// verification that found it, nor where the index is older than it.
func TestWhatTakesTheDamagedOnesPlaceIsNotPending(t *testing.T) {
	s, r := newSite(t), seeded(t)
	ctx := testContext(t)
	d := make(disk, 3*testChunk)
	for i := range d {
		d[i] = byte(r.Uint32())
	}
	var runs []*backup
	var manifests [][]byte
	for range 2 { // both bring all of it: neither knows of the other's spool
		b, err := s.begin(ctx, newMachine(), "")
		if err != nil {
			t.Fatal(err)
		}
		manifest, err := b.send(ctx, d)
		if err != nil {
			t.Fatal(err)
		}
		runs, manifests = append(runs, b), append(manifests, manifest)
	}
	if err := runs[0].session.Commit(ctx, manifests[0]); err != nil {
		t.Fatal(err)
	}
	used := s.objects("packs/")[0]
	if err := runs[1].session.Abort(ctx); err != nil {
		t.Fatal(err)
	}
	before := s.wantBooks().PendingBytes
	older, err := repository.CopyIndex(s.index)
	if err != nil {
		t.Fatal(err)
	}
	s.damaged = true
	s.flip(used.Name, 200, 1)
	if report := s.verify(); report.DamagedRecords != 1 || len(report.Affected) != 0 {
		t.Fatalf("one record with another copy was damaged: %+v", report)
	}
	after := s.wantBooks().PendingBytes
	if after >= before-testChunk/2 {
		t.Errorf("%d bytes are pending, and were %d before a record of them was used", after, before)
	}
	s.close()
	s.index = older
	s.open()
	s.wantPending("with an older index", after)
	s.wantRestore(runs[0].point, d)
}

// A server that dies when the database has just forgotten a deleted pack has
// given back what was pending in it.
func TestPendingBytesGoBeforeTheirPackIsForgotten(t *testing.T) {
	s, r := newSite(t), seeded(t)
	s.give(randomDisk(r, 30*testChunk))
	s.clock.Advance(8 * 24 * time.Hour)
	s.collect(repository.CollectOptions{}) // condemned
	s.clock.Advance(8 * 24 * time.Hour)
	removed := false
	s.catalogue.Fault = func(method, when string) error {
		if removed = removed || method == "Removed" && when == "after"; removed {
			return blobtest.ErrInjected
		}
		return nil
	}
	_, err := s.repo.Collect(testContext(t), repository.CollectOptions{})
	wantIs(t, "a collection whose database died", err, blobtest.ErrInjected)
	s.catalogue.Fault = nil
	s.restart()
	s.wantPending("after a deleted pack was forgotten", 0)
}

// What an aborted session brought while the copy that points use was damaged
// takes its place at once: it is charged already.
func TestWhatHealsIsNotPending(t *testing.T) {
	s, r := newSite(t), seeded(t)
	ctx := testContext(t)
	d := make(disk, 2*testChunk)
	for i := range d {
		d[i] = byte(r.Uint32())
	}
	late, err := s.begin(ctx, newMachine(), "")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := late.send(ctx, d); err != nil {
		t.Fatal(err)
	}
	id := s.backup(newMachine(), "", d)
	s.damaged = true
	s.flip(s.objects("packs/")[0].Name, 200, 1)
	if report := s.verify(); report.DamagedRecords != 1 || len(report.Affected) != 1 {
		t.Fatalf("the only copy of a record was damaged: %+v", report)
	}
	used, _ := s.catalogue.Used(s.id)
	if err := late.session.Abort(ctx); err != nil {
		t.Fatal(err)
	}
	s.wantBooks()
	s.wantRestore(id, d)
	if now, _ := s.catalogue.Used(s.id); now != used {
		t.Errorf("%d bytes are used after what was damaged came back, %d before", now, used)
	}
}
