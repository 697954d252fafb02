package faults

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-dr/holdfast/core/claim"
	"github.com/holdfast-dr/holdfast/sdk/sim"
	"github.com/holdfast-dr/holdfast/testenv"
	"github.com/holdfast-dr/holdfast/testenv/stack"
)

// disk is a small one, mounted for a test.
type disk struct {
	t    *testing.T
	path string
}

// newDisk mounts a disk of a size at a directory.
func newDisk(t *testing.T, path, size string) disk {
	t.Helper()
	testenv.NeedRoot(t)
	if err := os.MkdirAll(path, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", path, "tmpfs", 0, "mode=0700,size="+size); err != nil {
		t.Fatalf("mount a small disk: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(path, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return disk{t, path}
}

// grow gives the disk more room.
func (d disk) grow(size string) {
	d.t.Helper()
	if err := unix.Mount("tmpfs", d.path, "tmpfs", unix.MS_REMOUNT, "mode=0700,size="+size); err != nil {
		d.t.Fatalf("enlarge the disk: %v", err)
	}
}

// fill lets other programs take all but so many bytes; the returned func takes
// it back.
func (d disk) fill(leave int64) (empty func()) {
	d.t.Helper()
	path := filepath.Join(d.path, "ballast")
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		d.t.Fatal(err)
	}
	defer f.Close()
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(f.Fd()), &st); err != nil {
		d.t.Fatal(err)
	}
	block := make([]byte, 64<<10)
	for left := int64(st.Bavail)*st.Bsize - leave; left > 0; left -= int64(len(block)) {
		if _, err := f.Write(block[:min(left, int64(len(block)))]); errors.Is(err, syscall.ENOSPC) {
			break
		} else if err != nil {
			d.t.Fatal(err)
		}
	}
	return func() {
		if err := os.Remove(path); err != nil {
			d.t.Error(err)
		}
	}
}

// shortDir is a directory for a stack, below which disks are mounted first.
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "hf-disk-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

// fails runs a machine's job, which has to fail, and say something. The
// processes have to live on.
func (w *world) fails(m *machine, want ...string) run {
	w.t.Helper()
	r, err := w.start("/v1/site/jobs/"+m.Name+"/runs", nil)
	w.must(err)
	r = w.wait(r.ID)
	w.note("backup of %s ended as %s", m.Name, describe(r))
	if r.State != "failed" || r.Failure == nil {
		w.fatalf("a backup that has no room: %s", describe(r))
	}
	for _, text := range want {
		if !strings.Contains(describe(r), text) {
			w.errorf("a backup that has no room says %q, want %q in it", describe(r), text)
		}
	}
	w.checkAlive()
	return r
}

func (w *world) checkAlive() {
	w.t.Helper()
	for _, p := range []*stack.Process{w.Server, w.Agent} {
		select {
		case <-p.Done():
			w.fatalf("the %s has ended:\n%s", p.Name, p.Output())
		default:
		}
	}
}

func (w *world) checkEverything() {
	w.t.Helper()
	w.checkAll()
	w.checkHypervisor()
}

func diskMachines() []sim.MachineSpec {
	return []sim.MachineSpec{{Name: "db", DiskBytes: []int64{8 * mib}}, {Name: "wide", DiskBytes: []int64{64 * mib}}}
}

// The provider's repository fills up: the run says on which side that is, what
// is stored can be restored and forgotten, which makes room, and a larger disk
// takes what had not arrived.
func TestRepositoryIsFull(t *testing.T) {
	dir := shortDir(t)
	repository := newDisk(t, filepath.Join(dir, "provider", "repository"), "64m")
	w := newWorld(t, stack.Options{Dir: dir, ServerFlags: []string{"--readers", "1s", "--collect", "0"}}, diskMachines()...)
	db, wide := w.machines[0], w.machines[1]
	w.write(wide, 0, 0, 60*mib, randomOf(7))
	w.fails(wide, "no room")
	w.checkEverything()

	// Full to the last byte but for what small objects may take.
	empty := repository.fill(1 << 20)
	w.write(db, 0, 0, 2*mib, randomOf(8))
	w.fails(db, "no room")
	w.checkPoints()
	old := w.pointsOf("wide")[0]
	w.forget(old)
	w.backupAfterCollection(t, db)
	empty()

	repository.grow("256m")
	if r := w.backup(wide); r.State != "succeeded" { // the agent itself forgot its only point
		w.errorf("the backup with room: %s", describe(r))
	}
	w.checkEverything()
}

// backupAfterCollection waits until what was forgotten is free, and backs up.
func (w *world) backupAfterCollection(t *testing.T, m *machine) {
	t.Helper()
	w.until("the collection to delete what was forgotten", func() (bool, error) {
		var c struct {
			Deleted int64 `json:"deleted_bytes"`
		}
		r := w.serverRun("collect", &c)
		if r.State != "succeeded" {
			w.fatalf("collection on a full disk: %s %+v", r.State, r.Failure)
		}
		return c.Deleted > 0, nil
	})
	w.backup(m)
}

// Everything of the server is on one disk. It keeps what its index and database
// need, refuses backups, and lives.
func TestServersDiskIsFull(t *testing.T) {
	dir := shortDir(t)
	data := newDisk(t, filepath.Join(dir, "provider"), "300m")
	w := newWorld(t, stack.Options{Dir: dir, ServerFlags: []string{"--readers", "1s", "--collect", "0"}}, diskMachines()...)
	wide := w.machines[1]
	empty := data.fill(140 * mib)
	w.write(wide, 0, 0, 60*mib, randomOf(7))
	w.fails(wide, "no room")
	w.checkEverything()
	w.kill(victimServer)
	w.revive(victimServer)
	w.checkEverything()
	empty()
	w.backup(wide)
	w.checkEverything()
}

// Other programs fill the server's disk, with its index, spool and database, to
// the last byte while a backup runs. The server lives, what is stored restores,
// and what was refused goes on when there is room.
func TestOthersFillTheServersDisk(t *testing.T) {
	dir := shortDir(t)
	data := newDisk(t, filepath.Join(dir, "provider"), "400m")
	w := newWorld(t, stack.Options{Dir: dir, ServerFlags: []string{"--readers", "1s", "--collect", "0"}}, diskMachines()...)
	db, wide := w.machines[0], w.machines[1]
	w.write(wide, 0, 0, 60*mib, randomOf(7))
	var empty func()
	r := w.during(wide, func() { empty = data.fill(0) })
	if r.good() {
		w.errorf("a backup succeeded without room: %s", describe(r))
	}
	w.checkAlive()
	data.fill(0) // what the server has given up since is taken as well
	for _, id := range w.allPoints() {
		w.checkDisk(id, 0)
	}
	w.write(db, 0, 0, mib, randomOf(8))
	w.fails(db, "no room")
	// The claim of the repository outlives it: what is restored a while later comes
	// from the same opening.
	w.outlastClaim()
	for _, id := range w.allPoints() {
		w.checkDisk(id, 0)
	}
	w.checkAlive()
	if out := w.Server.Output(); strings.Contains(out, "cloud repository closed") || !strings.Contains(out, "state database is full") {
		w.errorf("the server on a full disk printed:\n%s", out)
	}
	empty()
	w.backup(wide)
	w.backup(db)
	w.checkEverything()
}

// outlastClaim waits for longer than a claim lasts that is not renewed: what is
// waited for is the time itself.
func (w *world) outlastClaim() {
	w.t.Helper()
	select {
	case <-time.After(claim.DefaultTTL + claim.DefaultTTL/4):
	case <-w.Server.Done():
		w.fatalf("the server has ended:\n%s", w.Server.Output())
	}
}

// The disk of the state database is full: nothing is acknowledged that is not
// written, and the server goes on when there is room.
func TestStateDatabasesDiskIsFull(t *testing.T) {
	dir := shortDir(t)
	data := newDisk(t, filepath.Join(dir, "state"), "24m")
	w := newWorld(t, stack.Options{Dir: dir, ServerFlags: []string{"--database", "sqlite:" + filepath.Join(dir, "state", "state.db")}}, diskMachines()...)
	db := w.machines[0]
	empty := data.fill(0)
	w.write(db, 0, 0, 2*mib, randomOf(7))
	r, err := w.start("/v1/site/jobs/db/runs", nil)
	w.must(err)
	// The run may fail, or wait for better times; it must not succeed.
	ended, give := w.watch(r.ID)
	<-ended
	give()
	r = w.wait(r.ID)
	w.note("ended as %s", describe(r))
	if r.good() {
		w.errorf("a backup succeeded although its commit could not be written")
	}
	w.checkAlive()
	empty()
	w.checkEverything()
	w.backup(db)
	w.checkEverything()
}

// The agent's disk is full: it says so and lives, and goes on when there is
// room.
func TestAgentsDiskIsFull(t *testing.T) {
	dir := shortDir(t)
	data := newDisk(t, filepath.Join(dir, "tenant"), "24m")
	w := newWorld(t, stack.Options{Dir: dir}, diskMachines()...)
	db := w.machines[0]
	empty := data.fill(0)
	w.write(db, 0, 0, 2*mib, randomOf(7))
	// Whether the run can be entered at all depends on what the database's log has
	// room for.
	if r, err := w.start("/v1/site/jobs/db/runs", nil); err != nil {
		w.note("start: %v", err)
		if !strings.Contains(err.Error(), "full") {
			w.errorf("a run that cannot be written down: %v", err)
		}
	} else {
		w.note("started %s", r.ID)
	}
	w.checkAlive()
	empty()
	w.until("the agent to write again", func() (bool, error) {
		var runs []run
		if err := w.agent("GET", "/v1/site/runs", nil, &runs); err != nil {
			return false, err
		}
		for _, r := range runs {
			if r.open() {
				return false, nil
			}
			w.enterIfNew(db, r)
		}
		return true, nil
	})
	w.backup(db)
	w.checkEverything()
}

// enterIfNew enters what a run made that nobody waited for.
func (w *world) enterIfNew(m *machine, r run) {
	for _, one := range r.Machines {
		if _, known := w.points[one.Point]; !known && one.Machine == m.Name {
			w.enter(m, r)
		}
	}
}

// A restore to a disk that is too small leaves nothing there.
func TestRestoreHasNoRoom(t *testing.T) {
	w := newWorld(t, stack.Options{}, diskMachines()...)
	dir := shortDir(t)
	small := newDisk(t, filepath.Join(dir, "small"), "4m")
	point := w.newest()
	r, err := w.start("/v1/site/restores/disk", map[string]any{"point": point, "disk": "vda", "file": filepath.Join(small.path, "disk.raw"), "format": "raw"})
	w.must(err)
	if r = w.wait(r.ID); r.State != "failed" || !strings.Contains(describe(r), "no space") {
		w.errorf("a restore to a small disk: %s", describe(r))
	}
	if entries, err := os.ReadDir(small.path); err != nil || len(entries) != 0 {
		w.errorf("left on the small disk: %v, %v", entries, err)
	}
	small.grow("200m")
	r, err = w.start("/v1/site/restores/disk", map[string]any{"point": point, "disk": "vda", "file": filepath.Join(small.path, "disk.raw"), "format": "raw"})
	w.must(err)
	if r = w.wait(r.ID); r.State != "succeeded" {
		w.errorf("the restore with room: %s", describe(r))
	}
	if got, want := w.hashFile(filepath.Join(small.path, "disk.raw")), w.points[point].hashes[0]; got != want {
		w.errorf("restored %s, was %s", got, want)
	}
}
