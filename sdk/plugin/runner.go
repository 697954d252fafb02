package plugin

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-plugin/runner"

	"github.com/holdfast-dr/holdfast/sdk"
)

// drainLimit is how long the last lines of a dead process are waited for: a
// child of its own may hold the pipe open for ever.
const drainLimit = 2 * time.Second

// Checksum is the SHA-256 of a file in lower-case hex.
func Checksum(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", fmt.Errorf("open plugin: %w", err)
	}
	defer f.Close()
	return sum(f)
}

func sum(r io.Reader) (string, error) {
	hash := sha256.New()
	if _, err := io.Copy(hash, r); err != nil {
		return "", fmt.Errorf("read plugin: %w", err)
	}
	return hex.EncodeToString(hash.Sum(nil)), nil
}

// verified opens a program and holds it against its pinned checksum. What is
// run is this open file: exchanging the one at the path afterwards changes
// nothing.
func verified(path, want string) (*os.File, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, sdk.Errorf(sdk.ErrNotFound, sdk.FaultHost, "plugin program: %v", err)
	}
	got, err := sum(f)
	if err == nil && !strings.EqualFold(got, want) {
		err = troubled(TroubleChanged, sdk.Errorf(sdk.ErrDenied, sdk.FaultHost, "%s has SHA-256 %s, but %q was enabled", path, got, want).
			WithHint("if you changed the plugin yourself, enable it again"))
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// program runs one plugin process for go-plugin.
type program struct {
	path    string
	file    *os.File // verified
	command *exec.Cmd
	keep    *confinement
	dir     string   // of its sockets
	stdin   *os.File // our end; its closing ends the process
	stdout  *os.File
	stderr  *os.File

	pid  atomic.Int64  // once it runs
	done chan struct{} // closed when the process has ended, after err is set
	err  error
}

var _ runner.Runner = (*program)(nil)

// newProgram prepares a process. environment is all that it gets.
func newProgram(path string, file *os.File, environment []string, keep *confinement, args ...string) *program {
	command := exec.Command(execPath(path, file), args...)
	command.Args[0] = path
	command.Env = environment
	command.Dir = "/"
	command.ExtraFiles = []*os.File{file}
	return &program{path: path, file: file, command: command, keep: keep, done: make(chan struct{})}
}

// Start starts the process and watches it.
func (p *program) Start(context.Context) error {
	var theirs []*os.File
	for _, pipe := range []struct {
		ours *(*os.File)
		set  func(*os.File)
		in   bool
	}{
		{&p.stdin, func(f *os.File) { p.command.Stdin = f }, true},
		{&p.stdout, func(f *os.File) { p.command.Stdout = f }, false},
		{&p.stderr, func(f *os.File) { p.command.Stderr = f }, false},
	} {
		read, write, err := os.Pipe()
		if err != nil {
			closeAll(append(theirs, p.stdin, p.stdout, p.stderr))
			return fmt.Errorf("start plugin: %w", err)
		}
		*pipe.ours, theirs = read, append(theirs, write)
		if pipe.in {
			*pipe.ours, theirs[len(theirs)-1] = write, read
		}
		pipe.set(theirs[len(theirs)-1])
	}
	attributes, release := p.keep.attributes()
	p.command.SysProcAttr = attributes
	err := onSteadyThread(p.command.Start)
	release()
	closeAll(append(theirs, p.file))
	if err != nil {
		closeAll([]*os.File{p.stdin, p.stdout, p.stderr})
		p.keep.tidy()
		return p.notStarted(err)
	}
	p.keep.apply(p.command.Process.Pid)
	p.pid.Store(int64(p.command.Process.Pid))
	go p.watch()
	return nil
}

// notStarted is why the system did not run the program.
func (p *program) notStarted(err error) error {
	e := sdk.Errorf(nil, sdk.FaultHost, "run %s: %v", p.path, err)
	if p.keep.user != nil && errors.Is(err, fs.ErrPermission) {
		e.Hint = fmt.Sprintf("it runs as user %d, who must be able to execute it: chmod 755 %s", p.keep.user.UID, p.path)
	}
	return e
}

func (p *program) watch() {
	p.err = p.command.Wait()
	p.keep.end(p.command.Process.Pid)
	p.keep.tidy()
	close(p.done)
	time.AfterFunc(drainLimit, func() { closeAll([]*os.File{p.stdin, p.stdout, p.stderr}) })
}

func closeAll(files []*os.File) {
	for _, f := range files {
		if f != nil {
			_ = f.Close()
		}
	}
}

// Wait waits until the process has ended.
func (p *program) Wait(ctx context.Context) error {
	select {
	case <-p.done:
		return p.err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Kill ends the process and its children.
func (p *program) Kill(context.Context) error {
	select {
	case <-p.done:
		return nil
	default:
	}
	pid := int(p.pid.Load())
	if pid == 0 {
		return nil
	}
	p.keep.end(pid)
	err := p.command.Process.Kill()
	if errors.Is(err, os.ErrProcessDone) {
		return nil
	}
	return err
}

// Stdout is what the process prints itself: its first line, and nothing that
// anybody reads.
func (p *program) Stdout() io.ReadCloser {
	return &slowReader{ReadCloser: p.stdout, flow: newFlow(func(int) {})}
}
func (p *program) Stderr() io.ReadCloser { return p.stderr }
func (p *program) Name() string          { return p.path }
func (p *program) ID() string            { return strconv.Itoa(p.command.Process.Pid) }

// Diagnose is the hint when the first line of a process is not that of a
// plugin.
func (p *program) Diagnose(context.Context) string {
	return "is " + p.path + " a Holdfast plugin for " + runtime.GOOS + "/" + runtime.GOARCH + "?"
}

// PluginToHost and HostToPlugin translate nothing: both see the same files.
func (p *program) PluginToHost(network, addr string) (string, string, error) {
	return network, addr, nil
}

// HostToPlugin is the identity too.
func (p *program) HostToPlugin(network, addr string) (string, string, error) {
	return network, addr, nil
}

// The parent-death signal is sent when the thread ends that started the
// process, not its program. So one goroutine, which keeps its thread for ever,
// starts them all.
var (
	steadyOnce  sync.Once
	steadyCalls chan func()
)

func onSteadyThread(start func() error) error {
	steadyOnce.Do(func() {
		steadyCalls = make(chan func())
		go func() {
			runtime.LockOSThread()
			_ = noNewPrivileges() // kernels have it since 3.5
			for call := range steadyCalls {
				call()
			}
		}()
	})
	result := make(chan error, 1)
	steadyCalls <- func() { result <- start() }
	return <-result
}
