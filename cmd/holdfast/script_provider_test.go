package main

import (
	"os"
	"os/exec"
	"syscall"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

// scriptProvider is the server of a script, a process of its own.
type scriptProvider struct {
	cmd  *exec.Cmd
	done chan struct{}
}

func newScriptProvider(ts *testscript.TestScript) *scriptProvider {
	program, err := exec.LookPath(ts.Getenv("exe")) // testscript puts the program on PATH
	if err != nil {
		program, err = exec.LookPath("holdfast")
	}
	ts.Check(err)
	log, err := os.Create(ts.MkAbs("server.log"))
	ts.Check(err)
	cmd := exec.Command(program, "server", "-dev", "--data", ts.MkAbs("dev"), "--listen", "127.0.0.1:0", "--log-level", "info")
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	ts.Check(cmd.Start())
	p := &scriptProvider{cmd: cmd, done: make(chan struct{})}
	go func() {
		_ = cmd.Wait()
		_ = log.Close()
		close(p.done)
	}()
	return p
}

func (p *scriptProvider) ended() bool {
	select {
	case <-p.done:
		return true
	default:
		return false
	}
}

func (p *scriptProvider) pause() {
	select {
	case <-p.done:
	case <-time.After(50 * time.Millisecond):
	}
}

func (p *scriptProvider) stop() {
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.done:
	case <-time.After(20 * time.Second):
		_ = p.cmd.Process.Kill()
		<-p.done
	}
}
