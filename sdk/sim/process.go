package sim

import "sync"

// process is what signals do to the process that a Platform stands for, in
// tests that have one process only.
type process struct {
	mutex   sync.Mutex    // guards running
	running chan struct{} // closed while it is not stopped
	killed  chan struct{}
	once    sync.Once
}

func newProcess() process {
	running := make(chan struct{})
	close(running)
	return process{running: running, killed: make(chan struct{})}
}

// Kill does what SIGKILL does to the process that a Platform stands for: no
// call does anything any more. What is inside the hypervisor's lock was done a
// moment before.
func (p *Platform) Kill() { p.process.once.Do(func() { close(p.process.killed) }) }

// Suspend does what SIGSTOP does: every call, also one of an open disk, waits
// for Resume before it looks at anything.
func (p *Platform) Suspend() {
	p.process.mutex.Lock()
	defer p.process.mutex.Unlock()
	select {
	case <-p.process.running:
		p.process.running = make(chan struct{})
	default:
	}
}

// Resume does what SIGCONT does.
func (p *Platform) Resume() {
	p.process.mutex.Lock()
	defer p.process.mutex.Unlock()
	select {
	case <-p.process.running:
	default:
		close(p.process.running)
	}
}

// turn waits while the process is stopped.
func (p *Platform) turn() error {
	p.process.mutex.Lock()
	running := p.process.running
	p.process.mutex.Unlock()
	select {
	case <-p.process.killed:
		return errClosed
	default:
	}
	select {
	case <-running:
		return nil
	case <-p.process.killed:
		return errClosed
	}
}
