package site

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/template"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-dr/holdfast/testenv/guest"
)

// Spec says what guest to define.
type Spec struct {
	Name    string
	Image   guest.Image
	Pool    string   // of the disks; "" is Pool
	Network string   // "" is none
	Tags    []string // in the metadata that Holdfast's inventory reads
	RawData bool     // vdb is raw, and so cannot track changes
}

// Guest is a virtual machine at a site, whoever defined it.
type Guest struct {
	site *Site
	Name string
}

// ReadyLimit is how long a guest may take to boot. Alone it takes 4 s; a busy machine has been seen to need 30 and more.
const ReadyLimit = 4 * time.Minute

var domain = template.Must(template.New("domain").Parse(`<domain type='{{.Type}}'>
  <name>{{.Name}}</name>
  <metadata>
    <tags xmlns='https://holdfast-dr.org/xmlns/libvirt/1.0'>{{range .Tags}}<tag>{{.}}</tag>{{end}}</tags>
  </metadata>
  <memory unit='MiB'>128</memory>
  <vcpu>1</vcpu>
  <os><type arch='x86_64' machine='pc'>hvm</type><boot dev='hd'/></os>
  <features><acpi/>{{if eq .Type "qemu"}}<tcg><tb-cache unit='MiB'>32</tb-cache></tcg>{{end}}</features>
  <on_poweroff>destroy</on_poweroff>
  <on_reboot>restart</on_reboot>
  <devices>
    <disk type='file' device='disk'>
      <driver name='qemu' type='qcow2' discard='unmap'/><source file='{{.Boot}}'/><target dev='vda' bus='virtio'/>
    </disk>
    <disk type='file' device='disk'>
      <driver name='qemu' type='{{.DataFormat}}' discard='unmap'/><source file='{{.Data}}'/><target dev='vdb' bus='virtio'/>
    </disk>
    {{if .Network}}<interface type='network'><source network='{{.Network}}'/><model type='virtio'/></interface>{{end}}
    {{if .Agent}}<channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>{{end}}
    <serial type='pty'><target port='0'/></serial>
    <memballoon model='none'/>
  </devices>
</domain>
`))

// Define makes a guest with disks of its own. It is off.
func (s *Site) Define(ctx context.Context, spec Spec) (Guest, error) {
	g := Guest{site: s, Name: spec.Name}
	if spec.Pool == "" {
		spec.Pool = Pool
	}
	disks, err := spec.Image.Clone(s.PoolDir(spec.Pool), spec.Name)
	if err != nil {
		return g, err
	}
	values := struct {
		Spec
		guest.Machine
		Type, DataFormat string
		Agent            bool
	}{spec, disks, s.DomainType(), "qcow2", spec.Image.Agent}
	if spec.RawData {
		raw := strings.TrimSuffix(disks.Data, ".qcow2") + ".raw"
		if err := convert(ctx, raw, disks.Data); err != nil {
			return g, err
		}
		values.Data, values.DataFormat = raw, "raw"
	}
	file, err := os.Create(s.path("etc", "define-"+spec.Name+".xml"))
	if err != nil {
		return g, fmt.Errorf("define %s: %w", spec.Name, err)
	}
	defer os.Remove(file.Name())
	if err := errors.Join(domain.Execute(file, values), file.Close()); err != nil {
		return g, fmt.Errorf("define %s: %w", spec.Name, err)
	}
	if _, err := s.Virsh(ctx, "define", file.Name()); err != nil {
		return g, err
	}
	_, err = s.Virsh(ctx, "pool-refresh", spec.Pool)
	return g, err
}

func convert(ctx context.Context, raw, qcow2 string) error {
	if _, err := runTool(ctx, "qemu-img", "convert", "-f", "qcow2", "-O", "raw", qcow2, raw); err != nil {
		return err
	}
	return os.Remove(qcow2)
}

// DomainType is libvirt's word for how guests run here.
func (s *Site) DomainType() string {
	if s.Accel == KVM {
		return "kvm"
	}
	return "qemu"
}

// Guest is a machine by its name, such as one that a restore made.
func (s *Site) Guest(name string) Guest { return Guest{site: s, Name: name} }

// Start boots the guest and waits until its shell answers.
func (g Guest) Start(ctx context.Context) error {
	if _, err := g.site.Virsh(ctx, "start", g.Name); err != nil {
		return err
	}
	return g.WaitReady(ctx)
}

// Shutdown asks the guest to shut down and waits until it is off.
func (g Guest) Shutdown(ctx context.Context) error {
	if _, err := g.site.Virsh(ctx, "shutdown", g.Name, "--mode", "acpi"); err != nil {
		return err
	}
	return g.WaitState(ctx, "shut off")
}

// Destroy pulls the plug; nil if the guest is off.
func (g Guest) Destroy(ctx context.Context) error {
	if state, err := g.State(ctx); err != nil || state == "shut off" {
		return err
	}
	_, err := g.site.Virsh(ctx, "destroy", g.Name)
	return err
}

// Remove ends the guest's existence, with its disks and everything that libvirt knows of it.
func (g Guest) Remove(ctx context.Context) error {
	disks, err := g.Disks(ctx)
	if err != nil {
		return err
	}
	if err := g.Destroy(ctx); err != nil {
		return err
	}
	if _, err := g.site.Virsh(ctx, "undefine", g.Name, "--nvram", "--checkpoints-metadata", "--snapshots-metadata"); err != nil {
		return err
	}
	for _, disk := range disks {
		if err := os.Remove(disk); err != nil {
			return fmt.Errorf("remove a disk of %s: %w", g.Name, err)
		}
	}
	return nil
}

// Disks are the image files, in the order of their targets.
func (g Guest) Disks(ctx context.Context) ([]string, error) {
	out, err := g.site.Virsh(ctx, "domblklist", g.Name, "--inactive")
	if err != nil {
		return nil, err
	}
	var disks []string
	for line := range strings.Lines(out) {
		if fields := strings.Fields(line); len(fields) == 2 && fields[1] != "-" {
			disks = append(disks, fields[1])
		}
	}
	return disks, nil
}

// State is libvirt's word: "running", "paused", "shut off".
func (g Guest) State(ctx context.Context) (string, error) {
	return g.site.Virsh(ctx, "domstate", g.Name)
}

// WaitState waits for a state.
func (g Guest) WaitState(ctx context.Context, want string) error {
	ctx, cancel := context.WithTimeout(ctx, ReadyLimit)
	defer cancel()
	for {
		state, err := g.State(ctx)
		if err == nil && state == want {
			return nil
		}
		select {
		case <-time.After(50 * time.Millisecond):
		case <-ctx.Done():
			return fmt.Errorf("wait until %s is %s, now %s: %w", g.Name, want, state, ctx.Err())
		}
	}
}

// KillQEMU ends the guest's process as a crash of the host would.
func (g Guest) KillQEMU(ctx context.Context) error {
	name := "guest=" + g.Name + ","
	pid, err := g.site.process(func(args []string) bool {
		return slices.ContainsFunc(args, func(arg string) bool { return strings.HasPrefix(arg, name) })
	})
	if err != nil {
		return fmt.Errorf("find the process of %s: %w", g.Name, err)
	}
	if err := unix.Kill(pid, unix.SIGKILL); err != nil {
		return fmt.Errorf("kill the process of %s: %w", g.Name, err)
	}
	return g.WaitState(ctx, "shut off")
}

// Leftovers lists what work on the guest may leave behind: checkpoints and snapshots in libvirt, bitmaps in its disks,
// every file in the pools and the scratch directory, and every other machine. Two equal lists before and after say that
// nothing was. The bitmaps of a running guest are asked of QEMU, since the image file does not know them yet.
func (g Guest) Leftovers(ctx context.Context) ([]string, error) {
	s := g.site
	var list []string
	for kind, command := range map[string]string{"checkpoint": "checkpoint-list", "snapshot": "snapshot-list"} {
		out, err := s.Virsh(ctx, command, g.Name, "--name")
		if err != nil {
			return nil, err
		}
		for _, name := range strings.Fields(out) {
			list = append(list, kind+" "+name)
		}
	}
	bitmaps, err := g.bitmaps(ctx)
	if err != nil {
		return nil, err
	}
	list = append(list, bitmaps...)
	for _, dir := range []string{Pool, SecondPool, "scratch"} {
		entries, err := os.ReadDir(s.path(dir))
		if err != nil {
			return nil, err
		}
		for _, entry := range entries {
			list = append(list, "file "+filepath.Join(dir, entry.Name()))
		}
	}
	machines, err := s.Virsh(ctx, "list", "--all", "--name")
	if err != nil {
		return nil, err
	}
	for _, name := range strings.Fields(machines) {
		list = append(list, "machine "+name)
	}
	slices.Sort(list)
	return list, nil
}

func (g Guest) bitmaps(ctx context.Context) ([]string, error) {
	state, err := g.State(ctx)
	if err != nil {
		return nil, err
	}
	if state != "shut off" {
		return g.liveBitmaps(ctx)
	}
	disks, err := g.Disks(ctx)
	if err != nil {
		return nil, err
	}
	var list []string
	for _, disk := range disks {
		out, err := runTool(ctx, "qemu-img", "info", "--output=json", disk)
		if err != nil {
			return nil, err
		}
		var info struct {
			Specific struct {
				Data struct{ Bitmaps []struct{ Name string } }
			} `json:"format-specific"`
		}
		if err := json.Unmarshal(out, &info); err != nil {
			return nil, fmt.Errorf("read what qemu-img says of %s: %w", disk, err)
		}
		for _, bitmap := range info.Specific.Data.Bitmaps {
			list = append(list, "bitmap "+filepath.Base(disk)+" "+bitmap.Name)
		}
	}
	return list, nil
}

func (g Guest) liveBitmaps(ctx context.Context) ([]string, error) {
	out, err := g.site.Virsh(ctx, "qemu-monitor-command", g.Name, `{"execute":"query-block"}`)
	if err != nil {
		return nil, err
	}
	var answer struct {
		Return []struct {
			Inserted *struct {
				File    string
				Bitmaps []struct{ Name string } `json:"dirty-bitmaps"`
			}
		}
	}
	if err := json.Unmarshal([]byte(out), &answer); err != nil {
		return nil, fmt.Errorf("read QEMU's block devices: %w", err)
	}
	var list []string
	for _, device := range answer.Return {
		if device.Inserted == nil {
			continue
		}
		for _, bitmap := range device.Inserted.Bitmaps {
			if bitmap.Name == "" {
				continue // of a block job, and gone with it
			}
			list = append(list, "bitmap "+filepath.Base(device.Inserted.File)+" "+bitmap.Name)
		}
	}
	return list, nil
}
