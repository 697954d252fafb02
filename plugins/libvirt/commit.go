package main

import (
	"context"
	"encoding/xml"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/digitalocean/go-libvirt"

	"github.com/holdfast-dr/holdfast/sdk"
)

// CommitDraft makes the draft's disks those of a machine. Every step can be repeated, and the draft is forgotten last.
func (p *platform) CommitDraft(ctx context.Context, op sdk.Op, dr sdk.Draft) (sdk.MachineID, error) {
	ctx, cancel := steady(ctx)
	defer cancel()
	defer p.lock("draft " + dr.ID)()
	id, err := p.commit(ctx, op, dr.ID)
	if err != nil {
		return "", fmt.Errorf("commit draft %s: %w", dr.ID, err)
	}
	return id, nil
}

func (p *platform) commit(ctx context.Context, op sdk.Op, id string) (sdk.MachineID, error) {
	d, err := p.findDraft(ctx, op, id)
	if err != nil && !errors.Is(err, sdk.ErrNotFound) {
		return "", err
	}
	s, spaceErr := parseSpace(op.Space)
	if spaceErr != nil {
		return "", spaceErr
	}
	became, lookErr := p.committed(ctx, s, id)
	if lookErr != nil {
		return "", lookErr
	}
	switch {
	case err != nil && became == nil:
		return "", err
	case err != nil:
		return machineID(*became), nil
	}
	if became == nil {
		dom, err := p.define(ctx, op, d)
		if err != nil {
			return "", err
		}
		became = &dom
	}
	for _, image := range d.meta.Replaced {
		if err := p.deleteImage(ctx, image); err != nil {
			return "", fmt.Errorf("delete the replaced image %s: %w", image, err)
		}
	}
	return machineID(*became), p.undefine(ctx, d.dom)
}

// define makes or changes the machine.
func (p *platform) define(ctx context.Context, op sdk.Op, d *draft) (libvirt.Domain, error) {
	var none libvirt.Domain
	paths, err := p.volumePaths(ctx, d)
	if err != nil {
		return none, err
	}
	origin, err := originNode(originMetadata{Draft: d.meta.ID, Op: op.ID, Epoch: op.Epoch})
	if err != nil {
		return none, err
	}
	var description *node
	if d.spec.Replace != "" {
		if description, err = p.replacement(ctx, op, d, paths); err != nil {
			return none, err
		}
	} else {
		kinds, err := p.domainTypes(ctx)
		if err != nil {
			return none, err
		}
		known, err := p.networks(ctx)
		if err != nil {
			return none, err
		}
		name, err := p.freeName(ctx, d.space, d.spec.Machine.Name)
		if err != nil {
			return none, err
		}
		description = newMachine(d.spec, paths, hostFacts{name: name, kinds: kinds, networks: known})
	}
	setOrigin(description, origin)
	if err := p.stopKeeper(ctx, d); err != nil {
		return none, err
	}
	return ask(ctx, p.control, func(lv *libvirt.Libvirt) (libvirt.Domain, error) {
		return lv.DomainDefineXMLFlags(description.String(), 0)
	})
}

func originNode(o originMetadata) (*node, error) {
	text, err := xml.Marshal(o)
	if err != nil {
		return nil, err
	}
	return parseXML(string(text))
}

// setOrigin writes where a machine came from, in place of where it came from before.
func setOrigin(domain, origin *node) {
	metadata := domain.need("metadata")
	metadata.dropIf(func(n *node) bool {
		_, local, prefixed := strings.Cut(n.name, ":")
		return n.name == "origin" && n.get("xmlns") == xmlnsOrigin || prefixed && local == "origin" && n.hasNamespace(xmlnsOrigin)
	})
	metadata.with(origin)
}

func (n *node) hasNamespace(uri string) bool {
	return slices.ContainsFunc(n.attrs, func(a attr) bool { return strings.HasPrefix(a.name, "xmlns") && a.value == uri })
}

// freeName is the wanted name inside the space, with a suffix if a machine has it already.
func (p *platform) freeName(ctx context.Context, s space, wanted string) (string, error) {
	base := wanted
	if !strings.HasPrefix(base, s.prefix) {
		base = s.prefix + base
	}
	doms, err := p.domains(ctx)
	if err != nil {
		return "", err
	}
	taken := make(map[string]bool)
	for _, dom := range doms {
		taken[dom.Name] = true
	}
	name := base
	for n := 1; taken[name]; n++ {
		name = base + "-restored"
		if n > 1 {
			name += "-" + strconv.Itoa(n)
		}
	}
	return name, nil
}

// replacement is the original's description with the new disks. Whatever knew the old ones is forgotten first: saved
// memory, which would be resumed onto disks of another time, and checkpoints, whose bitmaps go with the images.
func (p *platform) replacement(ctx context.Context, op sdk.Op, d *draft, paths map[sdk.DiskID]string) (*node, error) {
	if _, err := p.replaceable(ctx, op, d.spec.Replace); err != nil {
		return nil, err
	}
	dom, err := p.machine(ctx, op, d.spec.Replace)
	if err != nil {
		return nil, err
	}
	known, text, err := p.describe(ctx, dom, inactiveXML)
	if err != nil {
		return nil, err
	}
	description, err := parseXML(text)
	if err != nil {
		return nil, err
	}
	var replaced []string
	for _, disk := range known.Devices.Disks {
		if paths[sdk.DiskID(disk.Target.Dev)] != "" && disk.where() != "" {
			replaced = append(replaced, disk.where())
		}
	}
	if d.meta.Replaced == nil && len(replaced) > 0 {
		d.meta.Replaced = replaced
		if err := p.setMetadata(ctx, d.dom, xmlnsDraft, d.meta, libvirt.DomainAffectConfig); err != nil {
			return nil, err
		}
	}
	if err := p.forgetState(ctx, dom, known, paths); err != nil {
		return nil, err
	}
	exchange(description.need("devices"), d.spec.Machine.Disks, paths, false)
	return description, nil
}

func (p *platform) forgetState(ctx context.Context, dom libvirt.Domain, known domainXML, paths map[sdk.DiskID]string) error {
	saved, err := ask(ctx, p.control, func(lv *libvirt.Libvirt) (int32, error) { return lv.DomainHasManagedSaveImage(dom, 0) })
	if err == nil && saved != 0 {
		err = do(ctx, p.control, func(lv *libvirt.Libvirt) error { return lv.DomainManagedSaveRemove(dom, 0) })
	}
	if err != nil {
		return fmt.Errorf("forget the saved memory: %w", err)
	}
	checkpoints, err := ask(ctx, p.control, func(lv *libvirt.Libvirt) ([]libvirt.DomainCheckpoint, error) {
		list, _, err := lv.DomainListAllCheckpoints(dom, everything, 0)
		return list, err
	})
	if err != nil {
		return ignore(err, sdk.ErrUnsupported)
	}
	// A disk that stays keeps its image, and the image its bitmaps, unless a QEMU removes them.
	stays := slices.ContainsFunc(known.Devices.Disks, func(k diskXML) bool {
		return k.skip() == "" && k.tracks() && paths[sdk.DiskID(k.Target.Dev)] == ""
	})
	for _, c := range checkpoints {
		if stays {
			err = p.deleteCheckpoint(ctx, dom, c.Name)
		} else {
			err = do(ctx, p.control, func(lv *libvirt.Libvirt) error {
				return lv.DomainCheckpointDelete(c, libvirt.DomainCheckpointDeleteMetadataOnly)
			})
		}
		if err != nil {
			return fmt.Errorf("forget checkpoint %s: %w", c.Name, err)
		}
	}
	return p.letGo(ctx, dom)
}

// deleteImage removes an image that no machine uses any more. One that lies in no pool is removed where it can be
// reached, and left otherwise: the operator put it there by hand.
func (p *platform) deleteImage(ctx context.Context, image string) error {
	pool, volume, isVolume := strings.Cut(image, "/")
	if isVolume && pool != "" {
		err := do(ctx, p.control, func(lv *libvirt.Libvirt) error {
			in, err := lv.StoragePoolLookupByName(pool)
			if err != nil {
				return err
			}
			vol, err := lv.StorageVolLookupByName(in, volume)
			if err != nil {
				return err
			}
			return lv.StorageVolDelete(vol, 0)
		})
		return ignore(err, sdk.ErrNotFound)
	}
	if !strings.HasPrefix(image, "/") || strings.HasPrefix(image, "/dev/") {
		return nil
	}
	err := p.deleteFile(ctx, image)
	if !errors.Is(err, sdk.ErrNotFound) || !p.endpoint.local() {
		return ignore(err, sdk.ErrNotFound)
	}
	if err := os.Remove(image); err != nil && !errors.Is(err, os.ErrNotExist) {
		return sdk.Errorf(sdk.ErrDenied, sdk.FaultHost, "remove %s: %v", image, err)
	}
	return nil
}
