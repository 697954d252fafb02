// Package gateway is the tenant wire, both ends, and the admission behind it.
//
// # The wire
//
// One TCP port, TLS 1.3, HTTP/1.1 with keep-alive over as many parallel
// connections as the work needs. Control is JSON; data is ids, bitmaps and
// records of core/chunk, back to back. The routes are in routes.go, their
// bodies in wire.go, the refusals in problem.go.
//
//	agent                                            server
//	Client ──── N connections ── TLS 1.3 ──────────▶ Server
//	  Enrol, Renew, Site                               identify: certificate, revocation, renew-only
//	  Repository.Begin ─▶ Session                      version
//	    Have, Put, Commit, Abort                       admit: enabled, lease, quota, one writer, tasks
//	  Repository.Read, Manifest, Points, Forget        Repository, opened by cmd under a claim
//
// # What it promises
//
//   - A tenant is who its client certificate says, and nothing in a request can
//     change that. What belongs to another tenant answers as if it did not exist.
//   - Certificate, tenant, lease and quota are checked for every request, and
//     every few seconds within a long one. Disconnect closes what is open.
//   - A refusal is exact: its code maps to the same Go error on both ends, with a
//     hint, and it loses nothing that was acknowledged before.
//   - Every request is bounded in size, headers and time, and a slow sender ends
//     by time-out. A server holds one small buffer per request in flight, whatever
//     the size of the batch.
//   - Strangers, who have shown neither certificate nor token, compete with
//     strangers, and a tenant with itself: for connections (door.go) and for the
//     memory of bodies (room.go). Who floods the one or the other is turned away,
//     and nobody else notices.
//   - A refusal is logged with its caller, its tenant and the id of its request;
//     the same one again is counted, and told once a minute (refusals.go).
//   - The client repeats what is idempotent, which is everything, until its
//     patience ends; so a restart of the server, a lost connection or a changed
//     address costs time and no work. Sessions are resumed by their id.
//   - The answer to a data request says how long the server itself took
//     (HeaderTook), so that whoever copies can tell a slow link from a slow store.
//
// # A peer that stalls
//
// Nothing waits longer than this for a peer that is dead, deaf or out of reach
// while its connection looks sound:
//
//	who waits  for what                                            at most
//	client     a connection; its handshake                         15 s; 20 s
//	client     any byte, in either direction, of a request         30 s (silence)
//	           that the server has not answered yet or is          the first request of a process,
//	           in the middle of answering                          and servers before HeaderAlive: 1 min
//	                                                               for a question or a batch, 2 min for
//	                                                               other control, 31 min for a commit
//	server     the handshake; the header of a request              10 s each
//	server     the next piece of a body; room for a piece of       30 s, and 8 KiB/s for the whole
//	           an answer
//	server     the next request                                    2 min
//
// So that a server's work is no silence, it sends an interim answer (102) every
// 5 s until it answers. What the client gives up it repeats over another
// connection, for as long as its patience lasts (2 min by default, from the first failure): a batch at
// most is on its way on each connection, so no more than that is sent twice.
//
// The client checks the provider's pin in the TLS handshake, before the first
// byte of a request, so a one-time token is never sent to somebody else.
package gateway
