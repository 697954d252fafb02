package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/digitalocean/go-libvirt"

	"github.com/holdfast-dr/holdfast/sdk"
)

const (
	defaultFreeze = 10 * time.Second
	// longestFreeze keeps a call below sdk.CallLimit whatever the caller allows.
	longestFreeze = 15 * time.Second
	thawAttempts  = 3
)

// beginFrozen starts the job while file systems are frozen. done is false if they could not be frozen, or not for as
// short as the deadline allows; the note says so, and the caller goes on without. However it ends, they are thawed: a
// freeze is followed by a thaw even if nobody knows whether it happened, on a connection of its own.
func (t *taking) beginFrozen(ctx context.Context, since map[sdk.DiskID]mark) (done bool, err error) {
	limit := t.req.Deadline
	if limit <= 0 {
		limit = defaultFreeze
	}
	limit = min(limit, longestFreeze)
	deadline := time.Now().Add(limit)
	if err := t.p.setAgentPatience(ctx, t.dom, limit); err != nil {
		remark(&t.still, "File systems were not frozen: %v.", err)
		return false, nil
	}
	defer func() { _ = t.p.restoreAgentPatience(ctx, t.dom) }() // fails only if the machine is gone
	thawed := make(chan error, 1)
	guard := time.AfterFunc(limit, func() { thawed <- t.p.thaw(context.WithoutCancel(ctx), t.dom) })
	_, err = ask(ctx, t.p.control, func(lv *libvirt.Libvirt) (int32, error) { return lv.DomainFsfreeze(t.dom, nil, 0) })
	if err == nil && time.Now().Before(deadline) {
		t.ticket.frozen = true
		err = t.start(ctx, since)
	} else if err != nil {
		remark(&t.still, "File systems were not frozen: %v.", err)
	}
	overran := !guard.Stop()
	var thawing error
	if overran {
		thawing = <-thawed
	} else {
		thawing = t.p.thaw(ctx, t.dom)
	}
	switch {
	case !t.ticket.frozen && err != nil:
		if thawing != nil {
			remark(&t.still, "Nor did the agent confirm that they are thawed: %v.", thawing)
		}
		return false, nil
	case !t.ticket.frozen || err == nil && overran:
		remark(&t.still, "File systems were thawed before the snapshot, because freezing took longer than %v.", limit)
		if t.ticket.frozen {
			err = t.p.end(ctx, t.dom, t.ticket.checkpoint(), nil, false)
		}
		t.ticket.frozen = false
		return false, t.mustThaw(err, thawing)
	case err != nil:
		t.ticket.frozen = false
		return false, t.mustThaw(err, thawing)
	}
	return true, t.mustThaw(nil, thawing)
}

// mustThaw makes a failed thaw the error that counts: a frozen guest is worse than a missing backup.
func (t *taking) mustThaw(err, thawing error) error {
	if thawing != nil {
		return errors.Join(fmt.Errorf("thaw the guest, which may still be frozen: %w", thawing), err)
	}
	return err
}

// thaw thaws the guest's file systems. Guests that are not frozen do not mind.
func (p *platform) thaw(ctx context.Context, dom libvirt.Domain) error {
	var err error
	for range thawAttempts {
		if _, err = ask(ctx, p.safety, func(lv *libvirt.Libvirt) (int32, error) { return lv.DomainFsthaw(dom, nil, 0) }); err == nil {
			return nil
		}
		if pause(ctx, 100*time.Millisecond) != nil {
			break
		}
	}
	return err
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
