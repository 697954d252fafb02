package repository_test

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/holdfast-dr/holdfast/core/audit"
	"github.com/holdfast-dr/holdfast/core/blob"
	"github.com/holdfast-dr/holdfast/core/blob/dir"
	"github.com/holdfast-dr/holdfast/core/chunk"
	"github.com/holdfast-dr/holdfast/core/point"
	"github.com/holdfast-dr/holdfast/core/repository"
	"github.com/holdfast-dr/holdfast/core/repository/repositorytest"
)

// stage is an open repository with nothing of a tenant around it.
func stage(b testing.TB) (context.Context, *repository.Repository, string) {
	b.Helper()
	root := b.TempDir()
	store, err := dir.Open(filepath.Join(root, "store"), dir.Options{})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = store.Close() })
	return stageOn(b, root, store)
}

func stageOn(b testing.TB, root string, store blob.Store) (context.Context, *repository.Repository, string) {
	b.Helper()
	ctx, id := audit.With(b.Context(), audit.System("test", "bench")), uuid.NewString()
	index, err := repository.OpenIndex(filepath.Join(root, "index"), repository.IndexOptions{})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = index.Close() })
	catalogue := &repositorytest.Catalogue{}
	catalogue.Add(id, 1<<50, 1)
	repo, err := repository.Open(ctx, repository.Config{
		ID: id, Blobs: store, Index: index, Catalogue: catalogue, SpoolDir: filepath.Join(root, "spool"), Epoch: 1,
	})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = repo.Close() })
	return ctx, repo, id
}

// fill puts and commits a disk of so many chunks, sealed by hand: what the
// provider does is measured, not the tenant's compression.
func fill(ctx context.Context, b testing.TB, repo *repository.Repository, id string, chunks int, body []byte) (point.ID, []chunk.ID) {
	b.Helper()
	machine := point.MachineID(uuid.NewString())
	session, err := repo.Begin(ctx, machine, "", "")
	if err != nil {
		b.Fatal(err)
	}
	keys := chunk.NewKeyring()
	geometry := point.Geometry{SizeBytes: int64(chunks) * chunk.Size, ChunkSize: chunk.Size, FanOut: repository.DefaultFanOut}
	var pages []byte
	builder, err := point.NewBuilder(point.Tree{Geometry: geometry}, func(_ context.Context, id chunk.ID, page []byte) error {
		pages = chunk.AppendPage(pages, session.ID(), id, page)
		return nil
	})
	if err != nil {
		b.Fatal(err)
	}
	sealer := keys.NewSealer(session.ID())
	var batch []byte
	ids := make([]chunk.ID, chunks)
	for i := range ids {
		ids[i] = chunk.ID{1, byte(i), byte(i >> 8), byte(i >> 16), 31: 1}
		if batch, err = sealer.Append(batch, ids[i], body); err != nil {
			b.Fatal(err)
		}
		if err := builder.Set(ctx, int64(i), ids[i]); err != nil {
			b.Fatal(err)
		}
		if len(batch) > 4<<20 || i == chunks-1 {
			if err := session.Put(ctx, batch); err != nil {
				b.Fatal(err)
			}
			batch = batch[:0]
		}
	}
	root, err := builder.Finish(ctx)
	if err != nil {
		b.Fatal(err)
	}
	if err := session.Put(ctx, pages); err != nil {
		b.Fatal(err)
	}
	p := point.Public{
		Repository: id, Point: point.NewID(), Machine: machine, Session: fmt.Sprintf("%x", session.ID()), Taken: time.Now(), Kind: point.KindFull,
		ChunkSize: chunk.Size, FanOut: repository.DefaultFanOut, Disks: []point.Disk{{SizeBytes: geometry.SizeBytes, Root: root}},
	}
	manifest, err := point.Manifest{Public: p, Private: point.Private{Disks: make([]point.PrivateDisk, 1)}}.Seal(keys)
	if err != nil {
		b.Fatal(err)
	}
	if err := session.Commit(ctx, manifest); err != nil {
		b.Fatal(err)
	}
	return p.Point, ids
}

func randomBody(n int) []byte {
	r, body := rand.New(rand.NewPCG(1, 1)), make([]byte, n)
	for i := range body {
		body[i] = byte(r.Uint32())
	}
	return body
}

// BenchmarkBackup puts and commits 256 MiB of incompressible chunks.
func BenchmarkBackup(b *testing.B) {
	body := randomBody(chunk.Size)
	b.SetBytes(1024 * chunk.Size)
	for b.Loop() {
		ctx, repo, id := stage(b)
		fill(ctx, b, repo, id, 1024, body)
	}
}

// BenchmarkRestore reads 256 MiB in order.
func BenchmarkRestore(b *testing.B) {
	ctx, repo, id := stage(b)
	_, ids := fill(ctx, b, repo, id, 1024, randomBody(chunk.Size))
	b.SetBytes(1024 * chunk.Size)
	for b.Loop() {
		if err := repo.Read(ctx, chunk.KindData, ids, func(chunk.Record) error { return nil }); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkSettle walks the map of a disk of 8 GiB, as forget and collect do.
func BenchmarkSettle(b *testing.B) {
	ctx, repo, id := stage(b)
	fill(ctx, b, repo, id, 32<<10, bytes.Repeat([]byte("a"), chunk.Size))
	for b.Loop() {
		if err := repo.Forget(ctx); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(32<<10*b.N)/b.Elapsed().Seconds(), "chunks/s")
}
