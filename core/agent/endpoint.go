package agent

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"

	"github.com/google/uuid"

	"github.com/holdfast-dr/holdfast/core/host"
	"github.com/holdfast-dr/holdfast/core/tenant"
	"github.com/holdfast-dr/holdfast/sdk"
)

// EndpointSpec is what a person says of an endpoint.
type EndpointSpec struct {
	Name     string          `json:"name" minLength:"1" maxLength:"128" doc:"Unique at the site"`
	Plugin   string          `json:"plugin" minLength:"1" maxLength:"64" doc:"An enabled plugin, such as libvirt"`
	Settings json.RawMessage `json:"settings" doc:"JSON object that fits the plugin's schema; secrets in it are sealed at rest and never shown"`
	Workers  []string        `json:"workers,omitempty" maxItems:"16" doc:"Workers that may run the plugin, tried in this order; without any it runs at the agent"`
}

// EndpointStatus is an endpoint as people see it, without its settings.
type EndpointStatus struct {
	ID     string `json:"id"`
	Name   string `json:"name"`
	Plugin string `json:"plugin"`
	// Workers are those that may run the plugin, in the order in which they are
	// tried; without any it runs at the agent.
	Workers []string `json:"workers,omitempty"`
}

func endpointStatus(e host.Endpoint) EndpointStatus {
	return EndpointStatus{ID: e.ID, Name: e.Name, Plugin: e.Plugin, Workers: e.Workers}
}

// ProbeResult says what works at an endpoint now.
type ProbeResult struct {
	Product  string         `json:"product"`
	Findings []ProbeFinding `json:"findings"`
}

// ProbeFinding says whether one ability works.
type ProbeFinding struct {
	Ability sdk.Ability `json:"ability"`
	Works   bool        `json:"works"`
	Reason  string      `json:"reason,omitempty"`
	Hint    string      `json:"hint,omitempty"`
}

// MachineStatus is a machine of an endpoint's inventory.
type MachineStatus struct {
	ID          sdk.MachineID `json:"id"`
	Name        string        `json:"name"`
	Endpoint    string        `json:"endpoint"`
	State       sdk.State     `json:"state"`
	CPUs        int           `json:"cpus"`
	MemoryBytes int64         `json:"memory_bytes"`
	Firmware    sdk.Firmware  `json:"firmware"`
	Tags        []string      `json:"tags,omitempty"`
	Disks       []MachineDisk `json:"disks"`
	Networks    []string      `json:"networks,omitempty"`
	Jobs        []string      `json:"jobs,omitempty" doc:"Jobs that cover it"`
}

// MachineDisk is a disk of the inventory.
type MachineDisk struct {
	Name      string `json:"name"`
	SizeBytes int64  `json:"size_bytes"`
	Format    string `json:"format"`
	Pool      string `json:"pool,omitempty"`
	Skip      string `json:"skip,omitempty" doc:"Why it cannot be backed up"`
}

// AddEndpoint stores an endpoint after asking its plugin whether it can be
// reached with these settings.
func (a *Agent) AddEndpoint(ctx context.Context, spec EndpointSpec) (EndpointStatus, error) {
	e := host.Endpoint{ID: uuid.Must(uuid.NewV7()).String(), Name: strings.TrimSpace(spec.Name), Plugin: spec.Plugin, Settings: spec.Settings}
	if e.Name == "" {
		return EndpointStatus{}, &tenant.InvalidError{Field: "name", Reason: "must not be empty"}
	}
	all, err := a.Host.Endpoints(ctx)
	if err != nil {
		return EndpointStatus{}, err
	}
	for _, other := range all {
		if strings.EqualFold(other.Name, e.Name) {
			return EndpointStatus{}, fmt.Errorf("endpoint %q: %w", e.Name, tenant.ErrExists)
		}
	}
	if e.Workers, err = a.namedWorkers(ctx, spec.Workers); err != nil {
		return EndpointStatus{}, err
	}
	if err := a.Plugins.Check(ctx, e); err != nil {
		return EndpointStatus{}, fmt.Errorf("check the settings of endpoint %q: %w", e.Name, err)
	}
	if _, err := a.probe(ctx, e); err != nil {
		return EndpointStatus{}, err
	}
	if err := a.Host.PutEndpoint(a.origin(ctx, "endpoint add"), e); err != nil {
		return EndpointStatus{}, err
	}
	a.wakeWatches()
	return endpointStatus(e), nil
}

// Endpoints lists the site's endpoints by name.
func (a *Agent) Endpoints(ctx context.Context) ([]EndpointStatus, error) {
	all, err := a.Host.Endpoints(ctx)
	if err != nil {
		return nil, err
	}
	status := make([]EndpointStatus, len(all))
	for i, e := range all {
		status[i] = endpointStatus(e)
	}
	return status, nil
}

// DeleteEndpoint forgets an endpoint that no job uses.
func (a *Agent) DeleteEndpoint(ctx context.Context, name string) error {
	e, err := a.endpoint(ctx, name)
	if err != nil {
		return err
	}
	jobs, err := a.Store.Jobs(ctx)
	if err != nil {
		return err
	}
	for _, j := range jobs {
		if j.EndpointID == e.ID {
			return &RefusedError{Reason: fmt.Sprintf("job %q backs up machines of endpoint %q", j.Name, e.Name), Next: "delete the job first: holdfast job delete " + j.Name}
		}
	}
	defer a.wakeWatches()
	return a.Plugins.Remove(a.origin(ctx, "endpoint delete"), e.ID)
}

// ProbeEndpoint says what works at an endpoint now.
func (a *Agent) ProbeEndpoint(ctx context.Context, name string) (ProbeResult, error) {
	e, err := a.endpoint(ctx, name)
	if err != nil {
		return ProbeResult{}, err
	}
	return a.probe(ctx, e)
}

func (a *Agent) probe(ctx context.Context, e host.Endpoint) (ProbeResult, error) {
	p, release, err := a.Plugins.Open(ctx, e)
	if err != nil {
		return ProbeResult{}, fmt.Errorf("open endpoint %q: %w", e.Name, err)
	}
	defer release()
	report, err := p.Probe(ctx, sdk.Subject{})
	if err != nil {
		return ProbeResult{}, fmt.Errorf("probe endpoint %q: %w", e.Name, err)
	}
	result := ProbeResult{Product: report.Product, Findings: []ProbeFinding{}}
	for _, f := range report.Findings {
		result.Findings = append(result.Findings, ProbeFinding(f))
	}
	return result, nil
}

// maxMachines bounds one listing.
const maxMachines = 100000

// Machines lists the inventory of an endpoint, or of all: as the endpoint's
// watch tells it where it does, and otherwise, or if fresh, as it is asked for
// now.
func (a *Agent) Machines(ctx context.Context, endpoint string, fresh bool) ([]MachineStatus, error) {
	endpoints, err := a.Host.Endpoints(ctx)
	if err != nil {
		return nil, err
	}
	if endpoint != "" {
		e, err := a.endpoint(ctx, endpoint)
		if err != nil {
			return nil, err
		}
		endpoints = []host.Endpoint{e}
	}
	jobs, err := a.Store.Jobs(ctx)
	if err != nil {
		return nil, err
	}
	machines := []MachineStatus{}
	for _, e := range endpoints {
		has, watched := a.inventories.of(e.ID)
		if fresh || !watched {
			if has, err = a.listMachines(ctx, e); err != nil {
				return nil, fmt.Errorf("list machines of endpoint %q: %w", e.Name, err)
			}
		}
		if len(machines)+len(has) > maxMachines {
			return nil, fmt.Errorf("more than %d machines: ask for those of one endpoint", maxMachines)
		}
		for _, m := range has {
			machines = append(machines, machineStatus(m, e, jobs))
		}
	}
	return machines, nil
}

// listMachines asks an endpoint for its machines.
func (a *Agent) listMachines(ctx context.Context, e host.Endpoint) (machines []sdk.Machine, err error) {
	err = a.withPlatform(ctx, e, func(p sdk.Platform) error {
		for m, err := range p.Machines(ctx) {
			if err != nil {
				return err
			}
			if machines = append(machines, m); len(machines) > maxMachines {
				return fmt.Errorf("more than %d machines", maxMachines)
			}
		}
		return nil
	})
	return machines, err
}

func machineStatus(m sdk.Machine, e host.Endpoint, jobs []Job) MachineStatus {
	s := MachineStatus{ID: m.ID, Name: m.Name, Endpoint: e.Name, State: m.State, CPUs: m.CPUs, MemoryBytes: m.MemoryBytes,
		Firmware: m.Firmware, Tags: m.Tags, Disks: []MachineDisk{}}
	for _, d := range m.Disks {
		s.Disks = append(s.Disks, MachineDisk{Name: d.Name, SizeBytes: d.SizeBytes, Format: d.Format, Pool: d.Pool, Skip: d.Skip})
	}
	for _, n := range m.NICs {
		s.Networks = append(s.Networks, n.Network)
	}
	for _, j := range jobs {
		if j.EndpointID == e.ID && j.Selection.Covers(m) {
			s.Jobs = append(s.Jobs, j.Name)
		}
	}
	return s
}

func (a *Agent) withPlatform(ctx context.Context, e host.Endpoint, use func(sdk.Platform) error) error {
	p, release, err := a.Plugins.Open(ctx, e)
	if err != nil {
		return err
	}
	defer release()
	return use(p)
}
