package gateway

import (
	"maps"
	"net/http"
	"strconv"
	"sync"
	"time"
)

// beat is how often a server says that it still works on a request, by an interim
// answer (102), from the first byte of the request to the first of the answer.
// Every answer promises it in HeaderAlive.
const beat = 5 * time.Second

// beating is the answer to a request, with interim answers until it begins.
type beating struct {
	w    http.ResponseWriter
	done chan struct{}
	gone chan struct{} // closed when the goroutine has ended

	mu     sync.Mutex // interim answers are written under it
	begun  bool
	header http.Header // until the answer begins; interim answers carry none of it
}

// newBeating begins to beat. Whoever calls it calls stop.
func newBeating(w http.ResponseWriter, every time.Duration) *beating {
	w.Header().Set(HeaderAlive, strconv.Itoa(int(max(every/time.Second, 1))))
	b := &beating{w: w, done: make(chan struct{}), gone: make(chan struct{}), header: w.Header().Clone()}
	go b.beat(every)
	return b
}

func (b *beating) beat(every time.Duration) {
	defer close(b.gone)
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		select {
		case <-b.done:
			return
		case <-tick.C:
		}
		if !b.once() {
			return
		}
	}
}

func (b *beating) once() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.begun {
		b.w.WriteHeader(http.StatusProcessing)
	}
	return !b.begun
}

// stop ends the beating, and returns when nothing more is written.
func (b *beating) stop() {
	close(b.done)
	<-b.gone
	b.begin()
}

func (b *beating) begin() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.begun {
		b.begun = true
		clear(b.w.Header())
		maps.Copy(b.w.Header(), b.header)
	}
}

// Header is the answer's header and, after the answer has begun, its trailer.
func (b *beating) Header() http.Header {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.begun {
		return b.w.Header()
	}
	return b.header
}

// WriteHeader begins the answer.
func (b *beating) WriteHeader(status int) {
	b.begin()
	b.w.WriteHeader(status)
}

func (b *beating) Write(p []byte) (int, error) {
	b.begin()
	return b.w.Write(p)
}

// Unwrap gives http.ResponseController the connection.
func (b *beating) Unwrap() http.ResponseWriter { return b.w }
