package api

import (
	"bytes"
	"container/list"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"
	"time"

	"github.com/holdfast-dr/holdfast/core/access"
	"github.com/holdfast-dr/holdfast/core/gateway"
)

// Idempotent is the header that makes a POST repeatable.
type Idempotent struct {
	Key string `header:"Idempotency-Key" maxLength:"128" doc:"Chosen by the caller; a repeated request with the same key and body is answered what the first one was"`
}

// Bounds of what is remembered for repeated requests. It is remembered in this
// process: a client that repeats a request to a server that has just started
// may do it twice, which names and versions catch.
const (
	maxAnswers   = 10000
	maxKept      = 64 << 10 // bytes of one answer; larger ones are not repeated
	answerLife   = 24 * time.Hour
	headerIdempo = "Idempotency-Key"
)

// answers remembers what POST requests with an idempotency key were answered.
type answers struct {
	now func() time.Time

	mu    sync.Mutex
	known map[[32]byte]*list.Element
	order *list.List // of *answer, oldest first
}

type answer struct {
	id      [32]byte // of caller, what it may do, and key
	request [32]byte // of what was asked
	made    time.Time
	done    chan struct{} // closed when what follows is set
	keep    bool
	status  int
	header  http.Header
	body    []byte
}

func newAnswers(now func() time.Time) *answers {
	return &answers{now: now, known: map[[32]byte]*list.Element{}, order: list.New()}
}

// serve answers a request, from memory if it was answered before.
func (a *answers) serve(w http.ResponseWriter, r *http.Request, c access.Caller, next http.Handler) {
	key := r.Header.Get(headerIdempo)
	if key == "" || r.Method != http.MethodPost || c.Kind == access.Anonymous || len(key) > 128 {
		next.ServeHTTP(w, r)
		return
	}
	_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(bodyTimeout))
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	_ = http.NewResponseController(w).SetReadDeadline(time.Time{}) // or it would end a long handler
	if err != nil {
		p := gateway.NewProblem(http.StatusRequestTimeout, gateway.CodeUnavailable, "the body of the request did not arrive")
		if _, large := errors.AsType[*http.MaxBytesError](err); large {
			p = gateway.NewProblem(http.StatusRequestEntityTooLarge, gateway.CodeTooLarge, "the request is larger than this API takes")
		}
		p.Write(w)
		return
	}
	r.Body = io.NopCloser(bytes.NewReader(body))
	asked := sha256.New()
	_, _ = io.WriteString(asked, r.Method+" "+r.URL.RequestURI()+"\n") // a hash never fails
	_, _ = asked.Write(body)
	id, request := sha256.Sum256(fmt.Appendf(nil, "%s %s %s %d\n%s", c.Actor(), c.TenantID, c.Role, c.Scope, key)), [32]byte(asked.Sum(nil))
	for {
		found, first := a.enter(id, request)
		if first {
			a.record(found, w, r, next)
			return
		}
		if found.request != request {
			gateway.NewProblem(http.StatusUnprocessableEntity, gateway.CodeInvalid, "this idempotency key was used for another request").
				WithHint("choose a new key for each request; repeat a request with its own key only").Write(w)
			return
		}
		select {
		case <-r.Context().Done():
			return
		case <-found.done:
		}
		if found.keep {
			for name, values := range found.header {
				w.Header()[name] = values
			}
			w.WriteHeader(found.status)
			_, _ = w.Write(found.body) // a reader that is gone learns nothing
			return
		}
	}
}

// enter finds what is known of a key, or makes the caller the one who answers.
func (a *answers) enter(id, request [32]byte) (found *answer, first bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	now := a.now()
	for e := a.order.Front(); e != nil; e = a.order.Front() {
		oldest := e.Value.(*answer)
		if a.order.Len() < maxAnswers && now.Sub(oldest.made) < answerLife {
			break
		}
		a.order.Remove(e)
		delete(a.known, oldest.id)
	}
	if e := a.known[id]; e != nil {
		return e.Value.(*answer), false
	}
	found = &answer{id: id, request: request, made: now, done: make(chan struct{})}
	a.known[id] = a.order.PushBack(found)
	return found, true
}

// record answers for the first time and remembers it, unless the server failed.
func (a *answers) record(found *answer, w http.ResponseWriter, r *http.Request, next http.Handler) {
	tee := &recorder{ResponseWriter: w, status: http.StatusOK}
	defer func() {
		found.keep = tee.status < 500 && tee.status != http.StatusTooManyRequests && tee.body.Len() <= maxKept && !tee.large
		found.status, found.header, found.body = tee.status, w.Header().Clone(), tee.body.Bytes()
		if !found.keep {
			a.mu.Lock()
			if e := a.known[found.id]; e != nil && e.Value == found {
				a.order.Remove(e)
				delete(a.known, found.id)
			}
			a.mu.Unlock()
		}
		close(found.done)
	}()
	tee.status = http.StatusInternalServerError // should the handler panic
	next.ServeHTTP(tee, r)
	if !tee.begun {
		tee.status = http.StatusOK
	}
}

// recorder keeps a copy of an answer.
type recorder struct {
	http.ResponseWriter
	begun  bool
	status int
	body   bytes.Buffer
	large  bool
}

func (t *recorder) WriteHeader(status int) {
	if !t.begun {
		t.begun, t.status = true, status
	}
	t.ResponseWriter.WriteHeader(status)
}

func (t *recorder) Write(b []byte) (int, error) {
	if !t.begun {
		t.WriteHeader(http.StatusOK)
	}
	if t.body.Len()+len(b) <= maxKept {
		t.body.Write(b)
	} else {
		t.large = true
	}
	return t.ResponseWriter.Write(b)
}

// Unwrap gives http.ResponseController the connection.
func (t *recorder) Unwrap() http.ResponseWriter { return t.ResponseWriter }
