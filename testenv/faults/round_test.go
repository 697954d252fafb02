package faults

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/sdk/sim"
	"github.com/holdfast-dr/holdfast/testenv/stack"
)

type operation string

const (
	opBackup         operation = "backup"
	opRestoreMachine operation = "restore-machine"
	opRestoreDisk    operation = "restore-disk"
	opForget         operation = "forget"
	opCollect        operation = "collect"
)

type victim string

const (
	victimServer victim = "server"
	victimAgent  victim = "agent"
	victimPlugin victim = "plugin"
	victimBoth   victim = "server and agent"
)

// place is a directory in which a change tells where an operation is.
type place string

const (
	placeTime    place = "" // no place: a part of the operation's usual time
	placeSpool   place = "spool"
	placeObjects place = "objects"
	placePacks   place = "packs"
	placePoints  place = "points"
	placeServer  place = "server's database"
	placeIndex   place = "index"
	placeAgent   place = "agent's database"
	placeHost    place = "hypervisor"
)

// round is what its seed says.
type round struct {
	seed      uint64
	operation operation
	victim    victim
	machine   int
	// The moment: a part of the changes that the operation usually makes at a
	// place, or of the time that it usually takes, as they were measured when the
	// world began.
	place place
	part  float64
	// late is waited for after a change, so that kills fall between changes, too.
	late time.Duration
	// slow is what each read of a disk takes.
	slow time.Duration
	// large rounds change so much that what was sent twice would show.
	large bool
}

func (r round) String() string {
	moment := fmt.Sprintf("after %.2f of the usual time", r.part)
	if r.place != placeTime {
		moment = fmt.Sprintf("%s after %.2f of the usual changes of the %s", r.late, r.part, r.place)
	}
	if r.large {
		moment += ", large"
	}
	return fmt.Sprintf("%s: kill the %s in a %s, %s", fmt.Sprintf("FAULTS_SEED=%d", r.seed), r.victim, r.operation, moment)
}

// choice is something with its weight.
type choice[T any] struct {
	weight int
	value  T
}

func choose[T any](r *rand.Rand, choices ...choice[T]) T {
	sum := 0
	for _, c := range choices {
		sum += c.weight
	}
	n := r.IntN(sum)
	for _, c := range choices {
		if n -= c.weight; n < 0 {
			return c.value
		}
	}
	panic("no choice")
}

// largeMachine is the machine of large rounds; the others are small.
const largeMachine = 2

// planRound is the round of a seed.
func planRound(seed uint64) round {
	r := randomOf(seed)
	x := round{seed: seed}
	x.operation = choose(r, choice[operation]{55, opBackup}, choice[operation]{8, opRestoreMachine}, choice[operation]{8, opRestoreDisk},
		choice[operation]{12, opForget}, choice[operation]{17, opCollect})
	switch x.operation {
	case opCollect:
		x.victim = victimServer
	case opForget:
		x.victim = choose(r, choice[victim]{70, victimServer}, choice[victim]{20, victimAgent}, choice[victim]{10, victimBoth})
	case opRestoreDisk:
		x.victim = choose(r, choice[victim]{40, victimServer}, choice[victim]{50, victimAgent}, choice[victim]{10, victimBoth})
	default:
		x.victim = choose(r, choice[victim]{35, victimServer}, choice[victim]{32, victimAgent}, choice[victim]{25, victimPlugin}, choice[victim]{8, victimBoth})
	}
	x.machine = r.IntN(largeMachine)
	x.large = x.operation == opBackup && x.victim != victimPlugin && x.victim != victimBoth && r.IntN(8) == 0
	x.part = r.Float64()
	x.late = time.Duration(r.IntN(4)) * time.Duration(r.IntN(1000)) * time.Microsecond
	places := []place{placeTime, placeServer, placeAgent}
	switch x.operation {
	case opBackup:
		places = append(places, placeTime, placeSpool, placeObjects, placePacks, placePoints, placeIndex, placeHost, placeHost)
	case opRestoreMachine:
		places = append(places, placeTime, placeTime, placeHost, placeHost)
	case opForget:
		places = []place{placeTime, placeServer, placeServer, placeObjects}
	case opCollect:
		places = []place{placeTime, placeServer, placeSpool, placeObjects, placePacks}
	}
	x.place = places[r.IntN(len(places))]
	if x.operation == opBackup || x.operation == opRestoreMachine {
		x.slow = choose(r, choice[time.Duration]{60, 0}, choice[time.Duration]{40, 3 * time.Millisecond})
	}
	if x.large {
		x.machine, x.slow = largeMachine, 2*time.Millisecond
		x.place, x.part, x.late = placeSpool, 0.2+0.7*x.part, 0
	}
	return x
}

// where is the directory of a place, and what a path there has to have in it.
func (w *world) where(p place) (root, match string) {
	repository := filepath.Join(w.Repository(), w.cloud)
	switch p {
	case placeSpool:
		return filepath.Join(w.ServerData(), "spool"), ""
	case placeObjects:
		return repository, ""
	case placePacks:
		return repository, "/packs/"
	case placePoints:
		return repository, "/points/"
	case placeServer:
		return w.ServerData(), "state.db-wal"
	case placeIndex:
		return filepath.Join(w.ServerData(), "index"), ""
	case placeAgent:
		return w.AgentData(), "agent.db-wal"
	case placeHost:
		return filepath.Join(w.dir, "hypervisor"), ""
	}
	panic(p)
}

// usual is what an operation does when nobody disturbs it.
type usual struct {
	time    time.Duration
	changes map[place]int
}

var places = []place{placeSpool, placeObjects, placePacks, placePoints, placeServer, placeIndex, placeAgent, placeHost}

// measure does each operation once, undisturbed, so that the rounds know when
// to strike.
func (w *world) measure() {
	w.t.Helper()
	r := randomOf(1)
	for _, name := range []string{string(opBackup), "large", string(opRestoreMachine), string(opRestoreDisk), string(opForget), string(opCollect)} {
		x := round{operation: operation(name)}
		m := w.machines[0]
		if name == "large" {
			x, m = round{operation: opBackup, large: true}, w.machines[largeMachine]
		}
		w.prepare(x, m, r)
		watches := map[place]*changes{}
		for _, p := range places {
			root, match := w.where(p)
			watches[p] = watchChanges(w.t, -1, match, root)
		}
		start := time.Now()
		b := w.begin(x, m, r)
		select {
		case <-b.ended:
		case <-time.After(patience):
			w.fatalf("an undisturbed %s takes more than %s", name, patience)
		}
		u := usual{time: time.Since(start), changes: map[place]int{}}
		for p, watch := range watches {
			watch.close()
			u.changes[p] = -1 - watch.left
		}
		b.finish()
		w.usual[name] = u
		w.t.Logf("an undisturbed %s takes %s and makes these changes: %v", name, u.time.Round(time.Millisecond), u.changes)
	}
	w.prune()
}

// moment is closed when a round's moment has come. It is armed before the
// operation begins; stop ends it.
func (w *world) moment(x round) (come <-chan struct{}, stop func()) {
	u := w.usual[string(x.operation)]
	if x.large {
		u = w.usual["large"]
	}
	if x.place == placeTime {
		c := make(chan struct{})
		timer := time.AfterFunc(time.Duration(x.part*float64(u.time)), func() { close(c) })
		return c, func() { timer.Stop() }
	}
	root, match := w.where(x.place)
	seen := watchChanges(w.t, 1+int(x.part*float64(u.changes[x.place])), match, root)
	return seen.seen, seen.close
}

// play is one round, without the checks after it.
func (w *world) play(x round) {
	w.t.Helper()
	r := randomOf(x.seed ^ 0x5eed)
	m := w.machines[x.machine]
	w.prepare(x, m, r)
	if x.slow > 0 {
		w.must(w.hv.SetFaults(sim.Fault{Call: "ReadAt", Action: sim.ActionDelay, Times: -1, Delay: x.slow}))
	}
	come, stop := w.moment(x)
	begun := w.begin(x, m, r)
	hit := "before its end"
	select {
	case <-come:
		if x.place != placeTime && x.late > 0 {
			<-time.After(x.late) // the moment of the kill, not a wait for something
		}
	case <-begun.ended:
		hit = "after its end"
	}
	w.note("kill %s, %s", x.victim, hit)
	w.kill(x.victim)
	stop()
	w.must(w.hv.SetFaults())
	w.revive(x.victim)
	w.note("revived")
	begun.finish()
	w.count(x, hit)
}

// count keeps how many kills met an operation that was going on.
func (w *world) count(x round, hit string) {
	if hit == "before its end" {
		w.hits[string(x.operation)+" / "+string(x.victim)]++
		return
	}
	w.misses++
}

// prepare makes the world ready: something to back up, to forget, to collect.
func (w *world) prepare(x round, m *machine, r *rand.Rand) {
	w.t.Helper()
	if x.victim == victimPlugin { // deaths in a row are the plugin's fault, in the eyes of the host; here they are not
		w.must(w.agent("POST", "/v1/site/plugins/sim/reload", map[string]any{}, nil))
	}
	switch x.operation {
	case opBackup:
		w.change(m, r, x.large)
	case opForget, opCollect:
		if len(w.pointsOf(m.Name)) < 3 {
			w.change(m, r, false)
			w.backup(m)
		}
		if x.operation == opCollect {
			w.forget(w.pointsOf(m.Name)[0])
		}
	}
}

// change writes to some places of a machine's disks.
func (w *world) change(m *machine, r *rand.Rand, large bool) {
	w.t.Helper()
	if large {
		half := m.Disks[0].SizeBytes / 2
		noise := make([]byte, half) // nothing of it compresses
		_, err := io.ReadFull(rand.NewChaCha8([32]byte{byte(r.Uint32()), byte(r.Uint32()), byte(r.Uint32())}), noise)
		w.must(err)
		w.must(w.hv.WriteDisk(m.ID, m.Disks[0].ID, int64(r.IntN(2))*half, noise))
		w.rehash(m)
		return
	}
	for disk, d := range m.Disks {
		for range 1 + r.IntN(3) {
			n := 1 + r.Int64N(min(3*mib/2, d.SizeBytes/2))
			w.write(m, disk, r.Int64N(d.SizeBytes-n+1), n, r)
		}
	}
}

// begun is an operation that was begun: ended is closed when it came to its end
// while everything was alive, and finish waits for the end after the kill and
// brings the model up to date.
type begun struct {
	ended  <-chan struct{}
	finish func()
}

func (w *world) begin(x round, m *machine, r *rand.Rand) begun {
	w.t.Helper()
	switch x.operation {
	case opForget:
		return w.beginForget(m, r)
	case opCollect:
		return w.beginCollect()
	}
	path, body := "/v1/site/jobs/"+m.Name+"/runs", map[string]any(nil)
	all := w.allPoints()
	point := all[r.IntN(len(all))]
	disk := r.IntN(len(w.points[point].disks))
	file := filepath.Join(w.dir, "killed.raw")
	switch x.operation {
	case opRestoreMachine:
		path, body = "/v1/site/restores/machine", map[string]any{"point": point, "endpoint": "lab", "name": "risen"}
	case opRestoreDisk:
		path, body = "/v1/site/restores/disk", map[string]any{"point": point, "disk": string(w.points[point].disks[disk].ID), "file": file, "format": "raw", "overwrite": true}
	}
	before := w.sent(x)
	var started run
	var err error
	if body == nil {
		started, err = w.start(path, nil)
	} else {
		started, err = w.start(path, body)
	}
	w.must(err)
	ended, give := w.watch(started.ID)
	return begun{ended, func() {
		give()
		done := w.wait(started.ID)
		w.note("ended as %s", describe(done))
		switch x.operation {
		case opBackup:
			w.finishBackup(x, m, done, before)
		case opRestoreMachine:
			w.finishMachine(x, point, done)
		case opRestoreDisk:
			w.finishDisk(x, point, disk, file, done)
		}
	}}
}

// watch closes ended when a run has ended; give ends the watching.
func (w *world) watch(id string) (ended <-chan struct{}, give func()) {
	c, stop, gone := make(chan struct{}), make(chan struct{}), make(chan struct{})
	go func() {
		defer close(gone)
		tick := time.NewTicker(pollEvery)
		defer tick.Stop()
		for {
			var r run
			if err := w.agent("GET", "/v1/site/runs/"+id, nil, &r); err == nil && !r.open() {
				close(c)
				return
			}
			select {
			case <-stop:
				return
			case <-tick.C:
			}
		}
	}()
	return c, func() { close(stop); <-gone }
}

// finishBackup enters what an interrupted backup came to. The plugin's death may
// fail a run; everything else is survived by it.
func (w *world) finishBackup(x round, m *machine, done run, before sent) {
	w.t.Helper()
	if !done.good() && x.victim != victimPlugin {
		w.errorf("the run did not survive: %s", describe(done))
	}
	if done.good() && (len(done.Machines) != 1 || done.Machines[0].Point == "") {
		w.errorf("the run succeeded and made no point: %s", describe(done))
	}
	w.enter(m, done)
	next := done
	if !done.good() {
		next = w.backup(m)
	}
	w.checkSent(x, before, done, next)
}

func (w *world) finishMachine(x round, point string, done run) {
	w.t.Helper()
	if !done.good() {
		if x.victim != victimPlugin {
			w.errorf("the run did not survive: %s", describe(done))
		}
		var err error
		done, err = w.start("/v1/site/restores/machine", map[string]any{"point": point, "endpoint": "lab", "name": "risen"})
		w.must(err)
		if done = w.wait(done.ID); !done.good() {
			w.fatalf("the next restore: %s", describe(done))
		}
	}
	made, err := w.hv.Find(done.Restored.MachineID)
	w.must(err)
	for i, got := range w.hashesOf(made) {
		if want := w.points[point].hashes[i]; got != want {
			w.errorf("machine restored from %s: disk %d is %s, was %s", point, i, got, want)
		}
	}
	w.must(w.hv.DeleteMachine(made.ID))
}

func (w *world) finishDisk(x round, point string, disk int, file string, done run) {
	w.t.Helper()
	if !done.good() {
		w.errorf("the run did not survive: %s", describe(done))
		return
	}
	if got, want := w.hashFile(file), w.points[point].hashes[disk]; got != want {
		w.errorf("disk %d restored from %s is %s, was %s", disk, point, got, want)
	}
	w.must(syscall.Unlink(file))
}

// beginForget gives up the oldest point of a machine, from another goroutine,
// since the call may die with its server.
func (w *world) beginForget(m *machine, r *rand.Rand) begun {
	points := w.pointsOf(m.Name)
	id := points[r.IntN(len(points)-1)] // never the newest
	c := make(chan struct{})
	var err error
	go func() {
		defer close(c)
		err = w.agent(http.MethodDelete, "/v1/site/points/"+id, nil, nil)
	}()
	return begun{c, func() {
		<-c
		w.note("forget of %s answered %v", id, err)
		if err == nil {
			delete(w.points, id)
			return
		}
		// It is there, whole, or it is not; and it can be asked for again.
		var there bool
		w.until("the points to be listed", func() (bool, error) {
			var list []struct{ ID string }
			err := w.agent("GET", "/v1/site/points", nil, &list)
			for _, p := range list {
				there = there || p.ID == id
			}
			return err == nil, err
		})
		if there {
			w.verifyPoint(id)
			w.restoreDisk(id, w.points[id].disks[0].ID)
		}
		err = w.agent(http.MethodDelete, "/v1/site/points/"+id, nil, nil)
		if status := (*stack.StatusError)(nil); err != nil && (there || !errors.As(err, &status) || status.Status != http.StatusNotFound) {
			w.errorf("forget %s again: %v", id, err)
		}
		delete(w.points, id)
	}}
}

// beginCollect starts a collection, which goes on in the server's next life.
func (w *world) beginCollect() begun {
	w.t.Helper()
	var started serverRun
	w.must(w.server("POST", w.cloudPath()+"/collect", nil, &started))
	c, stop, gone := make(chan struct{}), make(chan struct{}), make(chan struct{})
	go func() {
		defer close(gone)
		for {
			var r serverRun
			if err := w.server("GET", "/v1/runs/"+started.ID, nil, &r); err == nil && r.State != "waiting" && r.State != "running" {
				close(c)
				return
			}
			select {
			case <-stop:
				return
			case <-time.After(pollEvery):
			}
		}
	}()
	return begun{c, func() {
		close(stop)
		<-gone
		if r := w.waitServer(started.ID, nil); r.State != "succeeded" {
			w.errorf("the collection did not survive: %s %+v", r.State, r.Failure)
		}
		if r := w.serverRun("collect", nil); r.State != "succeeded" {
			w.errorf("the next collection: %s %+v", r.State, r.Failure)
		}
	}}
}

// kill ends the victim with SIGKILL.
func (w *world) kill(v victim) {
	w.t.Helper()
	switch v {
	case victimServer:
		w.Server.Kill()
	case victimAgent:
		w.Agent.Kill()
	case victimBoth:
		w.must(w.Agent.Signal(syscall.SIGKILL))
		w.Server.Kill()
		w.Agent.Kill()
	case victimPlugin:
		children, err := stack.ChildPIDs(w.Agent.PID())
		w.must(err)
		for pid := range children {
			_ = syscall.Kill(pid, syscall.SIGKILL) // it may have ended
		}
	}
}

func (w *world) revive(v victim) {
	w.t.Helper()
	if v == victimServer || v == victimBoth {
		w.must(w.StartServer(w.t.Context()))
	}
	if v == victimAgent || v == victimBoth {
		w.must(w.StartAgent(w.t.Context()))
	}
}

// sent is what had moved, and what lay in the repository, before a round.
type sent struct {
	put     int64
	records int64
}

// sent is asked for large rounds only: small ones fit into what may be in
// flight.
func (w *world) sent(x round) sent {
	w.t.Helper()
	if !x.large {
		return sent{}
	}
	return sent{put: w.put(), records: w.usage().stored()}
}

func (w *world) put() int64 {
	w.t.Helper()
	var traffic struct {
		Put int64 `json:"put_bytes"`
	}
	w.must(w.server("GET", "/v1/tenants/"+w.tenant+"/traffic", nil, &traffic))
	return traffic.Put
}

// inFlight is one batch for each connection of a copy: what may be sent again.
// Four connections carry batches of 4 MiB; more of them carry smaller ones, which
// share two thirds of 40 MiB.
const inFlight = (40 << 20) * 2 / 3

// checkSent compares what was sent with what is stored now and was not before.
// The agent's death is counted by the server, and the other way round.
func (w *world) checkSent(x round, before sent, done, next run) {
	w.t.Helper()
	if !x.large {
		return
	}
	stored := w.usage().stored() - before.records
	sum := int64(0)
	switch x.victim {
	case victimServer:
		for _, m := range done.Machines {
			sum += m.StoredBytes
		}
		if next.ID != done.ID {
			for _, m := range next.Machines {
				sum += m.StoredBytes
			}
		}
	default:
		sum = w.put() - before.put
	}
	w.note("%d bytes of records were sent, %d are new in the repository", sum, stored)
	if sum > stored+inFlight {
		w.errorf("%d bytes of records were sent for %d that are new: more than what was in flight was sent twice", sum, stored)
	}
}

func smallMachines() []sim.MachineSpec {
	return []sim.MachineSpec{
		{Name: "db", DiskBytes: []int64{8 * mib, 5*mib + 512}},
		{Name: "web", DiskBytes: []int64{12 * mib}},
		{Name: "archive", DiskBytes: []int64{128 * mib}},
	}
}

// mostPoints of one machine are kept by the rounds.
const mostPoints = 4

// prune keeps the world small.
func (w *world) prune() {
	w.t.Helper()
	for i, m := range w.machines {
		keep := mostPoints
		if i == largeMachine {
			keep = 1
		}
		for points := w.pointsOf(m.Name); len(points) > keep; points = points[1:] {
			w.forget(points[0])
		}
	}
}

// TestRounds kills the processes again and again.
func TestRounds(t *testing.T) {
	t.Parallel() // beside those that mostly wait
	rounds, seed := number(t, "FAULTS", 200), firstSeed(t)
	w := newWorld(t, stack.Options{ServerFlags: []string{"--readers", "2s", "--collect", "0"}}, smallMachines()...)
	w.measure()
	begin := time.Now()
	played := uint64(0)
	for ; played < rounds && !t.Failed() && !late(t); played++ {
		x := planRound(seed + played)
		w.log = []string{x.String()}
		w.play(x)
		w.next(x)
		w.checkRound(randomOf(x.seed ^ 0xc4ec))
		w.prune()
		if testing.Verbose() {
			t.Logf("round %d: %s", played+1, w.log[0])
		}
	}
	if played < rounds && !t.Failed() {
		t.Errorf("%d of %d rounds fit into the time: give -timeout more", played, rounds)
	}
	w.log = []string{"at the end"}
	w.checkAll()
	t.Logf("%d rounds in %s, %d of them too late for their operation; kills by operation and victim: %v", played, time.Since(begin).Round(time.Second), w.misses, w.hits)
}

// next is the backup after a round, which succeeds like any other.
func (w *world) next(x round) {
	w.t.Helper()
	r := randomOf(x.seed ^ 0xaf7e4)
	m := w.machines[r.IntN(largeMachine)]
	n := int64(1 + r.IntN(300000))
	w.write(m, 0, r.Int64N(m.Disks[0].SizeBytes-n), n, r)
	w.backup(m)
}

// late reports whether the test has to end in order to end in good order.
func late(t *testing.T) bool {
	const spare = patience + time.Minute
	deadline, ok := t.Deadline()
	return ok && time.Until(deadline) < spare
}
