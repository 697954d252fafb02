package scenario

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/holdfast-dr/holdfast/testenv"
	"github.com/holdfast-dr/holdfast/testenv/guest"
	"github.com/holdfast-dr/holdfast/testenv/site"
	"github.com/holdfast-dr/holdfast/testenv/stack"
)

// load keeps a file system's journal busy: trees are made, renamed and removed,
// and a log gets a line after another, each acknowledged once it is on disk.
const load = `#!/bin/sh
n=0
while [ -e /run/go ]; do
n=$((n+1))
echo $n | dd of=/data/log oflag=append conv=notrunc,fsync
echo $n >/run/acked.new && mv /run/acked.new /run/acked
mkdir -p /data/t$((n%40))/a/b && echo $n >/data/t$((n%40))/a/b/f$n
mv /data/t$((n%40))/a/b/f$n /data/t$((n%40))/g$n
rm -rf /data/t$(((n+20)%40))
done`

// hook is what an application leaves in a guest for the agent to call.
const hook = `#!/bin/sh
case $1 in
freeze) echo settled >/data/settled ;;
thaw) rm -f /data/settled ;;
esac`

// journaled is a guest under write load, whose second disk has a journal.
type journaled struct {
	*lab
	guest site.Guest
}

func newJournaled(t *testing.T) *journaled {
	testenv.Need(t, append(site.Tools, "e2fsck", "debugfs", "dumpe2fs")...)
	s, err := site.Start(t.Context(), site.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	image, err := guest.Build(t.Context(), guest.Options{Agent: true})
	if err != nil {
		testenv.Lack(t, "%v", err)
	}
	j := &journaled{lab: newLab(t, stack.Options{})}
	j.guest, err = s.Define(t.Context(), site.Spec{Name: "busy", Image: image})
	j.must(err)
	j.must(j.guest.Start(t.Context()))
	j.do("plugin", "enable", "libvirt")
	j.do("endpoint", "add", "host", "--plugin", "libvirt", "--set", "uri="+s.URI, "--set", "scratch_dir="+s.Scratch())
	j.script("/run/load", load)
	j.console(j.guest, "touch /data/log /run/go /run/acked; (setsid /run/load >/dev/null 2>&1 </dev/null &)")
	return j
}

// script puts a program into the guest, a line at a time: a terminal takes no
// long ones.
func (j *journaled) script(path, text string) {
	j.t.Helper()
	j.console(j.guest, "rm -f "+path)
	for line := range strings.Lines(text) {
		j.console(j.guest, fmt.Sprintf("echo '%s' >>%s", strings.TrimSuffix(line, "\n"), path))
	}
	j.console(j.guest, "chmod +x "+path)
}

// acked is the last line of the log that the guest knows to be on its disk.
func (j *journaled) acked() int {
	j.t.Helper()
	n, err := strconv.Atoi("0" + j.console(j.guest, "cat /run/acked"))
	j.must(err)
	return n
}

// restored is the file system of a point's second disk, in a file.
func (j *journaled) restored(point string) string {
	j.t.Helper()
	path := j.restoreDisk(point, "vdb", "raw")
	disk, err := os.Open(path)
	j.must(err)
	defer disk.Close()
	fs := filepath.Join(j.dir, "journal.ext4")
	out, err := os.Create(fs)
	j.must(err)
	const firstPartition = 2048 * 512
	_, err = disk.Seek(firstPartition, io.SeekStart)
	j.must(err)
	_, err = io.Copy(out, disk)
	j.must(err)
	j.must(out.Close())
	j.must(os.Remove(path))
	return fs
}

func (j *journaled) run(name string, args ...string) string {
	j.t.Helper()
	var stdout, stderr strings.Builder
	cmd := exec.CommandContext(j.t.Context(), testenv.Tool(j.t, name), args...)
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		j.t.Errorf("%s %v: %v\n%s%s", name, args, err, stdout.String(), stderr.String())
	}
	return stdout.String()
}

// unclean reports whether the journal of a file system holds something that
// its next mount has to do.
func (j *journaled) unclean(fs string) bool {
	j.t.Helper()
	return strings.Contains(j.run("dumpe2fs", "-h", fs), "needs_recovery")
}

// check replays the journal, as a mount would, and then finds nothing to
// repair; and what the guest knew to be on disk before the backup is there.
func (j *journaled) check(fs string, before, after int) {
	j.t.Helper()
	j.run("e2fsck", "-p", "-E", "journal_only", fs)
	j.run("e2fsck", "-f", "-n", fs)
	lines := strings.Fields(j.run("debugfs", "-R", "cat /log", fs))
	for i, line := range lines {
		if line != strconv.Itoa(i+1) {
			j.t.Errorf("line %d of the log is %q", i+1, line)
			break
		}
	}
	// One more may have been written than was acknowledged.
	if len(lines) < before || len(lines) > after+1 {
		j.t.Errorf("the log has %d lines; %d were acknowledged before the backup and %d after it", len(lines), before, after)
	}
}

// backedUp runs a job, and checks what its point says of itself.
func (j *journaled) backedUp(job, consistency string) (point string, before, after int) {
	j.t.Helper()
	before = j.acked()
	point = j.backup(job).Machines[0].Point
	after = j.acked()
	var said struct{ Consistency string }
	j.must(j.JSON(j.t.Context(), &said, "point", "show", point))
	if said.Consistency != consistency {
		j.t.Errorf("point %s says that it is %q, want %q", point, said.Consistency, consistency)
	}
	return point, before, after
}

func TestJournalUnderLoadIsCleanInTwentyPoints(t *testing.T) {
	j := newJournaled(t)
	j.do("job", "create", "crash", "--endpoint", "host", "--repository", "backups", "--machine", "busy", "--quiesce", "none")
	j.do("job", "create", "calm", "--endpoint", "host", "--repository", "backups", "--machine", "busy", "--quiesce", "file-system")
	replayed, grown := 0, 0
	for range 20 {
		point, before, after := j.backedUp("crash", "none")
		fs := j.restored(point)
		if j.unclean(fs) {
			replayed++
		}
		grown += after - before
		j.check(fs, before, after)
	}
	// A load that never runs during a backup would prove nothing.
	if replayed < 10 || grown == 0 {
		t.Errorf("%d of 20 points had something in their journal; the log grew by %d lines during the backups", replayed, grown)
	}
	if list := j.do("point", "list"); !strings.Contains(list, " crash ") {
		t.Errorf("the list of points does not say that they are crash-consistent:\n%s", list)
	}

	// Frozen, the journal is empty, and applications were told before.
	j.console(j.guest, "mkdir -p /run/hooks; kill $(cat /run/qemu-ga.pid)")
	j.script("/run/hooks/hook", hook)
	j.console(j.guest, "for p in /dev/vport*; do /sbin/qemu-ga -d -m virtio-serial -p $p -f /run/qemu-ga.pid -t /run -F/run/hooks/hook; done")
	for range 3 {
		point, before, after := j.backedUp("calm", "file-system")
		fs := j.restored(point)
		if j.unclean(fs) {
			t.Errorf("the journal of frozen point %s has to be replayed", point)
		}
		j.check(fs, before, after)
		if settled := j.run("debugfs", "-R", "cat /settled", fs); settled != "settled\n" {
			t.Errorf("the guest's hook was not called before point %s: %q", point, settled)
		}
	}
	if left := j.console(j.guest, "ls /data/settled 2>/dev/null || echo gone"); left != "gone" {
		t.Errorf("the guest's hook was not called after the points: %q", left)
	}
}
