package mover_test

import (
	"context"
	"errors"
	"iter"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfast-dr/holdfast/core/chunk"
	"github.com/holdfast-dr/holdfast/core/mover"
	"github.com/holdfast-dr/holdfast/core/mover/movertest"
	"github.com/holdfast-dr/holdfast/core/point"
	"github.com/holdfast-dr/holdfast/sdk"
)

const size = chunk.Size

// stand is a disk, a repository and the keys between them.
type stand struct {
	*testing.T
	disk  *movertest.Disk
	store *movertest.Store
	keys  *chunk.Keyring
	fan   int
}

func newStand(t *testing.T, bytes int64) *stand {
	return &stand{T: t, disk: movertest.NewDisk(bytes), store: movertest.NewStore(), keys: chunk.NewKeyring(), fan: 8}
}

func (s *stand) geometry() point.Geometry {
	return point.Geometry{SizeBytes: s.disk.Bytes, ChunkSize: size, FanOut: s.fan}
}

func (s *stand) to() mover.Repository {
	return mover.Repository{Writer: s.store, Reader: s.store, Keys: s.keys, Session: chunk.SessionID{1}}
}

func (s *stand) tree(d point.Disk) point.Tree {
	return point.Tree{Geometry: s.geometry(), Root: d.Root, Pages: s.store}
}

func (s *stand) base(d point.Disk) *point.Tree {
	tree := s.tree(d)
	return &tree
}

// fill writes n bytes at off: text-like for a positive seed, noise for a
// negative one.
func (s *stand) fill(off int64, n int, seed int64) {
	s.Helper()
	if _, err := s.disk.WriteAt(content(n, seed), off); err != nil {
		s.Fatal(err)
	}
}

func content(n int, seed int64) []byte {
	b := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8), byte(seed >> 16), byte(seed >> 24)}).Read(b) // never fails
	if seed > 0 {
		for i := range b {
			b[i] &= 3
		}
	}
	return b
}

func (s *stand) send(d mover.Disk, opts mover.Options) (point.Disk, mover.Stats) {
	s.Helper()
	d.Reader, d.Geometry = s.disk, s.geometry()
	sent, stats, err := mover.Send(s.Context(), d, s.to(), opts)
	if err != nil {
		s.Fatalf("Send: %v", err)
	}
	return sent, stats
}

func (s *stand) restored(d point.Disk) *movertest.Disk {
	s.Helper()
	w := movertest.NewDisk(s.disk.Bytes)
	if _, err := mover.Fetch(s.Context(), s.tree(d), s.to(), w, mover.Options{}); err != nil {
		s.Fatalf("Fetch: %v", err)
	}
	return w
}

func changed(extents ...sdk.Extent) func(context.Context) iter.Seq2[sdk.Extent, error] {
	return func(context.Context) iter.Seq2[sdk.Extent, error] {
		return func(yield func(sdk.Extent, error) bool) {
			for _, e := range extents {
				if !yield(e, nil) {
					return
				}
			}
		}
	}
}

// none turns the samples off, so that bytes can be counted.
var none = mover.Options{AuditChunks: -1, VerifyChunks: -1}

func TestFullSendRestoresToTheSameBytes(t *testing.T) {
	s := newStand(t, 40*size+12345)
	s.fill(0, 3*size, 1)
	s.fill(7*size+100, 2*size, -2)
	s.fill(20*size, size, 1)      // the same as the first chunk
	s.fill(40*size+12000, 345, 3) // the short last chunk
	for i := range 5 {
		s.fill(int64(30+i)*size, size, 9) // five equal chunks at once
	}
	sent, stats := s.send(mover.Disk{}, none)
	if !s.restored(sent).Equal(s.disk) {
		t.Error("the restored disk differs")
	}
	if stats.Kind != point.KindFull || stats.SentChunks != 8 || s.store.Counts().Chunks != 8 {
		t.Errorf("sent %d chunks, the store has %d, want 8: %+v", stats.SentChunks, s.store.Counts().Chunks, stats)
	}
	if want := int64(12*size + 12345); stats.ReadBytes != want {
		t.Errorf("read %d bytes, want %d: holes were read", stats.ReadBytes, want)
	}
	if n := s.store.Counts().RepeatedRecords; n != 0 {
		t.Errorf("%d records were sent twice", n)
	}
}

func TestLastBatchesOfALongLineAreSmaller(t *testing.T) {
	const content, connections = 48 << 20, 8
	s := newStand(t, content)
	s.fill(0, content, -1)
	var mutex sync.Mutex
	var sizes []int
	s.store.OnPut = func(_ context.Context, batch []byte) error {
		mutex.Lock()
		defer mutex.Unlock()
		sizes = append(sizes, len(batch))
		return nil
	}
	d, _ := s.send(mover.Disk{}, mover.Options{Connections: connections, Memory: 30 << 20})
	if !s.restored(d).Equal(s.disk) {
		t.Error("the restored disk is another")
	}
	// The pages of the map are the smallest.
	most, last := slices.Max(sizes), slices.Max(sizes[len(sizes)-3:])
	if most < 2<<20*9/10 || most > 30<<20*2/3/(connections+1) {
		t.Errorf("the largest batch has %d bytes: one for each connection and one more have to fit", most)
	}
	if last > most/2 {
		t.Errorf("the last batches have up to %d bytes, the first %d: %v", last, most, sizes)
	}
}

func TestEmptyDiskSendsNothing(t *testing.T) {
	s := newStand(t, 100*size)
	sent, stats := s.send(mover.Disk{}, mover.Options{})
	if !sent.Root.IsZero() || stats.ReadBytes != 0 || s.store.Counts().Puts != 0 {
		t.Errorf("root %s, %d bytes read, %d puts", sent.Root, stats.ReadBytes, s.store.Counts().Puts)
	}
	if !s.restored(sent).Equal(s.disk) {
		t.Error("the restored disk differs")
	}
}

func TestIncrementalReadsOnlyWhatChanged(t *testing.T) {
	s := newStand(t, 300*size)
	s.fill(0, 50*size, 1)
	first, _ := s.send(mover.Disk{}, none)
	before := s.disk.BytesRead()
	puts := s.store.Counts()

	s.fill(10*size+5, 10, 77)
	s.fill(200*size-3, 6, 78)                                       // over a border, into a hole
	if err := s.disk.Zero(20*size, 4*movertest.Block); err != nil { // one chunk
		t.Fatal(err)
	}
	second, stats := s.send(mover.Disk{Base: s.base(first), Changed: changed(
		sdk.Extent{Offset: 10 * size, Length: 65536},
		sdk.Extent{Offset: 20 * size, Length: size},
		sdk.Extent{Offset: 30*size + 4096, Length: 4096}, // named, but the same
		sdk.Extent{Offset: 200*size - 65536, Length: 131072},
	)}, none)
	if got, want := s.disk.BytesRead()-before, int64(5*size); got != want || stats.ReadBytes != want || stats.ChangedBytes != want {
		t.Errorf("read %d bytes, stats say %d of %d changed, want %d", got, stats.ReadBytes, stats.ChangedBytes, want)
	}
	after := s.store.Counts()
	if got := after.Chunks - puts.Chunks; got != 3 || stats.SentChunks != 3 || stats.Kind != point.KindIncremental {
		t.Errorf("sent %d chunks, want 3: %+v", got, stats)
	}
	if pages := after.Pages - puts.Pages; pages > 3*4+1 {
		t.Errorf("wrote %d pages of a map of 4 levels for 4 places", pages)
	}
	if !s.restored(second).Equal(s.disk) {
		t.Error("the restored disk differs")
	}
	if _, err := mover.Verify(t.Context(), s.tree(first), s.to(), func(d mover.Damage) error { return d }, mover.Options{}); err != nil {
		t.Errorf("the first point no longer verifies: %v", err)
	}
}

func TestChangedHoleOverOldDataIsZero(t *testing.T) {
	s := newStand(t, 100*size)
	s.fill(0, 60*size, 1)
	first, _ := s.send(mover.Disk{}, none)
	if err := s.disk.Zero(10*size, 40*size); err != nil {
		t.Fatal(err)
	}
	before := s.disk.BytesRead()
	for _, d := range []mover.Disk{
		{Base: s.base(first), Changed: changed(sdk.Extent{Offset: 10 * size, Length: 40 * size})},
		{Base: s.base(first)},
	} {
		second, _ := s.send(d, none)
		if !s.restored(second).Equal(s.disk) {
			t.Error("the restored disk differs")
		}
	}
	if got := s.disk.BytesRead() - before; got > 20*size+2*2*s.disk.Bytes {
		t.Errorf("read %d bytes", got)
	}
}

func TestCompareSendsOnlyWhatDiffers(t *testing.T) {
	s := newStand(t, 200*size)
	s.fill(0, 100*size, 1)
	first, _ := s.send(mover.Disk{}, none)
	asked := s.store.Counts().Asked
	s.fill(50*size, 100, 5)
	second, stats := s.send(mover.Disk{Base: s.base(first)}, none)
	if stats.Kind != point.KindCompare || stats.SentChunks != 1 || stats.ReadBytes != 100*size || stats.SameBytes != 99*size {
		t.Errorf("stats %+v, want one chunk of 100 sent", stats)
	}
	if got := s.store.Counts().Asked - asked; got != 1 {
		t.Errorf("asked about %d chunks, want 1: the base has the others", got)
	}
	if !s.restored(second).Equal(s.disk) {
		t.Error("the restored disk differs")
	}
}

func TestRepeatAfterABrokenRunSendsTheRest(t *testing.T) {
	s := newStand(t, 64*size)
	s.fill(0, 64*size, -1)
	var puts atomic.Int32
	broken := errors.New("the disk at the provider is full")
	s.store.OnPut = func(context.Context, []byte) error {
		if puts.Add(1) > 3 {
			return broken
		}
		return nil
	}
	_, _, err := mover.Send(t.Context(), mover.Disk{Reader: s.disk, Geometry: s.geometry()}, s.to(), none)
	if !errors.Is(err, broken) {
		t.Fatalf("Send = %v, want %v", err, broken)
	}
	arrived := s.store.Counts().Chunks
	if arrived == 0 || arrived == 64 {
		t.Fatalf("%d chunks arrived, want some", arrived)
	}
	s.store.OnPut = nil
	sent, stats := s.send(mover.Disk{}, none)
	if got := int(stats.SentChunks); got != 64-arrived {
		t.Errorf("sent %d chunks, want the other %d", got, 64-arrived)
	}
	if !s.restored(sent).Equal(s.disk) {
		t.Error("the restored disk differs")
	}
}

func TestTemporaryFailuresAreRepeated(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStand(t, 32*size)
		s.fill(0, 32*size, -1)
		var calls atomic.Int32
		flaky := func() error {
			if calls.Add(1)%3 != 0 {
				return movertest.ErrTemporary
			}
			return nil
		}
		s.store.OnPut = func(context.Context, []byte) error { return flaky() }
		s.store.OnHave = func(context.Context, []chunk.ID) error { return flaky() }
		s.store.OnRead = func(context.Context, chunk.Kind, []chunk.ID) error { return flaky() }
		sent, stats := s.send(mover.Disk{}, none)
		if stats.Retries == 0 {
			t.Error("nothing was repeated")
		}
		w := movertest.NewDisk(s.disk.Bytes)
		tree := s.tree(sent)
		tree.Pages = mover.Pages(s.store, mover.Retry{})
		if _, err := mover.Fetch(t.Context(), tree, s.to(), w, mover.Options{}); err != nil {
			t.Fatal(err)
		}
		if !w.Equal(s.disk) {
			t.Error("the restored disk differs")
		}
	})
}

func TestRetryGivesUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStand(t, size)
		s.fill(0, size, -1)
		s.store.OnPut = func(context.Context, []byte) error { return movertest.ErrTemporary }
		started := time.Now()
		_, _, err := mover.Send(t.Context(), mover.Disk{Reader: s.disk, Geometry: s.geometry()}, s.to(),
			mover.Options{Retry: mover.Retry{For: time.Minute}})
		if !errors.Is(err, movertest.ErrTemporary) {
			t.Errorf("Send = %v", err)
		}
		if took := time.Since(started); took < time.Minute || took > 2*time.Minute {
			t.Errorf("gave up after %v, want about a minute", took)
		}
	})
}

func TestFailuresEndTheCopy(t *testing.T) {
	boom := errors.New("boom")
	for name, breakIt := range map[string]func(*stand, *mover.Disk){
		"read": func(s *stand, _ *mover.Disk) {
			s.disk.OnRead = func(off int64, _ int) error {
				if off > 20*size {
					return boom
				}
				return nil
			}
		},
		"have": func(s *stand, _ *mover.Disk) {
			s.store.OnHave = func(context.Context, []chunk.ID) error { return boom }
		},
		"put": func(s *stand, _ *mover.Disk) { s.store.OnPut = func(context.Context, []byte) error { return boom } },
		"tracker": func(s *stand, d *mover.Disk) {
			d.Base = s.base(point.Disk{})
			d.Changed = func(context.Context) iter.Seq2[sdk.Extent, error] {
				return func(yield func(sdk.Extent, error) bool) { yield(sdk.Extent{}, boom) }
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := newStand(t, 64*size)
			s.fill(0, 64*size, -1)
			d := mover.Disk{Reader: s.disk, Geometry: s.geometry()}
			breakIt(s, &d)
			if _, _, err := mover.Send(t.Context(), d, s.to(), none); !errors.Is(err, boom) {
				t.Errorf("Send = %v, want %v", err, boom)
			}
		})
	}
}

func TestCancelledCopyEnds(t *testing.T) {
	s := newStand(t, 64*size)
	s.fill(0, 64*size, -1)
	ctx, cancel := context.WithCancel(t.Context())
	s.store.OnPut = func(ctx context.Context, _ []byte) error {
		cancel()
		<-ctx.Done()
		return ctx.Err()
	}
	_, _, err := mover.Send(ctx, mover.Disk{Reader: s.disk, Geometry: s.geometry()}, s.to(), none)
	if !errors.Is(err, context.Canceled) {
		t.Errorf("Send = %v", err)
	}
}

// gapped is a disk whose allocation map is what somebody says.
type gapped struct {
	*movertest.Disk
	says []sdk.Extent
}

func (g gapped) Extents(context.Context, int64, int64) iter.Seq2[sdk.Extent, error] {
	return changed(g.says...)(nil)
}

func TestAllocationMapWithAGapIsRefused(t *testing.T) {
	s := newStand(t, 10*size)
	for name, says := range map[string][]sdk.Extent{
		"a gap":         {{Length: size}, {Offset: 2 * size, Length: 8 * size}},
		"an early end":  {{Length: 9 * size}},
		"nothing":       nil,
		"an overlap":    {{Length: 2 * size}, {Offset: size, Length: 9 * size}},
		"a late end":    {{Length: 11 * size}},
		"a late start":  {{Offset: size, Length: 9 * size}},
		"no end at all": {{Length: 5 * size}, {Offset: 5 * size}, {Offset: 5 * size, Length: 5 * size}},
	} {
		_, _, err := mover.Send(t.Context(), mover.Disk{Reader: gapped{s.disk, says}, Geometry: s.geometry()}, s.to(), none)
		if !errors.Is(err, sdk.ErrInvalid) {
			t.Errorf("%s: Send = %v, want %v", name, err, sdk.ErrInvalid)
		}
	}
}

func TestChangesOutsideTheDiskAreRefused(t *testing.T) {
	s := newStand(t, 10*size)
	for _, e := range []sdk.Extent{{Offset: -1, Length: 5}, {Offset: 5, Length: -1}, {Offset: 10*size - 1, Length: 2}, {Offset: 1 << 62, Length: 1 << 62}} {
		_, _, err := mover.Send(t.Context(), mover.Disk{Reader: s.disk, Geometry: s.geometry(), Base: s.base(point.Disk{}), Changed: changed(e)}, s.to(), none)
		if !errors.Is(err, sdk.ErrInvalid) {
			t.Errorf("%+v: Send = %v, want %v", e, err, sdk.ErrInvalid)
		}
	}
}

func TestLyingTrackerIsFound(t *testing.T) {
	s := newStand(t, 500*size)
	s.fill(0, 100*size, 1)
	first, _ := s.send(mover.Disk{}, none)
	s.fill(0, 100*size, 2) // everything written changes, the tracker names one chunk
	puts := s.store.Counts().Puts
	_, stats, err := mover.Send(t.Context(), mover.Disk{Reader: s.disk, Geometry: s.geometry(), Base: s.base(first),
		Changed: changed(sdk.Extent{Offset: 0, Length: size})}, s.to(), mover.Options{Seed: mover.Seed{1}})
	var lie *mover.AuditError
	if !errors.As(err, &lie) || lie.Checked != 16 || lie.Wrong == 0 || lie.Offset >= 100*size {
		t.Fatalf("Send = %v, want an AuditError over 16 chunks", err)
	}
	if s.store.Counts().Puts != puts {
		t.Error("something was sent before the audit had passed")
	}
	if stats.Audit.Wrong != lie.Wrong {
		t.Errorf("stats say %+v", stats.Audit)
	}
}

// With the seed that a run tells, the next one looks at the same chunks; without, at others.
func TestAuditIsRepeatedBySeed(t *testing.T) {
	s := newStand(t, 500*size)
	s.fill(0, 100*size, 1)
	first, _ := s.send(mover.Disk{}, none)
	audited := func(o mover.Options) (offsets []int64, seed mover.Seed) {
		var mutex sync.Mutex
		s.disk.OnRead = func(off int64, _ int) error {
			mutex.Lock()
			defer mutex.Unlock()
			offsets = append(offsets, off)
			return nil
		}
		_, stats := s.send(mover.Disk{Base: s.base(first), Changed: changed()}, o)
		s.disk.OnRead = nil
		slices.Sort(offsets)
		return offsets, stats.Seed
	}
	before, seed := audited(mover.Options{})
	again, same := audited(mover.Options{Seed: seed})
	if len(before) != 16 || !slices.Equal(before, again) || same != seed {
		t.Errorf("read at %v, and with the same seed at %v", before, again)
	}
	if others, other := audited(mover.Options{}); slices.Equal(before, others) || other == seed {
		t.Errorf("two unpredictable samples are the same: %v", others)
	}
}

// How often a lie is found is what DESIGN.md says, over seeds that are the same each time.
func TestLiesAreFoundAsOftenAsPromised(t *testing.T) {
	s := newStand(t, 500*size)
	s.fill(0, 100*size, 1)
	first, _ := s.send(mover.Disk{}, none)
	s.fill(75*size, 25*size, 2) // 5 % of the disk, 25 % of what is not zero
	const runs = 100
	found := 0
	for i := range byte(runs) {
		_, _, err := mover.Send(t.Context(), mover.Disk{Reader: s.disk, Geometry: s.geometry(), Base: s.base(first), Changed: changed()},
			s.to(), mover.Options{Seed: mover.Seed{1, i}, VerifyChunks: -1})
		if lie := new(mover.AuditError); errors.As(err, &lie) {
			found++
		} else if err != nil {
			t.Fatal(err)
		}
	}
	if promised := (mover.Sample{Chunks: 16}).Detection(0.05, 1); float64(found) < promised*runs || found < 85 {
		t.Errorf("%d of %d runs found the lie; at least %.0f should, and 93 are expected", found, runs, promised*runs)
	}
}

func TestHonestTrackerPassesTheAudit(t *testing.T) {
	s := newStand(t, 500*size)
	s.fill(0, 100*size, 1)
	first, _ := s.send(mover.Disk{}, none)
	s.fill(0, size, 2)
	_, stats := s.send(mover.Disk{Base: s.base(first), Changed: changed(sdk.Extent{Offset: 0, Length: size})}, mover.Options{})
	if stats.Audit.Chunks != 16 || stats.Audit.Wrong != 0 || stats.ReadBytes != stats.ChangedBytes+stats.Audit.Bytes {
		t.Errorf("audit %+v, read %d", stats.Audit, stats.ReadBytes)
	}
	if stats.Verified.Chunks == 0 || stats.Verified.Wrong != 0 {
		t.Errorf("verified %+v", stats.Verified)
	}
	if p := stats.Audit.Detection(0.01, 30); p < 0.99 || p > 1 {
		t.Errorf("detection of 1 %% over 30 runs is %.3f", p)
	}
}

func TestPoisonedChunkIsFound(t *testing.T) {
	s := newStand(t, 64*size)
	s.fill(0, 30*size, 1)
	first, _ := s.send(mover.Disk{}, none)
	// Sealed under the right keys and a good id, with other content: only a
	// recomputed id shows it.
	ids := s.store.Names(chunk.KindData)
	poison, err := s.keys.NewSealer(chunk.SessionID{2}).Append(nil, ids[0], content(size, -5))
	if err != nil {
		t.Fatal(err)
	}
	s.store.Replace(chunk.KindData, ids[0], poison)
	s.store.Remove(chunk.KindData, ids[1])
	for _, d := range []mover.Disk{
		{Base: s.base(first)},
		{Base: s.base(first), Changed: changed()},
	} {
		_, stats := s.send(d, mover.Options{VerifyChunks: 60})
		if !slices.Contains(stats.Damaged, mover.Suspect{ID: ids[0], Session: chunk.SessionID{2}}) || !slices.Contains(stats.Damaged, mover.Suspect{ID: ids[1]}) {
			t.Errorf("damaged %v, want %s of session 2 and %s of none", stats.Damaged, ids[0], ids[1])
		}
		if len(stats.Damaged) != 2 || stats.Verified.Wrong != 2 || stats.Verified.Chunks < 25 {
			t.Errorf("damaged %v of %+v, want 2 of about 30", stats.Damaged, stats.Verified)
		}
	}
}

func TestMissingChunksAreSentAgain(t *testing.T) {
	s := newStand(t, 64*size)
	s.fill(0, 30*size, 1)
	sent, _ := s.send(mover.Disk{}, none)
	ids := s.store.Names(chunk.KindData)
	s.store.Remove(chunk.KindData, ids[3])
	before := s.disk.BytesRead()
	d := mover.Disk{Reader: s.disk, Geometry: s.geometry()}
	stats, err := mover.SendMissing(t.Context(), d, sent, &point.MissingError{Chunks: ids[3:4]}, s.to(), none)
	if err != nil {
		t.Fatal(err)
	}
	if got := s.disk.BytesRead() - before; got != size || stats.SentChunks != 1 {
		t.Errorf("read %d bytes and sent %d chunks for one that was missing", got, stats.SentChunks)
	}
	if !s.restored(sent).Equal(s.disk) {
		t.Error("the restored disk differs")
	}

	page := s.store.Names(chunk.KindPage)[0]
	s.store.Remove(chunk.KindPage, page)
	s.store.Remove(chunk.KindData, ids[4])
	if _, err := mover.SendMissing(t.Context(), d, sent, &point.MissingError{Chunks: ids[4:5], Pages: []chunk.ID{page}}, s.to(), none); err != nil {
		t.Fatal(err)
	}
	if !s.restored(sent).Equal(s.disk) {
		t.Error("the restored disk differs after pages were missing")
	}
}

func TestSuspectChunkOfTheBaseIsSentAgain(t *testing.T) {
	s := newStand(t, 64*size)
	s.fill(0, 30*size, 1)
	first, _ := s.send(mover.Disk{}, none)
	bad := s.store.Names(chunk.KindData)[0]
	s.store.Remove(chunk.KindData, bad) // what have answers for a damaged one
	sent, stats := s.send(mover.Disk{Base: s.base(first), Changed: changed(), Suspect: []chunk.ID{bad}}, none)
	if stats.SentChunks != 1 || sent != first {
		t.Errorf("sent %d chunks, want the one that is damaged", stats.SentChunks)
	}
}

func TestScatteredIncrementalNeedsFewPageRequests(t *testing.T) {
	s := newStand(t, 20000*size)
	s.fan = 128
	var extents []sdk.Extent
	for i := int64(0); i < 20000; i += 100 {
		s.fill(i*size, 10, i+1)
		extents = append(extents, sdk.Extent{Offset: i * size, Length: 10})
	}
	first, _ := s.send(mover.Disk{}, none)
	for i := int64(0); i < 20000; i += 100 {
		s.fill(i*size, 10, i+2)
	}
	before := s.store.Counts()
	second, stats := s.send(mover.Disk{Base: s.base(first), Changed: changed(extents...)}, none)
	if got := s.store.Counts().PageReads - before.PageReads; got > 10 {
		t.Errorf("%d requests for the %d pages of the base", got, stats.Pages)
	}
	if second.Root == first.Root {
		t.Error("the map did not change")
	}
}
