package main

import (
	"context"
	"fmt"
	"iter"
	"math/rand/v2"
	"net"
	"strconv"
	"strings"
	"sync"

	"github.com/holdfast-dr/holdfast/sdk"
	"github.com/holdfast-dr/holdfast/sdk/nbd"
)

// portAttempts is how many ports of the range are tried: somebody else's NBD servers may use the same.
const portAttempts = 8

// connections is how many a reader or writer of a disk may open; more does not make QEMU faster.
const connections = 4

// nbdReady says why disks could not be reached.
func (p *platform) nbdReady() error {
	if p.endpoint.local() || p.config.InsecureNBD {
		return nil
	}
	if p.config.CA == "" || p.config.Cert == "" || p.config.Key == "" {
		return invalid("the disks of a remote host are read over TLS, for which certificates are missing").
			WithHint("set ca, cert and key, and give QEMU certificates of its own: /etc/pki/libvirt-backup at the host")
	}
	return nil
}

// server is where QEMU shall listen: on a socket of that name, or on a port.
func (p *platform) server(dir, name string, attempt int) (jobServer, error) {
	if p.endpoint.local() {
		socket := dir + "/" + name + ".sock"
		if len(socket) > longestSockPath {
			return jobServer{}, invalid("the path of the socket %s is too long", socket).WithHint("set scratch_dir to a shorter one")
		}
		return jobServer{Transport: "unix", Socket: socket}, nil
	}
	s := jobServer{Transport: "tcp", Name: p.nbdHost(), Port: strconv.Itoa(p.port(attempt))}
	if !p.config.InsecureNBD {
		s.TLS = "yes"
	}
	return s, nil
}

func (p *platform) nbdHost() string {
	if p.config.NBDAddress != "" {
		return p.config.NBDAddress
	}
	return p.endpoint.host
}

// port begins somewhere in the range, so that snapshots of one host rarely meet, and goes on from there.
func (p *platform) port(attempt int) int {
	first, count := p.ports[0], p.ports[1]-p.ports[0]+1
	return first + (rand.IntN(count)+attempt)%count
}

// portTaken reports whether a server could not listen because somebody else does.
func portTaken(err error) bool {
	return err != nil && strings.Contains(err.Error(), "Address already in use")
}

// address is where an export is reached.
func (p *platform) address(s jobServer, export, bitmap string) sdk.Address {
	a := sdk.Address{Network: "unix", Addr: s.Socket, Export: export, Connections: connections}
	if bitmap != "" {
		a.DirtyBitmap = "qemu:dirty-bitmap:" + bitmap
	}
	if s.Transport == "unix" {
		return a
	}
	a.Network, a.Addr = "tcp", net.JoinHostPort(s.Name, s.Port)
	if s.TLS == "yes" {
		a.TLS = &sdk.AddressTLS{
			CA: []byte(p.config.CA), Cert: []byte(p.config.Cert), Key: []byte(p.config.Key), ServerName: s.Name,
		}
	}
	return a
}

// OpenDisk opens one disk of a snapshot. Its bytes are QEMU's to serve.
func (p *platform) OpenDisk(ctx context.Context, snap sdk.Snapshot, disk sdk.DiskID) (sdk.BlockReader, error) {
	d, err := p.openExport(ctx, snap, disk)
	if err != nil {
		return nil, err
	}
	return d, nil
}

func (p *platform) openExport(ctx context.Context, snap sdk.Snapshot, disk sdk.DiskID) (*remoteDisk, error) {
	id, checkpoint, ok := parseSnapshotID(snap.ID)
	if !ok {
		return nil, notFound("snapshot %q", snap.ID)
	}
	dom, err := p.domain(ctx, id)
	if err != nil {
		return nil, err
	}
	j, err := p.currentJob(ctx, dom)
	if err != nil {
		return nil, err
	}
	if j == nil || !j.ours(p.instance) || j.ticket.checkpoint() != checkpoint {
		run, err := p.runOf(ctx, dom)
		if err == nil {
			err = run.brokenOff(checkpoint)
		}
		if err != nil {
			return nil, err
		}
		return nil, notFound("snapshot %s", snap.ID).WithHint("it was ended, or the machine stopped under it")
	}
	found, ok := j.disk(disk)
	if !ok {
		return nil, notFound("disk %s of snapshot %s", disk, snap.ID)
	}
	bitmap := ""
	if found.Mode == "incremental" {
		bitmap = found.Bitmap
	}
	d, _, err := p.describe(ctx, dom, liveXML)
	if err != nil {
		return nil, err
	}
	k, ok := d.disk(disk)
	if !ok {
		return nil, notFound("disk %s of machine %s", disk, id)
	}
	size, err := p.diskSize(ctx, dom, k)
	if err != nil {
		return nil, err
	}
	return &remoteDisk{address: p.address(j.Server, found.Export, bitmap), size: size}, nil
}

// remoteDisk is a disk that QEMU serves. The host dials its address; only who uses it in this process makes it dial.
type remoteDisk struct {
	address sdk.Address
	size    int64

	mu     sync.Mutex // guards what follows
	opened *nbd.Disk
	closed bool
}

var (
	_ sdk.BlockReader = (*remoteDisk)(nil)
	_ sdk.BlockWriter = (*remoteDisk)(nil)
	_ sdk.Addressed   = (*remoteDisk)(nil)
)

func (d *remoteDisk) Address() sdk.Address { return d.address }
func (d *remoteDisk) Size() int64          { return d.size }
func (d *remoteDisk) Shape() sdk.Shape     { return sdk.ShapeRandom }

func (d *remoteDisk) dial(ctx context.Context) (*nbd.Disk, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return nil, invalid("the disk is closed")
	}
	if d.opened != nil {
		return d.opened, nil
	}
	ctx, cancel := context.WithTimeout(ctx, dialLimit)
	defer cancel()
	opened, err := nbd.Open(ctx, d.address)
	if err != nil {
		return nil, fmt.Errorf("open export: %w", err)
	}
	if opened.Size() != d.size {
		return nil, sdk.Errorf(nil, sdk.FaultBackend, "the disk has %d bytes and its export %d", d.size, opened.Size())
	}
	d.opened = opened
	return opened, nil
}

func (d *remoteDisk) ReadAt(b []byte, off int64) (int, error) {
	opened, err := d.dial(context.Background()) // io.ReaderAt has no context; dialling is bounded
	if err != nil {
		return 0, err
	}
	return opened.ReadAt(b, off)
}

func (d *remoteDisk) Extents(ctx context.Context, off, n int64) iter.Seq2[sdk.Extent, error] {
	opened, err := d.dial(ctx)
	if err != nil {
		return func(yield func(sdk.Extent, error) bool) { yield(sdk.Extent{}, err) }
	}
	return opened.Extents(ctx, off, n)
}

func (d *remoteDisk) WriteAt(b []byte, off int64) (int, error) {
	opened, err := d.dial(context.Background())
	if err != nil {
		return 0, err
	}
	return opened.WriteAt(b, off)
}

func (d *remoteDisk) Zero(off, n int64) error {
	opened, err := d.dial(context.Background())
	if err != nil {
		return err
	}
	return opened.Zero(off, n)
}

func (d *remoteDisk) Flush() error {
	d.mu.Lock()
	opened := d.opened
	d.mu.Unlock()
	if opened == nil {
		return nil // nothing was written through here
	}
	return opened.Flush()
}

func (d *remoteDisk) Close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.closed = true
	if d.opened == nil {
		return nil
	}
	err := d.opened.Close()
	d.opened = nil
	return err
}
