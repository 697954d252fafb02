package main

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/holdfast-dr/holdfast/sdk"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// TestNewMachine shows what becomes of a machine's description: what is kept, and what must not exist twice.
func TestNewMachine(t *testing.T) {
	for _, name := range []string{"rich", "plain"} {
		native := []byte("another hypervisor's description")
		if name == "rich" {
			var err error
			if native, err = os.ReadFile(filepath.Join("testdata", "rich.xml")); err != nil {
				t.Fatal(err)
			}
		}
		spec := sdk.DraftSpec{
			Machine: sdk.Machine{
				Name: "web", CPUs: 4, MemoryBytes: 4 << 30, Firmware: sdk.FirmwareUEFI, Native: native,
				Disks: []sdk.Disk{{ID: "vda", SizeBytes: 1 << 30}, {ID: "scsi0:1", SizeBytes: 1 << 30}},
				NICs:  []sdk.NIC{{Network: "production"}, {Network: "br0"}, {Network: "elsewhere"}},
			},
			Networks: map[string]string{"production": "recovery", "br0": "isolated"},
		}
		paths := map[sdk.DiskID]string{"vda": "/pool/a.qcow2", "scsi0:1": "/pool/b & c.qcow2"}
		got := indent(newMachine(spec, paths, hostFacts{name: "acme-web", kinds: []string{"qemu"}, networks: []string{"recovery"}}), 0)
		golden := filepath.Join("testdata", name+".golden")
		if *update {
			if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(golden)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(string(want), got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
}

// TestMachineOfManyDisks has more disks than a PCI bus has room for: the others go to a controller that nobody uses.
func TestMachineOfManyDisks(t *testing.T) {
	const disks, taken = 64, "sdb"
	native := `<domain type='qemu'><name>big</name><devices>
		<controller type='scsi' index='0' model='lsilogic'/>
		<disk type='file' device='disk'><source file='/old'/><target dev='` + taken + `' bus='scsi'/></disk></devices></domain>`
	for _, native := range []string{"", native} {
		spec := sdk.DraftSpec{Machine: sdk.Machine{Name: "big", Native: []byte(native)}}
		paths := make(map[sdk.DiskID]string)
		for i := range disks {
			id := sdk.DiskID(fmt.Sprintf("scsi%d:%d", i/15, i%15))
			if i == 7 {
				id = taken
			}
			spec.Machine.Disks = append(spec.Machine.Disks, sdk.Disk{ID: id, SizeBytes: 1 << 20})
			paths[id] = fmt.Sprintf("/pool/%d", i)
		}
		devices := newMachine(spec, paths, hostFacts{name: "big"}).at("devices")
		targets, addresses, images, cards := make(map[string]bool), make(map[string]bool), make(map[string]bool), 0
		for _, d := range devices.all("disk") {
			dev, at := d.at("target").get("dev"), d.at("address")
			targets[dev], images[d.at("source").get("file")] = true, true
			switch bus := d.at("target").get("bus"); {
			case bus == "virtio":
				cards++
			case at != nil:
				addresses[at.get("controller")+":"+at.get("target")] = true
			case dev != taken || native == "":
				t.Errorf("disk %s on bus %s has no place", dev, bus)
			}
		}
		controller := "0"
		if native != "" {
			controller = "1"
			addresses["its own"] = true
		}
		if len(targets) != disks || len(images) != disks || cards != mostPCI || len(addresses) != disks-mostPCI || !addresses[controller+":0"] {
			t.Errorf("%d names, %d images, %d of virtio and the places %v", len(targets), len(images), cards, addresses)
		}
		own := 0
		for _, c := range devices.all("controller") {
			if c.get("model") == "virtio-scsi" && c.get("index") == controller {
				own++
			}
		}
		if own != 1 {
			t.Errorf("%d controllers of its own", own)
		}
	}
	for n, want := range map[int]string{0: "sda", 25: "sdz", 26: "sdaa", 701: "sdzz", 702: "sdaaa"} {
		if got := deviceOf("sd", n); got != want {
			t.Errorf("device %d is %s, want %s", n, got, want)
		}
	}
}

// indent is a description for people.
func indent(n *node, depth int) string {
	head := (&node{name: n.name, attrs: n.attrs, text: n.text}).String()
	text := strings.Repeat("  ", depth) + head + "\n"
	for _, c := range n.nodes {
		text += indent(c, depth+1)
	}
	return text
}

func TestEndpoints(t *testing.T) {
	for uri, want := range map[string]string{
		"qemu:///system":                                "unix " + systemSocket,
		"qemu+unix:///system?socket=/run/x.sock":        "unix /run/x.sock",
		"qemu+unix:///session?socket=/run/user/7/x":     "unix /run/user/7/x",
		"qemu+tcp://host/system":                        "tcp host:16509",
		"qemu+tcp://[fd00::1]:99/system":                "tcp [fd00::1]:99",
		"qemu+unix://host/system":                       "",
		"qemu+tcp:///system":                            "",
		"qemu+ssh://host/system":                        "",
		"qemu+tls://host/system":                        "", // without certificates
		"qemu+tcp://host/":                              "",
		"xen:///system":                                 "",
		"qemu+unix:///system?socket=/run/x.sock\x00bad": "",
	} {
		e, err := parseEndpoint(Config{URI: uri})
		got := ""
		if err == nil {
			got = e.network + " " + e.addr
		}
		if got != want {
			t.Errorf("%s: %q, %v; want %q", uri, got, err, want)
		}
	}
}

func TestSpaces(t *testing.T) {
	for text, want := range map[sdk.Space]*space{
		"":           {},
		"acme-":      {prefix: "acme-"},
		"gold/acme-": {pool: "gold", prefix: "acme-"},
		"gold/":      {pool: "gold"},
		"a/b/c":      nil,
		"../etc":     nil,
		"a b":        nil,
	} {
		got, err := parseSpace(text)
		if (err == nil) != (want != nil) || want != nil && got != *want {
			t.Errorf("%q: %+v, %v", text, got, err)
		}
	}
}

// TestTickets holds the names that snapshots of released versions have at hypervisors.
func TestTickets(t *testing.T) {
	k := ticket{instance: "0a1b2c3d", epoch: 18446744073709551615, op: "0193-x_y", stamp: 1790000000000000, frozen: true}
	const export, checkpoint = "holdfast.0a1b2c3d.18446744073709551615.0193-x_y.hmi2nbki68.f.vda", "holdfast-0a1b2c3d-0193-x_y-hmi2nbki68"
	if k.export("vda") != export || k.checkpoint() != checkpoint {
		t.Errorf("%s, %s", k.export("vda"), k.checkpoint())
	}
	if got, ok := parseExport(export); !ok || got != k {
		t.Errorf("%+v, %v", got, ok)
	}
	id, name, ok := parseSnapshotID(k.snapshotID("uuid"))
	if id != "uuid" || name != checkpoint || !ok {
		t.Errorf("%s, %s, %v", id, name, ok)
	}
	made := k
	made.epoch, made.frozen = 0, false
	if got, ok := parseCheckpoint(checkpoint); !ok || got != made {
		t.Errorf("%+v, %v", got, ok)
	}
	if _, ok := parseCheckpoint("holdfast-by-hand"); ok {
		t.Error("any name counts as ours")
	}
	const kept = "Holdfast: base of the next backup; instance=0a1b2c3d epoch=18446744073709551615 op=0193-x_y state=kept"
	if got := k.description(stateKept); got != kept {
		t.Errorf("description %q", got)
	}
	if got, ok := parseDescription(kept); !ok || got.open || got.instance != k.instance || got.epoch != k.epoch || got.op != k.op {
		t.Errorf("%+v, %v", got, ok)
	}
	if got, ok := parseDescription(k.description(stateOpen)); !ok || !got.open {
		t.Errorf("%+v, %v", got, ok)
	}
	for _, foreign := range []string{"", "vda", "holdfast.x.1.a.b.f.vda", "holdfast.0a1b2c3d.99999999999999999999.a.b.f.vda"} {
		if _, ok := parseExport(foreign); ok {
			t.Errorf("%q counts as ours", foreign)
		}
	}
}

func TestSizes(t *testing.T) {
	for text, want := range map[string]int64{
		"": 0, "1": 1, "512M": 512 << 20, "20G": 20 << 30, "3KiB": 3 << 10, "2T": 2 << 40,
		"0": -1, "-1G": -1, "G": -1, "1X": -1, "9999999999T": -1, "1 G": -1, "1GG": -1,
	} {
		got, err := parseSize(text)
		if (err == nil) != (want >= 0) || err == nil && got != want {
			t.Errorf("%q: %d, %v", text, got, err)
		}
	}
}

func TestScratchBounds(t *testing.T) {
	const gib = 1 << 30
	limit := scratchLimit{Bytes: 10 * gib, Free: gib}
	for use, want := range map[scratchUse]struct {
		broken bool
		pause  time.Duration
	}{
		{bytes: gib, free: -1}: {false, scratchPause}, {bytes: 10*gib - 1, free: -1}: {false, scratchHaste},
		{bytes: 10*gib - gib/2, free: -1}: {false, scratchPause / 2}, {bytes: 0, free: gib + gib/2}: {false, scratchPause / 2},
		{bytes: 10 * gib, free: 100 * gib}: {true, scratchHaste}, {bytes: 0, free: gib - 1}: {true, scratchHaste},
		{bytes: 0, free: 100 * gib}: {false, scratchPause},
	} {
		if got := use.broken(limit); got != want.broken || use.pause(limit) != want.pause {
			t.Errorf("%+v: broken %v, next look after %v", use, got, use.pause(limit))
		}
	}
	if (scratchUse{bytes: 1 << 40, free: -1}).broken(scratchLimit{}) {
		t.Error("no limit is one")
	}
}

func TestLabels(t *testing.T) {
	if got := label("0193f8a0-7e0c-7d7e-8a8b-1f2e3d4c5b6a"); got != "0193f8a0-7e0c-7d7e-8a8b-1f2e3d4c5b6a" {
		t.Errorf("a UUID becomes %s", got)
	}
	if a, b := label("a/b"), label("a.b"); a == b || !plainID.MatchString(a) || len(label(strings.Repeat("x", 500))) > 40 {
		t.Errorf("labels %s, %s", a, b)
	}
}

// FuzzXML reads descriptions of whatever form without panic, and keeps those that it can read.
func FuzzXML(f *testing.F) {
	for _, seed := range []string{"<a/>", `<a b="c&lt;"><d:e xmlns:d="u">text</d:e>&amp;</a>`, "<a><b></a></b>", "<a>", "]]>"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		n, err := parseXML(text)
		if err != nil {
			return
		}
		again, err := parseXML(n.String())
		if err != nil {
			t.Fatalf("%q was written as %q: %v", text, n.String(), err)
		}
		if again.String() != n.String() {
			t.Fatalf("%q and then %q", n.String(), again.String())
		}
		newMachine(sdk.DraftSpec{Machine: sdk.Machine{Name: "m", Native: []byte(text)}}, nil, hostFacts{name: "m"})
		bridgesOf([]byte(text))
	})
}

// FuzzMark reads marks of whatever form, since they come back from outside.
func FuzzMark(f *testing.F) {
	f.Add([]byte(`{"checkpoint":"holdfast-a-b","disk":"vda","image":"/x","size":1}`))
	f.Fuzz(func(_ *testing.T, text []byte) {
		_, _ = parseMark(text)
		_, _ = parseExport(string(text))
		_, _ = parseSpace(sdk.Space(text))
	})
}

// FuzzNames reads the names of checkpoints and snapshots, and the descriptions that keep an epoch, since anybody who may use
// libvirt can make such objects. A name that is taken for ours is one that we would make.
func FuzzNames(f *testing.F) {
	t := ticket{instance: "0123abcd", epoch: 7, op: "op-1", stamp: 12345}
	f.Add(t.checkpoint())
	f.Add(t.snapshotID("0193f8a0-7e0c-7d7e-8a8b-1f2e3d4c5b6a"))
	f.Add(t.description(stateOpen))
	f.Add("49152:49215")
	f.Fuzz(func(t *testing.T, text string) {
		if got, ok := parseCheckpoint(text); ok && !strings.HasPrefix(text, checkpointPrefix+got.instance+"-"+got.op+"-") {
			t.Errorf("checkpoint %q is %+v", text, got)
		}
		if machine, name, ok := parseSnapshotID(text); ok && (machine == "" || name == "") {
			t.Errorf("snapshot %q is of machine %q and checkpoint %q", text, machine, name)
		}
		_, _ = parseDescription(text)
		_, _ = parsePorts(text)
		_, _ = parseSize(text)
	})
}
