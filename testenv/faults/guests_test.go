package faults

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/holdfast-dr/holdfast/sdk"
	"github.com/holdfast-dr/holdfast/testenv"
	"github.com/holdfast-dr/holdfast/testenv/guest"
	"github.com/holdfast-dr/holdfast/testenv/site"
	"github.com/holdfast-dr/holdfast/testenv/stack"
)

// guests is a world whose hypervisor is a real one, with a guest that stands
// still while it is backed up, so that what a point has to hold is known to the
// byte.
type guests struct {
	*world
	site   *site.Site
	guest  site.Guest
	m      *machine
	before []string // what was at the hypervisor besides our marks
}

func newGuests(t *testing.T) *guests {
	t.Helper()
	testenv.Need(t, site.Tools...)
	ctx := t.Context()
	s, err := site.Start(ctx, site.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	image, err := guest.Build(ctx, guest.Options{})
	if err != nil {
		t.Fatal(err)
	}
	one, err := s.Define(ctx, site.Spec{Name: "web", Image: image})
	if err != nil {
		t.Fatal(err)
	}
	w := &guests{world: newProvider(t, stack.Options{ServerFlags: []string{"--readers", "2s", "--collect", "0"}}), site: s, guest: one}
	w.must(one.Start(ctx))
	w.m = &machine{Machine: sdk.Machine{Name: "web", Disks: []sdk.Disk{{ID: "vda"}, {ID: "vdb"}}}}
	w.machines = []*machine{w.m}
	w.before, err = one.Leftovers(ctx)
	w.must(err)
	w.do("plugin", "enable", "libvirt")
	w.do("endpoint", "add", "host", "--plugin", "libvirt", "--set", "uri="+s.URI, "--set", "scratch_dir="+s.Scratch())
	w.do("job", "create", "web", "--endpoint", "host", "--repository", "backups", "--machine", "web", "--quiesce", "none")
	w.changeGuest()
	w.backup(w.m)
	return w
}

// changeGuest has the guest write, stops it, and reads what its disks hold.
func (w *guests) changeGuest() {
	w.t.Helper()
	ctx := w.t.Context()
	state, err := w.guest.State(ctx)
	w.must(err)
	switch state {
	case "paused":
		_, err = w.site.Virsh(ctx, "resume", "web")
		w.must(err)
	case "shut off":
		w.must(w.guest.Start(ctx))
	}
	out, err := w.guest.Run(ctx, "dd if=/dev/urandom of=/data/blob bs=64k count=20 2>/dev/null; sync")
	if err != nil {
		w.fatalf("write in the guest: %s %v", out, err)
	}
	_, err = w.site.Virsh(ctx, "suspend", "web")
	w.must(err)
	w.m.hashes = w.guestHashes(w.guest)
}

// guestHashes reads a guest's disks as they are in its images. A guest that
// stands still has written everything there.
func (w *guests) guestHashes(g site.Guest) []string {
	w.t.Helper()
	disks, err := g.Disks(w.t.Context())
	w.must(err)
	var all []string
	for _, disk := range disks {
		raw := filepath.Join(w.dir, "image.raw")
		out, err := exec.CommandContext(w.t.Context(), testenv.Tool(w.t, "qemu-img"), "convert", "--force-share", "-O", "raw", disk, raw).CombinedOutput()
		if err != nil {
			w.fatalf("read %s: %v\n%s", disk, err, out)
		}
		all = append(all, w.hashFile(raw))
		w.must(os.Remove(raw))
	}
	return all
}

// strike begins an operation, kills at a moment, and revives.
func (w *guests) strike(kill func(), revive func(), root, match string, nth int, begin func() run) run {
	w.t.Helper()
	seen := watchChanges(w.t, nth, match, root)
	defer seen.close()
	started := begin()
	ended, give := w.watch(started.ID)
	hit := "before its end"
	select {
	case <-seen.seen:
	case <-ended:
		hit = "after its end"
	}
	w.note("kill, %s", hit)
	kill()
	revive()
	w.note("revived")
	give()
	done := w.wait(started.ID)
	w.note("ended as %s", describe(done))
	w.hits[hit]++
	return done
}

// checkGuests is checkRound for a real hypervisor.
func (w *guests) checkGuests() {
	w.t.Helper()
	after, err := w.guest.Leftovers(w.t.Context())
	w.must(err)
	var marks, others []string
	for _, entry := range after {
		if (strings.HasPrefix(entry, "checkpoint ") || strings.HasPrefix(entry, "bitmap ")) && strings.Contains(entry, "holdfast-") {
			marks = append(marks, entry)
		} else {
			others = append(others, entry)
		}
	}
	if !slices.Equal(others, w.before) || len(marks) != 3 {
		w.errorf("left at the hypervisor: %v besides the marks %v; before: %v", others, marks, w.before)
	}
	w.checkPoints()
	w.checkBooks()
	w.checkSound()
	newest := w.newest()
	w.verifyPoint(newest)
	for disk := range w.points[newest].disks {
		w.checkDisk(newest, disk)
	}
}

// Every process is killed at the moments of a backup and of a restore that
// matter, with a real guest.
func TestRealGuests(t *testing.T) {
	w := newGuests(t)
	ctx := t.Context()
	kills := map[victim]func(){
		"QEMU": func() { w.must(w.guest.KillQEMU(ctx)) },
	}
	for _, v := range []victim{victimServer, victimAgent, victimPlugin} {
		kills[v] = func() { w.kill(v) }
	}
	spool, match := w.where(placeSpool)
	points, _ := w.where(placePoints)
	for _, v := range []victim{victimServer, victimAgent, victimPlugin, "QEMU"} {
		for _, moment := range []struct {
			name, root, match string
			nth               int
		}{
			{"the snapshot", w.site.Scratch(), "", 1},
			{"the copy", spool, match, 6},
			{"the commit", points, "/points/", 1},
		} {
			w.log = []string{"kill the " + string(v) + " at " + moment.name + " of a backup"}
			if v == victimPlugin {
				w.must(w.agent("POST", "/v1/site/plugins/libvirt/reload", map[string]any{}, nil))
			}
			w.changeGuest()
			done := w.strike(kills[v], func() { w.revive(v) }, moment.root, moment.match, moment.nth, func() run {
				r, err := w.start("/v1/site/jobs/web/runs", nil)
				w.must(err)
				return r
			})
			if !done.good() && v != victimPlugin && v != "QEMU" {
				w.errorf("the run did not survive: %s", describe(done))
			}
			w.enter(w.m, done)
			if !done.good() || v == "QEMU" {
				w.changeGuest()
				w.backup(w.m)
			}
			w.checkGuests()
			if t.Failed() {
				return
			}
		}
	}
	pool := w.site.PoolDir(site.Pool)
	for _, v := range []victim{victimServer, victimAgent, victimPlugin} {
		for _, nth := range []int{1, 8, 40} {
			w.log = []string{"kill the " + string(v) + " in a restore"}
			if v == victimPlugin {
				w.must(w.agent("POST", "/v1/site/plugins/libvirt/reload", map[string]any{}, nil))
			}
			w.restoreGuest(kills[v], func() { w.revive(v) }, pool, nth, v)
			w.checkGuests()
			if t.Failed() {
				return
			}
		}
	}
	w.log = []string{"at the end"}
	w.checkAll()
	t.Logf("kills: %v", w.hits)
}

func (w *guests) restoreGuest(kill, revive func(), pool string, nth int, v victim) {
	w.t.Helper()
	ctx := w.t.Context()
	all := w.allPoints()
	id := all[nth%len(all)]
	restore := func() run {
		r, err := w.start("/v1/site/restores/machine", map[string]any{"point": id, "endpoint": "host", "name": "risen"})
		w.must(err)
		return r
	}
	done := w.strike(kill, revive, pool, "", nth, restore)
	if !done.good() {
		if v != victimPlugin {
			w.errorf("the run did not survive: %s", describe(done))
		}
		r := restore()
		if done = w.wait(r.ID); !done.good() {
			w.fatalf("the next restore: %s", describe(done))
		}
	}
	risen := w.site.Guest("risen")
	for i, got := range w.guestHashes(risen) {
		if want := w.points[id].hashes[i]; got != want {
			w.errorf("machine restored from %s: disk %d is %s, was %s", id, i, got, want)
		}
	}
	w.must(risen.Remove(ctx))
	_, err := w.site.Virsh(ctx, "pool-refresh", site.Pool)
	w.must(err)
}
