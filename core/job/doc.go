// Package job runs what takes long and must not be lost: a run is rows, its
// steps are written before and after they are done, and one process at a time
// works on it under a claim with an epoch.
//
// After a crash the claim expires, another process takes the run over and
// continues: steps that are done answer from the database, the step that was
// interrupted is started again and has to be safe to repeat. A process that was
// only paused finds every further write refused with ErrFenced, because the
// epoch has moved on, and its context cancelled.
//
// Cancelling is a request: the run's context is cancelled at its next renewal
// with ErrCancelled as the cause, and the handler ends when it safely can.
//
// Servers and agents use the same room; an agent's runs have no tenant.
package job
