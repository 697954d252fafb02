package main

import (
	"os"
	"os/exec"
	"syscall"
)

// guardCommand starts this very program once more, whatever lies at its path by now, in a session of its own: neither the
// signals of our process group nor the end of a terminal reach it.
func guardCommand(args ...string) (*exec.Cmd, error) {
	cmd := exec.Command("/proc/self/exe", args...)
	cmd.Args[0] = "holdfast-plugin-libvirt"
	cmd.Env = []string{}
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	return cmd, nil
}

// spareGuard asks the kernel to leave this process alone when memory is short, also where the limits of a plugin's cgroup
// end all of its processes. It takes privileges; without them the guard is as mortal as the plugin.
func spareGuard() { _ = os.WriteFile("/proc/self/oom_score_adj", []byte("-1000"), 0) }

// freeSpace is what is left in the file system of a directory, for somebody without privileges.
func freeSpace(dir string) (int64, bool) {
	var s syscall.Statfs_t
	if syscall.Statfs(dir, &s) != nil {
		return 0, false
	}
	return int64(s.Bavail) * s.Bsize, true
}
