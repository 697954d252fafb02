package repository

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/holdfast-dr/holdfast/core/audit"
	"github.com/holdfast-dr/holdfast/core/blob"
	"github.com/holdfast-dr/holdfast/core/chunk"
	"github.com/holdfast-dr/holdfast/core/claim"
	"github.com/holdfast-dr/holdfast/core/point"
	"github.com/holdfast-dr/holdfast/core/tenant"
)

// settleWait is how long Forget waits for the books to be settled. A walk sees
// some 150,000 chunks a second, so those of a large repository go on by
// themselves.
const settleWait = 5 * time.Second

// Forget puts points into the bin. Each tombstone is synced before the point's
// transaction, so that an import does not bring a deleted point back. A point
// that is in the bin already is no error. What the points took alone is given
// back to the quota, on a small repository before Forget returns, else soon
// after; forgetting many points at once costs one walk.
func (r *Repository) Forget(ctx context.Context, ids ...point.ID) error {
	if err := r.Writable(); err != nil {
		return err
	}
	origin, err := audit.From(ctx)
	if err != nil {
		return err
	}
	for _, id := range ids {
		if err := r.forget(ctx, id, origin.Actor); err != nil {
			return fmt.Errorf("forget point %.80s: %w", id, err)
		}
	}
	wait := time.NewTimer(settleWait)
	defer wait.Stop()
	select {
	case <-r.settle(ctx):
	case <-wait.C:
	case <-ctx.Done(): // the points are forgotten
	}
	return nil
}

// settling is the one goroutine that settles the books after points were
// forgotten. It ends by itself when there is nothing left to settle, or with
// Close.
type settling struct {
	wanted bool
	done   chan struct{} // closed when the goroutine has ended; nil if there is none
	stop   context.CancelFunc
}

// settle has the books settled, and returns what is closed when they are.
func (r *Repository) settle(ctx context.Context) <-chan struct{} {
	r.mu.Lock()
	defer r.mu.Unlock()
	done := make(chan struct{})
	if r.closed {
		close(done)
		return done
	}
	r.settling.wanted = true
	if r.settling.done != nil {
		return r.settling.done
	}
	ctx, stop := context.WithCancel(context.WithoutCancel(ctx))
	r.settling.done, r.settling.stop = done, stop
	go func() {
		defer stop()
		for r.wantSettling() {
			if _, err := r.walk(ctx); err != nil {
				// What the points took is given back by the next forget, collection
				// or Open.
				r.log.Warn("settle after forgetting", "error", err)
			}
		}
		close(done)
	}()
	return done
}

// wantSettling reports whether the goroutine has to walk once more; if not, the
// next forget starts another.
func (r *Repository) wantSettling() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.settling.wanted && !r.closed {
		r.settling.wanted = false
		return true
	}
	r.settling.done = nil
	return false
}

func (r *Repository) forget(ctx context.Context, id point.ID, by string) error {
	r.burying.Lock()
	defer r.burying.Unlock()
	p, err := r.catalogue.Point(ctx, r.id, id)
	if errors.Is(err, tenant.ErrNotFound) {
		return ErrNotFound
	}
	if err != nil || !p.Forgotten.IsZero() {
		return err
	}
	if err := r.catalogue.Check(ctx, r.id, r.epoch); err != nil { // a fenced server writes no tombstones
		return err
	}
	now := r.clock().UTC()
	content, err := encodeSmall(tombstoneJSON{Point: string(id), Machine: string(p.Machine), Forgotten: now.UnixMicro(), By: by, Epoch: r.epoch})
	if err != nil {
		return err
	}
	err = r.putBytes(ctx, r.name(tombstoneFolder, string(id)), content)
	if err != nil && !errors.Is(err, blob.ErrExists) { // one of an earlier attempt is as good
		return fmt.Errorf("store tombstone: %w", err)
	}
	if err := r.catalogue.Forget(ctx, r.id, r.epoch, id, now); err != nil {
		if !errors.Is(err, claim.ErrFenced) {
			r.exhume(context.WithoutCancel(ctx), id)
		}
		return err
	}
	return nil
}

// exhume removes the tombstone of a point that is live: whoever forgot it was
// answered an error, so an import must not take it for forgotten. What cannot be
// removed now is tried again by a later collection or Open; r.burying is held.
//
// One that the claim just before this one wrote stays: the transaction may be
// missing because the database is older than that, which nothing tells while the
// claim was the same. One claim later it is certain.
func (r *Repository) exhume(ctx context.Context, id point.ID) {
	p, err := r.catalogue.Point(ctx, r.id, id)
	if errors.Is(err, tenant.ErrNotFound) || err == nil && !p.Forgotten.IsZero() {
		return // it is forgotten
	}
	var t tombstoneJSON
	if err == nil {
		t, err = r.tombstone(ctx, id)
	}
	if err == nil && t.Epoch+1 == r.epoch {
		return
	}
	if err == nil {
		err = r.catalogue.Check(ctx, r.id, r.epoch)
	}
	if err == nil {
		err = r.blobs.Delete(ctx, r.name(tombstoneFolder, string(id)))
	}
	if err != nil && !errors.Is(err, blob.ErrNotFound) {
		r.log.Warn("the tombstone of a live point stays", "point", id, "error", err)
	}
}

func (r *Repository) tombstone(ctx context.Context, id point.ID) (t tombstoneJSON, err error) {
	b, err := blob.Read(ctx, r.blobs, r.name(tombstoneFolder, string(id)), maxSmall)
	if err != nil {
		return t, err
	}
	return t, decodeSmall(b, &t)
}

// exhumeAll removes the tombstones of live points.
func (r *Repository) exhumeAll(ctx context.Context) error {
	var entombed []point.ID
	for object, err := range r.blobs.List(ctx, r.name(tombstoneFolder)) {
		if err != nil {
			return fmt.Errorf("list tombstones: %w", err)
		}
		entombed = append(entombed, point.ID(strings.TrimPrefix(object.Name, r.name(tombstoneFolder))))
	}
	for _, id := range entombed {
		r.burying.Lock()
		r.exhume(ctx, id)
		r.burying.Unlock()
	}
	return nil
}

// tombstones reads what is in the bin, by the store.
func (r *Repository) tombstones(ctx context.Context) (map[point.ID]tombstoneJSON, error) {
	all := map[point.ID]tombstoneJSON{}
	for object, err := range r.blobs.List(ctx, r.name(tombstoneFolder)) {
		if err != nil {
			return nil, fmt.Errorf("list tombstones: %w", err)
		}
		b, err := blob.Read(ctx, r.blobs, object.Name, maxSmall)
		if err != nil {
			return nil, fmt.Errorf("read tombstone: %w", err)
		}
		id := point.ID(object.Name[len(r.name(tombstoneFolder)):])
		t := tombstoneJSON{Point: string(id), Forgotten: object.Created.UnixMicro()}
		if err := decodeSmall(b, &t); err != nil && !errors.Is(err, chunk.ErrDamaged) {
			return nil, err
		}
		all[id] = t // the name alone says enough where the content is damaged
	}
	return all, nil
}

// purge removes binned points whose time is over, and what is left of points
// that were removed or refused before.
func (r *Repository) purge(ctx context.Context, report *CollectReport) error {
	var over []point.ID
	for p, err := range r.allPoints(ctx, true) {
		if err != nil {
			return err
		}
		if r.clock().Sub(p.Forgotten) >= r.bin && !r.pinned(p.ID) {
			over = append(over, p.ID)
		}
	}
	for len(over) > 0 {
		n := min(len(over), MaxPoints)
		if err := r.catalogue.Purge(ctx, r.id, r.epoch, over[:n]); err != nil {
			return fmt.Errorf("purge the bin: %w", err)
		}
		report.PurgedPoints += n
		over = over[n:]
	}
	return r.sweepManifests(ctx)
}

// pinned reports whether an open session builds on a point.
func (r *Repository) pinned(id point.ID) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.pins[id] > 0
}

// sweepManifests deletes the manifests of refused commits, and of entombed
// points that the catalogue no longer has; their marker goes last. A manifest
// with neither marker nor record stays: only an import may judge it.
func (r *Repository) sweepManifests(ctx context.Context) error {
	if err := r.exhumeAll(ctx); err != nil {
		return err
	}
	entombed, err := r.tombstones(ctx)
	if err != nil {
		return err
	}
	for id := range entombed {
		_, err := r.catalogue.Point(ctx, r.id, id)
		if err == nil {
			delete(entombed, id) // in the bin, or about to be
		} else if !errors.Is(err, tenant.ErrNotFound) {
			return fmt.Errorf("find point %s: %w", id, err)
		}
	}
	var manifests, markers []string
	for object, err := range r.blobs.List(ctx, r.name(pointsFolder)) {
		if err != nil {
			return fmt.Errorf("list manifests: %w", err)
		}
		m, ok := r.parseManifestName(object)
		if !ok {
			continue
		}
		if _, dead := entombed[m.point]; dead && !m.void {
			manifests = append(manifests, m.name)
		}
		if m.void {
			manifests, markers = append(manifests, m.name), append(markers, object.Name)
		}
	}
	for id := range entombed {
		markers = append(markers, r.name(tombstoneFolder, string(id)))
	}
	if len(manifests)+len(markers) == 0 {
		return nil
	}
	if err := r.catalogue.Check(ctx, r.id, r.epoch); err != nil {
		return err
	}
	for _, name := range append(manifests, markers...) {
		err := r.blobs.Delete(ctx, name)
		if errors.Is(err, blob.ErrRetained) {
			return nil // the markers have to outlive the manifests
		}
		if err != nil && !errors.Is(err, blob.ErrNotFound) {
			return fmt.Errorf("delete manifest: %w", err)
		}
	}
	return nil
}
