package pki

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"testing"
	"time"
)

func TestWorkersAndAgentsAreToldApart(t *testing.T) {
	ca, issued := authority(t), time.Now()
	key, err := NewAgentKey()
	if err != nil {
		t.Fatal(err)
	}
	der, err := NewRequest(key)
	if err != nil {
		t.Fatal(err)
	}
	request, print, err := ParseRequest(der)
	if err != nil {
		t.Fatal(err)
	}
	stateOf := func(chain [][]byte, err error) tls.ConnectionState {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		leaf, err := x509.ParseCertificate(chain[0])
		if err != nil {
			t.Fatal(err)
		}
		return tls.ConnectionState{PeerCertificates: []*x509.Certificate{leaf}}
	}
	worker := stateOf(ca.IssueWorker(request, "w-1", issued))
	agent := stateOf(ca.IssueAgent(request, "a-1", "tenant-1", issued))

	id, err := ca.VerifyWorker(worker, issued)
	if err != nil || id.WorkerID != "w-1" || id.Key != print || id.RenewOnly {
		t.Errorf("a worker's certificate: %+v, %v", id, err)
	}
	if id, err := ca.VerifyWorker(worker, issued.Add(AgentLife+time.Hour)); err != nil || !id.RenewOnly {
		t.Errorf("an expired certificate: %+v, %v; want to renew only", id, err)
	}
	if _, err := ca.VerifyWorker(worker, issued.Add(AgentLife+RenewGrace+time.Hour)); !errors.Is(err, ErrExpired) {
		t.Errorf("a long expired certificate: %v, want ErrExpired", err)
	}
	if _, err := ca.VerifyWorker(agent, issued); !errors.Is(err, ErrForeign) {
		t.Errorf("an agent as a worker: %v, want ErrForeign", err)
	}
	if _, err := ca.VerifyAgent(worker, issued); !errors.Is(err, ErrForeign) {
		t.Errorf("a worker as an agent: %v, want ErrForeign", err)
	}
	if _, err := authority(t).VerifyWorker(worker, issued); !errors.Is(err, ErrForeign) {
		t.Errorf("a worker of another authority: %v, want ErrForeign", err)
	}
	for _, bad := range []string{"", "a/b"} {
		if _, err := ca.IssueWorker(request, bad, issued); err == nil {
			t.Errorf("a certificate for worker %q was issued", bad)
		}
	}
}
