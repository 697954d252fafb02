package nbd

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/holdfast-dr/holdfast/sdk"
)

// TestBadRepliesBreakTheClient plays one answer to a read of 16 bytes at 4096
// and to a block status, and expects that the client gives up on the server.
func TestBadRepliesBreakTheClient(t *testing.T) {
	data := func(n int) []byte { return make([]byte, n) }
	reads := map[string]func(s script, c uint64){
		"unknown magic":             func(s script, c uint64) { s.say("12345678") },
		"wrong cookie":              func(s script, c uint64) { s.chunk(c+1, 1, chunkData, dataAt(4096, data(16))) },
		"wrong cookie, simple":      func(s script, c uint64) { s.say("67446698 00000000 00000000000000ff") },
		"cut in the header":         func(s script, c uint64) { s.say("668e33ef 0001") },
		"cut in the data":           func(s script, c uint64) { s.say("668e33ef 0001 0001 0000000000000001 00000018 0000000000001000 6461") },
		"cut instead of a reply":    func(s script, c uint64) {},
		"simple reply with data":    func(s script, c uint64) { s.say("67446698 00000000 0000000000000001 00112233") },
		"oversize data":             func(s script, c uint64) { s.chunk(c, 1, chunkData, dataAt(4096, data(17))) },
		"huge data":                 func(s script, c uint64) { s.say("668e33ef 0001 0001 0000000000000001 ffffffff") },
		"no data in a data chunk":   func(s script, c uint64) { s.chunk(c, 1, chunkData, dataAt(4096, nil)) },
		"data before the range":     func(s script, c uint64) { s.chunk(c, 1, chunkData, dataAt(4095, data(8))) },
		"data behind the range":     func(s script, c uint64) { s.chunk(c, 1, chunkData, dataAt(4105, data(8))) },
		"data at the end of time":   func(s script, c uint64) { s.chunk(c, 1, chunkData, dataAt(1<<64-4, data(8))) },
		"hole beyond the range":     func(s script, c uint64) { s.chunk(c, 1, chunkHole, holeAt(4096, 17)) },
		"hole of nothing":           func(s script, c uint64) { s.chunk(c, 1, chunkHole, holeAt(4096, 0)) },
		"hole chunk too long":       func(s script, c uint64) { s.chunk(c, 1, chunkHole, append(holeAt(4096, 16), 0)) },
		"bytes missing":             func(s script, c uint64) { s.chunk(c, 1, chunkData, dataAt(4096, data(15))) },
		"nothing sent":              func(s script, c uint64) { s.chunk(c, 1, chunkNone, nil) },
		"none without done":         func(s script, c uint64) { s.chunk(c, 0, chunkNone, nil) },
		"none with content":         func(s script, c uint64) { s.chunk(c, 1, chunkNone, data(4)) },
		"block status for a read":   func(s script, c uint64) { s.chunk(c, 1, chunkBlockStatus, statusOf(7, 16, 0)) },
		"unknown chunk":             func(s script, c uint64) { s.chunk(c, 1, 99, data(4)) },
		"error without number":      func(s script, c uint64) { s.chunk(c, 1, chunkError, errorOf(0, "fine")) },
		"error message too long":    func(s script, c uint64) { s.chunk(c, 1, chunkError, []byte{0, 0, 0, 5, 0, 9, 'x'}) },
		"error chunk of no bytes":   func(s script, c uint64) { s.chunk(c, 1, chunkError, nil) },
		"error chunk of many bytes": func(s script, c uint64) { s.say("668e33ef 0001 8001 0000000000000001 00010000") },
		"same bytes twice": func(s script, c uint64) {
			s.chunk(c, 0, chunkData, dataAt(4096, data(12)))
			s.chunk(c, 1, chunkData, dataAt(4100, data(4)))
		},
		"same hole twice": func(s script, c uint64) {
			s.chunk(c, 0, chunkHole, holeAt(4096, 8))
			s.chunk(c, 1, chunkHole, holeAt(4096, 8))
		},
	}
	for name, answer := range reads {
		t.Run(name, func(t *testing.T) {
			c := served(t, func(s script) { answer(s, s.request().cookie) })
			within(t, func() {
				n, err := c.ReadAt(make([]byte, 16), 4096)
				if n != 0 || !errors.Is(err, sdk.ErrUnavailable) || !Broken(err) {
					t.Errorf("read: %d, %v", n, err)
				}
				if err := c.Flush(); !errors.Is(err, sdk.ErrUnavailable) {
					t.Errorf("flush afterwards: %v", err)
				}
			})
		})
	}
	states := map[string]func(s script, c uint64){
		"status of no context":     func(s script, c uint64) { s.chunk(c, 1, chunkBlockStatus, nil) },
		"status without extents":   func(s script, c uint64) { s.chunk(c, 1, chunkBlockStatus, statusOf(7)) },
		"status of another":        func(s script, c uint64) { s.chunk(c, 1, chunkBlockStatus, statusOf(8, 4096, 0)) },
		"status cut in an extent":  func(s script, c uint64) { s.chunk(c, 1, chunkBlockStatus, statusOf(7, 4096, 0, 4096)) },
		"status of an empty range": func(s script, c uint64) { s.chunk(c, 1, chunkBlockStatus, statusOf(7, 0, 0)) },
		"status too large":         func(s script, c uint64) { s.say("668e33ef 0001 0005 0000000000000001 0080000c") },
		"status never sent":        func(s script, c uint64) { s.chunk(c, 1, chunkNone, nil) },
		"status, simple":           func(s script, c uint64) { s.say("67446698 00000000 0000000000000001") },
		"status twice": func(s script, c uint64) {
			s.chunk(c, 0, chunkBlockStatus, statusOf(7, 4096, 0))
			s.chunk(c, 1, chunkBlockStatus, statusOf(7, 4096, 0))
		},
	}
	for name, answer := range states {
		t.Run(name, func(t *testing.T) {
			c := served(t, func(s script) { answer(s, s.request().cookie) })
			within(t, func() {
				for _, err := range c.BlockStatus(t.Context(), ContextAllocation, 0, 8192) {
					if !errors.Is(err, sdk.ErrUnavailable) || !errors.Is(err, ErrProtocol) {
						t.Errorf("block status: %v", err)
					}
				}
			})
		})
	}
}

func TestChunksInAnyOrder(t *testing.T) {
	c := served(t, func(s script) {
		r := s.request()
		s.chunk(r.cookie, 0, chunkData, dataAt(12, []byte("mnop")))
		s.chunk(r.cookie, 0, chunkData, dataAt(0, []byte("abcd")))
		s.chunk(r.cookie, 0, chunkHole, holeAt(4, 4))
		s.chunk(r.cookie, 0, chunkData, dataAt(8, []byte("ijkl")))
		s.chunk(r.cookie, 1, chunkNone, nil)
	})
	p := []byte("0123456789012345")
	if _, err := c.ReadAt(p, 0); err != nil || string(p) != "abcd\x00\x00\x00\x00ijklmnop" {
		t.Errorf("read %q, %v", p, err)
	}
}

func TestAnswersInAnyOrder(t *testing.T) {
	const count = 8
	c := served(t, func(s script) {
		var all []requestHeader
		for range count {
			all = append(all, s.request())
		}
		for i := range all {
			r := all[count-1-i]
			s.chunk(r.cookie, 1, chunkData, dataAt(r.offset, bytes.Repeat([]byte{byte(r.offset)}, int(r.length))))
		}
	})
	var group sync.WaitGroup
	for i := range count {
		group.Go(func() {
			p := make([]byte, 3)
			if _, err := c.ReadAt(p, int64(i)); err != nil || p[0] != byte(i) || p[2] != byte(i) {
				t.Errorf("read %d: %v, %v", i, p, err)
			}
		})
	}
	group.Wait()
}

func TestRefusalsLeaveTheConnectionAlone(t *testing.T) {
	c := served(t, func(s script) {
		r := s.request()
		s.chunk(r.cookie, 0, chunkData, dataAt(0, []byte{1}))
		s.chunk(r.cookie, 0, chunkErrorOffset, append(errorOf(EIO, "sector is gone"), 0, 0, 0, 0, 0, 0, 0, 1))
		s.chunk(r.cookie, 1, chunkNone, nil)
		r = s.request()
		s.chunk(r.cookie, 1, chunkError, errorOf(EPERM, "fenced: epoch 4 is over"))
		s.request()
		s.say("67446698 0000001c 0000000000000003")
		s.request()
		s.say("67446698 00000005 0000000000000004") // a read may fail with a simple reply
	})
	p := make([]byte, 4)
	_, err := c.ReadAt(p, 0)
	var refusal *ReplyError
	if !errors.As(err, &refusal) || refusal.Errno != EIO || refusal.Message != "sector is gone" || Broken(err) {
		t.Errorf("read: %v", err)
	}
	var number Errno
	if err := c.Zero(0, 4); !errors.Is(err, sdk.ErrFenced) || errors.Is(err, sdk.ErrDenied) || !errors.As(err, &number) || number != EPERM {
		t.Errorf("zero: %v", err)
	}
	if err := c.Flush(); !errors.Is(err, ENOSPC) {
		t.Errorf("flush: %v", err)
	}
	if _, err := c.ReadAt(p, 0); !errors.Is(err, EIO) {
		t.Errorf("read: %v", err)
	}
}

func TestSilentServerTimesOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := served(t, func(s script) {
			for s.request().command == cmdRead { // hears, and does not answer
			}
		})
		start := time.Now()
		_, err := c.ReadAt(make([]byte, 16), 0)
		if took := time.Since(start); took < DefaultTimeout || took > DefaultTimeout*5/4 {
			t.Errorf("took %v", took)
		}
		if !errors.Is(err, context.DeadlineExceeded) || !errors.Is(err, sdk.ErrUnavailable) {
			t.Errorf("read: %v", err)
		}
	})
}

func TestDeafServerTimesOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		stop := make(chan struct{})
		c := served(t, func(s script) { <-stop })
		if err := c.Zero(0, 16); !errors.Is(err, sdk.ErrUnavailable) {
			t.Errorf("zero: %v", err)
		}
		close(stop)
	})
}

func TestServerMayBeSlowButNotSilent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := served(t, func(s script) {
			r := s.request()
			for i := range 3 { // a byte each 20 s
				pass(DefaultTimeout * 2 / 3)
				s.chunk(r.cookie, 0, chunkData, dataAt(uint64(i), []byte{byte(i)}))
			}
			s.chunk(r.cookie, 1, chunkNone, nil)
			r = s.request() // a flush may take longer
			pass(DefaultTimeout * 2)
			s.say("67446698 00000000 0000000000000002")
		})
		if _, err := c.ReadAt(make([]byte, 3), 0); err != nil {
			t.Errorf("read: %v", err)
		}
		if err := c.Flush(); err != nil {
			t.Errorf("flush: %v", err)
		}
	})
}

func TestOneLostAnswerTimesOutThoughOthersArrive(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := served(t, func(s script) {
			s.request()
			for {
				r := s.request()
				if r.length == 0 {
					return
				}
				pass(time.Second)
				s.chunk(r.cookie, 1, chunkHole, holeAt(r.offset, r.length))
			}
		})
		var group sync.WaitGroup
		group.Go(func() {
			if _, err := c.ReadAt(make([]byte, 1), 0); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("the lost one: %v", err)
			}
		})
		synctest.Wait()
		for {
			if _, err := c.ReadAt(make([]byte, 1), 1); err != nil {
				break
			}
		}
		group.Wait()
	})
}

func TestBrokenConnectionFailsEverythingWithOneError(t *testing.T) {
	const count = 10
	c := served(t, func(s script) {
		for range count {
			s.request()
		}
	})
	failures := make(chan error, count)
	for range count {
		go func() {
			_, err := c.ReadAt(make([]byte, 4096), 0)
			failures <- err
		}()
	}
	within(t, func() {
		one := <-failures
		if !errors.Is(one, sdk.ErrUnavailable) || !errors.Is(one, io.ErrUnexpectedEOF) {
			t.Errorf("got %v", one)
		}
		for range count - 1 {
			if err := <-failures; err != one { //nolint:errorlint // the very error, not one that wraps it
				t.Errorf("another error: %v", err)
			}
		}
	})
}

func TestOneBrokenConnectionBreaksTheClient(t *testing.T) {
	m := newMemory(1 << 20)
	c := dialServer(t, single("disk", m.export()), func(o *Options) { o.Connections = 3 })
	_ = c.links[1].conn.Close()
	within(t, func() {
		for {
			if err := c.Flush(); errors.Is(err, sdk.ErrUnavailable) {
				break
			}
		}
	})
	for range 6 {
		if err := c.Flush(); !errors.Is(err, sdk.ErrUnavailable) {
			t.Errorf("flush on another connection: %v", err)
		}
	}
}

func TestCloseEndsWhatIsInFlight(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		heard := make(chan struct{})
		c := served(t, func(s script) {
			s.request()
			close(heard)
			_ = s.request()
		})
		done := make(chan error)
		go func() {
			_, err := c.ReadAt(make([]byte, 10), 0)
			done <- err
		}()
		<-heard
		if err := c.Close(); err != nil {
			t.Error(err)
		}
		if err := <-done; !errors.Is(err, net.ErrClosed) || !Broken(err) {
			t.Errorf("read: %v", err)
		}
		if _, err := c.ReadAt(make([]byte, 10), 0); !errors.Is(err, net.ErrClosed) {
			t.Errorf("read after close: %v", err)
		}
		_ = c.Close()
	}) // synctest fails the test when a goroutine is left
}

func TestCancelStopsWaitingForBlockStatus(t *testing.T) {
	release := make(chan struct{})
	c := served(t, func(s script) {
		r := s.request()
		<-release
		s.chunk(r.cookie, 1, chunkBlockStatus, statusOf(7, 4096, 0))
		r = s.request()
		s.chunk(r.cookie, 1, chunkHole, holeAt(r.offset, r.length))
	})
	ctx, cancel := context.WithCancelCause(t.Context())
	reason := errors.New("enough")
	cancel(reason)
	for _, err := range c.Extents(ctx, 0, 4096) {
		if !errors.Is(err, reason) {
			t.Errorf("extents: %v", err)
		}
	}
	close(release)
	if _, err := c.ReadAt(make([]byte, 10), 0); err != nil {
		t.Errorf("read afterwards: %v", err)
	}
}

func TestBlockStatusAsksAgainAndJoins(t *testing.T) {
	c := served(t, func(s script) {
		r := s.request() // 1000 to 9000: a short answer, with another context in it
		s.chunk(r.cookie, 0, chunkBlockStatus, statusOf(3, 1<<20, 9))
		s.chunk(r.cookie, 1, chunkBlockStatus, statusOf(7, 1000, 3))
		r = s.request() // 2000 to 9000: joins, and goes beyond the range
		if r.offset != 2000 || r.length != 7000 {
			s.t.Errorf("second request %+v", r)
		}
		s.chunk(r.cookie, 1, chunkBlockStatus, statusOf(7, 1000, 3, 2000, 0, 2000, 3, 1<<30, 0, 1<<31, 1))
	})
	want := []Status{{1000, 2000, 3}, {3000, 2000, 0}, {5000, 2000, 3}, {7000, 2000, 0}}
	if d := cmp.Diff(want, collect(t, c.BlockStatus(t.Context(), ContextAllocation, 1000, 8000))); d != "" {
		t.Error(d)
	}
	for _, err := range c.BlockStatus(t.Context(), "qemu:dirty-bitmap:x", 0, 1) {
		if !errors.Is(err, sdk.ErrUnsupported) {
			t.Errorf("context that was not negotiated: %v", err)
		}
	}
}

func TestBlockSizesAreHonoured(t *testing.T) {
	m := randomMemory(10*4096+100, 13)
	e := m.export()
	e.MinBlock = 4096
	c := dialServer(t, single("disk", e))
	c.details.maxBlock = 8192
	want := m.content()
	for _, r := range [][2]int64{{0, 1}, {1, 1}, {4095, 2}, {100, 30000}, {4096, 4096}, {40960, 100}, {40961, 99}, {1, 41059}, {0, 41060}} {
		p := make([]byte, r[1])
		if _, err := c.ReadAt(p, r[0]); err != nil || !bytes.Equal(p, want[r[0]:r[0]+r[1]]) {
			t.Errorf("read %v: %v", r, err)
		}
		fill := bytes.Repeat([]byte{byte(r[0] + 1)}, int(r[1]))
		if _, err := c.WriteAt(fill, r[0]); err != nil {
			t.Errorf("write %v: %v", r, err)
		}
		copy(want[r[0]:], fill)
		if err := c.Zero(r[0], r[1]/2); err != nil {
			t.Errorf("zero %v: %v", r, err)
		}
		clear(want[r[0] : r[0]+r[1]/2])
		if !bytes.Equal(m.content(), want) {
			t.Fatalf("after %v: the bytes differ", r)
		}
		total := int64(0)
		for _, e := range collect(t, c.Extents(t.Context(), r[0], r[1])) {
			total += e.Length
		}
		if total != r[1] {
			t.Errorf("extents of %v are %d bytes", r, total)
		}
	}
	var group sync.WaitGroup
	for i := range 64 { // parts of one block do not lose each other's bytes
		group.Go(func() {
			if _, err := c.WriteAt([]byte{byte(i)}, int64(i)); err != nil {
				t.Error(err)
			}
		})
	}
	group.Wait()
	for i, b := range m.content()[:64] {
		if b != byte(i) {
			t.Errorf("byte %d is %d", i, b)
		}
	}
}

func TestServerWithoutFlushPromisesNothing(t *testing.T) {
	m := newMemory(3 << 20)
	e := m.export()
	e.Writer = plain{m, m}
	c := dialServer(t, single("disk", e))
	if _, err := c.WriteAt(bytes.Repeat([]byte{1}, 3<<20), 0); err != nil {
		t.Fatal(err)
	}
	if err := c.Zero(1, 3<<20-2); err != nil { // the server writes them
		t.Fatal(err)
	}
	if err := c.Trim(0, 100); err != nil {
		t.Error(err)
	}
	if err := c.Flush(); !errors.Is(err, sdk.ErrUnsupported) {
		t.Errorf("flush: %v", err)
	}
	if _, err := c.WriteThrough([]byte{1}, 0); !errors.Is(err, sdk.ErrUnsupported) {
		t.Errorf("write-through: %v", err)
	}
	c.details.flags &^= flagWriteZeroes // now the client writes them
	if err := c.Zero(0, 2<<20); err != nil {
		t.Fatal(err)
	}
	if got := m.content(); !isZero(got[:3<<20-1]) || got[3<<20-1] != 1 {
		t.Error("the bytes differ")
	}
}
