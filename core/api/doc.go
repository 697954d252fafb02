// Package api is the REST API of Holdfast, both sides of it, in one OpenAPI 3.1
// document: the operations of the provider's server (files provider_*.go,
// below /v1), for people and scripts with bearer tokens, and those of the
// agent (files agent_*.go, below /v1/site), which the agent serves on its unix
// socket to whoever may open that.
//
//	request ─▶ identify: token or socket ─▶ authorize: row of the operation ─▶ handler ─▶ store
//	                                            rows.go          (scope is repeated in the query)
//
// Every operation is registered through add and has a row in rows, which says
// who may call it; one without a row does not start, and a test walks them all
// as every kind of caller. What belongs to another tenant answers 404, as if it
// did not exist.
//
// Refusals are gateway.Problem, as on the tenant wire: what happened, a code
// for programs, a hint for people. Every change carries its origin for the
// audit log. A POST may carry an Idempotency-Key: repeated with the same body
// it answers what it answered first. Long lists come in pages, long work as a
// run, to be watched as server-sent events.
//
// The document is committed as openapi.json, from which core/client is
// generated; a test compares it with what the program prints.
package api
