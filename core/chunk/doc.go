// Package chunk is the format of the smallest thing that Holdfast keeps: an
// aligned piece of a disk, named by a keyed hash of its plaintext, compressed,
// sealed under a key of its own, and framed as a record that describes itself.
//
// Both the agent, which seals and opens, and the server, which holds no key
// and only frames, checks and stores, live by this package. It promises:
//
//   - An ID is keyed BLAKE3 of the plaintext, so equal blocks share an id inside
//     one keyring and mean nothing to anyone else.
//   - A sealed record stands alone: it can be copied verbatim between packs,
//     repositories, providers and tapes, for its associated data names neither.
//   - Any one flipped byte of a record is found without keys (CRC-32C) and any
//     change at all is found with keys (the AEAD tag and the recomputed id).
//   - Decoding never panics and never allocates more than the stated bounds,
//     whatever the bytes are.
//
// The bytes are specified in core/repository/FORMAT.md.
package chunk
