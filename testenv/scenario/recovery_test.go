package scenario

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/sdk"
	"github.com/holdfast-dr/holdfast/testenv/stack"
)

// cloud is a cloud repository, or what lies where one was, as the provider sees
// it.
type cloud struct {
	ID, Name   string
	TenantName string `json:"tenant_name"`
	Points     int
	Kept       bool
	UsedBytes  int64 `json:"used_bytes"`
	LimitBytes int64 `json:"limit_bytes"`
}

func (l *lab) clouds(flags ...string) []cloud {
	l.t.Helper()
	var all []cloud
	l.must(l.ProviderJSON(l.t.Context(), &all, append([]string{"cloud-repository", "list"}, flags...)...))
	return all
}

func (l *lab) provider(args ...string) string {
	l.t.Helper()
	out, err := l.Provider(l.t.Context(), args...)
	l.must(err)
	return out
}

// refused runs a command of the provider that has to fail and say something.
func (l *lab) refused(want string, args ...string) {
	l.t.Helper()
	if out, err := l.Provider(l.t.Context(), args...); err == nil || !strings.Contains(err.Error(), want) {
		l.t.Errorf("holdfast %s: %q, %v; want a refusal with %q", strings.Join(args, " "), out, err, want)
	}
}

// server runs the server's program until it ends, which it has to do by itself.
func (l *lab) server(want string, flags ...string) {
	l.t.Helper()
	ctx, cancel := context.WithTimeout(l.t.Context(), time.Minute) // a server that starts runs until then
	defer cancel()
	out, err := l.Run(ctx, append([]string{"server", "-dev", "--data", l.ServerData(), "--listen", l.Address}, flags...)...)
	if err == nil || !strings.Contains(err.Error(), want) {
		l.t.Fatalf("the server started, or said something else than %q: %s %v", want, out, err)
	}
}

// startServerOnce starts the server with flags for this one start, and ends it.
func (l *lab) startServerOnce(flags ...string) {
	l.t.Helper()
	l.ServerFlags = flags
	l.must(l.StartServer(l.t.Context()))
	l.ServerFlags = nil
	l.must(l.Server.Stop(20 * time.Second))
}

// newAgent is a fresh machine at the tenant's site, with nothing but the kit.
func (l *lab) newAgent(tenant string) {
	l.t.Helper()
	l.must(l.Agent.Stop(20 * time.Second))
	l.must(os.RemoveAll(l.AgentData()))
	l.must(os.MkdirAll(l.AgentData(), 0o700))
	l.must(l.StartAgent(l.t.Context()))
	l.enrol(tenant)
	l.do("key", "import-kit", l.kit)
	l.do("plugin", "enable", "sim")
	l.do("endpoint", "add", "lab", "--plugin", "sim", "--set", "dir="+filepath.Join(l.dir, "hypervisor"))
}

func (l *lab) enrol(tenant string) {
	l.t.Helper()
	var token struct{ Token string }
	l.must(l.ProviderJSON(l.t.Context(), &token, "token", "create", "--tenant", tenant, "--site", "recovered"))
	_, err := l.RunWith(l.t.Context(), strings.NewReader(token.Token+"\n"), "agent", "connect", l.Address, "--fingerprint", l.Fingerprint, "--token-file", "-")
	l.must(err)
}

// wantPoints restores every point, as a file, and compares.
func (l *lab) wantPoints(m sdk.Machine, want map[string][]string) {
	l.t.Helper()
	var points []struct{ ID, Problem string }
	l.must(l.JSON(l.t.Context(), &points, "point", "list"))
	if len(points) != len(want) {
		l.t.Errorf("points %+v, want %d", points, len(want))
	}
	for _, p := range points {
		if p.Problem != "" {
			l.t.Errorf("point %+v has a problem", p)
		}
	}
	for id, hashes := range want {
		var disks []string
		for i := range m.Disks {
			disks = append(disks, hashFile(l.t, l.restoreDisk(id, string(m.Disks[i].ID), "raw")))
		}
		equal(l.t, "files restored from "+id, disks, hashes)
	}
}

// The provider loses its database and keeps the master key and the objects: the
// server does not begin a new life in silence, and when it is told to, every
// point of a tenant comes back under the same id.
func TestLostDatabaseIsRebuiltFromTheObjects(t *testing.T) {
	l := newLab(t, stack.Options{})
	m := l.machine("web", 48*mib, 8*mib)
	l.noise(m, 0, 0, 9*mib, 1)
	l.noise(m, 1, mib, mib, 2)
	l.do("job", "create", "nightly", "--endpoint", "lab", "--repository", "backups", "--machine", "web")
	first, then := l.backup("nightly"), l.hashes(m.ID)
	l.noise(m, 0, 20*mib, mib, 3)
	second, now := l.backup("nightly"), l.hashes(m.ID)
	lost := l.clouds()[0]
	fingerprint := l.Fingerprint

	l.must(l.Server.Stop(20 * time.Second))
	l.must(os.Remove(filepath.Join(l.ServerData(), "state.db")))
	l.server("was in use before")
	l.server("was in use before", "-check")
	l.server("there is no CA to replace", "--new-authority")
	if _, err := os.Stat(filepath.Join(l.ServerData(), "state.db")); err == nil {
		t.Error("the server that did not start made a database")
	}
	l.startServerOnce("--new-database")
	l.must(l.StartServer(t.Context())) // without the flag, from now on
	if l.Fingerprint == fingerprint {
		t.Error("the CA is the old one although its key is lost")
	}

	// -dev prepares a tenant with an empty cloud repository; the real ones are of
	// tenants that have to be entered again.
	unknown := l.clouds("--unknown")
	if len(unknown) != 1 || unknown[0].ID != lost.ID || unknown[0].TenantName != "demo" || unknown[0].Name != "backups" ||
		unknown[0].Points != 2 || unknown[0].LimitBytes != lost.LimitBytes || unknown[0].Kept {
		t.Fatalf("what lies in the repository: %+v, want the %+v that was lost", unknown, lost)
	}
	l.provider("tenant", "create", "Acme")
	create := []string{"cloud-repository", "create", "backups", "--repository", "demo-store", "--quota", "10GiB", "--id"}
	l.refused("is not the id", append(create, "backups", "--tenant", "Acme")...)
	l.refused("has nothing under the id", append(create, "01a20ae5-76a9-70b5-927c-d0423543fde9", "--tenant", "Acme")...)
	l.refused(`those of tenant "demo", not of "Acme"`, append(create, lost.ID, "--tenant", "Acme")...)
	l.refused(`not of "other"`, append(create, lost.ID, "--tenant", "Acme", "--former-tenant", "other")...)
	l.provider("cloud-repository", "delete", "backups", "--tenant", "demo")
	l.provider(append(create, lost.ID, "--tenant", "demo")...)
	l.refused("has the id", append(create, lost.ID, "--tenant", "Acme", "--former-tenant", "demo")...)

	// Until the import nothing is written, so nothing can be collected.
	l.refused("older than the repository", "repository", "collect", "backups", "--tenant", "demo", "--wait")
	l.provider("repository", "import", "backups", "--tenant", "demo", "--wait")
	if got := l.clouds("--tenant", "demo"); len(got) != 1 || got[0].ID != lost.ID || got[0].UsedBytes != lost.UsedBytes {
		t.Errorf("after the import: %+v, want the %d bytes of %+v", got, lost.UsedBytes, lost)
	}
	if left := l.clouds("--unknown"); len(left) != 0 {
		t.Errorf("still unknown: %+v", left)
	}

	l.newAgent("demo")
	want := map[string][]string{first.Machines[0].Point: then, second.Machines[0].Point: now}
	l.wantPoints(m, want)
	l.do("job", "create", "nightly", "--endpoint", "lab", "--repository", "backups", "--machine", "web")
	l.noise(m, 0, 30*mib, mib, 4)
	third := l.backup("nightly")
	if got := third.Machines[0]; got.Kind == "full" || got.StoredBytes > 3*mib {
		t.Errorf("backup after the recovery: kind %s, stored %d; want one that builds on the points that are there", got.Kind, got.StoredBytes)
	}
	want[third.Machines[0].Point] = l.hashes(m.ID)
	l.noise(m, 0, 31*mib, mib, 5)
	fourth := l.backup("nightly")
	if fourth.Machines[0].Kind != "incremental" {
		t.Errorf("the one after it: %+v, want an incremental", fourth.Machines[0])
	}
	want[fourth.Machines[0].Point] = l.hashes(m.ID)
	l.provider("repository", "verify", "backups", "--tenant", "demo", "--wait")
	l.provider("repository", "collect", "backups", "--tenant", "demo", "--wait")
	l.wantPoints(m, want)
	l.provider("audit", "verify")
}

// A copy of the database that was made before the last backups has the same
// claim as the store: it must not collect what it does not know.
func TestRestoredDatabaseCollectsNothingThatItDoesNotKnow(t *testing.T) {
	l := newLab(t, stack.Options{})
	m := l.machine("web", 16*mib)
	l.noise(m, 0, 0, 4*mib, 1)
	l.do("job", "create", "nightly", "--endpoint", "lab", "--repository", "backups", "--all")
	first, then := l.backup("nightly"), l.hashes(m.ID)
	file := filepath.Join(l.ServerData(), "state.db")
	l.must(l.Server.Stop(20 * time.Second))
	yesterday, err := os.ReadFile(file)
	l.must(err)
	l.must(l.StartServer(t.Context()))
	l.noise(m, 0, 8*mib, 4*mib, 2)
	second, now := l.backup("nightly"), l.hashes(m.ID)
	used := l.clouds()[0].UsedBytes

	l.must(l.Server.Stop(20 * time.Second))
	l.must(os.WriteFile(file, yesterday, 0o600))
	for range 3 { // each start takes a newer claim
		l.must(l.StartServer(t.Context()))
		l.refused("older than the repository", "repository", "collect", "backups", "--tenant", "demo", "--wait")
		l.must(l.Server.Stop(20 * time.Second))
	}
	l.must(l.StartServer(t.Context()))
	l.provider("repository", "import", "--wait")
	if got := l.clouds()[0].UsedBytes; got != used {
		t.Errorf("%d bytes are charged after the import, %d before the loss", got, used)
	}
	l.provider("repository", "collect", "--wait")
	l.wantPoints(m, map[string][]string{first.Machines[0].Point: then, second.Machines[0].Point: now})
	if third := l.backup("nightly"); third.Machines[0].Kind != "incremental" {
		t.Errorf("backup after the recovery: %+v", third.Machines[0])
	}
}

// Without the master key nothing but the CA is lost.
func TestLostMasterKeyCostsTheEnrolmentsOnly(t *testing.T) {
	l := newLab(t, stack.Options{})
	m := l.machine("web", 16*mib)
	l.noise(m, 0, 0, 4*mib, 1)
	l.do("job", "create", "nightly", "--endpoint", "lab", "--repository", "backups", "--all")
	first, then := l.backup("nightly"), l.hashes(m.ID)
	l.must(l.Server.Stop(20 * time.Second))
	l.must(os.Remove(filepath.Join(l.ServerData(), "master.key")))
	l.server("is missing")
	l.server("is missing", "-check")
	l.server("is not new", "--new-database")
	if _, err := os.Stat(filepath.Join(l.ServerData(), "master.key")); err == nil {
		t.Error("the server that did not start made a master key")
	}
	l.startServerOnce("--new-authority")
	l.server("nothing to replace", "--new-authority")
	l.must(l.StartServer(t.Context()))
	if _, err := l.Run(t.Context(), "job", "run", "nightly", "--wait"); err == nil {
		t.Error("an agent of the old CA backed up")
	}

	// The site keeps its keys and endpoints; its jobs are made again.
	l.do("job", "delete", "nightly")
	var status struct {
		Providers []struct{ Name string }
	}
	l.must(l.JSON(t.Context(), &status, "agent", "status"))
	for _, c := range status.Providers {
		l.do("agent", "disconnect", c.Name)
	}
	l.enrol("demo")
	l.do("job", "create", "nightly", "--endpoint", "lab", "--repository", "backups", "--all")
	l.wantPoints(m, map[string][]string{first.Machines[0].Point: then})
	if second := l.backup("nightly"); second.Machines[0].Kind != "incremental" {
		t.Errorf("backup after the new enrolment: %+v", second.Machines[0])
	}
}

// What a deleted tenant leaves goes to another one when it is said whose it was,
// with its catalogue.
func TestKeptBackupsOfADeletedTenantAreTakenOver(t *testing.T) {
	l := newLab(t, stack.Options{})
	m := l.machine("web", 16*mib)
	l.noise(m, 0, 0, 4*mib, 1)
	l.do("job", "create", "nightly", "--endpoint", "lab", "--repository", "backups", "--all")
	first, then := l.backup("nightly"), l.hashes(m.ID)
	kept := l.clouds()[0]
	l.provider("tenant", "delete", "demo", "--confirm", "demo", "--backups", "keep")
	unknown := l.clouds("--unknown", "--repository", "demo-store")
	if len(unknown) != 1 || unknown[0].ID != kept.ID || !unknown[0].Kept || unknown[0].TenantName != "demo" || unknown[0].Points != 1 {
		t.Fatalf("what lies in the repository: %+v", unknown)
	}
	l.provider("tenant", "create", "Acme")
	create := []string{"cloud-repository", "create", "taken-over", "--tenant", "Acme", "--repository", "demo-store", "--quota", "1GiB", "--id", kept.ID}
	l.refused(`those of tenant "demo", not of "Acme"`, create...)
	l.provider(append(create, "--former-tenant", "demo")...)
	if got := l.clouds(); len(got) != 1 || got[0].UsedBytes != kept.UsedBytes {
		t.Errorf("taken over: %+v, want %d bytes used", got, kept.UsedBytes)
	}
	l.newAgent("Acme")
	l.wantPoints(m, map[string][]string{first.Machines[0].Point: then})
	l.do("job", "create", "nightly", "--endpoint", "lab", "--repository", "taken-over", "--all")
	l.backup("nightly")
	l.provider("repository", "import", "--wait") // changes nothing
	l.provider("repository", "verify", "--wait")
}
