package repository

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/holdfast-dr/holdfast/core/blob"
	"github.com/holdfast-dr/holdfast/core/chunk"
	"github.com/holdfast-dr/holdfast/core/point"
	"github.com/holdfast-dr/holdfast/core/tenant"
)

// point finds a live point in the catalogue.
func (r *Repository) point(ctx context.Context, id point.ID) (PointRecord, error) {
	p, err := r.catalogue.Point(ctx, r.id, id)
	if errors.Is(err, tenant.ErrNotFound) || err == nil && !p.Forgotten.IsZero() {
		return PointRecord{}, fmt.Errorf("point %.80s: %w", id, ErrNotFound)
	}
	if err != nil {
		return PointRecord{}, fmt.Errorf("find point %.80s: %w", id, err)
	}
	return p, nil
}

// manifestOf is the object of a point's manifest.
func (r *Repository) manifestOf(p PointRecord) string {
	return r.manifestName(point.Public{Machine: p.Machine, Point: p.ID}, p.Epoch)
}

// Manifest reads the manifest of a live point.
func (r *Repository) Manifest(ctx context.Context, id point.ID) ([]byte, error) {
	p, err := r.point(ctx, id)
	if err != nil {
		return nil, err
	}
	b, _, err := r.readManifest(ctx, p)
	return b, err
}

func (r *Repository) readManifest(ctx context.Context, p PointRecord) ([]byte, point.Public, error) {
	b, err := blob.Read(ctx, r.blobs, r.manifestOf(p), point.MaxManifest)
	if err != nil {
		return nil, point.Public{}, fmt.Errorf("read manifest of point %s: %w", p.ID, err)
	}
	public, err := point.ParsePublic(b)
	if err != nil {
		return nil, point.Public{}, fmt.Errorf("read manifest of point %s: %w", p.ID, err)
	}
	if public.Point != p.ID || public.Machine != p.Machine || public.Repository != r.id {
		return nil, point.Public{}, fmt.Errorf("read manifest of point %s: it is of point %s: %w", p.ID, public.Point, chunk.ErrDamaged)
	}
	return b, public, nil
}

// Points lists the live points of a machine, or of all machines, in the order of
// their ids, which is that in which they were made.
func (r *Repository) Points(ctx context.Context, machine point.MachineID, after point.ID, limit int) ([]PointRecord, error) {
	return r.catalogue.Points(ctx, r.id, PointQuery{Machine: machine, After: after, Limit: limit})
}

// Binned lists the points in the bin.
func (r *Repository) Binned(ctx context.Context, machine point.MachineID, after point.ID, limit int) ([]PointRecord, error) {
	return r.catalogue.Points(ctx, r.id, PointQuery{Machine: machine, After: after, Limit: limit, Binned: true})
}

// Wrap is a keyring, encrypted to one recipient.
type Wrap struct {
	Name    string
	Content []byte
}

// MaxWraps bounds the wraps of a repository.
const MaxWraps = 256

// PutWrap keeps a wrapped keyring. The name is free and never used again; the
// same content under the same name is no error.
func (r *Repository) PutWrap(ctx context.Context, name string, b []byte) error {
	if err := r.Writable(); err != nil {
		return err
	}
	if _, err := chunk.CheckWrap(b); err != nil {
		return fmt.Errorf("keep wrap: %w: %w", ErrRefused, err)
	}
	if strings.Contains(name, "/") || blob.CheckName(name) != nil {
		return fmt.Errorf("keep wrap: name %.80q: %w", name, ErrRefused)
	}
	count := 0
	for _, err := range r.blobs.List(ctx, r.name(keysFolder)) {
		if err != nil {
			return fmt.Errorf("list wraps: %w", err)
		}
		count++
	}
	if count >= MaxWraps {
		return fmt.Errorf("keep wrap: %d are kept, at most %d: %w", count, MaxWraps, ErrRefused)
	}
	if err := r.putBytes(ctx, r.name(keysFolder, name), b); err != nil {
		return fmt.Errorf("keep wrap %s: %w", name, err)
	}
	return nil
}

// Wrap reads one wrap.
func (r *Repository) Wrap(ctx context.Context, name string) ([]byte, error) {
	if strings.Contains(name, "/") || blob.CheckName(name) != nil {
		return nil, fmt.Errorf("wrap %.80q: %w", name, ErrNotFound)
	}
	b, err := blob.Read(ctx, r.blobs, r.name(keysFolder, name), chunk.MaxWrap)
	if errors.Is(err, blob.ErrNotFound) {
		return nil, fmt.Errorf("wrap %s: %w", name, ErrNotFound)
	}
	if err != nil {
		return nil, fmt.Errorf("read wrap %s: %w", name, err)
	}
	if _, err := chunk.CheckWrap(b); err != nil {
		return nil, fmt.Errorf("read wrap %s: %w", name, err)
	}
	return b, nil
}

// Wraps reads every wrap. One that is damaged is passed over while there are
// others; Verify reports it.
func (r *Repository) Wraps(ctx context.Context) ([]Wrap, error) {
	var wraps []Wrap
	var damage error
	for object, err := range r.blobs.List(ctx, r.name(keysFolder)) {
		if err != nil {
			return nil, fmt.Errorf("list wraps: %w", err)
		}
		b, err := blob.Read(ctx, r.blobs, object.Name, chunk.MaxWrap)
		if err != nil {
			return nil, fmt.Errorf("read wrap: %w", err)
		}
		if _, err := chunk.CheckWrap(b); err != nil {
			damage = errors.Join(damage, fmt.Errorf("%s: %w", object.Name, err))
			continue
		}
		if len(wraps) < MaxWraps {
			wraps = append(wraps, Wrap{Name: strings.TrimPrefix(object.Name, r.name(keysFolder)), Content: b})
		}
	}
	if len(wraps) == 0 {
		return nil, damage
	}
	return wraps, nil
}
