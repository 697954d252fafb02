// Package image writes disk images that other hypervisors read: raw (sparse),
// qcow2 (version 3) and stream-optimised VMDK. Each is an sdk.BlockWriter; the
// image is complete and durable when Flush has returned, and no call after that
// writes to it.
//
// raw takes writes in any order. The other two take them in ascending order and
// append to the file as they come: their tables of one stretch of the disk are
// all that is in memory, so an image of many TiB costs the same as a small one.
package image
