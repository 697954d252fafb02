package sim

import (
	"context"
	"errors"
	"io/fs"
	"iter"
	"maps"
	"slices"
	"strings"

	"github.com/google/uuid"

	"github.com/holdfast-dr/holdfast/sdk"
)

var _ sdk.Activator = (*Platform)(nil)

// instance is a run of a point. Its disks are copies of the point's: those of
// its machine while it has one.
type instance struct {
	sdk.Instance // State and WrittenBytes are looked up
	OpID         string
	Since        map[sdk.DiskID]sdk.Mark // of the moment of the activation
	Kept         *machine                // of an instance that is kept
}

// Activate makes a machine of a point, and starts it.
func (p *Platform) Activate(ctx context.Context, op sdk.Op, req sdk.ActivateRequest) (sdk.Instance, error) {
	var run sdk.Instance
	err := p.during(ctx, "Activate", op, func(bool) error {
		return p.hypervisor.change(func(st *state) error {
			if op.ID == "" || req.Purpose != sdk.PurposeReal && req.Purpose != sdk.PurposeTest {
				return sdk.Errorf(sdk.ErrInvalid, sdk.FaultHost, "an activation for %q with the operation id %q", req.Purpose, op.ID)
			}
			r, err := st.replica(op, req.Replica, req.Purpose == sdk.PurposeReal)
			if err != nil {
				return err
			}
			i := st.activated(op.ID)
			if i == nil {
				i, err = st.activate(p.hypervisor.store, op, r, req)
			} else {
				err = st.restart(op, i)
			}
			if err != nil {
				return err
			}
			run, err = st.showInstance(p.hypervisor.store, i)
			return err
		})
	})
	return run, err
}

// activated is the instance that an operation made.
func (st *state) activated(opID string) *instance {
	for _, i := range st.Instances {
		if i.OpID == opID {
			return i
		}
	}
	return nil
}

func (st *state) restart(op sdk.Op, i *instance) error {
	if err := admit(op, i.Space, &i.Epoch, "instance "+string(i.ID)); err != nil {
		return err
	}
	m, ok := st.Machines[i.Machine]
	if !ok {
		return sdk.Errorf(sdk.ErrInvalid, sdk.FaultHost, "instance %s was deactivated", i.ID).
			WithHint("activate what was kept of it, by another operation")
	}
	return st.startIn(m)
}

func (st *state) activate(s store, op sdk.Op, r *replica, req sdk.ActivateRequest) (*instance, error) {
	pt, err := r.point(req.Point)
	if err != nil {
		return nil, err
	}
	for _, other := range st.Instances {
		if req.Purpose == sdk.PurposeReal && other.Replica == r.ID && other.Purpose == sdk.PurposeReal && other.Machine != "" {
			return nil, sdk.Errorf(sdk.ErrBusy, sdk.FaultBackend, "replica %s is activated as instance %s", r.ID, other.ID)
		}
	}
	m, err := st.machineFor(r, pt, req)
	if err != nil {
		return nil, err
	}
	if req.Purpose == sdk.PurposeReal && r.Open != nil && r.Open.Epoch < op.Epoch {
		if err := st.abortPoint(s, r); err != nil {
			return nil, err
		}
	}
	i, err := st.layer(s, r, pt, req)
	if err != nil {
		return nil, err
	}
	m.Files = i.Kept.Files
	i.Kept, i.OpID, i.Machine, i.Epoch = nil, op.ID, m.ID, op.Epoch
	m.Epoch = op.Epoch
	st.Machines[m.ID], st.Instances[i.ID] = m, i
	return i, nil
}

// machineFor is the machine that an activation makes, without its disks.
func (st *state) machineFor(r *replica, pt *point, req sdk.ActivateRequest) (*machine, error) {
	invalid := func(format string, args ...any) *sdk.Error {
		return sdk.Errorf(sdk.ErrInvalid, sdk.FaultHost, format, args...)
	}
	m := &machine{Machine: pt.Machine, Space: r.Space}
	m.ID, m.UUID, m.Name, m.State, m.Native = sdk.MachineID(newID()), uuid.NewString(), req.Name, sdk.StateRunning, nil
	if req.CPUs > 0 {
		m.CPUs = req.CPUs
	}
	if req.MemoryBytes > 0 {
		m.MemoryBytes = req.MemoryBytes
	}
	if err := checkMachine(m.Machine); err != nil {
		return nil, err
	}
	for _, other := range st.Machines {
		if other.Space == r.Space && other.Name == req.Name {
			return nil, invalid("space %q has a machine called %q", r.Space, req.Name)
		}
	}
	for _, to := range req.Networks {
		if !st.offers(r.Space, to) {
			return nil, invalid("there is no network %q", to).WithHint("networks here: %s", strings.Join(st.networksOf(r.Space), ", "))
		}
	}
	m.NICs = slices.Clone(m.NICs)
	for n := range m.NICs {
		m.NICs[n].Network = req.Networks[m.NICs[n].Network]
	}
	m.Disks = slices.Clone(m.Disks)
	for d := range m.Disks {
		m.Disks[d].Format, m.Disks[d].Pool, m.Disks[d].Skip = "raw", r.Pool, ""
	}
	return m, st.room(r.Space, m)
}

// layer is the instance that runs, with its disks: one that was kept, or a new
// one of the point.
func (st *state) layer(s store, r *replica, pt *point, req sdk.ActivateRequest) (*instance, error) {
	if req.Kept != "" {
		i, ok := st.Instances[req.Kept]
		if !ok || i.Replica != r.ID {
			return nil, sdk.Errorf(sdk.ErrNotFound, sdk.FaultBackend, "instance %s of replica %s", req.Kept, r.ID)
		}
		if i.Kept == nil || i.Point != pt.ID || i.Purpose != req.Purpose {
			return nil, sdk.Errorf(sdk.ErrInvalid, sdk.FaultHost, "instance %s is not kept, or is of another point or for something else", i.ID)
		}
		return i, nil
	}
	i := &instance{
		Instance: sdk.Instance{
			ID: sdk.InstanceID(newID()), Space: r.Space, Replica: r.ID, Point: pt.ID, Purpose: req.Purpose,
		},
		Since: make(map[sdk.DiskID]sdk.Mark), Kept: &machine{Files: make(map[sdk.DiskID]*disk)},
	}
	for id, from := range pt.Files {
		made, err := copyDisk(s, from, from.SizeBytes)
		if err != nil {
			return nil, err
		}
		i.Since[id] = made.mark("instance-" + string(i.ID))
		made.Generation++
		i.Kept.Files[id] = made
	}
	return i, nil
}

// instance finds an instance for op. A real one belongs to the replica's claim.
func (st *state) instance(op sdk.Op, id sdk.InstanceID) (*instance, error) {
	i, ok := st.Instances[id]
	if !ok {
		return nil, sdk.Errorf(sdk.ErrNotFound, sdk.FaultBackend, "instance %s", id)
	}
	if i.Purpose == sdk.PurposeReal {
		if _, err := st.replica(op, i.Replica, true); err != nil {
			return nil, err
		}
	}
	return i, admit(op, i.Space, &i.Epoch, "instance "+string(id))
}

// showInstance is the instance as a listing has it.
func (st *state) showInstance(s store, i *instance) (sdk.Instance, error) {
	shown := i.Instance
	m := i.Kept
	if running, ok := st.Machines[i.Machine]; ok {
		m, shown.State = running, sdk.InstanceOff
		if running.State != sdk.StateOff {
			shown.State = sdk.InstanceRunning
		}
	} else {
		shown.Machine, shown.State = "", sdk.InstanceKept
	}
	if m == nil {
		return shown, nil
	}
	for id, d := range m.Files {
		since, lost := d.since(i.Since[id])
		if lost != "" {
			since = 0
		}
		written, err := writtenSince(s, d, since)
		if err != nil {
			return sdk.Instance{}, err
		}
		shown.WrittenBytes += written
	}
	return shown, nil
}

// writtenSince counts the bytes of the blocks that were written after a
// generation.
func writtenSince(s store, d *disk, since uint64) (int64, error) {
	table, err := s.open(d.table())
	if err != nil {
		return 0, err
	}
	defer table.Close()
	written := int64(0)
	for e, err := range table.Extents(0, d.blocks()*entrySize) {
		if err != nil {
			return 0, err
		}
		for at := e.Offset / entrySize * entrySize; !e.Zero && at < e.End(); at += entrySize {
			generation, err := entryAt(table, at)
			if err != nil {
				return 0, err
			}
			if generation > since {
				written += min(blockSize, d.SizeBytes-at/entrySize*blockSize)
			}
		}
	}
	return written, nil
}

// Instances lists the instances of a space.
func (p *Platform) Instances(ctx context.Context, space sdk.Space) iter.Seq2[sdk.Instance, error] {
	return func(yield func(sdk.Instance, error) bool) {
		var list []sdk.Instance
		err := p.during(ctx, "Instances", sdk.Op{}, func(bool) error {
			return p.hypervisor.view(func(st *state) error {
				for _, id := range slices.Sorted(maps.Keys(st.Instances)) {
					i := st.Instances[id]
					if space != "" && i.Space != space {
						continue
					}
					shown, err := st.showInstance(p.hypervisor.store, i)
					if err != nil {
						return err
					}
					list = append(list, shown)
				}
				return nil
			})
		})
		if err != nil {
			yield(sdk.Instance{}, err)
			return
		}
		for _, i := range list {
			if !yield(i, nil) {
				return
			}
		}
	}
}

// Deactivate removes the machine of an instance, and what it wrote unless that
// is kept.
func (p *Platform) Deactivate(ctx context.Context, op sdk.Op, id sdk.InstanceID, layer sdk.Layer) error {
	return p.during(ctx, "Deactivate", op, func(bool) error {
		return p.hypervisor.change(func(st *state) error {
			if layer != sdk.KeepLayer && layer != sdk.DiscardLayer {
				return sdk.Errorf(sdk.ErrInvalid, sdk.FaultHost, "a layer is kept or discarded, not %q", layer)
			}
			if _, ok := st.Instances[id]; !ok {
				return nil
			}
			i, err := st.instance(op, id)
			if err != nil {
				return err
			}
			if m, ok := st.Machines[i.Machine]; ok {
				if snap := st.openSnapshot(m.ID); snap != nil {
					if err := st.endSnapshot(p.hypervisor.store, snap, false); err != nil {
						return err
					}
				}
				i.Kept, i.Machine = m, ""
				delete(st.Machines, m.ID)
			}
			if layer == sdk.KeepLayer {
				return nil
			}
			if i.Kept != nil {
				for _, f := range i.Kept.Files {
					st.discard(f.files()...)
				}
			}
			delete(st.Instances, id)
			return nil
		})
	})
}

// Finalize makes an instance an ordinary machine.
func (p *Platform) Finalize(ctx context.Context, op sdk.Op, id sdk.InstanceID) (sdk.MachineID, error) {
	var made sdk.MachineID
	err := p.during(ctx, "Finalize", op, func(bool) error {
		return p.hypervisor.change(func(st *state) error {
			for _, m := range st.Machines {
				if m.Was == id {
					made = m.ID
					return admit(op, m.Space, &m.Epoch, "machine "+string(m.ID))
				}
			}
			i, err := st.instance(op, id)
			if err != nil {
				return err
			}
			m, ok := st.Machines[i.Machine]
			if !ok || i.Purpose != sdk.PurposeReal {
				return sdk.Errorf(sdk.ErrInvalid, sdk.FaultHost, "instance %s is a test, or does not run", id)
			}
			r, ok := st.Replicas[i.Replica]
			if !ok {
				return sdk.Errorf(sdk.ErrNotFound, sdk.FaultBackend, "replica %s", i.Replica)
			}
			delete(st.Instances, id)
			for _, pt := range r.Chain {
				if needs := st.needed(r, pt); needs != "" {
					return sdk.Errorf(sdk.ErrBusy, sdk.FaultBackend, "point %s of replica %s is needed by %s", pt.ID, r.ID, needs)
				}
			}
			if err := st.removeReplica(p.hypervisor.store, r); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
			m.Was, made = id, m.ID
			return nil
		})
	})
	return made, err
}

// Reverse gives the marks of the moment of activation.
func (p *Platform) Reverse(ctx context.Context, op sdk.Op, id sdk.InstanceID) (sdk.Reversal, error) {
	var reversal sdk.Reversal
	err := p.during(ctx, "Reverse", op, func(bool) error {
		return p.hypervisor.change(func(st *state) error {
			i, err := st.instance(op, id)
			if err != nil {
				return err
			}
			m, ok := st.Machines[i.Machine]
			if !ok || i.Purpose != sdk.PurposeReal {
				return sdk.Errorf(sdk.ErrInvalid, sdk.FaultHost, "instance %s is a test, or does not run", id)
			}
			reversal = sdk.Reversal{Machine: m.ID, Since: make(map[sdk.DiskID]sdk.Mark)}
			for disk, mark := range i.Since {
				if d, ok := m.Files[disk]; ok {
					if _, lost := d.since(mark); lost == "" {
						reversal.Since[disk] = slices.Clone(mark)
					}
				}
			}
			return nil
		})
	})
	return reversal, err
}
