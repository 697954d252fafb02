package repository_test

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/holdfast-dr/holdfast/core/chunk"
	"github.com/holdfast-dr/holdfast/core/point"
	"github.com/holdfast-dr/holdfast/core/repository"
)

// distinct is a disk of chunks that are all different.
func distinct(r *rand.Rand, size int) disk {
	d := make(disk, size)
	for i := range d {
		d[i] = byte(r.Uint32())
	}
	return d
}

// hostile uploads garbage under the ids of a disk's chunks, as an agent may who
// has the tenant's keys, and leaves it to whoever comes next.
func (s *site) hostile(owner string, d disk) {
	s.t.Helper()
	ctx := testContext(s.t)
	session, err := s.repo.Begin(ctx, newMachine(), "", owner)
	if err != nil {
		s.t.Fatal(err)
	}
	s.poison(ctx, session, d)
	if err := session.Abort(ctx); err != nil {
		s.t.Fatal(err)
	}
}

// poison seals other content under the ids of a disk's chunks.
func (s *site) poison(ctx context.Context, session *repository.Session, d disk) {
	s.t.Helper()
	sealer := s.keys.NewSealer(session.ID())
	var batch []byte
	for i := 0; i < len(d); i += testChunk {
		plain := d[i : i+testChunk]
		var err error
		if batch, err = sealer.Append(batch, s.keys.ID(plain), bytes.Repeat([]byte("garbage!"), testChunk/8)); err != nil {
			s.t.Fatal(err)
		}
	}
	if err := session.Put(ctx, batch); err != nil {
		s.t.Fatal(err)
	}
}

func (s *site) distrust(d repository.Distrust) repository.DistrustReport {
	s.t.Helper()
	report, err := s.repo.Distrust(testContext(s.t), d)
	if err != nil {
		s.t.Fatalf("distrust: %v", err)
	}
	return report
}

// wantHave says how many of a disk's chunks a new session is told are there.
func (s *site) wantHave(what string, d disk, want int) {
	s.t.Helper()
	ctx := testContext(s.t)
	session, err := s.repo.Begin(ctx, newMachine(), "", "asker")
	if err != nil {
		s.t.Fatal(err)
	}
	var ids []chunk.ID
	for i := 0; i < len(d); i += testChunk {
		ids = append(ids, s.keys.ID(d[i:i+testChunk]))
	}
	have, err := session.Have(ctx, chunk.KindData, ids)
	if err != nil {
		s.t.Fatal(err)
	}
	if n := len(slices.DeleteFunc(have, func(yes bool) bool { return !yes })); n != want {
		s.t.Errorf("%s: have says yes for %d of %d chunks, want %d", what, n, len(ids), want)
	}
	if err := session.Abort(ctx); err != nil {
		s.t.Fatal(err)
	}
}

func (s *site) wantRestoreFails(what string, id point.ID) {
	s.t.Helper()
	if _, err := s.restore(testContext(s.t), id, 0); !errors.Is(err, chunk.ErrDamaged) {
		s.t.Errorf("%s: restore of point %s: %v, want damage", what, id, err)
	}
}

// Garbage under good ids gets into an honest agent's point. Once its bringer is
// distrusted, the next point is whole, and heals the one before with what they
// share; until then nothing of it is deleted, also not by a collection.
func TestDistrustHeals(t *testing.T) {
	s, r := newSite(t), seeded(t)
	machine, d := newMachine(), distinct(r, 12*testChunk)
	s.hostile("rogue", d[:6*testChunk])
	one := s.backup(machine, "", d)
	s.wantRestoreFails("before", one)
	s.wantHave("before", d, 12)
	s.wantSound() // without keys nobody can tell

	s.clock.Advance(time.Hour)
	if report := s.distrust(repository.Distrust{Owner: "somebody else"}); report.Changed != 0 || report.Doubtful != nil {
		t.Errorf("distrust of somebody else: %+v", report)
	}
	if report := s.distrust(repository.Distrust{Owner: "rogue", Since: s.clock.Now()}); report.Changed != 0 {
		t.Errorf("distrust since after its last session: %+v", report)
	}
	report := s.distrust(repository.Distrust{Owner: "rogue", Since: s.clock.Now().Add(-2 * time.Hour)})
	if report.Changed != 1 || report.Distrusted != 1 || report.Sessions[0].Owner != "rogue" || report.Brought != nil || report.Affected != nil {
		t.Errorf("distrust: %+v", report)
	}
	if diff := cmp.Diff([]point.ID{one}, report.Doubtful); diff != "" {
		t.Errorf("points that depend on what is distrusted (-want +got):\n%s", diff)
	}
	s.wantBooks()
	s.wantHave("distrusted", d, 6)
	for _, again := range []string{"", "after a restart", "with a new index"} {
		if again == "after a restart" {
			s.restart()
		}
		if again == "with a new index" {
			s.close()
			s.openIndex()
			s.open()
		}
		if v := s.verify(); !slices.Equal(v.Doubtful, []point.ID{one}) || v.Affected != nil || v.Sound() {
			t.Errorf("verify %s: %+v, want point %s to be doubtful", again, v, one)
		}
		s.wantHave(again, d, 6)
	}
	// A collection keeps the only copies that there are.
	s.clock.Advance(30 * 24 * time.Hour)
	s.collect(repository.CollectOptions{})
	if v := s.verify(); !slices.Equal(v.Doubtful, []point.ID{one}) || v.Affected != nil {
		t.Errorf("verify after a collection: %+v", v)
	}

	b, err := s.begin(testContext(t), machine, one)
	if err != nil {
		t.Fatal(err)
	}
	damaged, err := b.session.Damaged(testContext(t))
	if err != nil || len(damaged) != 6 {
		t.Errorf("the session is told of %d damaged chunks of its base (%v), want 6", len(damaged), err)
	}
	if err := b.session.Abort(testContext(t)); err != nil {
		t.Fatal(err)
	}
	two := s.backup(machine, one, d)
	s.wantRestore(two, d)
	s.wantRestore(one, d)
	s.wantSound()
	s.clock.Advance(30 * 24 * time.Hour)
	s.collect(repository.CollectOptions{}) // now the garbage is waste
	s.wantBooks()
	s.wantRestore(two, d)
	s.wantRestore(one, d)
	s.wantSound()
	s.close()
	s.openIndex()
	s.open()
	s.wantRestore(two, d)
	s.wantSound()
}

// A session of a distrusted agent that is open is over, and what it would have
// committed is not there. What begins later is trusted.
func TestDistrustEndsOpenSessions(t *testing.T) {
	s, r := newSite(t), seeded(t)
	d := distinct(r, 8*testChunk)
	ctx := testContext(t)
	rogue, err := s.repo.Begin(ctx, newMachine(), "", "rogue")
	if err != nil {
		t.Fatal(err)
	}
	s.poison(ctx, rogue, d)
	report := s.distrust(repository.Distrust{Owner: "rogue", Since: s.clock.Now().Add(time.Hour)}) // it is open, so it may still bring more
	if report.Changed != 1 || report.Aborted != 1 {
		t.Errorf("distrust: %+v", report)
	}
	_, err = rogue.Have(ctx, chunk.KindData, []chunk.ID{{1}})
	wantIs(t, "have of the session", err, repository.ErrNotFound)
	wantIs(t, "put of the session", rogue.Put(ctx, nil), repository.ErrNotFound)
	s.wantHave("afterwards", d, 0)
	s.hostile("rogue", d)
	s.wantHave("what came later", d, 8)
}

// Points that a distrusted session committed are named, and one whose trust is
// given back is as it was before.
func TestDistrustNamesWhatItsSessionsCommitted(t *testing.T) {
	s, r := newSite(t), seeded(t)
	d := distinct(r, 8*testChunk)
	one := s.backup(newMachine(), "", d) // by "agent"
	report := s.distrust(repository.Distrust{Owner: "agent"})
	if !slices.Equal(report.Brought, []point.ID{one}) || !slices.Equal(report.Doubtful, []point.ID{one}) {
		t.Errorf("distrust: %+v, want point %s brought and doubtful", report, one)
	}
	s.wantRestore(one, d) // nothing is taken away
	report = s.distrust(repository.Distrust{Session: report.Sessions[0].ID, Lift: true})
	if report.Changed != 1 || report.Distrusted != 0 || report.Doubtful != nil || report.Brought != nil {
		t.Errorf("trust again: %+v", report)
	}
	s.wantHave("trusted again", d, 8)
	s.wantSound()
	for _, wrong := range []repository.Distrust{{}, {Session: "x"}, {Session: "00", Owner: "both"}} {
		_, err := s.repo.Distrust(testContext(t), wrong)
		wantIs(t, "distrust", err, repository.ErrRefused)
	}
}

// An import takes points that depend on distrusted copies for points: they are
// there, whatever is in them.
func TestImportKeepsDoubtfulPoints(t *testing.T) {
	s, r := newSite(t), seeded(t)
	d := distinct(r, 8*testChunk)
	one := s.backup(newMachine(), "", d)
	s.distrust(repository.Distrust{Owner: "agent"})
	report, err := s.repo.Import(testContext(t), repository.ImportOptions{})
	if err != nil || report.Points != 1 || report.Refused != nil {
		t.Errorf("import: %+v, %v, want one point", report, err)
	}
	s.epoch = s.catalogue.Epoch(s.id)
	s.restart()
	s.wantRestore(one, d)
}

// However many garbage copies of one id there are, a good one takes its place
// among them.
func TestManyGarbageCopiesKeepNoGoodOneOut(t *testing.T) {
	s, r := newSite(t), seeded(t)
	ctx := testContext(t)
	machine, d := newMachine(), distinct(r, 4*testChunk)
	var sessions []*repository.Session
	for range 12 { // more than the index keeps of one id
		session, err := s.repo.Begin(ctx, newMachine(), "", "rogue")
		if err != nil {
			t.Fatal(err)
		}
		s.poison(ctx, session, d) // before any of them is in the store
		sessions = append(sessions, session)
	}
	for _, session := range sessions {
		if err := session.Abort(ctx); err != nil {
			t.Fatal(err)
		}
	}
	one := s.backup(machine, "", d)
	s.wantRestoreFails("before", one)
	if report := s.distrust(repository.Distrust{Owner: "rogue"}); report.Changed != 12 {
		t.Errorf("distrust: %+v", report)
	}
	two := s.backup(machine, one, d)
	s.wantRestore(two, d)
	s.wantSound()
	s.close() // and a new index finds it, too
	s.openIndex()
	s.open()
	s.wantRestore(two, d)
	s.wantSound()
}

// Sessions of which nothing is left are forgotten with a collection, and no
// others.
func TestSessionsOfWhichNothingIsLeftAreForgotten(t *testing.T) {
	s, r := newSite(t), seeded(t)
	ctx := testContext(t)
	d := distinct(r, 8*testChunk)
	s.hostile("rogue", d[:4*testChunk]) // its records are used by the next one's point
	point := s.backup(newMachine(), "", d)
	s.hostile("empty", nil)
	open, err := s.repo.Begin(ctx, newMachine(), "", "open")
	if err != nil {
		t.Fatal(err)
	}
	s.clock.Advance(time.Hour)
	owners := func(want ...string) {
		t.Helper()
		sessions, err := s.catalogue.Sessions(ctx, s.id, repository.SessionQuery{})
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, s := range sessions {
			got = append(got, s.Owner)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("sessions (-want +got):\n%s", diff)
		}
	}
	owners("rogue", "agent", "empty", "open")
	s.collect(repository.CollectOptions{})
	owners("rogue", "agent", "open")
	if err := open.Abort(ctx); err != nil {
		t.Fatal(err)
	}
	s.forget(point)
	s.clock.Advance(60 * 24 * time.Hour)
	s.collect(repository.CollectOptions{}) // condemns
	s.clock.Advance(60 * 24 * time.Hour)
	s.collect(repository.CollectOptions{})
	owners()
}
