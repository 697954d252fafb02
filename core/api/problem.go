package api

import (
	"context"
	"errors"
	"log/slog"
	"math"
	"net/http"

	"github.com/danielgtaylor/huma/v2"

	"github.com/holdfast-dr/holdfast/core/access"
	"github.com/holdfast-dr/holdfast/core/audit"
	"github.com/holdfast-dr/holdfast/core/blob"
	"github.com/holdfast-dr/holdfast/core/gateway"
	"github.com/holdfast-dr/holdfast/core/job"
	"github.com/holdfast-dr/holdfast/core/quota"
	"github.com/holdfast-dr/holdfast/core/tenant"
)

// huma makes its own refusals, of requests that do not fit an operation's
// schema, through this function; they look like all others.
func init() {
	huma.DefaultArrayNullable = false // lists are empty, never null
	huma.NewError = func(status int, message string, errs ...error) huma.StatusError {
		p := gateway.NewProblem(status, codeOf(status), message)
		for _, err := range errs {
			var detail *huma.ErrorDetail
			switch {
			case err == nil:
			case errors.As(err, &detail):
				p.Fields = append(p.Fields, gateway.FieldProblem{Field: detail.Location, Reason: detail.Message})
			default:
				p.Fields = append(p.Fields, gateway.FieldProblem{Field: "request", Reason: err.Error()})
			}
		}
		return p
	}
}

func codeOf(status int) gateway.Code {
	switch status {
	case http.StatusNotFound:
		return gateway.CodeNotFound
	case http.StatusUnauthorized:
		return gateway.CodeAnonymous
	case http.StatusForbidden:
		return gateway.CodeDenied
	case http.StatusConflict:
		return gateway.CodeConflict
	case http.StatusRequestEntityTooLarge:
		return gateway.CodeTooLarge
	case http.StatusServiceUnavailable:
		return gateway.CodeUnavailable
	}
	if status >= 500 {
		return gateway.CodeInternal
	}
	return gateway.CodeInvalid
}

// refuse turns a handler's error into its problem. What the tables do not know
// is logged, with the request's id.
func refuse(ctx context.Context, operation string, err error) error {
	p := problemOf(err)
	if e, ok := errors.AsType[*blob.FullError](err); ok && ofProvider(ctx) { // which includes an agent's own socket
		p.Detail, p.Hint = e.Error(), e.Hint()
	}
	note(ctx, operation, p)
	if p.Status == http.StatusInternalServerError && !errors.Is(err, context.Canceled) {
		origin, _ := audit.From(ctx)
		slog.ErrorContext(ctx, "request failed", "request", origin.Request, "actor", origin.Actor, "error", err)
		p.Detail += " (request " + origin.Request + ")"
	}
	return p
}

// note logs who was refused what, if it was for who they are or for what is not
// theirs: a mistake of a script, or somebody who tries doors.
func note(ctx context.Context, operation string, p *gateway.Problem) {
	who, ok := ctx.Value(identifiedKey{}).(identified)
	switch p.Status {
	case http.StatusUnauthorized, http.StatusForbidden, http.StatusNotFound, http.StatusTooManyRequests:
	default:
		return
	}
	if !ok {
		return
	}
	origin, _ := audit.From(ctx)
	from := origin.Actor
	if who.caller.Kind == access.Anonymous {
		from = access.Neighbourhood(origin.Address)
	}
	who.refusals.Note(ctx, slog.LevelInfo, from+" "+operation+" "+string(p.Code), "request refused", "request", origin.Request,
		"operation", operation, "actor", origin.Actor, "tenant", who.caller.TenantID, "address", origin.Address, "code", p.Code, "detail", p.Detail)
}

// problemOf knows the errors of the rooms that only the API speaks to; the
// others are on the wire, too.
func problemOf(err error) *gateway.Problem {
	conflict := func(hint string) *gateway.Problem {
		return gateway.NewProblem(http.StatusConflict, gateway.CodeConflict, err.Error()).WithHint(hint)
	}
	if e, ok := errors.AsType[*blob.LocationError](err); ok {
		p := gateway.NewProblem(http.StatusUnprocessableEntity, gateway.CodeInvalid, "the repository cannot be like this")
		p.Fields = []gateway.FieldProblem{{Field: e.Field, Reason: e.Reason}}
		return p
	}
	if e, ok := errors.AsType[*blob.InUseError](err); ok {
		return conflict(e.Hint())
	}
	if e, ok := errors.AsType[*access.WaitError](err); ok {
		p := gateway.NewProblem(http.StatusTooManyRequests, gateway.CodeBusy, e.Error()).WithHint("wait, then sign in again")
		if e.Token {
			p.Hint = "wait; whatever still calls with a token that was deleted or has expired, stop it or give it a new one"
		}
		p.RetryAfter = int(math.Ceil(e.Wait.Seconds()))
		return p
	}
	if e, ok := errors.AsType[*quota.NotEmptyError](err); ok {
		return conflict(e.Hint()).WithFacts(e)
	}
	if e, ok := errors.AsType[*quota.TakenError](err); ok {
		return gateway.NewProblem(http.StatusConflict, gateway.CodeExists, err.Error()).WithHint(e.Hint())
	}
	if e, ok := errors.AsType[*quota.StrangerError](err); ok {
		return conflict(e.Hint())
	}
	if e, ok := errors.AsType[*quota.ElsewhereError](err); ok {
		return conflict(e.Hint())
	}
	if e, ok := errors.AsType[*tenant.HasBackupsError](err); ok {
		return conflict(e.Hint()).WithFacts(e)
	}
	switch {
	case errors.Is(err, blob.ErrLocationNotFound):
		return gateway.NewProblem(http.StatusNotFound, gateway.CodeNotFound, err.Error())
	case errors.Is(err, blob.ErrLocationExists):
		return gateway.NewProblem(http.StatusConflict, gateway.CodeExists, err.Error())
	case errors.Is(err, blob.ErrLocationChanged):
		return gateway.NewProblem(http.StatusConflict, gateway.CodeChanged, err.Error()).WithHint("read it again, then decide again")
	case errors.Is(err, access.ErrLastAdmin):
		return conflict("make somebody else a provider-admin first")
	case errors.Is(err, job.ErrActive):
		return conflict("watch the run that is there, or cancel it: holdfast run list")
	case errors.Is(err, job.ErrFinal):
		return conflict("a run that has ended stays as it is; start another one")
	}
	return gateway.ProblemOf(err)
}
