package main

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/sdk"
	"github.com/holdfast-dr/holdfast/testenv/site"
)

// TestLostBitmap crashes the host under a mark, in both ways in which its bitmap can be lost: before it ever reached the
// image, and after, so that the image has one that missed writes.
func TestLostBitmap(t *testing.T) {
	s := testSite(t)
	p := testPlatform(t, local(s))
	ctx := t.Context()
	g := testGuest(t, s, site.Spec{Name: "lost"})
	switchOn(t, s, g)
	m := find(t, p, "lost")
	before := leftovers(t, g)
	for _, saved := range []bool{false, true} {
		marked := snapshot(t, p, newOp(), sdk.SnapshotRequest{Machine: m.ID})
		end(t, p, newOp(), marked, true)
		if saved {
			if err := p.Stop(ctx, newOp(), m.ID, 0); err != nil {
				t.Fatal(err)
			}
			switchOn(t, s, g)
		}
		if err := g.KillQEMU(ctx); err != nil {
			t.Fatal(err)
		}
		switchOn(t, s, g)
		snap := snapshot(t, p, newOp(), sdk.SnapshotRequest{Machine: m.ID, Since: marked.Marks})
		for _, d := range snap.Machine.Disks {
			for _, err := range p.Changed(ctx, snap, d.ID) {
				if !errors.Is(err, sdk.ErrMarkLost) {
					t.Errorf("saved %v: changes of %s: %v", saved, d.ID, err)
				}
			}
		}
		if !strings.Contains(snap.Note, "bitmap") {
			t.Errorf("saved %v: the note %q does not say why", saved, snap.Note)
		}
		if len(snap.Marks) != 2 {
			t.Errorf("saved %v: new marks %v", saved, snap.Marks)
		}
		end(t, p, newOp(), snap, true)

		// Tracking has begun anew.
		next := snapshot(t, p, newOp(), sdk.SnapshotRequest{Machine: m.ID, Since: snap.Marks})
		for _, err := range p.Changed(ctx, next, "vda") {
			if err != nil {
				t.Errorf("saved %v: changes after the loss: %v", saved, err)
			}
		}
		end(t, p, newOp(), next, false)
		release(t, p, snap)
		release(t, p, marked)
		nothingLeft(t, g, before)
	}
}

// switchOn starts a machine without waiting for its guest.
func switchOn(t *testing.T, s *site.Site, g site.Guest) {
	t.Helper()
	if _, err := s.Virsh(t.Context(), "start", g.Name); err != nil {
		t.Fatal(err)
	}
}

// TestMachineThatIsOff backs up without booting, tracks changes over a boot, and leaves the machine off.
func TestMachineThatIsOff(t *testing.T) {
	s := testSite(t)
	p := testPlatform(t, local(s))
	ctx := t.Context()
	g := testGuest(t, s, site.Spec{Name: "off"})
	m := find(t, p, "off")
	before := leftovers(t, g)
	op := newOp()
	full := snapshot(t, p, op, sdk.SnapshotRequest{Machine: m.ID, Quiesce: sdk.QuiesceFileSystem})
	if now := find(t, p, "off"); now.State != sdk.StateOff || full.Machine.State != sdk.StateOff {
		t.Errorf("while the snapshot is open the machine is %s, and %s in the snapshot", now.State, full.Machine.State)
	}
	image := readDisk(t, p, full, "vdb")
	end(t, p, op, full, true)
	isOff := func() {
		t.Helper()
		if state, err := g.State(ctx); err != nil || state != "shut off" {
			t.Errorf("the machine is %s, %v", state, err)
		}
	}
	isOff()
	mustStart(t, g)
	console(t, g, "note written between")
	if err := g.Shutdown(ctx); err != nil {
		t.Fatal(err)
	}
	op = newOp()
	next := snapshot(t, p, op, sdk.SnapshotRequest{Machine: m.ID, Since: full.Marks})
	if read := applyChanges(t, p, next, "vdb", image); read == 0 || read > 16<<20 {
		t.Errorf("%d bytes changed", read)
	}
	if !bytes.Equal(image, readDisk(t, p, next, "vdb")) {
		t.Error("the changes are not complete")
	}
	end(t, p, op, next, false)
	isOff()
	release(t, p, full) // of a machine that is off
	isOff()
	nothingLeft(t, g, before)

	// A machine that is started while its snapshot is open runs on after it.
	op = newOp()
	snap := snapshot(t, p, op, sdk.SnapshotRequest{Machine: m.ID})
	if err := p.Start(ctx, newOp(), m.ID); err != nil {
		t.Fatal(err)
	}
	end(t, p, op, snap, false)
	if state, _ := g.State(ctx); state != "running" {
		t.Errorf("after its snapshot the machine is %s", state)
	}
	if err := g.WaitReady(ctx); err != nil {
		t.Error(err)
	}

	// Saved memory would be lost by any start.
	if _, err := s.Virsh(ctx, "managedsave", "off"); err != nil {
		t.Fatal(err)
	}
	if _, err := p.Snapshot(ctx, newOp(), sdk.SnapshotRequest{Machine: m.ID}); !errors.Is(err, sdk.ErrBusy) || sdk.HintOf(err) == "" {
		t.Errorf("a machine whose memory is saved: %v", err)
	}
	if out, err := s.Virsh(ctx, "list", "--all", "--with-managed-save", "--name"); err != nil || out != "off" {
		t.Errorf("machines with saved memory: %q, %v", out, err)
	}
	if _, err := s.Virsh(ctx, "managedsave-remove", "off"); err != nil {
		t.Fatal(err)
	}
}

// TestOneSnapshotAtATime covers jobs that are not the caller's.
func TestOneSnapshotAtATime(t *testing.T) {
	s := testSite(t)
	p := testPlatform(t, local(s))
	ctx := t.Context()
	g := testGuest(t, s, site.Spec{Name: "turns", RawData: true})
	m := find(t, p, "turns")
	before := leftovers(t, g)

	// A dead run's is ended, with its checkpoint; a newer claim's refuses an older one.
	dead := snapshot(t, p, newOp(), sdk.SnapshotRequest{Machine: m.ID})
	if _, marked := dead.Marks["vdb"]; marked || len(dead.Marks) != 1 {
		t.Errorf("marks of a machine whose vdb is raw: %v", dead.Marks)
	}
	op := newOp()
	op.Epoch++
	alive := snapshot(t, testPlatform(t, local(s)), op, sdk.SnapshotRequest{Machine: m.ID})
	if _, err := p.OpenDisk(ctx, dead, "vda"); !errors.Is(err, sdk.ErrNotFound) {
		t.Errorf("a disk of the dead run's snapshot: %v", err)
	}
	if err := p.EndSnapshot(ctx, newOp(), alive, true); !errors.Is(err, sdk.ErrFenced) {
		t.Errorf("end of a newer claim's snapshot: %v", err)
	}
	if _, err := p.Snapshot(ctx, newOp(), sdk.SnapshotRequest{Machine: m.ID}); !errors.Is(err, sdk.ErrFenced) {
		t.Errorf("snapshot under an older claim: %v", err)
	}
	if got := readDisk(t, p, alive, "vdb"); len(got) != 64<<20 {
		t.Errorf("a raw disk of %d bytes", len(got))
	}
	end(t, p, op, alive, false)
	if err := p.EndSnapshot(ctx, op, alive, false); err != nil {
		t.Errorf("end once more: %v", err)
	}
	if err := p.EndSnapshot(ctx, op, sdk.Snapshot{ID: "unknown"}, false); err != nil {
		t.Errorf("end of an unknown snapshot: %v", err)
	}
	nothingLeft(t, g, before)

	// A snapshot whose QEMU was killed is gone; its end and its repeat tidy up after it.
	op.ID = newOp().ID
	killed := snapshot(t, p, op, sdk.SnapshotRequest{Machine: m.ID})
	if err := g.KillQEMU(ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := p.OpenDisk(ctx, killed, "vda"); !errors.Is(err, sdk.ErrNotFound) {
		t.Errorf("a disk of a snapshot whose QEMU was killed: %v", err)
	}
	end(t, p, op, killed, false)
	nothingLeft(t, g, before)
	snapshot(t, p, op, sdk.SnapshotRequest{Machine: m.ID})
	if err := g.KillQEMU(ctx); err != nil {
		t.Fatal(err)
	}
	repeated := snapshot(t, p, op, sdk.SnapshotRequest{Machine: m.ID})
	end(t, p, op, repeated, false)
	nothingLeft(t, g, before)

	// Another program's, and another installation's, are left alone.
	other := local(s)
	other.Instance = "somebody else"
	elsewhere := testPlatform(t, other)
	op = newOp()
	foreign := snapshot(t, elsewhere, op, sdk.SnapshotRequest{Machine: m.ID})
	op.Epoch += 5
	if _, err := p.Snapshot(ctx, op, sdk.SnapshotRequest{Machine: m.ID}); !errors.Is(err, sdk.ErrBusy) || sdk.HintOf(err) == "" {
		t.Errorf("beside another installation's snapshot: %v", err)
	}
	report, err := p.Probe(ctx, sdk.Subject{Machine: m.ID})
	if works, reason := report.Works(sdk.AbilitySource); err != nil || works || reason == "" {
		t.Errorf("probe beside another's backup: %+v, %v", report, err)
	}
	end(t, elsewhere, op, foreign, false)
	nothingLeft(t, g, before)
}

// TestMachineWithSnapshots cannot be tracked, and is backed up all the same.
func TestMachineWithSnapshots(t *testing.T) {
	s := testSite(t)
	p := testPlatform(t, local(s))
	ctx := t.Context()
	g := testGuest(t, s, site.Spec{Name: "snapped"})
	m := find(t, p, "snapped")
	if _, err := s.Virsh(ctx, "snapshot-create-as", "snapped", "by-hand"); err != nil {
		t.Fatal(err)
	}
	before := leftovers(t, g)
	op := newOp()
	snap := snapshot(t, p, op, sdk.SnapshotRequest{Machine: m.ID})
	if len(snap.Marks) != 0 {
		t.Errorf("marks: %v", snap.Marks)
	}
	if got := readDisk(t, p, snap, "vda"); len(got) != 128<<20 {
		t.Errorf("%d bytes", len(got))
	}
	end(t, p, op, snap, true)
	report, err := p.Probe(ctx, sdk.Subject{Machine: m.ID})
	if works, reason := report.Works(sdk.AbilityChangeTracker); err != nil || works || !strings.Contains(reason, "snapshots") {
		t.Errorf("probe: %+v, %v", report, err)
	}
	nothingLeft(t, g, before)
}

// TestSilentAgent freezes a guest whose agent is connected and does not answer.
func TestSilentAgent(t *testing.T) {
	s := testSite(t)
	p := testPlatform(t, local(s))
	g := testGuest(t, s, site.Spec{Name: "silent"})
	mustStart(t, g)
	m := find(t, p, "silent")
	waitAgent(t, p, m.ID)
	before := leftovers(t, g)
	console(t, g, "kill -STOP $(cat /run/qemu-ga.pid)")
	// Without its deadline the freeze would last until the call is given up, and there would be no snapshot.
	snap := snapshot(t, p, newOp(), sdk.SnapshotRequest{
		Machine: m.ID, Quiesce: sdk.QuiesceFileSystem, Deadline: 2 * time.Second,
	})
	if snap.Achieved != sdk.QuiesceNone || !strings.Contains(snap.Note, "not frozen") {
		t.Errorf("achieved %s: %q", snap.Achieved, snap.Note)
	}
	console(t, g, "kill -CONT $(cat /run/qemu-ga.pid); sleep 1; echo alive >/data/alive && sync")
	end(t, p, newOp(), snap, false)
	nothingLeft(t, g, before)
}

func TestDrafts(t *testing.T) {
	s := testSite(t)
	p := testPlatform(t, local(s))
	ctx := t.Context()
	pools := func() []string {
		var names []string
		for _, dir := range []string{s.PoolDir(site.Pool), s.PoolDir(site.SecondPool), s.Scratch()} {
			found, err := filepath.Glob(dir + "/*")
			if err != nil {
				t.Fatal(err)
			}
			names = append(names, found...)
		}
		machines, err := s.Virsh(ctx, "list", "--all", "--name")
		if err != nil {
			t.Fatal(err)
		}
		return append(names, strings.Fields(machines)...)
	}
	before := pools()
	request := sdk.DraftSpec{Machine: sdk.Machine{
		Name: "plain", CPUs: 2, MemoryBytes: 256 << 20, Firmware: sdk.FirmwareBIOS,
		Disks: []sdk.Disk{{ID: "scsi0:0", SizeBytes: 8 << 20}, {ID: "scsi0:1", SizeBytes: 4 << 20}},
	}}
	op := newOp()
	op.Space = site.SecondPool + "/acme-"
	d, err := p.CreateDraft(ctx, op, request)
	if err != nil {
		t.Fatal(err)
	}
	for m, err := range p.Machines(ctx) {
		if err != nil || strings.Contains(m.Name, "draft") {
			t.Errorf("the inventory shows %q, %v", m.Name, err)
		}
	}
	first, err := p.OpenDraftDisk(ctx, op, d, "scsi0:0")
	if err != nil {
		t.Fatal(err)
	}
	defer first.Close()
	beside, err := p.OpenDraftDisk(ctx, op, d, "scsi0:1")
	if err != nil {
		t.Fatal(err)
	}
	defer beside.Close()
	if _, err := first.WriteAt([]byte("first"), 0); err != nil {
		t.Fatal(err)
	}
	if _, err := beside.WriteAt([]byte("beside"), 0); err != nil {
		t.Fatal(err)
	}

	// A newer claim, in another process, takes the disk over.
	older := op
	op.Epoch++
	fresh := testPlatform(t, local(s))
	second, err := fresh.OpenDraftDisk(ctx, op, d, "scsi0:0")
	if err != nil {
		t.Fatal(err)
	}
	defer second.Close()
	if _, err := first.WriteAt([]byte("late!"), 0); err == nil {
		t.Error("the earlier writer still writes")
	}
	if _, err := beside.WriteAt([]byte("beside"), 0); err != nil {
		t.Errorf("the writer of another disk was disconnected too: %v", err)
	}
	if _, err := p.OpenDraftDisk(ctx, older, d, "scsi0:0"); !errors.Is(err, sdk.ErrFenced) {
		t.Errorf("the older claim opens it again: %v", err)
	}
	if _, err := p.CommitDraft(ctx, older, d); !errors.Is(err, sdk.ErrFenced) {
		t.Errorf("the older claim commits: %v", err)
	}
	foreign := op
	foreign.Space = "umbrella-"
	if _, err := p.OpenDraftDisk(ctx, foreign, d, "scsi0:0"); !errors.Is(err, sdk.ErrDenied) {
		t.Errorf("another tenant opens it: %v", err)
	}
	if err := errors.Join(second.Zero(0, 1<<20), second.Flush()); err != nil {
		t.Fatal(err)
	}
	id, err := fresh.CommitDraft(ctx, op, d)
	if err != nil {
		t.Fatal(err)
	}
	made := find(t, p, "acme-plain")
	if made.ID != id || made.CPUs != 2 || made.MemoryBytes != 256<<20 || len(made.Disks) != 2 ||
		made.Disks[0].SizeBytes != 8<<20 || made.Disks[1].Pool != site.SecondPool {
		t.Errorf("the machine: %+v", made)
	}
	if err := p.Start(ctx, foreign, id); !errors.Is(err, sdk.ErrDenied) {
		t.Errorf("another tenant starts it: %v", err)
	}
	wrongPool := op
	wrongPool.ID = newOp().ID
	request.Pool = site.Pool
	if _, err := p.CreateDraft(ctx, wrongPool, request); !errors.Is(err, sdk.ErrDenied) {
		t.Errorf("a pool outside the space: %v", err)
	}
	if err := s.Guest("acme-plain").Remove(ctx); err != nil {
		t.Fatal(err)
	}

	// An aborted draft leaves nothing, wherever it had got to.
	request.Pool = ""
	for _, opened := range []bool{false, true} {
		op := newOp()
		d, err := p.CreateDraft(ctx, op, request)
		if err != nil {
			t.Fatal(err)
		}
		if opened {
			w, err := p.OpenDraftDisk(ctx, op, d, "scsi0:0")
			if err != nil {
				t.Fatal(err)
			}
			if _, err := w.WriteAt([]byte("in vain"), 4096); err != nil {
				t.Fatal(err)
			}
			w.Close()
		}
		for range 2 {
			if err := testPlatform(t, local(s)).AbortDraft(ctx, op, d); err != nil {
				t.Error(err)
			}
		}
		if _, err := p.OpenDraftDisk(ctx, op, d, "scsi0:0"); !errors.Is(err, sdk.ErrNotFound) {
			t.Errorf("a disk of an aborted draft: %v", err)
		}
	}
	request.Pool = "nowhere"
	if _, err := p.CreateDraft(ctx, newOp(), request); !errors.Is(err, sdk.ErrInvalid) || !strings.Contains(sdk.HintOf(err), site.Pool) {
		t.Errorf("a pool that does not exist: %v, hint %q", err, sdk.HintOf(err))
	}
	request.Pool = ""
	request.Machine.NICs = []sdk.NIC{{Network: "nowhere"}}
	if _, err := p.CreateDraft(ctx, newOp(), request); !errors.Is(err, sdk.ErrInvalid) || sdk.HintOf(err) == "" {
		t.Errorf("a network that does not exist: %v", err)
	}
	if after := pools(); !slices.Equal(before, after) {
		t.Errorf("left behind: before %q, after %q", before, after)
	}
}

func TestEndpointThatIsAway(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "nobody.sock")
	p := testPlatform(t, Config{URI: "qemu+unix:///system?socket=" + socket})
	report, err := p.Probe(t.Context(), sdk.Subject{})
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range abilities {
		if works, reason := report.Works(a); works || !strings.Contains(reason, socket) {
			t.Errorf("%s: %v, %q", a, works, reason)
		}
	}
	for _, err := range p.Machines(t.Context()) {
		if !errors.Is(err, sdk.ErrUnavailable) {
			t.Errorf("machines: %v", err)
		}
	}
	if _, err := os.Stat(socket); err == nil {
		t.Error("somebody made the socket")
	}
}
