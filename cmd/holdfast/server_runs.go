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
			Message: fmt.Sprintf("%d damaged records and %d faulty objects; %d points cannot be restored whole", report.DamagedRecords, report.FaultyObjects, len(report.Affected)),
			Hint:    "the next backup of each machine sends again what it still has; look after the storage"})
	}
	return x.SetResult(verifyResult{Sound: report.Sound(), Objects: report.Objects, Packs: report.Packs, Records: report.Records, Bytes: report.Bytes,
		DamagedRecords: report.DamagedRecords, FaultyObjects: report.FaultyObjects, Faults: findings(report.Faults),
		AffectedPoints: len(report.Affected), Affected: named(report.Affected)})
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
