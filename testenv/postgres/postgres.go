// Package postgres starts a PostgreSQL server that lives as long as a test: a
// cluster of its own in a temporary directory, reachable only through a unix
// socket there. PostgreSQL refuses to run as root; then it runs as the user
// postgres, whom Debian's package creates.
package postgres

import (
	"bytes"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/testenv"
)

// startTimeout is how long a server may take until it answers. Creating a
// cluster takes a second or two; a loaded machine gets more.
const startTimeout = 60 * time.Second

// Server is a running cluster.
type Server struct {
	dir  string
	psql string
	next atomic.Int64
	run  func(name string, args ...string) *exec.Cmd
}

// Start creates a cluster and starts it; both are gone when the test ends.
func Start(t testing.TB) *Server {
	t.Helper()
	postgres, initdb, psql := testenv.Tool(t, "postgres"), testenv.Tool(t, "initdb"), testenv.Tool(t, "psql")
	owner := owner(t)
	dir, err := os.MkdirTemp("", "holdfast-pg-") // short: a socket's path has 107 bytes at most
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if owner != nil {
		if err := os.Chown(dir, int(owner.Uid), int(owner.Gid)); err != nil {
			t.Fatal(err)
		}
	}
	s := &Server{dir: dir, psql: psql}
	s.run = func(name string, args ...string) *exec.Cmd {
		cmd := exec.Command(name, args...)
		cmd.Dir = dir
		cmd.Env = []string{"PATH=" + filepath.Dir(name), "LC_ALL=C", "TZ=UTC", "HOME=" + dir}
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: owner}
		return cmd
	}
	data := filepath.Join(dir, "data")
	if out, err := s.run(initdb, "-D", data, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-sync").CombinedOutput(); err != nil {
		t.Fatalf("initdb: %v\n%s", err, out)
	}
	s.serve(t, postgres, data)
	return s
}

// owner is whom the server runs as: nobody special, unless we are root.
func owner(t testing.TB) *syscall.Credential {
	t.Helper()
	if os.Getuid() != 0 {
		return nil
	}
	u, err := user.Lookup("postgres")
	if err != nil {
		testenv.Lack(t, "needs the user postgres, since PostgreSQL does not run as root: %v", err)
	}
	uid, err1 := strconv.ParseUint(u.Uid, 10, 32)
	gid, err2 := strconv.ParseUint(u.Gid, 10, 32)
	if err1 != nil || err2 != nil {
		t.Fatalf("user postgres has ids %q and %q", u.Uid, u.Gid)
	}
	return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
}

// serve starts the server, waits until it answers, and stops it at the end.
// Durability is off: these clusters never outlive their test.
func (s *Server) serve(t testing.TB, postgres, data string) {
	t.Helper()
	cmd := s.run(postgres, "-D", data, "-k", s.dir, "-c", "listen_addresses=", "-c", "fsync=off",
		"-c", "max_connections=200", "-c", "unix_socket_permissions=0777")
	var log bytes.Buffer
	cmd.Stdout, cmd.Stderr = &log, &log
	cmd.SysProcAttr.Pdeathsig = syscall.SIGQUIT // immediate shutdown, should the test die
	if err := cmd.Start(); err != nil {
		t.Fatalf("start postgres: %v", err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		cmd.Wait()
	}()
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGINT) // fast shutdown; it may have ended
		select {
		case <-ended:
		case <-time.After(30 * time.Second):
			cmd.Process.Kill()
			<-ended
		}
	})
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(startTimeout)
	for {
		select {
		case <-ended:
			t.Fatalf("postgres ended: %v\n%s", cmd.ProcessState, &log)
		case <-deadline:
			t.Fatalf("postgres does not answer after %s", startTimeout)
		case <-tick.C:
		}
		conn, err := net.Dial("unix", filepath.Join(s.dir, ".s.PGSQL.5432"))
		if err != nil {
			continue
		}
		conn.Close()
		if s.command("SELECT 1").Run() == nil {
			return
		}
	}
}

func (s *Server) command(sql string) *exec.Cmd {
	return s.run(s.psql, "-h", s.dir, "-U", "postgres", "-d", "postgres", "-qAt", "-c", sql)
}

// Database creates an empty database and returns its URL.
func (s *Server) Database(t testing.TB) string {
	t.Helper()
	name := fmt.Sprintf("holdfast_%d", s.next.Add(1))
	if out, err := s.command("CREATE DATABASE " + name).CombinedOutput(); err != nil {
		t.Fatalf("create database: %v\n%s", err, out)
	}
	return fmt.Sprintf("postgres:///%s?host=%s&user=postgres", name, s.dir)
}
