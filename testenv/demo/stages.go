package main

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"github.com/holdfast-dr/holdfast/sdk"
	"github.com/holdfast-dr/holdfast/sdk/sim"
	"github.com/holdfast-dr/holdfast/testenv"
	"github.com/holdfast-dr/holdfast/testenv/guest"
	"github.com/holdfast-dr/holdfast/testenv/site"
)

// chooseStage takes real guests where libvirtd and QEMU can be had.
func chooseStage(ctx context.Context, dir string) (stage, error) {
	for _, tool := range slices.Concat(site.Tools, guest.Tools) {
		if _, ok := testenv.FindTool(tool); !ok {
			return newSimulated(dir, fmt.Sprintf("%s is not installed: testenv/setup.sh demo says what is missing", tool))
		}
	}
	image, err := guest.Build(ctx, guest.Options{Agent: true})
	if err != nil {
		return simulatedUnless(ctx, dir, "the guest's disk cannot be made here", err)
	}
	s, err := site.Start(ctx, site.Options{NoTurn: true})
	if err != nil {
		return simulatedUnless(ctx, dir, "libvirtd does not start here", err)
	}
	return &hosted{site: s, image: image}, nil
}

// simulatedUnless is a simulated stage unless the demo was interrupted.
func simulatedUnless(ctx context.Context, dir, what string, err error) (stage, error) {
	if ctx.Err() != nil {
		return nil, err
	}
	return newSimulated(dir, what+": "+strings.TrimSpace(err.Error()))
}

// hosted is a private libvirtd with a small Linux guest that boots from its own
// disk.
type hosted struct {
	site  *site.Site
	image guest.Image
	guest site.Guest
}

const hostedName = "web"

func (r *hosted) describe() string {
	where := "a libvirtd of its own"
	if !r.site.System {
		where = "a session libvirtd of its own"
	}
	how := "QEMU in software (TCG), for there is no KVM here"
	if r.site.Accel == site.KVM {
		how = "KVM"
	}
	return fmt.Sprintf("%s, %s, and a Linux guest that boots from its own disk", where, how)
}

func (r *hosted) machine() string { return hostedName }

func (r *hosted) endpoint() (string, []string) { return "libvirt", []string{"uri=" + r.site.URI} }

func (r *hosted) boot(ctx context.Context) error {
	var err error
	if r.guest, err = r.site.Define(ctx, site.Spec{Name: hostedName, Image: r.image}); err != nil {
		return err
	}
	return r.guest.Start(ctx)
}

func (r *hosted) write(ctx context.Context, text string) error {
	_, err := r.guest.Run(ctx, fmt.Sprintf("echo '%s' > /data/note && dd if=/dev/urandom of=/data/blob bs=1M count=3 2>/dev/null && sync", text))
	return err
}

func (r *hosted) destroy(ctx context.Context) error { return r.guest.Remove(ctx) }

func (r *hosted) revive(ctx context.Context, name, _ string) (string, error) {
	g := r.site.Guest(name)
	if err := g.Start(ctx); err != nil {
		return "", err
	}
	text, err := g.Run(ctx, "cat /data/note")
	return strings.TrimSpace(text), err
}

func (r *hosted) visit(name string) (command, hint string) {
	return fmt.Sprintf("virsh -c '%s' console %s", r.site.URI, name), "its console: press Enter, write with note TEXT, leave with Ctrl-]"
}

func (r *hosted) close() error { return r.site.Close() }

// simulated is a hypervisor in a directory, where there is no real one. The
// machine's console is its disk.
type simulated struct {
	dir, why string
	hv       *sim.Hypervisor
	id       sdk.MachineID
	disk     sdk.DiskID
}

func newSimulated(dir, why string) (stage, error) {
	path := filepath.Join(dir, "hypervisor")
	hv, err := sim.Open(path)
	return &simulated{dir: path, why: why, hv: hv}, err
}

func (s *simulated) describe() string {
	return "SIMULATED, because " + s.why + ". Backup, wire, repository and restore are the real ones"
}

func (s *simulated) machine() string { return "web" }

func (s *simulated) endpoint() (string, []string) { return "sim", []string{"dir=" + s.dir} }

// noteAt is where the simulated guest keeps its note.
const noteAt = 300 << 20

func (s *simulated) boot(context.Context) error {
	m, err := s.hv.CreateMachine(sim.MachineSpec{Name: "web", DiskBytes: []int64{1 << 30}, State: sdk.StateRunning})
	if err != nil {
		return err
	}
	s.id, s.disk = m.ID, m.Disks[0].ID
	block := make([]byte, 1<<20)
	for i := range int64(64) {
		for j := range block {
			block[j] = byte(int64(j) * (i + 3) >> 4)
		}
		if err := s.hv.WriteDisk(s.id, s.disk, i<<23, block); err != nil {
			return err
		}
	}
	return nil
}

func (s *simulated) write(_ context.Context, text string) error {
	return s.hv.WriteDisk(s.id, s.disk, noteAt, []byte(hex.EncodeToString([]byte(text))+"\n"))
}

func (s *simulated) destroy(context.Context) error { return s.hv.DeleteMachine(s.id) }

func (s *simulated) revive(_ context.Context, _, id string) (string, error) {
	m, err := s.hv.Find(id)
	if err != nil {
		return "", err
	}
	if len(m.Disks) != 1 {
		return "", errors.New("the restored machine has lost its disk")
	}
	buf := make([]byte, 4096)
	if err := s.hv.ReadDisk(m.ID, m.Disks[0].ID, noteAt, buf); err != nil {
		return "", err
	}
	line, _, _ := strings.Cut(string(buf), "\n")
	text, err := hex.DecodeString(line)
	return string(text), err
}

func (s *simulated) visit(name string) (command, hint string) {
	return fmt.Sprintf("holdfast-plugin-sim fill %s %s vda 32M 4M 2", s.dir, name), "writes 4 MiB at offset 32 MiB, made from the number 2"
}

func (s *simulated) close() error { return nil }
