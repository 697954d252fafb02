package agent

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/holdfast-dr/holdfast/core/job"
	"github.com/holdfast-dr/holdfast/core/point"
	"github.com/holdfast-dr/holdfast/core/tenant"
)

// The kinds of run at a site.
const (
	RunBackup         job.Kind = "backup"
	RunRestoreMachine job.Kind = "restore-machine"
	RunRestoreDisk    job.Kind = "restore-disk"
	RunVerify         job.Kind = "verify"
)

// RunStatus is a run as people see it.
type RunStatus struct {
	ID       string          `json:"id"`
	Kind     job.Kind        `json:"kind" enum:"backup,restore-machine,restore-disk,verify"`
	Name     string          `json:"name" doc:"The job's name, or the point that is restored"`
	Trigger  string          `json:"trigger,omitempty" enum:"hand,schedule"`
	State    job.State       `json:"state" enum:"waiting,running,succeeded,warned,failed,cancelled"`
	Cancel   bool            `json:"cancel,omitempty" doc:"It was asked to stop"`
	Attempts int             `json:"attempts" doc:"How often it was taken up; more than 1 after a crash or a restart"`
	Progress RunProgress     `json:"progress"`
	Machines []MachineResult `json:"machines,omitempty"`
	Restored *RestoreResult  `json:"restored,omitempty"`
	Verified *VerifyResult   `json:"verified,omitempty"`
	Warnings []string        `json:"warnings,omitempty"`
	Failure  *job.Failure    `json:"failure,omitempty"`
	Created  time.Time       `json:"created"`
	Started  time.Time       `json:"started,omitzero"`
	Ended    time.Time       `json:"ended,omitzero"`
}

// RunProgress is what a run last said of itself.
type RunProgress struct {
	Phase      string    `json:"phase,omitempty"`
	DoneBytes  int64     `json:"done_bytes" doc:"Bytes of disk that are dealt with: read, or known to be unchanged or zero"`
	TotalBytes int64     `json:"total_bytes"`
	ReadBytes  int64     `json:"read_bytes"`
	SentBytes  int64     `json:"sent_bytes" doc:"Bytes of sealed records that crossed the wire"`
	Rate       float64   `json:"rate" doc:"Bytes of disk per second"`
	ETASeconds float64   `json:"eta_seconds,omitempty"`
	Bottleneck string    `json:"bottleneck,omitempty" enum:"source,cpu,network,repository,target"`
	Time       time.Time `json:"time,omitzero"`
}

// MachineResult is what one machine's backup came to.
type MachineResult struct {
	Machine     string       `json:"machine"`
	MachineID   string       `json:"machine_id" doc:"In points"`
	State       job.State    `json:"state"`
	Point       point.ID     `json:"point,omitempty"`
	Kind        point.Kind   `json:"kind,omitempty"`
	Consistency string       `json:"consistency,omitempty"`
	SizeBytes   int64        `json:"size_bytes"`
	ReadBytes   int64        `json:"read_bytes" doc:"Of the disks, by the copy"`
	SourceBytes int64        `json:"source_bytes" doc:"Of the disks, as data that the hypervisor sent: what is read of a hole is not in it"`
	SentBytes   int64        `json:"sent_bytes"`
	StoredBytes int64        `json:"stored_bytes"`
	Seconds     float64      `json:"seconds"`
	Bottleneck  string       `json:"bottleneck,omitempty"`
	Warnings    []string     `json:"warnings,omitempty"`
	LeftOut     []LeftOut    `json:"left_out,omitempty" doc:"Disks that are not in the point"`
	Failure     *job.Failure `json:"failure,omitempty"`
}

// LeftOut is a disk that a point does not have, and why.
type LeftOut struct {
	Disk   string `json:"disk"`
	Reason string `json:"reason"`
}

// runSpec is what a run is about, as it is stored with it.
type runSpec struct {
	Name    string `json:"name"`
	Trigger string `json:"trigger,omitempty"`
	Job     string `json:"job,omitempty"`
	// Connection is the id of the provider whose point a restore or verification
	// reads; that of a backup is its job's.
	Connection string          `json:"connection,omitempty"`
	Machine    *MachineRestore `json:"machine,omitempty"`
	Disk       *DiskRestore    `json:"disk,omitempty"`
	Verify     *VerifyRequest  `json:"verify,omitempty"`
}

// point is the point that a restore or verification reads.
func (s runSpec) point() string {
	switch {
	case s.Machine != nil:
		return s.Machine.Point
	case s.Disk != nil:
		return s.Disk.Point
	case s.Verify != nil:
		return s.Verify.Point
	}
	return ""
}

// runResult is what it came to.
type runResult struct {
	Machines []MachineResult `json:"machines,omitempty"`
	Restored *RestoreResult  `json:"restored,omitempty"`
	Verified *VerifyResult   `json:"verified,omitempty"`
	Warnings []string        `json:"warnings,omitempty"`
}

// start queues a run.
func (a *Agent) start(ctx context.Context, kind job.Kind, subject string, exclusive bool, spec runSpec) (RunStatus, error) {
	raw, err := json.Marshal(spec)
	if err != nil {
		return RunStatus{}, fmt.Errorf("encode run: %w", err)
	}
	r, err := a.Runs.Create(a.origin(ctx, "start "+string(kind)), job.Run{Kind: kind, Subject: subject, Exclusive: exclusive, Spec: raw})
	if err != nil {
		return RunStatus{}, fmt.Errorf("start %s of %s: %w", kind, spec.Name, err)
	}
	a.wake()
	return runStatus(r), nil
}

// The triggers of a run.
const (
	ByHand     = "hand"
	BySchedule = "schedule"
)

// RunJob starts a job now. Who asks is told at once what stands in the way. On
// schedule nobody is there to be told, so the run begins all the same, and fails
// where people look: in the list of runs, with the job, and at the provider.
func (a *Agent) RunJob(ctx context.Context, name, trigger string) (RunStatus, error) {
	j, err := a.job(ctx, name)
	if err != nil {
		return RunStatus{}, err
	}
	if trigger != BySchedule {
		if _, _, err := a.currentKeys(ctx); err != nil {
			return RunStatus{}, err
		}
	}
	return a.start(ctx, RunBackup, "job:"+j.ID, true, runSpec{Name: j.Name, Trigger: trigger, Job: j.ID})
}

// RunsOf lists runs, newest first; jobName "" means of any kind.
func (a *Agent) RunsOf(ctx context.Context, jobName string, before string, limit int) ([]RunStatus, error) {
	q := job.Query{All: true, Before: before, Limit: limit}
	if jobName != "" {
		j, err := a.job(ctx, jobName)
		if err != nil {
			return nil, err
		}
		q.Kind, q.Subject = RunBackup, "job:"+j.ID
	}
	runs, err := a.Runs.List(ctx, q)
	if err != nil {
		return nil, err
	}
	status := make([]RunStatus, len(runs))
	for i, r := range runs {
		status[i] = runStatus(r)
	}
	return status, nil
}

// Run is one run; id may be "last".
func (a *Agent) Run(ctx context.Context, id string) (RunStatus, error) {
	if id == "last" {
		runs, err := a.RunsOf(ctx, "", "", 1)
		if err != nil {
			return RunStatus{}, err
		}
		if len(runs) == 0 {
			return RunStatus{}, notFound("run", id)
		}
		return runs[0], nil
	}
	r, err := a.Runs.Get(ctx, tenant.Provider, id)
	if err != nil {
		return RunStatus{}, err
	}
	return runStatus(r), nil
}

// CancelRun asks a run to stop. What arrived at the provider stays there for
// the next run to find.
func (a *Agent) CancelRun(ctx context.Context, id string) (RunStatus, error) {
	r, err := a.Runs.RequestCancel(a.origin(ctx, "cancel run"), tenant.Provider, id)
	if err != nil {
		return RunStatus{}, err
	}
	return runStatus(r), nil
}

func (a *Agent) lastRun(ctx context.Context, jobID string) (*RunStatus, error) {
	runs, err := a.Runs.List(ctx, job.Query{All: true, Kind: RunBackup, Subject: "job:" + jobID, Limit: 1})
	if err != nil || len(runs) == 0 {
		return nil, err
	}
	status := runStatus(runs[0])
	return &status, nil
}

func runStatus(r job.Run) RunStatus {
	s := RunStatus{ID: r.ID, Kind: r.Kind, State: r.State, Cancel: r.Cancel, Attempts: r.Attempts, Failure: r.Failure,
		Created: r.Created, Started: r.Started, Ended: r.Ended}
	var spec runSpec
	if json.Unmarshal(r.Spec, &spec) == nil {
		s.Name, s.Trigger = spec.Name, spec.Trigger
	}
	var result runResult
	if len(r.Result) > 0 && json.Unmarshal(r.Result, &result) == nil {
		s.Machines, s.Restored, s.Verified, s.Warnings = result.Machines, result.Restored, result.Verified, result.Warnings
	}
	s.Progress = RunProgress{Phase: r.Progress.Phase, DoneBytes: r.Progress.DoneBytes, TotalBytes: r.Progress.TotalBytes,
		Rate: r.Progress.Rate, ETASeconds: r.Progress.ETA.Seconds(), Bottleneck: r.Progress.Bottleneck, Time: r.Progress.Time}
	var detail progressDetail
	if len(r.Progress.Detail) > 0 && json.Unmarshal(r.Progress.Detail, &detail) == nil {
		s.Progress.ReadBytes, s.Progress.SentBytes = detail.ReadBytes, detail.SentBytes
		if len(s.Machines) == 0 {
			s.Machines = detail.Machines
		}
	}
	return s
}

// progressDetail is what a site's run adds to its progress record.
type progressDetail struct {
	ReadBytes int64           `json:"read_bytes"`
	SentBytes int64           `json:"sent_bytes"`
	Machines  []MachineResult `json:"machines,omitempty"` // those that have ended
}
