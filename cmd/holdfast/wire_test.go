package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/holdfast-dr/holdfast/core/access"
	"github.com/holdfast-dr/holdfast/core/audit"
	"github.com/holdfast-dr/holdfast/core/chunk"
	"github.com/holdfast-dr/holdfast/core/gateway"
	"github.com/holdfast-dr/holdfast/core/lease"
	"github.com/holdfast-dr/holdfast/core/mover"
	"github.com/holdfast-dr/holdfast/core/pki"
	"github.com/holdfast-dr/holdfast/core/point"
	"github.com/holdfast-dr/holdfast/core/quota"
	"github.com/holdfast-dr/holdfast/core/tenant"
)

var (
	_ mover.Writer      = (*gateway.RemoteSession)(nil)
	_ mover.Reader      = (*gateway.RemoteRepository)(nil)
	_ mover.ServerTimer = (*gateway.RemoteSession)(nil)
	_ mover.ServerTimer = (*gateway.RemoteRepository)(nil)
)

func TestBackupAndRestoreOverTheWire(t *testing.T) {
	p := newProvider(t)
	site := p.enrol(p.env("HOLDFAST_ENROLMENT_TOKEN"))
	info, err := site.Site(p.ctx)
	if err != nil {
		t.Fatal(err)
	}
	if !info.Admission.Open || info.Tenant.Name != devTenant || len(info.Repositories) != 1 || info.Repositories[0].FanOut != 128 {
		t.Errorf("site = %+v", info)
	}
	id, c := site.mustBackup(50)
	site.mustRestore(c)
	if got, err := site.repository.Manifest(p.ctx, id); err != nil || len(got) == 0 {
		t.Errorf("manifest: %d bytes, %v", len(got), err)
	}
	var listed []point.ID
	for info, err := range site.repository.Points(p.ctx, "") {
		if err != nil {
			t.Fatal(err)
		}
		listed = append(listed, info.ID)
	}
	if len(listed) != 1 || listed[0] != id {
		t.Errorf("points = %v, want %s", listed, id)
	}
	if info, err = site.Site(p.ctx); err != nil || info.Repositories[0].UsedBytes < 50*chunk.Size || info.Repositories[0].PendingBytes != 0 {
		t.Errorf("after the backup: %+v, %v; want what is used charged and nothing pending", info.Repositories, err)
	}
	if site.ServerTime() == 0 {
		t.Error("the server did not say how long it took")
	}
	if err := site.repository.Forget(p.ctx, id); err != nil {
		t.Fatal(err)
	}
	if _, err := site.repository.Manifest(p.ctx, id); !errors.Is(err, tenant.ErrNotFound) {
		t.Errorf("manifest of a forgotten point: %v", err)
	}
}

func TestWrapsAreKept(t *testing.T) {
	p := newProvider(t)
	site := p.enrol(p.env("HOLDFAST_ENROLMENT_TOKEN"))
	wrapped := testWrap(t, site.keys)
	if err := site.repository.PutWrap(p.ctx, "kit-1", wrapped); err != nil {
		t.Fatal(err)
	}
	if err := site.repository.PutWrap(p.ctx, "kit-2", []byte("no wrap at all, but of some length")); !errors.Is(err, chunk.ErrDamaged) {
		t.Errorf("a wrap that is none: %v, want ErrDamaged", err)
	}
	got, err := site.repository.Wrap(p.ctx, "kit-1")
	if err != nil || !bytes.Equal(got, wrapped) {
		t.Errorf("wrap: %d bytes, %v", len(got), err)
	}
	all, err := site.repository.Wraps(p.ctx)
	if err != nil || len(all) != 1 || all[0].Name != "kit-1" {
		t.Errorf("wraps = %+v, %v", all, err)
	}
	if _, err := site.repository.Wrap(p.ctx, "kit-9"); !errors.Is(err, tenant.ErrNotFound) {
		t.Errorf("unknown wrap: %v", err)
	}
}

func TestTokenIsBoundToTheFirstKey(t *testing.T) {
	p := newProvider(t)
	token := p.env("HOLDFAST_ENROLMENT_TOKEN")
	key, _ := pki.NewAgentKey()
	request, _ := pki.NewRequest(key)
	first, err := p.client(gateway.Options{}).Enrol(p.ctx, token, request)
	if err != nil {
		t.Fatal(err)
	}
	again, err := p.client(gateway.Options{}).Enrol(p.ctx, token, request)
	if err != nil || again.AgentID != first.AgentID {
		t.Errorf("the same key again: agent %s, %v; want %s", again.AgentID, err, first.AgentID)
	}
	other, _ := pki.NewAgentKey()
	request, _ = pki.NewRequest(other)
	if _, err := p.client(gateway.Options{}).Enrol(p.ctx, token, request); !errors.Is(err, access.ErrEnrolment) {
		t.Errorf("another key: %v, want ErrEnrolment", err)
	}
	if _, err := p.client(gateway.Options{}).Enrol(p.ctx, "hfe_wrong", request); !errors.Is(err, access.ErrEnrolment) {
		t.Errorf("a wrong token: %v, want ErrEnrolment", err)
	}
}

func TestWrongProviderLearnsNothing(t *testing.T) {
	p := newProvider(t)
	other, err := pki.NewAuthority("Somebody else", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	certificate, err := other.IssueServer([]string{"127.0.0.1"}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{*certificate}})
	if err != nil {
		t.Fatal(err)
	}
	received := make(chan int, 1)
	go func() {
		conn, err := l.Accept()
		if err != nil {
			received <- -1
			return
		}
		b, _ := io.ReadAll(conn)
		conn.Close()
		received <- len(b)
	}()
	key, _ := pki.NewAgentKey()
	request, _ := pki.NewRequest(key)
	c, err := gateway.NewClient(gateway.Options{Address: l.Addr().String(), Trust: p.trust()})
	if err != nil {
		t.Fatal(err)
	}
	_, err = c.Enrol(p.ctx, p.env("HOLDFAST_ENROLMENT_TOKEN"), request)
	if untrusted, ok := errors.AsType[*pki.UntrustedError](err); !ok || untrusted.Presented != other.Fingerprint() {
		t.Errorf("enrol at another provider: %v, want UntrustedError with its fingerprint", err)
	}
	if n := <-received; n != 0 {
		t.Errorf("the wrong provider received %d bytes", n)
	}
	_ = l.Close()
	// The token is still good.
	p.enrol(p.env("HOLDFAST_ENROLMENT_TOKEN"))
}

func TestRenewal(t *testing.T) {
	p := newProvider(t)
	site := p.enrol(p.env("HOLDFAST_ENROLMENT_TOKEN"))
	request, _ := pki.NewRequest(site.key)
	next, err := site.Renew(p.ctx, request)
	if err != nil {
		t.Fatal(err)
	}
	if next.AgentID != site.credentials.AgentID || next.Certificate == site.credentials.Certificate {
		t.Errorf("renewed for agent %s, same certificate %v", next.AgentID, next.Certificate == site.credentials.Certificate)
	}
	site.use(next.Certificate)
	site.Close()
	if _, err := site.Site(p.ctx); err != nil {
		t.Errorf("with the renewed certificate: %v", err)
	}
	stranger, _ := pki.NewAgentKey()
	request, _ = pki.NewRequest(stranger)
	if _, err := site.Renew(p.ctx, request); !isInvalid(err) {
		t.Errorf("renewal for another key: %v, want InvalidError", err)
	}
}

func TestExpiredCertificateMayOnlyRenew(t *testing.T) {
	p := newProvider(t)
	site := p.enrol(p.env("HOLDFAST_ENROLMENT_TOKEN"))
	request, _ := pki.NewRequest(site.key)
	parsed, _, err := pki.ParseRequest(request)
	if err != nil {
		t.Fatal(err)
	}
	issue := func(ago time.Duration) string {
		chain, err := p.server.authority.IssueAgent(parsed, site.credentials.AgentID, p.tenant().ID, time.Now().Add(-pki.AgentLife-ago))
		if err != nil {
			t.Fatal(err)
		}
		return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: chain[0]}))
	}
	site.use(issue(30 * time.Minute)) // within the life of the CA, which the test has just made
	site.Close()
	if _, err := site.Site(p.ctx); codeOf(err) != gateway.CodeExpired {
		t.Errorf("site with an expired certificate: %v, want %s", err, gateway.CodeExpired)
	}
	if _, _, err := site.backup(newMachine(), 1); codeOf(err) != gateway.CodeExpired {
		t.Errorf("backup with an expired certificate: %v, want %s", err, gateway.CodeExpired)
	}
	next, err := site.Renew(p.ctx, request)
	if err != nil {
		t.Fatalf("renewal with an expired certificate: %v", err)
	}
	site.use(issue(pki.RenewGrace + time.Hour))
	site.Close()
	if _, err := site.Renew(p.ctx, request); codeOf(err) != gateway.CodeCertificate {
		t.Errorf("renewal after the grace: %v, want %s", err, gateway.CodeCertificate)
	}
	site.use(next.Certificate)
	site.Close()
	site.mustBackup(1)
}

func TestForeignCertificateIsRefused(t *testing.T) {
	p := newProvider(t)
	site := p.enrol(p.env("HOLDFAST_ENROLMENT_TOKEN"))
	other, _ := pki.NewAuthority("Somebody else", time.Now())
	request, _ := pki.NewRequest(site.key)
	parsed, _, _ := pki.ParseRequest(request)
	chain, err := other.IssueAgent(parsed, site.credentials.AgentID, p.tenant().ID, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	site.use(string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: chain[0]})))
	if _, err := site.Site(p.ctx); codeOf(err) != gateway.CodeCertificate {
		t.Errorf("another CA's certificate: %v, want %s", err, gateway.CodeCertificate)
	}
	site.certificate.Store(&tls.Certificate{})
	site.Close()
	if _, err := site.Site(p.ctx); codeOf(err) != gateway.CodeCertificate {
		t.Errorf("no certificate: %v, want %s", err, gateway.CodeCertificate)
	}
}

func TestRevokedAgentIsCutOff(t *testing.T) {
	p := newProvider(t)
	site := p.enrol(p.env("HOLDFAST_ENROLMENT_TOKEN"))
	site.mustBackup(1)
	if _, err := p.server.db.Agents().RevokeAgent(p.ctx, p.tenant().ID, site.credentials.AgentID); err != nil {
		t.Fatal(err)
	}
	if n := p.server.gateway.DisconnectAgent(site.credentials.AgentID); n == 0 {
		t.Error("no connection was closed")
	}
	if _, err := site.Site(p.ctx); codeOf(err) != gateway.CodeRevoked {
		t.Errorf("a revoked agent: %v, want %s", err, gateway.CodeRevoked)
	}
	request, _ := pki.NewRequest(site.key)
	if _, err := site.Renew(p.ctx, request); codeOf(err) != gateway.CodeRevoked {
		t.Errorf("renewal of a revoked agent: %v, want %s", err, gateway.CodeRevoked)
	}
}

func TestDisabledTenantIsCutOffAndLosesNothing(t *testing.T) {
	p := newProvider(t)
	site := p.enrol(p.env("HOLDFAST_ENROLMENT_TOKEN"))
	_, c := site.mustBackup(4)
	session, err := site.repository.Begin(p.ctx, newMachine(), "")
	if err != nil {
		t.Fatal(err)
	}
	sent := site.seal(session.ID(), 4)
	if err := session.Put(p.ctx, bytes.Join(sent.records, nil)); err != nil {
		t.Fatal(err)
	}
	if _, err := p.server.db.Tenants().SetEnabled(p.ctx, p.tenant().ID, false); err != nil {
		t.Fatal(err)
	}
	if p.server.gateway.DisconnectTenant(p.tenant().ID) == 0 {
		t.Error("no connection was closed")
	}
	err = site.repository.Read(p.ctx, chunk.KindData, c.ids, func(chunk.Record) error { return nil })
	if disabled, ok := errors.AsType[*tenant.DisabledError](err); !ok || disabled.Name != devTenant || gateway.HintOf(err) == "" {
		t.Errorf("read while disabled: %v, want DisabledError with a hint", err)
	}
	if err := session.Put(p.ctx, sent.records[0]); !isDisabled(err) {
		t.Errorf("put while disabled: %v, want DisabledError", err)
	}
	info, err := site.Site(p.ctx)
	if err != nil || info.Admission.Open || info.Admission.Problem.Code != gateway.CodeDisabled {
		t.Errorf("site while disabled = %+v, %v; want to be told", info.Admission, err)
	}
	if _, err := p.server.db.Tenants().SetEnabled(p.ctx, p.tenant().ID, true); err != nil {
		t.Fatal(err)
	}
	site.mustRestore(c)
	have, err := session.Have(p.ctx, chunk.KindData, sent.ids)
	if err != nil || !have[0] || !have[3] {
		t.Errorf("what was sent before: %v, %v; want all there", have, err)
	}
}

func TestEndedLeaseRefusesAndLosesNothing(t *testing.T) {
	p := newProvider(t)
	site := p.enrol(p.env("HOLDFAST_ENROLMENT_TOKEN"))
	_, c := site.mustBackup(2)
	v := p.tenant()
	v.LeaseEnd = time.Now().Add(-time.Hour).Truncate(time.Microsecond)
	v, err := p.server.db.Tenants().Update(p.ctx, v)
	if err != nil {
		t.Fatal(err)
	}
	_, _, err = site.backup(newMachine(), 1)
	if ended, ok := errors.AsType[*lease.EndedError](err); !ok || !ended.End.Equal(v.LeaseEnd) {
		t.Errorf("backup after the lease: %v, want EndedError with its end", err)
	}
	err = site.repository.Read(p.ctx, chunk.KindData, c.ids, func(chunk.Record) error { return nil })
	if _, ok := errors.AsType[*lease.EndedError](err); !ok {
		t.Errorf("restore after the lease: %v, want EndedError", err)
	}
	v.LeaseEnd = time.Now().Add(time.Hour)
	if _, err := p.server.db.Tenants().Update(p.ctx, v); err != nil {
		t.Fatal(err)
	}
	site.mustRestore(c)
}

func TestFullQuotaRefusesExactly(t *testing.T) {
	p := newProvider(t)
	site := p.enrol(p.env("HOLDFAST_ENROLMENT_TOKEN"))
	_, kept := site.mustBackup(8)
	id := quota.ID(site.repository.ID())
	r, err := p.server.db.Quotas().Get(p.ctx, p.tenant().ID, id)
	if err != nil {
		t.Fatal(err)
	}
	r.LimitBytes = r.UsedBytes + 4*chunk.Size
	if r, err = p.server.db.Quotas().Update(p.ctx, r); err != nil {
		t.Fatal(err)
	}
	session, err := site.repository.Begin(p.ctx, newMachine(), "")
	if err != nil {
		t.Fatal(err)
	}
	c := site.seal(session.ID(), 8)
	if err := session.Put(p.ctx, bytes.Join(c.records[:3], nil)); err != nil {
		t.Fatalf("what fits: %v", err)
	}
	err = session.Put(p.ctx, bytes.Join(c.records[3:], nil))
	full, ok := errors.AsType[*quota.FullError](err)
	if !ok || full.LimitBytes != r.LimitBytes || full.UsedBytes != r.UsedBytes || full.WantedBytes == 0 || gateway.HintOf(err) == "" {
		t.Fatalf("what does not fit: %v (%+v), want FullError with the figures and a hint", err, full)
	}
	site.mustRestore(kept)
	r.LimitBytes += 100 * chunk.Size
	if _, err = p.server.db.Quotas().Update(p.ctx, r); err != nil {
		t.Fatal(err)
	}
	if err := session.Put(p.ctx, bytes.Join(c.records[3:], nil)); err != nil {
		t.Fatalf("after the quota was raised: %v", err)
	}
	root, encoded := page(c.ids)
	if err := session.Put(p.ctx, chunk.AppendPage(nil, session.ID(), root, encoded)); err != nil {
		t.Fatal(err)
	}
	if err := session.Commit(p.ctx, site.manifest(session, root, 8)); err != nil {
		t.Fatal(err)
	}
	site.mustRestore(c)
}

func TestForeignRepositoryDoesNotExist(t *testing.T) {
	p := newProvider(t)
	site := p.enrol(p.env("HOLDFAST_ENROLMENT_TOKEN"))
	id, c := site.mustBackup(1)
	other, err := p.server.db.Tenants().Create(p.ctx, tenant.Tenant{Type: tenant.Standalone, Name: "other", Enabled: true, MaxTasks: 2})
	if err != nil {
		t.Fatal(err)
	}
	stranger := p.enrol(p.newToken(other.ID))
	for what, try := range map[string]func() error{
		"begin":    func() error { _, err := stranger.repository.Begin(p.ctx, newMachine(), ""); return err },
		"manifest": func() error { _, err := stranger.repository.Manifest(p.ctx, id); return err },
		"points":   func() error { _, err := stranger.repository.PointPage(p.ctx, "", "", 10); return err },
		"forget":   func() error { return stranger.repository.Forget(p.ctx, id) },
		"wraps":    func() error { _, err := stranger.repository.Wraps(p.ctx); return err },
		"put wrap": func() error { return stranger.repository.PutWrap(p.ctx, "k", testWrap(t, site.keys)) },
		"read": func() error {
			return stranger.repository.Read(p.ctx, chunk.KindData, c.ids, func(chunk.Record) error { return nil })
		},
	} {
		err := try()
		if !errors.Is(err, tenant.ErrNotFound) {
			t.Errorf("%s in another tenant's repository: %v, want ErrNotFound", what, err)
		}
		if what != "points" || err == nil {
			continue
		}
		unknown := stranger.Repository(uuid.NewString())
		_, e := unknown.PointPage(p.ctx, "", "", 10)
		if e == nil || strings.ReplaceAll(e.Error(), unknown.ID(), "ID") != strings.ReplaceAll(err.Error(), stranger.repository.ID(), "ID") {
			t.Errorf("a foreign repository answers %q, an unknown one %q", err, e)
		}
	}
	info, err := stranger.Site(p.ctx)
	if err != nil || len(info.Repositories) != 0 {
		t.Errorf("the other tenant sees %+v, %v", info.Repositories, err)
	}
	site.mustRestore(c)
}

func TestSessionBelongsToItsAgent(t *testing.T) {
	p := newProvider(t)
	first, second := p.enrol(p.env("HOLDFAST_ENROLMENT_TOKEN")), p.enrol(p.newToken(p.tenant().ID))
	session, err := first.repository.Begin(p.ctx, newMachine(), "")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := second.repository.Resume(p.ctx, session.ID()); !errors.Is(err, gateway.ErrSessionClosed) {
		t.Errorf("another agent's session: %v, want ErrSessionClosed", err)
	}
	p.restart()
	if _, err := second.repository.Resume(p.ctx, session.ID()); !errors.Is(err, gateway.ErrSessionClosed) {
		t.Errorf("another agent's session, after a restart: %v, want ErrSessionClosed", err)
	}
	if _, err := first.repository.Resume(p.ctx, session.ID()); err != nil {
		t.Errorf("its own session, after a restart: %v", err)
	}
}

func TestSecondWriterOfAMachineWaits(t *testing.T) {
	p := newProvider(t)
	first, second := p.enrol(p.env("HOLDFAST_ENROLMENT_TOKEN")), p.enrol(p.newToken(p.tenant().ID))
	machine := newMachine()
	session, err := first.repository.Begin(p.ctx, machine, "")
	if err != nil {
		t.Fatal(err)
	}
	_, err = second.repository.Begin(p.ctx, machine, "")
	if held, ok := errors.AsType[*gateway.WriterError](err); !ok || held.Machine != machine || !held.Until.After(time.Now()) {
		t.Fatalf("a second writer: %v, want WriterError", err)
	}
	if _, err := first.repository.Begin(p.ctx, machine, ""); err != nil {
		t.Errorf("the first writer begins again: %v", err)
	}
	if err := session.Abort(p.ctx); err != nil {
		t.Fatal(err)
	}
	if err := session.Abort(p.ctx); err != nil {
		t.Errorf("a repeated abort: %v", err)
	}
	if _, err := second.repository.Begin(p.ctx, machine, ""); err != nil {
		t.Errorf("after the first one ended: %v", err)
	}
}

func TestMissingRecordsAreNamed(t *testing.T) {
	p := newProvider(t)
	site := p.enrol(p.env("HOLDFAST_ENROLMENT_TOKEN"))
	session, err := site.repository.Begin(p.ctx, newMachine(), "")
	if err != nil {
		t.Fatal(err)
	}
	c := site.seal(session.ID(), 3)
	if err := session.Put(p.ctx, bytes.Join(c.records[1:], nil)); err != nil {
		t.Fatal(err)
	}
	root, encoded := page(c.ids)
	if err := session.Put(p.ctx, chunk.AppendPage(nil, session.ID(), root, encoded)); err != nil {
		t.Fatal(err)
	}
	manifest := site.manifest(session, root, 3)
	err = session.Commit(p.ctx, manifest)
	missing, ok := errors.AsType[*point.MissingError](err)
	if !ok || len(missing.Chunks) != 1 || missing.Chunks[0] != c.ids[0] {
		t.Fatalf("commit without a chunk: %v, want MissingError with its id", err)
	}
	if err := session.Put(p.ctx, c.records[0]); err != nil {
		t.Fatal(err)
	}
	if err := session.Commit(p.ctx, manifest); err != nil {
		t.Fatal(err)
	}
	if err := session.Commit(p.ctx, manifest); err != nil {
		t.Errorf("a repeated commit: %v", err)
	}
	site.mustRestore(c)
}

func TestRestartOfTheServerCostsNoWork(t *testing.T) {
	p := newProvider(t)
	site := p.enrol(p.env("HOLDFAST_ENROLMENT_TOKEN"))
	session, err := site.repository.Begin(p.ctx, newMachine(), "")
	if err != nil {
		t.Fatal(err)
	}
	c := site.seal(session.ID(), 12)
	if err := session.Put(p.ctx, bytes.Join(c.records[:6], nil)); err != nil {
		t.Fatal(err)
	}
	p.stop()
	put := make(chan error, 1)
	go func() { put <- session.Put(p.ctx, bytes.Join(c.records[6:], nil)) }()
	p.start(p.address)
	if err := <-put; err != nil {
		t.Fatalf("put across a restart: %v", err)
	}
	have, err := session.Have(p.ctx, chunk.KindData, c.ids)
	if err != nil {
		t.Fatal(err)
	}
	for i, yes := range have {
		if !yes {
			t.Errorf("chunk %d has to be sent again", i)
		}
	}
	root, encoded := page(c.ids)
	if err := session.Put(p.ctx, chunk.AppendPage(nil, session.ID(), root, encoded)); err != nil {
		t.Fatal(err)
	}
	manifest := site.manifest(session, root, 12)
	if err := session.Commit(p.ctx, manifest); err != nil {
		t.Fatal(err)
	}
	p.restart()
	if err := session.Commit(p.ctx, manifest); err != nil {
		t.Errorf("a repeated commit after a restart: %v", err)
	}
	site.mustRestore(c)
}

func TestTooManyTasksWait(t *testing.T) {
	p := newProvider(t)
	site := p.enrol(p.env("HOLDFAST_ENROLMENT_TOKEN"))
	_, c := site.mustBackup(1)
	v := p.tenant()
	v.MaxTasks = 1
	if _, err := p.server.db.Tenants().Update(p.ctx, v); err != nil {
		t.Fatal(err)
	}
	read := func(ctx context.Context, hold <-chan struct{}, begun chan<- struct{}) error {
		return site.repository.Read(ctx, chunk.KindData, c.ids, func(chunk.Record) error {
			close(begun)
			<-hold
			return nil
		})
	}
	hold, begun := make(chan struct{}), make(chan struct{})
	first := make(chan error, 1)
	go func() { first <- read(gateway.WithTask(p.ctx, "disk 1"), hold, begun) }()
	<-begun
	// It waits as long as its context does, which here ends when it has been refused once.
	waiting, giveUp := context.WithCancel(gateway.WithTask(p.ctx, "disk 2"))
	defer giveUp()
	site.repeats.call.Store(&giveUp)
	err := read(waiting, nil, make(chan struct{}))
	site.repeats.call.Store(nil)
	if tasks, ok := errors.AsType[*gateway.TasksError](err); !ok || tasks.Limit != 1 {
		t.Errorf("one task too many: %v, want TasksError", err)
	}
	close(hold)
	if err := <-first; err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	close(done)
	if err := read(gateway.WithTask(p.ctx, "disk 2"), done, make(chan struct{})); err != nil {
		t.Errorf("after the first task: %v", err)
	}
}

func TestIPv6(t *testing.T) {
	l, err := net.Listen("tcp", "[::1]:0")
	if err != nil {
		t.Skip("no IPv6 here:", err)
	}
	address := l.Addr().String()
	l.Close()
	ctx := audit.With(t.Context(), audit.System("test", "a test"))
	p := &provider{t: t, data: t.TempDir(), ctx: ctx}
	p.start(address)
	defer p.stop()
	p.enrol(p.env("HOLDFAST_ENROLMENT_TOKEN")).mustBackup(1)
}

func TestOldTLSIsRefused(t *testing.T) {
	p := newProvider(t)
	roots := x509.NewCertPool()
	roots.AddCert(p.server.authority.Certificate())
	_, err := tls.Dial("tcp", p.address, &tls.Config{RootCAs: roots, ServerName: pki.ProviderName, MaxVersion: tls.VersionTLS12})
	if err == nil {
		t.Error("TLS 1.2 was accepted")
	}
}
