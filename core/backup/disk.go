package backup

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"iter"
	"slices"
	"time"

	"github.com/holdfast-dr/holdfast/core/chunk"
	"github.com/holdfast-dr/holdfast/core/mover"
	"github.com/holdfast-dr/holdfast/core/point"
	"github.com/holdfast-dr/holdfast/sdk"
	"github.com/holdfast-dr/holdfast/sdk/nbd"
)

// copied is a disk that has been sent.
type copied struct {
	disk mover.Disk // without its reader, which is open only while it is read
	sent point.Disk
}

// disks chooses what the snapshot is asked for: nil for every disk that can be
// part of one. Disks that stay outside are named in a warning.
func (r *run) disks(ctx context.Context) ([]sdk.DiskID, error) {
	var wanted []sdk.DiskID
	found := false
	for m, err := range r.Platform.Machines(ctx) {
		if err != nil {
			return nil, fmt.Errorf("look for machine %s: %w", r.Source, err)
		}
		if m.ID != r.Source {
			continue
		}
		found = true
		for _, d := range m.Disks {
			switch {
			case d.Skip != "":
				r.warn(Warning{Code: CodeSkipped, Disk: d.ID, Message: fmt.Sprintf("disk %s is not part of the point: %s", d.Name, d.Skip)})
			case !slices.Contains(r.Exclude, d.ID):
				wanted = append(wanted, d.ID)
			}
		}
		break
	}
	if !found {
		return nil, fmt.Errorf("look for machine %s: %w", r.Source, sdk.ErrNotFound)
	}
	if len(wanted) == 0 {
		return nil, fmt.Errorf("back up machine %s: %w", r.Source, ErrNoDisk)
	}
	return wanted, nil
}

// geometry is the shape of a disk's map.
func (r *run) geometry(d sdk.Disk) point.Geometry {
	return point.Geometry{SizeBytes: d.SizeBytes, ChunkSize: r.ChunkSize, FanOut: r.FanOut}
}

// baseOf is the map of a disk in the last point, nil where there is none of
// the same shape, and the mark from which the point was taken.
func (r *run) baseOf(d sdk.Disk) (*point.Tree, sdk.Mark) {
	if r.base == nil {
		return nil, nil
	}
	i := slices.IndexFunc(r.base.Private.Disks, func(p point.PrivateDisk) bool { return p.ID == string(d.ID) })
	if i < 0 {
		return nil, nil
	}
	g := r.base.Public.Geometry(i)
	if g != r.geometry(d) {
		if g.SizeBytes != d.SizeBytes {
			r.warn(Warning{Code: CodeSizeChanged, Disk: d.ID, Message: fmt.Sprintf("the disk had %d bytes and has %d: all of it is read", g.SizeBytes, d.SizeBytes)})
		}
		return nil, nil
	}
	tree := point.Tree{Geometry: g, Root: r.base.Public.Disks[i].Root, Pages: mover.Pages(r.Repository, r.Mover.Retry)}
	return &tree, r.base.Private.Disks[i].Mark
}

func (r *run) copyDisk(ctx context.Context, i int) error {
	d := r.snap.Machine.Disks[i]
	base, mark := r.baseOf(d)
	damaged, more := r.session.DamagedChunks()
	if more && base != nil {
		base = nil
		r.warn(Warning{Code: CodeBaseLost, Disk: d.ID, Alert: true, Message: fmt.Sprintf(
			"the repository has no sound copy of more than %d chunks of the last point; everything is read, and sent where it is lacking", len(damaged))})
	}
	disk := mover.Disk{Geometry: r.geometry(d), Base: base, Suspect: damaged}
	if base != nil && r.tracker != nil && len(mark) > 0 && !r.CompareAll {
		disk.Changed = r.changed(d.ID)
	}
	for {
		sent, stats, err := r.sendDisk(ctx, i, disk)
		r.mutex.Lock()
		stats.ReadBytes += r.result.Disks[i].ReadBytes // of the attempt before
		r.result.Disks[i].Stats = stats
		r.mutex.Unlock()
		if err == nil {
			r.copies[i] = copied{disk: disk, sent: sent}
			r.judge(d, stats)
			return nil
		}
		next, warning := slower(disk, err)
		if warning.Code == "" || ctx.Err() != nil {
			return r.explain(ctx, d.ID, err)
		}
		warning.Disk = d.ID
		r.warn(warning)
		disk = next
	}
}

// explain puts before the failure of a copy what the source says of the
// snapshot: where it was ended, that is why its disk could not be read.
func (r *run) explain(ctx context.Context, disk sdk.DiskID, err error) error {
	if ctx.Err() != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, sdk.CallLimit)
	defer cancel()
	reader, gone := r.source.OpenDisk(ctx, r.snap, disk)
	if gone == nil {
		_ = reader.Close()
		return err
	}
	if errors.Is(gone, sdk.ErrPending) || ctx.Err() != nil {
		return err
	}
	return fmt.Errorf("%w (%w)", gone, err)
}

// slower is the next best way to read a disk after an error that says that
// less is known than was hoped, and the warning to give. Without a code, the
// error is final.
func slower(disk mover.Disk, err error) (mover.Disk, Warning) {
	var lie *mover.AuditError
	switch {
	case disk.Changed != nil && errors.As(err, &lie):
		disk.Changed = nil
		return disk, Warning{Code: CodeTrackerLied, Alert: true, Message: lie.Error() + "; everything is compared"}
	case disk.Changed != nil && (errors.Is(err, sdk.ErrMarkLost) || errors.Is(err, sdk.ErrUnsupported)):
		disk.Changed = nil
		return disk, Warning{Code: CodeMarkLost, Message: fmt.Sprintf("changes since the last point are not known (%v); everything is compared", err)}
	case disk.Base != nil && (errors.Is(err, chunk.ErrDamaged) || errors.Is(err, chunk.ErrAbsent)):
		disk.Base, disk.Changed = nil, nil
		return disk, Warning{Code: CodeBaseLost, Alert: true, Message: fmt.Sprintf("the map of the last point cannot be read (%v); everything is read", err)}
	}
	return disk, Warning{}
}

// judge turns what the samples found into warnings.
func (r *run) judge(d sdk.Disk, stats mover.Stats) {
	if len(stats.Damaged) == 0 {
		return
	}
	first := stats.Damaged[0]
	by := "not known"
	if first.Session != (chunk.SessionID{}) {
		by = hex.EncodeToString(first.Session[:])
	}
	r.warn(Warning{Code: CodeDamaged, Disk: d.ID, Alert: true, Message: fmt.Sprintf(
		"%d of %d sampled chunks that the repository says it has are not what they should be, the first %s, brought by session %s (seed %s): "+
			"verify the points with their keys, and have the provider distrust the session or its agent, so that the next backup sends again what was lost",
		len(stats.Damaged), stats.Verified.Chunks, first.ID, by, stats.Seed)})
}

// sendDisk opens a disk of the snapshot and sends it.
func (r *run) sendDisk(ctx context.Context, i int, disk mover.Disk) (sent point.Disk, stats mover.Stats, err error) {
	err = r.withReader(ctx, i, func(reader sdk.BlockReader) error {
		disk.Reader = reader
		sent, stats, err = mover.Send(ctx, disk, r.to(), r.options(i))
		return err
	})
	return sent, stats, err
}

// sendMissing sends what a commit misses and this disk may have.
func (r *run) sendMissing(ctx context.Context, i int, missing *point.MissingError) error {
	c := r.copies[i]
	return r.withReader(ctx, i, func(reader sdk.BlockReader) error {
		c.disk.Reader = reader
		stats, err := mover.SendMissing(ctx, c.disk, c.sent, missing, r.to(), r.options(i))
		r.mutex.Lock()
		defer r.mutex.Unlock()
		all := &r.result.Disks[i].Stats
		all.ReadBytes += stats.ReadBytes
		all.SentBytes += stats.SentBytes
		all.StoredBytes += stats.StoredBytes
		all.SentChunks += stats.SentChunks
		return err
	})
}

func (r *run) withReader(ctx context.Context, i int, use func(sdk.BlockReader) error) error {
	var reader sdk.BlockReader
	id := r.snap.Machine.Disks[i].ID
	err := sdk.Await(ctx, func() (err error) {
		reader, err = r.source.OpenDisk(ctx, r.snap, id)
		return err
	})
	if err != nil {
		return fmt.Errorf("open the disk: %w", err)
	}
	err = use(reader)
	if m, ok := metered(reader); ok {
		r.mutex.Lock()
		r.result.Disks[i].Source = r.result.Disks[i].Source.Add(m.Stats())
		r.mutex.Unlock()
	}
	if closed := reader.Close(); err == nil && closed != nil {
		err = fmt.Errorf("close the disk: %w", closed)
	}
	return err
}

// metered looks for the counter of a reader, below what is wrapped around it.
func metered(reader sdk.BlockReader) (nbd.Metered, bool) {
	for {
		if m, ok := reader.(nbd.Metered); ok {
			return m, true
		}
		w, ok := reader.(interface{ Unwrap() sdk.BlockReader })
		if !ok {
			return nil, false
		}
		reader = w.Unwrap()
	}
}

func (r *run) to() mover.Repository {
	return mover.Repository{Writer: r.session, Reader: r.Repository, Keys: r.Keys, Session: r.session.ID()}
}

// options divides what is for the whole run between its tasks.
func (r *run) options(i int) mover.Options {
	o := r.Mover
	tasks := min(r.Tasks, len(r.copies))
	if o.Memory == 0 {
		o.Memory = defaultMemory
	}
	o.Memory /= int64(tasks)
	if o.Connections == 0 {
		o.Connections = r.connections()
	}
	o.Connections = max(1, o.Connections/tasks)
	o.Progress = nil
	if r.Progress != nil {
		o.Progress = func(p mover.Progress) { r.tell(i, p) }
	}
	return o
}

const defaultMemory = 30 << 20

// connections is how many requests of the run are best in flight.
func (r *run) connections() int {
	var roundTrip time.Duration
	if far, ok := r.session.(distant); ok {
		roundTrip = far.RoundTripTime()
	}
	return mover.ConnectionsOver(roundTrip)
}

// distant is a Session that knows how long the line is.
type distant interface {
	RoundTripTime() time.Duration
	// Connect opens as many connections.
	Connect(ctx context.Context, n int) error
}

// connect opens the connections of a long line while the snapshot is taken. Whoever
// calls it calls wait, too. A failure shows where the connections are used.
func (r *run) connect(ctx context.Context) (wait func()) {
	far, ok := r.session.(distant)
	n := r.connections()
	if !ok || r.Mover.Connections != 0 || n <= mover.ConnectionsOver(0) {
		return func() {}
	}
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = far.Connect(ctx, n) // the requests that follow tell what is wrong
	}()
	return func() {
		cancel()
		<-done
	}
}

// changed lists a disk's changes, waiting while the back-end works on it.
func (r *run) changed(disk sdk.DiskID) func(context.Context) iter.Seq2[sdk.Extent, error] {
	return func(ctx context.Context) iter.Seq2[sdk.Extent, error] {
		return func(yield func(sdk.Extent, error) bool) {
			stopped := false
			err := sdk.Await(ctx, func() error {
				for e, err := range r.tracker.Changed(ctx, r.snap, disk) {
					if err != nil {
						return err // a repeat lists again from the start, which is harmless
					}
					if !yield(e, nil) {
						stopped = true
						return nil
					}
				}
				return nil
			})
			if err != nil && !stopped {
				yield(sdk.Extent{}, err)
			}
		}
	}
}

// Progress is where a run stands.
type Progress struct {
	Disks      []DiskProgress // valid during the call
	TotalBytes int64
	DoneBytes  int64
	ReadBytes  int64
	SentBytes  int64
	Rate       float64
	Bottleneck mover.Stage // of the disk that reported last
}

// DiskProgress is where one disk stands.
type DiskProgress struct {
	ID   sdk.DiskID
	Name string
	mover.Progress
}

func (r *run) tell(i int, p mover.Progress) {
	r.mutex.Lock()
	defer r.mutex.Unlock()
	r.progress.Disks[i].Progress = p
	sum := Progress{Disks: r.progress.Disks, Bottleneck: p.Bottleneck}
	for _, d := range r.progress.Disks {
		sum.TotalBytes += d.TotalBytes
		sum.DoneBytes += d.DoneBytes
		sum.ReadBytes += d.ReadBytes
		sum.SentBytes += d.SentBytes
		if d.DoneBytes < d.TotalBytes {
			sum.Rate += d.Rate
		}
	}
	r.Progress(sum)
}
