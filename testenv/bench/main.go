// Command bench measures the whole way of a disk: agent to server over TLS on
// loopback, encryption at the source, durable commit, every process real.
//
//	bench [-size GIB] [-changed SHARE] [-cgo=false] [-keep] [-tsv FILE]
//
// It makes a deterministic disk, backs it up in full, again without a change,
// after writing to a share of it, and restores it to a file that is compared
// byte by byte. For each it prints wall time, the CPU time of all processes, the
// largest memory that agent, plugin and server ever had, what was read, sent
// and stored, and the ratio to the full backup of the same run.
package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/holdfast-dr/holdfast/sdk"
	"github.com/holdfast-dr/holdfast/sdk/sim"
	"github.com/holdfast-dr/holdfast/testenv/stack"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	var o options
	flag.Int64Var(&o.gib, "size", 2, "size of the disk, GiB")
	flag.Float64Var(&o.changed, "changed", 0.028, "share of the disk that changes before the incremental")
	flag.BoolVar(&o.cgo, "cgo", true, "build with libzstd; false: pure Go")
	flag.BoolVar(&o.sparse, "sparse", false, "a disk of zeroes but for its first GiB, to see memory on large disks")
	flag.BoolVar(&o.keep, "keep", false, "leave the directory behind")
	flag.StringVar(&o.tsv, "tsv", "", "write the figures to this file, too")
	flag.Parse()
	if err := o.run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		stop()
		os.Exit(1)
	}
}

type options struct {
	gib          int64
	changed      float64
	cgo          bool
	sparse, keep bool
	tsv          string
}

// figures are what one operation took.
type figures struct {
	name                     string
	wall, cpu                time.Duration
	agent, plugin, server    int64 // peak memory, bytes
	read, sent, stored, repo int64
}

func (o options) run(ctx context.Context) (err error) {
	dir, err := os.MkdirTemp("", "hf-bench-")
	if err != nil {
		return err
	}
	if o.keep {
		fmt.Println("directory:", dir)
	} else {
		defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	}
	b, err := o.prepare(ctx, dir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.stack.Close()) }()
	all, err := b.measure(ctx)
	if len(all) > 0 {
		err = errors.Join(err, o.print(all))
	}
	return err
}

type bench struct {
	options
	dir     string
	stack   *stack.Stack
	hv      *sim.Hypervisor
	machine sdk.Machine
	image   image
}

const machineName = "bench"

func (o options) prepare(ctx context.Context, dir string) (*bench, error) {
	b := &bench{options: o, dir: dir, image: image{seed: 1, size: o.gib << 30}}
	bin := filepath.Join(dir, "bin")
	cgo := "CGO_ENABLED=1"
	if !o.cgo {
		cgo = "CGO_ENABLED=0"
	}
	fmt.Println("building the programs …")
	if err := stack.Build(ctx, bin, []string{cgo}, "sim"); err != nil {
		return nil, err
	}
	hypervisor := filepath.Join(dir, "hypervisor")
	var err error
	if b.hv, err = sim.Open(hypervisor); err != nil {
		return nil, err
	}
	fmt.Printf("making a disk of %d GiB …\n", o.gib)
	if err := b.fill(); err != nil {
		return nil, err
	}
	if b.stack, err = stack.New(stack.Options{Dir: filepath.Join(dir, "s"), Bin: bin}); err != nil {
		return nil, err
	}
	if err := b.start(ctx, hypervisor); err != nil {
		return nil, errors.Join(err, b.stack.Close())
	}
	return b, nil
}

func (b *bench) fill() error {
	m, err := b.hv.CreateMachine(sim.MachineSpec{Name: machineName, DiskBytes: []int64{b.image.size}, State: sdk.StateRunning})
	if err != nil {
		return err
	}
	b.machine = m
	buf := make([]byte, segment)
	segments := b.image.segments()
	if b.sparse {
		segments = min(segments, 1024)
	}
	for i := range segments {
		if b.image.read(buf, i) {
			if err := b.hv.WriteDisk(m.ID, m.Disks[0].ID, i*segment, buf); err != nil {
				return err
			}
		}
	}
	return nil
}

func (b *bench) start(ctx context.Context, hypervisor string) error {
	if err := b.stack.StartServer(ctx); err != nil {
		return err
	}
	if err := b.stack.StartAgent(ctx); err != nil {
		return err
	}
	if err := b.stack.Connect(ctx, filepath.Join(b.dir, "kit.txt")); err != nil {
		return err
	}
	for _, command := range [][]string{
		{"plugin", "enable", "sim"},
		{"endpoint", "add", "lab", "--plugin", "sim", "--set", "dir=" + hypervisor},
		{"job", "create", "bench", "--endpoint", "lab", "--repository", "backups", "--machine", machineName, "--quiesce", "none"},
	} {
		if _, err := b.stack.Run(ctx, command...); err != nil {
			return err
		}
	}
	return nil
}

// run is what a run answers, as far as it is of interest here.
type run struct {
	State    string
	Machines []struct {
		Point       string
		ReadBytes   int64 `json:"read_bytes"`
		SentBytes   int64 `json:"sent_bytes"`
		StoredBytes int64 `json:"stored_bytes"`
		Warnings    []string
	}
	Restored struct {
		WrittenBytes int64 `json:"written_bytes"`
	}
}

func (b *bench) measure(ctx context.Context) ([]figures, error) {
	var all []figures
	var last run
	backup := func(name string) error {
		f, r, err := b.operation(ctx, name, "job", "run", "bench", "--wait")
		if err != nil {
			return err
		}
		if len(r.Machines) != 1 || r.Machines[0].Point == "" {
			return fmt.Errorf("%s: the run made no point", name)
		}
		f.read, f.sent, f.stored = r.Machines[0].ReadBytes, r.Machines[0].SentBytes, r.Machines[0].StoredBytes
		all, last = append(all, f), r
		return nil
	}
	if err := backup("full"); err != nil {
		return all, err
	}
	if err := backup("unchanged"); err != nil {
		return all, err
	}
	if !b.sparse {
		err := b.image.changes(b.changed, func(c change) error {
			return b.hv.WriteDisk(b.machine.ID, b.machine.Disks[0].ID, c.offset, c.data)
		})
		if err != nil {
			return all, err
		}
		if err := backup("incremental"); err != nil {
			return all, err
		}
	}
	target := filepath.Join(b.dir, "restored.raw")
	f, r, err := b.operation(ctx, "restore", "restore", "disk", last.Machines[0].Point, "--to", target, "--wait")
	if err != nil {
		return all, err
	}
	f.read = r.Restored.WrittenBytes
	if err := b.compare(target); err != nil {
		return all, err
	}
	return append(all, f), nil
}

// operation runs one command and measures all processes around it.
func (b *bench) operation(ctx context.Context, name string, args ...string) (figures, run, error) {
	fmt.Printf("%s …\n", name)
	before, err := b.usage()
	if err != nil {
		return figures{}, run{}, err
	}
	var r run
	began := time.Now()
	if err := b.stack.JSON(ctx, &r, args...); err != nil {
		return figures{}, run{}, fmt.Errorf("%s: %w", name, err)
	}
	f := figures{name: name, wall: time.Since(began)}
	after, err := b.usage()
	if err != nil {
		return figures{}, run{}, err
	}
	f.agent, f.plugin, f.server = after.agent, after.plugin, after.server
	f.cpu = after.cpu - before.cpu
	f.repo, err = sizeOf(b.stack.Repository())
	return f, r, err
}

func (b *bench) usage() (figures, error) {
	server, err1 := b.stack.Server.Usage()
	agent, err2 := b.stack.Agent.Usage()
	children, err3 := b.stack.Agent.Children()
	if err := errors.Join(err1, err2, err3); err != nil {
		return figures{}, err
	}
	f := figures{cpu: server.CPU + agent.CPU, agent: agent.Peak, server: server.Peak}
	for _, u := range children {
		f.cpu += u.CPU
		f.plugin = max(f.plugin, u.Peak)
	}
	return f, nil
}

// sizeOf is what a directory takes on disk.
func sizeOf(dir string) (total int64, err error) {
	err = filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		info, err := d.Info()
		if err == nil {
			total += info.Size()
		}
		return err
	})
	return total, err
}

func (b *bench) compare(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	want, got := make([]byte, 4*segment), make([]byte, 4*segment)
	for off := int64(0); off < b.image.size; off += int64(len(want)) {
		n := min(int64(len(want)), b.image.size-off)
		if err := b.hv.ReadDisk(b.machine.ID, b.machine.Disks[0].ID, off, want[:n]); err != nil {
			return err
		}
		if _, err := f.ReadAt(got[:n], off); err != nil {
			return err
		}
		if !bytes.Equal(want[:n], got[:n]) {
			return fmt.Errorf("the restored disk differs from the source near byte %d", off)
		}
	}
	return nil
}

func (o options) print(all []figures) error {
	mib := func(n int64) string { return strconv.FormatFloat(float64(n)/(1<<20), 'f', 1, 64) }
	var rows [][]string
	for _, f := range all {
		rows = append(rows, []string{f.name, fmt.Sprintf("%.2f", f.wall.Seconds()), fmt.Sprintf("%.2f", f.cpu.Seconds()),
			fmt.Sprintf("%.3f", f.wall.Seconds()/all[0].wall.Seconds()), mib(f.agent), mib(f.plugin), mib(f.server),
			mib(f.read), mib(f.stored), mib(f.repo)})
	}
	header := []string{"operation", "wall s", "CPU s", "vs full", "agent MiB", "plugin MiB", "server MiB", "read MiB", "sent MiB", "repository MiB"}
	fmt.Printf("\n%d GiB, %.1f %% changed, TLS, encrypted at the source, durable commit; memory is each process's peak so far\n", o.gib, 100*o.changed)
	t := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', tabwriter.AlignRight)
	for _, row := range append([][]string{header}, rows...) {
		for _, c := range row {
			fmt.Fprint(t, c, "\t")
		}
		fmt.Fprintln(t)
	}
	if err := t.Flush(); err != nil || o.tsv == "" {
		return err
	}
	f, err := os.Create(o.tsv)
	if err != nil {
		return err
	}
	w := bufio.NewWriter(f)
	for _, row := range append([][]string{header}, rows...) {
		for i, c := range row {
			if i > 0 {
				fmt.Fprint(w, "\t")
			}
			fmt.Fprint(w, c)
		}
		fmt.Fprintln(w)
	}
	return errors.Join(w.Flush(), f.Close())
}
