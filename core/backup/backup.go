package backup

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/google/uuid"
	"golang.org/x/sync/errgroup"

	"github.com/holdfast-dr/holdfast/core/chunk"
	"github.com/holdfast-dr/holdfast/core/mover"
	"github.com/holdfast-dr/holdfast/core/point"
	"github.com/holdfast-dr/holdfast/sdk"
	"github.com/holdfast-dr/holdfast/sdk/nbd"
)

// Repository is a cloud repository as a backup sees it.
type Repository interface {
	mover.Reader

	// Last is the manifest of the machine's newest point, or nil if there is
	// none. It promises nothing: Run checks it.
	Last(ctx context.Context, machine point.MachineID) ([]byte, error)

	// Begin opens a session that builds on a point, "" for none, and pins it.
	// owner names the caller to people.
	Begin(ctx context.Context, machine point.MachineID, base point.ID, owner string) (Session, error)
}

// Session brings one point to a repository.
type Session interface {
	mover.Writer
	ID() chunk.SessionID

	// DamagedChunks are chunks of the base point whose copies at the repository
	// are damaged or distrusted, and which this point should bring again. With
	// more there are others that are not named.
	DamagedChunks() (ids []chunk.ID, more bool)

	// Commit makes the point exist. A *point.MissingError names what has to be
	// sent again; repeating a commit that succeeded is nil.
	Commit(ctx context.Context, manifest []byte) error

	// Abort ends the session without a point. What it brought stays for a
	// while, so that the next session finds it.
	Abort(ctx context.Context) error
}

// Request says what to back up, and where to.
type Request struct {
	Platform     sdk.Platform
	PlatformName string // of the plugin, kept with the point
	Endpoint     string // kept with the point
	Source       sdk.MachineID
	// Op identifies the run: a run that is repeated with the same ID after a
	// crash goes on with the snapshot that is there.
	Op sdk.Op

	RepositoryID string
	Repository   Repository
	Keys         *chunk.Keyring
	Machine      point.MachineID
	Owner        string
	Point        point.ID // of the new point; "" makes one
	// Remembered are the machine's last points that this agent saw committed,
	// the newest first. A repository that shows another is an alert.
	Remembered []point.ID
	// Tried are the ids under which earlier runs of this agent may have committed
	// without hearing of it: no alert, if they are newer than what is Remembered.
	Tried []point.ID
	// Held is the Result.Held of the machine's run before, so that no mark is
	// forgotten at the source, whatever the repository shows.
	Held      []HeldMark
	ChunkSize int64 // of the repository; 0 means chunk.Size
	FanOut    int   // 0 means point.FanOut

	Quiesce    sdk.Quiesce   // "" means file-system
	Deadline   time.Duration // of the freeze; 0 leaves it to the plugin
	Exclude    []sdk.DiskID
	CompareAll bool // read and compare everything, whatever the tracker says
	Tasks      int  // disks at once; default 2
	// Mover tunes each disk's copy; Memory and Connections are for all tasks
	// together. Its Progress is not used.
	Mover    mover.Options
	Progress func(Progress) // called under a lock, about once a second per disk
}

// Result is what a run did.
type Result struct {
	Point       point.ID
	Previous    point.ID // the point that it builds on
	Manifest    []byte   // sealed
	Machine     sdk.Machine
	Taken       time.Time
	Kind        point.Kind
	Consistency sdk.Quiesce
	Note        string // why less was achieved than asked
	Disks       []DiskResult
	Warnings    []Warning
	Held        []HeldMark // what the source may still keep; for the next Request, also after a failure
	ReadBytes   int64      // at the source
	Source      nbd.Stats  // what moved from and to the source, where the disks' readers are nbd.Metered
	SentBytes   int64      // of plaintext in new chunks
	StoredBytes int64      // sealed, pages included: what the repository received
	Duration    time.Duration
	Bottleneck  mover.Stage
}

// HeldMark is a mark that costs the source something until it is released.
type HeldMark struct {
	Disk sdk.DiskID
	Mark sdk.Mark
}

// DiskResult is what a run did with one disk.
type DiskResult struct {
	ID   sdk.DiskID
	Name string
	mover.Stats
	Source nbd.Stats // what moved from and to its server, zero if the reader does not count
}

// Warning is something that the operator should know of a run that went on.
type Warning struct {
	Code    Code
	Disk    sdk.DiskID // "" for the whole machine
	Alert   bool       // an attack or a fault of the provider may be behind it
	Message string
}

// Code says what a Warning is about.
type Code string

// The codes.
const (
	CodeForged       Code = "manifest-forged"   // the last point's manifest does not carry our MAC
	CodeHidden       Code = "point-hidden"      // the repository does not show the newest point
	CodeUnknownPoint Code = "point-unknown"     // the repository shows a point that we did not make
	CodeDamaged      Code = "chunks-damaged"    // a sample of what is not sent is not what it should be
	CodeTrackerLied  Code = "tracker-lied"      // everything was compared
	CodeMarkLost     Code = "mark-lost"         // everything was compared
	CodeSizeChanged  Code = "size-changed"      // everything was read
	CodeBaseLost     Code = "base-damaged"      // the last point's map cannot be read; everything was read
	CodeSkipped      Code = "disk-skipped"      // the disk is not part of the point
	CodeQuiesce      Code = "less-consistent"   // than asked
	CodeResent       Code = "chunks-sent-again" // commit missed some
	CodeCleanUp      Code = "clean-up"          // something was left at the source
)

const (
	defaultTasks = 2
	commitRounds = 5               // of sending what a commit misses
	cleanUpTime  = 5 * time.Minute // for ending a snapshot, whatever happened before
)

// ErrNoDisk means that nothing of the machine can be backed up.
var ErrNoDisk = errors.New("no disk to back up")

// Run makes one point of a machine. The Result is filled as far as the run came
// also when it fails.
func Run(ctx context.Context, req Request) (Result, error) {
	r, err := newRun(req)
	if err != nil {
		return Result{}, err
	}
	err = r.run(ctx)
	return r.finish(), err
}

// run is one Run.
type run struct {
	Request
	source  sdk.Source
	tracker sdk.ChangeTracker // nil: none
	base    *point.Manifest   // nil: none
	session Session
	snap    sdk.Snapshot
	started time.Time
	copies  []copied // by disk of the snapshot

	mutex    sync.Mutex // guards the fields below
	result   Result
	progress Progress
}

func newRun(req Request) (*run, error) {
	r := &run{Request: req, started: time.Now()}
	var ok bool
	if r.source, ok = sdk.As[sdk.Source](req.Platform); !ok {
		return nil, fmt.Errorf("back up machine %s: the platform is no source: %w", req.Source, sdk.ErrUnsupported)
	}
	r.tracker, _ = sdk.As[sdk.ChangeTracker](req.Platform)
	if r.ChunkSize == 0 {
		r.ChunkSize = chunk.Size
	}
	if r.FanOut == 0 {
		r.FanOut = point.FanOut
	}
	if r.Quiesce == "" {
		r.Quiesce = sdk.QuiesceFileSystem
	}
	if r.Tasks <= 0 {
		r.Tasks = defaultTasks
	}
	if r.Point == "" {
		r.Point = point.NewID()
	}
	r.result.Point = r.Point
	r.result.Held = slices.Clone(r.Held)
	return r, nil
}

// op names a step of the run; the same step of a repeated run has the same id.
func (r *run) op(step string) sdk.Op {
	op := r.Op
	op.ID = uuid.NewSHA1(uuid.NameSpaceOID, []byte("holdfast backup "+r.Op.ID+" "+step)).String()
	return op
}

func (r *run) warn(w Warning) {
	r.mutex.Lock()
	defer r.mutex.Unlock()
	r.result.Warnings = append(r.result.Warnings, w)
}

func (r *run) run(ctx context.Context) (err error) {
	if r.base, err = r.last(ctx); err != nil {
		return err
	}
	previous := point.ID("")
	if r.base != nil {
		previous = r.base.Public.Point
	}
	r.result.Previous = previous
	wanted, err := r.disks(ctx)
	if err != nil {
		return err
	}
	// The session comes first: a provider that refuses it must not cost the
	// machine a freeze.
	if r.session, err = r.Repository.Begin(ctx, r.Machine, previous, r.Owner); err != nil {
		return fmt.Errorf("begin a session: %w", err)
	}
	committed := false
	defer func() {
		if !committed {
			r.abort(ctx)
		}
	}()
	defer r.connect(ctx)()
	if err := r.snapshot(ctx, wanted); err != nil {
		return err
	}
	defer func() {
		failed := r.endSnapshot(ctx, committed)
		if failed != nil {
			r.warn(Warning{Code: CodeCleanUp, Message: failed.Error()})
		}
		if committed || failed != nil {
			r.hold()
		}
		if committed && failed == nil {
			r.releaseMarks(ctx)
		}
	}()
	if err := r.copy(ctx); err != nil {
		return err
	}
	if err := r.commit(ctx); err != nil {
		return err
	}
	committed = true
	return nil
}

func (r *run) snapshot(ctx context.Context, wanted []sdk.DiskID) error {
	req := sdk.SnapshotRequest{Machine: r.Source, Disks: wanted, Quiesce: r.Quiesce, Deadline: r.Deadline, Since: r.since()}
	err := sdk.Await(ctx, func() (err error) {
		r.snap, err = r.source.Snapshot(ctx, r.op("snapshot"), req)
		return err
	})
	if err != nil {
		if ctx.Err() != nil || errors.Is(err, sdk.ErrPending) {
			r.giveUpSnapshot(ctx, req) // it may come into being after all
		}
		return fmt.Errorf("take a snapshot of machine %s: %w", r.Source, err)
	}
	r.mutex.Lock()
	defer r.mutex.Unlock()
	r.result.Machine, r.result.Taken = r.snap.Machine, r.snap.Taken
	r.result.Consistency, r.result.Note = r.snap.Achieved, r.snap.Note
	if r.snap.Achieved != r.Quiesce && r.snap.Note != "" {
		r.result.Warnings = append(r.result.Warnings, Warning{Code: CodeQuiesce, Message: r.snap.Note})
	}
	return nil
}

// giveUpSnapshot ends a snapshot whose answer the run did not wait for. Asking
// again with the same id is the only way to learn what became of it.
func (r *run) giveUpSnapshot(ctx context.Context, req sdk.SnapshotRequest) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanUpTime)
	defer cancel()
	err := sdk.Await(ctx, func() (err error) {
		r.snap, err = r.source.Snapshot(ctx, r.op("snapshot"), req)
		return err
	})
	if err == nil {
		err = r.endSnapshot(ctx, false)
	} else {
		err = r.Platform.Cancel(ctx, r.op("snapshot").ID)
	}
	if err != nil {
		r.warn(Warning{Code: CodeCleanUp, Message: fmt.Sprintf("give up a snapshot: %v", err)})
	}
}

// endSnapshot ends the snapshot, whatever became of ctx.
func (r *run) endSnapshot(ctx context.Context, keep bool) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanUpTime)
	defer cancel()
	err := sdk.Await(ctx, func() error { return r.source.EndSnapshot(ctx, r.op("end"), r.snap, keep) })
	if err != nil {
		return fmt.Errorf("end snapshot %s: %w", r.snap.ID, err)
	}
	return nil
}

func (r *run) abort(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanUpTime)
	defer cancel()
	if err := r.session.Abort(ctx); err != nil {
		r.warn(Warning{Code: CodeCleanUp, Message: fmt.Sprintf("abort the session: %v", err)})
	}
}

// copy moves all disks, Tasks at a time.
func (r *run) copy(ctx context.Context) error {
	disks := r.snap.Machine.Disks
	if len(disks) == 0 {
		return fmt.Errorf("back up machine %s: %w", r.Source, ErrNoDisk)
	}
	r.result.Disks = make([]DiskResult, len(disks))
	r.progress.Disks = make([]DiskProgress, len(disks))
	r.copies = make([]copied, len(disks))
	for i, d := range disks {
		r.result.Disks[i] = DiskResult{ID: d.ID, Name: d.Name}
		r.progress.Disks[i] = DiskProgress{ID: d.ID, Name: d.Name, Progress: mover.Progress{TotalBytes: d.SizeBytes}}
	}
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(r.Tasks)
	for i := range disks {
		g.Go(func() error {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			if err := r.copyDisk(ctx, i); err != nil {
				return fmt.Errorf("back up disk %s: %w", disks[i].ID, err)
			}
			return nil
		})
	}
	return g.Wait()
}

// commit seals the manifest and commits it, sending what the repository misses.
func (r *run) commit(ctx context.Context) error {
	sealed, err := r.manifest()
	if err != nil {
		return err
	}
	retry := r.Mover.Retry
	for round := 0; ; round++ {
		err := retry.Do(ctx, func() error { return r.session.Commit(ctx, sealed) })
		var missing *point.MissingError
		switch {
		case err == nil:
			r.mutex.Lock()
			r.result.Manifest = sealed
			r.mutex.Unlock()
			return nil
		case !errors.As(err, &missing) || round == commitRounds:
			return fmt.Errorf("commit point %s: %w", r.Point, err)
		}
		r.warn(Warning{Code: CodeResent, Message: err.Error()})
		for i := range r.copies {
			if err := r.sendMissing(ctx, i, missing); err != nil {
				return fmt.Errorf("send again what commit misses of disk %s: %w", r.snap.Machine.Disks[i].ID, err)
			}
		}
	}
}

func (r *run) manifest() ([]byte, error) {
	spec, err := json.Marshal(r.snap.Machine)
	if err != nil {
		return nil, fmt.Errorf("encode the machine's description: %w", err)
	}
	session := r.session.ID()
	m := point.Manifest{
		Public: point.Public{
			Repository: r.RepositoryID, Point: r.Point, Previous: r.result.Previous, Machine: r.Machine,
			Session: fmt.Sprintf("%x", session[:]), Taken: r.snap.Taken, Kind: r.kind(),
			ChunkSize: r.ChunkSize, FanOut: r.FanOut,
		},
		Private: point.Private{
			Machine: r.snap.Machine.Name, Platform: r.PlatformName, Endpoint: r.Endpoint,
			Consistency: string(r.snap.Achieved), Note: r.snap.Note, Spec: spec,
		},
	}
	for i, d := range r.snap.Machine.Disks {
		m.Public.Disks = append(m.Public.Disks, r.copies[i].sent)
		m.Private.Disks = append(m.Private.Disks, point.PrivateDisk{ID: string(d.ID), Name: d.Name, Mark: r.snap.Marks[d.ID]})
	}
	return m.Seal(r.Keys)
}

// kind is the slowest that any disk was read.
func (r *run) kind() point.Kind {
	kind := point.KindIncremental
	if r.base == nil {
		kind = point.KindFull
	}
	for _, d := range r.result.Disks {
		if d.Kind == point.KindCompare || d.Kind == point.KindFull && kind != point.KindFull {
			kind = point.KindCompare
		}
	}
	r.result.Kind = kind
	return kind
}

func (r *run) finish() Result {
	r.mutex.Lock()
	defer r.mutex.Unlock()
	var sum mover.Load
	for _, d := range r.result.Disks {
		r.result.ReadBytes += d.ReadBytes
		r.result.Source = r.result.Source.Add(d.Source)
		r.result.SentBytes += d.SentBytes
		r.result.StoredBytes += d.StoredBytes + d.PageBytes
		weight := d.Duration.Seconds()
		sum.Source += d.Load.Source * weight
		sum.CPU += d.Load.CPU * weight
		sum.Network += d.Load.Network * weight
		sum.Repository += d.Load.Repository * weight
	}
	r.result.Duration = time.Since(r.started)
	r.result.Bottleneck = sum.Bottleneck()
	return r.result
}
