// Package mover is the one copy loop of Holdfast. Everything done to data is:
// copy the blocks of a disk from a reader to a writer, and the mover does it
// with bounded memory whatever the disk's size.
//
//	read ─▶ hash ─▶ ask (have) ─▶ compress, seal ─▶ send ─▶ map
//	 sdk.BlockReader   workers      batches       workers   N connections
//
// The verbs above (backup, restore, replica) choose the two ends; the mover
// knows neither processes nor sockets nor contracts. The ends of a repository
// are Writer and Reader, which the tenant wire's client and the repository
// itself both implement.
package mover
