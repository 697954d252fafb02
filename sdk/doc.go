// Package sdk is the contract between Holdfast and a back-end: a hypervisor,
// a cloud, a tape library. A vendor implements Platform and as many of the
// optional abilities (Source, ChangeTracker, Target, Power, Watcher; for a cloud
// host Replicator, Activator, Networker, Pools, Console, Guest) as the back-end
// can honour; sdk/plugin turns the value into a program, and sdk/conformance
// proves that it keeps the contract.
//
// The package depends on the standard library only, and so may be imported by
// anything.
//
// # Rules that hold for every method
//
//   - A call returns within CallLimit: done, failed, or ErrPending with the
//     progress made so far. After ErrPending the caller repeats the same call
//     with the same Op.ID and waits on. Cancelling a context only stops the
//     waiting; Platform.Cancel asks the back-end itself. A watch alone lasts as
//     long as its caller likes.
//   - Every mutating call carries an Op. Its ID makes the call idempotent: the
//     plugin writes the id on the back-end object that the call makes, so that a
//     fresh process, asked again with the same id, finds it and answers as the
//     first one would have. Nothing needed for a repeat lives in memory.
//   - Op.Space says where the tenant's objects live. A plugin refuses objects
//     outside it with ErrDenied. A source at the tenant takes the empty Space.
//   - Op.Epoch is the fencing number of the caller's claim. A plugin records it
//     at the back-end and answers ErrFenced to any lower one.
//   - Errors are *Error or wrap one of the sentinels of this package; anything
//     else reaches the caller as a fault of the plugin. errors.Is gives the
//     same answer on both sides of the process border.
//   - Disk bytes never travel through a control call: OpenDisk, OpenDraftDisk,
//     OpenPoint and OpenPointDraftDisk return a reader or writer, and the host
//     reaches its data over NBD, dialling the back-end itself where the value
//     offers an Address.
//   - Methods may be called from several goroutines. Arguments and results are
//     not shared: neither side keeps or changes what it passed or got.
package sdk
