package state

import (
	"io/fs"
	"path/filepath"
	"testing"

	"github.com/pressly/goose/v3"
)

// Every migration can be taken back and done again.
var _ = both("MigrationsGoBothWays", func(t *testing.T, db *DB) {
	files, err := migrationFiles("server")
	if err != nil {
		t.Fatal(err)
	}
	dialect := goose.DialectSQLite3
	if db.engine == enginePostgres {
		dialect = goose.DialectPostgres
	}
	provider, err := goose.NewProvider(dialect, db.writer, files)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := provider.DownTo(t.Context(), 0); err != nil {
		t.Fatal(err)
	}
	err = db.read(t.Context(), func(x *tx) error {
		_, err := x.exec(t.Context(), "SELECT 1 FROM tenants")
		return err
	})
	if err == nil {
		t.Error("a table is left")
	}
	if _, err := provider.Up(t.Context()); err != nil {
		t.Fatal(err)
	}
	newTenant(t, db, "acme")
})

// Two files of one version would be applied as one.
func TestMigrationVersionsAreUnique(t *testing.T) {
	for _, owner := range []string{"server", "agent"} {
		files, err := migrationFiles(owner)
		if err != nil {
			t.Fatal(err)
		}
		names, err := fs.Glob(files, "*.sql")
		if err != nil || len(names) < 2 {
			t.Fatalf("%s: %v, %v", owner, names, err)
		}
		seen := map[int64]string{}
		for _, name := range names {
			version, err := goose.NumericComponent(filepath.Base(name))
			if err != nil {
				t.Fatal(err)
			}
			if other := seen[version]; other != "" {
				t.Errorf("%s: %s and %s have one version", owner, name, other)
			}
			seen[version] = name
		}
	}
}
