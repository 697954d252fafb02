package faults

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/testenv"
	"github.com/holdfast-dr/holdfast/testenv/stack"
	"github.com/holdfast-dr/holdfast/testenv/wan"
)

// The server is stopped in good order and started again, and every connection is
// reset, while a backup runs: it goes on.
func TestServerRestartsDuringARun(t *testing.T) {
	address := freeAddress(t)
	p := newProxy(t, address)
	w := newWorld(t, stack.Options{Listen: address, Via: p.address}, oneMachine()...)
	db := w.machines[0]
	for i, what := range []func(){
		func() {
			w.must(w.Server.Stop(20 * time.Second))
			w.must(w.StartServer(t.Context()))
		},
		p.reset,
	} {
		w.write(db, 0, 0, 24*mib, randomOf(uint64(i)))
		w.survives(db, what)
	}
	w.checkEverything()
}

// noticed is within what time an agent finds that nothing moves on its
// connections any more, by the time-outs of the wire.
const noticed = 2 * time.Minute

// Every connection of a run stays open without a byte, as behind a firewall that
// forgot them: that is noticed on both sides, and the run goes on over new ones.
func TestHalfOpenConnectionsAreGivenUp(t *testing.T) {
	t.Parallel() // it mostly waits
	address := freeAddress(t)
	p := newProxy(t, address)
	w := newWorld(t, stack.Options{Listen: address, Via: p.address}, oneMachine()...)
	db := w.machines[0]
	w.write(db, 0, 0, 40*mib, randomOf(7))
	var since time.Time
	w.survives(db, func() {
		if n := p.stall(); n == 0 {
			w.errorf("no connection was there to be stalled")
		}
		since = time.Now()
	})
	if took := time.Since(since); took > noticed+time.Minute {
		w.errorf("the run needed %s after its connections were stalled, %s are stated", took, noticed)
	}
	t.Logf("noticed and finished in %s", time.Since(since).Round(time.Second))
	p.reset()
	w.checkEverything()
}

// The provider moves to another address and its name follows, while a backup
// runs.
func TestServerMovesToAnotherAddress(t *testing.T) {
	testenv.NeedRoot(t)
	testenv.Need(t, "unshare", "mount")
	hosts := filepath.Join(shortDir(t), "hosts")
	name := func(address string) {
		text := fmt.Sprintf("127.0.0.1 localhost\n%s provider.test\n", address)
		// In place: the file is bound over the agent's /etc/hosts.
		if err := os.WriteFile(hosts, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	name("127.0.0.1")
	_, port, err := net.SplitHostPort(freeAddress(t))
	if err != nil {
		t.Fatal(err)
	}
	w := newWorld(t, stack.Options{Listen: "127.0.0.1:" + port, Via: "provider.test:" + port, AgentPrefix: []string{"unshare", "--mount", "sh", "-c",
		`mount --bind "$0" /etc/hosts && exec "$@"`, hosts}}, oneMachine()...)
	db := w.machines[0]
	w.write(db, 0, 0, 40*mib, randomOf(7))
	w.survives(db, func() {
		w.must(w.Server.Stop(20 * time.Second))
		w.Move("127.0.0.2:" + port)
		name("127.0.0.2")
		w.must(w.StartServer(t.Context()))
	})
	w.checkEverything()
}

// onTop is what the wire may add to the records of a run: requests, lists of
// ids, TLS and the manifest.
const onTop = 512 << 10

// The line between the sites loses and reorders packets, both ways: a backup and
// a restore come to their end over it, and no byte passes twice but what TCP
// sends again by itself.
func TestLineThatLosesAndReordersPackets(t *testing.T) {
	seed := firstSeed(t)
	line := wan.NewWith(t, wan.Options{Seed: seed})
	listener, err := line.Provider.Listen()
	if err != nil {
		t.Fatal(err)
	}
	address := freeAddress(t)
	p := newProxyAt(t, listener, address) // at the provider's end: it sees what TCP delivered
	w := newWorld(t, stack.Options{Listen: address, Via: p.address, AgentPrefix: line.Tenant.Prefix()}, oneMachine()...)
	db := w.machines[0]
	w.write(db, 0, 0, 16*mib, randomOf(seed))
	w.must(line.Set(wan.Quality{Delay: 5 * time.Millisecond, Jitter: time.Millisecond, Loss: 0.01, Reorder: 0.05, Behind: 8 * time.Millisecond}))

	put, stored, up, before := w.put(), w.usage().stored(), p.up.Load(), line.Up.Stats()
	made := w.backup(db)
	if made.Attempts != 1 {
		w.errorf("the line cost the run an attempt: %s", describe(made))
	}
	sent, fresh, carried, after := w.put()-put, w.usage().stored()-stored, p.up.Load()-up, line.Up.Stats()
	t.Logf("backup: %d bytes of records for %d that are new, %d on the wire; the line: %v", sent, fresh, carried, after)
	if sent != fresh || fresh < 4*mib {
		w.errorf("%d bytes of records were sent for %d that are new", sent, fresh)
	}
	if carried > sent+onTop {
		w.errorf("%d bytes came to the server for %d of records", carried, sent)
	}
	if after.Lost == before.Lost || after.Late == before.Late {
		w.errorf("the line lost or held back no packet: %v", after)
	}

	point := made.Machines[0].Point
	down, before := p.down.Load(), line.Down.Stats()
	w.checkDisk(point, 0)
	carried, after = p.down.Load()-down, line.Down.Stats()
	t.Logf("restore: %d bytes on the wire; the line: %v", carried, after)
	if after.Lost == before.Lost || after.Late == before.Late {
		w.errorf("the line lost or held back no packet: %v", after)
	}
	// The disk is made of this point's records and of those from before it.
	if most := w.usage().stored() + onTop; carried > most {
		w.errorf("%d bytes were sent for a restore, all that is stored are %d", carried, most)
	}
	w.must(line.Set(wan.Quality{}))
	w.checkEverything()
}
