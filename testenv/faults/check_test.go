package faults

import (
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// usage is the provider's account of a cloud repository's bytes.
type usage struct {
	Live           int64 `json:"live_bytes"`
	Pending        int64 `json:"pending_bytes"`
	Bin            int64 `json:"bin_bytes"`
	Waste          int64 `json:"waste_bytes"`
	Overhead       int64 `json:"overhead_bytes"`
	Total          int64 `json:"total_bytes"`
	Spooled        int64 `json:"spooled_bytes"`
	Packs          int64
	Records        int64
	Charged        int64 `json:"charged_bytes"`
	ChargedPending int64 `json:"charged_pending_bytes"`
	Balanced       bool
	Busy           bool
}

// stored are the bytes of records that are stored, whoever needs them.
func (u usage) stored() int64 { return u.Live + u.Pending + u.Bin + u.Waste + u.Spooled }

// checkRound is what has to be true after every round.
func (w *world) checkRound(r *rand.Rand) {
	w.t.Helper()
	w.checkPoints()
	w.checkBooks()
	w.checkSound()
	w.checkHypervisor()
	w.checkLeftovers()
	newest := w.newest()
	w.verifyPoint(newest)
	var all []string
	for i, m := range w.machines {
		if i != largeMachine || r.IntN(8) == 0 { // the large one takes its time
			all = append(all, w.pointsOf(m.Name)...)
		}
	}
	one := all[r.IntN(len(all))]
	if one != newest {
		w.verifyPoint(one)
	}
	disk := r.IntN(len(w.points[one].disks))
	w.checkDisk(one, disk)
}

// checkAll restores every disk of every point.
func (w *world) checkAll() {
	w.t.Helper()
	for _, id := range w.allPoints() {
		w.verifyPoint(id)
		for disk := range w.points[id].disks {
			w.checkDisk(id, disk)
		}
	}
	w.checkPoints()
	w.checkBooks()
	w.checkSound()
	if out, err := w.Provider(w.t.Context(), "audit", "verify"); err != nil {
		w.errorf("audit verify: %s %v", out, err)
	}
}

func (w *world) checkDisk(id string, disk int) {
	w.t.Helper()
	c := w.points[id]
	if got := w.restoreDisk(id, c.disks[disk].ID); got != c.hashes[disk] {
		w.errorf("point %s of %s: disk %s is %s, was %s", id, c.machine, c.disks[disk].ID, got, c.hashes[disk])
	}
}

func (w *world) newest() string { all := w.allPoints(); return all[len(all)-1] }

// checkPoints compares the points that both sides show with the model: none is
// lost, and none is there that no run made.
func (w *world) checkPoints() {
	w.t.Helper()
	want := slices.Sorted(maps.Keys(w.points))
	var listed []struct{ ID, Machine, Problem string }
	w.must(w.agent("GET", "/v1/site/points", nil, &listed))
	var got []string
	for _, p := range listed {
		got = append(got, p.ID)
		if p.Problem != "" {
			w.errorf("point %s of %s has a problem: %s", p.ID, p.Machine, p.Problem)
		}
	}
	slices.Sort(got)
	if !slices.Equal(got, want) {
		w.errorf("points shown by the agent:\n\t%s\nwant:\n\t%s", strings.Join(got, "\n\t"), strings.Join(want, "\n\t"))
	}
	var page struct{ Items []struct{ ID string } }
	w.must(w.server("GET", w.cloudPath()+"/points?limit=999", nil, &page))
	got = nil
	for _, p := range page.Items {
		got = append(got, p.ID)
	}
	slices.Sort(got)
	if !slices.Equal(got, want) {
		w.errorf("points shown by the provider:\n\t%s\nwant:\n\t%s", strings.Join(got, "\n\t"), strings.Join(want, "\n\t"))
	}
}

func (w *world) usage() usage {
	w.t.Helper()
	var u usage
	if r := w.serverRun("account", &u); r.State != "succeeded" || !u.Balanced || u.Busy {
		w.errorf("the account of the repository ended as %s: %+v: %s", r.State, r.Failure, r.Result)
	}
	return u
}

// What surrounds records, by FORMAT.md: each pack has a header and a trailer,
// each record an entry in the footer.
const (
	aroundPack   = 32 + 40
	aroundRecord = 72
)

// checkBooks wants every byte on the disk accounted for, and charged as what it
// is. The disk is counted here, file by file.
func (w *world) checkBooks() {
	w.t.Helper()
	u := w.usage()
	own := filepath.Join(w.Repository(), w.cloud)
	onDisk, beside := w.bytesBelow(own), w.bytesBelow(w.Repository())-w.bytesBelow(own)
	if sum := u.Live + u.Pending + u.Bin + u.Waste + u.Overhead; sum != onDisk || u.Total != onDisk {
		w.errorf("%d bytes are on the disk; the parts of %+v add up to %d", onDisk, u, sum)
	}
	other := onDisk - w.bytesBelow(filepath.Join(own, "packs")) - w.bytesBelow(filepath.Join(own, "maps"))
	if want := other + u.Packs*aroundPack + u.Records*aroundRecord; u.Overhead != want {
		w.errorf("the overhead is said to be %d bytes, around %d records in %d packs and in other objects are %d", u.Overhead, u.Records, u.Packs, want)
	}
	if u.Live != u.Charged || u.Pending != u.ChargedPending {
		w.errorf("what is charged is not what is there: %+v", u)
	}
	if beside != 0 {
		w.errorf("%d bytes lie beside the cloud repository", beside)
	}
	// A session whose answer was lost with its server stays until it was idle for
	// long: a small file that says what it is, and no records.
	if n := w.spooled(); n > 0 && u.Spooled == 0 {
		w.errorf("%d files with records are in the spool of no session", n)
	}
}

// spooled counts the files with records in the server's spool.
func (w *world) spooled() (n int) {
	w.t.Helper()
	w.must(filepath.WalkDir(filepath.Join(w.ServerData(), "spool"), func(path string, d fs.DirEntry, err error) error {
		if err != nil || !slices.Contains([]string{".data", ".map"}, filepath.Ext(path)) {
			return err
		}
		info, err := d.Info()
		if err == nil && info.Size() > aroundPack { // more than a header
			n++
		}
		return err
	}))
	return n
}

func (w *world) bytesBelow(root string) (sum int64) {
	w.t.Helper()
	w.must(filepath.WalkDir(root, func(_ string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		info, err := d.Info()
		if err == nil {
			sum += info.Size()
		}
		return err
	}))
	return sum
}

// checkSound has the provider read everything, without keys.
func (w *world) checkSound() {
	w.t.Helper()
	var v struct{ Sound bool }
	if r := w.serverRun("verify", &v); r.State != "succeeded" || !v.Sound {
		w.errorf("the repository's verification ended as %s: %+v: %s", r.State, r.Failure, r.Result)
	}
}

// verifyPoint has the agent fetch, open and hash every chunk of a point.
func (w *world) verifyPoint(id string) {
	w.t.Helper()
	r, err := w.start("/v1/site/points/"+id+"/verify", nil)
	w.must(err)
	if r = w.wait(r.ID); r.State != "succeeded" {
		w.errorf("verification of point %s: %s", id, describe(r))
	}
}

// checkHypervisor wants nothing there but the machines and, of each disk, the
// mark on which the next run builds.
func (w *world) checkHypervisor() {
	w.t.Helper()
	objects, err := w.hv.Objects()
	w.must(err)
	marks := map[string]int{}
	machines, images, disks := 0, 0, 0
	for _, m := range w.machines {
		disks += len(m.Disks)
	}
	for _, o := range objects {
		kind, rest, _ := strings.Cut(o, " ")
		switch kind {
		case "machine":
			machines++
		case "mark":
			_, disk, _ := strings.Cut(rest, " ")
			if marks[disk]++; marks[disk] > 1 {
				w.errorf("%d marks %s", marks[disk], disk)
			}
		case "file":
			switch {
			case !strings.HasPrefix(rest, "disk-"):
				w.errorf("left at the hypervisor: %s", o)
			case strings.HasSuffix(rest, ".img"):
				images++
			}
		default:
			w.errorf("left at the hypervisor: %s", o)
		}
	}
	if machines != len(w.machines) || images != disks {
		w.errorf("%d machines and %d images are at the hypervisor, want %d and %d: %v", machines, images, len(w.machines), disks, objects)
	}
}

// checkLeftovers wants no trace of restores where they write.
func (w *world) checkLeftovers() {
	w.t.Helper()
	entries, err := os.ReadDir(w.dir)
	w.must(err)
	for _, e := range entries {
		if name := e.Name(); name != "s" && name != "hypervisor" && name != "kit.txt" && !e.IsDir() {
			w.errorf("left beside restored files: %s", name)
		}
	}
}
