// Command holdfast-plugin-hostile is a plugin that does what no plugin should,
// for the tests of the host. Its setting "mode" says what.
package main

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"syscall"

	"github.com/holdfast-dr/holdfast/sdk"
	"github.com/holdfast-dr/holdfast/sdk/plugin"
)

// version is written into the program by the tests, which make many of one
// build.
var version = strings.TrimSpace(written)

const written = "version: written by the tests   "

type config struct {
	Mode string `json:"mode" help:"what to do wrong"`
	Text string `json:"text" help:"with what"`
}

// size is that of the only disk.
const size = 16 << 20

func main() {
	// "refuse" is a version that answers no, "die" one that starts nowhere, and
	// "raw" one that speaks the protocol without the sdk.
	if strings.HasPrefix(version, "raw") && len(os.Args) == 1 {
		raw()
		return
	}
	plugin.Serve(plugin.Author{
		Name: "hostile", Version: version, Config: &config{}, Type: (*platform)(nil),
		Open: func(_ context.Context, c any) (sdk.Platform, error) { return open(*c.(*config)) },
	})
}

func open(c config) (sdk.Platform, error) {
	switch {
	case strings.HasPrefix(version, "refuse"):
		return nil, errors.New("this version cannot work")
	case strings.HasPrefix(version, "die"):
		os.Exit(3)
	}
	switch c.Mode {
	case "flood":
		line := []byte(strings.Repeat("all work and no play ", 20) + "\n")
		go func() {
			for {
				_, _ = os.Stderr.Write(line)
			}
		}()
	case "line": // without an end
		go func() {
			part := []byte(strings.Repeat("x", 1<<16))
			for {
				_, _ = os.Stderr.Write(part)
			}
		}()
	case "fork", "hide":
		child := exec.Command("sleep", "3600")
		if c.Mode == "hide" {
			child.Env = []string{"NOTHING=here"}
		}
		child.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
		if err := child.Start(); err != nil {
			return nil, err
		}
		return &platform{config: c, child: child.Process.Pid}, nil
	case "stubborn":
		signal.Ignore(syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP)
	case "deaf": // to the end of its host
		_ = os.Stdin.Close()
	}
	return &platform{config: c}, nil
}

type platform struct {
	config
	child int
}

var (
	_ sdk.Source        = (*platform)(nil)
	_ sdk.ChangeTracker = (*platform)(nil)
)

// hang is longer than any test.
func hang() { select {} }

var machine = sdk.Machine{ID: "m1", Name: "web", Disks: []sdk.Disk{{ID: "vda", SizeBytes: size}}}

func (p *platform) Machines(context.Context) iter.Seq2[sdk.Machine, error] {
	return func(yield func(sdk.Machine, error) bool) {
		switch p.Mode {
		case "hang":
			hang()
		case "negative":
			yield(sdk.Machine{ID: "m1", Disks: []sdk.Disk{{ID: "vda", SizeBytes: -1}}}, nil)
			return
		case "trickle":
			yield(machine, nil)
			hang()
		}
		yield(machine, nil)
	}
}

func (p *platform) Probe(ctx context.Context, _ sdk.Subject) (sdk.Report, error) {
	switch p.Mode {
	case "say":
		plugin.Log(ctx).Warn("look here", "disks", 3)
	case "hang":
		hang()
	case "leak":
		leak()
	case "die":
		os.Exit(3)
	case "status":
		status, err := os.ReadFile("/proc/self/status")
		if err != nil {
			return sdk.Report{}, err
		}
		limits, err := os.ReadFile("/proc/self/limits")
		return sdk.Report{Product: string(status) + string(limits)}, err
	case "rewrite":
		// The file is exchanged, not changed: a running program is busy.
		if err := os.Rename(p.Text, p.Text+".old"); err != nil {
			return sdk.Report{}, err
		}
		return sdk.Report{}, os.WriteFile(p.Text, []byte("#!/bin/sh\n"), 0o755)
	case "impostor":
		// A line that looks as if another plugin had said it.
		plugin.Log(context.Background()).Error("all is well", "plugin", "sim", "endpoint", "good", "pid", 1)
	}
	if p.child != 0 {
		return sdk.Report{Product: fmt.Sprint(p.child)}, nil
	}
	return sdk.Report{Product: "hostile"}, nil
}

// leak allocates and writes until it is ended.
func leak() {
	for kept := [][]byte{}; ; {
		block := make([]byte, 16<<20)
		for i := 0; i < len(block); i += 4096 {
			block[i] = 1
		}
		kept = append(kept, block)
	}
}

func (p *platform) Cancel(context.Context, string) error { return nil }

func (p *platform) Close() error {
	if p.Mode == "stubborn" {
		hang()
	}
	return nil
}

func (p *platform) Snapshot(_ context.Context, _ sdk.Op, req sdk.SnapshotRequest) (sdk.Snapshot, error) {
	m := machine
	if p.Mode == "other" {
		m.ID = "m2"
	}
	return sdk.Snapshot{ID: "s1", Machine: m, Achieved: sdk.QuiesceNone, Marks: map[sdk.DiskID]sdk.Mark{"vda": []byte("m")}}, nil
}

func (p *platform) OpenDisk(context.Context, sdk.Snapshot, sdk.DiskID) (sdk.BlockReader, error) {
	switch p.Mode {
	case "unix", "tcp":
		// The settings must not name the address as it is.
		return &elsewhere{address: sdk.Address{Network: p.Mode, Addr: strings.ReplaceAll(p.Text, "|", ""), Export: "vda"}}, nil
	case "shrunk":
		return &disk{size: size / 2}, nil
	case "minus":
		return &elsewhere{disk: disk{size: -1}, address: sdk.Address{Network: "unix", Addr: "/nowhere"}}, nil
	case "sleepy":
		return &disk{size: size, hang: true}, nil
	}
	return &disk{size: size}, nil
}

func (p *platform) EndSnapshot(context.Context, sdk.Op, sdk.Snapshot, bool) error { return nil }

// Changed answers more extents than there can be.
func (p *platform) Changed(context.Context, sdk.Snapshot, sdk.DiskID) iter.Seq2[sdk.Extent, error] {
	return func(yield func(sdk.Extent, error) bool) {
		for off := int64(0); off < size; off++ {
			if !yield(sdk.Extent{Offset: off, Length: 1}, nil) {
				return
			}
		}
	}
}

func (p *platform) ReleaseMark(context.Context, sdk.Op, sdk.MachineID, sdk.DiskID, sdk.Mark) error {
	return nil
}

// disk is empty.
type disk struct {
	size int64
	hang bool
}

func (d *disk) Size() int64 { return d.size }

func (d *disk) ReadAt(p []byte, _ int64) (int, error) {
	if d.hang {
		hang()
	}
	clear(p)
	return len(p), nil
}

func (d *disk) Extents(_ context.Context, off, n int64) iter.Seq2[sdk.Extent, error] {
	return func(yield func(sdk.Extent, error) bool) { yield(sdk.Extent{Offset: off, Length: n}, nil) }
}

func (d *disk) Close() error { return nil }

// elsewhere is a disk whose bytes are somewhere else.
type elsewhere struct {
	disk
	address sdk.Address
}

func (e *elsewhere) Size() int64 {
	if e.size == 0 {
		return size
	}
	return e.size
}

func (e *elsewhere) Address() sdk.Address { return e.address }
