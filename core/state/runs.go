package state

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/holdfast-dr/holdfast/core/claim"
	"github.com/holdfast-dr/holdfast/core/job"
	"github.com/holdfast-dr/holdfast/core/tenant"
)

type runs struct{ db *DB }

var _ job.Store = runs{}

// Runs keeps durable runs.
func (db *DB) Runs() job.Store { return runs{db} }

const runColumns = `id, tenant_id, kind, subject, exclusive, spec, state, cancel, progress, result, failure, attempts,
	created, not_before, started, ended, holder, epoch, until`

func scanRun(s scanner) (r job.Run, err error) {
	var spec, progress, result, failure string
	var created, notBefore, started, ended, until int64
	if err = s.Scan(&r.ID, &r.TenantID, &r.Kind, &r.Subject, &r.Exclusive, &spec, &r.State, &r.Cancel, &progress, &result, &failure,
		&r.Attempts, &created, &notBefore, &started, &ended, &r.Holder, &r.Epoch, &until); err != nil {
		return r, err
	}
	r.Spec, r.Result = raw(spec), raw(result)
	r.Created, r.NotBefore, r.Started, r.Ended, r.Until = moment(created), moment(notBefore), moment(started), moment(ended), moment(until)
	if progress != "" {
		if err = json.Unmarshal([]byte(progress), &r.Progress); err != nil {
			return r, fmt.Errorf("read progress: %w", err)
		}
	}
	r.Failure, err = readFailure(failure)
	return r, err
}

const stepColumns = "run_id, position, name, state, attempts, epoch, result, failure, started, ended"

func scanStep(s scanner) (p job.Step, err error) {
	var result, failure string
	var started, ended int64
	if err = s.Scan(&p.RunID, &p.Index, &p.Name, &p.State, &p.Attempts, &p.Epoch, &result, &failure, &started, &ended); err != nil {
		return p, err
	}
	p.Result, p.Started, p.Ended = raw(result), moment(started), moment(ended)
	p.Failure, err = readFailure(failure)
	return p, err
}

func raw(text string) json.RawMessage {
	if text == "" {
		return nil
	}
	return json.RawMessage(text)
}

func readFailure(text string) (*job.Failure, error) {
	if text == "" {
		return nil, nil
	}
	f := new(job.Failure)
	if err := json.Unmarshal([]byte(text), f); err != nil {
		return nil, fmt.Errorf("read failure: %w", err)
	}
	return f, nil
}

// failureText is a failure as it is stored: cut to size, because a message may
// quote what a peer sent.
func failureText(f *job.Failure) (string, error) {
	if f == nil {
		return "", nil
	}
	short := *f
	short.Message, short.Hint = cut(f.Message, job.MaxText), cut(f.Hint, job.MaxText)
	b, err := json.Marshal(short)
	return string(b), err
}

func cut(s string, most int) string {
	s = strings.ToValidUTF8(strings.ReplaceAll(s, "\x00", ""), "\uFFFD")
	for len(s) > most {
		_, size := utf8.DecodeLastRuneInString(s)
		s = s[:len(s)-size]
	}
	return s
}

func checkDetail(what string, b json.RawMessage) error {
	if len(b) > job.MaxDetail {
		return &tenant.InvalidError{Field: what, Reason: fmt.Sprintf("%d bytes are more than %d", len(b), job.MaxDetail)}
	}
	if len(b) > 0 && !json.Valid(b) {
		return &tenant.InvalidError{Field: what, Reason: "is not valid JSON"}
	}
	return nil
}

func (s runs) Create(ctx context.Context, r job.Run) (job.Run, error) {
	if r.Kind == "" || (r.Exclusive && r.Subject == "") {
		return job.Run{}, &tenant.InvalidError{Field: "run", Reason: "needs a kind, and a subject if it is exclusive"}
	}
	if err := checkDetail("spec", r.Spec); err != nil {
		return job.Run{}, err
	}
	if r.ID == "" {
		r.ID = newID()
	}
	r = job.Run{ID: r.ID, TenantID: r.TenantID, Kind: r.Kind, Subject: r.Subject, Exclusive: r.Exclusive, Spec: r.Spec,
		State: job.Waiting, NotBefore: r.NotBefore}
	err := s.db.change(ctx, func(t *tx) error {
		now, err := t.now(ctx)
		if err != nil {
			return err
		}
		r.Created = now
		n, err := t.exec(ctx, `INSERT INTO runs (id, tenant_id, kind, subject, exclusive, spec, state, cancel, progress, result, failure,
			attempts, created, not_before, started, ended, holder, epoch, until, steps)
			VALUES ($1, $2, $3, $4, $5, $6, $7, FALSE, '', '', '', 0, $8, $9, 0, 0, '', 0, 0, 0) ON CONFLICT DO NOTHING`,
			r.ID, string(r.TenantID), string(r.Kind), r.Subject, r.Exclusive, string(r.Spec), string(job.Waiting), micros(now), micros(r.NotBefore))
		if err != nil {
			return fmt.Errorf("create run: %w", err)
		}
		if n == 0 {
			return fmt.Errorf("%s of %s: %w", r.Kind, r.Subject, job.ErrActive)
		}
		return t.audit(ctx, r.TenantID, "run.create", "run:"+r.ID, map[string]any{"kind": r.Kind, "subject": r.Subject})
	})
	if err != nil {
		return job.Run{}, err
	}
	return r, nil
}

// run reads a run in a tenant's scope.
func (t *tx) run(ctx context.Context, in tenant.ID, id string) (job.Run, error) {
	r, err := scanRun(t.row(ctx, "SELECT "+runColumns+" FROM runs WHERE id = $1 AND tenant_id = $2", id, string(in)))
	return r, notFound(err, "run", id)
}

func (s runs) Get(ctx context.Context, in tenant.ID, id string) (r job.Run, err error) {
	err = s.db.read(ctx, func(t *tx) error {
		r, err = t.run(ctx, in, id)
		return err
	})
	return r, err
}

func (s runs) List(ctx context.Context, q job.Query) (all []job.Run, err error) {
	var w where
	if !q.All {
		w.and("tenant_id = ?", string(q.Tenant))
	}
	if q.Kind != "" {
		w.and("kind = ?", string(q.Kind))
	}
	if q.Subject != "" {
		w.and("subject = ?", q.Subject)
	}
	if q.Open {
		w.and("ended = 0")
	}
	if q.Before != "" {
		w.and("id < ?", q.Before)
	}
	query := fmt.Sprintf("SELECT %s FROM runs%s ORDER BY id DESC LIMIT %d", runColumns, w.sql(), bounded(q.Limit, 100, 1000))
	err = s.db.read(ctx, func(t *tx) error {
		all, err = collect(ctx, t, scanRun, query, w.args...)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("list runs: %w", err)
	}
	return all, nil
}

func (s runs) Steps(ctx context.Context, in tenant.ID, id string) (all []job.Step, err error) {
	err = s.db.read(ctx, func(t *tx) error {
		if _, err := t.run(ctx, in, id); err != nil {
			return err
		}
		all, err = collect(ctx, t, scanStep, "SELECT "+stepColumns+" FROM run_steps WHERE run_id = $1 ORDER BY position", id)
		return err
	})
	return all, err
}

func (s runs) RequestCancel(ctx context.Context, in tenant.ID, id string) (r job.Run, err error) {
	err = s.db.change(ctx, func(t *tx) error {
		now, err := t.now(ctx)
		if err != nil {
			return err
		}
		n, err := t.exec(ctx, `UPDATE runs SET cancel = TRUE,
			state = CASE WHEN state = 'waiting' THEN 'cancelled' ELSE state END,
			ended = CASE WHEN state = 'waiting' THEN CAST($1 AS BIGINT) ELSE ended END
			WHERE id = $2 AND tenant_id = $3 AND ended = 0`, micros(now), id, string(in))
		if err != nil {
			return fmt.Errorf("cancel run %s: %w", id, err)
		}
		if r, err = t.run(ctx, in, id); err != nil {
			return err
		}
		if n == 0 {
			return fmt.Errorf("run %s: %w", id, job.ErrFinal)
		}
		return t.audit(ctx, in, "run.cancel", "run:"+id, map[string]any{"kind": r.Kind, "subject": r.Subject})
	})
	return r, err
}

// takeRounds is how many runs that others take first Take gives up after; the
// caller asks again soon.
const takeRounds = 16

func (s runs) Take(ctx context.Context, holder string, ttl time.Duration, kinds []job.Kind) (r job.Run, ok bool, err error) {
	if holder == "" || ttl < claim.MinTTL || len(kinds) == 0 {
		return job.Run{}, false, fmt.Errorf("take run: want a holder, kinds, and at least %s", claim.MinTTL)
	}
	for range takeRounds {
		var again bool
		if r, ok, again, err = s.take(ctx, holder, ttl, kinds); err != nil {
			return job.Run{}, false, fmt.Errorf("take run: %w", err)
		}
		if !again {
			break
		}
	}
	return r, ok, nil
}

// takeable holds for a run that waits, or whose holder let its claim expire.
const takeable = "ended = 0 AND until <= ? AND not_before <= ?"

func (s runs) take(ctx context.Context, holder string, ttl time.Duration, kinds []job.Kind) (r job.Run, ok, again bool, err error) {
	err = s.db.write(ctx, func(t *tx) error {
		r, ok, again = job.Run{}, false, false
		now, err := t.now(ctx)
		if err != nil {
			return err
		}
		var pick where
		pick.and(takeable, micros(now), micros(now))
		marks := make([]any, len(kinds))
		for i, k := range kinds {
			marks[i] = string(k)
		}
		pick.and("kind IN (?"+strings.Repeat(", ?", len(kinds)-1)+")", marks...)
		var id string
		err = t.row(ctx, "SELECT id FROM runs"+pick.sql()+" ORDER BY id LIMIT 1", pick.args...).Scan(&id)
		if errors.Is(err, sql.ErrNoRows) {
			return nil
		}
		if err != nil {
			return err
		}
		// The condition again: between the two statements another may have taken it.
		r, err = scanRun(t.row(ctx, `UPDATE runs SET state = 'running', holder = $1, epoch = epoch + 1, until = $2, attempts = attempts + 1,
			started = CASE WHEN started = 0 THEN CAST($3 AS BIGINT) ELSE started END
			WHERE id = $4 AND ended = 0 AND until <= $3 AND not_before <= $3 RETURNING `+runColumns,
			holder, micros(now.Add(ttl)), micros(now), id))
		if errors.Is(err, sql.ErrNoRows) {
			again = true
			return nil
		}
		ok = err == nil
		return err
	})
	return r, ok, again, err
}

// owned runs an UPDATE that has to touch the run that l holds.
func (t *tx) owned(ctx context.Context, l job.Lock, verb, query string, args ...any) error {
	n, err := t.exec(ctx, query, args...)
	if err != nil {
		return fmt.Errorf("%s run %s: %w", verb, l.RunID, err)
	}
	if n == 0 {
		return fmt.Errorf("%s run %s: %w", verb, l.RunID, job.ErrFenced)
	}
	return nil
}

// holdRun locks a run for the transaction and checks that l still holds it.
func (t *tx) holdRun(ctx context.Context, l job.Lock, verb string) error {
	return t.owned(ctx, l, verb, "UPDATE runs SET epoch = epoch WHERE id = $1 AND epoch = $2 AND ended = 0 AND holder <> ''", l.RunID, l.Epoch)
}

func (s runs) Renew(ctx context.Context, l job.Lock, ttl time.Duration) (cancel bool, err error) {
	if ttl < claim.MinTTL {
		return false, fmt.Errorf("renew run %s: want at least %s", l.RunID, claim.MinTTL)
	}
	err = s.db.write(ctx, func(t *tx) error {
		now, err := t.now(ctx)
		if err != nil {
			return err
		}
		err = t.row(ctx, "UPDATE runs SET until = $1 WHERE id = $2 AND epoch = $3 AND ended = 0 AND holder <> '' RETURNING cancel",
			micros(now.Add(ttl)), l.RunID, l.Epoch).Scan(&cancel)
		if errors.Is(err, sql.ErrNoRows) {
			return job.ErrFenced
		}
		return err
	})
	if err != nil {
		return false, fmt.Errorf("renew run %s: %w", l.RunID, err)
	}
	return cancel, nil
}

func (s runs) Expel(ctx context.Context, node, instance string) (freed int64, err error) {
	h := claim.Holder{Node: node, Instance: instance}
	if err := h.Check(); err != nil {
		return 0, err
	}
	err = s.db.write(ctx, func(t *tx) error {
		freed, err = t.exec(ctx, `UPDATE runs SET until = 0 WHERE ended = 0 AND until > 0
			AND substr(holder, 1, length(CAST($1 AS TEXT))) = $1 AND holder <> $2`, node+"/", h.String())
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("expel former instances of %s: %w", node, err)
	}
	return freed, nil
}

func (s runs) BeginStep(ctx context.Context, l job.Lock, name string) (p job.Step, err error) {
	if name == "" || len(name) > 500 {
		return job.Step{}, &tenant.InvalidError{Field: "step", Reason: "needs a short name"}
	}
	err = s.db.write(ctx, func(t *tx) error {
		if err := t.holdRun(ctx, l, "begin step of"); err != nil {
			return err
		}
		p, err = scanStep(t.row(ctx, "SELECT "+stepColumns+" FROM run_steps WHERE run_id = $1 AND name = $2", l.RunID, name))
		if err == nil && p.State == job.StepDone {
			return nil
		}
		if err != nil && !errors.Is(err, sql.ErrNoRows) {
			return fmt.Errorf("read step %s: %w", name, err)
		}
		position := int64(p.Index)
		if err != nil { // new
			if err := t.row(ctx, "UPDATE runs SET steps = steps + 1 WHERE id = $1 RETURNING steps", l.RunID).Scan(&position); err != nil {
				return fmt.Errorf("number step %s: %w", name, err)
			}
			if position > job.MaxSteps {
				return fmt.Errorf("run %s has more than %d steps", l.RunID, job.MaxSteps)
			}
		}
		now, err := t.now(ctx)
		if err != nil {
			return err
		}
		p, err = scanStep(t.row(ctx, `INSERT INTO run_steps (run_id, name, position, state, attempts, epoch, result, failure, started, ended)
			VALUES ($1, $2, $3, 'started', 1, $4, '', '', $5, 0)
			ON CONFLICT (run_id, name) DO UPDATE SET state = 'started', attempts = run_steps.attempts + 1, epoch = excluded.epoch,
			result = '', failure = '', started = excluded.started, ended = 0 RETURNING `+stepColumns,
			l.RunID, name, position, l.Epoch, micros(now)))
		if err != nil {
			return fmt.Errorf("begin step %s: %w", name, err)
		}
		return nil
	})
	return p, err
}

func (s runs) EndStep(ctx context.Context, l job.Lock, name string, result json.RawMessage, f *job.Failure) error {
	if err := checkDetail("step result", result); err != nil {
		return err
	}
	failure, err := failureText(f)
	if err != nil {
		return fmt.Errorf("end step %s: %w", name, err)
	}
	state := job.StepDone
	if f != nil {
		state = job.StepFailed
	}
	return s.db.write(ctx, func(t *tx) error {
		if err := t.holdRun(ctx, l, "end step of"); err != nil {
			return err
		}
		now, err := t.now(ctx)
		if err != nil {
			return err
		}
		return t.owned(ctx, l, "end step of", `UPDATE run_steps SET state = $1, result = $2, failure = $3, ended = $4
			WHERE run_id = $5 AND name = $6 AND epoch = $7 AND state = 'started'`,
			string(state), string(result), failure, micros(now), l.RunID, name, l.Epoch)
	})
}

func (s runs) SetProgress(ctx context.Context, l job.Lock, p job.Progress) error {
	return s.db.write(ctx, func(t *tx) error {
		now, err := t.now(ctx)
		if err != nil {
			return err
		}
		p.Time = now
		text, err := json.Marshal(p)
		if err != nil {
			return fmt.Errorf("write progress of run %s: %w", l.RunID, err)
		}
		if err := checkDetail("progress", text); err != nil {
			return err
		}
		return t.owned(ctx, l, "write progress of", "UPDATE runs SET progress = $1 WHERE id = $2 AND epoch = $3 AND ended = 0 AND holder <> ''",
			string(text), l.RunID, l.Epoch)
	})
}

func (s runs) Finish(ctx context.Context, l job.Lock, state job.State, result json.RawMessage, f *job.Failure) error {
	if !state.Final() {
		return fmt.Errorf("finish run %s: %q is not a final state", l.RunID, state)
	}
	if err := checkDetail("result", result); err != nil {
		return err
	}
	failure, err := failureText(f)
	if err != nil {
		return fmt.Errorf("finish run %s: %w", l.RunID, err)
	}
	return s.db.write(ctx, func(t *tx) error {
		now, err := t.now(ctx)
		if err != nil {
			return err
		}
		return t.owned(ctx, l, "finish", `UPDATE runs SET state = $1, result = $2, failure = $3, ended = $4, until = 0, holder = ''
			WHERE id = $5 AND epoch = $6 AND ended = 0 AND holder <> ''`,
			string(state), string(result), failure, micros(now), l.RunID, l.Epoch)
	})
}

func (s runs) Requeue(ctx context.Context, l job.Lock, at time.Time) error {
	return s.db.write(ctx, func(t *tx) error {
		return t.owned(ctx, l, "requeue", `UPDATE runs SET state = 'waiting', until = 0, holder = '', not_before = $1
			WHERE id = $2 AND epoch = $3 AND ended = 0 AND holder <> ''`, micros(at), l.RunID, l.Epoch)
	})
}

func (s runs) Prune(ctx context.Context, before time.Time) (n int64, err error) {
	err = s.db.write(ctx, func(t *tx) error {
		n, err = t.exec(ctx, "DELETE FROM runs WHERE ended > 0 AND ended < $1", micros(before))
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("prune runs: %w", err)
	}
	return n, nil
}
