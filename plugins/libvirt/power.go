package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/digitalocean/go-libvirt"

	"github.com/holdfast-dr/holdfast/sdk"
)

// Start powers a machine on. One that a snapshot holds is set running, and the snapshot goes on beside it.
func (p *platform) Start(ctx context.Context, op sdk.Op, id sdk.MachineID) error {
	ctx, cancel := steady(ctx)
	defer cancel()
	dom, err := p.machine(ctx, op, id)
	if err != nil {
		return err
	}
	defer p.lock(string(id))()
	if err := p.claim(ctx, dom, op); err != nil {
		return err
	}
	if err := p.start(ctx, dom); err != nil {
		return fmt.Errorf("start machine %s: %w", id, err)
	}
	return nil
}

func (p *platform) start(ctx context.Context, dom libvirt.Domain) error {
	d, _, err := p.describe(ctx, dom, liveXML)
	if err != nil {
		return err
	}
	state, err := p.state(ctx, dom)
	if err != nil {
		return err
	}
	switch state {
	case sdk.StateOff:
		err = do(ctx, p.control, func(lv *libvirt.Libvirt) error { return lv.DomainCreate(dom) })
	case sdk.StatePaused:
		if d.Metadata.Run.held() {
			if err := p.setMetadata(ctx, dom, xmlnsRun, nil, libvirt.DomainAffectLive); err != nil {
				return err
			}
		}
		err = do(ctx, p.control, func(lv *libvirt.Libvirt) error { return lv.DomainResume(dom) })
	}
	return err
}

// claim refuses an epoch lower than the machine was switched under before, and writes a higher one down.
func (p *platform) claim(ctx context.Context, dom libvirt.Domain, op sdk.Op) error {
	d, _, err := p.describe(ctx, dom, inactiveXML)
	if err != nil {
		return err
	}
	if d.Metadata.Draft != nil {
		return notFound("machine %s", machineID(dom))
	}
	known := uint64(0)
	if d.Metadata.Claim != nil {
		known = d.Metadata.Claim.Epoch
	}
	switch {
	case op.Epoch < known:
		return sdk.Errorf(sdk.ErrFenced, sdk.FaultHost, "epoch %d is older than %d, which machine %s has seen", op.Epoch, known, machineID(dom))
	case op.Epoch > known:
		return p.setMetadata(ctx, dom, xmlnsClaim, claimMetadata{Epoch: op.Epoch}, libvirt.DomainAffectConfig)
	}
	return nil
}

// stopAgain is when to ask again for a guest that is shutting down.
const stopAgain = 2 * time.Second

// Stop asks the guest to shut down and pulls the plug when its grace is over. When that is is written on the machine, so
// that a repeat by a fresh process waits no longer than the first call would have.
func (p *platform) Stop(ctx context.Context, op sdk.Op, id sdk.MachineID, grace time.Duration) error {
	began := time.Now()
	work, cancel := steady(ctx)
	defer cancel()
	dom, err := p.machine(work, op, id)
	if err != nil {
		return err
	}
	defer p.lock(string(id))()
	if err := p.claim(work, dom, op); err != nil {
		return err
	}
	end, err := p.shutdown(work, dom, op, grace)
	if err != nil || end.IsZero() {
		return err
	}
	for {
		state, err := p.state(work, dom)
		if err != nil || state == sdk.StateOff {
			return ignore(err, sdk.ErrNotFound)
		}
		if time.Now().After(end) {
			return p.pullPlug(work, dom)
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if time.Since(began) > workLimit-5*time.Second {
			pending := sdk.Errorf(sdk.ErrPending, sdk.FaultBackend, "machine %s is shutting down", id)
			pending.After = stopAgain
			return pending
		}
		if err := pause(work, 100*time.Millisecond); err != nil {
			return err
		}
	}
}

// shutdown asks the guest, if it was not asked by this operation before, and says when the plug is pulled; zero if there
// is nothing to wait for.
func (p *platform) shutdown(ctx context.Context, dom libvirt.Domain, op sdk.Op, grace time.Duration) (time.Time, error) {
	state, err := p.state(ctx, dom)
	if err != nil || state == sdk.StateOff {
		return time.Time{}, err
	}
	run, err := p.runOf(ctx, dom)
	if err != nil {
		return time.Time{}, err
	}
	if run.held() {
		return time.Time{}, nil // off, for everybody but the snapshot that holds it
	}
	if run != nil && run.Op == op.ID && run.Stop != "" {
		end, err := time.Parse(time.RFC3339Nano, run.Stop)
		if err == nil {
			return end, nil
		}
	}
	if grace <= 0 || state != sdk.StateRunning {
		return time.Time{}, p.pullPlug(ctx, dom)
	}
	end := time.Now().Add(grace)
	mark := runMetadata{Op: op.ID, Stop: end.UTC().Format(time.RFC3339Nano)}
	if err := p.setMetadata(ctx, dom, xmlnsRun, mark, libvirt.DomainAffectLive); err != nil {
		return time.Time{}, err
	}
	err = do(ctx, p.control, func(lv *libvirt.Libvirt) error {
		return lv.DomainShutdownFlags(dom, libvirt.DomainShutdownDefault)
	})
	if is(err, libvirt.ErrOperationInvalid) {
		return time.Time{}, nil // it stopped by itself meanwhile
	}
	return end, err
}

func (p *platform) pullPlug(ctx context.Context, dom libvirt.Domain) error {
	err := do(ctx, p.control, func(lv *libvirt.Libvirt) error { return lv.DomainDestroy(dom) })
	if is(err, libvirt.ErrOperationInvalid) || is(err, libvirt.ErrNoDomain) {
		return nil
	}
	return err
}

// ignore turns an error of a kind into none.
func ignore(err, kind error) error {
	if errors.Is(err, kind) {
		return nil
	}
	return err
}
