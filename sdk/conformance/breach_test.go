package conformance_test

import (
	"io"
	"net"
	"regexp"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/holdfast-dr/holdfast/sdk"
	"github.com/holdfast-dr/holdfast/sdk/conformance"
	"github.com/holdfast-dr/holdfast/sdk/sim"
)

// breach is a mistake, and the check that is there to catch it.
type breach struct {
	check  string
	breach sim.Breach
	wired  bool // the mistake can only be seen when the data goes over a wire
	slow   bool // a call is slower than the limit, instead of the breach
}

var breaches = []breach{
	{check: "platform/inventory", breach: sim.BreachInventoryRepeats},
	{check: "platform/inventory-given-up", breach: sim.BreachListingSpoilsNext},
	{check: "platform/fresh-process-agrees", breach: sim.BreachProcessesDiffer},
	{check: "platform/probe", breach: sim.BreachProbeWithoutReason},
	{check: "platform/probe-unknown", breach: sim.BreachProbeKnowsAll},
	{check: "platform/cancel-unknown", breach: sim.BreachCancelFails},
	{check: "platform/cancelled-context", breach: sim.BreachContextIgnored},
	{check: "platform/closed-is-closed", breach: sim.BreachCloseDoesNothing},
	{check: "platform/sentinels-arrive", breach: sim.BreachHintLost},
	{check: "platform/parallel-calls", breach: sim.BreachOneProbeAtATime},
	{check: "platform/killed-in-listing", breach: sim.BreachListingLocks},

	{check: "source/unknown-names", breach: sim.BreachUnknownDiskLeftOut},
	{check: "source/snapshot-repeats", breach: sim.BreachRepeatDatedAnew},
	{check: "source/second-snapshot-is-busy", breach: sim.BreachSecondSnapshotEndsIt},
	{check: "source/newer-claim-ends-older-snapshot", breach: sim.BreachNewerClaimIsBusy},
	{check: "source/older-claim-is-fenced", breach: sim.BreachOlderClaimEnds},
	{check: "source/some-disks", breach: sim.BreachAllDisksAnyway},
	{check: "source/quiesce-says-what-was-achieved", breach: sim.BreachNoteMissing},
	{check: "source/reader", breach: sim.BreachReadsRounded},
	{check: "source/extents", breach: sim.BreachExtentsHaveGap},
	{check: "source/snapshot-stays-as-it-was", breach: sim.BreachSecondOpeningIsLive},
	{check: "source/one-moment-of-all-disks", breach: sim.BreachTwoMoments},
	{check: "source/end-repeats", breach: sim.BreachEndedStaysInTheWay},
	{check: "source/leaves-nothing", breach: sim.BreachFailedRunLeavesFile},
	{check: "source/operation-ids", breach: sim.BreachSnapshotWithoutID},
	{check: "source/calls-out-of-order", breach: sim.BreachDiskOutlivesSnapshot},
	{check: "source/parallel-calls", breach: sim.BreachParallelSnapshotIsBusy},
	{check: "source/cancelled-call-repeats", breach: sim.BreachCancelledSnapshotStays},
	{check: "source/data-cut", breach: sim.BreachGivenUpReaderStays, wired: true},
	{check: "source/killed-in-snapshot", breach: sim.BreachSnapshotLocks},
	{check: "source/killed-in-end", breach: sim.BreachEndLocks},
	{check: "source/killed-while-read", breach: sim.BreachKilledReaderStays},
	{check: "source/stopped-process-is-fenced", breach: sim.BreachSnapshotFencedEarly},

	{check: "change-tracker/marks", breach: sim.BreachMarkTooLong},
	{check: "change-tracker/changed-is-complete", breach: sim.BreachWritesUntracked},
	{check: "change-tracker/failed-run-keeps-the-mark", breach: sim.BreachFailedRunTakesMark},
	{check: "change-tracker/worthless-marks-are-lost", breach: sim.BreachForeignMarkTaken},
	{check: "change-tracker/release", breach: sim.BreachUnknownMarkTakesAll},
	{check: "change-tracker/unknown-names", breach: sim.BreachUnknownDiskUnchanged},
	{check: "change-tracker/leaves-nothing", breach: sim.BreachKeptRunLeavesFile},
	{check: "change-tracker/older-claim-is-fenced", breach: sim.BreachOlderClaimReleases},
	{check: "change-tracker/calls-out-of-order", breach: sim.BreachEndedIsUnchanged},
	{check: "change-tracker/parallel-calls", breach: sim.BreachParallelChangesCut},
	{check: "change-tracker/killed-in-changed", breach: sim.BreachChangedLocks},
	{check: "change-tracker/killed-in-release", breach: sim.BreachReleaseLocks},

	{check: "target/unknown-names", breach: sim.BreachUnknownDraftDisk},
	{check: "target/unknown-network", breach: sim.BreachNetworksNotNamed},
	{check: "target/draft-becomes-a-machine", breach: sim.BreachUUIDKept},
	{check: "target/draft-is-invisible", breach: sim.BreachDraftsListed},
	{check: "target/repeats", breach: sim.BreachCommittedAborted},
	{check: "target/abort-leaves-nothing", breach: sim.BreachAbortLeavesFile},
	{check: "target/shape", breach: sim.BreachWritesBeyondEnd},
	{check: "target/writer-before-is-fenced", breach: sim.BreachReopenKeepsWriter},
	{check: "target/older-claim-is-fenced", breach: sim.BreachOlderClaimAborts},
	{check: "target/foreign-space-is-denied", breach: sim.BreachForeignSpaceAborts},
	{check: "target/replace", breach: sim.BreachReplacedGetsCards},
	{check: "target/replace-of-a-running-machine-is-busy", breach: sim.BreachRunningReplaced},
	{check: "target/odd-sizes", breach: sim.BreachSizesRounded},
	{check: "target/empty-disk", breach: sim.BreachEmptyDiskFails},
	{check: "target/many-disks", breach: sim.BreachFewDisks},
	{check: "target/names-in-any-script", breach: sim.BreachNamesInASCII},
	{check: "target/disk-ids-in-any-script", breach: sim.BreachDiskIDsCleaned},
	{check: "target/operation-ids", breach: sim.BreachOperationIDsCleaned},
	{check: "target/calls-out-of-order", breach: sim.BreachWriterOutlivesCommit},
	{check: "target/parallel-calls", breach: sim.BreachParallelCreatesTwo},
	{check: "target/cancelled-call-repeats", breach: sim.BreachCancelledDraftStays},
	{check: "target/data-cut", breach: sim.BreachReopenEmpties, wired: true},
	{check: "target/killed-in-create", breach: sim.BreachCreateLocks},
	{check: "target/killed-in-open", breach: sim.BreachOpenLocks},
	{check: "target/killed-while-written", breach: sim.BreachKilledWriterStays},
	{check: "target/killed-in-commit", breach: sim.BreachCommitLocks},
	{check: "target/killed-in-abort", breach: sim.BreachAbortLocks},
	{check: "target/stopped-host-cannot-write", breach: sim.BreachWriterNeverFenced, wired: true},
	{check: "target/stopped-process-cannot-write", breach: sim.BreachWriteFencedEarly},
	{check: "target/stopped-process-cannot-commit", breach: sim.BreachCommitFencedEarly},

	{check: "power/start-and-stop", breach: sim.BreachStartedIsPaused},
	{check: "power/unknown-machine", breach: sim.BreachUnknownStartInvalid},
	{check: "power/older-claim-is-fenced", breach: sim.BreachOlderClaimStops},
	{check: "power/stop-within-grace", breach: sim.BreachGraceHasNoEnd},
	{check: "power/parallel-calls", breach: sim.BreachParallelStopIsBusy},
	{check: "power/killed-in-start", breach: sim.BreachStartLocks},
	{check: "power/killed-in-stop", breach: sim.BreachStopLocks},
	{check: "power/stopped-process-is-fenced", breach: sim.BreachStartFencedEarly},
	{check: "power/foreign-space-is-denied", breach: sim.BreachForeignSpaceStarts},

	{check: "watcher/stands-first", breach: sim.BreachWatchStandsUnsaid},
	{check: "watcher/tells-changes", breach: sim.BreachChangesUntold},
	{check: "watcher/killed-in-watch", breach: sim.BreachWatchLocks},
	{check: "watcher/ends-with-its-context", breach: sim.BreachWatchOutlivesContext},

	{check: "replicator/unknown-names", breach: sim.BreachUnknownPointInvalid},
	{check: "replicator/point-is-what-was-written", breach: sim.BreachAchievedLost},
	{check: "replicator/next-point-begins-as-its-base", breach: sim.BreachGrownEndIsNotZero},
	{check: "replicator/draft-is-no-point", breach: sim.BreachPointDraftUnlisted},
	{check: "replicator/repeats", breach: sim.BreachCommittedPointAborted},
	{check: "replicator/abort-leaves-nothing", breach: sim.BreachPointAbortLeavesFile},
	{check: "replicator/removed-replica-leaves-nothing", breach: sim.BreachRemovedReplicaLeaves},
	{check: "replicator/draft-can-be-read", breach: sim.BreachDraftReadsBase},
	{check: "replicator/writer-before-is-fenced", breach: sim.BreachPointReopenKeepsWriter},
	{check: "replicator/newer-claim-takes-over", breach: sim.BreachSecondPointDraftEnds},
	{check: "replicator/older-claim-is-fenced", breach: sim.BreachOlderClaimRemovesPoint},
	{check: "replicator/foreign-space-is-denied", breach: sim.BreachForeignSpaceReads},
	{check: "replicator/base-is-the-youngest", breach: sim.BreachAnyBase},
	{check: "replicator/points-go-in-any-order", breach: sim.BreachRemovalSpoils},
	{check: "replicator/held-point-stays", breach: sim.BreachHoldForgotten},
	{check: "replicator/no-more-points-than-said", breach: sim.BreachTooManyPoints},
	{check: "replicator/seed", breach: sim.BreachRunningSeedTaken},
	{check: "replicator/parallel-calls", breach: sim.BreachParallelPointDraftBusy},
	{check: "replicator/killed-in-draft", breach: sim.BreachDraftPointLocks},
	{check: "replicator/killed-while-written", breach: sim.BreachKilledPointWriterStays},
	{check: "replicator/killed-in-commit", breach: sim.BreachCommitPointLocks},
	{check: "replicator/killed-in-remove", breach: sim.BreachRemovePointLocks},
	{check: "replicator/stopped-process-cannot-write", breach: sim.BreachPointWriteFencedEarly},
	{check: "replicator/stopped-process-cannot-commit", breach: sim.BreachPointCommitFencedEarly},

	{check: "activator/unknown-names", breach: sim.BreachUnknownInstanceInvalid},
	{check: "activator/runs-a-point", breach: sim.BreachUnmappedConnected},
	{check: "activator/point-stays-as-it-was", breach: sim.BreachInstanceInPoint},
	{check: "activator/repeats", breach: sim.BreachRepeatStaysOff},
	{check: "activator/needs-its-point", breach: sim.BreachRunningPointRemoved},
	{check: "activator/second-real-is-busy", breach: sim.BreachSecondRealReplaces},
	{check: "activator/real-ends-older-writers", breach: sim.BreachActivatedWritersGoOn},
	{check: "activator/test-leaves-replication-alone", breach: sim.BreachTestFenced},
	{check: "activator/deactivate-leaves-nothing", breach: sim.BreachDeactivateLeavesFile},
	{check: "activator/kept-layer-runs-again", breach: sim.BreachKeptLayerEmpty},
	{check: "activator/older-claim-is-fenced", breach: sim.BreachOlderClaimDeactivates},
	{check: "activator/foreign-space-is-denied", breach: sim.BreachForeignSpaceActivates},
	{check: "activator/finalize", breach: sim.BreachFinalizeKeepsReplica},
	{check: "activator/reverse", breach: sim.BreachReverseMarksNow},
	{check: "activator/killed-in-activate", breach: sim.BreachActivateLocks},
	{check: "activator/killed-in-deactivate", breach: sim.BreachDeactivateLocks},
	{check: "activator/killed-in-finalize", breach: sim.BreachFinalizeLocks},
	{check: "activator/stopped-process-is-fenced", breach: sim.BreachActivateFencedEarly},

	{check: "networker/create-repeats", breach: sim.BreachNetworkNotOurs},
	{check: "networker/foreign-space-is-denied", breach: sim.BreachForeignSpaceDisconnects},
	{check: "networker/refusals", breach: sim.BreachTakenNameShared},
	{check: "networker/used-is-busy", breach: sim.BreachUsedNetworkRemoved},
	{check: "networker/older-claim-is-fenced", breach: sim.BreachOlderClaimDisconnects},

	{check: "pools/capacity", breach: sim.BreachMoreFreeThanThereIs},
	{check: "pools/usage", breach: sim.BreachStorageNotCounted},
	{check: "pools/enforced-limits", breach: sim.BreachLimitsNotKept},

	{check: "console/screenshot", breach: sim.BreachScreenshotIsNone},
	{check: "console/foreign-space-is-denied", breach: sim.BreachForeignSpaceLooks},

	{check: "guest/info", breach: sim.BreachOffGuestInvalid},
	{check: "guest/foreign-space-is-denied", breach: sim.BreachForeignSpaceAsks},

	{check: "platform/calls-return-in-time", slow: true},
	{check: "platform/pending-says-how-far", breach: sim.BreachProgressFalls},
	{check: "platform/errors-mean-one-thing", breach: sim.BreachErrorIsTwo},
}

// TestEachBreachIsCaughtByItsCheck breaks one rule at a time and runs the
// whole suite: the check that names the rule fails, and no other does. What
// needs no wire runs in a time of its own, in which waits cost nothing and a
// busy machine makes no call late.
func TestEachBreachIsCaughtByItsCheck(t *testing.T) {
	for _, test := range breaches {
		t.Run(test.check, func(t *testing.T) {
			t.Parallel()
			if test.wired {
				caught(t, test)
			} else {
				synctest.Test(t, func(t *testing.T) { caught(t, test) })
			}
		})
	}
}

// writeTime is what a write costs a guest: where it cost nothing, the time of
// the test would stand still while a guest writes.
const writeTime = 100 * time.Microsecond

func caught(t *testing.T, test breach) {
	found := make(map[string][]string)
	f := broken(t, test.breach, test.wired, test.slow)
	defer f.Platform.Close() // ends the calls that never would
	write := f.Write
	f.Write = func(disk sdk.DiskID, off int64, data []byte) error {
		<-time.After(writeTime)
		return write(disk, off, data)
	}
	conformance.Verify(t.Context(), f, func(r conformance.Result) {
		if len(r.Problems) > 0 {
			found[r.Check] = r.Problems
		}
	})
	if len(found) != 1 || found[test.check] == nil {
		t.Errorf("%q should fail %s alone; these failed: %v", test.breach, test.check, found)
	}
}

// broken is a fixture of a platform with one mistake.
func broken(t *testing.T, breach sim.Breach, wired, late bool) conformance.Fixture {
	switch {
	case late:
		f := inMemory(t, sim.Settings{Faults: []sim.Fault{{Call: "Start", Action: sim.ActionDelay, Delay: slow}}}, "")
		f.CallLimit = slow
		return f
	case wired:
		return overGRPC(t, sim.Settings{}, breach)
	}
	return inMemory(t, sim.Settings{MaxPoints: 5}, breach)
}

// slow is a call limit that no call here comes near unless it is made to.
const slow = 4 * time.Second

func TestEachCheckHasABreach(t *testing.T) {
	var want, have []string
	for _, c := range conformance.Checks() {
		want = append(want, c.Name)
	}
	seen := make(map[sim.Breach]bool)
	for _, b := range breaches {
		have = append(have, b.check)
		if seen[b.breach] {
			t.Errorf("breach %s is there for two checks", b.breach)
		}
		seen[b.breach] = true
	}
	for _, b := range sim.Breaches() {
		if !seen[b] {
			t.Errorf("breach %s is there for no check", b)
		}
	}
	slices.Sort(want)
	slices.Sort(have)
	if diff := cmp.Diff(want, slices.Compact(have)); diff != "" {
		t.Errorf("checks with a breach that they catch (-want +have):\n%s", diff)
	}
}

func TestPanicIsAProblemOfItsCheckAlone(t *testing.T) {
	f := inMemory(t, sim.Settings{Faults: []sim.Fault{{Call: "Start", Action: sim.ActionPanic}}}, "")
	f.Only = regexp.MustCompile("^power/")
	var failed []string
	conformance.Verify(t.Context(), f, func(r conformance.Result) {
		if len(r.Problems) > 0 {
			failed = append(failed, r.Check)
		}
	})
	if diff := cmp.Diff([]string{"power/start-and-stop"}, failed); diff != "" {
		t.Errorf("failed (-want +have):\n%s", diff)
	}
}

// TestHangIsBounded has a call hang whatever its context says: the suite gives
// it up, says where, and goes on.
func TestHangIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := inMemory(t, sim.Settings{Faults: []sim.Fault{{Call: "Start", Action: sim.ActionHang}}}, "")
		f.Only = regexp.MustCompile("^power/(start|unknown)|in-time")
		results := make(map[string]string)
		conformance.Verify(t.Context(), f, func(r conformance.Result) {
			results[r.Check] = strings.Join(r.Problems, "; ")
		})
		f.Platform.Close() // wakes the call, so that its goroutine ends
		want := map[string]string{
			"power/start-and-stop":          "start the machine, and again: Start did not return within 35s",
			"power/unknown-machine":         "",
			"platform/calls-return-in-time": "in power/start-and-stop: Start took 35s, the limit is 30s",
		}
		if diff := cmp.Diff(want, results); diff != "" {
			t.Errorf("problems (-want +have):\n%s", diff)
		}
	})
}

// TestQuietWireChangesNothing is the wire while no check uses it.
func TestQuietWireChangesNothing(t *testing.T) {
	here, there := net.Pipe()
	wire := new(conformance.Wire)
	conn := wire.Wrap(here)
	go func() { _, _ = io.Copy(there, there) }()
	for range 3 {
		if _, err := conn.Write([]byte("echo")); err != nil {
			t.Fatal(err)
		}
		got := make([]byte, 4)
		if _, err := io.ReadFull(conn, got); err != nil || string(got) != "echo" {
			t.Fatalf("read %q, %v", got, err)
		}
	}
	if err := conn.Close(); err != nil {
		t.Error(err)
	}
	if _, err := conn.Write([]byte("echo")); err == nil {
		t.Error("a closed connection takes bytes")
	}
}
