package state

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/core/claim"
	"github.com/holdfast-dr/holdfast/core/job"
	"github.com/holdfast-dr/holdfast/core/tenant"
)

var testKinds = []job.Kind{"test"}

func newRun(t testing.TB, db *DB, subject string) job.Run {
	t.Helper()
	return must[job.Run](t)(db.Runs().Create(asAdmin(t), job.Run{Kind: "test", Subject: subject, Spec: json.RawMessage(`{"n":1}`)}))
}

func take(t testing.TB, db *DB, h string, ttl time.Duration) (job.Run, bool) {
	t.Helper()
	r, ok, err := db.Runs().Take(context.Background(), h, ttl, testKinds)
	if err != nil {
		t.Fatal(err)
	}
	return r, ok
}

var _ = both("RunLife", func(t *testing.T, db *DB) {
	ctx, s := t.Context(), db.Runs()
	made := newRun(t, db, "job:1")
	if _, ok, err := s.Take(ctx, "n/1", time.Minute, []job.Kind{"other"}); err != nil || ok {
		t.Fatalf("a run of another kind was taken (%v)", err)
	}
	r, ok := take(t, db, "n/1", time.Minute)
	if !ok || r.ID != made.ID || r.State != job.Running || r.Epoch != 1 || r.Attempts != 1 || string(r.Spec) != `{"n":1}` {
		t.Fatalf("taken %+v", r)
	}
	if _, ok := take(t, db, "n/2", time.Minute); ok {
		t.Fatal("it was taken twice")
	}
	l := job.Lock{RunID: r.ID, Epoch: r.Epoch}
	if err := s.SetProgress(ctx, l, job.Progress{Phase: "copy", DoneBytes: 5}); err != nil {
		t.Fatal(err)
	}
	if p := must[job.Step](t)(s.BeginStep(ctx, l, "one")); p.State != job.StepStarted || p.Index != 1 || p.Attempts != 1 {
		t.Errorf("first step %+v", p)
	}
	if err := s.EndStep(ctx, l, "one", json.RawMessage(`42`), nil); err != nil {
		t.Fatal(err)
	}
	if p := must[job.Step](t)(s.BeginStep(ctx, l, "one")); p.State != job.StepDone || string(p.Result) != "42" {
		t.Errorf("a step that is done: %+v", p)
	}
	must[job.Step](t)(s.BeginStep(ctx, l, "two"))
	if err := s.EndStep(ctx, l, "two", nil, &job.Failure{Message: strings.Repeat("x", 2*job.MaxText)}); err != nil {
		t.Fatal(err)
	}
	if err := s.Finish(ctx, l, job.Succeeded, json.RawMessage(`{"ok":true}`), nil); err != nil {
		t.Fatal(err)
	}
	wantErr(t, s.Finish(ctx, l, job.Failed, nil, nil), job.ErrFenced)
	wantErr(t, second(s.Renew(ctx, l, time.Minute)), job.ErrFenced)
	end := must[job.Run](t)(s.Get(ctx, tenant.Provider, r.ID))
	if end.State != job.Succeeded || string(end.Result) != `{"ok":true}` || end.Ended.IsZero() || end.Progress.DoneBytes != 5 {
		t.Errorf("ended run %+v", end)
	}
	steps := must[[]job.Step](t)(s.Steps(ctx, tenant.Provider, r.ID))
	if len(steps) != 2 || steps[1].Name != "two" || len(steps[1].Failure.Message) != job.MaxText {
		t.Errorf("steps %+v", steps)
	}
	wantErr(t, second(s.Get(ctx, "another", r.ID)), tenant.ErrNotFound)
	wantErr(t, second(s.Steps(ctx, "another", r.ID)), tenant.ErrNotFound)
	wantErr(t, second(s.RequestCancel(asAdmin(t), "another", r.ID)), tenant.ErrNotFound)
	wantErr(t, second(s.RequestCancel(asAdmin(t), tenant.Provider, r.ID)), job.ErrFinal)
	if n := must[int64](t)(s.Prune(ctx, time.Now().Add(time.Hour))); n != 1 {
		t.Errorf("pruned %d", n)
	}
})

var _ = both("ATakenOverRunFencesItsFormerHolder", func(t *testing.T, db *DB) {
	ctx, s := t.Context(), db.Runs()
	newRun(t, db, "job:1")
	first, _ := take(t, db, "n/1", claim.MinTTL)
	late := job.Lock{RunID: first.ID, Epoch: first.Epoch}
	must[job.Step](t)(s.BeginStep(ctx, late, "one"))
	var now job.Run
	eventually(t, "takeover", func() (ok bool) { now, ok = take(t, db, "n/2", time.Minute); return ok })
	if now.ID != first.ID || now.Epoch != 2 || now.Attempts != 2 {
		t.Fatalf("taken over %+v", now)
	}
	for verb, err := range map[string]error{
		"begin":    second(s.BeginStep(ctx, late, "two")),
		"end":      s.EndStep(ctx, late, "one", nil, nil),
		"progress": s.SetProgress(ctx, late, job.Progress{}),
		"renew":    second(s.Renew(ctx, late, time.Minute)),
		"requeue":  s.Requeue(ctx, late, time.Now()),
		"finish":   s.Finish(ctx, late, job.Succeeded, nil, nil),
	} {
		if !errors.Is(err, job.ErrFenced) {
			t.Errorf("late %s: %v", verb, err)
		}
	}
	l := job.Lock{RunID: now.ID, Epoch: now.Epoch}
	if p := must[job.Step](t)(s.BeginStep(ctx, l, "one")); p.State != job.StepStarted || p.Attempts != 2 || p.Index != 1 {
		t.Errorf("the interrupted step %+v", p)
	}
	if err := s.EndStep(ctx, l, "one", nil, nil); err != nil {
		t.Fatal(err)
	}
})

var _ = both("OneOpenRunPerExclusiveSubject", func(t *testing.T, db *DB) {
	s := db.Runs()
	exclusive := job.Run{TenantID: "t1", Kind: "test", Subject: "job:1", Exclusive: true}
	first := must[job.Run](t)(s.Create(asAdmin(t), exclusive))
	wantErr(t, second(s.Create(asAdmin(t), exclusive)), job.ErrActive)
	other := exclusive
	other.TenantID = "t2"
	must[job.Run](t)(s.Create(asAdmin(t), other))
	if r := must[job.Run](t)(s.RequestCancel(asAdmin(t), "t1", first.ID)); r.State != job.Cancelled || r.Ended.IsZero() {
		t.Errorf("a waiting run after the request: %+v", r)
	}
	must[job.Run](t)(s.Create(asAdmin(t), exclusive))
	all := must[[]job.Run](t)(s.List(t.Context(), job.Query{Tenant: "t1"}))
	open := must[[]job.Run](t)(s.List(t.Context(), job.Query{Tenant: "t1", Open: true}))
	every := must[[]job.Run](t)(s.List(t.Context(), job.Query{All: true, Limit: 2}))
	if len(all) != 2 || len(open) != 1 || len(every) != 2 || all[0].ID < all[1].ID {
		t.Errorf("listed %d, %d open, %d of every tenant's; newest first", len(all), len(open), len(every))
	}
	next := must[[]job.Run](t)(s.List(t.Context(), job.Query{All: true, Before: every[1].ID}))
	if len(next) != 1 || next[0].ID != first.ID {
		t.Errorf("the next page %+v", next)
	}
})

var _ = both("RunsAreTakenOnceByMany", func(t *testing.T, db *DB) {
	const count = 40
	for i := range count {
		newRun(t, db, fmt.Sprint("job:", i))
	}
	var done sync.Map
	var n atomic.Int64
	var all sync.WaitGroup
	for w := range 6 {
		all.Go(func() {
			h := fmt.Sprintf("n%d/1", w)
			for n.Load() < count {
				r, ok, err := db.Runs().Take(t.Context(), h, time.Minute, testKinds)
				if err != nil {
					t.Error(err)
					return
				}
				if !ok {
					continue
				}
				if _, twice := done.LoadOrStore(r.ID, h); twice || r.Epoch != 1 {
					t.Errorf("run %s was taken twice", r.ID)
				}
				n.Add(1)
				if err := db.Runs().Finish(t.Context(), job.Lock{RunID: r.ID, Epoch: r.Epoch}, job.Succeeded, nil, nil); err != nil {
					t.Error(err)
				}
			}
		})
	}
	all.Wait()
})

// runner starts a runner that is stopped at the end of the test.
func runner(t *testing.T, db *DB, instance string, h job.Handler) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	r := &job.Runner{Store: db.Runs(), Holder: claim.Holder{Node: "n", Instance: instance}, Poll: 10 * time.Millisecond,
		TTL: 5 * time.Second, Handlers: map[job.Kind]job.Handler{"test": h}}
	ended := make(chan error, 1)
	go func() { ended <- r.Run(ctx) }()
	var once sync.Once
	stop = func() {
		once.Do(func() {
			cancel()
			if err := <-ended; err != nil {
				t.Error(err)
			}
		})
	}
	t.Cleanup(stop)
	return stop
}

func await(t *testing.T, db *DB, id string, s job.State) job.Run {
	t.Helper()
	var r job.Run
	eventually(t, "run "+string(s), func() bool {
		r = must[job.Run](t)(db.Runs().Get(context.Background(), tenant.Provider, id))
		return r.State == s
	})
	return r
}

var _ = both("RunnerContinuesAtTheNextStep", func(t *testing.T, db *DB) {
	r := newRun(t, db, "job:1")
	// The first process does one step, begins the second, and vanishes.
	first, _ := take(t, db, "n/dead", claim.MinTTL)
	l := job.Lock{RunID: first.ID, Epoch: first.Epoch}
	must[job.Step](t)(db.Runs().BeginStep(t.Context(), l, "one"))
	if err := db.Runs().EndStep(t.Context(), l, "one", json.RawMessage(`"from the first"`), nil); err != nil {
		t.Fatal(err)
	}
	must[job.Step](t)(db.Runs().BeginStep(t.Context(), l, "two"))
	must[int64](t)(db.Runs().Expel(t.Context(), "n", "alive"))
	var ones, twos atomic.Int64
	runner(t, db, "alive", func(ctx context.Context, x *job.Execution) error {
		one, err := job.Once(ctx, x, "one", func(context.Context) (string, error) { ones.Add(1); return "again", nil })
		if err != nil {
			return err
		}
		if err := x.Do(ctx, "two", func(context.Context) error { twos.Add(1); return nil }); err != nil {
			return err
		}
		x.Report(job.Progress{DoneBytes: 7})
		x.Warn(job.Failure{Message: "look"})
		return x.SetResult(one)
	})
	end := await(t, db, r.ID, job.Warned)
	if ones.Load() != 0 || twos.Load() != 1 || string(end.Result) != `"from the first"` || end.Progress.DoneBytes != 7 || end.Failure.Message != "look" {
		t.Errorf("step one done %d times, two %d times; ended %+v", ones.Load(), twos.Load(), end)
	}
})

var _ = both("RunnerEnds", func(t *testing.T, db *DB) {
	started := make(chan struct{}, 10)
	var retried atomic.Bool
	stop := runner(t, db, "a", func(ctx context.Context, x *job.Execution) error {
		started <- struct{}{}
		switch x.Run().Subject {
		case "panic":
			panic("ouch")
		case "fail":
			return &tenant.DisabledError{Name: "acme"}
		case "retry":
			if retried.Swap(true) {
				return nil
			}
			return &job.RetryError{Err: errors.New("not yet")}
		}
		<-ctx.Done()
		return context.Cause(ctx)
	})
	if r := await(t, db, newRun(t, db, "panic").ID, job.Failed); !strings.Contains(r.Failure.Message, "ouch") {
		t.Errorf("after a panic: %+v", r.Failure)
	}
	if r := await(t, db, newRun(t, db, "fail").ID, job.Failed); r.Failure.Hint == "" {
		t.Errorf("the hint was lost: %+v", r.Failure)
	}
	if r := await(t, db, newRun(t, db, "retry").ID, job.Succeeded); r.Attempts != 2 {
		t.Errorf("after a retry: %+v", r)
	}
	asked := newRun(t, db, "wait")
	await(t, db, asked.ID, job.Running)
	must[job.Run](t)(db.Runs().RequestCancel(asAdmin(t), tenant.Provider, asked.ID))
	await(t, db, asked.ID, job.Cancelled)
	// A process that stops gives its run back at once.
	left := newRun(t, db, "wait")
	await(t, db, left.ID, job.Running)
	for len(started) > 0 {
		<-started
	}
	stop()
	if r := must[job.Run](t)(db.Runs().Get(context.Background(), tenant.Provider, left.ID)); r.State != job.Waiting || r.Holder != "" {
		t.Errorf("after the stop: %+v", r)
	}
	if _, ok := take(t, db, "m/1", time.Minute); !ok {
		t.Error("nobody can take the run that was given back")
	}
})

// Whoever watches a run reads it again when its execution is settled, so what
// became of it has to be there by then.
var _ = both("SettledIsToldWhenTheEndIsWritten", func(t *testing.T, db *DB) {
	made := newRun(t, db, "job:1")
	settled := make(chan job.Run, 1)
	ctx, cancel := context.WithCancel(t.Context())
	r := &job.Runner{Store: db.Runs(), Holder: claim.Holder{Node: "n", Instance: "a"}, Poll: time.Hour,
		Handlers: map[job.Kind]job.Handler{"test": func(context.Context, *job.Execution) error { return nil }},
		Settled: func() {
			run, err := db.Runs().Get(context.WithoutCancel(ctx), tenant.Provider, made.ID)
			if err != nil {
				t.Error(err)
			}
			settled <- run
		}}
	ended := make(chan error, 1)
	go func() { ended <- r.Run(ctx) }()
	select {
	case run := <-settled:
		if run.State != job.Succeeded {
			t.Errorf("when told of the end, the run was %s", run.State)
		}
	case <-time.After(time.Minute):
		t.Error("nobody was told of the end")
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
})
