package plugin

import (
	"bytes"
	"context"
	"iter"
	"math"
	"net/netip"

	"google.golang.org/grpc"

	"github.com/holdfast-dr/holdfast/sdk"
	pluginv1 "github.com/holdfast-dr/holdfast/sdk/plugin/v1"
)

// Bounds of what a plugin may say about where machines run.
const (
	maxNetworks   = 1 << 16
	maxHosts      = 1 << 16
	maxPools      = 4096
	maxInterfaces = 256
	maxAddresses  = 256 // of one interface
	maxVLAN       = 4094
)

func (s *server) Networks(req *pluginv1.NetworksRequest, out grpc.ServerStreamingServer[pluginv1.NetworksResponse]) error {
	networker, err := ability[sdk.Networker](s, sdk.AbilityNetworker)
	if err != nil {
		return err
	}
	for network, err := range networker.Networks(out.Context(), sdk.Space(req.GetSpace())) {
		if err != nil {
			return err
		}
		if err := out.Send(&pluginv1.NetworksResponse{Network: toNetwork(network)}); err != nil {
			return err
		}
	}
	return nil
}

func (s *server) CreateNetwork(ctx context.Context, req *pluginv1.CreateNetworkRequest) (*pluginv1.CreateNetworkResponse, error) {
	networker, err := ability[sdk.Networker](s, sdk.AbilityNetworker)
	if err != nil {
		return nil, err
	}
	network, err := networker.CreateNetwork(ctx, fromOp(req.GetOp()),
		sdk.NetworkSpec{Name: req.GetName(), VLAN: int(req.GetVlan()), Uplink: req.GetUplink()})
	if err != nil {
		return nil, err
	}
	return &pluginv1.CreateNetworkResponse{Network: toNetwork(network)}, nil
}

func (s *server) RemoveNetwork(ctx context.Context, req *pluginv1.RemoveNetworkRequest) (*pluginv1.RemoveNetworkResponse, error) {
	networker, err := ability[sdk.Networker](s, sdk.AbilityNetworker)
	if err != nil {
		return nil, err
	}
	return &pluginv1.RemoveNetworkResponse{}, networker.RemoveNetwork(ctx, fromOp(req.GetOp()), req.GetName())
}

func (s *server) Capacity(ctx context.Context, _ *pluginv1.CapacityRequest) (*pluginv1.CapacityResponse, error) {
	pools, err := ability[sdk.Pools](s, sdk.AbilityPools)
	if err != nil {
		return nil, err
	}
	capacity, err := pools.Capacity(ctx)
	if err != nil {
		return nil, err
	}
	resp := &pluginv1.CapacityResponse{}
	for _, h := range capacity.Hosts {
		resp.Hosts = append(resp.Hosts, &pluginv1.HostCapacity{
			Name: h.Name, Cpus: toCount(h.CPUs), MemoryBytes: h.MemoryBytes, FreeBytes: h.FreeBytes,
		})
	}
	for _, p := range capacity.Pools {
		resp.Pools = append(resp.Pools, &pluginv1.PoolCapacity{Name: p.Name, SizeBytes: p.SizeBytes, FreeBytes: p.FreeBytes})
	}
	return resp, nil
}

func (s *server) SetLimits(ctx context.Context, req *pluginv1.SetLimitsRequest) (*pluginv1.SetLimitsResponse, error) {
	pools, err := ability[sdk.Pools](s, sdk.AbilityPools)
	if err != nil {
		return nil, err
	}
	enforced, err := pools.SetLimits(ctx, fromOp(req.GetOp()),
		sdk.Limits{CPUs: int(req.GetCpus()), MemoryBytes: req.GetMemoryBytes(), StorageBytes: req.GetStorageBytes()})
	if err != nil {
		return nil, err
	}
	return &pluginv1.SetLimitsResponse{Cpus: enforced.CPUs, Memory: enforced.Memory, Storage: enforced.Storage}, nil
}

func (s *server) Usage(ctx context.Context, req *pluginv1.UsageRequest) (*pluginv1.UsageResponse, error) {
	pools, err := ability[sdk.Pools](s, sdk.AbilityPools)
	if err != nil {
		return nil, err
	}
	usage, err := pools.Usage(ctx, sdk.Space(req.GetSpace()))
	if err != nil {
		return nil, err
	}
	return &pluginv1.UsageResponse{Cpus: toCount(usage.CPUs), MemoryBytes: usage.MemoryBytes, StorageBytes: usage.StorageBytes}, nil
}

func (s *server) Screenshot(ctx context.Context, req *pluginv1.ScreenshotRequest) (*pluginv1.ScreenshotResponse, error) {
	console, err := ability[sdk.Console](s, sdk.AbilityConsole)
	if err != nil {
		return nil, err
	}
	png, err := console.Screenshot(ctx, sdk.Space(req.GetSpace()), sdk.MachineID(req.GetMachine()))
	if err != nil {
		return nil, err
	}
	return &pluginv1.ScreenshotResponse{Png: png}, nil
}

func (s *server) GuestInfo(ctx context.Context, req *pluginv1.GuestInfoRequest) (*pluginv1.GuestInfoResponse, error) {
	guest, err := ability[sdk.Guest](s, sdk.AbilityGuest)
	if err != nil {
		return nil, err
	}
	info, err := guest.GuestInfo(ctx, sdk.Space(req.GetSpace()), sdk.MachineID(req.GetMachine()))
	if err != nil {
		return nil, err
	}
	resp := &pluginv1.GuestInfoResponse{Hostname: info.Hostname, System: info.System}
	for _, i := range info.Interfaces {
		wire := &pluginv1.GuestInterface{Name: i.Name, Mac: i.MAC}
		for _, a := range i.Addresses {
			wire.Addresses = append(wire.Addresses, a.String())
		}
		resp.Interfaces = append(resp.Interfaces, wire)
	}
	return resp, nil
}

var (
	_ sdk.Networker = (*remote)(nil)
	_ sdk.Pools     = (*remote)(nil)
	_ sdk.Console   = (*remote)(nil)
	_ sdk.Guest     = (*remote)(nil)
)

func (r *remote) Networks(ctx context.Context, space sdk.Space) iter.Seq2[sdk.Network, error] {
	return func(yield func(sdk.Network, error) bool) {
		n := 0
		for message, err := range stream(ctx, r, "Networks", r.client.Networks, &pluginv1.NetworksRequest{Space: string(space)}) {
			var network sdk.Network
			if err == nil {
				network, err = fromNetwork(message.GetNetwork())
			}
			if n++; err == nil && n > maxNetworks {
				err = broken("more than %d networks", maxNetworks)
			}
			if err != nil {
				yield(sdk.Network{}, err)
				return
			}
			if !yield(network, nil) {
				return
			}
		}
	}
}

func (r *remote) CreateNetwork(ctx context.Context, op sdk.Op, spec sdk.NetworkSpec) (sdk.Network, error) {
	if spec.VLAN < 0 || spec.VLAN > maxVLAN { // on the wire 0 would say that frames stay inside
		return sdk.Network{}, sdk.Errorf(sdk.ErrInvalid, sdk.FaultHost, "VLAN %d is not 0 to %d", spec.VLAN, maxVLAN)
	}
	resp, err := call(ctx, r, "CreateNetwork", r.client.CreateNetwork,
		&pluginv1.CreateNetworkRequest{Op: toOp(op), Name: spec.Name, Vlan: toCount(spec.VLAN), Uplink: spec.Uplink})
	if err != nil {
		return sdk.Network{}, err
	}
	return fromNetwork(resp.GetNetwork())
}

func (r *remote) RemoveNetwork(ctx context.Context, op sdk.Op, name string) error {
	_, err := call(ctx, r, "RemoveNetwork", r.client.RemoveNetwork, &pluginv1.RemoveNetworkRequest{Op: toOp(op), Name: name})
	return err
}

func (r *remote) Capacity(ctx context.Context) (sdk.Capacity, error) {
	resp, err := call(ctx, r, "Capacity", r.client.Capacity, &pluginv1.CapacityRequest{})
	if err != nil {
		return sdk.Capacity{}, err
	}
	if len(resp.GetHosts()) > maxHosts || len(resp.GetPools()) > maxPools {
		return sdk.Capacity{}, broken("%d hosts and %d pools", len(resp.GetHosts()), len(resp.GetPools()))
	}
	var capacity sdk.Capacity
	for _, h := range resp.GetHosts() {
		if len(h.GetName()) > maxText || h.GetCpus() < 0 || h.GetMemoryBytes() < 0 || h.GetFreeBytes() < 0 {
			return sdk.Capacity{}, broken("host %q has %d CPUs and %d of %d bytes free", clip(h.GetName(), maxID), h.GetCpus(), h.GetFreeBytes(), h.GetMemoryBytes())
		}
		capacity.Hosts = append(capacity.Hosts, sdk.HostCapacity{
			Name: h.GetName(), CPUs: int(h.GetCpus()), MemoryBytes: h.GetMemoryBytes(), FreeBytes: h.GetFreeBytes(),
		})
	}
	for _, p := range resp.GetPools() {
		if len(p.GetName()) > maxText || p.GetSizeBytes() < 0 || p.GetFreeBytes() < 0 {
			return sdk.Capacity{}, broken("pool %q has %d of %d bytes free", clip(p.GetName(), maxID), p.GetFreeBytes(), p.GetSizeBytes())
		}
		capacity.Pools = append(capacity.Pools, sdk.PoolCapacity{Name: p.GetName(), SizeBytes: p.GetSizeBytes(), FreeBytes: p.GetFreeBytes()})
	}
	return capacity, nil
}

func (r *remote) SetLimits(ctx context.Context, op sdk.Op, limits sdk.Limits) (sdk.Enforced, error) {
	if limits.CPUs < 0 || limits.CPUs > math.MaxInt32 || limits.MemoryBytes < 0 { // on the wire 0 would lift the limit
		return sdk.Enforced{}, sdk.Errorf(sdk.ErrInvalid, sdk.FaultHost, "limits of %d CPUs and %d bytes", limits.CPUs, limits.MemoryBytes)
	}
	resp, err := call(ctx, r, "SetLimits", r.client.SetLimits, &pluginv1.SetLimitsRequest{
		Op: toOp(op), Cpus: toCount(limits.CPUs), MemoryBytes: limits.MemoryBytes, StorageBytes: limits.StorageBytes,
	})
	if err != nil {
		return sdk.Enforced{}, err
	}
	return sdk.Enforced{CPUs: resp.GetCpus(), Memory: resp.GetMemory(), Storage: resp.GetStorage()}, nil
}

func (r *remote) Usage(ctx context.Context, space sdk.Space) (sdk.Usage, error) {
	resp, err := call(ctx, r, "Usage", r.client.Usage, &pluginv1.UsageRequest{Space: string(space)})
	if err != nil {
		return sdk.Usage{}, err
	}
	if resp.GetCpus() < 0 || resp.GetMemoryBytes() < 0 || len(resp.GetStorageBytes()) > maxPools {
		return sdk.Usage{}, broken("a space that uses %d CPUs, %d bytes and %d pools", resp.GetCpus(), resp.GetMemoryBytes(), len(resp.GetStorageBytes()))
	}
	for pool, n := range resp.GetStorageBytes() {
		if n < 0 || len(pool) > maxText {
			return sdk.Usage{}, broken("a space that uses %d bytes of pool %q", n, clip(pool, maxID))
		}
	}
	return sdk.Usage{CPUs: int(resp.GetCpus()), MemoryBytes: resp.GetMemoryBytes(), StorageBytes: resp.GetStorageBytes()}, nil
}

// pngSignature begins every PNG: section 5.2 of the W3C's PNG specification.
var pngSignature = []byte("\x89PNG\r\n\x1a\n")

func (r *remote) Screenshot(ctx context.Context, space sdk.Space, machine sdk.MachineID) ([]byte, error) {
	resp, err := call(ctx, r, "Screenshot", r.client.Screenshot, &pluginv1.ScreenshotRequest{Space: string(space), Machine: string(machine)})
	if err != nil {
		return nil, err
	}
	if n := len(resp.GetPng()); n > sdk.MaxScreenshot || !bytes.HasPrefix(resp.GetPng(), pngSignature) {
		return nil, broken("a screenshot of %d bytes, of at most %d, that is a PNG", n, sdk.MaxScreenshot)
	}
	return resp.GetPng(), nil
}

func (r *remote) GuestInfo(ctx context.Context, space sdk.Space, machine sdk.MachineID) (sdk.GuestInfo, error) {
	resp, err := call(ctx, r, "GuestInfo", r.client.GuestInfo, &pluginv1.GuestInfoRequest{Space: string(space), Machine: string(machine)})
	if err != nil {
		return sdk.GuestInfo{}, err
	}
	return fromGuestInfo(resp)
}

func toNetwork(n sdk.Network) *pluginv1.Network {
	return &pluginv1.Network{Name: n.Name, Space: string(n.Space), Vlan: toCount(n.VLAN), Uplink: n.Uplink, Ours: n.Ours}
}

func fromNetwork(wire *pluginv1.Network) (sdk.Network, error) {
	n := sdk.Network{
		Name: wire.GetName(), Space: sdk.Space(wire.GetSpace()), VLAN: int(wire.GetVlan()), Uplink: wire.GetUplink(), Ours: wire.GetOurs(),
	}
	if n.Name == "" || len(n.Name) > maxText || len(n.Space) > maxText || len(n.Uplink) > maxText || n.VLAN < 0 || n.VLAN > maxVLAN {
		return sdk.Network{}, broken("network %q with VLAN %d", clip(n.Name, maxID), n.VLAN)
	}
	return n, nil
}

// fromGuestInfo bounds what a guest says, which a plugin may pass on unread.
// Addresses that are none are left out.
func fromGuestInfo(wire *pluginv1.GuestInfoResponse) (sdk.GuestInfo, error) {
	if len(wire.GetInterfaces()) > maxInterfaces {
		return sdk.GuestInfo{}, broken("a guest with %d interfaces", len(wire.GetInterfaces()))
	}
	info := sdk.GuestInfo{Hostname: clip(wire.GetHostname(), maxErrorHint), System: clip(wire.GetSystem(), maxErrorHint)}
	for _, i := range wire.GetInterfaces() {
		if len(i.GetAddresses()) > maxAddresses {
			return sdk.GuestInfo{}, broken("a guest's interface with %d addresses", len(i.GetAddresses()))
		}
		seen := sdk.GuestInterface{Name: clip(i.GetName(), maxErrorHint), MAC: clip(i.GetMac(), maxErrorHint)}
		for _, text := range i.GetAddresses() {
			if address, err := netip.ParsePrefix(text); err == nil {
				seen.Addresses = append(seen.Addresses, address)
			}
		}
		info.Interfaces = append(info.Interfaces, seen)
	}
	return info, nil
}
