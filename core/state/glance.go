package state

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"strings"
)

// Glance looks at a provider's database before it is opened: it makes, migrates
// and locks nothing. It returns the sealed key of the CA, or nil for a database
// in which no server was ever started.
func Glance(ctx context.Context, address string) (sealedCA []byte, err error) {
	db := &DB{unlock: func() error { return nil }}
	exists := "SELECT count(*) FROM sqlite_master WHERE type = 'table' AND name = 'authorities'"
	if path, ok := strings.CutPrefix(address, "sqlite:"); ok {
		path, err := filepath.Abs(strings.TrimPrefix(path, "//"))
		if err != nil {
			return nil, err
		}
		switch info, err := os.Stat(path); {
		case errors.Is(err, fs.ErrNotExist):
			return nil, nil
		case err != nil:
			return nil, fmt.Errorf("look at the database: %w", err)
		case info.Size() == 0:
			return nil, nil
		}
		q := url.Values{"mode": {"rw"}}
		q.Add("_pragma", "busy_timeout("+busyTimeout+")")
		q.Add("_pragma", "query_only(1)")
		db.engine = engineSQLite
		if db.writer, err = sql.Open("sqlite", "file:"+(&url.URL{Path: path}).EscapedPath()+"?"+q.Encode()); err != nil {
			return nil, fmt.Errorf("look at the database: %w", err)
		}
	} else {
		exists = "SELECT count(*) FROM pg_catalog.pg_class WHERE oid = to_regclass('authorities')"
		if err := db.openPostgres(address); err != nil {
			return nil, fmt.Errorf("look at the database: %w", err)
		}
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	var tables int
	if err := db.writer.QueryRowContext(ctx, exists).Scan(&tables); err != nil {
		return nil, fmt.Errorf("look at the database: %w", err)
	}
	if tables == 0 {
		return nil, nil
	}
	err = db.writer.QueryRowContext(ctx, "SELECT sealed_key FROM authorities WHERE slot = 'current'").Scan(&sealedCA)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("look at the database: %w", err)
	}
	return sealedCA, nil
}
