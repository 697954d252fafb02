package main

import (
	"context"
	"encoding/xml"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/digitalocean/go-libvirt"

	"github.com/holdfast-dr/holdfast/sdk"
)

// Snapshot begins a backup of all disks in one job, with a checkpoint of the same moment.
func (p *platform) Snapshot(ctx context.Context, op sdk.Op, req sdk.SnapshotRequest) (sdk.Snapshot, error) {
	snap, err := p.snapshot(ctx, op, req)
	if err != nil {
		return sdk.Snapshot{}, fmt.Errorf("snapshot machine %s: %w", req.Machine, err)
	}
	return snap, nil
}

func (p *platform) snapshot(ctx context.Context, op sdk.Op, req sdk.SnapshotRequest) (sdk.Snapshot, error) {
	if err := ctx.Err(); err != nil {
		return sdk.Snapshot{}, err
	}
	ctx, cancel := steady(ctx)
	defer cancel()
	dom, err := p.machine(ctx, op, req.Machine)
	if err != nil {
		return sdk.Snapshot{}, err
	}
	if err := p.nbdReady(); err != nil {
		return sdk.Snapshot{}, err
	}
	defer p.lock(string(req.Machine))()
	j, err := p.currentJob(ctx, dom)
	if err != nil {
		return sdk.Snapshot{}, err
	}
	if err := p.checkEpoch(ctx, dom, j, op); err != nil {
		return sdk.Snapshot{}, err
	}
	if j != nil {
		repeated, err := p.meet(ctx, dom, j, op, req)
		if err != nil {
			return sdk.Snapshot{}, err
		}
		if repeated {
			return p.resume(ctx, dom, j, req)
		}
	}
	t := &taking{p: p, dom: dom, op: op, req: req}
	t.ticket = ticket{instance: p.instance, epoch: op.Epoch, op: label(op.ID), stamp: time.Now().UnixMicro()}
	return t.take(ctx)
}

// meet decides what a running backup means for an operation: its own, from before a restart; one of a run that was
// overtaken, which is ended; or one to wait for.
func (p *platform) meet(ctx context.Context, dom libvirt.Domain, j *job, op sdk.Op, req sdk.SnapshotRequest) (own bool, err error) {
	switch {
	case !j.ours(p.instance):
		return false, busy("another program's backup of the machine is running").
			WithHint("wait for it, or end it with virsh domjobabort %s", dom.Name)
	case j.ticket.op == label(op.ID):
		return true, nil
	case j.ticket.epoch >= op.Epoch:
		return false, busy("snapshot %s of the machine is open", j.ticket.snapshotID(machineID(dom))).
			WithHint("end that snapshot first; a run with a newer claim ends it by itself")
	}
	// Its mark is kept if its point was committed and only its end was not.
	return false, p.end(ctx, dom, j.ticket.checkpoint(), j, named(req)[j.ticket.checkpoint()])
}

// named are the checkpoints that a request builds on.
func named(req sdk.SnapshotRequest) map[string]bool {
	names := make(map[string]bool)
	for _, text := range req.Since {
		if m, err := parseMark(text); err == nil {
			names[m.Checkpoint] = true
		}
	}
	return names
}

// resume answers a call that is repeated, perhaps by a fresh process, of which nobody knows whether the guard of the one
// before is still there.
func (p *platform) resume(ctx context.Context, dom libvirt.Domain, j *job, req sdk.SnapshotRequest) (sdk.Snapshot, error) {
	snap, err := p.reopen(ctx, dom, j, req)
	if err != nil || len(snap.Machine.Disks) == 0 || p.guarded(j.ticket.checkpoint()) {
		return snap, err
	}
	t := &taking{p: p, dom: dom, req: req, ticket: j.ticket, machine: snap.Machine}
	if first, ok := j.disk(snap.Machine.Disks[0].ID); ok && first.Scratch != nil {
		t.dirs = map[sdk.DiskID]string{snap.Machine.Disks[0].ID: dirOf(first.Scratch.File)}
	}
	t.req.Quiesce = sdk.QuiesceNone // nothing will be frozen any more
	t.post(ctx)
	p.keepGuard(j.ticket.checkpoint(), t.guard)
	return snap, nil
}

// reopen answers as the call that began the job did.
func (p *platform) reopen(ctx context.Context, dom libvirt.Domain, j *job, req sdk.SnapshotRequest) (sdk.Snapshot, error) {
	m, d, err := p.look(ctx, dom)
	if err != nil {
		return sdk.Snapshot{}, err
	}
	marks := make(map[sdk.DiskID]sdk.Mark)
	covered, err := p.covered(ctx, dom, j.ticket.checkpoint())
	if err != nil {
		return sdk.Snapshot{}, err
	}
	m.Disks = slices.DeleteFunc(m.Disks, func(k sdk.Disk) bool {
		_, in := j.disk(k.ID)
		return !in
	})
	for _, disk := range m.Disks {
		if covered[disk.ID] {
			known, _ := d.disk(disk.ID)
			marks[disk.ID] = newMark(j.ticket.checkpoint(), known, disk.SizeBytes)
		}
	}
	snap := sdk.Snapshot{
		ID: j.ticket.snapshotID(req.Machine), Machine: m, Achieved: sdk.QuiesceNone, Marks: marks,
		Taken: time.UnixMicro(j.ticket.stamp).UTC(),
	}
	if j.ticket.frozen {
		snap.Achieved = sdk.QuiesceFileSystem
	}
	snap.Note = lacking(req.Quiesce, snap.Achieved, m.State, d.agent())
	return snap, nil
}

// lacking explains, where nothing more exact is known, why less was achieved than asked.
func lacking(asked, achieved sdk.Quiesce, state sdk.State, agent bool) string {
	switch {
	case asked == "" || asked == sdk.QuiesceNone || asked == achieved:
		return ""
	case achieved == sdk.QuiesceFileSystem:
		return "The guest agent freezes file systems and runs the guest's freeze hooks, but cannot tell whether applications settled."
	case state == sdk.StateOff:
		return "" // nothing runs that could be more still
	case !agent:
		return "No guest agent answers, so file systems were not frozen."
	}
	return "File systems were not frozen."
}

// taking is the making of one snapshot.
type taking struct {
	p      *platform
	dom    libvirt.Domain
	op     sdk.Op
	req    sdk.SnapshotRequest
	ticket ticket

	machine sdk.Machine // with the chosen disks only
	live    domainXML
	sizes   map[sdk.DiskID]int64
	dirs    map[sdk.DiskID]string // for scratch files
	guard   *guard                // nil if it could not be started
	track   bool                  // make a checkpoint
	held    bool                  // started paused for this
	still   string                // why file systems were not frozen
	lost    string                // why changes are not known
}

func (t *taking) take(ctx context.Context) (snap sdk.Snapshot, err error) {
	if err := t.choose(ctx); err != nil {
		return sdk.Snapshot{}, err
	}
	if err := t.hold(ctx); err != nil {
		return sdk.Snapshot{}, err
	}
	if err := t.tidy(ctx); err != nil {
		return sdk.Snapshot{}, err
	}
	if t.dirs, err = t.p.scratchDirs(ctx, t.live); err != nil {
		return sdk.Snapshot{}, err
	}
	t.post(ctx)
	defer func() {
		if err != nil {
			// The caller gets the reason of the failure; what cannot be tidied up now the next run finds by its ticket.
			_ = t.p.end(ctx, t.dom, t.ticket.checkpoint(), nil, false)
			t.guard.dismiss()
			return
		}
		t.p.keepGuard(t.ticket.checkpoint(), t.guard)
	}()
	j, err := t.begin(ctx)
	if err != nil {
		return sdk.Snapshot{}, err
	}
	snap, err = t.p.reopen(ctx, t.dom, j, t.req)
	if t.still != "" {
		snap.Note = t.still
	}
	if t.lost != "" {
		remark(&snap.Note, "%s", t.lost)
	}
	return snap, err
}

// choose finds the disks to take.
func (t *taking) choose(ctx context.Context) error {
	m, live, err := t.p.look(ctx, t.dom)
	if err != nil {
		return err
	}
	if live.Metadata.Draft != nil {
		return notFound("machine %s", t.req.Machine)
	}
	wanted := t.req.Disks
	for _, id := range wanted {
		i := slices.IndexFunc(m.Disks, func(d sdk.Disk) bool { return d.ID == id })
		if i < 0 {
			return notFound("disk %s", id)
		}
		if skip := m.Disks[i].Skip; skip != "" {
			return invalid("disk %s cannot be part of a snapshot: %s", id, skip)
		}
	}
	m.Disks = slices.DeleteFunc(m.Disks, func(d sdk.Disk) bool {
		return d.Skip != "" || wanted != nil && !slices.Contains(wanted, d.ID)
	})
	if len(m.Disks) == 0 {
		return invalid("the machine has no disk to take").WithHint("probe the machine for the reasons")
	}
	t.machine, t.live, t.sizes = m, live, make(map[sdk.DiskID]int64)
	for _, d := range m.Disks {
		t.sizes[d.ID] = d.SizeBytes
		k, _ := live.disk(d.ID)
		t.track = t.track || k.tracks()
	}
	if t.track {
		snapshots, err := t.p.hasSnapshots(ctx, t.dom)
		if err != nil {
			return err
		}
		t.track = !snapshots
	}
	return nil
}

// hold starts a machine that is off with its processor stopped, since only a QEMU can serve its disks.
func (t *taking) hold(ctx context.Context) error {
	state, err := t.p.state(ctx, t.dom)
	if err != nil || state == sdk.StateRunning {
		return err
	}
	if state == sdk.StatePaused && !t.live.Metadata.Run.held() {
		return nil
	}
	if err := t.p.holdPaused(ctx, t.dom, t.op); err != nil {
		return fmt.Errorf("start the machine without running it: %w", err)
	}
	t.held = true
	_, t.live, err = t.p.look(ctx, t.dom)
	return err
}

// holdPaused starts a machine paused and writes on it that it is ours to destroy. A machine that is held already is
// taken over.
func (p *platform) holdPaused(ctx context.Context, dom libvirt.Domain, op sdk.Op) error {
	state, err := p.state(ctx, dom)
	if err != nil {
		return err
	}
	if state == sdk.StateOff {
		// Starting would load the saved memory and delete the file, and the guest would have been switched off.
		saved, err := ask(ctx, p.control, func(lv *libvirt.Libvirt) (int32, error) { return lv.DomainHasManagedSaveImage(dom, 0) })
		if err != nil {
			return err
		}
		if saved != 0 {
			return busy("the machine's memory is saved to disk").
				WithHint("start the machine, or forget what it was doing with virsh managedsave-remove %s", dom.Name)
		}
		if _, err := ask(ctx, p.control, func(lv *libvirt.Libvirt) (libvirt.Domain, error) {
			return lv.DomainCreateWithFlags(dom, uint32(libvirt.DomainStartPaused))
		}); err != nil {
			return err
		}
	}
	return p.setMetadata(ctx, dom, xmlnsRun, runMetadata{Op: op.ID, Held: "yes"}, libvirt.DomainAffectLive)
}

// letGo destroys a held machine, unless somebody set it running meanwhile, and forgets how an ended snapshot ended.
func (p *platform) letGo(ctx context.Context, dom libvirt.Domain) error {
	run, err := p.runOf(ctx, dom)
	if err == nil && !run.held() && run != nil && run.Broken != "" {
		return p.setMetadata(ctx, dom, xmlnsRun, nil, libvirt.DomainAffectLive)
	}
	if err != nil || !run.held() {
		return err
	}
	state, err := p.state(ctx, dom)
	if err != nil || state == sdk.StateOff {
		return err
	}
	if state != sdk.StatePaused {
		return p.setMetadata(ctx, dom, xmlnsRun, nil, libvirt.DomainAffectLive)
	}
	err = do(ctx, p.control, func(lv *libvirt.Libvirt) error { return lv.DomainDestroyFlags(dom, libvirt.DomainDestroyGraceful) })
	if is(err, libvirt.ErrOperationInvalid) {
		return nil
	}
	return err
}

// begin starts the job: as asked, and without marks if they are broken.
func (t *taking) begin(ctx context.Context) (*job, error) {
	since, err := t.since(ctx)
	if err != nil {
		return nil, err
	}
	err = t.attempt(ctx, since)
	if errors.Is(err, sdk.ErrMarkLost) && len(since) > 0 {
		remark(&t.lost, "What changed is not known: %v.", err)
		t.forget(ctx, since)
		err = t.attempt(ctx, nil)
	}
	if err != nil {
		return nil, err
	}
	j, err := t.p.currentJob(ctx, t.dom)
	if err == nil && j == nil {
		err = sdk.Errorf(sdk.ErrUnavailable, sdk.FaultBackend, "the backup ended as soon as it had begun")
	}
	return j, err
}

// attempt starts the job frozen, if that is asked and succeeds, and unfrozen otherwise.
func (t *taking) attempt(ctx context.Context, since map[sdk.DiskID]mark) error {
	if t.freezeLimit() > 0 && t.still == "" {
		if done, err := t.beginFrozen(ctx, since); done || err != nil {
			return err
		}
	}
	return t.start(ctx, since)
}

// start begins the job.
func (t *taking) start(ctx context.Context, since map[sdk.DiskID]mark) error {
	checkpoint := libvirt.OptString{}
	if t.track {
		text, err := xml.Marshal(t.checkpointXML())
		if err != nil {
			return err
		}
		checkpoint = libvirt.OptString{string(text)}
	}
	for attempt := range portAttempts {
		description, err := t.jobXML(since, attempt)
		if err != nil {
			return err
		}
		text, err := xml.Marshal(description)
		if err != nil {
			return err
		}
		err = do(ctx, t.p.control, func(lv *libvirt.Libvirt) error {
			return lv.DomainBackupBegin(t.dom, string(text), checkpoint, 0)
		})
		if !portTaken(err) {
			return brokenMark(err, since)
		}
	}
	return busy("all of %d ports tried for NBD are taken", portAttempts).WithHint("widen the setting nbd_ports")
}

// brokenMark is sdk.ErrMarkLost also for a checkpoint that vanished between the look and the use. That its bitmap is
// missing or damaged, libvirt says with a code that means just that.
func brokenMark(err error, since map[sdk.DiskID]mark) error {
	if len(since) > 0 && is(err, libvirt.ErrNoDomainCheckpoint) {
		return sdk.Errorf(sdk.ErrMarkLost, sdk.FaultBackend, "%v", err)
	}
	return err
}

func (t *taking) jobXML(since map[sdk.DiskID]mark, attempt int) (*job, error) {
	j := &job{Mode: "pull"}
	for _, d := range t.live.Devices.Disks {
		size, chosen := t.sizes[sdk.DiskID(d.Target.Dev)]
		if !chosen || size == 0 {
			j.Disks = append(j.Disks, jobDisk{Name: d.Target.Dev, Backup: "no"})
			continue
		}
		disk := jobDisk{
			Name: d.Target.Dev, Backup: "yes", Type: "file", Mode: "full",
			Export: t.ticket.export(sdk.DiskID(d.Target.Dev)),
			Scratch: &jobScratch{File: t.dirs[sdk.DiskID(d.Target.Dev)] + "/" +
				scratchName(t.p.filePrefix(t.machine.ID), t.ticket.stampText(), sdk.DiskID(d.Target.Dev))},
		}
		if m, ok := since[sdk.DiskID(d.Target.Dev)]; ok {
			disk.Mode, disk.Incremental, disk.Bitmap = "incremental", m.Checkpoint, bitmapName(disk.Name)
		}
		j.Disks = append(j.Disks, disk)
	}
	var err error
	j.Server, err = t.p.server(t.dirs[t.machine.Disks[0].ID], t.p.filePrefix(t.machine.ID)+t.ticket.stampText(), attempt)
	return j, err
}

func bitmapName(disk string) string { return "backup-" + disk } // libvirt's own default, spelled out

// EndSnapshot ends the job; without keep the checkpoint goes too.
func (p *platform) EndSnapshot(ctx context.Context, op sdk.Op, snap sdk.Snapshot, keep bool) error {
	id, checkpoint, ok := parseSnapshotID(snap.ID)
	if !ok {
		return nil // not one of ours, and so unknown
	}
	ctx, cancel := steady(ctx)
	defer cancel()
	dom, err := p.machine(ctx, op, id)
	if errors.Is(err, sdk.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	defer p.lock(string(id))()
	j, err := p.currentJob(ctx, dom)
	if err != nil {
		return err
	}
	if err := p.checkEpoch(ctx, dom, j, op); err != nil {
		return err
	}
	if err := p.end(ctx, dom, checkpoint, j, keep); err != nil {
		return fmt.Errorf("end snapshot %s: %w", snap.ID, err)
	}
	return nil
}

// end releases what a snapshot holds. j is the machine's job, if that is known.
func (p *platform) end(ctx context.Context, dom libvirt.Domain, checkpoint string, j *job, keep bool) error {
	if j == nil {
		var err error
		if j, err = p.currentJob(ctx, dom); err != nil {
			return err
		}
	}
	mine := j != nil && j.ours(p.instance) && j.ticket.checkpoint() == checkpoint
	if mine {
		if err := p.abort(ctx, dom, j); err != nil {
			return err
		}
		j = nil
	} else if j == nil || !j.ours(p.instance) {
		d, _, err := p.describe(ctx, dom, liveXML)
		if err != nil {
			return err
		}
		if err := p.sweepMachine(ctx, dom, d); err != nil {
			return err
		}
	}
	settle := p.deleteCheckpoint
	if keep {
		settle = p.keepCheckpoint
	}
	if err := settle(ctx, dom, checkpoint); err != nil {
		return err
	}
	p.relieve(checkpoint)
	if j != nil {
		return nil // a younger snapshot still needs the machine
	}
	return p.letGo(ctx, dom)
}
