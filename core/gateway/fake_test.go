package gateway

import (
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/holdfast-dr/holdfast/core/access"
	"github.com/holdfast-dr/holdfast/core/chunk"
	"github.com/holdfast-dr/holdfast/core/pki"
	"github.com/holdfast-dr/holdfast/core/point"
	"github.com/holdfast-dr/holdfast/core/quota"
	"github.com/holdfast-dr/holdfast/core/tenant"
)

// store is the provider's inside in memory: one tenant, one agent, one
// repository.
type store struct {
	mu       sync.Mutex
	tenant   tenant.Tenant
	agent    access.Agent
	id       string
	limit    int64
	reserved int64
	reserves int // calls of Reserve
	records  map[chunk.ID][]byte
	puts     []int // sizes of the pieces that Put was given
	broken   map[chunk.ID]error
	events   []RunEvent
	held     chan struct{} // if set, Put waits for it
	end      error         // of Commit
}

func (s *store) Get(context.Context, tenant.ID) (tenant.Tenant, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.tenant, nil
}

func (s *store) AgentByID(_ context.Context, id string) (access.Agent, error) {
	if id != s.agent.ID {
		return access.Agent{}, tenant.ErrNotFound
	}
	return s.agent, nil
}

func (s *store) TouchAgent(context.Context, string, string) error { return nil }

func (s *store) Reserve(_ context.Context, _ tenant.ID, _ quota.ID, _ string, n int64) (quota.Reservation, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.reserves++
	if s.limit > 0 && s.reserved+n > s.limit {
		return quota.Reservation{}, &quota.FullError{Repository: "backups", LimitBytes: s.limit, PendingBytes: s.reserved, WantedBytes: n}
	}
	s.reserved += n
	return quota.Reservation{}, nil
}

func (s *store) Release(context.Context, tenant.ID, quota.ID, string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.reserved = 0
	return nil
}

func (s *store) Put(_ context.Context, _ access.Agent, _ string, e RunEvent) error {
	s.events = append(s.events, e)
	return nil
}

func (s *store) List(context.Context, tenant.ID, time.Time, int) ([]Report, error) { return nil, nil }

// repo is the repository of a store, repoSession a session in it.
type repo struct{ *store }

type repoSession struct {
	*store
	id      chunk.SessionID
	machine point.MachineID
}

func (r repo) Epoch() uint64 { return 7 }

func (r repo) Begin(_ context.Context, machine point.MachineID, _ point.ID, _ string) (Session, error) {
	return &repoSession{r.store, chunk.SessionID(uuid.New()), machine}, nil
}

func (r repo) Resume(context.Context, chunk.SessionID, string) (Session, error) {
	return nil, ErrSessionClosed
}

func (r repo) Read(_ context.Context, _ chunk.Kind, ids []chunk.ID, emit func(chunk.Record) error) error {
	for _, id := range ids {
		r.mu.Lock()
		b, err := r.records[id], r.broken[id]
		r.mu.Unlock()
		if err != nil {
			return err
		}
		if b == nil {
			return fmt.Errorf("record %s: %w", id, tenant.ErrNotFound)
		}
		record, _, err := chunk.ParseRecord(b)
		if err != nil {
			return err
		}
		if err := emit(record); err != nil {
			return err
		}
	}
	return nil
}

func (r repo) Manifest(context.Context, point.ID) ([]byte, error) { return nil, tenant.ErrNotFound }
func (r repo) Points(context.Context, point.MachineID, point.ID, int) ([]PointInfo, error) {
	return nil, nil
}
func (r repo) Forget(context.Context, point.ID) error        { return nil }
func (r repo) PutWrap(context.Context, string, []byte) error { return nil }
func (r repo) Wrap(context.Context, string) ([]byte, error)  { return nil, tenant.ErrNotFound }
func (r repo) Wraps(context.Context) ([]Wrap, error)         { return nil, nil }

func (s *repoSession) ID() chunk.SessionID      { return s.id }
func (s *repoSession) Machine() point.MachineID { return s.machine }
func (s *repoSession) Base() point.ID           { return "" }

func (s *repoSession) Have(_ context.Context, _ chunk.Kind, ids []chunk.ID) ([]bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	have := make([]bool, len(ids))
	for i, id := range ids {
		have[i] = s.records[id] != nil
	}
	return have, nil
}

func (s *repoSession) Put(ctx context.Context, batch []byte) (taken int64, err error) {
	if s.held != nil {
		select {
		case <-s.held:
		case <-ctx.Done():
			return 0, ctx.Err()
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.puts = append(s.puts, len(batch))
	for len(batch) > 0 {
		r, rest, err := chunk.ParseRecord(batch)
		if err != nil {
			return taken, err
		}
		if s.records[r.ID] == nil {
			taken += int64(r.Size())
		}
		s.records[r.ID] = bytes.Clone(batch[:len(batch)-len(rest)])
		batch = rest
	}
	return taken, nil
}

func (s *repoSession) Commit(context.Context, []byte) error {
	return cmp.Or(s.end, errors.New("not in this test"))
}
func (s *repoSession) Abort(context.Context) error { return nil }
func (s *repoSession) Damaged(context.Context) ([]chunk.ID, error) {
	return []chunk.ID{{1}, {2}}, nil
}

// ends are both ends of the wire over real TLS.
type ends struct {
	t       *testing.T
	store   *store
	server  *Server
	address string
	trust   pki.Trust
	own     func() (*tls.Certificate, error)
}

func newEnds(t *testing.T, change ...func(*Config)) *ends {
	t.Helper()
	now := time.Now()
	authority, err := pki.NewAuthority("test", now)
	if err != nil {
		t.Fatal(err)
	}
	certificate, err := authority.IssueServer(nil, now)
	if err != nil {
		t.Fatal(err)
	}
	key, err := pki.NewAgentKey()
	if err != nil {
		t.Fatal(err)
	}
	der, err := pki.NewRequest(key)
	if err != nil {
		t.Fatal(err)
	}
	request, print, err := pki.ParseRequest(der)
	if err != nil {
		t.Fatal(err)
	}
	st := &store{tenant: tenant.Tenant{ID: "t1", Name: "Acme", Enabled: true, MaxTasks: 2}, id: uuid.NewString(),
		agent: access.Agent{ID: "a1", TenantID: "t1", Name: "site", Key: access.Hash(print)}, records: map[chunk.ID][]byte{}, broken: map[chunk.ID]error{}}
	chain, err := authority.IssueAgent(request, st.agent.ID, st.agent.TenantID, now)
	if err != nil {
		t.Fatal(err)
	}
	e := &ends{t: t, store: st, trust: pki.Trust{Pins: []pki.Fingerprint{authority.Fingerprint()}},
		own: func() (*tls.Certificate, error) { return &tls.Certificate{Certificate: chain, PrivateKey: key}, nil }}
	config := Config{Agents: st, Tenants: st, Quota: st, Reports: st, FanOut: 128, Log: slog.New(slog.DiscardHandler), Verify: authority.VerifyAgent,
		Repositories: func(context.Context, tenant.ID) ([]quota.CloudRepository, error) { return nil, nil },
		Authorities:  func(context.Context) (string, error) { return "", nil },
		Enrol:        func(context.Context, EnrolRequest) (Credentials, error) { return Credentials{}, access.ErrEnrolment },
		Renew: func(context.Context, access.Agent, []byte) (Credentials, error) {
			return Credentials{AgentID: "a1"}, nil
		},
		Open: func(_ context.Context, id tenant.ID, repository string) (Repository, error) {
			if id != st.agent.TenantID || repository != st.id {
				return nil, tenant.ErrNotFound
			}
			return repo{st}, nil
		}}
	for _, f := range change {
		f(&config)
	}
	e.server = NewServer(config)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	e.address = l.Addr().String()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		done <- e.server.Serve(ctx, &tls.Config{Certificates: []tls.Certificate{*certificate}}, http.NotFoundHandler(), time.Second, l)
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("serve: %v", err)
		}
	})
	return e
}

// client is an agent's client; change may alter its options.
func (e *ends) client(change ...func(*Options)) *Client {
	e.t.Helper()
	o := Options{Address: e.address, Trust: e.trust, Certificate: e.own, Patience: time.Minute, Log: slog.New(slog.DiscardHandler)}
	for _, f := range change {
		f(&o)
	}
	c, err := NewClient(o)
	if err != nil {
		e.t.Fatal(err)
	}
	e.t.Cleanup(c.Close)
	return c
}

func (e *ends) begin(c *Client) *RemoteSession {
	e.t.Helper()
	s, err := c.Repository(e.store.id).Begin(e.t.Context(), point.MachineID(uuid.NewString()), "")
	if err != nil {
		e.t.Fatal(err)
	}
	return s
}

// pages are n records of a few bytes, with their ids.
func pages(session chunk.SessionID, n, size int) (batch []byte, ids []chunk.ID) {
	for i := range n {
		body := bytes.Repeat([]byte{byte(i), byte(i >> 8)}, size/2)
		id := point.PageID(body)
		ids = append(ids, id)
		batch = chunk.AppendPage(batch, session, id, body)
	}
	return batch, ids
}

func read(t *testing.T, r *RemoteRepository, ids []chunk.ID) ([]chunk.ID, error) {
	t.Helper()
	var got []chunk.ID
	err := r.Read(t.Context(), chunk.KindPage, ids, func(r chunk.Record) error {
		got = append(got, r.ID)
		return nil
	})
	return got, err
}

func sameIDs(a, b []chunk.ID) bool { return slices.Equal(a, b) }
