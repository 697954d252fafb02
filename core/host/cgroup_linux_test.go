package host

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/holdfast-dr/holdfast/sdk"
)

func TestOwnCgroup(t *testing.T) {
	const mounts = "30 23 0:26 / /sys/fs/cgroup ro - tmpfs tmpfs ro\n31 30 0:27 / /sys/fs/cgroup/unified rw,nosuid shared:9 - cgroup2 cgroup2 rw\n"
	for _, c := range []struct{ own, mounts, want string }{
		{"1:name=systemd:/x\n0::/system.slice/holdfast.service\n", mounts, "/sys/fs/cgroup/unified/system.slice/holdfast.service"},
		{"0::/\n", mounts, "/sys/fs/cgroup/unified"},
		{"1:cpu:/\n", mounts, ""},
		{"0::/a\n", "30 23 0:26 / /sys/fs/cgroup ro - tmpfs tmpfs ro\n", ""},
		{"", "", ""},
	} {
		if got := ownCgroup([]byte(c.own), []byte(c.mounts)); got != c.want {
			t.Errorf("own cgroup of %q is %q, want %q", c.own, got, c.want)
		}
	}
}

// newCgroup makes a cgroup for a test.
func newCgroup(t *testing.T) string {
	t.Helper()
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	root := ownCgroup([]byte("0::/\n"), mounts)
	if root == "" {
		t.Skip("there is no cgroup version 2")
	}
	dir, err := os.MkdirTemp(root, "holdfast-test-")
	if err != nil {
		t.Skipf("cgroups cannot be made here: %v", err)
	}
	t.Cleanup(func() {
		until(t, "the cgroup to be empty", func() bool {
			parts, _ := filepath.Glob(filepath.Join(dir, "*", "cgroup.procs"))
			for _, p := range parts {
				_ = os.Remove(filepath.Dir(p))
			}
			return os.Remove(dir) == nil
		})
	})
	return dir
}

// TestDelegatedCgroupIsDivided starts this test binary in a cgroup that is
// marked as systemd does it.
func TestDelegatedCgroupIsDivided(t *testing.T) {
	dir := newCgroup(t)
	if err := os.Mkdir(filepath.Join(dir, "plugin-old"), 0o755); err != nil {
		t.Fatal(err)
	}
	ask := func() string {
		handle, err := os.Open(dir)
		if err != nil {
			t.Fatal(err)
		}
		defer handle.Close()
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), "TEST_DELEGATED_CGROUP=1")
		cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(handle.Fd())}
		out, err := cmd.Output()
		if err != nil {
			t.Skipf("processes cannot be started in a cgroup here: %v", err)
		}
		return string(out)
	}
	if got := ask(); !strings.Contains(got, `dir "" reason "the cgroup `+dir) {
		t.Errorf("a cgroup that was not given away: %s", got)
	}
	if err := unix.Setxattr(dir, "trusted.delegate", []byte("1"), 0); err != nil {
		t.Skipf("cgroups cannot be marked here: %v", err)
	}
	if got, want := ask(), fmt.Sprintf("dir %q reason \"\" err <nil> now %q\n", dir, filepath.Join(dir, "holdfast")); got != want {
		t.Errorf("a cgroup that was given away: %swant %s", got, want)
	}
	if _, err := os.Stat(filepath.Join(dir, "plugin-old")); err == nil {
		t.Error("what a former life left is still there")
	}
}

// sayCgroup is this test binary as TestDelegatedCgroupIsDivided starts it.
func sayCgroup() {
	dir, reason, err := DelegatedCgroup()
	own, _ := os.ReadFile("/proc/self/cgroup")
	mounts, _ := os.ReadFile("/proc/self/mountinfo")
	fmt.Printf("dir %q reason %q err %v", dir, reason, err)
	if dir != "" {
		fmt.Printf(" now %q", ownCgroup(own, mounts))
	}
	fmt.Println()
}

// A child that left the group and emptied its environment is in the cgroup.
func TestChildrenEndWithTheirCgroup(t *testing.T) {
	dir := newCgroup(t)
	s := newScene(t, "1.0.0", Options{Cgroup: dir}, PluginPolicy{})
	p := open(t, s.Host, s.bad("hide", ""))
	report, err := p.Probe(t.Context(), sdk.Subject{})
	if err != nil {
		t.Fatal(err)
	}
	child, err := strconv.Atoi(report.Product)
	if err != nil || ended(child) {
		t.Fatalf("child %q, %v", report.Product, err)
	}
	parts, err := filepath.Glob(filepath.Join(dir, "plugin-*"))
	if err != nil || len(parts) != 2 { // the good endpoint's, too
		t.Fatalf("cgroups %v, %v", parts, err)
	}
	kill(t, p)
	until(t, "the end of the child", func() bool { return ended(child) })
	until(t, "the end of its cgroup", func() bool {
		parts, err := filepath.Glob(filepath.Join(dir, "plugin-*"))
		return err == nil && len(parts) == 1
	})
}
