package scenario

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/testenv/postgres"
	"github.com/holdfast-dr/holdfast/testenv/stack"
)

// The program without a C compiler reads what the other wrote, and back: agent
// and server change builds between backup and restore.
func TestBuildsWithAndWithoutCgoReadEachOther(t *testing.T) {
	pure := filepath.Join(t.TempDir(), "bin")
	if err := stack.Build(t.Context(), pure, []string{"CGO_ENABLED=0"}, "sim"); err != nil {
		t.Fatal(err)
	}
	l := newLab(t, stack.Options{})
	m := l.machine("both", 32*mib)
	l.must(l.hv.WriteDisk(m.ID, m.Disks[0].ID, 0, []byte(strings.Repeat("compressible text ", 400000))))
	l.noise(m, 0, 16*mib, 2*mib, 1)
	l.do("job", "create", "nightly", "--endpoint", "lab", "--repository", "backups", "--all")
	first, then := l.backup("nightly"), l.hashes(m.ID)

	l.must(l.Close())
	with := l.Bin
	l.Bin = pure
	l.must(l.StartServer(t.Context()))
	l.must(l.StartAgent(t.Context()))
	l.do("plugin", "enable", "sim") // its program is another one now
	id := string(m.Disks[0].ID)
	equal(t, "written with libzstd, read in pure Go", []string{hashFile(t, l.restoreDisk(first.Machines[0].Point, id, "raw"))}, then)
	l.must(l.hv.WriteDisk(m.ID, m.Disks[0].ID, 24*mib, []byte(strings.Repeat("written later ", 100000))))
	second, now := l.backup("nightly"), l.hashes(m.ID)
	if second.Machines[0].Kind != "incremental" {
		t.Errorf("the other build's point is not built upon: %+v", second.Machines[0])
	}

	l.must(l.Close())
	l.Bin = with
	l.must(l.StartServer(t.Context()))
	l.must(l.StartAgent(t.Context()))
	equal(t, "written in pure Go, read with libzstd", []string{hashFile(t, l.restoreDisk(second.Machines[0].Point, id, "raw"))}, now)
}

func TestProviderOnPostgreSQL(t *testing.T) {
	url := postgres.Start(t).Database(t)
	l := newLab(t, stack.Options{Env: []string{"HOLDFAST_DATABASE=" + url}})
	m := l.machine("web", 32*mib)
	l.noise(m, 0, 5*mib, 4*mib, 1)
	l.do("job", "create", "nightly", "--endpoint", "lab", "--repository", "backups", "--all")
	first, then := l.backup("nightly"), l.hashes(m.ID)
	l.must(l.Server.Stop(20 * time.Second))
	l.must(l.StartServer(t.Context()))
	l.noise(m, 0, 0, mib, 2)
	if second := l.backup("nightly"); second.Machines[0].Kind != "incremental" {
		t.Errorf("second backup: %+v", second.Machines[0])
	}
	equal(t, "restored", []string{hashFile(t, l.restoreDisk(first.Machines[0].Point, string(m.Disks[0].ID), "raw"))}, then)
	if _, err := os.Stat(filepath.Join(l.ServerData(), "state.db")); err == nil {
		t.Error("a SQLite file was made although PostgreSQL was configured")
	}
}
