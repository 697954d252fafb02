package plugin

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"net"
	"slices"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/holdfast-dr/holdfast/sdk"
	pluginv1 "github.com/holdfast-dr/holdfast/sdk/plugin/v1"
)

// remote is the host's end of protocol 1: the author's platform as the host
// sees it. What comes back is checked here, and nowhere else.
type remote struct {
	client    pluginv1.PluginServiceClient
	abilities []sdk.Ability
	limit     time.Duration
	secrets   *secretText
	gone      <-chan struct{} // closed when the process has ended; nil for Local
	end       func() error    // ends the process
	// dialDisk reaches the bytes of an open disk on another machine; nil if the
	// address that the plugin gives can be dialled from here.
	dialDisk func(ctx context.Context, handle string) (net.Conn, error)
	lost     func() error            // Attachment.Lost; nil for a process here
	wrapData func(net.Conn) net.Conn // Launch.WrapData
	dir      string                  // of the process's sockets; "" for Local
	reach    func(sdk.Address) (sdk.Address, error)
}

// As finds an ability that the plugin advertised.
func (r *remote) As(target any) bool {
	return sdk.Grant(target, r, func(a sdk.Ability) bool { return slices.Contains(r.abilities, a) })
}

var (
	_ sdk.Source        = (*remote)(nil)
	_ sdk.ChangeTracker = (*remote)(nil)
	_ sdk.Target        = (*remote)(nil)
	_ sdk.Power         = (*remote)(nil)
)

// call makes one call within the limit.
func call[Req, Resp any](ctx context.Context, r *remote, name string,
	method func(context.Context, Req, ...grpc.CallOption) (Resp, error), req Req) (Resp, error) {
	limited, cancel := context.WithTimeout(ctx, r.limit)
	defer cancel()
	resp, err := method(limited, req)
	if err != nil {
		var none Resp
		return none, r.failed(ctx, limited, name, err)
	}
	return resp, nil
}

// failed makes the error that the caller sees, without secrets.
func (r *remote) failed(caller, limited context.Context, name string, err error) error {
	if status.Code(err) == codes.Unavailable && r.gone != nil {
		// The connection breaks a moment before the process is known to have
		// ended. Who is told that it ended may rely on it.
		timer := time.NewTimer(drainLimit)
		defer timer.Stop()
		select {
		case <-r.gone:
		case <-timer.C:
		case <-caller.Done():
		}
	}
	if status.Code(err) == codes.Unavailable && r.lost != nil && caller.Err() == nil {
		if lost := r.lost(); lost != nil {
			return fmt.Errorf("%s: %w", name, lost)
		}
	}
	err = callError(caller, limited, name, r.limit, err)
	var e *sdk.Error
	if errors.As(err, &e) {
		e.Message, e.Hint = r.secrets.hide(e.Message), r.secrets.hide(e.Hint)
	}
	return err
}

// streamPatience is how many times the limit of a call a stream may keep its
// caller waiting in all: one that trickles ends too.
const streamPatience = 20

// stream makes a call that answers many messages. The limit holds for each of
// them, and the time that the caller takes over one is not counted.
func stream[Req, Resp any](ctx context.Context, r *remote, name string,
	method func(context.Context, Req, ...grpc.CallOption) (grpc.ServerStreamingClient[Resp], error), req Req) iter.Seq2[*Resp, error] {
	return func(yield func(*Resp, error) bool) {
		limited, cancel := context.WithCancel(ctx)
		defer cancel()
		timer := time.AfterFunc(r.limit, cancel)
		defer timer.Stop()
		in, err := method(limited, req)
		for waited := time.Duration(0); err == nil; {
			asked := time.Now()
			var message *Resp
			if message, err = in.Recv(); err != nil {
				break
			}
			timer.Stop()
			if waited += time.Since(asked); waited > streamPatience*r.limit {
				yield(nil, troubled(TroubleSilence, sdk.Errorf(sdk.ErrUnavailable, sdk.FaultPlugin,
					"%s had no end after %s", name, waited.Round(time.Second))))
				return
			}
			if !yield(message, nil) {
				return
			}
			timer.Reset(r.limit)
		}
		if !errors.Is(err, io.EOF) {
			yield(nil, r.failed(ctx, limited, name, err))
		}
	}
}

func (r *remote) Machines(ctx context.Context) iter.Seq2[sdk.Machine, error] {
	return func(yield func(sdk.Machine, error) bool) {
		n := 0
		for message, err := range stream(ctx, r, "Machines", r.client.Machines, &pluginv1.MachinesRequest{}) {
			m := fromMachine(message.GetMachine())
			if err == nil {
				err = checkMachine(m)
			}
			if n++; err == nil && n > maxMachines {
				err = broken("more than %d machines", maxMachines)
			}
			if err != nil {
				yield(sdk.Machine{}, err)
				return
			}
			if !yield(m, nil) {
				return
			}
		}
	}
}

func (r *remote) Probe(ctx context.Context, subject sdk.Subject) (sdk.Report, error) {
	resp, err := call(ctx, r, "Probe", r.client.Probe,
		&pluginv1.ProbeRequest{Machine: string(subject.Machine), Disk: string(subject.Disk)})
	if err != nil {
		return sdk.Report{}, err
	}
	return fromReport(resp)
}

func (r *remote) Cancel(ctx context.Context, opID string) error {
	_, err := call(ctx, r, "Cancel", r.client.Cancel, &pluginv1.CancelRequest{OpId: opID})
	return err
}

// Close ends the process, and with it the connection to the back-end.
func (r *remote) Close() error {
	if r.end == nil {
		return nil
	}
	return r.end()
}

func (r *remote) Snapshot(ctx context.Context, op sdk.Op, req sdk.SnapshotRequest) (sdk.Snapshot, error) {
	wire := &pluginv1.SnapshotRequest{
		Op: toOp(op), Machine: string(req.Machine), Quiesce: string(req.Quiesce),
		DeadlineMicros: req.Deadline.Microseconds(), Since: toMarks(req.Since),
	}
	if req.Disks != nil {
		wire.Disks = &pluginv1.DiskList{}
		for _, id := range req.Disks {
			wire.Disks.Ids = append(wire.Disks.Ids, string(id))
		}
	}
	resp, err := call(ctx, r, "Snapshot", r.client.Snapshot, wire)
	if err != nil {
		return sdk.Snapshot{}, err
	}
	snap := fromSnapshot(resp.GetSnapshot())
	if err := checkSnapshot(snap); err != nil {
		return sdk.Snapshot{}, err
	}
	if snap.Machine.ID != req.Machine {
		return sdk.Snapshot{}, broken("a snapshot of machine %q instead of %q", snap.Machine.ID, req.Machine)
	}
	return snap, nil
}

// sizeOf is the size of a disk in a snapshot, or -1.
func sizeOf(snap sdk.Snapshot, disk sdk.DiskID) int64 {
	for _, d := range snap.Machine.Disks {
		if d.ID == disk {
			return d.SizeBytes
		}
	}
	return -1
}

func (r *remote) OpenDisk(ctx context.Context, snap sdk.Snapshot, disk sdk.DiskID) (sdk.BlockReader, error) {
	resp, err := call(ctx, r, "OpenDisk", r.client.OpenDisk,
		&pluginv1.OpenDiskRequest{Snapshot: toSnapshot(snap), Disk: string(disk)})
	if err != nil {
		return nil, err
	}
	return r.openReader(ctx, resp.GetDisk(), sizeOf(snap, disk))
}

func (r *remote) EndSnapshot(ctx context.Context, op sdk.Op, snap sdk.Snapshot, keep bool) error {
	_, err := call(ctx, r, "EndSnapshot", r.client.EndSnapshot,
		&pluginv1.EndSnapshotRequest{Op: toOp(op), Snapshot: toSnapshot(snap), Keep: keep})
	return err
}

func (r *remote) Changed(ctx context.Context, snap sdk.Snapshot, disk sdk.DiskID) iter.Seq2[sdk.Extent, error] {
	size := sizeOf(snap, disk)
	return func(yield func(sdk.Extent, error) bool) {
		req := &pluginv1.ChangedRequest{Snapshot: toSnapshot(snap), Disk: string(disk)}
		var end, count int64
		for message, err := range stream(ctx, r, "Changed", r.client.Changed, req) {
			if err != nil {
				yield(sdk.Extent{}, err)
				return
			}
			if count += int64(len(message.GetExtents())); len(message.GetExtents()) == 0 || count > maxExtents(size) {
				yield(sdk.Extent{}, broken("%d changed extents on a disk of %d bytes, or none in a message", count, size))
				return
			}
			for _, e := range message.GetExtents() {
				extent := sdk.Extent{Offset: e.GetOffset(), Length: e.GetLength(), Zero: e.GetZero()}
				if extent.Offset < end || extent.Length <= 0 || extent.End() < extent.Offset || size >= 0 && extent.End() > size {
					yield(sdk.Extent{}, broken("changed extent %d+%d after %d on a disk of %d bytes", extent.Offset, extent.Length, end, size))
					return
				}
				end = extent.End()
				if !yield(extent, nil) {
					return
				}
			}
		}
	}
}

// maxExtents is how many changed extents a disk may have: as many as a tracker
// of 64 KiB blocks can find, and a million for one that is finer.
func maxExtents(size int64) int64 { return max(size, 0)>>16 + 1<<20 }

func (r *remote) ReleaseMark(ctx context.Context, op sdk.Op, machine sdk.MachineID, disk sdk.DiskID, mark sdk.Mark) error {
	_, err := call(ctx, r, "ReleaseMark", r.client.ReleaseMark,
		&pluginv1.ReleaseMarkRequest{Op: toOp(op), Machine: string(machine), Disk: string(disk), Mark: mark})
	return err
}

func (r *remote) CreateDraft(ctx context.Context, op sdk.Op, spec sdk.DraftSpec) (sdk.Draft, error) {
	resp, err := call(ctx, r, "CreateDraft", r.client.CreateDraft, &pluginv1.CreateDraftRequest{
		Op: toOp(op), Machine: toMachine(spec.Machine), Replace: string(spec.Replace), Pool: spec.Pool, Networks: spec.Networks,
	})
	if err != nil {
		return sdk.Draft{}, err
	}
	d := fromDraft(resp.GetDraft())
	if d.ID == "" || len(d.ID) > maxID || len(d.Disks) > maxDisks {
		return sdk.Draft{}, broken("a draft with an id of %d bytes and %d disks", len(d.ID), len(d.Disks))
	}
	for _, id := range d.Disks {
		if !slices.ContainsFunc(spec.Machine.Disks, func(asked sdk.Disk) bool { return asked.ID == id }) {
			return sdk.Draft{}, broken("draft %s has disk %q, which was not asked for", d.ID, clip(string(id), maxID))
		}
	}
	return d, nil
}

func (r *remote) OpenDraftDisk(ctx context.Context, op sdk.Op, draft sdk.Draft, disk sdk.DiskID) (sdk.BlockWriter, error) {
	resp, err := call(ctx, r, "OpenDraftDisk", r.client.OpenDraftDisk,
		&pluginv1.OpenDraftDiskRequest{Op: toOp(op), Draft: toDraft(draft), Disk: string(disk)})
	if err != nil {
		return nil, err
	}
	w, err := r.openWriter(ctx, resp.GetDisk())
	if err != nil {
		return nil, err
	}
	return w, nil
}

func (r *remote) CommitDraft(ctx context.Context, op sdk.Op, draft sdk.Draft) (sdk.MachineID, error) {
	resp, err := call(ctx, r, "CommitDraft", r.client.CommitDraft,
		&pluginv1.CommitDraftRequest{Op: toOp(op), Draft: toDraft(draft)})
	if err != nil {
		return "", err
	}
	if id := resp.GetMachine(); id == "" || len(id) > maxID {
		return "", broken("a committed machine's id has %d bytes", len(id))
	}
	return sdk.MachineID(resp.GetMachine()), nil
}

func (r *remote) AbortDraft(ctx context.Context, op sdk.Op, draft sdk.Draft) error {
	_, err := call(ctx, r, "AbortDraft", r.client.AbortDraft,
		&pluginv1.AbortDraftRequest{Op: toOp(op), Draft: toDraft(draft)})
	return err
}

func (r *remote) Start(ctx context.Context, op sdk.Op, machine sdk.MachineID) error {
	_, err := call(ctx, r, "Start", r.client.Start, &pluginv1.StartRequest{Op: toOp(op), Machine: string(machine)})
	return err
}

func (r *remote) Stop(ctx context.Context, op sdk.Op, machine sdk.MachineID, grace time.Duration) error {
	_, err := call(ctx, r, "Stop", r.client.Stop,
		&pluginv1.StopRequest{Op: toOp(op), Machine: string(machine), GraceMicros: grace.Microseconds()})
	return err
}
