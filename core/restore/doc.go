// Package restore is the verb that gives back what a point holds: a whole
// machine through a target's draft, or one disk as an image file.
//
//	point ─▶ check the manifest ─▶ draft ─▶ each disk through mover ─▶ commit, start
//	                             └▶ image.Writer (raw, qcow2, vmdk) ─▶ rename
//
// Every point is a full point, so any of them restores in one pass. The package
// promises:
//
//   - Nothing is written that is not what was backed up: the manifest's MAC is
//     checked, then every page and chunk from the root down.
//   - A machine appears only when all its disks are complete and flushed; a
//     failed or cancelled restore aborts its draft.
//   - A file gets its name only when it is complete; until then it is NAME.part,
//     which a failure removes. No copy of full size is made on the way.
//
// The agent calls it; whether a machine may be replaced was asked before.
package restore
