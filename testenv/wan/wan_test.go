package wan_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/holdfast-dr/holdfast/testenv/wan"
)

// patience is for what has to happen at some time, on however busy a machine.
const patience = time.Minute

// connect gives both ends of a TCP connection over the line.
func connect(t *testing.T, line *wan.Line) (tenant, provider *net.TCPConn) {
	t.Helper()
	listener, err := line.Provider.Listen()
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	var g errgroup.Group
	g.Go(func() error {
		conn, err := listener.Accept()
		provider, _ = conn.(*net.TCPConn)
		return err
	})
	g.Go(func() error {
		conn, err := line.Tenant.Dial(ctx, "tcp", listener.Addr().String())
		if err != nil {
			listener.Close() // nobody will come
		}
		tenant, _ = conn.(*net.TCPConn)
		return err
	})
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { tenant.Close(); provider.Close() })
	deadline := time.Now().Add(2 * patience)
	if err := errors.Join(tenant.SetDeadline(deadline), provider.SetDeadline(deadline)); err != nil {
		t.Fatal(err)
	}
	return tenant, provider
}

func pass(t *testing.T, from, to net.Conn, text string) {
	t.Helper()
	if _, err := from.Write([]byte(text)); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len(text))
	if _, err := io.ReadFull(to, got); err != nil || string(got) != text {
		t.Fatalf("got %q, %v; sent %q", got, err, text)
	}
}

func TestHandshakeTakesARoundTrip(t *testing.T) {
	// Both ends have the connection after three packets, one after the other.
	const delay = 40 * time.Millisecond
	const least, most = 3 * delay, 5 * delay
	line := wan.New(t, wan.Quality{Delay: delay})
	// The best of some, since a busy machine only makes them longer.
	best := time.Hour
	for end := time.Now().Add(patience); best > most && time.Now().Before(end); {
		began := time.Now()
		connect(t, line)
		took := time.Since(began)
		if took < least {
			t.Fatalf("connected after %s over a line whose delay is %s", took, delay)
		}
		best = min(best, took)
	}
	if best > most {
		t.Errorf("the fastest connection took %s, the delay is %s", best, delay)
	}
}

func TestProcessesTalkOverTheLine(t *testing.T) {
	const delay = 30 * time.Millisecond
	line := wan.New(t, wan.Quality{Delay: delay})
	listener, err := line.Provider.Listen()
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	var g errgroup.Group
	g.Go(func() error {
		conn, err := listener.Accept()
		if err != nil {
			return err
		}
		defer conn.Close()
		_, err = io.WriteString(conn, "hello")
		return err
	})
	host, port, err := net.SplitHostPort(listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	command := append(line.Tenant.Prefix(), "bash", "-c", fmt.Sprintf("cat < /dev/tcp/%s/%s", host, port))
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	began := time.Now()
	out, err := exec.CommandContext(ctx, command[0], command[1:]...).CombinedOutput()
	if took := time.Since(began); err != nil || string(out) != "hello" || took < 2*delay {
		t.Errorf("%q after %s, %v", out, took, err)
	}
	if err := g.Wait(); err != nil {
		t.Error(err)
	}
}

// datagrams sends numbered datagrams and returns the numbers in the order of
// their arrival. It paces itself by the line's own counters, so that no socket
// buffer overflows.
func datagrams(t *testing.T, line *wan.Line, count int) (arrived []int) {
	t.Helper()
	from, err := line.Tenant.ListenPacket()
	if err != nil {
		t.Fatal(err)
	}
	defer from.Close()
	to, err := line.Provider.ListenPacket()
	if err != nil {
		t.Fatal(err)
	}
	defer to.Close()
	const ahead = 64 // fits into any socket's buffer
	buf := make([]byte, 16)
	before := line.Up.Stats()
	// settled is how many packets have met their fate.
	settled := func() int {
		s := line.Up.Stats()
		return int(s.Lost+s.Dropped+s.Cut-before.Lost-before.Dropped-before.Cut) + len(arrived)
	}
	receive := func() {
		if err := to.SetReadDeadline(time.Now().Add(10 * time.Millisecond)); err != nil {
			t.Fatal(err)
		}
		n, _, err := to.ReadFrom(buf)
		if err == nil && n == 8 {
			arrived = append(arrived, int(binary.BigEndian.Uint64(buf)))
		}
	}
	end := time.Now().Add(patience)
	for i := range count {
		if _, err := from.WriteTo(binary.BigEndian.AppendUint64(nil, uint64(i)), to.LocalAddr()); err != nil {
			t.Fatal(err)
		}
		for i+1-settled() > ahead && time.Now().Before(end) {
			receive()
		}
	}
	for settled() < count && time.Now().Before(end) {
		receive()
	}
	if settled() != count {
		t.Fatalf("%d of %d datagrams arrived or were lost by the line: up %v", settled(), count, line.Up.Stats())
	}
	return arrived
}

func TestLossIsWhatWasAskedForAndRepeats(t *testing.T) {
	const count, loss = 20_000, 0.05
	quality := wan.Quality{Loss: loss}
	run := func(seed uint64) []int {
		return datagrams(t, wan.NewWith(t, wan.Options{Up: quality, Seed: seed}), count)
	}
	first := run(7)
	lost := float64(count - len(first))
	// Five standard deviations of a binomial distribution.
	if slack := 5 * math.Sqrt(count*loss*(1-loss)); math.Abs(lost-count*loss) > slack {
		t.Errorf("lost %g of %d packets, expected %g ± %.0f", lost, count, count*loss, slack)
	}
	if again := run(7); !slices.Equal(first, again) {
		t.Errorf("the same seed lost other packets: %d and %d arrived", len(first), len(again))
	}
	if other := run(8); slices.Equal(first, other) {
		t.Error("another seed lost the same packets")
	}
}

func TestOrderIsKeptUnlessAskedOtherwise(t *testing.T) {
	const count = 5000
	arrived := datagrams(t, wan.New(t, wan.Quality{Delay: time.Millisecond, Jitter: 3 * time.Millisecond}), count)
	if !slices.IsSorted(arrived) || len(arrived) != count {
		t.Errorf("jitter changed the order, or lost some of %d: %d arrived", count, len(arrived))
	}
	line := wan.New(t, wan.Quality{Delay: time.Millisecond, Reorder: 0.05, Behind: 20 * time.Millisecond})
	arrived = datagrams(t, line, count)
	if overtaken := line.Up.Stats().Late; overtaken == 0 || slices.IsSorted(arrived) || len(arrived) != count {
		t.Errorf("%d packets were held back, %d of %d arrived, in order: %t", overtaken, len(arrived), count, slices.IsSorted(arrived))
	}
}

// transfer sends bytes from the tenant to the provider and says how long it took
// until all of them were there.
func transfer(t *testing.T, line *wan.Line, size int) time.Duration {
	t.Helper()
	tenant, provider := connect(t, line)
	data := make([]byte, size)
	r := rand.New(rand.NewPCG(1, 1))
	for i := range data {
		data[i] = byte(r.Uint32())
	}
	began := time.Now()
	var g errgroup.Group
	g.Go(func() error {
		_, err := tenant.Write(data)
		return errors.Join(err, tenant.CloseWrite())
	})
	var got bytes.Buffer
	g.Go(func() error {
		_, err := got.ReadFrom(provider)
		return err
	})
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	took := time.Since(began)
	if !bytes.Equal(got.Bytes(), data) {
		t.Fatalf("sent %d bytes, and got other %d", len(data), got.Len())
	}
	return took
}

func TestRateBoundsATransfer(t *testing.T) {
	const size, rate = 4 << 20, 40 * wan.Mbit
	line := wan.New(t, wan.Quality{Delay: 5 * time.Millisecond, Rate: rate})
	const least = size * 8 * time.Second / rate
	// The best of some: a busy machine is slower, none is faster.
	best := time.Hour
	for end := time.Now().Add(patience); best > least*5/4 && time.Now().Before(end); {
		took := transfer(t, line, size)
		if took < least {
			t.Fatalf("%d bytes took %s at %d bit/s", size, took, rate)
		}
		best = min(best, took)
	}
	t.Logf("%d bytes at %d Mbit/s: %s at best, %s by the rate alone", size, rate/wan.Mbit, best, least)
	if best > least*5/4 {
		t.Errorf("%d bytes took %s at best; %s would do", size, best, least)
	}
}

func TestFullQueueDrops(t *testing.T) {
	line := wan.New(t, wan.Quality{Delay: 20 * time.Millisecond, Rate: 20 * wan.Mbit, Queue: 8 << 10})
	transfer(t, line, 1<<20)
	if s := line.Up.Stats(); s.Dropped == 0 {
		t.Errorf("TCP never filled a queue of 8 KiB: %v", s)
	}
}

func TestLossIsRepairedByTheKernelsTCP(t *testing.T) {
	line := wan.New(t, wan.Quality{Delay: 2 * time.Millisecond, Loss: 0.02, Reorder: 0.02})
	transfer(t, line, 2<<20)
	if s := line.Up.Stats(); s.Lost == 0 || s.Late == 0 {
		t.Errorf("nothing was lost or held back: %v", s)
	}
}

func TestCutStallAndHeal(t *testing.T) {
	line := wan.New(t, wan.Quality{Delay: time.Millisecond})
	tenant, provider := connect(t, line)
	pass(t, tenant, provider, "before")
	// silent sends a word and waits until the line has swallowed it.
	silent := func(from, to *net.TCPConn, text string, swallowed func() bool) {
		t.Helper()
		if _, err := from.Write([]byte(text)); err != nil {
			t.Fatal(err)
		}
		for end := time.Now().Add(patience); !swallowed(); {
			if time.Now().After(end) {
				t.Fatalf("the line did not get the packet: up %v, down %v", line.Up.Stats(), line.Down.Stats())
			}
			if err := to.SetReadDeadline(time.Now().Add(20 * time.Millisecond)); err != nil {
				t.Fatal(err)
			}
			if n, err := to.Read(make([]byte, 64)); !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Fatalf("read %d bytes, %v", n, err)
			}
		}
		if err := to.SetReadDeadline(time.Now().Add(2 * patience)); err != nil {
			t.Fatal(err)
		}
	}
	receive := func(to net.Conn, text string) {
		t.Helper()
		got := make([]byte, len(text))
		if _, err := io.ReadFull(to, got); err != nil || string(got) != text {
			t.Fatalf("got %q, %v", got, err)
		}
	}

	line.Cut()
	silent(tenant, provider, "cut", func() bool { return line.Up.Stats().Cut > 0 })
	line.Heal()
	receive(provider, "cut") // TCP sends it again

	cut := line.Up.Stats().Cut
	line.Stall()
	silent(tenant, provider, "stalled", func() bool { return line.Up.Waiting() > 0 })
	line.Heal()
	receive(provider, "stalled")
	if now := line.Up.Stats().Cut; now != cut {
		t.Errorf("a stall lost %d packets", now-cut)
	}

	line.Down.Cut()
	pass(t, tenant, provider, "half open")
	silent(provider, tenant, "no answer", func() bool { return line.Down.Stats().Cut > 0 })
	line.Heal()
	receive(tenant, "no answer")
}

func TestSetChangesARunningLine(t *testing.T) {
	line := wan.New(t, wan.Quality{})
	tenant, provider := connect(t, line)
	pass(t, tenant, provider, "fast")
	const delay = 50 * time.Millisecond
	if err := line.Set(wan.Quality{Delay: delay}); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	pass(t, tenant, provider, "slow")
	if took := time.Since(began); took < delay {
		t.Errorf("arrived after %s, the delay is %s", took, delay)
	}
	for _, wrong := range []wan.Quality{{Loss: 1.5}, {Delay: -1}, {Rate: -1}, {Reorder: -0.1}} {
		if line.Set(wrong) == nil {
			t.Errorf("%+v was taken", wrong)
		}
	}
}

func TestNothingStays(t *testing.T) {
	wan.Need(t)
	line, err := wan.Open(wan.Options{})
	if err != nil {
		t.Fatal(err)
	}
	inside := append(line.Provider.Prefix(), "ip", "-o", "link")
	if out, err := exec.Command(inside[0], inside[1:]...).CombinedOutput(); err != nil || !strings.Contains(string(out), "wan") {
		t.Fatalf("links at the provider's end: %v\n%s", err, out)
	}
	if err := line.Close(); err != nil {
		t.Fatal(err)
	}
	if err := line.Provider.Inside(func() error { return nil }); err == nil {
		t.Error("the namespace can be entered after Close")
	}
	out, err := exec.Command("ip", "-o", "link").Output()
	if err != nil || strings.Contains(string(out), ": wan:") {
		t.Errorf("devices of the machine: %v\n%s", err, out)
	}
}
