// Package backup is the verb that turns a machine at a hypervisor into one
// recovery point in a repository.
//
//	last point ─▶ snapshot ─▶ each disk through mover ─▶ manifest ─▶ commit ─▶ end
//
// Run is given an opened platform, a repository and the tenant's keys; it knows
// neither processes nor sockets, schedules nor contracts. It promises:
//
//   - The point exists only when Commit has answered, and every byte of it is
//     the machine at one moment.
//   - The snapshot is always ended, also when the run is cancelled: with its
//     marks kept after a commit and released otherwise.
//   - Whenever less is known than a fast run needs (a lost mark, another disk
//     size, a lying tracker, a damaged base), more is read, and the Result says
//     so in a Warning. What only an attacker or a fault of the provider explains
//     is a Warning with Alert set.
//
// The agent calls it; it imports mover for the bytes and sdk for the machine.
package backup
