package sim

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"slices"
	"strings"

	"github.com/holdfast-dr/holdfast/sdk"
)

var _ sdk.Replicator = (*Platform)(nil)

// replica is a replica. Each of its points has files of its own, so removing
// one touches no other.
type replica struct {
	sdk.Replica // without points and draft
	OpID        string
	Chain       []*point // from old to young
	Open        *pointDraft
}

// point is a committed point.
type point struct {
	sdk.Point
	DraftID string // that it was
	Files   map[sdk.DiskID]*disk
}

// pointDraft is the open draft of a point.
type pointDraft struct {
	sdk.PointDraft
	OpID    string
	Machine sdk.Machine
	Files   map[sdk.DiskID]*disk
}

// show is the replica as a listing has it.
func (r *replica) show() sdk.Replica {
	shown := r.Replica
	for _, p := range r.Chain {
		shown.Points = append(shown.Points, p.show())
	}
	if r.Open != nil {
		draft := r.Open.PointDraft
		draft.Disks = slices.Clone(draft.Disks)
		shown.Draft = &draft
	}
	return shown
}

func (p *point) show() sdk.Point {
	shown := p.Point
	shown.Holders = slices.Clone(p.Holders)
	return shown
}

// replica finds a replica for op; writer says that the epoch counts.
func (st *state) replica(op sdk.Op, id sdk.ReplicaID, writer bool) (*replica, error) {
	r, ok := st.Replicas[id]
	if !ok {
		return nil, sdk.Errorf(sdk.ErrNotFound, sdk.FaultBackend, "replica %s", id)
	}
	epoch := &r.Epoch
	if !writer {
		own := op.Epoch
		epoch = &own
	}
	return r, admit(op, r.Space, epoch, "replica "+string(id))
}

func (r *replica) point(id sdk.PointID) (*point, error) {
	for _, p := range r.Chain {
		if p.ID == id {
			return p, nil
		}
	}
	return nil, sdk.Errorf(sdk.ErrNotFound, sdk.FaultBackend, "point %s of replica %s", id, r.ID)
}

// Replicas lists the replicas of a space.
func (p *Platform) Replicas(ctx context.Context, space sdk.Space) iter.Seq2[sdk.Replica, error] {
	return func(yield func(sdk.Replica, error) bool) {
		var list []sdk.Replica
		err := p.during(ctx, "Replicas", sdk.Op{}, func(bool) error {
			return p.hypervisor.view(func(st *state) error {
				for _, r := range st.Replicas {
					if space == "" || r.Space == space {
						list = append(list, r.show())
					}
				}
				return nil
			})
		})
		if err != nil {
			yield(sdk.Replica{}, err)
			return
		}
		slices.SortFunc(list, func(a, b sdk.Replica) int { return strings.Compare(string(a.ID), string(b.ID)) })
		for _, r := range list {
			if !yield(r, nil) {
				return
			}
		}
	}
}

// CreateReplica makes a replica, empty or of a machine.
func (p *Platform) CreateReplica(ctx context.Context, op sdk.Op, spec sdk.ReplicaSpec) (sdk.Replica, error) {
	var made sdk.Replica
	err := p.during(ctx, "CreateReplica", op, func(bool) error {
		return p.hypervisor.change(func(st *state) error {
			for _, r := range st.Replicas {
				if r.OpID == op.ID {
					made = r.show()
					return admit(op, r.Space, &r.Epoch, "replica "+string(r.ID))
				}
			}
			if err := st.checkReplica(op, spec); err != nil {
				return err
			}
			r := &replica{OpID: op.ID, Replica: sdk.Replica{
				ID: sdk.ReplicaID(newID()), Space: op.Space, Name: spec.Name, Pool: spec.Pool, Label: spec.Label,
				Epoch: op.Epoch, MaxPoints: p.settings.MaxPoints,
			}}
			if r.Pool == "" {
				r.Pool = "default"
			}
			if spec.Seed != "" {
				if err := st.adopt(op, r, spec.Seed); err != nil {
					return err
				}
			}
			st.Replicas[r.ID] = r
			made = r.show()
			return nil
		})
	})
	return made, err
}

func (st *state) checkReplica(op sdk.Op, spec sdk.ReplicaSpec) error {
	invalid := func(format string, args ...any) *sdk.Error {
		return sdk.Errorf(sdk.ErrInvalid, sdk.FaultHost, format, args...)
	}
	switch {
	case op.ID == "":
		return invalid("a replica without an operation id")
	case spec.Name == "" || len(spec.Name) > 255:
		return invalid("a replica's name has 1 to 255 bytes")
	case len(spec.Label) > sdk.MaxLabel:
		return invalid("a label of %d bytes, at most %d", len(spec.Label), sdk.MaxLabel)
	case spec.Pool != "" && !slices.Contains(st.Pools, spec.Pool):
		return invalid("there is no pool %q", spec.Pool).WithHint("pools here: %s", strings.Join(st.Pools, ", "))
	}
	for _, r := range st.Replicas {
		if r.Space == op.Space && r.Name == spec.Name {
			return invalid("space %q has a replica called %q", op.Space, spec.Name)
		}
	}
	return nil
}

// adopt makes a machine the first point of a replica.
func (st *state) adopt(op sdk.Op, r *replica, id sdk.MachineID) error {
	m, err := st.machine(op, id)
	if err != nil {
		return err
	}
	if err := m.replaceable(st); err != nil {
		return err
	}
	for _, d := range m.Files {
		clear(d.Marks)
	}
	first := &point{Point: sdk.Point{ID: sdk.PointID(newID()), Machine: m.Machine}, Files: m.Files}
	r.Chain = []*point{first}
	delete(st.Machines, id)
	return nil
}

// DraftPoint makes the files of a point to be, with the base's bytes.
func (p *Platform) DraftPoint(ctx context.Context, op sdk.Op, spec sdk.PointSpec) (sdk.PointDraft, error) {
	var made sdk.PointDraft
	err := p.during(ctx, "DraftPoint", op, func(bool) error {
		return p.hypervisor.change(func(st *state) error {
			r, err := st.replica(op, spec.Replica, true)
			if err != nil {
				return err
			}
			if r.Open != nil && r.Open.OpID == op.ID {
				made = *r.show().Draft
				return nil
			}
			base, err := r.draftable(spec)
			if err != nil {
				return err
			}
			if r.Open != nil && r.Open.Epoch >= op.Epoch {
				return sdk.Errorf(sdk.ErrBusy, sdk.FaultBackend, "replica %s has draft %s open", r.ID, r.Open.ID)
			}
			if err := st.abortPoint(p.hypervisor.store, r); err != nil {
				return err
			}
			d := &pointDraft{
				PointDraft: sdk.PointDraft{ID: newID(), Replica: r.ID, Base: spec.Base, Epoch: op.Epoch},
				OpID:       op.ID, Machine: spec.Machine, Files: make(map[sdk.DiskID]*disk),
			}
			for _, wanted := range spec.Machine.Disks {
				var from *disk
				if base != nil {
					from = base.Files[wanted.ID]
				}
				file, err := copyDisk(p.hypervisor.store, from, wanted.SizeBytes)
				if err != nil {
					return err
				}
				if err := p.hypervisor.store.create(file.writer(), entrySize); err != nil {
					return err
				}
				d.Files[wanted.ID] = file
				d.Disks = append(d.Disks, wanted.ID)
			}
			r.Open = d
			made = d.PointDraft
			made.Disks = slices.Clone(made.Disks)
			return nil
		})
	})
	return made, err
}

// draftable refuses what cannot become the next point, before anything is made.
func (r *replica) draftable(spec sdk.PointSpec) (*point, error) {
	if err := checkMachine(spec.Machine); err != nil {
		return nil, err
	}
	if r.MaxPoints > 0 && len(r.Chain) >= r.MaxPoints {
		return nil, sdk.Errorf(sdk.ErrBusy, sdk.FaultBackend, "replica %s has %d points, which is all that it can have", r.ID, len(r.Chain)).
			WithHint("remove a point first")
	}
	if len(r.Chain) == 0 {
		if spec.Base != "" {
			return nil, sdk.Errorf(sdk.ErrInvalid, sdk.FaultHost, "replica %s has no point %s", r.ID, spec.Base)
		}
		return nil, nil
	}
	youngest := r.Chain[len(r.Chain)-1]
	if spec.Base != youngest.ID {
		return nil, sdk.Errorf(sdk.ErrInvalid, sdk.FaultHost, "%q is not the youngest point of replica %s", spec.Base, r.ID)
	}
	for _, d := range spec.Machine.Disks {
		if before, ok := youngest.Files[d.ID]; ok && d.SizeBytes < before.SizeBytes {
			return nil, sdk.Errorf(sdk.ErrInvalid, sdk.FaultHost, "disk %s shrank from %d to %d bytes", d.ID, before.SizeBytes, d.SizeBytes).
				WithHint("a smaller disk is another one, with an id of its own")
		}
	}
	return youngest, nil
}

// copyPiece is how much of a disk is copied at a time.
const copyPiece = 1 << 20

// copyDisk makes a disk with the bytes of another, which is no longer than it;
// nil is an empty one.
func copyDisk(s store, from *disk, sizeBytes int64) (*disk, error) {
	made, err := newDisk(s, sizeBytes)
	if err != nil || from == nil {
		return made, err
	}
	target, err := s.open(made.image())
	if err != nil {
		return nil, err
	}
	defer target.Close()
	return made, errors.Join(copyBytes(s, from, target, sizeBytes), target.Sync())
}

// copyBytes copies the first bytes of a disk. Holes stay holes.
func copyBytes(s store, from *disk, target file, sizeBytes int64) error {
	source, err := s.open(from.image())
	if err != nil {
		return err
	}
	defer source.Close()
	buf := make([]byte, copyPiece)
	for e, err := range source.Extents(0, min(from.SizeBytes, sizeBytes)) {
		if err != nil {
			return err
		}
		for at := e.Offset; !e.Zero && at < e.End(); at += copyPiece {
			piece := buf[:min(copyPiece, e.End()-at)]
			if _, err := source.ReadAt(piece, at); err != nil {
				return err
			}
			if _, err := target.WriteAt(piece, at); err != nil {
				return err
			}
		}
	}
	return nil
}

// pointDraft finds the open draft of a replica for op.
func (st *state) pointDraft(op sdk.Op, d sdk.PointDraft) (*replica, *pointDraft, error) {
	r, err := st.replica(op, d.Replica, true)
	if err != nil {
		return nil, nil, err
	}
	if r.Open == nil || r.Open.ID != d.ID {
		return r, nil, sdk.Errorf(sdk.ErrNotFound, sdk.FaultBackend, "draft %s of replica %s", d.ID, r.ID)
	}
	return r, r.Open, nil
}

// OpenPointDraftDisk opens a disk of a draft, as OpenDraftDisk does.
func (p *Platform) OpenPointDraftDisk(ctx context.Context, op sdk.Op, draft sdk.PointDraft, diskID sdk.DiskID) (sdk.PointWriter, error) {
	var w *writer
	err := p.during(ctx, "OpenPointDraftDisk", op, func(bool) error {
		return p.hypervisor.change(func(st *state) error {
			r, d, err := st.pointDraft(op, draft)
			if r != nil && d == nil && r.committed(draft.ID) != nil {
				return sdk.Errorf(sdk.ErrInvalid, sdk.FaultHost, "draft %s is committed", draft.ID)
			}
			if err != nil {
				return err
			}
			file, ok := d.Files[diskID]
			if !ok {
				return sdk.Errorf(sdk.ErrNotFound, sdk.FaultBackend, "disk %s of draft %s", diskID, d.ID)
			}
			var base *disk
			if pt, err := r.point(d.Base); err == nil {
				base = pt.Files[diskID]
			}
			w, err = p.openWriter(file, base)
			if err != nil {
				return fmt.Errorf("open disk %s of draft %s: %w", diskID, d.ID, err)
			}
			w.armed = p.armed(st)
			return nil
		})
	})
	if err != nil {
		return nil, err
	}
	return &pointWriter{w}, nil
}

// pointWriter is a writer that reads what it wrote, over the base.
type pointWriter struct{ *writer }

// ReadAt reads.
func (w *pointWriter) ReadAt(data []byte, off int64) (n int, err error) {
	if w.Shape() == sdk.ShapeSequential {
		return 0, sdk.Errorf(sdk.ErrUnsupported, sdk.FaultBackend, "a disk that is written in ascending order cannot be read meanwhile")
	}
	if off >= w.size {
		return 0, io.EOF
	}
	part := data[:min(int64(len(data)), w.size-off)]
	err = w.do("ReadAt", off, int64(len(part)), func() error {
		n, err = w.image.ReadAt(part, off)
		return err
	})
	if err == nil && n < len(data) {
		err = io.EOF
	}
	return n, err
}

// committed is the point that a draft became.
func (r *replica) committed(draftID string) *point {
	for _, p := range r.Chain {
		if p.DraftID == draftID {
			return p
		}
	}
	return nil
}

// CommitPoint makes a draft the youngest point.
func (p *Platform) CommitPoint(ctx context.Context, op sdk.Op, draft sdk.PointDraft, label sdk.PointLabel) (sdk.Point, error) {
	var made sdk.Point
	err := p.during(ctx, "CommitPoint", op, func(bool) error {
		return p.hypervisor.change(func(st *state) error {
			r, d, err := st.pointDraft(op, draft)
			if r != nil && d == nil {
				if before := r.committed(draft.ID); before != nil {
					made = before.show()
					return admit(op, r.Space, &r.Epoch, "replica "+string(r.ID))
				}
			}
			if err != nil {
				return err
			}
			if len(label.Label) > sdk.MaxLabel {
				return sdk.Errorf(sdk.ErrInvalid, sdk.FaultHost, "a label of %d bytes, at most %d", len(label.Label), sdk.MaxLabel)
			}
			next := &point{
				Point:   sdk.Point{ID: sdk.PointID(newID()), Machine: d.Machine, PointLabel: label},
				DraftID: d.ID, Files: d.Files,
			}
			for _, f := range d.Files {
				if err := st.settle(p.hypervisor.store, f); err != nil {
					return err
				}
				taken, err := allocated(p.hypervisor.store, f)
				if err != nil {
					return err
				}
				next.StoredBytes += taken
			}
			r.Chain, r.Open = append(r.Chain, next), nil
			made = next.show()
			return nil
		})
	})
	return made, err
}

// settle makes what was written to a disk of a draft durable, and ends its
// writer.
func (st *state) settle(s store, d *disk) error {
	if _, err := disconnect(s, d); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	f, err := s.open(d.image())
	if err != nil {
		return err
	}
	st.discard(d.writer())
	return errors.Join(f.Sync(), f.Close())
}

// allocated is how many bytes of a disk are no hole.
func allocated(s store, d *disk) (int64, error) {
	f, err := s.open(d.image())
	if err != nil {
		return 0, err
	}
	defer f.Close()
	taken := int64(0)
	for e, err := range f.Extents(0, d.SizeBytes) {
		if err != nil {
			return 0, err
		}
		if !e.Zero {
			taken += e.Length
		}
	}
	return taken, nil
}

// AbortPoint removes a draft.
func (p *Platform) AbortPoint(ctx context.Context, op sdk.Op, draft sdk.PointDraft) error {
	return p.during(ctx, "AbortPoint", op, func(bool) error {
		return p.hypervisor.change(func(st *state) error {
			if _, ok := st.Replicas[draft.Replica]; !ok {
				return nil
			}
			r, d, err := st.pointDraft(op, draft)
			switch {
			case d != nil:
				return st.abortPoint(p.hypervisor.store, r)
			case !errors.Is(err, sdk.ErrNotFound):
				return err
			case r.committed(draft.ID) != nil:
				return sdk.Errorf(sdk.ErrInvalid, sdk.FaultHost, "draft %s is committed", draft.ID)
			}
			return nil
		})
	})
}

// abortPoint removes the draft of a replica, if one is open.
func (st *state) abortPoint(s store, r *replica) error {
	if r.Open == nil {
		return nil
	}
	for _, f := range r.Open.Files {
		if _, err := disconnect(s, f); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		st.discard(f.files()...)
	}
	r.Open = nil
	return nil
}

// OpenPoint reads a disk of a point.
func (p *Platform) OpenPoint(ctx context.Context, space sdk.Space, replicaID sdk.ReplicaID, pointID sdk.PointID, diskID sdk.DiskID) (sdk.BlockReader, error) {
	var opened *pointReader
	err := p.during(ctx, "OpenPoint", sdk.Op{}, func(bool) error {
		return p.hypervisor.view(func(st *state) error {
			r, err := st.replica(sdk.Op{ID: "read", Space: space}, replicaID, false)
			if err != nil {
				return err
			}
			pt, err := r.point(pointID)
			if err != nil {
				return err
			}
			d, ok := pt.Files[diskID]
			if !ok {
				return sdk.Errorf(sdk.ErrNotFound, sdk.FaultBackend, "disk %s of point %s", diskID, pointID)
			}
			f, err := openFile(p.hypervisor.store, d.image(), "disk "+string(diskID))
			if err != nil {
				return err
			}
			opened = &pointReader{platform: p, image: f, size: d.SizeBytes}
			return nil
		})
	})
	if err != nil {
		return nil, err
	}
	return opened, nil
}

// pointReader reads a disk of a point, which never changes.
type pointReader struct {
	platform *Platform
	image    file
	size     int64
}

func (r *pointReader) Size() int64  { return r.size }
func (r *pointReader) Close() error { return r.image.Close() }

func (r *pointReader) ReadAt(data []byte, off int64) (int, error) {
	if err := r.platform.turn(); err != nil {
		return 0, err
	}
	if off < 0 {
		return 0, fmt.Errorf("read at %d: negative offset", off)
	}
	if off >= r.size {
		return 0, io.EOF
	}
	n, err := r.image.ReadAt(data[:min(int64(len(data)), r.size-off)], off)
	if err == nil && n < len(data) {
		err = io.EOF
	}
	return n, err
}

func (r *pointReader) Extents(ctx context.Context, off, n int64) iter.Seq2[sdk.Extent, error] {
	return func(yield func(sdk.Extent, error) bool) {
		if off < 0 || n < 0 || off+n > r.size {
			yield(sdk.Extent{}, sdk.Errorf(sdk.ErrInvalid, sdk.FaultHost, "%d bytes at %d are outside of %d", n, off, r.size))
			return
		}
		for e, err := range r.image.Extents(off, n) {
			if err == nil {
				err = ctx.Err()
			}
			if !yield(e, err) || err != nil {
				return
			}
		}
	}
}

// HoldPoint records a holder.
func (p *Platform) HoldPoint(ctx context.Context, op sdk.Op, replicaID sdk.ReplicaID, pointID sdk.PointID, holder string) error {
	return p.during(ctx, "HoldPoint", op, func(bool) error {
		return p.hypervisor.change(func(st *state) error {
			if holder == "" || len(holder) > sdk.MaxHolder {
				return sdk.Errorf(sdk.ErrInvalid, sdk.FaultHost, "a holder's name has 1 to %d bytes", sdk.MaxHolder)
			}
			r, err := st.replica(op, replicaID, false)
			if err != nil {
				return err
			}
			pt, err := r.point(pointID)
			if err != nil {
				return err
			}
			if !slices.Contains(pt.Holders, holder) {
				pt.Holders = append(pt.Holders, holder)
			}
			return nil
		})
	})
}

// ReleasePoint forgets a holder.
func (p *Platform) ReleasePoint(ctx context.Context, op sdk.Op, replicaID sdk.ReplicaID, pointID sdk.PointID, holder string) error {
	return p.during(ctx, "ReleasePoint", op, func(bool) error {
		return p.hypervisor.change(func(st *state) error {
			if _, ok := st.Replicas[replicaID]; !ok {
				return nil
			}
			r, err := st.replica(op, replicaID, false)
			if err != nil {
				return err
			}
			if pt, err := r.point(pointID); err == nil {
				pt.Holders = slices.DeleteFunc(pt.Holders, func(h string) bool { return h == holder })
			}
			return nil
		})
	})
}

// needed says what needs a point, or "".
func (st *state) needed(r *replica, pt *point) string {
	if len(pt.Holders) > 0 {
		return pt.Holders[0]
	}
	for _, i := range st.Instances {
		if i.Replica == r.ID && i.Point == pt.ID {
			return "instance " + string(i.ID)
		}
	}
	return ""
}

// RemovePoint removes a point.
func (p *Platform) RemovePoint(ctx context.Context, op sdk.Op, replicaID sdk.ReplicaID, pointID sdk.PointID) error {
	return p.during(ctx, "RemovePoint", op, func(bool) error {
		return p.hypervisor.change(func(st *state) error {
			if _, ok := st.Replicas[replicaID]; !ok {
				return nil
			}
			r, err := st.replica(op, replicaID, true)
			if err != nil {
				return err
			}
			pt, err := r.point(pointID)
			if err != nil {
				return nil
			}
			needs := st.needed(r, pt)
			if r.Open != nil && r.Open.Base == pointID {
				needs = "draft " + r.Open.ID
			}
			if needs != "" {
				return sdk.Errorf(sdk.ErrBusy, sdk.FaultBackend, "point %s of replica %s is needed by %s", pointID, r.ID, needs)
			}
			st.removePoint(r, pt)
			return nil
		})
	})
}

func (st *state) removePoint(r *replica, pt *point) {
	for _, f := range pt.Files {
		st.discard(f.files()...)
	}
	r.Chain = slices.DeleteFunc(r.Chain, func(other *point) bool { return other == pt })
}

// RemoveReplica removes a replica with all that it has.
func (p *Platform) RemoveReplica(ctx context.Context, op sdk.Op, replicaID sdk.ReplicaID) error {
	return p.during(ctx, "RemoveReplica", op, func(bool) error {
		return p.hypervisor.change(func(st *state) error {
			if _, ok := st.Replicas[replicaID]; !ok {
				return nil
			}
			r, err := st.replica(op, replicaID, true)
			if err != nil {
				return err
			}
			for _, pt := range r.Chain {
				if needs := st.needed(r, pt); needs != "" {
					return sdk.Errorf(sdk.ErrBusy, sdk.FaultBackend, "point %s of replica %s is needed by %s", pt.ID, r.ID, needs)
				}
			}
			return st.removeReplica(p.hypervisor.store, r)
		})
	})
}

func (st *state) removeReplica(s store, r *replica) error {
	if err := st.abortPoint(s, r); err != nil {
		return err
	}
	for _, pt := range slices.Clone(r.Chain) {
		st.removePoint(r, pt)
	}
	delete(st.Replicas, r.ID)
	return nil
}
