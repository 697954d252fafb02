package repository_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"pgregory.net/rapid"

	"github.com/holdfast-dr/holdfast/core/blob/blobtest"
	"github.com/holdfast-dr/holdfast/core/chunk"
	"github.com/holdfast-dr/holdfast/core/claim"
	"github.com/holdfast-dr/holdfast/core/point"
	"github.com/holdfast-dr/holdfast/core/repository"
)

// mishap arms at most one fault for what comes next. Where it strikes, the
// server dies: the action's error is expected, and the repository is opened
// again.
func (w *world) mishap(rt *rapid.T) (struck func() bool) {
	kind := rapid.SampledFrom([]string{"none", "none", "none", "put", "put late", "delete", "delete late", "database", "database late"}).Draw(rt, "mishap")
	hit := false
	if kind == "none" {
		return func() bool { return false }
	}
	after := rapid.IntRange(0, 14).Draw(rt, "after")
	fault := blobtest.Fault{After: after, Late: strings.HasSuffix(kind, "late"), Hook: func() { hit = true }}
	switch strings.Fields(kind)[0] {
	case "put":
		fault.Verb = blobtest.VerbPut
		w.blobs.Fail(fault)
	case "delete":
		fault.Verb = blobtest.VerbDelete
		w.blobs.Fail(fault)
	case "database":
		w.catalogue.Fault = func(_, when string) error {
			if (when == "after") != fault.Late {
				return nil
			}
			if after--; after >= 0 && !hit {
				return nil
			}
			hit = true // and whatever comes after it
			return blobtest.ErrInjected
		}
	}
	return func() bool {
		w.blobs.Heal()
		w.catalogue.Fault = nil
		return hit
	}
}

// settled ends an action: with the server's death if a mishap struck, and with
// what was expected if none did.
func (w *world) settled(rt *rapid.T, what string, struck func() bool, err error) (ok bool) {
	rt.Helper()
	switch hit := struck(); {
	case hit:
		w.crash(rt)
		return false
	case err != nil:
		rt.Fatalf("%s: %v", what, err)
	}
	return true
}

// crash ends this life of the server as a kill does, and begins another. What
// was being written to the spool may be cut.
func (w *world) crash(rt *rapid.T) {
	w.touched = true
	_ = w.repo.Close()
	w.repo = nil
	if rapid.Bool().Draw(rt, "cut") {
		files, _ := filepath.Glob(filepath.Join(w.spool, w.id, "*", "*"))
		for _, file := range files {
			info, err := os.Stat(file)
			if err != nil || info.Size() == 0 || strings.HasSuffix(file, ".json") {
				continue
			}
			if err := os.Truncate(file, rapid.Int64Range(0, info.Size()).Draw(rt, "size")); err != nil {
				rt.Fatal(err)
			}
		}
	}
	w.site.open()
	w.resume(rt)
}

// resume finds the open runs again, and gives up sessions whose begin was not
// answered.
func (w *world) resume(rt *rapid.T) {
	ctx := testContext(rt)
	kept, known := w.open[:0], map[chunk.SessionID]bool{}
	for _, b := range w.open {
		session, err := w.repo.Resume(ctx, b.session.ID())
		if err != nil {
			rt.Fatalf("resume: %v", err)
		}
		known[session.ID()] = true
		b.session = session
		if _, committed := w.maybe[b.point]; committed {
			if _, err := w.repo.Manifest(ctx, b.point); err == nil {
				continue // its commit came through
			}
			b.point = point.NewID() // the manifest of the old one may be void
			b.manifest = nil
		}
		kept = append(kept, b)
	}
	w.open = kept
	sessions := w.repo.Sessions()
	slices.SortFunc(sessions, func(a, b chunk.SessionID) int { return bytes.Compare(a[:], b[:]) })
	for _, id := range sessions {
		if known[id] {
			continue
		}
		session, err := w.repo.Resume(ctx, id)
		if err == nil {
			err = session.Abort(ctx)
		}
		if err != nil {
			rt.Fatalf("give up a session that nobody knows: %v", err)
		}
	}
}

func (w *world) reopen(rt *rapid.T) {
	if rapid.Bool().Draw(rt, "killed") {
		w.crash(rt)
		return
	}
	if err := w.repo.Close(); err != nil {
		rt.Fatal(err)
	}
	w.repo = nil
	w.site.open()
	w.resume(rt)
}

// save keeps the index, or the database, as it is now.
func (w *world) save(rt *rapid.T) {
	if rapid.Bool().Draw(rt, "index") {
		if w.stale != nil {
			_ = w.stale.Close()
		}
		var err error
		if w.stale, err = repository.CopyIndex(w.index); err != nil {
			rt.Fatal(err)
		}
		return
	}
	w.saved = w.catalogue.Copy()
}

// oldIndex starts the server with an index that is lost, or an old one.
func (w *world) oldIndex(rt *rapid.T) {
	w.close()
	if w.stale != nil && rapid.Bool().Draw(rt, "stale") {
		w.index, w.stale = w.stale, nil
	} else {
		w.newIndex()
	}
	w.site.open()
	w.resume(rt)
}

// oldDatabase puts the database back to an older state. Nothing is written
// before an import, which finds every live point again.
func (w *world) oldDatabase(rt *rapid.T) {
	if w.saved == nil {
		rt.Skip("none was saved")
	}
	ctx := testContext(rt)
	if err := w.repo.Close(); err != nil {
		rt.Fatal(err)
	}
	w.catalogue, w.saved = w.saved, nil
	last := w.epoch
	unknown := false
	for id := range w.live {
		_, err := w.catalogue.Point(ctx, w.id, id)
		unknown = unknown || err != nil
	}
	w.epoch = w.catalogue.Epoch(w.id)
	w.site.open()
	if err := w.repo.Writable(); unknown && !errors.Is(err, claim.ErrFenced) {
		rt.Fatalf("a database that lacks points may write: %v", err)
	}
	if _, err := w.repo.Import(ctx, repository.ImportOptions{AcceptLoss: true}); err != nil {
		rt.Fatalf("import: %v", err)
	}
	if err := w.repo.Close(); err != nil {
		rt.Fatal(err)
	}
	w.epoch = w.catalogue.Epoch(w.id)
	w.site.open()
	if err := w.repo.Writable(); err != nil {
		rt.Fatalf("after the import: %v", err)
	}
	w.resume(rt)
	w.rebin(rt, last)
	if w.damaged { // of which an older database knows nothing, so runs would rely on what is damaged
		report, err := w.repo.Verify(ctx, repository.VerifyOptions{})
		if err != nil {
			rt.Fatal(err)
		}
		w.giveUp(rt, report)
	}
}

// rebin takes the bin as the import found it: what the lost database had purged
// may be there again until the next collection, and the other way round. So may
// be what a forget that was cut in the last life, or the one before it, was about.
func (w *world) rebin(rt *rapid.T, last uint64) {
	binned, err := w.repo.Binned(testContext(rt), "", "", 0)
	if err != nil {
		rt.Fatal(err)
	}
	clear(w.binned)
	for _, p := range binned {
		if _, live := w.live[p.ID]; live {
			if cut, half := w.half[p.ID]; !half || cut+1 < last {
				rt.Errorf("the import put live point %s into the bin", p.ID)
			}
			delete(w.live, p.ID)
		}
		w.binned[p.ID] = p.Forgotten
	}
}
