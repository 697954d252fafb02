package faults

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/sdk/sim"
	"github.com/holdfast-dr/holdfast/testenv/clock"
	"github.com/holdfast-dr/holdfast/testenv/postgres"
	"github.com/holdfast-dr/holdfast/testenv/stack"
)

// during begins a backup that takes its time, and does something when records
// arrive at the server.
func (w *world) during(m *machine, what func()) run {
	w.t.Helper()
	w.must(w.hv.SetFaults(sim.Fault{Call: "ReadAt", Action: sim.ActionDelay, Times: -1, Delay: 20 * time.Millisecond}))
	spool, match := w.where(placeSpool)
	seen := watchChanges(w.t, 4, match, spool)
	defer seen.close()
	r, err := w.start("/v1/site/jobs/"+m.Name+"/runs", nil)
	w.must(err)
	ended, give := w.watch(r.ID)
	select {
	case <-seen.seen:
	case <-ended:
		w.fatalf("the backup ended before anything could happen: %s", describe(w.wait(r.ID)))
	}
	// What happens may take its time, and the backup has to be under way then.
	w.must(w.hv.SetFaults(sim.Fault{Call: "ReadAt", Action: sim.ActionDelay, Times: -1, Delay: 4 * time.Second}))
	what()
	w.must(w.hv.SetFaults())
	give()
	r = w.wait(r.ID)
	w.note("ended as %s", describe(r))
	return r
}

func oneMachine() []sim.MachineSpec {
	return []sim.MachineSpec{{Name: "db", DiskBytes: []int64{48 * mib}}}
}

func (w *world) survives(m *machine, what func()) {
	w.t.Helper()
	r := w.during(m, what)
	if !r.good() {
		w.errorf("the run did not survive: %s", describe(r))
	}
	w.enter(m, r)
}

// The clocks of server and agent are set, by hours and days, forwards and back,
// each while a backup runs, and so that they differ.
func TestClocksJump(t *testing.T) {
	server, agent := clock.New(t), clock.New(t)
	w := newWorld(t, stack.Options{ServerPrefix: server.Prefix(), AgentPrefix: agent.Prefix()}, oneMachine()...)
	db := w.machines[0]
	for i, jump := range []struct{ server, agent time.Duration }{
		{2 * time.Hour, 0}, {-26 * time.Hour, 0}, {0, 50 * time.Hour}, {0, -50*time.Hour - 30*time.Minute}, {24 * time.Hour, 50 * time.Hour},
	} {
		w.log = []string{"the server's clock moves by " + jump.server.String() + ", the agent's by " + jump.agent.String()}
		w.write(db, 0, 0, 24*mib, randomOf(uint64(i)))
		w.survives(db, func() { server.Move(jump.server); agent.Move(jump.agent) })
		w.checkPoints()
		w.checkHypervisor()
		w.write(db, 0, 30*mib, mib, randomOf(uint64(i)+100))
		w.backup(db)
	}
	w.checkEverything()
}

// A month passes between two requests of a run: the agent's certificate has
// expired, by the server's clock and then by its own, and is renewed without
// losing the run.
func TestCertificateExpiresDuringARun(t *testing.T) {
	server, agent := clock.New(t), clock.New(t)
	w := newWorld(t, stack.Options{ServerPrefix: server.Prefix(), AgentPrefix: agent.Prefix()}, oneMachine()...)
	db := w.machines[0]
	const month = 31 * 24 * time.Hour
	for i, move := range []func(){
		func() { server.Move(month) },
		func() { agent.Move(month) },
		func() { server.Move(month); agent.Move(month) },
	} {
		w.log = []string{"month " + string(rune('1'+i))}
		w.write(db, 0, 0, 24*mib, randomOf(uint64(i)))
		w.survives(db, move)
		if t.Failed() {
			return
		}
	}
	if log, err := os.ReadFile(w.Agent.Log); err != nil || strings.Count(string(log), "certificate renewed") < 2 {
		w.errorf("the agent says nothing of a renewal: %v", err)
	}
	w.checkEverything()
}

// The contract ends while a backup runs: the run ends and says so, nothing that
// is stored is lost, and a new contract goes on where it was.
func TestLeaseEndsDuringARun(t *testing.T) {
	w := newWorld(t, stack.Options{}, oneMachine()...)
	db := w.machines[0]
	w.write(db, 0, 0, 40*mib, randomOf(7))
	r := w.during(db, func() {
		w.must(w.server("PUT", "/v1/tenants/"+w.tenant+"/lease", map[string]any{"end": time.Now().Add(-time.Hour)}, nil))
	})
	if r.State != "failed" || !strings.Contains(describe(r), "lease") {
		w.errorf("a backup whose tenant's lease ended: %s", describe(r))
	}
	w.checkHypervisor()
	w.must(w.server("PUT", "/v1/tenants/"+w.tenant+"/lease", map[string]any{}, nil))
	w.checkEverything()
	arrived := w.usage().Pending
	next := w.backup(db)
	if stored := next.Machines[0].StoredBytes; arrived > 0 && stored > 26*mib-arrived {
		w.errorf("%d bytes had arrived and are pending, %d were sent after that", arrived, stored)
	}
	w.checkEverything()
}

// A server is stopped in the middle of a backup for so long that another one
// takes its claim over; the run goes on there. When the first one wakes up, it
// is fenced off: nothing that it still does changes anything.
func TestStoppedServerIsFencedOff(t *testing.T) {
	t.Parallel() // it mostly waits
	url := postgres.Start(t).Database(t)
	first, second := freeAddress(t), freeAddress(t)
	p := newProxy(t, first)
	w := newWorld(t, stack.Options{Listen: first, Via: p.address, Env: []string{"HOLDFAST_DATABASE=" + url}}, oneMachine()...)
	db := w.machines[0]

	// The other server has the same database, master key and repository.
	data := filepath.Join(w.dir, "second")
	w.must(os.Mkdir(data, 0o700))
	other, err := stack.StartProcess("second server", filepath.Join(w.dir, "s", "second.log"), append(os.Environ(), "HOLDFAST_DATABASE="+url),
		filepath.Join(programs, "holdfast"), "server", "--data", data, "--listen", second, "--master-key", "file:"+filepath.Join(w.ServerData(), "master.key"),
		"--log-level", "info")
	w.must(err)
	t.Cleanup(func() {
		if err := other.Stop(20 * time.Second); err != nil {
			t.Error(err)
		}
		if t.Failed() {
			t.Logf("the second server printed:\n%s", other.Output())
		}
	})

	w.write(db, 0, 0, 40*mib, randomOf(7))
	w.survives(db, func() {
		w.must(w.Server.Signal(syscall.SIGSTOP))
		w.note("stopped")
		p.lead(second)
		p.reset()
	})
	w.Address = second // for what asks the provider
	w.checkPoints()
	w.write(db, 0, 10*mib, 4*mib, randomOf(8))
	w.backup(db)
	before := w.usage()

	w.note("goes on")
	w.must(w.Server.Signal(syscall.SIGCONT))
	w.until("the first server to see that it lost its claim", func() (bool, error) {
		return strings.Contains(w.Server.Output(), "cloud repository closed"), nil
	})
	w.checkAlive()
	if after := w.usage(); after != before {
		w.errorf("the account was %+v, and is %+v since the first server goes on", before, after)
	}
	w.write(db, 0, 20*mib, 4*mib, randomOf(9))
	w.backup(db)
	// The agent comes back to the first server, which cannot write any more.
	p.lead(first)
	p.reset()
	w.write(db, 0, 30*mib, 4*mib, randomOf(10))
	r, err := w.start("/v1/site/jobs/db/runs", nil)
	w.must(err)
	w.must(other.Stop(20 * time.Second)) // and gives the claim back
	if r = w.wait(r.ID); !r.good() {
		w.errorf("the first server, after the second one ended: %s", describe(r))
	}
	w.enter(db, r)
	w.Address = first
	w.checkPoints()
	w.checkSound()
	for _, id := range w.allPoints() {
		w.verifyPoint(id)
		w.checkDisk(id, 0)
	}
}
