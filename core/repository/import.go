package repository

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/holdfast-dr/holdfast/core/audit"
	"github.com/holdfast-dr/holdfast/core/blob"
	"github.com/holdfast-dr/holdfast/core/chunk"
	"github.com/holdfast-dr/holdfast/core/point"
)

// ImportReport says what an import found.
type ImportReport struct {
	Points    int // live ones that the catalogue has now
	Binned    int // of those with a tombstone
	Void      int // refused commits
	Refused   []ObjectFault
	Lost      []point.ID // the catalogue had them, the store has not
	UsedBytes int64
	Epoch     uint64 // the claim has to be taken anew, and will be newer than this
}

// ImportOptions steer an import. The zero value works.
type ImportOptions struct {
	// AcceptLoss says that points which the catalogue knows and the store has not
	// are really gone, even if that is every one.
	AcceptLoss bool
}

// Import makes the catalogue agree with the store: a manifest that is neither
// void nor entombed, and of which every page and chunk is there and sound,
// becomes a point, even where that exceeds the quota; one with a tombstone goes
// into the bin. It works on a repository that is open for reading because the
// database is old, and afterwards the claim's epoch is that of the store, so
// that the claim has to be taken, and the repository opened, again.
func (r *Repository) Import(ctx context.Context, o ImportOptions) (ImportReport, error) {
	var report ImportReport
	if r.epoch == 0 {
		return report, ErrReadOnly
	}
	if _, err := audit.From(ctx); err != nil {
		return report, err
	}
	r.condemning.Lock() // no commit meanwhile
	defer r.condemning.Unlock()
	i := &importer{r: r, o: o, report: &report, best: map[point.ID]PointRecord{}}
	if err := i.run(ctx); err != nil {
		return report, fmt.Errorf("import repository %s: %w", r.id, err)
	}
	return report, nil
}

type importer struct {
	r      *Repository
	o      ImportOptions
	report *ImportReport
	best   map[point.ID]PointRecord
}

func (i *importer) run(ctx context.Context) error {
	entombed, err := i.r.tombstones(ctx)
	if err != nil {
		return err
	}
	if err := i.judge(ctx, entombed); err != nil {
		return err
	}
	points := make([]PointRecord, 0, len(i.best))
	for _, p := range i.best {
		points = append(points, p)
	}
	slices.SortFunc(points, func(a, b PointRecord) int { return strings.Compare(string(a.ID), string(b.ID)) })
	if err := i.charge(ctx, points); err != nil {
		return err
	}
	if err := i.lost(ctx); err != nil {
		return err
	}
	if len(points) == 0 && len(i.report.Lost) > 0 && !i.o.AcceptLoss {
		return &EmptyStoreError{Repository: i.r.id}
	}
	newest, err := i.r.newestEpoch(ctx)
	if err != nil {
		return err
	}
	i.report.Epoch = max(newest, i.r.epoch)
	return i.r.catalogue.Import(ctx, i.r.id, i.report.Epoch, points, i.report.UsedBytes)
}

// judge finds the manifests that are points.
func (i *importer) judge(ctx context.Context, entombed map[point.ID]tombstoneJSON) error {
	var found []manifestObject
	void := map[string]bool{}
	for object, err := range i.r.blobs.List(ctx, i.r.name(pointsFolder)) {
		if err != nil {
			return fmt.Errorf("list manifests: %w", err)
		}
		m, ok := i.r.parseManifestName(object)
		switch {
		case !ok:
			i.refuse(object.Name, errors.New("not the name of a manifest"))
		case m.void:
			void[m.name] = true
			i.report.Void++
		default:
			found = append(found, m)
		}
	}
	j := i.r.newJudge()
	defer j.end()
	for _, m := range found {
		if void[m.name] {
			continue
		}
		tombstone, dead := entombed[m.point]
		if err := i.manifest(ctx, j, m, tombstone, dead); err != nil {
			return err
		}
	}
	return nil
}

func (i *importer) refuse(object string, problem error) {
	if len(i.report.Refused) < MaxFindings {
		i.report.Refused = append(i.report.Refused, ObjectFault{Object: object, Problem: problem.Error()})
	}
}

func (i *importer) manifest(ctx context.Context, j *judge, m manifestObject, tombstone tombstoneJSON, dead bool) error {
	record := PointRecord{ID: m.point, Machine: m.machine, Epoch: m.epoch}
	_, p, err := i.r.readManifest(ctx, record)
	if errors.Is(err, chunk.ErrDamaged) || errors.Is(err, blob.ErrNotFound) {
		i.refuse(m.name, err)
		return nil
	}
	if err != nil {
		return err
	}
	found, err := j.point(ctx, p)
	if err != nil {
		return err
	}
	if found == standingLost {
		i.refuse(m.name, errors.New("map pages or chunks that it needs are missing or damaged"))
		return nil
	}
	record = recordOf(p, m.epoch)
	if dead {
		record.Forgotten = time.UnixMicro(tombstone.Forgotten).UTC()
	}
	if known, twice := i.best[record.ID]; !twice || known.Epoch < record.Epoch {
		i.best[record.ID] = record
	}
	return nil
}

// recordOf is what a manifest tells the catalogue.
func recordOf(p point.Public, epoch uint64) PointRecord {
	record := PointRecord{
		ID: p.Point, Machine: p.Machine, Previous: p.Previous, Session: p.Session, Epoch: epoch, Kind: p.Kind,
		Taken: p.Taken, Committed: p.Taken, Disks: len(p.Disks),
	}
	for _, disk := range p.Disks {
		record.SizeBytes += disk.SizeBytes
	}
	return record
}

// charge finds out what the live points take, each what those before it do not.
func (i *importer) charge(ctx context.Context, points []PointRecord) (err error) {
	r := i.r
	r.marking.Lock()
	defer r.marking.Unlock()
	r.charging.Lock()
	w := &walk{r: r, generation: r.used.generation + 1}
	r.charging.Unlock()
	// The generation may be the one that an earlier life left in the index: the
	// next Open makes its own.
	b := r.space.batch()
	b.delete(r.space.key(familyState))
	if err := b.apply(); err != nil {
		return err
	}
	prefix := r.usedPrefix(w.generation)
	if err := r.space.clear(prefix); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.space.clear(prefix)) }()
	for n := range points {
		if !points[n].Forgotten.IsZero() {
			i.report.Binned++
			continue
		}
		before := w.liveBytes
		if err := w.record(ctx, points[n], usedLive); err != nil {
			return err
		}
		points[n].ChargedBytes = w.liveBytes - before
		i.report.Points++
	}
	i.report.UsedBytes = w.liveBytes
	return nil
}

// lost names the points that the catalogue is about to lose.
func (i *importer) lost(ctx context.Context) error {
	for _, binned := range []bool{false, true} {
		for p, err := range i.r.allPoints(ctx, binned) {
			if err != nil {
				return err
			}
			if _, kept := i.best[p.ID]; !kept && len(i.report.Lost) < MaxFindings {
				i.report.Lost = append(i.report.Lost, p.ID)
			}
		}
	}
	return nil
}

// refuseUnknown refuses to write where the store has a whole point that the catalogue
// does not know: the database is an older one, which its epoch does not tell if
// the claim was the same then as now. To collect would delete that point. A
// manifest that lacks something is none that an import would bring back.
//
// It is asked when the sessions of this server are settled, so what is left is
// no commit on its way. Memory is the points of one machine.
func (r *Repository) refuseUnknown(ctx context.Context) (err error) {
	r.refusal, err = r.unknown(ctx)
	return err
}

func (r *Repository) unknown(ctx context.Context) (refusal, err error) {
	entombed := map[point.ID]bool{}
	for object, err := range r.blobs.List(ctx, r.name(tombstoneFolder)) {
		if err != nil {
			return nil, fmt.Errorf("list tombstones: %w", err)
		}
		entombed[point.ID(strings.TrimPrefix(object.Name, r.name(tombstoneFolder)))] = true
	}
	var machine point.MachineID
	found := map[string]manifestObject{} // of one machine, by name
	for object, err := range r.blobs.List(ctx, r.name(pointsFolder)) {
		if err != nil {
			return nil, fmt.Errorf("list manifests: %w", err)
		}
		m, ok := r.parseManifestName(object)
		if !ok || entombed[m.point] {
			continue
		}
		if m.machine != machine {
			if refusal, err := r.unknownOf(ctx, machine, found); err != nil || refusal != nil {
				return refusal, err
			}
			machine = m.machine
			clear(found)
		}
		if m.void { // follows what it voids
			delete(found, m.name)
		} else {
			found[m.name] = m
		}
	}
	return r.unknownOf(ctx, machine, found)
}

// unknownOf is unknown for the manifests of one machine.
func (r *Repository) unknownOf(ctx context.Context, machine point.MachineID, found map[string]manifestObject) (refusal, err error) {
	if len(found) == 0 {
		return nil, nil
	}
	known, err := r.knownPoints(ctx, machine)
	if err != nil {
		return nil, err
	}
	j := r.newJudge()
	defer j.end()
	for _, m := range found {
		if known[m.point] {
			continue
		}
		_, p, err := r.readManifest(ctx, PointRecord{ID: m.point, Machine: m.machine, Epoch: m.epoch})
		if errors.Is(err, chunk.ErrDamaged) || errors.Is(err, blob.ErrNotFound) {
			continue
		}
		if err != nil {
			return nil, err
		}
		found, err := j.point(ctx, p)
		if err != nil {
			return nil, err
		}
		if found != standingLost {
			r.log.Error("database is older than the repository", "unknown point", m.point)
			return &OldDatabaseError{Repository: r.id, Epoch: r.epoch, Newest: r.newest, Unknown: m.point}, nil
		}
	}
	return nil, nil
}

// knownPoints are the points of a machine, also those in the bin.
func (r *Repository) knownPoints(ctx context.Context, machine point.MachineID) (map[point.ID]bool, error) {
	known := map[point.ID]bool{}
	for _, binned := range []bool{false, true} {
		for q := (PointQuery{Machine: machine, Binned: binned, Limit: MaxPoints}); ; {
			points, err := r.catalogue.Points(ctx, r.id, q)
			if err != nil {
				return nil, fmt.Errorf("list points: %w", err)
			}
			for _, p := range points {
				known[p.ID], q.After = true, p.ID
			}
			if len(points) < q.Limit {
				break
			}
		}
	}
	return known, nil
}
