// Package blob is dumb storage of immutable objects: put new, read a range,
// list, delete, retain until. There is no append, no rename and no overwrite,
// because S3 has none and a directory must not need them; whoever wants to
// change something writes a new object.
//
// The stores are subpackages (dir, mem), and blobtest is the suite that each of
// them passes. Names are bounded and checked with CheckName before a store sees
// them, so that no name means something else to a file system or to a URL.
//
// The room also knows the provider's own repositories, its locations.
package blob
