package agent

import (
	"context"
	"fmt"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/google/uuid"

	"github.com/holdfast-dr/holdfast/core/audit"
	"github.com/holdfast-dr/holdfast/core/schedule"
	"github.com/holdfast-dr/holdfast/core/tenant"
	"github.com/holdfast-dr/holdfast/sdk"
)

// JobSpec is what a person says of a job. Endpoint, provider and repository are
// names.
type JobSpec struct {
	Name       string             `json:"name" minLength:"1" maxLength:"128" doc:"Unique at the site"`
	Enabled    bool               `json:"enabled" doc:"The schedule starts it; by hand it always runs"`
	Endpoint   string             `json:"endpoint" minLength:"1" maxLength:"128" doc:"Where the machines are"`
	Provider   string             `json:"provider,omitempty" maxLength:"128" doc:"Where the backups go; may be left out with one provider only"`
	Repository string             `json:"repository" minLength:"1" maxLength:"128" doc:"The cloud repository, by name"`
	Machines   Selection          `json:"machines"`
	Quiesce    sdk.Quiesce        `json:"quiesce,omitempty" enum:"none,file-system,application" doc:"How still a machine is asked to be; file-system if left out"`
	Schedule   *schedule.Schedule `json:"schedule,omitempty" doc:"When; by hand only if left out"`
	Retention  Retention          `json:"retention,omitempty"`
}

// JobStatus is a job as people see it.
type JobStatus struct {
	ID string `json:"id"`
	JobSpec
	Next    time.Time  `json:"next,omitzero" doc:"When the schedule starts it next"`
	Last    *RunStatus `json:"last,omitempty" doc:"Its newest run"`
	Created time.Time  `json:"created"`
	Updated time.Time  `json:"updated"`
}

// CreateJob stores a job after checking that everything it names exists.
func (a *Agent) CreateJob(ctx context.Context, spec JobSpec) (JobStatus, error) {
	j := Job{ID: uuid.Must(uuid.NewV7()).String(), Created: a.now()}
	return a.putJob(ctx, j, spec)
}

// UpdateJob replaces what a person said of a job.
func (a *Agent) UpdateJob(ctx context.Context, name string, spec JobSpec) (JobStatus, error) {
	j, err := a.job(ctx, name)
	if err != nil {
		return JobStatus{}, err
	}
	return a.putJob(ctx, j, spec)
}

func (a *Agent) putJob(ctx context.Context, j Job, spec JobSpec) (JobStatus, error) {
	if err := a.resolve(ctx, &j, spec); err != nil {
		return JobStatus{}, err
	}
	ctx = a.origin(ctx, "job put")
	if err := a.Store.PutJob(ctx, j); err != nil {
		return JobStatus{}, err
	}
	a.wake()
	return a.jobStatus(ctx, j)
}

// resolve checks a spec and fills the job with it.
func (a *Agent) resolve(ctx context.Context, j *Job, spec JobSpec) error {
	invalid := func(field, format string, args ...any) error {
		return &tenant.InvalidError{Field: field, Reason: fmt.Sprintf(format, args...)}
	}
	name := strings.TrimSpace(spec.Name)
	if n := utf8.RuneCountInString(name); n == 0 || n > 128 {
		return invalid("name", "must have 1 to 128 characters")
	}
	if err := spec.Machines.Check(); err != nil {
		return err
	}
	switch spec.Quiesce {
	case "":
		spec.Quiesce = sdk.QuiesceFileSystem
	case sdk.QuiesceNone, sdk.QuiesceFileSystem, sdk.QuiesceApplication:
	default:
		return invalid("quiesce", "is one of none, file-system, application")
	}
	if spec.Retention.Points < 0 || spec.Retention.Days < 0 {
		return invalid("retention", "must not be negative")
	}
	j.Next = time.Time{}
	if spec.Schedule != nil {
		calendar, err := spec.Schedule.Parse()
		if err != nil {
			return invalid("schedule", "%s", err)
		}
		j.Next = calendar.Next(a.now())
	}
	endpoint, err := a.endpoint(ctx, spec.Endpoint)
	if err != nil {
		return err
	}
	conn, err := a.connection(ctx, spec.Provider)
	if err != nil {
		return err
	}
	repository, err := a.findRepository(ctx, conn, spec.Repository)
	if err != nil {
		return err
	}
	j.Name, j.Enabled, j.Selection, j.Quiesce = name, spec.Enabled, spec.Machines, spec.Quiesce
	j.Schedule, j.Retention, j.Updated = spec.Schedule, spec.Retention, a.now()
	j.EndpointID, j.ConnectionID, j.Repository = endpoint.ID, conn.ID, repository.ID
	j.RepositoryName = repository.Name
	return nil
}

// Jobs lists the site's jobs by name.
func (a *Agent) Jobs(ctx context.Context) ([]JobStatus, error) {
	jobs, err := a.Store.Jobs(ctx)
	if err != nil {
		return nil, err
	}
	status := make([]JobStatus, len(jobs))
	for i, j := range jobs {
		if status[i], err = a.jobStatus(ctx, j); err != nil {
			return nil, err
		}
	}
	return status, nil
}

// Job is one job, by name or id.
func (a *Agent) Job(ctx context.Context, name string) (JobStatus, error) {
	j, err := a.job(ctx, name)
	if err != nil {
		return JobStatus{}, err
	}
	return a.jobStatus(ctx, j)
}

// EnableJob lets the schedule start a job, or not.
func (a *Agent) EnableJob(ctx context.Context, name string, enabled bool) (JobStatus, error) {
	j, err := a.job(ctx, name)
	if err != nil {
		return JobStatus{}, err
	}
	j.Enabled, j.Updated, j.Next = enabled, a.now(), time.Time{}
	if j.Schedule != nil {
		calendar, err := j.Schedule.Parse()
		if err != nil {
			return JobStatus{}, err
		}
		j.Next = calendar.Next(a.now())
	}
	if err := a.Store.PutJob(a.origin(ctx, "job enable"), j); err != nil {
		return JobStatus{}, err
	}
	a.wake()
	return a.jobStatus(ctx, j)
}

// DeleteJob removes a job. The points that it made stay.
func (a *Agent) DeleteJob(ctx context.Context, name string) error {
	j, err := a.job(ctx, name)
	if err != nil {
		return err
	}
	return a.Store.DeleteJob(a.origin(ctx, "job delete"), j.ID)
}

func (a *Agent) job(ctx context.Context, name string) (Job, error) {
	jobs, err := a.Store.Jobs(ctx)
	if err != nil {
		return Job{}, err
	}
	for _, j := range jobs {
		if j.ID == name || strings.EqualFold(j.Name, name) {
			return j, nil
		}
	}
	return Job{}, notFound("job", name)
}

func (a *Agent) jobStatus(ctx context.Context, j Job) (JobStatus, error) {
	s := JobStatus{ID: j.ID, Next: j.Next, Created: j.Created, Updated: j.Updated, JobSpec: JobSpec{
		Name: j.Name, Enabled: j.Enabled, Repository: j.RepositoryName, Machines: j.Selection,
		Quiesce: j.Quiesce, Schedule: j.Schedule, Retention: j.Retention,
	}}
	if !j.Enabled {
		s.Next = time.Time{}
	}
	if endpoint, err := a.Host.Endpoint(ctx, j.EndpointID); err == nil {
		s.Endpoint = endpoint.Name
	}
	if conn, err := a.connection(ctx, j.ConnectionID); err == nil {
		s.Provider = conn.Name
	}
	last, err := a.lastRun(ctx, j.ID)
	if err != nil {
		return JobStatus{}, err
	}
	s.Last = last
	return s, nil
}

// notFound names what was looked for.
func notFound(what, name string) error {
	return fmt.Errorf("%s %q: %w", what, name, tenant.ErrNotFound)
}

// origin says, for the audit log, that a person at the agent's socket asked.
func (a *Agent) origin(ctx context.Context, reason string) context.Context {
	if _, err := audit.From(ctx); err == nil {
		return ctx
	}
	return audit.With(ctx, audit.System("agent", reason))
}
