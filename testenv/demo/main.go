// Command demo shows Holdfast on a real virtual machine: a provider and a tenant
// start, the machine is backed up over TLS, writes, is backed up again,
// is destroyed with its disks, is restored, boots, and its own console shows
// what it wrote. Everything is done through the command line, as a customer
// would do it, and everything that was started is removed at the end.
//
//	make demo           half a minute after the first build
//	make demo KEEP=1    leaves it running and prints what to try
//
// Where libvirtd and QEMU cannot be had, a simulated hypervisor takes their
// place, and the demo says so.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/holdfast-dr/holdfast/testenv/stack"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	// Who presses Ctrl-C again does not wait for an orderly end. The processes
	// end with this one, and the next demo removes the files.
	context.AfterFunc(ctx, func() { signal.Reset(os.Interrupt) })
	flags := flag.NewFlagSet("demo", flag.ExitOnError)
	bin := flags.String("bin", "", "directory of the programs (default bin in the repository)")
	_ = flags.Parse(os.Args[1:]) // ends the program itself
	if err := run(ctx, *bin, os.Getenv("KEEP") != "" && os.Getenv("KEEP") != "0"); err != nil {
		fmt.Fprintln(os.Stderr, "\ndemo:", err)
		stop()
		os.Exit(1)
	}
}

// demo is one performance.
type demo struct {
	*stack.Stack
	dir   *directory
	stage stage
	step  int
	kit   string
	last  string // the newest point
}

// stage is the hypervisor that the demo plays on.
type stage interface {
	// describe says what it is, in a sentence.
	describe() string
	// boot makes the machine and waits until it works.
	boot(ctx context.Context) error
	// write lets the machine write, and returns what to look for afterwards.
	write(ctx context.Context, text string) error
	// destroy removes the machine and its disks.
	destroy(ctx context.Context) error
	// revive boots the restored machine and reads back what was written, from
	// its own console.
	revive(ctx context.Context, name, id string) (string, error)
	// endpoint is how the agent reaches it: plugin and settings.
	endpoint() (plugin string, settings []string)
	machine() string
	// visit is a command that lets a person change something in a machine, and
	// what to know about it.
	visit(name string) (command, hint string)
	close() error
}

func run(ctx context.Context, bin string, keep bool) (err error) {
	began := time.Now()
	if bin == "" {
		root, err := stack.Module()
		if err != nil {
			return err
		}
		bin = filepath.Join(root, "bin")
	}
	dir, err := newDirectory()
	if err != nil {
		return err
	}
	d := &demo{dir: dir, kit: filepath.Join(dir.path, "recovery-kit.txt")}
	defer func() {
		if err != nil && ctx.Err() != nil {
			err = errors.New("interrupted: removing everything that was started") // not what failed because of it
		}
		err = errors.Join(err, d.cleanUp())
	}()
	if err := d.prepare(ctx, bin); err != nil {
		return err
	}
	if err := d.play(ctx); err != nil {
		return err
	}
	fmt.Printf("\nDone in %.0f s. Nothing of the machine was left but what the provider kept, and the provider cannot read it.\n", time.Since(began).Seconds())
	if keep {
		return d.hold(ctx)
	}
	return nil
}

func (d *demo) say(format string, args ...any) {
	d.step++
	fmt.Printf("\n%d. %s\n", d.step, fmt.Sprintf(format, args...))
}

func (d *demo) show(name, format string, args ...any) {
	fmt.Printf("   %-22s %s\n", name, fmt.Sprintf(format, args...))
}

func (d *demo) prepare(ctx context.Context, bin string) error {
	d.say("A hypervisor with a machine")
	var err error
	if d.stage, err = chooseStage(ctx, d.dir.path); err != nil {
		return err
	}
	d.show("hypervisor", "%s", d.stage.describe())
	began := time.Now()
	if err := d.stage.boot(ctx); err != nil {
		return err
	}
	d.show("the machine works", "after %.1f s", time.Since(began).Seconds())

	d.say("A provider and a tenant's agent")
	if d.Stack, err = stack.New(stack.Options{Dir: filepath.Join(d.dir.path, "s"), Bin: bin}); err != nil {
		return err
	}
	if err := d.StartServer(ctx); err != nil {
		return err
	}
	d.show("provider", "holdfast server -dev, one TLS port: %s", d.Address)
	if err := d.StartAgent(ctx); err != nil {
		return err
	}
	if err := d.Connect(ctx, d.kit); err != nil {
		return err
	}
	d.show("agent enrolled", "with a one-time token, after checking the CA's fingerprint")
	d.show("", "%s", d.Fingerprint)
	d.show("recovery kit", "written to %s: the keys stay at the tenant", d.kit)
	plugin, settings := d.stage.endpoint()
	add := []string{"endpoint", "add", "lab", "--plugin", plugin}
	for _, s := range settings {
		add = append(add, "--set", s)
	}
	for _, command := range [][]string{
		{"plugin", "enable", plugin},
		add,
		{"job", "create", "nightly", "--endpoint", "lab", "--repository", "backups", "--all", "--schedule", "0 2 * * *", "--keep-points", "14"},
	} {
		if _, err := d.Run(ctx, command...); err != nil {
			return err
		}
	}
	d.show("job nightly", "every machine there, every night at two, 14 points kept")
	return nil
}

// result is what a run says of itself.
type result struct {
	State    string
	Machines []machineResult
	Restored struct {
		Machine      string
		MachineID    string  `json:"machine_id"`
		WrittenBytes int64   `json:"written_bytes"`
		SizeBytes    int64   `json:"size_bytes"`
		Seconds      float64 `json:"seconds"`
	}
	Warnings []string
}

type machineResult struct {
	Point, Kind, Consistency string
	SizeBytes                int64 `json:"size_bytes"`
	ReadBytes                int64 `json:"read_bytes"`
	StoredBytes              int64 `json:"stored_bytes"`
	Seconds                  float64
	Warnings                 []string
}

const (
	message      = "written between the two backups"
	restoredName = "risen"
)

func (d *demo) play(ctx context.Context) error {
	d.say("First backup: everything that the disks hold")
	full, err := d.backup(ctx)
	if err != nil {
		return err
	}
	d.figures(full)

	d.say("The machine writes, and is backed up again: only what changed")
	if err := d.stage.write(ctx, message); err != nil {
		return err
	}
	next, err := d.backup(ctx)
	if err != nil {
		return err
	}
	d.last = next.Point
	d.figures(next)
	d.show("beside the full one", "%s read instead of %s, %s sent instead of %s", size(next.ReadBytes), size(full.ReadBytes), size(next.StoredBytes), size(full.StoredBytes))

	d.say("Disaster: the machine and its disks are destroyed")
	if err := d.stage.destroy(ctx); err != nil {
		return err
	}
	d.show(d.stage.machine(), "is gone")

	d.say("Restore as a new machine")
	var restored result
	if err := d.JSON(ctx, &restored, "restore", "machine", next.Point, "--endpoint", "lab", "--name", restoredName, "--wait"); err != nil {
		return err
	}
	r := restored.Restored
	d.show("restored", "%s of disks, %s of data, in %.1f s", size(r.SizeBytes), size(r.WrittenBytes), r.Seconds)

	d.say("It boots, and says for itself what it remembers")
	began := time.Now()
	text, err := d.stage.revive(ctx, restoredName, r.MachineID)
	if err != nil {
		return err
	}
	if text != message {
		return fmt.Errorf("the restored machine remembers %q, want %q", text, message)
	}
	d.show("its console, "+fmt.Sprintf("%.1f s", time.Since(began).Seconds()), "%q", text)

	return d.epilogue(ctx)
}

func (d *demo) backup(ctx context.Context) (machineResult, error) {
	var r result
	if err := d.JSON(ctx, &r, "job", "run", "nightly", "--wait"); err != nil {
		return machineResult{}, err
	}
	if len(r.Machines) != 1 || r.Machines[0].Point == "" {
		return machineResult{}, fmt.Errorf("the backup made no point: %+v", r)
	}
	return r.Machines[0], nil
}

func (d *demo) figures(m machineResult) {
	d.show("point", "%s, %s, %s", m.Point, m.Kind, m.Consistency)
	d.show("disks", "%s", size(m.SizeBytes))
	d.show("read, sent", "%s, %s (compressed and sealed) in %.1f s", size(m.ReadBytes), size(m.StoredBytes), m.Seconds)
	for _, w := range m.Warnings {
		d.show("note", "%s", w)
	}
}

func (d *demo) epilogue(ctx context.Context) error {
	d.say("What each side sees")
	points, err := d.Run(ctx, "point", "list")
	if err != nil {
		return err
	}
	fmt.Print(indent(points))
	quota, err := d.Provider(ctx, "cloud-repository", "list")
	if err != nil {
		return err
	}
	fmt.Println("   and the provider, who cannot open any of it:")
	fmt.Print(indent(quota))
	return nil
}

func indent(text string) string {
	var b strings.Builder
	for line := range strings.Lines(text) {
		b.WriteString("   " + line)
	}
	return b.String()
}

func size(n int64) string {
	switch {
	case n >= 1<<30:
		return fmt.Sprintf("%.1f GiB", float64(n)/(1<<30))
	case n >= 1<<20:
		return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20))
	}
	return fmt.Sprintf("%.0f KiB", float64(n)/(1<<10))
}

// hold keeps everything running until it is interrupted, and says what to try.
func (d *demo) hold(ctx context.Context) error {
	visit, hint := d.stage.visit(restoredName)
	fmt.Printf(`
Everything goes on running until you press Ctrl-C, which removes all of it.

  provider      %[3]s, its log %[4]s
  agent         socket %[2]s, its log %[5]s
  hypervisor    %[6]s
  everything    %[7]s

To try it, in another terminal of the same user:

  export PATH=%[1]s:$PATH HOLDFAST_SOCKET=%[2]s

As the tenant:

  holdfast agent status
  holdfast machine list
  %[8]s
      %[9]s
  holdfast job run nightly --wait
  holdfast point list
  holdfast point verify %[10]s
  holdfast restore machine %[10]s --endpoint lab --name again --wait
  holdfast restore disk %[10]s --disk vda --format qcow2 --to vda.qcow2 --wait

As the provider:

  set -a; . %[11]s; set +a
  holdfast tenant list
  holdfast cloud-repository list
  holdfast repository verify
  holdfast audit

`, d.Bin, d.Socket(), d.Address, d.Server.Log, d.Agent.Log, d.hypervisor(), d.dir.path, visit, hint, d.last,
		filepath.Join(d.ServerData(), "dev.env"))
	select {
	case <-ctx.Done():
		fmt.Println("\nRemoving everything.")
		return nil
	case <-d.Server.Done():
		return fmt.Errorf("the provider's server has ended: %s", d.Server.Output())
	case <-d.Agent.Done():
		return fmt.Errorf("the agent has ended: %s", d.Agent.Output())
	}
}

// hypervisor is where it is reached.
func (d *demo) hypervisor() string {
	_, settings := d.stage.endpoint()
	_, where, _ := strings.Cut(settings[0], "=")
	return where
}

// cleanUp removes everything that the demo started.
func (d *demo) cleanUp() error {
	var failures []error
	if d.Stack != nil {
		failures = append(failures, d.Close())
	}
	if d.stage != nil {
		failures = append(failures, d.stage.close())
	}
	return errors.Join(append(failures, d.dir.remove())...)
}
