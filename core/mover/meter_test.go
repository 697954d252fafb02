package mover_test

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfast-dr/holdfast/core/chunk"
	"github.com/holdfast-dr/holdfast/core/mover"
	"github.com/holdfast-dr/holdfast/core/mover/movertest"
)

// pass is how long something slow takes, in a bubble of synctest alone.
func pass(d time.Duration) {
	<-time.After(d)
}

// TestSlowestStageIsNamed makes one stage slow in turn. Inside the bubble of
// synctest computing takes no time at all, so only what waits is seen.
func TestSlowestStageIsNamed(t *testing.T) {
	for name, c := range map[string]struct {
		slow func(*stand)
		want mover.Stage
	}{
		"source": {func(s *stand) {
			s.disk.OnRead = func(int64, int) error { pass(50 * time.Millisecond); return nil }
			s.store.OnPut = func(context.Context, []byte) error { pass(10 * time.Millisecond); return nil }
		}, mover.StageSource},
		"network": {func(s *stand) {
			s.disk.OnRead = func(int64, int) error { pass(time.Millisecond); return nil }
			s.store.OnPut = func(context.Context, []byte) error {
				pass(500 * time.Millisecond)
				s.store.Serve(10 * time.Millisecond)
				return nil
			}
		}, mover.StageNetwork},
		"round trips": {func(s *stand) {
			s.store.OnHave = func(context.Context, []chunk.ID) error { pass(300 * time.Millisecond); return nil }
		}, mover.StageNetwork},
		"repository": {func(s *stand) {
			s.disk.OnRead = func(int64, int) error { pass(time.Millisecond); return nil }
			s.store.OnPut = func(context.Context, []byte) error {
				pass(500 * time.Millisecond)
				s.store.Serve(480 * time.Millisecond)
				return nil
			}
		}, mover.StageRepository},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newStand(t, 400*size)
				s.fill(0, 300*size, -1)
				c.slow(s)
				_, stats := s.send(mover.Disk{}, none)
				if stats.Bottleneck != c.want {
					t.Errorf("bottleneck %q of %+v, want %q", stats.Bottleneck, stats.Load, c.want)
				}
				if stats.Load.Network+stats.Load.Repository > 1 || stats.Load.Source > 1 {
					t.Errorf("load %+v", stats.Load)
				}
			})
		})
	}
}

func TestSlowCPUIsNamed(t *testing.T) {
	s := newStand(t, 300*size)
	s.fill(0, 200*size, 1)
	_, stats := s.send(mover.Disk{}, mover.Options{AuditChunks: -1, VerifyChunks: -1, Workers: 1})
	if stats.Bottleneck != mover.StageCPU {
		t.Errorf("bottleneck %q of %+v, want the one worker", stats.Bottleneck, stats.Load)
	}
}

// slowWriter takes its time for each write.
type slowWriter struct{ *movertest.Disk }

func (w slowWriter) WriteAt(p []byte, off int64) (int, error) {
	pass(20 * time.Millisecond)
	return w.Disk.WriteAt(p, off)
}

func TestSlowTargetIsNamed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStand(t, 200*size)
		s.fill(0, 200*size, -1)
		sent, _ := s.send(mover.Disk{}, none)
		stats, err := mover.Fetch(t.Context(), s.tree(sent), s.to(), slowWriter{movertest.NewDisk(s.disk.Bytes)}, mover.Options{})
		if err != nil || stats.Bottleneck != mover.StageTarget {
			t.Errorf("bottleneck %q of %+v: %v", stats.Bottleneck, stats.Load, err)
		}
		s.store.OnRead = func(context.Context, chunk.Kind, []chunk.ID) error { pass(time.Second); return nil }
		stats, err = mover.Fetch(t.Context(), s.tree(sent), s.to(), movertest.NewDisk(s.disk.Bytes), mover.Options{})
		if err != nil || stats.Bottleneck != mover.StageNetwork {
			t.Errorf("bottleneck %q of %+v: %v", stats.Bottleneck, stats.Load, err)
		}
	})
}

func TestProgressReachesItsEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStand(t, 400*size)
		s.fill(0, 300*size, -1)
		s.disk.OnRead = func(int64, int) error { pass(200 * time.Millisecond); return nil }
		var reports []mover.Progress
		opts := none
		opts.Progress = func(p mover.Progress) { reports = append(reports, p) }
		sent, stats := s.send(mover.Disk{}, opts)
		if len(reports) < 3 {
			t.Fatalf("%d reports of a copy of %v", len(reports), stats.Duration)
		}
		for i, p := range reports[1:] {
			if before := reports[i]; p.DoneBytes < before.DoneBytes || p.ReadBytes < before.ReadBytes || p.TotalBytes != s.disk.Bytes {
				t.Errorf("report %+v after %+v", p, before)
			}
		}
		middle, last := reports[len(reports)/2], reports[len(reports)-1]
		if middle.Rate <= 0 || middle.Remaining <= 0 || middle.Bottleneck != mover.StageSource {
			t.Errorf("half way: %+v", middle)
		}
		if last.DoneBytes != s.disk.Bytes || last.SentBytes < stats.StoredBytes || last.Remaining != 0 {
			t.Errorf("at the end: %+v", last)
		}
		reports = nil
		if _, err := mover.Fetch(t.Context(), s.tree(sent), s.to(), movertest.NewDisk(s.disk.Bytes), opts); err != nil {
			t.Fatal(err)
		}
		if last := reports[len(reports)-1]; last.DoneBytes != s.disk.Bytes || last.SentBytes != 300*size {
			t.Errorf("at the end of Fetch: %+v", last)
		}
	})
}
