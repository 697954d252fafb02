// Command holdfast-plugin-libvirt drives QEMU machines through libvirt: source, change tracker, target, power and watcher.
//
// It speaks libvirt's own protocol over a unix socket, TCP or TLS, needs no C library, and keeps nothing: whatever a fresh
// process has to know is read back from the hypervisor.
//
// # What it makes at the hypervisor
//
//	checkpoint  holdfast-INST-OP-STAMP   a mark; its description also tells the epoch, and whether the mark is kept
//	bitmaps     of the same name         in the images, what libvirt keeps for a checkpoint
//	backup job  exports holdfast.…       an open snapshot; the export names tell the same, so that nobody else's is touched
//	files       holdfast-MACHINE-STAMP…  its socket and scratch files
//	live metadata …/run/1.0              on a machine that a snapshot started paused, because it was off, and on one whose
//	                                     snapshot was ended to spare the guest
//	machine     holdfast-draft-ID        a draft; never runs, holds the draft's disks open, carries the request
//	volume      holdfast-ID-DISK.qcow2   a disk of a draft, and then of the machine that it became
//	metadata    …/origin/1.0             on a machine that was restored: its draft, operation and epoch
//	metadata    …/claim/1.0              on a machine that was started or stopped: the epoch under which
//
// Names begin with the prefix of the operation's space: a space is "prefix" or "pool/prefix". All but the
// last two goes away with EndSnapshot, ReleaseMark, CommitDraft and AbortDraft.
//
// # How bytes flow
//
// A snapshot is a pull-mode backup: QEMU serves each disk, as it was at one moment, over NBD. A draft's disks are served
// by a QEMU whose processor never starts: libvirt offers no writable door to an idle qcow2 image, and a machine at the
// hypervisor is one that works locally and remotely alike, keeps the images locked, and is found again by a fresh process.
// Local servers listen on unix sockets, remote ones on TCP with mutual TLS; plaintext TCP has to be asked for.
//
// # What keeps guests from harm
//
// Each snapshot has a guard, a detached process of this program that outlives the one that took it: it thaws a guest that
// nobody thawed, and ends a backup whose scratch files grow too large. guard.go tells how, DESIGN.md why and what it costs.
package main
