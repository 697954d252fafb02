package worker

import (
	"fmt"
	"io"
	"sync"
)

// maxBacklog is how much of what a process says is kept until the hub takes it.
const maxBacklog = 256 << 10

// backlog keeps what a process says until it is read. It never makes the
// process wait: what does not fit is dropped, and a line says how much.
type backlog struct {
	mutex   sync.Mutex
	more    *sync.Cond
	text    []byte
	dropped int // lines
	closed  bool
}

func newBacklog() *backlog {
	b := new(backlog)
	b.more = sync.NewCond(&b.mutex)
	return b
}

// Write takes one whole line.
func (b *backlog) Write(line []byte) (int, error) {
	b.mutex.Lock()
	defer b.mutex.Unlock()
	switch {
	case b.closed:
		return 0, io.ErrClosedPipe
	case len(b.text)+len(line) > maxBacklog:
		b.dropped++
		return len(line), nil
	}
	b.noteDropped()
	b.text = append(b.text, line...)
	b.more.Signal()
	return len(line), nil
}

// noteDropped says that lines are missing here. It is called with mutex held.
func (b *backlog) noteDropped() {
	if b.dropped > 0 {
		b.text = fmt.Appendf(b.text, "{\"level\":\"WARN\",\"msg\":\"the plugin said more than could be sent\",\"lines\":%d}\n", b.dropped)
		b.dropped = 0
	}
}

// Read waits for something to read, and answers io.EOF after the end.
func (b *backlog) Read(p []byte) (int, error) {
	b.mutex.Lock()
	defer b.mutex.Unlock()
	for len(b.text) == 0 && !b.closed {
		b.more.Wait()
	}
	if len(b.text) == 0 {
		return 0, io.EOF
	}
	n := copy(p, b.text)
	b.text = append(b.text[:0], b.text[n:]...)
	return n, nil
}

// Close ends the log; what is in it can still be read.
func (b *backlog) Close() error {
	b.mutex.Lock()
	defer b.mutex.Unlock()
	if !b.closed {
		b.noteDropped()
		b.closed = true
		b.more.Broadcast()
	}
	return nil
}
