package site

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// A site's first process is this program once more, told so by bootVar before anything else of it runs. It makes the
// mounts and bridges, starts libvirtd, starts it again when it ends, and reaps what QEMU leaves: libvirt believes in a
// guest's death only when its process is gone. It ends when its standard input does, which is when the program that
// started it has ended, and takes its namespaces and all their processes with it.
const bootVar = "HOLDFAST_SITE_BOOT"

func init() {
	if plan := os.Getenv(bootVar); plan != "" {
		if err := bootProcess(plan); err != nil {
			fmt.Fprintln(os.Stderr, "site:", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
}

// bootPlan is what the first process is told.
type bootPlan struct {
	Dir      string
	Libvirtd string
	System   bool
	Detach   bool
	Link     *link // nil: no network to the outside
}

// link is a cable between this machine's network namespace and the site's.
type link struct {
	Name string // on this side
	Here string // addresses
	Site string
}

// goAhead is written to the first process when its cable is plugged in.
const goAhead = "go\n"

// boot starts the first process.
func (s *Site) boot(ctx context.Context, plan bootPlan) error {
	told, err := json.Marshal(plan)
	if err != nil {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	log, err := os.OpenFile(s.path("log", "boot.log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	start := func(attr *syscall.SysProcAttr) (*exec.Cmd, io.WriteCloser, error) {
		cmd := exec.Command(self)
		cmd.Env = append(os.Environ(), bootVar+"="+string(told))
		cmd.Stdout, cmd.Stderr = log, log
		cmd.SysProcAttr = attr
		cmd.Dir = "/"
		in, err := cmd.StdinPipe()
		if err != nil {
			return nil, nil, err
		}
		return cmd, in, cmd.Start()
	}
	cmd, in, err := start(s.namespaces())
	if err != nil && !s.System {
		// The kernel refuses unprivileged namespaces: the first process has to tidy up by itself.
		cmd, in, err = start(&syscall.SysProcAttr{Setsid: true})
	}
	if err != nil {
		return fmt.Errorf("start the first process: %w", err)
	}
	s.Boot = cmd.Process.Pid
	s.Started, _ = startTime(s.Boot)
	done := make(chan struct{})
	s.done = done
	go func() {
		_ = cmd.Wait() // how it ended is in the log
		close(done)
	}()
	if plan.Link != nil {
		if err := plugIn(ctx, plan.Link, s.Boot); err != nil {
			return err
		}
	}
	if _, err := io.WriteString(in, goAhead); err != nil {
		return fmt.Errorf("tell the first process: %w", err)
	}
	if plan.Detach {
		return in.Close()
	}
	return nil
}

func (s *Site) namespaces() *syscall.SysProcAttr {
	attr := &syscall.SysProcAttr{Setsid: true, Cloneflags: syscall.CLONE_NEWPID | syscall.CLONE_NEWNS}
	if s.System {
		attr.Cloneflags |= syscall.CLONE_NEWNET
		return attr
	}
	attr.Cloneflags |= syscall.CLONE_NEWUSER
	uid, gid := os.Getuid(), os.Getgid()
	attr.UidMappings = []syscall.SysProcIDMap{{ContainerID: uid, HostID: uid, Size: 1}}
	attr.GidMappings = []syscall.SysProcIDMap{{ContainerID: gid, HostID: gid, Size: 1}}
	// Mounting the new /proc, which libvirt reads to follow its guests, takes the capability across exec.
	attr.AmbientCaps = []uintptr{unix.CAP_SYS_ADMIN}
	return attr
}

// bootProcess is the life of the first process.
func bootProcess(told string) error {
	os.Unsetenv(bootVar)
	var plan bootPlan
	if err := json.Unmarshal([]byte(told), &plan); err != nil {
		return fmt.Errorf("read the plan: %w", err)
	}
	in := bufio.NewReader(os.Stdin)
	if line, err := in.ReadString('\n'); err != nil || line != goAhead {
		return errors.New("the program that started the site is gone")
	}
	first := os.Getpid() == 1
	if first {
		if err := mountProc(); err != nil {
			return err
		}
	}
	if plan.System {
		if err := plan.furnish(); err != nil {
			return err
		}
	}
	// Without a process namespace, this makes the orphans ours.
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("adopt orphans: %w", err)
	}
	end := make(chan os.Signal, 1)
	signal.Notify(end, unix.SIGTERM, unix.SIGINT)
	if !plan.Detach {
		go func() {
			_, _ = io.Copy(io.Discard, in)
			end <- unix.SIGTERM
		}()
	}
	failed := make(chan error, 1)
	go func() { failed <- plan.keepDaemon() }()
	select {
	case <-end:
		if !first {
			killChildren()
		}
		return nil
	case err := <-failed:
		return err
	}
}

func mountProc() error {
	err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, "")
	if errors.Is(err, unix.EINVAL) {
		err = mountRoot()
	}
	if err != nil {
		return fmt.Errorf("make the mounts private: %w", err)
	}
	if err := unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("mount /proc: %w", err)
	}
	return nil
}

// mountRoot makes the root a mount point of its own, for in a chroot it is a directory of somebody else's mount, which
// cannot be made private. The copy may not be mounted where a mount is shared, or it would show outside; the one mount that
// every chroot has is /proc, which is mounted anew afterwards anyway.
func mountRoot() error {
	const root = "/proc/root"
	if err := unix.Mount("", "/proc", "", unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("the root is no mount point, and nor is /proc: %w", err)
	}
	if err := unix.Mount("tmpfs", "/proc", "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("mount a directory over /proc: %w", err)
	}
	if err := os.Mkdir(root, 0o755); err != nil {
		return err
	}
	if err := unix.Mount("/", root, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("mount the root again: %w", err)
	}
	if err := unix.Mount("", root, "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return err
	}
	if err := errors.Join(os.Chdir(root), unix.Chroot("."), os.Chdir("/")); err != nil {
		return fmt.Errorf("go to the new root: %w", err)
	}
	return nil
}

// furnish gives a system libvirtd its world: its directories at the places that are compiled into it, the user that its
// QEMU driver insists on, and bridges.
func (p bootPlan) furnish() error {
	for from, to := range map[string]string{
		"etc": "/etc/libvirt", "run": "/run/libvirt", "lib": "/var/lib/libvirt",
		"cache": "/var/cache/libvirt", "log": "/var/log/libvirt",
	} {
		if err := os.MkdirAll(to, 0o755); err != nil {
			return fmt.Errorf("make a mount point: %w", err)
		}
		if err := unix.Mount(filepath.Join(p.Dir, from), to, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("mount %s: %w", to, err)
		}
	}
	if err := p.addUser(); err != nil {
		return err
	}
	commands := []string{"link set lo up"}
	for _, network := range []string{Production, Recovery} {
		commands = append(commands, "link add "+bridgeName(network)+" type bridge", "link set "+bridgeName(network)+" up")
	}
	if p.Link != nil {
		commands = append(commands, "addr add "+p.Link.Site+"/30 dev "+siteEnd, "link set "+siteEnd+" up")
	}
	for _, command := range commands {
		if err := runIP(context.Background(), strings.Fields(command)...); err != nil {
			return err
		}
	}
	return nil
}

// addUser adds libvirt-qemu to this site's view of the users, and leaves the machine's alone.
func (p bootPlan) addUser() error {
	for file, line := range map[string]string{
		"/etc/passwd": "libvirt-qemu:x:64055:64055:QEMU:/var/lib/libvirt:/usr/sbin/nologin\n",
		"/etc/group":  "libvirt-qemu:x:64055:\n",
	} {
		data, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		if strings.Contains("\n"+string(data), "\nlibvirt-qemu:") {
			continue
		}
		own := filepath.Join(p.Dir, "etc", filepath.Base(file))
		if err := os.WriteFile(own, append(data, line...), 0o644); err != nil {
			return err
		}
		if err := unix.Mount(own, file, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("mount %s: %w", file, err)
		}
	}
	return nil
}

// mostStarts bounds how often a libvirtd that keeps ending is started.
const mostStarts = 50

// keepDaemon runs libvirtd, again and again, and reaps everything that ends meanwhile.
func (p bootPlan) keepDaemon() error {
	for range mostStarts {
		daemon, err := p.startDaemon()
		if err != nil {
			return err
		}
		for {
			var status unix.WaitStatus
			pid, err := unix.Wait4(-1, &status, 0, nil)
			if err != nil && !errors.Is(err, unix.EINTR) {
				return fmt.Errorf("wait for libvirtd: %w", err)
			}
			if pid == daemon {
				fmt.Fprintln(os.Stderr, "site: libvirtd ended with status", status)
				break
			}
		}
		time.Sleep(50 * time.Millisecond)
	}
	return fmt.Errorf("libvirtd ended %d times", mostStarts)
}

func (p bootPlan) startDaemon() (int, error) {
	pidFile := filepath.Join(p.Dir, "run", "libvirtd.pid")
	os.Remove(pidFile)
	args := []string{p.Libvirtd, "-f", filepath.Join(p.Dir, "etc", "libvirtd.conf"), "-p", pidFile}
	if p.Link != nil {
		args = append(args, "-l")
	}
	env := os.Environ()
	if !p.System {
		for name, sub := range map[string]string{
			"XDG_RUNTIME_DIR": "run", "XDG_CONFIG_HOME": "etc", "XDG_CACHE_HOME": "cache", "XDG_DATA_HOME": "lib",
		} {
			env = append(env, name+"="+filepath.Join(p.Dir, sub))
		}
	}
	null, err := os.Open(os.DevNull)
	if err != nil {
		return 0, err
	}
	defer null.Close()
	process, err := os.StartProcess(p.Libvirtd, args, &os.ProcAttr{
		Dir: "/", Env: env, Files: []*os.File{null, os.Stdout, os.Stderr}, Sys: &syscall.SysProcAttr{Setsid: true},
	})
	if err != nil {
		return 0, fmt.Errorf("start libvirtd: %w", err)
	}
	pid := process.Pid
	return pid, process.Release() // Wait4 above waits for everybody
}

// killChildren ends every descendant: the children of those that die become ours.
func killChildren() {
	self := os.Getpid()
	for range 100 {
		found := false
		for pid := range processes() {
			if stat, err := readStat(pid); err == nil && stat.parent == self {
				found = true
				_ = unix.Kill(pid, unix.SIGKILL)
			}
		}
		if !found {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
}
