package main

import (
	"bytes"
	"errors"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/sdk"
	"github.com/holdfast-dr/holdfast/testenv/site"
)

// copied is a backup as a repository would have it.
type copied struct {
	machine sdk.Machine
	images  map[sdk.DiskID][]byte
}

func takePoint(t *testing.T, p *platform, id sdk.MachineID) copied {
	t.Helper()
	op := newOp()
	snap := snapshot(t, p, op, sdk.SnapshotRequest{Machine: id})
	taken := copied{machine: snap.Machine, images: make(map[sdk.DiskID][]byte)}
	for _, d := range snap.Machine.Disks {
		taken.images[d.ID] = readDisk(t, p, snap, d.ID)
	}
	end(t, p, op, snap, false)
	return taken
}

// writeDraft writes a point to a draft, and nothing where it is zero.
func writeDraft(t *testing.T, p *platform, op sdk.Op, d sdk.Draft, from copied) {
	t.Helper()
	for _, id := range d.Disks {
		w, err := p.OpenDraftDisk(t.Context(), op, d, id)
		if err != nil {
			t.Fatal(err)
		}
		image := from.images[id]
		if w.Size() != int64(len(image)) || w.Shape() != sdk.ShapeRandom {
			t.Fatalf("disk %s: %d bytes, shape %s", id, w.Size(), w.Shape())
		}
		const step = 256 << 10
		zeroes := make([]byte, step)
		for off := 0; off < len(image); off += step {
			chunk := image[off:min(off+step, len(image))]
			if bytes.Equal(chunk, zeroes[:len(chunk)]) {
				continue
			}
			if _, err := w.WriteAt(chunk, int64(off)); err != nil {
				t.Fatal(err)
			}
		}
		if err := errors.Join(w.Flush(), w.Close()); err != nil {
			t.Fatal(err)
		}
	}
}

func TestRestore(t *testing.T) {
	s := testSite(t)
	p := testPlatform(t, local(s))
	ctx := t.Context()
	spec := site.Spec{Name: "origin"}
	if s.System {
		spec.Network = site.Production
	}
	g := testGuest(t, s, spec)
	mustStart(t, g)
	m := find(t, p, "origin")
	console(t, g, "note the state to keep")
	kept := takePoint(t, p, m.ID)
	console(t, g, "note something newer")

	t.Run("as a new machine", func(t *testing.T) {
		before := leftovers(t, g)
		request := sdk.DraftSpec{Machine: kept.machine, Pool: site.SecondPool}
		if s.System {
			request.Networks = map[string]string{site.Production: site.Recovery}
		}
		op := newOp()
		d, err := p.CreateDraft(ctx, op, request)
		if err != nil {
			t.Fatal(err)
		}
		fresh := testPlatform(t, local(s))
		if again, err := fresh.CreateDraft(ctx, op, request); err != nil || again.ID != d.ID || !slices.Equal(again.Disks, d.Disks) {
			t.Errorf("a repeat by a fresh process: %+v, %v", again, err)
		}
		writeDraft(t, fresh, op, d, kept)
		id, err := p.CommitDraft(ctx, op, d)
		if err != nil {
			t.Fatal(err)
		}
		if again, err := fresh.CommitDraft(ctx, op, d); err != nil || again != id {
			t.Errorf("a repeated commit: %s, %v", again, err)
		}
		if err := p.AbortDraft(ctx, op, d); !errors.Is(err, sdk.ErrInvalid) {
			t.Errorf("abort of a committed draft: %v", err)
		}
		if _, err := p.OpenDraftDisk(ctx, op, d, "vda"); !errors.Is(err, sdk.ErrInvalid) {
			t.Errorf("open a disk of a committed draft: %v", err)
		}
		made := find(t, p, "origin-restored")
		if made.ID != id || made.ID == m.ID || made.UUID == m.UUID || made.State != sdk.StateOff || len(made.Disks) != 2 ||
			made.Disks[0].Pool != site.SecondPool || made.CPUs != m.CPUs || made.MemoryBytes != m.MemoryBytes {
			t.Errorf("the restored machine: %+v", made)
		}
		if s.System && (len(made.NICs) != 1 || made.NICs[0].MAC == m.NICs[0].MAC || made.NICs[0].Network != site.Recovery) {
			t.Errorf("its interfaces: %+v", made.NICs)
		}
		thin(t, s.PoolDir(site.SecondPool))
		if err := p.Start(ctx, newOp(), id); err != nil {
			t.Fatal(err)
		}
		twin := s.Guest("origin-restored")
		if err := twin.WaitReady(ctx); err != nil {
			t.Fatal(err)
		}
		if got := console(t, twin, "notes"); got != "vda: the state to keep\nvdb: the state to keep" {
			t.Errorf("the restored machine says %q", got)
		}
		began := time.Now()
		if err := p.Stop(ctx, newOp(), id, time.Minute); err != nil {
			t.Error(err)
		}
		t.Logf("graceful stop took %v", time.Since(began))
		if err := p.Stop(ctx, newOp(), id, 0); err != nil {
			t.Errorf("stop of a machine that is off: %v", err)
		}
		if err := twin.Remove(ctx); err != nil {
			t.Fatal(err)
		}
		nothingLeft(t, g, before)
	})

	t.Run("over the original", func(t *testing.T) {
		tracked := snapshot(t, p, newOp(), sdk.SnapshotRequest{Machine: m.ID})
		end(t, p, newOp(), tracked, true) // its mark has to be dealt with
		op := newOp()
		request := sdk.DraftSpec{Machine: kept.machine, Replace: m.ID}
		if _, err := p.CreateDraft(ctx, op, request); !errors.Is(err, sdk.ErrBusy) {
			t.Fatalf("over a running machine: %v", err)
		}
		if err := p.Stop(ctx, newOp(), m.ID, 0); err != nil {
			t.Fatal(err)
		}
		d, err := p.CreateDraft(ctx, op, request)
		if err != nil {
			t.Fatal(err)
		}
		writeDraft(t, p, op, d, kept)
		id, err := p.CommitDraft(ctx, op, d)
		if err != nil || id != m.ID {
			t.Fatalf("committed as %s, %v", id, err)
		}
		now := find(t, p, "origin")
		if now.UUID != m.UUID || !slices.Equal(now.NICs, m.NICs) {
			t.Errorf("identity: %+v", now)
		}
		left := leftovers(t, g)
		for _, entry := range left {
			if strings.HasPrefix(entry, "checkpoint") || strings.HasPrefix(entry, "bitmap") || strings.Contains(entry, "origin-vd") ||
				strings.Contains(entry, "draft") || strings.Contains(entry, "scratch") {
				t.Errorf("left behind: %s", entry)
			}
		}
		if err := p.Start(ctx, newOp(), id); err != nil {
			t.Fatal(err)
		}
		if err := g.WaitReady(ctx); err != nil {
			t.Fatal(err)
		}
		if got := console(t, g, "notes"); got != "vda: the state to keep\nvdb: the state to keep" {
			t.Errorf("the machine says %q", got)
		}
		// Marks of the disks that were replaced are lost, and say so.
		snap := snapshot(t, p, newOp(), sdk.SnapshotRequest{Machine: m.ID, Since: tracked.Marks})
		for _, err := range p.Changed(ctx, snap, "vda") {
			if !errors.Is(err, sdk.ErrMarkLost) {
				t.Errorf("changes since a replaced disk: %v", err)
			}
		}
		end(t, p, newOp(), snap, false)
	})
}

// thin checks that the images in a directory take little more than what was written.
func thin(t *testing.T, dir string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		info, err := e.Info()
		if err != nil {
			t.Fatal(err)
		}
		if info.Size() > 64<<20 {
			t.Errorf("%s takes %d bytes", e.Name(), info.Size())
		}
	}
}
