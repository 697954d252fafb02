package mover

import (
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/core/chunk"
	"github.com/holdfast-dr/holdfast/core/point"
)

// newGathering is a copy in which nothing runs, whose queues a test fills.
func newGathering() *sending {
	s := newSending(Disk{Geometry: point.Geometry{SizeBytes: 1 << 30, ChunkSize: chunk.Size, FanOut: point.FanOut}}, Repository{}, Options{})
	s.prepare()
	s.heard(slowAnswer / 2)
	return s
}

func asking(n int) *item {
	it := &item{chunks: make([]piece, n)}
	for i := range it.chunks {
		it.chunks[i].ask = true
	}
	return it
}

// gathered is how many ids the next question has, once it is asked.
func gathered(t *testing.T, s *sending) <-chan int {
	asked := make(chan int, 1)
	go func() {
		_, ids, _, err := s.gather(t.Context(), nil, nil)
		if err != nil {
			t.Error(err)
		}
		asked <- len(ids)
	}()
	return asked
}

func TestQuestionTakesWhatThereIsAndDoesNotWaitForIdleWorkers(t *testing.T) {
	s := newGathering()
	s.asks <- asking(4)
	s.asks <- asking(3)
	if n := <-gathered(t, s); n != 7 {
		t.Errorf("asked about %d ids, want all 7", n)
	}
}

func TestQuestionWaitsWhileWorkersAreBusy(t *testing.T) {
	s := newGathering()
	s.seals <- asking(1)
	s.asks <- asking(4)
	asked := gathered(t, s)
	s.asks <- asking(4)
	for len(s.asks) > 0 { // until both are part of the question
		select {
		case n := <-asked:
			t.Fatalf("asked about %d ids although there is something to seal", n)
		default:
		}
	}
	// The worker that takes the last item tells.
	if _, sealing, ok, err := s.next(t.Context(), s.hashes); !sealing || !ok || err != nil {
		t.Fatal(sealing, ok, err)
	}
	if n := <-asked; n != 8 {
		t.Errorf("asked about %d ids, want 8", n)
	}
}

func TestQuestionIsAskedWhenItIsLargeEnough(t *testing.T) {
	s := newGathering()
	s.seals <- asking(1)
	for range 4 {
		s.asks <- asking(askEnough / 4)
	}
	if n := <-gathered(t, s); n != askEnough {
		t.Errorf("asked about %d ids, want %d", n, askEnough)
	}
}

func TestQuestionIsAskedAtOnceWhereAnswersAreSlow(t *testing.T) {
	s := newGathering()
	s.seals <- asking(1)
	s.heard(time.Hour)
	if !s.patient() {
		t.Error("one slow answer counts as a long way")
	}
	for range 20 {
		s.heard(time.Hour)
	}
	s.asks <- asking(4)
	if n := <-gathered(t, s); n != 4 {
		t.Errorf("asked about %d ids, want 4", n)
	}
}

func TestQuestionIsAskedWhenNothingMoreComes(t *testing.T) {
	s := newGathering()
	s.seals <- asking(1)
	s.asks <- asking(4)
	close(s.asks)
	if n := <-gathered(t, s); n != 4 {
		t.Errorf("asked about %d ids, want 4", n)
	}
}
