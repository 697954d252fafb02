package stack

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Process is one running program. Its output goes to a file.
type Process struct {
	Name string
	Log  string // path of its output
	cmd  *exec.Cmd
	done chan struct{}
	err  error // after done
}

// StartProcess runs a program whose parent-death signal is SIGKILL, so that
// nothing outlives a killed test.
func StartProcess(name, log string, env []string, program string, args ...string) (*Process, error) {
	out, err := os.OpenFile(log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	defer out.Close()
	cmd := exec.Command(program, args...)
	cmd.Env, cmd.Stdout, cmd.Stderr = env, out, out
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	p := &Process{Name: name, Log: log, cmd: cmd, done: make(chan struct{})}
	started := make(chan error, 1)
	go func() {
		// The death signal is that of the thread that forked, so the thread has
		// to stay for as long as the child lives. It is given back after that: a
		// thread that ends would kill what others started on it.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		if err := cmd.Start(); err != nil {
			started <- fmt.Errorf("start %s: %w", name, err)
			return
		}
		started <- nil
		p.err = cmd.Wait()
		close(p.done)
	}()
	if err := <-started; err != nil {
		return nil, err
	}
	return p, nil
}

// PID is the process id.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Done is closed when the process has ended.
func (p *Process) Done() <-chan struct{} { return p.done }

// Stop ends the process in an orderly way; after the grace it is killed, which
// is an error.
func (p *Process) Stop(grace time.Duration) error {
	_ = p.cmd.Process.Signal(syscall.SIGTERM) // it may have ended
	timer := time.NewTimer(grace)
	defer timer.Stop()
	select {
	case <-p.done:
		return nil
	case <-timer.C:
		p.Kill()
		return fmt.Errorf("%s did not stop within %s; its output is in %s", p.Name, grace, p.Log)
	}
}

// Kill ends the process with SIGKILL and waits for its end.
func (p *Process) Kill() {
	_ = p.cmd.Process.Kill() // it may have ended
	<-p.done
}

// Signal sends a signal.
func (p *Process) Signal(s syscall.Signal) error { return p.cmd.Process.Signal(s) }

// Output is the end of what the process printed, for error messages.
func (p *Process) Output() string {
	const most = 8 << 10
	b, err := os.ReadFile(p.Log)
	if err != nil {
		return err.Error()
	}
	if len(b) > most {
		b = b[len(b)-most:]
	}
	return string(b)
}

// Usage is what a process and its children that still run have used.
type Usage struct {
	CPU  time.Duration // user and system
	Peak int64         // the largest VmHWM of one process, bytes
}

// Usage reads the kernel's account of the process itself.
func (p *Process) Usage() (Usage, error) { return usageOf(p.PID()) }

// Children are the processes that it started and that still run, by the name
// of their program.
func (p *Process) Children() (map[string]Usage, error) {
	found := make(map[string]Usage)
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		return nil, err
	}
	for _, path := range stats {
		fields, name, err := readStat(path)
		if err != nil || len(fields) < 2 || fields[1] != strconv.Itoa(p.PID()) {
			continue
		}
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(path)))
		if err != nil {
			continue
		}
		if u, err := usageOf(pid); err == nil {
			found[name] = u
		}
	}
	return found, nil
}

// ChildPIDs are the processes that a process started and that still run, by
// process id, with the names of their programs as the kernel has them, which is
// at most 15 bytes.
func ChildPIDs(parent int) (map[int]string, error) {
	found := make(map[int]string)
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		return nil, err
	}
	for _, path := range stats {
		fields, name, err := readStat(path)
		if err != nil || len(fields) < 2 || fields[1] != strconv.Itoa(parent) || fields[0] == "Z" {
			continue
		}
		if pid, err := strconv.Atoi(filepath.Base(filepath.Dir(path))); err == nil {
			found[pid] = name
		}
	}
	return found, nil
}

// readStat is the fields of a stat file after the program's name: state first.
func readStat(path string) (fields []string, name string, err error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, "", err
	}
	open, end := bytes.IndexByte(b, '('), bytes.LastIndexByte(b, ')')
	if open < 0 || end < open {
		return nil, "", fmt.Errorf("%s: not a stat file", path)
	}
	return strings.Fields(string(b[end+1:])), string(b[open+1 : end]), nil
}

// clockTicks is what the kernel divides CPU time by for user space, on every
// Linux that Go runs on.
const clockTicks = 100

func usageOf(pid int) (Usage, error) {
	fields, _, err := readStat(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return Usage{}, err
	}
	if len(fields) < 13 {
		return Usage{}, fmt.Errorf("process %d: stat is short", pid)
	}
	user, err1 := strconv.ParseInt(fields[11], 10, 64)
	system, err2 := strconv.ParseInt(fields[12], 10, 64)
	status, err3 := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err := errors.Join(err1, err2, err3); err != nil {
		return Usage{}, err
	}
	u := Usage{CPU: time.Duration(user+system) * time.Second / clockTicks}
	for line := range strings.Lines(string(status)) {
		if rest, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			kib, err := strconv.ParseInt(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(rest), "kB")), 10, 64)
			if err != nil {
				return Usage{}, fmt.Errorf("process %d: %w", pid, err)
			}
			u.Peak = kib << 10
		}
	}
	return u, nil
}

// Until polls a condition until it is true, and says what was waited for if ctx
// ends first.
func Until(ctx context.Context, what string, condition func() (bool, error)) error {
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	var last error
	for {
		ok, err := condition()
		if ok {
			return nil
		}
		if err != nil {
			last = err
		}
		select {
		case <-ctx.Done():
			return errors.Join(fmt.Errorf("wait for %s: %w", what, ctx.Err()), last)
		case <-tick.C:
		}
	}
}
