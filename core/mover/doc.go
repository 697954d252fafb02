// Package mover is the one copy loop of Holdfast. Everything done to data is:
// copy the blocks of a disk from a reader to a writer, and the mover does it
// with bounded memory whatever the disk's size.
//
//	read ─▶ hash ─▶ ask (have) ─▶ compress, seal ─▶ send ─▶ map
//	 sdk.BlockReader   workers      batches       workers   N connections
//
// Send copies a disk to a repository, Fetch copies one back, Verify opens every
// chunk of one, and SendMissing supplies what a commit misses. They promise:
//
//   - Memory is Options.Memory and a little, whatever the disk's size.
//   - What Fetch writes is what Send read, or an error: every page's hash, every
//     seal and every id is checked, from the root down.
//   - A request that fails for a moment is repeated; what an earlier, broken
//     run sent is found and not sent again.
//   - A change tracker that lies and a repository that has not what it says are
//     found by samples, whose probability of finding them is stated.
//   - Stats and Progress name the stage that the others waited for.
//
// The verbs above (backup, restore, replica) choose the two ends; the mover
// knows neither processes nor sockets nor contracts. The ends of a repository
// are Writer and Reader, which the tenant wire's client and the repository
// itself both implement.
package mover
