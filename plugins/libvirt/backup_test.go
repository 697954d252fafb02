package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"

	"github.com/holdfast-dr/holdfast/core/backup"
	"github.com/holdfast-dr/holdfast/core/chunk"
	"github.com/holdfast-dr/holdfast/core/mover"
	"github.com/holdfast-dr/holdfast/core/mover/movertest"
	"github.com/holdfast-dr/holdfast/core/point"
	"github.com/holdfast-dr/holdfast/sdk"
	"github.com/holdfast-dr/holdfast/testenv"
	"github.com/holdfast-dr/holdfast/testenv/site"
)

const mib = 1 << 20

// vault keeps the points of one machine.
type vault struct {
	*movertest.Store

	mutex    sync.Mutex // guards what follows
	points   [][]byte
	sessions byte
}

func (v *vault) Last(context.Context, point.MachineID) ([]byte, error) {
	v.mutex.Lock()
	defer v.mutex.Unlock()
	if len(v.points) == 0 {
		return nil, nil
	}
	return v.points[len(v.points)-1], nil
}

func (v *vault) Begin(context.Context, point.MachineID, point.ID, string) (backup.Session, error) {
	v.mutex.Lock()
	defer v.mutex.Unlock()
	v.sessions++
	return &vaultSession{Store: v.Store, vault: v, id: chunk.SessionID{v.sessions}}, nil
}

type vaultSession struct {
	*movertest.Store
	vault *vault
	id    chunk.SessionID
}

func (s *vaultSession) ID() chunk.SessionID               { return s.id }
func (s *vaultSession) DamagedChunks() ([]chunk.ID, bool) { return nil, false }
func (s *vaultSession) Abort(context.Context) error       { return nil }

func (s *vaultSession) Commit(_ context.Context, manifest []byte) error {
	s.vault.mutex.Lock()
	defer s.vault.mutex.Unlock()
	s.vault.points = append(s.vault.points, manifest)
	return nil
}

// protected is a machine with its backups: the real machine, the real copy loop, and a repository in memory.
type protected struct {
	*testing.T
	site   *site.Site
	guest  site.Guest
	vault  *vault
	req    backup.Request
	before []string // at the hypervisor, without backups
	seed   uint64
}

// protect begins with the first, full backup.
func protect(t *testing.T, s *site.Site, p *platform, g site.Guest) *protected {
	t.Helper()
	c := &protected{T: t, site: s, guest: g, vault: &vault{Store: movertest.NewStore()}, before: leftovers(t, g)}
	c.req = backup.Request{
		Platform: p, PlatformName: "libvirt", Endpoint: "site", Source: find(t, p, g.Name).ID, RepositoryID: uuid.NewString(),
		Repository: c.vault, Keys: chunk.NewKeyring(), Machine: point.MachineID(uuid.NewString()), Owner: "test",
		Quiesce: sdk.QuiesceNone,
	}
	c.backup(point.KindFull)
	return c
}

func (c *protected) next() {
	c.req.Op = sdk.Op{ID: uuid.Must(uuid.NewV7()).String(), Epoch: c.req.Op.Epoch + 1}
}

// backup makes a point of the machine, which stands still meanwhile, and looks whether it is what the disks hold, and
// whether nothing but its marks is at the hypervisor after it. kinds are those of the disks, or of all.
func (c *protected) backup(kinds ...point.Kind) backup.Result {
	c.Helper()
	running := c.stop()
	c.next()
	res, err := backup.Run(c.Context(), c.req)
	if err != nil {
		c.Fatalf("back up: %v", err)
	}
	c.req.Remembered, c.req.Held = append([]point.ID{res.Point}, c.req.Remembered...), res.Held
	c.compare(res)
	if running {
		c.virsh("resume", c.guest.Name)
	}
	for i, d := range res.Disks {
		if want := kinds[min(i, len(kinds)-1)]; d.Kind != want {
			c.Errorf("disk %s was read as %s, expected %s; warnings %+v; note %q", d.ID, d.Kind, want, res.Warnings, res.Note)
		}
		if d.Kind == point.KindIncremental && d.ReadBytes > d.SizeBytes*3/4 {
			c.Errorf("an incremental read %d of %d bytes of disk %s", d.ReadBytes, d.SizeBytes, d.ID)
		}
	}
	c.tidy(res)
	return res
}

// stop suspends the guest, after which its images hold what it wrote.
func (c *protected) stop() (running bool) {
	c.Helper()
	state, err := c.guest.State(c.Context())
	if err != nil {
		c.Fatal(err)
	}
	if state == "running" {
		c.virsh("suspend", c.guest.Name)
	}
	return state == "running"
}

func (c *protected) virsh(args ...string) string {
	c.Helper()
	out, err := c.site.Virsh(c.Context(), args...)
	if err != nil {
		c.Fatal(err)
	}
	return out
}

// compare restores the newest point and holds it against the disks.
func (c *protected) compare(res backup.Result) {
	c.Helper()
	m, err := point.Open(c.vault.points[len(c.vault.points)-1], c.req.Keys)
	if err != nil {
		c.Fatal(err)
	}
	dom, _, err := c.req.Platform.(describer).describeID(c.Context(), c.req.Source)
	if err != nil {
		c.Fatal(err)
	}
	for i, d := range m.Private.Disks {
		restored := movertest.NewDisk(m.Public.Disks[i].SizeBytes)
		tree := point.Tree{Geometry: m.Public.Geometry(i), Root: m.Public.Disks[i].Root, Pages: c.vault}
		if _, err := mover.Fetch(c.Context(), tree, mover.Repository{Reader: c.vault, Keys: c.req.Keys}, restored, mover.Options{}); err != nil {
			c.Fatal(err)
		}
		disk, ok := dom.disk(sdk.DiskID(d.ID))
		if !ok {
			c.Fatalf("the point has disk %s and the machine has not", d.ID)
		}
		c.same(d.ID, restored, disk)
	}
	if len(m.Private.Disks) != len(res.Machine.Disks) {
		c.Errorf("the point has %d disks of %d", len(m.Private.Disks), len(res.Machine.Disks))
	}
}

// describer finds a machine's description through whatever wraps the platform.
type describer interface {
	describeID(ctx context.Context, id sdk.MachineID) (domainXML, string, error)
}

func (p *platform) describeID(ctx context.Context, id sdk.MachineID) (domainXML, string, error) {
	dom, err := p.domain(ctx, id)
	if err != nil {
		return domainXML{}, "", err
	}
	return p.describe(ctx, dom, liveXML)
}

func (c *protected) same(id string, restored *movertest.Disk, d diskXML) {
	c.Helper()
	file := d.where()
	if d.Type == "volume" {
		file = filepath.Join(c.site.PoolDir(d.Source.Pool), d.Source.Volume)
	}
	if d.Driver.Type != "raw" {
		image := file
		file = filepath.Join(c.TempDir(), "disk.raw")
		out, err := exec.Command(testenv.Tool(c, "qemu-img"), "convert", "-U", "-f", d.Driver.Type, "-O", "raw", image, file).CombinedOutput()
		if err != nil {
			c.Fatalf("read disk %s: %v: %s", id, err, out)
		}
		defer os.Remove(file)
	}
	real, err := os.Open(file)
	if err != nil {
		c.Fatal(err)
	}
	defer real.Close()
	if size, err := real.Seek(0, io.SeekEnd); err != nil || size != restored.Bytes {
		c.Fatalf("disk %s has %d bytes (%v), its point %d", id, size, err, restored.Bytes)
	}
	a, b := make([]byte, mib), make([]byte, mib)
	for at := int64(0); at < restored.Bytes; at += mib {
		n := min(mib, restored.Bytes-at)
		if _, err := real.ReadAt(a[:n], at); err != nil {
			c.Fatal(err)
		}
		if _, err := restored.ReadAt(b[:n], at); err != nil {
			c.Fatal(err)
		}
		if !bytes.Equal(a[:n], b[:n]) {
			c.Fatalf("disk %s: the point differs from the disk between %d and %d", id, at, at+n)
		}
	}
}

// tidy looks for anything at the hypervisor but what was there before and the marks of the point: a checkpoint, and one
// bitmap for each disk.
func (c *protected) tidy(res backup.Result) {
	c.Helper()
	var others, marks []string
	for _, entry := range leftovers(c.T, c.guest) {
		if strings.Contains(entry, " holdfast-") && !strings.HasPrefix(entry, "file ") {
			marks = append(marks, entry)
		} else {
			others = append(others, entry)
		}
	}
	if diff := cmp.Diff(c.before, others); diff != "" {
		c.Errorf("left behind (-before +now):\n%s", diff)
	}
	var held int
	for _, d := range res.Held {
		if len(d.Mark) > 0 {
			held++
		}
	}
	if want := held + min(held, 1); len(marks) != want {
		c.Errorf("%d marks are held, and at the hypervisor there are %q", held, marks)
	}
}

// forget releases the marks; nothing of ours may be left.
func (c *protected) forget() {
	c.Helper()
	for _, h := range c.req.Held {
		c.next()
		if err := c.req.Platform.(sdk.ChangeTracker).ReleaseMark(c.Context(), c.req.Op, c.req.Source, h.Disk, h.Mark); err != nil {
			c.Error(err)
		}
	}
	nothingLeft(c.T, c.guest, c.before)
	await(c.T, time.Minute, "no guard is left", func() bool { return len(guards(c.T)) == 0 })
}

// write writes noise to a disk of the machine, which runs, as its guest would.
func (c *protected) write(disk sdk.DiskID, off, n int64) {
	c.Helper()
	c.seed++
	data, random := make([]byte, n), rand.New(rand.NewPCG(c.seed, 7))
	for i := 0; i < len(data); i += 8 {
		word := random.Uint64()
		for k := range 8 {
			data[i+k] = byte(word >> (8 * k))
		}
	}
	if err := c.writeAs(disk, off, data); err != nil {
		c.Fatal(err)
	}
}

func (c *protected) writeAs(disk sdk.DiskID, off int64, data []byte) error {
	file := filepath.Join(c.TempDir(), "noise")
	if err := os.WriteFile(file, data, 0o600); err != nil {
		return err
	}
	defer os.Remove(file)
	d, _, err := c.req.Platform.(describer).describeID(c.Context(), c.req.Source)
	if err != nil {
		return err
	}
	known, ok := d.disk(disk)
	if !ok {
		return fmt.Errorf("no disk %s", disk)
	}
	out := c.virsh("qemu-monitor-command", c.guest.Name, "--hmp", fmt.Sprintf(
		`qemu-io -d /machine/peripheral/%s/virtio-backend "write -s %s %d %d"`, known.Alias.Name, file, off, len(data)))
	if strings.Contains(out, "failed") || strings.Contains(out, "rror") {
		return fmt.Errorf("qemu-io: %s", out)
	}
	return nil
}

func (c *protected) warned(res backup.Result, code backup.Code, words string) {
	c.Helper()
	if !slices.ContainsFunc(res.Warnings, func(w backup.Warning) bool { return w.Code == code && strings.Contains(w.Message, words) }) {
		c.Errorf("no warning %s with %q: %+v", code, words, res.Warnings)
	}
}

// edit changes the definition of the machine, which is off. The test ends with the one before.
func (c *protected) edit(change func(text string) string) {
	c.Helper()
	text := c.virsh("dumpxml", "--inactive", "--security-info", c.guest.Name)
	changed := change(text)
	if changed == text {
		c.Fatal("the definition was not changed")
	}
	c.define(changed)
	c.Cleanup(func() {
		if err := c.guest.Destroy(context.Background()); err != nil {
			c.Error(err)
		}
		c.define(text)
	})
}

func (c *protected) define(text string) {
	c.Helper()
	file := filepath.Join(c.site.Dir, "etc", "edited.xml")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		c.Fatal(err)
	}
	if _, err := c.site.Virsh(context.Background(), "define", file); err != nil {
		c.Error(err)
	}
}

// orphan leaves a scratch file, as a crash does that takes libvirtd too; alone, it removes them itself.
func (c *protected) orphan(p *platform, dir, stamp string) {
	c.Helper()
	if err := os.WriteFile(filepath.Join(dir, scratchName(p.filePrefix(c.req.Source), stamp, "vdb")), nil, 0o600); err != nil {
		c.Fatal(err)
	}
}

// image makes an empty image in the first pool.
func (c *protected) image(name, format, size string) string {
	c.Helper()
	file := filepath.Join(c.site.PoolDir(site.Pool), name)
	if out, err := exec.Command(testenv.Tool(c, "qemu-img"), "create", "-q", "-f", format, file, size).CombinedOutput(); err != nil {
		c.Fatalf("%v: %s", err, out)
	}
	c.Cleanup(func() { os.Remove(file) })
	return file
}

// bitmaps are the names in an image file that nobody has open.
func (c *protected) bitmaps(file string) []string {
	c.Helper()
	out, err := exec.Command(testenv.Tool(c, "qemu-img"), "info", "--output=json", file).Output()
	if err != nil {
		c.Fatal(err)
	}
	var info struct {
		Specific struct {
			Data struct{ Bitmaps []struct{ Name string } }
		} `json:"format-specific"`
	}
	if err := json.Unmarshal(out, &info); err != nil {
		c.Fatal(err)
	}
	var names []string
	for _, b := range info.Specific.Data.Bitmaps {
		names = append(names, b.Name)
	}
	return names
}
