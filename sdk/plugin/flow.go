package plugin

import (
	"io"
	"sync"
	"time"
)

// How much of what a plugin says is kept. An honest plugin that writes every
// step of a backup at debug level stays far below.
const (
	// A plugin logs lineBurst lines at once and lineRate a second after that.
	// What is more is left out and counted.
	lineRate  = 50
	lineBurst = 500
	// leftEvery is how often the host says that lines were left out.
	leftEvery = time.Second
	// passRate is how many bytes a second the host reads. Beyond it the pipe
	// fills and the plugin waits, so that a flood costs the plugin's time and
	// not the host's.
	passRate = 4 << 20
)

// flow bounds what one process says.
type flow struct {
	left func(dropped int) // called when lines were left out, at most once in leftEvery

	mutex   sync.Mutex // guards the fields below
	tokens  float64
	filled  time.Time // when tokens was right
	dropped int
	passed  int       // bytes since window
	window  time.Time // when the second began in which they were counted
}

func newFlow(left func(dropped int)) *flow {
	return &flow{left: left, tokens: lineBurst, filled: time.Now()}
}

// take says whether one more line is kept.
func (f *flow) take() bool {
	f.mutex.Lock()
	defer f.mutex.Unlock()
	now := time.Now()
	f.tokens = min(f.tokens+now.Sub(f.filled).Seconds()*lineRate, lineBurst)
	f.filled = now
	if f.tokens >= 1 {
		f.tokens--
		return true
	}
	if f.dropped++; f.dropped == 1 {
		time.AfterFunc(leftEvery, f.tell)
	}
	return false
}

func (f *flow) tell() {
	f.mutex.Lock()
	dropped := f.dropped
	f.dropped = 0
	f.mutex.Unlock()
	f.left(dropped)
}

// pass counts n bytes that were read, and waits when there were too many.
func (f *flow) pass(n int) {
	f.mutex.Lock()
	now := time.Now()
	if now.Sub(f.window) >= time.Second {
		f.window, f.passed = now, 0
	}
	f.passed += n
	over, rest := f.passed > passRate, time.Second-now.Sub(f.window)
	f.mutex.Unlock()
	if over {
		<-time.After(rest)
	}
}

// slowReader is read no faster than a flow allows.
type slowReader struct {
	io.ReadCloser
	flow *flow
}

// Read reads, and waits after too much.
func (r *slowReader) Read(p []byte) (int, error) {
	n, err := r.ReadCloser.Read(p)
	r.flow.pass(n)
	return n, err
}
