package api_test

import (
	"bytes"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"testing"

	"github.com/holdfast-dr/holdfast/core/access"
	"github.com/holdfast-dr/holdfast/core/api"
)

// FuzzOperations: whatever somebody sends to an operation, as a stranger, as
// another tenant's administrator or as the provider's auditor, the server answers
// and not that it was its own fault; and nobody sees a word of the first tenant
// who may not.
func FuzzOperations(f *testing.F) {
	was := slog.Default()
	slog.SetDefault(slog.New(slog.NewTextHandler(io.Discard, nil)))
	f.Cleanup(func() { slog.SetDefault(was) })
	w := newWorld(f)
	all := slices.DeleteFunc(operations(f), func(o operation) bool {
		return api.Rows()[o.id].Side == api.AgentSocket || strings.HasPrefix(o.id, "watch-") // which last
	})
	slices.SortFunc(all, func(a, b operation) int { return strings.Compare(a.id, b.id) })
	callers := []string{"", "hf_" + strings.Repeat("A", 43), w.foreign[access.TenantAdmin], w.foreign[access.TenantViewer], w.tokens[access.ProviderAuditor]}
	auditor := byte(len(callers) - 1)
	secret := []string{string(w.cloud.ID), w.agent.ID, w.tokens[access.TenantAdmin]}
	for i, o := range all {
		f.Add(byte(i), byte(2), string(w.first.ID), "", []byte(`{"name":"x"}`), "")
		f.Add(byte(i), auditor, w.agent.ID, "limit=1&tenant="+string(w.first.ID), []byte(`{}`), o.id)
	}
	f.Add(byte(0), byte(0), "%00", "a=b&a=c", []byte(`{"tenant":[[[[`), "k")
	f.Fuzz(func(t *testing.T, number, caller byte, id, query string, body []byte, key string) {
		o := all[int(number)%len(all)]
		who := int(caller) % len(callers)
		r := httptest.NewRequest(o.method, "https://x/", bytes.NewReader(body))
		r.URL.Path = parameter.ReplaceAllLiteralString(o.path, id)
		r.URL.RawPath = parameter.ReplaceAllLiteralString(o.path, url.PathEscape(id))
		r.URL.RawQuery = query
		r.Header.Set("Content-Type", "application/json")
		if callers[who] != "" {
			r.Header.Set("Authorization", "Bearer "+callers[who])
		}
		if key != "" && !strings.ContainsAny(key, "\r\n\x00") {
			r.Header.Set("Idempotency-Key", key)
		}
		answer := httptest.NewRecorder()
		w.handler.ServeHTTP(answer, r)
		if answer.Code >= http.StatusInternalServerError {
			t.Fatalf("%s %s?%s of caller %d with %q: %d %s", o.method, r.URL.Path, query, who, body, answer.Code, answer.Body)
		}
		if byte(who) == auditor {
			return
		}
		for _, word := range secret {
			if sent := id + query + string(body) + key; strings.Contains(answer.Body.String(), word) && !strings.Contains(sent, word) {
				t.Fatalf("%s %s?%s of caller %d tells %s: %s", o.method, r.URL.Path, query, who, word, answer.Body)
			}
		}
	})
}

// A caller who asks for what is another's is logged, with who it is and which
// request it was, once.
func TestRefusedCallersAreLoggedOnce(t *testing.T) {
	was := slog.Default()
	t.Cleanup(func() { slog.SetDefault(was) })
	var log bytes.Buffer
	slog.SetDefault(slog.New(slog.NewTextHandler(&log, nil)))
	w := newWorld(t)
	for range 50 {
		w.call("GET", "/v1/tenants/"+string(w.first.ID), w.foreign[access.TenantAdmin], nil)
		w.call("GET", "/v1/tenants", "hf_"+strings.Repeat("A", 43), nil)
	}
	text := log.String()
	if n := strings.Count(text, "request refused"); n != 2 {
		t.Errorf("two kinds of refusal, 50 times each, are %d lines:\n%s", n, text)
	}
	for _, want := range []string{"operation=get-tenant", "actor=user:", "request=", "code=not-found", "operation=list-tenants", "actor=anonymous", "code=not-signed-in"} {
		if !strings.Contains(text, want) {
			t.Errorf("the log does not say %s:\n%s", want, text)
		}
	}
	if strings.Contains(text, "hf_") {
		t.Errorf("the log shows a token:\n%s", text)
	}
}
