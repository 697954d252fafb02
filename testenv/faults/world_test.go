package faults

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/sdk"
	"github.com/holdfast-dr/holdfast/sdk/sim"
	"github.com/holdfast-dr/holdfast/testenv/stack"
)

const (
	mib = 1 << 20
	// patience bounds every wait. It is generous: the machine may be busy.
	patience = 3 * time.Minute
	// pollEvery is how often a run is looked at.
	pollEvery = 15 * time.Millisecond
)

// run is a run of the agent, as its API answers.
type run struct {
	ID       string
	Kind     string
	State    string
	Attempts int
	Progress struct {
		Phase     string
		SentBytes int64 `json:"sent_bytes"`
		DoneBytes int64 `json:"done_bytes"`
	}
	Machines []result
	Restored struct {
		MachineID string `json:"machine_id"`
	}
	Verified struct {
		Damaged json.RawMessage
	}
	Warnings []string
	Failure  *struct{ Message, Hint, Side string }
}

func (r run) open() bool { return r.State == "waiting" || r.State == "running" }
func (r run) good() bool { return r.State == "succeeded" || r.State == "warned" }

// result is what became of one machine in a run.
type result struct {
	Machine     string
	State       string
	Point       string
	Kind        string
	StoredBytes int64 `json:"stored_bytes"`
	Warnings    []string
	Failure     *struct{ Message, Hint, Side string }
}

// serverRun is a run of the provider.
type serverRun struct {
	ID      string
	State   string
	Result  json.RawMessage
	Failure *struct{ Message, Hint, Side string }
}

// machine is one that is backed up, by a job of its own.
type machine struct {
	sdk.Machine
	hashes []string // of its disks, now
}

// content is what a point has to give back.
type content struct {
	machine string
	disks   []sdk.Disk
	hashes  []string
}

// world is a provider, a site, and the model of what has to be restorable.
type world struct {
	*stack.Stack
	t        *testing.T
	dir      string
	hv       *sim.Hypervisor
	machines []*machine
	points   map[string]content
	tenant   string // ids of the demo tenant and its cloud repository
	cloud    string
	usual    map[string]usual // by operation; that of large backups is under "large"
	log      []string         // what the round did, told if it fails
	hits     map[string]int   // kills that met an operation, by operation and victim
	misses   int              // and those that came after its end
}

// newWorld is a provider and a site with a simulated hypervisor, and has backed
// each machine up once.
func newWorld(t *testing.T, o stack.Options, specs ...sim.MachineSpec) *world {
	t.Helper()
	w := newProvider(t, o)
	var err error
	w.hv, err = sim.Open(filepath.Join(w.dir, "hypervisor"))
	w.must(err)
	w.do("plugin", "enable", "sim")
	w.do("endpoint", "add", "lab", "--plugin", "sim", "--set", "dir="+filepath.Join(w.dir, "hypervisor"), "--set", "quiesce=application")
	for i, spec := range specs {
		w.addMachine(spec, byte(i))
	}
	return w
}

// newProvider is a provider and a site that has no hypervisor yet.
func newProvider(t *testing.T, o stack.Options) *world {
	t.Helper()
	dir, err := os.MkdirTemp("", "hf-world-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	if o.Dir == "" {
		o.Dir = filepath.Join(dir, "s")
	}
	o.Bin = programs
	w := &world{t: t, dir: dir, points: map[string]content{}, usual: map[string]usual{}, hits: map[string]int{}}
	w.Stack, err = stack.New(o)
	w.must(err)
	t.Cleanup(func() {
		if err := w.Close(); err != nil {
			t.Error(err)
		}
		if t.Failed() {
			for _, p := range []*stack.Process{w.Server, w.Agent} {
				if p != nil {
					t.Logf("%s printed:\n%s", p.Name, p.Output())
				}
			}
		}
	})
	ctx := t.Context()
	w.must(w.StartServer(ctx))
	w.must(w.StartAgent(ctx))
	w.must(w.Connect(ctx, filepath.Join(dir, "kit.txt")))
	var clouds struct {
		Items []struct{ ID, Tenant string }
	}
	w.must(w.server("GET", "/v1/cloud-repositories", nil, &clouds))
	if len(clouds.Items) != 1 {
		t.Fatalf("cloud repositories: %+v", clouds)
	}
	w.tenant, w.cloud = clouds.Items[0].Tenant, clouds.Items[0].ID
	return w
}

// addMachine makes a machine and its job, and backs it up.
func (w *world) addMachine(spec sim.MachineSpec, seed byte) {
	w.t.Helper()
	spec.State = sdk.StateRunning
	made, err := w.hv.CreateMachine(spec)
	w.must(err)
	m := &machine{Machine: made}
	w.machines = append(w.machines, m)
	r := rand.New(rand.NewChaCha8([32]byte{seed}))
	for i, d := range m.Disks {
		w.write(m, i, d.SizeBytes/4, d.SizeBytes/2, r)
	}
	w.do("job", "create", m.Name, "--endpoint", "lab", "--repository", "backups", "--machine", m.Name)
	w.backup(m)
}

func (w *world) must(err error) {
	w.t.Helper()
	if err != nil {
		w.fatalf("%v", err)
	}
}

// fatalf ends the test and says what the round did before.
func (w *world) fatalf(format string, args ...any) {
	w.t.Helper()
	w.t.Fatalf("%s\n%s", fmt.Sprintf(format, args...), strings.Join(w.log, "\n"))
}

// errorf is a finding of the round, told with what the round did before.
func (w *world) errorf(format string, args ...any) {
	w.t.Helper()
	w.t.Errorf("%s\n%s", fmt.Sprintf(format, args...), strings.Join(w.log, "\n"))
}

func (w *world) note(format string, args ...any) {
	w.log = append(w.log, fmt.Sprintf("\t%s "+format, append([]any{time.Now().Format("05.000")}, args...)...))
}

func (w *world) do(args ...string) {
	w.t.Helper()
	_, err := w.Run(w.t.Context(), args...)
	w.must(err)
}

// agent calls the agent's API.
func (w *world) agent(method, path string, body, into any) error {
	return w.AgentAPI().Do(w.t.Context(), method, path, body, into)
}

// server calls the provider's API.
func (w *world) server(method, path string, body, into any) error {
	api, err := w.ServerAPI()
	if err != nil {
		return err
	}
	return api.Do(w.t.Context(), method, path, body, into)
}

// write fills a range of a disk with noise of which half compresses.
func (w *world) write(m *machine, disk int, off, n int64, r *rand.Rand) {
	w.t.Helper()
	buf := make([]byte, n)
	for i := 0; i < len(buf); i += 64 {
		x := r.Uint64()
		for j := i; j < min(i+64, len(buf)); j++ {
			buf[j] = byte(x >> (j % 8 * 8))
			if j%8 == 7 && i/64%2 == 0 {
				x = r.Uint64()
			}
		}
	}
	w.must(w.hv.WriteDisk(m.ID, m.Disks[disk].ID, off, buf))
	w.rehash(m)
}

func (w *world) rehash(m *machine) {
	w.t.Helper()
	m.hashes = w.hashesOf(m.Machine)
}

func (w *world) hashesOf(m sdk.Machine) []string {
	w.t.Helper()
	var all []string
	for _, d := range m.Disks {
		sum, err := w.hv.HashDisk(m.ID, d.ID)
		w.must(err)
		all = append(all, hex.EncodeToString(sum[:]))
	}
	return all
}

// start begins a run at the agent.
func (w *world) start(path string, body any) (run, error) {
	var r run
	err := w.agent("POST", path, body, &r)
	return r, err
}

// wait waits for the end of a run. The agent may be down for a while.
func (w *world) wait(id string) run {
	w.t.Helper()
	var r run
	w.until("run "+id+" to end", func() (bool, error) {
		err := w.agent("GET", "/v1/site/runs/"+id, nil, &r)
		return err == nil && !r.open(), err
	})
	return r
}

func (w *world) until(what string, condition func() (bool, error)) {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(w.t.Context(), patience)
	defer cancel()
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	var last error
	for {
		ok, err := condition()
		if ok {
			return
		}
		last = errors.Join(err)
		select {
		case <-ctx.Done():
			w.fatalf("%s did not happen within %s: %v", what, patience, last)
		case <-tick.C:
		}
	}
}

// serverRun starts a run at the provider and waits for its end.
func (w *world) serverRun(verb string, into any) serverRun {
	w.t.Helper()
	var r serverRun
	w.must(w.server("POST", w.cloudPath()+"/"+verb, nil, &r))
	return w.waitServer(r.ID, into)
}

func (w *world) cloudPath() string {
	return "/v1/tenants/" + w.tenant + "/cloud-repositories/" + w.cloud
}

func (w *world) waitServer(id string, into any) serverRun {
	w.t.Helper()
	var r serverRun
	w.until("the provider's run "+id+" to end", func() (bool, error) {
		err := w.server("GET", "/v1/runs/"+id, nil, &r)
		return err == nil && r.State != "waiting" && r.State != "running", err
	})
	if into != nil && r.Result != nil {
		w.must(json.Unmarshal(r.Result, into))
	}
	return r
}

// backup makes a point of a machine, undisturbed, and enters it into the model.
func (w *world) backup(m *machine) run {
	w.t.Helper()
	var r run
	w.until("a backup of "+m.Name+" to start", func() (bool, error) { // the interrupted one may still be active
		var err error
		r, err = w.start("/v1/site/jobs/"+m.Name+"/runs", nil)
		if status := (*stack.StatusError)(nil); err != nil && !errors.As(err, &status) {
			w.fatalf("start backup: %v", err)
		}
		return err == nil, err
	})
	r = w.wait(r.ID)
	w.note("backup of %s ended as %s", m.Name, describe(r))
	if !r.good() || len(r.Machines) != 1 || r.Machines[0].Point == "" {
		w.fatalf("a backup that nothing disturbed: %s", describe(r))
	}
	w.enter(m, r)
	return r
}

// enter adds the point of a run to the model.
func (w *world) enter(m *machine, r run) {
	for _, one := range r.Machines {
		if one.Point != "" && one.Failure == nil {
			w.points[one.Point] = content{machine: m.Name, disks: m.Disks, hashes: slices.Clone(m.hashes)}
		}
	}
}

// describe is a run in one line.
func describe(r run) string {
	text := fmt.Sprintf("%s %s after %d attempts", r.Kind, r.State, r.Attempts)
	if r.Failure != nil {
		text += ": " + r.Failure.Message
	}
	for _, m := range r.Machines {
		text += fmt.Sprintf("; %s %s point %q %s stored %d", m.Machine, m.State, m.Point, m.Kind, m.StoredBytes)
		for _, warning := range m.Warnings {
			text += "; warns: " + warning
		}
		if m.Failure != nil {
			text += "; " + m.Failure.Message
		}
	}
	return text
}

// restoreDisk restores a disk of a point to a file and returns its hash.
func (w *world) restoreDisk(point string, disk sdk.DiskID) string {
	w.t.Helper()
	path := filepath.Join(w.dir, "restored.raw")
	r, err := w.start("/v1/site/restores/disk", map[string]any{"point": point, "disk": string(disk), "file": path, "format": "raw", "overwrite": true})
	w.must(err)
	if r = w.wait(r.ID); r.State != "succeeded" {
		w.fatalf("restore of %s, disk %s: %s", point, disk, describe(r))
	}
	sum := w.hashFile(path)
	w.must(os.Remove(path))
	return sum
}

func (w *world) hashFile(path string) string {
	w.t.Helper()
	f, err := os.Open(path)
	w.must(err)
	defer f.Close()
	h := sha256.New()
	_, err = io.Copy(h, f)
	w.must(err)
	return hex.EncodeToString(h.Sum(nil))
}

// forget gives a point up, undisturbed.
func (w *world) forget(point string) {
	w.t.Helper()
	w.must(w.agent(http.MethodDelete, "/v1/site/points/"+point, nil, nil))
	delete(w.points, point)
}

// pointsOf are the points of a machine in the model, oldest first: their ids
// are times.
func (w *world) pointsOf(name string) []string {
	var ids []string
	for id, c := range w.points {
		if c.machine == name {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	return ids
}

// allPoints are the points of the model, sorted.
func (w *world) allPoints() []string {
	var ids []string
	for id := range w.points {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	return ids
}
