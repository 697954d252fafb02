package main

import (
	"context"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/sdk"
	"github.com/holdfast-dr/holdfast/testenv/site"
)

// TestFigures measures what DESIGN.md says about guests under write load. It takes a minute and asserts nothing, so it
// runs where it is asked for: HOLDFAST_LIBVIRT_FIGURES=1 go test -v -run TestFigures ./plugins/libvirt
func TestFigures(t *testing.T) {
	if os.Getenv("HOLDFAST_LIBVIRT_FIGURES") == "" {
		t.Skip("HOLDFAST_LIBVIRT_FIGURES=1 measures")
	}
	s := testSite(t)
	p := testPlatform(t, local(s))
	ctx := t.Context()
	g := testGuest(t, s, site.Spec{Name: "figures"})
	mustStart(t, g)
	m := find(t, p, "figures")
	waitAgent(t, p, m.ID)
	// The guest writes 4 KiB and waits until they are on the disk, to a block of 64 KiB that was not written since the
	// snapshot, and again; the gaps between its writes are what its programs feel.
	console(t, g, "dd if=/dev/zero of=/data/probe bs=1M count=48 2>/dev/null; sync")
	probe := func(what string, during func()) {
		t.Helper()
		console(t, g, `touch /run/probing; (n=0; while [ -e /run/probing ]; do n=$(( (n + 1) % 760 )); `+
			`dd if=/dev/zero of=/data/probe bs=4k count=1 seek=$((n * 16)) conv=notrunc,fsync 2>/dev/null; `+
			`cut -d' ' -f1 /proc/uptime; done >/run/times; rm -f /run/probed) & touch /run/probed`)
		during()
		out := console(t, g, `rm -f /run/probing; while [ -e /run/probed ]; do usleep 10000; done; `+
			`awk 'NR>1 {d=$1-p; s+=d; if (d>m) m=d; n++} {p=$1} END {printf "%d writes, mean %.0f ms, longest %.0f ms", n, 1000*s/n, 1000*m}' /run/times`)
		t.Logf("%-40s %s", what, out)
	}
	const phase = 6 * time.Second
	wait := func() { _ = pause(ctx, phase) }
	open := func(during func(snap sdk.Snapshot)) {
		op := newOp()
		snap := snapshot(t, p, op, sdk.SnapshotRequest{Machine: m.ID})
		during(snap)
		end(t, p, op, snap, false)
	}
	probe("no snapshot", wait)
	open(func(sdk.Snapshot) { probe("snapshot open, nobody reads", wait) })
	open(func(snap sdk.Snapshot) {
		probe("snapshot open, read all the time", func() {
			reading, cancel := context.WithTimeout(ctx, phase)
			defer cancel()
			disk := openDisk(t, p, snap, "vdb")
			defer disk.Close()
			block := make([]byte, 1<<20)
			for off := int64(0); reading.Err() == nil; off = (off + 1<<20) % disk.Size() {
				if _, err := disk.ReadAt(block, off); err != nil {
					t.Fatal(err)
				}
			}
		})
	})
	const freezes = 10
	var took []string
	frozen := time.Now()
	p.whileFrozen = func() { frozen = time.Now() }
	probe(fmt.Sprintf("%d snapshots with a freeze", freezes), func() {
		for range freezes {
			op, began := newOp(), time.Now()
			snap := snapshot(t, p, op, sdk.SnapshotRequest{Machine: m.ID, Quiesce: sdk.QuiesceFileSystem})
			took = append(took, fmt.Sprintf("%d of %d", time.Since(frozen).Milliseconds(), time.Since(began).Milliseconds()))
			if snap.Achieved != sdk.QuiesceFileSystem {
				t.Errorf("%s: %s", snap.Achieved, snap.Note)
			}
			end(t, p, op, snap, false)
		}
	})
	t.Logf("milliseconds from frozen to the answer, of the whole call: %s", strings.Join(took, ", "))
}
