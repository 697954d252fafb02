package repository_test

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/core/blob/blobtest"
	"github.com/holdfast-dr/holdfast/core/chunk"
	"github.com/holdfast-dr/holdfast/core/repository"
)

// A power cut leaves of a spool file whatever had been written: every whole
// record is found again, and what follows the first that is not is sent again.
func TestSpoolIsRecoveredRecordByRecord(t *testing.T) {
	s, r := newSite(t), seeded(t)
	ctx := testContext(t)
	d := randomDisk(r, 12*testChunk) // one pack, not finished
	b, err := s.begin(ctx, newMachine(), "")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := b.send(ctx, d); err != nil {
		t.Fatal(err)
	}
	var ids []chunk.ID
	for i := 0; i < len(d); i += testChunk {
		ids = append(ids, s.keys.ID(d[i:i+testChunk]))
	}
	before, err := b.session.Have(ctx, chunk.KindData, ids)
	if err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob(filepath.Join(s.spool, s.id, sessionText(b.session), "*.data"))
	if err != nil || len(files) != 1 {
		t.Fatalf("spool files: %v, %v", files, err)
	}
	s.close()
	whole, err := os.ReadFile(files[0])
	if err != nil {
		t.Fatal(err)
	}
	sent := b.sent
	for _, cut := range []int{len(whole) - 1, len(whole) - 80, len(whole) / 2, 100, 40, 10, 0} {
		for cut > 0 && whole[cut] == 0 {
			cut-- // the zeroes that follow would make it whole again
		}
		torn := slices.Clone(whole[:cut])
		if cut > 1000 {
			torn = append(torn, make([]byte, 500)...) // blocks that were allocated and not written
		}
		if err := os.WriteFile(files[0], torn, 0o600); err != nil {
			t.Fatal(err)
		}
		s.openIndex()
		s.open()
		if b.session, err = s.repo.Resume(ctx, b.session.ID()); err != nil {
			t.Fatal(err)
		}
		have, err := b.session.Have(ctx, chunk.KindData, ids)
		if err != nil {
			t.Fatal(err)
		}
		kept, want := count(have), count(before)
		if kept >= want || cut == len(whole)-1 && kept < want-2 || cut < 1000 && kept != 0 {
			t.Errorf("of %d records, %d are left after a cut at %d of %d", want, kept, cut, len(whole))
		}
		for i := range have {
			if have[i] && !before[i] {
				t.Errorf("chunk %d came from nowhere", i)
			}
		}
		if cut == 0 {
			break
		}
		s.close()
	}
	manifest, err := b.send(ctx, d)
	if err != nil {
		t.Fatal(err)
	}
	if b.sent == sent {
		t.Error("nothing was sent again")
	}
	if err := b.session.Commit(ctx, manifest); err != nil {
		t.Fatal(err)
	}
	s.wantRestore(b.point, d)
	s.wantSound()
}

func count(have []bool) int {
	n := 0
	for _, yes := range have {
		if yes {
			n++
		}
	}
	return n
}

// A finished pack whose shipping was cut is found again as it is.
func TestFinishedSpoolFilesAreShippedAfterARestart(t *testing.T) {
	s, r := newSite(t), seeded(t)
	ctx := testContext(t)
	d := randomDisk(r, 100*testChunk)
	b, err := s.begin(ctx, newMachine(), "")
	if err != nil {
		t.Fatal(err)
	}
	s.blobs.Fill(0) // the store is full, so that packs wait
	for range 20 {
		if _, err = b.send(ctx, d); err == nil {
			break
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	if len(s.objects("packs/")) != 0 {
		t.Fatal("packs are in a full store")
	}
	s.blobs.Heal()
	s.restart()
	if b.session, err = s.repo.Resume(ctx, b.session.ID()); err != nil {
		t.Fatal(err)
	}
	sent := b.sent
	manifest, err := b.send(ctx, d)
	if err != nil {
		t.Fatal(err)
	}
	if b.sent != sent {
		t.Errorf("%d records were sent again", b.sent-sent)
	}
	if err := b.session.Commit(ctx, manifest); err != nil {
		t.Fatal(err)
	}
	s.wantRestore(b.point, d)
	if entries, _ := os.ReadDir(filepath.Join(s.spool, s.id)); len(entries) != 0 {
		t.Errorf("the spool holds %v", entries)
	}
}

// A pack that reached the store and was damaged there, before anybody learned
// that it had, is stored again under another name: the spool still has it.
func TestAPackDamagedBeforeItsAnswerIsStoredAgain(t *testing.T) {
	for name, at := range map[string]int64{"header": 0, "record": 100, "footer": -100, "trailer": -3} {
		t.Run(name, func(t *testing.T) {
			s, r := newSite(t), seeded(t)
			ctx := testContext(t)
			d := randomDisk(r, 10*testChunk)
			b, err := s.begin(ctx, newMachine(), "")
			if err != nil {
				t.Fatal(err)
			}
			manifest, err := b.send(ctx, d)
			if err != nil {
				t.Fatal(err)
			}
			s.blobs.Fail(blobtest.Fault{Verb: blobtest.VerbPut, Late: true})
			if err := b.session.Commit(ctx, manifest); !errors.Is(err, blobtest.ErrInjected) {
				t.Fatalf("a commit whose answer from the store was lost: %v", err)
			}
			s.blobs.Heal()
			packs := s.objects("packs/")
			if len(packs) != 1 {
				t.Fatalf("%d packs are in the store, want one", len(packs))
			}
			s.damaged = true
			s.flip(packs[0].Name, (at+packs[0].SizeBytes)%packs[0].SizeBytes, 1)
			if err := b.session.Commit(ctx, manifest); err != nil {
				t.Fatalf("commit again: %v", err)
			}
			s.verify()
			s.restart()
			if name != "record" { // whose checksum tells later, as it does of any that rots
				s.wantRestore(b.point, d)
			}
			s.wantBooks()
		})
	}
}

// Several machines back up the same content at the same time, while points are
// forgotten, collected and read.
func TestEverythingAtOnce(t *testing.T) {
	s, r := newSite(t), seeded(t)
	ctx := testContext(t)
	shared := randomDisk(r, 60*testChunk)
	disks := make([]disk, 4)
	for i := range disks {
		disks[i] = shared.changed(r, 15)
	}
	stop := make(chan struct{})
	var collecting, working sync.WaitGroup
	collecting.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
			}
			if _, err := s.repo.Collect(ctx, repository.CollectOptions{Threshold: 0.01}); err != nil {
				t.Errorf("collect: %v", err)
				return
			}
			report, err := s.repo.Verify(ctx, repository.VerifyOptions{})
			if err != nil || !report.Sound() {
				t.Errorf("verify: %+v, %v", report, err)
				return
			}
			s.clock.Advance(13 * time.Hour)
		}
	})
	for _, d := range disks {
		working.Go(func() {
			machine := newMachine()
			for range 4 {
				id, err := s.run(ctx, machine, "", d)
				if err != nil {
					t.Errorf("backup: %v", err)
					return
				}
				s.wantRestore(id, d)
				if err := s.repo.Forget(ctx, id); err != nil {
					t.Errorf("forget: %v", err)
				}
			}
			if id, err := s.run(ctx, machine, "", d); err != nil {
				t.Errorf("backup: %v", err)
			} else {
				s.wantRestore(id, d)
			}
		})
	}
	working.Wait()
	close(stop)
	collecting.Wait()
	s.wantBooks()
	s.wantSound()
	if points, err := s.repo.Points(ctx, "", "", 0); err != nil || len(points) != len(disks) {
		t.Errorf("points: %v, %v", points, err)
	}
}

func TestSessionsAreBounded(t *testing.T) {
	s := newSite(t)
	ctx := testContext(t)
	c := s.config()
	c.MaxSessions, c.Epoch = 2, s.epoch+1
	s.catalogue.SetEpoch(s.id, c.Epoch)
	repo, err := repository.Open(ctx, c)
	if err != nil {
		t.Fatal(err)
	}
	defer repo.Close()
	for range 2 {
		if _, err := repo.Begin(ctx, newMachine(), "", ""); err != nil {
			t.Fatal(err)
		}
	}
	_, err = repo.Begin(ctx, newMachine(), "", "")
	wantIs(t, "a session too many", err, repository.ErrBusy)
	_, err = repo.Begin(ctx, "no uuid", "", "")
	wantIs(t, "a machine without a UUID", err, repository.ErrRefused)
	if err := repo.Read(ctx, chunk.KindData, make([]chunk.ID, repository.MaxIDs+1), nil); err == nil || !strings.Contains(err.Error(), "refused") {
		t.Errorf("read of too many ids: %v", err)
	}
}
