package main

import (
	"context"
	"encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	"iter"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/digitalocean/go-libvirt"

	"github.com/holdfast-dr/holdfast/sdk"
)

// mark is what an sdk.Mark holds, as JSON: a checkpoint, and the disk that it was made of. A disk that was exchanged or
// resized has lost its marks.
type mark struct {
	Checkpoint string     `json:"checkpoint"`
	Disk       sdk.DiskID `json:"disk"`
	Image      string     `json:"image"`
	Serial     string     `json:"serial,omitempty"`
	Size       int64      `json:"size"`
}

func newMark(checkpoint string, d diskXML, size int64) sdk.Mark {
	data, err := json.Marshal(mark{
		Checkpoint: checkpoint, Disk: sdk.DiskID(d.Target.Dev), Image: d.where(), Serial: d.Serial, Size: size,
	})
	if err != nil || len(data) > sdk.MaxMark {
		return nil // a path that long is no path; the disk goes without tracking
	}
	return data
}

func parseMark(m sdk.Mark) (mark, error) {
	var k mark
	if len(m) > sdk.MaxMark {
		return k, invalid("a mark of %d bytes", len(m))
	}
	if err := json.Unmarshal(m, &k); err != nil {
		return k, invalid("not a mark of libvirt: %v", err)
	}
	return k, nil
}

type checkpointXML struct {
	XMLName     xml.Name         `xml:"domaincheckpoint"`
	Name        string           `xml:"name"`
	Description string           `xml:"description"`
	Disks       []checkpointDisk `xml:"disks>disk"`
}

type checkpointDisk struct {
	Name       string `xml:"name,attr"`
	Checkpoint string `xml:"checkpoint,attr"`
}

// description is what people read in virsh, and where the epoch is kept. It also says whether the snapshot was ended with
// its marks kept: a checkpoint that is still open when no backup runs was left by a run that died.
func (t ticket) description(state string) string {
	return fmt.Sprintf("Holdfast: base of the next backup; instance=%s epoch=%d op=%s %s", t.instance, t.epoch, t.op, state)
}

const (
	stateOpen = "state=open"
	stateKept = "state=kept"
)

var descriptionText = regexp.MustCompile(`instance=([0-9a-f]{8}) epoch=([0-9]{1,20}) op=([A-Za-z0-9_-]{1,64})`)

// checkpoint is one of Holdfast's as libvirt knows it.
type checkpoint struct {
	ticket
	open bool
}

func parseDescription(text string) (checkpoint, bool) {
	m := descriptionText.FindStringSubmatch(text)
	if m == nil {
		return checkpoint{}, false
	}
	epoch, err := strconv.ParseUint(m[2], 10, 64)
	return checkpoint{ticket{instance: m[1], epoch: epoch, op: m[3]}, strings.HasSuffix(text, stateOpen)}, err == nil
}

func (t *taking) checkpointXML() checkpointXML {
	c := checkpointXML{Name: t.ticket.checkpoint(), Description: t.ticket.description(stateOpen)}
	for _, d := range t.live.Devices.Disks {
		disk := checkpointDisk{Name: d.Target.Dev, Checkpoint: "no"}
		if _, chosen := t.sizes[sdk.DiskID(d.Target.Dev)]; chosen && d.tracks() {
			disk.Checkpoint = "bitmap"
		}
		c.Disks = append(c.Disks, disk)
	}
	return c
}

// covered are the disks of which a checkpoint has a bitmap; none if there is no such checkpoint.
func (p *platform) covered(ctx context.Context, dom libvirt.Domain, name string) (map[sdk.DiskID]bool, error) {
	text, err := ask(ctx, p.control, func(lv *libvirt.Libvirt) (string, error) {
		c, err := lv.DomainCheckpointLookupByName(dom, name, 0)
		if err != nil {
			return "", err
		}
		return lv.DomainCheckpointGetXMLDesc(c, uint32(libvirt.DomainCheckpointXMLNoDomain))
	})
	if is(err, libvirt.ErrNoDomainCheckpoint) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var c checkpointXML
	if err := xml.Unmarshal([]byte(text), &c); err != nil {
		return nil, sdk.Errorf(nil, sdk.FaultBackend, "libvirt's description of checkpoint %s: %v", name, err)
	}
	disks := make(map[sdk.DiskID]bool)
	for _, d := range c.Disks {
		if d.Checkpoint == "bitmap" {
			disks[sdk.DiskID(d.Name)] = true
		}
	}
	return disks, nil
}

// since are the marks of the request that still mean something. Why others do not goes into the note: the operator sees
// at once why a run read everything.
func (t *taking) since(ctx context.Context) (map[sdk.DiskID]mark, error) {
	valid := make(map[sdk.DiskID]mark)
	for _, id := range slices.Sorted(maps.Keys(t.req.Since)) {
		if _, chosen := t.sizes[id]; !chosen {
			continue
		}
		m, why, err := t.validMark(ctx, id)
		if err != nil {
			return nil, fmt.Errorf("look at the mark of disk %s: %w", id, err)
		}
		if why != "" {
			remark(&t.lost, "What changed on disk %s is not known: %s.", id, why)
			continue
		}
		valid[id] = m
	}
	return valid, nil
}

func (t *taking) validMark(ctx context.Context, id sdk.DiskID) (m mark, why string, err error) {
	d, _ := t.live.disk(id)
	switch m, err = parseMark(t.req.Since[id]); {
	case err != nil:
		return m, "its mark is not one of libvirt", nil
	case !t.track:
		return m, "libvirt does not track changes of a machine that has snapshots", nil
	case !d.tracks():
		return m, "its format " + d.Driver.Type + " holds no record of changes", nil
	case m.Disk != id || m.Image != d.where() || m.Serial != d.Serial:
		return m, "its mark is one of another disk", nil
	case m.Size != t.sizes[id]:
		return m, fmt.Sprintf("it had %d bytes at its mark and has %d now", m.Size, t.sizes[id]), nil
	}
	covered, err := t.p.covered(ctx, t.dom, m.Checkpoint)
	if err == nil && !covered[id] {
		why = "checkpoint " + m.Checkpoint + " is gone"
	}
	return m, why, err
}

// remark adds a sentence.
func remark(text *string, format string, args ...any) {
	*text = strings.TrimSpace(*text + " " + fmt.Sprintf(format, args...))
}

// forget removes checkpoints whose bitmaps turned out to be broken: nothing will ever be read from them.
func (t *taking) forget(ctx context.Context, broken map[sdk.DiskID]mark) {
	for _, m := range broken {
		// What cannot be removed now is removed when the mark is released.
		_ = t.p.deleteCheckpoint(ctx, t.dom, m.Checkpoint)
	}
}

// checkEpoch refuses an operation whose claim was overtaken, as the machine's open snapshot and its marks tell.
func (p *platform) checkEpoch(ctx context.Context, dom libvirt.Domain, j *job, op sdk.Op) error {
	highest := uint64(0)
	if j != nil && j.ours(p.instance) {
		highest = j.ticket.epoch
	}
	known, err := p.checkpoints(ctx, dom)
	if err != nil {
		return err
	}
	for _, made := range known {
		if made.instance == p.instance {
			highest = max(highest, made.epoch)
		}
	}
	if op.Epoch < highest {
		return sdk.Errorf(sdk.ErrFenced, sdk.FaultHost, "epoch %d is older than %d, which the machine has seen", op.Epoch, highest).
			WithHint("if no other run exists, its marks are left over: remove the checkpoints holdfast-… of machine %s with virsh checkpoint-delete", dom.Name)
	}
	return nil
}

// checkpoints are those that Holdfast made of a machine, by name, and what their descriptions tell of the snapshots that
// made them.
func (p *platform) checkpoints(ctx context.Context, dom libvirt.Domain) (map[string]checkpoint, error) {
	made, err := ask(ctx, p.control, func(lv *libvirt.Libvirt) (map[string]checkpoint, error) {
		list, _, err := lv.DomainListAllCheckpoints(dom, everything, 0)
		if err != nil {
			return nil, err
		}
		made := make(map[string]checkpoint)
		for _, c := range list {
			text, err := lv.DomainCheckpointGetXMLDesc(c, uint32(libvirt.DomainCheckpointXMLNoDomain))
			if err != nil {
				return nil, err
			}
			var known checkpointXML
			if err := xml.Unmarshal([]byte(text), &known); err != nil {
				return nil, err
			}
			if t, ok := parseDescription(known.Description); ok {
				made[c.Name] = t
			}
		}
		return made, nil
	})
	return made, ignore(err, sdk.ErrUnsupported)
}

// Changed reads the bitmap of the snapshot's job.
func (p *platform) Changed(ctx context.Context, snap sdk.Snapshot, disk sdk.DiskID) iter.Seq2[sdk.Extent, error] {
	return func(yield func(sdk.Extent, error) bool) {
		remote, err := p.openExport(ctx, snap, disk)
		if err == nil && remote.address.DirtyBitmap == "" {
			err = sdk.Errorf(sdk.ErrMarkLost, sdk.FaultBackend, "disk %s was taken without a base", disk)
		}
		if err != nil {
			yield(sdk.Extent{}, err)
			return
		}
		defer remote.Close()
		d, err := remote.dial(ctx)
		if err != nil {
			yield(sdk.Extent{}, fmt.Errorf("read the changes of disk %s: %w", disk, err))
			return
		}
		for e, err := range d.Dirty(ctx) {
			if !yield(e, err) || err != nil {
				return
			}
		}
	}
}

// ReleaseMark deletes the mark's checkpoint. libvirt merges its bitmap into the one before, so younger marks stay valid.
// The marks of one snapshot share a checkpoint: the first that is released takes it away for all.
func (p *platform) ReleaseMark(ctx context.Context, op sdk.Op, machine sdk.MachineID, _ sdk.DiskID, text sdk.Mark) error {
	m, err := parseMark(text)
	if err != nil {
		return nil // not one of ours, and so unknown
	}
	ctx, cancel := steady(ctx)
	defer cancel()
	dom, err := p.machine(ctx, op, machine)
	if errors.Is(err, sdk.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	defer p.lock(string(machine))()
	j, err := p.currentJob(ctx, dom)
	if err != nil {
		return err
	}
	if err := p.checkEpoch(ctx, dom, j, op); err != nil {
		return err
	}
	if err := p.deleteCheckpoint(ctx, dom, m.Checkpoint); err != nil {
		return fmt.Errorf("release a mark of machine %s: %w", machine, err)
	}
	if j != nil {
		return nil
	}
	return p.letGo(ctx, dom)
}

// keepCheckpoint writes on a checkpoint that its snapshot was ended and its marks are in use; nil if there is none.
func (p *platform) keepCheckpoint(ctx context.Context, dom libvirt.Domain, name string) error {
	return ignore(do(ctx, p.control, func(lv *libvirt.Libvirt) error {
		c, err := lv.DomainCheckpointLookupByName(dom, name, 0)
		if is(err, libvirt.ErrNoDomainCheckpoint) {
			return nil
		}
		if err != nil {
			return err
		}
		text, err := lv.DomainCheckpointGetXMLDesc(c, 0)
		if err != nil {
			return err
		}
		kept := strings.Replace(text, stateOpen+"</description>", stateKept+"</description>", 1)
		if kept == text {
			return nil
		}
		_, err = lv.DomainCheckpointCreateXML(dom, kept, uint32(libvirt.DomainCheckpointCreateRedefine))
		return err
	}), sdk.ErrUnsupported)
}

// deleteCheckpoint removes a checkpoint with its bitmaps; nil if there is none. Only a QEMU can change the bitmaps, so a
// machine that is off is started without running and stays so: the caller lets it go.
func (p *platform) deleteCheckpoint(ctx context.Context, dom libvirt.Domain, name string) error {
	c, err := ask(ctx, p.control, func(lv *libvirt.Libvirt) (libvirt.DomainCheckpoint, error) {
		return lv.DomainCheckpointLookupByName(dom, name, 0)
	})
	if is(err, libvirt.ErrNoDomainCheckpoint) || errors.Is(err, sdk.ErrUnsupported) {
		return nil
	}
	if err != nil {
		return err
	}
	state, err := p.state(ctx, dom)
	if err != nil {
		return err
	}
	if state == sdk.StateOff {
		if err := p.holdPaused(ctx, dom, sdk.Op{ID: name}); err != nil {
			return sdk.Errorf(sdk.ErrUnavailable, sdk.FaultBackend, "start the machine without running it, to delete %s: %v", name, err).
				WithHint("once the machine can start, it is deleted by the next attempt")
		}
	}
	remove := func(flags libvirt.DomainCheckpointDeleteFlags) error {
		return do(ctx, p.control, func(lv *libvirt.Libvirt) error { return lv.DomainCheckpointDelete(c, flags) })
	}
	err = remove(0)
	if err == nil || is(err, libvirt.ErrNoDomainCheckpoint) {
		return nil
	}
	if errors.Is(err, sdk.ErrBusy) || errors.Is(err, sdk.ErrUnavailable) {
		return err
	}
	// Its bitmap never reached the image, as after a crash of the host: nothing but libvirt's record is left to delete.
	return remove(libvirt.DomainCheckpointDeleteMetadataOnly)
}
