package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/digitalocean/go-libvirt"

	"github.com/holdfast-dr/holdfast/sdk"
)

// draft is an open draft: the machine that holds its disks, and the request.
type draft struct {
	dom   libvirt.Domain
	meta  draftMetadata
	spec  sdk.DraftSpec
	space space
}

// keeperName is the machine's name. It says what it is to whoever wonders about a machine that never runs.
func keeperName(s space, id string) string { return s.prefix + keeperPrefix + id }

const keeperPrefix = "holdfast-draft-"

// volumeName is the name of a disk's volume, while it is part of the draft and for ever after.
func volumeName(s space, id string, disk sdk.DiskID) string {
	return s.prefix + "holdfast-" + id + "-" + label(string(disk)) + ".qcow2"
}

// CreateDraft makes the disks, and the machine that will hold them open for writing.
func (p *platform) CreateDraft(ctx context.Context, op sdk.Op, spec sdk.DraftSpec) (sdk.Draft, error) {
	made, err := p.createDraft(ctx, op, spec)
	if err != nil {
		return sdk.Draft{}, fmt.Errorf("create draft of machine %s: %w", spec.Machine.Name, err)
	}
	return made, nil
}

func (p *platform) createDraft(ctx context.Context, op sdk.Op, spec sdk.DraftSpec) (sdk.Draft, error) {
	if err := checkOp(op); err != nil {
		return sdk.Draft{}, err
	}
	s, err := parseSpace(op.Space)
	if err != nil {
		return sdk.Draft{}, err
	}
	ctx, cancel := steady(ctx)
	defer cancel()
	id := label(op.ID)
	defer p.lock("draft " + id)()
	d, err := p.findDraft(ctx, op, id)
	if errors.Is(err, sdk.ErrNotFound) {
		if committed, err := p.committed(ctx, s, id); err != nil || committed != nil {
			return asDraft(id, spec), err
		}
		d, err = p.newDraft(ctx, op, s, id, spec)
	}
	if err != nil {
		return sdk.Draft{}, err
	}
	// Also for a repeat: the first call may have ended between two volumes, or run out of time.
	for i, disk := range d.spec.Machine.Disks {
		if end, ok := ctx.Deadline(); ok && time.Until(end) < volumeTime {
			return sdk.Draft{}, makingVolumes(i, len(d.spec.Machine.Disks))
		}
		if err := p.createVolume(ctx, d, disk); err != nil {
			return sdk.Draft{}, err
		}
	}
	return asDraft(id, d.spec), nil
}

// volumeTime is what a call that makes volumes leaves for the last of them.
const volumeTime = 5 * time.Second

func makingVolumes(done, all int) error {
	pending := sdk.Errorf(sdk.ErrPending, sdk.FaultBackend, "%d of %d volumes are there", done, all)
	pending.Progress, pending.After = float64(done)/float64(all), 100*time.Millisecond
	return pending
}

func asDraft(id string, spec sdk.DraftSpec) sdk.Draft {
	made := sdk.Draft{ID: id}
	for _, disk := range spec.Machine.Disks {
		made.Disks = append(made.Disks, disk.ID)
	}
	return made
}

// newDraft checks the request and writes it down, before anything takes space.
func (p *platform) newDraft(ctx context.Context, op sdk.Op, s space, id string, spec sdk.DraftSpec) (*draft, error) {
	if err := checkSpec(spec); err != nil {
		return nil, err
	}
	if err := p.nbdReady(); err != nil {
		return nil, err
	}
	wantedPool := spec.Pool
	if spec.Replace != "" {
		original, err := p.replaceable(ctx, op, spec.Replace)
		if err != nil {
			return nil, err
		}
		if wantedPool == "" && s.pool == "" && len(original.Disks) > 0 {
			wantedPool = original.Disks[0].Pool
		}
	} else if err := p.checkNetworks(ctx, spec); err != nil {
		return nil, err
	}
	pool, err := p.choosePool(ctx, s, wantedPool)
	if err != nil {
		return nil, err
	}
	text, err := json.Marshal(spec)
	if err != nil {
		return nil, invalid("the request cannot be written down: %v", err)
	}
	d := &draft{spec: spec, space: s, meta: draftMetadata{ID: id, Op: op.ID, Epoch: op.Epoch, Pool: pool, Spec: string(text)}}
	kind, err := p.domainType(ctx)
	if err != nil {
		return nil, err
	}
	description, err := d.keeper(kind)
	if err != nil {
		return nil, err
	}
	d.dom, err = ask(ctx, p.control, func(lv *libvirt.Libvirt) (libvirt.Domain, error) {
		return lv.DomainDefineXMLFlags(description, 0)
	})
	return d, err
}

const sectorBytes = 512

func checkSpec(spec sdk.DraftSpec) error {
	m := spec.Machine
	if m.Name == "" || len(m.Name) > 200 || strings.ContainsAny(m.Name, "/\n") {
		return invalid("machine name %q", m.Name)
	}
	if len(m.Disks) == 0 {
		return invalid("a machine without disks")
	}
	seen := make(map[sdk.DiskID]bool)
	for _, d := range m.Disks {
		if d.ID == "" || d.SizeBytes <= 0 || d.SizeBytes%sectorBytes != 0 || seen[d.ID] {
			return invalid("disk %q of %d bytes", d.ID, d.SizeBytes)
		}
		if d.SizeBytes%libvirtGrain != 0 && d.SizeBytes < smallestOdd {
			return invalid("disk %q of %d bytes: libvirt makes disks as small as that in whole KiB", d.ID, d.SizeBytes)
		}
		seen[d.ID] = true
	}
	return nil
}

// replaceable is a machine over which can be restored.
func (p *platform) replaceable(ctx context.Context, op sdk.Op, id sdk.MachineID) (sdk.Machine, error) {
	dom, err := p.machine(ctx, op, id)
	if err != nil {
		return sdk.Machine{}, err
	}
	m, d, err := p.look(ctx, dom)
	if err != nil {
		return m, err
	}
	if d.Metadata.Draft != nil {
		return m, notFound("machine %s", id)
	}
	if m.State != sdk.StateOff {
		return m, busy("machine %s is %s", id, m.State).WithHint("stop the machine before restoring over it")
	}
	if d.Metadata.Run.held() {
		return m, busy("a snapshot of machine %s is open", id).WithHint("wait until its backup has ended")
	}
	return m, nil
}

// choosePool finds where volumes go: the space's pool, the one asked for, the configured one, or the one named default.
func (p *platform) choosePool(ctx context.Context, s space, wanted string) (string, error) {
	if s.pool != "" && wanted != "" && wanted != s.pool {
		return "", sdk.Errorf(sdk.ErrDenied, sdk.FaultHost, "pool %s lies outside the space, whose pool is %s", wanted, s.pool)
	}
	name := defaultPool
	for _, candidate := range []string{s.pool, wanted, p.config.Pool} {
		if candidate != "" {
			name = candidate
			break
		}
	}
	text, err := ask(ctx, p.control, func(lv *libvirt.Libvirt) (string, error) {
		pool, err := lv.StoragePoolLookupByName(name)
		if err != nil {
			return "", err
		}
		return lv.StoragePoolGetXMLDesc(pool, 0)
	})
	if is(err, libvirt.ErrNoStoragePool) {
		return "", invalid("there is no pool %q", name).WithHint("pools here: %s", strings.Join(p.pools(ctx), ", "))
	}
	if err != nil {
		return "", err
	}
	pool, err := parseXML(text)
	if err != nil {
		return "", err
	}
	if kind := pool.get("type"); !slices.Contains([]string{"dir", "fs", "netfs"}, kind) {
		return "", sdk.Errorf(sdk.ErrUnsupported, sdk.FaultBackend, "pool %s is of type %s, which holds no qcow2 images", name, kind).
			WithHint("choose a pool of files; pools here: %s", strings.Join(p.pools(ctx), ", "))
	}
	return name, nil
}

func (p *platform) pools(ctx context.Context) []string {
	names, _ := ask(ctx, p.control, func(lv *libvirt.Libvirt) ([]string, error) {
		pools, _, err := lv.ConnectListAllStoragePools(everything, libvirt.ConnectListStoragePoolsActive)
		var names []string
		for _, pool := range pools {
			names = append(names, pool.Name)
		}
		return names, err
	})
	slices.Sort(names)
	return names
}

func (p *platform) networks(ctx context.Context) ([]string, error) {
	names, err := ask(ctx, p.control, func(lv *libvirt.Libvirt) ([]string, error) {
		networks, _, err := lv.ConnectListAllNetworks(everything, 0)
		var names []string
		for _, n := range networks {
			names = append(names, n.Name)
		}
		return names, err
	})
	slices.Sort(names)
	if errors.Is(err, sdk.ErrUnsupported) {
		return nil, nil // a session libvirtd may have no network driver
	}
	return names, err
}

// checkNetworks refuses networks that do not exist. A bridge of the host, which is no object of libvirt, is taken on
// trust when it is not mapped: the original used it.
func (p *platform) checkNetworks(ctx context.Context, spec sdk.DraftSpec) error {
	known, err := p.networks(ctx)
	if err != nil {
		return err
	}
	bridges := bridgesOf(spec.Machine.Native)
	for _, nic := range spec.Machine.NICs {
		name, mapped := spec.Networks[nic.Network]
		if !mapped {
			name = nic.Network
		}
		if name == "" || slices.Contains(known, name) || !mapped && slices.Contains(bridges, name) {
			continue
		}
		return invalid("there is no network %q", name).WithHint("networks here: %s", strings.Join(known, ", "))
	}
	return nil
}

func (p *platform) createVolume(ctx context.Context, d *draft, disk sdk.Disk) error {
	text := element("volume").with(
		element("name").withText(volumeName(d.space, d.meta.ID, disk.ID)),
		element("capacity", "unit", "bytes").withText(fmt.Sprint(disk.SizeBytes)),
		element("allocation").withText("0"),
		element("target").with(
			element("format", "type", "qcow2"),
			element("compat").withText("1.1"),
		),
	).String()
	err := do(ctx, p.control, func(lv *libvirt.Libvirt) error {
		pool, err := lv.StoragePoolLookupByName(d.meta.Pool)
		if err != nil {
			return err
		}
		vol, err := lv.StorageVolCreateXML(pool, text, 0)
		if is(err, libvirt.ErrStorageVolExist) {
			vol, err = lv.StorageVolLookupByName(pool, volumeName(d.space, d.meta.ID, disk.ID))
		}
		if err != nil || disk.SizeBytes%libvirtGrain == 0 {
			return err
		}
		return lv.StorageVolResize(vol, uint64(disk.SizeBytes), libvirt.StorageVolResizeShrink)
	})
	if err != nil {
		return fmt.Errorf("make the volume of disk %s: %w", disk.ID, err)
	}
	return nil
}

// libvirtGrain is to what libvirt rounds the size of a new volume up. Resizing knows sectors, but goes no lower than what
// an empty qcow2 image takes, which is less than smallestOdd.
const (
	libvirtGrain = 1024
	smallestOdd  = 1 << 20
)

// findDraft finds a draft in the operation's space and refuses an epoch lower than it has seen. A higher one is written
// down.
func (p *platform) findDraft(ctx context.Context, op sdk.Op, id string) (*draft, error) {
	if err := checkOp(op); err != nil {
		return nil, err
	}
	s, err := parseSpace(op.Space)
	if err != nil {
		return nil, err
	}
	doms, err := p.domains(ctx)
	if err != nil {
		return nil, err
	}
	i := slices.IndexFunc(doms, func(dom libvirt.Domain) bool { return strings.HasSuffix(dom.Name, keeperPrefix+id) })
	if i < 0 {
		return nil, notFound("draft %s", id)
	}
	dom := doms[i]
	described, _, err := p.describe(ctx, dom, inactiveXML)
	if err != nil {
		return nil, err
	}
	meta := described.Metadata.Draft
	if meta == nil || meta.ID != id {
		return nil, sdk.Errorf(sdk.ErrDenied, sdk.FaultBackend, "machine %s is not a draft of ours", dom.Name)
	}
	if !strings.HasPrefix(dom.Name, s.prefix) || s.pool != "" && s.pool != meta.Pool {
		return nil, sdk.Errorf(sdk.ErrDenied, sdk.FaultHost, "draft %s lies outside the space", id)
	}
	// The draft's own space, which an operation on the whole back-end does not name.
	own := space{pool: meta.Pool, prefix: strings.TrimSuffix(dom.Name, keeperPrefix+id)}
	d := &draft{dom: dom, meta: *meta, space: own}
	if err := json.Unmarshal([]byte(meta.Spec), &d.spec); err != nil {
		return nil, sdk.Errorf(nil, sdk.FaultBackend, "the request of draft %s: %v", id, err)
	}
	if op.Epoch < meta.Epoch {
		return nil, sdk.Errorf(sdk.ErrFenced, sdk.FaultHost, "epoch %d is older than %d, which draft %s has seen", op.Epoch, meta.Epoch, id)
	}
	if op.Epoch > meta.Epoch {
		d.meta.Epoch = op.Epoch
		if err := p.setMetadata(ctx, dom, xmlnsDraft, d.meta, libvirt.DomainAffectConfig); err != nil {
			return nil, err
		}
	}
	return d, nil
}

// committed finds the machine that a draft became, or nil.
func (p *platform) committed(ctx context.Context, s space, id string) (*libvirt.Domain, error) {
	doms, err := p.domains(ctx)
	if err != nil {
		return nil, err
	}
	for _, dom := range doms {
		if !strings.HasPrefix(dom.Name, s.prefix) {
			continue
		}
		d, _, err := p.describe(ctx, dom, inactiveXML)
		if errors.Is(err, sdk.ErrNotFound) {
			continue
		}
		if err != nil {
			return nil, err
		}
		if o := d.Metadata.Origin; o != nil && o.Draft == id {
			return &dom, nil
		}
	}
	return nil, nil
}

// AbortDraft removes the machine that holds the disks, and the disks.
func (p *platform) AbortDraft(ctx context.Context, op sdk.Op, dr sdk.Draft) error {
	ctx, cancel := steady(ctx)
	defer cancel()
	defer p.lock("draft " + dr.ID)()
	d, err := p.findDraft(ctx, op, dr.ID)
	if err != nil && !errors.Is(err, sdk.ErrNotFound) {
		return fmt.Errorf("abort draft: %w", err)
	}
	s, spaceErr := parseSpace(op.Space)
	if spaceErr != nil {
		return spaceErr
	}
	became, lookErr := p.committed(ctx, s, dr.ID)
	if lookErr != nil {
		return lookErr
	}
	if became != nil {
		return invalid("draft %s is committed as machine %s", dr.ID, machineID(*became))
	}
	if err != nil {
		return nil // an unknown draft
	}
	if err := p.stopKeeper(ctx, d); err != nil {
		return fmt.Errorf("abort draft %s: %w", dr.ID, err)
	}
	for _, disk := range d.spec.Machine.Disks {
		if err := p.deleteVolume(ctx, d, disk.ID); err != nil {
			return fmt.Errorf("abort draft %s: %w", dr.ID, err)
		}
	}
	// Last, for it is how the volumes are found.
	return p.undefine(ctx, d.dom)
}

func (p *platform) deleteVolume(ctx context.Context, d *draft, disk sdk.DiskID) error {
	err := do(ctx, p.control, func(lv *libvirt.Libvirt) error {
		pool, err := lv.StoragePoolLookupByName(d.meta.Pool)
		if err != nil {
			return err
		}
		vol, err := lv.StorageVolLookupByName(pool, volumeName(d.space, d.meta.ID, disk))
		if err != nil {
			return err
		}
		return lv.StorageVolDelete(vol, 0)
	})
	return ignore(err, sdk.ErrNotFound)
}

func (p *platform) undefine(ctx context.Context, dom libvirt.Domain) error {
	err := do(ctx, p.control, func(lv *libvirt.Libvirt) error { return lv.DomainUndefineFlags(dom, 0) })
	return ignore(err, sdk.ErrNotFound)
}
