package plugin

import (
	"bytes"
	"context"
	"errors"
	"math"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/holdfast-dr/holdfast/sdk"
	pluginv1 "github.com/holdfast-dr/holdfast/sdk/plugin/v1"
)

// hostile is a plugin that answers what no author's code could: it speaks the
// protocol by itself.
type hostile struct {
	pluginv1.UnimplementedPluginServiceServer
	description string
	machine     *pluginv1.Machine
	snapshot    *pluginv1.Snapshot
	extents     []*pluginv1.Extent
	disk        *pluginv1.OpenedDisk
	committed   string
}

func (h *hostile) Describe(context.Context, *pluginv1.DescribeRequest) (*pluginv1.DescribeResponse, error) {
	return &pluginv1.DescribeResponse{Json: []byte(h.description)}, nil
}

func (h *hostile) Configure(context.Context, *pluginv1.ConfigureRequest) (*pluginv1.ConfigureResponse, error) {
	return &pluginv1.ConfigureResponse{Abilities: []string{"source", "change-tracker", "target", "of-the-future"}}, nil
}

func (h *hostile) Machines(_ *pluginv1.MachinesRequest, out grpc.ServerStreamingServer[pluginv1.MachinesResponse]) error {
	return out.Send(&pluginv1.MachinesResponse{Machine: h.machine})
}

func (h *hostile) Snapshot(context.Context, *pluginv1.SnapshotRequest) (*pluginv1.SnapshotResponse, error) {
	return &pluginv1.SnapshotResponse{Snapshot: h.snapshot}, nil
}

func (h *hostile) Changed(_ *pluginv1.ChangedRequest, out grpc.ServerStreamingServer[pluginv1.ChangedResponse]) error {
	return out.Send(&pluginv1.ChangedResponse{Extents: h.extents})
}

func (h *hostile) OpenDisk(context.Context, *pluginv1.OpenDiskRequest) (*pluginv1.OpenDiskResponse, error) {
	return &pluginv1.OpenDiskResponse{Disk: h.disk}, nil
}

func (h *hostile) CommitDraft(context.Context, *pluginv1.CommitDraftRequest) (*pluginv1.CommitDraftResponse, error) {
	return &pluginv1.CommitDraftResponse{Machine: h.committed}, nil
}

func (h *hostile) connect(t *testing.T) (*Process, error)     { return reach(t, h) }
func (h *hostileHost) connect(t *testing.T) (*Process, error) { return reach(t, h) }

func reach(t *testing.T, h pluginv1.PluginServiceServer) (*Process, error) {
	t.Helper()
	listener, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer()
	pluginv1.RegisterPluginServiceServer(server, h)
	go func() { _ = server.Serve(listener) }()
	t.Cleanup(server.Stop)
	conn, err := grpc.NewClient("unix:"+listener.Addr().String(),
		append(dialOptions(), grpc.WithTransportCredentials(insecure.NewCredentials()))...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return configure(t.Context(), pluginv1.NewPluginServiceClient(conn), Launch{}, new(secretText))
}

const plain = `{"name":"hostile","version":"1","protocol":1,"config":{"fields":[]}}`

// isBroken wants the error of an answer that breaks the contract.
func isBroken(t *testing.T, what string, err error) {
	t.Helper()
	var e *sdk.Error
	if !errors.As(err, &e) || e.Fault != sdk.FaultPlugin || !strings.Contains(err.Error(), "breaks the contract") {
		t.Errorf("%s: %v, want an answer that breaks the contract", what, err)
	}
}

func TestHostileAnswersAreRefused(t *testing.T) {
	for _, doc := range []string{"", "{}", "null", "[]", `{"name":"x","version":"1","protocol":0}`,
		`{"name":"x","version":"1","protocol":1,"config":{"fields":[{"name":"a"}]}}`, // no type
		`{"name":"x","version":"1","protocol":1,"config":{"fields":[{"type":"string"}]}}`,
		`{"name":"x","version":"1","protocol":1,"config":{"fields":[{"name":"a","type":"list"}]}}`, // of nothing
		`{"name":"x","version":"1","protocol":1,"config":{"fields":` + strings.Repeat(`[{"name":"a","type":"object","fields":`, 100) + "[]" + strings.Repeat("}]", 100) + `}}`,
		strings.Repeat("x", maxDescription+1)} {
		_, err := (&hostile{description: doc}).connect(t)
		isBroken(t, "description "+clip(doc, 40), err)
	}
	good := &pluginv1.Machine{Id: "m", Disks: []*pluginv1.Disk{{Id: "vda", SizeBytes: 1 << 20}}}
	machines := map[string]*pluginv1.Machine{
		"none":              nil,
		"no id":             {},
		"long id":           {Id: strings.Repeat("x", maxID+1)},
		"native":            {Id: "m", Native: make([]byte, sdk.MaxNative+1)},
		"disk twice":        {Id: "m", Disks: []*pluginv1.Disk{{Id: "a"}, {Id: "a"}}},
		"disk without id":   {Id: "m", Disks: []*pluginv1.Disk{{}}},
		"disk of less":      {Id: "m", Disks: []*pluginv1.Disk{{Id: "a", SizeBytes: -1}}},
		"many disks":        {Id: "m", Disks: make([]*pluginv1.Disk, maxDisks+1)},
		"memory below zero": {Id: "m", MemoryBytes: -1},
	}
	for name, m := range machines {
		p, err := (&hostile{description: plain, machine: m}).connect(t)
		if err != nil {
			t.Fatal(err)
		}
		for _, err = range p.Platform().Machines(t.Context()) {
		}
		isBroken(t, "machine: "+name, err)
	}
	snapshots := map[string]*pluginv1.Snapshot{
		"none":         nil,
		"no id":        {Machine: good, Achieved: "none"},
		"quiesced how": {Id: "s", Machine: good, Achieved: "very"},
		"no machine":   {Id: "s", Achieved: "none"},
		"foreign mark": {Id: "s", Machine: good, Achieved: "none", Marks: map[string][]byte{"vdb": []byte("m")}},
		"empty mark":   {Id: "s", Machine: good, Achieved: "none", Marks: map[string][]byte{"vda": {}}},
		"long mark":    {Id: "s", Machine: good, Achieved: "none", Marks: map[string][]byte{"vda": make([]byte, sdk.MaxMark+1)}},
	}
	for name, s := range snapshots {
		p, err := (&hostile{description: plain, snapshot: s}).connect(t)
		if err != nil {
			t.Fatal(err)
		}
		source, _ := sdk.As[sdk.Source](p.Platform())
		_, err = source.Snapshot(t.Context(), sdk.Op{ID: "x"}, sdk.SnapshotRequest{})
		isBroken(t, "snapshot: "+name, err)
	}
	snap := sdk.Snapshot{ID: "s", Machine: fromMachine(good)}
	for name, list := range map[string][]*pluginv1.Extent{
		"empty":       {{Offset: 0, Length: 0}},
		"negative":    {{Offset: -5, Length: 10}},
		"overlap":     {{Offset: 0, Length: 10}, {Offset: 9, Length: 1}},
		"descending":  {{Offset: 50, Length: 10}, {Offset: 0, Length: 1}},
		"over an end": {{Offset: 1<<20 - 1, Length: 2}},
		"overflow":    {{Offset: 1, Length: math.MaxInt64}},
	} {
		p, err := (&hostile{description: plain, extents: list}).connect(t)
		if err != nil {
			t.Fatal(err)
		}
		tracker, _ := sdk.As[sdk.ChangeTracker](p.Platform())
		for _, err = range tracker.Changed(t.Context(), snap, "vda") {
		}
		isBroken(t, "changed: "+name, err)
	}
	for name, disk := range map[string]*pluginv1.OpenedDisk{
		"none":    nil,
		"network": {Address: &pluginv1.Address{Network: "udp", Addr: "x"}},
		"no addr": {Address: &pluginv1.Address{Network: "unix"}},
		"export":  {Address: &pluginv1.Address{Network: "unix", Addr: "x", Export: strings.Repeat("x", maxID+1)}},
		"TLS":     {Address: &pluginv1.Address{Network: "unix", Addr: "x", Tls: &pluginv1.AddressTLS{Ca: make([]byte, maxPEM+1)}}},
	} {
		p, err := (&hostile{description: plain, disk: disk}).connect(t)
		if err != nil {
			t.Fatal(err)
		}
		source, _ := sdk.As[sdk.Source](p.Platform())
		_, err = source.OpenDisk(t.Context(), snap, "vda")
		isBroken(t, "disk: "+name, err)
	}
	p, err := (&hostile{description: plain}).connect(t)
	if err != nil {
		t.Fatal(err)
	}
	target, _ := sdk.As[sdk.Target](p.Platform())
	_, err = target.CommitDraft(t.Context(), sdk.Op{ID: "x"}, sdk.Draft{ID: "d"})
	isBroken(t, "commit without a machine", err)
	// What the plugin does not implement is an error like any other.
	if _, err = target.CreateDraft(t.Context(), sdk.Op{ID: "x"}, sdk.DraftSpec{}); !errors.Is(err, sdk.ErrUnsupported) {
		t.Errorf("a call that the plugin does not know: %v, want ErrUnsupported", err)
	}
	if _, ok := sdk.As[sdk.Power](p.Platform()); ok {
		t.Error("an ability that was not advertised was found")
	}
}

// hostileHost answers what no cloud host could.
type hostileHost struct {
	hostile
	listing  []*pluginv1.ReplicasResponse
	draft    *pluginv1.PointDraft
	instance *pluginv1.Instance
	shot     []byte
}

func (h *hostileHost) Configure(context.Context, *pluginv1.ConfigureRequest) (*pluginv1.ConfigureResponse, error) {
	return &pluginv1.ConfigureResponse{Abilities: []string{"replicator", "activator", "networker", "pools", "console", "guest"}}, nil
}

func (h *hostileHost) Replicas(_ *pluginv1.ReplicasRequest, out grpc.ServerStreamingServer[pluginv1.ReplicasResponse]) error {
	for _, message := range h.listing {
		if err := out.Send(message); err != nil {
			return err
		}
	}
	return nil
}

func (h *hostileHost) DraftPoint(context.Context, *pluginv1.DraftPointRequest) (*pluginv1.DraftPointResponse, error) {
	return &pluginv1.DraftPointResponse{Draft: h.draft}, nil
}

func (h *hostileHost) Activate(context.Context, *pluginv1.ActivateRequest) (*pluginv1.ActivateResponse, error) {
	return &pluginv1.ActivateResponse{Instance: h.instance}, nil
}

func (h *hostileHost) Screenshot(context.Context, *pluginv1.ScreenshotRequest) (*pluginv1.ScreenshotResponse, error) {
	return &pluginv1.ScreenshotResponse{Png: h.shot}, nil
}

func TestHostileCloudHostIsRefused(t *testing.T) {
	machine := &pluginv1.Machine{Name: "m", Disks: []*pluginv1.Disk{{Id: "vda", SizeBytes: 1 << 20}}}
	replica := &pluginv1.ReplicasResponse{Replica: &pluginv1.Replica{Id: "r", Space: "ours"}}
	point := func(p *pluginv1.Point) *pluginv1.ReplicasResponse { return &pluginv1.ReplicasResponse{Point: p} }
	good := &pluginv1.Point{Id: "p", Machine: machine, Label: &pluginv1.PointLabel{Label: "l"}}
	for name, listing := range map[string][]*pluginv1.ReplicasResponse{
		"nothing":             {{}},
		"a point of none":     {point(good)},
		"no id":               {{Replica: &pluginv1.Replica{Space: "ours"}}},
		"another space":       {{Replica: &pluginv1.Replica{Id: "r", Space: "theirs"}}},
		"a long label":        {{Replica: &pluginv1.Replica{Id: "r", Space: "ours", Label: strings.Repeat("x", sdk.MaxLabel+1)}}},
		"points below zero":   {{Replica: &pluginv1.Replica{Id: "r", Space: "ours", MaxPoints: -1}}},
		"a point twice":       {replica, point(good), point(good)},
		"a point without id":  {replica, point(&pluginv1.Point{Machine: machine})},
		"bytes below zero":    {replica, point(&pluginv1.Point{Id: "p", Machine: machine, StoredBytes: -1})},
		"quiesced how":        {replica, point(&pluginv1.Point{Id: "p", Machine: machine, Label: &pluginv1.PointLabel{Achieved: "very"}})},
		"a nameless holder":   {replica, point(&pluginv1.Point{Id: "p", Machine: machine, Holders: []string{""}})},
		"a disk of less":      {replica, point(&pluginv1.Point{Id: "p", Machine: &pluginv1.Machine{Disks: []*pluginv1.Disk{{Id: "a", SizeBytes: -1}}}})},
		"a draft of another":  {{Replica: &pluginv1.Replica{Id: "r", Space: "ours", Draft: &pluginv1.PointDraft{Id: "d", Replica: "s"}}}},
		"the last is refused": {replica, point(&pluginv1.Point{})},
	} {
		p, err := (&hostileHost{hostile: hostile{description: plain}, listing: listing}).connect(t)
		if err != nil {
			t.Fatal(err)
		}
		replicator, _ := sdk.As[sdk.Replicator](p.Platform())
		for _, err = range replicator.Replicas(t.Context(), "ours") {
		}
		isBroken(t, "replicas: "+name, err)
	}
	spec := sdk.PointSpec{Replica: "r", Machine: sdk.Machine{Disks: []sdk.Disk{{ID: "vda"}}}}
	for name, draft := range map[string]*pluginv1.PointDraft{
		"none":            nil,
		"another replica": {Id: "d", Replica: "s", Disks: []string{"vda"}},
		"another base":    {Id: "d", Replica: "r", Base: "p", Disks: []string{"vda"}},
		"another disk":    {Id: "d", Replica: "r", Disks: []string{"vdb"}},
	} {
		p, err := (&hostileHost{hostile: hostile{description: plain}, draft: draft}).connect(t)
		if err != nil {
			t.Fatal(err)
		}
		replicator, _ := sdk.As[sdk.Replicator](p.Platform())
		_, err = replicator.DraftPoint(t.Context(), sdk.Op{ID: "x"}, spec)
		isBroken(t, "draft: "+name, err)
	}
	request := sdk.ActivateRequest{Replica: "r", Point: "p", Purpose: sdk.PurposeTest}
	for name, i := range map[string]*pluginv1.Instance{
		"none":          nil,
		"another point": {Id: "i", Replica: "r", Point: "q", Purpose: "test", State: "running", Machine: "m"},
		"for real":      {Id: "i", Replica: "r", Point: "p", Purpose: "real", State: "running", Machine: "m"},
		"for nothing":   {Id: "i", Replica: "r", Point: "p", State: "running", Machine: "m"},
		"no machine":    {Id: "i", Replica: "r", Point: "p", Purpose: "test", State: "running"},
		"in what state": {Id: "i", Replica: "r", Point: "p", Purpose: "test", State: "dreaming", Machine: "m"},
		"wrote less":    {Id: "i", Replica: "r", Point: "p", Purpose: "test", State: "running", Machine: "m", WrittenBytes: -1},
	} {
		p, err := (&hostileHost{hostile: hostile{description: plain}, instance: i}).connect(t)
		if err != nil {
			t.Fatal(err)
		}
		activator, _ := sdk.As[sdk.Activator](p.Platform())
		_, err = activator.Activate(t.Context(), sdk.Op{ID: "x"}, request)
		isBroken(t, "instance: "+name, err)
	}
	for name, shot := range map[string][]byte{
		"none": nil, "a page": []byte("<html>"), "a large one": append(pngSignature, make([]byte, sdk.MaxScreenshot)...),
	} {
		p, err := (&hostileHost{hostile: hostile{description: plain}, shot: shot}).connect(t)
		if err != nil {
			t.Fatal(err)
		}
		console, _ := sdk.As[sdk.Console](p.Platform())
		_, err = console.Screenshot(t.Context(), "ours", "m")
		isBroken(t, "screenshot: "+name, err)
	}
}

// TestErrorBytes holds the encoding of errors to bytes: plugins of older and
// newer versions read each other's.
func TestErrorBytes(t *testing.T) {
	err := encodeError(&sdk.Error{
		Kind: sdk.ErrPending, Fault: sdk.FaultBackend, Message: "copying", Hint: "wait",
		Progress: 0.5, After: 2 * time.Second,
	})
	wire := status.Convert(err).Details()[0].(*pluginv1.Error)
	got, marshalErr := proto.MarshalOptions{Deterministic: true}.Marshal(wire)
	if marshalErr != nil {
		t.Fatal(marshalErr)
	}
	want := []byte("\x0a\x07pending\x12\x08back-end\x1a\x07copying\x22\x04wait\x29\x00\x00\x00\x00\x00\x00\xe0\x3f\x30\x80\x89\x7a")
	if !bytes.Equal(got, want) {
		t.Errorf("error on the wire:\n got %q\nwant %q", got, want)
	}
}

func TestSnapshotSurvivesTheWire(t *testing.T) {
	want := sdk.Snapshot{
		ID: "s1",
		Machine: sdk.Machine{
			ID: "m1", Name: "db", UUID: "u", Firmware: sdk.FirmwareUEFI, State: sdk.StatePaused, CPUs: 4, MemoryBytes: 1 << 33,
			Tags:   []string{"a", "b"},
			Disks:  []sdk.Disk{{ID: "vda", Name: "Hard disk 1", SizeBytes: 5, Format: "qcow2", Pool: "p"}, {ID: "vdb", Skip: "shared"}},
			NICs:   []sdk.NIC{{MAC: "52:54:00:00:00:01", Network: "n", Model: "virtio"}},
			Native: []byte("<domain/>"),
		},
		Achieved: sdk.QuiesceFileSystem, Note: "why", Marks: map[sdk.DiskID]sdk.Mark{"vda": sdk.Mark("\x00\xff")},
		Taken: time.Date(2026, 1, 2, 3, 4, 5, 6000, time.UTC),
	}
	doc, err := proto.Marshal(toSnapshot(want))
	if err != nil {
		t.Fatal(err)
	}
	var wire pluginv1.Snapshot
	if err := proto.Unmarshal(doc, &wire); err != nil {
		t.Fatal(err)
	}
	got := fromSnapshot(&wire)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("snapshot (-want +got):\n%s", diff)
	}
	if err := checkSnapshot(got); err != nil {
		t.Error(err)
	}
}

func FuzzDecodeError(f *testing.F) {
	f.Add([]byte("\x0a\x07pending\x12\x08back-end\x1a\x07copying"))
	f.Add([]byte("\x1a\x02\xff\xfe"))
	f.Fuzz(func(t *testing.T, doc []byte) {
		var wire pluginv1.Error
		if proto.Unmarshal(doc, &wire) != nil {
			return
		}
		st, err := status.New(codes.Unknown, "x").WithDetails(&wire)
		if err != nil {
			return
		}
		e, ok := decodeError(st.Err())
		if !ok || e.Error() == "" || len(e.Message) > maxErrorText || len(e.Hint) > maxErrorHint {
			t.Fatalf("decoded %+v, %t", e, ok)
		}
		if !(e.Progress >= 0 && e.Progress <= 1) || e.After < 0 || e.After > maxAfter {
			t.Fatalf("progress %v after %v", e.Progress, e.After)
		}
		// Once more around: nothing is added.
		again, ok := decodeError(encodeError(e))
		if !ok || again.Error() != e.Error() && len(e.Message) < maxErrorText {
			t.Fatalf("%q became %q", e, again)
		}
	})
}

func FuzzDecodeSnapshot(f *testing.F) {
	doc, err := proto.Marshal(toSnapshot(sdk.Snapshot{ID: "s", Machine: sdk.Machine{ID: "m"}, Achieved: sdk.QuiesceNone}))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(doc)
	f.Fuzz(func(t *testing.T, doc []byte) {
		var wire pluginv1.Snapshot
		if proto.Unmarshal(doc, &wire) != nil {
			return
		}
		s := fromSnapshot(&wire)
		if checkSnapshot(s) != nil {
			return
		}
		if diff := cmp.Diff(s, fromSnapshot(toSnapshot(s))); diff != "" {
			t.Fatalf("a sound snapshot changed on its way:\n%s", diff)
		}
	})
}
