package main

import (
	"bytes"
	"errors"
	"slices"
	"testing"

	"github.com/holdfast-dr/holdfast/sdk"
	"github.com/holdfast-dr/holdfast/testenv/site"
)

func TestBackupChain(t *testing.T) {
	s := testSite(t)
	p := testPlatform(t, local(s))
	spec := site.Spec{Name: "chain", Tags: []string{"gold", "nightly"}}
	if s.System {
		spec.Network = site.Production
	}
	g := testGuest(t, s, spec)
	mustStart(t, g)
	m := find(t, p, "chain")
	if !slices.Equal(m.Tags, spec.Tags) || m.State != sdk.StateRunning || m.CPUs != 1 || m.MemoryBytes != 128<<20 ||
		len(m.Disks) != 2 || m.Disks[1].SizeBytes != 64<<20 || m.Disks[0].Format != "qcow2" || m.Disks[0].Pool != site.Pool ||
		m.Firmware != sdk.FirmwareBIOS || len(m.Native) == 0 {
		t.Errorf("inventory: %+v", m)
	}
	if s.System && (len(m.NICs) != 1 || m.NICs[0].Network != site.Production || m.NICs[0].MAC == "") {
		t.Errorf("interfaces: %+v", m.NICs)
	}
	waitAgent(t, p, m.ID)
	before := leftovers(t, g)
	console(t, g, "counter on")

	first := newOp()
	full := snapshot(t, p, first, sdk.SnapshotRequest{Machine: m.ID, Quiesce: sdk.QuiesceFileSystem})
	if full.Achieved != sdk.QuiesceFileSystem || full.Note != "" || len(full.Marks) != 2 || len(full.Machine.Disks) != 2 {
		t.Errorf("full snapshot: %+v", full)
	}
	console(t, g, "echo thawed >/data/thawed && sync") // would hang on a frozen file system
	images := map[sdk.DiskID][]byte{"vda": readDisk(t, p, full, "vda"), "vdb": readDisk(t, p, full, "vdb")}
	oneMoment(t, images["vda"], images["vdb"])
	for _, err := range p.Changed(t.Context(), full, "vda") {
		if !errors.Is(err, sdk.ErrMarkLost) {
			t.Errorf("changes of a snapshot without a base: %v", err)
		}
	}
	fresh := testPlatform(t, local(s))
	again := snapshot(t, fresh, first, sdk.SnapshotRequest{Machine: m.ID, Quiesce: sdk.QuiesceFileSystem})
	if again.ID != full.ID || !again.Taken.Equal(full.Taken) || again.Achieved != full.Achieved ||
		!bytes.Equal(again.Marks["vdb"], full.Marks["vdb"]) {
		t.Errorf("a repeat by a fresh process: %+v, first %+v", again, full)
	}
	if _, err := p.Snapshot(t.Context(), newOp(), sdk.SnapshotRequest{Machine: m.ID}); !errors.Is(err, sdk.ErrBusy) {
		t.Errorf("a second snapshot: %v", err)
	}
	end(t, fresh, newOp(), full, true)
	end(t, p, newOp(), full, true)

	console(t, g, "counter off; dd if=/dev/urandom of=/data/blob bs=1M count=3; note second state")
	second := snapshot(t, p, newOp(), sdk.SnapshotRequest{Machine: m.ID, Since: full.Marks})
	for id, image := range images {
		read := applyChanges(t, p, second, id, image)
		t.Logf("%s: %d of %d bytes changed", id, read, len(image))
		if id == "vdb" && (read < 3<<20 || read > 12<<20) {
			t.Errorf("%d bytes of vdb changed, 3 MiB and a little were written", read)
		}
		if id == "vda" && (read == 0 || read > 12<<20) {
			t.Errorf("%d bytes of vda changed", read)
		}
		if !bytes.Equal(image, readDisk(t, p, second, id)) {
			t.Errorf("%s: the full with the changes is not the disk", id)
		}
	}
	oneMoment(t, images["vda"], images["vdb"])
	end(t, p, newOp(), second, true)
	release(t, p, full)
	if err := s.RestartDaemon(t.Context()); err != nil {
		t.Fatal(err)
	}

	// Releasing the older mark keeps the younger valid, also over a restart of libvirtd.
	third := snapshot(t, p, newOp(), sdk.SnapshotRequest{Machine: m.ID, Since: second.Marks})
	for id, image := range images {
		if read := applyChanges(t, p, third, id, image); read > 8<<20 { // the guest's file systems have work of their own
			t.Errorf("%s: %d bytes changed while nothing was written", id, read)
		}
		if !bytes.Equal(image, readDisk(t, p, third, id)) {
			t.Errorf("%s: the changes since the second are not complete", id)
		}
	}
	end(t, p, newOp(), third, false)
	release(t, p, second)
	release(t, p, second)
	nothingLeft(t, g, before)
}
