// Package faults kills, starves and misleads the real programs and asks after
// each blow whether anything was lost.
//
// # Rounds
//
// A world is a provider, a site with a simulated hypervisor, and the model of
// what has to be restorable. Each round changes a disk, begins an operation,
// kills one of the processes at some moment, starts it again, and lets what was
// begun come to its end. Then everything is checked: the points are those of the
// model and no other, they verify with keys, one is restored and compared, every
// byte in the store is accounted for and charged, nothing is left at the
// hypervisor, nothing was sent twice beyond what was in flight, and the next
// backup succeeds.
//
// A round is determined by its seed, which is in the log: operation, victim,
// machine, and the moment, which is a change that is seen in a directory, or a
// part of the time that the operation takes on this machine. Rounds follow one
// another in one world, so the same seed meets another world when it is played
// alone; most failures come back all the same:
//
//	FAULTS=1000 go test ./testenv/faults -run Rounds                            more of them
//	FAULTS=1 FAULTS_SEED=4711 go test ./testenv/faults -run Rounds -v           one, again
//	SOAK=2h make soak                                                           as long as you like
//
// # Other blows
//
// Real guests: each process, QEMU among them, at the moments of a backup and of
// a restore that matter, with a guest that stands still, so that every byte of
// its points is known. Disks: full at the repository, the server (by backups, and
// to the last byte by other programs), the state database, the agent, and where
// a restore goes. Time: clocks that jump by days
// (package clock), a certificate and a lease that end during a run, a server
// that is stopped until another one has taken over, and wakes up. Network: a
// server that restarts or moves, connections that are reset or say nothing any
// more, a line that loses and reorders packets (package wan).
//
// # Where the other faults are tested
//
// What needs no processes of its own is tested closer to the code. In
// core/repository: failed syncs (sync_test.go), one flipped byte anywhere, an
// index that is lost or stale (verify_test.go), a chunk condemned between the
// answer and the commit (collect_test.go), a disk without a byte left
// (full_test.go, and that of core/state). In cmd/holdfast, over the real port: an
// enrolment token in several hands, ids of another tenant, missing chunks
// (wire_test.go), floods (hostile_test.go). In core/gateway: slow and oversized
// bodies, a million ids, silence (hostile_test.go). In testenv/scenario: a
// provider that swaps and rolls back (rogue_test.go), an agent that uploads
// garbage (distrust_test.go), an old or a lost database (recovery_test.go).
//
// Not tested yet: a gateway process that restarts, QEMU killed while it writes a
// restored disk, an agent that is stopped until its claim was taken over.
package faults
