package sim

import (
	"bytes"
	"context"
	"crypto/sha256"
	bitmap "image"
	"image/color"
	"image/png"
	"iter"
	"net/netip"
	"slices"

	"github.com/holdfast-dr/holdfast/sdk"
)

var (
	_ sdk.Networker = (*Platform)(nil)
	_ sdk.Pools     = (*Platform)(nil)
	_ sdk.Console   = (*Platform)(nil)
	_ sdk.Guest     = (*Platform)(nil)
)

// What the one host of this hypervisor has.
const (
	hostCPUs        = 64
	hostMemoryBytes = 512 << 30
	poolBytes       = 64 << 40
)

// network is a network that CreateNetwork made. Its name is among the state's
// networks, too.
type network struct {
	sdk.Network
	OpID  string
	Epoch uint64
}

// offers reports whether machines of a space may be connected to a network.
func (st *state) offers(space sdk.Space, name string) bool {
	made, ok := st.Made[name]
	return slices.Contains(st.Networks, name) && (!ok || made.Space == space)
}

func (st *state) networksOf(space sdk.Space) []string {
	return slices.DeleteFunc(slices.Clone(st.Networks), func(name string) bool { return !st.offers(space, name) })
}

// Networks lists networks.
func (p *Platform) Networks(ctx context.Context, space sdk.Space) iter.Seq2[sdk.Network, error] {
	return func(yield func(sdk.Network, error) bool) {
		var list []sdk.Network
		err := p.during(ctx, "Networks", sdk.Op{}, func(bool) error {
			return p.hypervisor.view(func(st *state) error {
				for _, name := range st.Networks {
					made, ok := st.Made[name]
					switch {
					case ok && (space == "" || made.Space == space):
						list = append(list, made.Network)
					case !ok:
						list = append(list, sdk.Network{Name: name})
					}
				}
				return nil
			})
		})
		if err != nil {
			yield(sdk.Network{}, err)
			return
		}
		for _, n := range list {
			if !yield(n, nil) {
				return
			}
		}
	}
}

// CreateNetwork makes a network.
func (p *Platform) CreateNetwork(ctx context.Context, op sdk.Op, spec sdk.NetworkSpec) (sdk.Network, error) {
	var made sdk.Network
	err := p.during(ctx, "CreateNetwork", op, func(bool) error {
		return p.hypervisor.change(func(st *state) error {
			for _, n := range st.Made {
				if n.OpID == op.ID {
					made = n.Network
					return admit(op, n.Space, &n.Epoch, "network "+n.Name)
				}
			}
			invalid := func(format string, args ...any) error {
				return sdk.Errorf(sdk.ErrInvalid, sdk.FaultHost, format, args...)
			}
			switch {
			case op.ID == "":
				return invalid("a network without an operation id")
			case spec.Name == "" || len(spec.Name) > 255:
				return invalid("a network's name has 1 to 255 bytes")
			case slices.Contains(st.Networks, spec.Name):
				return invalid("there is a network %q", spec.Name)
			case spec.VLAN < 0 || spec.VLAN > 4094 || (spec.VLAN > 0) != (spec.Uplink != ""):
				return invalid("VLAN %d on uplink %q: a VLAN is 1 to 4094 and has an uplink", spec.VLAN, spec.Uplink)
			case spec.Uplink != "" && !slices.Contains(st.Networks, spec.Uplink):
				return invalid("there is no uplink %q", spec.Uplink)
			}
			for _, n := range st.Made {
				if spec.VLAN > 0 && n.VLAN == spec.VLAN && n.Uplink == spec.Uplink {
					return invalid("VLAN %d on uplink %q is that of network %q", spec.VLAN, spec.Uplink, n.Name)
				}
			}
			made = sdk.Network{Name: spec.Name, Space: op.Space, VLAN: spec.VLAN, Uplink: spec.Uplink, Ours: true}
			st.Networks = append(st.Networks, spec.Name)
			st.Made[spec.Name] = &network{Network: made, OpID: op.ID, Epoch: op.Epoch}
			return nil
		})
	})
	return made, err
}

// RemoveNetwork removes a network that nothing uses.
func (p *Platform) RemoveNetwork(ctx context.Context, op sdk.Op, name string) error {
	return p.during(ctx, "RemoveNetwork", op, func(bool) error {
		return p.hypervisor.change(func(st *state) error {
			made, ok := st.Made[name]
			if !ok && slices.Contains(st.Networks, name) {
				return sdk.Errorf(sdk.ErrDenied, sdk.FaultHost, "network %q was not made by Holdfast", name)
			}
			if !ok {
				return nil
			}
			if err := admit(op, made.Space, &made.Epoch, "network "+name); err != nil {
				return err
			}
			for _, m := range st.Machines {
				if slices.ContainsFunc(m.NICs, func(n sdk.NIC) bool { return n.Network == name }) {
					return sdk.Errorf(sdk.ErrBusy, sdk.FaultBackend, "machine %s is connected to network %q", m.Name, name)
				}
			}
			st.Networks = slices.DeleteFunc(st.Networks, func(n string) bool { return n == name })
			delete(st.Made, name)
			return nil
		})
	})
}

// Capacity is that of one host and its pools.
func (p *Platform) Capacity(ctx context.Context) (sdk.Capacity, error) {
	var capacity sdk.Capacity
	err := p.during(ctx, "Capacity", sdk.Op{}, func(bool) error {
		return p.hypervisor.view(func(st *state) error {
			used, err := st.usage(p.hypervisor.store, func(sdk.Space) bool { return true })
			if err != nil {
				return err
			}
			capacity.Hosts = []sdk.HostCapacity{{
				Name: "sim", CPUs: hostCPUs, MemoryBytes: hostMemoryBytes, FreeBytes: max(hostMemoryBytes-used.MemoryBytes, 0),
			}}
			for _, pool := range st.Pools {
				capacity.Pools = append(capacity.Pools, sdk.PoolCapacity{
					Name: pool, SizeBytes: poolBytes, FreeBytes: max(poolBytes-used.StorageBytes[pool], 0),
				})
			}
			return nil
		})
	})
	return capacity, err
}

// limits are those of a space.
type limits struct {
	sdk.Limits
	Epoch uint64
}

// SetLimits keeps the limits of a space. CPUs and memory are enforced here.
func (p *Platform) SetLimits(ctx context.Context, op sdk.Op, set sdk.Limits) (sdk.Enforced, error) {
	err := p.during(ctx, "SetLimits", op, func(bool) error {
		return p.hypervisor.change(func(st *state) error {
			if set.CPUs < 0 || set.MemoryBytes < 0 || op.Space == "" {
				return sdk.Errorf(sdk.ErrInvalid, sdk.FaultHost, "limits of %d CPUs and %d bytes for space %q", set.CPUs, set.MemoryBytes, op.Space)
			}
			for pool := range set.StorageBytes {
				if !slices.Contains(st.Pools, pool) {
					return sdk.Errorf(sdk.ErrInvalid, sdk.FaultHost, "there is no pool %q", pool)
				}
			}
			l, ok := st.Limits[op.Space]
			if !ok {
				l = new(limits)
				st.Limits[op.Space] = l
			}
			if err := admit(op, op.Space, &l.Epoch, "space "+string(op.Space)); err != nil {
				return err
			}
			l.Limits = set
			return nil
		})
	})
	return sdk.Enforced{CPUs: true, Memory: true}, err
}

// room refuses a machine that would run beyond the limits of its space.
func (st *state) room(space sdk.Space, starts *machine) error {
	l, ok := st.Limits[space]
	if !ok {
		return nil
	}
	cpus, memory := starts.CPUs, starts.MemoryBytes
	for _, m := range st.Machines {
		if m.Space == space && m.State != sdk.StateOff && m != starts {
			cpus, memory = cpus+m.CPUs, memory+m.MemoryBytes
		}
	}
	switch {
	case l.CPUs > 0 && cpus > l.CPUs:
		return sdk.Errorf(sdk.ErrBusy, sdk.FaultBackend, "%d CPUs would run in space %q, at most %d may", cpus, space, l.CPUs)
	case l.MemoryBytes > 0 && memory > l.MemoryBytes:
		return sdk.Errorf(sdk.ErrBusy, sdk.FaultBackend, "machines of space %q would run in %d bytes, at most %d may", space, memory, l.MemoryBytes)
	}
	return nil
}

// startIn starts a machine within the limits of its space.
func (st *state) startIn(m *machine) error {
	if m.State != sdk.StateRunning {
		if err := st.room(m.Space, m); err != nil {
			return err
		}
	}
	m.State = sdk.StateRunning
	return nil
}

// Usage is what the machines and replicas of a space take.
func (p *Platform) Usage(ctx context.Context, space sdk.Space) (sdk.Usage, error) {
	var used sdk.Usage
	err := p.during(ctx, "Usage", sdk.Op{}, func(bool) error {
		return p.hypervisor.view(func(st *state) (err error) {
			used, err = st.usage(p.hypervisor.store, func(s sdk.Space) bool { return s == space })
			return err
		})
	})
	return used, err
}

func (st *state) usage(s store, counts func(sdk.Space) bool) (sdk.Usage, error) {
	used := sdk.Usage{StorageBytes: make(map[string]int64)}
	add := func(pool string, files map[sdk.DiskID]*disk) error {
		for _, d := range files {
			taken, err := allocated(s, d)
			if err != nil {
				return err
			}
			used.StorageBytes[pool] += taken
		}
		return nil
	}
	for _, m := range st.Machines {
		if !counts(m.Space) {
			continue
		}
		if m.State != sdk.StateOff {
			used.CPUs, used.MemoryBytes = used.CPUs+m.CPUs, used.MemoryBytes+m.MemoryBytes
		}
		for _, d := range m.Disks {
			if err := add(d.Pool, map[sdk.DiskID]*disk{d.ID: m.Files[d.ID]}); err != nil {
				return sdk.Usage{}, err
			}
		}
	}
	for _, r := range st.Replicas {
		if !counts(r.Space) {
			continue
		}
		for _, pt := range r.Chain {
			if err := add(r.Pool, pt.Files); err != nil {
				return sdk.Usage{}, err
			}
		}
		if r.Open != nil {
			if err := add(r.Pool, r.Open.Files); err != nil {
				return sdk.Usage{}, err
			}
		}
	}
	for _, i := range st.Instances {
		if r, ok := st.Replicas[i.Replica]; ok && counts(i.Space) && i.Kept != nil {
			if err := add(r.Pool, i.Kept.Files); err != nil {
				return sdk.Usage{}, err
			}
		}
	}
	return used, nil
}

// running finds a machine of a space that runs.
func (st *state) running(space sdk.Space, id sdk.MachineID, off error) (*machine, error) {
	m, ok := st.Machines[id]
	switch {
	case !ok:
		return nil, sdk.Errorf(sdk.ErrNotFound, sdk.FaultBackend, "machine %s", id)
	case space != "" && m.Space != space:
		return nil, sdk.Errorf(sdk.ErrDenied, sdk.FaultHost, "machine %s is outside of space %q", id, space)
	case m.State != sdk.StateRunning:
		return nil, sdk.Errorf(off, sdk.FaultHost, "machine %s is %s", id, m.State)
	}
	return m, nil
}

// Screenshot is a picture in a colour of the machine's own.
func (p *Platform) Screenshot(ctx context.Context, space sdk.Space, id sdk.MachineID) ([]byte, error) {
	var shot []byte
	err := p.during(ctx, "Screenshot", sdk.Op{}, func(bool) error {
		return p.hypervisor.view(func(st *state) error {
			m, err := st.running(space, id, sdk.ErrInvalid)
			if err != nil {
				return err
			}
			sum := sha256.Sum256([]byte(m.ID))
			screen := bitmap.NewPaletted(bitmap.Rect(0, 0, 64, 48), color.Palette{color.RGBA{sum[0], sum[1], sum[2], 0xff}})
			var doc bytes.Buffer
			err = png.Encode(&doc, screen)
			shot = doc.Bytes()
			return err
		})
	})
	return shot, err
}

// GuestInfo is what a simulated guest would say: it takes an address from each
// network that it is connected to.
func (p *Platform) GuestInfo(ctx context.Context, space sdk.Space, id sdk.MachineID) (sdk.GuestInfo, error) {
	var info sdk.GuestInfo
	err := p.during(ctx, "GuestInfo", sdk.Op{}, func(bool) error {
		return p.hypervisor.view(func(st *state) error {
			m, err := st.running(space, id, sdk.ErrUnavailable)
			if err != nil {
				return err
			}
			info = sdk.GuestInfo{Hostname: m.Name, System: "a simulated guest"}
			for _, nic := range m.NICs {
				seen := sdk.GuestInterface{Name: "eth" + string(rune('0'+len(info.Interfaces)%10)), MAC: nic.MAC}
				if nic.Network != "" {
					sum := sha256.Sum256([]byte(nic.Network + nic.MAC))
					seen.Addresses = []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{10, sum[0], sum[1], sum[2]}), 8)}
				}
				info.Interfaces = append(info.Interfaces, seen)
			}
			return nil
		})
	})
	return info, err
}
