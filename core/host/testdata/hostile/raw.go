package main

import (
	"context"
	"encoding/json"
	"fmt"
	"math"
	"os"
	"strings"

	"github.com/hashicorp/go-hclog"
	goplugin "github.com/hashicorp/go-plugin"
	"google.golang.org/grpc"

	"github.com/holdfast-dr/holdfast/sdk/plugin"
	pluginv1 "github.com/holdfast-dr/holdfast/sdk/plugin/v1"
)

// raw speaks the protocol without the bounds of the sdk. What it does wrong is
// the rest of its version.
func raw() {
	switch version {
	case "raw-protocol": // of the future
		fmt.Printf("1|99|unix|%s/x|grpc|\n", os.Getenv("TMPDIR"))
		hang()
	case "raw-noise":
		for {
			fmt.Println(strings.Repeat("noise ", 1000))
		}
	case "raw-silence":
		hang()
	}
	goplugin.Serve(&goplugin.ServeConfig{
		HandshakeConfig:  goplugin.HandshakeConfig{MagicCookieKey: "HOLDFAST_PLUGIN", MagicCookieValue: "a host started this process"},
		VersionedPlugins: map[int]goplugin.PluginSet{1: {"holdfast": &bare{}}},
		Logger:           hclog.NewNullLogger(),
		GRPCServer: func(o []grpc.ServerOption) *grpc.Server {
			return grpc.NewServer(append(o, grpc.MaxSendMsgSize(math.MaxInt32))...)
		},
	})
}

type bare struct {
	goplugin.NetRPCUnsupportedPlugin
}

func (*bare) GRPCServer(_ *goplugin.GRPCBroker, s *grpc.Server) error {
	pluginv1.RegisterPluginServiceServer(s, &liar{})
	return nil
}

func (*bare) GRPCClient(context.Context, *goplugin.GRPCBroker, *grpc.ClientConn) (any, error) {
	return nil, nil
}

type liar struct {
	pluginv1.UnimplementedPluginServiceServer
}

func (*liar) Describe(context.Context, *pluginv1.DescribeRequest) (*pluginv1.DescribeResponse, error) {
	d := plugin.Description{Name: "hostile", Version: version, Protocol: 1}
	switch version {
	case "raw-other":
		d.Version = "2.0.0"
	case "raw-garbage":
		return &pluginv1.DescribeResponse{Json: []byte("{")}, nil
	}
	d.Config, _ = plugin.SchemaOf(&config{})
	doc, err := json.Marshal(d)
	return &pluginv1.DescribeResponse{Json: doc}, err
}

func (*liar) Configure(context.Context, *pluginv1.ConfigureRequest) (*pluginv1.ConfigureResponse, error) {
	return &pluginv1.ConfigureResponse{Abilities: []string{"source", "change-tracker"}}, nil
}

// Probe answers a gigabyte's worth of findings, or as much as it gets rid of.
func (*liar) Probe(context.Context, *pluginv1.ProbeRequest) (*pluginv1.ProbeResponse, error) {
	return &pluginv1.ProbeResponse{Product: strings.Repeat("x", plugin.MaxMessage*4)}, nil
}

func (*liar) Snapshot(_ context.Context, req *pluginv1.SnapshotRequest) (*pluginv1.SnapshotResponse, error) {
	return &pluginv1.SnapshotResponse{Snapshot: &pluginv1.Snapshot{Id: "s1", Achieved: "none", Machine: &pluginv1.Machine{
		Id: req.GetMachine(), Disks: []*pluginv1.Disk{{Id: "vda", SizeBytes: size}},
	}}}, nil
}

// Machines has no end.
func (*liar) Machines(_ *pluginv1.MachinesRequest, out grpc.ServerStreamingServer[pluginv1.MachinesResponse]) error {
	for n := 0; ; n++ {
		if err := out.Send(&pluginv1.MachinesResponse{Machine: &pluginv1.Machine{Id: fmt.Sprint("m", n)}}); err != nil {
			return err
		}
	}
}

// Changed sends nothing, again and again.
func (*liar) Changed(_ *pluginv1.ChangedRequest, out grpc.ServerStreamingServer[pluginv1.ChangedResponse]) error {
	for {
		if err := out.Send(&pluginv1.ChangedResponse{}); err != nil {
			return err
		}
	}
}

func (*liar) OpenDisk(context.Context, *pluginv1.OpenDiskRequest) (*pluginv1.OpenDiskResponse, error) {
	return &pluginv1.OpenDiskResponse{Disk: &pluginv1.OpenedDisk{SizeBytes: size, Address: &pluginv1.Address{Network: "unix", Addr: "/x"}}}, nil
}

func (*liar) CloseDisk(context.Context, *pluginv1.CloseDiskRequest) (*pluginv1.CloseDiskResponse, error) {
	return &pluginv1.CloseDiskResponse{}, nil
}
