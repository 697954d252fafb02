package main

import (
	"context"
	"fmt"
	"iter"
	"sync"
	"time"

	"github.com/digitalocean/go-libvirt"

	"github.com/holdfast-dr/holdfast/sdk"
)

// stillThere is how often a watch that hears nothing asks libvirtd whether it is still there: a host that lost its power
// ends no connection.
const stillThere = 30 * time.Second

// watchedEvents are those after which a machine may be described differently. libvirt tells of no change of a disk's size;
// it is seen with the next event, and by every backup.
var watchedEvents = []libvirt.DomainEventID{
	libvirt.DomainEventIDLifecycle, libvirt.DomainEventIDMetadataChange, libvirt.DomainEventIDDeviceAdded,
	libvirt.DomainEventIDDeviceRemoved, libvirt.DomainEventIDDiskChange, libvirt.DomainEventIDBlockJob,
}

// Watch follows libvirt's events, over a connection of its own: one of control may be slow, and ends when a call hangs.
func (p *platform) Watch(ctx context.Context) iter.Seq2[sdk.Change, error] {
	return func(yield func(sdk.Change, error) bool) {
		c := &connection{endpoint: p.endpoint}
		defer func() { _ = c.close() }() // which never fails
		w := &watch{changed: make(map[libvirt.UUID]bool), wake: make(chan struct{}, 1)}
		lost, err := w.listen(ctx, c)
		if err != nil {
			yield(sdk.Change{}, fmt.Errorf("watch the inventory: %w", err))
			return
		}
		if !yield(sdk.Change{}, nil) {
			return
		}
		alive := time.NewTicker(stillThere)
		defer alive.Stop()
		for {
			var err error
			select {
			case <-w.wake:
				for _, id := range w.take() {
					change, failed := p.changeOf(ctx, id)
					if failed != nil {
						err = failed
						break
					}
					if !yield(change, nil) {
						return
					}
				}
			case <-alive.C:
				_, err = ask(ctx, c, (*libvirt.Libvirt).ConnectGetLibVersion)
			case <-lost:
				err = sdk.Errorf(sdk.ErrUnavailable, sdk.FaultBackend, "the connection to libvirt at %s was lost", p.endpoint.addr)
			case <-ctx.Done():
				err = ctx.Err()
			}
			if err != nil {
				yield(sdk.Change{}, fmt.Errorf("watch the inventory: %w", err))
				return
			}
		}
	}
}

// changeOf is a machine as it is now.
func (p *platform) changeOf(ctx context.Context, id libvirt.UUID) (sdk.Change, error) {
	change := sdk.Change{Machine: machineID(libvirt.Domain{UUID: id})}
	dom, err := ask(ctx, p.control, func(lv *libvirt.Libvirt) (libvirt.Domain, error) { return lv.DomainLookupByUUID(id) })
	if is(err, libvirt.ErrNoDomain) {
		return change, nil
	}
	if err != nil {
		return change, err
	}
	change.Now, err = p.show(ctx, dom)
	return change, err
}

// watch collects what events speak of. A machine that changes faster than it is looked at is looked at once.
type watch struct {
	mu      sync.Mutex // guards changed
	changed map[libvirt.UUID]bool
	wake    chan struct{}
}

func (w *watch) note(id libvirt.UUID) {
	w.mu.Lock()
	w.changed[id] = true
	w.mu.Unlock()
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

func (w *watch) take() []libvirt.UUID {
	w.mu.Lock()
	defer w.mu.Unlock()
	var ids []libvirt.UUID
	for id := range w.changed {
		ids = append(ids, id)
	}
	clear(w.changed)
	return ids
}

// listen subscribes to the events until the connection ends, which lost tells.
func (w *watch) listen(ctx context.Context, c *connection) (lost <-chan struct{}, err error) {
	for _, event := range watchedEvents {
		err := do(ctx, c, func(lv *libvirt.Libvirt) error {
			lost = lv.Disconnected()
			// The library ends a subscription with its context; the connection ends first.
			stream, err := lv.SubscribeEvents(context.WithoutCancel(ctx), event, nil)
			if err == nil {
				go w.read(stream)
			}
			return err
		})
		if err != nil {
			return nil, err
		}
	}
	return lost, nil
}

func (w *watch) read(stream <-chan any) {
	for event := range stream {
		if id, ok := concerns(event); ok {
			w.note(id)
		}
	}
}

// concerns is the machine that an event is about, if the inventory shows what it tells.
func concerns(event any) (libvirt.UUID, bool) {
	switch e := event.(type) {
	case *libvirt.DomainEventCallbackLifecycleMsg:
		return e.Msg.Dom.UUID, true
	case *libvirt.DomainEventCallbackMetadataChangeMsg:
		// Claims and origins are ours alone.
		for _, uri := range e.Nsuri {
			if uri == xmlnsClaim || uri == xmlnsOrigin {
				return libvirt.UUID{}, false
			}
		}
		return e.Dom.UUID, true
	case *libvirt.DomainEventCallbackDeviceAddedMsg:
		return e.Dom.UUID, true
	case *libvirt.DomainEventCallbackDeviceRemovedMsg:
		return e.Msg.Dom.UUID, true
	case *libvirt.DomainEventCallbackDiskChangeMsg:
		return e.Msg.Dom.UUID, true
	case *libvirt.DomainEventCallbackBlockJobMsg:
		return e.Msg.Dom.UUID, true
	}
	return libvirt.UUID{}, false
}
