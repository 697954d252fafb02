package repository_test

import (
	"errors"
	"maps"
	"slices"
	"time"

	"pgregory.net/rapid"

	"github.com/holdfast-dr/holdfast/core/point"
	"github.com/holdfast-dr/holdfast/core/quota"
	"github.com/holdfast-dr/holdfast/core/repository"
)

// start begins a run of one of the machines on one of its points, or on none.
func (w *world) start(rt *rapid.T) (*openBackup, error) {
	m := &w.machines[rapid.IntRange(0, len(w.machines)-1).Draw(rt, "machine")]
	m.disk = w.content(m.disk, w.random.IntN(6))
	base := point.ID("")
	if live, err := w.repo.Points(testContext(rt), m.id, "", 0); err != nil {
		rt.Fatal(err)
	} else if n := rapid.IntRange(0, 8).Draw(rt, "base"); n < len(live) {
		base = live[len(live)-1-n].ID
	}
	ctx := testContext(rt)
	b, err := w.begin(ctx, m.id, base)
	if err != nil {
		return nil, err
	}
	o := &openBackup{backup: b, disk: m.disk}
	o.manifest, err = o.send(ctx, o.disk)
	return o, err
}

// finish commits, and sends again what is missing.
func (w *world) finish(rt *rapid.T, o *openBackup) error {
	ctx := testContext(rt)
	for range 4 {
		if o.manifest == nil {
			var err error
			if o.manifest, err = o.send(ctx, o.disk); err != nil {
				return err
			}
		}
		w.maybe[o.point] = o.disk
		err := o.session.Commit(ctx, o.manifest)
		var missing *point.MissingError
		var full *quota.FullError
		switch {
		case errors.As(err, &missing):
			delete(w.maybe, o.point)
			o.manifest = nil
			continue
		case errors.As(err, &full):
			delete(w.maybe, o.point)
			w.catalogue.SetLimit(w.id, 1<<40)
			o.point, o.manifest = point.NewID(), nil // its id is used up
			continue
		case err == nil:
			delete(w.maybe, o.point)
			w.live[o.point] = o.disk
		}
		return err
	}
	return errors.New("again and again something is missing")
}

func (w *world) backupOnce(rt *rapid.T) {
	if rapid.IntRange(0, 7).Draw(rt, "full") == 0 { // a quota that does not hold it
		used, pending := w.catalogue.Used(w.id)
		w.catalogue.SetLimit(w.id, used+pending+w.random.Int64N(3*testChunk))
		defer func() { w.catalogue.SetLimit(w.id, 1<<40) }()
	}
	struck := w.mishap(rt)
	o, err := w.start(rt)
	if err == nil {
		err = w.finish(rt, o)
	}
	w.settled(rt, "backup", struck, err)
}

func (w *world) beginBackup(rt *rapid.T) {
	if len(w.open) >= 3 {
		rt.Skip("enough are open")
	}
	struck := w.mishap(rt)
	o, err := w.start(rt)
	if w.settled(rt, "begin", struck, err) {
		w.open = append(w.open, o)
	}
}

// take draws an open run and takes it out of the list.
func (w *world) take(rt *rapid.T) *openBackup {
	if len(w.open) == 0 {
		rt.Skip("none is open")
	}
	return w.open[rapid.IntRange(0, len(w.open)-1).Draw(rt, "run")]
}

func (w *world) commitBackup(rt *rapid.T) {
	o := w.take(rt)
	struck := w.mishap(rt)
	err := w.finish(rt, o)
	if w.settled(rt, "commit", struck, err) || err == nil { // only the note that the session is over was lost
		w.open = slices.DeleteFunc(w.open, func(x *openBackup) bool { return x == o })
	}
}

func (w *world) abortBackup(rt *rapid.T) {
	o := w.take(rt)
	w.open = slices.DeleteFunc(w.open, func(x *openBackup) bool { return x == o })
	struck := w.mishap(rt)
	w.settled(rt, "abort", struck, o.session.Abort(testContext(rt)))
}

func (w *world) forgetPoint(rt *rapid.T) {
	if len(w.live) == 0 {
		rt.Skip("no point")
	}
	id := rapid.SampledFrom(slices.Sorted(maps.Keys(w.live))).Draw(rt, "point")
	struck := w.mishap(rt)
	w.maybe[id], w.half[id] = w.live[id], w.epoch
	err := w.repo.Forget(testContext(rt), id)
	if w.settled(rt, "forget", struck, err) {
		delete(w.maybe, id)
		delete(w.half, id)
		delete(w.live, id)
		w.binned[id] = w.clock.Now()
	}
}

func (w *world) collectNow(rt *rapid.T) {
	threshold := rapid.SampledFrom([]float64{0.01, 0.3, 0.9}).Draw(rt, "threshold")
	struck := w.mishap(rt)
	_, err := w.repo.Collect(testContext(rt), repository.CollectOptions{Threshold: threshold})
	var incomplete *repository.IncompleteError
	if errors.As(err, &incomplete) && w.damaged {
		err = nil
	}
	w.settled(rt, "collect", struck, err)
}

func (w *world) wait(rt *rapid.T) {
	w.clock.Advance(rapid.SampledFrom([]time.Duration{time.Hour, 13 * time.Hour, 25 * time.Hour, 8 * 24 * time.Hour}).Draw(rt, "for"))
	if rapid.IntRange(0, 3).Draw(rt, "expire") > 0 {
		return
	}
	ids, err := w.repo.ExpireSessions(testContext(rt), 7*24*time.Hour)
	if err != nil {
		rt.Fatal(err)
	}
	w.open = slices.DeleteFunc(w.open, func(o *openBackup) bool { return slices.Contains(ids, o.session.ID()) })
}

func (w *world) verifyNow(rt *rapid.T) {
	report, err := w.repo.Verify(testContext(rt), repository.VerifyOptions{})
	if err != nil || !w.damaged && !report.Sound() {
		rt.Errorf("verify: %+v, %v", report, err)
	}
	for _, id := range report.Affected { // one in the bin may be kept by a run that builds on it
		if _, live := w.live[id]; live {
			rt.Errorf("verify calls live point %s affected, which restores: %+v", id, report)
		}
	}
}

// forgetPurged takes from the model what a collection took from the bin.
func (w *world) forgetPurged(rt *rapid.T) {
	binned, err := w.repo.Binned(testContext(rt), "", "", 0)
	if err != nil {
		rt.Fatal(err)
	}
	for id := range w.binned {
		if !slices.ContainsFunc(binned, func(p repository.PointRecord) bool { return p.ID == id }) {
			delete(w.binned, id)
		}
	}
}
