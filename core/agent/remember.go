package agent

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"

	"github.com/holdfast-dr/holdfast/core/backup"
	"github.com/holdfast-dr/holdfast/core/chunk"
	"github.com/holdfast-dr/holdfast/core/claim"
	"github.com/holdfast-dr/holdfast/core/gateway"
	"github.com/holdfast-dr/holdfast/core/job"
	"github.com/holdfast-dr/holdfast/core/point"
	"github.com/holdfast-dr/holdfast/core/tenant"
	"github.com/holdfast-dr/holdfast/sdk"
)

// remembered finds what the site knows of a machine. One that is new here is
// looked for with older, in the repository, before it gets an id.
func (a *Agent) remembered(ctx context.Context, m Machine, older func(context.Context, Machine) (point.MachineID, []point.ID, error)) (Machine, error) {
	all, err := a.Store.Machines(ctx)
	if err != nil {
		return Machine{}, err
	}
	for _, known := range all {
		if known.Keyring == m.Keyring && known.Repository == m.Repository && known.EndpointID == m.EndpointID && known.Machine == m.Machine {
			known.Name = m.Name
			return known, nil
		}
	}
	if m.ID, m.Remembered, err = older(ctx, m); err != nil {
		return Machine{}, fmt.Errorf("look for older points of machine %s: %w", m.Name, err)
	}
	if m.ID == "" {
		m.ID = point.MachineID(uuid.Must(uuid.NewV7()).String())
	}
	return m, a.Store.PutMachine(ctx, m)
}

// nextEpoch is a fencing number above all that the machine's back-end has seen
// from this site. The claim alone would not do: a site that lost its database
// counts claims from one again, while the back-end remembers. So the number is
// the time, and never less than what was used before, should the clock go back.
// The caller holds the machine's claim.
func (a *Agent) nextEpoch(ctx context.Context, endpoint string, machine sdk.MachineID) (uint64, error) {
	all, err := a.Store.Machines(ctx)
	if err != nil {
		return 0, err
	}
	epoch := uint64(a.now().UnixMicro())
	var ours []Machine
	for _, m := range all {
		if m.EndpointID == endpoint && m.Machine == machine {
			ours = append(ours, m)
			epoch = max(epoch, m.Epoch+1)
		}
	}
	for _, m := range ours {
		m.Epoch = epoch
		if err := a.Store.PutMachine(ctx, m); err != nil {
			return 0, fmt.Errorf("remember the epoch of machine %s: %w", m.Name, err)
		}
	}
	return epoch, nil
}

// sameMachine says whether a point is of this machine: the back-end's id is
// unique at its endpoint, and the machine's UUID anywhere.
func sameMachine(m point.Manifest, known Machine) bool {
	var spec sdk.Machine
	return json.Unmarshal(m.Private.Spec, &spec) == nil && spec.ID == known.Machine && spec.Name == known.Name
}

// resumable is a repository whose next session is the one that a broken run
// left open, so that what had arrived is not sent again.
type resumable struct {
	Repository
	agent   *Agent
	machine *Machine
	run     context.Context // of the run; its cause tells a restart from a failure
}

var _ backup.Repository = (*resumable)(nil)

// Begin resumes the open session if it builds on the same point.
func (r *resumable) Begin(ctx context.Context, machine point.MachineID, base point.ID, owner string) (backup.Session, error) {
	if id, err := parseSession(r.machine.Session); err == nil {
		s, err := r.Repository.Resume(ctx, id, base)
		if err == nil {
			return &kept{Session: s, run: r.run}, nil
		}
		if !errors.Is(err, gateway.ErrSessionClosed) && !isNotFound(err) {
			return nil, err
		}
	}
	s, err := r.Repository.Begin(ctx, machine, base, owner)
	if err != nil {
		return nil, err
	}
	id := s.ID()
	r.machine.Session = hex.EncodeToString(id[:])
	if err := r.agent.Store.PutMachine(ctx, *r.machine); err != nil {
		return nil, errors.Join(fmt.Errorf("remember the session: %w", err), s.Abort(ctx))
	}
	return &kept{Session: s, run: r.run}, nil
}

func parseSession(s string) (id chunk.SessionID, err error) {
	b, err := hex.DecodeString(s)
	if err != nil || len(b) != len(id) {
		return id, fmt.Errorf("session %.40q is not an id", s)
	}
	return chunk.SessionID(b), nil
}

// kept is a session that stays open when its run is interrupted rather than
// failed: the agent stops, or lost its claim.
type kept struct {
	backup.Session
	run context.Context
}

func (k *kept) Abort(ctx context.Context) error {
	if k.run.Err() != nil && !errors.Is(context.Cause(k.run), job.ErrCancelled) {
		return nil
	}
	return k.Session.Abort(ctx)
}

// RoundTripTime is the wrapped session's, so that the line can be filled.
func (k *kept) RoundTripTime() (t time.Duration) {
	if s, ok := k.Session.(interface{ RoundTripTime() time.Duration }); ok {
		return s.RoundTripTime()
	}
	return 0
}

// Connect is the wrapped session's, so that the line is filled from the beginning.
func (k *kept) Connect(ctx context.Context, n int) error {
	if s, ok := k.Session.(interface {
		Connect(context.Context, int) error
	}); ok {
		return s.Connect(ctx, n)
	}
	return nil
}

// ServerTime is the wrapped session's, so that the slow side can be told.
func (k *kept) ServerTime() (t time.Duration) {
	if s, ok := k.Session.(interface{ ServerTime() time.Duration }); ok {
		return s.ServerTime()
	}
	return 0
}

func (a *Agent) holder() claim.Holder { return claim.Holder{Node: "agent", Instance: a.Instance} }

func isNotFound(err error) bool {
	return errors.Is(err, tenant.ErrNotFound) || errors.Is(err, sdk.ErrNotFound)
}

// runError is a run's failure in full.
type runError struct{ failure job.Failure }

func (e *runError) Error() string { return e.failure.Message }
func (e *runError) Hint() string  { return e.failure.Hint }
func (e *runError) Side() string  { return e.failure.Side }

// failed gives an error its hint and the side of its cause.
func failed(err error) error { return &runError{failure: *failureOf(err)} }

// failureOf says what failed, what to try, and on which side the cause lies.
func failureOf(err error) *job.Failure {
	f := &job.Failure{Message: shortened(err.Error(), job.MaxText), Side: "tenant"}
	if f.Hint = gateway.HintOf(err); f.Hint == "" {
		f.Hint = sdk.HintOf(err)
	}
	var whole *runError
	var problem *gateway.Problem
	switch {
	case errors.As(err, &whole):
		f.Side = whole.failure.Side
	case errors.As(err, &problem), errors.Is(err, chunk.ErrDamaged), errors.Is(err, point.ErrForged):
		f.Side = "provider"
	}
	return f
}

func encodeDetail(d progressDetail) json.RawMessage {
	b, err := json.Marshal(d)
	if err != nil || len(b) > job.MaxDetail {
		return nil // progress without detail is still progress
	}
	return b
}
