package repository_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/holdfast-dr/holdfast/core/audit"
	"github.com/holdfast-dr/holdfast/core/blob"
	"github.com/holdfast-dr/holdfast/core/blob/blobtest"
	"github.com/holdfast-dr/holdfast/core/blob/dir"
	"github.com/holdfast-dr/holdfast/core/claim"
	"github.com/holdfast-dr/holdfast/core/point"
	"github.com/holdfast-dr/holdfast/core/quota"
	"github.com/holdfast-dr/holdfast/core/repository"
	"github.com/holdfast-dr/holdfast/core/state"
	"github.com/holdfast-dr/holdfast/core/tenant"
)

// A child process writes, forgets and collects without end, until the moment at
// which it has to die; the test opens what is left, and looks.
const (
	crashDir        = "HOLDFAST_TEST_CRASH_DIR"
	crashRepository = "HOLDFAST_TEST_CRASH_REPOSITORY"
	crashSeed       = "HOLDFAST_TEST_CRASH_SEED"
	crashAt         = "HOLDFAST_TEST_CRASH_AT"
)

// crashMachine is the one machine of the child.
const crashMachine point.MachineID = "0190a000-0000-7000-8000-0000000000cc"

// provider is what a server has: a database, a store, an index, a spool.
type provider struct {
	*site
	db    *state.DB
	store *dir.Store
}

// openProvider opens it; end, unless nil, hears of what the repository does.
func openProvider(ctx context.Context, t *testing.T, root, id string, end *countdown) *provider {
	t.Helper()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	db, err := state.Open(ctx, "sqlite:"+filepath.Join(root, "state.db"))
	must(err)
	if id == "" {
		owner, err := db.Tenants().Create(ctx, tenant.Tenant{Name: "acme", Enabled: true})
		must(err)
		location, err := db.Locations().Create(ctx, blob.Location{Name: "store", Kind: blob.LocationDir, Path: filepath.Join(root, "store")})
		must(err)
		r, err := db.Quotas().Create(ctx, quota.CloudRepository{TenantID: owner.ID, Name: "repo", LocationID: location.ID, LimitBytes: 1 << 40, ChunkSize: testChunk})
		must(err)
		id = string(r.ID)
	}
	store, err := dir.Open(filepath.Join(root, "store"), dir.Options{})
	must(err)
	holder := claim.Holder{Node: "node", Instance: uuid.NewString()}
	_, err = db.Claims().Expel(ctx, holder)
	must(err)
	held, err := db.Claims().Acquire(ctx, state.RepositoryResource(id), holder, time.Hour)
	must(err)
	s := &site{t: t, id: id, root: root, blobs: blobtest.NewFaulty(mortalStore{store, end}), clock: blobtest.NewClock(time.Now()), keys: goldenKeyring(t)}
	s.openIndex()
	s.repo, err = repository.Open(ctx, repository.Config{
		ID: id, Blobs: s.blobs, Index: s.index, Catalogue: mortalCatalogue{db.Catalogue(), end}, SpoolDir: filepath.Join(root, "spool"), Epoch: uint64(held.Epoch),
		ChunkSize: testChunk, FanOut: testFanOut, PackBytes: 32 << 10, LongestRead: time.Nanosecond, Log: slog.New(slog.DiscardHandler),
	})
	must(err)
	return &provider{s, db, store}
}

func (p *provider) end() {
	p.t.Helper()
	p.close()
	if err := errors.Join(p.store.Close(), p.db.Close()); err != nil {
		p.t.Error(err)
	}
}

// crashDisk is the machine's disk at a step; each differs in a few chunks from
// the one before.
func crashDisk(step uint64) disk {
	d := randomDisk(rand.New(rand.NewPCG(step/8, 1)), 40*testChunk+99)
	for i := step / 8 * 8; i < step; i++ {
		d = d.changed(rand.New(rand.NewPCG(i, 2)), 6)
	}
	return d
}

// TestCrashChild is the process that is killed.
func TestCrashChild(t *testing.T) {
	root := os.Getenv(crashDir)
	if root == "" {
		t.Skip("is started by TestKillAtAnyMoment")
	}
	ctx := audit.With(t.Context(), audit.System("test", "crash"))
	at, err := parseMoment(os.Getenv(crashAt))
	if err != nil {
		t.Fatal(err)
	}
	var seed uint64
	if _, err := fmt.Sscan(os.Getenv(crashSeed), &seed); err != nil {
		t.Fatal(err)
	}
	end := &countdown{left: at, die: killSelf}
	p := openProvider(ctx, t, root, os.Getenv(crashRepository), end)
	child := &crashing{provider: p, end: end, random: rand.New(rand.NewPCG(seed, 3)), say: func(format string, args ...any) {
		if _, err := fmt.Fprintf(os.Stdout, "\n"+format+"\n", args...); err != nil {
			t.Fatal(err)
		}
	}}
	points, err := p.repo.Points(ctx, "", "", 0)
	if err != nil {
		t.Fatal(err)
	}
	if len(points) > 0 {
		child.base = points[len(points)-1].ID
	}
	child.say("ready")
	end.begin()
	for step := child.random.Uint64N(1000); ; step++ {
		if err := child.step(ctx, step); err != nil {
			t.Fatal(err)
		}
	}
}

// crashing is the work of the child.
type crashing struct {
	*provider
	end    *countdown
	random *rand.Rand
	say    func(format string, args ...any)
	base   point.ID
}

func (c *crashing) step(ctx context.Context, step uint64) error {
	b, err := c.begin(ctx, crashMachine, c.base)
	if err != nil {
		return err
	}
	manifest, err := b.send(ctx, crashDisk(step))
	if err != nil {
		return err
	}
	c.say("trying %s %d", b.point, step)
	err = b.session.Commit(ctx, manifest)
	var missing *point.MissingError
	if errors.As(err, &missing) {
		return fmt.Errorf("missing without a collection in between: %w", err)
	}
	if err != nil {
		return err
	}
	c.say("committed %s", b.point)
	c.end.committed()
	c.base = b.point
	if step%3 == 0 {
		return c.tidy(ctx)
	}
	return nil
}

// tidy forgets a point, if there are many, and collects.
func (c *crashing) tidy(ctx context.Context) error {
	points, err := c.repo.Points(ctx, "", "", 0)
	if err != nil {
		return err
	}
	if len(points) > 3 {
		id := points[c.random.IntN(len(points)-1)].ID
		c.say("forgetting %s", id)
		if err := c.repo.Forget(ctx, id); err != nil {
			return err
		}
		c.say("forgot %s", id)
	}
	_, err = c.repo.Collect(ctx, repository.CollectOptions{Threshold: 0.2})
	return err
}

// history is what the child said, over all of its lives.
type history struct {
	steps      map[point.ID]uint64 // of every point that it tried to commit
	committed  map[point.ID]bool
	forgetting map[point.ID]bool
	forgot     map[point.ID]bool
	ready      bool
}

func (h *history) note(line string) {
	fields := strings.Fields(line)
	switch {
	case len(fields) == 3 && fields[0] == "trying":
		var step uint64
		if _, err := fmt.Sscan(fields[2], &step); err == nil {
			h.steps[point.ID(fields[1])] = step
		}
	case len(fields) == 2 && fields[0] == "committed":
		h.committed[point.ID(fields[1])] = true
	case len(fields) == 2 && fields[0] == "forgetting":
		h.forgetting[point.ID(fields[1])] = true
	case len(fields) == 2 && fields[0] == "forgot":
		h.forgot[point.ID(fields[1])] = true
	case line == "ready":
		h.ready = true
	}
}

func TestKillAtAnyMoment(t *testing.T) {
	t.Parallel()
	rounds := 12
	if testing.Short() {
		rounds = 3
	}
	random := seeded(t)
	root := t.TempDir()
	ctx := testContext(t)
	p := openProvider(ctx, t, root, "", nil)
	id := p.id
	p.end()
	h := &history{steps: map[point.ID]uint64{}, committed: map[point.ID]bool{}, forgetting: map[point.ID]bool{}, forgot: map[point.ID]bool{}}
	for round := range rounds {
		at := crashMoment(random)
		if round == 0 {
			at.Commits = max(at.Commits, 1) // so that there is something to lose
		}
		before := len(h.committed)
		runChild(ctx, t, root, id, at, random.Uint64(), h)
		if n := len(h.committed) - before; n < at.Commits {
			t.Errorf("the child died after %d commits, its moment was: %s", n, at)
		}
		checkAfterKill(ctx, t, root, id, h)
		if t.Failed() {
			t.Fatalf("life %d, which ended after %s", round, at)
		}
	}
	t.Logf("%d points committed, %d forgotten in %d lives", len(h.committed), len(h.forgot), rounds)
}

// runChild runs the child until its moment.
func runChild(ctx context.Context, t *testing.T, root, id string, at moment, seed uint64, h *history) {
	t.Helper()
	child := exec.CommandContext(ctx, os.Args[0], "-test.run", "^TestCrashChild$", "-test.v")
	child.Env = append(os.Environ(), crashDir+"="+root, crashRepository+"="+id, crashAt+"="+at.String(), fmt.Sprintf("%s=%d", crashSeed, seed))
	out, err := child.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	child.Stderr = child.Stdout
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	h.ready = false
	var text strings.Builder
	lines := bufio.NewScanner(io.TeeReader(out, &text))
	for lines.Scan() {
		h.note(lines.Text())
	}
	_ = child.Wait()
	if !h.ready || child.ProcessState.Exited() || ctx.Err() != nil { // it has to be killed at its moment, not to end
		t.Fatalf("the child ended otherwise, %v, its moment was %s:\n%s", child.ProcessState, at, text.String())
	}
}

func checkAfterKill(ctx context.Context, t *testing.T, root, id string, h *history) {
	t.Helper()
	p := openProvider(ctx, t, root, id, nil)
	defer p.end()
	points, err := p.repo.Points(ctx, "", "", 0)
	if err != nil {
		t.Fatal(err)
	}
	found := map[point.ID]bool{}
	for _, record := range points {
		found[record.ID] = true
		step, tried := h.steps[record.ID]
		if !tried || h.forgot[record.ID] {
			t.Errorf("point %s should not be there", record.ID)
			continue
		}
		p.wantRestore(record.ID, crashDisk(step))
	}
	for pointID := range h.committed {
		if !found[pointID] && !h.forgetting[pointID] {
			t.Errorf("point %s was committed and is lost", pointID)
		}
	}
	report, err := p.repo.Verify(ctx, repository.VerifyOptions{})
	if err != nil || !report.Sound() {
		t.Errorf("verify: %+v, %v", report, err)
	}
	u, err := p.repo.Usage(ctx, repository.UsageOptions{})
	if err != nil {
		t.Fatal(err)
	}
	all, err := p.db.Quotas().Get(ctx, quota.AnyTenant, quota.ID(id))
	if err != nil || all.UsedBytes != u.LiveBytes {
		t.Errorf("charged are %d bytes, live points take %d, %v", all.UsedBytes, u.LiveBytes, err)
	}
	for _, session := range p.repo.Sessions() { // a session that was cut can go on, or be given up
		s, err := p.repo.Resume(ctx, session)
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Abort(ctx); err != nil {
			t.Errorf("abort session: %v", err)
		}
	}
}
