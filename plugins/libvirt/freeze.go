package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/digitalocean/go-libvirt"

	"github.com/holdfast-dr/holdfast/sdk"
	"github.com/holdfast-dr/holdfast/sdk/plugin"
)

const (
	defaultFreeze = 10 * time.Second
	// longestFreeze keeps a call below sdk.CallLimit whatever the caller allows.
	longestFreeze = 15 * time.Second
	thawAttempts  = 3
)

// beginFrozen starts the job while file systems are frozen. done is false if they could not be frozen, or not for as
// short as the deadline allows; the note says so, and the caller goes on without. However it ends, they are thawed: a
// freeze is followed by a thaw even if nobody knows whether it happened, on a connection of its own. If this process does
// not live to do so, its guard does: nothing is frozen without one.
func (t *taking) beginFrozen(ctx context.Context, since map[sdk.DiskID]mark) (done bool, err error) {
	if t.guard == nil {
		return false, nil
	}
	limit := t.freezeLimit()
	deadline := time.Now().Add(limit)
	t.guard.say(wordFreeze)
	defer t.guard.say(wordThawed)
	if err := t.p.setAgentPatience(ctx, t.dom, limit); err != nil {
		remark(&t.still, "File systems were not frozen: %v.", err)
		return false, nil
	}
	defer func() { _ = t.p.restoreAgentPatience(ctx, t.dom) }() // fails only if the machine is gone
	thawed := make(chan thaw, 1)
	timer := time.AfterFunc(limit, func() { thawed <- t.p.thaw(context.WithoutCancel(ctx), t.dom) })
	stilled, err := ask(ctx, t.p.control, func(lv *libvirt.Libvirt) (int32, error) { return lv.DomainFsfreeze(t.dom, nil, 0) })
	if err == nil && time.Now().Before(deadline) {
		t.ticket.frozen = true
		t.p.whileFrozen()
		err = t.start(ctx, since)
	} else if err != nil {
		remark(&t.still, "File systems were not frozen: %v.", err)
	}
	overran := !timer.Stop()
	var end thaw
	if overran {
		end = <-thawed
	} else {
		end = t.p.thaw(ctx, t.dom)
		// Whoever thawed them before did so at an unknown time: another program, or the guard of a run that died.
		overran = t.ticket.frozen && stilled > 0 && end.err == nil && end.count == 0
	}
	switch {
	case !t.ticket.frozen && err != nil:
		if end.err != nil {
			remark(&t.still, "Nor did the agent confirm that they are thawed: %v.", end.err)
		}
		return false, nil
	case !t.ticket.frozen || err == nil && overran:
		remark(&t.still, "File systems were thawed before the snapshot was there, by somebody else or because freezing took longer than %v.", limit)
		if t.ticket.frozen {
			err = t.p.end(ctx, t.dom, t.ticket.checkpoint(), nil, false)
		}
		t.ticket.frozen = false
		return false, t.mustThaw(err, end.err)
	case err != nil:
		t.ticket.frozen = false
		return false, t.mustThaw(err, end.err)
	}
	return true, t.mustThaw(nil, end.err)
}

// freezeLimit is how long the guest may be frozen; 0 if it shall not be at all.
func (t *taking) freezeLimit() time.Duration {
	asked := t.req.Quiesce == sdk.QuiesceFileSystem || t.req.Quiesce == sdk.QuiesceApplication
	switch {
	case !asked || t.machine.State != sdk.StateRunning || !t.live.agent():
		return 0
	case t.req.Deadline <= 0:
		return defaultFreeze
	}
	return min(t.req.Deadline, longestFreeze)
}

// post starts the guard. Without one nothing is frozen, and the scratch files have no other bound than the disk.
func (t *taking) post(ctx context.Context) {
	order := guardOrder{
		Config: t.p.config, Machine: t.machine.ID, Checkpoint: t.ticket.checkpoint(), Freeze: t.freezeLimit(),
		Scratch: t.p.limitScratch(ctx, t.dirs[t.machine.Disks[0].ID]),
	}
	var err error
	if t.guard, err = startGuard(ctx, order); err == nil {
		return
	}
	plugin.Log(ctx).Warn("a snapshot without a guard", "machine", t.dom.Name, "err", err)
	if order.Freeze > 0 {
		remark(&t.still, "File systems were not frozen: %v.", err)
	}
}

// mustThaw makes a failed thaw the error that counts: a frozen guest is worse than a missing backup.
func (t *taking) mustThaw(err, thawing error) error {
	if thawing != nil {
		return errors.Join(fmt.Errorf("thaw the guest, which may still be frozen: %w", thawing), err)
	}
	return err
}

// thaw is how a thaw ended.
type thaw struct {
	count int32 // of file systems that were frozen until then
	err   error
}

// thaw thaws the guest's file systems. Guests that are not frozen do not mind.
func (p *platform) thaw(ctx context.Context, dom libvirt.Domain) (end thaw) {
	for range thawAttempts {
		end.count, end.err = ask(ctx, p.safety, func(lv *libvirt.Libvirt) (int32, error) { return lv.DomainFsthaw(dom, nil, 0) })
		if end.err == nil || pause(ctx, 100*time.Millisecond) != nil {
			break
		}
	}
	return end
}

// setAgentPatience makes libvirt give up on a silent agent in time; by default it waits for ever.
func (p *platform) setAgentPatience(ctx context.Context, dom libvirt.Domain, limit time.Duration) error {
	return p.agentTimeout(ctx, dom, int32(max(1, limit/time.Second)))
}

func (p *platform) restoreAgentPatience(ctx context.Context, dom libvirt.Domain) error {
	return p.agentTimeout(ctx, dom, int32(libvirt.DomainAgentResponseTimeoutBlock))
}

func (p *platform) agentTimeout(ctx context.Context, dom libvirt.Domain, seconds int32) error {
	return do(ctx, p.control, func(lv *libvirt.Libvirt) error {
		_, err := lv.DomainAgentSetResponseTimeout(dom, seconds, 0)
		return err
	})
}
