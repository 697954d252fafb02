package main

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/tls"
	"encoding/pem"
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/holdfast-dr/holdfast/core/access"
	"github.com/holdfast-dr/holdfast/core/audit"
	"github.com/holdfast-dr/holdfast/core/chunk"
	"github.com/holdfast-dr/holdfast/core/gateway"
	"github.com/holdfast-dr/holdfast/core/pki"
	"github.com/holdfast-dr/holdfast/core/point"
	"github.com/holdfast-dr/holdfast/core/tenant"
)

// provider is the server of `-dev`, in this process, on a real port.
type provider struct {
	t       *testing.T
	data    string
	address string
	server  *server
	stop    func()
	ctx     context.Context
}

func newProvider(t *testing.T) *provider {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	t.Cleanup(cancel)
	p := &provider{t: t, data: t.TempDir(), ctx: audit.With(ctx, audit.System("test", "a test"))}
	p.start("127.0.0.1:0")
	t.Cleanup(func() { p.stop() })
	return p
}

// start starts the server, again at the same address after stop.
func (p *provider) start(address string) {
	p.t.Helper()
	a := &app{console: console{in: strings.NewReader(""), out: io.Discard, err: testLog{p.t}, env: func(string) string { return "" }}, output: "table"}
	c := serverConfig{Data: p.data, Listen: []string{address}, Provider: "Test provider", Database: "sqlite:" + filepath.Join(p.data, "state.db"),
		MasterKey: "file:" + filepath.Join(p.data, "master.key"), Grace: 5 * time.Second, dev: true}
	listeners, err := listen(p.ctx, c.Listen)
	if err != nil {
		p.t.Fatal(err)
	}
	p.address = listeners[0].Addr().String()
	c.Address = p.address
	s, err := newServer(p.ctx, c, "", slog.New(slog.NewTextHandler(testLog{p.t}, &slog.HandlerOptions{Level: slog.LevelDebug})))
	if err != nil {
		p.t.Fatal(err)
	}
	if err := errors.Join(s.bootstrap(p.ctx), a.announce(p.ctx, s)); err != nil {
		p.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(p.ctx)
	done := make(chan error, 1)
	go func() { done <- errors.Join(s.run(ctx, nil, listeners...), s.close()) }()
	p.server = s
	p.stop = func() {
		cancel()
		if err := <-done; err != nil {
			p.t.Errorf("server: %v", err)
		}
		p.stop = func() {}
	}
}

func (p *provider) restart() {
	p.t.Helper()
	p.stop()
	p.start(p.address)
}

// testLog writes lines to a test's log.
type testLog struct{ t *testing.T }

func (l testLog) Write(b []byte) (int, error) {
	l.t.Log(strings.TrimSpace(string(b)))
	return len(b), nil
}

func (p *provider) env(name string) string {
	p.t.Helper()
	text, err := os.ReadFile(filepath.Join(p.data, devFile))
	if err != nil {
		p.t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if value, ok := strings.CutPrefix(strings.TrimSpace(line), name+"="); ok {
			return value
		}
	}
	p.t.Fatalf("%s is not in %s", name, devFile)
	return ""
}

func (p *provider) trust() pki.Trust {
	return pki.Trust{Pins: []pki.Fingerprint{p.server.authority.Fingerprint()}}
}

func (p *provider) tenant() tenant.Tenant {
	p.t.Helper()
	t, err := p.server.db.Tenants().ByName(p.ctx, devTenant)
	if err != nil {
		p.t.Fatal(err)
	}
	return t
}

// newToken is another enrolment token of a tenant.
func (p *provider) newToken(t tenant.ID) string {
	p.t.Helper()
	text, hash := access.NewEnrolmentToken()
	_, err := p.server.db.Agents().CreateEnrolment(p.ctx, access.Enrolment{TenantID: t, Site: "site", Hash: hash, Expires: time.Now().Add(time.Hour)})
	if err != nil {
		p.t.Fatal(err)
	}
	return text
}

// site is an enrolled agent's end of the wire.
type testSite struct {
	*gateway.Client
	p           *provider
	key         *ecdsa.PrivateKey
	credentials gateway.Credentials
	certificate atomic.Pointer[tls.Certificate]
	repository  *gateway.RemoteRepository
	keys        *chunk.Keyring
	repeats     *repeats
}

// repeats is the handler of a client's log, and calls a function, if it has one,
// when a request is about to be repeated.
type repeats struct {
	call atomic.Pointer[context.CancelFunc]
}

func (r *repeats) Enabled(context.Context, slog.Level) bool { return r.call.Load() != nil }

func (r *repeats) Handle(_ context.Context, said slog.Record) error {
	if call := r.call.Load(); call != nil && said.Message == "request is repeated" {
		(*call)()
	}
	return nil
}

func (r *repeats) WithAttrs([]slog.Attr) slog.Handler { return r }
func (r *repeats) WithGroup(string) slog.Handler      { return r }

func (p *provider) client(o gateway.Options) *gateway.Client {
	p.t.Helper()
	o.Address, o.Version = p.address, "test"
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if len(o.Trust.Pins) == 0 && !o.Trust.System {
		o.Trust = p.trust()
	}
	if o.Patience == 0 {
		o.Patience = 20 * time.Second
	}
	c, err := gateway.NewClient(o)
	if err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(c.Close)
	return c
}

func (p *provider) enrol(token string) *testSite {
	p.t.Helper()
	key, err := pki.NewAgentKey()
	if err != nil {
		p.t.Fatal(err)
	}
	request, err := pki.NewRequest(key)
	if err != nil {
		p.t.Fatal(err)
	}
	credentials, err := p.client(gateway.Options{}).Enrol(p.ctx, token, request)
	if err != nil {
		p.t.Fatal(err)
	}
	return p.site(key, credentials)
}

func (p *provider) site(key *ecdsa.PrivateKey, credentials gateway.Credentials) *testSite {
	p.t.Helper()
	s := &testSite{p: p, key: key, credentials: credentials, keys: chunk.NewKeyring(), repeats: &repeats{}}
	s.use(credentials.Certificate)
	s.Client = p.client(gateway.Options{Log: slog.New(s.repeats), Certificate: func() (*tls.Certificate, error) { return s.certificate.Load(), nil }})
	s.repository = s.Repository(p.env("HOLDFAST_CLOUD_REPOSITORY"))
	return s
}

// use makes a certificate the agent's own.
func (s *testSite) use(text string) {
	c := &tls.Certificate{PrivateKey: s.key}
	for block, rest := pem.Decode([]byte(text)); block != nil; block, rest = pem.Decode(rest) {
		c.Certificate = append(c.Certificate, block.Bytes)
	}
	s.certificate.Store(c)
}

// sealed is random bytes of n chunks with their ids and sealed records.
type sealed struct {
	plain   [][]byte
	ids     []chunk.ID
	records [][]byte
}

func (s *testSite) seal(session chunk.SessionID, n int) sealed {
	s.p.t.Helper()
	sealer := s.keys.NewSealer(session)
	var c sealed
	for range n {
		plain := make([]byte, chunk.Size)
		rand.Read(plain)
		id := s.keys.ID(plain)
		record, err := sealer.Append(nil, id, plain)
		if err != nil {
			s.p.t.Fatal(err)
		}
		c.plain, c.ids, c.records = append(c.plain, plain), append(c.ids, id), append(c.records, record)
	}
	return c
}

// page is the one page of a small disk's map.
func page(ids []chunk.ID) (chunk.ID, []byte) {
	p := point.Page{IDs: make([]chunk.ID, 128)}
	copy(p.IDs, ids)
	encoded := p.Append(nil)
	return point.PageID(encoded), encoded
}

func (s *testSite) manifest(session *gateway.RemoteSession, root chunk.ID, chunks int) []byte {
	s.p.t.Helper()
	info := session.Info()
	b, err := point.Manifest{
		Public: point.Public{Repository: s.repository.ID(), Point: point.NewID(), Machine: info.Machine, Session: info.ID, Taken: time.Now(),
			Kind: point.KindFull, ChunkSize: chunk.Size, FanOut: 128, Disks: []point.Disk{{SizeBytes: int64(chunks) * chunk.Size, Root: root}}},
		Private: point.Private{Disks: []point.PrivateDisk{{ID: "vda", Name: "vda"}}},
	}.Seal(s.keys)
	if err != nil {
		s.p.t.Fatal(err)
	}
	return b
}

// backup sends a whole point and returns it with its content.
func (s *testSite) backup(machine point.MachineID, chunks int) (point.ID, sealed, error) {
	session, err := s.repository.Begin(s.p.ctx, machine, "")
	if err != nil {
		return "", sealed{}, err
	}
	c := s.seal(session.ID(), chunks)
	if err := session.Put(s.p.ctx, bytes.Join(c.records, nil)); err != nil {
		return "", c, err
	}
	root, encoded := page(c.ids)
	if err := session.Put(s.p.ctx, chunk.AppendPage(nil, session.ID(), root, encoded)); err != nil {
		return "", c, err
	}
	manifest := s.manifest(session, root, chunks)
	public, err := point.ParsePublic(manifest)
	if err != nil {
		return "", c, err
	}
	return public.Point, c, session.Commit(s.p.ctx, manifest)
}

func (s *testSite) mustBackup(chunks int) (point.ID, sealed) {
	s.p.t.Helper()
	id, c, err := s.backup(newMachine(), chunks)
	if err != nil {
		s.p.t.Fatal(err)
	}
	return id, c
}

// mustRestore reads a point's chunks back and compares them.
func (s *testSite) mustRestore(c sealed) {
	s.p.t.Helper()
	opener, i := s.keys.NewOpener(), 0
	err := s.repository.Read(s.p.ctx, chunk.KindData, c.ids, func(r chunk.Record) error {
		plain, err := opener.Open(nil, r)
		if err != nil {
			return err
		}
		if !bytes.Equal(plain, c.plain[i]) {
			s.p.t.Errorf("chunk %d differs", i)
		}
		i++
		return nil
	})
	if err != nil || i != len(c.ids) {
		s.p.t.Fatalf("read %d of %d chunks: %v", i, len(c.ids), err)
	}
}

func newMachine() point.MachineID { return point.MachineID(uuid.Must(uuid.NewV7()).String()) }

func codeOf(err error) gateway.Code {
	if p, ok := errors.AsType[*gateway.Problem](err); ok {
		return p.Code
	}
	return ""
}

func isInvalid(err error) bool {
	_, ok := errors.AsType[*tenant.InvalidError](err)
	return ok
}

func isDisabled(err error) bool {
	_, ok := errors.AsType[*tenant.DisabledError](err)
	return ok
}
