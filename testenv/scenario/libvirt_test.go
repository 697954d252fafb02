package scenario

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/testenv"
	"github.com/holdfast-dr/holdfast/testenv/guest"
	"github.com/holdfast-dr/holdfast/testenv/site"
	"github.com/holdfast-dr/holdfast/testenv/stack"
)

// remoteSite is a libvirt host in a network namespace of its own, reached over
// TLS only, with a guest that has two disks and an agent.
func remoteSite(t *testing.T) (*site.Site, site.Guest) {
	t.Helper()
	testenv.Need(t, site.Tools...)
	testenv.NeedRoot(t)
	ctx := t.Context()
	s, err := site.Start(ctx, site.Options{Remote: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	image, err := guest.Build(ctx, guest.Options{Agent: true})
	if err != nil {
		t.Fatal(err)
	}
	g, err := s.Define(ctx, site.Spec{Name: "web", Image: image, Network: site.Production, Tags: []string{"gold"}})
	if err != nil {
		t.Fatal(err)
	}
	if err := g.Start(ctx); err != nil {
		t.Fatal(err)
	}
	return s, g
}

// newRemoteLab is a lab whose endpoint is a remote site.
func newRemoteLab(t *testing.T, s *site.Site) *lab {
	t.Helper()
	l := newLab(t, stack.Options{})
	settings, err := json.Marshal(map[string]string{"uri": s.TLSURI, "ca": string(s.PKI.CA), "cert": string(s.PKI.ClientCert),
		"key": string(s.PKI.ClientKey), "nbd_tls_dir": s.NBDCertificates(), "scratch_dir": s.Scratch()})
	l.must(err)
	file := filepath.Join(l.dir, "settings.json")
	l.must(os.WriteFile(file, settings, 0o600))
	l.do("plugin", "enable", "libvirt")
	l.do("endpoint", "add", "host", "--plugin", "libvirt", "--settings", file)
	l.must(os.Remove(file))
	return l
}

// used is what the provider charges the tenant for.
func (l *lab) used() int64 {
	l.t.Helper()
	var repositories []struct {
		UsedBytes int64 `json:"used_bytes"`
	}
	l.must(l.ProviderJSON(l.t.Context(), &repositories, "cloud-repository", "list"))
	if len(repositories) != 1 {
		l.t.Fatalf("cloud repositories: %+v", repositories)
	}
	return repositories[0].UsedBytes
}

func (l *lab) console(g site.Guest, command string) string {
	l.t.Helper()
	out, err := g.Run(l.t.Context(), command)
	l.must(err)
	return strings.TrimSpace(out)
}

func (l *lab) sequence(path string) int64 {
	l.t.Helper()
	f, err := os.Open(path)
	l.must(err)
	defer f.Close()
	n, err := guest.Sequence(f)
	l.must(err)
	return n
}

// ours filters what the current mark needs at the hypervisor: one checkpoint,
// and one bitmap in each disk.
func ours(list []string) (marks, others []string) {
	for _, entry := range list {
		if (strings.HasPrefix(entry, "checkpoint ") || strings.HasPrefix(entry, "bitmap ")) && strings.Contains(entry, "holdfast-") {
			marks = append(marks, entry)
		} else {
			others = append(others, entry)
		}
	}
	return marks, others
}

func TestRealMachineThroughEveryLayer(t *testing.T) {
	s, g := remoteSite(t)
	l := newRemoteLab(t, s)
	ctx := t.Context()
	l.do("job", "create", "nightly", "--endpoint", "host", "--repository", "backups", "--tag", "gold")
	before, err := g.Leftovers(ctx)
	l.must(err)

	l.console(g, "counter on")
	allocated := l.allocated(g)
	first, _ := l.counted("nightly")
	if first.Kind != "full" || first.ReadBytes < 10*mib || first.ReadBytes > first.SizeBytes {
		t.Errorf("full: %+v", first)
	}
	// The guest writes a little meanwhile.
	if d := first.SourceBytes - allocated; d < -2*mib || d > 2*mib {
		t.Errorf("full: QEMU sent %d bytes of disks, %d were allocated", first.SourceBytes, allocated)
	}
	l.console(g, "counter off")
	l.console(g, "echo 'the second state' >/data/note; dd if=/dev/urandom of=/data/blob bs=1M count=3 2>/dev/null; sync")
	sum := l.console(g, "md5sum /data/blob")
	second, sent := l.counted("nightly")
	// 3 MiB were written; reading is in whole chunks, plus the audit's samples.
	if second.Kind != "incremental" || second.SourceBytes < 3*mib || second.SourceBytes > 8*mib+2*sample || second.ReadBytes >= first.ReadBytes {
		t.Errorf("incremental: %+v", second)
	}
	if sent.New < 3*mib || sent.Put > 8*mib {
		t.Errorf("incremental: the server received %d bytes of records, %d of them new", sent.Put, sent.New)
	}

	after, err := g.Leftovers(ctx)
	l.must(err)
	marks, others := ours(after)
	if !slices.Equal(others, before) || len(marks) != 3 {
		t.Errorf("left at the hypervisor: %v besides the marks %v; before: %v", others, marks, before)
	}

	// All disks of a point show one moment: the counter writes vda, then vdb.
	for _, point := range []string{first.Point, second.Point} {
		a, b := l.sequence(l.restoreDisk(point, "vda", "raw")), l.sequence(l.restoreDisk(point, "vdb", "raw"))
		if a == 0 || a != b && a != b+1 {
			t.Errorf("point %s: the counter is %d on vda and %d on vdb", point, a, b)
		}
	}
	for _, format := range []string{"qcow2", "vmdk"} {
		path := l.restoreDisk(second.Point, "vda", format)
		if out, err := exec.CommandContext(ctx, "qemu-img", "check", path).CombinedOutput(); err != nil {
			t.Errorf("qemu-img check of the %s: %v\n%s", format, err, out)
		}
	}

	// Restored over the original, which runs, at the first point: the note is
	// not there yet, and the machine is the same one.
	uuid, err := s.Virsh(ctx, "domuuid", "web")
	l.must(err)
	l.do("restore", "machine", first.Point, "--endpoint", "host", "--replace", "web", "--wait")
	if same, err := s.Virsh(ctx, "domuuid", "web"); err != nil || same != uuid {
		t.Errorf("restored over the original: UUID %q %v, was %q", same, err, uuid)
	}
	l.must(g.Start(ctx))
	if note := l.console(g, "cat /data/note 2>/dev/null || echo none"); note != "none" {
		t.Errorf("the first point's machine has the note %q", note)
	}
	l.must(g.Remove(ctx))

	// And as a new machine, which boots and shows the second state.
	l.do("restore", "machine", second.Point, "--endpoint", "host", "--name", "risen", "--start", "--wait")
	risen := s.Guest("risen")
	l.must(risen.WaitReady(ctx))
	if note := l.console(risen, "cat /data/note"); note != "the second state" {
		t.Errorf("the restored machine's note: %q", note)
	}
	if got := l.console(risen, "md5sum /data/blob"); got != sum {
		t.Errorf("the restored machine's file: %q, want %q", got, sum)
	}
	if other, err := s.Virsh(ctx, "domuuid", "risen"); err != nil || other == uuid {
		t.Errorf("a new machine has the UUID of the old one: %q %v", other, err)
	}
}

// A bitmap that somebody removed is noticed: everything is compared, the run
// says so, and the next run is incremental again.
func TestLostBitmapMeansCompareAndIsSaid(t *testing.T) {
	s, g := remoteSite(t)
	l := newRemoteLab(t, s)
	l.do("job", "create", "nightly", "--endpoint", "host", "--repository", "backups", "--machine", "web")
	l.backup("nightly")
	list, err := g.Leftovers(t.Context())
	l.must(err)
	for _, entry := range list {
		if name, ok := strings.CutPrefix(entry, "checkpoint "); ok {
			_, err := s.Virsh(t.Context(), "checkpoint-delete", "web", name)
			l.must(err)
		}
	}
	l.console(g, "echo changed >/data/note; sync")
	var compared run
	l.must(l.JSON(t.Context(), &compared, "job", "run", "nightly", "--wait"))
	if compared.State != "warned" || compared.Machines[0].Kind != "compare" || !strings.Contains(strings.Join(compared.Machines[0].Warnings, " "), "compared") {
		t.Errorf("after the bitmap was lost: %+v", compared)
	}
	if compared.Machines[0].StoredBytes > 8*mib {
		t.Errorf("comparing sent %d bytes, though nearly nothing changed", compared.Machines[0].StoredBytes)
	}
	if next := l.backup("nightly").Machines[0]; next.Kind != "incremental" {
		t.Errorf("the run after that: %+v", next)
	}
	deadline := time.Now().Add(time.Minute)
	l.must(l.Agent.Stop(time.Until(deadline)))
}

// processes are the process ids of this machine with their parents, and the
// arguments with which each was started.
func processes(t *testing.T) (parents map[int]int, arguments map[int][]string) {
	t.Helper()
	parents, arguments = make(map[int]int), make(map[int][]string)
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		t.Fatal(err)
	}
	for _, dir := range dirs {
		stat, err1 := os.ReadFile(filepath.Join(dir, "stat"))
		line, err2 := os.ReadFile(filepath.Join(dir, "cmdline"))
		pid, err3 := strconv.Atoi(filepath.Base(dir))
		if err1 != nil || err2 != nil || err3 != nil {
			continue // it has ended
		}
		fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
		parents[pid], _ = strconv.Atoi(fields[1])
		arguments[pid] = strings.Split(strings.TrimRight(string(line), "\x00"), "\x00")
	}
	return parents, arguments
}

// guards are the processes that watch over the snapshots of this site.
func (l *lab) guards() map[int]bool {
	l.t.Helper()
	_, arguments := processes(l.t)
	found := make(map[int]bool)
	for pid, args := range arguments {
		program, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid))
		if err == nil && len(args) > 1 && args[1] == "guard" && strings.HasPrefix(program, l.Bin) {
			found[pid] = true
		}
	}
	return found
}

// killTree kills the agent and everything that it started.
func (l *lab) killTree() {
	l.t.Helper()
	parents, _ := processes(l.t)
	for pid := range parents {
		for above := pid; above > 1; above = parents[above] {
			if above == l.Agent.PID() {
				_ = syscall.Kill(pid, syscall.SIGKILL) // it may have ended
				break
			}
		}
	}
	l.Agent.Kill()
}

// The agent and everything below it is killed at several moments around the
// freeze: the guest takes writes again at once, and the run is finished.
func TestAgentKilledAroundTheFreeze(t *testing.T) {
	s, g := remoteSite(t)
	l := newRemoteLab(t, s)
	before, err := g.Leftovers(t.Context())
	l.must(err)
	l.do("job", "create", "nightly", "--endpoint", "host", "--repository", "backups", "--machine", "web")
	l.backup("nightly")
	l.console(g, "counter on")
	for _, later := range []time.Duration{0, 30 * time.Millisecond, 90 * time.Millisecond, 270 * time.Millisecond} {
		known := l.guards()
		var started run
		l.must(l.JSON(t.Context(), &started, "job", "run", "nightly", "--no-wait"))
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		l.must(stack.Until(ctx, "a guard to be posted", func() (bool, error) {
			for pid := range l.guards() {
				if !known[pid] {
					return true, nil
				}
			}
			return false, nil
		}))
		cancel()
		<-time.After(later) // the moment of the crash, not a wait for something
		l.killTree()
		ctx, cancel = context.WithTimeout(t.Context(), 10*time.Second)
		if _, err := g.Run(ctx, "echo alive >/data/alive && sync"); err != nil {
			t.Errorf("killed %v after the guard was there: %v", later, err)
		}
		cancel()
		l.must(l.StartAgent(t.Context()))
		// The guard of the dead run thaws more than once, and so perhaps what the
		// next attempt has just frozen, which that attempt notices and says.
		ended := l.waitRun(started.ID)
		thawed := ended.State == "warned" && strings.Contains(ended.Failure.Message, "thawed before the snapshot was there")
		if ended.State != "succeeded" && !thawed || ended.Machines[0].Kind != "incremental" {
			t.Fatalf("killed %v after the guard was there: the run ended as %+v", later, ended)
		}
		// A point says file-system only if the guest was frozen all the while.
		want := "file-system"
		if thawed {
			want = "none"
		}
		var said struct{ Consistency string }
		l.must(l.JSON(t.Context(), &said, "point", "show", ended.Machines[0].Point))
		if said.Consistency != want {
			t.Errorf("killed %v after the guard was there: the run ended as %s, its point says %q, want %q", later, ended.State, said.Consistency, want)
		}
	}
	l.console(g, "counter off")
	if last := l.backup("nightly").Machines[0]; last.Kind != "incremental" {
		t.Errorf("the run after all that: %+v", last)
	}
	after, err := g.Leftovers(t.Context())
	l.must(err)
	if marks, others := ours(after); !slices.Equal(others, before) || len(marks) != 3 {
		t.Errorf("left at the hypervisor: %v besides the marks %v; before: %v", others, marks, before)
	}
}
