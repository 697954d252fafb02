package nbd

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"log/slog"
	"net"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/holdfast-dr/holdfast/sdk"
)

// gate is a disk whose accesses wait until it is opened.
type gate struct {
	*memory
	entered chan struct{}
	opened  chan struct{}
}

func newGate(size int) *gate {
	return &gate{newMemory(size), make(chan struct{}, 1000), make(chan struct{})}
}

func (g *gate) ReadAt(p []byte, off int64) (int, error) {
	g.entered <- struct{}{}
	<-g.opened
	return g.memory.ReadAt(p, off)
}

func (g *gate) WriteAt(p []byte, off int64) (int, error) {
	g.entered <- struct{}{}
	<-g.opened
	return g.memory.WriteAt(p, off)
}

func (g *gate) export() Export {
	return Export{Size: int64(len(g.data)), Reader: g, Writer: g}
}

// begin does the handshake of a script that goes to the export "disk".
func (s script) begin() script {
	s.t.Helper()
	s.hear(wireHello)
	s.say(wireFlags)
	s.say(wireStructured)
	s.hear(wireAck8)
	s.say("49484156454f5054 00000007 0000000a 00000004 6469736b 0000")
	for {
		typ, _, err := readOptReply(s.conn, optGo)
		if err != nil {
			s.t.Fatal(err)
		}
		if typ == repAck {
			return s
		}
	}
}

func TestSlowHandshakeIsCut(t *testing.T) {
	for name, client := range map[string]func(script){
		"silence":        func(s script) { s.hear(wireHello); s.hearEnd() },
		"deafness":       func(s script) { pass(time.Minute) },
		"half an option": func(s script) { s.hear(wireHello); s.say(wireFlags + "49484156"); s.hearEnd() },
		"a drop at a time": func(s script) {
			s.hear(wireHello)
			for range 60 {
				s.say("00")
				pass(time.Second)
			}
			s.hearEnd()
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				near, far := net.Pipe()
				start := time.Now()
				done := make(chan struct{})
				go func() {
					defer close(done)
					client(script{t, near})
				}()
				err := single("disk", newMemory(1).export()).ServeConn(t.Context(), far)
				if took := time.Since(start); err == nil || took > DefaultHandshakeTimeout {
					t.Errorf("served for %v: %v", took, err)
				}
				<-done
			})
		})
	}
}

func TestClientThatStopsInARequestIsCut(t *testing.T) {
	for name, last := range map[string]string{
		"in the header":  "25609513 0000",
		"in the payload": "25609513 0000 0001 0000000000000001 0000000000000000 00000010 0011",
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := piped(t, single("disk", newMemory(100).export())).begin()
				pass(24 * time.Hour) // idle is fine
				s.say(last)
				start := time.Now()
				s.hearEnd()
				if took := time.Since(start); took != DefaultTransferTimeout {
					t.Errorf("took %v", took)
				}
			})
		})
	}
}

func TestClientThatDoesNotReadIsCut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := piped(t, single("disk", newMemory(100).export())).begin()
		s.say("25609513 0000 0000 0000000000000001 0000000000000000 00000010")
		pass(DefaultTransferTimeout + time.Second)
		s.hearEnd()
	})
}

func TestServerHangsUpOnNonsense(t *testing.T) {
	before := map[string]string{
		"client flags":       "00000007",
		"option magic":       wireFlags + "1111111111111111 00000003 00000000",
		"huge option":        wireFlags + "49484156454f5054 00000003 7fffffff",
		"unknown export":     wireFlags + "49484156454f5054 00000001 00000001 78",
		"name of many bytes": wireFlags + "49484156454f5054 00000001 00002000" + string(bytes.Repeat([]byte("61"), 0x2000)),
	}
	for name, words := range before {
		t.Run(name, func(t *testing.T) {
			s := piped(t, single("disk", newMemory(100).export()))
			s.hear(wireHello)
			s.say(words)
			s.hearEnd()
		})
	}
	after := map[string]string{
		"request magic": "12345678 0000 0000 0000000000000001 0000000000000000 00000010",
		"huge write":    "25609513 0000 0001 0000000000000001 0000000000000000 02000001",
	}
	for name, words := range after {
		t.Run(name, func(t *testing.T) {
			s := piped(t, single("disk", newMemory(100).export())).begin()
			s.say(words)
			s.hearEnd()
		})
	}
}

func TestTooManyOptionsEndTheHandshake(t *testing.T) {
	s := piped(t, single("disk", newMemory(100).export()))
	s.hear(wireHello)
	s.say(wireFlags)
	for range maxOptions {
		s.say(wireStructured)
		s.hear(wireAck8)
	}
	s.hearEnd()
}

func TestRequestsThatCannotBeAreRefused(t *testing.T) {
	e := newMemory(1 << 16).export()
	e.MinBlock = 512
	for name, k := range map[string]struct {
		header requestHeader
		errno  Errno
	}{
		"unknown command":       {requestHeader{command: 9}, EINVAL},
		"unknown flag":          {requestHeader{command: cmdRead, flags: 1 << 9, length: 512}, EINVAL},
		"read beyond the end":   {requestHeader{command: cmdRead, offset: 1 << 16, length: 512}, EINVAL},
		"read over the end":     {requestHeader{command: cmdRead, offset: 1<<64 - 512, length: 1024}, EINVAL},
		"trim beyond the end":   {requestHeader{command: cmdTrim, offset: 512, length: 1 << 16}, EINVAL},
		"zero beyond the end":   {requestHeader{command: cmdWriteZeroes, offset: 512, length: 1 << 16}, ENOSPC},
		"read between blocks":   {requestHeader{command: cmdRead, offset: 1, length: 512}, EINVAL},
		"read of half a block":  {requestHeader{command: cmdRead, length: 100}, EINVAL},
		"status, no context":    {requestHeader{command: cmdBlockStatus, length: 512}, EINVAL},
		"cache beyond the end":  {requestHeader{command: cmdCache, offset: 1 << 17}, EINVAL},
		"write beyond the end":  {requestHeader{command: cmdWrite, offset: 1 << 16, length: 512}, ENOSPC},
		"write between blocks":  {requestHeader{command: cmdWrite, offset: 3, length: 512}, EINVAL},
		"write with wrong flag": {requestHeader{command: cmdWrite, flags: cmdFlagDF, length: 512}, EINVAL},
	} {
		t.Run(name, func(t *testing.T) {
			n := newSession(&Server{}, nil)
			n.export = e
			n.structured = true
			if err := n.check(k.header); errnoOf(err) != k.errno || err == nil {
				t.Errorf("got %v", err)
			}
		})
	}
	// A refused write does not upset what follows.
	s := piped(t, single("disk", newMemory(100).export())).begin()
	s.say("25609513 0000 0001 0000000000000001 0000000000000060 00000008 0011223344556677")
	s.hear("668e33ef 0001 8001 0000000000000001 00000020 0000001c 001a 6265796f6e642074686520656e64206f6620746865206469736b")
	s.say("25609513 0000 0000 0000000000000002 0000000000000000 00000001")
	s.hear("668e33ef 0001 0002 0000000000000002 0000000c 0000000000000000 00000001")
}

func TestErrorsOfTheDiskReachTheClient(t *testing.T) {
	m := newMemory(4 << 20)
	c := dialServer(t, single("disk", m.export()))
	for _, k := range []struct{ fault, want error }{
		{sdk.Errorf(sdk.ErrFenced, sdk.FaultBackend, "epoch 7"), sdk.ErrFenced},
		{sdk.Errorf(sdk.ErrBusy, sdk.FaultBackend, "locked"), sdk.ErrBusy},
		{sdk.Errorf(sdk.ErrNotFound, sdk.FaultBackend, "snapshot"), sdk.ErrNotFound},
		{sdk.Errorf(sdk.ErrUnavailable, sdk.FaultBackend, "storage"), sdk.ErrUnavailable},
		{sdk.ErrDenied, sdk.ErrDenied},
		{errors.New("odd"), EIO},
		{io.EOF, EIO},
		{ENOSPC, ENOSPC},
	} {
		m.mu.Lock()
		m.fault = k.fault
		m.mu.Unlock()
		_, readErr := c.ReadAt(make([]byte, 3<<20), 0)
		_, writeErr := c.WriteAt([]byte{1}, 0)
		for _, err := range []error{readErr, writeErr, c.Zero(0, 1), c.Flush()} {
			if !errors.Is(err, k.want) || Broken(err) {
				t.Errorf("%v reached the client as %v", k.fault, err)
			}
		}
	}
}

// panics is a disk that does nothing else.
type panics struct{}

func (panics) ReadAt([]byte, int64) (int, error) { panic("read") }

func (panics) Extents(context.Context, int64, int64) iter.Seq2[sdk.Extent, error] { panic("extents") }

func TestPanicOfADiskIsAnError(t *testing.T) {
	c := dialServer(t, single("disk", Export{Size: 100, Reader: panics{}}))
	for range 2 {
		if _, err := c.ReadAt(make([]byte, 10), 0); !errors.Is(err, EIO) {
			t.Errorf("read: %v", err)
		}
	}
	for _, err := range c.Extents(t.Context(), 0, 100) {
		if !errors.Is(err, EIO) {
			t.Errorf("extents: %v", err)
		}
	}
}

func TestRefusedExports(t *testing.T) {
	s := &Server{
		Exports: func(name string) (Export, error) {
			switch name {
			case "fenced":
				return Export{}, fmt.Errorf("epoch 3: %w", sdk.ErrFenced)
			case "broken":
				return Export{Size: 10}, nil
			case "odd":
				return Export{}, errors.New("odd")
			}
			return Export{}, sdk.ErrNotFound
		},
		List: func() []string { return []string{"fenced", "broken"} },
	}
	path := listen(t, s)
	for name, want := range map[string]error{"fenced": sdk.ErrDenied, "broken": sdk.ErrUnsupported, "odd": sdk.ErrUnsupported, "": sdk.ErrNotFound} {
		o := Options{Network: "unix", Addr: path, Export: name}
		if _, err := Inspect(t.Context(), o); !errors.Is(err, want) {
			t.Errorf("inspect %q: %v", name, err)
		}
	}
	list, err := List(t.Context(), Options{Network: "unix", Addr: path})
	if d := cmp.Diff([]Listing{{Name: "fenced"}, {Name: "broken"}}, list); d != "" || err != nil {
		t.Errorf("list: %v, %v", err, d)
	}
	s.List = nil
	if _, err := List(t.Context(), Options{Network: "unix", Addr: path}); !errors.Is(err, sdk.ErrDenied) {
		t.Errorf("list: %v", err)
	}
}

func TestInspectDoesNotOpen(t *testing.T) {
	e := newMemory(12345).export()
	e.Dirty = map[string]func(context.Context, int64, int64) iter.Seq2[sdk.Extent, error]{"b": nil, "a": nil}
	e.MinBlock = 512
	got, err := Inspect(t.Context(), Options{Network: "unix", Addr: listen(t, single("disk", e)), Export: "disk"})
	want := Info{Size: 12345, Description: "memory", MinBlock: 512, Preferred: 4096, MaxBlock: maxPayload,
		MetaContexts: []string{"base:allocation", "qemu:dirty-bitmap:a", "qemu:dirty-bitmap:b"}}
	if d := cmp.Diff(want, got); d != "" || err != nil {
		t.Error(err, d)
	}
}

func TestExportsIsAskedOnceForEachConnection(t *testing.T) {
	var asked atomic.Int32
	m := newMemory(100)
	s := &Server{Exports: func(string) (Export, error) {
		asked.Add(1)
		return m.export(), nil
	}}
	c := dialServer(t, s, func(o *Options) { o.Connections = 3 })
	if got := asked.Load(); got != 3 || len(c.MetaContexts()) != 1 {
		t.Errorf("asked %d times", got)
	}
}

func TestKickedWriterIsGoneWhenKickReturns(t *testing.T) {
	g := newGate(100)
	var fenced atomic.Bool
	s := &Server{Exports: func(name string) (Export, error) {
		if name == "old" && fenced.Load() {
			return Export{}, sdk.ErrFenced
		}
		return g.export(), nil
	}}
	path := listen(t, s)
	dial := func(name string) (*Client, error) {
		return Dial(t.Context(), Options{Network: "unix", Addr: path, Export: name})
	}
	old, err := dial("old")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = old.Close() }()
	other, err := dial("other")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = other.Close() }()
	wrote := make(chan error, 1)
	go func() {
		_, err := old.WriteAt([]byte("late"), 0)
		wrote <- err
	}()
	<-g.entered // the write is being carried out

	fenced.Store(true)
	short, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if err := s.Kick(short, "old"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("kick did not wait for the write: %v", err)
	}
	if err := <-wrote; !errors.Is(err, sdk.ErrUnavailable) {
		t.Errorf("the kicked write: %v", err)
	}
	close(g.opened)
	if err := s.Kick(t.Context(), "old"); err != nil {
		t.Fatal(err)
	}
	copy(g.data, "new!") // nobody else may be writing now; the race detector watches
	if _, err := dial("old"); !errors.Is(err, sdk.ErrDenied) {
		t.Errorf("the kicked writer came back: %v", err)
	}
	p := make([]byte, 4)
	if _, err := other.ReadAt(p, 0); err != nil || string(p) != "new!" {
		t.Errorf("the other: %q, %v", p, err)
	}
}

// lineWriter hands on what a log writes, a line at a time.
type lineWriter chan string

func (w lineWriter) Write(p []byte) (int, error) {
	w <- string(p)
	return len(p), nil
}

func TestKickIsNoNewsToAnOperator(t *testing.T) {
	lines := make(lineWriter, DefaultMaxConnections) // no session waits for the reader
	s := &Server{
		Exports: func(string) (Export, error) { return newMemory(100).export(), nil },
		Log:     slog.New(slog.NewTextHandler(lines, &slog.HandlerOptions{Level: slog.LevelDebug})),
	}
	dialServer(t, s)
	if err := s.Kick(t.Context(), "disk"); err != nil {
		t.Fatal(err)
	}
	var line string
	within(t, func() { line = <-lines })
	if !strings.Contains(line, "level=DEBUG") || !strings.Contains(line, "closed or opened anew") || strings.Contains(line, "fenced") {
		t.Errorf("the log says of a disk that ended: %s", line)
	}
}

func TestKickDuringTheHandshake(t *testing.T) {
	asked, answer := make(chan struct{}), make(chan struct{})
	s := &Server{Exports: func(string) (Export, error) {
		close(asked)
		<-answer
		return newMemory(10).export(), nil
	}}
	path := listen(t, s)
	result := make(chan error, 1)
	go func() {
		c, err := Dial(t.Context(), Options{Network: "unix", Addr: path, Export: "x"})
		if err == nil {
			_, err = c.WriteAt([]byte{1}, 0)
			_ = c.Close()
		}
		result <- err
	}()
	<-asked
	kicked := make(chan error, 1)
	go func() { kicked <- s.Kick(t.Context(), "x") }()
	within(t, func() {
		if err := <-result; !errors.Is(err, sdk.ErrUnavailable) {
			t.Errorf("the client: %v", err)
		}
		close(answer)
		if err := <-kicked; err != nil {
			t.Error(err)
		}
	})
}

func TestCloseAnswersWhatWasReceived(t *testing.T) {
	g := newGate(100)
	s := single("disk", g.export())
	c := dialServer(t, s)
	wrote := make(chan error, 1)
	go func() {
		_, err := c.WriteAt([]byte("last"), 0)
		wrote <- err
	}()
	<-g.entered
	closed := make(chan struct{})
	go func() {
		_ = s.Close()
		close(closed)
	}()
	within(t, func() {
		for { // Close has begun once no more is served
			near, far := net.Pipe()
			_ = near.Close()
			err := s.ServeConn(t.Context(), far)
			if errors.Is(err, ErrServerClosed) {
				break
			}
		}
		close(g.opened)
		if err := <-wrote; err != nil {
			t.Errorf("the last write: %v", err)
		}
		<-closed
	})
	if _, err := c.ReadAt(make([]byte, 1), 0); !errors.Is(err, sdk.ErrUnavailable) {
		t.Errorf("read after close: %v", err)
	}
	if err := s.Serve(t.Context(), new(net.TCPListener)); !errors.Is(err, ErrServerClosed) {
		t.Errorf("serve after close: %v", err)
	}
}

func TestContextEndsServe(t *testing.T) {
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	done := make(chan error, 1)
	go func() { done <- single("disk", newMemory(10).export()).Serve(ctx, l) }()
	c, err := Dial(t.Context(), Options{Network: "unix", Addr: l.Addr().String(), Export: "disk"})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	reason := errors.New("enough")
	cancel(reason)
	within(t, func() {
		if err := <-done; !errors.Is(err, reason) {
			t.Errorf("serve: %v", err)
		}
	})
}

func TestConnectionsAboveTheLimitAreClosed(t *testing.T) {
	s := single("disk", newMemory(10).export())
	s.MaxConnections = 2
	path := listen(t, s)
	o := Options{Network: "unix", Addr: path, Export: "disk"}
	var open []*Client
	for range 2 {
		c, err := Dial(t.Context(), o)
		if err != nil {
			t.Fatal(err)
		}
		open = append(open, c)
	}
	if _, err := Dial(t.Context(), o); !errors.Is(err, sdk.ErrUnavailable) {
		t.Errorf("third connection: %v", err)
	}
	for _, c := range open {
		_ = c.Close()
	}
	within(t, func() {
		for { // a place becomes free when the server has noticed
			if c, err := Dial(t.Context(), o); err == nil {
				_ = c.Close()
				return
			}
		}
	})
}

func TestRequestsInFlightAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGate(100)
		s := piped(t, single("disk", g.export())).begin()
		go func() {
			for range 3 * maxServing {
				s.say("25609513 0000 0000 0000000000000001 0000000000000000 00000010")
			}
		}()
		synctest.Wait()
		if n := len(g.entered); n != maxServing {
			t.Errorf("%d requests at a time", n)
		}
		close(g.opened)
		for range 3 * maxServing {
			s.hear("668e33ef 0001 0002 0000000000000001 0000000c 0000000000000000 00000010")
		}
	})
}

func TestSerialExportGetsOneAtATimeInOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGate(8)
		s := piped(t, single("disk", Export{Size: 8, Writer: g, Serial: true})).begin()
		go func() {
			for i := range 3 { // each over the one before
				s.say(fmt.Sprintf("25609513 0000 0001 000000000000000%d 0000000000000000 00000004 %s", i, strings.Repeat(fmt.Sprintf("0%d", i), 4)))
			}
			s.say("25609513 0000 0000 0000000000000003 0000000000000000 00000004")
		}()
		synctest.Wait()
		if n := len(g.entered); n != 1 {
			t.Errorf("%d writes at a time", n)
		}
		close(g.opened)
		s.hear("67446698 00000000 0000000000000000 67446698 00000000 0000000000000001 67446698 00000000 0000000000000002")
		if got := g.content()[:4]; !bytes.Equal(got, []byte{2, 2, 2, 2}) {
			t.Errorf("the last write is not on top: %v", got)
		}
		// There is no reader, so reads are not permitted.
		s.hear("668e33ef 0001 8001 0000000000000003 0000001e 00000001 0018 74686520 6578706f7274206973 2077726974652d6f6e6c79")
	})
}

func TestExtentsOfABadDiskAreRefused(t *testing.T) {
	list := func(extents ...Status) iter.Seq2[Status, error] {
		return func(yield func(Status, error) bool) {
			for _, e := range extents {
				if !yield(e, nil) {
					return
				}
			}
		}
	}
	for name, k := range map[string]struct {
		in   iter.Seq2[Status, error]
		want []Status
	}{
		"nothing":         {list(), []Status{{10, 100, 0}}},
		"gaps":            {list(Status{20, 10, 1}, Status{50, 10, 1}), []Status{{10, 10, 0}, {20, 10, 1}, {30, 20, 0}, {50, 10, 1}, {60, 50, 0}}},
		"joined":          {list(Status{10, 10, 1}, Status{20, 90, 1}), []Status{{10, 100, 1}}},
		"around":          {list(Status{0, 500, 1}), []Status{{10, 100, 1}}},
		"before and over": {list(Status{0, 10, 1}, Status{10, 5, 2}, Status{90, 100, 3}), []Status{{10, 5, 2}, {15, 75, 0}, {90, 20, 3}}},
		"overlap":         {list(Status{10, 10, 1}, Status{19, 10, 1}), nil},
		"descending":      {list(Status{50, 10, 1}, Status{20, 10, 1}), nil},
		"negative":        {list(Status{50, -10, 1}), nil},
		"overflow":        {list(Status{50, 1<<63 - 1, 1}), nil},
	} {
		got, err := cover(k.in, 10, 100, 100)
		if d := cmp.Diff(k.want, got); d != "" || (err != nil) != (k.want == nil) {
			t.Errorf("%s: %v, %s", name, err, d)
		}
	}
	got, err := cover(list(Status{10, 10, 1}, Status{30, 10, 1}), 10, 100, 2)
	if d := cmp.Diff([]Status{{10, 10, 1}, {20, 10, 0}}, got); d != "" || err != nil {
		t.Errorf("limited: %v, %s", err, d)
	}
}
