package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/holdfast-dr/holdfast/testenv"
	"github.com/holdfast-dr/holdfast/testenv/guest"
	"github.com/holdfast-dr/holdfast/testenv/site"
)

// guestPart is the full backup of the same disk from a real guest: QEMU exports
// what libvirt's backup holds still, and the agent reads it by NBD. It is
// measured beside the simulated hypervisor, repeat by repeat.
func (b *bench) guestPart(ctx context.Context) (err error) {
	if missing := guestLacks(); missing != nil {
		progress("the real guest is left out: %v", missing)
		return nil
	}
	images, err := makePair(ctx, recipe{sizeBytes: b.gib * gib, changed: b.changed})
	if err != nil {
		return err
	}
	if _, err := b.available(ctx, &round{pair: images, bin: b.bin}, kinds[:1]); err != nil {
		return err
	}
	if err := buildPlugin(ctx, filepath.Join(b.bin, ours), "libvirt"); err != nil {
		return err
	}
	s, err := site.Start(ctx, site.Options{})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	if err := defineGuest(ctx, s, images.day(1)); err != nil {
		return err
	}
	simulated, real := kinds[0], kind{name: "holdfast-guest", note: "the same disk, of a real guest under QEMU, over NBD", make: newGuestPeer(s)}
	c := compare{title: fmt.Sprintf("A real guest as the source: %d GiB", b.gib), peers: []kind{simulated, real},
		ops: []operation{opFull, opRestore}, repeats: b.repeats(3)}
	for n := range c.repeats {
		r := &round{dir: filepath.Join(b.work, fmt.Sprintf("g%d", n+1)), pair: images, bin: b.bin}
		if err := b.round(ctx, c, n+1, r, c.peers); err != nil {
			return err
		}
	}
	b.rows.print(c)
	return nil
}

// guestLacks says what a real guest needs and this machine does not have.
func guestLacks() error {
	for _, program := range site.Tools {
		if _, ok := testenv.FindTool(program); !ok {
			return fmt.Errorf("%s is missing; testenv/setup.sh demo installs it", program)
		}
	}
	return nil
}

// guestSettings are those of an endpoint, and of a job that backs up what
// defineGuest made.
func guestSettings(s *site.Site) (settings, flags []string) {
	return []string{"--set", "uri=" + s.URI, "--set", "scratch_dir=" + s.Scratch()}, []string{"--exclude-disk", "vda"}
}

// guestSource is the disk of a real guest, exported by its QEMU.
func guestSource(ctx context.Context, dir string, size int64) (m lineMachine, err error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return m, err
	}
	image := filepath.Join(dir, "guest.img")
	f, err := os.Create(image)
	if err != nil {
		return m, err
	}
	err = fillLine(size, func(at int64, b []byte) error { _, err := f.WriteAt(b, at); return err })
	if err := errors.Join(err, f.Close()); err != nil {
		return m, err
	}
	s, err := site.Start(ctx, site.Options{})
	if err != nil {
		return m, err
	}
	m.plugin, m.close = "libvirt", s.Close
	m.settings, m.flags = guestSettings(s)
	return m, errors.Join(defineGuest(ctx, s, image), os.Remove(image))
}

// defineGuest makes a guest whose second disk is the image. It is paused, so
// that nothing writes to the disk and the emulated processor takes no time.
func defineGuest(ctx context.Context, s *site.Site, image string) error {
	progress("making a guest with the image …")
	small, err := guest.Build(ctx, guest.Options{})
	if err != nil {
		return err
	}
	g, err := s.Define(ctx, site.Spec{Name: machineName, Image: small})
	if err != nil {
		return err
	}
	disks, err := g.Disks(ctx)
	if err != nil {
		return err
	}
	if len(disks) != 2 {
		return fmt.Errorf("the guest has %d disks", len(disks))
	}
	if _, err := tool(ctx, "qemu-img", "convert", "-f", "raw", "-O", "qcow2", image, disks[1]); err != nil {
		return err
	}
	_, err = s.Virsh(ctx, "start", machineName, "--paused")
	return err
}

// guestPeer is Holdfast with the guest's disk as its source.
type guestPeer struct {
	holdfast
	site *site.Site
}

func newGuestPeer(s *site.Site) func(*round) (peer, error) {
	return func(r *round) (peer, error) {
		p := &guestPeer{site: s}
		p.holdfast = holdfast{title: "holdfast-guest", dir: filepath.Join(r.dir, "holdfast-guest"), bin: filepath.Join(r.bin, ours), pair: r.pair}
		return p, nil
	}
}

func (p *guestPeer) start(ctx context.Context) error {
	if err := os.MkdirAll(p.dir, 0o700); err != nil {
		return err
	}
	p.source, p.disk = p.site.PoolDir(site.Pool), "vdb"
	settings, flags := guestSettings(p.site)
	return p.connect(ctx, "libvirt", settings, flags...)
}
