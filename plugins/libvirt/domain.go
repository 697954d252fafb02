package main

import (
	"context"
	"encoding/xml"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/digitalocean/go-libvirt"

	"github.com/holdfast-dr/holdfast/sdk"
)

// domainXML is what is read of a machine's description.
type domainXML struct {
	Type  string `xml:"type,attr"`
	ID    string `xml:"id,attr"` // of this run; "" if the machine is off
	Name  string `xml:"name"`
	UUID  string `xml:"uuid"`
	VCPUs int    `xml:"vcpu"`
	Mem   struct {
		Unit  string `xml:"unit,attr"`
		Value int64  `xml:",chardata"`
	} `xml:"memory"`
	Metadata struct {
		Tags struct {
			Tags []string `xml:"https://holdfast-dr.org/xmlns/libvirt/1.0 tag"`
		} `xml:"https://holdfast-dr.org/xmlns/libvirt/1.0 tags"`
		Run    *runMetadata    `xml:"https://holdfast-dr.org/xmlns/libvirt/run/1.0 run"`
		Draft  *draftMetadata  `xml:"https://holdfast-dr.org/xmlns/libvirt/draft/1.0 draft"`
		Claim  *claimMetadata  `xml:"https://holdfast-dr.org/xmlns/libvirt/claim/1.0 claim"`
		Origin *originMetadata `xml:"https://holdfast-dr.org/xmlns/libvirt/origin/1.0 origin"`
	} `xml:"metadata"`
	OS struct {
		Firmware string `xml:"firmware,attr"`
		Loader   struct {
			Type string `xml:"type,attr"`
		} `xml:"loader"`
	} `xml:"os"`
	Devices struct {
		Disks    []diskXML    `xml:"disk"`
		NICs     []nicXML     `xml:"interface"`
		Channels []channelXML `xml:"channel"`
	} `xml:"devices"`
}

type diskXML struct {
	Type   string `xml:"type,attr"`
	Device string `xml:"device,attr"`
	Driver struct {
		Type string `xml:"type,attr"`
	} `xml:"driver"`
	Source struct {
		File     string `xml:"file,attr"`
		Dev      string `xml:"dev,attr"`
		Pool     string `xml:"pool,attr"`
		Volume   string `xml:"volume,attr"`
		Protocol string `xml:"protocol,attr"`
		Name     string `xml:"name,attr"`
	} `xml:"source"`
	Target struct {
		Dev string `xml:"dev,attr"`
	} `xml:"target"`
	Alias struct {
		Name string `xml:"name,attr"`
	} `xml:"alias"`
	Serial    string    `xml:"serial"`
	ReadOnly  *struct{} `xml:"readonly"`
	Shareable *struct{} `xml:"shareable"`
	Transient *struct{} `xml:"transient"`
}

type nicXML struct {
	Type string `xml:"type,attr"`
	MAC  struct {
		Address string `xml:"address,attr"`
	} `xml:"mac"`
	Source struct {
		Network string `xml:"network,attr"`
		Bridge  string `xml:"bridge,attr"`
	} `xml:"source"`
	Model struct {
		Type string `xml:"type,attr"`
	} `xml:"model"`
}

type channelXML struct {
	Target struct {
		Name  string `xml:"name,attr"`
		State string `xml:"state,attr"`
	} `xml:"target"`
}

// The descriptions that libvirt has of a machine.
const (
	liveXML     libvirt.DomainXMLFlags = 0 // as it runs; as it is defined if it is off
	inactiveXML                        = libvirt.DomainXMLInactive
)

func (p *platform) describe(ctx context.Context, dom libvirt.Domain, flags libvirt.DomainXMLFlags) (domainXML, string, error) {
	text, err := ask(ctx, p.control, func(lv *libvirt.Libvirt) (string, error) { return lv.DomainGetXMLDesc(dom, flags) })
	if err != nil {
		return domainXML{}, "", err
	}
	var d domainXML
	if err := xml.Unmarshal([]byte(text), &d); err != nil {
		return domainXML{}, "", sdk.Errorf(nil, sdk.FaultBackend, "libvirt's description of %s: %v", dom.Name, err)
	}
	return d, text, nil
}

// where is the disk's image, for people and for marks.
func (d diskXML) where() string {
	switch s := d.Source; {
	case s.File != "":
		return s.File
	case s.Dev != "":
		return s.Dev
	case s.Volume != "":
		return s.Pool + "/" + s.Volume
	case s.Protocol != "":
		return s.Protocol + ":" + s.Name
	}
	return ""
}

// skip says why the disk is no part of a snapshot.
func (d diskXML) skip() string {
	switch {
	case d.Device == "cdrom" || d.Device == "floppy":
		return "removable medium"
	case d.Device == "lun":
		return "SCSI device passed through: QEMU cannot read it beside the guest"
	case d.Shareable != nil:
		return "shared with other machines"
	case d.ReadOnly != nil:
		return "read-only"
	case d.Transient != nil:
		return "transient: its changes are dropped when the machine stops"
	case d.Type == "nvme" || d.Type == "vhostuser" || d.Type == "vhostvdpa" || d.Type == "dir":
		return "disks of type " + d.Type + " bypass QEMU's block layer"
	case d.where() == "":
		return "no image"
	}
	return ""
}

// tracks reports whether the format keeps bitmaps of changed blocks.
func (d diskXML) tracks() bool { return d.Driver.Type == "qcow2" }

func (d domainXML) disk(id sdk.DiskID) (diskXML, bool) {
	i := slices.IndexFunc(d.Devices.Disks, func(k diskXML) bool { return k.Target.Dev == string(id) })
	if i < 0 {
		return diskXML{}, false
	}
	return d.Devices.Disks[i], true
}

// agent reports whether a guest agent is connected.
func (d domainXML) agent() bool {
	return slices.ContainsFunc(d.Devices.Channels, func(c channelXML) bool {
		return c.Target.Name == "org.qemu.guest_agent.0" && c.Target.State == "connected"
	})
}

func (d domainXML) firmware() sdk.Firmware {
	if d.OS.Firmware == "efi" || d.OS.Loader.Type == "pflash" {
		return sdk.FirmwareUEFI
	}
	return sdk.FirmwareBIOS
}

// memoryUnits are libvirt's; it prints KiB.
var memoryUnits = map[string]int64{
	"b": 1, "bytes": 1, "KB": 1000, "k": 1 << 10, "KiB": 1 << 10, "": 1 << 10, "MB": 1000 * 1000, "M": 1 << 20, "MiB": 1 << 20,
	"GB": 1000 * 1000 * 1000, "G": 1 << 30, "GiB": 1 << 30,
}

func (n nicXML) network() string {
	if n.Source.Network != "" {
		return n.Source.Network
	}
	return n.Source.Bridge
}

// look reads a machine as the inventory shows it.
func (p *platform) look(ctx context.Context, dom libvirt.Domain) (sdk.Machine, domainXML, error) {
	live, text, err := p.describe(ctx, dom, liveXML)
	if err != nil {
		return sdk.Machine{}, live, err
	}
	state := sdk.StateOff
	if live.ID != "" {
		if state, err = p.state(ctx, dom); err != nil {
			return sdk.Machine{}, live, err
		}
		if _, text, err = p.describe(ctx, dom, inactiveXML); err != nil {
			return sdk.Machine{}, live, err
		}
	}
	if len(text) > sdk.MaxNative {
		return sdk.Machine{}, live, sdk.Errorf(sdk.ErrUnsupported, sdk.FaultBackend, "the description of %s has %d bytes", dom.Name, len(text))
	}
	if state == sdk.StatePaused && live.Metadata.Run.held() {
		state = sdk.StateOff // a snapshot of ours holds it
	}
	m := sdk.Machine{
		ID: machineID(dom), Name: dom.Name, UUID: live.UUID, Firmware: live.firmware(), State: state, CPUs: live.VCPUs,
		MemoryBytes: live.Mem.Value * memoryUnits[live.Mem.Unit], Native: []byte(text),
	}
	for _, tag := range live.Metadata.Tags.Tags {
		if tag = strings.TrimSpace(tag); tag != "" {
			m.Tags = append(m.Tags, tag)
		}
	}
	for _, n := range live.Devices.NICs {
		m.NICs = append(m.NICs, sdk.NIC{MAC: n.MAC.Address, Network: n.network(), Model: n.Model.Type})
	}
	for _, d := range live.Devices.Disks {
		disk, err := p.lookDisk(ctx, dom, d)
		if err != nil {
			return sdk.Machine{}, live, err
		}
		m.Disks = append(m.Disks, disk)
	}
	return m, live, nil
}

func (p *platform) lookDisk(ctx context.Context, dom libvirt.Domain, d diskXML) (sdk.Disk, error) {
	disk := sdk.Disk{
		ID: sdk.DiskID(d.Target.Dev), Name: d.Target.Dev, Format: d.Driver.Type, Pool: d.Source.Pool, Skip: d.skip(),
	}
	if d.where() == "" {
		return disk, nil
	}
	size, err := p.diskSize(ctx, dom, d)
	if err != nil {
		if is(err, libvirt.ErrNoDomain) || errors.Is(err, sdk.ErrUnavailable) || ctx.Err() != nil {
			return disk, err // it says nothing about the disk
		}
		if disk.Skip == "" {
			disk.Skip = fmt.Sprintf("its image cannot be read: %v", err)
		}
		return disk, nil
	}
	disk.SizeBytes = size
	if disk.Pool == "" {
		disk.Pool = p.poolOf(ctx, d.where())
	}
	return disk, nil
}

func (p *platform) diskSize(ctx context.Context, dom libvirt.Domain, d diskXML) (int64, error) {
	return ask(ctx, p.control, func(lv *libvirt.Libvirt) (int64, error) {
		_, capacity, _, err := lv.DomainGetBlockInfo(dom, d.Target.Dev, 0)
		return int64(capacity), err
	})
}

var states = map[libvirt.DomainState]sdk.State{
	libvirt.DomainRunning:     sdk.StateRunning,
	libvirt.DomainBlocked:     sdk.StateRunning,
	libvirt.DomainShutdown:    sdk.StateRunning, // it is still shutting down
	libvirt.DomainPaused:      sdk.StatePaused,
	libvirt.DomainPmsuspended: sdk.StatePaused,
	libvirt.DomainShutoff:     sdk.StateOff,
	libvirt.DomainCrashed:     sdk.StateOff,
}

func (p *platform) state(ctx context.Context, dom libvirt.Domain) (sdk.State, error) {
	code, err := ask(ctx, p.control, func(lv *libvirt.Libvirt) (int32, error) {
		state, _, err := lv.DomainGetState(dom, 0)
		return state, err
	})
	if err != nil {
		return sdk.StateUnknown, err
	}
	if state, ok := states[libvirt.DomainState(code)]; ok {
		return state, nil
	}
	return sdk.StateUnknown, nil
}
