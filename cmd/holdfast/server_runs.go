package main

import (
	"context"
	"fmt"
	"time"

	"github.com/holdfast-dr/holdfast/core/api"
	"github.com/holdfast-dr/holdfast/core/job"
	"github.com/holdfast-dr/holdfast/core/point"
	"github.com/holdfast-dr/holdfast/core/quota"
	"github.com/holdfast-dr/holdfast/core/repository"
)

// maxNamed bounds the objects and points that a run's result names; the counts
// are whole.
const maxNamed = 100

// finding is an object of the store that is not what it should be.
type finding struct {
	Object  string `json:"object"`
	Problem string `json:"problem"`
}

func findings(faults []repository.ObjectFault) []finding {
	out := make([]finding, 0, min(len(faults), maxNamed))
	for _, f := range faults[:min(len(faults), maxNamed)] {
		out = append(out, finding{f.Object, f.Problem})
	}
	return out
}

func named(points []point.ID) []point.ID { return points[:min(len(points), maxNamed)] }

// verifyResult is what a verification answers.
type verifyResult struct {
	Sound          bool       `json:"sound"`
	Objects        int        `json:"objects"`
	Packs          int        `json:"packs"`
	Records        int64      `json:"records"`
	Bytes          int64      `json:"bytes"`
	DamagedRecords int64      `json:"damaged_records"`
	FaultyObjects  int        `json:"faulty_objects"`
	Faults         []finding  `json:"faults,omitempty"`
	AffectedPoints int        `json:"affected_points"`
	Affected       []point.ID `json:"affected,omitempty"`
	DoubtfulPoints int        `json:"doubtful_points"`
	Doubtful       []point.ID `json:"doubtful,omitempty"`
}

// verifyRepository reads everything and checks it without keys.
func verifyRepository(ctx context.Context, x *job.Execution, o *openRepository, r quota.CloudRepository) error {
	start := time.Now()
	report, err := o.repository.Verify(ctx, repository.VerifyOptions{Progress: func(v repository.VerifyReport) error {
		seconds := time.Since(start).Seconds()
		x.Report(job.Progress{Phase: "verify", DoneBytes: v.Bytes, TotalBytes: max(v.Bytes, r.UsedBytes), Rate: float64(v.Bytes) / max(seconds, 1e-3), Time: time.Now()})
		return nil
	}})
	if err != nil {
		return err
	}
	if !report.Sound() {
		x.Warn(job.Failure{Side: "provider",
			Message: fmt.Sprintf("%d damaged records and %d faulty objects; %d points cannot be restored whole, and %d depend on what is distrusted",
				report.DamagedRecords, report.FaultyObjects, len(report.Affected), len(report.Doubtful)),
			Hint: "the next backup of each machine sends again what it still has; look after the storage"})
	}
	return x.SetResult(verifyResult{Sound: report.Sound(), Objects: report.Objects, Packs: report.Packs, Records: report.Records, Bytes: report.Bytes,
		DamagedRecords: report.DamagedRecords, FaultyObjects: report.FaultyObjects, Faults: findings(report.Faults),
		AffectedPoints: len(report.Affected), Affected: named(report.Affected), DoubtfulPoints: len(report.Doubtful), Doubtful: named(report.Doubtful)})
}

// collectResult is what a collection answers.
type collectResult struct {
	UsedBytes      int64 `json:"used_bytes"`
	PurgedPoints   int   `json:"purged_points"`
	CondemnedPacks int   `json:"condemned_packs"`
	CondemnedBytes int64 `json:"condemned_bytes"`
	CopiedBytes    int64 `json:"copied_bytes"`
	KeptPacks      int   `json:"kept_packs"`
	DeletedPacks   int   `json:"deleted_packs"`
	DeletedBytes   int64 `json:"deleted_bytes"`
	WaitingPacks   int   `json:"waiting_packs"`
}

// collectRepository frees the space of what no point uses any more.
func collectRepository(ctx context.Context, x *job.Execution, o *openRepository, _ quota.CloudRepository) error {
	x.Report(job.Progress{Phase: "collect", Time: time.Now()})
	if err := o.label(ctx); err != nil { // names change while a repository stays open
		return err
	}
	c, err := o.repository.Collect(ctx, repository.CollectOptions{})
	if err != nil {
		return err
	}
	return x.SetResult(collectResult{UsedBytes: c.UsedBytes, PurgedPoints: c.PurgedPoints, CondemnedPacks: c.CondemnedPacks, CondemnedBytes: c.CondemnedBytes,
		CopiedBytes: c.CopiedBytes, KeptPacks: c.KeptPacks, DeletedPacks: c.DeletedPacks, DeletedBytes: c.DeletedBytes, WaitingPacks: c.WaitingPacks})
}

// importResult is what an import answers.
type importResult struct {
	Points    int        `json:"points"`
	Binned    int        `json:"binned"`
	Void      int        `json:"void"`
	Refused   int        `json:"refused"`
	Faults    []finding  `json:"faults,omitempty"`
	Lost      int        `json:"lost"`
	Missing   []point.ID `json:"missing,omitempty"`
	UsedBytes int64      `json:"used_bytes"`
}

// importRepository rebuilds the catalogue from the manifests in the store. The
// claim is given back afterwards, because the next one has to be newer than
// everything that was found.
func importRepository(ctx context.Context, x *job.Execution, o *openRepository, _ quota.CloudRepository) error {
	x.Report(job.Progress{Phase: "import", Time: time.Now()})
	var spec api.RunSpec
	if err := x.Spec(&spec); err != nil {
		return err
	}
	report, err := o.repository.Import(ctx, repository.ImportOptions{AcceptLoss: spec.AcceptLoss})
	if err != nil {
		return err
	}
	if len(report.Refused)+len(report.Lost) > 0 {
		x.Warn(job.Failure{Side: "provider",
			Message: fmt.Sprintf("%d manifests were refused, %d points that the database knew are not in the store", len(report.Refused), len(report.Lost)),
			Hint:    "the result of the run names them"})
	}
	err = x.SetResult(importResult{Points: report.Points, Binned: report.Binned, Void: report.Void, Refused: len(report.Refused),
		Faults: findings(report.Refused), Lost: len(report.Lost), Missing: named(report.Lost), UsedBytes: report.UsedBytes})
	if err != nil {
		return err
	}
	return o.held.Release()
}

// accountResult is what an account answers. The parts add up to the bytes on
// disk; balanced says that what is charged is what is there.
type accountResult struct {
	LiveBytes     int64 `json:"live_bytes"`
	PendingBytes  int64 `json:"pending_bytes"`
	BinBytes      int64 `json:"bin_bytes"`
	WasteBytes    int64 `json:"waste_bytes"`
	OverheadBytes int64 `json:"overhead_bytes"`
	TotalBytes    int64 `json:"total_bytes"`
	SpooledBytes  int64 `json:"spooled_bytes"`
	Objects       int   `json:"objects"`
	Packs         int   `json:"packs"`
	Records       int64 `json:"records"`

	ChargedBytes        int64 `json:"charged_bytes"`         // to points
	ChargedPendingBytes int64 `json:"charged_pending_bytes"` // for what arrived and is in no point
	Balanced            bool  `json:"balanced"`
	Busy                bool  `json:"busy,omitempty"` // written to all the time, so that no moment could be compared
}

// accountTries is how often a repository is counted that somebody writes to.
const accountTries = 3

// accountRepository finds where every byte of a repository is, and whether that
// is what its tenant is charged for.
func (s *repositories) accountRepository(ctx context.Context, x *job.Execution, o *openRepository, r quota.CloudRepository) error {
	var result accountResult
	for try := 1; try <= accountTries; try++ {
		var err error
		if result, err = s.account(ctx, x, o, r); err != nil {
			return err
		}
		if !result.Busy {
			break
		}
	}
	if !result.Balanced && !result.Busy {
		x.Warn(job.Failure{Side: "provider",
			Message: fmt.Sprintf("charged are %d bytes of points and %d that are in none, the store has %d and %d", result.ChargedBytes,
				result.ChargedPendingBytes, result.LiveBytes, result.PendingBytes),
			Hint: "run holdfast repository collect, which settles the charge, then account again; if they still differ, run holdfast repository verify"})
	}
	return x.SetResult(result)
}

// account counts once, and compares.
func (s *repositories) account(ctx context.Context, x *job.Execution, o *openRepository, r quota.CloudRepository) (accountResult, error) {
	start := time.Now()
	before, err := s.db.Quotas().Get(ctx, r.TenantID, r.ID)
	if err != nil {
		return accountResult{}, err
	}
	u, err := o.repository.Usage(ctx, repository.UsageOptions{Progress: func(u repository.Usage) error {
		x.Report(job.Progress{Phase: "account", DoneBytes: u.TotalBytes, TotalBytes: max(u.TotalBytes, before.UsedBytes+before.UnreferencedBytes),
			Rate: float64(u.TotalBytes) / max(time.Since(start).Seconds(), 1e-3), Time: time.Now()})
		return nil
	}})
	if err != nil {
		return accountResult{}, err
	}
	after, err := s.db.Quotas().Get(ctx, r.TenantID, r.ID)
	if err != nil {
		return accountResult{}, err
	}
	balanced := u.LiveBytes == after.UsedBytes && u.PendingBytes == after.UnreferencedBytes
	steady := before.UsedBytes == after.UsedBytes && before.UnreferencedBytes == after.UnreferencedBytes
	return accountResult{LiveBytes: u.LiveBytes, PendingBytes: u.PendingBytes, BinBytes: u.BinBytes, WasteBytes: u.WasteBytes,
		OverheadBytes: u.OverheadBytes, TotalBytes: u.TotalBytes, SpooledBytes: u.SpooledBytes, Objects: u.Objects, Packs: u.Packs, Records: u.Records,
		ChargedBytes: after.UsedBytes, ChargedPendingBytes: after.UnreferencedBytes, Balanced: balanced, Busy: !balanced && !steady}, nil
}
