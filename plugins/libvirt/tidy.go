package main

import (
	"context"
	"maps"
	"slices"
	"strconv"

	"github.com/digitalocean/go-libvirt"

	"github.com/holdfast-dr/holdfast/sdk"
	"github.com/holdfast-dr/holdfast/sdk/plugin"
)

// tidy removes what dead runs left on the machine, and takes up again the marks that the request names. It is called when
// a QEMU has the disks open and no backup runs, so that everything of this installation that is not kept is an orphan.
func (t *taking) tidy(ctx context.Context) error {
	if err := t.p.sweepMachine(ctx, t.dom, t.live); err != nil {
		return err
	}
	known, err := t.p.checkpoints(ctx, t.dom)
	if err != nil {
		return err
	}
	needed := named(t.req)
	for name, made := range known {
		if made.instance != t.ticket.instance || !made.open || needed[name] {
			continue
		}
		if err := t.p.deleteCheckpoint(ctx, t.dom, name); err != nil {
			return err
		}
		delete(known, name)
	}
	if !t.track {
		return nil
	}
	adopted := false
	for _, lost := range t.unknown(known) {
		adopted = t.adopt(ctx, lost) || adopted
	}
	if !adopted && t.allMarked(ctx) {
		return nil
	}
	// Asking QEMU itself is something that libvirt notes on the machine, so it is done only where history was lost anyway.
	if err := t.p.purge(ctx, t.dom, needed); err != nil {
		plugin.Log(ctx).Warn("look for bitmaps that nobody needs", "machine", t.dom.Name, "err", err)
	}
	return nil
}

// lostCheckpoint is one that the request names and libvirt does not know.
type lostCheckpoint struct {
	name  string
	disks []sdk.DiskID
}

func (t *taking) unknown(known map[string]checkpoint) []lostCheckpoint {
	var list []lostCheckpoint
	for _, id := range slices.Sorted(maps.Keys(t.req.Since)) {
		m, err := parseMark(t.req.Since[id])
		if err != nil {
			continue
		}
		if _, ok := known[m.Checkpoint]; ok {
			continue
		}
		i := slices.IndexFunc(list, func(l lostCheckpoint) bool { return l.name == m.Checkpoint })
		if i < 0 {
			i, list = len(list), append(list, lostCheckpoint{name: m.Checkpoint})
		}
		list[i].disks = append(list[i].disks, id)
	}
	return list
}

// adopt tells libvirt of a checkpoint whose bitmaps came with the images: the machine was migrated, or undefined and
// defined again. libvirt looks whether they are there and sound.
func (t *taking) adopt(ctx context.Context, lost lostCheckpoint) bool {
	made, ok := parseCheckpoint(lost.name)
	if !ok || made.instance != t.ticket.instance {
		return false
	}
	_, text, err := t.p.describe(ctx, t.dom, inactiveXML)
	if err != nil {
		return false
	}
	domain, err := parseXML(text)
	if err != nil {
		return false
	}
	made.epoch = t.op.Epoch
	disks := element("disks")
	for _, id := range lost.disks {
		disks.with(element("disk", "name", string(id), "checkpoint", "bitmap", "bitmap", lost.name))
	}
	redefined := element("domaincheckpoint").with(
		element("name").withText(lost.name),
		element("description").withText(made.description(stateKept)),
		element("creationTime").withText(strconv.FormatInt(made.stamp/1e6, 10)),
		disks, domain,
	)
	const flags = libvirt.DomainCheckpointCreateRedefine | libvirt.DomainCheckpointCreateRedefineValidate
	err = do(ctx, t.p.control, func(lv *libvirt.Libvirt) error {
		_, err := lv.DomainCheckpointCreateXML(t.dom, redefined.String(), uint32(flags))
		return err
	})
	return err == nil // otherwise nothing is known of what changed, which is said where the mark is used
}

// allMarked reports whether every disk that can be tracked has a mark to go on from.
func (t *taking) allMarked(ctx context.Context) bool {
	for id := range t.sizes {
		if d, _ := t.live.disk(id); !d.tracks() {
			continue
		}
		if _, why, err := t.validMark(ctx, id); err != nil || why != "" {
			return false
		}
	}
	return true
}

// purge removes bitmaps of this installation that belong to no checkpoint, such as those of a machine that was undefined,
// and checkpoints that have no bitmap, such as those of a machine that was away at another host.
func (p *platform) purge(ctx context.Context, dom libvirt.Domain, needed map[string]bool) error {
	known, err := p.checkpoints(ctx, dom)
	if err != nil {
		return err
	}
	devices, err := p.blockDevices(ctx, dom)
	if err != nil {
		return err
	}
	sound := make(map[string]bool)
	for _, device := range devices {
		for _, bitmap := range device.Inserted.Bitmaps {
			sound[bitmap.Name] = sound[bitmap.Name] || !bitmap.Inconsistent
			made, ours := parseCheckpoint(bitmap.Name)
			if _, ok := known[bitmap.Name]; ok || !ours || made.instance != p.instance || needed[bitmap.Name] {
				continue
			}
			arguments := map[string]any{"node": device.Inserted.Node, "name": bitmap.Name}
			if err := p.monitor(ctx, dom, "block-dirty-bitmap-remove", arguments, nil); err != nil {
				return err
			}
		}
	}
	for name, made := range known {
		if made.instance == p.instance && !needed[name] && !sound[name] {
			if err := p.deleteCheckpoint(ctx, dom, name); err != nil {
				return err
			}
		}
	}
	return nil
}
