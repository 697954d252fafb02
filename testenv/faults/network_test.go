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
