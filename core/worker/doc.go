// Package worker runs plugins on another machine than the process that uses
// them: on a hypervisor whose disks nobody else reaches, in a proxy machine. It
// has both ends: the Hub, in an agent, and the Worker, which dials it. Whoever
// uses the platform of an endpoint cannot tell where its plugin runs.
//
//	hub (agent)                                     worker
//	-----------                                     ------
//	listens; off by default          ◀───────────── dials; listens on nothing
//	session: requests, answers, beats ◀═══ TLS ════ one connection
//	   start PLUGIN with this SHA-256 ────────────▶ checks it, starts the process
//	   carry calls, log, a disk ──────────────────▶ dials a connection for it
//	plugin.Attach, gRPC              ◀═══ TLS ════▶ plugin.Relay ─▶ the process
//	NBD client                       ◀═══ TLS ════▶ spliced to the disk's address
//	log lines                        ◀═══ TLS ═════ what the process says
//
// # Connections
//
// Every stream is a TLS connection of its own, which the worker dials when the
// hub asks for it, under a one-time token. Nothing is multiplexed over one
// connection: a disk is not held up by a lost packet of another one, several
// cores encrypt, and how much is in flight is what the two kernels find out
// about the path. So there are no windows of our own to choose, and the buffers
// of the sockets are left alone, for setting them turns that off.
//
// A disk is read at 2.2 GB/s from a plugin here, and at 0.6 to 0.7 GB/s through
// a worker, with both ends and the plugin on the same two cores, which encrypt
// and decrypt every byte; the mover hashes and compresses less than half of that
// there. A small call takes 0.4 ms. BenchmarkDisk and BenchmarkCall measure it.
//
// # Trust
//
// The agent has a certificate authority for its workers; its key is sealed in
// the database. A worker knows the agent by the fingerprint of that authority,
// which it compares before it sends anything, and enrols with a one-time token,
// which is bound to the first key that shows it. The agent knows the worker by
// its certificate, which lasts as long as a site's and is renewed at a third of
// that. A worker that is removed is cut off at once and refused from then on.
//
// The worker runs no program but those in its plugin directories, and of them
// only one that has the checksum that the agent's operator enabled for the
// worker's architecture. Settings, which hold credentials, pass through the
// worker in memory, unread; they are on none of its disks and in none of its
// logs. The worker dials no address but those of disks that a plugin which it
// runs has opened itself. The limits of a plugin's policy hold on a worker as at
// the agent; its processes are of the worker's own user, so that is chosen by
// whom the worker is run as.
//
// # Losing each other
//
// Both ends send beats, and call the other lost when they have heard nothing
// for Silence. A worker that was killed is noticed at once, one that hangs, or a
// cut cable, within Silence. Then, at the hub, every process on that worker has
// ended: calls and disks fail with sdk.ErrUnavailable, and repeating them by
// their id is safe, on the worker when it is back, or on the next one that the
// endpoint names. At the worker, every process that it started for that hub is
// ended, politely, and after three seconds otherwise. So within Silence and those
// three seconds nothing runs on a worker that its hub does not know of. What a
// late process may still do, the epoch at the back-end decides, as always.
//
// At the agent, a lost worker counts against nobody's plugin: the next call tries
// the endpoint's workers again, in their order.
//
// A process is never handed from one session to the next: a worker that comes
// back has none.
package worker
