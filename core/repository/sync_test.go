package repository_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/holdfast-dr/holdfast/core/blob"
	"github.com/holdfast-dr/holdfast/core/blob/blobtest"
	"github.com/holdfast-dr/holdfast/core/blob/dir"
	"github.com/holdfast-dr/holdfast/core/point"
	"github.com/holdfast-dr/holdfast/core/repository"
)

// syncedSite is a site whose spool and store are on a disk that fails syncs.
func syncedSite(t *testing.T, disk *blobtest.Syncs) *site {
	t.Helper()
	s := newSite(t)
	s.close()
	store, err := dir.Open(filepath.Join(s.root, "store"), dir.Options{Sync: disk.Sync})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = store.Close() })
	s.blobs, s.sync, s.pack = blobtest.NewFaulty(store), disk.Sync, 32<<10
	s.openIndex()
	s.open()
	return s
}

// persist makes a backup and repeats what fails, as an agent does; failed tells
// how often something did.
func (s *site) persist(ctx context.Context, machine point.MachineID, d disk) (id point.ID, failed int, err error) {
	var b *backup
	var manifest []byte
	for failed < 20 {
		if b == nil {
			if b, err = s.begin(ctx, machine, ""); err != nil {
				failed++
				continue
			}
		}
		if manifest == nil {
			manifest, err = b.send(ctx, d)
		}
		if manifest != nil {
			err = b.session.Commit(ctx, manifest)
		}
		var missing *point.MissingError
		switch {
		case err == nil:
			return b.point, failed, nil
		case errors.As(err, &missing): // what rotted in the spool is sent again
			failed++
			manifest = nil
		case !errors.Is(err, blob.ErrUnsynced):
			return "", failed, err
		default:
			failed++
			if _, lookErr := s.repo.Manifest(ctx, b.point); lookErr == nil {
				return "", failed, fmt.Errorf("the point of a commit that failed is visible: %w", err)
			}
		}
	}
	return "", failed, fmt.Errorf("it fails again and again: %w", err)
}

// A sync that fails, whichever of a backup it is, is never acknowledged, and
// never taken for good because the next one succeeds: what it was about is
// written again, or, where it cannot be read any more, sent again.
func TestAFailedSyncIsNeverAcknowledged(t *testing.T) {
	for _, rots := range []bool{false, true} {
		t.Run(fmt.Sprintf("rot=%v", rots), func(t *testing.T) {
			disk := &blobtest.Syncs{Rot: rots}
			s, r := syncedSite(t, disk), seeded(t)
			ctx := testContext(t)
			step := 1
			if testing.Short() {
				step = 7
			}
			hit, told := 0, 0
			for failing := 0; ; failing += step {
				d := randomDisk(r, 20*testChunk)
				struck := false
				disk.Fail(func(call int, _ *os.File) bool {
					struck = struck || call == failing
					return call == failing
				})
				id, failed, err := s.persist(ctx, newMachine(), d)
				disk.Fail(nil)
				if err != nil {
					t.Fatalf("sync %d failed: %v", failing, err)
				}
				told += failed
				if lies := disk.Lies(); len(lies) != 0 {
					t.Fatalf("sync %d failed, and a sync was trusted that wrote nothing: %v", failing, lies)
				}
				s.wantRestore(id, d)
				if !struck {
					break
				}
				hit++
			}
			// A put keeps to itself what it can try again, a commit does not.
			if hit < 10/step || told == 0 {
				t.Errorf("%d syncs failed, and %d calls", hit, told)
			}
			s.restart()
			s.wantSound()
			s.wantBooks()
		})
	}
}

// The process that saw a sync fail was killed. The next one finds the bytes in
// the system's memory, whole and taken for clean: it writes them again.
func TestASyncThatFailedInAnEarlierLifeIsNotTrusted(t *testing.T) {
	disk := &blobtest.Syncs{}
	s, r := syncedSite(t, disk), seeded(t)
	ctx := testContext(t)
	d := randomDisk(r, 6*testChunk)
	b, err := s.begin(ctx, newMachine(), "")
	if err != nil {
		t.Fatal(err)
	}
	manifest, err := b.send(ctx, d)
	if err != nil {
		t.Fatal(err)
	}
	disk.Fail(func(int, *os.File) bool { return true })
	wantIs(t, "commit on a disk that fails", b.session.Commit(ctx, manifest), blob.ErrUnsynced)
	disk.Fail(nil)
	s.restart()
	if b.session, err = s.repo.Resume(ctx, b.session.ID()); err != nil {
		t.Fatal(err)
	}
	sent := b.sent
	if manifest, err = b.send(ctx, d); err != nil || b.sent != sent {
		t.Errorf("%d records were sent again, %v", b.sent-sent, err)
	}
	if err := b.session.Commit(ctx, manifest); err != nil {
		t.Fatal(err)
	}
	if lies := disk.Lies(); len(lies) != 0 {
		t.Errorf("a sync was trusted that wrote nothing: %v", lies)
	}
	s.wantRestore(b.point, d)
	s.wantSound()
	s.wantBooks()
}

// What a session's folder says of it is not worth the repository: where it is
// damaged, the session is over and everything else goes on.
func TestADamagedSessionFileCostsItsSessionOnly(t *testing.T) {
	s, r := newSite(t), seeded(t)
	ctx := testContext(t)
	d := randomDisk(r, 10*testChunk)
	one := s.backup(newMachine(), "", d)
	b, err := s.begin(ctx, newMachine(), "")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := b.send(ctx, randomDisk(r, 10*testChunk)); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(s.spool, s.id, sessionText(b.session), "session.json")
	s.close()
	content, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	content[r.IntN(len(content))] ^= 1
	if err := os.WriteFile(file, content, 0o600); err != nil {
		t.Fatal(err)
	}
	s.openIndex()
	s.open()
	_, err = s.repo.Resume(ctx, b.session.ID())
	wantIs(t, "resume of a session whose file is damaged", err, repository.ErrNotFound)
	s.wantRestore(one, d)
	s.wantSound()
	s.wantBooks()
}
