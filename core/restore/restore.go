package restore

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/google/uuid"

	"github.com/holdfast-dr/holdfast/core/chunk"
	"github.com/holdfast-dr/holdfast/core/mover"
	"github.com/holdfast-dr/holdfast/core/point"
	"github.com/holdfast-dr/holdfast/sdk"
)

// Repository is a cloud repository as a restore sees it.
type Repository interface {
	mover.Reader

	// Manifest is the sealed manifest of a point. It promises nothing.
	Manifest(ctx context.Context, id point.ID) ([]byte, error)
}

// Point is a point to be restored, opened and checked.
type Point struct {
	Manifest   point.Manifest
	Machine    sdk.Machine // as the source described it
	repository Repository
	keys       *chunk.Keyring
}

// Open fetches a point's manifest and checks that it is the one that was asked
// for and carries the tenant's MAC.
func Open(ctx context.Context, repository Repository, keys *chunk.Keyring, id point.ID) (*Point, error) {
	sealed, err := repository.Manifest(ctx, id)
	if err != nil {
		return nil, fmt.Errorf("fetch point %s: %w", id, err)
	}
	m, err := point.Open(sealed, keys)
	if err != nil {
		return nil, err
	}
	if m.Public.Point != id {
		return nil, fmt.Errorf("open point %s: the repository answers with point %s: %w", id, m.Public.Point, point.ErrForged)
	}
	p := &Point{Manifest: m, repository: repository, keys: keys}
	if err := json.Unmarshal(m.Private.Spec, &p.Machine); err != nil {
		return nil, fmt.Errorf("open point %s: decode the machine's description: %w", id, err)
	}
	return p, nil
}

// Tree is the map of one of the point's disks.
func (p *Point) Tree(disk int, retry mover.Retry) point.Tree {
	return point.Tree{
		Geometry: p.Manifest.Public.Geometry(disk), Root: p.Manifest.Public.Disks[disk].Root,
		Pages: mover.Pages(p.repository, retry),
	}
}

// From is the end that the mover reads.
func (p *Point) From() mover.Repository { return mover.Repository{Reader: p.repository, Keys: p.keys} }

// Disk is the place of a disk in the point, by its id at the source or by its
// name.
func (p *Point) Disk(idOrName string) (int, error) {
	found, names := -1, []string(nil)
	for i, d := range p.Manifest.Private.Disks {
		if d.ID == idOrName {
			return i, nil
		}
		if d.Name == idOrName {
			if found >= 0 {
				return 0, fmt.Errorf("two disks are called %s: choose one by its id: %w", idOrName, sdk.ErrInvalid)
			}
			found = i
		}
		names = append(names, d.Name)
	}
	if found < 0 {
		return 0, fmt.Errorf("point %s has no disk %s, it has %q: %w", p.Manifest.Public.Point, idOrName, names, sdk.ErrNotFound)
	}
	return found, nil
}

// Verify reads and opens every chunk of every disk and reports what is damaged,
// from several goroutines.
func (p *Point) Verify(ctx context.Context, opts mover.Options, report func(disk int, d mover.Damage) error) ([]mover.FetchStats, error) {
	all := make([]mover.FetchStats, len(p.Manifest.Public.Disks))
	for i := range all {
		var err error
		all[i], err = mover.Verify(ctx, p.Tree(i, opts.Retry), p.From(), func(d mover.Damage) error { return report(i, d) }, opts)
		if err != nil {
			return all, fmt.Errorf("verify disk %s: %w", p.Manifest.Private.Disks[i].Name, err)
		}
	}
	return all, nil
}

// derive names a step of an operation; the same step of a repeated operation
// has the same id.
func derive(op sdk.Op, step string) sdk.Op {
	op.ID = uuid.NewSHA1(uuid.NameSpaceOID, []byte("holdfast restore "+op.ID+" "+step)).String()
	return op
}

// cleanUpTime bounds what is done after a failure, whatever became of ctx.
const cleanUpTime = 5 * time.Minute
