package mover

import (
	"context"
	"runtime"
	"sync/atomic"
	"time"
)

// Stage is a part of a copy that can be the slowest one.
type Stage string

// The stages. Repository is the time that the far side says it needed itself;
// what remains of a request is the network's.
const (
	StageNone       Stage = ""
	StageSource     Stage = "source"
	StageCPU        Stage = "cpu"
	StageNetwork    Stage = "network"
	StageRepository Stage = "repository"
	StageTarget     Stage = "target"
)

// ServerTimer is implemented by a Writer or Reader that knows how long the far
// side worked on its requests, in sum. Without it all waiting counts as network.
type ServerTimer interface {
	ServerTime() time.Duration
}

// Progress is where a copy of one disk stands.
type Progress struct {
	TotalBytes int64 // of the disk, or with change tracking of what changed
	DoneBytes  int64 // of TotalBytes
	ReadBytes  int64 // at the source
	SentBytes  int64 // sealed; of a restore, written
	Rate       float64
	Remaining  time.Duration // 0: not known
	Bottleneck Stage
}

// Load is how busy each stage was, from 0 to 1.
type Load struct {
	Source     float64
	CPU        float64
	Network    float64
	Repository float64
	Target     float64
}

// meter counts what a copy did and where its time went.
type meter struct {
	start time.Time

	total, done, read, sent  atomic.Int64
	source, cpu, wire, asked atomic.Int64 // nanoseconds of work, all goroutines in sum
	target                   atomic.Int64

	sources, workers, wires, askers, targets int // how many goroutines share each
	timers                                   []ServerTimer
	served                                   time.Duration // of the timers, before the start
}

func (m *meter) begin(ends ...any) {
	m.start = time.Now()
	for _, end := range ends {
		if t, ok := end.(ServerTimer); ok {
			m.timers = append(m.timers, t)
			m.served += t.ServerTime()
		}
	}
}

// clock adds the time since then to a stage.
func clock(stage *atomic.Int64, since time.Time) { stage.Add(int64(time.Since(since))) }

func (m *meter) load() Load {
	wall := time.Since(m.start)
	if wall <= 0 {
		return Load{}
	}
	share := func(busy *atomic.Int64, of int) float64 {
		if of == 0 {
			return 0
		}
		return min(1, float64(busy.Load())/float64(wall)/float64(of))
	}
	l := Load{Source: share(&m.source, m.sources), CPU: share(&m.cpu, m.workers), Target: share(&m.target, m.targets)}
	far := max(share(&m.wire, m.wires), share(&m.asked, m.askers))
	served := -m.served
	for _, t := range m.timers {
		served += t.ServerTime()
	}
	if waited := m.wire.Load() + m.asked.Load(); waited > 0 && served > 0 {
		l.Repository = far * min(1, float64(served)/float64(waited))
	}
	l.Network = far - l.Repository
	return l
}

// Bottleneck is the stage that the others waited for.
func (l Load) Bottleneck() Stage {
	far, name := l.Network+l.Repository, StageNetwork
	if l.Repository > l.Network {
		name = StageRepository
	}
	slowest, most := StageNone, 0.0
	for _, s := range []struct {
		stage Stage
		load  float64
	}{{StageSource, l.Source}, {StageCPU, l.CPU}, {name, far}, {StageTarget, l.Target}} {
		if s.load > most {
			slowest, most = s.stage, s.load
		}
	}
	return slowest
}

// progressEvery is how often a copy reports.
const progressEvery = time.Second

// rateTicks is over how many reports the rate is taken.
const rateTicks = 15

// report calls to until ctx ends, and once more after that.
func (m *meter) report(ctx context.Context, to func(Progress)) {
	ticker := time.NewTicker(progressEvery)
	defer ticker.Stop()
	type mark struct {
		at   time.Time
		done int64
	}
	marks := []mark{{m.start, 0}}
	for ended := false; !ended; {
		select {
		case <-ctx.Done():
			ended = true
		case <-ticker.C:
		}
		now, done := time.Now(), m.done.Load()
		p := Progress{
			TotalBytes: m.total.Load(), DoneBytes: done, ReadBytes: m.read.Load(), SentBytes: m.sent.Load(),
			Bottleneck: m.load().Bottleneck(),
		}
		if passed := now.Sub(marks[0].at); passed > 0 {
			p.Rate = float64(done-marks[0].done) / passed.Seconds()
		}
		if left := p.TotalBytes - done; left > 0 && p.Rate > 0 {
			p.Remaining = time.Duration(float64(left) / p.Rate * float64(time.Second))
		}
		to(p)
		if marks = append(marks, mark{now, done}); len(marks) > rateTicks {
			marks = marks[1:]
		}
	}
}

// reporting starts the reports and returns what ends them.
func (m *meter) reporting(ctx context.Context, to func(Progress)) (stop func()) {
	if to == nil {
		return func() {}
	}
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		m.report(ctx, to)
	}()
	return func() {
		cancel()
		<-done
	}
}

func defaultWorkers() int { return runtime.GOMAXPROCS(0) + 1 }
