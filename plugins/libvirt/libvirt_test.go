package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"

	"github.com/holdfast-dr/holdfast/sdk"
	"github.com/holdfast-dr/holdfast/sdk/plugin"
	"github.com/holdfast-dr/holdfast/testenv"
	"github.com/holdfast-dr/holdfast/testenv/guest"
	"github.com/holdfast-dr/holdfast/testenv/site"
)

// The tests share one site: it starts with the first that needs it.
var shared struct {
	once sync.Once
	site *site.Site
	err  error
}

// TestMain is four programs: the tests, the guards of the snapshots that they take, and a plugin and an agent that are
// killed.
func TestMain(m *testing.M) {
	switch {
	case len(os.Args) > 1 && os.Args[1] == guardArgument:
		os.Exit(guardMain(os.Args[2:]))
	case os.Getenv("HOLDFAST_PLUGIN") != "":
		plugin.Serve(stoppingAuthor)
	case os.Getenv(doomedAgent) != "":
		os.Exit(runDoomedAgent(os.Getenv(doomedAgent)))
	}
	code := m.Run()
	if shared.site != nil {
		if err := shared.site.Close(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}
	os.Exit(code)
}

func testSite(t testing.TB) *site.Site {
	t.Helper()
	testenv.Need(t, site.Tools...)
	testenv.Need(t, guest.Tools...)
	shared.once.Do(func() {
		shared.site, shared.err = site.Start(context.Background(), site.Options{Remote: os.Geteuid() == 0})
	})
	if shared.err != nil {
		t.Fatal(shared.err)
	}
	return shared.site
}

func local(s *site.Site) Config { return Config{URI: s.URI, ScratchDir: s.Scratch(), Instance: "test"} }

func testPlatform(t *testing.T, c Config) *platform {
	t.Helper()
	p, err := open(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	return p
}

// testGuest defines a guest, which goes away with the test.
func testGuest(t *testing.T, s *site.Site, spec site.Spec) site.Guest {
	t.Helper()
	image, err := guest.Build(t.Context(), guest.Options{Agent: true})
	if err != nil {
		testenv.Lack(t, "%v", err)
	}
	spec.Image = image
	g, err := s.Define(t.Context(), spec)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := g.Remove(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return g
}

func mustStart(t *testing.T, g site.Guest) {
	t.Helper()
	if err := g.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func console(t *testing.T, g site.Guest, command string) string {
	t.Helper()
	out, err := g.Run(t.Context(), command)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func leftovers(t *testing.T, g site.Guest) []string {
	t.Helper()
	list, err := g.Leftovers(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return list
}

// nothingLeft compares what is there now with what was.
func nothingLeft(t *testing.T, g site.Guest, before []string) {
	t.Helper()
	if diff := cmp.Diff(before, leftovers(t, g)); diff != "" {
		t.Errorf("left behind (-before +now):\n%s", diff)
	}
}

func newOp() sdk.Op { return sdk.Op{ID: uuid.Must(uuid.NewV7()).String(), Epoch: 7} }

func find(t *testing.T, p *platform, name string) sdk.Machine {
	t.Helper()
	for m, err := range p.Machines(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		if m.Name == name {
			return m
		}
	}
	t.Fatalf("no machine %s", name)
	return sdk.Machine{}
}

func snapshot(t *testing.T, p *platform, op sdk.Op, req sdk.SnapshotRequest) sdk.Snapshot {
	t.Helper()
	snap, err := p.Snapshot(t.Context(), op, req)
	if err != nil {
		t.Fatal(err)
	}
	return snap
}

func end(t *testing.T, p *platform, op sdk.Op, snap sdk.Snapshot, keep bool) {
	t.Helper()
	if err := p.EndSnapshot(t.Context(), op, snap, keep); err != nil {
		t.Fatal(err)
	}
}

func release(t *testing.T, p *platform, snap sdk.Snapshot) {
	t.Helper()
	for disk, mark := range snap.Marks {
		if err := p.ReleaseMark(t.Context(), newOp(), snap.Machine.ID, disk, mark); err != nil {
			t.Fatal(err)
		}
	}
}

func openDisk(t *testing.T, p *platform, snap sdk.Snapshot, id sdk.DiskID) sdk.BlockReader {
	t.Helper()
	disk, err := p.OpenDisk(t.Context(), snap, id)
	if err != nil {
		t.Fatal(err)
	}
	return disk
}

// readDisk reads a whole disk of a snapshot.
func readDisk(t *testing.T, p *platform, snap sdk.Snapshot, id sdk.DiskID) []byte {
	t.Helper()
	disk := openDisk(t, p, snap, id)
	defer disk.Close()
	image := make([]byte, disk.Size())
	for e, err := range disk.Extents(t.Context(), 0, disk.Size()) {
		if err != nil {
			t.Fatal(err)
		}
		if !e.Zero {
			if _, err := disk.ReadAt(image[e.Offset:e.End()], e.Offset); err != nil {
				t.Fatal(err)
			}
		}
	}
	return image
}

// applyChanges reads the changed extents only and returns how many bytes that were.
func applyChanges(t *testing.T, p *platform, snap sdk.Snapshot, id sdk.DiskID, image []byte) (read int64) {
	t.Helper()
	disk := openDisk(t, p, snap, id)
	defer disk.Close()
	after := int64(0)
	for e, err := range p.Changed(t.Context(), snap, id) {
		if err != nil {
			t.Fatal(err)
		}
		if e.Offset < after || e.Length <= 0 {
			t.Fatalf("extent %+v after offset %d", e, after)
		}
		after = e.End()
		if _, err := disk.ReadAt(image[e.Offset:e.End()], e.Offset); err != nil {
			t.Fatal(err)
		}
		read += e.Length
	}
	return read
}

// oneMoment checks that the disks show the counter as it was at one moment.
func oneMoment(t *testing.T, first, second []byte) {
	t.Helper()
	a, err := guest.Sequence(bytes.NewReader(first))
	if err != nil {
		t.Fatal(err)
	}
	b, err := guest.Sequence(bytes.NewReader(second))
	if err != nil {
		t.Fatal(err)
	}
	if a != b && a != b+1 {
		t.Errorf("vda shows %d and vdb %d: not one moment", a, b)
	}
	if a == 0 {
		t.Error("the counter never ran")
	}
}

// waitAgent waits until libvirt has heard the guest agent.
func waitAgent(t *testing.T, p *platform, id sdk.MachineID) {
	t.Helper()
	deadline := time.Now().Add(60 * time.Second)
	for {
		report, err := p.Probe(t.Context(), sdk.Subject{Machine: id})
		if err != nil {
			t.Fatal(err)
		}
		if _, reason := report.Works(sdk.AbilitySource); !strings.Contains(reason, "agent") {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal("the guest agent does not answer")
		}
		_ = pause(t.Context(), 100*time.Millisecond)
	}
}
