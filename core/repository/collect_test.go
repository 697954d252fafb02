package repository_test

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/core/blob"
	"github.com/holdfast-dr/holdfast/core/blob/blobtest"
	"github.com/holdfast-dr/holdfast/core/chunk"
	"github.com/holdfast-dr/holdfast/core/claim"
	"github.com/holdfast-dr/holdfast/core/point"
	"github.com/holdfast-dr/holdfast/core/repository"
)

func (s *site) forget(ids ...point.ID) {
	s.t.Helper()
	if err := s.repo.Forget(testContext(s.t), ids...); err != nil {
		s.t.Fatalf("forget: %v", err)
	}
}

func (s *site) collect(o repository.CollectOptions) repository.CollectReport {
	s.t.Helper()
	report, err := s.repo.Collect(testContext(s.t), o)
	if err != nil {
		s.t.Fatalf("collect: %v", err)
	}
	return report
}

// wantBooks checks that every byte of the store is accounted for, and that what
// is charged is what live points and what is pending take. While a point cannot
// be read whole, nobody knows what it uses, and nothing is given back.
func (s *site) wantBooks() repository.Usage {
	s.t.Helper()
	u, err := s.repo.Usage(testContext(s.t), repository.UsageOptions{})
	if err != nil {
		s.t.Fatalf("usage: %v", err)
	}
	if sum := u.LiveBytes + u.PendingBytes + u.BinBytes + u.WasteBytes + u.OverheadBytes; sum != u.TotalBytes || u.OverheadBytes < 0 {
		s.t.Errorf("the parts of %+v add up to %d", u, sum)
	}
	var total, overhead int64
	for _, object := range s.objects("") {
		total += object.SizeBytes
		if !strings.Contains(object.Name, "/packs/") && !strings.Contains(object.Name, "/maps/") {
			overhead += object.SizeBytes
		}
	}
	const perPack, perRecord = 32 + 40, 72 // header and trailer; footer entry
	// Where a footer and a record of its pack are damaged, the record is none any more.
	if overhead += int64(u.Packs)*perPack + u.Records*perRecord; u.OverheadBytes < overhead || u.OverheadBytes > overhead && !s.damaged {
		s.t.Errorf("usage counts %d bytes of overhead, the format has %d", u.OverheadBytes, overhead)
	}
	if total != u.TotalBytes {
		s.t.Errorf("usage counts %d bytes, the store has %d", u.TotalBytes, total)
	}
	if used, _ := s.catalogue.Used(s.id); used < u.LiveBytes || used > u.LiveBytes && !(s.damaged && len(s.verify().Affected) > 0) {
		s.t.Errorf("charged are %d bytes, live points take %d", used, u.LiveBytes)
	}
	if pending := s.catalogue.Pending(s.id); pending != u.PendingBytes {
		s.t.Errorf("charged as pending are %d bytes, the packs have %d", pending, u.PendingBytes)
	}
	return u
}

func (s *site) wantSound() {
	s.t.Helper()
	report, err := s.repo.Verify(testContext(s.t), repository.VerifyOptions{})
	if err != nil || !report.Sound() {
		s.t.Errorf("verify: %+v, %v", report, err)
	}
}

func TestForgottenSpaceComesBackAndTheRestStays(t *testing.T) {
	s, r := newSite(t), seeded(t)
	machine := newMachine()
	d := randomDisk(r, 200*testChunk)
	var points []point.ID
	var disks []disk
	base := point.ID("")
	for range 6 {
		base = s.backup(machine, base, d)
		points, disks = append(points, base), append(disks, d)
		d = d.changed(r, 20)
	}
	s.wantBooks()
	s.forget(points[0], points[2], points[3])
	if _, err := s.repo.Manifest(testContext(t), points[0]); !errors.Is(err, repository.ErrNotFound) {
		t.Errorf("manifest of a forgotten point: %v", err)
	}
	before := s.wantBooks()
	if before.BinBytes == 0 {
		t.Error("nothing is in the bin")
	}
	report := s.collect(repository.CollectOptions{Threshold: 0.01})
	if report.PurgedPoints != 3 || report.CondemnedPacks == 0 || report.DeletedPacks != 0 || report.WaitingPacks != report.CondemnedPacks {
		t.Errorf("first collection: %+v", report)
	}
	s.wantSound()
	s.clock.Advance(25 * time.Hour)
	if again := s.collect(repository.CollectOptions{Threshold: 0.01}); again.DeletedPacks != report.CondemnedPacks || again.WaitingPacks != 0 {
		t.Errorf("second collection: %+v after %+v", again, report)
	}
	after := s.wantBooks()
	if after.WasteBytes != 0 || after.BinBytes != 0 || after.TotalBytes >= before.TotalBytes {
		t.Errorf("usage was %+v, is %+v", before, after)
	}
	for _, restart := range []bool{false, true} {
		if restart {
			s.restart()
		}
		for _, i := range []int{1, 4, 5} {
			s.wantRestore(points[i], disks[i])
		}
	}
	s.wantSound()
	if got := len(s.objects("tombstones/")) + len(s.objects("points/")); got != 3 {
		t.Errorf("%d manifests and tombstones are left, want 3 manifests", got)
	}
}

func TestBinKeepsPointsForItsPeriod(t *testing.T) {
	s, r := newSite(t), seeded(t)
	s.close()
	s.bin = 48 * time.Hour
	s.openIndex()
	s.open()
	machine := newMachine()
	d := randomDisk(r, 50*testChunk)
	one := s.backup(machine, "", d)
	s.forget(one)
	if used, _ := s.catalogue.Used(s.id); used != 0 {
		t.Errorf("a binned point is charged with %d bytes", used)
	}
	s.collect(repository.CollectOptions{})
	s.clock.Advance(47 * time.Hour)
	if report := s.collect(repository.CollectOptions{}); report.PurgedPoints+report.CondemnedPacks+report.DeletedPacks != 0 {
		t.Errorf("the bin was emptied early: %+v", report)
	}
	// What is in the bin is there to be used, and charged again.
	two := s.backup(machine, "", d)
	s.wantBooks()
	s.clock.Advance(2 * time.Hour)
	if report := s.collect(repository.CollectOptions{}); report.PurgedPoints != 1 || report.CondemnedPacks != 0 {
		t.Errorf("after the period: %+v", report)
	}
	s.wantRestore(two, d)
	s.wantBooks()
}

// A collection is stopped after each of its steps while a backup commits that
// relies on what the collection is about to free.
func TestCollectNeverTakesWhatACommitReliesOn(t *testing.T) {
	for _, stage := range []repository.CollectStage{
		repository.StageMarked, repository.StageCopied, repository.StageCondemned, repository.StageDeleted,
	} {
		t.Run(string(stage), func(t *testing.T) {
			s, r := newSite(t), seeded(t)
			ctx := testContext(t)
			machine := newMachine()
			old := randomDisk(r, 100*testChunk)
			kept := old.changed(r, 60)
			one := s.backup(machine, "", old)
			two := s.backup(machine, one, kept)
			// A session has asked, and was told that everything of the old disk is
			// there; it has not committed yet.
			b, err := s.begin(ctx, newMachine(), "")
			if err != nil {
				t.Fatal(err)
			}
			manifest, err := b.send(ctx, old)
			if err != nil {
				t.Fatal(err)
			}
			if b.sent != 0 {
				t.Fatalf("%d records were sent", b.sent)
			}
			s.forget(one)
			missed := false
			commit := func(_ context.Context, done repository.CollectStage) error {
				if done != stage || b == nil {
					return nil
				}
				defer func() { b = nil }()
				err := b.session.Commit(ctx, manifest)
				var missing *point.MissingError
				for errors.As(err, &missing) { // the agent sends again
					missed = true
					if manifest, err = b.send(ctx, old); err != nil {
						return err
					}
					err = b.session.Commit(ctx, manifest)
				}
				return err
			}
			third := b.point
			s.collect(repository.CollectOptions{Threshold: 0.01, Pause: commit})
			for range 2 {
				s.clock.Advance(25 * time.Hour)
				s.collect(repository.CollectOptions{Threshold: 0.01, Pause: commit})
			}
			if b != nil {
				t.Fatalf("there was no step %q", stage)
			}
			if early := stage == repository.StageMarked; missed == early && stage != repository.StageCopied {
				t.Errorf("commit after %q missed something: %v", stage, missed)
			}
			s.wantRestore(two, kept)
			s.wantRestore(third, old)
			s.wantSound()
			s.wantBooks()
		})
	}
}

func TestCollectIsRunAgainAfterItWasCut(t *testing.T) {
	for _, cut := range []repository.CollectStage{
		repository.StageMarked, repository.StageCopied, repository.StageCondemned, repository.StageDeleted,
	} {
		t.Run(string(cut), func(t *testing.T) {
			s, r := newSite(t), seeded(t)
			machine := newMachine()
			d := randomDisk(r, 100*testChunk)
			one := s.backup(machine, "", d)
			two := s.backup(machine, one, d.changed(r, 30))
			next, err := s.restore(testContext(t), two, 0)
			if err != nil {
				t.Fatal(err)
			}
			s.forget(one)
			stop := errors.New("power cut")
			pause := func(_ context.Context, done repository.CollectStage) error {
				if done == cut {
					return stop
				}
				return nil
			}
			_, err = s.repo.Collect(testContext(t), repository.CollectOptions{Threshold: 0.01, Pause: pause})
			wantIs(t, "collection that was cut", err, stop)
			s.wantRestore(two, next)
			s.restart()
			s.wantRestore(two, next)
			for range 3 {
				s.collect(repository.CollectOptions{Threshold: 0.01})
				s.clock.Advance(25 * time.Hour)
			}
			s.wantRestore(two, next)
			s.wantSound()
			if u := s.wantBooks(); u.WasteBytes != 0 {
				t.Errorf("waste stays: %+v", u)
			}
		})
	}
}

func TestOpenSessionPinsItsBaseAndItsPacks(t *testing.T) {
	s, r := newSite(t), seeded(t)
	ctx := testContext(t)
	machine := newMachine()
	d := randomDisk(r, 100*testChunk)
	one := s.backup(machine, "", d)
	b, err := s.begin(ctx, machine, one)
	if err != nil {
		t.Fatal(err)
	}
	next := d.changed(r, 50)
	manifest, err := b.send(ctx, next)
	if err != nil {
		t.Fatal(err)
	}
	s.forget(one)
	for range 3 {
		if report := s.collect(repository.CollectOptions{Threshold: 0.01}); report.PurgedPoints+report.CondemnedPacks != 0 {
			t.Errorf("collected under an open session: %+v", report)
		}
		s.clock.Advance(25 * time.Hour)
	}
	if u := s.wantBooks(); u.BinBytes == 0 {
		t.Errorf("usage: %+v", u)
	}
	s.restart() // the pins come back with the session
	s.collect(repository.CollectOptions{Threshold: 0.01})
	if b.session, err = s.repo.Resume(ctx, b.session.ID()); err != nil {
		t.Fatal(err)
	}
	if err := b.session.Commit(ctx, manifest); err != nil {
		t.Fatalf("commit on a forgotten base: %v", err)
	}
	s.wantBooks()
	s.collect(repository.CollectOptions{Threshold: 0.01})
	s.clock.Advance(25 * time.Hour)
	s.collect(repository.CollectOptions{Threshold: 0.01})
	s.wantRestore(b.point, next)
	s.wantSound()
}

func TestReaderOutlivesCondemnation(t *testing.T) {
	s, r := newSite(t), seeded(t)
	machine := newMachine()
	d := randomDisk(r, 300*testChunk)
	one := s.backup(machine, "", d)
	next := d.changed(r, 150)
	two := s.backup(machine, one, next)
	s.forget(one)
	collected := atomic.Bool{}
	s.blobs.Fail(blobtest.Fault{Verb: blobtest.VerbRead, Match: "/packs/", After: 2, Times: 1, Err: blob.ErrNotFound, Hook: func() {
		if !collected.Swap(true) { // the pack was collected between look-up and read
			s.collect(repository.CollectOptions{Threshold: 0.01})
		}
	}})
	s.wantRestore(two, next)
	if !collected.Load() {
		t.Error("nothing was collected during the restore")
	}
}

func TestFencedCollectorHarmsNothing(t *testing.T) {
	s, r := newSite(t), seeded(t)
	machine := newMachine()
	d := randomDisk(r, 100*testChunk)
	one := s.backup(machine, "", d)
	next := d.changed(r, 50)
	two := s.backup(machine, one, next)
	s.forget(one)
	fence := func(_ context.Context, done repository.CollectStage) error {
		if done == repository.StageCopied { // another server takes the claim
			s.catalogue.SetEpoch(s.id, s.epoch+1)
		}
		return nil
	}
	_, err := s.repo.Collect(testContext(t), repository.CollectOptions{Threshold: 0.01, Pause: fence})
	wantIs(t, "collect of a fenced server", err, claim.ErrFenced)
	condemned, err := s.catalogue.Condemned(testContext(t), s.id, repository.PackID{}, 10)
	if err != nil || len(condemned) != 0 {
		t.Errorf("condemned %v, %v", condemned, err)
	}
	s.epoch++
	s.restart()
	s.wantRestore(two, next)
	s.wantSound()
}

func TestBrokenPagesStopCollection(t *testing.T) {
	s, r := newSite(t), seeded(t)
	machine := newMachine()
	d := randomDisk(r, 100*testChunk)
	s.backup(machine, "", d)
	maps := s.objects("maps/")
	s.forget(s.backup(newMachine(), "", randomDisk(r, 10*testChunk)))
	s.close()
	if err := os.Remove(filepath.Join(s.root, "store", maps[0].Name)); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(filepath.Join(s.root, "index")); err != nil {
		t.Fatal(err)
	}
	s.openIndex()
	s.open()
	_, err := s.repo.Collect(testContext(t), repository.CollectOptions{})
	var incomplete *repository.IncompleteError
	if !errors.As(err, &incomplete) || len(incomplete.Points) == 0 {
		t.Errorf("collect without map pages: %v", err)
	}
	condemned, _ := s.catalogue.Condemned(testContext(t), s.id, repository.PackID{}, 10)
	if len(condemned) != 0 {
		t.Errorf("condemned %v without knowing what is used", condemned)
	}
}

// While a collection is on its way, the store answers for a moment that it has
// no manifests, and a walk for another reason finds nothing in use. What the
// points need must not be condemned by that.
func TestAWalkThatSawNothingDoesNotCondemn(t *testing.T) {
	s, r := newSite(t), seeded(t)
	machine := newMachine()
	d := randomDisk(r, 100*testChunk)
	one := s.backup(machine, "", d)
	next := d.changed(r, 50)
	two := s.backup(machine, one, next)
	s.forget(one)
	gone := s.backup(newMachine(), "", randomDisk(r, 10*testChunk))
	vanish := func(_ context.Context, done repository.CollectStage) error {
		if done == repository.StageMarked {
			s.blobs.Fail(blobtest.Fault{Verb: blobtest.VerbRead, Match: "/points/", Err: blob.ErrNotFound})
			s.forget(gone)
			s.blobs.Heal()
		}
		return nil
	}
	if _, err := s.repo.Collect(testContext(t), repository.CollectOptions{Threshold: 0.01, Pause: vanish}); err == nil {
		t.Error("a collection succeeded without knowing what is used")
	}
	s.wantRestore(two, next)
	s.collect(repository.CollectOptions{Threshold: 0.01}) // now that everything can be read
	s.wantRestore(two, next)
	s.wantSound()
}

// A folder whose disk is not mounted looks like a store without anything.
func TestAnEmptyStoreIsNotTakenForARepositoryWithPoints(t *testing.T) {
	s, r := newSite(t), seeded(t)
	d := randomDisk(r, 10*testChunk)
	one := s.backup(newMachine(), "", d)
	s.close()
	mount := filepath.Join(s.root, "store", s.id)
	if err := os.Rename(mount, mount+".away"); err != nil {
		t.Fatal(err)
	}
	s.openIndex()
	s.epoch++
	s.catalogue.SetEpoch(s.id, s.epoch)
	repo, err := repository.Open(testContext(t), s.config())
	if err != nil {
		t.Fatal(err)
	}
	wantIs(t, "write to a store without anything", repo.Writable(), repository.ErrReadOnly)
	if err := repo.Close(); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(mount); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("something was written into the empty folder: %v", err)
	}
	if err := errors.Join(os.RemoveAll(mount), os.Rename(mount+".away", mount)); err != nil {
		t.Fatal(err)
	}
	s.open()
	s.wantRestore(one, d)
	s.wantSound()
}

func TestAbortedAndIdleSessionsStayPending(t *testing.T) {
	s, r := newSite(t), seeded(t)
	ctx := testContext(t)
	one := s.backup(newMachine(), "", randomDisk(r, 20*testChunk))
	for _, how := range []string{"abort", "idle"} {
		if _, err := s.begin(ctx, newMachine(), one); err == nil {
			t.Error("began a session on another machine's point")
		}
		b, err := s.begin(ctx, newMachine(), "")
		if err != nil {
			t.Fatal(err)
		}
		d := randomDisk(r, 100*testChunk)
		if _, err := b.send(ctx, d); err != nil {
			t.Fatal(err)
		}
		if u := s.wantBooks(); u.PendingBytes == 0 || u.SpooledBytes == 0 {
			t.Errorf("usage with an open session: %+v", u)
		}
		if how == "abort" {
			if err := b.session.Abort(ctx); err != nil {
				t.Fatal(err)
			}
		} else {
			s.clock.Advance(7 * 24 * time.Hour)
			ids, err := s.repo.ExpireSessions(ctx, 7*24*time.Hour)
			if err != nil || !slices.Equal(ids, []chunk.SessionID{b.session.ID()}) {
				t.Errorf("expired %v, %v", ids, err)
			}
		}
		wantIs(t, "put after "+how, b.session.Put(ctx, nil), repository.ErrNotFound)
		if _, err := s.repo.Resume(ctx, b.session.ID()); !errors.Is(err, repository.ErrNotFound) {
			t.Errorf("resumed after %s: %v", how, err)
		}
		if u := s.wantBooks(); u.PendingBytes == 0 || u.WasteBytes != 0 || u.SpooledBytes != 0 {
			t.Errorf("usage after %s: %+v", how, u)
		}
		if how == "abort" {
			next, err := s.begin(ctx, newMachine(), "")
			if err != nil {
				t.Fatal(err)
			}
			if _, err := next.send(ctx, d); err != nil || next.sent != 0 {
				t.Errorf("%d records are sent again after an abort, %v", next.sent, err)
			}
			if err := next.session.Abort(ctx); err != nil {
				t.Fatal(err)
			}
		}
	}
	entries, err := os.ReadDir(filepath.Join(s.spool, s.id))
	if err != nil || len(entries) != 0 {
		t.Errorf("the spool holds %v, %v", entries, err)
	}
}
