package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/google/uuid"

	"github.com/holdfast-dr/holdfast/core/backup"
	"github.com/holdfast-dr/holdfast/core/chunk"
	"github.com/holdfast-dr/holdfast/core/mover/movertest"
	"github.com/holdfast-dr/holdfast/core/point"
	"github.com/holdfast-dr/holdfast/sdk"
	"github.com/holdfast-dr/holdfast/testenv"
	"github.com/holdfast-dr/holdfast/testenv/site"
)

// In these tests machines go through what happens to machines, between and under backups that go all the way: the point
// is compared with the disks, byte by byte, the next run has to be incremental where the history survived, and nothing
// of ours may be left.

// TestHostCrashesBetweenBackups kills QEMU with its bitmaps: not yet in the image, in an older state, and under a run.
func TestHostCrashesBetweenBackups(t *testing.T) {
	s := testSite(t)
	p := testPlatform(t, local(s))
	g := testGuest(t, s, site.Spec{Name: "crashed"})
	mustStart(t, g)
	console(t, g, "counter on")
	c := protect(t, s, p, g)
	crash := func() {
		t.Helper()
		if err := g.KillQEMU(t.Context()); err != nil {
			t.Fatal(err)
		}
		switchOn(t, s, g)
	}
	lost := func() {
		t.Helper()
		c.write("vdb", 40*mib, mib)
		res := c.backup(point.KindCompare)
		c.warned(res, backup.CodeMarkLost, "compared")
		c.write("vdb", 44*mib, mib)
		c.backup(point.KindIncremental)
	}
	crash()
	lost()
	c.virsh("destroy", "--graceful", g.Name)
	switchOn(t, s, g)
	crash()
	lost()

	// The crash of a host that ran a backup also leaves files and a checkpoint of which no run knows.
	c.next()
	abandoned := snapshot(t, p, c.req.Op, sdk.SnapshotRequest{Machine: c.req.Source})
	c.write("vdb", 50*mib, 2*mib)
	crash()
	if after := leftovers(t, g); len(after) < len(c.before)+3 {
		t.Errorf("the crash under snapshot %s left no more than %q", abandoned.ID, after)
	}
	c.orphan(p, s.Scratch(), "gone")
	lost()
	c.forget()
}

// deaf is a platform that dies before it can end a snapshot.
type deaf struct{ *platform }

func (deaf) EndSnapshot(context.Context, sdk.Op, sdk.Snapshot, bool) error {
	return sdk.Errorf(sdk.ErrInvalid, sdk.FaultHost, "the plugin is dead")
}

// TestRunsThatDied leaves behind what dead runs leave, one after the other, and each time the next run finds it.
func TestRunsThatDied(t *testing.T) {
	s := testSite(t)
	p := testPlatform(t, local(s))
	g := testGuest(t, s, site.Spec{Name: "dead-runs"})
	switchOn(t, s, g)
	c := protect(t, s, p, g)
	abandon := func() {
		t.Helper()
		c.next()
		dead := testPlatform(t, local(s))
		manifest, err := point.Open(c.vault.points[len(c.vault.points)-1], c.req.Keys)
		if err != nil {
			t.Fatal(err)
		}
		since := make(map[sdk.DiskID]sdk.Mark)
		for _, d := range manifest.Private.Disks {
			since[sdk.DiskID(d.ID)] = d.Mark
		}
		snapshot(t, dead, c.req.Op, sdk.SnapshotRequest{Machine: c.req.Source, Since: since})
		dead.Close()
		c.write("vdb", 30*mib, mib)
	}

	// A job, with its files and its checkpoint.
	abandon()
	c.backup(point.KindIncremental)

	// A checkpoint alone: the job went with its QEMU.
	abandon()
	c.virsh("destroy", "--graceful", g.Name)
	switchOn(t, s, g)
	c.backup(point.KindIncremental)

	// A point that was committed, and a snapshot that was not ended: its marks are the base of the next run.
	c.req.Platform = deaf{p}
	c.next()
	res, err := backup.Run(t.Context(), c.req)
	if err != nil {
		t.Fatal(err)
	}
	c.warned(res, backup.CodeCleanUp, "dead")
	c.req.Platform, c.req.Held, c.req.Remembered = p, res.Held, append([]point.ID{res.Point}, c.req.Remembered...)
	c.write("vdb", 32*mib, mib)
	c.backup(point.KindIncremental)

	// A machine that is off, and that a dead run holds.
	abandon()
	c.virsh("destroy", "--graceful", g.Name)
	c.next()
	snapshot(t, p, c.req.Op, sdk.SnapshotRequest{Machine: c.req.Source})
	c.backup(point.KindIncremental)
	if state, err := g.State(t.Context()); err != nil || state != "shut off" {
		t.Errorf("the machine that was off is %s, %v", state, err)
	}
	c.forget()
}

// TestDisksComeAndGo changes what disks a machine has.
func TestDisksComeAndGo(t *testing.T) {
	s := testSite(t)
	p := testPlatform(t, local(s))
	g := testGuest(t, s, site.Spec{Name: "disks"})
	c := &protected{T: t, site: s, guest: g}
	shared, fixed, medium := c.image("shared.raw", "raw", "8M"), c.image("fixed.qcow2", "qcow2", "8M"), c.image("medium.iso", "raw", "1M")
	added := c.image("added.qcow2", "qcow2", "32M")
	c.edit(func(text string) string {
		return strings.Replace(text, "</disk>", fmt.Sprintf(`</disk>
<disk type='file' device='disk'><driver name='qemu' type='raw' cache='none'/><source file='%s'/><target dev='vdc' bus='virtio'/><shareable/></disk>
<disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='%s'/><target dev='vdd' bus='virtio'/><readonly/></disk>
<disk type='file' device='cdrom'><driver name='qemu' type='raw'/><source file='%s'/><target dev='hdc' bus='ide'/><readonly/></disk>
<disk type='file' device='floppy'><target dev='fda' bus='fdc'/></disk>`, shared, fixed, medium), 1)
	})
	switchOn(t, s, g)
	c = protect(t, s, p, g)
	c.write("vdb", 20*mib, mib)
	res := c.backup(point.KindIncremental)
	if len(res.Disks) != 2 {
		t.Errorf("disks of the point: %+v", res.Disks)
	}
	for disk, reason := range map[string]string{
		"vdc": "shared with other machines", "vdd": "read-only", "hdc": "removable medium", "fda": "removable medium",
	} {
		c.warned(res, backup.CodeSkipped, "disk "+disk+" is not part of the point: "+reason)
	}

	// Added to a machine that runs.
	c.virsh("attach-disk", g.Name, added, "vde", "--subdriver", "qcow2", "--targetbus", "virtio", "--live", "--config")
	c.write("vde", 0, 4*mib)
	c.write("vdb", 22*mib, mib)
	c.backup(point.KindIncremental, point.KindIncremental, point.KindFull)
	c.write("vde", 8*mib, mib)
	c.backup(point.KindIncremental)

	// Grown under the guest, to the size of vdb.
	c.virsh("blockresize", g.Name, "vde", "64M")
	c.write("vde", 40*mib, mib)
	res = c.backup(point.KindIncremental, point.KindIncremental, point.KindFull)
	c.warned(res, backup.CodeSizeChanged, "67108864")
	c.write("vde", 41*mib, mib)
	c.backup(point.KindIncremental)

	// Removed, and then back again: what happened to it meanwhile nobody knows.
	restart := func(change func(text string) string) {
		t.Helper()
		c.virsh("destroy", "--graceful", g.Name)
		c.edit(change)
		switchOn(t, s, g)
	}
	disk := regexp.MustCompile(`(?s)\s*<disk [^>]*>(?:[^<]|<[^/]|</[^d]|</d[^i])*?added\.qcow2.*?</disk>`)
	var cut string
	restart(func(text string) string {
		at := disk.FindStringIndex(text)
		if at == nil {
			t.Fatal("the disk is not in the definition")
		}
		begin := strings.LastIndex(text[:at[1]], "<disk ")
		cut = text[begin:at[1]]
		return text[:begin] + text[at[1]:]
	})
	c.backup(point.KindIncremental)
	restart(func(text string) string { return strings.Replace(text, "<disk ", cut+"<disk ", 1) })
	c.backup(point.KindIncremental, point.KindIncremental, point.KindFull)

	// Re-ordered: each name means another disk than before, of the same size and with a bitmap of the same name.
	restart(func(text string) string {
		return strings.NewReplacer("dev='vdb'", "dev='vde'", "dev='vde'", "dev='vdb'").Replace(text)
	})
	res = c.backup(point.KindIncremental, point.KindCompare, point.KindCompare)
	c.warned(res, backup.CodeMarkLost, "compared")
	c.write("vdb", mib, mib)
	c.backup(point.KindIncremental)
	c.forget()
	c.virsh("destroy", "--graceful", g.Name)
	if left := c.bitmaps(added); len(left) != 0 {
		t.Errorf("bitmaps in the disk that went and came: %q", left)
	}
}

// TestDisksThatCannotTrack reads raw files, block devices and volumes whole, and keeps scratch files where there is room.
func TestDisksThatCannotTrack(t *testing.T) {
	testenv.NeedRoot(t)
	s := testSite(t)
	plain := local(s)
	plain.ScratchDir = ""
	p := testPlatform(t, plain)
	g := testGuest(t, s, site.Spec{Name: "plain", RawData: true})
	c := &protected{T: t, site: s, guest: g}
	block := loop(t, c.image("behind-loop", "raw", "16M"))
	devices := fmt.Sprintf(`<disk type='block' device='disk'><driver name='qemu' type='raw'/><source dev='%s'/><target dev='vdc' bus='virtio'/></disk>`, block)
	c.image("volume.qcow2", "qcow2", "16M")
	c.virsh("pool-refresh", site.Pool)
	devices += fmt.Sprintf(`<disk type='volume' device='disk'><driver name='qemu' type='qcow2'/><source pool='%s' volume='volume.qcow2'/><target dev='vdd' bus='virtio'/></disk>`, site.Pool)
	kinds := []point.Kind{point.KindIncremental, point.KindCompare, point.KindCompare, point.KindIncremental}
	if lv, err := mapped(t, c.image("behind-mapper", "raw", "16M")); err == nil {
		devices += fmt.Sprintf(`<disk type='block' device='disk'><driver name='qemu' type='raw'/><source dev='%s'/><target dev='vde' bus='virtio'/></disk>`, lv)
		kinds = append(kinds, point.KindCompare)
	} else {
		t.Run("logical volume", func(t *testing.T) { t.Skipf("%v; the loop device goes the same way", err) })
	}
	c.edit(func(text string) string { return strings.Replace(text, "<disk ", devices+"<disk ", 1) })
	switchOn(t, s, g)
	c = protect(t, s, p, g)
	c.write("vdb", 30*mib, mib)
	c.write("vdc", 3*mib, mib)
	c.write("vdd", 5*mib, mib)
	c.backup(kinds...)
	d, _, err := p.describeID(t.Context(), c.req.Source)
	if err != nil {
		t.Fatal(err)
	}
	dirs, err := p.scratchDirs(t.Context(), d)
	if err != nil {
		t.Fatal(err)
	}
	for id, dir := range dirs {
		if dir != s.PoolDir(site.Pool) {
			t.Errorf("scratch files of %s go to %s", id, dir)
		}
	}

	// Where nothing tracks, no checkpoint leads to what a dead run left.
	c.next()
	snapshot(t, p, c.req.Op, sdk.SnapshotRequest{Machine: c.req.Source, Disks: []sdk.DiskID{"vdb", "vdc"}})
	if err := g.KillQEMU(t.Context()); err != nil {
		t.Fatal(err)
	}
	switchOn(t, s, g)
	c.orphan(p, s.PoolDir(site.Pool), "gone")
	c.backup(append([]point.Kind{point.KindCompare, point.KindCompare, point.KindCompare, point.KindCompare}, kinds[4:]...)...)
	c.forget()
}

// loop makes a block device of a file.
func loop(t *testing.T, file string) string {
	t.Helper()
	out, err := exec.Command(testenv.Tool(t, "losetup"), "--find", "--show", file).Output()
	if err != nil {
		testenv.Lack(t, "needs loop devices: %v", err)
	}
	device := strings.TrimSpace(string(out))
	t.Cleanup(func() {
		if err := exec.Command(testenv.Tool(t, "losetup"), "--detach", device).Run(); err != nil {
			t.Error(err)
		}
	})
	return device
}

// mapped makes what LVM makes, a linear device of the device mapper, if the kernel has one.
func mapped(t *testing.T, file string) (string, error) {
	t.Helper()
	dmsetup, ok := testenv.FindTool("dmsetup")
	if !ok {
		return "", errors.New("dmsetup is not installed")
	}
	if out, err := exec.Command(dmsetup, "version").CombinedOutput(); err != nil {
		return "", fmt.Errorf("the kernel has no device mapper: %s", strings.Join(strings.Fields(string(out)), " "))
	}
	name := "holdfast-test-" + uuid.NewString()[:8]
	if out, err := exec.Command(dmsetup, "create", name, "--table", "0 32768 linear "+loop(t, file)+" 0").CombinedOutput(); err != nil {
		return "", fmt.Errorf("%w: %s", err, out)
	}
	t.Cleanup(func() {
		if out, err := exec.Command(dmsetup, "remove", name).CombinedOutput(); err != nil {
			t.Errorf("%v: %s", err, out)
		}
	})
	return "/dev/mapper/" + name, nil
}

// TestSnapshotBetweenBackups is somebody's snapshot: while it is there, nothing of ours may be in the images, for QEMU
// ends a guest that is reverted over a bitmap.
func TestSnapshotBetweenBackups(t *testing.T) {
	s := testSite(t)
	p := testPlatform(t, local(s))
	g := testGuest(t, s, site.Spec{Name: "snapshots"})
	switchOn(t, s, g)
	c := protect(t, s, p, g)
	// Of a machine that has only just been started, for its memory is saved too.
	c.virsh("destroy", "--graceful", g.Name)
	c.virsh("start", "--paused", g.Name)
	c.virsh("snapshot-create-as", g.Name, "by-hand")
	c.virsh("resume", g.Name)
	c.before = append([]string{}, c.before...)
	c.before = append(c.before, "snapshot by-hand")
	c.write("vdb", 20*mib, mib)
	res := c.backup(point.KindCompare)
	c.warned(res, backup.CodeMarkLost, "compared")
	if !strings.Contains(res.Note, "snapshots") {
		t.Errorf("the note %q does not say why", res.Note)
	}
	c.virsh("snapshot-revert", g.Name, "by-hand")
	if state, err := g.State(t.Context()); err != nil || state != "paused" {
		t.Errorf("after the revert the machine is %s, %v", state, err)
	}
	c.virsh("resume", g.Name)
	c.backup(point.KindCompare)
	c.virsh("snapshot-delete", g.Name, "by-hand")
	c.before = c.before[:len(c.before)-1]
	c.backup(point.KindCompare)
	c.write("vdb", 21*mib, mib)
	c.backup(point.KindIncremental)
	c.forget()
}

// TestMachineDefinedAnew gives a machine another UUID, as people do who define it again from an old file.
func TestMachineDefinedAnew(t *testing.T) {
	s := testSite(t)
	p := testPlatform(t, local(s))
	g := testGuest(t, s, site.Spec{Name: "anew"})
	switchOn(t, s, g)
	c := protect(t, s, p, g)
	again := func() {
		t.Helper()
		c.virsh("destroy", "--graceful", g.Name)
		text := c.virsh("dumpxml", "--inactive", g.Name)
		c.virsh("undefine", g.Name, "--checkpoints-metadata")
		file := filepath.Join(t.TempDir(), "old.xml")
		old := regexp.MustCompile(`<uuid>.*</uuid>`).ReplaceAllString(text, "")
		if err := os.WriteFile(file, []byte(old), 0o600); err != nil {
			t.Fatal(err)
		}
		c.virsh("define", file)
		switchOn(t, s, g)
		was := c.req.Source
		if c.req.Source = find(t, p, g.Name).ID; c.req.Source == was {
			t.Fatal("the machine is the same")
		}
	}

	// Whoever knows that it is the same machine goes on from the bitmaps, which are in the images.
	again()
	c.write("vdb", 20*mib, mib)
	c.backup(point.KindIncremental)

	// Whoever does not begins anew, and the bitmaps go.
	again()
	c.vault, c.req.Remembered, c.req.Held = &vault{Store: movertest.NewStore()}, nil, nil
	c.req.Repository, c.req.Machine, c.req.Keys = c.vault, point.MachineID(uuid.NewString()), chunk.NewKeyring()
	c.backup(point.KindFull)
	c.write("vdb", 21*mib, mib)
	c.backup(point.KindIncremental)
	c.forget()
}

// TestMachineMigrates moves a running machine to another host and back.
func TestMachineMigrates(t *testing.T) {
	here := testSite(t)
	there, err := site.Start(t.Context(), site.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := there.Close(); err != nil {
			t.Error(err)
		}
	})
	g := testGuest(t, here, site.Spec{Name: "nomad"})
	switchOn(t, here, g)
	c := protect(t, here, testPlatform(t, local(here)), g)
	c.before = nil
	migrate := func(to *site.Site) {
		t.Helper()
		c.virsh("migrate", "--live", "--persistent", "--unsafe", g.Name, to.URI, "--migrateuri", "unix://"+to.Scratch()+"/migrate.sock")
		os.Remove(to.Scratch() + "/migrate.sock")
		c.site, c.guest = to, to.Guest(g.Name)
		c.req.Platform = testPlatform(t, local(to))
		c.before = nil
		for _, entry := range leftovers(t, c.guest) {
			if !strings.Contains(entry, " holdfast-") {
				c.before = append(c.before, entry)
			}
		}
	}
	c.write("vdb", 20*mib, mib)
	migrate(there)
	c.write("vdb", 22*mib, mib)
	c.backup(point.KindIncremental)
	c.write("vdb", 24*mib, mib)
	c.backup(point.KindIncremental)

	// At the host that it left it is off, and its disks are in use elsewhere.
	stale := c.req
	stale.Platform = testPlatform(t, local(here))
	stale.Op = sdk.Op{ID: uuid.NewString(), Epoch: c.req.Op.Epoch + 1}
	if _, err := backup.Run(t.Context(), stale); err == nil || !strings.Contains(err.Error(), "lock") {
		t.Errorf("a backup at the host that the machine has left: %v", err)
	}

	migrate(here)
	c.write("vdb", 26*mib, mib)
	c.backup(point.KindIncremental)
	c.forget()
	for _, dir := range []string{there.Scratch(), there.PoolDir(site.Pool)} {
		if left, err := os.ReadDir(dir); err != nil || len(left) != 0 {
			t.Errorf("left at the other host: %v, %v", left, err)
		}
	}
}

// TestTrackerThatLies empties a bitmap behind everybody's back.
func TestTrackerThatLies(t *testing.T) {
	s := testSite(t)
	p := testPlatform(t, local(s))
	g := testGuest(t, s, site.Spec{Name: "liar"})
	switchOn(t, s, g)
	c := protect(t, s, p, g)
	c.write("vdb", 20*mib, 32*mib)
	dom, err := p.domain(t.Context(), c.req.Source)
	if err != nil {
		t.Fatal(err)
	}
	devices, err := p.blockDevices(t.Context(), dom)
	if err != nil {
		t.Fatal(err)
	}
	cleared := 0
	for _, device := range devices {
		for _, bitmap := range device.Inserted.Bitmaps {
			arguments := map[string]any{"node": device.Inserted.Node, "name": bitmap.Name}
			if err := p.monitor(t.Context(), dom, "block-dirty-bitmap-clear", arguments, nil); err != nil {
				t.Fatal(err)
			}
			cleared++
		}
	}
	if cleared != 2 {
		t.Fatalf("%d bitmaps were cleared", cleared)
	}
	res := c.backup(point.KindIncremental, point.KindCompare)
	c.warned(res, backup.CodeTrackerLied, "everything is compared")
	c.write("vdb", 60*mib, mib)
	res = c.backup(point.KindIncremental)
	if len(res.Warnings) != 0 {
		t.Errorf("an honest tracker: %+v", res.Warnings)
	}
	c.forget()
}
