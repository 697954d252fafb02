package state

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"runtime"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/stdlib"
)

// PostgreSQL's names for what this package decides on.
const (
	pgUniqueViolation     = "23505"
	pgForeignKeyViolation = "23503"
	pgSerialization       = "40001"
	pgDeadlock            = "40P01"
)

// migrationLock is the advisory lock under which servers that start together
// migrate one after another. The number spells "holdfast".
const migrationLock int64 = 0x686f6c6466617374

func (db *DB) openPostgres(url string) error {
	config, err := pgx.ParseConfig(url)
	if err != nil {
		return errors.New("the database URL cannot be read") // pgx's error would print the password
	}
	config.RuntimeParams["timezone"] = "UTC"
	config.RuntimeParams["application_name"] = "holdfast"
	// A transaction whose server vanished must not keep its locks.
	config.RuntimeParams["idle_in_transaction_session_timeout"] = "60000"
	db.engine = enginePostgres
	db.writer = stdlib.OpenDB(*config)
	conns := max(8, runtime.GOMAXPROCS(0)*4)
	db.writer.SetMaxOpenConns(conns)
	db.writer.SetMaxIdleConns(conns)
	db.writer.SetConnMaxIdleTime(5 * time.Minute)
	db.reader = db.writer
	return nil
}

// lockMigrations makes servers migrate one at a time. SQLite's file lock has
// done so already.
func (db *DB) lockMigrations(ctx context.Context) (release func(), err error) {
	if db.engine != enginePostgres {
		return func() {}, nil
	}
	conn, err := db.writer.Conn(ctx)
	if err != nil {
		return nil, fmt.Errorf("connect: %w", err)
	}
	if _, err := conn.ExecContext(ctx, "SELECT pg_advisory_lock($1)", migrationLock); err != nil {
		_ = conn.Close()
		return nil, fmt.Errorf("wait for other servers to migrate: %w", err)
	}
	return func() {
		// The lock belongs to the connection; if it cannot be given back, ending
		// the connection does.
		if _, err := conn.ExecContext(context.WithoutCancel(ctx), "SELECT pg_advisory_unlock($1)", migrationLock); err != nil {
			_ = conn.Raw(func(any) error { return sql.ErrConnDone })
		}
		_ = conn.Close() // nothing was left to write
	}, nil
}

func pgCode(err error) string {
	var e *pgconn.PgError
	if errors.As(err, &e) {
		return e.Code
	}
	return ""
}

func isUnique(err error) bool { return sqliteUnique(err) || pgCode(err) == pgUniqueViolation }

func isForeign(err error) bool { return sqliteForeign(err) || pgCode(err) == pgForeignKeyViolation }

// isConflict says that the same transaction may succeed if it runs again.
func isConflict(err error) bool {
	code := pgCode(err)
	return code == pgSerialization || code == pgDeadlock
}
