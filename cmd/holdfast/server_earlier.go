package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/holdfast-dr/holdfast/core/pki"
	"github.com/holdfast-dr/holdfast/core/secret"
	"github.com/holdfast-dr/holdfast/core/state"
)

// traces are what a server leaves in its data directory, and a directory that
// was never used does not have.
var traces = []string{"node", "master.key", "admin.token", devFile, "index", "spool"}

// recoveryPage is where the way out of every loss is written down.
const recoveryPage = "core/state/RECOVERY.md"

// beginning is how a server that is about to start stands to its past.
type beginning struct {
	fresh    bool // the database has no provider yet
	newTrust bool // the CA cannot be opened any more, and is to be replaced
}

// begin compares data directory, database and master key before anything is
// made or changed: a lost database must not become a new provider in silence,
// and a lost master key not a new key that opens nothing.
func (c serverConfig) begin(ctx context.Context) (b beginning, err error) {
	sealed, err := state.Glance(ctx, c.Database)
	if err != nil {
		return b, err
	}
	b.fresh = sealed == nil
	if b.fresh {
		if c.newAuthority {
			return b, withHint(errors.New("there is no CA to replace: the database has no provider"), "start without --new-authority")
		}
		return b, c.checkFresh()
	}
	if c.newDatabase {
		return b, withHint(errors.New("the database has a provider: it is not new"), "start without --new-database")
	}
	lost := c.checkKey(sealed)
	if b.newTrust = lost != nil && c.newAuthority; b.newTrust {
		return b, nil
	}
	if c.newAuthority {
		return b, withHint(errors.New("the master key opens the CA: there is nothing to replace"), "start without --new-authority")
	}
	return b, lost
}

// checkFresh refuses a database without a provider where there was one.
func (c serverConfig) checkFresh() error {
	if c.newDatabase {
		return nil
	}
	var found []string
	for _, name := range traces {
		if _, err := os.Lstat(filepath.Join(c.Data, name)); err == nil {
			found = append(found, name)
		} else if !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("look at the data directory: %w", err)
		}
	}
	if len(found) == 0 {
		return nil
	}
	return withHint(fmt.Errorf("the data directory %s was in use before (it has %s), but the %s has no provider: it is lost, or another one than before",
		c.Data, strings.Join(found, ", "), c.databaseText()),
		"see that the database is the right one, or restore its backup. To go on with a new one: --new-database. "+
			"That makes a new CA and a new administrator: tenants, quotas and users have to be entered again, every agent enrols again, "+
			"and the backups are taken over from the repositories one by one; %s has the steps", recoveryPage)
}

// databaseText names the database without its password.
func (c serverConfig) databaseText() string {
	if path, ok := strings.CutPrefix(c.Database, "sqlite:"); ok {
		return "database " + strings.TrimPrefix(path, "//")
	}
	return "PostgreSQL database"
}

// masterKeyFile is the path of the master key.
func (c serverConfig) masterKeyFile() string {
	return strings.TrimPrefix(strings.TrimPrefix(c.MasterKey, "file:"), "//")
}

// checkKey says whether the master key is there and opens the CA.
func (c serverConfig) checkKey(sealed []byte) error {
	hint := fmt.Sprintf("put the copy of the master key back to %s. If there is none left: --new-authority. That replaces the CA, which nothing opens any more; "+
		"tenants, quotas, users and backups stay, every agent enrols again, and an imported certificate has to be imported again; %s has the steps",
		c.masterKeyFile(), recoveryPage)
	if _, err := os.Stat(c.masterKeyFile()); errors.Is(err, fs.ErrNotExist) {
		return withHint(fmt.Errorf("the master key %s is missing, and the %s was sealed by it", c.masterKeyFile(), c.databaseText()), "%s", hint)
	}
	key, _, err := secret.Open(c.MasterKey)
	if err != nil {
		return err
	}
	if err := pki.Opens(key, sealed); err != nil {
		return withHint(fmt.Errorf("the master key %s is not the one that sealed the %s: %w", c.masterKeyFile(), c.databaseText(), err), "%s", hint)
	}
	return nil
}

// forget removes what an earlier provider's first start left for its operator,
// since none of it is true any more.
func (c serverConfig) forget() error {
	for _, name := range []string{"admin.token", devFile} {
		if err := os.Remove(filepath.Join(c.Data, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("remove what an earlier provider left: %w", err)
		}
	}
	return nil
}
