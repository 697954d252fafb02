package sim

import (
	"context"
	"fmt"
	"iter"
	"maps"
	"slices"
	"strings"
	"sync"

	"github.com/holdfast-dr/holdfast/sdk"
)

// Settings are how a Platform behaves. The zero value works.
type Settings struct {
	// Without are abilities that the platform does not have.
	Without []sdk.Ability `json:"without,omitempty" help:"abilities to leave out, such as change-tracker or replicator"`
	// Quiesce is the most that a running guest can do; "" means file-system.
	Quiesce sdk.Quiesce `json:"quiesce,omitempty" help:"the most that guests can do; file-system by default" enum:"none,file-system,application"`
	// Shape is how drafts want to be written; "" means random.
	Shape sdk.Shape `json:"shape,omitempty" help:"how drafts want to be written; random by default" enum:"random,sequential"`
	// MaxPoints is how many points a new replica can have; 0 is as many as there
	// is room for.
	MaxPoints int `json:"max_points,omitempty" help:"how many points a replica can have; no bound by default"`
	// Faults are what goes wrong, besides the hypervisor's own.
	Faults []Fault `json:"faults,omitempty" help:"what goes wrong on request"`
	// Die ends the process for ActionKill and ActionDie; nil means SIGKILL.
	Die func() `json:"-"`
}

// Platform is a connection to a Hypervisor, with every ability of the
// contract that its settings do not leave out.
type Platform struct {
	hypervisor *Hypervisor
	settings   Settings

	closing sync.Once
	closed  chan struct{}
	process process
}

var (
	_ sdk.Platform      = (*Platform)(nil)
	_ sdk.Source        = (*Platform)(nil)
	_ sdk.ChangeTracker = (*Platform)(nil)
	_ sdk.Target        = (*Platform)(nil)
	_ sdk.Power         = (*Platform)(nil)
)

// Connect opens a connection, as a plugin process would.
func (h *Hypervisor) Connect(settings Settings) *Platform {
	if settings.Quiesce == "" {
		settings.Quiesce = sdk.QuiesceFileSystem
	}
	if settings.Shape == "" {
		settings.Shape = sdk.ShapeRandom
	}
	return &Platform{hypervisor: h, settings: settings, closed: make(chan struct{}), process: newProcess()}
}

// As finds an ability that the settings do not leave out.
func (p *Platform) As(target any) bool { return sdk.Grant(target, p, p.offers) }

func (p *Platform) offers(a sdk.Ability) bool { return !slices.Contains(p.settings.Without, a) }

// open is where every call begins: it waits while the process is stopped.
func (p *Platform) open() error {
	if err := p.turn(); err != nil {
		return err
	}
	select {
	case <-p.closed:
		return errClosed
	default:
		return nil
	}
}

// Close ends the connection and wakes every call that hangs on request.
func (p *Platform) Close() error {
	p.closing.Do(func() { close(p.closed) })
	return nil
}

// Machines lists the machines.
func (p *Platform) Machines(ctx context.Context) iter.Seq2[sdk.Machine, error] {
	return func(yield func(sdk.Machine, error) bool) {
		var list []sdk.Machine
		err := p.during(ctx, "Machines", sdk.Op{}, func(bool) (err error) {
			list, err = p.hypervisor.Machines()
			return err
		})
		if err != nil {
			yield(sdk.Machine{}, err)
			return
		}
		for _, m := range list {
			if err := ctx.Err(); err != nil {
				yield(sdk.Machine{}, fmt.Errorf("list machines: %w", err))
				return
			}
			if !yield(m, nil) {
				return
			}
		}
	}
}

// Probe says what works.
func (p *Platform) Probe(ctx context.Context, subject sdk.Subject) (sdk.Report, error) {
	report := sdk.Report{Product: "simulated hypervisor"}
	err := p.during(ctx, "Probe", sdk.Op{}, func(bool) error {
		return p.hypervisor.view(func(st *state) error {
			reason, err := st.tracking(subject)
			if err != nil {
				return err
			}
			for _, a := range sdk.Abilities() {
				f := sdk.Finding{Ability: a, Works: true}
				switch {
				case !p.offers(a):
					f.Works, f.Reason = false, "The settings of this simulated hypervisor leave it out."
				case a == sdk.AbilitySource && p.settings.Quiesce == sdk.QuiesceNone:
					f.Reason = "Guests cannot be quiesced; snapshots are as after a power cut."
				case a == sdk.AbilityChangeTracker:
					f.Reason = reason
				}
				report.Findings = append(report.Findings, f)
			}
			return nil
		})
	})
	if err != nil {
		return sdk.Report{}, err
	}
	return report, nil
}

// tracking says in what form changes are tracked for a subject.
func (st *state) tracking(subject sdk.Subject) (string, error) {
	if subject.Machine == "" && subject.Disk == "" {
		return "", nil
	}
	m, ok := st.Machines[subject.Machine]
	if !ok {
		return "", sdk.Errorf(sdk.ErrNotFound, sdk.FaultBackend, "machine %s", subject.Machine)
	}
	disks := maps.Clone(m.Files)
	if subject.Disk != "" {
		d, err := st.disk(subject.Machine, subject.Disk)
		if err != nil {
			return "", err
		}
		disks = map[sdk.DiskID]*disk{subject.Disk: d}
	}
	for _, d := range disks {
		if len(d.Marks) == 0 {
			return "No mark is kept yet, so the first run reads everything.", nil
		}
	}
	return "", nil
}

// Cancel gives up what is pending under an id.
func (p *Platform) Cancel(ctx context.Context, opID string) error {
	return p.during(ctx, "Cancel", sdk.Op{ID: opID}, func(bool) error {
		return p.hypervisor.change(func(st *state) error {
			maps.DeleteFunc(st.Pending, func(key string, _ int) bool {
				_, id, _ := strings.Cut(key, "/")
				return id == opID
			})
			return nil
		})
	})
}
