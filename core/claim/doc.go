// Package claim gives one writer at a time: an expiring, fenced lock.
//
// A claim belongs to a resource and carries an epoch. The epoch of a resource
// grows with every acquisition and is never reset, also not by a release, so a
// writer that was paused for an hour is recognised by its old number wherever
// the number is checked. Losing a claim is cancellation: Hold returns a context
// that ends when the claim can no longer be renewed in time, and everything
// done under the claim uses that context.
//
// An epoch fences the database that keeps it. It cannot stop a call to an
// object store that is already on its way; repositories are built so that such
// a call is harmless.
package claim
