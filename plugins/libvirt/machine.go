package main

import (
	"regexp"
	"slices"
	"strconv"

	"github.com/holdfast-dr/holdfast/sdk"
)

// hostFacts are what a description depends on beside the request.
type hostFacts struct {
	name     string
	kinds    []string // ways to run machines: qemu, kvm
	networks []string // of libvirt
}

// newMachine describes the machine that a draft becomes: the one that was backed up, without what must not exist twice
// and without what belonged to the host it came from.
func newMachine(spec sdk.DraftSpec, paths map[sdk.DiskID]string, host hostFacts) *node {
	domain, err := parseXML(string(spec.Machine.Native))
	if err != nil || domain.name != "domain" {
		return plainMachine(spec, paths, host)
	}
	domain.unset("id")
	domain.drop("uuid", "name", "seclabel")
	domain.nodes = slices.Insert(domain.nodes, 0, element("name").withText(host.name))
	if !slices.Contains(host.kinds, domain.get("type")) && len(host.kinds) > 0 {
		domain.set("type", host.kinds[0])
	}
	if genid := domain.at("genid"); genid != nil {
		genid.text = "" // a new one: the guest shall notice that it was restored
	}
	if nvram := domain.at("os", "nvram"); nvram != nil {
		nvram.text, nvram.nodes = "", nil
		nvram.unset("type")
		if nvram.get("template") == "" {
			domain.at("os").drop("nvram") // libvirt knows the template
		}
	}
	resize(domain, spec.Machine)
	devices := domain.need("devices")
	devices.drop("emulator")
	exchange(devices, spec.Machine.Disks, paths, true)
	for _, nic := range devices.all("interface") {
		nic.drop("mac", "target", "alias")
		connect(nic, spec.Networks)
	}
	for _, kind := range []string{"serial", "console", "parallel", "channel"} {
		for _, port := range devices.all(kind) {
			detach(port)
		}
	}
	for _, display := range devices.all("graphics") {
		if display.get("port") != "" || display.get("tlsPort") != "" {
			display.unset("port", "tlsPort")
			display.set("autoport", "yes")
		}
	}
	return domain
}

// resize follows a request that asks for another size than the original had.
func resize(domain *node, m sdk.Machine) {
	var known domainSize
	known.read(domain)
	if m.CPUs > 0 && m.CPUs != known.cpus {
		vcpu := domain.need("vcpu")
		vcpu.text = strconv.Itoa(m.CPUs)
		vcpu.unset("current", "cpuset")
		domain.drop("vcpus", "cputune", "numatune")
		domain.at("cpu").drop("topology", "numa")
	}
	if m.MemoryBytes > 0 && m.MemoryBytes != known.memory {
		domain.drop("memory", "currentMemory", "maxMemory")
		domain.with(element("memory", "unit", "bytes").withText(strconv.FormatInt(m.MemoryBytes, 10)))
	}
}

type domainSize struct {
	cpus   int
	memory int64
}

func (s *domainSize) read(domain *node) {
	s.cpus, _ = strconv.Atoi(domain.at("vcpu").words())
	memory, _ := strconv.ParseInt(domain.at("memory").words(), 10, 64)
	s.memory = memory * memoryUnits[domain.at("memory").get("unit")]
}

// exchange gives disks their new images. A disk that the request has and the machine lacks is added. With purge, disks
// that are not in the request are dropped, for their images are somebody else's, and media are ejected; without it, they
// stay.
func exchange(devices *node, disks []sdk.Disk, paths map[sdk.DiskID]string, purge bool) {
	have := make(map[string]bool)
	devices.dropIf(func(n *node) bool {
		if n.name != "disk" {
			return false
		}
		dev := n.at("target").get("dev")
		removable := n.get("device") == "cdrom" || n.get("device") == "floppy"
		path, wanted := paths[sdk.DiskID(dev)]
		switch {
		case wanted && !removable:
			insert(n, path)
		case purge && removable:
			n.set("type", "file")
			n.drop("source", "backingStore")
		case purge:
			return true
		}
		have[dev] = true
		return false
	})
	scsi := &controller{devices: devices}
	for _, disk := range disks {
		if have[string(disk.ID)] {
			continue
		}
		dev := freeDevice(string(disk.ID), have)
		have[dev] = true
		added := element("disk", "type", "file", "device", "disk").with(
			element("driver", "name", "qemu", "type", "qcow2", "discard", "unmap"),
			element("source", "file", paths[disk.ID]),
			element("target", "dev", dev, "bus", buses[dev[:2]]),
		)
		if buses[dev[:2]] == "scsi" {
			added.with(scsi.place())
		}
		devices.with(added)
	}
}

// controller is a SCSI controller that is added with its first disk. Of those that libvirt would add by itself guests may
// have no driver, and none takes more than a few disks.
type controller struct {
	devices *node
	index   string // "" before the first disk
	taken   int
}

// place is the address of the next disk.
func (c *controller) place() *node {
	if c.index == "" {
		next := 0
		for _, other := range c.devices.all("controller") {
			if n, err := strconv.Atoi(other.get("index")); err == nil && other.get("type") == "scsi" {
				next = max(next, n+1)
			}
		}
		c.index = strconv.Itoa(next)
		c.devices.with(scsiController(c.index))
	}
	at := driveAddress(c.index, c.taken)
	c.taken++
	return at
}

func scsiController(index string) *node {
	return element("controller", "type", "scsi", "index", index, "model", "virtio-scsi")
}

func driveAddress(controller string, target int) *node {
	return element("address", "type", "drive", "controller", controller, "bus", "0", "target", strconv.Itoa(target), "unit", "0")
}

// insert puts an image into a disk, and takes out all that was said of the one before.
func insert(disk *node, path string) {
	disk.set("type", "file")
	disk.drop("source", "backingStore", "auth", "encryption", "mirror", "alias")
	driver := disk.need("driver")
	driver.set("name", "qemu")
	driver.set("type", "qcow2")
	driver.unset("metadata_cache", "queues", "iothread")
	disk.with(element("source", "file", path))
}

var (
	deviceName = regexp.MustCompile(`^(vd|sd|hd)[a-z]$`)
	buses      = map[string]string{"vd": "virtio", "sd": "scsi", "hd": "ide"}
)

// freeDevice is the disk's own name where that is one here, and the next free one otherwise: a disk that comes from
// another kind of hypervisor has another kind of id.
func freeDevice(wanted string, have map[string]bool) string {
	if deviceName.MatchString(wanted) && !have[wanted] {
		return wanted
	}
	for n := range mostPCI {
		if dev := deviceOf("vd", n); !have[dev] {
			return dev
		}
	}
	for n := 0; ; n++ {
		if dev := deviceOf("sd", n); !have[dev] {
			return dev
		}
	}
}

// mostPCI is how many disks get a PCI device of their own, which is what virtio disks are, and fit beside the other ones.
const mostPCI = 24

// deviceOf is the name of the n-th device: vda to vdz, vdaa and so on.
func deviceOf(prefix string, n int) string {
	letters := ""
	for ; n >= 0; n = n/26 - 1 {
		letters = string(rune('a'+n%26)) + letters
	}
	return prefix + letters
}

// connect moves an interface to the network that the map says.
func connect(nic *node, networks map[string]string) {
	source := nic.at("source")
	name := source.get("network")
	if name == "" {
		name = source.get("bridge")
	}
	to, mapped := networks[name]
	if name == "" || !mapped {
		source.strip("portid", "portgroup")
		return
	}
	nic.set("type", "network")
	nic.drop("source", "virtualport")
	nic.with(element("source", "network", to))
}

// strip is unset for a node that may be nil.
func (n *node) strip(names ...string) {
	if n != nil {
		n.unset(names...)
	}
}

// detach takes a character device off files and sockets of the original host.
func detach(port *node) {
	port.drop("log", "alias")
	switch port.get("type") {
	case "pty":
		port.unset("tty")
		port.drop("source")
	case "unix":
		if port.name == "channel" {
			port.drop("source") // libvirt chooses a path for each machine
			return
		}
		port.set("type", "pty")
		port.drop("source", "protocol")
	case "file", "pipe", "tcp", "udp", "dev":
		port.set("type", "pty")
		port.drop("source", "protocol")
	}
}

// bridgesOf are the bridges of the host to which a machine is connected.
func bridgesOf(native []byte) []string {
	domain, err := parseXML(string(native))
	if err != nil {
		return nil
	}
	var names []string
	for _, nic := range domain.at("devices").all("interface") {
		if bridge := nic.at("source").get("bridge"); bridge != "" {
			names = append(names, bridge)
		}
	}
	return names
}

// plainMachine describes a machine of which only the nouns of the contract are known.
func plainMachine(spec sdk.DraftSpec, paths map[sdk.DiskID]string, host hostFacts) *node {
	m := spec.Machine
	kind := "qemu"
	if slices.Contains(host.kinds, "kvm") {
		kind = "kvm"
	}
	system := element("os").with(element("type").withText("hvm"), element("boot", "dev", "hd"))
	if m.Firmware == sdk.FirmwareUEFI {
		system.set("firmware", "efi")
	}
	devices := element("devices")
	exchange(devices, m.Disks, paths, true)
	for _, nic := range m.NICs {
		name, mapped := spec.Networks[nic.Network]
		if !mapped {
			name = nic.Network
		}
		card := element("interface", "type", "user")
		if slices.Contains(host.networks, name) {
			card = element("interface", "type", "network").with(element("source", "network", name))
		}
		devices.with(card.with(element("model", "type", "virtio")))
	}
	devices.with(element("serial", "type", "pty"), element("video").with(element("model", "type", "vga")))
	return element("domain", "type", kind).with(
		element("name").withText(host.name),
		element("memory", "unit", "bytes").withText(strconv.FormatInt(max(m.MemoryBytes, 1<<20), 10)),
		element("vcpu").withText(strconv.Itoa(max(m.CPUs, 1))),
		system,
		element("features").with(element("acpi"), element("apic")),
		devices,
	)
}
