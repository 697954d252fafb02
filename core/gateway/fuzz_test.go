package gateway

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
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

// FuzzWire: whatever an agent asks of whatever route, the server answers, and
// not that it was its own fault.
func FuzzWire(f *testing.F) {
	st := &store{tenant: tenant.Tenant{ID: "t1", Name: "Acme", Enabled: true, MaxTasks: 1000}, id: "0190a000-0000-7000-8000-000000000001",
		agent: access.Agent{ID: "a1", TenantID: "t1"}, records: map[chunk.ID][]byte{}, broken: map[chunk.ID]error{}, end: ErrSessionClosed}
	var faults atomic.Int64
	log := slog.New(slog.NewTextHandler(io.Discard, &slog.HandlerOptions{ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
		if a.Value.String() == "request panicked" {
			faults.Add(1)
		}
		return a
	}}))
	server := NewServer(Config{Agents: st, Tenants: st, Quota: st, Reports: st, FanOut: 128, Log: log,
		Verify: func(tls.ConnectionState, time.Time) (pki.Identity, error) {
			return pki.Identity{AgentID: "a1", TenantID: "t1", Key: pki.Fingerprint{}}, nil
		},
		Repositories: func(context.Context, tenant.ID) ([]quota.CloudRepository, error) { return nil, nil },
		Authorities:  func(context.Context) (string, error) { return "", nil },
		Enrol:        func(context.Context, EnrolRequest) (Credentials, error) { return Credentials{}, access.ErrEnrolment },
		Renew:        func(context.Context, access.Agent, []byte) (Credentials, error) { return Credentials{}, nil },
		Open: func(_ context.Context, id tenant.ID, repository string) (Repository, error) {
			if repository != st.id {
				return nil, tenant.ErrNotFound
			}
			return repo{st}, nil
		}})
	st.agent.Key = access.Hash(pki.Fingerprint{})
	open, err := server.admission.guard(repo{st}, st.id, st.agent, "").Begin(f.Context(), "m", "", "a1")
	if err != nil {
		f.Fatal(err)
	}
	session := sessionText(open.ID())
	batch, ids := pages(open.ID(), 2, 64)
	f.Add(byte(0), "x", "", []byte(`{"token":"hfe_x","request":"AAAA"}`))
	f.Add(byte(3), uuid.NewString(), "", []byte(`{"sequence":1,"kind":"backup","started":"2027-01-01T00:00:00Z"}`))
	f.Add(byte(7), "", "", []byte(`{"machine":"`+uuid.NewString()+`"}`))
	f.Add(byte(10), session, "kind=page", appendIDs(nil, ids))
	f.Add(byte(11), session, "", batch)
	f.Add(byte(12), session, "", []byte("HFmf"))
	f.Add(byte(13), "", "limit=1&machine="+uuid.NewString(), []byte(nil))
	f.Add(byte(16), "", "kind=page", appendIDs(nil, ids))
	f.Fuzz(func(t *testing.T, number byte, name, query string, body []byte) {
		route := routes[int(number)%len(routes)]
		path := strings.NewReplacer("{repository}", st.id, "{session}", session, "{run}", name, "{point}", name, "{wrap}", name).Replace(route.path)
		r := httptest.NewRequest(route.method, "https://x/", bytes.NewReader(body))
		r.URL.Path, r.URL.RawQuery = path, query
		r.Header.Set(HeaderVersion, "1")
		r.Header.Set(HeaderTask, name)
		r.TLS = &tls.ConnectionState{PeerCertificates: []*x509.Certificate{{}}}
		w := httptest.NewRecorder()
		server.ServeHTTP(w, r)
		if w.Code == http.StatusInternalServerError || faults.Load() > 0 {
			t.Fatalf("%s %s?%s: %d %s", route.method, path, query, w.Code, w.Body)
		}
	})
}

// canned is a server that said everything beforehand, to every request the same.
type canned struct {
	answer []byte
	after  context.CancelFunc
}

func (c canned) RoundTrip(r *http.Request) (*http.Response, error) {
	c.after() // nothing is repeated
	if r.Body != nil {
		_, _ = io.Copy(io.Discard, r.Body)
	}
	return http.ReadResponse(bufio.NewReader(bytes.NewReader(c.answer)), r)
}

// FuzzClient: whatever a server answers, the client makes of it what was asked
// for, of that form and size, or an error.
func FuzzClient(f *testing.F) {
	session := chunk.SessionID{1}
	batch, ids := pages(session, 3, 64)
	good := func(body string, header ...string) []byte {
		head := "HTTP/1.1 200 OK\r\n" + strings.Join(header, "")
		return []byte(head + "\r\n" + body)
	}
	f.Add(good(`{"time":"2027-01-01T00:00:00Z","repositories":[{"id":"x"}]}`))
	f.Add(good(`{"points":[{"id":"x","taken":"2027-01-01T00:00:00Z"}],"next":"y"}`))
	f.Add(good(`{"id":"` + sessionText(session) + `","damaged":["00"]}`))
	f.Add(good(string(batch)))
	f.Add(good(string(batch[:len(batch)-3])))
	f.Add(good("\x07"))
	f.Add([]byte("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: Holdfast-Problem\r\n\r\n0\r\nHoldfast-Problem: {\"code\":\"damaged\"}\r\n\r\n"))
	f.Add([]byte("HTTP/1.1 429 X\r\nContent-Type: application/problem+json\r\n\r\n{\"code\":\"too-many-tasks\",\"facts\":{\"Limit\":-1}}"))
	f.Add(good("", "Content-Length: 99999999999999\r\n", "Holdfast-Took: -1\r\n"))
	f.Fuzz(func(t *testing.T, answer []byte) {
		for _, ask := range []func(ctx context.Context, c *Client) error{
			func(ctx context.Context, c *Client) error { _, err := c.Site(ctx); return err },
			func(ctx context.Context, c *Client) error { _, err := c.Enrol(ctx, "t", nil); return err },
			func(ctx context.Context, c *Client) error {
				b, err := c.Repository("r").Manifest(ctx, "p")
				if len(b) > point.MaxManifest {
					t.Errorf("a manifest of %d bytes", len(b))
				}
				return err
			},
			func(ctx context.Context, c *Client) error { _, err := c.Repository("r").Wraps(ctx); return err },
			func(ctx context.Context, c *Client) error { _, err := c.Repository("r").Wrap(ctx, "w"); return err },
			func(ctx context.Context, c *Client) error {
				_, err := c.Repository("r").PointPage(ctx, "", "", 10)
				return err
			},
			func(ctx context.Context, c *Client) error {
				s, err := c.Repository("r").Begin(ctx, "m", "")
				if err == nil && len(s.Info().ID) != 32 {
					t.Errorf("a session %q", s.Info().ID)
				}
				return err
			},
			func(ctx context.Context, c *Client) error {
				s := &RemoteSession{repository: c.Repository("r")}
				have, err := s.Have(ctx, chunk.KindPage, ids)
				if err == nil && len(have) != len(ids) {
					t.Errorf("%d answers for %d ids", len(have), len(ids))
				}
				return err
			},
			func(ctx context.Context, c *Client) error {
				n := 0
				err := c.Repository("r").Read(ctx, chunk.KindPage, ids, func(r chunk.Record) error {
					if n >= len(ids) || r.ID != ids[n] || r.Kind != chunk.KindPage {
						t.Errorf("record %d is %s", n, r.ID)
					}
					n++
					return nil
				})
				if err == nil && n != len(ids) {
					t.Errorf("%d records of %d, and no error", n, len(ids))
				}
				return err
			},
			func(ctx context.Context, c *Client) error {
				return (&RemoteSession{repository: c.Repository("r")}).Commit(ctx, []byte("m"))
			},
		} {
			ctx, cancel := context.WithCancel(t.Context())
			c, err := NewClient(Options{Address: "x", Trust: pki.Trust{System: true}, Patience: time.Nanosecond, Log: slog.New(slog.DiscardHandler)})
			if err != nil {
				t.Fatal(err)
			}
			c.http = &http.Client{Transport: canned{answer, cancel}}
			if err := ask(ctx, c); err != nil {
				_, _ = err.Error(), HintOf(err)
			}
			cancel()
		}
	})
}

// FuzzAddress: an address that is accepted is one that can be dialled, and
// nothing else of a URL.
func FuzzAddress(f *testing.F) {
	for _, s := range []string{"host", "[::1]:6180", "user@host", "host/path", "host:99999", "a b"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		address, err := Address(s)
		if err != nil {
			return
		}
		if again, err := Address(address); err != nil || again != address {
			t.Errorf("%q is %q and then %q, %v", s, address, again, err)
		}
		if strings.ContainsAny(address, "/@?# ") {
			t.Errorf("%q is %q", s, address)
		}
	})
}
