package wan

import (
	"container/heap"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"
)

// Stats are the packets of one direction since the line was laid, and the bytes
// that passed.
type Stats struct {
	Passed, Bytes int64
	Lost          int64 // by Quality.Loss
	Dropped       int64 // by the queue
	Cut           int64
	Late          int64 // held back by Quality.Reorder
	// Overrun were lost because this program was too slow: they spoil a
	// measurement.
	Overrun int64
}

// String is for the log of a test.
func (s Stats) String() string {
	return fmt.Sprintf("%d passed (%d bytes), %d lost, %d dropped by the queue, %d cut, %d held back, %d overrun",
		s.Passed, s.Bytes, s.Lost, s.Dropped, s.Cut, s.Late, s.Overrun)
}

// Way is one direction of a line.
type Way struct {
	from, to *End
	ended    chan struct{}
	changed  chan struct{} // something to do for the deliverer; one is remembered
	done     sync.WaitGroup
	buffers  sync.Pool

	mutex   sync.Mutex
	quality Quality
	random  *rand.Rand
	cut     bool
	stalled bool
	free    time.Time // when the narrowest place has passed all it was given
	last    time.Time // when the last packet arrives that keeps its order
	flying  flight
	bytes   int64 // of what is flying
	stats   Stats
}

const (
	maxPacket = 1 << 16
	// maxFlying bounds the memory of a direction; a line of 10 Gbit/s and 200 ms
	// holds as much.
	maxFlying = 256 << 20
)

func newWay(from, to *End, q Quality, seed, stream uint64) *Way {
	return &Way{from: from, to: to, ended: make(chan struct{}), changed: make(chan struct{}, 1),
		quality: q.withDefaults(), random: rand.New(rand.NewPCG(seed, stream)),
		buffers: sync.Pool{New: func() any { return new([maxPacket]byte) }}}
}

// packet is on its way.
type packet struct {
	at     time.Time
	number int64 // packets of one moment keep their order
	buffer *[maxPacket]byte
	length int
}

// flight is a heap of packets, the one that arrives first on top.
type flight []packet

func (f flight) Len() int { return len(f) }
func (f flight) Less(i, j int) bool {
	if f[i].at.Equal(f[j].at) {
		return f[i].number < f[j].number
	}
	return f[i].at.Before(f[j].at)
}
func (f flight) Swap(i, j int) { f[i], f[j] = f[j], f[i] }

// Push is heap.Push's.
func (f *flight) Push(x any) { *f = append(*f, x.(packet)) }

// Pop is heap.Pop's.
func (f *flight) Pop() any {
	last := len(*f) - 1
	p := (*f)[last]
	(*f)[last] = packet{}
	*f = (*f)[:last]
	return p
}

func (w *Way) start() {
	w.done.Go(w.take)
	w.done.Go(w.deliver)
}

func (w *Way) stop() { close(w.ended) }
func (w *Way) wait() { w.done.Wait() }

// take reads packets from the one end until its device is closed.
func (w *Way) take() {
	for {
		buffer, _ := w.buffers.Get().(*[maxPacket]byte) // nothing else is in the pool
		n, err := w.from.device.Read(buffer[:])
		if err != nil {
			return
		}
		if !w.accept(time.Now(), packet{buffer: buffer, length: n}) {
			w.buffers.Put(buffer)
			continue
		}
		select {
		case w.changed <- struct{}{}:
		default:
		}
	}
}

// accept decides what becomes of a packet.
func (w *Way) accept(now time.Time, p packet) bool {
	w.mutex.Lock()
	defer w.mutex.Unlock()
	q, size := w.quality, int64(p.length)
	// Drawn for every packet, so that each one's fate depends on its number alone.
	lost, late, jitter := w.random.Float64() < q.Loss, w.random.Float64() < q.Reorder, w.random.Float64()
	if w.cut {
		w.stats.Cut++
		return false
	}
	if lost {
		w.stats.Lost++
		return false
	}
	if w.free.Before(now) {
		w.free = now
	}
	if w.bytes+size > maxFlying || q.Rate > 0 && inQueue(w.free.Sub(now), q.Rate)+size > q.Queue {
		w.stats.Dropped++
		return false
	}
	if q.Rate > 0 {
		w.free = w.free.Add(time.Duration(float64(size*8) / float64(q.Rate) * float64(time.Second)))
	}
	p.at = w.free.Add(q.Delay + time.Duration(jitter*float64(q.Jitter)))
	if late {
		w.stats.Late++
		p.at = p.at.Add(q.Behind)
	} else {
		if p.at.Before(w.last) {
			p.at = w.last
		}
		w.last = p.at
	}
	p.number = w.stats.Passed + int64(len(w.flying))
	heap.Push(&w.flying, p)
	w.bytes += size
	return true
}

// inQueue is how many bytes pass in a time.
func inQueue(d time.Duration, rate int64) int64 { return int64(d.Seconds() * float64(rate) / 8) }

// deliver gives packets to the other end when their time has come.
func (w *Way) deliver() {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	var due []packet
	for {
		var next time.Duration
		due, next = w.due(due[:0], time.Now())
		for _, p := range due {
			// A device that is gone, or down, loses packets as a cable does.
			_, _ = w.to.device.Write(p.buffer[:p.length])
			w.buffers.Put(p.buffer)
		}
		if len(due) > 0 {
			continue // time has passed
		}
		timer.Reset(next)
		select {
		case <-w.ended:
			return
		case <-w.changed:
		case <-timer.C:
		}
	}
}

// due takes the packets whose time has come, at most some, and says how long it
// is to the next one.
func (w *Way) due(found []packet, now time.Time) ([]packet, time.Duration) {
	const some = 64
	w.mutex.Lock()
	defer w.mutex.Unlock()
	for !w.stalled && len(w.flying) > 0 && len(found) < some {
		if wait := w.flying[0].at.Sub(now); wait > 0 {
			return found, wait
		}
		p, _ := heap.Pop(&w.flying).(packet) // nothing else was pushed
		w.bytes -= int64(p.length)
		w.stats.Passed++
		w.stats.Bytes += int64(p.length)
		found = append(found, p)
	}
	return found, time.Hour
}

// Set changes the direction, for packets that are sent from now on.
func (w *Way) Set(q Quality) error {
	if err := q.check(); err != nil {
		return err
	}
	w.mutex.Lock()
	defer w.mutex.Unlock()
	w.quality = q.withDefaults()
	w.free, w.last = time.Time{}, time.Time{}
	return nil
}

// Cut loses everything that is on its way, and all that is sent until Heal.
func (w *Way) Cut() {
	w.mutex.Lock()
	defer w.mutex.Unlock()
	w.cut = true
	w.stats.Cut += int64(len(w.flying))
	for _, p := range w.flying {
		w.buffers.Put(p.buffer)
	}
	w.flying, w.bytes = nil, 0
	w.free, w.last = time.Time{}, time.Time{}
}

// Stall keeps what is on its way, and takes more, until Heal.
func (w *Way) Stall() {
	w.mutex.Lock()
	defer w.mutex.Unlock()
	w.stalled = true
}

// Heal ends a cut or a stall.
func (w *Way) Heal() {
	w.mutex.Lock()
	w.cut, w.stalled = false, false
	w.mutex.Unlock()
	select {
	case w.changed <- struct{}{}:
	default:
	}
}

// Stats says what became of the packets so far.
func (w *Way) Stats() Stats {
	w.mutex.Lock()
	s := w.stats
	w.mutex.Unlock()
	s.Overrun = w.from.overrun()
	return s
}

// Waiting is how many packets are on their way or stalled.
func (w *Way) Waiting() int {
	w.mutex.Lock()
	defer w.mutex.Unlock()
	return len(w.flying)
}
