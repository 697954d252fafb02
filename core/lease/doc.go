// Package lease decides whether a tenant's contract still runs. It only
// decides: the admission at the wire asks it for every request that reads or
// writes data, and nothing else in the system knows of contracts.
//
// An ended lease refuses backup, copy, replication, restore and download. It
// deletes nothing and powers nothing off: extending the date brings everything
// back as it was.
package lease
