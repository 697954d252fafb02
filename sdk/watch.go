package sdk

import (
	"context"
	"iter"
)

// AbilityWatcher is the ability of a Watcher.
const AbilityWatcher Ability = "watcher"

// Watcher tells of changes of the inventory when they happen, so that nobody
// has to list it again and again.
type Watcher interface {
	// Watch tells what is no longer as Machines listed it: machines that
	// appear, vanish, or are described differently. It lasts until ctx ends,
	// however long that is, and is the one call that CallLimit does not bound.
	//
	// The first change comes as soon as the watch stands and names no machine:
	// who lists the inventory after it misses nothing. A later one without a
	// machine says that changes may have been missed, and asks for a new
	// listing. Several changes of one machine may be told as one; the last one
	// told shows it as it is. A change that is no change harms nobody.
	//
	// An error ends the sequence, and so does the end of ctx, with its error.
	// Afterwards the caller watches, and lists, anew.
	Watch(ctx context.Context) iter.Seq2[Change, error]
}

// Change says what of the inventory is no longer as it was.
type Change struct {
	Machine MachineID // "": anything may be different
	Now     *Machine  // as Machines lists it now; nil: it is not there any more
}
