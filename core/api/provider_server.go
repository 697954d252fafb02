package api

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/holdfast-dr/holdfast/core/access"
	"github.com/holdfast-dr/holdfast/core/audit"
	"github.com/holdfast-dr/holdfast/core/pki"
	"github.com/holdfast-dr/holdfast/core/tenant"
)

// isNotFound says whether an error means that there is no such thing.
func isNotFound(err error) bool { return errors.Is(err, tenant.ErrNotFound) }

// ofProvider says whether the caller is one of the provider's people.
func ofProvider(ctx context.Context) bool {
	c := access.From(ctx)
	return c.Kind == access.BySystem || c.Kind == access.ByUser && c.TenantID == tenant.Provider
}

// AuditEntry is one link of an audit chain.
type AuditEntry struct {
	Sequence int64           `json:"sequence"`
	Time     time.Time       `json:"time"`
	Actor    string          `json:"actor" doc:"user:ID, agent:ID or system:PART"`
	Name     string          `json:"name,omitempty"`
	Address  string          `json:"address,omitempty"`
	Request  string          `json:"request,omitempty"`
	Reason   string          `json:"reason,omitempty"`
	Action   string          `json:"action" example:"tenant.disable"`
	Target   string          `json:"target"`
	Detail   json.RawMessage `json:"detail,omitempty"`
	Previous string          `json:"previous" doc:"Hash of the entry before"`
	Hash     string          `json:"hash"`
}

func entryOf(e audit.Entry) AuditEntry {
	return AuditEntry{Sequence: e.Sequence, Time: e.Time.UTC(), Actor: e.Actor, Name: e.Name, Address: e.Address, Request: e.Request,
		Reason: e.Reason, Action: e.Action, Target: e.Target, Detail: e.Detail, Previous: e.Previous.String(), Hash: e.Hash.String()}
}

// AuditPage is a part of an audit chain.
type AuditPage struct {
	Items []AuditEntry `json:"items"`
	Next  int64        `json:"next,omitempty" doc:"Pass it as after to continue; absent at the end"`
}

type listAuditInput struct {
	TenantQuery
	After  int64     `query:"after" minimum:"0" doc:"Continue after this entry; with newest, before it"`
	Newest bool      `query:"newest" doc:"Newest first"`
	Action string    `query:"action" maxLength:"64"`
	Target string    `query:"target" maxLength:"200"`
	Actor  string    `query:"actor" maxLength:"200"`
	Since  time.Time `query:"since"`
	Until  time.Time `query:"until"`
	Limit  int       `query:"limit" minimum:"1" maximum:"1000" default:"200"`
}

// AuditProof says whether an audit chain is whole.
type AuditProof struct {
	Whole   bool   `json:"whole" doc:"Every entry fits the one before it"`
	Entries int64  `json:"entries" doc:"How many fit"`
	Head    string `json:"head" doc:"Hash of the last one that fits; compare it with an exported one"`
	Fault   string `json:"fault,omitempty"`
}

// Certificate is what tenants need to know of the server's certificate.
type Certificate struct {
	Address     string    `json:"address"`
	Fingerprint string    `json:"fingerprint" doc:"Of the CA, for tenants to pin"`
	Subject     string    `json:"subject"`
	Issuer      string    `json:"issuer"`
	Names       []string  `json:"names"`
	Serial      string    `json:"serial"`
	NotAfter    time.Time `json:"not_after"`
	Imported    bool      `json:"imported" doc:"Not issued by the provider's own CA"`
	Notice      string    `json:"notice" doc:"The same as a text to send to tenants over another channel"`
}

func certificateOf(n pki.Notice) Certificate {
	names := n.Names
	if names == nil {
		names = []string{}
	}
	return Certificate{Address: n.Address, Fingerprint: n.Pin, Subject: n.Subject, Issuer: n.Issuer, Names: names, Serial: n.Serial,
		NotAfter: n.NotAfter.UTC(), Imported: n.Imported, Notice: n.Text()}
}

type replaceCertificateInput struct {
	Body struct {
		PEM      string `json:"pem,omitempty" maxLength:"1048576" writeOnly:"true" doc:"Certificate, chain and private key as PEM"`
		PFX      []byte `json:"pfx,omitempty" writeOnly:"true" doc:"The same as a PFX file, base64"`
		Password string `json:"password,omitempty" maxLength:"1024" writeOnly:"true" doc:"Of the PFX file"`
	}
}

// Status is how the server is.
type Status struct {
	Version      string    `json:"version"`
	Node         string    `json:"node"`
	Started      time.Time `json:"started"`
	Database     string    `json:"database" doc:"The engine"`
	Connections  int       `json:"connections" doc:"Open connections of agents"`
	Repositories int       `json:"repositories" doc:"Cloud repositories that this server holds at the moment"`
}

func registerServer(h huma.API, p *Provider) {
	add(h, huma.Operation{OperationID: "get-status", Method: http.MethodGet, Path: "/v1/status", Tags: []string{"server"},
		Summary: "Show how the server is"}, func(ctx context.Context, _ *struct{}) (*struct{ Body Status }, error) {
		return &struct{ Body Status }{p.Status(ctx)}, nil
	})
	add(h, huma.Operation{OperationID: "get-certificate", Method: http.MethodGet, Path: "/v1/certificate", Tags: []string{"certificate"},
		Summary: "Show the server's certificate and the fingerprint to send to tenants"}, p.certificate)
	add(h, huma.Operation{OperationID: "replace-certificate", Method: http.MethodPut, Path: "/v1/certificate", Tags: []string{"certificate"},
		Summary: "Import a certificate from PEM or PFX", MaxBodyBytes: 3 << 20,
		Description: "Every server of the provider presents it at once, without a restart."}, p.replaceCertificate)
	add(h, huma.Operation{OperationID: "remove-certificate", Method: http.MethodDelete, Path: "/v1/certificate", Tags: []string{"certificate"},
		Summary: "Go back to certificates of the provider's own CA"}, p.removeCertificate)
	add(h, huma.Operation{OperationID: "list-audit", Method: http.MethodGet, Path: "/v1/audit", Tags: []string{"audit"},
		Summary: "Read an audit chain"}, p.listAudit)
	add(h, huma.Operation{OperationID: "verify-audit", Method: http.MethodGet, Path: "/v1/audit/proof", Tags: []string{"audit"},
		Summary: "Check that an audit chain is whole"}, p.verifyAudit)
}

func (p *Provider) certificate(context.Context, *struct{}) (*struct{ Body Certificate }, error) {
	n, err := p.Notice()
	if err != nil {
		return nil, err
	}
	return &struct{ Body Certificate }{certificateOf(n)}, nil
}

func (p *Provider) replaceCertificate(ctx context.Context, in *replaceCertificateInput) (*struct{ Body Certificate }, error) {
	invalid := func(reason string) error { return &tenant.InvalidError{Field: "certificate", Reason: reason} }
	if (in.Body.PEM == "") == (len(in.Body.PFX) == 0) {
		return nil, invalid("give either pem or pfx")
	}
	c, err := pki.ParsePEM([]byte(in.Body.PEM))
	if len(in.Body.PFX) > 0 {
		c, err = pki.ParsePFX(in.Body.PFX, in.Body.Password)
	}
	if err != nil {
		return nil, invalid(err.Error())
	}
	if err := p.SetCertificate(ctx, c); err != nil {
		return nil, err
	}
	return p.certificate(ctx, nil)
}

func (p *Provider) removeCertificate(ctx context.Context, _ *struct{}) (*struct{ Body Certificate }, error) {
	if err := p.SetCertificate(ctx, nil); err != nil {
		return nil, err
	}
	return p.certificate(ctx, nil)
}

func (p *Provider) listAudit(ctx context.Context, in *listAuditInput) (*struct{ Body AuditPage }, error) {
	entries, err := p.Audit.List(ctx, audit.Query{Chain: tenant.ID(in.Tenant), After: in.After, Newest: in.Newest, Action: in.Action,
		Target: in.Target, Actor: in.Actor, Since: in.Since, Until: in.Until, Limit: in.Limit})
	if err != nil {
		return nil, err
	}
	page := AuditPage{Items: each(entries, entryOf)}
	if len(entries) == in.Limit {
		page.Next = entries[len(entries)-1].Sequence
	}
	return &struct{ Body AuditPage }{page}, nil
}

func (p *Provider) verifyAudit(ctx context.Context, in *TenantQuery) (*struct{ Body AuditProof }, error) {
	head, err := audit.Verify(ctx, p.Audit, tenant.ID(in.Tenant))
	proof := AuditProof{Whole: err == nil, Entries: head.Sequence, Head: head.Hash.String()}
	if broken, ok := errors.AsType[*audit.BrokenError](err); ok {
		proof.Fault, err = broken.Error(), nil
	}
	return &struct{ Body AuditProof }{proof}, err
}
