package main

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/digitalocean/go-libvirt"

	"github.com/holdfast-dr/holdfast/sdk"
)

// The keeper of a draft is a machine that never runs: its QEMU holds the draft's disks open and serves them over NBD.
// libvirt gives it the disks, and with them labels, ownership and locks; what libvirt has no call for, the exports, is
// asked of QEMU's monitor. QEMU lets one user write to an image as a rule; share-rw tells it that the device, which never
// does, leaves that to the export.

// mostDisks is how many a machine that is restored may have. A virtio-scsi controller takes 256.
const mostDisks = 200

// keeper describes the machine.
func (d *draft) keeper(kind string) (string, error) {
	if len(d.spec.Machine.Disks) > mostDisks {
		return "", sdk.Errorf(sdk.ErrUnsupported, sdk.FaultPlugin, "a machine of more than %d disks", mostDisks)
	}
	meta, err := xml.Marshal(d.meta)
	if err != nil {
		return "", invalid("the request cannot be written down: %v", err)
	}
	metadata, err := parseXML(string(meta))
	if err != nil {
		return "", err
	}
	devices := element("devices").with(scsiController("0"))
	override := element("qemu:override")
	for i, disk := range d.spec.Machine.Disks {
		devices.with(element("disk", "type", "volume", "device", "disk").with(
			element("driver", "name", "qemu", "type", "qcow2", "discard", "unmap"),
			element("source", "pool", d.meta.Pool, "volume", volumeName(d.space, d.meta.ID, disk.ID)),
			element("target", "dev", deviceOf("sd", i), "bus", "scsi"),
			element("alias", "name", diskAlias(i)),
			driveAddress("0", i),
		))
		override.with(element("qemu:device", "alias", diskAlias(i)).with(element("qemu:frontend").with(
			element("qemu:property", "name", "share-rw", "type", "bool", "value", "true"))))
	}
	devices.with(element("controller", "type", "usb", "model", "none"), element("memballoon", "model", "none"))
	return element("domain", "type", kind, "xmlns:qemu", "http://libvirt.org/schemas/domain/qemu/1.0").with(
		element("name").withText(keeperName(d.space, d.meta.ID)),
		element("title").withText("Holdfast: "+d.spec.Machine.Name+", being restored"),
		element("metadata").with(metadata),
		element("memory", "unit", "MiB").withText("32"),
		element("vcpu").withText("1"),
		element("os").with(element("type").withText("hvm")),
		devices, override,
	).String(), nil
}

func diskAlias(i int) string { return "ua-holdfast" + strconv.Itoa(i) }

// domainType is how machines can run: the keeper does not care, and without KVM is a little smaller.
func (p *platform) domainType(ctx context.Context) (string, error) {
	kinds, err := p.domainTypes(ctx)
	if err != nil {
		return "", err
	}
	for _, kind := range []string{"qemu", "kvm"} {
		if slices.Contains(kinds, kind) {
			return kind, nil
		}
	}
	return "", sdk.Errorf(sdk.ErrUnsupported, sdk.FaultBackend, "the host runs machines neither with QEMU nor with KVM")
}

func (p *platform) domainTypes(ctx context.Context) ([]string, error) {
	text, err := ask(ctx, p.control, (*libvirt.Libvirt).ConnectGetCapabilities)
	if err != nil {
		return nil, err
	}
	caps, err := parseXML(text)
	if err != nil {
		return nil, err
	}
	host := caps.at("host", "cpu", "arch").words()
	var kinds []string
	for _, g := range caps.all("guest") {
		if arch := g.at("arch"); arch.get("name") == host && g.at("os_type").words() == "hvm" {
			for _, kind := range arch.all("domain") {
				kinds = append(kinds, kind.get("type"))
			}
		}
	}
	return kinds, nil
}

// OpenDraftDisk serves one disk of a draft under a name that only the caller learns. Serving it again ends the connection
// of whoever had it before.
func (p *platform) OpenDraftDisk(ctx context.Context, op sdk.Op, dr sdk.Draft, disk sdk.DiskID) (sdk.BlockWriter, error) {
	work, cancel := steady(ctx)
	defer cancel()
	defer p.lock("draft " + dr.ID)()
	d, err := p.openDraft(work, op, dr.ID)
	if err != nil {
		return nil, err
	}
	i := slices.IndexFunc(d.spec.Machine.Disks, func(k sdk.Disk) bool { return k.ID == disk })
	if i < 0 {
		return nil, notFound("disk %s of draft %s", disk, dr.ID)
	}
	server, err := p.serve(work, d)
	if err != nil {
		return nil, fmt.Errorf("serve draft %s: %w", dr.ID, err)
	}
	token := rand.Text()
	if err := p.export(work, d, i, token); err != nil {
		return nil, fmt.Errorf("serve disk %s of draft %s: %w", disk, dr.ID, err)
	}
	return &remoteDisk{address: p.address(server, token, ""), size: d.spec.Machine.Disks[i].SizeBytes}, nil
}

// openDraft finds a draft that is still one.
func (p *platform) openDraft(ctx context.Context, op sdk.Op, id string) (*draft, error) {
	d, err := p.findDraft(ctx, op, id)
	if errors.Is(err, sdk.ErrNotFound) {
		s, spaceErr := parseSpace(op.Space)
		if spaceErr != nil {
			return nil, spaceErr
		}
		if became, lookErr := p.committed(ctx, s, id); lookErr == nil && became != nil {
			return nil, invalid("draft %s is committed as machine %s", id, machineID(*became))
		}
	}
	return d, err
}

// serve starts the keeper and its NBD server, if they do not run, and says where it listens. That is live metadata, for a
// QEMU does not tell.
func (p *platform) serve(ctx context.Context, d *draft) (jobServer, error) {
	state, err := p.state(ctx, d.dom)
	if err != nil {
		return jobServer{}, err
	}
	if state == sdk.StateOff {
		if _, err := ask(ctx, p.control, func(lv *libvirt.Libvirt) (libvirt.Domain, error) {
			return lv.DomainCreateWithFlags(d.dom, uint32(libvirt.DomainStartPaused))
		}); err != nil {
			return jobServer{}, err
		}
	}
	run, err := p.runOf(ctx, d.dom)
	if err != nil {
		return jobServer{}, err
	}
	if run != nil && run.Server != "" {
		var s jobServer
		err := json.Unmarshal([]byte(run.Server), &s)
		return s, err
	}
	return p.listen(ctx, d)
}

func (p *platform) listen(ctx context.Context, d *draft) (jobServer, error) {
	dir, err := p.socketDir(ctx, d)
	if err != nil {
		return jobServer{}, err
	}
	// A server that was started by a process that died before it could write down where is of no use to anybody.
	_ = p.monitor(ctx, d.dom, "nbd-server-stop", nil, nil)
	for attempt := range portAttempts {
		s, err := p.server(dir, d.socketName(), attempt)
		if err != nil {
			return s, err
		}
		err = p.startServer(ctx, d.dom, s)
		if portTaken(err) {
			continue
		}
		if err != nil {
			return s, err
		}
		text, err := json.Marshal(s)
		if err != nil {
			return s, err
		}
		return s, p.setMetadata(ctx, d.dom, xmlnsRun, runMetadata{Op: d.meta.Op, Server: string(text)}, libvirt.DomainAffectLive)
	}
	return jobServer{}, busy("all of %d ports tried for NBD are taken", portAttempts).WithHint("widen the setting nbd_ports")
}

const tlsObject = "holdfast-tls"

func (p *platform) startServer(ctx context.Context, dom libvirt.Domain, s jobServer) error {
	// By default, QEMU lets nobody in after a hundred; it does not say so, either.
	arguments := map[string]any{"max-connections": mostDisks * connections}
	if s.Transport == "unix" {
		arguments["addr"] = map[string]any{"type": "unix", "data": map[string]any{"path": s.Socket}}
	} else {
		arguments["addr"] = map[string]any{"type": "inet", "data": map[string]any{"host": s.Name, "port": s.Port}}
	}
	if s.TLS == "yes" {
		dir := p.config.NBDTLSDir
		if dir == "" {
			dir = defaultTLSDir
		}
		_ = p.monitor(ctx, dom, "object-del", map[string]any{"id": tlsObject}, nil) // of an attempt before
		if err := p.monitor(ctx, dom, "object-add", map[string]any{
			"qom-type": "tls-creds-x509", "id": tlsObject, "dir": dir, "endpoint": "server", "verify-peer": true,
		}, nil); err != nil {
			return err
		}
		arguments["tls-creds"] = tlsObject
	}
	return p.monitor(ctx, dom, "nbd-server-start", arguments, nil)
}

// export serves the i-th disk of a draft under a new name, and no longer under any other.
func (p *platform) export(ctx context.Context, d *draft, i int, token string) error {
	node, err := p.blockNode(ctx, d.dom, diskAlias(i))
	if err != nil {
		return err
	}
	prefix := "holdfast-" + strconv.Itoa(i) + "-"
	if err := p.unexport(ctx, d.dom, prefix); err != nil {
		return err
	}
	return p.monitor(ctx, d.dom, "block-export-add", map[string]any{
		"type": "nbd", "id": prefix + token[:8], "node-name": node, "name": token, "writable": true,
	}, nil)
}

// unexport ends exports with their connections, and waits until they are gone.
func (p *platform) unexport(ctx context.Context, dom libvirt.Domain, prefix string) error {
	asked := make(map[string]bool)
	for {
		var exports []struct {
			ID string `json:"id"`
		}
		if err := p.monitor(ctx, dom, "query-block-exports", nil, &exports); err != nil {
			return err
		}
		left := false
		for _, e := range exports {
			if !strings.HasPrefix(e.ID, prefix) {
				continue
			}
			left = true
			if asked[e.ID] {
				continue
			}
			asked[e.ID] = true
			// It may go by itself between the question and this.
			_ = p.monitor(ctx, dom, "block-export-del", map[string]any{"id": e.ID, "mode": "hard"}, nil)
		}
		if !left {
			return nil
		}
		if err := pause(ctx, 10*time.Millisecond); err != nil {
			return sdk.Errorf(sdk.ErrUnavailable, sdk.FaultBackend, "an earlier writer cannot be disconnected")
		}
	}
}

// blockNode is QEMU's name for what is behind a device.
func (p *platform) blockNode(ctx context.Context, dom libvirt.Domain, alias string) (string, error) {
	devices, err := p.blockDevices(ctx, dom)
	if err != nil {
		return "", err
	}
	for _, d := range devices {
		if strings.Contains("/"+d.QDev+"/", "/"+alias+"/") && d.Inserted.Node != "" {
			return d.Inserted.Node, nil
		}
	}
	return "", sdk.Errorf(nil, sdk.FaultBackend, "QEMU has no device %s", alias)
}

// blockDevice is a disk as QEMU tells of it.
type blockDevice struct {
	QDev     string `json:"qdev"` // the alias of the device, or a path with it
	Inserted struct {
		Node    string `json:"node-name"`
		Bitmaps []struct {
			Name         string `json:"name"`
			Inconsistent bool   `json:"inconsistent"`
		} `json:"dirty-bitmaps"`
	} `json:"inserted"`
}

func (p *platform) blockDevices(ctx context.Context, dom libvirt.Domain) ([]blockDevice, error) {
	var devices []blockDevice
	err := p.monitor(ctx, dom, "query-block", nil, &devices)
	return devices, err
}

// monitor asks QEMU itself.
func (p *platform) monitor(ctx context.Context, dom libvirt.Domain, command string, arguments, answer any) error {
	request := map[string]any{"execute": command}
	if arguments != nil {
		request["arguments"] = arguments
	}
	text, err := json.Marshal(request)
	if err != nil {
		return err
	}
	reply, err := ask(ctx, p.control, func(lv *libvirt.Libvirt) (string, error) {
		return lv.QEMUDomainMonitorCommand(dom, string(text), 0)
	})
	if err != nil {
		return err
	}
	var result struct {
		Return json.RawMessage `json:"return"`
		Error  *struct {
			Desc string `json:"desc"`
		} `json:"error"`
	}
	if err := json.Unmarshal([]byte(reply), &result); err != nil {
		return sdk.Errorf(nil, sdk.FaultBackend, "QEMU's answer to %s: %v", command, err)
	}
	if result.Error != nil {
		return sdk.Errorf(nil, sdk.FaultBackend, "QEMU: %s: %s", command, result.Error.Desc)
	}
	if answer == nil {
		return nil
	}
	if err := json.Unmarshal(result.Return, answer); err != nil {
		return sdk.Errorf(nil, sdk.FaultBackend, "QEMU's answer to %s: %v", command, err)
	}
	return nil
}

// stopKeeper disconnects every writer and ends the keeper's QEMU, which closes the images.
func (p *platform) stopKeeper(ctx context.Context, d *draft) error {
	state, err := p.state(ctx, d.dom)
	if err != nil {
		return err
	}
	if state != sdk.StateOff {
		if err := p.endKeeper(ctx, d); err != nil {
			return err
		}
	}
	return p.removeSocket(ctx, d)
}

func (p *platform) endKeeper(ctx context.Context, d *draft) error {
	run, err := p.runOf(ctx, d.dom)
	if err != nil {
		return err
	}
	if err := p.unexport(ctx, d.dom, ""); err != nil {
		return err
	}
	if err := p.monitor(ctx, d.dom, "nbd-server-stop", nil, nil); err != nil && run != nil && run.Server != "" {
		return err
	}
	err = do(ctx, p.control, func(lv *libvirt.Libvirt) error {
		return lv.DomainDestroyFlags(d.dom, libvirt.DomainDestroyGraceful)
	})
	if err != nil && !is(err, libvirt.ErrOperationInvalid) {
		return err
	}
	return nil
}

// removeSocket removes what a keeper's QEMU leaves if it was killed.
func (p *platform) removeSocket(ctx context.Context, d *draft) error {
	if !p.endpoint.local() {
		return nil
	}
	dir, err := p.socketDir(ctx, d)
	if err != nil {
		return ignore(err, sdk.ErrNotFound) // its volumes are gone, and so it never listened or was swept before
	}
	s, err := p.server(dir, d.socketName(), 0)
	if err != nil {
		return nil // a socket that could not be made
	}
	if err := os.Remove(s.Socket); err != nil && !errors.Is(err, os.ErrNotExist) {
		return sdk.Errorf(sdk.ErrDenied, sdk.FaultHost, "remove %s: %v", s.Socket, err)
	}
	return nil
}

// socketName makes the keeper's socket one that can be found again.
func (d *draft) socketName() string {
	sum := sha256.Sum256([]byte(d.dom.Name))
	return "holdfast-" + hex.EncodeToString(sum[:6])
}

func (p *platform) socketDir(ctx context.Context, d *draft) (string, error) {
	if p.config.ScratchDir != "" {
		return strings.TrimRight(p.config.ScratchDir, "/"), nil
	}
	paths, err := p.volumePaths(ctx, d)
	if err != nil {
		return "", err
	}
	return dirOf(paths[d.spec.Machine.Disks[0].ID]), nil
}

// volumePaths are the files of a draft's disks.
func (p *platform) volumePaths(ctx context.Context, d *draft) (map[sdk.DiskID]string, error) {
	return ask(ctx, p.control, func(lv *libvirt.Libvirt) (map[sdk.DiskID]string, error) {
		pool, err := lv.StoragePoolLookupByName(d.meta.Pool)
		if err != nil {
			return nil, err
		}
		paths := make(map[sdk.DiskID]string)
		for _, disk := range d.spec.Machine.Disks {
			vol, err := lv.StorageVolLookupByName(pool, volumeName(d.space, d.meta.ID, disk.ID))
			if err != nil {
				return nil, err
			}
			if paths[disk.ID], err = lv.StorageVolGetPath(vol); err != nil {
				return nil, err
			}
		}
		return paths, nil
	})
}
