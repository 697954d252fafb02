package main

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"text/tabwriter"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/holdfast-dr/holdfast/sdk"
	"github.com/holdfast-dr/holdfast/sdk/sim"
	"github.com/holdfast-dr/holdfast/testenv/stack"
	"github.com/holdfast-dr/holdfast/testenv/wan"
)

// lines are what the long lines are like, over which a backup is compared with
// bare TLS connections. All have the same narrowest place, which two cores can
// fill.
type lines struct {
	roundTrips []time.Duration
	losses     []float64
	mbit       int64
	source     string // only this one; "": all
}

func (l *lines) parse(roundTrips, losses string, mbit int64) error {
	for text := range strings.SplitSeq(roundTrips, ",") {
		d, err := time.ParseDuration(text)
		if err != nil {
			return fmt.Errorf("round trip: %w", err)
		}
		l.roundTrips = append(l.roundTrips, d)
	}
	for text := range strings.SplitSeq(losses, ",") {
		share, err := strconv.ParseFloat(text, 64)
		if err != nil {
			return fmt.Errorf("loss: %w", err)
		}
		l.losses = append(l.losses, share)
	}
	l.mbit = mbit
	return nil
}

// all are the combinations.
func (l lines) all() (qualities []wan.Quality) {
	for _, loss := range l.losses {
		for _, roundTrip := range l.roundTrips {
			qualities = append(qualities, wan.Quality{Delay: roundTrip / 2, Rate: l.mbit * wan.Mbit, Loss: loss})
		}
	}
	return qualities
}

const (
	// mostLine is about what the disk of the part pair sends when all of it is
	// backed up.
	mostLine  = 1350 * mib
	leastLine = 64 * mib
	// lineTime is about how long one transfer takes at most: less is sent where a
	// line loses so much that it would take longer.
	lineTime = 2 * time.Minute
	// lineTarget is the share of what bare TLS connections get.
	lineTarget = 0.9
)

// overLines is a part: the way of a disk over a long line, as a share of what
// the same number of TLS connections gets there with the same bytes.
func (b *bench) overLines(ctx context.Context) error {
	if err := wan.Possible(); err != nil {
		progress("long lines are left out: %v", err)
		return nil
	}
	if _, err := b.available(ctx, &round{bin: b.bin}, kinds[:1]); err != nil {
		return err
	}
	sources := []lineSource{{"simulated", simulatedSource}}
	if missing := guestLacks(); missing != nil {
		progress("a real guest over long lines is left out: %v", missing)
	} else {
		if err := buildPlugin(ctx, filepath.Join(b.bin, ours), "libvirt"); err != nil {
			return err
		}
		sources = append(sources, lineSource{"guest", guestSource})
	}
	if sources = slices.DeleteFunc(sources, func(s lineSource) bool { return b.lines.source != "" && s.name != b.lines.source }); len(sources) == 0 {
		return fmt.Errorf("there is no source %q; simulated and guest are", b.lines.source)
	}
	var results []lineResult
	for _, q := range b.lines.all() {
		for repeat := range b.repeats(2) {
			for _, source := range sources {
				r, err := b.overLine(ctx, q, source, uint64(repeat+1))
				if err != nil {
					return fmt.Errorf("%s, round trip %s, loss %g %%: %w", source.name, 2*q.Delay, 100*q.Loss, err)
				}
				results = append(results, r)
			}
		}
	}
	printLines(results)
	return nil
}

// lineSource is where the disk is that is backed up over a line.
type lineSource struct {
	name string
	// open makes a machine with a disk of this size, and says how a job reads it.
	open func(ctx context.Context, dir string, size int64) (lineMachine, error)
}

// lineMachine is a machine, and how its job is made.
type lineMachine struct {
	plugin   string
	settings []string // of the endpoint
	flags    []string // of the job
	close    func() error
}

// fillLine writes what a disk of a line holds: a quarter databases, the rest is
// noise.
func fillLine(size int64, write func(at int64, b []byte) error) error {
	content := maker{random: rand.New(rand.NewPCG(2, 2))}
	buf := make([]byte, mib)
	for at := int64(0); at < size; at += mib {
		if at/mib%4 == 0 {
			content.pages(buf, uint64(at/dbPage))
		} else {
			content.noise(buf)
		}
		if err := write(at, buf); err != nil {
			return err
		}
	}
	return nil
}

func simulatedSource(_ context.Context, dir string, size int64) (lineMachine, error) {
	hypervisor := filepath.Join(dir, "hypervisor")
	hv, err := sim.Open(hypervisor)
	if err != nil {
		return lineMachine{}, err
	}
	m, err := hv.CreateMachine(sim.MachineSpec{Name: machineName, DiskBytes: []int64{size}, State: sdk.StateRunning})
	if err != nil {
		return lineMachine{}, err
	}
	err = fillLine(size, func(at int64, b []byte) error { return hv.WriteDisk(m.ID, m.Disks[0].ID, at, b) })
	return lineMachine{plugin: "sim", settings: []string{"--set", "dir=" + hypervisor}, close: func() error { return nil }}, err
}

// lineResult is one transfer in both ways.
type lineResult struct {
	wan.Quality
	source      string
	bytes       int64 // sealed
	connections int   // that Holdfast had open at most, and TLS alone
	ours, bare  time.Duration
	overrun     int64
}

func (r lineResult) share() float64 { return r.bare.Seconds() / r.ours.Seconds() }

func (b *bench) overLine(ctx context.Context, q wan.Quality, source lineSource, seed uint64) (result lineResult, err error) {
	dir := filepath.Join(b.work, "line")
	if !b.keep {
		defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	}
	line, err := wan.Open(wan.Options{Up: q, Down: q, Seed: seed})
	if err != nil {
		return result, err
	}
	defer func() { err = errors.Join(err, line.Close()) }()

	// What the line carries in a while says how large the disk may be: in so long
	// that the beginning, when TCP finds out what there is, is a small part.
	const probe, connections = 96 * mib, 8
	took, err := bareTLS(ctx, line, connections, func() (io.Reader, error) { return noiseReader(probe), nil })
	if err != nil {
		return result, err
	}
	size := int64(probe / took.Seconds() * lineTime.Seconds())
	size = max(leastLine, min(size, mostLine)) / mib * mib

	s := &holdfastLine{line: line, dir: dir, bin: filepath.Join(b.bin, ours), source: source}
	defer func() { err = errors.Join(err, s.stop()) }()
	if err := s.start(ctx, size); err != nil {
		return result, err
	}
	result = lineResult{Quality: q, source: source.name}
	if err := s.backup(ctx, &result); err != nil {
		return result, err
	}
	result.bare, err = bareTLS(ctx, line, result.connections, func() (io.Reader, error) { return packs(s.stack.Repository(), result.bytes) })
	result.overrun = line.Up.Stats().Overrun + line.Down.Stats().Overrun
	progress("%s, round trip %s, loss %g %%: %d MiB over %d connections: %.1f s, bare TLS %.1f s: %.0f %%", source.name, 2*q.Delay, 100*q.Loss,
		result.bytes/mib, result.connections, result.ours.Seconds(), result.bare.Seconds(), 100*result.share())
	return result, err
}

// holdfastLine is a provider at one end of the line and a tenant at the other.
type holdfastLine struct {
	line     *wan.Line
	dir, bin string
	source   lineSource
	machine  lineMachine
	stack    *stack.Stack
}

func (s *holdfastLine) stop() (err error) {
	if s.stack != nil {
		err = s.stack.Close()
	}
	if s.machine.close != nil {
		err = errors.Join(err, s.machine.close())
	}
	return err
}

func (s *holdfastLine) start(ctx context.Context, size int64) error {
	var err error
	if s.machine, err = s.source.open(ctx, s.dir, size); err != nil {
		return err
	}
	s.stack, err = stack.New(stack.Options{Dir: filepath.Join(s.dir, "s"), Bin: s.bin, Listen: s.line.Provider.AddressPort(6180),
		ServerPrefix: s.line.Provider.Prefix(), AgentPrefix: s.line.Tenant.Prefix()})
	if err != nil {
		return err
	}
	if err := startStack(ctx, s.stack, filepath.Join(s.dir, "kit.txt")); err != nil {
		return err
	}
	return makeJob(ctx, s.stack, s.machine.plugin, s.machine.settings, s.machine.flags...)
}

// backup runs the job and fills in what it took.
func (s *holdfastLine) backup(ctx context.Context, r *lineResult) error {
	watching, stop := context.WithCancel(ctx)
	defer stop()
	var wg sync.WaitGroup
	wg.Go(func() { r.connections = mostConnections(watching, s.stack.Server.PID()) })
	var run struct {
		Machines []struct {
			Kind        string
			StoredBytes int64 `json:"stored_bytes"`
		}
	}
	began := time.Now()
	out, err := s.stack.Run(ctx, "job", "run", "bench", "--wait", "-o", "json")
	r.ours = time.Since(began)
	stop()
	wg.Wait()
	if err != nil {
		return err
	}
	if err := json.Unmarshal([]byte(out), &run); err != nil {
		return err
	}
	if len(run.Machines) != 1 || run.Machines[0].Kind != "full" {
		return fmt.Errorf("the run made no full point: %.300s", out)
	}
	r.bytes = run.Machines[0].StoredBytes
	return nil
}

// mostConnections counts the connections that a process's network has open, at
// most at one time.
func mostConnections(ctx context.Context, pid int) (most int) {
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for {
		count := 0
		for _, table := range []string{"tcp", "tcp6"} {
			text, err := os.ReadFile(fmt.Sprintf("/proc/%d/net/%s", pid, table))
			if err != nil {
				continue
			}
			for l := range bytes.Lines(text) {
				const established = "01"
				if fields := strings.Fields(string(l)); len(fields) > 3 && fields[3] == established {
					count++
				}
			}
		}
		most = max(most, count)
		select {
		case <-ctx.Done():
			return most
		case <-tick.C:
		}
	}
}

// packs reads the repository's own bytes: sealed, as they crossed the line.
func packs(dir string, limit int64) (io.Reader, error) {
	var readers []io.Reader
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			readers = append(readers, &lazyFile{path: path})
		}
		return err
	})
	return io.LimitReader(io.MultiReader(readers...), limit), err
}

// lazyFile opens a file when it is read, and closes it at its end.
type lazyFile struct {
	path string
	file *os.File
}

func (f *lazyFile) Read(b []byte) (n int, err error) {
	if f.file == nil {
		if f.file, err = os.Open(f.path); err != nil {
			return 0, err
		}
	}
	n, err = f.file.Read(b)
	if err != nil {
		_ = f.file.Close() // it was only read
	}
	return n, err
}

func noiseReader(size int64) io.Reader {
	return io.LimitReader(rand.NewChaCha8([32]byte{1}), size)
}

// bareTLS sends bytes over TLS connections of which each takes the next piece
// when it has room, and says how long it took until all had arrived and the
// sender knew.
func bareTLS(ctx context.Context, line *wan.Line, connections int, open func() (io.Reader, error)) (time.Duration, error) {
	certificate, err := selfSigned()
	if err != nil {
		return 0, err
	}
	listener, err := line.Provider.Listen()
	if err != nil {
		return 0, err
	}
	defer listener.Close()
	source, err := open()
	if err != nil {
		return 0, err
	}
	pieces := pieceReader{from: bufio.NewReaderSize(source, mib)}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Minute)
	defer cancel()
	var received atomic.Int64
	g, ctx := errgroup.WithContext(ctx)
	context.AfterFunc(ctx, func() { listener.Close() })
	began := time.Now()
	for range connections {
		g.Go(func() error {
			conn, err := listener.Accept()
			if err != nil {
				return err
			}
			server := tls.Server(conn, &tls.Config{Certificates: []tls.Certificate{certificate}, MinVersion: tls.VersionTLS13})
			defer server.Close()
			n, err := io.CopyBuffer(onlyWriter{io.Discard}, server, make([]byte, 128*kib))
			received.Add(n)
			if err == nil {
				_, err = server.Write([]byte{1})
			}
			return err
		})
		g.Go(func() error { return sendPieces(ctx, line, listener.Addr().String(), &pieces) })
	}
	err = g.Wait()
	took := time.Since(began)
	if err == nil && received.Load() != pieces.total {
		err = fmt.Errorf("sent %d bytes, %d arrived", pieces.total, received.Load())
	}
	return took, err
}

// onlyWriter hides what else a writer can do, so that the buffer is used.
type onlyWriter struct{ io.Writer }

func sendPieces(ctx context.Context, line *wan.Line, address string, pieces *pieceReader) error {
	dial := func(ctx context.Context) (net.Conn, error) { return line.Tenant.Dial(ctx, "tcp", address) }
	conn, err := dial(ctx)
	if err != nil {
		return err
	}
	c := tls.Client(conn, &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS13})
	defer c.Close()
	if deadline, ok := ctx.Deadline(); ok {
		if err := c.SetDeadline(deadline); err != nil {
			return err
		}
	}
	piece := make([]byte, 256*kib)
	for {
		n, err := pieces.next(piece)
		if n == 0 {
			if !errors.Is(err, io.EOF) {
				return err
			}
			break
		}
		if _, err := c.Write(piece[:n]); err != nil {
			return err
		}
	}
	if err := c.CloseWrite(); err != nil {
		return err
	}
	_, err = io.ReadFull(c, piece[:1])
	return err
}

// pieceReader hands a stream out piece by piece.
type pieceReader struct {
	mutex sync.Mutex
	from  io.Reader
	total int64
}

func (p *pieceReader) next(b []byte) (n int, err error) {
	p.mutex.Lock()
	defer p.mutex.Unlock()
	n, err = io.ReadFull(p.from, b)
	p.total += int64(n)
	if errors.Is(err, io.ErrUnexpectedEOF) {
		err = io.EOF
	}
	return n, err
}

func printLines(results []lineResult) {
	if len(results) == 0 {
		return
	}
	fmt.Printf("\nOver a long line of %d Mbit/s: a full backup, and the same number of bare TLS connections with the same sealed bytes\n\n",
		results[0].Rate/wan.Mbit)
	t := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(t, "source\tround trip\tloss\tMiB\tconnections\tHoldfast s\tMbit/s\tbare TLS s\tMbit/s\tshare\t")
	for _, r := range results {
		rate := func(took time.Duration) float64 { return float64(r.bytes*8) / 1e6 / took.Seconds() }
		fmt.Fprintf(t, "%s\t%s\t%g %%\t%d\t%d\t%.1f\t%.1f\t%.1f\t%.1f\t%.0f %%\t\n", r.source, 2*r.Delay, 100*r.Loss, r.bytes/mib, r.connections,
			r.ours.Seconds(), rate(r.ours), r.bare.Seconds(), rate(r.bare), 100*r.share())
		if r.overrun > 0 {
			fmt.Printf("the line itself was too slow and lost %d packets: this result says little\n", r.overrun)
		}
	}
	_ = t.Flush() // to the terminal
	worst := results[0]
	for _, r := range results {
		if cmp.Less(r.share(), worst.share()) {
			worst = r
		}
	}
	verdict := "met"
	if worst.share() < lineTarget {
		verdict = "NOT MET"
	}
	fmt.Printf("\ntarget: at least %.0f %% of bare TLS; the least is %.0f %%: %s\n", 100*lineTarget, 100*worst.share(), verdict)
}
