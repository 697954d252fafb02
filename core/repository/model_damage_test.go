package repository_test

import (
	"bytes"
	"errors"
	"maps"
	"slices"
	"strings"

	"pgregory.net/rapid"

	"github.com/holdfast-dr/holdfast/core/blob"
	"github.com/holdfast-dr/holdfast/core/point"
	"github.com/holdfast-dr/holdfast/core/repository"
)

// damage changes a byte of a pack. Verify names the points that need it, and no
// others; the model gives these up.
func (w *world) damage(rt *rapid.T) {
	packs := slices.Concat(w.objects("packs/"), w.objects("maps/"))
	if len(packs) == 0 || rapid.IntRange(0, 2).Draw(rt, "really") > 0 {
		rt.Skip("not now")
	}
	w.damaged = true
	object := packs[rapid.IntRange(0, len(packs)-1).Draw(rt, "pack")]
	w.rewrite(object, rapid.Int64Range(0, object.SizeBytes-1).Draw(rt, "byte"), 1<<rapid.IntRange(0, 7).Draw(rt, "bit"))
	ctx := testContext(rt)
	report, err := w.repo.Verify(ctx, repository.VerifyOptions{})
	if err != nil {
		rt.Fatal(err)
	}
	if report.Sound() && !w.condemned(object.Name) {
		rt.Errorf("a changed byte of %s was not found", object.Name)
	}
	w.giveUp(rt, report)
}

// giveUp forgets the points that a verification calls affected, and those alone
// do not restore.
func (w *world) giveUp(rt *rapid.T, report repository.VerifyReport) {
	ctx := testContext(rt)
	affected := map[point.ID]bool{}
	for _, id := range report.Affected {
		affected[id] = true
	}
	for _, id := range slices.Sorted(maps.Keys(w.live)) {
		got, err := w.restore(ctx, id, 0)
		if affected[id] != (err != nil) || err == nil && !bytes.Equal(got, w.live[id]) {
			rt.Errorf("point %s is affected: %v; its restore: %v", id, affected[id], err)
		}
	}
	for _, id := range slices.Sorted(maps.Keys(affected)) {
		if _, live := w.live[id]; live {
			if err := w.repo.Forget(ctx, id); err != nil {
				rt.Fatal(err)
			}
			delete(w.live, id)
			w.binned[id] = w.clock.Now()
		}
	}
	// Affected points leave the bin at once, or they hold up every collection.
	if len(affected) > 0 {
		w.clock.Advance(w.bin)
	}
	if _, err := w.repo.Collect(ctx, repository.CollectOptions{}); err != nil {
		var incomplete *repository.IncompleteError
		if !errors.As(err, &incomplete) {
			rt.Fatalf("collect after damage: %v", err)
		}
	}
	w.forgetPurged(rt)
}

func (w *world) condemned(name string) bool {
	packs, err := w.catalogue.Condemned(testContext(w.t), w.id, repository.PackID{}, 1<<20)
	if err != nil {
		w.t.Fatal(err)
	}
	return slices.ContainsFunc(packs, func(p repository.CondemnedPack) bool { return strings.HasSuffix(name, p.Pack.String()) })
}

// rewrite changes one byte of an object, which no store would do.
func (w *world) rewrite(object blob.Object, at int64, mask byte) {
	ctx := testContext(w.t)
	b, err := blob.Read(ctx, w.blobs.Store, object.Name, 1<<30)
	if err != nil {
		w.t.Fatal(err)
	}
	b[at] ^= mask
	if err := errors.Join(w.blobs.Store.Delete(ctx, object.Name), w.blobs.Store.Put(ctx, object.Name, bytes.NewReader(b), int64(len(b)))); err != nil {
		w.t.Fatal(err)
	}
}
