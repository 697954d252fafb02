package restore

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/holdfast-dr/holdfast/core/mover"
	"github.com/holdfast-dr/holdfast/sdk"
)

// MachineRequest says how to restore a machine.
type MachineRequest struct {
	Platform     sdk.Platform
	PlatformName string // of the plugin: the same one gets the source's own description back
	Op           sdk.Op // of the restore; a repeat after a crash finds its draft
	Point        *Point

	Name     string            // "" keeps the machine's
	Pool     string            // "" is the back-end's default
	Networks map[string]string // see sdk.DraftSpec
	Replace  sdk.MachineID     // overwritten; the caller has asked for confirmation
	Start    bool              // power it on when it is restored

	Tasks    int            // disks at once; default 2
	Mover    mover.Options  // Memory and Connections are for all tasks together
	Progress func(Progress) // called under a lock, about once a second per disk
}

// Result is what a restore did.
type Result struct {
	Machine      sdk.MachineID // "" of a restore to a file
	Started      bool
	Disks        []DiskResult
	WrittenBytes int64
	Duration     time.Duration
}

// DiskResult is what a restore did with one disk.
type DiskResult struct {
	ID   sdk.DiskID
	Name string
	mover.FetchStats
}

// Progress is where a restore stands.
type Progress struct {
	TotalBytes int64
	DoneBytes  int64
	Rate       float64
	Bottleneck mover.Stage // of the disk that reported last
}

// StartError says that a machine was restored but could not be started.
type StartError struct {
	Machine sdk.MachineID
	Err     error
}

func (e *StartError) Error() string {
	return fmt.Sprintf("machine %s is restored, but could not be started: %v", e.Machine, e.Err)
}

// Unwrap gives errors.Is the reason.
func (e *StartError) Unwrap() error { return e.Err }

// Machine restores a whole machine. It appears, powered off, only when every
// disk is complete.
func Machine(ctx context.Context, req MachineRequest) (res Result, err error) {
	began := time.Now()
	defer func() { res.Duration = time.Since(began) }()
	target, ok := sdk.As[sdk.Target](req.Platform)
	if !ok {
		return res, fmt.Errorf("restore machine %s: the platform is no target: %w", req.Point.Machine.Name, sdk.ErrUnsupported)
	}
	m := &machine{MachineRequest: req, target: target}
	spec, err := m.spec()
	if err != nil {
		return res, err
	}
	if err := sdk.Await(ctx, func() (err error) {
		m.draft, err = target.CreateDraft(ctx, derive(req.Op, "create"), spec)
		return err
	}); err != nil {
		if ctx.Err() != nil {
			m.abortUnknown(ctx, spec)
		}
		return res, fmt.Errorf("create a draft of machine %s: %w", spec.Machine.Name, err)
	}
	res.Disks, err = m.fill(ctx)
	for _, d := range res.Disks {
		res.WrittenBytes += d.WrittenBytes
	}
	if err == nil {
		res.Machine, err = m.commit(ctx)
	}
	if err != nil {
		if res.Machine, err = m.abort(ctx, err); err != nil {
			return res, err
		}
	}
	if req.Start {
		if err := m.start(ctx, res.Machine); err != nil {
			return res, &StartError{Machine: res.Machine, Err: err}
		}
		res.Started = true
	}
	return res, nil
}

type machine struct {
	MachineRequest
	target sdk.Target
	draft  sdk.Draft

	mutex    sync.Mutex // guards progress
	progress []mover.Progress
}

// spec describes the draft: the machine as the source described it, with the
// disks that the point has.
func (m *machine) spec() (sdk.DraftSpec, error) {
	spec := sdk.DraftSpec{Machine: m.Point.Machine, Replace: m.Replace, Pool: m.Pool, Networks: m.Networks}
	if m.Name != "" {
		spec.Machine.Name = m.Name
	}
	if m.PlatformName != m.Point.Manifest.Private.Platform {
		spec.Machine.Native = nil // another back-end could not read it
	}
	described := make(map[string]sdk.Disk)
	for _, d := range spec.Machine.Disks {
		described[string(d.ID)] = d
	}
	spec.Machine.Disks = nil
	for i, p := range m.Point.Manifest.Private.Disks {
		d, ok := described[p.ID]
		if !ok {
			return spec, fmt.Errorf("restore machine %s: disk %s is not in its description: %w", spec.Machine.Name, p.Name, sdk.ErrInvalid)
		}
		d.SizeBytes = m.Point.Manifest.Public.Disks[i].SizeBytes
		if m.Pool != "" {
			d.Pool = ""
		}
		spec.Machine.Disks = append(spec.Machine.Disks, d)
	}
	return spec, nil
}

func (m *machine) fill(ctx context.Context) ([]DiskResult, error) {
	disks := m.Point.Manifest.Private.Disks
	results := make([]DiskResult, len(disks))
	m.progress = make([]mover.Progress, len(disks))
	for i := range disks {
		results[i] = DiskResult{ID: sdk.DiskID(disks[i].ID), Name: disks[i].Name}
		m.progress[i].TotalBytes = m.Point.Manifest.Public.Disks[i].SizeBytes
	}
	tasks := m.Tasks
	if tasks <= 0 {
		tasks = 2
	}
	tasks = min(tasks, len(disks))
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(tasks)
	for i := range disks {
		g.Go(func() (err error) {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			if results[i].FetchStats, err = m.fillDisk(ctx, i, tasks); err != nil {
				return fmt.Errorf("restore disk %s: %w", disks[i].Name, err)
			}
			return nil
		})
	}
	return results, g.Wait()
}

func (m *machine) fillDisk(ctx context.Context, i, tasks int) (stats mover.FetchStats, err error) {
	id := sdk.DiskID(m.Point.Manifest.Private.Disks[i].ID)
	var w sdk.BlockWriter
	if err := sdk.Await(ctx, func() (err error) {
		w, err = m.target.OpenDraftDisk(ctx, derive(m.Op, "open "+string(id)), m.draft, id)
		return err
	}); err != nil {
		return stats, fmt.Errorf("open the draft's disk: %w", err)
	}
	opts := m.Mover
	if opts.Connections == 0 {
		opts.Connections = 4
	}
	opts.Connections = max(1, opts.Connections/tasks)
	opts.Damaged, opts.Progress = nil, nil
	if m.Progress != nil {
		opts.Progress = func(p mover.Progress) { m.tell(i, p) }
	}
	stats, err = mover.Fetch(ctx, m.Point.Tree(i, opts.Retry), m.Point.From(), w, opts)
	if closed := w.Close(); err == nil && closed != nil {
		err = fmt.Errorf("close the draft's disk: %w", closed)
	}
	return stats, err
}

func (m *machine) tell(i int, p mover.Progress) {
	m.mutex.Lock()
	defer m.mutex.Unlock()
	m.progress[i] = p
	sum := Progress{Bottleneck: p.Bottleneck}
	for _, p := range m.progress {
		sum.TotalBytes += p.TotalBytes
		sum.DoneBytes += p.DoneBytes
		if p.DoneBytes < p.TotalBytes {
			sum.Rate += p.Rate
		}
	}
	m.Progress(sum)
}

func (m *machine) commit(ctx context.Context) (id sdk.MachineID, err error) {
	err = sdk.Await(ctx, func() (err error) {
		id, err = m.target.CommitDraft(ctx, derive(m.Op, "commit"), m.draft)
		return err
	})
	if err != nil {
		return "", fmt.Errorf("commit the draft: %w", err)
	}
	return id, nil
}

// abort removes the draft, whatever became of ctx, and returns why. A draft that
// cannot be removed because it is a machine was committed by an attempt whose end
// nobody noted, for its id is that of the operation: then the restore is done, and
// committing again tells which machine it is.
func (m *machine) abort(ctx context.Context, why error) (sdk.MachineID, error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanUpTime)
	defer cancel()
	err := sdk.Await(ctx, func() error { return m.target.AbortDraft(ctx, derive(m.Op, "abort"), m.draft) })
	if errors.Is(err, sdk.ErrInvalid) {
		id, again := m.commit(ctx)
		if again == nil {
			return id, nil
		}
		err = again
	}
	if err != nil {
		return "", errors.Join(why, fmt.Errorf("remove the unfinished machine: %w", err))
	}
	return "", why
}

// abortUnknown removes a draft whose creation the restore did not wait for.
// Asking again with the same id is the only way to learn what became of it.
func (m *machine) abortUnknown(ctx context.Context, spec sdk.DraftSpec) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanUpTime)
	defer cancel()
	op := derive(m.Op, "create")
	if err := sdk.Await(ctx, func() (err error) {
		m.draft, err = m.target.CreateDraft(ctx, op, spec)
		return err
	}); err != nil {
		_ = m.Platform.Cancel(ctx, op.ID) // a draft that remains is found by its id when the restore is repeated
		return
	}
	_, _ = m.abort(ctx, nil) // as above
}

func (m *machine) start(ctx context.Context, id sdk.MachineID) error {
	power, ok := sdk.As[sdk.Power](m.Platform)
	if !ok {
		return fmt.Errorf("the platform starts no machines: %w", sdk.ErrUnsupported)
	}
	return sdk.Await(ctx, func() error { return power.Start(ctx, derive(m.Op, "start"), id) })
}
