package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/holdfast-dr/holdfast/sdk"
	"github.com/holdfast-dr/holdfast/sdk/sim"
	"github.com/holdfast-dr/holdfast/testenv/stack"
)

// holdfast is our own: server, agent and plugin as processes of their own. The
// disk is one of the simulated hypervisor's, which tracks changes.
type holdfast struct {
	title   string
	dir     string
	bin     string
	pair    pair
	stack   *stack.Stack
	hv      *sim.Hypervisor
	machine sdk.Machine
	source  string        // files that a backup reads, or their directory
	out     *bytes.Buffer // of the command that runs
	point   string        // the latest
	kind    string        // of it
	disk    string        // what the hypervisor calls it
}

const machineName = "vm"

// newHoldfast makes the peer of one build; its programs are below the round's
// bin, in a directory of the build's name.
func newHoldfast(title string) func(*round) (peer, error) {
	return func(r *round) (peer, error) {
		return &holdfast{title: title, dir: filepath.Join(r.dir, title), bin: filepath.Join(r.bin, title), pair: r.pair}, nil
	}
}

// buildPlugin builds another plugin, beside the programs that are there.
func buildPlugin(ctx context.Context, bin, plugin string) error {
	return stack.Build(ctx, bin, nil, plugin)
}

// buildHoldfast builds the programs of one build.
func buildHoldfast(title, cgo string) func(ctx context.Context, bin string) error {
	return func(ctx context.Context, bin string) error {
		progress("building %s …", title)
		return stack.Build(ctx, filepath.Join(bin, title), []string{"CGO_ENABLED=" + cgo}, "sim")
	}
}

func (p *holdfast) name() string       { return p.title }
func (p *holdfast) repository() string { return p.stack.Repository() }
func (p *holdfast) restored() string   { return filepath.Join(p.dir, "restored.raw") }

func (p *holdfast) daemons() []daemon {
	return []daemon{
		{pid: p.stack.Server.PID(), role: server, children: server},
		{pid: p.stack.Agent.PID(), role: client, children: plugin},
	}
}

func (p *holdfast) stop() error {
	if p.stack == nil {
		return nil
	}
	return p.stack.Close()
}

func (p *holdfast) hypervisor() string { return filepath.Join(p.dir, "hypervisor") }

func (p *holdfast) start(ctx context.Context) (err error) {
	if p.hv, err = sim.Open(p.hypervisor()); err != nil {
		return err
	}
	p.machine, err = p.hv.CreateMachine(sim.MachineSpec{Name: machineName, DiskBytes: []int64{p.pair.sizeBytes}, State: sdk.StateRunning})
	if err != nil {
		return err
	}
	image, err := os.Stat(p.pair.day(1)) // the disk may be larger
	if err != nil {
		return err
	}
	if err := p.write(1, []extent{{0, image.Size()}}); err != nil {
		return err
	}
	p.source, p.disk = p.hypervisor(), p.machine.Disks[0].Name
	return p.connect(ctx, "sim", []string{"--set", "dir=" + p.hypervisor()})
}

// connect starts server and agent, and makes the job. The flags say more of it.
func (p *holdfast) connect(ctx context.Context, plugin string, settings []string, flags ...string) (err error) {
	if p.stack, err = stack.New(stack.Options{Dir: filepath.Join(p.dir, "s"), Bin: p.bin}); err != nil {
		return err
	}
	if err := startStack(ctx, p.stack, filepath.Join(p.dir, "kit.txt")); err != nil {
		return err
	}
	return makeJob(ctx, p.stack, plugin, settings, flags...)
}

// makeJob makes the job that backs the machine up.
func makeJob(ctx context.Context, s *stack.Stack, plugin string, settings []string, flags ...string) error {
	for _, command := range [][]string{
		{"plugin", "enable", plugin},
		append([]string{"endpoint", "add", "lab", "--plugin", plugin}, settings...),
		append([]string{"job", "create", "bench", "--endpoint", "lab", "--repository", "backups", "--machine", machineName, "--quiesce", "none"}, flags...),
	} {
		if _, err := s.Run(ctx, command...); err != nil {
			return err
		}
	}
	return nil
}

func startStack(ctx context.Context, s *stack.Stack, kit string) error {
	if err := s.StartServer(ctx); err != nil {
		return err
	}
	if err := s.StartAgent(ctx); err != nil {
		return err
	}
	return s.Connect(ctx, kit)
}

// write writes extents of a day's image to the machine's disk, as its guest
// would. What is zero there and was never written stays a hole.
func (p *holdfast) write(day int, extents []extent) error {
	f, err := os.Open(p.pair.day(day))
	if err != nil {
		return err
	}
	defer f.Close()
	buf, zeroes := make([]byte, mib), make([]byte, mib)
	for _, x := range extents {
		for at := x.offset; at < x.offset+x.length; at += mib {
			b := buf[:min(mib, x.offset+x.length-at)]
			if _, err := f.ReadAt(b, at); err != nil {
				return err
			}
			if day == 1 && bytes.Equal(b, zeroes[:len(b)]) {
				continue
			}
			if err := p.hv.WriteDisk(p.machine.ID, p.machine.Disks[0].ID, at, b); err != nil {
				return err
			}
		}
	}
	return nil
}

func (p *holdfast) ready(ctx context.Context, op operation) (*exec.Cmd, []string, error) {
	var err error
	input := p.source
	switch op {
	case opUnchanged:
		err = p.hv.LoseMarks(p.machine.ID)
	case opIncremental:
		err = p.write(2, p.pair.extents)
	case opRestore:
		input = p.repository()
	}
	return p.command(ctx, op), []string{input}, err
}

func (p *holdfast) command(ctx context.Context, op operation) *exec.Cmd {
	args := []string{"job", "run", "bench", "--wait"}
	if op == opRestore {
		args = []string{"restore", "disk", p.point, "--disk", p.disk, "--to", p.restored(), "--wait"}
	}
	p.out = new(bytes.Buffer)
	cmd := p.stack.Command(ctx, append(args, "-o", "json")...)
	cmd.Stdout = p.out
	return cmd
}

// check makes sure that the operation was the one that its name says.
func (p *holdfast) check(_ context.Context, op operation) error {
	var run struct {
		State    string
		Machines []struct {
			Point, Kind string
			Warnings    []string
		}
	}
	if err := json.Unmarshal(p.out.Bytes(), &run); err != nil {
		return fmt.Errorf("the run's answer: %w in %.300q", err, p.out.String())
	}
	if op == opRestore {
		return nil
	}
	if len(run.Machines) != 1 || run.Machines[0].Point == "" {
		return fmt.Errorf("the run made no point: %.300s", p.out.String())
	}
	p.point, p.kind = run.Machines[0].Point, run.Machines[0].Kind
	want := map[operation]string{opFull: "full", opUnchanged: "compare", opIncremental: "incremental"}[op]
	if p.kind != want {
		return &kindError{want: want, got: p.kind, warnings: run.Machines[0].Warnings}
	}
	return nil
}

// kindError says that a backup was another than it should have been.
type kindError struct {
	want, got string
	warnings  []string
}

func (e *kindError) Error() string {
	return fmt.Sprintf("the point is of kind %s, not %s; warnings: %q", e.got, e.want, e.warnings)
}
