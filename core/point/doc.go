// Package point is the format of a recovery point: the manifest, which says
// what machine and disks a point holds and carries the tenant's MAC, and the
// map of each disk, a tree of pages of chunk ids addressed by content.
//
//	manifest ──root──▶ page level 1 ──▶ page level 0 ──▶ chunk ids
//	                      │                └── zero id: a chunk of zeroes
//	                      └── zero id: a whole range of zeroes
//
// Every point is a full point: a tree shares with the trees before it all pages
// that did not change, so an incremental point of a large disk writes only the
// pages on the paths that it touched, and none depends on another point.
//
// The agent builds trees (Builder) and reads them (Cursor, Walk), checking every
// page's hash from the root down. The server checks the form of pages and
// manifests, and learns from them ids, sizes and times, never names or specs:
// those are in the manifest's private part, sealed by the tenant's keyring.
//
// The bytes are specified in core/repository/FORMAT.md.
package point
