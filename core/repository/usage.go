package repository

import (
	"context"
	"errors"
	"fmt"

	"github.com/holdfast-dr/holdfast/core/chunk"
)

// Usage is where the bytes of a repository are. The parts add up to TotalBytes.
type Usage struct {
	LiveBytes     int64 // records that live points need: what the quota charges
	PendingBytes  int64 // records that sessions brought and no point has used yet: charged as well
	BinBytes      int64 // records that only binned points need
	WasteBytes    int64 // everything else in packs: to be collected
	OverheadBytes int64 // headers, footers, manifests, wraps, tombstones
	TotalBytes    int64 // of all objects in the store
	SpooledBytes  int64 // on the server's disk, not in TotalBytes
}

// Usage reconciles what is charged with what is stored, reading every footer.
// It is exact while nothing is written.
func (r *Repository) Usage(ctx context.Context) (Usage, error) {
	var u Usage
	for object, err := range r.blobs.List(ctx, r.id+"/") {
		if err != nil {
			return u, fmt.Errorf("list objects: %w", err)
		}
		u.TotalBytes += object.SizeBytes
	}
	for _, kind := range []PackKind{chunk.KindData, chunk.KindPage} {
		for p, err := range r.packs(ctx, kind) {
			if err != nil {
				return u, err
			}
			if err := r.account(ctx, p, &u); err != nil {
				return u, err
			}
		}
	}
	u.OverheadBytes = u.TotalBytes - u.LiveBytes - u.PendingBytes - u.BinBytes - u.WasteBytes
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, s := range r.sessions {
		u.SpooledBytes += s.SpooledBytes()
	}
	return u, nil
}

// account adds a pack's records to their parts.
func (r *Repository) account(ctx context.Context, p packObject, u *Usage) error {
	entries, err := readFooter(ctx, r.blobs, p)
	if errors.Is(err, chunk.ErrDamaged) {
		entries, err = scanPack(ctx, r.blobs, p)
	}
	if err != nil {
		return err
	}
	condemned := r.isCondemned(p.id)
	r.charging.Lock()
	defer r.charging.Unlock()
	for _, e := range entries {
		part, err := r.part(p, e, condemned, u)
		if err != nil {
			return err
		}
		*part += int64(e.Length)
	}
	return nil
}

func (r *Repository) part(p packObject, e Entry, condemned bool, u *Usage) (*int64, error) {
	record := recordKey(p.kind, e.ID)
	_, pending, err := r.space.get(r.space.pendingKey(p.id, record))
	if err != nil {
		return nil, err
	}
	other := &u.WasteBytes
	if pending {
		other = &u.PendingBytes
	}
	if condemned {
		return other, nil
	}
	copies, _, err := r.live(p.kind, e.ID)
	if err != nil {
		return nil, err
	}
	if len(copies) == 0 || copies[0].pack != p.id || copies[0].Offset != e.Offset {
		return other, nil
	}
	use, err := r.use(record)
	switch {
	case err != nil:
		return nil, err
	case use == usedLive:
		return &u.LiveBytes, nil
	case use == usedHeld:
		return &u.BinBytes, nil
	}
	return other, nil
}
