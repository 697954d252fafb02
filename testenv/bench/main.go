// Command bench measures Holdfast beside the backup tools that people know, in
// one run on one machine.
//
//	bench [-parts pair,big,…] [-peers a,b] [-ops a,b] [-repeat N] [-gib N] [-changed SHARE] [-tsv FILE] [-dir DIR]
//
// The Makefile passes BENCH, PEERS, OPS, REPEAT and GIB on:
//
//	make bench
//	make bench BENCH=large
//	make bench OPS=full PEERS=holdfast REPEAT=1      the fastest look at one operation
//
// The input is a pair of images of a machine's disk, made once and kept in the
// cache: an ext4 file system with programs and documents of this machine,
// databases, logs, what does not compress, files that are there twice, files
// that were deleted, and more than a third of nothing; on the second day 2.8 %
// are different. Each tool has a server of its own and backs the disk up in
// full, once more without a change, then on the second day, and restores that;
// the result is compared byte by byte. Operations of one repeat follow each
// other tool by tool, so that a machine that gets slower does so for all; before
// each one caches are dropped, its input is read once, and memory is touched.
//
// Wall time of a restore counts until the kernel has it on disk, since not every
// tool sees to that itself. CPU time is that of all processes that took part.
// Ratios are taken repeat by repeat; what is printed are medians.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	var o options
	var parts, peers, ops string
	var roundTrips, losses string
	var touch, mbit int64
	flag.StringVar(&parts, "parts", "pair", "what is measured: "+strings.Join(names(allParts), ", ")+`; "large" is all of it`)
	flag.StringVar(&peers, "peers", "", "tools, comma-separated (default all): "+strings.Join(names(kinds), ", "))
	flag.StringVar(&ops, "ops", "", "operations, comma-separated (default all): full, unchanged, incremental, restore")
	flag.IntVar(&o.repeat, "repeat", 0, "how often; medians are printed (default 3, of large parts 1)")
	flag.Int64Var(&o.gib, "gib", 4, "size of the disk of the part pair, GiB; disks of large parts grow with it")
	flag.Float64Var(&o.changed, "changed", 0.028, "share of that disk that is different on the second day")
	flag.StringVar(&roundTrips, "rtt", "50ms,100ms", "round trips of the lines of the part line")
	flag.StringVar(&losses, "loss", "0,0.001", "shares of packets that they lose")
	flag.StringVar(&o.lines.source, "source", "", "where its disk is: simulated, guest (default both)")
	flag.Int64Var(&mbit, "mbit", 200, "their rate, Mbit/s")
	flag.StringVar(&o.tsv, "tsv", filepath.Join("build", "bench.tsv"), "where every measurement is written")
	flag.StringVar(&o.dir, "dir", "", "work below this directory (default the one for temporary files)")
	flag.BoolVar(&o.keep, "keep", false, "leave repositories and logs behind")
	flag.Int64Var(&touch, touchFlag[1:], 0, "bench's own: touch so many bytes of memory, and end")
	flag.Parse()
	var err error
	switch {
	case touch > 0:
		err = touchMemory(touch)
	case flag.NArg() > 0:
		err = fmt.Errorf("unexpected argument %q; bench -help", flag.Arg(0))
	default:
		if err = o.lines.parse(roundTrips, losses, mbit); err != nil {
			break
		}
		if err = o.choose(parts, peers, ops); err == nil {
			err = o.run(ctx)
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		stop()
		os.Exit(1)
	}
}

type options struct {
	parts   []part
	peers   []kind
	ops     []operation
	repeat  int
	gib     int64
	changed float64
	lines   lines
	tsv     string
	dir     string
	keep    bool
}

// part is one table of the report.
type part struct {
	name string
	run  func(b *bench, ctx context.Context) error
}

func (p part) String() string { return p.name }
func (k kind) String() string { return k.name }

func names[T fmt.Stringer](all []T) (list []string) {
	for _, x := range all {
		list = append(list, x.String())
	}
	return list
}

// pick takes what is named in a list; all of it for an empty one.
func pick[T any](what, list string, all []T, name func(T) string) ([]T, error) {
	if list == "" {
		return all, nil
	}
	var chosen []T
	for want := range strings.SplitSeq(list, ",") {
		i := slices.IndexFunc(all, func(x T) bool { return name(x) == strings.TrimSpace(want) })
		if i < 0 {
			return nil, fmt.Errorf("there is no %s %q; bench -help lists them", what, want)
		}
		chosen = append(chosen, all[i])
	}
	return chosen, nil
}

func (o *options) choose(parts, peers, ops string) (err error) {
	if parts == "large" {
		parts = ""
	}
	if o.parts, err = pick("part", parts, allParts, part.String); err != nil {
		return err
	}
	if o.peers, err = pick("tool", peers, kinds, kind.String); err != nil {
		return err
	}
	o.ops, err = pick("operation", ops, operations, func(op operation) string { return string(op) })
	return err
}

// bench is a run.
type bench struct {
	options
	work string // directory of this run
	bin  string
	rows *rows
}

func (o options) run(ctx context.Context) (err error) {
	b := &bench{options: o}
	if o.dir != "" {
		if err := os.MkdirAll(o.dir, 0o755); err != nil {
			return err
		}
	}
	if b.work, err = os.MkdirTemp(o.dir, "hf-bench-"); err != nil {
		return err
	}
	if o.keep {
		progress("directory: %s", b.work)
	} else {
		defer func() { err = errors.Join(err, os.RemoveAll(b.work)) }()
	}
	b.bin = filepath.Join(b.work, "bin")
	if b.rows, err = newRows(o.tsv); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.rows.close()) }()
	for _, p := range o.parts {
		if err := p.run(b, ctx); err != nil {
			return fmt.Errorf("%s: %w", p.name, err)
		}
	}
	return nil
}

// repeats is how often a part is measured.
func (b *bench) repeats(usual int) int {
	if b.repeat > 0 {
		return b.repeat
	}
	return usual
}

// available builds what has to be built, and leaves out the peers that cannot
// be had, saying so.
func (b *bench) available(ctx context.Context, r *round, wanted []kind) (found []kind, err error) {
	for _, k := range wanted {
		if _, err := k.make(r); err != nil {
			progress("%s is left out: %v", k.name, err)
			continue
		}
		if k.build != nil {
			if _, err := os.Stat(filepath.Join(b.bin, k.name)); err != nil {
				if err := k.build(ctx, b.bin); err != nil {
					return nil, err
				}
			}
		}
		found = append(found, k)
	}
	if len(found) == 0 {
		return nil, errors.New("no tool is left to be measured")
	}
	return found, nil
}

// compare is a part in which tools back one pair of images up.
type compare struct {
	title   string
	recipe  recipe
	peers   []kind
	ops     []operation
	repeats int
	targets []target
}

func (b *bench) compare(ctx context.Context, c compare) error {
	images, err := makePair(ctx, c.recipe)
	if err != nil {
		return err
	}
	peers, err := b.available(ctx, &round{pair: images, bin: b.bin}, c.peers)
	if err != nil {
		return err
	}
	for n := range c.repeats {
		r := &round{dir: filepath.Join(b.work, fmt.Sprintf("r%d", n+1)), pair: images, bin: b.bin}
		if err := b.round(ctx, c, n+1, r, peers); err != nil {
			return err
		}
	}
	b.rows.print(c)
	return nil
}

// round measures every operation with every peer once, and removes what they
// made. A tool of somebody else's that fails is left out of the rest of the
// round, and said to be; one of ours ends the bench.
func (b *bench) round(ctx context.Context, c compare, n int, r *round, kinds []kind) (err error) {
	if !b.keep {
		defer func() { err = errors.Join(err, os.RemoveAll(r.dir)) }()
	}
	var peers []peer
	defer func() {
		for _, p := range peers {
			if fault := p.stop(); fault != nil {
				progress("%s: %v", p.name(), fault)
			}
		}
	}()
	for _, k := range kinds {
		p, err := k.make(r)
		if err != nil {
			return err
		}
		peers = append(peers, p)
		if err := p.start(ctx); err != nil {
			return fmt.Errorf("start %s: %w", p.name(), err)
		}
	}
	failed := make(map[string]bool)
	for _, op := range operations {
		measured := slices.Contains(c.ops, op)
		if !measured && !required(op, c.ops) {
			continue
		}
		for _, p := range peers {
			if failed[p.name()] {
				continue
			}
			row, err := b.measure(ctx, c, r, p, op, measured)
			if err != nil {
				err = fmt.Errorf("%s %s: %w", p.name(), op, err)
				if ctx.Err() != nil || strings.HasPrefix(p.name(), ours) {
					return err
				}
				progress("left out of the rest of round %d: %v", n, err)
				failed[p.name()] = true
				continue
			}
			if measured {
				row.part, row.repeat = c.title, n
				b.rows.add(row)
			}
		}
	}
	return nil
}

// required says whether others cannot be measured without this one.
func required(op operation, measured []operation) bool {
	return op == opFull && len(measured) > 0 && !slices.Equal(measured, []operation{opFull})
}

func (b *bench) measure(ctx context.Context, c compare, r *round, p peer, op operation, measured bool) (row, error) {
	cmd, inputs, err := p.ready(ctx, op)
	if err != nil {
		return row{}, err
	}
	if measured {
		if err := settle(ctx, inputs); err != nil {
			return row{}, err
		}
	}
	stderr := new(strings.Builder)
	cmd.Stderr = stderr
	a, err := measure(ctx, cmd, p.daemons())
	if err != nil {
		return row{}, fmt.Errorf("%w: %s", err, lastLine(stderr.String()))
	}
	if err := p.check(ctx, op); err != nil {
		return row{}, err
	}
	if op == opRestore {
		day := 1
		if slices.Contains(c.ops, opIncremental) {
			day = 2
		}
		if err := sameBytes(r.day(day), p.restored()); err != nil {
			return row{}, err
		}
	}
	stored, err := sizeOf(p.repository())
	progress("%-16s %-12s %7.2f s wall %7.2f s CPU", p.name(), op, a.wall.Seconds(), a.cpuTotal().Seconds())
	return row{peer: p.name(), op: op, account: a, stored: stored}, err
}

func progress(format string, args ...any) {
	fmt.Fprintf(os.Stderr, "%s "+format+"\n", append([]any{time.Now().Format(time.TimeOnly)}, args...)...)
}
