package repository

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/google/uuid"

	"github.com/holdfast-dr/holdfast/core/blob"
	"github.com/holdfast-dr/holdfast/core/chunk"
	"github.com/holdfast-dr/holdfast/core/point"
	"github.com/holdfast-dr/holdfast/core/tenant"
)

// VerifyOptions steer a verification. The zero value works.
type VerifyOptions struct {
	// Progress, if set, is called after each object; its error ends the
	// verification.
	Progress func(VerifyReport) error
}

// VerifyReport says what a verification read and found.
type VerifyReport struct {
	Objects int
	Packs   int
	Records int64
	Bytes   int64

	DamagedRecords int64         // copies whose bytes are not what was written
	Damage         []Damage      // the first MaxFindings of them
	Faults         []ObjectFault // the first MaxFindings objects that are not what they should be
	FaultyObjects  int
	Affected       []point.ID // live and binned points that cannot be restored whole
	Doubtful       []point.ID // those that are whole with what distrusted sessions brought
}

// MaxFindings bounds the lists of a report; the counts go on.
const MaxFindings = 1000

// ObjectFault is an object that is not what it should be.
type ObjectFault struct {
	Object  string
	Problem string
}

// Sound reports whether nothing was found.
func (v VerifyReport) Sound() bool {
	return v.DamagedRecords == 0 && v.FaultyObjects == 0 && len(v.Affected)+len(v.Doubtful) == 0
}

// Verify reads every byte of the repository, without keys: the checksum of every
// record, the hash and form of every map page, headers and footers, manifests,
// wraps, tombstones. Damaged copies are recorded, so that Have says no and the
// next backup brings them again. Then it follows every point's maps and names
// the points that need something of which no sound copy is left, and those that
// need what only distrusted sessions brought.
//
// What it cannot tell without keys is whether a tenant sealed what its id says;
// restores, the samples of backups and the tenant's own verification do.
func (r *Repository) Verify(ctx context.Context, o VerifyOptions) (VerifyReport, error) {
	v := &verifier{r: r, o: o}
	if o.Progress == nil {
		v.o.Progress = func(VerifyReport) error { return ctx.Err() }
	}
	err := v.objects(ctx)
	if err == nil {
		err = v.points(ctx)
	}
	if err == nil && v.report.DamagedRecords > 0 && r.Writable() == nil {
		err = r.recountPending(ctx)
	}
	if err != nil {
		return v.report, fmt.Errorf("verify repository %s: %w", r.id, err)
	}
	return v.report, nil
}

type verifier struct {
	r      *Repository
	o      VerifyOptions
	report VerifyReport
}

func (v *verifier) fault(object string, problem error) {
	v.report.FaultyObjects++
	if len(v.report.Faults) < MaxFindings {
		v.report.Faults = append(v.report.Faults, ObjectFault{Object: object, Problem: problem.Error()})
	}
}

func (v *verifier) damaged(ctx context.Context, p packObject, id chunk.ID) error {
	v.report.DamagedRecords++
	if len(v.report.Damage) < MaxFindings {
		v.report.Damage = append(v.report.Damage, Damage{Kind: p.kind, ID: id, Pack: p.id, At: v.r.clock()})
	}
	return v.r.markDamaged(ctx, p.kind, id, p.id)
}

func (v *verifier) objects(ctx context.Context) error {
	for object, err := range v.r.blobs.List(ctx, v.r.id+"/") {
		if err != nil {
			return fmt.Errorf("list objects: %w", err)
		}
		err = v.object(ctx, object)
		if errors.Is(err, blob.ErrNotFound) {
			continue // deleted since it was listed; the points tell if it was needed
		}
		if damagedOrCut(err) {
			v.fault(object.Name, err)
		} else if err != nil {
			return err
		}
		v.report.Objects++
		v.report.Bytes += object.SizeBytes
		if err := v.o.Progress(v.report); err != nil {
			return err
		}
	}
	return nil
}

// object checks one object by the folder that it lies in.
func (v *verifier) object(ctx context.Context, object blob.Object) error {
	name := strings.TrimPrefix(object.Name, v.r.id+"/")
	folder, _, _ := strings.Cut(name, "/")
	switch folder + "/" {
	case packsFolder:
		return v.packObject(ctx, chunk.KindData, object)
	case mapsFolder:
		return v.packObject(ctx, chunk.KindPage, object)
	case pointsFolder:
		return v.manifest(ctx, object)
	case keysFolder:
		return v.small(ctx, object, chunk.MaxWrap, func(b []byte) error {
			_, err := chunk.CheckWrap(b)
			return err
		})
	case tombstoneFolder:
		return v.small(ctx, object, maxSmall, func(b []byte) error {
			var t tombstoneJSON
			if err := decodeSmall(b, &t); err != nil {
				return err
			}
			if !strings.HasSuffix(object.Name, "/"+t.Point) {
				return fmt.Errorf("tombstone of point %s: %w", t.Point, chunk.ErrDamaged)
			}
			return nil
		})
	case ownerFolder:
		return empty(object)
	case labelFolder:
		return v.small(ctx, object, maxSmall, func(b []byte) error {
			_, err := parseLabel(b, v.r.id)
			return err
		})
	case formatObject + "/":
		return v.small(ctx, object, maxSmall, func(b []byte) error {
			var f formatJSON
			if err := decodeSmall(b, &f); err != nil {
				return err
			}
			if want := (formatJSON{chunk.Format, v.r.id, v.r.chunkSize, v.r.fanOut}); f != want {
				return fmt.Errorf("format is %+v, want %+v: %w", f, want, chunk.ErrDamaged)
			}
			return nil
		})
	}
	return fmt.Errorf("object does not belong here: %w", chunk.ErrDamaged)
}

// damagedOrCut reports whether an object is not what was written, rather than
// out of reach.
func damagedOrCut(err error) bool {
	return errors.Is(err, chunk.ErrDamaged) || errors.Is(err, io.ErrUnexpectedEOF)
}

func empty(object blob.Object) error {
	if object.SizeBytes != 0 {
		return fmt.Errorf("object of %d bytes should be empty: %w", object.SizeBytes, chunk.ErrDamaged)
	}
	return nil
}

func (v *verifier) small(ctx context.Context, object blob.Object, limit int64, check func([]byte) error) error {
	if object.SizeBytes > limit {
		return fmt.Errorf("object of %d bytes: %w", object.SizeBytes, chunk.ErrDamaged)
	}
	b, err := blob.Read(ctx, v.r.blobs, object.Name, limit)
	if err != nil {
		return err
	}
	return notWritten(check(b))
}

// notWritten makes whatever is wrong with an object's content damage: also a
// format that this program does not know is named, and the verification goes on.
func notWritten(err error) error {
	if err == nil || errors.Is(err, chunk.ErrDamaged) {
		return err
	}
	return fmt.Errorf("%w: %w", err, chunk.ErrDamaged)
}

func (v *verifier) manifest(ctx context.Context, object blob.Object) error {
	m, ok := v.r.parseManifestName(object)
	if !ok {
		return fmt.Errorf("not the name of a manifest: %w", chunk.ErrDamaged)
	}
	if m.void {
		return empty(object)
	}
	return v.small(ctx, object, point.MaxManifest, func(b []byte) error {
		p, err := point.ParsePublic(b)
		if err == nil && (p.Point != m.point || p.Machine != m.machine || p.Repository != v.r.id) {
			err = fmt.Errorf("manifest is of point %s: %w", p.Point, chunk.ErrDamaged)
		}
		return err
	})
}

func (v *verifier) packObject(ctx context.Context, kind PackKind, object blob.Object) error {
	p, ok := v.r.packOf(kind, object)
	if !ok {
		return fmt.Errorf("not the name of a pack: %w", chunk.ErrDamaged)
	}
	if v.r.isCondemned(p.id) {
		return nil
	}
	v.report.Packs++
	header := make([]byte, min(packHeaderSize, p.size))
	if err := v.r.blobs.ReadAt(ctx, p.name, header, 0); err != nil {
		return err
	}
	headerKind, id, fault := parsePackHeader(header)
	fault = notWritten(fault)
	if fault == nil && (headerKind != kind || id != p.id) {
		fault = fmt.Errorf("header is of pack %s: %w", id, chunk.ErrDamaged)
	}
	entries, err := readFooter(ctx, v.r.blobs, p)
	if err != nil && !damagedOrCut(err) {
		return err
	}
	if err != nil {
		return errors.Join(fault, err, v.withoutFooter(ctx, p))
	}
	return errors.Join(fault, eachRecord(ctx, v.r.blobs, p, entries, func(e Entry, record chunk.Record, damage error) error {
		v.report.Records++
		if damage == nil && kind == chunk.KindPage {
			damage = checkPage(record)
		}
		if damage != nil {
			return v.damaged(ctx, p, e.ID)
		}
		return nil
	}))
}

func checkPage(record chunk.Record) error {
	if got := point.PageID(record.Body); got != record.ID {
		return fmt.Errorf("map page %s has the content of %s: %w", record.ID, got, chunk.ErrDamaged)
	}
	_, err := point.ParsePage(record.Body)
	return err
}

// withoutFooter verifies the records of a pack whose footer is damaged: those
// that the index knows and that cannot be found are damaged, too.
func (v *verifier) withoutFooter(ctx context.Context, p packObject) error {
	found := map[int64]chunk.ID{}
	err := searchRecords(ctx, v.r.blobs, p, func(e Entry, record chunk.Record, _ error) error {
		v.report.Records++
		if p.kind == chunk.KindPage && checkPage(record) != nil {
			return nil
		}
		found[e.Offset] = e.ID
		return nil
	})
	if err != nil {
		return err
	}
	var lost []chunk.ID
	err = v.r.space.each(v.r.space.key(familyCopies, []byte{byte(p.kind)}), func(key, value []byte) error {
		if len(key) != len(chunk.ID{}) {
			return nil
		}
		for _, l := range parseLocations(chunk.ID(key), value) {
			if l.pack == p.id && found[l.Offset] != l.ID {
				lost = append(lost, l.ID)
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	for _, id := range lost {
		if err := v.damaged(ctx, p, id); err != nil {
			return err
		}
	}
	return nil
}

// points follows the maps of every point.
func (v *verifier) points(ctx context.Context) error {
	j := v.r.newJudge()
	defer j.end()
	for _, binned := range []bool{false, true} {
		for record, err := range v.r.allPoints(ctx, binned) {
			if err != nil {
				return err
			}
			found, err := v.whole(ctx, j, record)
			if err != nil {
				return err
			}
			if found == standingSound || !v.exists(ctx, record.ID) {
				continue
			}
			v.r.noteDamage()
			if found == standingLost {
				v.report.Affected = append(v.report.Affected, record.ID)
			} else {
				v.report.Doubtful = append(v.report.Doubtful, record.ID)
			}
		}
	}
	return nil
}

// exists reports whether a point is still there: what it needed may have been
// collected since it was listed.
func (v *verifier) exists(ctx context.Context, id point.ID) bool {
	_, err := v.r.catalogue.Point(ctx, v.r.id, id)
	return !errors.Is(err, tenant.ErrNotFound)
}

func (v *verifier) whole(ctx context.Context, j *judge, record PointRecord) (standing, error) {
	_, p, err := v.r.readManifest(ctx, record)
	if errors.Is(err, blob.ErrNotFound) {
		if v.exists(ctx, record.ID) {
			v.fault(v.r.manifestOf(record), err)
		}
		return standingLost, nil
	}
	if errors.Is(err, chunk.ErrDamaged) {
		return standingLost, nil // reported with its object
	}
	if err != nil {
		return standingLost, err
	}
	return j.point(ctx, p)
}

// standing is the worst copy on which a point, or what lies below a page, has
// to rely.
type standing byte

const (
	standingLost     standing = iota // something has no copy that is known to be whole
	standingDoubtful                 // something was brought by distrusted sessions only
	standingSound
)

// standingOf is that of a record, of the copies that live found.
func standingOf(copies []location) standing {
	switch {
	case len(copies) == 0 || copies[0].damaged:
		return standingLost
	case copies[0].doubtful:
		return standingDoubtful
	}
	return standingSound
}

// judge tells how everything that points need stands. What it
// has seen is kept in the index, under a key of its own, so a page that points
// share is followed once.
type judge struct {
	r   *Repository
	run []byte
}

func (r *Repository) newJudge() *judge {
	run := uuid.New()
	return &judge{r, run[:]}
}

// end drops what was kept.
func (j *judge) end() {
	if err := j.r.space.clear(j.r.space.key(familySound, j.run)); err != nil {
		j.r.log.Warn("clear the index", "error", err)
	}
}

func (j *judge) point(ctx context.Context, p point.Public) (standing, error) {
	worst := standingSound
	for i, disk := range p.Disks {
		if disk.Root.IsZero() {
			continue
		}
		found, err := j.page(ctx, disk.Root, p.Geometry(i).RootLevel())
		if err != nil {
			return standingLost, err
		}
		worst = min(worst, found)
	}
	return worst, nil
}

func (j *judge) page(ctx context.Context, id chunk.ID, level int) (found standing, err error) {
	if err := ctx.Err(); err != nil {
		return standingLost, err
	}
	key := j.r.space.key(familySound, j.run, []byte{byte(level)}, id[:])
	known, ok, err := j.r.space.get(key)
	if err != nil {
		return standingLost, err
	}
	if ok && len(known) == 1 {
		return standing(known[0]), nil
	}
	if found, err = j.look(ctx, id, level); err != nil {
		return standingLost, err
	}
	b := j.r.space.batch()
	b.set(key, []byte{byte(found)})
	return found, b.apply()
}

func (j *judge) look(ctx context.Context, id chunk.ID, level int) (standing, error) {
	copies, _, err := j.r.live(chunk.KindPage, id)
	if err != nil || standingOf(copies) == standingLost {
		return standingLost, err
	}
	page, err := j.r.page(ctx, id)
	if errors.Is(err, chunk.ErrDamaged) || errors.Is(err, ErrNotFound) {
		return standingLost, nil
	}
	if err != nil || page.Level != level {
		return standingLost, err
	}
	worst := standingSound
	for _, child := range page.IDs {
		if child.IsZero() {
			continue
		}
		var found standing
		if level == 0 {
			copies, _, err = j.r.live(chunk.KindData, child)
			found = standingOf(copies)
		} else {
			found, err = j.page(ctx, child, level-1)
		}
		if err != nil {
			return standingLost, err
		}
		worst = min(worst, found)
	}
	return worst, nil
}

// MaxDamagedChunks bounds the answer of Damaged.
const MaxDamagedChunks = 1 << 16

// Damaged lists the chunks of the session's base of which no sound copy is left,
// or only such as distrusted sessions brought, up to MaxDamagedChunks. The agent
// reads their blocks again, because its change tracker does not know that the
// repository lost them.
func (s *Session) Damaged(ctx context.Context) ([]chunk.ID, error) {
	if s.base == "" || !s.r.anyDamage() {
		return nil, nil
	}
	record, err := s.r.catalogue.Point(ctx, s.r.id, s.base)
	if err != nil {
		return nil, fmt.Errorf("find base point: %w", err)
	}
	_, p, err := s.r.readManifest(ctx, record)
	if err != nil {
		return nil, err
	}
	j := s.r.newJudge()
	defer j.end()
	var lost []chunk.ID
	for i, disk := range p.Disks {
		if disk.Root.IsZero() {
			continue
		}
		if err := j.lost(ctx, disk.Root, p.Geometry(i).RootLevel(), &lost); err != nil {
			return nil, err
		}
	}
	return lost, nil
}

// anyDamage reports whether a look at a base can find anything at all.
func (r *Repository) anyDamage() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.damaged > 0
}

// noteDamage makes sessions look for what their bases lost.
func (r *Repository) noteDamage() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.damaged++
}

// lost gathers the chunks below a page that have no sound copy.
func (j *judge) lost(ctx context.Context, id chunk.ID, level int, lost *[]chunk.ID) error {
	found, err := j.page(ctx, id, level)
	if err != nil || found == standingSound || len(*lost) >= MaxDamagedChunks {
		return err
	}
	page, err := j.r.page(ctx, id)
	if errors.Is(err, chunk.ErrDamaged) || errors.Is(err, ErrNotFound) {
		return nil // the agent finds out when it fetches the page
	}
	if err != nil {
		return err
	}
	for _, child := range page.IDs {
		switch {
		case child.IsZero():
		case level > 0:
			err = j.lost(ctx, child, level-1, lost)
		default:
			var sound bool
			if _, sound, err = j.r.live(chunk.KindData, child); err == nil && !sound && len(*lost) < MaxDamagedChunks {
				*lost = append(*lost, child)
			}
		}
		if err != nil {
			return err
		}
	}
	return nil
}
