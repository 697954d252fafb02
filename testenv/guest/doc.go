// Package guest builds the smallest virtual machine that is still real: it boots from its own disk through a boot loader
// and Debian's kernel, mounts journalling file systems, shuts down when asked, and does what its serial console says.
//
// A guest has two disks, as machines that matter have. vda holds boot loader, kernel and root file system; vdb holds a
// file system at /data. A counter can be set to run across both: it writes a growing number to the same offset of vda and
// then of vdb, each time waiting for the disk. Whoever has an image of both disks of one moment therefore reads on vdb the
// number of vda or the one before, and Sequence finds it without knowing any file system.
//
// Console commands, beside busybox's own:
//
//	counter on|off|show   run or stop the counter; print its two values
//	note TEXT             write TEXT to both disks and wait for them
//	notes                 print what was written to each disk
//
// Building needs no root and no loop device, takes a few seconds, and happens once for each version of the kernel and of
// this recipe: the images are kept in testenv.CacheDir.
package guest
