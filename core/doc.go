// Package core is the map of the house. It holds no code: each directory below it is a room with a doc.go of its own, and
// floors_test.go keeps the floors.
//
// # Processes
//
// One program, holdfast, is every process but the plugins, which are programs of their own.
//
//	      tenant's site                                provider
//	┌──────────────────────────┐            ┌────────────────────────────────┐
//	│ hypervisor               │            │ holdfast server                │
//	│   ▲ API      │ disk bytes│            │   gateway   admit: lease,      │
//	│   │          │ NBD       │    TLS     │     │       claim, quota       │
//	│ plugin       ▼           │  one port  │     ▼                          │
//	│   ▲      ┌─ mover ───────┼────────────┼─▶ repository ──▶ blob: dir, s3 │
//	│   │ gRPC │               │            │     │                          │
//	│   └─ holdfast agent      │            │   state: SQLite or PostgreSQL  │
//	│      jobs, keys, agent.db│            │                                │
//	└──────────────────────────┘            └────────────────────────────────┘
//
// The agent dials out only. It reads disks, and hashes, compresses and seals what it read, so the provider stores what it
// cannot read. Jobs belong to the agent and run when the provider's console is down.
//
// # Floors
//
// A room imports rooms of lower floors only, never up and never sideways. Only cmd knows all of them.
//
//	7  cmd/holdfast   flags and configuration to structs, construct, run, exit code
//	6  state          the database behind every room's store; imported by cmd and tests alone
//	5  api            HTTP, OpenAPI: the provider's operations and the agent's
//	   web            the console
//	4  agent          the tenant's loop: enrol, jobs, keys, endpoints; api serves its operations
//	3  backup         hypervisor to repository
//	   restore        repository to hypervisor or file
//	   replica        hypervisor to hypervisor
//	   cdp            the write journal
//	   failover       plans and their runs on prepared replicas; moves no data
//	2  repository     packs, index, points: write, read, verify, retain, collect
//	   mover          the one copy loop: read, hash, ask, compress, seal, send, resume
//	   gateway        the tenant wire, both ends; admission, fairness, relays
//	   host           plugin processes: find, verify, start, watch, restart
//	   worker         the same processes on another machine, both ends
//	   client         the REST client, generated from the API document
//	1  pki            the provider's CA, server and client certificates, pins
//	   lease          until when a tenant's contract lasts
//	   quota          how much: reserved, then committed or released
//	   network        address pools, VLANs, network maps
//	   audit          who did what, in one hash chain per tenant
//	   access         callers, roles, tokens
//	   point          what a recovery point is: map pages, manifests
//	   job            durable runs of steps that another process can take over
//	0  tenant         who rents
//	   blob           dumb storage of immutable objects: dir, s3, mem, and the suite that each passes
//	   chunk          ids, keyring, codec, seal, records: a piece of a disk on its way
//	   claim          expiring, fenced locks: one writer at a time
//	   schedule       calendars, windows, time zones
//	   secret         the master key, which seals and opens what the database keeps
//
//	sdk               the contract: nouns, abilities, errors; standard library only
//	sdk/nbd           how disk bytes cross every process border, client and server
//	sdk/plugin        the contract as a process; the only place that knows gRPC
//	sdk/sim           a hypervisor in memory
//	sdk/conformance   what every plugin must do
//	sdk/example       plugins in other languages
//	plugins/…         one directory, one program, one kind of back-end; they see the sdk and nothing of core
//	testenv           real hypervisors, guests, databases and long lines for tests and the demo; stories with the real programs
//
// Rooms appear on disk when their first line of code needs them; floors_test.go knows the ones to come.
//
// # Who calls whom
//
// Everything done to data is one loop: copy blocks from a reader to a writer. The verbs of floor 3 pick the two ends, call
// mover, and record the result:
//
//	agent ─▶ backup ─▶ mover ─▶ gateway's client ══ TLS ══▶ gateway ─▶ admit ─▶ repository ─▶ blob
//	            │                                                                   │
//	            └─▶ an sdk.Source, opened by host                                   └─▶ its Catalogue, kept by state
//
// Rooms that meet on one floor do not import each other. The consumer declares an interface in built-in types and those of
// lower floors, and cmd fills it in: mover declares the writer that gateway's client and repository implement; repository
// declares the Catalogue that state implements; each room that keeps rows declares its store. One store method is one whole
// transaction, and no transaction leaves state.
//
// Protection is decoration: behind the wire the writer is wrapped by lease, claim and quota in gateway/admit.go. A
// repository knows nothing of contracts, and there is no other door to it.
package core
