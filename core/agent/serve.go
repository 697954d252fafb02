package agent

import (
	"context"
	"errors"
	"reflect"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/holdfast-dr/holdfast/core/job"
)

const (
	// parallelRuns is how many runs a site works on at once; the provider's
	// limit of tasks holds besides.
	parallelRuns = 4
	// renewEvery is how often the certificates' ages are looked at, and
	// renewRetry how soon again after a failure.
	renewEvery = time.Hour
	renewRetry = 5 * time.Minute
	// dueEvery is the longest that the scheduler sleeps: a clock that is set
	// forward is noticed within it.
	dueEvery = 30 * time.Second
	// watchEvery is how often a watched run is looked at for its progress; its
	// end is noticed at once.
	watchEvery = 500 * time.Millisecond
	// keepRuns is how long ended runs are remembered.
	keepRuns = 400 * 24 * time.Hour
)

// Serve runs the site's loops until ctx ends: the runs, the schedule, the
// renewal of certificates, and the watches of the endpoints' machines. Runs that a former life of this agent left open are
// taken up at once.
func (a *Agent) Serve(ctx context.Context) error {
	holder := a.holder()
	if _, err := a.Runs.Expel(ctx, holder.Node, holder.Instance); err != nil {
		return err
	}
	if _, err := a.Claims.Expel(ctx, holder); err != nil {
		return err
	}
	runner := &job.Runner{Store: a.Runs, Holder: holder, Parallel: parallelRuns, Log: a.Log, Settled: a.settled.ring, Handlers: map[job.Kind]job.Handler{
		RunBackup:         a.backup,
		RunRestoreMachine: a.restoreMachine,
		RunRestoreDisk:    a.restoreDisk,
		RunVerify:         a.verify,
	}}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return runner.Run(ctx) })
	g.Go(func() error { return a.schedule(ctx, runner.Wake) })
	g.Go(func() error { return a.keepCertificates(ctx) })
	g.Go(func() error { return a.watchInventories(ctx) })
	g.Go(func() error { return a.keepReports(ctx) })
	return g.Wait()
}

// schedule starts jobs when they are due. A job that became due while the agent
// was down, or while its last run was going on, starts once.
func (a *Agent) schedule(ctx context.Context, wakeRunner func()) error {
	for {
		wakeRunner()
		wait := dueEvery
		jobs, err := a.Store.Jobs(ctx)
		if err != nil && ctx.Err() == nil {
			a.Log.ErrorContext(ctx, "read jobs", "error", err)
		}
		for _, j := range jobs {
			if !j.Enabled || j.Schedule == nil || j.Next.IsZero() {
				continue
			}
			if due := j.Next.Sub(a.now()); due > 0 {
				wait = min(wait, due)
				continue
			}
			a.startDue(ctx, j)
		}
		if !pause(ctx, wait, a.wakes()) {
			return nil
		}
	}
}

func (a *Agent) startDue(ctx context.Context, j Job) {
	calendar, err := j.Schedule.Parse()
	if err != nil {
		a.Log.ErrorContext(ctx, "schedule job", "job", j.Name, "error", err)
		return
	}
	// The next time is written first: a start that fails is reported and tried
	// at the next time, not in a loop.
	if err := a.Store.SetNext(ctx, j.ID, calendar.Next(a.now())); err != nil {
		a.Log.ErrorContext(ctx, "schedule job", "job", j.Name, "error", err)
		return
	}
	switch run, err := a.RunJob(ctx, j.ID, BySchedule); {
	case errors.Is(err, job.ErrActive):
		a.Log.WarnContext(ctx, "job is due but its last run goes on", "job", j.Name)
	case err != nil:
		a.Log.ErrorContext(ctx, "start job", "job", j.Name, "error", err)
	default:
		a.Log.InfoContext(ctx, "job started", "job", j.Name, "run", run.ID, "due", j.Next)
	}
}

func (a *Agent) keepCertificates(ctx context.Context) error {
	for {
		wait := renewEvery
		if err := a.renewAll(ctx); err != nil && ctx.Err() == nil {
			a.Log.WarnContext(ctx, "renew certificates", "error", err)
			wait = renewRetry
		}
		if _, err := a.Runs.Prune(ctx, a.now().Add(-keepRuns)); err != nil && ctx.Err() == nil {
			a.Log.WarnContext(ctx, "forget old runs", "error", err)
		}
		if !pause(ctx, wait, nil) {
			return nil
		}
	}
}

// pause waits, shorter if woken; false when ctx has ended.
func pause(ctx context.Context, d time.Duration, wake <-chan struct{}) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
	case <-wake:
	}
	return true
}

// WatchRun calls notice with the run as it is now and after each change, until
// it has ended or ctx has.
func (a *Agent) WatchRun(ctx context.Context, id string, notice func(RunStatus) error) error {
	settled := a.settled.heard() // before the run is read, so that no end falls between
	run, err := a.Run(ctx, id)
	if err != nil {
		return err
	}
	last := run
	if err := notice(run); err != nil {
		return err
	}
	for !run.State.Final() {
		if !pause(ctx, watchEvery, settled) {
			return ctx.Err()
		}
		settled = a.settled.heard()
		if run, err = a.Run(ctx, last.ID); err != nil {
			return err
		}
		if reflect.DeepEqual(run, last) {
			continue
		}
		if err := notice(run); err != nil {
			return err
		}
		last = run
	}
	return nil
}

// SiteStatus is the site at a glance.
type SiteStatus struct {
	Name      string             `json:"name"`
	Version   string             `json:"version"`
	Providers []ConnectionStatus `json:"providers"`
	Keys      []KeyStatus        `json:"keys"`
	Endpoints []EndpointStatus   `json:"endpoints"`
	Jobs      []JobStatus        `json:"jobs"`
	// Advice says what to do next, in order, until backups run.
	Advice []string `json:"advice,omitempty"`
}

// Status is the site at a glance, with what is missing for a first backup.
func (a *Agent) Status(ctx context.Context) (SiteStatus, error) {
	s := SiteStatus{Name: a.Name, Version: a.Version}
	var err error
	if s.Providers, err = a.Connections(ctx); err != nil {
		return s, err
	}
	if s.Keys, err = a.Keys(ctx); err != nil {
		return s, err
	}
	if s.Endpoints, err = a.Endpoints(ctx); err != nil {
		return s, err
	}
	if s.Jobs, err = a.Jobs(ctx); err != nil {
		return s, err
	}
	if len(s.Providers) == 0 {
		s.Advice = append(s.Advice, "connect to a provider: holdfast agent connect ADDRESS --fingerprint FINGERPRINT")
	}
	if _, _, err := a.currentKeys(ctx); errors.Is(err, ErrKeysNotAccepted) && len(s.Providers) > 0 {
		s.Advice = append(s.Advice, "write the recovery kit, before the first backup: holdfast key export-kit FILE (or, on a fresh machine: holdfast key import-kit FILE)")
	}
	if len(s.Endpoints) == 0 {
		s.Advice = append(s.Advice, "add the hypervisor: holdfast plugin enable libvirt, then holdfast endpoint add NAME --plugin libvirt --set uri=qemu:///system")
	}
	if len(s.Jobs) == 0 && len(s.Endpoints) > 0 {
		s.Advice = append(s.Advice, "create a job: holdfast job create NAME --endpoint ENDPOINT --repository REPOSITORY --all")
	}
	for _, j := range s.Jobs {
		if j.Enabled && j.Last != nil && j.Last.State == job.Failed {
			s.Advice = append(s.Advice, "look at the failed run of job "+j.Name+": holdfast run show "+j.Last.ID)
		}
	}
	return s, nil
}
