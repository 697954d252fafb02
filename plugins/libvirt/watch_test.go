package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/digitalocean/go-libvirt"

	"github.com/holdfast-dr/holdfast/sdk"
	"github.com/holdfast-dr/holdfast/testenv/site"
)

// meter is a libvirt socket that counts what passes through it.
type meter struct {
	socket string
	calls  atomic.Int64 // packets of clients: one for each call
	sent   atomic.Int64 // bytes of libvirtd
}

func newMeter(t testing.TB, to string) *meter {
	t.Helper()
	m := &meter{socket: filepath.Join(t.TempDir(), "s")}
	listener, err := net.Listen("unix", m.socket)
	if err != nil {
		t.Fatal(err)
	}
	var open sync.WaitGroup
	t.Cleanup(func() { listener.Close(); open.Wait() })
	open.Go(func() {
		for {
			client, err := listener.Accept()
			if err != nil {
				return
			}
			server, err := net.Dial("unix", to)
			if err != nil {
				t.Errorf("dial libvirtd: %v", err)
				client.Close()
				return
			}
			open.Go(func() { defer server.Close(); m.count(server, client) })
			open.Go(func() {
				defer client.Close()
				buf := make([]byte, 1<<16)
				for {
					n, err := server.Read(buf)
					m.sent.Add(int64(n))
					if _, failed := client.Write(buf[:n]); failed != nil || err != nil {
						return
					}
				}
			})
		}
	})
	return m
}

// count copies packets, which begin with their length.
func (m *meter) count(to io.Writer, from io.Reader) {
	var head [4]byte
	for {
		if _, err := io.ReadFull(from, head[:]); err != nil {
			return
		}
		packet := make([]byte, binary.BigEndian.Uint32(head[:]))
		copy(packet, head[:])
		if _, err := io.ReadFull(from, packet[4:]); err != nil {
			return
		}
		m.calls.Add(1)
		if _, err := to.Write(packet); err != nil {
			return
		}
	}
}

// reset starts a new account.
func (m *meter) reset() { m.calls.Store(0); m.sent.Store(0) }

const many = 2000

// testHost is libvirt's test driver with many machines, reached through a meter.
func testHost(t testing.TB) (*platform, *libvirt.Libvirt, *meter) {
	t.Helper()
	s := testSite(t)
	operator := &connection{endpoint: endpoint{network: "unix", addr: s.Socket, driver: "test:///default"}}
	t.Cleanup(func() { _ = operator.close() })
	lv, _, err := operator.open()
	if err != nil {
		t.Fatal(err)
	}
	for i := range many - 1 { // the driver has one machine already
		if _, err := lv.DomainDefineXML(fmt.Sprintf(`<domain type='test'><name>m%d</name><memory>8192</memory><os><type>hvm</type></os>
			<devices><disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='/guests/m%d.img'/>
			<target dev='vda'/></disk></devices></domain>`, i, i)); err != nil {
			t.Fatal(err)
		}
	}
	meter := newMeter(t, s.Socket)
	p, err := open(Config{URI: "qemu+unix:///system?socket=" + meter.socket, Instance: "test"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	p.endpoint.driver = "test:///default"
	p.control.endpoint, p.safety.endpoint = p.endpoint, p.endpoint
	return p, lv, meter
}

// What the inventory of a host may cost. A machine that is off takes its description and the size of each disk; one that
// runs also its state, and the description with which it starts next.
const (
	constantCalls    = 16 // opening the connection, the list of machines, the pools
	callsOfMachine   = 2
	callsOfRunning   = 4
	callsOfChange    = 1 + callsOfRunning // and finding it
	bytesOfMachine   = 8 << 10
	callsOfWatching  = 4 + 6 // opening the connection, and the six kinds of events
	bytesOfAnyChange = 4 * bytesOfMachine
)

// follow watches. await waits for a change that fits.
func follow(ctx context.Context, t *testing.T, p *platform) (await func(what string, fits func(sdk.Change) bool), ended <-chan error) {
	changes := make(chan sdk.Change, 100)
	end := make(chan error, 1)
	go func() {
		for change, err := range p.Watch(ctx) {
			if err != nil {
				end <- err
				return
			}
			changes <- change
		}
	}()
	return func(what string, fits func(sdk.Change) bool) {
		t.Helper()
		deadline := time.After(30 * time.Second)
		for {
			select {
			case change := <-changes:
				if fits(change) {
					return
				}
			case err := <-end:
				t.Fatalf("the watch ended before it told %s: %v", what, err)
			case <-deadline:
				t.Fatalf("the watch did not tell %s", what)
			}
		}
	}, end
}

func TestTwoThousandMachinesWithinTheBudget(t *testing.T) {
	p, lv, meter := testHost(t)
	var running, off int
	for m, err := range p.Machines(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		if m.State == sdk.StateOff {
			off++
		} else {
			running++
		}
	}
	if off != many-1 || running != 1 {
		t.Errorf("%d machines are off and %d run", off, running)
	}
	calls, bytes := meter.calls.Load(), meter.sent.Load()
	t.Logf("listing: %d calls, %d bytes", calls, bytes)
	if most := int64(constantCalls + many*callsOfMachine + callsOfRunning); calls > most {
		t.Errorf("listing %d machines took %d calls, at most %d", many, calls, most)
	}
	if most := int64(many * bytesOfMachine); bytes > most {
		t.Errorf("listing %d machines moved %d bytes, at most %d", many, bytes, most)
	}

	meter.reset()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	await, ended := follow(ctx, t, p)
	await("that it stands", func(c sdk.Change) bool { return c == sdk.Change{} })
	if calls := meter.calls.Load(); calls > callsOfWatching {
		t.Errorf("beginning to watch took %d calls, at most %d", calls, callsOfWatching)
	}

	dom, err := lv.DomainLookupByName("m1234")
	if err != nil {
		t.Fatal(err)
	}
	id := machineID(dom)
	step := func(what string, do func() error, fits func(*sdk.Machine) bool) {
		t.Helper()
		meter.reset()
		if err := do(); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		await(what, func(c sdk.Change) bool { return c.Machine == id && fits(c.Now) })
		// libvirt may tell of one change in two events.
		if calls, bytes := meter.calls.Load(), meter.sent.Load(); calls > 2*callsOfChange || bytes > bytesOfAnyChange {
			t.Errorf("%s took %d calls and %d bytes, at most %d and %d", what, calls, bytes, 2*callsOfChange, bytesOfAnyChange)
		}
	}
	step("that the machine starts", func() error { return lv.DomainCreate(dom) },
		func(m *sdk.Machine) bool { return m != nil && m.State == sdk.StateRunning && m.Name == "m1234" })
	step("that the machine is destroyed", func() error { return lv.DomainDestroy(dom) },
		func(m *sdk.Machine) bool { return m != nil && m.State == sdk.StateOff })
	step("that the machine is gone", func() error { return lv.DomainUndefine(dom) },
		func(m *sdk.Machine) bool { return m == nil })

	if err := p.control.close(); err != nil { // another connection's end is not the watch's
		t.Fatal(err)
	}
	cancel()
	if err := <-ended; err == nil {
		t.Error("the watch ended without an error")
	}
}

func TestWatchFollowsARealHost(t *testing.T) {
	s := testSite(t)
	p := testPlatform(t, local(s))
	await, ended := follow(t.Context(), t, p)
	await("that it stands", func(c sdk.Change) bool { return c == sdk.Change{} })
	g := testGuest(t, s, site.Spec{Name: "watched", Tags: []string{"gold"}})
	var id sdk.MachineID
	await("the new machine", func(c sdk.Change) bool {
		if c.Now == nil || c.Now.Name != "watched" {
			return false
		}
		id = c.Machine
		return slices.Equal(c.Now.Tags, []string{"gold"}) && len(c.Now.Disks) == 2 && c.Now.Disks[0].Pool == site.Pool
	})
	virsh := func(args ...string) {
		t.Helper()
		if _, err := s.Virsh(t.Context(), args...); err != nil {
			t.Fatal(err)
		}
	}
	virsh("metadata", "watched", xmlnsTags, "--key", "tags", "--set", "<tags><tag>silver</tag></tags>", "--config")
	await("the other tag", func(c sdk.Change) bool {
		return c.Machine == id && c.Now != nil && slices.Equal(c.Now.Tags, []string{"silver"})
	})
	mustStart(t, g)
	await("the start", func(c sdk.Change) bool { return c.Machine == id && c.Now != nil && c.Now.State == sdk.StateRunning })
	virsh("detach-disk", "watched", "vdb", "--live", "--config")
	await("the disk that was taken away", func(c sdk.Change) bool { return c.Machine == id && c.Now != nil && len(c.Now.Disks) == 1 })
	if err := os.Remove(filepath.Join(s.PoolDir(site.Pool), "watched-vdb.qcow2")); err != nil {
		t.Fatal(err)
	}
	if err := s.RestartDaemon(t.Context()); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-ended:
		if !errors.Is(err, sdk.ErrUnavailable) {
			t.Errorf("the watch of a libvirtd that ended: %v", err)
		}
	case <-time.After(30 * time.Second):
		t.Error("the watch outlives its libvirtd")
	}
}

// BenchmarkListTwoThousand lists the test driver's machines.
func BenchmarkListTwoThousand(b *testing.B) {
	p, _, meter := testHost(b)
	meter.reset()
	for b.Loop() {
		for _, err := range p.Machines(b.Context()) {
			if err != nil {
				b.Fatal(err)
			}
		}
	}
	b.ReportMetric(float64(meter.calls.Load())/float64(b.N), "calls/op")
	b.ReportMetric(float64(meter.sent.Load())/float64(b.N)/(1<<20), "MiB/op")
}
