// Package audit says who did what, and lets nobody change it afterwards.
//
// Each tenant has a chain of entries, and the provider has one of its own (the
// empty chain name). An entry carries the SHA-256 of the one before it and of
// itself, so that a removed, changed or inserted entry breaks the chain; the
// heads of the chains are exported regularly, so that a chain cannot be
// replaced as a whole.
//
// Whoever asks for a change puts its Origin into the context with With. A
// mutating store method takes it from there and writes the entry in the same
// transaction as the change; without an Origin it refuses with ErrNoOrigin.
// Bookkeeping that nobody decided (renewing a claim, the steps of a run,
// pending quota, the last use of a token) leaves no entry.
package audit
