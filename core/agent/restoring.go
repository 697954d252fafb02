package agent

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/holdfast-dr/holdfast/core/claim"
	"github.com/holdfast-dr/holdfast/core/host"
	"github.com/holdfast-dr/holdfast/core/job"
	"github.com/holdfast-dr/holdfast/core/mover"
	"github.com/holdfast-dr/holdfast/core/point"
	"github.com/holdfast-dr/holdfast/core/restore"
	"github.com/holdfast-dr/holdfast/core/restore/image"
	"github.com/holdfast-dr/holdfast/core/tenant"
	"github.com/holdfast-dr/holdfast/sdk"
)

// RestoreMachine starts the restore of a whole machine, after checking what can
// be checked before it takes long.
func (a *Agent) RestoreMachine(ctx context.Context, req MachineRestore) (RunStatus, error) {
	p, store, err := a.findPoint(ctx, req.Point)
	if err != nil {
		return RunStatus{}, err
	}
	if p.Problem != "" {
		return RunStatus{}, &RefusedError{Reason: "the point cannot be opened: " + p.Problem, Next: "import the recovery kit of its keyring: holdfast key import-kit FILE"}
	}
	if req.Endpoint == "" {
		req.Endpoint = p.Endpoint
	}
	if _, err := a.endpoint(ctx, req.Endpoint); err != nil {
		return RunStatus{}, err
	}
	if req.Replace != "" && req.Name != "" {
		return RunStatus{}, &tenant.InvalidError{Field: "name", Reason: "a machine that is restored over keeps its name"}
	}
	if req.Name == "" && req.Replace == "" {
		req.Name = fmt.Sprintf("%s-restored-%s", p.Machine, a.now().UTC().Format("20060102-150405"))
	}
	req.Point = string(p.ID)
	return a.start(ctx, RunRestoreMachine, "point:"+req.Point, false, runSpec{Name: p.Machine, Connection: store.connection.ID, Machine: &req})
}

// RestoreDisk starts the restore of one disk to a file on this machine.
func (a *Agent) RestoreDisk(ctx context.Context, req DiskRestore) (RunStatus, error) {
	p, store, err := a.findPoint(ctx, req.Point)
	if err != nil {
		return RunStatus{}, err
	}
	if p.Problem != "" {
		return RunStatus{}, &RefusedError{Reason: "the point cannot be opened: " + p.Problem, Next: "import the recovery kit of its keyring: holdfast key import-kit FILE"}
	}
	disk, err := chooseDisk(p, req.Disk)
	if err != nil {
		return RunStatus{}, err
	}
	if !filepath.IsAbs(req.File) {
		return RunStatus{}, &tenant.InvalidError{Field: "file", Reason: "must be an absolute path on the agent's machine"}
	}
	if _, err := os.Lstat(req.File); err == nil && !req.Overwrite {
		return RunStatus{}, &tenant.InvalidError{Field: "file", Reason: req.File + " exists; say that it may be overwritten (--overwrite), or name another file"}
	} else if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return RunStatus{}, &tenant.InvalidError{Field: "file", Reason: err.Error()}
	}
	if info, err := os.Stat(filepath.Dir(req.File)); err != nil || !info.IsDir() {
		return RunStatus{}, &tenant.InvalidError{Field: "file", Reason: filepath.Dir(req.File) + " is not a folder on the agent's machine"}
	}
	if req.Format == "" {
		req.Format = string(image.Raw)
	}
	req.Point, req.Disk = string(p.ID), disk.ID
	return a.start(ctx, RunRestoreDisk, "point:"+req.Point, false, runSpec{Name: p.Machine + " " + disk.Name, Connection: store.connection.ID, Disk: &req})
}

func chooseDisk(p PointStatus, name string) (PointDisk, error) {
	names := make([]string, len(p.Disks))
	reason := "name one of "
	if name != "" {
		reason = fmt.Sprintf("the point has no %q; name one of ", name)
	}
	for i, d := range p.Disks {
		if name == "" && len(p.Disks) == 1 || name != "" && (d.ID == name || strings.EqualFold(d.Name, name)) {
			return d, nil
		}
		names[i] = d.Name
	}
	return PointDisk{}, &tenant.InvalidError{Field: "disk", Reason: reason + strings.Join(names, ", ")}
}

// VerifyPoint starts reading a point back: every chunk is fetched, opened and
// hashed.
func (a *Agent) VerifyPoint(ctx context.Context, req VerifyRequest) (RunStatus, error) {
	p, store, err := a.findPoint(ctx, req.Point)
	if err != nil {
		return RunStatus{}, err
	}
	req.Point = string(p.ID)
	return a.start(ctx, RunVerify, "point:"+req.Point, false, runSpec{Name: p.Machine, Connection: store.connection.ID, Verify: &req})
}

// opened is a point that a run works with.
type opened struct {
	point *restore.Point
	store storeRef
	tasks int
}

func (a *Agent) openPoint(ctx context.Context, id string) (opened, error) {
	p, s, err := a.findPoint(ctx, id)
	if err != nil {
		return opened{}, err
	}
	m, err := a.openManifest(ctx, s.repository, p.ID)
	if err != nil {
		return opened{}, err
	}
	keys, err := a.keysOf(ctx, m.Public.Keyring)
	if err != nil {
		return opened{}, err
	}
	w, err := a.wire(s.connection)
	if err != nil {
		return opened{}, err
	}
	site, err := w.Site(ctx)
	if err != nil {
		return opened{}, err
	}
	rp, err := restore.Open(ctx, s.repository, keys, p.ID)
	return opened{point: rp, store: s, tasks: max(1, min(maxTasks, site.Tenant.MaxTasks))}, err
}

// restoreMachine is the handler of machine restores.
func (a *Agent) restoreMachine(ctx context.Context, x *job.Execution) error {
	var spec runSpec
	if err := x.Spec(&spec); err != nil {
		return err
	}
	req := spec.Machine
	p, err := a.openPoint(ctx, req.Point)
	if err != nil {
		return failed(err)
	}
	endpoint, err := a.endpoint(ctx, req.Endpoint)
	if err != nil {
		return failed(err)
	}
	ctx = host.OnBehalf(ctx, p.store.connection.TenantID, x.Run().ID)
	err = a.withPlatform(ctx, endpoint, func(platform sdk.Platform) error {
		var replace sdk.MachineID
		epoch := uint64(0)
		if req.Replace != "" {
			claimed, held, err := a.takeOver(ctx, x, platform, endpoint.ID, req.Replace)
			if err != nil {
				return err
			}
			defer a.release(held.Held)
			ctx, replace, epoch = claimed, held.machine, held.epoch
		}
		res, err := restore.Machine(ctx, restore.MachineRequest{
			Platform: platform, PlatformName: endpoint.Plugin, Op: sdk.Op{ID: x.Run().ID, Epoch: epoch}, Point: p.point,
			Name: req.Name, Pool: req.Pool, Networks: req.Networks, Replace: replace, Start: req.Start, Tasks: p.tasks,
			Progress: func(pr restore.Progress) { a.restoring(x, "restoring", pr) },
		})
		return errors.Join(x.SetResult(runResult{Restored: restored(p.point, res, req.Name, req.Replace, "")}), err)
	})
	var start *restore.StartError
	if errors.As(err, &start) {
		x.Warn(*failureOf(start))
		return nil
	}
	if err != nil {
		return failed(err)
	}
	return nil
}

// taken is a machine that is off and held.
type taken struct {
	*claim.Held
	machine sdk.MachineID
	epoch   uint64
}

// takeOver stops a machine that is to be restored over, under its claim, so
// that no backup of it begins meanwhile.
func (a *Agent) takeOver(ctx context.Context, x *job.Execution, p sdk.Platform, endpoint, name string) (context.Context, *taken, error) {
	var found []sdk.MachineID
	for m, err := range p.Machines(ctx) {
		if err != nil {
			return nil, nil, fmt.Errorf("look for machine %q: %w", name, err)
		}
		if m.Name == name {
			found = append(found, m.ID)
		}
	}
	if len(found) != 1 {
		return nil, nil, fmt.Errorf("machine %q to restore over: %d have this name: %w", name, len(found), tenant.ErrNotFound)
	}
	ctx, held, err := claim.Hold(ctx, a.Claims, claim.Resource("machine/"+endpoint+"/"+string(found[0])), a.holder(), 0)
	if err != nil {
		return nil, nil, fmt.Errorf("take the turn of machine %q: %w", name, err)
	}
	t := &taken{Held: held, machine: found[0]}
	if t.epoch, err = a.nextEpoch(ctx, endpoint, t.machine); err == nil {
		err = a.stop(ctx, x, p, t, name)
	}
	if err != nil {
		return nil, nil, errors.Join(err, held.Release())
	}
	return ctx, t, nil
}

// stop powers the machine off. Where the platform cannot, its target refuses a
// machine that runs.
func (a *Agent) stop(ctx context.Context, x *job.Execution, p sdk.Platform, t *taken, name string) error {
	power, ok := sdk.As[sdk.Power](p)
	if !ok {
		return nil
	}
	x.Report(job.Progress{Phase: "stopping " + name, Time: a.now()})
	op := sdk.Op{ID: x.Run().ID + "/stop", Epoch: t.epoch}
	if err := sdk.Await(ctx, func() error { return power.Stop(ctx, op, t.machine, stopGrace) }); err != nil {
		return fmt.Errorf("stop machine %q: %w", name, err)
	}
	return nil
}

// stopGrace is for the guest to shut down before its disks are exchanged anyway.
const stopGrace = 20 * time.Second

// restoreDisk is the handler of disk restores.
func (a *Agent) restoreDisk(ctx context.Context, x *job.Execution) error {
	var spec runSpec
	if err := x.Spec(&spec); err != nil {
		return err
	}
	req := spec.Disk
	p, err := a.openPoint(ctx, req.Point)
	if err != nil {
		return failed(err)
	}
	i := slices.IndexFunc(p.point.Manifest.Private.Disks, func(d point.PrivateDisk) bool { return d.ID == req.Disk })
	if i < 0 {
		return failed(notFound("disk", req.Disk))
	}
	if x.Run().Attempts > 1 {
		if err := os.Remove(req.File + ".part"); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return failed(fmt.Errorf("remove what an interrupted attempt left: %w", err))
		}
	}
	res, err := restore.File(ctx, restore.FileRequest{
		Point: p.point, Disk: i, Path: req.File, Format: image.Format(req.Format), Overwrite: req.Overwrite,
		Progress: func(pr restore.Progress) { a.restoring(x, "restoring", pr) },
	})
	if err != nil {
		return failed(err)
	}
	return x.SetResult(runResult{Restored: restored(p.point, res, "", "", req.File)})
}

func restored(p *restore.Point, res restore.Result, name, replaced, file string) *RestoreResult {
	r := &RestoreResult{Point: p.Manifest.Public.Point, MachineID: string(res.Machine), File: file,
		WrittenBytes: res.WrittenBytes, Seconds: res.Duration.Seconds(), Started: res.Started}
	if file == "" {
		if r.Machine = name; replaced != "" {
			r.Machine = replaced
		}
	}
	var slowest time.Duration
	for _, d := range res.Disks {
		r.SizeBytes += d.SizeBytes
		if d.Duration >= slowest {
			slowest, r.Bottleneck = d.Duration, string(d.Bottleneck)
		}
	}
	return r
}

func (a *Agent) restoring(x *job.Execution, phase string, p restore.Progress) {
	pr := job.Progress{Phase: phase, DoneBytes: p.DoneBytes, TotalBytes: p.TotalBytes, Rate: p.Rate, Bottleneck: string(p.Bottleneck), Time: a.now()}
	if left := p.TotalBytes - p.DoneBytes; left > 0 && p.Rate > 0 {
		pr.ETA = time.Duration(float64(left) / p.Rate * float64(time.Second))
	}
	x.Report(pr)
}

// maxDamaged bounds how much damage one report names.
const maxDamaged = 200

// verify is the handler of verifications.
func (a *Agent) verify(ctx context.Context, x *job.Execution) error {
	var spec runSpec
	if err := x.Spec(&spec); err != nil {
		return err
	}
	p, err := a.openPoint(ctx, spec.Verify.Point)
	if err != nil {
		return failed(err)
	}
	began := a.now()
	result := VerifyResult{Point: p.point.Manifest.Public.Point, Damaged: []DamagedExtent{}}
	var mutex sync.Mutex // guards found and result.Damaged, which report is called for from several goroutines
	found := 0
	for i, d := range p.point.Manifest.Private.Disks {
		stats, err := mover.Verify(ctx, p.point.Tree(i, mover.Retry{}), p.point.From(), func(damage mover.Damage) error {
			mutex.Lock()
			defer mutex.Unlock()
			if found++; len(result.Damaged) < maxDamaged {
				result.Damaged = append(result.Damaged, DamagedExtent{Disk: d.Name, Offset: damage.Offset, Length: damage.Length, Reason: damage.Err.Error()})
			}
			return nil
		}, mover.Options{Progress: func(pr mover.Progress) {
			a.restoring(x, "verifying "+d.Name, restore.Progress{TotalBytes: pr.TotalBytes, DoneBytes: pr.DoneBytes, Rate: pr.Rate, Bottleneck: pr.Bottleneck})
		}})
		if err != nil {
			return failed(fmt.Errorf("verify disk %s: %w", d.Name, err))
		}
		result.Chunks += stats.Chunks
		result.FetchedBytes += stats.WrittenBytes
	}
	result.Seconds = a.now().Sub(began).Seconds()
	if err := x.SetResult(runResult{Verified: &result}); err != nil {
		return err
	}
	if found > 0 {
		return &runError{failure: job.Failure{Side: "provider",
			Message: fmt.Sprintf("point %s is damaged in %d places", result.Point, found),
			Hint:    "back the machine up again: what it still has is sent again; other points may be whole"}}
	}
	return nil
}
