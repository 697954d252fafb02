// Package repository keeps recovery points in a blob store: it writes, reads,
// verifies, forgets and collects, and holds no key of a tenant.
//
//	session ─Put─▶ spool files ─seal, sync─▶ packs/ maps/ ─▶ index (a cache)
//	        ─Commit─▶ every id present? ─▶ points/ (manifest) ─▶ Catalogue
//	reader  ─Read─▶ index ─▶ ranges of packs ─▶ records, checksums verified
//	collect: mark ─▶ copy what is used ─▶ condemn ─▶ delete, much later
//
// One Repository is one cloud repository, opened under a claim, whose epoch it
// carries. It promises:
//
//   - Only the answer of Commit promises durability, and it is given after
//     packs, map packs and manifest are synced and the Catalogue's transaction
//     has checked the epoch. kill -9 at any moment leaves the points as they
//     were before or after a commit, nothing between.
//   - A record that a live or binned point needs is never deleted; nothing is
//     overwritten, and a late or repeated delete of a writer that was fenced off
//     hits only what was condemned before.
//   - Every object carries checksums, so Verify finds a flipped byte without
//     keys, and what is damaged is not offered to writers as present.
//
// Who calls: the gateway for tenants (Begin, Resume, Read, Manifest, Points,
// Forget, wraps), and the server's own runs (Collect, Verify, Import,
// ExpireSessions). The Index is one per server and may be deleted at any time.
// The bytes are specified in FORMAT.md, the choices in DESIGN.md.
package repository
