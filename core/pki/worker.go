package pki

import (
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"time"
)

// WorkerIdentity is who a worker's certificate speaks for.
type WorkerIdentity struct {
	WorkerID string
	Key      Fingerprint // of the worker's public key
	NotAfter time.Time
	// RenewOnly: the certificate has expired; nothing but its renewal is allowed.
	RenewOnly bool
}

// IssueWorker signs a worker's request and returns its certificate (DER)
// followed by the CA's. Its life and its renewal are those of an agent's. The
// caller has checked that the worker may have it.
func (a *Authority) IssueWorker(request *x509.CertificateRequest, workerID string, now time.Time) ([][]byte, error) {
	if workerID == "" || strings.Contains(workerID, "/") {
		return nil, errors.New("issue worker certificate: the worker's id must be given")
	}
	der, err := a.issue(&x509.Certificate{
		Subject:     pkix.Name{CommonName: "Holdfast worker " + workerID},
		NotAfter:    now.Add(AgentLife),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
		URIs:        []*url.URL{{Scheme: peerScheme, Host: workerHost, Path: "/" + workerID}},
	}, request.PublicKey, now)
	if err != nil {
		return nil, fmt.Errorf("issue worker certificate: %w", err)
	}
	return [][]byte{der, a.certificate.Raw}, nil
}

// VerifyWorker is VerifyAgent for workers; neither takes the other's
// certificates.
func (a *Authority) VerifyWorker(state tls.ConnectionState, now time.Time) (WorkerIdentity, error) {
	leaf, id, err := a.verifyPeer(state, workerHost, now)
	if err != nil {
		return WorkerIdentity{}, err
	}
	if id == "" || strings.Contains(id, "/") {
		return WorkerIdentity{}, ErrForeign
	}
	return WorkerIdentity{WorkerID: id, Key: FingerprintOf(leaf), NotAfter: leaf.NotAfter, RenewOnly: now.After(leaf.NotAfter)}, nil
}
