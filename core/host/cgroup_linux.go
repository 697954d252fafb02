package host

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// controllers are those with which plugins are bounded.
var controllers = []string{"memory", "pids", "cpu"}

// DelegatedCgroup is the cgroup of this process if systemd gave it away, as it
// does for a service with Delegate=yes. This process moves into a part of it,
// for a cgroup that is divided may have no processes of its own; so it is
// called early, before there are others. "" and a reason where nothing was
// given away, which is no error.
func DelegatedCgroup() (dir, reason string, err error) {
	own, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return "", "", fmt.Errorf("find the own cgroup: %w", err)
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return "", "", fmt.Errorf("find the cgroup file system: %w", err)
	}
	dir = ownCgroup(own, mounts)
	if dir == "" {
		return "", "there is no cgroup version 2", nil
	}
	if !delegated(dir) {
		return "", "the cgroup " + dir + " was not given to this process: its service needs Delegate=yes", nil
	}
	if err := divide(dir, os.Getpid()); err != nil {
		return "", "", fmt.Errorf("divide the cgroup %s: %w", dir, err)
	}
	return dir, "", nil
}

// ownCgroup is the directory of the unified hierarchy's entry in
// /proc/self/cgroup, below the mount in /proc/self/mountinfo.
func ownCgroup(own, mounts []byte) string {
	path, found := "", false
	for line := range bytes.Lines(own) {
		if rest, ok := strings.CutPrefix(strings.TrimRight(string(line), "\n"), "0::"); ok {
			path, found = rest, true
		}
	}
	for line := range bytes.Lines(mounts) {
		before, after, _ := strings.Cut(string(line), " - ")
		if fields := strings.Fields(before); found && strings.HasPrefix(after, "cgroup2 ") && len(fields) > 4 {
			return filepath.Join(fields[4], path)
		}
	}
	return ""
}

// delegated reports whether systemd marked a cgroup as given away.
func delegated(dir string) bool {
	for _, name := range []string{"user.delegate", "trusted.delegate"} {
		value := make([]byte, 8)
		if n, err := unix.Getxattr(dir, name, value); err == nil && string(value[:n]) == "1" {
			return true
		}
	}
	return false
}

// divide moves a process into a part of a cgroup, removes the empty parts that
// a former life left, and lets the others have bounds of their own.
func divide(dir string, pid int) error {
	part := filepath.Join(dir, "holdfast")
	if err := os.Mkdir(part, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	if err := os.WriteFile(filepath.Join(part, "cgroup.procs"), fmt.Append(nil, pid), 0); err != nil {
		return err
	}
	left, err := filepath.Glob(filepath.Join(dir, "plugin-*"))
	if err != nil {
		return err
	}
	for _, old := range left {
		_ = os.Remove(old) // one with guards in it stays
	}
	for _, c := range controllers {
		// One that the system does not have is missed when a plugin is bounded.
		_ = os.WriteFile(filepath.Join(dir, "cgroup.subtree_control"), []byte("+"+c), 0)
	}
	return nil
}
