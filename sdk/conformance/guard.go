package conformance

import (
	"context"
	"fmt"
	"iter"
	"runtime/debug"
	"time"

	"github.com/holdfast-dr/holdfast/sdk"
)

// patience is how long after the call limit a check gives a call up that does
// not return at all.
const patience = 5 * time.Second

// guard is a platform whose calls are taken down in the ledger, and given up
// when they hang: a plugin that hangs must not hang the suite.
type guard struct {
	sdk.Platform
	ledger *ledger
}

// guarded makes one call. A panic in it, which only a platform of this process
// can have, is an error like any other.
func guarded[T any](l *ledger, call, opID string, do func() (T, error)) (T, error) {
	type answer struct {
		value T
		err   error
	}
	done := make(chan answer, 1)
	started := time.Now()
	go func() {
		var a answer
		defer func() {
			if p := recover(); p != nil {
				a.err = fmt.Errorf("%s panicked: %v\n%s", call, p, debug.Stack())
			}
			done <- a
		}()
		a.value, a.err = do()
	}()
	timer := time.NewTimer(l.limit + patience)
	defer timer.Stop()
	select {
	case a := <-done:
		l.note(call, opID, time.Since(started), a.err)
		return a.value, a.err
	case <-timer.C:
		err := fmt.Errorf("%s did not return within %s", call, l.limit+patience)
		l.note(call, opID, time.Since(started), err)
		var none T
		return none, err
	}
}

func guardedErr(l *ledger, call, opID string, do func() error) error {
	_, err := guarded(l, call, opID, func() (struct{}, error) { return struct{}{}, do() })
	return err
}

// guardedSeq makes a call that answers many things; the limit holds for each.
func guardedSeq[T any](l *ledger, call string, seq iter.Seq2[T, error]) iter.Seq2[T, error] {
	return func(yield func(T, error) bool) {
		type item struct {
			value T
			ok    bool
		}
		next, stop := iter.Pull2(seq)
		hung := false
		defer func() {
			if !hung {
				_ = guardedErr(l, call, "", func() error { stop(); return nil })
			}
		}()
		for {
			got, err := guarded(l, call, "", func() (item, error) {
				value, err, ok := next()
				return item{value, ok}, err
			})
			if err == nil && !got.ok {
				return
			}
			// A call that did not return still owns the sequence.
			hung = err != nil && !got.ok
			if !yield(got.value, err) || err != nil {
				return
			}
		}
	}
}

// As finds an ability of the platform, guarded as well.
func (g *guard) As(target any) bool {
	switch to := target.(type) {
	case *sdk.Source:
		if s, ok := sdk.As[sdk.Source](g.Platform); ok {
			*to = guardedSource{s, g.ledger}
			return true
		}
	case *sdk.ChangeTracker:
		if t, ok := sdk.As[sdk.ChangeTracker](g.Platform); ok {
			*to = guardedTracker{t, g.ledger}
			return true
		}
	case *sdk.Target:
		if t, ok := sdk.As[sdk.Target](g.Platform); ok {
			*to = guardedTarget{t, g.ledger}
			return true
		}
	case *sdk.Power:
		if p, ok := sdk.As[sdk.Power](g.Platform); ok {
			*to = guardedPower{p, g.ledger}
			return true
		}
	case *sdk.Watcher:
		// It lasts as long as its caller likes; its checks have their own limits.
		w, ok := sdk.As[sdk.Watcher](g.Platform)
		*to = w
		return ok
	case *sdk.Replicator:
		if r, ok := sdk.As[sdk.Replicator](g.Platform); ok {
			*to = guardedReplicator{r, g.ledger}
			return true
		}
	case *sdk.Activator:
		if a, ok := sdk.As[sdk.Activator](g.Platform); ok {
			*to = guardedActivator{a, g.ledger}
			return true
		}
	case *sdk.Networker:
		if n, ok := sdk.As[sdk.Networker](g.Platform); ok {
			*to = guardedNetworker{n, g.ledger}
			return true
		}
	case *sdk.Pools:
		if p, ok := sdk.As[sdk.Pools](g.Platform); ok {
			*to = guardedPools{p, g.ledger}
			return true
		}
	case *sdk.Console:
		if s, ok := sdk.As[sdk.Console](g.Platform); ok {
			*to = guardedConsole{s, g.ledger}
			return true
		}
	case *sdk.Guest:
		if s, ok := sdk.As[sdk.Guest](g.Platform); ok {
			*to = guardedGuest{s, g.ledger}
			return true
		}
	}
	return false
}

func (g *guard) Machines(ctx context.Context) iter.Seq2[sdk.Machine, error] {
	return guardedSeq(g.ledger, "Machines", g.Platform.Machines(ctx))
}

func (g *guard) Probe(ctx context.Context, subject sdk.Subject) (sdk.Report, error) {
	return guarded(g.ledger, "Probe", "", func() (sdk.Report, error) { return g.Platform.Probe(ctx, subject) })
}

func (g *guard) Cancel(ctx context.Context, opID string) error {
	return guardedErr(g.ledger, "Cancel", opID, func() error { return g.Platform.Cancel(ctx, opID) })
}

func (g *guard) Close() error {
	return guardedErr(g.ledger, "Close", "", g.Platform.Close)
}

type guardedSource struct {
	sdk.Source
	ledger *ledger
}

func (g guardedSource) Snapshot(ctx context.Context, op sdk.Op, req sdk.SnapshotRequest) (sdk.Snapshot, error) {
	return guarded(g.ledger, "Snapshot", op.ID, func() (sdk.Snapshot, error) { return g.Source.Snapshot(ctx, op, req) })
}

func (g guardedSource) OpenDisk(ctx context.Context, snap sdk.Snapshot, disk sdk.DiskID) (sdk.BlockReader, error) {
	r, err := guarded(g.ledger, "OpenDisk", snap.ID, func() (sdk.BlockReader, error) { return g.Source.OpenDisk(ctx, snap, disk) })
	if err != nil {
		return nil, err
	}
	return guardedReader{r, g.ledger}, nil
}

func (g guardedSource) EndSnapshot(ctx context.Context, op sdk.Op, snap sdk.Snapshot, keep bool) error {
	return guardedErr(g.ledger, "EndSnapshot", op.ID, func() error { return g.Source.EndSnapshot(ctx, op, snap, keep) })
}

type guardedTracker struct {
	sdk.ChangeTracker
	ledger *ledger
}

func (g guardedTracker) Changed(ctx context.Context, snap sdk.Snapshot, disk sdk.DiskID) iter.Seq2[sdk.Extent, error] {
	return guardedSeq(g.ledger, "Changed", g.ChangeTracker.Changed(ctx, snap, disk))
}

func (g guardedTracker) ReleaseMark(ctx context.Context, op sdk.Op, machine sdk.MachineID, disk sdk.DiskID, mark sdk.Mark) error {
	return guardedErr(g.ledger, "ReleaseMark", op.ID, func() error {
		return g.ChangeTracker.ReleaseMark(ctx, op, machine, disk, mark)
	})
}

type guardedTarget struct {
	sdk.Target
	ledger *ledger
}

func (g guardedTarget) CreateDraft(ctx context.Context, op sdk.Op, spec sdk.DraftSpec) (sdk.Draft, error) {
	return guarded(g.ledger, "CreateDraft", op.ID, func() (sdk.Draft, error) { return g.Target.CreateDraft(ctx, op, spec) })
}

func (g guardedTarget) OpenDraftDisk(ctx context.Context, op sdk.Op, draft sdk.Draft, disk sdk.DiskID) (sdk.BlockWriter, error) {
	w, err := guarded(g.ledger, "OpenDraftDisk", op.ID, func() (sdk.BlockWriter, error) {
		return g.Target.OpenDraftDisk(ctx, op, draft, disk)
	})
	if err != nil {
		return nil, err
	}
	return guardedWriter{w, g.ledger}, nil
}

func (g guardedTarget) CommitDraft(ctx context.Context, op sdk.Op, draft sdk.Draft) (sdk.MachineID, error) {
	return guarded(g.ledger, "CommitDraft", op.ID, func() (sdk.MachineID, error) { return g.Target.CommitDraft(ctx, op, draft) })
}

func (g guardedTarget) AbortDraft(ctx context.Context, op sdk.Op, draft sdk.Draft) error {
	return guardedErr(g.ledger, "AbortDraft", op.ID, func() error { return g.Target.AbortDraft(ctx, op, draft) })
}

type guardedPower struct {
	sdk.Power
	ledger *ledger
}

func (g guardedPower) Start(ctx context.Context, op sdk.Op, machine sdk.MachineID) error {
	return guardedErr(g.ledger, "Start", op.ID, func() error { return g.Power.Start(ctx, op, machine) })
}

func (g guardedPower) Stop(ctx context.Context, op sdk.Op, machine sdk.MachineID, grace time.Duration) error {
	return guardedErr(g.ledger, "Stop", op.ID, func() error { return g.Power.Stop(ctx, op, machine, grace) })
}

type guardedReader struct {
	sdk.BlockReader
	ledger *ledger
}

// ReadAt reads into memory of its own first: a call that was given up may
// still write there.
func (g guardedReader) ReadAt(p []byte, off int64) (int, error) {
	own := make([]byte, len(p))
	n, err := guarded(g.ledger, "ReadAt", "", func() (int, error) { return g.BlockReader.ReadAt(own, off) })
	if n < 0 || n > len(p) {
		return 0, fmt.Errorf("ReadAt of %d bytes answers %d", len(p), n)
	}
	return copy(p, own[:n]), err
}

func (g guardedReader) Extents(ctx context.Context, off, n int64) iter.Seq2[sdk.Extent, error] {
	return guardedSeq(g.ledger, "Extents", g.BlockReader.Extents(ctx, off, n))
}

func (g guardedReader) Close() error { return guardedErr(g.ledger, "Close", "", g.BlockReader.Close) }

type guardedWriter struct {
	sdk.BlockWriter
	ledger *ledger
}

func (g guardedWriter) WriteAt(p []byte, off int64) (int, error) {
	own := append([]byte(nil), p...)
	return guarded(g.ledger, "WriteAt", "", func() (int, error) { return g.BlockWriter.WriteAt(own, off) })
}

func (g guardedWriter) Zero(off, n int64) error {
	return guardedErr(g.ledger, "Zero", "", func() error { return g.BlockWriter.Zero(off, n) })
}

func (g guardedWriter) Flush() error { return guardedErr(g.ledger, "Flush", "", g.BlockWriter.Flush) }
func (g guardedWriter) Close() error { return guardedErr(g.ledger, "Close", "", g.BlockWriter.Close) }
