package state

import (
	"context"
	"database/sql"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/pressly/goose/v3"
)

// The engines.
const (
	engineSQLite   = "sqlite"
	enginePostgres = "postgres"
)

// DB is an open database. It is safe for concurrent use.
type DB struct {
	engine string
	writer *sql.DB // SQLite: one connection, a fair queue of writers
	reader *sql.DB // PostgreSQL: the same pool as writer
	clock  func() time.Time
	unlock func() error
	// ballast is what is given up when the disk is full; nil: PostgreSQL.
	ballast *ballast

	closing  sync.Once
	closeErr error
}

//go:embed migrations
var migrations embed.FS

// Open opens a provider's database and brings it to the current version. The
// URL is sqlite:PATH or postgres://….
func Open(ctx context.Context, url string) (*DB, error) { return open(ctx, url, "server") }

// OpenAgent opens an agent's database.
func OpenAgent(ctx context.Context, url string) (*DB, error) { return open(ctx, url, "agent") }

func open(ctx context.Context, url, owner string) (*DB, error) {
	db := &DB{clock: time.Now, unlock: func() error { return nil }}
	var err error
	switch {
	case strings.HasPrefix(url, "sqlite:"):
		err = db.openSQLite(strings.TrimPrefix(strings.TrimPrefix(url, "sqlite:"), "//"))
	case strings.HasPrefix(url, "postgres://"), strings.HasPrefix(url, "postgresql://"):
		err = db.openPostgres(url)
	default:
		return nil, fmt.Errorf("open database: want sqlite:PATH or postgres://HOST/NAME")
	}
	if err == nil {
		err = db.migrate(ctx, owner)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open database: %w", err), db.Close())
	}
	return db, nil
}

// Close waits for running statements and closes the database. It is idempotent.
func (db *DB) Close() error {
	db.closing.Do(func() {
		var errs []error
		if db.reader != nil && db.reader != db.writer {
			errs = append(errs, db.reader.Close())
		}
		if db.writer != nil {
			errs = append(errs, db.writer.Close())
		}
		db.closeErr = errors.Join(append(errs, db.unlock())...)
	})
	return db.closeErr
}

// Ping says whether the database answers, for health checks.
func (db *DB) Ping(ctx context.Context) error {
	if err := db.writer.PingContext(ctx); err != nil {
		return fmt.Errorf("ping database: %w", err)
	}
	return nil
}

// Engine is "sqlite" or "postgres", for status pages.
func (db *DB) Engine() string { return db.engine }

func (db *DB) migrate(ctx context.Context, owner string) error {
	files, err := migrationFiles(owner)
	if err != nil {
		return err
	}
	dialect := goose.DialectSQLite3
	if db.engine == enginePostgres {
		dialect = goose.DialectPostgres
	}
	release, err := db.lockMigrations(ctx)
	if err != nil {
		return err
	}
	defer release()
	provider, err := goose.NewProvider(dialect, db.writer, files, goose.WithSlog(slog.New(slog.DiscardHandler)))
	if err != nil {
		return fmt.Errorf("read migrations: %w", err)
	}
	current, target, err := provider.GetVersions(ctx)
	if err != nil {
		return fmt.Errorf("read schema version: %w", err)
	}
	if current > target {
		return fmt.Errorf("schema version %d is newer than this program, which knows %d", current, target)
	}
	if _, err := provider.Up(ctx); err != nil {
		return fmt.Errorf("migrate schema: %w", err)
	}
	return nil
}

// migrationFiles are those of the owner together with the shared ones.
func migrationFiles(owner string) (fs.FS, error) {
	var all overlay
	for _, dir := range []string{"shared", owner} {
		sub, err := fs.Sub(migrations, "migrations/"+dir)
		if err != nil {
			return nil, fmt.Errorf("read migrations: %w", err)
		}
		all = append(all, sub)
	}
	return all, nil
}

// overlay is several flat directories as one.
type overlay []fs.FS

// Open opens the first file of that name.
func (o overlay) Open(name string) (fs.File, error) {
	for _, f := range o {
		if file, err := f.Open(name); !errors.Is(err, fs.ErrNotExist) {
			return file, err
		}
	}
	return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
}

// ReadDir lists all of them in the order of their names, which is the order in
// which goose applies them.
func (o overlay) ReadDir(name string) ([]fs.DirEntry, error) {
	var all []fs.DirEntry
	for _, f := range o {
		entries, err := fs.ReadDir(f, name)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		all = append(all, entries...)
	}
	slices.SortFunc(all, func(a, b fs.DirEntry) int { return strings.Compare(a.Name(), b.Name()) })
	return all, nil
}
