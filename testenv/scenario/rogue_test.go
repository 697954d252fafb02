package scenario

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"hash/crc32"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/core/chunk"
	"github.com/holdfast-dr/holdfast/core/repository"
	"github.com/holdfast-dr/holdfast/sdk"
	"github.com/holdfast-dr/holdfast/testenv/stack"
)

// rogue is a provider who changes what he keeps. He has everything but the
// tenant's keys, and makes every checksum right.
type rogue struct {
	*lab
	m sdk.Machine
}

func (r *rogue) stop() {
	r.t.Helper()
	r.must(r.Server.Stop(20 * time.Second))
}

// begin is a part of the test, after which the provider is not running.
func (r *rogue) begin(t *testing.T) {
	was := r.t
	r.lab.t = t
	t.Cleanup(func() {
		r.stop()
		r.lab.t = was
	})
}

// lie starts the provider over what was changed. The index is a cache; without
// it the server believes what it finds in the store.
func (r *rogue) lie() {
	r.t.Helper()
	r.must(os.RemoveAll(filepath.Join(r.ServerData(), "index")))
	r.must(r.StartServer(r.t.Context()))
}

// keep copies everything that the provider has; put puts such a copy back.
func (r *rogue) keep() (copied string) {
	r.t.Helper()
	copied = filepath.Join(r.t.TempDir(), "kept")
	r.must(os.CopyFS(copied, os.DirFS(r.ServerData())))
	return copied
}

func (r *rogue) put(copied string) {
	r.t.Helper()
	r.must(os.RemoveAll(r.ServerData()))
	r.must(os.CopyFS(r.ServerData(), os.DirFS(copied)))
	for _, secret := range []string{"master.key", "admin.token"} { // CopyFS forgets who may read
		if err := os.Chmod(filepath.Join(r.ServerData(), secret), 0o600); err != nil && !os.IsNotExist(err) {
			r.t.Fatal(err)
		}
	}
	r.must(os.Chmod(r.ServerData(), 0o700))
}

// each changes all objects of a folder of the store.
func (r *rogue) each(folder string, change func(b []byte) []byte) {
	r.t.Helper()
	n := 0
	r.must(filepath.WalkDir(r.Repository(), func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() || !strings.Contains(path, "/"+folder+"/") {
			return err
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		n++
		_ = os.Chmod(path, 0o600)
		return os.WriteFile(path, change(b), 0o600)
	}))
	if n == 0 {
		r.t.Fatalf("there is nothing in %s", folder)
	}
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// rotate gives every record of a pack the body of another one of the same
// length, under its own id.
func (r *rogue) rotate(pack []byte) []byte {
	r.t.Helper()
	_, entries, need, err := repository.ParseFooter(pack, int64(len(pack)))
	if err != nil || need != 0 {
		r.t.Fatalf("footer: %v", err)
	}
	was := bytes.Clone(pack)
	last := map[uint32]int{} // length → the last entry of it
	for i, e := range entries {
		last[e.Length] = i
	}
	const entrySize, trailerSize = 72, 40
	footer := len(pack) - trailerSize - len(entries)*entrySize
	for i, e := range entries {
		from := entries[last[e.Length]]
		last[e.Length] = i
		record := pack[e.Offset : e.Offset+int64(e.Length)]
		copy(record[chunk.HeaderSize:], was[from.Offset+chunk.HeaderSize:from.Offset+int64(from.Length)])
		sum := crc32.Update(crc32.Update(0, castagnoli, record[:20]), castagnoli, record[24:])
		binary.LittleEndian.PutUint32(record[20:], sum)
		binary.LittleEndian.PutUint32(pack[footer+i*entrySize+44:], sum)
	}
	trailer := pack[len(pack)-trailerSize:]
	binary.LittleEndian.PutUint32(trailer[12:], crc32.Checksum(pack[footer:len(pack)-trailerSize], castagnoli))
	binary.LittleEndian.PutUint32(trailer[32:], crc32.Checksum(trailer[:32], castagnoli))
	return pack
}

// swapDisks lets a point's disks change places.
func (r *rogue) swapDisks(manifest []byte) []byte {
	r.t.Helper()
	return r.forge(manifest, func(public map[string]any) {
		disks := public["disks"].([]any)
		disks[0], disks[1] = disks[1], disks[0]
	})
}

// swapPoints lets two points change places: what is shown under the name of each
// is the other one, and says of itself that it is the right one.
func (r *rogue) swapPoints() {
	r.t.Helper()
	names, err := filepath.Glob(filepath.Join(r.Repository(), "*", "points", "*", "*"))
	r.must(err)
	if len(names) != 2 {
		r.t.Fatalf("there are %d manifests, want two", len(names))
	}
	var manifests [2][]byte
	var said [2]map[string]any
	for i, name := range names {
		manifests[i], err = os.ReadFile(name)
		r.must(err)
		r.forge(manifests[i], func(public map[string]any) { said[i] = maps.Clone(public) })
	}
	for i, name := range names {
		forged := r.forge(manifests[1-i], func(public map[string]any) {
			for _, member := range []string{"point", "previous", "session", "taken", "kind"} {
				public[member] = said[i][member]
				if public[member] == nil {
					delete(public, member)
				}
			}
		})
		r.must(os.Chmod(name, 0o600))
		r.must(os.WriteFile(name, forged, 0o600))
	}
}

// forge changes what a manifest says publicly, and makes its checksum right.
func (r *rogue) forge(manifest []byte, change func(public map[string]any)) []byte {
	r.t.Helper()
	n := binary.LittleEndian.Uint32(manifest[8:])
	var public map[string]any
	r.must(json.Unmarshal(manifest[16:16+n], &public))
	change(public)
	text, err := json.Marshal(public)
	r.must(err)
	out := bytes.Clone(manifest[:16])
	binary.LittleEndian.PutUint32(out[8:], uint32(len(text)))
	out = append(append(out, text...), manifest[16+n:len(manifest)-4]...)
	return binary.LittleEndian.AppendUint32(out, crc32.Checksum(out, castagnoli))
}

// refuses wants a restore that fails and writes nothing that anybody could take
// for the disk.
func (r *rogue) refuses(point, want string) {
	r.t.Helper()
	path := filepath.Join(r.t.TempDir(), "disk.raw")
	out, err := r.Run(r.t.Context(), "restore", "disk", point, "--disk", string(r.m.Disks[0].ID), "--to", path, "--format", "raw", "--wait")
	if err == nil || !strings.Contains(out+err.Error(), want) {
		r.t.Errorf("restore of %s: %q, %v; want a refusal with %q", point, out, err, want)
	}
	if _, err := os.Stat(path); !os.IsNotExist(err) {
		r.t.Errorf("a file is left: %v", err)
	}
}

// warns wants a backup that succeeds and whose report says what is wrong, and
// the same in the agent's log, as an alert.
func (r *rogue) warns(want string) (point string) {
	r.t.Helper()
	var report run
	r.must(r.JSON(r.t.Context(), &report, "job", "run", "nightly", "--wait"))
	if report.State != "warned" || len(report.Machines) != 1 || report.Machines[0].Point == "" {
		r.t.Fatalf("the next backup: %+v, want one that made a point and warns", report)
	}
	if said := strings.Join(report.Machines[0].Warnings, "\n"); !strings.Contains(said, want) {
		r.t.Errorf("the report of the next backup says %q, want %q", said, want)
	}
	if log := r.Agent.Output(); !strings.Contains(log, "alert:") {
		r.t.Errorf("the agent's log has no alert")
	}
	return report.Machines[0].Point
}

// sound wants a point that restores as the machine is, whatever is wrong with
// those before it.
func (r *rogue) sound(point string) {
	r.t.Helper()
	var disks []string
	for i := range r.m.Disks {
		disks = append(disks, hashFile(r.t, r.restoreDisk(point, string(r.m.Disks[i].ID), "raw")))
	}
	equal(r.t, "restored from the point after the alert", disks, r.lab.hashes(r.m.ID))
}

// A provider who swaps blocks, pages, disks or points, hides the newest point or goes back to
// an older state is found by whoever restores, and by the next backup, which
// says so.
func TestRogueProviderIsFound(t *testing.T) {
	r := &rogue{lab: newLab(t, stack.Options{})}
	r.m = r.machine("web", 16*mib, 16*mib)
	r.noise(r.m, 0, 0, 8*mib, 1)
	r.noise(r.m, 1, 0, 8*mib, 2)
	r.do("job", "create", "nightly", "--endpoint", "lab", "--machine", "web")
	first := r.backup("nightly").Machines[0].Point
	r.stop()
	old := r.keep()
	r.must(r.StartServer(t.Context()))
	r.noise(r.m, 0, 4*mib, mib, 3)
	second := r.backup("nightly").Machines[0].Point
	r.stop()
	newest := r.keep()

	t.Run("blocks are swapped", func(t *testing.T) {
		r.begin(t)
		r.each("packs", r.rotate)
		r.lie()
		r.refuses(first, "seal is broken")
		r.refuses(second, "seal is broken")
		r.warns("not what they should be")
	})
	t.Run("map pages are swapped", func(t *testing.T) {
		r.begin(t)
		r.put(newest)
		r.each("maps", r.rotate)
		r.lie()
		r.refuses(first, "damaged")
		r.sound(r.warns("the map of the last point cannot be read"))
	})
	t.Run("points change places", func(t *testing.T) {
		r.begin(t)
		r.put(newest)
		r.swapPoints()
		r.lie()
		r.refuses(first, "not authenticated")
		r.refuses(second, "not authenticated")
		r.sound(r.warns("not authenticated"))
	})
	t.Run("disks change places", func(t *testing.T) {
		r.begin(t)
		r.put(newest)
		r.each("points", r.swapDisks)
		r.lie()
		r.refuses(second, "not authenticated")
		r.sound(r.warns("not authenticated"))
	})
	t.Run("an older state comes back", func(t *testing.T) {
		r.begin(t)
		r.put(old)
		r.lie()
		r.refuses(second, "")
		r.sound(r.warns("was committed after it"))
	})
}
