package main

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/holdfast-dr/holdfast/sdk"
	"github.com/holdfast-dr/holdfast/sdk/sim"
	"github.com/holdfast-dr/holdfast/testenv/stack"
)

// How much larger the disks of large parts are than that of the part pair.
const (
	bigTimes    = 4
	sparseTimes = 16
)

// big is a larger disk of which little changes: what a night brings to most.
func (b *bench) big(ctx context.Context) error {
	peers, err := pick("tool", ours+","+reference, kinds, kind.String)
	if err != nil {
		return err
	}
	return b.compare(ctx, compare{
		title:   fmt.Sprintf("%d GiB, 0.5 %% changed", bigTimes*b.gib),
		recipe:  recipe{sizeBytes: bigTimes * b.gib * gib, changed: 0.005},
		peers:   peers,
		ops:     []operation{opFull, opIncremental},
		repeats: b.repeats(1),
		targets: append([]target{
			faster("incremental, wall", opIncremental, wall, 15, 20),
			faster("incremental, CPU", opIncremental, cpu, 15, 20),
		}, memoryTargets...),
	})
}

// sparse is a disk of 64 GiB with content in its first 4: memory may not grow
// with the disk.
func (b *bench) sparse(ctx context.Context) error {
	images, err := makePair(ctx, recipe{sizeBytes: b.gib * gib, changed: 0.028})
	if err != nil {
		return err
	}
	r := &round{dir: filepath.Join(b.work, "sparse"), pair: images, bin: b.bin}
	r.pair.recipe.sizeBytes = sparseTimes * b.gib * gib // of the machine's disk; the image fills its beginning
	if _, err := b.available(ctx, r, kinds[:1]); err != nil {
		return err
	}
	c := compare{title: fmt.Sprintf("%d GiB, %d of them in use", sparseTimes*b.gib, b.gib), peers: kinds[:1], repeats: 1, targets: memoryTargets,
		ops: []operation{opFull, opUnchanged, opIncremental}} // a restore is compared in pair
	if err := b.round(ctx, c, 1, r, kinds[:1]); err != nil {
		return err
	}
	b.rows.print(c)
	return nil
}

// agedPoints is how many points the repository of the part aged has before it is
// measured.
const agedPoints = 200

// aged measures a repository with a history: the same incremental and the same
// restore after few points and after many.
func (b *bench) aged(ctx context.Context) (err error) {
	images, err := makePair(ctx, recipe{sizeBytes: b.gib * gib, changed: b.changed})
	if err != nil {
		return err
	}
	r := &round{dir: filepath.Join(b.work, "aged"), pair: images, bin: b.bin}
	if _, err := b.available(ctx, r, kinds[:1]); err != nil {
		return err
	}
	if !b.keep {
		defer func() { err = errors.Join(err, os.RemoveAll(r.dir)) }()
	}
	p := &holdfast{title: ours, dir: filepath.Join(r.dir, ours), bin: filepath.Join(b.bin, ours), pair: images}
	defer func() { err = errors.Join(err, p.stop()) }()
	if err := p.start(ctx); err != nil {
		return err
	}
	if _, err := b.operation(ctx, p, opFull); err != nil {
		return err
	}
	var young, old []row
	random, content := rand.New(rand.NewPCG(3, 3)), maker{random: rand.New(rand.NewPCG(4, 4))}
	for n := 2; n <= agedPoints; n++ {
		if err := p.scatter(random, &content, int64(b.changed*float64(images.sizeBytes))/8); err != nil {
			return err
		}
		x, err := b.operation(ctx, p, opIncremental)
		if other, ok := errors.AsType[*kindError](err); ok && other.got == "compare" {
			continue // every 30th run reads everything
		}
		if err != nil {
			return err
		}
		switch {
		case n <= 11:
			young = append(young, x)
		case n > agedPoints-10:
			old = append(old, x)
		}
	}
	restored, err := b.operation(ctx, p, opRestore)
	if err != nil {
		return err
	}
	if err := p.sameAsDisk(); err != nil {
		return err
	}
	fmt.Printf("\nA repository with a history: incremental backups of %.2f %% of %d GiB\n\n", 100*b.changed/8, b.gib)
	for _, x := range []struct {
		what string
		rows []row
	}{{"points 2 to 11", young}, {fmt.Sprintf("points %d to %d", agedPoints-9, agedPoints), old}, {"restore of the last", []row{restored}}} {
		fmt.Printf("%-22s %6.2f s wall  %6.2f s CPU  server %s MiB  stored %.0f MiB\n", x.what, medianOf(x.rows, wall), medianOf(x.rows, cpu),
			memory(x.rows, server), inMiB(x.rows[len(x.rows)-1].stored))
	}
	return nil
}

// operation measures one operation of ours, outside of a comparison.
func (b *bench) operation(ctx context.Context, p *holdfast, op operation) (row, error) {
	a, err := measure(ctx, p.command(ctx, op), p.daemons())
	if err != nil {
		return row{}, err
	}
	if err := p.check(ctx, op); err != nil {
		return row{}, err
	}
	stored, err := sizeOf(p.repository())
	return row{peer: p.name(), op: op, account: a, stored: stored}, err
}

// scatter writes to the machine's disk: pages of databases, all over it.
func (p *holdfast) scatter(random *rand.Rand, content *maker, bytes int64) error {
	for bytes > 0 {
		n := overwrites[random.IntN(len(overwrites))] * kib
		data := make([]byte, n)
		content.pages(data, random.Uint64()>>8)
		at := random.Int64N((p.pair.sizeBytes-n)/fsBlock) * fsBlock
		if err := p.hv.WriteDisk(p.machine.ID, p.machine.Disks[0].ID, at, data); err != nil {
			return err
		}
		bytes -= n
	}
	return nil
}

// sameAsDisk compares the restored file with the machine's disk as it is now.
func (p *holdfast) sameAsDisk() error {
	want, err := p.hv.HashDisk(p.machine.ID, p.machine.Disks[0].ID)
	if err != nil {
		return err
	}
	f, err := os.Open(p.restored())
	if err != nil {
		return err
	}
	defer f.Close()
	hash := sha256.New()
	_, err = io.Copy(hash, f)
	var got [sha256.Size]byte
	hash.Sum(got[:0])
	if err == nil && got != want {
		err = errors.New("the restored disk differs from the machine's")
	}
	return err
}

// manyMachines back up at once in the part fifty.
const (
	manyMachines   = 50
	manyDisk       = 256 * mib
	manyServerPeak = 1024 // MiB
)

// fifty backs many machines up at once: each with an agent of its own, all to
// one server. Most of each disk is its own, some is everybody's.
func (b *bench) fifty(ctx context.Context) (err error) {
	if _, err := b.available(ctx, &round{bin: b.bin}, kinds[:1]); err != nil {
		return err
	}
	dir := filepath.Join(b.work, "fifty")
	if !b.keep {
		defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	}
	bin := filepath.Join(b.bin, ours)
	provider, err := stack.New(stack.Options{Dir: filepath.Join(dir, "p"), Bin: bin})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, provider.Close()) }()
	if err := provider.StartServer(ctx); err != nil {
		return err
	}
	if _, err := provider.Provider(ctx, "tenant", "update", "demo", "--tasks", fmt.Sprint(2*manyMachines)); err != nil {
		return err
	}
	sites := make([]*stack.Stack, manyMachines)
	defer func() {
		for _, s := range sites {
			if s != nil {
				err = errors.Join(err, s.Close())
			}
		}
	}()
	progress("starting %d agents …", manyMachines)
	var g errgroup.Group
	g.SetLimit(4)
	for i := range sites {
		g.Go(func() (err error) {
			if sites[i], err = joinSite(ctx, provider, filepath.Join(dir, fmt.Sprintf("a%d", i)), i); err != nil {
				return fmt.Errorf("site %d: %w", i, err)
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	for _, name := range []string{"full", "incremental"} {
		if err := b.together(ctx, name, provider, sites); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		for i, s := range sites {
			if err := writeSite(s, i, 1); err != nil {
				return err
			}
		}
	}
	return nil
}

// joinSite starts an agent with a machine of its own, enrolled at the provider.
func joinSite(ctx context.Context, provider *stack.Stack, dir string, i int) (*stack.Stack, error) {
	s, err := stack.New(stack.Options{Dir: dir, Bin: provider.Bin})
	if err != nil {
		return nil, err
	}
	var token struct{ Token string }
	if err := provider.ProviderJSON(ctx, &token, "token", "create", "--tenant", "demo", "--site", fmt.Sprintf("site%d", i)); err != nil {
		return s, err
	}
	s.Address, s.Fingerprint, s.Enrolment = provider.Address, provider.Fingerprint, token.Token
	if err := s.StartAgent(ctx); err != nil {
		return s, err
	}
	if err := s.Connect(ctx, filepath.Join(dir, "kit.txt")); err != nil {
		return s, err
	}
	hv, err := sim.Open(filepath.Join(dir, "hypervisor"))
	if err != nil {
		return s, err
	}
	if _, err := hv.CreateMachine(sim.MachineSpec{Name: machineName, DiskBytes: []int64{manyDisk}, State: sdk.StateRunning}); err != nil {
		return s, err
	}
	if err := writeSite(s, i, 0); err != nil {
		return s, err
	}
	return s, makeJob(ctx, s, "sim", []string{"--set", "dir=" + filepath.Join(dir, "hypervisor")})
}

// writeSite fills the machine's disk on day 0, a quarter of it with what all
// have, and a fiftieth of it on the next.
func writeSite(s *stack.Stack, i, day int) error {
	hv, err := sim.Open(filepath.Join(s.Dir, "hypervisor"))
	if err != nil {
		return err
	}
	m, err := hv.Find(machineName)
	if err != nil {
		return err
	}
	all, own := maker{random: rand.New(rand.NewPCG(5, 5))}, maker{random: rand.New(rand.NewPCG(uint64(i), uint64(10+day)))}
	buf := make([]byte, mib)
	for at := int64(0); at < manyDisk; at += mib {
		switch at / mib % 4 {
		case 0:
			all.noise(buf)
		case 1:
			own.noise(buf)
		case 2:
			own.pages(buf, uint64(at/dbPage))
		default:
			continue // nothing
		}
		if day > 0 && at/mib%50 != 1 {
			continue
		}
		if err := hv.WriteDisk(m.ID, m.Disks[0].ID, at, buf); err != nil {
			return err
		}
	}
	return nil
}

// together runs every site's job at once.
func (b *bench) together(ctx context.Context, name string, provider *stack.Stack, sites []*stack.Stack) error {
	daemons := []daemon{{pid: provider.Server.PID(), role: server, children: server}}
	for _, s := range sites {
		daemons = append(daemons, daemon{pid: s.Agent.PID(), role: client, children: plugin})
	}
	if err := settle(ctx, nil); err != nil {
		return err
	}
	for _, d := range daemons {
		forgetPeaks(d)
	}
	before, err := census(daemons)
	if err != nil {
		return err
	}
	began := time.Now()
	var g errgroup.Group
	for _, s := range sites {
		g.Go(func() error {
			out, err := s.Run(ctx, "job", "run", "bench", "--wait", "-o", "json")
			if err != nil {
				return err
			}
			var run struct {
				Machines []struct{ Kind, Point string }
			}
			if err := json.Unmarshal([]byte(out), &run); err != nil {
				return err
			}
			if len(run.Machines) != 1 || run.Machines[0].Point == "" || run.Machines[0].Kind != name {
				return fmt.Errorf("the run made no %s point: %.300s", name, strings.TrimSpace(out))
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	took := time.Since(began)
	after, err := census(daemons)
	if err != nil {
		return err
	}
	verdict := "met"
	if inMiB(after.peak[server]) > manyServerPeak {
		verdict = "NOT MET"
	}
	fmt.Printf("\n%d machines at once, %s: %.1f s wall, %.1f s CPU (server %.1f), largest agent %.0f MiB, server %.0f MiB (target: at most %d MiB: %s)\n",
		len(sites), name, took.Seconds(), (after.cpuTotal() - before.cpuTotal()).Seconds(), (after.cpu[server] - before.cpu[server]).Seconds(),
		inMiB(after.peak[client]), inMiB(after.peak[server]), manyServerPeak, verdict)
	return nil
}
