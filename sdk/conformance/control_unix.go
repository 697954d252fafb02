//go:build unix

package conformance

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/holdfast-dr/holdfast/sdk/plugin"
)

// Control makes a Process of a plugin that plugin.Start has started on this
// machine. Signals go to its whole process group.
func Control(p *plugin.Process) Process {
	send := func(s syscall.Signal) error {
		if err := syscall.Kill(-p.PID(), s); err != nil && !errors.Is(err, syscall.ESRCH) {
			return fmt.Errorf("send %s to plugin process %d: %w", s, p.PID(), err)
		}
		return nil
	}
	return Process{
		Platform: p.Platform(),
		Kill: func() error {
			if err := send(syscall.SIGKILL); err != nil {
				return err
			}
			return p.Close() // waits for its end
		},
		Suspend: func() error { return errors.Join(send(syscall.SIGSTOP), stopped(p.PID())) },
		Resume:  func() error { return send(syscall.SIGCONT) },
	}
}

// stopLimit is how long a process may go on after it was told to stop.
const stopLimit = 5 * time.Second

// stopped waits until every thread of a process stands still: the signal is
// delivered to each when the kernel gets to it, and until then a call could
// still begin. Where there is no /proc, it waits for nothing.
func stopped(pid int) error {
	for deadline := time.Now().Add(stopLimit); ; time.Sleep(time.Millisecond) {
		running := false
		threads, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", pid))
		for _, name := range threads {
			stat, err := os.ReadFile(name)
			if err != nil {
				continue // the thread has ended
			}
			// The name before it may hold anything, parentheses too.
			_, state, _ := strings.Cut(string(stat[bytes.LastIndexByte(stat, ')')+1:]), " ")
			running = running || !strings.HasPrefix(state, "T") && !strings.HasPrefix(state, "Z")
		}
		if !running {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("plugin process %d runs %s after it was told to stop", pid, stopLimit)
		}
	}
}
