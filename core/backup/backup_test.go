package backup_test

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/holdfast-dr/holdfast/core/backup"
	"github.com/holdfast-dr/holdfast/core/chunk"
	"github.com/holdfast-dr/holdfast/core/mover"
	"github.com/holdfast-dr/holdfast/core/mover/movertest"
	"github.com/holdfast-dr/holdfast/core/point"
	"github.com/holdfast-dr/holdfast/sdk"
	"github.com/holdfast-dr/holdfast/sdk/sim"
)

// repository is a provider with one machine's points.
type repository struct {
	*movertest.Store

	mutex       sync.Mutex // guards the fields below
	points      [][]byte
	sessions    int
	open        int
	damaged     []chunk.ID
	damagedMore bool
	onCommit    func(round int) error
	commits     int

	roundTrip time.Duration // of the line, if it is known
	connected atomic.Int64  // how many connections were opened beforehand
}

func (r *repository) Last(context.Context, point.MachineID) ([]byte, error) {
	r.mutex.Lock()
	defer r.mutex.Unlock()
	if len(r.points) == 0 {
		return nil, nil
	}
	return r.points[len(r.points)-1], nil
}

func (r *repository) Begin(context.Context, point.MachineID, point.ID, string) (backup.Session, error) {
	r.mutex.Lock()
	defer r.mutex.Unlock()
	r.sessions++
	r.open++
	s := &session{Store: r.Store, of: r, id: chunk.SessionID{byte(r.sessions)}}
	if r.roundTrip > 0 {
		return far{session: s, roundTrip: r.roundTrip}, nil
	}
	return s, nil
}

type session struct {
	*movertest.Store
	of *repository
	id chunk.SessionID
}

// far is a session over a long line.
type far struct {
	*session
	roundTrip time.Duration
}

func (f far) RoundTripTime() time.Duration { return f.roundTrip }

func (f far) Connect(_ context.Context, n int) error {
	f.of.connected.Store(int64(n))
	return errors.New("a failure here is not the run's")
}

func (s *session) ID() chunk.SessionID               { return s.id }
func (s *session) DamagedChunks() ([]chunk.ID, bool) { return s.of.damaged, s.of.damagedMore }

func (s *session) Commit(_ context.Context, manifest []byte) error {
	s.of.mutex.Lock()
	defer s.of.mutex.Unlock()
	s.of.commits++
	if s.of.onCommit != nil {
		if err := s.of.onCommit(s.of.commits); err != nil {
			return err
		}
	}
	if _, err := point.ParsePublic(manifest); err != nil {
		return err
	}
	s.of.points = append(s.of.points, manifest)
	s.of.open--
	return nil
}

func (s *session) Abort(context.Context) error {
	s.of.mutex.Lock()
	defer s.of.mutex.Unlock()
	s.of.open--
	return nil
}

// site is a hypervisor with a machine, and a provider.
type site struct {
	*testing.T
	hv      *sim.Hypervisor
	machine sdk.Machine
	repo    *repository
	req     backup.Request
	runs    int
}

const mib = 1 << 20

func newSite(t *testing.T, disks ...int64) *site {
	t.Helper()
	s := &site{T: t, hv: sim.New(), repo: &repository{Store: movertest.NewStore()}}
	var err error
	if s.machine, err = s.hv.CreateMachine(sim.MachineSpec{Name: "db", DiskBytes: disks}); err != nil {
		t.Fatal(err)
	}
	s.req = backup.Request{
		Platform: s.hv.Connect(sim.Settings{}), PlatformName: "sim", Endpoint: "lab", Source: s.machine.ID,
		RepositoryID: uuid.NewString(), Repository: s.repo, Keys: chunk.NewKeyring(),
		Machine: point.MachineID(uuid.NewString()), Owner: "test", Quiesce: sdk.QuiesceNone,
		Mover: mover.Options{AuditChunks: -1, VerifyChunks: -1},
	}
	return s
}

func (s *site) write(disk int, off int64, n int, seed uint64) {
	s.Helper()
	r, b := rand.New(rand.NewPCG(seed, 1)), make([]byte, n)
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	if err := s.hv.WriteDisk(s.machine.ID, s.machine.Disks[disk].ID, off, b); err != nil {
		s.Fatal(err)
	}
}

func (s *site) request() backup.Request {
	s.runs++
	s.req.Op = sdk.Op{ID: fmt.Sprintf("run-%d", s.runs), Epoch: max(1, s.req.Op.Epoch)}
	return s.req
}

func (s *site) backup() backup.Result {
	s.Helper()
	res, err := backup.Run(s.Context(), s.request())
	if err != nil {
		s.Fatalf("Run: %v", err)
	}
	s.req.Remembered, s.req.Held = append([]point.ID{res.Point}, s.req.Remembered...), res.Held
	s.clean()
	return res
}

// clean checks that nothing is left open at either end.
func (s *site) clean() {
	s.Helper()
	if s.repo.open != 0 {
		s.Errorf("%d sessions are open", s.repo.open)
	}
	objects, err := s.hv.Objects()
	if err != nil {
		s.Fatal(err)
	}
	marks := 0
	for _, o := range objects {
		switch kind, _, _ := strings.Cut(o, " "); kind {
		case "snapshot":
			s.Errorf("%s was left at the source", o)
		case "mark":
			marks++
		}
	}
	if marks > len(s.machine.Disks) {
		s.Errorf("%d marks of %d disks are kept: %v", marks, len(s.machine.Disks), objects)
	}
}

// holds checks that the newest point has the machine's present bytes.
func (s *site) holds() {
	s.Helper()
	m, err := point.Open(s.repo.points[len(s.repo.points)-1], s.req.Keys)
	if err != nil {
		s.Fatal(err)
	}
	for i, d := range s.machine.Disks {
		got := movertest.NewDisk(m.Public.Disks[i].SizeBytes)
		tree := point.Tree{Geometry: m.Public.Geometry(i), Root: m.Public.Disks[i].Root, Pages: s.repo}
		if _, err := mover.Fetch(s.Context(), tree, mover.Repository{Reader: s.repo, Keys: s.req.Keys}, got, mover.Options{}); err != nil {
			s.Fatal(err)
		}
		want := movertest.NewDisk(m.Public.Disks[i].SizeBytes)
		block := make([]byte, mib)
		for at := int64(0); at < want.Bytes; at += mib {
			n := min(mib, want.Bytes-at)
			if err := s.hv.ReadDisk(s.machine.ID, d.ID, at, block[:n]); err != nil {
				s.Fatal(err)
			}
			if _, err := want.WriteAt(block[:n], at); err != nil {
				s.Fatal(err)
			}
		}
		if !got.Equal(want) {
			s.Errorf("disk %d of the point differs from the machine", i)
		}
	}
}

func codes(res backup.Result) (codes []backup.Code) {
	for _, w := range res.Warnings {
		codes = append(codes, w.Code)
	}
	return codes
}

func (s *site) warned(res backup.Result, code backup.Code, alert bool) {
	s.Helper()
	i := slices.IndexFunc(res.Warnings, func(w backup.Warning) bool { return w.Code == code })
	if i < 0 {
		s.Fatalf("warnings %v, want %s", codes(res), code)
	}
	if w := res.Warnings[i]; w.Alert != alert || w.Message == "" {
		s.Errorf("warning %+v, want alert=%v and a message", w, alert)
	}
}

func TestFullThenIncremental(t *testing.T) {
	s := newSite(t, 64*mib, 8*mib+512)
	s.write(0, 0, 5*mib, 1)
	s.write(1, 8*mib, 512, 2)
	first := s.backup()
	if first.Kind != point.KindFull || len(first.Disks) != 2 || first.Previous != "" || len(first.Warnings) != 0 {
		t.Errorf("first run: %+v", first)
	}
	s.holds()

	s.write(0, 20*mib+10, 100, 3)
	second := s.backup()
	if second.Kind != point.KindIncremental || second.Previous != first.Point || len(second.Warnings) != 0 {
		t.Errorf("second run: %+v", second)
	}
	if second.ReadBytes != chunk.Size || second.SentBytes != chunk.Size {
		t.Errorf("read %d and sent %d bytes for a change of 100", second.ReadBytes, second.SentBytes)
	}
	s.holds()

	third := s.backup()
	if third.ReadBytes != 0 || third.StoredBytes != 0 {
		t.Errorf("read %d and stored %d bytes for no change", third.ReadBytes, third.StoredBytes)
	}
	s.holds()
}

func TestManifestDescribesTheMachine(t *testing.T) {
	s := newSite(t, 4*mib)
	res := s.backup()
	m, err := point.Open(res.Manifest, s.req.Keys)
	if err != nil {
		t.Fatal(err)
	}
	if m.Private.Machine != "db" || m.Private.Platform != "sim" || m.Private.Endpoint != "lab" || len(m.Private.Spec) == 0 ||
		m.Private.Disks[0].ID != string(s.machine.Disks[0].ID) || len(m.Private.Disks[0].Mark) == 0 {
		t.Errorf("private part %+v", m.Private)
	}
	if m.Public.Machine != s.req.Machine || m.Public.Repository != s.req.RepositoryID || m.Public.Taken.IsZero() {
		t.Errorf("public part %+v", m.Public)
	}
}

func TestLostMarkComparesEverything(t *testing.T) {
	s := newSite(t, 32*mib)
	s.write(0, 0, 4*mib, 1)
	s.backup()
	if err := s.hv.LoseMarks(s.machine.ID); err != nil {
		t.Fatal(err)
	}
	s.write(0, mib, 10, 2)
	res := s.backup()
	s.warned(res, backup.CodeMarkLost, false)
	if res.Kind != point.KindCompare || res.SentBytes != chunk.Size || res.ReadBytes < 4*mib {
		t.Errorf("kind %s, read %d, sent %d", res.Kind, res.ReadBytes, res.SentBytes)
	}
	s.holds()
	if next := s.backup(); next.Kind != point.KindIncremental {
		t.Errorf("the run after is %s", next.Kind)
	}
}

func TestCompareAllReadsEverything(t *testing.T) {
	s := newSite(t, 32*mib)
	s.write(0, 0, 4*mib, 1)
	s.backup()
	s.req.CompareAll = true
	if res := s.backup(); res.Kind != point.KindCompare || res.ReadBytes != 4*mib || res.SentBytes != 0 || len(res.Warnings) != 0 {
		t.Errorf("kind %s, read %d, sent %d", res.Kind, res.ReadBytes, res.SentBytes)
	}
}

// liar is a platform whose change tracker says that nothing changed.
type liar struct{ *sim.Platform }

func (liar) Changed(context.Context, sdk.Snapshot, sdk.DiskID) iter.Seq2[sdk.Extent, error] {
	return func(func(sdk.Extent, error) bool) {}
}

func (l liar) As(target any) bool {
	if tracker, ok := target.(*sdk.ChangeTracker); ok {
		*tracker = l
		return true
	}
	return l.Platform.As(target)
}

func TestLyingTrackerIsCompared(t *testing.T) {
	s := newSite(t, 16*mib)
	s.req.Mover.AuditChunks = 60
	s.req.Platform = liar{s.hv.Connect(sim.Settings{})}
	s.write(0, 0, 8*mib, 1)
	s.backup()
	s.write(0, 0, 8*mib, 2)
	res := s.backup()
	s.warned(res, backup.CodeTrackerLied, true)
	if res.Kind != point.KindCompare {
		t.Errorf("kind %s", res.Kind)
	}
	s.holds()
}

func TestPointThatIsNotOursIsNotBuiltUpon(t *testing.T) {
	s := newSite(t, 8*mib)
	s.write(0, 0, mib, 1)
	s.backup()
	other := newSite(t, 8*mib)
	other.req.Machine, other.req.RepositoryID = s.req.Machine, s.req.RepositoryID
	other.backup()
	s.repo.points = append(s.repo.points, other.repo.points[0])
	res := s.backup()
	s.warned(res, backup.CodeForged, true)
	if res.Kind != point.KindFull || res.Previous != "" {
		t.Errorf("kind %s on %q", res.Kind, res.Previous)
	}
	s.holds()
}

func TestPointOfAnotherMachineIsNotBuiltUpon(t *testing.T) {
	s := newSite(t, 8*mib)
	s.backup()
	s.req.Machine = point.MachineID(uuid.NewString())
	s.req.Remembered = nil
	s.warned(s.backup(), backup.CodeForged, true)
}

func TestHiddenPointRaisesAnAlert(t *testing.T) {
	s := newSite(t, 8*mib)
	s.backup()
	s.backup()
	s.repo.points = s.repo.points[:1]
	s.write(0, 0, mib, 1)
	res := s.backup()
	s.warned(res, backup.CodeHidden, true)
	s.holds()

	s.repo.points = nil
	s.warned(s.backup(), backup.CodeHidden, true)

	s.req.Remembered = []point.ID{point.NewID()}
	s.warned(s.backup(), backup.CodeUnknownPoint, true)
}

// A commit whose answer was lost is no attack; a point that was made so must
// not hide a newer one either.
func TestPointWhoseCommitWasNotAnsweredIsOurs(t *testing.T) {
	s := newSite(t, 8*mib)
	one := s.backup().Point
	two := s.backup().Point
	s.req.Remembered, s.req.Tried = []point.ID{one}, []point.ID{two}
	res := s.backup()
	if res.Previous != two || slices.ContainsFunc(res.Warnings, func(w backup.Warning) bool { return w.Alert }) {
		t.Errorf("built on %s with %+v, want %s without an alert", res.Previous, res.Warnings, two)
	}
	s.req.Remembered, s.req.Tried = []point.ID{two}, []point.ID{one}
	s.repo.points = s.repo.points[:1]
	s.warned(s.backup(), backup.CodeUnknownPoint, true)
}

func TestMissingChunksAreSentBeforeCommitSucceeds(t *testing.T) {
	s := newSite(t, 8*mib, 8*mib)
	s.write(0, 0, 2*mib, 1)
	s.write(1, 0, 2*mib, 2)
	s.repo.onCommit = func(round int) error {
		if round > 1 {
			return nil
		}
		ids := s.repo.Names(chunk.KindData)[:3]
		for _, id := range ids {
			s.repo.Remove(chunk.KindData, id)
		}
		return &point.MissingError{Chunks: ids}
	}
	res := s.backup()
	s.warned(res, backup.CodeResent, false)
	s.holds()
}

func TestCommitThatAlwaysMissesFails(t *testing.T) {
	s := newSite(t, 8*mib)
	s.write(0, 0, mib, 1)
	s.repo.onCommit = func(int) error { return &point.MissingError{Chunks: []chunk.ID{{1}}} }
	_, err := backup.Run(t.Context(), s.request())
	var missing *point.MissingError
	if !errors.As(err, &missing) || s.repo.commits > 10 {
		t.Errorf("Run = %v after %d commits", err, s.repo.commits)
	}
	s.clean()
}

func TestDamagedBaseIsReadWhole(t *testing.T) {
	s := newSite(t, 8*mib)
	s.write(0, 0, 4*mib, 1)
	s.backup()
	for _, id := range s.repo.Names(chunk.KindPage) {
		s.repo.Remove(chunk.KindPage, id)
	}
	s.write(0, 0, 10, 2)
	res := s.backup()
	s.warned(res, backup.CodeBaseLost, true)
	s.holds()
}

func TestDamagedChunksAreSupplied(t *testing.T) {
	s := newSite(t, 8*mib)
	s.write(0, 0, 4*mib, 1)
	s.backup()
	bad := s.repo.Names(chunk.KindData)[0]
	s.repo.Remove(chunk.KindData, bad)
	s.repo.damaged = []chunk.ID{bad}
	if res := s.backup(); res.SentBytes != chunk.Size || res.ReadBytes != chunk.Size {
		t.Errorf("read %d and sent %d bytes", res.ReadBytes, res.SentBytes)
	}
	s.holds()
}

// More chunks than a session names: the base is no help, and everything that the
// repository lacks is sent, whatever the tracker calls unchanged.
func TestMuchDamageIsReadWhole(t *testing.T) {
	s := newSite(t, 8*mib)
	s.write(0, 0, 4*mib, 1)
	s.backup()
	names := s.repo.Names(chunk.KindData)
	for _, id := range names {
		s.repo.Remove(chunk.KindData, id)
	}
	s.repo.damaged, s.repo.damagedMore = names[:1], true
	res := s.backup()
	s.warned(res, backup.CodeBaseLost, true)
	if res.ReadBytes < 4*mib || res.SentBytes != 4*mib {
		t.Errorf("read %d and sent %d bytes", res.ReadBytes, res.SentBytes)
	}
	s.holds()
}

func TestFailedRunLeavesNothing(t *testing.T) {
	s := newSite(t, 8*mib)
	s.write(0, 0, 4*mib, 1)
	s.backup()
	s.write(0, mib, mib, 2)
	boom := errors.New("boom")
	s.repo.OnPut = func(context.Context, []byte) error { return boom }
	if _, err := backup.Run(t.Context(), s.request()); !errors.Is(err, boom) {
		t.Errorf("Run = %v", err)
	}
	s.clean()
	s.repo.OnPut = nil
	if res := s.backup(); res.Kind != point.KindIncremental {
		t.Errorf("the run after a failed one is %s: %+v", res.Kind, res.Warnings)
	}
	s.holds()
}

// spared is a source that ends a snapshot by itself.
type spared struct {
	*sim.Platform
	why error
}

func (s *spared) As(target any) bool {
	if source, ok := target.(*sdk.Source); ok {
		*source = s
		return true
	}
	return s.Platform.As(target)
}

func (s *spared) OpenDisk(ctx context.Context, snap sdk.Snapshot, disk sdk.DiskID) (sdk.BlockReader, error) {
	if s.why != nil {
		return nil, s.why
	}
	return s.Platform.OpenDisk(ctx, snap, disk)
}

func TestReasonOfAnEndedSnapshotIsTold(t *testing.T) {
	s := newSite(t, 8*mib)
	s.write(0, 0, 4*mib, 1)
	source, boom := &spared{Platform: s.hv.Connect(sim.Settings{})}, errors.New("boom")
	s.req.Platform = source
	s.repo.OnPut = func(context.Context, []byte) error {
		source.why = sdk.Errorf(sdk.ErrUnavailable, sdk.FaultBackend, "ended to spare the guest").WithHint("give it room")
		return boom
	}
	_, err := backup.Run(t.Context(), s.request())
	if !errors.Is(err, sdk.ErrUnavailable) || !errors.Is(err, boom) || sdk.HintOf(err) != "give it room" {
		t.Errorf("Run = %v", err)
	}
	source.why = nil
	s.clean()
}

func TestCancelledRunEndsItsSnapshot(t *testing.T) {
	s := newSite(t, 8*mib)
	s.write(0, 0, 4*mib, 1)
	ctx, cancel := context.WithCancel(t.Context())
	s.repo.OnPut = func(context.Context, []byte) error { cancel(); return ctx.Err() }
	if _, err := backup.Run(ctx, s.request()); !errors.Is(err, context.Canceled) {
		t.Errorf("Run = %v", err)
	}
	s.clean()
}

func TestExcludedDiskIsLeftOut(t *testing.T) {
	s := newSite(t, 8*mib, 4*mib)
	s.req.Exclude = []sdk.DiskID{s.machine.Disks[0].ID}
	res := s.backup()
	if len(res.Disks) != 1 || res.Disks[0].ID != s.machine.Disks[1].ID {
		t.Errorf("disks %+v", res.Disks)
	}
	s.req.Exclude = append(s.req.Exclude, s.machine.Disks[1].ID)
	if _, err := backup.Run(t.Context(), s.request()); !errors.Is(err, backup.ErrNoDisk) {
		t.Errorf("Run = %v", err)
	}
	s.clean()
}

func TestPendingCallsAreAwaited(t *testing.T) {
	s := newSite(t, 8*mib)
	s.write(0, 0, mib, 1)
	if err := s.hv.SetFaults(sim.Fault{Call: "Snapshot", Action: sim.ActionPending, Times: 1}); err != nil {
		t.Fatal(err)
	}
	s.backup()
	s.holds()
}

func TestUnknownMachine(t *testing.T) {
	s := newSite(t, mib)
	s.req.Source = "nobody"
	if _, err := backup.Run(t.Context(), s.request()); !errors.Is(err, sdk.ErrNotFound) {
		t.Errorf("Run = %v", err)
	}
}

func TestProgressAddsUp(t *testing.T) {
	s := newSite(t, 8*mib, 8*mib)
	s.write(0, 0, 4*mib, 1)
	var last backup.Progress
	s.req.Progress = func(p backup.Progress) { last = p }
	s.backup()
	if last.TotalBytes != 16*mib || last.DoneBytes != 16*mib || last.ReadBytes != 4*mib {
		t.Errorf("last progress %+v", last)
	}
}

// A process that is killed between commit and the end of its snapshot leaves the
// snapshot; the next life ends it, and the marks are those of the point.
func TestLongLineHasMoreOnItsWay(t *testing.T) {
	for _, c := range []struct {
		roundTrip time.Duration
		want      int
	}{{0, 4}, {25 * time.Millisecond, 6}, {time.Second, 8}} {
		s := newSite(t, 32*mib)
		s.write(0, 0, 32*mib, 1)
		s.repo.roundTrip = c.roundTrip
		// No answer comes before as many batches are on their way as there should be.
		enough := make(chan struct{})
		once := sync.OnceFunc(func() { close(enough) })
		s.repo.OnPut = func(ctx context.Context, _ []byte) error {
			if s.repo.Counts().MaxPutsAtOnce == c.want {
				once()
			}
			select {
			case <-enough:
				return nil
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		_, err := backup.Run(ctx, s.request())
		cancel()
		if n := s.repo.connected.Load(); c.want > 4 && n != int64(c.want) || c.want == 4 && n != 0 {
			t.Errorf("round trip %s: %d connections opened beforehand", c.roundTrip, n)
		}
		if most := s.repo.Counts().MaxPutsAtOnce; err != nil || most != c.want {
			t.Errorf("round trip %s: %d batches at once, want %d (%v)", c.roundTrip, most, c.want, err)
		}
	}
}

func TestKilledAfterCommitIsConcluded(t *testing.T) {
	for name, killed := range map[string]bool{"before the end of the snapshot": true, "after it": false} {
		t.Run(name, func(t *testing.T) {
			s := newSite(t, 8*mib, mib)
			s.write(0, 0, 4*mib, 1)
			held := s.backup().Held
			s.write(0, mib, mib, 2)
			req := s.request()
			req.Held = held
			if killed {
				process := s.hv.Connect(sim.Settings{})
				req.Platform = process
				s.repo.onCommit = func(int) error { process.Kill(); return nil }
			}
			made, err := backup.Run(t.Context(), req)
			if err != nil {
				t.Fatal(err)
			}
			s.repo.onCommit = nil
			committed, err := point.Open(s.repo.points[len(s.repo.points)-1], req.Keys)
			if err != nil {
				t.Fatal(err)
			}
			req.Platform, req.Op.Epoch = s.hv.Connect(sim.Settings{}), req.Op.Epoch+1
			concluded, err := backup.Conclude(t.Context(), req, committed)
			if err != nil || concluded.Point != made.Point || concluded.Kind != made.Kind || len(concluded.Warnings) != 0 {
				t.Errorf("concluded: %+v, %v", concluded, err)
			}
			s.clean()
			s.req.Op.Epoch = req.Op.Epoch
			s.write(0, 3*mib, mib, 3)
			if res := s.backup(); res.Kind != point.KindIncremental {
				t.Errorf("the run after it is %s: %+v", res.Kind, res.Warnings)
			}
			s.holds()
		})
	}
}
