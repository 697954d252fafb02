package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/core/backup"
	"github.com/holdfast-dr/holdfast/core/mover/movertest"
	"github.com/holdfast-dr/holdfast/core/point"
	"github.com/holdfast-dr/holdfast/sdk"
	"github.com/holdfast-dr/holdfast/sdk/plugin"
	"github.com/holdfast-dr/holdfast/testenv/site"
)

// stoppingConfig is the plugin's with a file that it makes between freeze and thaw, where it stays.
type stoppingConfig struct {
	Config
	Stop string `json:"stop" help:"file to make while the guest is frozen"`
}

// stoppingAuthor is the plugin, stopped at its worst moment.
var stoppingAuthor = plugin.Author{
	Name: "libvirt", Version: "test", Config: &stoppingConfig{}, Type: (*platform)(nil), HostUser: true, Guards: true,
	Open: func(_ context.Context, config any) (sdk.Platform, error) {
		c := config.(*stoppingConfig)
		p, err := open(c.Config)
		if err != nil {
			return nil, err
		}
		p.whileFrozen = func() {
			if err := os.WriteFile(c.Stop, nil, 0o600); err == nil {
				select {}
			}
		}
		return p, nil
	},
}

// doomedAgent is the variable with the order of an agent that is killed.
const doomedAgent = "HOLDFAST_TEST_DOOMED_AGENT"

type doomedOrder struct {
	Settings stoppingConfig
	Machine  sdk.MachineID
}

func runDoomedAgent(text string) int {
	err := func() error {
		var order doomedOrder
		if err := json.Unmarshal([]byte(text), &order); err != nil {
			return err
		}
		settings, err := json.Marshal(order.Settings)
		if err != nil {
			return err
		}
		self, err := os.Executable()
		if err != nil {
			return err
		}
		sum, err := plugin.Checksum(self)
		if err != nil {
			return err
		}
		p, err := plugin.Start(context.Background(), plugin.Launch{Path: self, SHA256: sum, Settings: settings})
		if err != nil {
			return err
		}
		defer p.Close()
		source, _ := sdk.As[sdk.Source](p.Platform())
		_, err = source.Snapshot(context.Background(), newOp(), sdk.SnapshotRequest{
			Machine: order.Machine, Quiesce: sdk.QuiesceFileSystem, Deadline: doomedFreeze,
		})
		return err
	}()
	fmt.Fprintln(os.Stderr, "the agent lived on:", err)
	return 1
}

const (
	// doomedFreeze leaves a busy machine the time to see that the guest is frozen before the deadline ends it.
	doomedFreeze = 12 * time.Second
	// promptly is how long a guard's thaw may take, with much room for busy machines: 60 ms were measured. It is
	// less than the deadline, which would thaw as well.
	promptly = 10 * time.Second
)

// family is a process and its descendants, and what each was called with.
func family(t *testing.T, root int) map[int][]string {
	t.Helper()
	parents, arguments := make(map[int]int), make(map[int][]string)
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		t.Fatal(err)
	}
	for _, dir := range dirs {
		pid, _ := strconv.Atoi(filepath.Base(dir))
		stat, err1 := os.ReadFile(dir + "/stat")
		line, err2 := os.ReadFile(dir + "/cmdline")
		if err1 != nil || err2 != nil {
			continue // gone
		}
		fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
		parents[pid], _ = strconv.Atoi(fields[1])
		arguments[pid] = strings.Split(strings.TrimRight(string(line), "\x00"), "\x00")
	}
	for pid := range arguments {
		above := pid
		for above > 1 && above != root {
			above = parents[above]
		}
		if above != root {
			delete(arguments, pid)
		}
	}
	return arguments
}

// guards are the processes that watch over snapshots of this test now.
func guards(t *testing.T) []int {
	t.Helper()
	self, err := os.Readlink("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	var pids []int
	for pid, args := range family(t, 1) {
		if exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid)); err == nil && exe == self && len(args) == 3 && args[1] == guardArgument {
			pids = append(pids, pid)
		}
	}
	slices.Sort(pids)
	return pids
}

// await waits for a condition.
func await(t *testing.T, limit time.Duration, what string, met func() bool) time.Duration {
	t.Helper()
	began := time.Now()
	for !met() {
		if time.Since(began) > limit {
			t.Fatalf("after %v still not: %s", limit, what)
		}
		_ = pause(t.Context(), 20*time.Millisecond)
	}
	return time.Since(began)
}

func frozen(t *testing.T, s *site.Site, g site.Guest) bool {
	t.Helper()
	out, err := s.Virsh(t.Context(), "qemu-agent-command", g.Name, `{"execute":"guest-fsfreeze-status"}`)
	if err != nil {
		t.Fatal(err)
	}
	return strings.Contains(out, "frozen")
}

// TestGuestIsThawedWhoeverDies kills between freeze and thaw, when nobody else knows that the guest is frozen.
func TestGuestIsThawedWhoeverDies(t *testing.T) {
	s := testSite(t)
	p := testPlatform(t, local(s))
	g := testGuest(t, s, site.Spec{Name: "frozen"})
	mustStart(t, g)
	m := find(t, p, "frozen")
	waitAgent(t, p, m.ID)
	before := leftovers(t, g)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	kill := func(t *testing.T, pid int, signal syscall.Signal) {
		if err := syscall.Kill(pid, signal); err != nil && !errors.Is(err, syscall.ESRCH) {
			t.Fatal(err)
		}
	}
	isPlugin := func(args []string) bool { return len(args) == 1 && args[0] == self }
	for _, c := range []struct {
		name  string
		limit time.Duration // the promise
		harm  func(t *testing.T, agent int, family map[int][]string)
	}{
		{"plugin killed", promptly, func(t *testing.T, agent int, family map[int][]string) {
			for pid, args := range family {
				if pid != agent && isPlugin(args) {
					kill(t, pid, syscall.SIGKILL)
				}
			}
		}},
		{"everything below the agent killed", promptly, func(t *testing.T, _ int, family map[int][]string) {
			for pid := range family {
				kill(t, pid, syscall.SIGKILL)
			}
		}},
		{"everything below the agent stopped", doomedFreeze + guardMargin + time.Minute, func(t *testing.T, _ int, family map[int][]string) {
			for pid := range family {
				kill(t, pid, syscall.SIGSTOP)
			}
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			marker := filepath.Join(t.TempDir(), "frozen")
			order, err := json.Marshal(doomedOrder{Settings: stoppingConfig{Config: local(s), Stop: marker}, Machine: m.ID})
			if err != nil {
				t.Fatal(err)
			}
			agent := exec.Command(self)
			agent.Env = append(os.Environ(), doomedAgent+"="+string(order))
			agent.Stderr = os.Stderr
			if err := agent.Start(); err != nil {
				t.Fatal(err)
			}
			var doomed map[int][]string
			defer func() {
				for pid := range doomed {
					kill(t, pid, syscall.SIGKILL)
				}
				_ = agent.Process.Kill()
				_ = agent.Wait()
			}()
			await(t, time.Minute, "the guest was frozen", func() bool {
				_, err := os.Stat(marker)
				return err == nil
			})
			if !frozen(t, s, g) {
				t.Fatal("the plugin stopped too early or too late: the guest is not frozen")
			}
			doomed = family(t, agent.Process.Pid)
			if len(doomed) < 2 {
				t.Fatalf("the agent's processes: %v", doomed)
			}
			c.harm(t, agent.Process.Pid, doomed)
			took := await(t, c.limit, "the guest is thawed", func() bool { return !frozen(t, s, g) })
			t.Logf("thawed after %v", took)
			console(t, g, "echo alive >/data/alive && sync")
			for pid := range doomed {
				kill(t, pid, syscall.SIGKILL)
			}
			// It thaws again, in case that libvirt had got hold of the thaw before the freeze.
			await(t, time.Minute, "the guard has ended", func() bool { return len(guards(t)) == 0 })
		})
	}
	snap := snapshot(t, p, newOp(), sdk.SnapshotRequest{Machine: m.ID, Quiesce: sdk.QuiesceFileSystem})
	if snap.Achieved != sdk.QuiesceFileSystem {
		t.Errorf("the snapshot after that: %s, %q", snap.Achieved, snap.Note)
	}
	// libvirtd may restart under an open snapshot, as an upgrade does, and any process may ask for it again.
	if err := s.RestartDaemon(t.Context()); err != nil {
		t.Fatal(err)
	}
	if len(guards(t)) != 1 {
		t.Errorf("guards of one open snapshot: %v", guards(t))
	}
	end(t, p, newOp(), snap, false)
	await(t, time.Minute, "the guard has ended with its snapshot", func() bool { return len(guards(t)) == 0 })
	nothingLeft(t, g, before)
}

// TestFreezeThatEndsTooEarly has the file systems thawed before the snapshot is there: by the deadline, which a slow plugin
// passes, and by somebody else. The snapshot is taken all the same, and does not claim what it is not.
func TestFreezeThatEndsTooEarly(t *testing.T) {
	s := testSite(t)
	p := testPlatform(t, local(s))
	g := testGuest(t, s, site.Spec{Name: "early"})
	mustStart(t, g)
	m := find(t, p, "early")
	waitAgent(t, p, m.ID)
	before := leftovers(t, g)
	for _, c := range []struct {
		name     string
		deadline time.Duration
		thaw     func()
	}{
		{"by the deadline", 3 * time.Second, func() {
			await(t, time.Minute, "the plugin thaws the guest at the deadline", func() bool { return !frozen(t, s, g) })
		}},
		{"by somebody else", longestFreeze, func() {
			if _, err := s.Virsh(t.Context(), "domfsthaw", g.Name); err != nil {
				t.Error(err)
			}
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			times := 0
			p.whileFrozen = func() {
				times++
				c.thaw()
			}
			op, req := newOp(), sdk.SnapshotRequest{Machine: m.ID, Quiesce: sdk.QuiesceFileSystem, Deadline: c.deadline}
			snap := snapshot(t, p, op, req)
			if times != 1 || snap.Achieved != sdk.QuiesceNone || !strings.Contains(snap.Note, "thawed before the snapshot was there") {
				t.Errorf("frozen %d times, achieved %s: %q", times, snap.Achieved, snap.Note)
			}
			if frozen(t, s, g) {
				t.Error("the guest is still frozen")
			}
			if again := snapshot(t, p, op, req); again.ID != snap.ID || again.Achieved != sdk.QuiesceNone {
				t.Errorf("the repeat is snapshot %s and achieved %s", again.ID, again.Achieved)
			}
			end(t, p, newOp(), snap, false)
			nothingLeft(t, g, before)
		})
	}
}

// TestBackupEndsBeforeTheGuestSuffers stops reading, while the guest overwrites more than scratch files may hold.
func TestBackupEndsBeforeTheGuestSuffers(t *testing.T) {
	s := testSite(t)
	tight := local(s)
	tight.ScratchLimit = "8M"
	p := testPlatform(t, tight)
	g := testGuest(t, s, site.Spec{Name: "busy"})
	mustStart(t, g)
	c := protect(t, s, p, g)

	slow := c.req
	full, stalled, goOn, ended := &vault{Store: movertest.NewStore()}, make(chan struct{}), make(chan struct{}), make(chan error, 1)
	var once sync.Once
	full.OnPut = func(ctx context.Context, _ []byte) error {
		once.Do(func() { close(stalled) })
		select {
		case <-goOn:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	slow.Repository, slow.Remembered, slow.Held, slow.Tasks, slow.Mover.Memory = full, nil, nil, 1, 1
	slow.Op = sdk.Op{ID: "slow", Epoch: c.req.Op.Epoch + 1}
	c.next()
	go func() {
		_, err := backup.Run(t.Context(), slow)
		ended <- err
	}()
	<-stalled
	// Writes do not wait for whoever reads, who does not move at all.
	console(t, g, "dd if=/dev/zero of=/data/first bs=64k count=32 conv=fsync")
	if _, err := s.Virsh(t.Context(), "backup-dumpxml", g.Name); err != nil {
		t.Fatalf("the backup was ended by 2 MiB of writes: %v", err)
	}
	console(t, g, "dd if=/dev/zero of=/data/blob bs=1M count=30 && sync") // fails if a write does
	await(t, time.Minute, "the backup is ended", func() bool {
		_, err := s.Virsh(t.Context(), "backup-dumpxml", g.Name)
		return err != nil
	})
	close(goOn)
	err := <-ended
	t.Log(err)
	if !errors.Is(err, sdk.ErrUnavailable) || !strings.Contains(err.Error(), "spare the guest") || !strings.Contains(sdk.HintOf(err), "scratch_limit") {
		t.Errorf("a backup that was ended: %v, hint %q", err, sdk.HintOf(err))
	}
	console(t, g, "echo alive >/data/alive && sync")

	// The mark from before is as good as it was.
	c.backup(point.KindIncremental)
	c.forget()
}
