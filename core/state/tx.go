package state

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/holdfast-dr/holdfast/core/audit"
	"github.com/holdfast-dr/holdfast/core/claim"
	"github.com/holdfast-dr/holdfast/core/tenant"
)

// maxAttempts is how often a transaction is tried when PostgreSQL chooses it as
// the victim of a conflict. Locks are taken in one order, so conflicts are rare.
const maxAttempts = 5

// tx is a running transaction.
type tx struct {
	sql     *sql.Tx
	db      *DB
	time    time.Time     // set by the first now
	origin  *audit.Origin // nil: bookkeeping
	audited bool
}

// read runs f in one consistent view.
func (db *DB) read(ctx context.Context, f func(*tx) error) error {
	options := &sql.TxOptions{ReadOnly: true}
	if db.engine == enginePostgres {
		options.Isolation = sql.LevelRepeatableRead
	}
	return db.run(ctx, db.reader, options, nil, f)
}

// write runs f as bookkeeping.
func (db *DB) write(ctx context.Context, f func(*tx) error) error {
	return db.run(ctx, db.writer, nil, nil, f)
}

// change runs f as somebody's decision.
func (db *DB) change(ctx context.Context, f func(*tx) error) error {
	origin, err := audit.From(ctx)
	if err != nil {
		return err
	}
	return db.run(ctx, db.writer, nil, &origin, f)
}

func (db *DB) run(ctx context.Context, pool *sql.DB, options *sql.TxOptions, origin *audit.Origin, f func(*tx) error) error {
	if db.ballast != nil && pool == db.writer {
		return db.short(ctx, origin != nil, func() error { return db.once(ctx, pool, options, origin, f) })
	}
	for attempt := 1; ; attempt++ {
		err := db.once(ctx, pool, options, origin, f)
		if !isConflict(err) || attempt == maxAttempts {
			return err
		}
		pause := time.NewTimer(time.Duration(1+rand.IntN(20*attempt)) * time.Millisecond)
		select {
		case <-ctx.Done():
			pause.Stop()
			return ctx.Err()
		case <-pause.C:
		}
	}
}

func (db *DB) once(ctx context.Context, pool *sql.DB, options *sql.TxOptions, origin *audit.Origin, f func(*tx) error) (err error) {
	t, err := pool.BeginTx(ctx, options)
	if err != nil {
		return fmt.Errorf("begin transaction: %w", err)
	}
	defer t.Rollback() // after a commit it does nothing; it covers a panic, too
	run := &tx{sql: t, db: db, origin: origin}
	if err := f(run); err != nil {
		return err
	}
	if origin != nil && !run.audited {
		return errors.New("a change left no audit entry")
	}
	if err := t.Commit(); err != nil {
		return fmt.Errorf("commit transaction: %w", err)
	}
	return nil
}

// now is the time of the transaction: the database's own where several servers
// share it, so that their clocks need not agree.
func (t *tx) now(ctx context.Context) (time.Time, error) {
	if !t.time.IsZero() {
		return t.time, nil
	}
	if t.db.engine == engineSQLite {
		t.time = moment(t.db.clock().UnixMicro())
		return t.time, nil
	}
	var us int64
	err := t.row(ctx, "SELECT CAST(extract(epoch FROM clock_timestamp()) * 1000000 AS BIGINT)").Scan(&us)
	if err != nil {
		return time.Time{}, fmt.Errorf("read clock: %w", err)
	}
	t.time = moment(us)
	return t.time, nil
}

// exec runs a statement and says how many rows it touched.
func (t *tx) exec(ctx context.Context, query string, args ...any) (int64, error) {
	result, err := t.sql.ExecContext(ctx, query, args...)
	if err != nil {
		return 0, err
	}
	return result.RowsAffected()
}

func (t *tx) row(ctx context.Context, query string, args ...any) *sql.Row {
	return t.sql.QueryRowContext(ctx, query, args...)
}

// scanner is a row, single or one of many.
type scanner interface{ Scan(dest ...any) error }

// each calls scan for every row.
func (t *tx) each(ctx context.Context, scan func(scanner) error, query string, args ...any) error {
	rows, err := t.sql.QueryContext(ctx, query, args...)
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		if err := scan(rows); err != nil {
			return err
		}
	}
	return rows.Err()
}

// collect gathers every row.
func collect[T any](ctx context.Context, t *tx, scan func(scanner) (T, error), query string, args ...any) ([]T, error) {
	var all []T
	err := t.each(ctx, func(s scanner) error {
		v, err := scan(s)
		all = append(all, v)
		return err
	}, query, args...)
	return all, err
}

// fence answers claim.ErrFenced unless the claim of a resource still has this
// epoch. It locks the claim, so that a takeover waits for the transaction.
func (t *tx) fence(ctx context.Context, r claim.Resource, epoch int64) error {
	n, err := t.exec(ctx, "UPDATE claims SET epoch = epoch WHERE resource = $1 AND epoch = $2", string(r), epoch)
	if err != nil {
		return fmt.Errorf("check claim of %s: %w", r, err)
	}
	if n == 1 {
		return nil
	}
	var current int64
	err = t.row(ctx, "SELECT epoch FROM claims WHERE resource = $1", string(r)).Scan(&current)
	if err != nil && !errors.Is(err, sql.ErrNoRows) {
		return fmt.Errorf("check claim of %s: %w", r, err)
	}
	return &claim.FencedError{Resource: r, Epoch: epoch, Current: current}
}

// audit appends an entry to a chain.
func (t *tx) audit(ctx context.Context, chain tenant.ID, action, target string, detail any) error {
	if t.origin == nil {
		return audit.ErrNoOrigin
	}
	e := audit.Entry{Chain: chain, Origin: *t.origin, Action: action, Target: target}
	var err error
	if e.Time, err = t.now(ctx); err != nil {
		return err
	}
	if detail != nil {
		if e.Detail, err = json.Marshal(detail); err != nil {
			return fmt.Errorf("audit %s: %w", action, err)
		}
	}
	if err := t.link(ctx, &e); err != nil {
		return fmt.Errorf("audit %s: %w", action, err)
	}
	t.audited = true
	return nil
}

// link numbers and hashes an entry. Taking the number locks the head, so chains
// have no gaps and no forks.
func (t *tx) link(ctx context.Context, e *audit.Entry) error {
	var none audit.Hash
	if _, err := t.exec(ctx, "INSERT INTO audit_heads (chain, sequence, hash) VALUES ($1, 0, $2) ON CONFLICT (chain) DO NOTHING",
		string(e.Chain), none.String()); err != nil {
		return err
	}
	var previous string
	if err := t.row(ctx, "UPDATE audit_heads SET sequence = sequence + 1 WHERE chain = $1 RETURNING sequence, hash",
		string(e.Chain)).Scan(&e.Sequence, &previous); err != nil {
		return err
	}
	var err error
	if e.Previous, err = audit.ParseHash(previous); err != nil {
		return err
	}
	e.Hash = e.Sum()
	if _, err := t.exec(ctx, `INSERT INTO audit_entries
		(chain, sequence, time, actor, name, address, request, reason, action, target, detail, previous, hash)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)`,
		string(e.Chain), e.Sequence, e.Time.UnixMicro(), e.Actor, e.Name, e.Address, e.Request, e.Reason,
		e.Action, e.Target, string(e.Detail), e.Previous.String(), e.Hash.String()); err != nil {
		return err
	}
	_, err = t.exec(ctx, "UPDATE audit_heads SET hash = $1 WHERE chain = $2", e.Hash.String(), string(e.Chain))
	return err
}

// where builds the condition of a query whose parts are optional.
type where struct {
	parts []string
	args  []any
}

// and adds a condition; each ? in it stands for the next of args.
func (w *where) and(condition string, args ...any) {
	for _, a := range args {
		w.args = append(w.args, a)
		condition = strings.Replace(condition, "?", "$"+strconv.Itoa(len(w.args)), 1)
	}
	w.parts = append(w.parts, condition)
}

// sql is the clause, empty without conditions.
func (w *where) sql() string {
	if len(w.parts) == 0 {
		return ""
	}
	return " WHERE " + strings.Join(w.parts, " AND ")
}

// like is the pattern for "contains text", for LIKE … ESCAPE '\'.
func like(text string) string {
	return "%" + strings.NewReplacer(`\`, `\\`, "%", `\%`, "_", `\_`).Replace(text) + "%"
}

func newID() string { return uuid.Must(uuid.NewV7()).String() }

// micros is a time as it is stored.
func micros(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixMicro()
}

// moment is a stored time.
func moment(us int64) time.Time {
	if us == 0 {
		return time.Time{}
	}
	return time.UnixMicro(us).UTC()
}

// notFound turns the driver's answer into the rooms'.
func notFound(err error, thing, id string) error {
	if errors.Is(err, sql.ErrNoRows) {
		return fmt.Errorf("%s %s: %w", thing, id, tenant.ErrNotFound)
	}
	if err != nil {
		return fmt.Errorf("read %s %s: %w", thing, id, err)
	}
	return nil
}

// bounded is a query's limit.
func bounded(limit, normal, most int) int {
	if limit <= 0 {
		return normal
	}
	return min(limit, most)
}
