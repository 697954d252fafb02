package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"path"
	"slices"
	"sync"
	"time"

	"github.com/google/uuid"

	"github.com/holdfast-dr/holdfast/core/backup"
	"github.com/holdfast-dr/holdfast/core/chunk"
	"github.com/holdfast-dr/holdfast/core/claim"
	"github.com/holdfast-dr/holdfast/core/gateway"
	"github.com/holdfast-dr/holdfast/core/host"
	"github.com/holdfast-dr/holdfast/core/job"
	"github.com/holdfast-dr/holdfast/core/point"
	"github.com/holdfast-dr/holdfast/sdk"
)

// A change tracker is not trusted for ever: after so many runs or days, one run
// compares everything.
const (
	compareRuns = 30
	compareDays = 30
	// maxTasks is how many disks a run moves at once where the provider allows
	// more.
	maxTasks = 4
	// reportEvery is how often the provider is told how a run goes.
	reportEvery = 10 * time.Second
)

// backingUp is one run of a job.
type backingUp struct {
	agent *Agent
	exec  *job.Execution
	job   Job
	store storeRef
	wire  Wire
	site  gateway.Site
	keys  *chunk.Keyring
	ring  Keyring
	done  []MachineResult // of the machines that have ended

	event sync.Mutex // guards the two below
	told  time.Time
	seq   int64
}

// backup is the handler of backup runs. Machines follow one another; one that
// fails does not keep the others from their backup.
func (a *Agent) backup(ctx context.Context, x *job.Execution) error {
	var spec runSpec
	if err := x.Spec(&spec); err != nil {
		return err
	}
	b := &backingUp{agent: a, exec: x}
	if err := b.prepare(ctx, spec.Job); err != nil {
		err = failed(err)
		b.tellEnd(ctx, err)
		return err
	}
	b.tell(ctx, job.Progress{Phase: "starting"}, job.Running, nil)
	err := b.run(host.OnBehalf(ctx, b.store.connection.TenantID, x.Run().ID))
	if e := x.SetResult(runResult{Machines: b.done}); e != nil {
		err = errors.Join(err, e)
	}
	b.tellEnd(ctx, err)
	return err
}

func (b *backingUp) prepare(ctx context.Context, jobID string) error {
	a := b.agent
	var err error
	if b.job, err = a.job(ctx, jobID); err != nil {
		return err
	}
	conn, err := a.connection(ctx, b.job.ConnectionID)
	if err != nil {
		return err
	}
	if b.wire, err = a.wire(conn); err != nil {
		return err
	}
	if b.ring, b.keys, err = a.currentKeys(ctx); err != nil {
		return err
	}
	if b.site, err = b.wire.Site(ctx); err != nil {
		return err
	}
	i := slices.IndexFunc(b.site.Repositories, func(r gateway.CloudRepository) bool { return r.ID == b.job.Repository })
	if i < 0 {
		return &RefusedError{Reason: fmt.Sprintf("provider %q no longer gives this site the cloud repository %q", conn.Name, b.job.RepositoryName), Next: "ask the provider, or change the job"}
	}
	b.store = storeRef{connection: conn, info: b.site.Repositories[i], repository: b.wire.Repository(b.job.Repository)}
	return b.keepWrap(ctx)
}

// keepWrap makes sure that the repository keeps the keyring, wrapped for the
// recovery kit, before anything sealed by it arrives there.
func (b *backingUp) keepWrap(ctx context.Context) error {
	if b.ring.Wrap == nil {
		return nil // the kit was declined
	}
	name := b.ring.Fingerprint
	wraps, err := b.store.repository.Wraps(ctx)
	if err != nil {
		return fmt.Errorf("look for the keyring's wrap: %w", err)
	}
	if slices.ContainsFunc(wraps, func(w gateway.Wrap) bool { return w.Name == name }) {
		return nil
	}
	if err := b.store.repository.PutWrap(ctx, name, b.ring.Wrap); err != nil {
		return fmt.Errorf("keep the keyring's wrap at the repository: %w", err)
	}
	return nil
}

// chosen is a machine that the run backs up, as it was when the run began.
type chosen struct {
	ID      sdk.MachineID `json:"id"`
	Name    string        `json:"name"`
	Exclude []sdk.DiskID  `json:"exclude,omitempty"`
}

func (b *backingUp) run(ctx context.Context) error {
	endpoint, err := b.agent.endpoint(ctx, b.job.EndpointID)
	if err != nil {
		return failed(err)
	}
	return b.agent.withPlatform(ctx, endpoint, func(p sdk.Platform) error {
		machines, err := job.Once(ctx, b.exec, "choose machines", func(ctx context.Context) ([]chosen, error) {
			return b.choose(ctx, p)
		})
		if err != nil {
			return failed(err)
		}
		if len(machines) == 0 {
			b.exec.Warn(job.Failure{Message: "the job covers no machine", Hint: "see what there is: holdfast machine list", Side: "tenant"})
			return nil
		}
		for i, m := range machines {
			if err := b.machine(ctx, endpoint, p, m, fmt.Sprintf("%s (%d of %d)", m.Name, i+1, len(machines))); err != nil {
				return err
			}
		}
		return b.conclude(ctx)
	})
}

func (b *backingUp) choose(ctx context.Context, p sdk.Platform) ([]chosen, error) {
	machines := []chosen{}
	for m, err := range p.Machines(ctx) {
		if err != nil {
			return nil, fmt.Errorf("list machines: %w", err)
		}
		if !b.job.Selection.Covers(m) {
			continue
		}
		c := chosen{ID: m.ID, Name: m.Name}
		for _, d := range m.Disks {
			if matchesAny(b.job.Selection.ExcludeDisks, d.Name) {
				c.Exclude = append(c.Exclude, d.ID)
			}
		}
		machines = append(machines, c)
	}
	slices.SortFunc(machines, func(x, y chosen) int { return cmp.Compare(x.Name, y.Name) })
	return machines, nil
}

// machine backs one machine up as a step. Its failure is part of the result;
// only what ends the whole run is returned.
func (b *backingUp) machine(ctx context.Context, e host.Endpoint, p sdk.Platform, m chosen, phase string) error {
	result, err := job.Once(ctx, b.exec, "machine "+string(m.ID), func(ctx context.Context) (MachineResult, error) {
		result, err := b.backupMachine(ctx, e, p, m, phase)
		if err != nil && (ctx.Err() != nil || sessionLost(err)) {
			return result, err
		}
		if err != nil {
			b.agent.Log.ErrorContext(ctx, "back up machine", "job", b.job.Name, "machine", m.Name, "error", err)
			result.State, result.Failure = job.Failed, failureOf(err)
			return result, nil
		}
		return result, nil
	})
	if sessionLost(err) {
		b.agent.Log.WarnContext(ctx, "the provider lost the session, so the run begins again", "job", b.job.Name, "machine", m.Name, "error", err)
		return &job.RetryError{After: lostSessionPause, Err: err}
	}
	if err != nil {
		return err
	}
	b.done = append(b.done, result)
	return nil
}

// lostSessionPause is waited for before a run whose session was lost is taken up
// again, as after a crash.
const lostSessionPause = time.Second

// sessionLost reports whether the provider no longer knows the run's session:
// another server took over, or the spool is gone. What arrived in packs is found
// by the next attempt.
func sessionLost(err error) bool { return errors.Is(err, gateway.ErrSessionClosed) }

// release gives a claim back. One that cannot be given back expires.
func (a *Agent) release(held *claim.Held) {
	if err := held.Release(); err != nil {
		a.Log.Warn("give a claim back", "resource", held.Claim().Resource, "error", err)
	}
}

func (b *backingUp) backupMachine(ctx context.Context, e host.Endpoint, p sdk.Platform, m chosen, phase string) (MachineResult, error) {
	result := MachineResult{Machine: m.Name, State: job.Failed}
	ctx, held, err := claim.Hold(ctx, b.agent.Claims, claim.Resource("machine/"+e.ID+"/"+string(m.ID)), b.agent.holder(), 0)
	if err != nil {
		return result, fmt.Errorf("take the turn of machine %s: %w", m.Name, err)
	}
	defer b.agent.release(held)
	known, err := b.agent.remembered(ctx, Machine{Keyring: b.ring.Fingerprint, Repository: b.job.Repository, EndpointID: e.ID, Machine: m.ID, Name: m.Name}, b.findOlder)
	if err != nil {
		return result, err
	}
	result.MachineID = string(known.ID)
	if known.Epoch, err = b.agent.nextEpoch(ctx, e.ID, m.ID); err != nil {
		return result, err
	}
	req := backup.Request{
		Platform: p, PlatformName: e.Plugin, Endpoint: e.Name, Source: m.ID,
		Op:           sdk.Op{ID: b.exec.Run().ID + "/" + string(m.ID), Epoch: known.Epoch},
		RepositoryID: b.job.Repository, Repository: &resumable{Repository: b.store.repository, agent: b.agent, machine: &known, run: ctx}, Keys: b.keys,
		Machine: known.ID, Owner: b.agent.Name, Point: pointID(b.exec.Run(), m.ID, b.exec.Run().Attempts), Remembered: known.Remembered, Held: known.Held,
		ChunkSize: b.store.info.ChunkSize, FanOut: b.store.info.FanOut,
		Quiesce: b.job.Quiesce, Exclude: m.Exclude,
		Tasks:    max(1, min(maxTasks, b.site.Tenant.MaxTasks)),
		Progress: func(pr backup.Progress) { b.progress(ctx, phase, pr) },
	}
	if committed, err := b.alreadyCommitted(ctx, m.ID, known); err != nil {
		return result, err
	} else if committed != nil {
		return result, b.adopt(ctx, req, *committed, known, &result)
	}
	if req.Tried, err = b.tried(ctx, m.ID); err != nil {
		return result, err
	}
	req.CompareAll = known.Runs >= compareRuns || !known.Compared.IsZero() && b.agent.now().Sub(known.Compared) >= compareDays*24*time.Hour
	made, err := backup.Run(ctx, req)
	b.describe(&result, made)
	known.Held = made.Held
	if err != nil {
		return result, errors.Join(err, b.agent.Store.PutMachine(context.WithoutCancel(ctx), known))
	}
	return result, b.remember(ctx, made, known, &result)
}

// remember writes down a point that was committed, and forgets what the job no
// longer keeps.
func (b *backingUp) remember(ctx context.Context, made backup.Result, known Machine, result *MachineResult) error {
	if !slices.Contains(known.Remembered, made.Point) {
		known.Remembered = slices.Insert(known.Remembered, 0, made.Point)
		known.Remembered = known.Remembered[:min(len(known.Remembered), MaxRemembered)]
		known.Runs++
	}
	known.Session = ""
	if made.Kind != point.KindIncremental {
		known.Compared, known.Runs = b.agent.now(), 0
	}
	if err := b.agent.Store.PutMachine(ctx, known); err != nil {
		return fmt.Errorf("remember point %s: %w", made.Point, err)
	}
	b.retain(ctx, known, result)
	return nil
}

// pointID is the id of the point that an attempt of a run makes of a machine.
// Each attempt has an id of its own: one whose commit was refused, or never
// answered, may have used its id up.
func pointID(r job.Run, m sdk.MachineID, attempt int) point.ID {
	run := uuid.MustParse(r.ID)
	sum := uuid.NewSHA1(run, fmt.Appendf(nil, "%d %s", attempt, m))
	copy(sum[:8], run[:8]) // the time and the version stay those of the run, so that ids sort
	sum[6] = sum[6]&0x0f | 0x70
	return point.ID(sum.String())
}

// triedRuns is how many runs back a commit that was not answered is known.
const triedRuns = 50

// tried are the ids of all points that the last runs may have made of a machine.
func (b *backingUp) tried(ctx context.Context, m sdk.MachineID) ([]point.ID, error) {
	runs, err := b.agent.Runs.List(ctx, job.Query{All: true, Kind: RunBackup, Limit: triedRuns})
	if err != nil {
		return nil, fmt.Errorf("look for earlier runs: %w", err)
	}
	var ids []point.ID
	for _, r := range runs {
		for attempt := 1; attempt <= min(r.Attempts, job.DefaultMaxAttempts); attempt++ {
			ids = append(ids, pointID(r, m, attempt))
		}
	}
	return ids, nil
}

// alreadyCommitted finds the point that an earlier attempt of this run
// committed, if it was interrupted before it could write that down.
func (b *backingUp) alreadyCommitted(ctx context.Context, source sdk.MachineID, known Machine) (*point.Manifest, error) {
	for attempt := b.exec.Run().Attempts - 1; attempt > 0; attempt-- {
		id := pointID(b.exec.Run(), source, attempt)
		m, err := b.agent.openManifest(ctx, b.store.repository, id)
		switch {
		case isNotFound(err):
			continue
		case err != nil:
			return nil, err
		case m.Public.Machine != known.ID:
			return nil, fmt.Errorf("point %s is of another machine: %w", id, point.ErrForged)
		}
		return &m, nil
	}
	return nil, nil
}

// adopt ends what the attempt left that committed a point, and remembers it.
func (b *backingUp) adopt(ctx context.Context, req backup.Request, committed point.Manifest, known Machine, result *MachineResult) error {
	made, err := backup.Conclude(ctx, req, committed)
	b.describe(result, made)
	known.Held = made.Held
	if err != nil {
		return errors.Join(err, b.agent.Store.PutMachine(context.WithoutCancel(ctx), known))
	}
	return b.remember(ctx, made, known, result)
}

func (b *backingUp) describe(result *MachineResult, made backup.Result) {
	result.Point, result.Kind, result.Consistency = made.Point, made.Kind, string(made.Consistency)
	result.SourceBytes = made.Source.ReadBytes
	result.ReadBytes, result.SentBytes, result.StoredBytes = made.ReadBytes, made.SentBytes, made.StoredBytes
	result.Seconds, result.Bottleneck = made.Duration.Seconds(), string(made.Bottleneck)
	for _, d := range made.Disks {
		result.SizeBytes += d.SizeBytes
		b.agent.Log.Info("disk was copied", "machine", result.Machine, "disk", d.ID, "kind", d.Kind, "read", d.ReadBytes,
			"audited", d.Audit.Chunks, "verified", d.Verified.Chunks, "seed", d.Seed)
	}
	result.State = job.Succeeded
	for _, w := range made.Warnings {
		if w.Code == backup.CodeSkipped {
			result.LeftOut = append(result.LeftOut, LeftOut{Disk: string(w.Disk), Reason: w.Message})
			continue
		}
		result.Warnings = append(result.Warnings, w.Message)
		result.State = job.Warned
		b.exec.Warn(job.Failure{Message: result.Machine + ": " + w.Message, Side: side(w.Alert)})
		if w.Alert {
			b.agent.Log.Error("alert: the provider or the change tracker cannot be trusted", "machine", result.Machine, "code", w.Code, "message", w.Message)
		}
	}
}

func side(provider bool) string {
	if provider {
		return "provider"
	}
	return "tenant"
}

// retain forgets what the job no longer keeps of a machine. A failure is a
// warning: the backup itself succeeded.
func (b *backingUp) retain(ctx context.Context, m Machine, result *MachineResult) {
	points, err := b.history(ctx, m.ID)
	if err == nil {
		for _, id := range b.job.Retention.Expired(points, earlier(b.agent.now(), b.site.Time)) {
			if err = b.store.repository.Forget(ctx, id); err != nil && !isNotFound(err) {
				break
			}
			err = nil
		}
	}
	if err != nil {
		message := fmt.Sprintf("old points are kept for now: %v", err)
		result.Warnings, result.State = append(result.Warnings, message), job.Warned
		b.exec.Warn(job.Failure{Message: result.Machine + ": " + message, Side: "provider"})
	}
}

// history lists a machine's points, newest first.
func (b *backingUp) history(ctx context.Context, id point.MachineID) ([]Kept, error) {
	var points []Kept
	var after point.ID
	for {
		page, err := b.store.repository.Points(ctx, id, after, pointPage)
		if err != nil {
			return nil, err
		}
		for _, p := range page.Points {
			points = append(points, Kept{ID: p.ID, Taken: p.Taken})
		}
		if after = page.Next; after == "" {
			break
		}
	}
	slices.SortStableFunc(points, func(x, y Kept) int { return y.Taken.Compare(x.Taken) })
	return points, nil
}

// findOlder looks through the repository for points of a machine that this
// site does not remember, as after a recovery: the newest point whose private
// part names the same machine.
func (b *backingUp) findOlder(ctx context.Context, m Machine) (point.MachineID, []point.ID, error) {
	var after, newest point.ID
	var id point.MachineID
	var taken time.Time
	seen := map[point.MachineID]bool{}
	for {
		page, err := b.store.repository.Points(ctx, "", after, pointPage)
		if err != nil {
			return "", nil, err
		}
		for _, info := range page.Points {
			match, looked := seen[info.Machine]
			if !looked {
				manifest, err := b.agent.openManifest(ctx, b.store.repository, info.ID)
				match = err == nil && sameMachine(manifest, m)
				seen[info.Machine] = match
			}
			if match && info.Taken.After(taken) {
				newest, id, taken = info.ID, info.Machine, info.Taken
			}
		}
		if after = page.Next; after == "" {
			break
		}
	}
	if id == "" {
		return "", nil, nil
	}
	return id, []point.ID{newest}, nil
}

// conclude turns the machines' results into the run's.
func (b *backingUp) conclude(context.Context) error {
	var names []string
	var first *job.Failure
	for _, r := range b.done {
		if r.Failure != nil {
			names = append(names, r.Machine)
			first = cmp.Or(first, r.Failure)
		}
	}
	if len(names) == 0 {
		return nil
	}
	message := fmt.Sprintf("%d of %d machines failed: %s: %s", len(names), len(b.done), path.Join(names[0]), first.Message)
	return &runError{failure: job.Failure{Message: message, Hint: first.Hint, Side: first.Side}}
}

// progress is called about once a second for each disk.
func (b *backingUp) progress(ctx context.Context, phase string, p backup.Progress) {
	pr := job.Progress{Phase: phase, DoneBytes: p.DoneBytes, TotalBytes: p.TotalBytes, Rate: p.Rate, Bottleneck: string(p.Bottleneck), Time: b.agent.now()}
	if left := p.TotalBytes - p.DoneBytes; left > 0 && p.Rate > 0 {
		pr.ETA = time.Duration(float64(left) / p.Rate * float64(time.Second))
	}
	pr.Detail = encodeDetail(progressDetail{ReadBytes: p.ReadBytes, SentBytes: p.SentBytes, Machines: b.done})
	b.exec.Report(pr)
	b.event.Lock()
	due := b.agent.now().Sub(b.told) >= reportEvery
	b.event.Unlock()
	if due {
		b.tell(ctx, pr, job.Running, nil)
	}
}

// tell reports to the provider. The run does not depend on it.
func (b *backingUp) tell(ctx context.Context, p job.Progress, state job.State, failure *job.Failure) {
	b.event.Lock()
	defer b.event.Unlock()
	b.told, b.seq = b.agent.now(), max(b.seq+1, b.agent.now().UnixMicro())
	run := b.exec.Run()
	e := gateway.RunEvent{Sequence: b.seq, Kind: string(run.Kind), Job: b.job.Name, State: string(state), Started: run.Started,
		DoneBytes: p.DoneBytes, TotalBytes: p.TotalBytes, Rate: p.Rate, Bottleneck: p.Bottleneck, Machines: len(b.done)}
	for _, m := range b.done {
		e.SentBytes += m.StoredBytes
	}
	if state.Final() {
		ended := b.agent.now()
		e.Ended = &ended
	}
	if failure != nil {
		e.Failure, e.Side = failure.Message, failure.Side
	}
	if err := sendReport(ctx, b.wire, run.ID, e); err != nil {
		b.agent.Log.DebugContext(ctx, "report the run to the provider", "run", run.ID, "error", err)
		return // keepReports tells how it ended
	}
	if state.Final() {
		b.agent.reports.note(run.ID)
	}
}

// tellEnd tells at once how the run ends, where there is a provider to tell.
func (b *backingUp) tellEnd(ctx context.Context, err error) {
	if _, again := errors.AsType[*job.RetryError](err); again {
		return
	}
	if b.wire == nil {
		return
	}
	state, failure := job.Succeeded, (*job.Failure)(nil)
	if slices.ContainsFunc(b.done, func(m MachineResult) bool { return m.State == job.Warned }) {
		state = job.Warned
	}
	switch {
	case ctx.Err() != nil && !errors.Is(context.Cause(ctx), job.ErrCancelled):
		return // it goes on in the agent's next life
	case ctx.Err() != nil:
		state = job.Cancelled
	case err != nil:
		state, failure = job.Failed, failureOf(err)
	}
	b.tell(context.WithoutCancel(ctx), job.Progress{}, state, failure)
}
