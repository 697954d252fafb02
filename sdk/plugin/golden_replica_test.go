package plugin

import (
	"context"
	"iter"
	"maps"
	"net/netip"
	"time"

	"github.com/holdfast-dr/holdfast/sdk"
)

// What the golden calls about replicas speak of. Nothing here has its zero
// value.
var (
	goldenLabel = sdk.PointLabel{
		Label: "point 7", Taken: time.Date(2026, 2, 3, 4, 5, 6, 789_000, time.UTC), Achieved: sdk.QuiesceApplication,
	}
	goldenPoint      = sdk.Point{ID: "p-1", Machine: goldenMachine, PointLabel: goldenLabel, Holders: []string{"run-7"}, StoredBytes: 1 << 33}
	goldenPointDraft = sdk.PointDraft{ID: "d-2", Replica: "r-1", Base: "p-1", Disks: []sdk.DiskID{"vda"}, Epoch: 7}
	goldenReplica    = sdk.Replica{
		ID: "r-1", Space: "tenant-a", Name: "web", Pool: "fast", Label: "job 1", Epoch: 1<<63 + 7, MaxPoints: 28, Draft: &goldenPointDraft,
	}
	goldenInstance = sdk.Instance{
		ID: "i-1", Space: "tenant-a", Machine: "m-9", Replica: "r-1", Point: "p-1", Purpose: sdk.PurposeReal,
		State: sdk.InstanceRunning, Epoch: 9, WrittenBytes: 1 << 20,
	}
	goldenActivation = sdk.ActivateRequest{
		Replica: "r-1", Point: "p-1", Kept: "i-0", Purpose: sdk.PurposeReal, Name: "web-dr",
		Networks: map[string]string{"lan": "tenant-lan"}, CPUs: 2, MemoryBytes: 4 << 30,
	}
	goldenNetwork  = sdk.Network{Name: "tenant-lan", Space: "tenant-a", VLAN: 4094, Uplink: "trunk", Ours: true}
	goldenCapacity = sdk.Capacity{
		Hosts: []sdk.HostCapacity{{Name: "host-1", CPUs: 64, MemoryBytes: 1 << 40, FreeBytes: 1 << 39}},
		Pools: []sdk.PoolCapacity{{Name: "fast", SizeBytes: 1 << 44, FreeBytes: 1 << 43}},
	}
	goldenLimits = sdk.Limits{CPUs: 8, MemoryBytes: 16 << 30, StorageBytes: map[string]int64{"fast": 1 << 40}}
	goldenUsage  = sdk.Usage{CPUs: 2, MemoryBytes: 4 << 30, StorageBytes: map[string]int64{"fast": 1 << 30}}
	goldenShot   = append([]byte("\x89PNG\r\n\x1a\n"), 0, 1, 2)
	goldenGuest  = sdk.GuestInfo{Hostname: "web", System: "Debian", Interfaces: []sdk.GuestInterface{{
		Name: "eth0", MAC: "52:54:00:12:34:56",
		Addresses: []netip.Prefix{netip.MustParsePrefix("192.0.2.7/24"), netip.MustParsePrefix("2001:db8::7/64")},
	}}}
)

func init() {
	maps.Copy(goldenCalls, map[string]func(ctx context.Context, p everything) []any{
		"Replicas": func(ctx context.Context, p everything) []any { return collect(p.Replicas(ctx, "tenant-a")) },
		"CreateReplica": func(ctx context.Context, p everything) []any {
			r, err := p.CreateReplica(ctx, goldenOp, sdk.ReplicaSpec{Name: "web", Pool: "fast", Label: "job 1", Seed: "m-1"})
			return []any{r, err}
		},
		"DraftPoint": func(ctx context.Context, p everything) []any {
			d, err := p.DraftPoint(ctx, goldenOp, sdk.PointSpec{Replica: "r-1", Base: "p-1", Machine: goldenMachine})
			return []any{d, err}
		},
		"OpenPointDraftDisk": func(ctx context.Context, p everything) []any {
			_, err := p.OpenPointDraftDisk(ctx, goldenOp, goldenPointDraft, "vda")
			return []any{err}
		},
		"CommitPoint": func(ctx context.Context, p everything) []any {
			point, err := p.CommitPoint(ctx, goldenOp, goldenPointDraft, goldenLabel)
			return []any{point, err}
		},
		"AbortPoint": func(ctx context.Context, p everything) []any {
			return []any{p.AbortPoint(ctx, goldenOp, goldenPointDraft)}
		},
		"OpenPoint": func(ctx context.Context, p everything) []any {
			_, err := p.OpenPoint(ctx, "tenant-a", "r-1", "p-1", "vda")
			return []any{err}
		},
		"HoldPoint": func(ctx context.Context, p everything) []any {
			return []any{p.HoldPoint(ctx, goldenOp, "r-1", "p-1", "run-7")}
		},
		"ReleasePoint": func(ctx context.Context, p everything) []any {
			return []any{p.ReleasePoint(ctx, goldenOp, "r-1", "p-1", "run-7")}
		},
		"RemovePoint": func(ctx context.Context, p everything) []any {
			return []any{p.RemovePoint(ctx, goldenOp, "r-1", "p-1")}
		},
		"RemoveReplica": func(ctx context.Context, p everything) []any { return []any{p.RemoveReplica(ctx, goldenOp, "r-1")} },
		"Activate": func(ctx context.Context, p everything) []any {
			i, err := p.Activate(ctx, goldenOp, goldenActivation)
			return []any{i, err}
		},
		"Instances": func(ctx context.Context, p everything) []any { return collect(p.Instances(ctx, "tenant-a")) },
		"Deactivate": func(ctx context.Context, p everything) []any {
			return []any{p.Deactivate(ctx, goldenOp, "i-1", sdk.KeepLayer)}
		},
		"Finalize": func(ctx context.Context, p everything) []any {
			m, err := p.Finalize(ctx, goldenOp, "i-1")
			return []any{m, err}
		},
		"Reverse": func(ctx context.Context, p everything) []any {
			r, err := p.Reverse(ctx, goldenOp, "i-1")
			return []any{r, err}
		},
		"Networks": func(ctx context.Context, p everything) []any { return collect(p.Networks(ctx, "tenant-a")) },
		"CreateNetwork": func(ctx context.Context, p everything) []any {
			n, err := p.CreateNetwork(ctx, goldenOp, sdk.NetworkSpec{Name: "tenant-lan", VLAN: 4094, Uplink: "trunk"})
			return []any{n, err}
		},
		"RemoveNetwork": func(ctx context.Context, p everything) []any {
			return []any{p.RemoveNetwork(ctx, goldenOp, "tenant-lan")}
		},
		"Capacity": func(ctx context.Context, p everything) []any {
			c, err := p.Capacity(ctx)
			return []any{c, err}
		},
		"SetLimits": func(ctx context.Context, p everything) []any {
			e, err := p.SetLimits(ctx, goldenOp, goldenLimits)
			return []any{e, err}
		},
		"Usage": func(ctx context.Context, p everything) []any {
			u, err := p.Usage(ctx, "tenant-a")
			return []any{u, err}
		},
		"Screenshot": func(ctx context.Context, p everything) []any {
			shot, err := p.Screenshot(ctx, "tenant-a", "m-9")
			return []any{shot, err}
		},
		"GuestInfo": func(ctx context.Context, p everything) []any {
			info, err := p.GuestInfo(ctx, "tenant-a", "m-9")
			return []any{info, err}
		},
	})
}

func (w *witness) Replicas(_ context.Context, s sdk.Space) iter.Seq2[sdk.Replica, error] {
	w.ask(s)
	return one(goldenReplica)
}

func (w *witness) CreateReplica(_ context.Context, op sdk.Op, s sdk.ReplicaSpec) (sdk.Replica, error) {
	w.ask(op, s)
	whole := goldenReplica
	whole.Points = []sdk.Point{goldenPoint}
	return whole, nil
}

func (w *witness) DraftPoint(_ context.Context, op sdk.Op, s sdk.PointSpec) (sdk.PointDraft, error) {
	w.ask(op, s)
	return goldenPointDraft, nil
}

func (w *witness) OpenPointDraftDisk(_ context.Context, op sdk.Op, d sdk.PointDraft, disk sdk.DiskID) (sdk.PointWriter, error) {
	w.ask(op, d, disk)
	return nil, goldenError
}

func (w *witness) CommitPoint(_ context.Context, op sdk.Op, d sdk.PointDraft, l sdk.PointLabel) (sdk.Point, error) {
	w.ask(op, d, l)
	return goldenPoint, nil
}

func (w *witness) AbortPoint(_ context.Context, op sdk.Op, d sdk.PointDraft) error {
	w.ask(op, d)
	return nil
}

func (w *witness) OpenPoint(_ context.Context, s sdk.Space, r sdk.ReplicaID, p sdk.PointID, d sdk.DiskID) (sdk.BlockReader, error) {
	w.ask(s, r, p, d)
	return nil, goldenError
}

func (w *witness) HoldPoint(_ context.Context, op sdk.Op, r sdk.ReplicaID, p sdk.PointID, holder string) error {
	w.ask(op, r, p, holder)
	return nil
}

func (w *witness) ReleasePoint(_ context.Context, op sdk.Op, r sdk.ReplicaID, p sdk.PointID, holder string) error {
	w.ask(op, r, p, holder)
	return nil
}

func (w *witness) RemovePoint(_ context.Context, op sdk.Op, r sdk.ReplicaID, p sdk.PointID) error {
	w.ask(op, r, p)
	return nil
}

func (w *witness) RemoveReplica(_ context.Context, op sdk.Op, r sdk.ReplicaID) error {
	w.ask(op, r)
	return nil
}

func (w *witness) Activate(_ context.Context, op sdk.Op, req sdk.ActivateRequest) (sdk.Instance, error) {
	w.ask(op, req)
	return goldenInstance, nil
}

func (w *witness) Instances(_ context.Context, s sdk.Space) iter.Seq2[sdk.Instance, error] {
	w.ask(s)
	return one(goldenInstance)
}

func (w *witness) Deactivate(_ context.Context, op sdk.Op, i sdk.InstanceID, l sdk.Layer) error {
	w.ask(op, i, l)
	return nil
}

func (w *witness) Finalize(_ context.Context, op sdk.Op, i sdk.InstanceID) (sdk.MachineID, error) {
	w.ask(op, i)
	return "m-9", nil
}

func (w *witness) Reverse(_ context.Context, op sdk.Op, i sdk.InstanceID) (sdk.Reversal, error) {
	w.ask(op, i)
	return sdk.Reversal{Machine: "m-9", Since: map[sdk.DiskID]sdk.Mark{"vda": {0, 1, 255}}}, nil
}

func (w *witness) Networks(_ context.Context, s sdk.Space) iter.Seq2[sdk.Network, error] {
	w.ask(s)
	return one(goldenNetwork)
}

func (w *witness) CreateNetwork(_ context.Context, op sdk.Op, s sdk.NetworkSpec) (sdk.Network, error) {
	w.ask(op, s)
	return goldenNetwork, nil
}

func (w *witness) RemoveNetwork(_ context.Context, op sdk.Op, name string) error {
	w.ask(op, name)
	return nil
}

func (w *witness) Capacity(context.Context) (sdk.Capacity, error) { return goldenCapacity, nil }

func (w *witness) SetLimits(_ context.Context, op sdk.Op, l sdk.Limits) (sdk.Enforced, error) {
	w.ask(op, l)
	return sdk.Enforced{CPUs: true, Memory: true, Storage: true}, nil
}

func (w *witness) Usage(_ context.Context, s sdk.Space) (sdk.Usage, error) {
	w.ask(s)
	return goldenUsage, nil
}

func (w *witness) Screenshot(_ context.Context, s sdk.Space, m sdk.MachineID) ([]byte, error) {
	w.ask(s, m)
	return goldenShot, nil
}

func (w *witness) GuestInfo(_ context.Context, s sdk.Space, m sdk.MachineID) (sdk.GuestInfo, error) {
	w.ask(s, m)
	return goldenGuest, nil
}
