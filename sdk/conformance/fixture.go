package conformance

import (
	"context"
	"regexp"
	"slices"
	"time"

	"github.com/holdfast-dr/holdfast/sdk"
)

// Fixture is what the checks need of a back-end: a machine of their own, and
// ways to do what an operator, a guest, a kernel and a network would. Platform,
// Fresh and Machine are needed always; what else is nil makes the checks that
// need it skip, and say so.
type Fixture struct {
	// Platform is the platform to check.
	Platform sdk.Platform
	// Fresh gives a platform that shares no memory with those before: of a new
	// process, or at least of a new connection. The checks close it.
	Fresh func() (sdk.Platform, error)

	// Process is Fresh with a process that the checks may kill and stop. Control
	// makes one of a plugin that was started with plugin.Start.
	Process func() (Process, error)
	// Wire is the way on which the disks' bytes of Platform and of those of Fresh
	// and Process go: plugin.Launch.WrapData takes its Wrap.
	Wire *Wire
	// CallLimit is the longest that a call may take; 0 means sdk.CallLimit.
	CallLimit time.Duration

	// Machine is a machine that the checks may snapshot, start and stop. For
	// Source it has at least two disks that can be part of a snapshot, of 1 MiB
	// to 64 MiB each, whose content may be anything.
	Machine sdk.MachineID
	// Write writes to a disk of Machine as its guest would. It has to work
	// while a snapshot is open and from a second goroutine, and returns when
	// the write can be seen by a snapshot taken after it.
	Write func(disk sdk.DiskID, off int64, data []byte) error

	// WriteInstance is Write for the machine of an instance of a replica.
	WriteInstance func(machine sdk.MachineID, disk sdk.DiskID, off int64, data []byte) error

	// Draft is what a new machine, and a replica, is like, without disks: a name, CPUs, memory,
	// NICs with networks that exist. A zero Draft is a machine called
	// "conformance" with one CPU and 64 MiB.
	Draft sdk.DraftSpec
	// Read reads a disk of a machine that is off. Without it, new machines are
	// read through a snapshot, if the platform can take one of them.
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

	// Provoke makes the back-end fail the next Probe of the endpoint with an
	// error of this code. ErrUnsupported says that it cannot.
	Provoke func(sdk.Code) error

	// Epoch is above every epoch that the back-end has recorded for Machine.
	Epoch uint64
	// Timeout is how long one check may take; 0 means two minutes.
	Timeout time.Duration
	// Only picks the checks to run, by name; nil runs all of them.
	Only *regexp.Regexp
}

// Process is a platform in a process of its own, and what can be done to that.
// A nil Suspend skips the checks that stop it.
type Process struct {
	Platform sdk.Platform
	Kill     func() error // as SIGKILL does; returns when the process is gone
	Suspend  func() error // as SIGSTOP does
	Resume   func() error // as SIGCONT does
}

func (f Fixture) timeout() time.Duration {
	if f.Timeout > 0 {
		return f.Timeout
	}
	return 2 * time.Minute
}

func (f Fixture) callLimit() time.Duration {
	if f.CallLimit > 0 {
		return f.CallLimit
	}
	return sdk.CallLimit
}

// Check is one thing that a plugin must do.
type Check struct {
	Name string `json:"check"`
	// Ability is what the check is about; "" is the Platform itself.
	Ability sdk.Ability `json:"ability"`
	// Rule is the promise to which the check holds a plugin, in a sentence.
	Rule string `json:"rule"`
	run  func(*checker)
}

// Result is what came of a check.
type Result struct {
	Check    string
	Skipped  string   // why it was not run, or ""
	Problems []string // how the contract was broken; none is well
	// Unchecked is what the check left out because the fixture does not lend
	// what it needs. It does not count as broken.
	Unchecked []string
	Took      time.Duration
}

// Checks lists every check, in the order in which they are run. The last few
// look back at all calls that the others have made.
func Checks() []Check {
	return slices.Concat(platformChecks, sourceChecks, sourceTroubleChecks, trackerChecks, trackerTroubleChecks,
		targetChecks, targetTroubleChecks, powerChecks, watcherChecks, replicatorChecks, replicatorTroubleChecks,
		activatorChecks, surroundingsChecks, ledgerChecks)
}

// Verify runs every check that the fixture picks and calls report after each.
// It stops when ctx ends.
func Verify(ctx context.Context, f Fixture, report func(Result)) {
	s := newSession(f)
	for i, check := range Checks() {
		if ctx.Err() != nil {
			return
		}
		if s.picks(check) {
			report(s.run(ctx, check, i))
		}
	}
}
