package repositorytest

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"

	"github.com/holdfast-dr/holdfast/core/audit"
	"github.com/holdfast-dr/holdfast/core/chunk"
	"github.com/holdfast-dr/holdfast/core/claim"
	"github.com/holdfast-dr/holdfast/core/point"
	"github.com/holdfast-dr/holdfast/core/quota"
	"github.com/holdfast-dr/holdfast/core/repository"
	"github.com/holdfast-dr/holdfast/core/tenant"
)

// Books is a catalogue with what the suite needs beside it: an empty cloud
// repository of 1,000 bytes, claimed with an epoch of at least 2.
type Books struct {
	Catalogue  repository.Catalogue
	Repository string
	Epoch      uint64
	Reserve    func(session string, reservedBytes int64)
	Used       func() (used, pending int64)
	NextEpoch  func() uint64 // claims the repository anew, as another server would
}

// RunCatalogue holds a catalogue against its contract.
func RunCatalogue(t *testing.T, open func(t *testing.T) Books) {
	tests := []struct {
		name string
		run  func(t *testing.T, b Books)
	}{
		{"CommitMakesAPoint", commits},
		{"CommitKeepsTheQuota", keepsQuota},
		{"PendingCountsUntilAPointTakesIt", pends},
		{"OldEpochChangesNothing", fences},
		{"ForgetAndPurge", forgets},
		{"PointsAreListedInOrder", lists},
		{"CondemnedUntilRemoved", condemns},
		{"DamageIsKept", damages},
		{"SessionsAreKept", keepsSessions},
		{"SessionsAreDistrusted", distrusts},
		{"ImportReplaces", imports},
		{"DecisionsNeedAnOrigin", origins},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) { test.run(t, open(t)) })
	}
}

func origin(t *testing.T) context.Context {
	return audit.With(t.Context(), audit.System("suite", "the suite"))
}

func newPoint(session string, charged int64) repository.PointRecord {
	return repository.PointRecord{
		ID: point.NewID(), Machine: point.MachineID(uuid.NewString()), Previous: point.NewID(), Session: session, Epoch: 7,
		Kind: point.KindIncremental, Taken: time.UnixMicro(1_700_000_000_000_001).UTC(), Committed: time.UnixMicro(1_700_000_000_000_002).UTC(),
		Disks: 2, SizeBytes: 1 << 40, ChargedBytes: charged,
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func wantUsed(t *testing.T, b Books, used, pending int64) {
	t.Helper()
	if gotUsed, gotPending := b.Used(); gotUsed != used || gotPending != pending {
		t.Errorf("used %d, pending %d, want %d and %d", gotUsed, gotPending, used, pending)
	}
}

func wantError(t *testing.T, what string, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("%s: error %v, want %v", what, err, want)
	}
}

func commits(t *testing.T, b Books) {
	ctx := origin(t)
	p := newPoint("s1", 300)
	b.Reserve("s1", 400)
	b.Reserve("s2", 100)
	must(t, b.Catalogue.Commit(ctx, b.Repository, b.Epoch, p, 0))
	wantUsed(t, b, 300, 100)
	got, err := b.Catalogue.Point(ctx, b.Repository, p.ID)
	must(t, err)
	if diff := cmp.Diff(p, got); diff != "" {
		t.Errorf("point (-want +got):\n%s", diff)
	}
	if err := b.Catalogue.Commit(ctx, b.Repository, b.Epoch, p, 0); err == nil {
		t.Error("a point was committed twice")
	}
	wantUsed(t, b, 300, 100)
	_, err = b.Catalogue.Point(ctx, b.Repository, point.NewID())
	wantError(t, "unknown point", err, tenant.ErrNotFound)
}

func keepsQuota(t *testing.T, b Books) {
	ctx := origin(t)
	b.Reserve("s1", 500)
	p := newPoint("s2", 501)
	err := b.Catalogue.Commit(ctx, b.Repository, b.Epoch, p, 0)
	var over *quota.FullError
	if !errors.As(err, &over) || over.LimitBytes != 1000 || over.PendingBytes != 500 || over.WantedBytes != 501 {
		t.Errorf("commit above the quota: %v", err)
	}
	_, err = b.Catalogue.Point(ctx, b.Repository, p.ID)
	wantError(t, "refused point", err, tenant.ErrNotFound)
	wantUsed(t, b, 0, 500)
	p = newPoint("s1", 1000) // its own reservation counts for it
	must(t, b.Catalogue.Commit(ctx, b.Repository, b.Epoch, p, 0))
	wantUsed(t, b, 1000, 0)
	must(t, b.Catalogue.Commit(ctx, b.Repository, b.Epoch, newPoint("s3", 0), 0))
	must(t, b.Catalogue.Settle(ctx, b.Repository, b.Epoch, 200))
	wantUsed(t, b, 200, 0)
}

// What one session brought is charged after its end, and is no obstacle to
// another one's point that uses it.
func pends(t *testing.T, b Books) {
	ctx := origin(t)
	b.Reserve("s1", 700)
	must(t, b.Catalogue.Shipped(ctx, b.Repository, b.Epoch, "s1", 600, 600))
	wantUsed(t, b, 0, 700)
	must(t, b.Catalogue.Shipped(ctx, b.Repository, b.Epoch, "s1", 300, 900)) // more than was reserved
	wantUsed(t, b, 0, 900)
	must(t, b.Catalogue.Shipped(ctx, b.Repository, b.Epoch, "s9", 50, 950)) // without any reservation
	wantUsed(t, b, 0, 950)
	err := b.Catalogue.Commit(ctx, b.Repository, b.Epoch, newPoint("s2", 101), 900) // 50 of it were pending
	var over *quota.FullError
	if !errors.As(err, &over) || over.UsedBytes != 0 || over.PendingBytes != 900 || over.WantedBytes != 101 {
		t.Errorf("commit of more than fits beside what is pending: %v", err)
	}
	wantUsed(t, b, 0, 950)
	must(t, b.Catalogue.Commit(ctx, b.Repository, b.Epoch, newPoint("s2", 1000), 0)) // all of it was pending
	wantUsed(t, b, 1000, 0)
	must(t, b.Catalogue.Settle(ctx, b.Repository, b.Epoch, 100))
	b.Reserve("s3", 200)
	b.Reserve("s4", 200)
	must(t, b.Catalogue.Reconciled(ctx, b.Repository, b.Epoch, 30, nil))
	wantUsed(t, b, 100, 430)
	must(t, b.Catalogue.Reconciled(ctx, b.Repository, b.Epoch, 40, map[string]int64{"s4": 5, "s5": 6}))
	wantUsed(t, b, 100, 51)
	must(t, b.Catalogue.Commit(ctx, b.Repository, b.Epoch, newPoint("s4", 0), 40))
	wantUsed(t, b, 100, 46)
	must(t, b.Catalogue.Reconciled(ctx, b.Repository, b.Epoch, 2000, map[string]int64{})) // it is there, whatever the limit
	wantUsed(t, b, 100, 2000)
}

func fences(t *testing.T, b Books) {
	ctx := origin(t)
	p := newPoint("s1", 1)
	must(t, b.Catalogue.Commit(ctx, b.Repository, b.Epoch, p, 0))
	must(t, b.Catalogue.Check(ctx, b.Repository, b.Epoch))
	old, pack := b.Epoch, []repository.PackID{repository.NewPackID()}
	next := b.NextEpoch()
	for name, err := range map[string]error{
		"check":      b.Catalogue.Check(ctx, b.Repository, old),
		"commit":     b.Catalogue.Commit(ctx, b.Repository, old, newPoint("s2", 1), 0),
		"forget":     b.Catalogue.Forget(ctx, b.Repository, old, p.ID, time.Now()),
		"purge":      b.Catalogue.Purge(ctx, b.Repository, old, []point.ID{p.ID}),
		"shipped":    b.Catalogue.Shipped(ctx, b.Repository, old, "s1", 1, 5),
		"reconciled": b.Catalogue.Reconciled(ctx, b.Repository, old, 5, map[string]int64{"s1": 5}),
		"settle":     b.Catalogue.Settle(ctx, b.Repository, old, 0),
		"condemn":    b.Catalogue.Condemn(ctx, b.Repository, old, pack, time.Now()),
		"removed":    b.Catalogue.Removed(ctx, b.Repository, old, pack),
	} {
		wantError(t, name, err, claim.ErrFenced)
	}
	points, err := b.Catalogue.Points(ctx, b.Repository, repository.PointQuery{})
	must(t, err)
	condemned, err := b.Catalogue.Condemned(ctx, b.Repository, repository.PackID{}, 10)
	must(t, err)
	if len(points) != 1 || len(condemned) != 0 {
		t.Errorf("points %v, condemned %v after an old epoch's calls", points, condemned)
	}
	wantUsed(t, b, 1, 0)
	must(t, b.Catalogue.Check(ctx, b.Repository, next))
}

func forgets(t *testing.T, b Books) {
	ctx := origin(t)
	p, other := newPoint("s1", 10), newPoint("s2", 20)
	must(t, b.Catalogue.Commit(ctx, b.Repository, b.Epoch, p, 0))
	must(t, b.Catalogue.Commit(ctx, b.Repository, b.Epoch, other, 0))
	at := time.UnixMicro(1_700_000_000_000_003).UTC()
	must(t, b.Catalogue.Forget(ctx, b.Repository, b.Epoch, p.ID, at))
	must(t, b.Catalogue.Forget(ctx, b.Repository, b.Epoch, p.ID, at.Add(time.Hour)))
	wantError(t, "forget what is not there", b.Catalogue.Forget(ctx, b.Repository, b.Epoch, point.NewID(), at), tenant.ErrNotFound)
	got, err := b.Catalogue.Point(ctx, b.Repository, p.ID)
	must(t, err)
	if !got.Forgotten.Equal(at) {
		t.Errorf("forgotten at %v, want %v", got.Forgotten, at)
	}
	binned, err := b.Catalogue.Points(ctx, b.Repository, repository.PointQuery{Binned: true})
	must(t, err)
	live, err := b.Catalogue.Points(ctx, b.Repository, repository.PointQuery{})
	must(t, err)
	if len(binned) != 1 || binned[0].ID != p.ID || len(live) != 1 || live[0].ID != other.ID {
		t.Errorf("binned %v, live %v", binned, live)
	}
	must(t, b.Catalogue.Purge(ctx, b.Repository, b.Epoch, []point.ID{p.ID, other.ID, point.NewID()}))
	_, err = b.Catalogue.Point(ctx, b.Repository, p.ID)
	wantError(t, "purged point", err, tenant.ErrNotFound)
	if _, err = b.Catalogue.Point(ctx, b.Repository, other.ID); err != nil {
		t.Errorf("a live point was purged: %v", err)
	}
}

func lists(t *testing.T, b Books) {
	ctx := origin(t)
	var ids []point.ID
	machine := point.MachineID(uuid.NewString())
	for i := range 5 {
		p := newPoint("s"+strings.Repeat("i", i), 1)
		if i%2 == 0 {
			p.Machine = machine
		}
		ids = append(ids, p.ID)
		must(t, b.Catalogue.Commit(ctx, b.Repository, b.Epoch, p, 0))
	}
	for name, c := range map[string]struct {
		q    repository.PointQuery
		want []point.ID
	}{
		"all":            {repository.PointQuery{}, ids},
		"after":          {repository.PointQuery{After: ids[2]}, ids[3:]},
		"limited":        {repository.PointQuery{After: ids[0], Limit: 2}, ids[1:3]},
		"of a machine":   {repository.PointQuery{Machine: machine}, []point.ID{ids[0], ids[2], ids[4]}},
		"of a session":   {repository.PointQuery{Session: "sii"}, ids[2:3]},
		"of nobody":      {repository.PointQuery{Machine: "x"}, nil},
		"in the bin":     {repository.PointQuery{Binned: true}, nil},
		"of another one": {repository.PointQuery{Session: "other"}, nil},
	} {
		points, err := b.Catalogue.Points(ctx, b.Repository, c.q)
		must(t, err)
		var got []point.ID
		for _, p := range points {
			got = append(got, p.ID)
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("%s: %v, want %v", name, got, c.want)
		}
	}
}

func condemns(t *testing.T, b Books) {
	ctx := t.Context() // bookkeeping
	packs := []repository.PackID{repository.NewPackID(), repository.NewPackID(), repository.NewPackID()}
	at := time.UnixMicro(1_700_000_000_000_000).UTC()
	must(t, b.Catalogue.Condemn(ctx, b.Repository, b.Epoch, packs[:2], at))
	must(t, b.Catalogue.Condemn(ctx, b.Repository, b.Epoch, packs[1:], at.Add(time.Hour)))
	got, err := b.Catalogue.Condemned(ctx, b.Repository, repository.PackID{}, 2)
	must(t, err)
	rest, err := b.Catalogue.Condemned(ctx, b.Repository, packs[1], 2)
	must(t, err)
	want := []repository.CondemnedPack{{Pack: packs[0], At: at}, {Pack: packs[1], At: at}, {Pack: packs[2], At: at.Add(time.Hour)}}
	if diff := cmp.Diff(want, append(got, rest...)); diff != "" {
		t.Errorf("condemned (-want +got):\n%s", diff)
	}
	damage := []repository.Damage{{Kind: chunk.KindData, ID: chunk.ID{1}, Pack: packs[0], At: at}, {Kind: chunk.KindData, ID: chunk.ID{1}, Pack: packs[2], At: at}}
	must(t, b.Catalogue.MarkDamaged(ctx, b.Repository, damage))
	must(t, b.Catalogue.Removed(ctx, b.Repository, b.Epoch, packs[:2]))
	must(t, b.Catalogue.Removed(ctx, b.Repository, b.Epoch, packs[:2]))
	got, err = b.Catalogue.Condemned(ctx, b.Repository, repository.PackID{}, 10)
	must(t, err)
	if len(got) != 1 || got[0].Pack != packs[2] {
		t.Errorf("condemned after removal: %v", got)
	}
	if left := allDamage(t, b); len(left) != 1 || left[0].Pack != packs[2] {
		t.Errorf("damage after removal: %v", left)
	}
}

func allDamage(t *testing.T, b Books) []repository.Damage {
	t.Helper()
	var all []repository.Damage
	for d, err := range b.Catalogue.Damage(t.Context(), b.Repository) {
		must(t, err)
		all = append(all, d)
	}
	return all
}

func damages(t *testing.T, b Books) {
	at := time.UnixMicro(1_700_000_000_000_000).UTC()
	var want []repository.Damage
	for i := range 2500 { // more than one query reads
		want = append(want, repository.Damage{Kind: chunk.Kind(1 + i%2), ID: chunk.ID{byte(i >> 8), byte(i)}, Pack: repository.PackID{15: byte(i % 3)}, At: at})
	}
	must(t, b.Catalogue.MarkDamaged(t.Context(), b.Repository, want))
	again := want[0]
	again.At = at.Add(time.Hour)
	must(t, b.Catalogue.MarkDamaged(t.Context(), b.Repository, []repository.Damage{again}))
	got := allDamage(t, b)
	for _, all := range [][]repository.Damage{got, want} {
		slices.SortFunc(all, func(a, b repository.Damage) int { return strings.Compare(a.ID.String(), b.ID.String()) })
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("damage (-want +got):\n%s", diff)
	}
}

func imports(t *testing.T, b Books) {
	ctx := origin(t)
	lost := newPoint("s1", 10)
	must(t, b.Catalogue.Commit(ctx, b.Repository, b.Epoch, lost, 0))
	live, binned := newPoint("s2", 4000), newPoint("s3", 0)
	binned.Forgotten = time.UnixMicro(1_700_000_000_000_000).UTC()
	floor := b.Epoch + 40
	must(t, b.Catalogue.Import(ctx, b.Repository, floor, []repository.PointRecord{live, binned}, 4000))
	wantUsed(t, b, 4000, 0)
	_, err := b.Catalogue.Point(ctx, b.Repository, lost.ID)
	wantError(t, "a point that was not imported", err, tenant.ErrNotFound)
	for _, want := range []repository.PointRecord{live, binned} {
		got, err := b.Catalogue.Point(ctx, b.Repository, want.ID)
		must(t, err)
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("imported point (-want +got):\n%s", diff)
		}
	}
	wantError(t, "the epoch from before", b.Catalogue.Check(ctx, b.Repository, b.Epoch), claim.ErrFenced)
	if next := b.NextEpoch(); next <= floor {
		t.Errorf("the next epoch is %d, want more than %d", next, floor)
	}
	must(t, b.Catalogue.Import(ctx, b.Repository, 1, nil, 0)) // a floor below the epoch lowers nothing
	if next := b.NextEpoch(); next <= floor+1 {
		t.Errorf("the next epoch is %d, want more than %d", next, floor+1)
	}
}

func origins(t *testing.T, b Books) {
	p := newPoint("s1", 1)
	must(t, b.Catalogue.Commit(origin(t), b.Repository, b.Epoch, p, 0))
	_, distrusted := b.Catalogue.Distrust(t.Context(), b.Repository, b.Epoch, repository.Distrust{Owner: "agent"}, time.Now())
	for name, err := range map[string]error{
		"distrust": distrusted,

		"commit": b.Catalogue.Commit(t.Context(), b.Repository, b.Epoch, newPoint("s2", 1), 0),
		"forget": b.Catalogue.Forget(t.Context(), b.Repository, b.Epoch, p.ID, time.Now()),
		"purge":  b.Catalogue.Purge(t.Context(), b.Repository, b.Epoch, nil),
		"import": b.Catalogue.Import(t.Context(), b.Repository, 1, nil, 0),
	} {
		wantError(t, name, err, audit.ErrNoOrigin)
	}
}
