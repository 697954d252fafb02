package state

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-dr/holdfast/core/claim"
	"github.com/holdfast-dr/holdfast/core/quota"
	"github.com/holdfast-dr/holdfast/core/tenant"
)

// The server process of the linearizability tests, which is killed. It is told
// on its standard input when to begin a window, and tells on file 3 what its
// writers call and what they are answered: a call before it is made.

const linearJob = "HOLDFAST_TEST_LINEAR"

// linearServer is what the process is told at its start.
type linearServer struct {
	URL     string
	Kind    string // quota, claim
	Mutant  string // a store that does it wrong; empty: the real one
	Cut     bool   // some contexts end in the middle of a call
	Seed    uint64
	Life    int
	Writers []int
	Keys    []linearKey
	Calls   int // of each writer in each window
}

// linearKey is a cloud repository, and the claim of it.
type linearKey struct {
	Tenant tenant.ID
	ID     quota.ID
}

// linearEvent is a call or its answer; both have a time that all processes
// share, and the writer's number of the call.
type linearEvent struct {
	Idle   bool // every writer has made its calls
	Writer int
	Number int
	Key    int
	Call   *linearCall   `json:",omitempty"`
	Answer *linearAnswer `json:",omitempty"`
	Cut    bool          // the call was given a context that ends
	Error  string        // instead of an answer
	At     int64
}

// monotonic is the same clock in every process of the machine.
func monotonic() int64 {
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err != nil {
		panic(err)
	}
	return now.Nano()
}

// TestLinearServer is the process that is killed.
func TestLinearServer(t *testing.T) {
	text := os.Getenv(linearJob)
	if text == "" {
		t.Skip("is started by TestLinearizability")
	}
	var job linearServer
	if err := json.Unmarshal([]byte(text), &job); err != nil {
		t.Fatal(err)
	}
	db, err := Open(t.Context(), job.URL)
	if err != nil {
		t.Fatal(err)
	}
	out := &linearLog{file: os.NewFile(3, "events")}
	var writers []*linearWriter
	for _, n := range job.Writers {
		w := &linearWriter{job: job, db: db, out: out, number: n, key: n % len(job.Keys)}
		w.born(job.Life * 1000)
		writers = append(writers, w)
	}
	for in := bufio.NewScanner(os.Stdin); in.Scan(); {
		window, err := strconv.ParseUint(in.Text(), 10, 32)
		if err != nil {
			t.Fatal(err)
		}
		var all sync.WaitGroup
		for _, w := range writers {
			all.Go(func() { w.window(t.Context(), window) })
		}
		all.Wait()
		out.say(linearEvent{Idle: true})
	}
	if err := db.Close(); err != nil {
		t.Error(err)
	}
}

// linearLog writes whole lines: what was written before a kill is read.
type linearLog struct {
	mu   sync.Mutex
	file *os.File
}

func (l *linearLog) say(e linearEvent) {
	l.mu.Lock()
	defer l.mu.Unlock()
	b, err := json.Marshal(e)
	if err == nil {
		_, err = l.file.Write(append(b, '\n'))
	}
	if err != nil { // nobody listens any more
		panic(err)
	}
}

// linearWriter makes one call after the other. It does not know what became of
// a call that was cut, so it begins another life after one, as a process does
// that starts again: with another session, or as another instance that expels
// the former one.
type linearWriter struct {
	job    linearServer
	db     *DB
	out    *linearLog
	number int
	key    int
	calls  int
	life   int

	me     claim.Holder
	held   int64 // the epoch that it holds, or still believes to hold
	expels bool
}

func (w *linearWriter) born(life int) {
	w.life, w.held, w.expels = life, 0, life > 0
	w.me = claim.Holder{Node: fmt.Sprintf("node-%d.", w.number), Instance: strconv.Itoa(life)}
}

func (w *linearWriter) window(ctx context.Context, window uint64) {
	random := rand.New(rand.NewPCG(w.job.Seed, window<<32|uint64(w.number)<<16|uint64(w.job.Life)))
	for range w.job.Calls {
		w.call(ctx, random)
	}
}

func (w *linearWriter) call(ctx context.Context, random *rand.Rand) {
	in := w.quotaCall(random)
	if w.job.Kind == "claim" {
		in = w.claimCall(random)
	}
	w.calls++
	begin := linearEvent{Writer: w.number, Number: w.calls, Key: w.key, Call: &in, At: monotonic()}
	// A cut comes anywhere within a call, or after it.
	if begin.Cut = w.job.Cut && random.IntN(12) == 0; begin.Cut {
		var stop context.CancelFunc
		ctx, stop = context.WithTimeout(ctx, time.Duration(random.IntN(3000))*time.Microsecond)
		defer stop()
	}
	w.out.say(begin)
	answer, err := w.do(ctx, in)
	end := linearEvent{Writer: w.number, Number: w.calls, Key: w.key, Answer: &answer, Cut: begin.Cut, At: monotonic()}
	if err != nil {
		end.Answer, end.Error = nil, err.Error()
		w.born(w.life + 1)
	} else {
		w.learn(in, answer, random)
	}
	w.out.say(end)
}

func (w *linearWriter) quotaCall(random *rand.Rand) linearCall {
	verbs := []string{"reserve", "reserve", "reserve", "commit", "release", "look"}
	return linearCall{Verb: verbs[random.IntN(len(verbs))], Session: fmt.Sprintf("%d.%d", w.number, w.life), Bytes: 1 + random.Int64N(40)}
}

func (w *linearWriter) claimCall(random *rand.Rand) linearCall {
	in := linearCall{Holder: w.me, Epoch: w.held, Bytes: 1 + random.Int64N(1<<40)}
	verbs := []string{"acquire", "acquire", "look"}
	switch {
	case w.expels:
		verbs = []string{"expel"}
	case w.held > 0:
		verbs = []string{"renew", "write", "write", "drop"}
	}
	in.Verb = verbs[random.IntN(len(verbs))]
	return in
}

// learn is what a writer makes of an answer. Every other one that gave its claim
// up goes on as if it had it.
func (w *linearWriter) learn(in linearCall, out linearAnswer, random *rand.Rand) {
	switch in.Verb {
	case "expel":
		w.expels = false
	case "acquire":
		w.held = out.Epoch // 0 if it was refused
	case "drop":
		if random.IntN(2) == 0 {
			w.held = 0
		}
	case "renew", "write":
		if out.Refused {
			w.held = 0
		}
	}
}

func (w *linearWriter) do(ctx context.Context, in linearCall) (out linearAnswer, err error) {
	if w.job.Kind == "claim" {
		out, err = w.claim(ctx, in)
	} else {
		out, err = w.quota(ctx, in)
	}
	var full *quota.FullError
	var held *claim.HeldError
	switch {
	case errors.As(err, &full):
		return linearAnswer{Refused: true, Used: full.UsedBytes, Pending: full.PendingBytes}, nil
	case errors.As(err, &held):
		return linearAnswer{Refused: true, By: held.Holder}, nil
	case errors.Is(err, claim.ErrFenced):
		return linearAnswer{Refused: true}, nil
	}
	return out, err
}

func (w *linearWriter) quota(ctx context.Context, in linearCall) (out linearAnswer, err error) {
	s, key := w.db.Quotas(), w.job.Keys[w.key]
	if w.job.Mutant == mutantReserve {
		s = eagerQuotas{s, w.db}
	}
	switch in.Verb {
	case "reserve":
		var v quota.Reservation
		v, err = s.Reserve(ctx, key.Tenant, key.ID, in.Session, in.Bytes)
		out.Held = v.Bytes
	case "commit":
		err = s.Commit(ctx, key.Tenant, key.ID, in.Session, in.Bytes)
	case "release":
		err = s.Release(ctx, key.Tenant, key.ID, in.Session)
	case "look":
		var v quota.CloudRepository
		v, err = s.Get(ctx, key.Tenant, key.ID)
		out.Used, out.Pending = v.UsedBytes, v.PendingBytes
	}
	return out, err
}

// claimTTL is longer than any test, so no claim of these expires.
const claimTTL = 24 * time.Hour

func (w *linearWriter) claim(ctx context.Context, in linearCall) (out linearAnswer, err error) {
	s, key := w.db.Claims(), w.job.Keys[w.key]
	if w.job.Mutant == mutantAcquire {
		s = eagerClaims{s, w.db}
	}
	c := claim.Claim{Resource: RepositoryResource(string(key.ID)), Holder: in.Holder, Epoch: in.Epoch}
	switch in.Verb {
	case "acquire":
		c, err = s.Acquire(ctx, c.Resource, in.Holder, claimTTL)
		out.Epoch = c.Epoch
	case "renew":
		_, err = s.Renew(ctx, c, claimTTL)
	case "drop":
		err = s.Release(ctx, c)
	case "expel":
		out.Freed, err = s.Expel(ctx, in.Holder)
	case "look":
		c, err = s.Current(ctx, c.Resource)
		if out.Epoch = c.Epoch; !c.Until.IsZero() {
			out.By = c.Holder.String()
		}
	case "write":
		if w.job.Mutant == mutantWrite {
			return out, w.db.write(ctx, func(t *tx) error {
				_, err := t.exec(ctx, "UPDATE cloud_repositories SET used_bytes = $1 WHERE id = $2", in.Bytes, string(key.ID))
				return err
			})
		}
		err = w.db.Catalogue().Settle(ctx, string(key.ID), uint64(in.Epoch), in.Bytes)
	}
	return out, err
}

// Stores that do it wrong, each in one place: what the checker has to catch.
const (
	mutantReserve = "reserve looks for room in one transaction and takes it in another"
	mutantAcquire = "acquire looks whether it is free in one transaction and takes it in another"
	mutantWrite   = "a write does not look at the epoch"
)

type eagerQuotas struct {
	quota.Store
	db *DB
}

func (s eagerQuotas) Reserve(ctx context.Context, in tenant.ID, id quota.ID, session string, bytes int64) (v quota.Reservation, err error) {
	r, err := s.Get(ctx, in, id)
	if err != nil {
		return v, err
	}
	if r.UsedBytes+r.PendingBytes+bytes > r.LimitBytes {
		return v, &quota.FullError{LimitBytes: r.LimitBytes, UsedBytes: r.UsedBytes, PendingBytes: r.PendingBytes, WantedBytes: bytes}
	}
	err = s.db.write(ctx, func(t *tx) error {
		if _, err := t.exec(ctx, "UPDATE cloud_repositories SET pending_bytes = pending_bytes + $1 WHERE id = $2", bytes, string(id)); err != nil {
			return err
		}
		return t.row(ctx, `INSERT INTO reservations (repository_id, session, bytes, expires) VALUES ($1, $2, $3, $4)
			ON CONFLICT (repository_id, session) DO UPDATE SET bytes = reservations.bytes + excluded.bytes RETURNING bytes`,
			string(id), session, bytes, int64(1)<<60).Scan(&v.Bytes)
	})
	return v, err
}

type eagerClaims struct {
	claim.Store
	db *DB
}

func (s eagerClaims) Acquire(ctx context.Context, r claim.Resource, h claim.Holder, _ time.Duration) (c claim.Claim, err error) {
	now, err := s.Current(ctx, r)
	if err != nil {
		return c, err
	}
	if !now.Until.IsZero() {
		return c, &claim.HeldError{Resource: r, Holder: now.Holder.String(), Until: now.Until}
	}
	c = claim.Claim{Resource: r, Holder: h, Epoch: now.Epoch + 1}
	return c, s.db.write(ctx, func(t *tx) error {
		_, err := t.exec(ctx, `INSERT INTO claims (resource, holder, epoch, until) VALUES ($1, $2, $3, $4)
			ON CONFLICT (resource) DO UPDATE SET holder = excluded.holder, epoch = excluded.epoch, until = excluded.until`,
			string(r), h.String(), c.Epoch, int64(1)<<60)
		return err
	})
}

// sessionsOf numbers the sessions of some calls.
func sessionsOf(calls []linearCall) map[string]int {
	numbers := map[string]int{}
	var names []string
	for _, c := range calls {
		if c.Session != "" {
			names = append(names, c.Session)
		}
	}
	slices.Sort(names)
	for i, name := range slices.Compact(names) {
		numbers[name] = i
	}
	return numbers
}
