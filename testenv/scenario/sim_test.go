package scenario

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/sdk"
	"github.com/holdfast-dr/holdfast/sdk/sim"
	"github.com/holdfast-dr/holdfast/testenv/stack"
)

var programs string // directory of the built programs

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "hf-scenario-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	programs = filepath.Join(dir, "bin")
	code := 1
	if err := stack.Build(context.Background(), programs, nil, "sim", "libvirt"); err != nil {
		fmt.Fprintln(os.Stderr, err)
	} else {
		code = m.Run()
	}
	_ = os.RemoveAll(dir)
	os.Exit(code)
}

// run is a run as the command line prints it.
type run struct {
	ID       string
	State    string
	Attempts int
	Progress struct {
		SentBytes int64 `json:"sent_bytes"`
		DoneBytes int64 `json:"done_bytes"`
	}
	Machines []result
	Restored struct {
		Machine   string
		MachineID string `json:"machine_id"`
	}
	Failure struct{ Message, Hint, Side string }
}

// result is what became of one machine in a run.
type result struct {
	Machine     string
	Point       string
	Kind        string
	SizeBytes   int64 `json:"size_bytes"`
	ReadBytes   int64 `json:"read_bytes"`
	SourceBytes int64 `json:"source_bytes"`
	StoredBytes int64 `json:"stored_bytes"`
	Warnings    []string
}

// lab is a stack with a simulated hypervisor at the tenant's site.
type lab struct {
	*stack.Stack
	t   *testing.T
	hv  *sim.Hypervisor
	dir string
	kit string
}

func newLab(t *testing.T, o stack.Options) *lab {
	t.Helper()
	dir, err := os.MkdirTemp("", "hf-lab-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	o.Dir, o.Bin = filepath.Join(dir, "s"), programs
	l := &lab{t: t, dir: dir, kit: filepath.Join(dir, "kit.txt")}
	if l.hv, err = sim.Open(filepath.Join(dir, "hypervisor")); err != nil {
		t.Fatal(err)
	}
	if l.Stack, err = stack.New(o); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
		if t.Failed() {
			for _, p := range []*stack.Process{l.Server, l.Agent} {
				if p != nil {
					t.Logf("%s printed:\n%s", p.Name, p.Output())
				}
			}
		}
	})
	ctx := t.Context()
	l.must(l.StartServer(ctx))
	l.must(l.StartAgent(ctx))
	l.must(l.Connect(ctx, l.kit))
	l.do("plugin", "enable", "sim")
	l.do("endpoint", "add", "lab", "--plugin", "sim", "--set", "dir="+filepath.Join(dir, "hypervisor"))
	return l
}

func (l *lab) must(err error) {
	l.t.Helper()
	if err != nil {
		l.t.Fatal(err)
	}
}

func (l *lab) do(args ...string) string {
	l.t.Helper()
	out, err := l.Run(l.t.Context(), args...)
	l.must(err)
	return out
}

// machine makes a machine whose disks hold noise at some places.
func (l *lab) machine(name string, sizes ...int64) sdk.Machine {
	l.t.Helper()
	m, err := l.hv.CreateMachine(sim.MachineSpec{Name: name, DiskBytes: sizes, State: sdk.StateRunning})
	l.must(err)
	return m
}

// noise writes n bytes that do not compress.
func (l *lab) noise(m sdk.Machine, disk int, off, n int64, seed byte) {
	l.t.Helper()
	buf := make([]byte, n)
	_, err := io.ReadFull(rand.NewChaCha8([32]byte{seed}), buf)
	l.must(err)
	l.must(l.hv.WriteDisk(m.ID, m.Disks[disk].ID, off, buf))
}

func (l *lab) hashes(id sdk.MachineID) []string {
	l.t.Helper()
	m, err := l.hv.Find(string(id))
	l.must(err)
	var all []string
	for _, d := range m.Disks {
		sum, err := l.hv.HashDisk(m.ID, d.ID)
		l.must(err)
		all = append(all, hex.EncodeToString(sum[:]))
	}
	return all
}

func (l *lab) backup(job string) run {
	l.t.Helper()
	var r run
	l.must(l.JSON(l.t.Context(), &r, "job", "run", job, "--wait"))
	if r.State != "succeeded" || len(r.Machines) != 1 || r.Machines[0].Point == "" {
		l.t.Fatalf("backup run: %+v", r)
	}
	return r
}

func (l *lab) restoreDisk(point, disk, format string) string {
	l.t.Helper()
	path := filepath.Join(l.t.TempDir(), "disk."+format)
	var r run
	l.must(l.JSON(l.t.Context(), &r, "restore", "disk", point, "--disk", disk, "--to", path, "--format", format, "--wait"))
	return path
}

func hashFile(t *testing.T, path string) string {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		t.Fatal(err)
	}
	return hex.EncodeToString(h.Sum(nil))
}

func equal(t *testing.T, what string, got, want []string) {
	t.Helper()
	if strings.Join(got, " ") != strings.Join(want, " ") {
		t.Errorf("%s: disks are %v, want %v", what, got, want)
	}
}

const mib = 1 << 20

func TestFullIncrementalAndRestoreOfAnyPoint(t *testing.T) {
	l := newLab(t, stack.Options{})
	m := l.machine("web", 64*mib, 10*mib+512)
	l.noise(m, 0, 0, 9*mib, 1)
	l.noise(m, 0, 40*mib+12345, 3*mib, 2)
	l.noise(m, 1, 10*mib, 512, 3) // the odd end
	l.do("job", "create", "nightly", "--endpoint", "lab", "--repository", "backups", "--machine", "web")

	first := l.backup("nightly")
	if got := first.Machines[0]; got.Kind != "full" || got.StoredBytes < 12*mib || got.ReadBytes > 20*mib {
		t.Errorf("full: kind %s, read %d, stored %d; want full, the 12 MiB of data and little more", got.Kind, got.ReadBytes, got.StoredBytes)
	}
	then := l.hashes(m.ID)

	l.noise(m, 0, 20*mib, mib, 4)
	l.noise(m, 1, 0, 4096, 5)
	second := l.backup("nightly")
	// 1 MiB and one block, in whole chunks, and the samples that prove the rest.
	if got := second.Machines[0]; got.Kind != "incremental" || got.ReadBytes < mib || got.ReadBytes > 12*mib || got.StoredBytes > 3*mib {
		t.Errorf("incremental: kind %s, read %d, stored %d; want incremental, about the 1 MiB that changed", got.Kind, got.ReadBytes, got.StoredBytes)
	}
	now := l.hashes(m.ID)

	for point, want := range map[string][]string{first.Machines[0].Point: then, second.Machines[0].Point: now} {
		var restored run
		l.must(l.JSON(t.Context(), &restored, "restore", "machine", point, "--name", "restored-"+point[len(point)-6:], "--wait"))
		equal(t, "machine restored from "+point, l.hashes(sdk.MachineID(restored.Restored.MachineID)), want)
		var disks []string
		for i := range m.Disks {
			disks = append(disks, hashFile(t, l.restoreDisk(point, string(m.Disks[i].ID), "raw")))
		}
		equal(t, "files restored from "+point, disks, want)
	}
	if objects, err := l.hv.Objects(); err != nil || len(objects) > 0 && !onlyMarks(objects) {
		t.Errorf("left at the hypervisor: %v %v", objects, err)
	}
}

// onlyMarks says whether nothing but machines, disks and the newest marks is
// there.
func onlyMarks(objects []string) bool {
	for _, o := range objects {
		if strings.Contains(o, "snapshot") || strings.Contains(o, "draft") {
			return false
		}
	}
	return true
}

func TestKilledServerCostsNoPointAndNothingIsSentTwice(t *testing.T) {
	l := newLab(t, stack.Options{})
	const size = 768 * mib
	m := l.machine("big", size)
	for i := range int64(size / (32 * mib)) {
		l.noise(m, 0, i*32*mib, 32*mib, byte(i+1))
	}
	l.do("job", "create", "nightly", "--endpoint", "lab", "--repository", "backups", "--all")
	for name, kill := range map[string]func(){
		"server": func() { l.Server.Kill(); l.must(l.StartServer(t.Context())) },
	} {
		l.slow(true)
		var started run
		l.must(l.JSON(t.Context(), &started, "job", "run", "nightly", "--no-wait"))
		l.waitSent(started.ID, size/8)
		kill()
		l.slow(false)
		ended := l.waitRun(started.ID)
		if ended.State != "succeeded" {
			t.Fatalf("%s killed: run ended as %+v", name, ended)
		}
		// What had arrived is found and not sent again, but for one batch per
		// connection.
		const slack = 8 * 4 * mib
		if got := ended.Machines[0].StoredBytes; got > size+size/100+slack {
			t.Errorf("%s killed: %d bytes were sent for a disk of %d", name, got, int64(size))
		}
		equal(t, name+" killed", []string{hashFile(t, l.restoreDisk(ended.Machines[0].Point, string(m.Disks[0].ID), "raw"))}, l.hashes(m.ID))
	}
}

func TestKilledAgentResumesItsRun(t *testing.T) {
	l := newLab(t, stack.Options{})
	const size = 768 * mib
	m := l.machine("big", size)
	for i := range int64(size / (32 * mib)) {
		l.noise(m, 0, i*32*mib, 32*mib, byte(i+1))
	}
	l.do("job", "create", "nightly", "--endpoint", "lab", "--repository", "backups", "--all")
	l.slow(true)
	var started run
	l.must(l.JSON(t.Context(), &started, "job", "run", "nightly", "--no-wait"))
	l.waitSent(started.ID, size/4)
	sent := l.showRun(started.ID).Progress.SentBytes
	l.Agent.Kill()
	l.slow(false)
	l.must(l.StartAgent(t.Context()))
	ended := l.waitRun(started.ID)
	if ended.State != "succeeded" || ended.Attempts < 2 {
		t.Fatalf("run ended as %+v, want succeeded at the second attempt", ended)
	}
	const slack = 8 * 4 * mib
	if got := ended.Machines[0].StoredBytes; got > size+size/100+slack-sent {
		t.Errorf("the second attempt sent %d bytes of %d, although %d had arrived", got, int64(size), sent)
	}
	equal(t, "agent killed", []string{hashFile(t, l.restoreDisk(ended.Machines[0].Point, string(m.Disks[0].ID), "raw"))}, l.hashes(m.ID))
}

func (l *lab) showRun(id string) run {
	l.t.Helper()
	var r run
	l.must(l.JSON(l.t.Context(), &r, "run", "show", id))
	return r
}

// slow makes every read of a disk take its time, or ends that, so that a run is
// still going when a test interrupts it, however fast the machine is.
func (l *lab) slow(slow bool) {
	l.t.Helper()
	if !slow {
		l.must(l.hv.SetFaults())
		return
	}
	l.must(l.hv.SetFaults(sim.Fault{Call: "ReadAt", Action: sim.ActionDelay, Times: -1, Delay: 50 * time.Millisecond}))
}

func (l *lab) waitSent(id string, bytes int64) {
	l.t.Helper()
	ctx, cancel := context.WithTimeout(l.t.Context(), time.Minute)
	defer cancel()
	l.must(stack.Until(ctx, "the run to have sent enough", func() (bool, error) {
		r := l.showRun(id)
		if r.State != "waiting" && r.State != "running" {
			l.t.Fatalf("the run ended too early to be interrupted: %+v", r)
		}
		return r.Progress.SentBytes >= bytes, nil
	}))
}

func (l *lab) waitRun(id string) run {
	l.t.Helper()
	ctx, cancel := context.WithTimeout(l.t.Context(), 3*time.Minute)
	defer cancel()
	var r run
	l.must(stack.Until(ctx, "the run to end", func() (bool, error) {
		r = l.showRun(id)
		return r.State != "waiting" && r.State != "running", nil
	}))
	return r
}

// A machine that has nothing but the kit, the address and a new token.
func TestKitAloneRestoresEverythingOnAFreshMachine(t *testing.T) {
	l := newLab(t, stack.Options{})
	m := l.machine("db", 24*mib)
	l.noise(m, 0, 3*mib, 5*mib, 1)
	l.do("job", "create", "nightly", "--endpoint", "lab", "--repository", "backups", "--all")
	first, then := l.backup("nightly"), l.hashes(m.ID)
	l.noise(m, 0, 0, mib, 2)
	second, now := l.backup("nightly"), l.hashes(m.ID)

	l.must(l.Agent.Stop(20 * time.Second))
	l.must(os.RemoveAll(l.AgentData()))
	l.must(os.MkdirAll(l.AgentData(), 0o700))
	l.must(l.StartAgent(t.Context()))
	var token struct{ Token string }
	l.must(l.ProviderJSON(t.Context(), &token, "token", "create", "--tenant", "demo", "--site", "recovered"))
	_, err := l.RunWith(t.Context(), strings.NewReader(token.Token+"\n"), "agent", "connect", l.Address, "--fingerprint", l.Fingerprint, "--token-file", "-")
	l.must(err)
	l.do("key", "import-kit", l.kit)

	var points []struct{ ID, Machine, Problem string }
	l.must(l.JSON(t.Context(), &points, "point", "list"))
	if len(points) != 2 || points[0].ID != second.Machines[0].Point || points[1].ID != first.Machines[0].Point ||
		points[0].Machine != "db" || points[0].Problem != "" {
		t.Fatalf("points on the fresh machine: %+v", points)
	}
	l.do("plugin", "enable", "sim")
	l.do("endpoint", "add", "lab", "--plugin", "sim", "--set", "dir="+filepath.Join(l.dir, "hypervisor"))
	for point, want := range map[string][]string{first.Machines[0].Point: then, second.Machines[0].Point: now} {
		equal(t, "raw file of "+point, []string{hashFile(t, l.restoreDisk(point, string(m.Disks[0].ID), "raw"))}, want)
		var restored run
		l.must(l.JSON(t.Context(), &restored, "restore", "machine", point, "--endpoint", "lab", "--name", "db-"+point[len(point)-6:], "--wait"))
		equal(t, "machine of "+point, l.hashes(sdk.MachineID(restored.Restored.MachineID)), want)
	}
	// The site's next backup goes on where the lost one ended.
	l.do("job", "create", "nightly", "--endpoint", "lab", "--repository", "backups", "--machine", "db")
	third := l.backup("nightly")
	if third.Machines[0].Kind == "full" || third.Machines[0].StoredBytes > mib {
		t.Errorf("backup after the recovery: kind %s, stored %d; want one that builds on the points that are there", third.Machines[0].Kind, third.Machines[0].StoredBytes)
	}
}

// The bounds hold for the whole processes, and a disk sixteen times as large
// needs no more.
func TestMemoryIsBoundedWhateverTheDisksSize(t *testing.T) {
	peaks := map[int64][2]int64{}
	for _, gib := range []int64{4, 64} {
		l := newLab(t, stack.Options{})
		m := l.machine("wide", gib<<30)
		for i := range int64(48) { // data all over the disk
			l.noise(m, 0, i*(gib<<30)/48, 16*mib, byte(i+1))
		}
		l.do("job", "create", "nightly", "--endpoint", "lab", "--repository", "backups", "--all")
		r := l.backup("nightly")
		path := l.restoreDisk(r.Machines[0].Point, string(m.Disks[0].ID), "raw")
		if info, err := os.Stat(path); err != nil || info.Size() != gib<<30 {
			t.Errorf("restored %v, %v; want %d GiB", info, err, gib)
		}
		agent, err := l.Agent.Usage()
		l.must(err)
		server, err := l.Server.Usage()
		l.must(err)
		t.Logf("%d GiB: agent %d MiB, server %d MiB", gib, agent.Peak/mib, server.Peak/mib)
		if agent.Peak >= 128*mib || server.Peak >= 256*mib {
			t.Errorf("%d GiB: peak of the agent %d MiB, of the server %d MiB; the bounds are 128 and 256", gib, agent.Peak/mib, server.Peak/mib)
		}
		peaks[gib] = [2]int64{agent.Peak, server.Peak}
		l.must(l.Close())
	}
	for i, who := range []string{"agent", "server"} {
		if small, large := peaks[4][i], peaks[64][i]; large > small+small/2+16*mib {
			t.Errorf("the %s needs %d MiB for 64 GiB and %d MiB for 4 GiB", who, large/mib, small/mib)
		}
	}
}

// What disks have in common is stored and charged once, and what is in no point
// yet is not taken for a loss when a sample of it is asked for.
func TestTwoDisksWithTheSameContentAreStoredOnce(t *testing.T) {
	l := newLab(t, stack.Options{})
	m := l.machine("twins", 96*mib, 96*mib)
	for disk := range m.Disks {
		l.noise(m, disk, 0, 96*mib, 1)
	}
	l.do("job", "create", "nightly", "--endpoint", "lab", "--repository", "backups", "--all")
	if got := l.backup("nightly").Machines[0]; len(got.Warnings) > 0 {
		t.Errorf("warnings %q", got.Warnings)
	}
	if used := l.used(); used < 96*mib || used > 100*mib {
		t.Errorf("two equal disks of 96 MiB are charged with %d bytes", used)
	}
	var lists []struct{ ID string }
	l.must(l.JSON(t.Context(), &lists, "point", "list"))
	for disk, want := range l.hashes(m.ID) {
		equal(t, "disk restored", []string{hashFile(t, l.restoreDisk(lists[0].ID, string(m.Disks[disk].ID), "raw"))}, []string{want})
	}
}

// The provider sees that a tenant's job failed, why, and on which side.
func TestProviderSeesTheFailedJobOfATenant(t *testing.T) {
	l := newLab(t, stack.Options{})
	m := l.machine("web", 16*mib)
	l.noise(m, 0, 0, 4*mib, 1)
	l.do("job", "create", "nightly", "--endpoint", "lab", "--repository", "backups", "--all")
	l.backup("nightly")
	_, err := l.Provider(t.Context(), "quota", "set", "backups", "1MiB", "--tenant", "demo")
	l.must(err)
	l.noise(m, 0, 8*mib, 4*mib, 2)
	if _, err := l.Run(t.Context(), "job", "run", "nightly", "--wait"); err == nil || !strings.Contains(err.Error(), "is full") {
		t.Fatalf("a backup beyond the quota: %v", err)
	}
	var runs []struct{ Job, State, Failure, Side string }
	l.must(l.ProviderJSON(t.Context(), &runs, "tenant", "runs", "--tenant", "demo"))
	if len(runs) != 2 || runs[0].State != "failed" || runs[0].Job != "nightly" || !strings.Contains(runs[0].Failure, "is full") || runs[1].State != "succeeded" {
		t.Errorf("what the provider sees: %+v", runs)
	}
	_, err = l.Provider(t.Context(), "quota", "set", "backups", "1GiB", "--tenant", "demo")
	l.must(err)
	if again := l.backup("nightly").Machines[0]; again.Kind != "incremental" {
		t.Errorf("with room again: %+v", again)
	}
}

// However a backup ends, its provider hears of it: also when the tenant was shut
// out before it began, and when nobody answered at the end.
func TestProviderHearsOfEveryEnd(t *testing.T) {
	l := newLab(t, stack.Options{})
	l.noise(l.machine("web", 16*mib), 0, 0, 4*mib, 1)
	l.do("job", "create", "nightly", "--endpoint", "lab", "--repository", "backups", "--all")
	type seen struct{ Run, State, Failure, Side string }
	newest := func() (all []seen) {
		l.must(l.ProviderJSON(t.Context(), &all, "tenant", "runs", "--tenant", "demo"))
		return append(all, seen{})
	}
	_, err := l.Provider(t.Context(), "tenant", "disable", "demo")
	l.must(err)
	if _, err := l.Run(t.Context(), "job", "run", "nightly", "--wait"); err == nil || !strings.Contains(err.Error(), "is disabled") {
		t.Fatalf("a backup of a disabled tenant: %v", err)
	}
	if last := newest()[0]; last.State != "failed" || last.Side != "tenant" || !strings.Contains(last.Failure, "is disabled") {
		t.Errorf("of a disabled tenant's backup the provider sees %+v", last)
	}
	_, err = l.Provider(t.Context(), "tenant", "enable", "demo")
	l.must(err)

	l.Server.Kill()
	var started run
	l.must(l.JSON(t.Context(), &started, "job", "run", "nightly", "--no-wait"))
	l.do("run", "cancel", started.ID)
	if ended := l.waitRun(started.ID); ended.State != "cancelled" {
		t.Fatalf("the cancelled run ended as %+v", ended)
	}
	l.must(l.StartServer(t.Context()))
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	l.must(stack.Until(ctx, "the provider to hear of it", func() (bool, error) {
		last := newest()[0]
		return last.Run == started.ID && last.State == "cancelled", nil
	}))
}

// A tenant is deleted for good: with its backups if the provider says so, and
// never by accident.
func TestDeletedTenantsBackupsAreErased(t *testing.T) {
	l := newLab(t, stack.Options{})
	m := l.machine("web", 16*mib)
	l.noise(m, 0, 0, 4*mib, 1)
	l.do("job", "create", "nightly", "--endpoint", "lab", "--repository", "backups", "--all")
	l.backup("nightly")
	if _, err := l.Provider(t.Context(), "tenant", "delete", "demo", "--confirm", "demo"); err == nil || !strings.Contains(err.Error(), "stores") {
		t.Fatalf("deleting a tenant with backups without saying what becomes of them: %v", err)
	}
	if n := l.files(); n == 0 {
		t.Fatal("the refused deletion took the backups")
	}
	_, err := l.Provider(t.Context(), "tenant", "delete", "demo", "--confirm", "demo", "--backups", "delete")
	l.must(err)
	if _, err := l.Run(t.Context(), "job", "run", "nightly", "--wait"); err == nil {
		t.Error("the agent of a deleted tenant backed up")
	}
	l.must(l.Server.Stop(20 * time.Second))
	l.must(l.StartServer(t.Context()))
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	l.must(stack.Until(ctx, "the objects to be erased", func() (bool, error) { return l.files() == 0, nil }))
}

// files counts the objects in the repository.
func (l *lab) files() int {
	l.t.Helper()
	n := 0
	l.must(filepath.WalkDir(l.Repository(), func(_ string, d os.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			n++
		}
		return err
	}))
	return n
}

// What a tenant forgets becomes free space without anybody asking for it. The
// grace for readers is the default, so packs are condemned and wait.
func TestForgottenPointsAreCollected(t *testing.T) {
	l := newLab(t, stack.Options{})
	m := l.machine("web", 16*mib)
	l.noise(m, 0, 0, 8*mib, 1)
	l.do("job", "create", "nightly", "--endpoint", "lab", "--repository", "backups", "--all", "--keep-points", "1")
	l.backup("nightly")
	l.noise(m, 0, 0, 8*mib, 2)
	last := l.backup("nightly") // and the first point is beyond the retention
	var points []struct{ ID string }
	l.must(l.JSON(t.Context(), &points, "point", "list"))
	if len(points) != 1 || points[0].ID != last.Machines[0].Point {
		t.Fatalf("points kept: %+v", points)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	l.must(stack.Until(ctx, "the quota to be settled", func() (bool, error) { return l.used() < 9*mib, nil }))
	var collected struct {
		State  string
		Result struct {
			CondemnedPacks int   `json:"condemned_packs"`
			CondemnedBytes int64 `json:"condemned_bytes"`
		}
	}
	l.must(l.ProviderJSON(t.Context(), &collected, "repository", "collect", "--tenant", "demo", "backups", "--wait"))
	if collected.State != "succeeded" || collected.Result.CondemnedPacks == 0 || collected.Result.CondemnedBytes < 8*mib {
		t.Errorf("collection: %+v", collected)
	}
	equal(t, "what is kept", []string{hashFile(t, l.restoreDisk(points[0].ID, string(m.Disks[0].ID), "raw"))}, l.hashes(m.ID))
}
