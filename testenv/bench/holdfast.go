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
	out     *bytes.Buffer // of the command that runs
	point   string        // the latest
}

const machineName = "vm"

// newHoldfast makes the peer of one build; its programs are below the round's
// bin, in a directory of the build's name.
func newHoldfast(title string) func(*round) (peer, error) {
	return func(r *round) (peer, error) {
		return &holdfast{title: title, dir: filepath.Join(r.dir, title), bin: filepath.Join(r.bin, title), pair: r.pair}, nil
	}
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
		{pid: p.stack.Server.PID(), role: server},
		{pid: p.stack.Agent.PID(), role: client, roles: map[string]role{"holdfast-plugin": plugin}},
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
	if err := p.write(1, []extent{{0, p.pair.sizeBytes}}); err != nil {
		return err
	}
	if p.stack, err = stack.New(stack.Options{Dir: filepath.Join(p.dir, "s"), Bin: p.bin}); err != nil {
		return err
	}
	if err := startStack(ctx, p.stack, filepath.Join(p.dir, "kit.txt")); err != nil {
		return err
	}
	for _, command := range [][]string{
		{"plugin", "enable", "sim"},
		{"endpoint", "add", "lab", "--plugin", "sim", "--set", "dir=" + p.hypervisor()},
		{"job", "create", "bench", "--endpoint", "lab", "--repository", "backups", "--machine", machineName, "--quiesce", "none"},
	} {
		if _, err := p.stack.Run(ctx, command...); err != nil {
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
	args, input := []string{"job", "run", "bench", "--wait"}, p.hypervisor()
	switch op {
	case opUnchanged:
		err = p.hv.LoseMarks(p.machine.ID)
	case opIncremental:
		err = p.write(2, p.pair.extents)
	case opRestore:
		args, input = []string{"restore", "disk", p.point, "--to", p.restored(), "--wait"}, p.repository()
	}
	p.out = new(bytes.Buffer)
	cmd := p.stack.Command(ctx, append(args, "-o", "json")...)
	cmd.Stdout = p.out
	return cmd, []string{input}, err
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
	p.point = run.Machines[0].Point
	want := map[operation]string{opFull: "full", opUnchanged: "compare", opIncremental: "incremental"}[op]
	if got := run.Machines[0].Kind; got != want {
		return fmt.Errorf("the point is of kind %s, not %s; warnings: %q", got, want, run.Machines[0].Warnings)
	}
	return nil
}
