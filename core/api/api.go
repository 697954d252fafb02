package api

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"path"
	"reflect"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"
	"github.com/danielgtaylor/huma/v2/sse"

	"github.com/holdfast-dr/holdfast/core/access"
	"github.com/holdfast-dr/holdfast/core/audit"
	"github.com/holdfast-dr/holdfast/core/gateway"
)

// Limits of every request; an operation may set its own MaxBodyBytes.
const (
	maxBody     = 1 << 20
	bodyTimeout = 30 * time.Second
)

// DocumentVersion is the version of the document: it grows with the API, not
// with the program, so that the committed file changes only with the API.
const DocumentVersion = "1"

// register is the one list of all operations. Either side may be nil; its
// operations are then left out.
func register(h huma.API, p *Provider, a *Agent) {
	if p != nil {
		registerProvider(h, p)
	}
	if a != nil {
		registerAgent(h, a)
	}
}

// Document is the OpenAPI document of all operations, indented, with a final
// newline.
func Document() ([]byte, error) {
	h := newAPI(http.NewServeMux())
	register(h, &Provider{}, &Agent{})
	raw, err := json.Marshal(h.OpenAPI())
	if err != nil {
		return nil, fmt.Errorf("encode OpenAPI document: %w", err)
	}
	var out bytes.Buffer
	if err := json.Indent(&out, raw, "", "  "); err != nil {
		return nil, fmt.Errorf("encode OpenAPI document: %w", err)
	}
	out.WriteByte('\n')
	return out.Bytes(), nil
}

// NewProviderHandler serves the provider's operations.
func NewProviderHandler(p *Provider) http.Handler {
	mux := http.NewServeMux()
	register(newAPI(mux), p, nil)
	return serve(mux, p.identify)
}

// NewAgentHandler serves the agent's operations to whoever can reach them: the
// caller makes sure that only the socket's owner can.
func NewAgentHandler(a *Agent) http.Handler {
	mux := http.NewServeMux()
	register(newAPI(mux), nil, a)
	return serve(mux, func(*http.Request) (access.Caller, error) {
		return access.Caller{Kind: access.BySystem, Name: "socket"}, nil
	})
}

func newAPI(mux *http.ServeMux) huma.API {
	config := huma.DefaultConfig("Holdfast", DocumentVersion)
	config.Info.Description = "Backup and disaster recovery between a service provider and its tenants. " +
		"Operations below /v1/site are served by the agent on its local socket, all others by the provider."
	config.Info.License = &huma.License{Name: "Apache-2.0", Identifier: "Apache-2.0"}
	config.DocsPath, config.SchemasPath, config.OpenAPIPath = "", "", "/v1/openapi"
	config.CreateHooks, config.Transformers = nil, nil // no $schema links in bodies
	config.RejectUnknownQueryParameters = true
	config.Components.Schemas = huma.NewMapRegistry("#/components/schemas/", schemaName)
	config.Components.SecuritySchemes = map[string]*huma.SecurityScheme{
		"token": {Type: "http", Scheme: "bearer", Description: "A bearer token, from POST /v1/login or /v1/users/{user}/tokens"},
	}
	return humago.New(mux, config)
}

// schemaName names a type in the document. Both sides know repositories, runs
// and points, but not the same of them: what only a site sees begins with Site.
func schemaName(t reflect.Type, hint string) string {
	name := huma.DefaultSchemaNamer(t, hint)
	for t.Kind() == reflect.Pointer || t.Kind() == reflect.Slice {
		t = t.Elem()
	}
	switch path.Base(t.PkgPath()) {
	case "agent", "schedule", "job":
	case "gateway":
		if strings.HasSuffix(name, "Problem") {
			return name
		}
	default:
		return name
	}
	if strings.HasPrefix(name, "Site") {
		return name
	}
	return "Site" + name
}

// identified carries a request's caller to authorize.
type identified struct {
	caller   access.Caller
	err      error
	refusals *gateway.Refusals
	// again asks once more, of a request that lasts.
	again func() (access.Caller, error)
}

type identifiedKey struct{}

// serve wraps the operations: who calls, the request's id and origin, and
// answers in problem form for paths that do not exist.
func serve(mux *http.ServeMux, identify func(*http.Request) (access.Caller, error)) http.Handler {
	known := newAnswers(time.Now)
	refusals := gateway.NewRefusals(slog.Default(), time.Now)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		id := gateway.RequestID(r)
		w.Header().Set(gateway.HeaderRequest, id)
		w.Header().Set("Cache-Control", "no-store")
		w.Header().Set("X-Content-Type-Options", "nosniff")
		if _, pattern := mux.Handler(r); pattern == "" {
			status := gateway.NewProblem(http.StatusNotFound, gateway.CodeNotFound, "there is no such operation: "+r.Method+" "+r.URL.Path)
			status.WithHint("the operations are listed by: holdfast openapi").Write(w)
			return
		}
		caller, err := identify(r)
		if err == nil && caller.Kind == access.ByUser {
			if crowd := gateway.Recognise(r.Context(), caller.TenantID); crowd != nil {
				w.Header().Set("Connection", "close")
				gateway.ProblemOf(crowd).Write(w)
				return
			}
		}
		ctx := context.WithValue(r.Context(), identifiedKey{}, identified{caller, err, refusals,
			func() (access.Caller, error) { return identify(r) }})
		ctx = access.With(ctx, caller)
		ctx = audit.With(ctx, audit.Origin{Actor: caller.Actor(), Name: caller.Name, Address: r.RemoteAddr, Request: id,
			Reason: r.Header.Get("Holdfast-Reason")})
		known.serve(w, r.WithContext(ctx), caller, mux)
	})
}

// add registers an operation. Its id must have a row.
func add[I, O any](h huma.API, op huma.Operation, handler func(context.Context, *I) (*O, error)) {
	huma.Register(h, prepare(h, op), func(ctx context.Context, in *I) (*O, error) {
		out, err := handler(ctx, in)
		if err != nil {
			return nil, refuse(ctx, op.OperationID, err)
		}
		return out, nil
	})
}

// addEvents registers an operation that answers a stream of server-sent events.
// The handler has already found what it streams when prepareStream returned
// without error, so a refusal is an ordinary answer.
func addEvents[I any](h huma.API, op huma.Operation, events map[string]any, handler func(ctx context.Context, in *I, send sse.Sender)) {
	sse.Register(h, prepare(h, op), events, func(ctx context.Context, in *I, send sse.Sender) {
		ctx, stop := whileAllowed(ctx)
		defer stop()
		handler(ctx, in, send)
	})
}

// allowedEvery is how often the caller of a stream is looked up again.
const allowedEvery = 30 * time.Second

// whileAllowed ends the context of a stream when its caller has lost the token
// or become somebody else with it: a stream must not outlive the right to it.
// A database that does not answer for a moment ends nothing. stop waits.
func whileAllowed(ctx context.Context) (_ context.Context, stop func()) {
	who, ok := ctx.Value(identifiedKey{}).(identified)
	ctx, cancel := context.WithCancel(ctx)
	if !ok || who.again == nil {
		return ctx, cancel
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		tick := time.NewTicker(allowedEvery)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			now, err := who.again()
			if errors.Is(err, access.ErrCredentials) || err == nil && now != who.caller {
				cancel()
				return
			}
		}
	}()
	return ctx, func() { cancel(); <-done }
}

// prepare fills in what all operations have in common.
func prepare(h huma.API, op huma.Operation) huma.Operation {
	row, ok := rows[op.OperationID]
	if !ok {
		panic("operation " + op.OperationID + " has no row in core/api/rows.go: say who may call it")
	}
	if op.MaxBodyBytes == 0 {
		op.MaxBodyBytes = maxBody
	}
	if op.BodyReadTimeout == 0 {
		op.BodyReadTimeout = bodyTimeout
	}
	op.Metadata = map[string]any{"row": row}
	op.Description = strings.TrimSpace(op.Description + "\n\n" + row.describe())
	if row.Side == ProviderServer && !row.Open {
		op.Security = []map[string][]string{{"token": {}}}
	}
	op.Middlewares = append(huma.Middlewares{func(ctx huma.Context, next func(huma.Context)) {
		if problem := authorize(ctx, row); problem != nil {
			note(ctx.Context(), op.OperationID, problem)
			writeProblem(ctx, problem)
			return
		}
		next(ctx)
	}}, op.Middlewares...)
	return op
}

// authorize decides whether the request's caller may call an operation.
func authorize(ctx huma.Context, row Row) *gateway.Problem {
	who, _ := ctx.Context().Value(identifiedKey{}).(identified)
	if row.Open {
		return nil
	}
	if who.err != nil {
		return problemOf(who.err)
	}
	if who.caller.Kind == access.Anonymous {
		return gateway.NewProblem(http.StatusUnauthorized, gateway.CodeAnonymous, "this operation needs a bearer token").
			WithHint("sign in: holdfast login ADDRESS --fingerprint FINGERPRINT, or set HOLDFAST_TOKEN")
	}
	return row.allow(who.caller, ctx.Param, ctx.Query)
}

func writeProblem(ctx huma.Context, p *gateway.Problem) {
	_, w := humago.Unwrap(ctx)
	p.Write(w)
}
