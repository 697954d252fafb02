package state

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"

	"github.com/holdfast-dr/holdfast/core/blob"
	"github.com/holdfast-dr/holdfast/core/quota"
	"github.com/holdfast-dr/holdfast/testenv/postgres"
)

// TestLinearizability lets 50 writers at quotas and claims at once, in server
// processes that are killed in the middle, whose connections are ended by the
// database, and whose contexts end. What they asked and were told is checked
// against what one writer after the other could have seen: of a call without an
// answer it is only known that it took effect once or not at all, and not after
// its process and its transaction had ended.
//
// A search over everything at once would be too wide. So the writers stop after
// every few calls, the whole state is read and is a part of the history, and
// each window is a history of its own that begins with the state of the last
// one; and the writers share out five cloud repositories, ten to each.
//
// HOLDFAST_TEST_SEED repeats the calls and the mishaps, though not which of them
// come first. FAULTS=N asks for N windows of each.
func TestLinearizability(t *testing.T) {
	server := postgres.Start(t)
	engines := map[string]func(t *testing.T) string{
		engineSQLite:   func(t *testing.T) string { return "sqlite:" + filepath.Join(t.TempDir(), "state.db") },
		enginePostgres: func(t *testing.T) string { return server.Database(t) },
	}
	windows := linearWindows
	if text := os.Getenv("FAULTS"); text != "" {
		if _, err := fmt.Sscan(text, &windows); err != nil {
			t.Fatalf("read FAULTS %q: %v", text, err)
		}
	}
	for engine, url := range engines {
		for _, kind := range []string{"quota", "claim"} {
			t.Run(engine+"/"+kind, func(t *testing.T) {
				l := newLinear(t, engine, url(t), linearServer{Kind: kind, Cut: true})
				for n := range windows {
					if key, bad := l.window(n, n%2 == 1); bad {
						t.Fatalf("window %d: no order of these calls gives these answers:\n%s", n, l.describe(key))
					}
				}
				if l.answered < windows*linearWriters || l.unanswered < windows || l.refused < windows {
					t.Errorf("%d calls were answered, %d of them refused, and %d were not: too few of a kind to prove anything", l.answered, l.refused, l.unanswered)
				}
				t.Logf("%d calls were answered, %d of them refused; %d were not, in %d kills", l.answered, l.refused, l.unanswered, l.kills)
			})
		}
		for _, job := range []linearServer{{Kind: "quota", Mutant: mutantReserve}, {Kind: "claim", Mutant: mutantAcquire}, {Kind: "claim", Mutant: mutantWrite}} {
			t.Run(engine+"/"+strings.ReplaceAll(job.Mutant, " ", "_"), func(t *testing.T) {
				l := newLinear(t, engine, url(t), job)
				for n := range mutantWindows {
					if _, bad := l.window(n, false); bad {
						t.Logf("caught in window %d", n)
						return
					}
				}
				t.Error("it passes for a store that does it right")
			})
		}
	}
}

const (
	linearWriters = 50
	linearKeys    = 5
	linearCalls   = 3 // of each writer in a window
	linearWindows = 12
	mutantWindows = 40 // in which a store that does it wrong has to be caught
	linearCheck   = time.Minute
	linearWait    = 2 * time.Minute // for what takes moments
	linearRoom    = 400             // bytes that are free in a window at most: a third of what is wanted
)

// linear is one run: the database, its servers, and what they did.
type linear struct {
	t       *testing.T
	engine  string
	job     linearServer
	sql     *sql.DB // the test's own way in
	random  *rand.Rand
	servers []*linearProcess
	lives   int

	mu     sync.Mutex // guards what follows, which the servers' readers add to
	events []linearEvent
	mishap mishap

	broken bool // the database has ended connections, which their owners may learn late

	ops [linearKeys][]porcupine.Operation // of the last window

	answered, refused, unanswered, kills int
}

func newLinear(t *testing.T, engine, url string, job linearServer) *linear {
	t.Helper()
	seed := rand.Uint64()
	if text := os.Getenv("HOLDFAST_TEST_SEED"); text != "" {
		if _, err := fmt.Sscan(text, &seed); err != nil {
			t.Fatalf("read the seed %q: %v", text, err)
		}
	}
	t.Logf("HOLDFAST_TEST_SEED=%d repeats the calls, though not their order", seed)
	job.URL, job.Seed, job.Calls = url, seed, linearCalls
	l := &linear{t: t, engine: engine, random: rand.New(rand.NewPCG(seed, 0))}
	db, err := Open(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	location := must[blob.Location](t)(db.Locations().Create(asAdmin(t), blob.Location{Name: "store", Kind: blob.LocationDir, Path: t.TempDir()}))
	for i := range linearKeys {
		owner := newTenant(t, db, fmt.Sprint("tenant", i))
		r := must[quota.CloudRepository](t)(db.Quotas().Create(asAdmin(t),
			quota.CloudRepository{TenantID: owner.ID, Name: "repo", LocationID: location.ID, LimitBytes: linearRoom}))
		job.Keys = append(job.Keys, linearKey{owner.ID, r.ID})
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	driver, source := "pgx", url
	servers := 5 // share one PostgreSQL
	if engine == engineSQLite {
		driver, source = "sqlite", sqliteDSN(strings.TrimPrefix(url, "sqlite:"), "immediate", false)
		servers = 1
	}
	if l.sql, err = sql.Open(driver, source); err != nil {
		t.Fatal(err)
	}
	l.job = job
	l.servers = make([]*linearProcess, servers)
	t.Cleanup(func() {
		for _, p := range l.servers {
			if p != nil {
				p.stop()
			}
		}
		if err := l.sql.Close(); err != nil {
			t.Error(err)
		}
	})
	return l
}

// linearProcess is a server that runs.
type linearProcess struct {
	cmd   *exec.Cmd
	stdin io.WriteCloser
	out   bytes.Buffer
	idle  chan struct{} // gets one for each window that it ended
	dead  chan struct{} // closed when it ended
}

// start begins a life of a server, with its share of the writers.
func (l *linear) start(i int) *linearProcess {
	l.t.Helper()
	job := l.job
	job.Life = l.lives
	l.lives++
	for w := i * linearWriters / len(l.servers); w < (i+1)*linearWriters/len(l.servers); w++ {
		job.Writers = append(job.Writers, w) // some of every key
	}
	text, err := json.Marshal(job)
	if err != nil {
		l.t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		l.t.Fatal(err)
	}
	events, child, err := os.Pipe()
	if err != nil {
		l.t.Fatal(err)
	}
	p := &linearProcess{cmd: exec.Command(self, "-test.run=^TestLinearServer$"), idle: make(chan struct{}, 1), dead: make(chan struct{})}
	p.cmd.Env = append(os.Environ(), linearJob+"="+string(text))
	p.cmd.ExtraFiles = []*os.File{child}
	p.cmd.Stdout, p.cmd.Stderr = &p.out, &p.out
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if p.stdin, err = p.cmd.StdinPipe(); err != nil {
		l.t.Fatal(err)
	}
	err = p.cmd.Start()
	if closeErr := child.Close(); err != nil || closeErr != nil {
		l.t.Fatal(errors.Join(err, closeErr, events.Close()))
	}
	go func() {
		defer close(p.dead)
		l.read(p, events)
		_ = events.Close()
		_ = p.cmd.Wait() // its end is judged by what it did not do
	}()
	return p
}

// read gathers what a server tells, until it ends.
func (l *linear) read(p *linearProcess, events io.Reader) {
	lines := bufio.NewReader(events)
	for {
		line, err := lines.ReadBytes('\n')
		if err != nil { // what follows the last line was cut with the process
			return
		}
		var e linearEvent
		if err := json.Unmarshal(line, &e); err != nil {
			l.t.Errorf("a server says %q: %v", line, err)
			return
		}
		if e.Idle {
			p.idle <- struct{}{}
			continue
		}
		l.heard(p, e)
	}
}

// mishap strikes after so many events of a server.
type mishap struct {
	server *linearProcess // nil: none, or not any more
	after  int
	kill   bool // it; else the database ends some connections, whose they may be
	struck bool
	victim *linearProcess // whom it struck
}

func (l *linear) heard(p *linearProcess, e linearEvent) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.events = append(l.events, e)
	if l.mishap.server != p {
		return
	}
	if l.mishap.after--; l.mishap.after > 0 {
		return
	}
	l.mishap.server, l.mishap.victim, l.mishap.struck = nil, p, true
	var err error
	if l.mishap.kill {
		err = p.cmd.Process.Kill()
	} else {
		l.broken = true
		_, err = l.sql.ExecContext(l.t.Context(), `SELECT pg_terminate_backend(pid) FROM pg_stat_activity
			WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend' ORDER BY random() LIMIT 5`)
	}
	if err != nil {
		l.t.Errorf("strike: %v", err)
	}
}

func (p *linearProcess) stop() {
	_ = p.stdin.Close() // it may be dead
	select {
	case <-p.dead:
	case <-time.After(linearWait):
		_ = p.cmd.Process.Kill()
		<-p.dead
	}
}

// window lets every writer make some calls, and checks them; bad tells that the
// answers of a key are impossible.
func (l *linear) window(n int, mishaps bool) (key int, bad bool) {
	l.t.Helper()
	before := l.look(true)
	for i, p := range l.servers {
		if p == nil {
			l.servers[i] = l.start(i)
		}
	}
	l.arm(mishaps)
	for _, p := range l.servers {
		if _, err := fmt.Fprintln(p.stdin, strconv.Itoa(n)); err != nil {
			l.t.Fatalf("tell a server to begin: %v\n%s", err, &p.out)
		}
	}
	for i, p := range l.servers {
		select {
		case <-p.idle:
		case <-p.dead:
			l.kills++
			l.servers[i] = nil
		case <-time.After(linearWait):
			l.t.Fatalf("a server did not end its window in %s", linearWait)
		}
	}
	l.bury()
	l.quiet()
	after := l.look(false)
	for key := range linearKeys {
		if !l.check(key, before[key], after[key]) {
			return key, true
		}
	}
	return 0, false
}

func (l *linear) arm(mishaps bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.events, l.mishap = nil, mishap{}
	if mishaps {
		share := 2 * linearCalls * linearWriters / len(l.servers) // events of a server in a window
		l.mishap = mishap{server: l.servers[l.random.IntN(len(l.servers))], after: 1 + l.random.IntN(share-1),
			kill: l.engine == engineSQLite || l.random.IntN(2) == 0}
	}
}

// bury waits for the end of a server that was killed after it had told that it
// was idle. One that ended by itself is a fault.
func (l *linear) bury() {
	l.t.Helper()
	l.mu.Lock()
	killed := l.mishap.struck && l.mishap.kill
	l.mu.Unlock()
	for i, p := range l.servers {
		switch {
		case p == nil && !killed:
			l.t.Fatal("a server ended that nobody killed")
		case p != nil && p == l.mishap.victim && killed:
			<-p.dead
			l.kills++
			l.servers[i] = nil
		}
	}
}

// quiet waits until the database has ended what servers began that are gone.
func (l *linear) quiet() {
	l.t.Helper()
	if l.engine == engineSQLite {
		return // it was a part of the server
	}
	eventually(l.t, "no transaction is open", func() bool {
		var open int
		err := l.sql.QueryRowContext(l.t.Context(), `SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()
			AND pid <> pg_backend_pid() AND backend_type = 'client backend' AND state IS DISTINCT FROM 'idle'`).Scan(&open)
		if err != nil {
			l.t.Fatal(err)
		}
		return open == 0
	})
}

// linearState is all that there is of a key, while nobody writes.
type linearState struct {
	limit    int64
	used     int64
	reserved map[string]int64
	claim    claimBooks
}

// look reads the whole state of every key. refill makes some room in the
// quotas, as a provider does.
func (l *linear) look(refill bool) (all [linearKeys]linearState) {
	l.t.Helper()
	for i, key := range l.job.Keys {
		if refill {
			_, err := l.sql.ExecContext(l.t.Context(), "UPDATE cloud_repositories SET limit_bytes = used_bytes + pending_bytes + $1 WHERE id = $2",
				l.random.Int64N(linearRoom), string(key.ID))
			if err != nil {
				l.t.Fatal(err)
			}
		}
		s, err := l.state(l.t.Context(), key)
		if err != nil {
			l.t.Fatal(err)
		}
		all[i] = s
	}
	return all
}

func (l *linear) state(ctx context.Context, key linearKey) (s linearState, err error) {
	var pending, until int64
	err = l.sql.QueryRowContext(ctx, "SELECT limit_bytes, used_bytes, pending_bytes FROM cloud_repositories WHERE id = $1", string(key.ID)).Scan(&s.limit, &s.used, &pending)
	if err != nil {
		return s, err
	}
	s.reserved = map[string]int64{}
	rows, err := l.sql.QueryContext(ctx, "SELECT session, bytes FROM reservations WHERE repository_id = $1", string(key.ID))
	if err != nil {
		return s, err
	}
	defer rows.Close()
	for rows.Next() {
		var session string
		var bytes int64
		if err := rows.Scan(&session, &bytes); err != nil {
			return s, err
		}
		s.reserved[session] = bytes
		pending -= bytes
	}
	if err := rows.Err(); err != nil {
		return s, err
	}
	if pending != 0 {
		l.t.Errorf("%d bytes are pending that no session has reserved", pending)
	}
	var holder string
	err = l.sql.QueryRowContext(ctx, "SELECT holder, epoch, until FROM claims WHERE resource = $1", string(RepositoryResource(string(key.ID)))).Scan(&holder, &s.claim.epoch, &until)
	if errors.Is(err, sql.ErrNoRows) {
		err = nil
	}
	if until > 0 {
		s.claim.holder.Node, s.claim.holder.Instance, _ = strings.Cut(holder, "/")
	}
	s.claim.written = s.used
	return s, err
}

// books is the state as the quota's model has it.
func (s linearState) books(sessions map[string]int) quotaBooks {
	b := quotaBooks{used: s.used}
	for name, bytes := range s.reserved {
		if i, known := sessions[name]; known {
			b.held[i] = bytes
		} else {
			b.other += bytes
		}
	}
	return b
}

// check tells whether the calls of a key, with the states before and after them,
// are those of writers who came one after another.
func (l *linear) check(key int, before, after linearState) bool {
	l.t.Helper()
	l.mu.Lock()
	defer l.mu.Unlock()
	ops, calls := l.history(key)
	model, end := claimModel(before.claim), any(after.claim)
	if l.job.Kind == "quota" {
		sessions := sessionsOf(calls)
		if len(sessions) > maxLinearSessions {
			l.t.Fatalf("%d sessions in one window", len(sessions))
		}
		model, end = quotaModel(before.books(sessions), before.limit, sessions), after.books(sessions)
		for i, op := range ops {
			if op.Output == any(unknown{}) {
				held := after.reserved[op.Input.(linearCall).Session]
				ops[i].Output = unknown{left: &held}
			}
		}
	}
	now := monotonic()
	l.ops[key] = append(ops, porcupine.Operation{ClientId: linearWriters, Input: linearCall{Verb: whole}, Output: end, Call: now, Return: now + 1})
	result := porcupine.CheckOperationsTimeout(model, l.ops[key], linearCheck)
	if result == porcupine.Unknown {
		l.t.Fatalf("%d calls could not be checked in %s", len(ops), linearCheck)
	}
	return result == porcupine.Ok
}

// history makes operations of the events of a key; l.mu is held. A call without
// an answer may have taken effect until now: its process has ended, or has seen
// its end, and no transaction is open.
func (l *linear) history(key int) (ops []porcupine.Operation, calls []linearCall) {
	l.t.Helper()
	type name struct{ writer, number int }
	at := map[name]int{}
	now := monotonic()
	for _, e := range l.events { // those of one writer are in their order
		if e.Key != key {
			continue
		}
		id := name{e.Writer, e.Number}
		if e.Call != nil {
			at[id] = len(ops)
			ops = append(ops, porcupine.Operation{ClientId: e.Writer, Input: *e.Call, Call: e.At, Output: unknown{}, Return: now})
			calls = append(calls, *e.Call)
			l.unanswered++
			continue
		}
		if e.Answer == nil {
			if !e.Cut && !l.broken {
				l.t.Errorf("a call failed that nobody cut: %s", e.Error)
			}
			continue
		}
		op := &ops[at[id]]
		op.Output, op.Return = *e.Answer, e.At
		l.unanswered--
		l.answered++
		if e.Answer.Refused {
			l.refused++
		}
	}
	return ops, calls
}

// describe is the history of a key in the last window.
func (l *linear) describe(key int) string {
	ops := l.ops[key]
	slices.SortFunc(ops, func(a, b porcupine.Operation) int { return cmp.Compare(a.Call, b.Call) })
	var out strings.Builder
	for _, op := range ops {
		fmt.Fprintf(&out, "%9d to %9d us, writer %2d: %+v -> %+v\n", (op.Call-ops[0].Call)/1000, (op.Return-ops[0].Call)/1000, op.ClientId, op.Input, op.Output)
	}
	return out.String()
}
