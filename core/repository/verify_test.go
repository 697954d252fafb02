package repository_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"filippo.io/age"

	"github.com/holdfast-dr/holdfast/core/blob"
	"github.com/holdfast-dr/holdfast/core/chunk"
	"github.com/holdfast-dr/holdfast/core/point"
	"github.com/holdfast-dr/holdfast/core/repository"
)

// flip changes one byte of an object behind everybody's back.
func (s *site) flip(name string, offset int64, mask byte) {
	s.t.Helper()
	f, err := os.OpenFile(filepath.Join(s.root, "store", name), os.O_RDWR, 0)
	if err != nil {
		s.t.Fatal(err)
	}
	defer f.Close()
	b := make([]byte, 1)
	if _, err := f.ReadAt(b, offset); err != nil {
		s.t.Fatal(err)
	}
	b[0] ^= mask
	if _, err := f.WriteAt(b, offset); err != nil {
		s.t.Fatal(err)
	}
}

func (s *site) verify() repository.VerifyReport {
	s.t.Helper()
	report, err := s.repo.Verify(testContext(s.t), repository.VerifyOptions{})
	if err != nil {
		s.t.Fatalf("verify: %v", err)
	}
	return report
}

func (s *site) putWrap(name string) {
	s.t.Helper()
	identity, err := age.GenerateX25519Identity()
	if err != nil {
		s.t.Fatal(err)
	}
	wrap, err := s.keys.Wrap(identity.Recipient())
	if err != nil {
		s.t.Fatal(err)
	}
	if err := s.repo.PutWrap(testContext(s.t), name, wrap); err != nil {
		s.t.Fatal(err)
	}
	if err := s.repo.PutWrap(testContext(s.t), name, wrap); err != nil {
		s.t.Errorf("the same wrap again: %v", err)
	}
}

// Every byte of every object of a small repository is changed, one at a time.
// Verify, without keys, finds it and names the object or the pack; it lists the
// points that cannot be restored, and the others can.
func TestOneFlippedByteAnywhereIsFoundWithoutKeys(t *testing.T) {
	s, r := newSite(t), seeded(t)
	s.putWrap("kit")
	label := repository.Label{Tenant: "t", TenantName: "Acme", Name: "backups", LimitBytes: 1}
	if err := s.repo.SetLabel(testContext(t), label); err != nil {
		t.Fatal(err)
	}
	disks := map[point.ID]disk{}
	small := func(first byte) disk { // compresses well, so that there are few bytes to change
		d := make(disk, 5*testChunk+5)
		for i := range d {
			d[i] = byte(i/testChunk) + 1 + first*byte(i/testChunk%2)
		}
		return d
	}
	for first := range byte(2) { // they share a part
		d := small(first)
		disks[s.backup(newMachine(), "", d)] = d
	}
	gone := s.backup(newMachine(), "", small(7))
	s.forget(gone)
	s.wantSound()
	flips, step := 0, int64(1)
	if testing.Short() {
		step = 11
	}
	index := memoryIndex(t)
	defer func() { _ = index.Close() }()
	for _, object := range s.objects("") {
		for offset := r.Int64N(step); offset < object.SizeBytes; offset += step {
			flips++
			mask := byte(1 << r.IntN(8))
			s.flip(object.Name, offset, mask)
			if flips%100 == 0 { // what was erased from it makes it slow
				if err := index.Close(); err != nil {
					t.Fatal(err)
				}
				index = memoryIndex(t)
			}
			s.fresh(index, func(repo *repository.Repository) {
				s.wantFound(repo, object.Name, offset, disks)
			})
			s.flip(object.Name, offset, mask)
			if t.Failed() {
				return
			}
		}
	}
	t.Logf("%d flips in %d objects", flips, len(s.objects("")))
	s.fresh(index, func(repo *repository.Repository) {
		report, err := repo.Verify(testContext(t), repository.VerifyOptions{})
		if err != nil || !report.Sound() {
			t.Errorf("after all was put right: %+v, %v", report, err)
		}
	})
}

// wantFound checks what a verification says of one changed byte.
func (s *site) wantFound(repo *repository.Repository, object string, offset int64, disks map[point.ID]disk) {
	s.t.Helper()
	ctx := testContext(s.t)
	report, err := repo.Verify(ctx, repository.VerifyOptions{})
	if err != nil {
		s.t.Errorf("byte %d of %s was changed: verify: %v", offset, object, err)
		return
	}
	named := false
	for _, f := range report.Faults {
		if named = named || f.Object == object; f.Object != object {
			s.t.Errorf("byte %d of %s was changed, and %s is called faulty: %s", offset, object, f.Object, f.Problem)
		}
	}
	for _, d := range report.Damage {
		if named = named || strings.HasSuffix(object, d.Pack.String()); !strings.HasSuffix(object, d.Pack.String()) {
			s.t.Errorf("byte %d of %s was changed, and a record of pack %s is called damaged", offset, object, d.Pack)
		}
	}
	if !named {
		s.t.Errorf("byte %d of %s was changed, and nobody names it: %+v", offset, object, report)
	}
	reader := *s
	reader.repo = repo
	for id, d := range disks {
		got, err := reader.restore(ctx, id, 0)
		if affected := slices.Contains(report.Affected, id); affected != (err != nil) || err == nil && !bytes.Equal(got, d) {
			s.t.Errorf("byte %d of %s was changed; point %s is affected: %v, its restore: %v", offset, object, id, affected, err)
		}
	}
}

// fresh opens the repository for reading through an index and a catalogue that
// know of no damage: it is never taken back.
func (s *site) fresh(index *repository.Index, look func(*repository.Repository)) {
	s.t.Helper()
	c := s.config()
	c.Index, c.Catalogue, c.Epoch = index, s.catalogue.Copy(), 0
	repo, err := repository.Open(testContext(s.t), c)
	if err != nil {
		s.t.Fatal(err)
	}
	look(repo)
	if err := errors.Join(repo.Close(), repository.EraseIndex(index, s.id)); err != nil {
		s.t.Fatal(err)
	}
}

func memoryIndex(t *testing.T) *repository.Index {
	t.Helper()
	index, err := repository.OpenIndex("index", repository.IndexOptions{CacheBytes: 1 << 20, InMemory: true})
	if err != nil {
		t.Fatal(err)
	}
	return index
}

func TestDamageIsNamedAndComesBackWithTheNextBackup(t *testing.T) {
	s, r := newSite(t), seeded(t)
	ctx := testContext(t)
	machine, other := newMachine(), newMachine()
	d := randomDisk(r, 60*testChunk)
	for i := range testChunk {
		d[i] = byte(r.Uint32()) // the first chunk is neither zero nor elsewhere
	}
	lost := s.keys.ID(d[:testChunk])
	one := s.backup(machine, "", d)
	sound := randomDisk(r, 10*testChunk)
	two := s.backup(other, "", sound)
	s.flip(s.find(lost))

	if _, err := s.restore(ctx, one, 0); !errors.Is(err, chunk.ErrDamaged) || !strings.Contains(err.Error(), lost.String()) {
		t.Errorf("restore of a damaged point: %v", err)
	}
	report := s.verify()
	if report.DamagedRecords != 1 || report.Damage[0].ID != lost || !slices.Equal(report.Affected, []point.ID{one}) || report.FaultyObjects != 0 {
		t.Errorf("verify: %+v", report)
	}
	s.wantRestore(two, sound)
	for _, restart := range []bool{false, true} {
		if restart { // the database remembers, also without the index
			s.close()
			if err := os.RemoveAll(filepath.Join(s.root, "index")); err != nil {
				t.Fatal(err)
			}
			s.openIndex()
			s.open()
		}
		b, err := s.begin(ctx, machine, one)
		if err != nil {
			t.Fatal(err)
		}
		have, err := b.session.Have(ctx, chunk.KindData, []chunk.ID{lost})
		if err != nil || have[0] {
			t.Errorf("have of a damaged chunk: %v, %v", have, err)
		}
		if again, err := b.session.Damaged(ctx); err != nil || !slices.Equal(again, []chunk.ID{lost}) {
			t.Errorf("damaged chunks of the base: %v, %v", again, err)
		}
		if err := b.session.Abort(ctx); err != nil {
			t.Fatal(err)
		}
	}
	three := s.backup(machine, one, d)
	s.wantRestore(one, d)
	s.wantRestore(three, d)
	if report := s.verify(); len(report.Affected) != 0 || report.DamagedRecords != 1 {
		t.Errorf("verify after the damage was repaired: %+v", report)
	}
	// The damaged copy is waste now, and goes.
	for range 2 {
		s.collect(repository.CollectOptions{Threshold: 0.001})
		s.clock.Advance(25 * time.Hour)
	}
	s.collect(repository.CollectOptions{})
	s.wantSound()
	s.wantRestore(one, d)
	s.wantBooks()
}

// find is a byte in the body of a record.
func (s *site) find(id chunk.ID) (name string, offset int64, mask byte) {
	s.t.Helper()
	for _, object := range s.objects("packs/") {
		b, err := blob.Read(testContext(s.t), s.blobs, object.Name, 1<<30)
		if err != nil {
			s.t.Fatal(err)
		}
		if at := bytes.Index(b, id[:]); at >= 0 {
			return object.Name, int64(at + 100), 0x10
		}
	}
	s.t.Fatalf("no pack has %s", id)
	return "", 0, 0
}

func TestSecondCopyIsReadWhenTheFirstIsDamaged(t *testing.T) {
	s, r := newSite(t), seeded(t)
	ctx := testContext(t)
	d := randomDisk(r, 20*testChunk)
	// Two sessions bring the same chunks, neither knowing of the other.
	var backups []*backup
	var manifests [][]byte
	for range 2 {
		b, err := s.begin(ctx, newMachine(), "")
		if err != nil {
			t.Fatal(err)
		}
		manifest, err := b.send(ctx, d)
		if err != nil {
			t.Fatal(err)
		}
		backups, manifests = append(backups, b), append(manifests, manifest)
	}
	for i, b := range backups {
		if err := b.session.Commit(ctx, manifests[i]); err != nil {
			t.Fatal(err)
		}
	}
	s.wantBooks()
	packs := s.objects("packs/")
	if len(packs) != 2 {
		t.Fatalf("%d packs", len(packs))
	}
	for offset := int64(40); offset < packs[0].SizeBytes-100; offset += 1000 {
		s.flip(packs[0].Name, offset, 1)
	}
	s.wantRestore(backups[0].point, d)
	s.wantRestore(backups[1].point, d)
	if report := s.verify(); report.DamagedRecords == 0 || len(report.Affected) != 0 {
		t.Errorf("verify: %+v", report)
	}
}

func TestLostFooterCostsNothing(t *testing.T) {
	s, r := newSite(t), seeded(t)
	d := randomDisk(r, 100*testChunk)
	one := s.backup(newMachine(), "", d)
	for _, folder := range []string{"packs/", "maps/"} {
		for _, object := range s.objects(folder) {
			s.flip(object.Name, object.SizeBytes-1, 0xff)
		}
	}
	s.close()
	if err := os.RemoveAll(filepath.Join(s.root, "index")); err != nil {
		t.Fatal(err)
	}
	s.openIndex()
	s.open()
	s.wantRestore(one, d)
	if report := s.verify(); report.FaultyObjects == 0 || report.DamagedRecords != 0 || len(report.Affected) != 0 {
		t.Errorf("verify: %+v", report)
	}
}

func TestLostAndCutPacksAreNamed(t *testing.T) {
	s, r := newSite(t), seeded(t)
	one := s.backup(newMachine(), "", randomDisk(r, 12*testChunk)) // one pack each
	two := s.backup(newMachine(), "", randomDisk(r, 12*testChunk))
	packs := s.objects("packs/")
	if err := os.Remove(filepath.Join(s.root, "store", packs[0].Name)); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(filepath.Join(s.root, "store", packs[1].Name), packs[1].SizeBytes/2); err != nil {
		t.Fatal(err)
	}
	for _, id := range []point.ID{one, two} {
		if _, err := s.restore(testContext(t), id, 0); !errors.Is(err, chunk.ErrDamaged) && !errors.Is(err, repository.ErrNotFound) {
			t.Errorf("restore without packs: %v", err)
		}
	}
	s.restart()
	report := s.verify()
	slices.Sort(report.Affected)
	if !slices.Equal(report.Affected, []point.ID{one, two}) {
		t.Errorf("verify: %+v", report)
	}
}

func TestIndexIsOnlyACache(t *testing.T) {
	s, r := newSite(t), seeded(t)
	machine := newMachine()
	d := randomDisk(r, 100*testChunk)
	one := s.backup(machine, "", d)
	s.close()
	stale := filepath.Join(s.root, "stale")
	if err := os.CopyFS(stale, os.DirFS(filepath.Join(s.root, "index"))); err != nil {
		t.Fatal(err)
	}
	s.openIndex()
	s.open()
	next := d.changed(r, 50)
	two := s.backup(machine, one, next)
	s.forget(one)
	for range 2 {
		s.collect(repository.CollectOptions{Threshold: 0.01})
		s.clock.Advance(25 * time.Hour)
	}
	want := s.wantBooks()
	for name, index := range map[string]string{"stale": stale, "none": "", "garbage": "garbage"} {
		t.Run(name, func(t *testing.T) {
			s.close()
			path := filepath.Join(s.root, "index")
			if err := os.RemoveAll(path); err != nil {
				t.Fatal(err)
			}
			switch index {
			case stale:
				if err := os.CopyFS(path, os.DirFS(stale)); err != nil {
					t.Fatal(err)
				}
			case "garbage":
				if err := os.CopyFS(path, os.DirFS(stale)); err != nil {
					t.Fatal(err)
				}
				tables, _ := filepath.Glob(filepath.Join(path, "*.sst"))
				for _, table := range tables {
					if err := os.Truncate(table, 100); err != nil {
						t.Fatal(err)
					}
				}
			}
			s.openIndex()
			s.open()
			s.wantRestore(two, next)
			if got := s.wantBooks(); got.LiveBytes != want.LiveBytes || got.WasteBytes != want.WasteBytes {
				t.Errorf("usage %+v, want %+v", got, want)
			}
			if _, err := s.repo.Manifest(testContext(t), one); !errors.Is(err, repository.ErrNotFound) {
				t.Errorf("a forgotten point is back: %v", err)
			}
		})
	}
	s.wantSound()
}

func TestImportRebuildsTheCatalogue(t *testing.T) {
	s, r := newSite(t), seeded(t)
	ctx := testContext(t)
	machine := newMachine()
	d := randomDisk(r, 40*testChunk)
	one := s.backup(machine, "", d)
	two := s.backup(machine, one, d.changed(r, 10))
	three := s.backup(machine, two, d)
	other := randomDisk(r, 40*testChunk)
	s.forget(one, s.backup(newMachine(), "", other))
	used, _ := s.catalogue.Used(s.id)
	// A refused commit must not come back, and neither must a point that lacks
	// something.
	b, err := s.begin(ctx, machine, three)
	if err != nil {
		t.Fatal(err)
	}
	manifest, err := b.send(ctx, other)
	if err != nil {
		t.Fatal(err)
	}
	s.catalogue.SetLimit(s.id, used)
	if err := b.session.Commit(ctx, manifest); err == nil {
		t.Fatal("committed above the quota")
	}
	foreign := point.Public{
		Repository: s.id, Point: point.NewID(), Machine: machine, Session: sessionText(b.session), Taken: time.Now(), Kind: point.KindFull,
		ChunkSize: testChunk, FanOut: testFanOut, Disks: []point.Disk{{SizeBytes: 1, Root: chunk.ID{1}}},
	}
	lacking, err := point.Manifest{Public: foreign, Private: point.Private{Disks: make([]point.PrivateDisk, 1)}}.Seal(s.keys)
	if err != nil {
		t.Fatal(err)
	}
	name := s.id + "/points/" + string(machine) + "/" + string(foreign.Point) + ".1"
	if err := s.blobs.Put(ctx, name, bytes.NewReader(lacking), int64(len(lacking))); err != nil {
		t.Fatal(err)
	}
	before, err := s.repo.Points(ctx, "", "", 0)
	if err != nil {
		t.Fatal(err)
	}

	s.catalogue.Add(s.id, 100, 1) // an empty database, with a quota that is far too small
	s.epoch = 0
	s.restart()
	report, err := s.repo.Import(ctx, repository.ImportOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if report.Points != 2 || report.Binned != 2 || report.Void != 1 || len(report.Refused) != 1 || report.Refused[0].Object != name || report.UsedBytes != used {
		t.Errorf("import: %+v, want %d bytes used", report, used)
	}
	s.epoch = s.catalogue.Epoch(s.id)
	s.restart()
	after, err := s.repo.Points(ctx, "", "", 0)
	if err != nil || len(after) != len(before) {
		t.Fatalf("points: %v, %v, want %v", after, err, before)
	}
	for i := range after {
		if after[i].ID != before[i].ID || after[i].SizeBytes != before[i].SizeBytes || after[i].Session != before[i].Session || after[i].Epoch != before[i].Epoch {
			t.Errorf("point %+v, want %+v", after[i], before[i])
		}
	}
	s.wantBooks()
	s.wantRestore(three, d)
	if binned, err := s.repo.Binned(ctx, "", "", 0); err != nil || len(binned) != 2 || binned[0].ID != one {
		t.Errorf("binned: %v, %v", binned, err)
	}
	// The quota blocks what is new, and nothing else.
	if _, err := s.run(ctx, machine, three, other); err == nil {
		t.Error("a backup got into a full repository")
	}
}

// A disk that is not mounted must not cost the catalogue: with no point in it,
// the next collection would delete everything once the disk is back.
func TestImportFromAnEmptyStoreKeepsTheCatalogue(t *testing.T) {
	s, r := newSite(t), seeded(t)
	ctx := testContext(t)
	kept := s.backup(newMachine(), "", randomDisk(r, 10*testChunk))
	var gone []string
	for object, err := range s.blobs.List(ctx, s.id+"/points/") {
		if err != nil {
			t.Fatal(err)
		}
		gone = append(gone, object.Name)
	}
	for _, name := range gone {
		if err := s.blobs.Delete(ctx, name); err != nil {
			t.Fatal(err)
		}
	}
	var empty *repository.EmptyStoreError
	if _, err := s.repo.Import(ctx, repository.ImportOptions{}); len(gone) == 0 || !errors.As(err, &empty) {
		t.Errorf("import from a store without points: %v, want an EmptyStoreError", err)
	}
	if points, err := s.repo.Points(ctx, "", "", 0); err != nil || len(points) != 1 || points[0].ID != kept {
		t.Errorf("points after the refused import: %v, %v", points, err)
	}
}

func TestWrapsAreKept(t *testing.T) {
	s := newSite(t)
	ctx := testContext(t)
	s.putWrap("one")
	s.putWrap("two")
	wrap, err := s.repo.Wrap(ctx, "one")
	if err != nil {
		t.Fatal(err)
	}
	wantIs(t, "another wrap under the same name", s.repo.PutWrap(ctx, "two", wrap), blob.ErrExists)
	wantIs(t, "no wrap at all", s.repo.PutWrap(ctx, "three", []byte("HFkr")), repository.ErrRefused)
	for _, name := range []string{"", "../one", "a/b", "A"} {
		wantIs(t, "wrap named "+name, s.repo.PutWrap(ctx, name, wrap), repository.ErrRefused)
	}
	_, err = s.repo.Wrap(ctx, "three")
	wantIs(t, "unknown wrap", err, repository.ErrNotFound)
	wraps, err := s.repo.Wraps(ctx)
	if err != nil || len(wraps) != 2 || wraps[0].Name != "one" || wraps[1].Name != "two" || !bytes.Equal(wraps[0].Content, wrap) {
		t.Errorf("wraps: %d, %v", len(wraps), err)
	}
	s.flip(s.id+"/keys/one", 40, 1)
	if wraps, err = s.repo.Wraps(ctx); err != nil || len(wraps) != 1 {
		t.Errorf("wraps beside a damaged one: %d, %v", len(wraps), err)
	}
}
