package plugin

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc"

	"github.com/holdfast-dr/holdfast/sdk"
	pluginv1 "github.com/holdfast-dr/holdfast/sdk/plugin/v1"
)

// server is the plugin's end of protocol 1: it translates, and keeps what is
// open.
type server struct {
	pluginv1.UnimplementedPluginServiceServer
	author      Author
	description Description
	log         *slog.Logger
	data        *dataServer

	mutex    sync.Mutex // guards platform
	platform sdk.Platform
}

// newServer makes the server; dir is where its data socket will be.
func newServer(a Author, d Description, dir string, log *slog.Logger) *server {
	return &server{author: a, description: d, log: log, data: newDataServer(dir, log)}
}

// options are those of the gRPC server: bounds, and panics that become errors.
func (s *server) options() []grpc.ServerOption {
	return []grpc.ServerOption{
		grpc.MaxRecvMsgSize(MaxMessage),
		grpc.MaxSendMsgSize(MaxMessage),
		grpc.ChainUnaryInterceptor(s.unary),
		grpc.ChainStreamInterceptor(s.stream),
	}
}

func (s *server) unary(ctx context.Context, req any, info *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (resp any, err error) {
	name := callName(info.FullMethod)
	ctx = withLog(ctx, s.log.With("call", name), req)
	ctx, cancel := early(ctx)
	defer cancel()
	defer func() {
		err = recovered(Log(ctx), name, recover(), err)
		if errors.Is(err, context.DeadlineExceeded) && ctx.Err() != nil && sdk.CodeOf(err) == sdk.CodeUnknown {
			err = sdk.Errorf(sdk.ErrUnavailable, sdk.FaultPlugin, "%s ran out of time: %v", name, err)
		}
		err = encodeError(err)
	}()
	return handle(ctx, req)
}

// early ends an author's context a little before the host stops waiting, so
// that an author who turns its end into ErrPending is still heard.
func early(ctx context.Context) (context.Context, context.CancelFunc) {
	deadline, ok := ctx.Deadline()
	if !ok {
		return ctx, func() {}
	}
	margin := min(time.Until(deadline)/10, time.Second)
	return context.WithDeadline(ctx, deadline.Add(-margin))
}

func (s *server) stream(srv any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handle grpc.StreamHandler) (err error) {
	log := s.log.With("call", callName(info.FullMethod))
	defer func() { err = encodeError(recovered(log, callName(info.FullMethod), recover(), err)) }()
	return handle(srv, &loggedStream{ServerStream: stream, ctx: withLog(stream.Context(), log, nil)})
}

// loggedStream is a stream whose context has the call's logger.
type loggedStream struct {
	grpc.ServerStream
	ctx context.Context
}

func (s *loggedStream) Context() context.Context { return s.ctx }

// recovered turns a panic into an error and logs its stack: once, here. It is
// called with the result of recover in the deferred function itself.
func recovered(log *slog.Logger, call string, panicked any, err error) error {
	if panicked == nil {
		return err
	}
	log.Error("the plugin panicked", "panic", fmt.Sprint(panicked), "stack", string(debug.Stack()))
	return sdk.Errorf(nil, sdk.FaultPlugin, "%s panicked: %v", call, panicked)
}

// opened is the platform, once Configure has opened it.
func (s *server) opened() (sdk.Platform, error) {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	if s.platform == nil {
		return nil, sdk.Errorf(sdk.ErrInvalid, sdk.FaultHost, "the plugin is not configured yet")
	}
	return s.platform, nil
}

// ability finds what a call needs.
func ability[T any](s *server, name sdk.Ability) (T, error) {
	var none T
	p, err := s.opened()
	if err != nil {
		return none, err
	}
	found, ok := sdk.As[T](p)
	if !ok {
		return none, sdk.Errorf(sdk.ErrUnsupported, sdk.FaultHost, "plugin %s does not offer %s", s.author.Name, name)
	}
	return found, nil
}

// close ends the data server first, so that no author's disk is in use when
// the platform is closed.
func (s *server) close() {
	s.data.close()
	s.mutex.Lock()
	platform := s.platform
	s.mutex.Unlock()
	if platform == nil {
		return
	}
	var err error
	func() {
		defer func() { err = recovered(s.log, "Close", recover(), err) }()
		err = platform.Close()
	}()
	if err != nil {
		s.log.Warn("close the connection to the back-end", "err", err)
	}
}

func (s *server) Describe(context.Context, *pluginv1.DescribeRequest) (*pluginv1.DescribeResponse, error) {
	doc, err := json.Marshal(s.description)
	return &pluginv1.DescribeResponse{Json: doc}, err
}

func (s *server) Configure(ctx context.Context, req *pluginv1.ConfigureRequest) (*pluginv1.ConfigureResponse, error) {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	if s.platform != nil {
		return nil, sdk.Errorf(sdk.ErrInvalid, sdk.FaultHost, "the plugin is configured already")
	}
	platform, err := s.author.open(ctx, req.GetSettings())
	if err != nil {
		return nil, err
	}
	resp := &pluginv1.ConfigureResponse{}
	for _, a := range sdk.AbilitiesOf(platform) {
		if s.author.Type != nil && !slices.Contains(s.description.Abilities, a) {
			return nil, sdk.Errorf(nil, sdk.FaultPlugin, "the platform offers %s, but Author.Type does not have it", a)
		}
		resp.Abilities = append(resp.Abilities, string(a))
	}
	s.platform = platform
	return resp, nil
}

func (s *server) Machines(_ *pluginv1.MachinesRequest, out grpc.ServerStreamingServer[pluginv1.MachinesResponse]) error {
	p, err := s.opened()
	if err != nil {
		return err
	}
	for m, err := range p.Machines(out.Context()) {
		if err != nil {
			return err
		}
		if err := out.Send(&pluginv1.MachinesResponse{Machine: toMachine(m)}); err != nil {
			return err
		}
	}
	return nil
}

func (s *server) Probe(ctx context.Context, req *pluginv1.ProbeRequest) (*pluginv1.ProbeResponse, error) {
	p, err := s.opened()
	if err != nil {
		return nil, err
	}
	r, err := p.Probe(ctx, sdk.Subject{Machine: sdk.MachineID(req.GetMachine()), Disk: sdk.DiskID(req.GetDisk())})
	if err != nil {
		return nil, err
	}
	return toReport(r), nil
}

func (s *server) Cancel(ctx context.Context, req *pluginv1.CancelRequest) (*pluginv1.CancelResponse, error) {
	p, err := s.opened()
	if err != nil {
		return nil, err
	}
	return &pluginv1.CancelResponse{}, p.Cancel(ctx, req.GetOpId())
}

func (s *server) Snapshot(ctx context.Context, req *pluginv1.SnapshotRequest) (*pluginv1.SnapshotResponse, error) {
	source, err := ability[sdk.Source](s, sdk.AbilitySource)
	if err != nil {
		return nil, err
	}
	want := sdk.SnapshotRequest{
		Machine:  sdk.MachineID(req.GetMachine()),
		Quiesce:  sdk.Quiesce(req.GetQuiesce()),
		Deadline: time.Duration(req.GetDeadlineMicros()) * time.Microsecond,
		Since:    fromMarks(req.GetSince()),
	}
	if req.GetDisks() != nil {
		want.Disks = []sdk.DiskID{}
		for _, id := range req.GetDisks().GetIds() {
			want.Disks = append(want.Disks, sdk.DiskID(id))
		}
	}
	snap, err := source.Snapshot(ctx, fromOp(req.GetOp()), want)
	if err != nil {
		return nil, err
	}
	return &pluginv1.SnapshotResponse{Snapshot: toSnapshot(snap)}, nil
}

func (s *server) OpenDisk(ctx context.Context, req *pluginv1.OpenDiskRequest) (*pluginv1.OpenDiskResponse, error) {
	source, err := ability[sdk.Source](s, sdk.AbilitySource)
	if err != nil {
		return nil, err
	}
	snap := fromSnapshot(req.GetSnapshot())
	reader, err := source.OpenDisk(ctx, snap, sdk.DiskID(req.GetDisk()))
	if err != nil {
		return nil, err
	}
	opened, err := s.data.offerReader("snapshot/"+snap.ID, reader)
	if err != nil {
		return nil, err
	}
	return &pluginv1.OpenDiskResponse{Disk: opened}, nil
}

func (s *server) EndSnapshot(ctx context.Context, req *pluginv1.EndSnapshotRequest) (*pluginv1.EndSnapshotResponse, error) {
	source, err := ability[sdk.Source](s, sdk.AbilitySource)
	if err != nil {
		return nil, err
	}
	snap := fromSnapshot(req.GetSnapshot())
	if err := source.EndSnapshot(ctx, fromOp(req.GetOp()), snap, req.GetKeep()); err != nil {
		return nil, err
	}
	s.data.closeOwner("snapshot/" + snap.ID)
	return &pluginv1.EndSnapshotResponse{}, nil
}

func (s *server) Changed(req *pluginv1.ChangedRequest, out grpc.ServerStreamingServer[pluginv1.ChangedResponse]) error {
	tracker, err := ability[sdk.ChangeTracker](s, sdk.AbilityChangeTracker)
	if err != nil {
		return err
	}
	batch := &pluginv1.ChangedResponse{}
	for e, err := range tracker.Changed(out.Context(), fromSnapshot(req.GetSnapshot()), sdk.DiskID(req.GetDisk())) {
		if err != nil {
			return err
		}
		batch.Extents = append(batch.Extents, &pluginv1.Extent{Offset: e.Offset, Length: e.Length, Zero: e.Zero})
		if len(batch.Extents) == batchExtents {
			if err := out.Send(batch); err != nil {
				return err
			}
			batch = &pluginv1.ChangedResponse{}
		}
	}
	if len(batch.Extents) == 0 {
		return nil
	}
	return out.Send(batch)
}

func (s *server) ReleaseMark(ctx context.Context, req *pluginv1.ReleaseMarkRequest) (*pluginv1.ReleaseMarkResponse, error) {
	tracker, err := ability[sdk.ChangeTracker](s, sdk.AbilityChangeTracker)
	if err != nil {
		return nil, err
	}
	return &pluginv1.ReleaseMarkResponse{}, tracker.ReleaseMark(ctx, fromOp(req.GetOp()),
		sdk.MachineID(req.GetMachine()), sdk.DiskID(req.GetDisk()), req.GetMark())
}

func (s *server) CreateDraft(ctx context.Context, req *pluginv1.CreateDraftRequest) (*pluginv1.CreateDraftResponse, error) {
	target, err := ability[sdk.Target](s, sdk.AbilityTarget)
	if err != nil {
		return nil, err
	}
	d, err := target.CreateDraft(ctx, fromOp(req.GetOp()), sdk.DraftSpec{
		Machine: fromMachine(req.GetMachine()), Replace: sdk.MachineID(req.GetReplace()),
		Pool: req.GetPool(), Networks: req.GetNetworks(),
	})
	if err != nil {
		return nil, err
	}
	return &pluginv1.CreateDraftResponse{Draft: toDraft(d)}, nil
}

// OpenDraftDisk ends the writer before only after the author's own call has
// succeeded: a fenced caller must not disconnect the rightful one.
func (s *server) OpenDraftDisk(ctx context.Context, req *pluginv1.OpenDraftDiskRequest) (*pluginv1.OpenDraftDiskResponse, error) {
	target, err := ability[sdk.Target](s, sdk.AbilityTarget)
	if err != nil {
		return nil, err
	}
	draft := fromDraft(req.GetDraft())
	writer, err := target.OpenDraftDisk(ctx, fromOp(req.GetOp()), draft, sdk.DiskID(req.GetDisk()))
	if err != nil {
		return nil, err
	}
	opened, err := s.data.offerWriter("draft/"+draft.ID, req.GetDisk(), writer)
	if err != nil {
		return nil, err
	}
	return &pluginv1.OpenDraftDiskResponse{Disk: opened}, nil
}

func (s *server) CommitDraft(ctx context.Context, req *pluginv1.CommitDraftRequest) (*pluginv1.CommitDraftResponse, error) {
	target, err := ability[sdk.Target](s, sdk.AbilityTarget)
	if err != nil {
		return nil, err
	}
	draft := fromDraft(req.GetDraft())
	id, err := target.CommitDraft(ctx, fromOp(req.GetOp()), draft)
	if err != nil {
		return nil, err
	}
	s.data.closeOwner("draft/" + draft.ID)
	return &pluginv1.CommitDraftResponse{Machine: string(id)}, nil
}

func (s *server) AbortDraft(ctx context.Context, req *pluginv1.AbortDraftRequest) (*pluginv1.AbortDraftResponse, error) {
	target, err := ability[sdk.Target](s, sdk.AbilityTarget)
	if err != nil {
		return nil, err
	}
	draft := fromDraft(req.GetDraft())
	if err := target.AbortDraft(ctx, fromOp(req.GetOp()), draft); err != nil {
		return nil, err
	}
	s.data.closeOwner("draft/" + draft.ID)
	return &pluginv1.AbortDraftResponse{}, nil
}

func (s *server) Start(ctx context.Context, req *pluginv1.StartRequest) (*pluginv1.StartResponse, error) {
	power, err := ability[sdk.Power](s, sdk.AbilityPower)
	if err != nil {
		return nil, err
	}
	return &pluginv1.StartResponse{}, power.Start(ctx, fromOp(req.GetOp()), sdk.MachineID(req.GetMachine()))
}

func (s *server) Stop(ctx context.Context, req *pluginv1.StopRequest) (*pluginv1.StopResponse, error) {
	power, err := ability[sdk.Power](s, sdk.AbilityPower)
	if err != nil {
		return nil, err
	}
	grace := time.Duration(req.GetGraceMicros()) * time.Microsecond
	return &pluginv1.StopResponse{}, power.Stop(ctx, fromOp(req.GetOp()), sdk.MachineID(req.GetMachine()), grace)
}

func (s *server) CloseDisk(_ context.Context, req *pluginv1.CloseDiskRequest) (*pluginv1.CloseDiskResponse, error) {
	return &pluginv1.CloseDiskResponse{}, s.data.closeHandle(req.GetHandle())
}

// newToken is a name that nobody guesses.
func newToken() string { return rand.Text() }
