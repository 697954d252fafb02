package repository_test

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/google/uuid"
	"pgregory.net/rapid"

	"github.com/holdfast-dr/holdfast/core/blob/blobtest"
	"github.com/holdfast-dr/holdfast/core/blob/mem"
	"github.com/holdfast-dr/holdfast/core/chunk"
	"github.com/holdfast-dr/holdfast/core/point"
	"github.com/holdfast-dr/holdfast/core/repository"
	"github.com/holdfast-dr/holdfast/core/repository/repositorytest"
)

// Histories and steps of one run of the model, some 8,000 in all. The seed is
// fixed and the same one gives the same steps each time, so that what a change
// breaks is not confused with what a new history finds. Keys, nonces and ids are
// new in each run; nothing depends on them but the order of ids, which is that in
// which they were made. FAULTS=N asks for N new histories, and -rapid.checks,
// -rapid.steps and -rapid.seed do what rapid says: its log names the seed of a
// history that failed.
const (
	modelHistories = 130
	modelSteps     = 60
	modelSeed      = 1
)

// TestAnyHistoryKeepsEveryLivePoint is a model: whatever happens in whatever
// order, with the server dying between any two calls of its store or database,
// with its index lost, stale, and its database put back to an older state, each
// live point restores to what was backed up, no other point is visible, and
// after every step every byte is accounted for and charged right.
//
// A history that fails is made as short as possible and is written to
// testdata/rapid, from where -rapid.failfile repeats it.
func TestAnyHistoryKeepsEveryLivePoint(t *testing.T) {
	set := map[string]bool{}
	flag.Visit(func(f *flag.Flag) { set[f.Name] = true })
	histories, seed := modelHistories, uint64(modelSeed)
	if testing.Short() {
		histories /= 4
	}
	if text := os.Getenv("FAULTS"); text != "" {
		if _, err := fmt.Sscan(text, &histories); err != nil {
			t.Fatalf("read FAULTS %q: %v", text, err)
		}
		seed = 0 // a new one
	}
	for name, value := range map[string]any{"rapid.checks": histories, "rapid.steps": modelSteps, "rapid.seed": seed} {
		if !set[name] {
			if err := flag.Set(name, fmt.Sprint(value)); err != nil {
				t.Fatal(err)
			}
		}
	}
	root, steps := t.TempDir(), 0
	// Ids decide in which order packs are listed; no other test runs meanwhile.
	defer uuid.SetRand(nil)
	rapid.Check(t, func(rt *rapid.T) {
		w := newWorld(rt, root)
		defer w.end()
		actions := w.actions()
		for name, act := range actions {
			if name != "" {
				actions[name] = func(rt *rapid.T) { w.site.t = rt; steps++; act(rt) }
			}
		}
		rt.Repeat(actions)
		w.atLast(rt)
	})
	t.Logf("%d steps", steps)
}

// world is a repository and what the model knows of it.
type world struct {
	*site
	random   *rand.Rand // of contents; drawn values decide what happens
	machines []modelMachine
	live     map[point.ID]disk
	maybe    map[point.ID]disk      // commits and forgets whose answer was lost
	half     map[point.ID]uint64    // live, and a forget was cut in this epoch
	binned   map[point.ID]time.Time // at the latest since
	open     []*openBackup
	saved    *repositorytest.Catalogue
	stale    *repository.Index
	touched  bool // something happened since the last look that may take data away
}

type modelMachine struct {
	id   point.MachineID
	disk disk
}

// openBackup is a run that has sent everything, and has not committed.
type openBackup struct {
	*backup
	disk     disk
	manifest []byte
}

func newWorld(rt *rapid.T, under string) *world {
	root, err := os.MkdirTemp(under, "world")
	if err != nil {
		rt.Fatal(err)
	}
	seed := rapid.Uint64().Draw(rt, "seed")
	uuid.SetRand(rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8), byte(seed >> 16)}))
	s := &site{
		t: rt, id: uuid.Must(uuid.NewV7()).String(), root: root, blobs: blobtest.NewFaulty(&mem.Store{}),
		catalogue: &repositorytest.Catalogue{}, spool: filepath.Join(root, "spool"),
		clock: blobtest.NewClock(time.Now()), keys: modelKeyring, pack: 24 << 10, log: slog.New(slog.DiscardHandler),
		bin:  rapid.SampledFrom([]time.Duration{0, 30 * time.Hour}).Draw(rt, "bin"),
		sync: func(*os.File) error { return nil }, // a crash of the process keeps what the system has
	}
	s.catalogue.Add(s.id, 1<<40, 0)
	w := &world{site: s, random: rand.New(rand.NewPCG(seed, 1)), live: map[point.ID]disk{}, maybe: map[point.ID]disk{}, binned: map[point.ID]time.Time{}, half: map[point.ID]uint64{}}
	for range 2 {
		size := (3 + w.random.IntN(22)) * testChunk
		w.machines = append(w.machines, modelMachine{id: newMachine(), disk: w.content(make(disk, size-w.random.IntN(testChunk)), size/testChunk)})
	}
	w.newIndex()
	s.open()
	return w
}

var modelKeyring = chunk.NewKeyring()

func (w *world) newIndex() {
	index, err := repository.OpenIndex("index", repository.IndexOptions{CacheBytes: 1 << 20, InMemory: true})
	if err != nil {
		w.t.Fatal(err)
	}
	w.index = index
}

func (w *world) end() {
	w.close()
	if w.stale != nil {
		_ = w.stale.Close()
	}
	_ = os.RemoveAll(w.root)
}

// content changes some chunks to one of few contents, so that machines, points
// and times share much.
func (w *world) content(d disk, chunks int) disk {
	d = bytes.Clone(d)
	for range chunks {
		off := w.random.IntN((len(d)+testChunk-1)/testChunk) * testChunk
		part := d[off:min(off+testChunk, len(d))]
		kind := w.random.IntN(40)
		r := rand.New(rand.NewPCG(uint64(kind), 9))
		clear(part)
		for i := range part {
			if kind >= 8 || i%(kind+1) == kind { // below 8 it compresses; 0 has no byte
				part[i] = byte(r.Uint32()) * byte(min(kind, 1))
			}
		}
	}
	return d
}

func (w *world) actions() map[string]func(*rapid.T) {
	return map[string]func(*rapid.T){
		"backup":      w.backupOnce,
		"backup more": w.backupOnce, // twice as often
		"begin":       w.beginBackup,
		"commit":      w.commitBackup,
		"abort":       w.abortBackup,
		"forget":      w.forgetPoint,
		"collect":     w.touching(w.collectNow),
		"wait":        w.touching(w.wait),
		"verify":      w.touching(w.verifyNow),
		"reopen":      w.touching(w.reopen),
		"save":        w.save,
		"old index":   w.touching(w.oldIndex),
		"old data":    w.touching(w.oldDatabase),
		"damage":      w.touching(w.damage),
		"":            w.check,
	}
}

// touching is an action after which every live point is restored.
func (w *world) touching(act func(*rapid.T)) func(*rapid.T) {
	return func(rt *rapid.T) { w.touched = true; act(rt) }
}

// check is asked after every step.
func (w *world) check(rt *rapid.T) {
	w.t = rt
	w.wantPoints()
	live := slices.Sorted(maps.Keys(w.live))
	if !w.touched && len(live) > 1 { // what only adds is looked at by one of them
		live = live[w.random.IntN(len(live)):][:1]
	}
	for _, id := range live {
		w.wantRestore(id, w.live[id])
	}
	w.touched = false
	w.wantBooks()
}

// wantPoints compares the points that are visible with the model's, and learns
// what became of those whose answer was lost.
func (w *world) wantPoints() {
	w.t.Helper()
	ctx := testContext(w.t)
	live, err := w.repo.Points(ctx, "", "", 0)
	if err != nil {
		w.t.Fatal(err)
	}
	binned, err := w.repo.Binned(ctx, "", "", 0)
	if err != nil {
		w.t.Fatal(err)
	}
	isLive, isBinned := map[point.ID]bool{}, map[point.ID]bool{}
	for _, p := range live {
		isLive[p.ID] = true
		if d, maybe := w.maybe[p.ID]; maybe {
			w.live[p.ID] = d
		} else if _, known := w.live[p.ID]; !known {
			w.t.Errorf("point %s should not be there", p.ID)
		}
	}
	for _, p := range binned {
		isBinned[p.ID] = true
		_, maybe := w.maybe[p.ID]
		if _, known := w.binned[p.ID]; !known && !maybe {
			w.t.Errorf("point %s should not be in the bin", p.ID)
		}
		if maybe {
			delete(w.live, p.ID)
			w.binned[p.ID] = w.clock.Now()
		}
	}
	for id := range w.live {
		if _, maybe := w.maybe[id]; !isLive[id] && !maybe {
			w.t.Errorf("point %s is lost", id)
		}
	}
	for id, since := range w.binned {
		if !isBinned[id] {
			if age := w.clock.Now().Sub(since); age < w.bin {
				w.t.Errorf("point %s left the bin after %s", id, age)
			}
			delete(w.binned, id)
		}
	}
	clear(w.maybe)
}

// atLast collects everything, and makes a new database of what is there.
func (w *world) atLast(rt *rapid.T) {
	w.t, w.touched = rt, true
	w.check(rt)
	ctx := testContext(rt)
	for _, o := range w.open {
		if err := o.session.Abort(ctx); err != nil {
			rt.Fatal(err)
		}
	}
	w.open = nil
	for range 3 {
		w.clock.Advance(8 * 24 * time.Hour)
		if _, err := w.repo.Collect(ctx, repository.CollectOptions{Threshold: 0.001}); err != nil {
			var incomplete *repository.IncompleteError
			if !w.damaged || !errors.As(err, &incomplete) {
				rt.Fatalf("the last collection: %v", err)
			}
		}
	}
	w.forgetPurged(rt)
	w.touched = true
	if u := w.wantBooks(); !w.damaged && (u.WasteBytes != 0 || u.PendingBytes != 0 || u.BinBytes != 0) {
		rt.Errorf("after everything was collected: %+v", u)
	}
	w.check(rt)
	w.verifyNow(rt)
	last := w.epoch
	w.catalogue.Add(w.id, 100, 1)
	w.close()
	w.newIndex()
	w.epoch = 0
	w.site.open()
	if _, err := w.repo.Import(ctx, repository.ImportOptions{}); err != nil {
		rt.Fatalf("import into an empty database: %v", err)
	}
	if err := w.repo.Close(); err != nil {
		rt.Fatal(err)
	}
	w.epoch = w.catalogue.Epoch(w.id)
	w.site.open()
	w.rebin(rt, last)
	w.touched = true
	w.check(rt)
}
