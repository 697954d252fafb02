package main

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"
	"strings"

	"github.com/digitalocean/go-libvirt"
	"golang.org/x/sync/errgroup"

	"github.com/holdfast-dr/holdfast/sdk"
)

// everything asks a listing call of libvirt for objects and not only for their number.
const everything = 1

// Machines lists all machines but drafts.
func (p *platform) Machines(ctx context.Context) iter.Seq2[sdk.Machine, error] {
	return func(yield func(sdk.Machine, error) bool) {
		doms, err := p.domains(ctx)
		if err != nil {
			yield(sdk.Machine{}, fmt.Errorf("list machines: %w", err))
			return
		}
		for some := range slices.Chunk(doms, lookedAtOnce*16) {
			machines, err := p.lookAll(ctx, some)
			for _, m := range machines {
				if m != nil && !yield(*m, nil) {
					return
				}
			}
			if err != nil {
				yield(sdk.Machine{}, err)
				return
			}
		}
	}
}

// lookedAtOnce is how many calls a listing has under way: libvirtd works on five of one client, and one is left for others.
const lookedAtOnce = 4

// lookAll looks at several machines at once. What is gone, or no machine yet, is nil.
func (p *platform) lookAll(ctx context.Context, doms []libvirt.Domain) ([]*sdk.Machine, error) {
	machines := make([]*sdk.Machine, len(doms))
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(lookedAtOnce)
	for i, dom := range doms {
		group.Go(func() error {
			m, err := p.show(ctx, dom)
			machines[i] = m
			return err
		})
	}
	return machines, group.Wait()
}

// show is a machine as Machines lists it; nil if it is gone, or no machine yet.
func (p *platform) show(ctx context.Context, dom libvirt.Domain) (*sdk.Machine, error) {
	m, d, err := p.look(ctx, dom)
	switch {
	case errors.Is(err, sdk.ErrNotFound), err == nil && d.Metadata.Draft != nil:
		return nil, nil
	case err != nil:
		return nil, fmt.Errorf("look at machine %s: %w", dom.Name, err)
	}
	return &m, nil
}

func (p *platform) domains(ctx context.Context) ([]libvirt.Domain, error) {
	return ask(ctx, p.control, func(lv *libvirt.Libvirt) ([]libvirt.Domain, error) {
		doms, _, err := lv.ConnectListAllDomains(everything, 0)
		return doms, err
	})
}

// Versions that the abilities need, in libvirt's numbers: major*1000000 + minor*1000 + release.
const (
	oldestLibvirt = 7_002_000 // checkpoints and incremental backup without experimental flags
	oldestQEMU    = 4_002_000 // dirty bitmaps that can be merged and persist
)

// Probe says what works now.
func (p *platform) Probe(ctx context.Context, subject sdk.Subject) (sdk.Report, error) {
	report, err := p.probeEndpoint(ctx)
	if err != nil {
		return p.unreachableReport(subject, err)
	}
	if subject.Machine == "" {
		return report, nil
	}
	dom, err := p.domain(ctx, subject.Machine)
	if err != nil {
		return sdk.Report{}, err
	}
	m, d, err := p.look(ctx, dom)
	if err != nil {
		return sdk.Report{}, err
	}
	if d.Metadata.Draft != nil {
		return sdk.Report{}, notFound("machine %s", subject.Machine)
	}
	if subject.Disk != "" {
		return report, probeDisk(&report, d, subject.Disk)
	}
	return report, p.probeMachine(ctx, &report, dom, m, d)
}

func (p *platform) unreachableReport(subject sdk.Subject, err error) (sdk.Report, error) {
	if subject != (sdk.Subject{}) || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return sdk.Report{}, err
	}
	report := sdk.Report{Product: "libvirt at " + p.endpoint.addr}
	for _, a := range abilities {
		report.Findings = append(report.Findings, sdk.Finding{
			Ability: a, Reason: fmt.Sprintf("The endpoint cannot be used: %v.", err), Hint: sdk.HintOf(err),
		})
	}
	return report, nil
}

var abilities = []sdk.Ability{sdk.AbilitySource, sdk.AbilityChangeTracker, sdk.AbilityTarget, sdk.AbilityPower, sdk.AbilityWatcher}

func (p *platform) probeEndpoint(ctx context.Context) (sdk.Report, error) {
	library, err := ask(ctx, p.control, (*libvirt.Libvirt).ConnectGetLibVersion)
	if err != nil {
		return sdk.Report{}, err
	}
	qemu, err := ask(ctx, p.control, (*libvirt.Libvirt).ConnectGetVersion)
	if err != nil {
		return sdk.Report{}, err
	}
	report := sdk.Report{Product: fmt.Sprintf("QEMU %s, libvirt %s", dotted(qemu), dotted(library))}
	for _, a := range abilities {
		report.Findings = append(report.Findings, sdk.Finding{Ability: a, Works: true})
	}
	if library < oldestLibvirt || qemu < oldestQEMU {
		deny(&report, sdk.AbilitySource, "Backup needs libvirt 7.2 and QEMU 4.2 or later.", "upgrade the host")
		deny(&report, sdk.AbilityChangeTracker, "Backup needs libvirt 7.2 and QEMU 4.2 or later.", "upgrade the host")
	}
	if err := p.nbdReady(); err != nil {
		deny(&report, sdk.AbilitySource, sentence(err), sdk.HintOf(err))
		deny(&report, sdk.AbilityTarget, sentence(err), sdk.HintOf(err))
	}
	if _, err := p.choosePool(ctx, space{}, ""); err != nil {
		deny(&report, sdk.AbilityTarget, sentence(err), sdk.HintOf(err))
	}
	return report, nil
}

// deny says that an ability does not work; the first reason stays.
func deny(r *sdk.Report, a sdk.Ability, reason, hint string) {
	for i, f := range r.Findings {
		if f.Ability == a && f.Works {
			r.Findings[i] = sdk.Finding{Ability: a, Reason: reason, Hint: hint}
		}
	}
}

// limit says in what reduced form an ability works.
func limit(r *sdk.Report, a sdk.Ability, reason, hint string) {
	for i, f := range r.Findings {
		if f.Ability == a && f.Works && f.Reason == "" {
			r.Findings[i].Reason, r.Findings[i].Hint = reason, hint
		}
	}
}

func sentence(err error) string {
	var e *sdk.Error
	if errors.As(err, &e) && e.Message != "" {
		return strings.ToUpper(e.Message[:1]) + e.Message[1:] + "."
	}
	return err.Error() + "."
}

func dotted(n uint64) string { return fmt.Sprintf("%d.%d.%d", n/1_000_000, n/1000%1000, n%1000) }

const (
	hintConvert  = "convert the disk to qcow2"
	hintSnapshot = "delete the machine's snapshots"
)

func probeDisk(r *sdk.Report, d domainXML, id sdk.DiskID) error {
	disk, ok := d.disk(id)
	if !ok {
		return notFound("disk %s of machine %s", id, d.UUID)
	}
	if skip := disk.skip(); skip != "" {
		deny(r, sdk.AbilitySource, fmt.Sprintf("Disk %s is left out: %s.", id, skip), "")
		deny(r, sdk.AbilityChangeTracker, fmt.Sprintf("Disk %s is left out: %s.", id, skip), "")
	} else if !disk.tracks() {
		deny(r, sdk.AbilityChangeTracker, fmt.Sprintf("Disk %s has format %s, which cannot hold a record of changes; every run reads all of it.", id, disk.Driver.Type), hintConvert)
	}
	return nil
}

func (p *platform) probeMachine(ctx context.Context, r *sdk.Report, dom libvirt.Domain, m sdk.Machine, d domainXML) error {
	var tracked, usable int
	for _, disk := range d.Devices.Disks {
		if disk.skip() == "" {
			usable++
			if disk.tracks() {
				tracked++
			}
		}
	}
	snapshots, err := p.hasSnapshots(ctx, dom)
	if err != nil {
		return err
	}
	switch {
	case usable == 0:
		deny(r, sdk.AbilitySource, "The machine has no disk that can be read.", "")
		deny(r, sdk.AbilityChangeTracker, "The machine has no disk that can be read.", "")
	case snapshots:
		deny(r, sdk.AbilityChangeTracker, "libvirt does not track changes of a machine that has snapshots; every run reads all of its disks.", hintSnapshot)
	case tracked == 0:
		deny(r, sdk.AbilityChangeTracker, "No disk has a format that can hold a record of changes; every run reads all of them.", hintConvert)
	case tracked < usable:
		limit(r, sdk.AbilityChangeTracker, fmt.Sprintf("%d of %d disks have a format that can hold a record of changes; the others are read whole.", tracked, usable), hintConvert)
	}
	switch job, err := p.currentJob(ctx, dom); {
	case err != nil:
		return err
	case job != nil && !job.ours(p.instance):
		deny(r, sdk.AbilitySource, "Another program's backup of the machine is running.", "wait for it, or end it with virsh domjobabort")
	}
	if m.State == sdk.StateRunning && !d.agent() {
		limit(r, sdk.AbilitySource, "No guest agent answers, so file systems cannot be frozen; snapshots are as after a power cut.", "install qemu-guest-agent in the guest and give the machine its channel")
	}
	if m.State == sdk.StateOff {
		limit(r, sdk.AbilitySource, "The machine is off; for a snapshot it is started without its processor running.", "")
	}
	return nil
}

func (p *platform) hasSnapshots(ctx context.Context, dom libvirt.Domain) (bool, error) {
	return ask(ctx, p.control, func(lv *libvirt.Libvirt) (bool, error) {
		n, err := lv.DomainSnapshotNum(dom, 0)
		return n > 0, err
	})
}

// Cancel finds nothing to give up: every call but a graceful stop is done when it returns, and a guest that was asked to
// shut down cannot be asked not to.
func (p *platform) Cancel(ctx context.Context, opID string) error {
	doms, err := p.domains(ctx)
	if err != nil {
		return err
	}
	for _, dom := range doms {
		run, err := p.runOf(ctx, dom)
		if err == nil && run != nil && run.Stop != "" && run.Op == opID {
			return sdk.Errorf(sdk.ErrCannotCancel, sdk.FaultBackend, "machine %s was asked to shut down", machineID(dom))
		}
	}
	return nil
}
