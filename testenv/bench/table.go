package main

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"
)

// row is one measurement.
type row struct {
	part   string
	repeat int
	peer   string
	op     operation
	account
	stored int64 // in the repository afterwards, bytes
}

// seconds is the wall time that counts: of a restore until it is on disk.
func (r row) seconds() float64 {
	if r.op == opRestore {
		return (r.wall + r.sync).Seconds()
	}
	return r.wall.Seconds()
}

// rows are all measurements; each is written to the TSV when it is there.
type rows struct {
	all []row
	tsv *os.File
}

func newRows(path string) (*rows, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, err
	}
	f, err := os.Create(path)
	if err != nil {
		return nil, err
	}
	fmt.Fprintln(f, strings.Join([]string{"part", "repeat", "tool", "operation", "wall_s", "sync_s", "cpu_client_s", "cpu_plugin_s", "cpu_server_s",
		"peak_client_mib", "peak_plugin_mib", "peak_server_mib", "stored_mib"}, "\t"))
	return &rows{tsv: f}, nil
}

func (rs *rows) close() error {
	progress("every measurement is in %s", rs.tsv.Name())
	return errors.Join(rs.tsv.Sync(), rs.tsv.Close())
}

func (rs *rows) add(r row) {
	rs.all = append(rs.all, r)
	fmt.Fprintf(rs.tsv, "%s\t%d\t%s\t%s\t%.3f\t%.3f\t%.2f\t%.2f\t%.2f\t%.1f\t%.1f\t%.1f\t%.1f\n", r.part, r.repeat, r.peer, r.op,
		r.wall.Seconds(), r.sync.Seconds(), r.cpu[client].Seconds(), r.cpu[plugin].Seconds(), r.cpu[server].Seconds(),
		inMiB(r.peak[client]), inMiB(r.peak[plugin]), inMiB(r.peak[server]), inMiB(r.stored))
}

func inMiB(n int64) float64 { return float64(n) / mib }

// of are the measurements of one tool and operation, in the order of repeats.
func (rs *rows) of(part, peer string, op operation) (found []row) {
	for _, r := range rs.all {
		if r.part == part && r.peer == peer && r.op == op {
			found = append(found, r)
		}
	}
	return found
}

func median(values []float64) float64 {
	if len(values) == 0 {
		return 0
	}
	v := slices.Sorted(slices.Values(values))
	return (v[(len(v)-1)/2] + v[len(v)/2]) / 2
}

func medianOf(rows []row, value func(row) float64) float64 {
	var values []float64
	for _, r := range rows {
		values = append(values, value(r))
	}
	return median(values)
}

// paired is the median of the ratios, repeat by repeat: how many times more the
// other tool needs.
func paired(rows, others []row, value func(row) float64) (ratio float64, ok bool) {
	var ratios []float64
	for _, r := range rows {
		for _, other := range others {
			if other.repeat == r.repeat {
				ratios = append(ratios, value(other)/max(value(r), 0.001))
			}
		}
	}
	return median(ratios), len(ratios) > 0
}

func wall(r row) float64 { return r.seconds() }
func cpu(r row) float64  { return r.cpuTotal().Seconds() }

// print writes the table of a part, and the targets that were met or not.
func (rs *rows) print(c compare) {
	fmt.Printf("\n%s\nMedians of %d. The last two columns: how many times as much %s needs.\n\n", c.title, c.repeats, reference)
	t := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(t, "operation\ttool\twall s\tCPU s\tclient MiB\tplugin MiB\tserver MiB\tstored MiB\t× wall\t× CPU\t")
	for _, op := range c.ops {
		others := rs.of(c.title, reference, op)
		for _, k := range c.peers {
			found := rs.of(c.title, k.name, op)
			if len(found) == 0 {
				continue
			}
			fmt.Fprintf(t, "%s\t%s\t%.2f\t%.2f\t%s\t%s\t%s\t%.0f\t%s\t%s\t\n", op, k.name, medianOf(found, wall), medianOf(found, cpu),
				memory(found, client), memory(found, plugin), memory(found, server), medianOf(found, func(r row) float64 { return inMiB(r.stored) }),
				ratioText(found, others, wall), ratioText(found, others, cpu))
		}
	}
	_ = t.Flush() // to the terminal
	fmt.Println()
	for _, k := range c.peers {
		if len(rs.of(c.title, k.name, c.ops[0])) > 0 {
			fmt.Printf("%-16s %s\n", k.name, k.note)
		}
	}
	fmt.Println("Wall of a restore counts until it is on disk. Memory is the highest of the largest process.")
	printVerdicts(rs.judge(c))
}

func memory(rows []row, r role) string {
	top := int64(0)
	for _, x := range rows {
		top = max(top, x.peak[r])
	}
	if top == 0 {
		return "-"
	}
	return fmt.Sprintf("%.0f", inMiB(top))
}

func ratioText(rows, others []row, value func(row) float64) string {
	ratio, ok := paired(rows, others, value)
	if !ok {
		return "-"
	}
	return fmt.Sprintf("%.2f", ratio)
}

// target is a figure to reach: the least that counts as done, and the goal.
type target struct {
	what        string
	op          operation // that has to be measured for it
	least, goal float64
	atMost      bool // the figure is a limit
	unit        string
	// value finds the figure for one of our builds.
	value func(rs *rows, part, peer string) (float64, bool)
}

func faster(what string, op operation, value func(row) float64, least, goal float64) target {
	return target{what: what, op: op, least: least, goal: goal, unit: "×", value: func(rs *rows, part, peer string) (float64, bool) {
		return paired(rs.of(part, peer, op), rs.of(part, reference, op), value)
	}}
}

func smaller(what string, op operation, least, goal float64) target {
	return target{what: what, op: op, least: least, goal: goal, atMost: true, unit: "×", value: func(rs *rows, part, peer string) (float64, bool) {
		ratio, ok := paired(rs.of(part, peer, op), rs.of(part, reference, op), func(r row) float64 { return float64(r.stored) })
		return 1 / max(ratio, 0.001), ok
	}}
}

// within is a limit of memory in every operation that was measured.
func within(what string, r role, limit float64) target {
	return target{what: what, least: limit, goal: limit, atMost: true, unit: " MiB", value: func(rs *rows, part, peer string) (float64, bool) {
		top, found := int64(0), false
		for _, x := range rs.all {
			if x.part == part && x.peer == peer {
				top, found = max(top, x.peak[r]), true
			}
		}
		return inMiB(top), found
	}}
}

var memoryTargets = []target{
	within("memory of the agent", client, 128),
	within("memory of the server", server, 256),
}

var pairTargets = append([]target{
	faster("full, wall", opFull, wall, 2, 2.5),
	faster("full, CPU", opFull, cpu, 2, 2.5),
	faster("unchanged, wall", opUnchanged, wall, 3, 5),
	faster("unchanged, CPU", opUnchanged, cpu, 3, 5),
	faster("incremental, wall", opIncremental, wall, 6, 10),
	faster("incremental, CPU", opIncremental, cpu, 6, 10),
	faster("restore, wall", opRestore, wall, 1.3, 1.7),
	smaller("stored after the full", opFull, 1.2, 1.15),
	smaller("stored after the incremental", opIncremental, 1, 0.97),
}, memoryTargets...)

// verdict is a target and what was measured.
type verdict struct {
	peer string
	target
	figure float64
	result string
}

// The goals are those of the build with libzstd; without it the least has to be
// reached.
func (rs *rows) judge(c compare) (verdicts []verdict) {
	for _, t := range c.targets {
		if t.op != "" && !slices.Contains(c.ops, t.op) {
			continue
		}
		for _, peer := range []string{ours, oursGo} {
			if figure, ok := t.value(rs, c.title, peer); ok {
				verdicts = append(verdicts, verdict{peer, t, figure, t.result(figure, peer == ours)})
			}
		}
	}
	slices.SortStableFunc(verdicts, func(x, y verdict) int { return cmp.Compare(len(x.peer), len(y.peer)) })
	return verdicts
}

func (t target) result(figure float64, cgo bool) string {
	reached := func(mark float64) bool {
		if t.atMost {
			return figure <= mark
		}
		return figure >= mark
	}
	switch {
	case reached(t.goal):
		return "goal met"
	case !reached(t.least):
		return "NOT MET"
	case cgo:
		return "least met, goal not"
	default:
		return "least met"
	}
}

func printVerdicts(verdicts []verdict) {
	if len(verdicts) == 0 {
		return
	}
	fmt.Println()
	t := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "target\ttool\tleast\tgoal\tmeasured\t")
	for _, v := range verdicts {
		bound := "≥ "
		if v.atMost {
			bound = "≤ "
		}
		fmt.Fprintf(t, "%s\t%s\t%s%g%s\t%s%g%s\t%.2f%s\t%s\n", v.what, v.peer, bound, v.least, v.unit, bound, v.goal, v.unit, v.figure, v.unit, v.result)
	}
	_ = t.Flush() // to the terminal
}
