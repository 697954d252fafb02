package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/holdfast-dr/holdfast/core/gateway"
	"github.com/holdfast-dr/holdfast/core/point"
	"github.com/holdfast-dr/holdfast/core/tenant"
)

// PointStatus is a point as people at the site see it. What only the keyring
// opens is empty when the site does not have it, and Problem says so.
type PointStatus struct {
	ID          point.ID        `json:"id"`
	Provider    string          `json:"provider"`
	Repository  string          `json:"repository"`
	MachineID   point.MachineID `json:"machine_id"`
	Machine     string          `json:"machine,omitempty"`
	Endpoint    string          `json:"endpoint,omitempty"`
	Taken       time.Time       `json:"taken"`
	Committed   time.Time       `json:"committed"`
	Kind        point.Kind      `json:"kind" enum:"full,incremental,compare" doc:"How it was read; each is a full point"`
	Consistency string          `json:"consistency,omitempty"`
	Note        string          `json:"note,omitempty"`
	SizeBytes   int64           `json:"size_bytes"`
	Charged     int64           `json:"charged_bytes" doc:"What it added to the quota when it was committed"`
	Disks       []PointDisk     `json:"disks,omitempty"`
	Keyring     string          `json:"keyring"`
	Problem     string          `json:"problem,omitempty"`
}

// PointDisk is one disk of a point.
type PointDisk struct {
	ID        string `json:"id"`
	Name      string `json:"name"`
	SizeBytes int64  `json:"size_bytes"`
}

// PointQuery selects points. Empty fields select everything.
type PointQuery struct {
	Provider   string
	Repository string
	Machine    string // name, or id in points
}

const pointPage = 500

// Points lists points, newest first.
func (a *Agent) Points(ctx context.Context, q PointQuery) ([]PointStatus, error) {
	points := []PointStatus{}
	err := a.eachStore(ctx, q.Provider, q.Repository, func(s storeRef) error {
		var after point.ID
		for {
			page, err := s.repository.Points(ctx, "", after, pointPage)
			if err != nil {
				return err
			}
			for _, info := range page.Points {
				p := a.pointStatus(ctx, s, info)
				if q.Machine == "" || strings.EqualFold(p.Machine, q.Machine) || string(p.MachineID) == q.Machine {
					points = append(points, p)
				}
			}
			if after = page.Next; after == "" {
				return nil
			}
		}
	})
	slices.SortStableFunc(points, func(x, y PointStatus) int {
		return cmp.Or(y.Taken.Compare(x.Taken), strings.Compare(string(y.ID), string(x.ID)))
	})
	return points, err
}

// Point is one point, by id or by a prefix of it that no other point has.
func (a *Agent) Point(ctx context.Context, id string) (PointStatus, error) {
	p, _, err := a.findPoint(ctx, id)
	return p, err
}

// minPrefix keeps a typing error from naming a point by chance.
const minPrefix = 6

func (a *Agent) findPoint(ctx context.Context, id string) (PointStatus, storeRef, error) {
	if len(id) < minPrefix {
		return PointStatus{}, storeRef{}, &tenant.InvalidError{Field: "point", Reason: fmt.Sprintf("%q is too short: give at least %d characters", id, minPrefix)}
	}
	var found []PointStatus
	var where storeRef
	err := a.eachStore(ctx, "", "", func(s storeRef) error {
		var after point.ID
		for {
			page, err := s.repository.Points(ctx, "", after, pointPage)
			if err != nil {
				return err
			}
			for _, info := range page.Points {
				// The tail of a time-ordered id tells points apart best.
				if strings.HasPrefix(string(info.ID), id) || strings.HasSuffix(string(info.ID), id) {
					found, where = append(found, a.pointStatus(ctx, s, info)), s
				}
			}
			if after = page.Next; after == "" {
				return nil
			}
		}
	})
	switch {
	case len(found) == 1:
		return found[0], where, nil
	case len(found) > 1:
		return PointStatus{}, storeRef{}, &tenant.InvalidError{Field: "point", Reason: fmt.Sprintf("%q names %d points: give more of the id", id, len(found))}
	case err != nil:
		return PointStatus{}, storeRef{}, err
	}
	return PointStatus{}, storeRef{}, notFound("point", id)
}

// ForgetPoint gives up a point. Other points keep what they share with it.
func (a *Agent) ForgetPoint(ctx context.Context, id string) error {
	p, s, err := a.findPoint(ctx, id)
	if err != nil {
		return err
	}
	// The next run must not take it for hidden. That is written first, since a run
	// that finds a point which this agent made and does not remember is at ease.
	before, err := a.forgetRemembered(ctx, p.ID)
	if err != nil {
		return fmt.Errorf("forget point %s: %w", p.ID, err)
	}
	if err := s.repository.Forget(ctx, p.ID); err != nil {
		for _, m := range before {
			err = errors.Join(err, a.Store.PutMachine(context.WithoutCancel(ctx), m))
		}
		return fmt.Errorf("forget point %s: %w", p.ID, err)
	}
	a.Log.InfoContext(ctx, "point forgotten", "point", p.ID, "machine", p.Machine, "taken", p.Taken)
	return nil
}

// forgetRemembered drops a point from what the site saw committed, and returns
// the machines that had it, as they were.
func (a *Agent) forgetRemembered(ctx context.Context, id point.ID) (before []Machine, err error) {
	all, err := a.Store.Machines(ctx)
	if err != nil {
		return nil, err
	}
	for _, m := range all {
		i := slices.Index(m.Remembered, id)
		if i < 0 {
			continue
		}
		before = append(before, m)
		m.Remembered = slices.Delete(slices.Clone(m.Remembered), i, i+1)
		if err := a.Store.PutMachine(ctx, m); err != nil {
			return before, err
		}
	}
	return before, nil
}

// storeRef is a cloud repository and the provider that it is at.
type storeRef struct {
	connection Connection
	info       gateway.CloudRepository
	repository Repository
}

// eachStore visits the cloud repositories of a provider, or of all. A provider
// that cannot be reached does not hide the others; its error comes last.
func (a *Agent) eachStore(ctx context.Context, provider, repository string, visit func(storeRef) error) error {
	conns, err := a.Store.Connections(ctx)
	if err != nil {
		return err
	}
	if conns = enrolled(conns); provider != "" || len(conns) == 0 {
		c, err := a.connection(ctx, provider)
		if err != nil {
			return err
		}
		conns = []Connection{c}
	}
	var failures []error
	seen := false
	for _, c := range conns {
		w, err := a.wire(c)
		if err == nil {
			var site gateway.Site
			if site, err = w.Site(ctx); err == nil {
				for _, r := range site.Repositories {
					if repository != "" && r.ID != repository && !strings.EqualFold(r.Name, repository) {
						continue
					}
					seen = true
					err = errors.Join(err, visit(storeRef{connection: c, info: r, repository: w.Repository(r.ID)}))
				}
			}
		}
		if err != nil {
			failures = append(failures, fmt.Errorf("provider %q: %w", c.Name, err))
		}
	}
	if !seen && repository != "" && len(failures) == 0 {
		return notFound("cloud repository", repository)
	}
	return errors.Join(failures...)
}

// manifestCache keeps what listing points decodes, so that it fetches each
// manifest once. Points never change.
type manifestCache struct {
	mutex sync.Mutex
	known map[point.ID]described // guarded by mutex
}

type described struct {
	private point.Private
	sizes   []int64
}

// maxDescribed bounds the cache; it starts afresh when it is full.
const maxDescribed = 20000

func (c *manifestCache) get(id point.ID) (described, bool) {
	c.mutex.Lock()
	defer c.mutex.Unlock()
	d, ok := c.known[id]
	return d, ok
}

func (c *manifestCache) put(id point.ID, d described) {
	c.mutex.Lock()
	defer c.mutex.Unlock()
	if c.known == nil || len(c.known) >= maxDescribed {
		c.known = make(map[point.ID]described)
	}
	d.private.Spec = nil // large, and not shown in lists
	c.known[id] = d
}

func (a *Agent) pointStatus(ctx context.Context, s storeRef, info gateway.PointInfo) PointStatus {
	p := PointStatus{ID: info.ID, Provider: s.connection.Name, Repository: s.info.Name, MachineID: info.Machine, Taken: info.Taken,
		Committed: info.Committed, Kind: info.Kind, SizeBytes: info.SizeBytes, Charged: info.ChargedBytes, Keyring: info.Keyring}
	d, ok := a.manifests.get(info.ID)
	if !ok {
		m, err := a.openManifest(ctx, s.repository, info.ID)
		if err != nil {
			p.Problem = err.Error()
			return p
		}
		d = described{private: m.Private}
		for _, disk := range m.Public.Disks {
			d.sizes = append(d.sizes, disk.SizeBytes)
		}
		a.manifests.put(info.ID, d)
	}
	p.Machine, p.Endpoint, p.Consistency, p.Note = d.private.Machine, d.private.Endpoint, d.private.Consistency, d.private.Note
	for i, disk := range d.private.Disks {
		p.Disks = append(p.Disks, PointDisk{ID: disk.ID, Name: disk.Name, SizeBytes: d.sizes[i]})
	}
	return p
}

// openManifest fetches a point's manifest and checks its MAC, and that it is
// the point that was asked for.
func (a *Agent) openManifest(ctx context.Context, repo Repository, id point.ID) (point.Manifest, error) {
	b, err := repo.Manifest(ctx, id)
	if err != nil {
		return point.Manifest{}, fmt.Errorf("fetch the manifest of point %s: %w", id, err)
	}
	public, err := point.ParsePublic(b)
	if err != nil {
		return point.Manifest{}, err
	}
	keys, err := a.keysOf(ctx, public.Keyring)
	if err != nil {
		return point.Manifest{}, err
	}
	m, err := point.Open(b, keys)
	if err != nil {
		return point.Manifest{}, err
	}
	if m.Public.Point != id {
		return point.Manifest{}, fmt.Errorf("the provider sent the manifest of point %s for point %s: %w", m.Public.Point, id, point.ErrForged)
	}
	return m, nil
}
