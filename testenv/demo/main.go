// Command demo shows Holdfast on a real virtual machine: a provider and a tenant
// start, the machine is backed up over TLS, writes, is backed up again,
// is destroyed with its disks, is restored, boots, and its own console shows
// what it wrote. Everything is done through the command line, as a customer
// would do it, and everything that was started is removed at the end.
//
//	make demo           about a minute after the first build
//	make demo KEEP=1    leaves it running and prints what to try
//
// Where libvirtd and QEMU cannot be had, a simulated hypervisor takes their
// place, and the demo says so.
package main

import (
	"context"
	"errors"
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
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Getenv("KEEP") != "" && os.Getenv("KEEP") != "0"); err != nil {
		if ctx.Err() != nil {
			err = fmt.Errorf("interrupted: %w", err)
		}
		fmt.Fprintln(os.Stderr, "\ndemo:", err)
		stop()
		os.Exit(1)
	}
}

// demo is one performance.
type demo struct {
	*stack.Stack
	dir   string
	stage stage
	step  int
	full  machineResult
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
	close() error
}

func run(ctx context.Context, keep bool) (err error) {
	began := time.Now()
	dir, err := os.MkdirTemp("", "hf-demo-")
	if err != nil {
		return err
	}
	d := &demo{dir: dir}
	if keep {
		defer func() { err = errors.Join(err, d.hold(ctx, err)) }()
	}
	defer func() {
		if err != nil || !keep {
			err = errors.Join(err, d.cleanUp())
		}
	}()
	if err := d.prepare(ctx); err != nil {
		return err
	}
	if err := d.play(ctx); err != nil {
		return err
	}
	fmt.Printf("\nDone in %.0f s. Nothing of the machine was left but what the provider kept, and the provider cannot read it.\n", time.Since(began).Seconds())
	return nil
}

func (d *demo) say(format string, args ...any) {
	d.step++
	fmt.Printf("\n%d. %s\n", d.step, fmt.Sprintf(format, args...))
}

func (d *demo) show(name, format string, args ...any) {
	fmt.Printf("   %-22s %s\n", name, fmt.Sprintf(format, args...))
}

func (d *demo) prepare(ctx context.Context) error {
	root, err := stack.Module()
	if err != nil {
		return err
	}
	if d.stage, err = chooseStage(ctx, d.dir); err != nil {
		return err
	}
	d.say("A hypervisor with a machine: %s", d.stage.describe())
	began := time.Now()
	if err := d.stage.boot(ctx); err != nil {
		return err
	}
	d.show("the machine works", "after %.1f s", time.Since(began).Seconds())

	d.say("A provider and a tenant's agent")
	if d.Stack, err = stack.New(stack.Options{Dir: filepath.Join(d.dir, "s"), Bin: filepath.Join(root, "bin")}); err != nil {
		return err
	}
	if err := d.StartServer(ctx); err != nil {
		return err
	}
	d.show("provider", "holdfast server -dev, one TLS port: %s", d.Address)
	if err := d.StartAgent(ctx); err != nil {
		return err
	}
	kit := filepath.Join(d.dir, "recovery-kit.txt")
	if err := d.Connect(ctx, kit); err != nil {
		return err
	}
	d.show("agent enrolled", "with a one-time token, after checking the CA's fingerprint")
	d.show("", "%s", d.Fingerprint)
	d.show("recovery kit", "written to %s: the keys stay at the tenant", kit)
	plugin, settings := d.stage.endpoint()
	add := []string{"endpoint", "add", "lab", "--plugin", plugin}
	for _, s := range settings {
		add = append(add, "--set", s)
	}
	for _, command := range [][]string{
		{"plugin", "enable", plugin},
		add,
		{"job", "create", "nightly", "--endpoint", "lab", "--repository", "backups", "--machine", d.stage.machine(), "--schedule", "0 2 * * *", "--keep-points", "14"},
	} {
		if _, err := d.Run(ctx, command...); err != nil {
			return err
		}
	}
	d.show("job nightly", "machine %s, every night at two, 14 points kept", d.stage.machine())
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

const message = "written between the two backups"

func (d *demo) play(ctx context.Context) error {
	d.say("First backup: everything that the disks hold")
	full, err := d.backup(ctx)
	if err != nil {
		return err
	}
	d.full = full
	d.figures(full)

	d.say("The machine writes, and is backed up again: only what changed")
	if err := d.stage.write(ctx, message); err != nil {
		return err
	}
	next, err := d.backup(ctx)
	if err != nil {
		return err
	}
	d.figures(next)
	d.show("beside the full one", "%s read instead of %s, %s sent instead of %s", size(next.ReadBytes), size(full.ReadBytes), size(next.StoredBytes), size(full.StoredBytes))

	d.say("Disaster: the machine and its disks are destroyed")
	if err := d.stage.destroy(ctx); err != nil {
		return err
	}
	d.show(d.stage.machine(), "is gone")

	d.say("Restore as a new machine")
	var restored result
	if err := d.JSON(ctx, &restored, "restore", "machine", next.Point, "--endpoint", "lab", "--name", "risen", "--wait"); err != nil {
		return err
	}
	r := restored.Restored
	d.show("restored", "%s of disks, %s of data, in %.1f s", size(r.SizeBytes), size(r.WrittenBytes), r.Seconds)

	d.say("It boots, and says for itself what it remembers")
	began := time.Now()
	text, err := d.stage.revive(ctx, "risen", r.MachineID)
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
func (d *demo) hold(ctx context.Context, failure error) error {
	if failure != nil || d.Stack == nil {
		return nil
	}
	root, err := stack.Module()
	if err != nil {
		return err
	}
	fmt.Printf(`
Everything goes on running until you press Ctrl-C. In another terminal, be the tenant:

  export PATH=%[1]s/bin:$PATH HOLDFAST_SOCKET=%[2]s
  holdfast agent status
  holdfast point list
  holdfast job run nightly

or the provider:

  set -a; . %[3]s/dev.env; set +a
  holdfast tenant list
  holdfast audit

`, root, d.Socket(), d.ServerData())
	<-ctx.Done()
	return d.cleanUp()
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
	return errors.Join(append(failures, os.RemoveAll(d.dir))...)
}
