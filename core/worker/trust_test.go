package worker

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/core/pki"
	"github.com/holdfast-dr/holdfast/core/tenant"
	"github.com/holdfast-dr/holdfast/sdk"
)

func (h *house) invite(t testing.TB, name string, life time.Duration) string {
	t.Helper()
	invitation, err := h.Invite(operator(t), name, life)
	if err != nil {
		t.Fatal(err)
	}
	return invitation.Token
}

func (h *house) enrolment(t testing.TB, token string) Enrolment {
	return Enrolment{Dir: filepath.Join(t.TempDir(), "w"), Address: h.address, Fingerprint: h.Fingerprint().String(), Token: token}
}

func TestTokenIsGoodForOneKey(t *testing.T) {
	h := open(t)
	e := h.enrolment(t, h.invite(t, "w1", 0))
	first, err := Enrol(t.Context(), e)
	if err != nil || first.Name != "w1" {
		t.Fatalf("%+v, %v", first, err)
	}
	if _, err := Enrol(t.Context(), h.enrolment(t, e.Token)); !errors.Is(err, sdk.ErrDenied) {
		t.Errorf("the same token for another key: %v, want ErrDenied", err)
	}
	if _, err := Enrol(t.Context(), h.enrolment(t, "hfe_"+strings.Repeat("A", 43))); !errors.Is(err, sdk.ErrDenied) {
		t.Errorf("a token that nobody made: %v, want ErrDenied", err)
	}
	late := h.enrolment(t, h.invite(t, "w2", time.Hour))
	h.clock.forward(2 * time.Hour)
	if _, err := Enrol(t.Context(), late); !errors.Is(err, sdk.ErrDenied) || sdk.HintOf(err) == "" {
		t.Errorf("an expired token: %v, hint %q; want ErrDenied", err, sdk.HintOf(err))
	}
}

// An enrolment whose answer was lost is repeated with the same key.
func TestEnrolmentIsRepeated(t *testing.T) {
	h := open(t)
	e := h.enrolment(t, h.invite(t, "w1", 0))
	if err := os.MkdirAll(e.Dir, 0o700); err != nil {
		t.Fatal(err)
	}
	id, err := newIdentity(h.address, h.Fingerprint())
	if err != nil {
		t.Fatal(err)
	}
	if err := id.save(filepath.Join(e.Dir, enrollingFile)); err != nil {
		t.Fatal(err)
	}
	if err := id.request(t.Context(), greeting{Do: doEnrol, Token: e.Token}); err != nil {
		t.Fatal(err) // and nobody kept the answer
	}
	again, err := Enrol(t.Context(), e)
	if err != nil {
		t.Fatal(err)
	}
	if again.Key != id.Key {
		t.Error("the repeat has another key")
	}
	if _, err := os.Stat(filepath.Join(e.Dir, enrollingFile)); !os.IsNotExist(err) {
		t.Errorf("the begun enrolment is still there: %v", err)
	}
}

func TestNothingIsSentToAStrangeHub(t *testing.T) {
	real, false := open(t), open(t)
	e := real.enrolment(t, real.invite(t, "w1", 0))
	e.Address = false.address
	_, err := Enrol(t.Context(), e)
	if !errors.Is(err, sdk.ErrDenied) || !strings.Contains(err.Error(), false.Fingerprint().String()) {
		t.Errorf("enrol at a strange hub: %v, want ErrDenied with its fingerprint", err)
	}
	if strings.Contains(false.log.String(), "wants=enrol") {
		t.Error("the strange hub heard what the worker wants")
	}
}

func TestGuessingTokensSlowsDown(t *testing.T) {
	h := open(t)
	good := h.enrolment(t, h.invite(t, "w1", 0))
	bad := h.enrolment(t, "hfe_"+strings.Repeat("A", 43))
	var err error
	for range 50 {
		if _, err = Enrol(t.Context(), bad); errors.Is(err, sdk.ErrBusy) {
			break
		}
	}
	if !errors.Is(err, sdk.ErrBusy) {
		t.Fatalf("after 50 wrong tokens: %v, want ErrBusy", err)
	}
	if _, err := Enrol(t.Context(), good); !errors.Is(err, sdk.ErrBusy) {
		t.Errorf("a good token from the same address: %v, want ErrBusy", err)
	}
	h.clock.forward(time.Hour)
	if _, err := Enrol(t.Context(), good); err != nil {
		t.Errorf("a good token later: %v", err)
	}
}

func TestRemovedWorkerIsCutOffAndRefused(t *testing.T) {
	h := open(t)
	w := h.employ(t, h.enrol(t, "w1"))
	h.connected(t, "w1")
	p := h.start(t, "w1", launch(t, map[string]any{"dir": t.TempDir()}))
	if err := h.Remove(operator(t), "W1"); err != nil {
		t.Fatal(err)
	}
	<-p.Done()
	until(t, "the worker to be refused", func() bool { return strings.Contains(w.log.String(), "this worker was removed") })
	until(t, "the end of the orphan", func() bool { return !alive(p.PID()) })
	if _, err := h.session("w1"); err == nil {
		t.Error("a removed worker is connected")
	}
	if err := h.Remove(operator(t), "w1"); !errors.Is(err, tenant.ErrNotFound) {
		t.Errorf("remove again: %v, want ErrNotFound", err)
	}
}

// Who enrols again is the worker from then on; the key before is of no use.
func TestEnrollingAgainReplacesTheKey(t *testing.T) {
	h := open(t)
	old := h.enrol(t, "w1")
	before := h.employ(t, old)
	h.connected(t, "w1")
	next := h.enrol(t, "w1")
	until(t, "the key before to be refused", func() bool { return strings.Contains(before.log.String(), "enrolled again with another key") })
	before.stop()
	h.employ(t, next)
	h.connected(t, "w1")
}

func TestLifeOfACertificate(t *testing.T) {
	for _, age := range []struct {
		name  string
		after time.Duration
		want  string // in the worker's log
		now   bool   // it serves
	}{
		{"young", 24 * time.Hour, "connected to the agent", true},
		{"due", pki.AgentLife / 2, "connected to the agent", true},
		{"expired", pki.AgentLife + 24*time.Hour, "connected to the agent", true},
		{"forgotten", pki.AgentLife + pki.RenewGrace + 24*time.Hour, "expired too long ago", false},
	} {
		t.Run(age.name, func(t *testing.T) {
			h := open(t)
			dir := h.enrol(t, "w1")
			before, err := Load(dir)
			if err != nil {
				t.Fatal(err)
			}
			h.clock.forward(age.after)
			// The hub's own certificate has a shorter life than this test.
			w := h.employ(t, dir)
			until(t, age.want, func() bool { return strings.Contains(w.log.String(), age.want) })
			after, err := Load(dir)
			if err != nil {
				t.Fatal(err)
			}
			if renewed := after.leaf.NotAfter.After(before.leaf.NotAfter); renewed != (age.name == "due" || age.name == "expired") {
				t.Errorf("renewed: %t", renewed)
			}
			if after.Key != before.Key {
				t.Error("the key changed")
			}
		})
	}
}

// A certificate that was stolen is of no use for another key.
func TestRenewalIsForTheSameKey(t *testing.T) {
	h := open(t)
	id := identityOf(t, h.enrol(t, "w1"))
	other, err := pki.NewAgentKey()
	if err != nil {
		t.Fatal(err)
	}
	for _, renewal := range []struct {
		key  *ecdsa.PrivateKey
		want error
	}{{other, sdk.ErrDenied}, {id.key, nil}} {
		csr, err := pki.NewRequest(renewal.key)
		if err != nil {
			t.Fatal(err)
		}
		conn, err := id.dial(t.Context(), greeting{Do: doRenew, Request: csr})
		if err != nil {
			t.Fatal(err)
		}
		var w welcome
		if err := readMessage(conn, maxGreeting, &w); err != nil {
			t.Fatal(err)
		}
		if got := w.Error.err(); !errors.Is(got, renewal.want) || len(w.Certificate) > 0 != (renewal.want == nil) {
			t.Errorf("renewal: %v, %d certificates; want %v", got, len(w.Certificate), renewal.want)
		}
		_ = conn.Close()
	}
}

// An expired certificate may be renewed and nothing else.
func TestExpiredCertificateDoesNotServe(t *testing.T) {
	h := open(t)
	id := identityOf(t, h.enrol(t, "w1"))
	h.clock.forward(pki.AgentLife + 24*time.Hour)
	conn, err := id.dial(t.Context(), greeting{Do: doServe})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	var w welcome
	if err := readMessage(conn, maxGreeting, &w); err != nil || !errors.Is(w.Error.err(), sdk.ErrDenied) {
		t.Errorf("serve with an expired certificate: %v, %v; want ErrDenied", err, w.Error.err())
	}
}

// identityOf is the identity in a worker's directory, to play that worker.
func identityOf(t testing.TB, dir string) Identity {
	t.Helper()
	id, err := Load(dir)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func TestStreamsAreTakenFromTheirWorkerAlone(t *testing.T) {
	h := open(t)
	one, two := identityOf(t, h.enrol(t, "one")), identityOf(t, h.enrol(t, "two"))
	greet := func(id Identity, g greeting) *tls.Conn {
		t.Helper()
		conn, err := id.dial(t.Context(), g)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = conn.Close() })
		return conn
	}
	refusedStream := func(what string, conn *tls.Conn) {
		t.Helper()
		if _, err := conn.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
			t.Errorf("%s: %v, want the end of the connection", what, err)
		}
	}
	session := greet(one, greeting{Do: doServe})
	var w welcome
	if err := readMessage(session, maxGreeting, &w); err != nil || w.Name != "one" {
		t.Fatalf("%+v, %v", w, err)
	}
	h.connected(t, "one")
	greet(two, greeting{Do: doServe})
	h.connected(t, "two")
	s, err := h.session("one")
	if err != nil {
		t.Fatal(err)
	}
	got := make(chan net.Conn, 1)
	go func() {
		conn, _ := s.stream(context.Background(), request{Do: doCarryLog, Process: "p"})
		got <- conn
	}()
	var asked request
	for asked.Token == "" {
		if _, err := readFrame(session, maxRequest, &asked); err != nil {
			t.Fatal(err)
		}
	}
	refusedStream("another worker's stream", greet(two, greeting{Do: doCarry, Token: asked.Token}))
	refusedStream("a stream with a wrong token", greet(one, greeting{Do: doCarry, Token: "wrong"}))
	stranger := one
	stranger.leaf = nil
	refusedStream("a stranger's stream", greet(stranger, greeting{Do: doCarry, Token: asked.Token}))
	right := greet(one, greeting{Do: doCarry, Token: asked.Token})
	until(t, "the stream to be taken", func() bool {
		s.mutex.Lock()
		defer s.mutex.Unlock()
		return len(s.streams) == 1
	})
	refusedStream("a second stream for one token, in time", greet(one, greeting{Do: doCarry, Token: asked.Token}))
	if err := writeFrame(session, answer{ID: asked.ID}); err != nil {
		t.Fatal(err)
	}
	conn := <-got
	if conn == nil {
		t.Fatal("the right stream was not taken")
	}
	defer conn.Close()
	if _, err := right.Write([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	hello := make([]byte, 5)
	if _, err := io.ReadFull(conn, hello); err != nil || string(hello) != "hello" {
		t.Errorf("%q, %v", hello, err)
	}
	refusedStream("a second stream for one token", greet(one, greeting{Do: doCarry, Token: asked.Token}))
}

// A hub that was taken over gets no connection out of a worker but to disks that
// its plugins have open.
func TestWorkerIsNoOpenProxy(t *testing.T) {
	h := open(t)
	h.employ(t, h.enrol(t, "w1"))
	h.connected(t, "w1")
	inside, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer inside.Close()
	dir, machine, _ := lab(t, 1<<20)
	p := h.start(t, "w1", launch(t, map[string]any{"dir": dir}))
	disk := openDisk(t, p, machine, 1)
	defer disk.Close()
	s, err := h.session("w1")
	if err != nil {
		t.Fatal(err)
	}
	var process string
	s.mutex.Lock()
	for id := range s.processes {
		process = id
	}
	s.mutex.Unlock()
	for _, handle := range []string{"", inside.Addr().String(), "tcp:" + inside.Addr().String(), "/run/docker.sock", strings.Repeat("x", maxHandle)} {
		conn, err := s.stream(t.Context(), request{Do: doCarryDisk, Process: process, Handle: handle})
		if !errors.Is(err, sdk.ErrDenied) {
			t.Errorf("a stream to %.40q: %v, %v; want ErrDenied", handle, conn, err)
		}
	}
	if _, err := s.stream(t.Context(), request{Do: doCarryDisk, Process: "other", Handle: "x"}); !errors.Is(err, sdk.ErrUnavailable) {
		t.Errorf("a disk of a process that is not there: %v, want ErrUnavailable", err)
	}
	if _, err := s.ask(t.Context(), request{Do: "exec", Plugin: "/bin/sh"}); !errors.Is(err, sdk.ErrUnsupported) {
		t.Errorf("something else: %v, want ErrUnsupported", err)
	}
	if _, err := s.ask(t.Context(), request{Do: doStart, Process: process, Plugin: "sim", SHA256: checksum(t)}); !errors.Is(err, sdk.ErrInvalid) {
		t.Errorf("a second process of one name: %v, want ErrInvalid", err)
	}
	if _, err := s.ask(t.Context(), request{Do: doStart, Process: strings.Repeat("x", maxWord+1), Plugin: "sim"}); !errors.Is(err, sdk.ErrInvalid) {
		t.Errorf("a long name: %v, want ErrInvalid", err)
	}
	if err := probe(p, ""); err != nil {
		t.Errorf("the plugin after that: %v", err)
	}
}

// What strangers send costs them their connection and nobody else anything.
func TestStrangersAreHungUpOn(t *testing.T) {
	h := open(t)
	id, err := newIdentity(h.address, h.Fingerprint())
	if err != nil {
		t.Fatal(err)
	}
	if err := id.request(t.Context(), greeting{Do: "nothing"}); !errors.Is(err, sdk.ErrUnsupported) {
		t.Errorf("an unknown wish: %v, want ErrUnsupported", err)
	}
	for _, send := range [][]byte{bytes.Repeat([]byte{0xff}, 64), bytes.Repeat([]byte{0}, 64), bytes.Repeat([]byte("x"), 1<<20)} {
		conn, err := net.Dial("tcp", h.address)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = conn.Write(send)
		_, _ = io.Copy(io.Discard, conn) // ends when the hub hangs up
		_ = conn.Close()
	}
	// A client of another protocol.
	config := pki.Trust{Pins: []pki.Fingerprint{h.Fingerprint()}}.ClientConfig("127.0.0.1", nil)
	config.NextProtos = []string{"h2"}
	if conn, err := tls.Dial("tcp", h.address, config); err == nil {
		t.Error("a client that speaks h2 was let in")
		_ = conn.Close()
	}
	// Without a certificate nobody serves or renews.
	for _, do := range []string{doServe, doRenew} {
		if err := id.request(t.Context(), greeting{Do: do}); !errors.Is(err, sdk.ErrDenied) {
			t.Errorf("%s without a certificate: %v, want ErrDenied", do, err)
		}
	}
	h.employ(t, h.enrol(t, "w1"))
	h.connected(t, "w1")
}

func TestStrangersAreFew(t *testing.T) {
	h := open(t)
	var conns []net.Conn
	defer func() {
		for _, c := range conns {
			_ = c.Close()
		}
	}()
	for range maxStrangers {
		c, err := net.Dial("tcp", h.address)
		if err != nil {
			t.Fatal(err)
		}
		conns = append(conns, c)
	}
	until(t, "all places for strangers to be taken", func() bool { return len(h.strangers) == maxStrangers })
	c, err := net.Dial("tcp", h.address)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("one stranger more: %v, want the end of the connection", err)
	}
}

func TestNamesOfWorkers(t *testing.T) {
	h := open(t)
	for _, name := range []string{"", " ", "a b", "a,b", "a/b", "a\nb", strings.Repeat("x", maxName+1), "\xff"} {
		if _, err := h.Invite(operator(t), name, 0); err == nil {
			t.Errorf("worker %q was invited", name)
		}
	}
	for _, life := range []time.Duration{-1, MaxInvitation + 1} {
		if _, err := h.Invite(operator(t), "w1", life); err == nil {
			t.Errorf("an invitation for %s", life)
		}
	}
}

func TestOneProcessHasADirectory(t *testing.T) {
	h := open(t)
	w := h.employ(t, h.enrol(t, "w1"))
	if other, err := New(Options{Dir: w.dir}); !errors.Is(err, sdk.ErrBusy) {
		t.Errorf("a second worker: %v, %v; want ErrBusy", other, err)
	}
	if _, err := Load(t.TempDir()); !errors.Is(err, sdk.ErrNotFound) || sdk.HintOf(err) == "" {
		t.Errorf("a directory without identity: %v, want ErrNotFound with a hint", err)
	}
}
