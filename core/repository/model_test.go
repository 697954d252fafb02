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
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"pgregory.net/rapid"

	"github.com/holdfast-dr/holdfast/core/blob"
	"github.com/holdfast-dr/holdfast/core/blob/blobtest"
	"github.com/holdfast-dr/holdfast/core/blob/mem"
	"github.com/holdfast-dr/holdfast/core/chunk"
	"github.com/holdfast-dr/holdfast/core/claim"
	"github.com/holdfast-dr/holdfast/core/point"
	"github.com/holdfast-dr/holdfast/core/quota"
	"github.com/holdfast-dr/holdfast/core/repository"
	"github.com/holdfast-dr/holdfast/core/repository/repositorytest"
)

// Histories and steps of one run of the model. The seed is fixed, so that what a
// change breaks is seldom confused with what a new history finds; ids and times
// still differ, and histories with them. FAULTS=N asks for N new ones, and -rapid.checks, -rapid.steps and -rapid.seed do what rapid says.
const (
	modelHistories = 60
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
		"collect":     w.collectNow,
		"wait":        w.wait,
		"verify":      w.verifyNow,
		"reopen":      w.reopen,
		"save":        w.save,
		"old index":   w.oldIndex,
		"old data":    w.oldDatabase,
		"damage":      w.damage,
		"":            w.check,
	}
}

// check is asked after every step.
func (w *world) check(rt *rapid.T) {
	w.t = rt
	w.wantPoints()
	for _, id := range slices.Sorted(maps.Keys(w.live)) {
		w.wantRestore(id, w.live[id])
	}
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

// atLast collects everything, and makes a new database of what is there.
func (w *world) atLast(rt *rapid.T) {
	w.t = rt
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
	w.check(rt)
}
