package main

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/core/access"
	"github.com/holdfast-dr/holdfast/core/gateway"
	"github.com/holdfast-dr/holdfast/core/pki"
	"github.com/holdfast-dr/holdfast/core/quota"
	"github.com/holdfast-dr/holdfast/core/tenant"
)

// otherTenant makes a second tenant with a cloud repository of its own, and
// enrols an agent of it.
func (p *provider) otherTenant() *testSite {
	p.t.Helper()
	t, err := p.server.db.Tenants().Create(p.ctx, tenant.Tenant{Type: tenant.Standalone, Name: "Greedy", Enabled: true, MaxTasks: 1000})
	if err != nil {
		p.t.Fatal(err)
	}
	all, err := p.server.db.Quotas().List(p.ctx, quota.Query{Tenant: p.tenant().ID, Limit: 1})
	if err != nil || len(all) == 0 {
		p.t.Fatal(err)
	}
	cloud, err := p.server.db.Quotas().Create(p.ctx, quota.CloudRepository{TenantID: t.ID, Name: "backups", LocationID: all[0].LocationID, LimitBytes: 1 << 30, ChunkSize: quota.DefaultChunkSize})
	if err != nil {
		p.t.Fatal(err)
	}
	s := p.enrol(p.newToken(t.ID))
	s.repository = s.Repository(string(cloud.ID))
	return s
}

// raw is a connection of an agent, over which a test says what it wants.
func (s *testSite) raw() net.Conn {
	s.p.t.Helper()
	conn, err := tls.Dial("tcp", s.p.address, &tls.Config{InsecureSkipVerify: true, Certificates: []tls.Certificate{*s.certificate.Load()}})
	if err != nil {
		s.p.t.Fatal(err)
	}
	s.p.t.Cleanup(func() { conn.Close() })
	return conn
}

// A tenant who opens all the connections that it may, and begins a large batch or
// manifest on each without ever ending it, beside strangers who say nothing: the
// server needs no more memory than its bounds, and another tenant backs up and
// restores meanwhile.
func TestFloodHarmsNobodyElse(t *testing.T) {
	p := newProvider(t)
	victim, greedy := p.enrol(p.env("HOLDFAST_ENROLMENT_TOKEN")), p.otherTenant()
	victim.mustBackup(2)
	session, err := greedy.repository.Begin(p.ctx, newMachine(), "")
	if err != nil {
		t.Fatal(err)
	}
	path := "/v1/agent/repositories/" + greedy.repository.ID() + "/sessions/" + session.Info().ID
	before := heap()
	var strangers sync.WaitGroup
	from := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 2)}}
	for range 300 { // as many as get in
		if conn, err := from.DialContext(p.ctx, "tcp", p.address); err == nil {
			t.Cleanup(func() { conn.Close() })
			strangers.Go(func() { _, _ = io.Copy(io.Discard, conn) })
		}
	}
	t.Cleanup(strangers.Wait) // which close them first
	const most = gateway.DefaultMaxByTenant - 10
	for i := range most {
		what := fmt.Sprintf("%s/records HTTP/1.1\r\nContent-Length: %d", path, gateway.MaxBatch)
		if i%2 == 0 {
			what = path + "/commit HTTP/1.1\r\nContent-Length: 8000000"
		}
		fmt.Fprintf(greedy.raw(), "POST %s\r\nHost: x\r\n%s: 1\r\n\r\nx", what, gateway.HeaderVersion)
	}
	_, c := victim.mustBackup(20)
	victim.mustRestore(c)
	// 64 MiB for the bodies of the one, as much for the other, and for each
	// connection its buffers.
	const bound = 256 << 20
	if now := heap(); now > before+bound {
		t.Errorf("the flood needs %d MiB, want less than %d", (now-before)>>20, bound>>20)
	}
}

func heap() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapInuse + m.StackInuse
}

// A token that two keys race for makes one agent, however they race, and that
// one again when its answer was lost.
func TestTokenIsWonByOneOfManyKeys(t *testing.T) {
	p := newProvider(t)
	token := p.env("HOLDFAST_ENROLMENT_TOKEN")
	const racers = 16
	var mu sync.Mutex
	won := map[string]bool{}
	var race sync.WaitGroup
	for range racers {
		key, err := pki.NewAgentKey()
		if err != nil {
			t.Fatal(err)
		}
		request, err := pki.NewRequest(key)
		if err != nil {
			t.Fatal(err)
		}
		c := p.client(gateway.Options{Patience: time.Minute})
		race.Go(func() {
			for range 2 {
				got, err := c.Enrol(p.ctx, token, request)
				if err != nil {
					if !errors.Is(err, access.ErrEnrolment) {
						t.Errorf("a racer: %v", err)
					}
					return
				}
				mu.Lock()
				won[got.AgentID] = true
				mu.Unlock()
			}
		})
	}
	race.Wait()
	agents, err := p.server.db.Agents().ListAgents(p.ctx, p.tenant().ID)
	if err != nil {
		t.Fatal(err)
	}
	if len(won) != 1 || len(agents) != 1 {
		t.Errorf("%d keys won, and there are %d agents", len(won), len(agents))
	}
}

// Enrolment tokens that nobody knows slow their address down; another one enrols
// meanwhile.
func TestUnknownEnrolmentTokensAreSlowedDown(t *testing.T) {
	p := newProvider(t)
	key, err := pki.NewAgentKey()
	if err != nil {
		t.Fatal(err)
	}
	request, err := pki.NewRequest(key)
	if err != nil {
		t.Fatal(err)
	}
	unknown, _ := access.NewEnrolmentToken()
	from := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 3)}}
	c := p.client(gateway.Options{Patience: time.Nanosecond, Dial: from.DialContext})
	for i := 1; ; i++ {
		_, err := c.Enrol(p.ctx, unknown, request)
		if errors.Is(err, access.ErrEnrolment) && i <= 1000 {
			continue
		}
		var problem *gateway.Problem
		if !errors.As(err, &problem) || problem.Status != http.StatusTooManyRequests || problem.RetryAfter < 1 {
			t.Fatalf("token %d: %v, want 429 that says when to try again", i, err)
		}
		break
	}
	p.enrol(p.env("HOLDFAST_ENROLMENT_TOKEN"))
}
