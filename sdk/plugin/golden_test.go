package plugin

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"io"
	"iter"
	"log/slog"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/holdfast-dr/holdfast/sdk"
	pluginv1 "github.com/holdfast-dr/holdfast/sdk/plugin/v1"
)

var update = flag.Bool("update", false, "write the golden bytes of calls that are new")

// goldenFile has, for each call, the bytes that a host sends and those that a
// plugin answers: what programs that are installed somewhere say and hear.
var goldenFile = filepath.Join("testdata", "protocol1", "golden.txt")

// What the golden calls speak of. Nothing here has its zero value.
var (
	goldenOp      = sdk.Op{ID: "run-7/snapshot", Space: "tenant-a", Epoch: 1<<63 + 7}
	goldenMachine = sdk.Machine{
		ID: "m-1", Name: "wéb 01", UUID: "0e3f7a52-6f5c-4b0e-9d43-6d2f1d6f2a11", Firmware: sdk.FirmwareUEFI,
		State: sdk.StateRunning, CPUs: 4, MemoryBytes: 8 << 30, Tags: []string{"gold"}, Native: []byte("<domain/>"),
		Disks: []sdk.Disk{{ID: "vda", Name: "root", SizeBytes: 1<<40 + 512, Format: "qcow2", Pool: "fast", Skip: "shared"}},
		NICs:  []sdk.NIC{{MAC: "52:54:00:12:34:56", Network: "lan", Model: "virtio"}},
	}
	goldenSnapshot = sdk.Snapshot{
		ID: "s-1", Machine: goldenMachine, Achieved: sdk.QuiesceFileSystem, Note: "no agent",
		Marks: map[sdk.DiskID]sdk.Mark{"vda": {0, 1, 255}}, Taken: time.Date(2026, 2, 3, 4, 5, 6, 789_000, time.UTC),
	}
	goldenRequest = sdk.SnapshotRequest{
		Machine: "m-1", Disks: []sdk.DiskID{"vda"}, Quiesce: sdk.QuiesceApplication, Deadline: 1500 * time.Millisecond,
		Since: map[sdk.DiskID]sdk.Mark{"vda": {9}},
	}
	goldenSpec = sdk.DraftSpec{
		Machine: goldenMachine, Replace: "m-0", Pool: "fast", Networks: map[string]string{"lan": "prod"},
	}
	goldenDraft  = sdk.Draft{ID: "d-1", Disks: []sdk.DiskID{"vda"}}
	goldenReport = sdk.Report{Product: "QEMU", Findings: []sdk.Finding{
		{Ability: sdk.AbilitySource, Works: true, Reason: "slowly", Hint: "upgrade"},
	}}
	goldenExtents = []sdk.Extent{{Offset: 512, Length: 1 << 40, Zero: true}}
	goldenError   = &sdk.Error{
		Kind: sdk.ErrBusy, Fault: sdk.FaultBackend, Message: "disk vda", Hint: "wait", Progress: 0.25, After: 1500 * time.Millisecond,
	}
)

// everything is a platform with the abilities of protocol 1.
type everything interface {
	sdk.Platform
	sdk.Source
	sdk.ChangeTracker
	sdk.Target
	sdk.Power
	sdk.Replicator
	sdk.Activator
	sdk.Networker
	sdk.Pools
	sdk.Console
	sdk.Guest
}

// goldenCalls makes each call, and gives what came of it.
var goldenCalls = map[string]func(ctx context.Context, p everything) []any{
	"Machines": func(ctx context.Context, p everything) []any { return collect(p.Machines(ctx)) },
	"Probe": func(ctx context.Context, p everything) []any {
		r, err := p.Probe(ctx, sdk.Subject{Machine: "m-1", Disk: "vda"})
		return []any{r, err}
	},
	"Cancel": func(ctx context.Context, p everything) []any { return []any{p.Cancel(ctx, "run-7")} },
	"Snapshot": func(ctx context.Context, p everything) []any {
		s, err := p.Snapshot(ctx, goldenOp, goldenRequest)
		return []any{s, err}
	},
	"OpenDisk": func(ctx context.Context, p everything) []any {
		_, err := p.OpenDisk(ctx, goldenSnapshot, "vda")
		return []any{err}
	},
	"EndSnapshot": func(ctx context.Context, p everything) []any {
		return []any{p.EndSnapshot(ctx, goldenOp, goldenSnapshot, true)}
	},
	"Changed": func(ctx context.Context, p everything) []any { return collect(p.Changed(ctx, goldenSnapshot, "vda")) },
	"ReleaseMark": func(ctx context.Context, p everything) []any {
		return []any{p.ReleaseMark(ctx, goldenOp, "m-1", "vda", sdk.Mark{0, 1, 255})}
	},
	"CreateDraft": func(ctx context.Context, p everything) []any {
		d, err := p.CreateDraft(ctx, goldenOp, goldenSpec)
		return []any{d, err}
	},
	"OpenDraftDisk": func(ctx context.Context, p everything) []any {
		_, err := p.OpenDraftDisk(ctx, goldenOp, goldenDraft, "vda")
		return []any{err}
	},
	"CommitDraft": func(ctx context.Context, p everything) []any {
		id, err := p.CommitDraft(ctx, goldenOp, goldenDraft)
		return []any{id, err}
	},
	"AbortDraft": func(ctx context.Context, p everything) []any { return []any{p.AbortDraft(ctx, goldenOp, goldenDraft)} },
	"Start":      func(ctx context.Context, p everything) []any { return []any{p.Start(ctx, goldenOp, "m-1")} },
	"Stop": func(ctx context.Context, p everything) []any {
		return []any{p.Stop(ctx, goldenOp, "m-1", 90*time.Second)}
	},
}

func collect[T any](items iter.Seq2[T, error]) (all []any) {
	for item, err := range items {
		all = append(all, item, err)
	}
	return all
}

// witness is an author's platform: it remembers what it was asked and answers
// the golden things. To be opened, disks answer the golden error.
type witness struct{ asked []any }

func (w *witness) ask(args ...any) { w.asked = append(w.asked, args...) }

func one[T any](item T) iter.Seq2[T, error] {
	return func(yield func(T, error) bool) { yield(item, nil) }
}

func (w *witness) Machines(context.Context) iter.Seq2[sdk.Machine, error] { return one(goldenMachine) }
func (w *witness) Close() error                                           { return nil }

func (w *witness) Probe(_ context.Context, s sdk.Subject) (sdk.Report, error) {
	w.ask(s)
	return goldenReport, nil
}

func (w *witness) Cancel(_ context.Context, id string) error { w.ask(id); return nil }

func (w *witness) Snapshot(_ context.Context, op sdk.Op, r sdk.SnapshotRequest) (sdk.Snapshot, error) {
	w.ask(op, r)
	return goldenSnapshot, nil
}

func (w *witness) OpenDisk(_ context.Context, s sdk.Snapshot, d sdk.DiskID) (sdk.BlockReader, error) {
	w.ask(s, d)
	return nil, goldenError
}

func (w *witness) EndSnapshot(_ context.Context, op sdk.Op, s sdk.Snapshot, keep bool) error {
	w.ask(op, s, keep)
	return nil
}

func (w *witness) Changed(_ context.Context, s sdk.Snapshot, d sdk.DiskID) iter.Seq2[sdk.Extent, error] {
	w.ask(s, d)
	return one(goldenExtents[0])
}

func (w *witness) ReleaseMark(_ context.Context, op sdk.Op, m sdk.MachineID, d sdk.DiskID, mark sdk.Mark) error {
	w.ask(op, m, d, mark)
	return nil
}

func (w *witness) CreateDraft(_ context.Context, op sdk.Op, s sdk.DraftSpec) (sdk.Draft, error) {
	w.ask(op, s)
	return goldenDraft, nil
}

func (w *witness) OpenDraftDisk(_ context.Context, op sdk.Op, d sdk.Draft, disk sdk.DiskID) (sdk.BlockWriter, error) {
	w.ask(op, d, disk)
	return nil, goldenError
}

func (w *witness) CommitDraft(_ context.Context, op sdk.Op, d sdk.Draft) (sdk.MachineID, error) {
	w.ask(op, d)
	return "m-1", nil
}

func (w *witness) AbortDraft(_ context.Context, op sdk.Op, d sdk.Draft) error {
	w.ask(op, d)
	return nil
}

func (w *witness) Start(_ context.Context, op sdk.Op, m sdk.MachineID) error {
	w.ask(op, m)
	return nil
}

func (w *witness) Stop(_ context.Context, op sdk.Op, m sdk.MachineID, grace time.Duration) error {
	w.ask(op, m, grace)
	return nil
}

// pair is what crosses the border in one call.
type pair struct{ request, answer []byte }

func readGolden(t *testing.T) map[string]pair {
	t.Helper()
	golden := make(map[string]pair)
	text, err := os.ReadFile(goldenFile)
	if err != nil && !*update {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		var name, request, answer string
		if n, _ := fmt.Sscanf(line, "%s request=%s answer=%s", &name, &request, &answer); n < 3 {
			t.Fatalf("%s: %q", goldenFile, line)
		}
		golden[name] = pair{unhex(t, request), unhex(t, answer)}
	}
	return golden
}

func unhex(t *testing.T, text string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.TrimPrefix(text, "0x"))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func writeGolden(t *testing.T, golden map[string]pair) {
	t.Helper()
	var text strings.Builder
	for _, name := range slices.Sorted(maps.Keys(golden)) {
		fmt.Fprintf(&text, "%s request=0x%x answer=0x%x\n", name, golden[name].request, golden[name].answer)
	}
	if err := os.WriteFile(goldenFile, []byte(text.String()), 0o600); err != nil {
		t.Fatal(err)
	}
}

// border joins the two ends and holds what crosses against the golden bytes.
// What arrives at an end are the golden bytes, not those of the other end.
type border struct {
	t      *testing.T
	server *server
	golden map[string]pair
}

func encode(m any) []byte {
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(m.(proto.Message))
	if err != nil {
		panic(err) // plain data always encodes
	}
	return b
}

// crossed compares bytes with the golden ones, and gives those.
func (b *border) crossed(name string, got pair) pair {
	b.t.Helper()
	want, ok := b.golden[name]
	if !ok && *update {
		b.golden[name] = got
		return got
	}
	if !bytes.Equal(got.request, want.request) {
		b.t.Errorf("%s: a host sends\n  %x, and once sent\n  %x", name, got.request, want.request)
	}
	if !bytes.Equal(got.answer, want.answer) {
		b.t.Errorf("%s: a plugin answers\n  %x, and once answered\n  %x", name, got.answer, want.answer)
	}
	return want
}

func (b *border) Invoke(ctx context.Context, method string, args, reply any, _ ...grpc.CallOption) error {
	name := callName(method)
	for _, m := range pluginv1.PluginService_ServiceDesc.Methods {
		if m.MethodName != name {
			continue
		}
		request := encode(args)
		if g, ok := b.golden[name]; ok {
			request = g.request
		}
		resp, err := m.Handler(b.server, ctx, func(into any) error { return proto.Unmarshal(request, into.(proto.Message)) }, b.server.unary)
		if err != nil {
			want := b.crossed(name, pair{encode(args), encode(status.Convert(err).Proto())})
			failed := status.Convert(err).Proto()
			if err := proto.Unmarshal(want.answer, failed); err != nil {
				return err
			}
			return status.FromProto(failed).Err()
		}
		want := b.crossed(name, pair{encode(args), encode(resp)})
		return proto.Unmarshal(want.answer, reply.(proto.Message))
	}
	return fmt.Errorf("no method %s", method)
}

func (b *border) NewStream(ctx context.Context, _ *grpc.StreamDesc, method string, _ ...grpc.CallOption) (grpc.ClientStream, error) {
	return &borderStream{border: b, ctx: ctx, name: callName(method)}, nil
}

// borderStream is both ends of a call that streams one answer.
type borderStream struct {
	border  *border
	ctx     context.Context
	name    string
	request []byte
	answers [][]byte
}

func (s *borderStream) SendMsg(m any) error          { s.request = encode(m); return nil }
func (s *borderStream) CloseSend() error             { return nil }
func (s *borderStream) Context() context.Context     { return s.ctx }
func (s *borderStream) Header() (metadata.MD, error) { return nil, nil }
func (s *borderStream) Trailer() metadata.MD         { return nil }

func (s *borderStream) RecvMsg(m any) error {
	if s.answers != nil {
		return io.EOF
	}
	for _, d := range pluginv1.PluginService_ServiceDesc.Streams {
		if d.StreamName != s.name {
			continue
		}
		request := s.request
		if g, ok := s.border.golden[s.name]; ok {
			request = g.request
		}
		if err := d.Handler(s.border.server, &serverSide{s, request}); err != nil {
			return err
		}
	}
	if len(s.answers) != 1 {
		return fmt.Errorf("%s streamed %d messages", s.name, len(s.answers))
	}
	want := s.border.crossed(s.name, pair{s.request, s.answers[0]})
	return proto.Unmarshal(want.answer, m.(proto.Message))
}

// serverSide is a borderStream as the plugin sees it.
type serverSide struct {
	*borderStream
	request []byte
}

func (s *serverSide) SetHeader(metadata.MD) error  { return nil }
func (s *serverSide) SendHeader(metadata.MD) error { return nil }
func (s *serverSide) SetTrailer(metadata.MD)       {}
func (s *serverSide) RecvMsg(m any) error          { return proto.Unmarshal(s.request, m.(proto.Message)) }
func (s *serverSide) SendMsg(m any) error          { s.answers = append(s.answers, encode(m)); return nil }

// TestGoldenCalls makes every call of protocol 1 with everything set. The host
// has to send the golden request, the author to be asked for what it says, the
// plugin to answer the golden answer, and the host to read what that says.
func TestGoldenCalls(t *testing.T) {
	golden := readGolden(t)
	for name, call := range goldenCalls {
		author, direct := new(witness), new(witness)
		s := newServer(Author{Name: "golden"}, Description{}, t.TempDir(), slog.New(slog.DiscardHandler))
		s.platform = author
		host := &remote{client: pluginv1.NewPluginServiceClient(&border{t, s, golden}), limit: time.Minute, secrets: new(secretText)}
		got, want := call(t.Context(), host), call(t.Context(), direct)
		if diff := cmp.Diff(want, got, cmp.Comparer(sameError), cmpopts.EquateComparable(netip.Prefix{})); diff != "" {
			t.Errorf("%s: the host reads something else than the author answered (-want +got):\n%s", name, diff)
		}
		if diff := cmp.Diff(direct.asked, author.asked); diff != "" {
			t.Errorf("%s: the author was asked for something else (-want +got):\n%s", name, diff)
		}
	}
	if *update {
		writeGolden(t, golden)
	}
	if len(golden) != len(goldenCalls) {
		t.Errorf("%d calls are golden, %d are made", len(golden), len(goldenCalls))
	}
}

// sameError compares what callers see of errors.
func sameError(a, b error) bool {
	x, _ := errors.AsType[*sdk.Error](a)
	y, _ := errors.AsType[*sdk.Error](b)
	if x == nil || y == nil {
		return a == nil && b == nil
	}
	return *x == *y
}

// TestGoldenWords holds the words that cross the border inside of strings,
// which no .proto knows.
func TestGoldenWords(t *testing.T) {
	words := func(all ...any) (text []string) {
		for _, w := range all {
			text = append(text, fmt.Sprint(w))
		}
		return text
	}
	for what, c := range map[string]struct {
		now  []string
		then string
	}{
		"abilities": {words(sdk.AbilitySource, sdk.AbilityChangeTracker, sdk.AbilityTarget, sdk.AbilityPower), "source change-tracker target power"},
		"abilities of a cloud host": {words(sdk.AbilityReplicator, sdk.AbilityActivator, sdk.AbilityNetworker, sdk.AbilityPools, sdk.AbilityConsole, sdk.AbilityGuest),
			"replicator activator networker pools console guest"},
		"purposes":        {words(sdk.PurposeReal, sdk.PurposeTest), "real test"},
		"layers":          {words(sdk.KeepLayer, sdk.DiscardLayer), "keep discard"},
		"instance states": {words(sdk.InstanceRunning, sdk.InstanceOff, sdk.InstanceKept), "running off kept"},
		"states":          {words(sdk.StateUnknown, sdk.StateOff, sdk.StateRunning, sdk.StatePaused), "unknown off running paused"},
		"firmware":        {words(sdk.FirmwareBIOS, sdk.FirmwareUEFI), "bios uefi"},
		"quiesce":         {words(sdk.QuiesceNone, sdk.QuiesceFileSystem, sdk.QuiesceApplication), "none file-system application"},
		"shapes":          {words(sdk.ShapeRandom, sdk.ShapeSequential), "random sequential"},
		"faults":          {words(sdk.FaultPlugin, sdk.FaultBackend, sdk.FaultHost), "plugin back-end holdfast"},
		"codes": {words(sdk.CodeOf(sdk.ErrNotFound), sdk.CodeOf(sdk.ErrInvalid), sdk.CodeOf(sdk.ErrUnsupported), sdk.CodeOf(sdk.ErrDenied),
			sdk.CodeOf(sdk.ErrBusy), sdk.CodeOf(sdk.ErrUnavailable), sdk.CodeOf(sdk.ErrPending), sdk.CodeOf(sdk.ErrFenced),
			sdk.CodeOf(sdk.ErrMarkLost), sdk.CodeOf(sdk.ErrCannotCancel)),
			"not-found invalid unsupported denied busy unavailable pending fenced mark-lost cannot-cancel"},
		"the cookie": {words(handshake.MagicCookieKey, handshake.MagicCookieValue), "HOLDFAST_PLUGIN a host started this process"},
	} {
		if now := strings.Join(c.now, " "); now != c.then {
			t.Errorf("%s are %q, and once were %q", what, now, c.then)
		}
	}
}

// TestGoldenAddress is about what OpenDisk answers, whose handle is a new one
// each time.
func TestGoldenAddress(t *testing.T) {
	address := sdk.Address{
		Network: "tcp", Addr: "10.0.0.1:10809", Export: "vda", DirtyBitmap: "qemu:dirty-bitmap:b", Connections: 4,
		TLS: &sdk.AddressTLS{CA: []byte("ca"), Cert: []byte("cert"), Key: []byte("key"), ServerName: "node-1"},
	}
	opened := &pluginv1.OpenedDisk{Handle: "h", SizeBytes: 1<<40 + 512, Address: toAddress(address), Shape: string(sdk.ShapeSequential)}
	const then = "0a0168108084808080201a4a0a03746370120e31302e302e302e313a31303830391a0376646122170a0263611204636572741a03" +
		"6b657922066e6f64652d312a1371656d753a64697274792d6269746d61703a623004220a73657175656e7469616c"
	if now := hex.EncodeToString(encode(opened)); now != then {
		t.Errorf("an opened disk is\n  %s, and once was\n  %s", now, then)
	}
	back := new(pluginv1.OpenedDisk)
	if err := proto.Unmarshal(unhex(t, then), back); err != nil {
		t.Fatal(err)
	}
	got, err := fromAddress(back.GetAddress())
	if diff := cmp.Diff(address, got); err != nil || diff != "" {
		t.Errorf("%v; the host reads something else (-want +got):\n%s", err, diff)
	}
}
