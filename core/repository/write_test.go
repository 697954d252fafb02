package repository_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/holdfast-dr/holdfast/core/blob"
	"github.com/holdfast-dr/holdfast/core/blob/blobtest"
	"github.com/holdfast-dr/holdfast/core/chunk"
	"github.com/holdfast-dr/holdfast/core/claim"
	"github.com/holdfast-dr/holdfast/core/point"
	"github.com/holdfast-dr/holdfast/core/quota"
	"github.com/holdfast-dr/holdfast/core/repository"
)

func TestEveryPointIsAFullPoint(t *testing.T) {
	s, r := newSite(t), seeded(t)
	machine := newMachine()
	first := []disk{randomDisk(r, 300*testChunk+17), randomDisk(r, 5*testChunk), make(disk, 64*testChunk)}
	second := []disk{first[0].changed(r, 5), first[1], first[2].changed(r, 1)}
	one := s.backup(machine, "", first...)
	two := s.backup(machine, one, second...)
	s.wantRestore(one, first...)
	s.wantRestore(two, second...)
	s.restart()
	s.wantRestore(one, first...)
	s.wantRestore(two, second...)
	points, err := s.repo.Points(testContext(t), machine, "", 0)
	if err != nil || len(points) != 2 || points[0].ID != one || points[1].ID != two || points[1].Previous != one {
		t.Errorf("points: %+v, %v", points, err)
	}
	if points[0].SizeBytes != 369*testChunk+17 || points[0].Disks != 3 {
		t.Errorf("point: %+v", points[0])
	}
	if points, _ := s.repo.Points(testContext(t), newMachine(), "", 0); len(points) != 0 {
		t.Errorf("points of another machine: %+v", points)
	}
}

func TestSameContentIsStoredOnce(t *testing.T) {
	s, r := newSite(t), seeded(t)
	d := randomDisk(r, 100*testChunk)
	s.backup(newMachine(), "", d)
	used, _ := s.catalogue.Used(s.id)
	b, err := s.begin(testContext(t), newMachine(), "")
	if err != nil {
		t.Fatal(err)
	}
	manifest, err := b.send(testContext(t), d, d)
	if err != nil {
		t.Fatal(err)
	}
	if err := b.session.Commit(testContext(t), manifest); err != nil {
		t.Fatal(err)
	}
	if after, _ := s.catalogue.Used(s.id); b.sent != 0 || after != used {
		t.Errorf("sent %d records and charged %d bytes for what was there", b.sent, after-used)
	}
}

func TestCommitNamesWhatIsMissing(t *testing.T) {
	s, r := newSite(t), seeded(t)
	ctx := testContext(t)
	b, err := s.begin(ctx, newMachine(), "")
	if err != nil {
		t.Fatal(err)
	}
	d := randomDisk(r, 40*testChunk)
	scatter(r, d[:1]) // whatever it was
	d[0] = 1
	lost := s.keys.ID(d[:testChunk])
	// The session claims to have sent the first chunk and has not.
	if _, err := b.send(ctx, d[testChunk:]); err != nil {
		t.Fatal(err)
	}
	tree := point.Geometry{SizeBytes: testChunk, ChunkSize: testChunk, FanOut: testFanOut}
	builder, _ := point.NewBuilder(point.Tree{Geometry: tree}, func(_ context.Context, id chunk.ID, page []byte) error {
		return b.session.Put(ctx, chunk.AppendPage(nil, b.session.ID(), id, page))
	})
	if err := builder.Set(ctx, 0, lost); err != nil {
		t.Fatal(err)
	}
	root, err := builder.Finish(ctx)
	if err != nil {
		t.Fatal(err)
	}
	public := b.public
	public.Disks = append(slices.Clone(public.Disks), point.Disk{SizeBytes: testChunk, Root: root}, point.Disk{SizeBytes: testChunk, Root: chunk.ID{7}})
	manifest, err := point.Manifest{Public: public, Private: point.Private{Disks: make([]point.PrivateDisk, 3)}}.Seal(s.keys)
	if err != nil {
		t.Fatal(err)
	}
	err = b.session.Commit(ctx, manifest)
	var missing *point.MissingError
	if !errors.As(err, &missing) || !slices.Equal(missing.Chunks, []chunk.ID{lost}) || !slices.Equal(missing.Pages, []chunk.ID{{7}}) {
		t.Fatalf("commit: %v, want %s missing", err, lost)
	}
	if got := s.objects("points/"); len(got) != 0 {
		t.Errorf("a refused commit left %v", got)
	}
	if points, _ := s.repo.Points(ctx, "", "", 0); len(points) != 0 {
		t.Errorf("points: %v", points)
	}
}

func TestLostAnswerOfCommitIsRepeated(t *testing.T) {
	s, r := newSite(t), seeded(t)
	ctx := testContext(t)
	d := randomDisk(r, 20*testChunk)
	b, err := s.begin(ctx, newMachine(), "")
	if err != nil {
		t.Fatal(err)
	}
	manifest, err := b.send(ctx, d)
	if err != nil {
		t.Fatal(err)
	}
	lost := errors.New("connection lost")
	s.catalogue.Fault = func(method, when string) error {
		if method == "Commit" && when == "after" {
			return lost
		}
		return nil
	}
	wantIs(t, "commit", b.session.Commit(ctx, manifest), lost)
	s.catalogue.Fault = nil
	if err := b.session.Commit(ctx, manifest); err != nil {
		t.Errorf("commit again: %v", err)
	}
	if err := b.session.Commit(ctx, manifest); err != nil {
		t.Errorf("commit a third time: %v", err)
	}
	s.restart()
	again, err := s.repo.Resume(ctx, b.session.ID())
	if err != nil {
		t.Fatal(err)
	}
	if err := again.Commit(ctx, manifest); err != nil {
		t.Errorf("commit after a restart: %v", err)
	}
	wantIs(t, "put into a finished session", again.Put(ctx, nil), repository.ErrNotFound)
	s.wantRestore(b.point, d)
}

func TestSessionSurvivesRestart(t *testing.T) {
	s, r := newSite(t), seeded(t)
	ctx := testContext(t)
	d := randomDisk(r, 100*testChunk)
	b, err := s.begin(ctx, newMachine(), "")
	if err != nil {
		t.Fatal(err)
	}
	manifest, err := b.send(ctx, d)
	if err != nil {
		t.Fatal(err)
	}
	sent := b.sent
	s.restart()
	if b.session, err = s.repo.Resume(ctx, b.session.ID()); err != nil {
		t.Fatal(err)
	}
	if b.session.Machine() != b.machine || b.session.Owner() != "agent" {
		t.Errorf("resumed session: machine %s, owner %s", b.session.Machine(), b.session.Owner())
	}
	if _, err := b.send(ctx, d); err != nil {
		t.Fatal(err)
	}
	if b.sent != sent {
		t.Errorf("%d records were sent again", b.sent-sent)
	}
	if err := b.session.Commit(ctx, manifest); err != nil {
		t.Fatal(err)
	}
	s.wantRestore(b.point, d)
	if got, _ := s.repo.Resume(ctx, chunk.SessionID{1}); got != nil {
		t.Error("resumed a session that never was")
	}
}

func TestPutRefusesWhatBreaksTheRules(t *testing.T) {
	s := newSite(t)
	ctx := testContext(t)
	b, err := s.begin(ctx, newMachine(), "")
	if err != nil {
		t.Fatal(err)
	}
	plain := []byte("some plaintext")
	sealed := func(session chunk.SessionID, plain []byte) []byte {
		record, err := s.keys.NewSealer(session).Append(nil, s.keys.ID(plain), plain)
		if err != nil {
			t.Fatal(err)
		}
		return record
	}
	good := sealed(b.session.ID(), plain)
	damaged := slices.Clone(good)
	damaged[len(damaged)-1] ^= 1
	page := point.Page{IDs: []chunk.ID{{1}, {}, {2}, {}}}.Append(nil)
	wide := point.Page{IDs: make([]chunk.ID, 8)}
	wide.IDs[3] = chunk.ID{9}
	for name, batch := range map[string][]byte{
		"damaged record":          append(slices.Clone(good), damaged...),
		"cut record":              good[:len(good)-1],
		"garbage":                 []byte("garbage"),
		"record of another":       sealed(chunk.SessionID{1}, plain),
		"chunk that is too large": sealed(b.session.ID(), make([]byte, 2*testChunk)),
		"page under a wrong id":   chunk.AppendPage(nil, b.session.ID(), chunk.ID{1}, page),
		"page of another fan-out": chunk.AppendPage(nil, b.session.ID(), point.PageID(wide.Append(nil)), wide.Append(nil)),
		"page that is none":       chunk.AppendPage(nil, b.session.ID(), point.PageID([]byte("x")), []byte("x")),
		"too much":                make([]byte, repository.MaxBatch+1),
	} {
		wantIs(t, name, b.session.Put(ctx, batch), repository.ErrRefused)
	}
	have, err := b.session.Have(ctx, chunk.KindData, []chunk.ID{s.keys.ID(plain)})
	if err != nil || have[0] {
		t.Errorf("a refused batch left a record: %v, %v", have, err)
	}
	if err := b.session.Put(ctx, slices.Concat(good, good, chunk.AppendPage(nil, b.session.ID(), point.PageID(page), page))); err != nil {
		t.Errorf("put: %v", err)
	}
	have, err = b.session.Have(ctx, chunk.KindData, []chunk.ID{s.keys.ID(plain), {1}})
	if err != nil || !slices.Equal(have, []bool{true, false}) {
		t.Errorf("have: %v, %v", have, err)
	}
}

func TestFullQuotaRefusesAndLosesNothing(t *testing.T) {
	s, r := newSite(t), seeded(t)
	ctx := testContext(t)
	machine := newMachine()
	d := randomDisk(r, 20*testChunk)
	one := s.backup(machine, "", d)
	binned := randomDisk(r, 40*testChunk) // what only the bin uses is charged when it is used again
	s.forget(s.backup(newMachine(), "", binned))
	used, _ := s.catalogue.Used(s.id)
	s.catalogue.SetLimit(s.id, used+100)
	b, err := s.begin(ctx, machine, one)
	if err != nil {
		t.Fatal(err)
	}
	more := binned.changed(r, 5)
	manifest, err := b.send(ctx, more)
	if err != nil {
		t.Fatal(err)
	}
	s.catalogue.Reserve(s.id, sessionText(b.session), 50)
	err = b.session.Commit(ctx, manifest)
	var over *quota.FullError
	if !errors.As(err, &over) || over.UsedBytes != used || over.WantedBytes < 1000 {
		t.Fatalf("commit: %v, want *quota.FullError", err)
	}
	voids := 0
	for _, object := range s.objects("points/") {
		if strings.HasSuffix(object.Name, ".void") {
			voids++
		}
	}
	if voids != 1 {
		t.Errorf("%d voids in %v", voids, s.objects("points/"))
	}
	s.wantRestore(one, d)
	if now, pending := s.catalogue.Used(s.id); now != used || pending != s.wantBooks().PendingBytes { // the 50 are among it
		t.Errorf("a refused commit charged %d bytes, %d are pending", now-used, pending)
	}
	s.catalogue.SetLimit(s.id, 1<<40)
	wantIs(t, "commit under the same id", b.session.Commit(ctx, manifest), repository.ErrVoid)
	sent := b.sent
	b.point = point.NewID()
	if manifest, err = b.send(ctx, more); err != nil {
		t.Fatal(err)
	}
	if err := b.session.Commit(ctx, manifest); err != nil {
		t.Fatal(err)
	}
	if b.sent != sent {
		t.Errorf("%d records were sent again", b.sent-sent)
	}
	s.wantRestore(one, d)
	s.wantRestore(b.point, more)
}

func TestFullDiskLosesNothing(t *testing.T) {
	s, r := newSite(t), seeded(t)
	ctx := testContext(t)
	machine := newMachine()
	d := randomDisk(r, 20*testChunk)
	one := s.backup(machine, "", d)
	s.blobs.Fill(10 << 10)
	b, err := s.begin(ctx, machine, one)
	if err != nil {
		t.Fatal(err)
	}
	more := randomDisk(r, 200*testChunk)
	_, err = b.send(ctx, more)
	wantIs(t, "send to a full disk", err, blob.ErrFull)
	s.wantRestore(one, d)
	s.blobs.Heal()
	manifest, err := b.send(ctx, more)
	if err != nil {
		t.Fatal(err)
	}
	s.blobs.Fail(blobtest.Fault{Verb: blobtest.VerbPut, Match: "/points/", Err: blob.ErrFull})
	wantIs(t, "commit to a full disk", b.session.Commit(ctx, manifest), blob.ErrFull)
	s.blobs.Heal()
	if err := b.session.Commit(ctx, manifest); err != nil {
		t.Fatal(err)
	}
	s.wantRestore(one, d)
	s.wantRestore(b.point, more)
}

func TestLostAnswersOfTheStoreAreHarmless(t *testing.T) {
	s, r := newSite(t), seeded(t)
	ctx := testContext(t)
	d := randomDisk(r, 100*testChunk)
	b, err := s.begin(ctx, newMachine(), "")
	if err != nil {
		t.Fatal(err)
	}
	for _, match := range []string{"/packs/", "/maps/", "/points/"} {
		s.blobs.Fail(blobtest.Fault{Verb: blobtest.VerbPut, Match: match, Times: 1, Late: true})
	}
	manifest, err := b.send(ctx, d)
	if err != nil {
		t.Fatal(err)
	}
	for range 5 {
		if err = b.session.Commit(ctx, manifest); err == nil {
			break
		}
		wantIs(t, "commit", err, blobtest.ErrInjected)
	}
	if err != nil {
		t.Fatal(err)
	}
	s.wantRestore(b.point, d)
}

func TestFencedServerCannotCommit(t *testing.T) {
	s, r := newSite(t), seeded(t)
	ctx := testContext(t)
	machine := newMachine()
	d := randomDisk(r, 20*testChunk)
	one := s.backup(machine, "", d)
	b, err := s.begin(ctx, machine, one)
	if err != nil {
		t.Fatal(err)
	}
	manifest, err := b.send(ctx, d.changed(r, 5))
	if err != nil {
		t.Fatal(err)
	}
	s.catalogue.SetEpoch(s.id, 99)
	wantIs(t, "commit of a fenced server", b.session.Commit(ctx, manifest), claim.ErrFenced)
	wantIs(t, "forget of a fenced server", s.repo.Forget(ctx, one), claim.ErrFenced)
	if points, _ := s.repo.Points(ctx, "", "", 0); len(points) != 1 {
		t.Errorf("points: %+v", points)
	}
}

func TestOldDatabaseReadsOnly(t *testing.T) {
	s, r := newSite(t), seeded(t)
	ctx := testContext(t)
	machine := newMachine()
	d := randomDisk(r, 20*testChunk)
	one := s.backup(machine, "", d)
	yesterday := s.catalogue.Copy()
	s.restart()
	two := s.backup(machine, one, d.changed(r, 3))
	s.close()

	s.catalogue = yesterday
	s.epoch = 0 // so that the next claim is that of yesterday's database
	s.openIndex()
	s.open()
	var old *repository.OldDatabaseError
	if _, err := s.repo.Begin(ctx, machine, one, ""); !errors.As(err, &old) || !errors.Is(err, claim.ErrFenced) {
		t.Errorf("begin with an old database: %v", err)
	}
	wantIs(t, "forget", s.repo.Forget(ctx, one), claim.ErrFenced)
	_, err := s.repo.Collect(ctx, repository.CollectOptions{})
	wantIs(t, "collect", err, claim.ErrFenced)
	s.wantRestore(one, d)

	if _, err := s.repo.Import(ctx, repository.ImportOptions{}); err != nil {
		t.Fatal(err)
	}
	s.epoch = s.catalogue.Epoch(s.id)
	s.restart()
	if err := s.repo.Writable(); err != nil {
		t.Fatalf("after the import: %v", err)
	}
	if _, err := s.restore(ctx, two, 0); err != nil {
		t.Errorf("the newer point is lost: %v", err)
	}
	s.backup(machine, two, d)
}
