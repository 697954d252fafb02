package restore_test

import (
	"bytes"
	"context"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/uuid"

	"github.com/holdfast-dr/holdfast/core/audit"
	"github.com/holdfast-dr/holdfast/core/backup"
	"github.com/holdfast-dr/holdfast/core/blob/dir"
	"github.com/holdfast-dr/holdfast/core/chunk"
	"github.com/holdfast-dr/holdfast/core/mover"
	"github.com/holdfast-dr/holdfast/core/point"
	"github.com/holdfast-dr/holdfast/core/repository"
	"github.com/holdfast-dr/holdfast/core/repository/repositorytest"
	"github.com/holdfast-dr/holdfast/core/restore"
	"github.com/holdfast-dr/holdfast/sdk"
	"github.com/holdfast-dr/holdfast/sdk/sim"
)

// whole is a real repository as the agent sees it, without the wire between.
type whole struct {
	*repository.Repository
	last point.ID
}

func (w *whole) Last(ctx context.Context, _ point.MachineID) ([]byte, error) {
	if w.last == "" {
		return nil, nil
	}
	return w.Manifest(ctx, w.last)
}

func (w *whole) Begin(ctx context.Context, machine point.MachineID, base point.ID, owner string) (backup.Session, error) {
	s, err := w.Repository.Begin(ctx, machine, base, owner)
	if err != nil {
		return nil, err
	}
	damaged, err := s.Damaged(ctx)
	return wholeSession{s, damaged}, err
}

type wholeSession struct {
	*repository.Session
	damaged []chunk.ID
}

func (s wholeSession) DamagedChunks() ([]chunk.ID, bool) { return s.damaged, false }

func openWhole(t *testing.T, ctx context.Context) (w *whole, id, store string) {
	t.Helper()
	root := t.TempDir()
	id, store = uuid.Must(uuid.NewV7()).String(), filepath.Join(root, "store")
	blobs, err := dir.Open(store, dir.Options{})
	if err != nil {
		t.Fatal(err)
	}
	index, err := repository.OpenIndex(filepath.Join(root, "index"), repository.IndexOptions{CacheBytes: 4 << 20})
	if err != nil {
		t.Fatal(err)
	}
	catalogue := &repositorytest.Catalogue{}
	catalogue.Add(id, 1<<40, 0)
	catalogue.SetEpoch(id, 1)
	repo, err := repository.Open(ctx, repository.Config{ID: id, Blobs: blobs, Index: index, Catalogue: catalogue,
		SpoolDir: filepath.Join(root, "spool"), Epoch: 1, PackBytes: 4 << 20})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for _, c := range []interface{ Close() error }{repo, index, blobs} {
			if err := c.Close(); err != nil {
				t.Error(err)
			}
		}
	})
	return &whole{Repository: repo}, id, store
}

// TestThroughARealRepository backs a machine up three times and restores each
// point; then a byte rots in a pack, is found with keys, and the next backup
// heals it.
func TestThroughARealRepository(t *testing.T) {
	ctx := audit.With(t.Context(), audit.System("test", "a test"))
	repo, id, store := openWhole(t, ctx)
	s := newSite(t, 24*mib, 4*mib+512)
	run := func() backup.Result {
		t.Helper()
		res, err := backup.Run(ctx, backup.Request{
			Platform: s.hv.Connect(sim.Settings{}), PlatformName: "sim", Source: s.machine.ID, Op: sdk.Op{ID: uuid.NewString()},
			RepositoryID: id, Repository: repo, Keys: s.keys, Machine: s.id, Remembered: s.points[:min(len(s.points), 1)],
			ChunkSize: repo.ChunkSize(), FanOut: repo.FanOut(),
		})
		if err != nil {
			t.Fatal(err)
		}
		repo.last = res.Point
		s.points = append([]point.ID{res.Point}, s.points...)
		s.moments = append([][][]byte{content(t, s.hv, s.machine)}, s.moments...)
		return res
	}
	s.write(0, 0, 9*mib, 1)
	s.write(1, 4*mib, 512, 2)
	run()
	s.write(0, 5*mib+100, 2*mib, 3)
	if res := run(); res.Kind != point.KindIncremental || len(res.Warnings) != 0 || res.Disks[0].Verified.Chunks == 0 || res.Disks[0].Verified.Wrong != 0 {
		t.Errorf("second run %+v", res)
	}
	s.write(0, 20*mib, mib, 4)
	run()
	target := sim.New()
	for i, id := range s.points {
		p, err := restore.Open(ctx, repo, s.keys, id)
		if err != nil {
			t.Fatal(err)
		}
		res, err := restore.Machine(ctx, restore.MachineRequest{Platform: target.Connect(sim.Settings{}), PlatformName: "sim",
			Op: sdk.Op{ID: uuid.NewString()}, Point: p, Name: uuid.NewString()})
		if err != nil {
			t.Fatal(err)
		}
		m, err := target.Find(string(res.Machine))
		if err != nil {
			t.Fatal(err)
		}
		if !equal(content(t, target, m), s.moments[i]) {
			t.Errorf("point %d comes back with other bytes", i)
		}
	}

	p, err := restore.Open(ctx, repo, s.keys, s.points[0])
	if err != nil {
		t.Fatal(err)
	}
	var first chunk.ID
	if err := p.Tree(0, mover.Retry{}).Walk(ctx, 0, 1, func(_ int64, id chunk.ID) error {
		first = id
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	rot(t, store, first)
	verify := func() (damaged int64) {
		t.Helper()
		stats, err := p.Verify(ctx, mover.Options{}, func(int, mover.Damage) error { return nil })
		if err != nil {
			t.Fatal(err)
		}
		return stats[0].Damaged + stats[1].Damaged
	}
	if n := verify(); n != 1 {
		t.Fatalf("%d damaged pieces are found, want 1", n)
	}
	if res := run(); res.Kind != point.KindIncremental || res.SentBytes != chunk.Size {
		t.Errorf("the healing run: %s, sent %d bytes, %+v", res.Kind, res.SentBytes, res.Warnings)
	}
	if n := verify(); n != 0 {
		t.Errorf("%d damaged pieces are left after the next backup", n)
	}
}

// rot flips a byte in the middle of a chunk's record, wherever it was stored.
func rot(t *testing.T, store string, id chunk.ID) {
	t.Helper()
	err := filepath.WalkDir(store, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		at := bytes.Index(b, id[:]) // the record's own header precedes the pack's footer
		if at < 0 || !bytes.HasPrefix(b[max(0, at+len(id)-chunk.HeaderSize):], []byte("HFrc")) {
			return nil // a page that names it
		}
		b[at+len(id)+1000] ^= 1
		if err := os.Chmod(path, 0o600); err != nil {
			return err
		}
		if err := os.WriteFile(path, b, 0o600); err != nil {
			return err
		}
		return fs.SkipAll
	})
	if err != nil {
		t.Fatal(err)
	}
}
