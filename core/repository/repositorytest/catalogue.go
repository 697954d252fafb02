// Package repositorytest has a catalogue in memory, for tests of those who use
// a repository, and the suite that every catalogue passes.
package repositorytest

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"iter"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/holdfast-dr/holdfast/core/audit"
	"github.com/holdfast-dr/holdfast/core/claim"
	"github.com/holdfast-dr/holdfast/core/point"
	"github.com/holdfast-dr/holdfast/core/quota"
	"github.com/holdfast-dr/holdfast/core/repository"
	"github.com/holdfast-dr/holdfast/core/tenant"
)

// Catalogue is a repository.Catalogue in memory, with the claims and the quotas
// that it needs beside it. The zero value knows no repository; see Add.
type Catalogue struct {
	// Fault, if set, is asked before every method that writes and after it, with
	// the method's name and "before" or "after"; its error is answered instead.
	Fault func(method, when string) error

	mu    sync.Mutex // guards what follows
	repos map[string]*books
}

type books struct {
	epoch     uint64
	limit     int64
	used      int64
	pending   int64 // in packs, and in no point yet
	reserved  map[string]int64
	points    map[point.ID]repository.PointRecord
	condemned map[repository.PackID]time.Time
	damage    map[repository.Damage]time.Time
	sessions  map[string]repository.SessionRecord
}

var _ repository.Catalogue = (*Catalogue)(nil)

// Add makes a repository known, with its quota and the epoch of its claim.
func (c *Catalogue) Add(id string, limitBytes int64, epoch uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.repos == nil {
		c.repos = map[string]*books{}
	}
	c.repos[id] = &books{
		epoch: epoch, limit: limitBytes, reserved: map[string]int64{}, points: map[point.ID]repository.PointRecord{},
		condemned: map[repository.PackID]time.Time{}, damage: map[repository.Damage]time.Time{},
		sessions: map[string]repository.SessionRecord{},
	}
}

// SetEpoch claims a repository anew.
func (c *Catalogue) SetEpoch(id string, epoch uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.repos[id].epoch = epoch
}

// Epoch is that of the repository's claim.
func (c *Catalogue) Epoch(id string) uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.repos[id].epoch
}

// SetLimit changes the quota.
func (c *Catalogue) SetLimit(id string, limitBytes int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.repos[id].limit = limitBytes
}

// Reserve holds bytes for a session.
func (c *Catalogue) Reserve(id, session string, reservedBytes int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.repos[id].reserved[session] += reservedBytes
}

// Pending is what the repository says is in no point yet.
func (c *Catalogue) Pending(id string) int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.repos[id].pending
}

// Used is what points take, and what is charged beside it: the reservations of
// sessions and what is pending.
func (c *Catalogue) Used(id string) (used, pending int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	pending = c.repos[id].pending
	for _, n := range c.repos[id].reserved {
		pending += n
	}
	return c.repos[id].used, pending
}

// Copy is the catalogue as it is now: a database backup.
func (c *Catalogue) Copy() *Catalogue {
	c.mu.Lock()
	defer c.mu.Unlock()
	out := &Catalogue{repos: map[string]*books{}}
	for id, b := range c.repos {
		copied := *b
		copied.reserved, copied.points = maps.Clone(b.reserved), maps.Clone(b.points)
		copied.condemned, copied.damage = maps.Clone(b.condemned), maps.Clone(b.damage)
		copied.sessions = maps.Clone(b.sessions)
		out.repos[id] = &copied
	}
	return out
}

// fault asks the test.
func (c *Catalogue) fault(method, when string) error {
	if c.Fault == nil {
		return nil
	}
	return c.Fault(method, when)
}

// write runs one transaction.
func (c *Catalogue) write(ctx context.Context, method, id string, epoch uint64, f func(*books) error) error {
	if err := c.fault(method, "before"); err != nil {
		return err
	}
	if err := c.locked(ctx, id, epoch, f); err != nil {
		return err
	}
	return c.fault(method, "after")
}

const anyEpoch = 0

func (c *Catalogue) locked(ctx context.Context, id string, epoch uint64, f func(*books) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	b, ok := c.repos[id]
	if !ok {
		return fmt.Errorf("repository %s: %w", id, tenant.ErrNotFound)
	}
	if epoch != anyEpoch && b.epoch != epoch {
		return &claim.FencedError{Resource: claim.Resource("repository/" + id), Epoch: int64(epoch), Current: int64(b.epoch)}
	}
	return f(b)
}

// Check answers whether the claim still has the epoch.
func (c *Catalogue) Check(ctx context.Context, id string, epoch uint64) error {
	return c.locked(ctx, id, epoch, func(*books) error { return nil })
}

// Commit makes a point exist.
func (c *Catalogue) Commit(ctx context.Context, id string, epoch uint64, p repository.PointRecord, pendingBytes int64) error {
	if _, err := audit.From(ctx); err != nil {
		return err
	}
	return c.write(ctx, "Commit", id, epoch, func(b *books) error {
		if _, twice := b.points[p.ID]; twice {
			return fmt.Errorf("point %s: %w", p.ID, tenant.ErrExists)
		}
		pending := pendingBytes
		for session, n := range b.reserved {
			if session != p.Session {
				pending += n
			}
		}
		if b.used+pending+p.ChargedBytes > b.limit && p.ChargedBytes > b.reserved[p.Session]+b.pending-pendingBytes {
			return &quota.FullError{Repository: id, LimitBytes: b.limit, UsedBytes: b.used, PendingBytes: pending, WantedBytes: p.ChargedBytes}
		}
		delete(b.reserved, p.Session)
		b.pending = pendingBytes
		b.used += p.ChargedBytes
		b.points[p.ID] = p
		return nil
	})
}

// Point finds one point.
func (c *Catalogue) Point(ctx context.Context, id string, pointID point.ID) (p repository.PointRecord, err error) {
	err = c.locked(ctx, id, anyEpoch, func(b *books) error {
		var ok bool
		if p, ok = b.points[pointID]; !ok {
			return fmt.Errorf("point %s: %w", pointID, tenant.ErrNotFound)
		}
		return nil
	})
	return p, err
}

// Points lists points.
func (c *Catalogue) Points(ctx context.Context, id string, q repository.PointQuery) (points []repository.PointRecord, err error) {
	if q.Limit == 0 || q.Limit > repository.MaxPoints {
		q.Limit = repository.MaxPoints
	}
	err = c.locked(ctx, id, anyEpoch, func(b *books) error {
		for _, pointID := range slices.Sorted(maps.Keys(b.points)) {
			p := b.points[pointID]
			if pointID > q.After && q.Binned == !p.Forgotten.IsZero() && (q.Machine == "" || q.Machine == p.Machine) &&
				(q.Session == "" || q.Session == p.Session) && len(points) < q.Limit {
				points = append(points, p)
			}
		}
		return nil
	})
	return points, err
}

// Forget puts a point into the bin.
func (c *Catalogue) Forget(ctx context.Context, id string, epoch uint64, pointID point.ID, at time.Time) error {
	if _, err := audit.From(ctx); err != nil {
		return err
	}
	return c.write(ctx, "Forget", id, epoch, func(b *books) error {
		p, ok := b.points[pointID]
		if !ok {
			return fmt.Errorf("point %s: %w", pointID, tenant.ErrNotFound)
		}
		if p.Forgotten.IsZero() {
			p.Forgotten = at
			b.points[pointID] = p
		}
		return nil
	})
}

// Purge removes binned points.
func (c *Catalogue) Purge(ctx context.Context, id string, epoch uint64, ids []point.ID) error {
	if _, err := audit.From(ctx); err != nil {
		return err
	}
	return c.write(ctx, "Purge", id, epoch, func(b *books) error {
		for _, pointID := range ids {
			if !b.points[pointID].Forgotten.IsZero() {
				delete(b.points, pointID)
			}
		}
		return nil
	})
}

// Settle sets what is used.
func (c *Catalogue) Settle(ctx context.Context, id string, epoch uint64, usedBytes int64) error {
	return c.write(ctx, "Settle", id, epoch, func(b *books) error {
		b.used = usedBytes
		return nil
	})
}

// Shipped moves what a session brought from its reservation to what is pending.
func (c *Catalogue) Shipped(ctx context.Context, id string, epoch uint64, session string, shippedBytes, pendingBytes int64) error {
	return c.write(ctx, "Shipped", id, epoch, func(b *books) error {
		b.pending = pendingBytes
		b.reserved[session] = max(0, b.reserved[session]-shippedBytes)
		return nil
	})
}

// Reconciled sets what is pending, and what sessions hold.
func (c *Catalogue) Reconciled(ctx context.Context, id string, epoch uint64, pendingBytes int64, reserved map[string]int64) error {
	return c.write(ctx, "Reconciled", id, epoch, func(b *books) error {
		b.pending = pendingBytes
		if reserved != nil {
			b.reserved = maps.Clone(reserved)
		}
		return nil
	})
}

// Condemn records packs to be deleted.
func (c *Catalogue) Condemn(ctx context.Context, id string, epoch uint64, packs []repository.PackID, at time.Time) error {
	return c.write(ctx, "Condemn", id, epoch, func(b *books) error {
		for _, p := range packs {
			if _, known := b.condemned[p]; !known {
				b.condemned[p] = at
			}
		}
		return nil
	})
}

// Condemned lists them.
func (c *Catalogue) Condemned(ctx context.Context, id string, after repository.PackID, limit int) (packs []repository.CondemnedPack, err error) {
	err = c.locked(ctx, id, anyEpoch, func(b *books) error {
		for p, at := range b.condemned {
			if bytes.Compare(p[:], after[:]) > 0 {
				packs = append(packs, repository.CondemnedPack{Pack: p, At: at})
			}
		}
		slices.SortFunc(packs, func(a, b repository.CondemnedPack) int { return bytes.Compare(a.Pack[:], b.Pack[:]) })
		packs = packs[:min(len(packs), limit)]
		return nil
	})
	return packs, err
}

// Removed forgets condemned packs and their damage.
func (c *Catalogue) Removed(ctx context.Context, id string, epoch uint64, packs []repository.PackID) error {
	return c.write(ctx, "Removed", id, epoch, func(b *books) error {
		for _, p := range packs {
			delete(b.condemned, p)
			maps.DeleteFunc(b.damage, func(d repository.Damage, _ time.Time) bool { return d.Pack == p })
		}
		return nil
	})
}

// MarkDamaged records damage.
func (c *Catalogue) MarkDamaged(ctx context.Context, id string, damage []repository.Damage) error {
	return c.write(ctx, "MarkDamaged", id, anyEpoch, func(b *books) error {
		for _, d := range damage {
			at := d.At
			d.At = time.Time{}
			if _, known := b.damage[d]; !known {
				b.damage[d] = at
			}
		}
		return nil
	})
}

// Damage lists it.
func (c *Catalogue) Damage(ctx context.Context, id string) iter.Seq2[repository.Damage, error] {
	return func(yield func(repository.Damage, error) bool) {
		var all []repository.Damage
		err := c.locked(ctx, id, anyEpoch, func(b *books) error {
			for d, at := range b.damage {
				d.At = at
				all = append(all, d)
			}
			return nil
		})
		if err != nil {
			yield(repository.Damage{}, err)
			return
		}
		slices.SortFunc(all, func(a, b repository.Damage) int {
			return cmp.Or(cmp.Compare(a.Kind, b.Kind), bytes.Compare(a.ID[:], b.ID[:]), bytes.Compare(a.Pack[:], b.Pack[:]))
		})
		for _, d := range all {
			if !yield(d, nil) {
				return
			}
		}
	}
}

// Import replaces the points.
func (c *Catalogue) Import(ctx context.Context, id string, floor uint64, points []repository.PointRecord, usedBytes int64) error {
	if _, err := audit.From(ctx); err != nil {
		return err
	}
	return c.write(ctx, "Import", id, anyEpoch, func(b *books) error {
		b.points = map[point.ID]repository.PointRecord{}
		for _, p := range points {
			b.points[p.ID] = p
		}
		b.used, b.epoch = usedBytes, max(b.epoch, floor)
		return nil
	})
}
