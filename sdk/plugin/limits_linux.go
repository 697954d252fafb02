package plugin

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// killScore makes the kernel, when memory is short, end plugins before their
// host and before the guests of the machine.
const killScore = "500"

// noNewPrivileges is called on the thread that starts all processes, which
// inherit it: no program that a plugin starts is more than the plugin is.
func noNewPrivileges() error {
	return unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
}

// attributes are those of a process, which is put into a group of its own, so
// that a terminal's interrupt does not reach it, and ends with its host.
// release closes what they hold once the process was started.
func (c *confinement) attributes() (attributes *syscall.SysProcAttr, release func()) {
	a := &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if c.user != nil {
		a.Credential = &syscall.Credential{Uid: c.user.UID, Gid: c.user.GID, Groups: c.user.Groups}
	}
	if c.cgroup == "" {
		return a, func() {}
	}
	dir, err := c.makeCgroup()
	if err != nil {
		c.lacks("a cgroup of its own", err.Error())
		return a, func() {}
	}
	a.UseCgroupFD, a.CgroupFD = true, int(dir.Fd())
	return a, func() { _ = dir.Close() }
}

// makeCgroup makes a cgroup with the limits and opens it.
func (c *confinement) makeCgroup() (*os.File, error) {
	own, err := os.MkdirTemp(c.cgroup, "plugin-")
	if err != nil {
		return nil, err
	}
	set := func(file, value string) {
		if err := os.WriteFile(filepath.Join(own, file), []byte(value), 0); err != nil {
			c.lacks("the cgroup's "+file, err.Error())
		}
	}
	if c.limits.MemoryBytes > 0 {
		set("memory.max", strconv.FormatInt(c.limits.MemoryBytes, 10))
		set("memory.oom.group", "1")
	}
	if c.limits.Processes > 0 {
		set("pids.max", strconv.FormatInt(c.limits.Processes, 10))
	}
	if c.limits.CPUPercent > 0 {
		const period = 100_000 // microseconds
		set("cpu.max", fmt.Sprintf("%d %d", c.limits.CPUPercent*period/100, period))
	}
	dir, err := os.Open(own)
	if err != nil {
		return nil, errors.Join(err, os.Remove(own))
	}
	c.own = own
	return dir, nil
}

// apply sets the limits of a process that has just been started and was given
// nothing to do yet.
func (c *confinement) apply(pid int) {
	set := func(what string, resource int, value int64) {
		limit := &unix.Rlimit{Cur: uint64(value), Max: uint64(value)}
		err := unix.Prlimit(pid, resource, limit, nil)
		if errors.Is(err, fs.ErrPermission) && c.user != nil {
			err = asUser(c.user, func() error { return unix.Prlimit(pid, resource, limit, nil) })
		}
		if err != nil {
			c.lacks(what, err.Error())
		}
	}
	set("no core files", unix.RLIMIT_CORE, 0)
	if c.limits.MemoryBytes > 0 {
		set("the limit of memory", unix.RLIMIT_DATA, c.limits.MemoryBytes)
	}
	if c.limits.OpenFiles > 0 {
		set("the limit of open files", unix.RLIMIT_NOFILE, c.limits.OpenFiles)
	}
	switch {
	case c.limits.Processes <= 0:
	case c.user != nil && c.user.Own:
		set("the limit of processes", unix.RLIMIT_NPROC, c.limits.Processes)
	case c.own == "":
		c.lacks("the limit of processes", "the process has neither a user nor a cgroup of its own")
	}
	if c.limits.CPUPercent > 0 && c.own == "" {
		c.lacks("the limit of CPU time", "the process has no cgroup of its own")
	}
	// Raising one's own score needs no privilege.
	if err := os.WriteFile(fmt.Sprintf("/proc/%d/oom_score_adj", pid), []byte(killScore), 0); err != nil {
		c.lacks("being ended first when memory is short", err.Error())
	}
}

// asUser does something on a thread whose real user is another, which is who
// the kernel asks about when one process sets another's limits. A root without
// CAP_SYS_RESOURCE, as containers have it, needs that; its effective user and
// with it everything else stays.
func asUser(u *User, do func() error) error {
	if strconv.IntSize < 64 {
		return errors.ErrUnsupported // the system call has another number there
	}
	const keep = ^uintptr(0)
	set := func(call uintptr, id uint32) error {
		if _, _, errno := syscall.RawSyscall(call, uintptr(id), keep, keep); errno != 0 {
			return errno
		}
		return nil
	}
	result := make(chan error, 1)
	go func() {
		// Without UnlockOSThread the thread ends with the goroutine, and nobody
		// else runs as what it may still be.
		runtime.LockOSThread()
		uid, gid := uint32(os.Getuid()), uint32(os.Getgid())
		err := errors.Join(set(syscall.SYS_SETRESGID, u.GID), set(syscall.SYS_SETRESUID, u.UID))
		if err == nil {
			err = do()
		}
		result <- errors.Join(err, set(syscall.SYS_SETRESUID, uid), set(syscall.SYS_SETRESGID, gid))
	}()
	return <-result
}

// emptyLimit is how long a cgroup may take to be empty after its processes
// were killed.
const emptyLimit = 2 * time.Second

// end kills whatever of the process is left: its group; its cgroup; and, by
// what they inherited in their environment, children that left both. Of a
// plugin with guards, only the group.
func (c *confinement) end(pid int) {
	_ = syscall.Kill(-pid, syscall.SIGKILL)
	if c.guards.Load() {
		return
	}
	if c.own != "" {
		_ = os.WriteFile(filepath.Join(c.own, "cgroup.kill"), []byte("1"), 0)
	}
	c.killMarked()
}

// tidy removes the cgroup. One with guards in it stays until the host starts
// again.
func (c *confinement) tidy() {
	if c.own == "" {
		return
	}
	if c.guards.Load() {
		_ = os.Remove(c.own)
		return
	}
	for deadline := time.Now().Add(emptyLimit); ; {
		err := os.Remove(c.own)
		if err == nil || errors.Is(err, fs.ErrNotExist) || time.Now().After(deadline) {
			return
		}
		<-time.After(10 * time.Millisecond)
	}
}

// killMarked kills the processes that have the cookie in their environment,
// again until no new one appears: a process that forks while it is looked for
// is found in the next round.
func (c *confinement) killMarked() {
	if c.cookie == "" {
		return
	}
	const rounds = 10
	for range rounds {
		found := false
		for _, pid := range marked(c.cookie) {
			found = syscall.Kill(pid, syscall.SIGKILL) == nil || found
		}
		if !found {
			return
		}
	}
}

// marked lists the processes whose environment has an entry. It sees those of
// our own user, and as root all.
func marked(entry string) []int {
	proc, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	var pids []int
	for _, p := range proc {
		pid, err := strconv.Atoi(p.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		environment, err := os.ReadFile("/proc/" + p.Name() + "/environ")
		if err != nil || !bytes.Contains(environment, []byte(entry)) {
			continue
		}
		for e := range strings.SplitSeq(string(environment), "\x00") {
			if e == entry {
				pids = append(pids, pid)
				break
			}
		}
	}
	return pids
}

// give makes a directory the user's own.
func (c *confinement) give(dir string) error {
	if c.user == nil {
		return nil
	}
	return os.Chown(dir, int(c.user.UID), int(c.user.GID))
}

// execPath names the open file, which the child has as its descriptor 3.
func execPath(string, *os.File) string { return "/proc/self/fd/3" }
