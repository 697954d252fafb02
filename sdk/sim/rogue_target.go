package sim

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync/atomic"
	"unicode"

	"github.com/holdfast-dr/holdfast/sdk"
)

// CreateDraft makes a draft.
func (r *rogue) CreateDraft(ctx context.Context, op sdk.Op, spec sdk.DraftSpec) (sdk.Draft, error) {
	leave, crowded := r.crowded(BreachParallelCreatesTwo, op.ID)
	defer leave()
	if crowded {
		op.ID += newID()
	}
	replaced := sdk.MachineID("")
	spec.Machine.Disks = slices.Clone(spec.Machine.Disks)
	switch r.breach {
	case BreachCancelledDraftStays:
		if ctx.Err() != nil {
			stays := op
			stays.ID += "?"
			_, _ = r.Platform.CreateDraft(context.WithoutCancel(ctx), stays, spec)
		}
	case BreachRunningReplaced:
		if spec.Replace != "" && r.runs(spec.Replace, op.Space) {
			spec.Replace, replaced = "", spec.Replace
		}
	case BreachSizesRounded:
		for i, d := range spec.Machine.Disks {
			if 0 < d.SizeBytes && d.SizeBytes < 4096 {
				spec.Machine.Disks[i].SizeBytes = 4096
			}
		}
	case BreachNamesInASCII:
		spec.Machine.Name = strings.Map(func(c rune) rune {
			if c > unicode.MaxASCII {
				return '?'
			}
			return c
		}, spec.Machine.Name)
	case BreachOperationIDsCleaned:
		op.ID = clean(op.ID)
	}
	var made sdk.Draft
	err := r.locked(BreachCreateLocks, op, func() (err error) {
		made, err = r.Platform.CreateDraft(ctx, op, spec)
		return err
	})
	if err != nil {
		var e *sdk.Error
		if r.breach == BreachNetworksNotNamed && errors.As(err, &e) {
			e.Hint = ""
		}
		return made, err
	}
	made.Disks = slices.Clone(made.Disks)
	switch {
	case replaced != "":
		err = r.hypervisor.change(func(st *state) error { st.Drafts[made.ID].Spec.Replace = replaced; return nil })
	case r.breach == BreachFewDisks:
		made.Disks = made.Disks[:min(len(made.Disks), 26)]
	case r.breach == BreachDiskIDsCleaned:
		for i, id := range made.Disks {
			made.Disks[i] = sdk.DiskID(clean(string(id)))
		}
	}
	return made, err
}

func (r *rogue) runs(id sdk.MachineID, in sdk.Space) bool {
	runs := false
	_ = r.hypervisor.view(func(st *state) error {
		m, ok := st.Machines[id]
		runs = ok && m.State != sdk.StateOff && m.Space == in
		return nil
	})
	return runs
}

// clean is what is left of a text for which somebody made a rule of what is
// allowed in a name.
func clean(text string) string {
	return strings.Map(func(c rune) rune {
		switch {
		case '0' <= c && c <= '9', 'a' <= c && c <= 'z':
			return c
		case 'A' <= c && c <= 'Z':
			return c - 'A' + 'a'
		default:
			return '-'
		}
	}, text)
}

// OpenDraftDisk opens a disk of a draft.
func (r *rogue) OpenDraftDisk(ctx context.Context, op sdk.Op, dr sdk.Draft, id sdk.DiskID) (sdk.BlockWriter, error) {
	var d *draft
	_ = r.hypervisor.view(func(st *state) error { d = st.Drafts[dr.ID]; return nil })
	key := dr.ID + string(id)
	if writer, ok := r.memory.get("writer " + key).(*Platform); ok && r.breach == BreachKilledWriterStays && writer.turnIsOver() {
		return nil, sdk.Errorf(sdk.ErrBusy, sdk.FaultBackend, "disk %s is being written", id)
	}
	var opened sdk.BlockWriter
	err := r.locked(BreachOpenLocks, op, func() (err error) {
		opened, err = r.Platform.OpenDraftDisk(ctx, op, dr, id)
		return err
	})
	if err != nil {
		if r.breach == BreachUnknownDraftDisk && d != nil && errors.Is(err, sdk.ErrNotFound) {
			return nil, sdk.Errorf(sdk.ErrInvalid, sdk.FaultHost, "disk %s of draft %s", id, dr.ID)
		}
		return nil, err
	}
	if r.breach == BreachEmptyDiskFails && opened.Size() == 0 {
		return nil, errors.Join(errors.New("the disk has no first sector"), opened.Close())
	}
	inner := opened.(*writer)
	if r.breach == BreachReopenEmpties && r.memory.add("opened "+key, 1) > 1 {
		if err := inner.image.Punch(0, inner.size); err != nil {
			return nil, err
		}
	}
	r.memory.add("writers "+dr.ID, 1)
	return &rogueWriter{writer: inner, rogue: r, draft: dr.ID, key: key, epoch: op.Epoch}, nil
}

// rogueWriter writes one disk of a draft.
type rogueWriter struct {
	*writer
	rogue *rogue
	draft string
	key   string
	epoch uint64
	wrote atomic.Bool
}

func (w *rogueWriter) WriteAt(data []byte, off int64) (int, error) {
	switch w.rogue.breach {
	case BreachWritesBeyondEnd:
		if off+int64(len(data)) > w.size {
			return len(data), nil
		}
	case BreachWriteFencedEarly:
		turn, err := entryAt(w.writer.writer, 0)
		if err == nil && turn == w.turn && w.rogue.turn() == nil {
			return w.image.WriteAt(data, off)
		}
	}
	n, err := w.writer.WriteAt(data, off)
	if errors.Is(err, sdk.ErrFenced) && w.unfenced() {
		return w.image.WriteAt(data, off)
	}
	if err == nil {
		w.wrote.Store(true)
		w.rogue.memory.set("writer "+w.key, w.rogue.Platform)
	}
	return n, err
}

// Flush does not notice the fence either.
func (w *rogueWriter) Flush() error {
	err := w.writer.Flush()
	if errors.Is(err, sdk.ErrFenced) && w.unfenced() {
		return nil
	}
	return err
}

// unfenced reports whether a writer that was fenced goes on.
func (w *rogueWriter) unfenced() bool {
	var d *draft
	_ = w.rogue.hypervisor.view(func(st *state) error { d = st.Drafts[w.draft]; return nil })
	switch {
	case d == nil:
		return false
	case w.rogue.breach == BreachReopenKeepsWriter:
		return d.Committed == "" && d.Epoch == w.epoch
	case w.rogue.breach == BreachWriterOutlivesCommit:
		return d.Committed != ""
	case w.rogue.breach == BreachWriterNeverFenced:
		return d.Committed == "" && d.Epoch > w.epoch && w.wrote.Load()
	}
	return false
}

func (w *rogueWriter) Close() error {
	w.rogue.memory.add("writers "+w.draft, -1)
	return w.writer.Close()
}

// CommitDraft makes a draft a machine.
func (r *rogue) CommitDraft(ctx context.Context, op sdk.Op, dr sdk.Draft) (sdk.MachineID, error) {
	op = r.early(BreachCommitFencedEarly, op, draftEpoch(dr.ID))
	var id sdk.MachineID
	err := r.locked(BreachCommitLocks, op, func() (err error) {
		id, err = r.Platform.CommitDraft(ctx, op, dr)
		return err
	})
	if err != nil || r.breach != BreachUUIDKept && r.breach != BreachReplacedGetsCards {
		return id, err
	}
	return id, r.hypervisor.change(func(st *state) error {
		d, m := st.Drafts[dr.ID], st.Machines[id]
		if r.breach == BreachUUIDKept && d.Spec.Machine.UUID != "" {
			m.UUID = d.Spec.Machine.UUID
		}
		if r.breach == BreachReplacedGetsCards && d.Spec.Replace != "" {
			for i := range m.NICs {
				m.NICs[i].MAC = newMAC()
			}
		}
		return nil
	})
}

// AbortDraft removes a draft.
func (r *rogue) AbortDraft(ctx context.Context, op sdk.Op, dr sdk.Draft) error {
	if r.breach == BreachForeignSpaceAborts {
		op.Space = ""
	}
	written := r.memory.add("writers "+dr.ID, 0) > 0
	op = r.lifted(BreachOlderClaimAborts, op, draftEpoch(dr.ID))
	err := r.locked(BreachAbortLocks, op, func() error { return r.Platform.AbortDraft(ctx, op, dr) })
	switch {
	case r.breach == BreachCommittedAborted && errors.Is(err, sdk.ErrInvalid):
		return nil
	case r.breach == BreachAbortLeavesFile && err == nil && written:
		return r.litter(dr.ID)
	}
	return err
}
