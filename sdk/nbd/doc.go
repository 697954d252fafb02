// Package nbd is how the bytes of a disk cross a process border: a client and
// a server of the network block device protocol, as QEMU, nbdkit and libnbd
// speak it.
//
// Both ends speak fixed newstyle negotiation, STARTTLS, structured replies and
// meta contexts. The client accepts less from a server (simple replies,
// EXPORT_NAME); the server offers all of it and demands no more than fixed
// newstyle, so old clients work too.
//
// # Client
//
// Dial opens one or several connections to an export. Requests of any number
// of goroutines are pipelined over them; a read is received straight into the
// caller's buffer. Open does the same for an sdk.Address and returns a Disk,
// which is an sdk.BlockReader and an sdk.BlockWriter.
//
// A client is good until its first broken connection: then every request in
// flight and every later one fails with the same error, which wraps
// sdk.ErrUnavailable. It never reconnects by itself, since what an unflushed
// write became is for the caller to find out.
//
// # Server
//
// A Server asks its Exports function for each name that a client wants. An
// unguessable name is a one-time token: the server lists nothing unless List
// is set, and Kick ends the connections of a name and waits for their last
// write, which is how a fenced writer is kept out.
//
// # Shared memory
//
// Over a Unix socket a Client and a Server of this package can share memory, in
// which the server puts what it read (Options.Memory, which Open sets). Only what
// was read and where it lies passes through the socket then. Neither has to trust
// the other more for it: shared.go says why.
//
// # Bounds
//
// The peer is never trusted. Each length it sends is checked against a named
// bound before memory is allocated, the number of requests and bytes in flight
// is limited on both sides, a handshake has to end in time, and a peer that
// stops in the middle of a message is disconnected.
package nbd
