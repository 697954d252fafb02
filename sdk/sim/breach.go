package sim

import (
	"slices"

	"github.com/holdfast-dr/holdfast/sdk"
)

// Breach is a rule of the contract that a platform breaks on request. Each is
// a mistake that authors make, as small as it can be: all else goes on as it
// should. They test who tests plugins.
type Breach string

// Of every platform.
const (
	BreachInventoryRepeats   Breach = "inventory-repeats-a-machine"
	BreachListingSpoilsNext  Breach = "given-up-listing-spoils-the-next"
	BreachProcessesDiffer    Breach = "processes-see-different-disks"
	BreachProbeWithoutReason Breach = "probe-gives-no-reason"
	BreachProbeKnowsAll      Breach = "probe-knows-every-machine"
	BreachCancelFails        Breach = "cancel-of-an-unknown-operation-fails"
	BreachContextIgnored     Breach = "ended-context-is-ignored"
	BreachCloseDoesNothing   Breach = "close-does-nothing"
	BreachHintLost           Breach = "hints-are-lost"
	BreachOneProbeAtATime    Breach = "only-one-probe-at-a-time"
	BreachProgressFalls      Breach = "progress-falls"
	BreachErrorIsTwo         Breach = "error-is-two-at-once"
	BreachListingLocks       Breach = "killed-process-keeps-the-lock-of-the-listing"
)

// Of a Source.
const (
	BreachUnknownDiskLeftOut     Breach = "unknown-disks-are-left-out"
	BreachRepeatDatedAnew        Breach = "repeated-snapshot-is-dated-anew"
	BreachSecondSnapshotEndsIt   Breach = "second-snapshot-ends-the-first"
	BreachNewerClaimIsBusy       Breach = "snapshot-of-an-older-claim-stays-in-the-way"
	BreachOlderClaimEnds         Breach = "older-claim-ends-a-snapshot"
	BreachAllDisksAnyway         Breach = "all-disks-are-taken-anyway"
	BreachNoteMissing            Breach = "less-is-achieved-without-a-note"
	BreachReadsRounded           Breach = "reads-are-rounded-to-sectors"
	BreachExtentsHaveGap         Breach = "extents-have-a-gap"
	BreachSecondOpeningIsLive    Breach = "second-opening-shows-the-live-disk"
	BreachTwoMoments             Breach = "disks-show-two-moments"
	BreachEndedStaysInTheWay     Breach = "ended-snapshot-stays-in-the-way"
	BreachFailedRunLeavesFile    Breach = "failed-run-leaves-a-file"
	BreachSnapshotWithoutID      Breach = "snapshot-without-an-operation-id-works"
	BreachDiskOutlivesSnapshot   Breach = "open-disks-outlive-their-snapshot"
	BreachParallelSnapshotIsBusy Breach = "same-snapshot-in-parallel-is-busy"
	BreachCancelledSnapshotStays Breach = "cancelled-snapshot-stays"
	BreachGivenUpReaderStays     Breach = "given-up-reader-keeps-the-disk"
	BreachSnapshotLocks          Breach = "killed-process-keeps-the-lock-of-snapshot"
	BreachEndLocks               Breach = "killed-process-keeps-the-lock-of-end"
	BreachKilledReaderStays      Breach = "killed-process-keeps-the-disk-that-it-read"
	BreachSnapshotFencedEarly    Breach = "snapshot-looks-at-the-epoch-too-early"
)

// Of a ChangeTracker.
const (
	BreachMarkTooLong          Breach = "marks-are-too-long"
	BreachWritesUntracked      Breach = "writes-during-a-snapshot-are-not-tracked"
	BreachFailedRunTakesMark   Breach = "failed-run-takes-the-mark-before"
	BreachForeignMarkTaken     Breach = "mark-of-another-disk-is-taken"
	BreachUnknownMarkTakesAll  Breach = "release-of-an-unknown-mark-releases-all"
	BreachUnknownDiskUnchanged Breach = "unknown-disk-has-no-changes"
	BreachKeptRunLeavesFile    Breach = "kept-run-leaves-a-file"
	BreachOlderClaimReleases   Breach = "older-claim-releases-a-mark"
	BreachEndedIsUnchanged     Breach = "ended-snapshot-has-no-changes"
	BreachParallelChangesCut   Breach = "changes-asked-for-in-parallel-are-cut-short"
	BreachReleaseLocks         Breach = "killed-process-keeps-the-lock-of-release"
	BreachChangedLocks         Breach = "killed-process-keeps-the-lock-of-the-changes"
)

// Of a Target.
const (
	BreachUnknownDraftDisk     Breach = "unknown-disk-of-a-draft-is-invalid"
	BreachNetworksNotNamed     Breach = "existing-networks-are-not-named"
	BreachUUIDKept             Breach = "new-machine-has-the-old-uuid"
	BreachDraftsListed         Breach = "drafts-are-listed"
	BreachCommittedAborted     Breach = "committed-draft-can-be-aborted"
	BreachAbortLeavesFile      Breach = "abort-under-a-writer-leaves-a-file"
	BreachWritesBeyondEnd      Breach = "writes-beyond-the-end-succeed"
	BreachReopenKeepsWriter    Breach = "reopening-keeps-the-writer-before"
	BreachOlderClaimAborts     Breach = "older-claim-aborts-a-draft"
	BreachForeignSpaceAborts   Breach = "foreign-space-aborts-a-draft"
	BreachReplacedGetsCards    Breach = "replaced-machine-gets-new-addresses"
	BreachRunningReplaced      Breach = "running-machine-is-replaced"
	BreachSizesRounded         Breach = "small-disks-are-rounded-up"
	BreachEmptyDiskFails       Breach = "empty-disk-cannot-be-opened"
	BreachFewDisks             Breach = "disks-after-the-26th-are-dropped"
	BreachNamesInASCII         Breach = "names-are-spelled-in-ascii"
	BreachDiskIDsCleaned       Breach = "disk-ids-are-cleaned"
	BreachOperationIDsCleaned  Breach = "operation-ids-are-cleaned"
	BreachWriterOutlivesCommit Breach = "writers-outlive-the-commit"
	BreachParallelCreatesTwo   Breach = "same-draft-in-parallel-is-two"
	BreachCancelledDraftStays  Breach = "cancelled-creation-stays"
	BreachReopenEmpties        Breach = "reopening-empties-the-disk"
	BreachCreateLocks          Breach = "killed-process-keeps-the-lock-of-create"
	BreachOpenLocks            Breach = "killed-process-keeps-the-lock-of-open"
	BreachKilledWriterStays    Breach = "killed-process-keeps-the-disk-that-it-wrote"
	BreachCommitLocks          Breach = "killed-process-keeps-the-lock-of-commit"
	BreachAbortLocks           Breach = "killed-process-keeps-the-lock-of-abort"
	BreachWriterNeverFenced    Breach = "writer-that-has-written-is-not-fenced-by-a-newer-claim"
	BreachWriteFencedEarly     Breach = "write-looks-at-the-fence-too-early"
	BreachCommitFencedEarly    Breach = "commit-looks-at-the-epoch-too-early"
)

// Of a Power.
const (
	BreachStartedIsPaused     Breach = "started-machine-is-paused"
	BreachUnknownStartInvalid Breach = "start-of-an-unknown-machine-is-invalid"
	BreachOlderClaimStops     Breach = "older-claim-stops-a-machine"
	BreachGraceHasNoEnd       Breach = "grace-has-no-end"
	BreachParallelStopIsBusy  Breach = "same-stop-in-parallel-is-busy"
	BreachStartLocks          Breach = "killed-process-keeps-the-lock-of-start"
	BreachStopLocks           Breach = "killed-process-keeps-the-lock-of-stop"
	BreachStartFencedEarly    Breach = "start-looks-at-the-epoch-too-early"
	BreachForeignSpaceStarts  Breach = "foreign-space-starts-a-machine"
)

// Of a Watcher.
const (
	BreachWatchStandsUnsaid    Breach = "watch-does-not-say-that-it-stands"
	BreachChangesUntold        Breach = "changes-are-not-told"
	BreachWatchOutlivesContext Breach = "watch-outlives-its-context"
	BreachWatchLocks           Breach = "killed-process-keeps-the-lock-of-the-watch"
)

// Of a Replicator.
const (
	BreachUnknownPointInvalid    Breach = "unknown-point-is-invalid"
	BreachAchievedLost           Breach = "points-forget-what-was-achieved"
	BreachGrownEndIsNotZero      Breach = "grown-disk-does-not-end-in-zeroes"
	BreachPointDraftUnlisted     Breach = "drafts-of-points-are-not-listed"
	BreachCommittedPointAborted  Breach = "committed-draft-of-a-point-can-be-aborted"
	BreachPointAbortLeavesFile   Breach = "abort-of-a-point-under-a-writer-leaves-a-file"
	BreachRemovedReplicaLeaves   Breach = "removed-replica-leaves-its-draft"
	BreachDraftReadsBase         Breach = "draft-reads-as-its-base"
	BreachPointReopenKeepsWriter Breach = "reopening-a-point-keeps-the-writer-before"
	BreachSecondPointDraftEnds   Breach = "second-draft-of-a-point-ends-the-first"
	BreachOlderClaimRemovesPoint Breach = "older-claim-removes-a-point"
	BreachForeignSpaceReads      Breach = "foreign-space-reads-a-point"
	BreachAnyBase                Breach = "any-point-is-a-base"
	BreachRemovalSpoils          Breach = "removing-the-youngest-point-spoils-the-one-before"
	BreachHoldForgotten          Breach = "holds-bind-one-process"
	BreachTooManyPoints          Breach = "more-points-than-there-may-be"
	BreachRunningSeedTaken       Breach = "running-machine-becomes-a-replica"
	BreachParallelPointDraftBusy Breach = "same-draft-of-a-point-in-parallel-is-busy"
	BreachDraftPointLocks        Breach = "killed-process-keeps-the-lock-of-a-point's-draft"
	BreachKilledPointWriterStays Breach = "killed-process-keeps-the-disk-of-the-point-that-it-wrote"
	BreachCommitPointLocks       Breach = "killed-process-keeps-the-lock-of-a-point's-commit"
	BreachRemovePointLocks       Breach = "killed-process-keeps-the-lock-of-a-point's-removal"
	BreachPointWriteFencedEarly  Breach = "write-to-a-point-looks-at-the-fence-too-early"
	BreachPointCommitFencedEarly Breach = "commit-of-a-point-looks-at-the-epoch-too-early"
)

// Of an Activator.
const (
	BreachUnknownInstanceInvalid Breach = "unknown-instance-is-invalid"
	BreachUnmappedConnected      Breach = "interfaces-are-connected-unasked"
	BreachInstanceInPoint        Breach = "point-shows-what-its-test-wrote"
	BreachRepeatStaysOff         Breach = "repeated-activation-starts-nothing"
	BreachRunningPointRemoved    Breach = "point-that-is-run-is-removed"
	BreachSecondRealReplaces     Breach = "second-real-instance-replaces-the-first"
	BreachActivatedWritersGoOn   Breach = "writers-go-on-under-a-real-instance"
	BreachTestFenced             Breach = "replication-fences-tests"
	BreachDeactivateLeavesFile   Breach = "discarded-instance-leaves-what-it-wrote"
	BreachKeptLayerEmpty         Breach = "kept-layer-is-empty"
	BreachOlderClaimDeactivates  Breach = "older-claim-deactivates-an-instance"
	BreachForeignSpaceActivates  Breach = "foreign-space-activates-a-point"
	BreachFinalizeKeepsReplica   Breach = "replica-outlives-its-permanent-machine"
	BreachReverseMarksNow        Breach = "reversal-marks-the-moment-it-is-asked"
	BreachActivateLocks          Breach = "killed-process-keeps-the-lock-of-an-activation"
	BreachDeactivateLocks        Breach = "killed-process-keeps-the-lock-of-a-deactivation"
	BreachFinalizeLocks          Breach = "killed-process-keeps-the-lock-of-a-finalization"
	BreachActivateFencedEarly    Breach = "activation-looks-at-the-epoch-too-early"
)

// Of a Networker, Pools, a Console and a Guest.
const (
	BreachNetworkNotOurs          Breach = "repeated-network-is-not-ours"
	BreachForeignSpaceDisconnects Breach = "foreign-space-removes-a-network"
	BreachTakenNameShared         Breach = "network-under-a-name-that-is-taken-is-the-old-one"
	BreachUsedNetworkRemoved      Breach = "network-in-use-is-removed"
	BreachOlderClaimDisconnects   Breach = "older-claim-removes-a-network"
	BreachMoreFreeThanThereIs     Breach = "more-is-free-than-there-is"
	BreachStorageNotCounted       Breach = "storage-of-replicas-is-not-counted"
	BreachLimitsNotKept           Breach = "limits-are-promised-and-not-kept"
	BreachScreenshotIsNone        Breach = "screenshot-is-no-picture"
	BreachForeignSpaceLooks       Breach = "foreign-space-looks-at-a-machine"
	BreachOffGuestInvalid         Breach = "guest-of-a-machine-that-is-off-is-invalid"
	BreachForeignSpaceAsks        Breach = "foreign-space-asks-a-guest"
)

var breaches = []Breach{
	BreachInventoryRepeats, BreachListingSpoilsNext, BreachProcessesDiffer, BreachProbeWithoutReason,
	BreachProbeKnowsAll, BreachCancelFails, BreachContextIgnored, BreachCloseDoesNothing,
	BreachHintLost, BreachOneProbeAtATime, BreachProgressFalls, BreachErrorIsTwo,
	BreachUnknownDiskLeftOut, BreachRepeatDatedAnew, BreachSecondSnapshotEndsIt, BreachNewerClaimIsBusy,
	BreachOlderClaimEnds, BreachAllDisksAnyway, BreachNoteMissing, BreachReadsRounded,
	BreachExtentsHaveGap, BreachSecondOpeningIsLive, BreachTwoMoments, BreachEndedStaysInTheWay,
	BreachFailedRunLeavesFile, BreachSnapshotWithoutID, BreachDiskOutlivesSnapshot, BreachParallelSnapshotIsBusy,
	BreachCancelledSnapshotStays, BreachGivenUpReaderStays, BreachSnapshotLocks, BreachEndLocks,
	BreachKilledReaderStays, BreachSnapshotFencedEarly, BreachMarkTooLong, BreachWritesUntracked,
	BreachFailedRunTakesMark, BreachForeignMarkTaken, BreachUnknownMarkTakesAll, BreachUnknownDiskUnchanged,
	BreachKeptRunLeavesFile, BreachOlderClaimReleases, BreachEndedIsUnchanged, BreachParallelChangesCut,
	BreachReleaseLocks, BreachUnknownDraftDisk, BreachNetworksNotNamed, BreachUUIDKept,
	BreachDraftsListed, BreachCommittedAborted, BreachAbortLeavesFile, BreachWritesBeyondEnd,
	BreachReopenKeepsWriter, BreachOlderClaimAborts, BreachForeignSpaceAborts, BreachReplacedGetsCards,
	BreachRunningReplaced, BreachSizesRounded, BreachEmptyDiskFails, BreachFewDisks,
	BreachNamesInASCII, BreachDiskIDsCleaned, BreachOperationIDsCleaned, BreachWriterOutlivesCommit,
	BreachParallelCreatesTwo, BreachCancelledDraftStays, BreachReopenEmpties, BreachCreateLocks,
	BreachOpenLocks, BreachKilledWriterStays, BreachCommitLocks, BreachAbortLocks,
	BreachWriterNeverFenced, BreachWriteFencedEarly, BreachCommitFencedEarly, BreachStartedIsPaused,
	BreachUnknownStartInvalid, BreachOlderClaimStops, BreachGraceHasNoEnd, BreachParallelStopIsBusy,
	BreachStartLocks, BreachStopLocks, BreachStartFencedEarly, BreachForeignSpaceStarts,
	BreachWatchStandsUnsaid, BreachChangesUntold, BreachWatchOutlivesContext,
	BreachListingLocks, BreachChangedLocks, BreachWatchLocks,
	BreachUnknownPointInvalid, BreachAchievedLost, BreachGrownEndIsNotZero, BreachPointDraftUnlisted,
	BreachCommittedPointAborted, BreachPointAbortLeavesFile, BreachRemovedReplicaLeaves, BreachDraftReadsBase,
	BreachPointReopenKeepsWriter, BreachSecondPointDraftEnds, BreachOlderClaimRemovesPoint, BreachForeignSpaceReads,
	BreachAnyBase, BreachRemovalSpoils, BreachHoldForgotten, BreachTooManyPoints,
	BreachRunningSeedTaken, BreachParallelPointDraftBusy, BreachDraftPointLocks, BreachKilledPointWriterStays,
	BreachCommitPointLocks, BreachRemovePointLocks, BreachPointWriteFencedEarly, BreachPointCommitFencedEarly,
	BreachUnknownInstanceInvalid, BreachUnmappedConnected, BreachInstanceInPoint, BreachRepeatStaysOff,
	BreachRunningPointRemoved, BreachSecondRealReplaces, BreachActivatedWritersGoOn, BreachTestFenced,
	BreachDeactivateLeavesFile, BreachKeptLayerEmpty, BreachOlderClaimDeactivates, BreachForeignSpaceActivates,
	BreachFinalizeKeepsReplica, BreachReverseMarksNow, BreachActivateLocks, BreachDeactivateLocks,
	BreachFinalizeLocks, BreachActivateFencedEarly, BreachNetworkNotOurs, BreachForeignSpaceDisconnects,
	BreachTakenNameShared, BreachUsedNetworkRemoved, BreachOlderClaimDisconnects, BreachMoreFreeThanThereIs,
	BreachStorageNotCounted, BreachLimitsNotKept, BreachScreenshotIsNone, BreachForeignSpaceLooks,
	BreachOffGuestInvalid, BreachForeignSpaceAsks,
}

// Breaches lists them all.
func Breaches() []Breach { return slices.Clone(breaches) }

// Break is the platform with one rule broken; "" breaks none. What a breach has
// to remember, all platforms of a Hypervisor remember together, as long as
// they are in one process.
func (p *Platform) Break(b Breach) sdk.Platform {
	if b == "" {
		return p
	}
	return &rogue{Platform: p, breach: b, memory: &p.hypervisor.memory}
}
