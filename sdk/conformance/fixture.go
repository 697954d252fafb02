package conformance

import (
	"context"
	"time"

	"github.com/holdfast-dr/holdfast/sdk"
)

// Fixture is what the checks need of a back-end: a machine of their own, and
// ways to do what an operator and a guest would. Platform, Fresh and Machine
// are needed always; what else is nil makes the checks that need it skip, and
// say so.
type Fixture struct {
	// Platform is the platform to check.
	Platform sdk.Platform
	// Fresh gives a platform that shares no memory with those before: of a new
	// process, or at least of a new connection. The checks close it.
	Fresh func() (sdk.Platform, error)

	// Machine is a machine that the checks may snapshot, start and stop. For
	// Source it has at least two disks that can be part of a snapshot, of 1 MiB
	// to 64 MiB each, whose content may be anything.
	Machine sdk.MachineID
	// Write writes to a disk of Machine as its guest would. It has to work
	// while a snapshot is open and from a second goroutine, and returns when
	// the write can be seen by a snapshot taken after it.
	Write func(disk sdk.DiskID, off int64, data []byte) error

	// Draft is what a new machine is like, without disks: a name, CPUs, memory,
	// NICs with networks that exist. A zero Draft is a machine called
	// "conformance" with one CPU and 64 MiB.
	Draft sdk.DraftSpec
	// Read reads a disk of a machine that is off.
	Read func(machine sdk.MachineID, disk sdk.DiskID, off int64, data []byte) error
	// Remove destroys a machine that a check has made.
	Remove func(machine sdk.MachineID) error

	// Space is where the drafts go; "" is the whole back-end. Foreign is a space
	// in which neither Machine nor the drafts are; "" skips its checks.
	Space   sdk.Space
	Foreign sdk.Space

	// Objects names everything that a plugin could leave at the back-end. It
	// is compared before and after.
	Objects func() ([]string, error)

	// Epoch is above every epoch that the back-end has recorded for Machine.
	Epoch uint64
	// Timeout is how long one check may take; 0 means two minutes.
	Timeout time.Duration
}

func (f Fixture) timeout() time.Duration {
	if f.Timeout > 0 {
		return f.Timeout
	}
	return 2 * time.Minute
}

// Check is one thing that a plugin must do.
type Check struct {
	Name string
	// Ability is what the check is about; "" is the Platform itself.
	Ability sdk.Ability
	run     func(*checker)
}

// Result is what came of a check.
type Result struct {
	Check    string
	Skipped  string   // why it was not run, or ""
	Problems []string // how the contract was broken; none is well
	Took     time.Duration
}

// Checks lists every check, in the order in which they are run.
func Checks() []Check {
	var all []Check
	for _, part := range [][]Check{platformChecks, sourceChecks, trackerChecks, targetChecks, powerChecks} {
		all = append(all, part...)
	}
	return all
}

// Verify runs every check and calls report after each. It stops when ctx ends.
func Verify(ctx context.Context, f Fixture, report func(Result)) {
	for i, check := range Checks() {
		if ctx.Err() != nil {
			return
		}
		report(check.Run(ctx, f, i))
	}
}
