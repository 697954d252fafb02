package stack

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/holdfast-dr/holdfast/core/pki"
)

// REST speaks the API of one side from this process: a suite of hundreds of
// steps that started the command line for each would measure how fast programs
// start.
type REST struct {
	client      *http.Client
	base, token string
}

// StatusError is an answer that is no success.
type StatusError struct {
	Method, Path string
	Status       int
	Body         string
}

// Error is what was answered.
func (e *StatusError) Error() string {
	return fmt.Sprintf("%s %s: %d %s", e.Method, e.Path, e.Status, e.Body)
}

const (
	restTimeout = time.Minute // of one call
	maxAnswer   = 64 << 20
)

// AgentAPI is the agent's API, over its socket. Connections are not kept, since
// the agent may be killed between two calls.
func (s *Stack) AgentAPI() *REST {
	socket := s.Socket()
	return &REST{base: "http://agent", client: &http.Client{Timeout: restTimeout, Transport: &http.Transport{DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", socket)
		}}}}
}

// ServerAPI is the provider's API, with the administrator's token and the
// server's fingerprint pinned. It needs credentials, so a server that was
// started once.
func (s *Stack) ServerAPI() (*REST, error) {
	pin, err := pki.ParseFingerprint(s.Fingerprint)
	if err != nil {
		return nil, err
	}
	host, _, err := net.SplitHostPort(s.Address)
	if err != nil {
		return nil, err
	}
	trust := pki.Trust{Pins: []pki.Fingerprint{pin}}
	return &REST{base: "https://" + s.Address, token: s.Token, client: &http.Client{Timeout: restTimeout,
		Transport: &http.Transport{DisableKeepAlives: true, TLSClientConfig: trust.ClientConfig(host, nil)}}}, nil
}

// Do makes a call: body, if there is one, is sent as JSON, and the answer
// decoded into into, if that is not nil.
func (r *REST) Do(ctx context.Context, method, path string, body, into any) error {
	var content io.Reader
	if body != nil {
		text, err := json.Marshal(body)
		if err != nil {
			return fmt.Errorf("%s %s: %w", method, path, err)
		}
		content = bytes.NewReader(text)
	}
	q, err := http.NewRequestWithContext(ctx, method, r.base+path, content)
	if err != nil {
		return err
	}
	q.Header.Set("Content-Type", "application/json")
	if r.token != "" {
		q.Header.Set("Authorization", "Bearer "+r.token)
	}
	if method == http.MethodPost {
		q.Header.Set("Idempotency-Key", uuid.NewString())
	}
	a, err := r.client.Do(q)
	if err != nil {
		return err
	}
	defer a.Body.Close()
	text, err := io.ReadAll(io.LimitReader(a.Body, maxAnswer))
	if err != nil {
		return fmt.Errorf("%s %s: read the answer: %w", method, path, err)
	}
	if a.StatusCode/100 != 2 {
		return &StatusError{Method: method, Path: path, Status: a.StatusCode, Body: strings.TrimSpace(string(text))}
	}
	if into == nil {
		return nil
	}
	if err := json.Unmarshal(text, into); err != nil {
		return fmt.Errorf("%s %s: %w in %.200q", method, path, err, text)
	}
	return nil
}
