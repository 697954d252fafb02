package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/holdfast-dr/holdfast/sdk"
	"github.com/holdfast-dr/holdfast/sdk/conformance"
	"github.com/holdfast-dr/holdfast/sdk/plugin"
	"github.com/holdfast-dr/holdfast/testenv"
	"github.com/holdfast-dr/holdfast/testenv/site"
)

// blank is a machine without an operating system: its firmware finds nothing to boot, and the fixture does the writing.
const blank = `<domain type='%s'>
  <name>conformance</name>
  <memory unit='MiB'>64</memory>
  <vcpu>1</vcpu>
  <os><type arch='x86_64' machine='pc'>hvm</type></os>
  <devices>
    <disk type='file' device='disk'>
      <driver name='qemu' type='qcow2'/><source file='%s'/><target dev='vda' bus='virtio'/>
    </disk>
    <disk type='file' device='disk'>
      <driver name='qemu' type='qcow2'/><source file='%s'/><target dev='vdb' bus='virtio'/>
    </disk>
    <disk type='file' device='cdrom'><target dev='sda' bus='sata'/></disk>
    <memballoon model='none'/>
  </devices>
</domain>`

// blankGuest defines such a machine and starts it.
func blankGuest(t *testing.T, s *site.Site) site.Guest {
	t.Helper()
	var disks []any
	for _, size := range []string{"8M", "4M"} {
		disk := filepath.Join(s.PoolDir(site.Pool), "conformance-"+size+".qcow2")
		if out, err := exec.Command(testenv.Tool(t, "qemu-img"), "create", "-f", "qcow2", disk, size).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		disks = append(disks, disk)
	}
	file := filepath.Join(t.TempDir(), "domain.xml")
	if err := os.WriteFile(file, fmt.Appendf(nil, blank, append([]any{s.DomainType()}, disks...)...), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, command := range [][]string{{"define", file}, {"pool-refresh", site.Pool}, {"start", "conformance"}} {
		if _, err := s.Virsh(t.Context(), command...); err != nil {
			t.Fatal(err)
		}
	}
	g := s.Guest("conformance")
	t.Cleanup(func() {
		if err := g.Remove(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return g
}

// TestConformance runs the program that operators install, a fresh process for each platform that has to be fresh.
func TestConformance(t *testing.T) {
	s := testSite(t)
	g := blankGuest(t, s)
	path := filepath.Join(t.TempDir(), "holdfast-plugin-libvirt")
	if out, err := exec.Command("go", "build", "-o", path, ".").CombinedOutput(); err != nil {
		t.Fatalf("build the plugin: %v\n%s", err, out)
	}
	sum, err := plugin.Checksum(path)
	if err != nil {
		t.Fatal(err)
	}
	settings, err := json.Marshal(local(s))
	if err != nil {
		t.Fatal(err)
	}
	wire := new(conformance.Wire)
	start := func() (conformance.Process, error) {
		process, err := plugin.Start(context.Background(), plugin.Launch{Path: path, SHA256: sum, Settings: settings, WrapData: wire.Wrap})
		if err != nil {
			return conformance.Process{}, err
		}
		t.Cleanup(func() { process.Close() })
		return conformance.Control(process), nil
	}
	p, err := start()
	if err != nil {
		t.Fatal(err)
	}
	conformance.Run(t, func(t *testing.T) conformance.Fixture {
		f := conformanceFixture(t, s, g, p.Platform, func() (sdk.Platform, error) {
			p, err := start()
			return p.Platform, err
		})
		f.Process, f.Wire = start, wire
		return f
	})
}

func conformanceFixture(t *testing.T, s *site.Site, g site.Guest, p sdk.Platform, fresh func() (sdk.Platform, error)) conformance.Fixture {
	t.Helper()
	ctx := context.Background()
	// virsh knows machines by their ids, too, and those have no odd names.
	byID := func(id sdk.MachineID) site.Guest { return s.Guest(string(id)) }
	id, err := s.Virsh(ctx, "domuuid", g.Name)
	if err != nil {
		t.Fatal(err)
	}
	f := conformance.Fixture{
		Platform: p, Fresh: fresh, Machine: sdk.MachineID(id), Epoch: 100,
		// The tenant's spaces; the machine itself lies in the first.
		Space: "con", Foreign: "umbrella-",
		Write: func(disk sdk.DiskID, off int64, data []byte) error { return writeAsGuest(t, s, g, disk, off, data) },
		Read: func(id sdk.MachineID, disk sdk.DiskID, off int64, data []byte) error {
			return readOff(t, s, id, disk, off, data)
		},
		Remove:  func(id sdk.MachineID) error { return byID(id).Remove(ctx) },
		Objects: func() ([]string, error) { return g.Leftovers(ctx) },
		Draft:   sdk.DraftSpec{Machine: sdk.Machine{Name: "restored", CPUs: 2, MemoryBytes: 64 << 20}},
	}
	if s.System {
		f.Draft.Machine.NICs = []sdk.NIC{{MAC: "52:54:00:aa:bb:cc", Network: site.Production, Model: "virtio"}}
	}
	return f
}

// writeAsGuest writes through the device's own back-end in QEMU, as the guest's requests do.
func writeAsGuest(t *testing.T, s *site.Site, g site.Guest, disk sdk.DiskID, off int64, data []byte) error {
	file, err := os.CreateTemp(t.TempDir(), "write-")
	if err != nil {
		return err
	}
	defer os.Remove(file.Name())
	if _, err := file.Write(data); err != nil {
		return err
	}
	if err := file.Close(); err != nil {
		return err
	}
	device := map[sdk.DiskID]int{"vda": 0, "vdb": 1}[disk]
	out, err := s.Virsh(context.Background(), "qemu-monitor-command", g.Name, "--hmp", fmt.Sprintf(
		`qemu-io -d /machine/peripheral/virtio-disk%d/virtio-backend "write -s %s %d %d"`, device, file.Name(), off, len(data)))
	if err != nil {
		return err
	}
	if strings.Contains(out, "failed") || strings.Contains(out, "rror") {
		return fmt.Errorf("qemu-io: %s", out)
	}
	return nil
}

// imageOf is the file of a machine's disk.
func imageOf(s *site.Site, id sdk.MachineID, disk sdk.DiskID) (string, error) {
	list, err := s.Virsh(context.Background(), "domblklist", string(id))
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(list) {
		if target, file, _ := strings.Cut(strings.TrimSpace(line), " "); target == string(disk) {
			return strings.TrimSpace(file), nil
		}
	}
	return "", fmt.Errorf("machine %s has no disk %s:\n%s", id, disk, list)
}

func readOff(t *testing.T, s *site.Site, id sdk.MachineID, disk sdk.DiskID, off int64, data []byte) error {
	image, err := imageOf(s, id, disk)
	if err != nil {
		return err
	}
	raw := filepath.Join(t.TempDir(), "disk.raw")
	if out, err := exec.Command(testenv.Tool(t, "qemu-img"), "convert", "-O", "raw", image, raw).CombinedOutput(); err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	defer os.Remove(raw)
	file, err := os.Open(raw)
	if err != nil {
		return err
	}
	defer file.Close()
	_, err = file.ReadAt(data, off)
	return err
}
