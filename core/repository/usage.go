package repository

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/holdfast-dr/holdfast/core/blob"
	"github.com/holdfast-dr/holdfast/core/chunk"
)

// Usage is where the bytes of a repository are. The parts add up to TotalBytes.
type Usage struct {
	LiveBytes     int64 // records that live points need: what the quota charges
	PendingBytes  int64 // records that sessions brought and no point has used yet: charged as well
	BinBytes      int64 // records that only binned points need
	WasteBytes    int64 // everything else in packs: to be collected
	OverheadBytes int64 // headers, footers, manifests, wraps, tombstones, and what is damaged beyond being a record
	TotalBytes    int64 // of all objects in the store
	SpooledBytes  int64 // on the server's disk, not in TotalBytes

	Objects int   // in the store
	Packs   int   // of them
	Records int64 // in packs
}

// UsageOptions steer Usage. The zero value works.
type UsageOptions struct {
	// Progress, if set, is called after each pack; its error ends the count.
	Progress func(Usage) error
}

// Usage reconciles what is charged with what is stored: it lists every object
// and reads every footer, and finds for each record what needs it. Each object
// is counted once, whole, so the parts add up whatever goes on meanwhile; they
// are those of one moment while nothing is written.
func (r *Repository) Usage(ctx context.Context, o UsageOptions) (Usage, error) {
	u := Usage{}
	for object, err := range r.blobs.List(ctx, r.id+"/") {
		if err != nil {
			return u, fmt.Errorf("list objects: %w", err)
		}
		records, err := r.account(ctx, object, &u)
		if errors.Is(err, blob.ErrNotFound) {
			continue // deleted since it was listed
		}
		if err != nil {
			return u, err
		}
		u.Objects++
		u.TotalBytes += object.SizeBytes
		u.OverheadBytes += object.SizeBytes - records
		if o.Progress != nil && records > 0 {
			if err := o.Progress(u); err != nil {
				return u, err
			}
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, s := range r.sessions {
		u.SpooledBytes += s.SpooledBytes()
	}
	return u, nil
}

// account adds the records of a pack to their parts, and tells how many bytes
// they are. What is no pack has none.
func (r *Repository) account(ctx context.Context, object blob.Object, u *Usage) (records int64, err error) {
	p, ok := r.anyPack(object)
	if !ok {
		return 0, nil
	}
	entries, err := readFooter(ctx, r.blobs, p)
	if damagedOrCut(err) {
		entries, err = r.withoutFooter(ctx, p)
	}
	if err != nil {
		return 0, err
	}
	condemned := r.isCondemned(p.id)
	r.charging.Lock()
	defer r.charging.Unlock()
	for _, e := range entries {
		part, err := r.part(p, e, condemned, u)
		if err != nil {
			return 0, err
		}
		*part += int64(e.Length)
		records += int64(e.Length)
	}
	u.Packs++
	u.Records += int64(len(entries))
	return records, nil
}

// anyPack is the pack that an object is, of whichever kind.
func (r *Repository) anyPack(object blob.Object) (packObject, bool) {
	for _, kind := range []PackKind{chunk.KindData, chunk.KindPage} {
		if strings.HasPrefix(object.Name, r.name(packFolder(kind))) {
			return r.packOf(kind, object)
		}
	}
	return packObject{}, false
}

// withoutFooter finds what a pack holds whose footer is damaged: the records
// that are sound, and those that are not and that the index knows.
func (r *Repository) withoutFooter(ctx context.Context, p packObject) ([]Entry, error) {
	entries, err := scanPack(ctx, r.blobs, p)
	if err != nil {
		return nil, err
	}
	err = r.space.each(r.space.key(familyCopies, []byte{byte(p.kind)}), func(key, value []byte) error {
		if len(key) != len(chunk.ID{}) {
			return nil
		}
		for _, l := range parseLocations(chunk.ID(key), value) {
			if l.pack == p.id && l.Offset+int64(l.Length) <= p.size {
				entries = append(entries, l.Entry)
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	slices.SortStableFunc(entries, func(a, b Entry) int { return cmp.Compare(a.Offset, b.Offset) })
	end := int64(packHeaderSize)
	return slices.DeleteFunc(entries, func(e Entry) bool { // found by both, or inside another
		if e.Offset < end {
			return true
		}
		end = e.Offset + int64(e.Length)
		return false
	}), nil
}

// part is where a record of a pack counts; r.charging is held.
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
