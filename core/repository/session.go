package repository

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/google/uuid"

	"github.com/holdfast-dr/holdfast/core/chunk"
	"github.com/holdfast-dr/holdfast/core/point"
)

// Limits of one call.
const (
	MaxBatch = 16 << 20 // bytes of one Put
	MaxIDs   = 16384    // ids of one Have or Read
)

// maxSealed is how many finished packs of a session may wait for the store
// before Put answers the store's error.
const maxSealed = 4

// Session brings records to a repository, to be used by one point. It is safe
// for several goroutines. What it received survives a restart of the server;
// see Resume.
type Session struct {
	r       *Repository
	id      chunk.SessionID
	machine point.MachineID
	base    point.ID
	owner   string
	dir     string

	ending   sync.Mutex // one commit or abort at a time
	shipping sync.Mutex // one goroutine brings packs to the store
	writing  sync.Mutex // one goroutine writes to the open packs; taken after shipping, before mu

	mu     sync.Mutex // guards what follows
	open   map[PackKind]*spoolPack
	sealed []*spoolPack // finished, not yet in the store
	try    *attempt     // a manifest that may be in the store
	active time.Time
	ended  bool
	done   point.ID // committed
}

// attempt is a commit that reached the store.
type attempt struct {
	Point   point.ID        `json:"point"`
	Machine point.MachineID `json:"machine"`
	Object  string          `json:"object"` // the manifest's name
}

// sessionJSON is what a session's folder says of it.
type sessionJSON struct {
	Session string          `json:"session"`
	Machine point.MachineID `json:"machine"`
	Base    point.ID        `json:"base,omitempty"`
	Owner   string          `json:"owner"`
	Attempt *attempt        `json:"attempt,omitempty"`
}

const sessionFile = "session.json"

// ParseSessionID decodes 32 hexadecimal digits.
func ParseSessionID(s string) (chunk.SessionID, error) {
	b, err := hex.DecodeString(s)
	if err != nil || len(b) != len(chunk.SessionID{}) {
		return chunk.SessionID{}, fmt.Errorf("parse session id %.80q: want 32 hexadecimal digits", s)
	}
	return chunk.SessionID(b), nil
}

func sessionText(id chunk.SessionID) string { return hex.EncodeToString(id[:]) }

// Begin opens a session for a machine's next point. base is the committed point
// that it builds on, which stays readable while the session is open; empty for
// none. owner is kept for the caller's checks.
func (r *Repository) Begin(ctx context.Context, machine point.MachineID, base point.ID, owner string) (*Session, error) {
	if err := r.Writable(); err != nil {
		return nil, err
	}
	if !isUUID(string(machine)) {
		return nil, fmt.Errorf("begin session: machine %.80q is not a UUID: %w", machine, ErrRefused)
	}
	id := chunk.SessionID(uuid.Must(uuid.NewV7()))
	s := r.newSession(id, sessionJSON{Machine: machine, Base: base, Owner: owner})
	if err := r.admit(s); err != nil { // pins the base before it is looked at
		return nil, err
	}
	if err := s.start(ctx); err != nil {
		r.dismiss(s)
		return nil, errors.Join(fmt.Errorf("begin session: %w", err), os.RemoveAll(s.dir))
	}
	return s, nil
}

func (r *Repository) newSession(id chunk.SessionID, j sessionJSON) *Session {
	return &Session{
		r: r, id: id, machine: j.Machine, base: j.Base, owner: j.Owner, try: j.Attempt,
		dir: filepath.Join(r.spool, sessionText(id)), open: map[PackKind]*spoolPack{}, active: r.clock(),
	}
}

// admit makes a session known and pins its base.
func (r *Repository) admit(s *Session) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return fmt.Errorf("begin session: %w", fs.ErrClosed)
	}
	if len(r.sessions) >= r.maxSessions {
		return fmt.Errorf("begin session: %d sessions are open: %w", len(r.sessions), ErrBusy)
	}
	r.sessions[s.id] = s
	if s.base != "" {
		r.pins[s.base]++
	}
	return nil
}

func (r *Repository) dismiss(s *Session) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.sessions[s.id] != s {
		return
	}
	delete(r.sessions, s.id)
	if s.base != "" {
		if r.pins[s.base]--; r.pins[s.base] == 0 {
			delete(r.pins, s.base)
		}
	}
}

func (s *Session) start(ctx context.Context) error {
	if s.base != "" {
		p, err := s.r.point(ctx, s.base)
		if err != nil {
			return err
		}
		if p.Machine != s.machine {
			return fmt.Errorf("base point %s is of another machine: %w", s.base, ErrRefused)
		}
	}
	if err := os.MkdirAll(s.dir, 0o700); err != nil {
		return fmt.Errorf("make spool: %w", full(err))
	}
	if err := s.note(); err != nil {
		return err
	}
	// Before the first record, so that there is none of which nobody knows who
	// brought it.
	return s.r.catalogue.Began(ctx, s.r.id, s.r.epoch, SessionRecord{ID: sessionText(s.id), Owner: s.owner, Machine: s.machine, Began: s.r.clock().UTC()})
}

// note writes down what a later life of the server has to know.
func (s *Session) note() error {
	b, err := encodeSmall(sessionJSON{Session: sessionText(s.id), Machine: s.machine, Base: s.base, Owner: s.owner, Attempt: s.try})
	if err != nil {
		return err
	}
	temporary := filepath.Join(s.dir, sessionFile+".new")
	if err := s.r.writeSynced(temporary, b); err != nil {
		return fmt.Errorf("note session: %w", full(err))
	}
	if err := os.Rename(temporary, filepath.Join(s.dir, sessionFile)); err != nil {
		return fmt.Errorf("note session: %w", full(err))
	}
	return s.r.syncDir(s.dir)
}

func (r *Repository) writeSynced(name string, b []byte) (err error) {
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if _, err := f.Write(b); err != nil {
		return err
	}
	return r.syncFile(f)
}

func (r *Repository) syncDir(name string) (err error) {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	return r.syncFile(f)
}

// recoverSession opens a session's folder; nil if it holds none.
func (r *Repository) recoverSession(dir string) (_ *Session, err error) {
	id, err := ParseSessionID(filepath.Base(dir))
	if err != nil {
		return nil, nil //nolint:nilerr // a folder of another name is not ours
	}
	b, err := os.ReadFile(filepath.Join(dir, sessionFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, os.RemoveAll(dir) // Begin never answered
	}
	if err != nil {
		return nil, fmt.Errorf("recover session: %w", err)
	}
	var j sessionJSON
	if err := decodeSmall(b, &j); err != nil {
		// Whose it was is not known any more, and none of it was promised to last.
		// A manifest that it may have tried is judged like one that nobody knows.
		r.log.Error("a session is given up, its file is damaged", "session", filepath.Base(dir), "error", err)
		return nil, os.RemoveAll(dir)
	}
	s := r.newSession(id, j)
	if err := s.recover(); err != nil {
		return nil, errors.Join(err, s.close())
	}
	if err := r.admit(s); err != nil {
		return nil, errors.Join(err, s.close())
	}
	return s, nil
}

func (s *Session) recover() error {
	files, err := os.ReadDir(s.dir)
	if err != nil {
		return fmt.Errorf("recover session: %w", err)
	}
	s.active = time.Time{}
	for _, file := range files {
		if info, err := file.Info(); err == nil && info.ModTime().After(s.active) {
			s.active = info.ModTime()
		}
		p, err := s.r.recoverSpool(filepath.Join(s.dir, file.Name()))
		if err != nil {
			return err
		}
		if p == nil {
			continue
		}
		if other := s.open[p.kind]; p.sealed || other != nil {
			s.sealed = append(s.sealed, p) // ship seals it
			continue
		}
		s.open[p.kind] = p
	}
	return nil
}

// Resume finds an open session, of this life of the server or an earlier one. A
// session whose commit succeeded is found too: repeating the commit then answers
// as the first one did.
func (r *Repository) Resume(ctx context.Context, id chunk.SessionID) (*Session, error) {
	r.mu.Lock()
	s, ok := r.sessions[id]
	r.mu.Unlock()
	if ok {
		return s, nil
	}
	points, err := r.catalogue.Points(ctx, r.id, PointQuery{Session: sessionText(id), Limit: 1})
	if err != nil {
		return nil, fmt.Errorf("resume session: %w", err)
	}
	if len(points) == 0 {
		return nil, fmt.Errorf("session %s: %w", sessionText(id), ErrNotFound)
	}
	s = r.newSession(id, sessionJSON{Machine: points[0].Machine})
	s.ended, s.done = true, points[0].ID
	return s, nil
}

// Sessions lists the ids of the open sessions.
func (r *Repository) Sessions() []chunk.SessionID {
	r.mu.Lock()
	defer r.mu.Unlock()
	ids := make([]chunk.SessionID, 0, len(r.sessions))
	for id := range r.sessions {
		ids = append(ids, id)
	}
	return ids
}

// ID is the session's id, which its records carry.
func (s *Session) ID() chunk.SessionID { return s.id }

// Machine is whose point the session brings; Base the point it builds on; Owner
// what Begin was told.
func (s *Session) Machine() point.MachineID { return s.machine }

// Base is the point that the session builds on, empty for none.
func (s *Session) Base() point.ID { return s.base }

// Owner is what Begin was told.
func (s *Session) Owner() string { return s.owner }

// errEnded is the answer of a session that is over.
func (s *Session) errEnded() error {
	return fmt.Errorf("session %s is over: %w", sessionText(s.id), ErrNotFound)
}

// touch tells that the session is in use; it fails when it is over.
func (s *Session) touch() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended {
		return s.errEnded()
	}
	s.active = s.r.clock()
	return nil
}

// Have tells for each id whether the repository, or this session's spool, holds
// a sound copy. The answer is a hint: commit has the last word.
func (s *Session) Have(ctx context.Context, kind chunk.Kind, ids []chunk.ID) ([]bool, error) {
	if len(ids) > MaxIDs || kind != chunk.KindData && kind != chunk.KindPage {
		return nil, fmt.Errorf("have: %d ids of kind %d: %w", len(ids), kind, ErrRefused)
	}
	if err := s.touch(); err != nil {
		return nil, err
	}
	have := make([]bool, len(ids))
	for i, id := range ids {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		var err error
		if have[i], err = s.has(kind, id); err != nil {
			return nil, err
		}
	}
	return have, nil
}

func (s *Session) has(kind chunk.Kind, id chunk.ID) (bool, error) {
	if s.spooled(kind, id) {
		return true, nil
	}
	_, sound, err := s.r.live(kind, id)
	return sound, err
}

// spooled reports whether a record is in the spool.
func (s *Session) spooled(kind chunk.Kind, id chunk.ID) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if p := s.open[kind]; p != nil && p.has(id) {
		return true
	}
	for _, p := range s.sealed {
		if p.kind == kind && p.has(id) {
			return true
		}
	}
	return false
}

// Abort gives the session up. What it brought stays for Config.PendingPeriod, so
// that the next session need not send it again, and is charged until it has been
// collected. A session that has committed cannot be given up.
func (s *Session) Abort(ctx context.Context) error { return s.abort(ctx, true) }

// abort gives the session up; keep brings what is spooled to the store first.
func (s *Session) abort(ctx context.Context, keep bool) error {
	s.ending.Lock()
	defer s.ending.Unlock()
	s.mu.Lock()
	ended, done := s.ended, s.done
	s.mu.Unlock()
	if ended {
		if done != "" {
			return fmt.Errorf("abort: point %s is committed: %w", done, ErrRefused)
		}
		return nil
	}
	if err := s.r.settleAttempt(ctx, s); err != nil {
		return fmt.Errorf("abort session: %w", err)
	}
	if s.isEnded() {
		return fmt.Errorf("abort: point %s is committed: %w", s.done, ErrRefused)
	}
	if keep {
		if err := s.noteEnded(); err != nil {
			return fmt.Errorf("abort session: %w", err)
		}
		if err := s.shipAll(ctx); err != nil {
			s.r.log.Warn("what an aborted session brought is lost in part", "session", sessionText(s.id), "error", err)
		}
	}
	return s.end("")
}

func (s *Session) isEnded() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.ended
}

// end closes the session for good and removes its spool.
func (s *Session) end(done point.ID) error {
	err := s.close()
	s.mu.Lock()
	s.done = done
	s.mu.Unlock()
	s.r.dismiss(s)
	s.noteEnd()
	return errors.Join(err, os.RemoveAll(s.dir))
}

// close lets go of the spool files and leaves them where they are.
func (s *Session) close() error {
	s.shipping.Lock()
	defer s.shipping.Unlock()
	s.writing.Lock()
	defer s.writing.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ended = true
	var errs []error
	for _, p := range s.open {
		errs = append(errs, p.file.Close())
	}
	for _, p := range s.sealed {
		errs = append(errs, p.file.Close())
	}
	s.open, s.sealed = map[PackKind]*spoolPack{}, nil
	return errors.Join(errs...)
}

// SpooledBytes is what the session holds on the server's disk.
func (s *Session) SpooledBytes() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	var sum int64
	for _, p := range s.open {
		sum += p.fileBytes()
	}
	for _, p := range s.sealed {
		sum += p.fileBytes()
	}
	return sum
}

// ExpireSessions gives up the sessions that have been idle for so long, and
// returns their ids, so that the caller releases what they had reserved.
func (r *Repository) ExpireSessions(ctx context.Context, idle time.Duration) ([]chunk.SessionID, error) {
	r.mu.Lock()
	var old []*Session
	for _, s := range r.sessions {
		s.mu.Lock()
		if r.clock().Sub(s.active) >= idle {
			old = append(old, s)
		}
		s.mu.Unlock()
	}
	r.mu.Unlock()
	var ids []chunk.SessionID
	var errs []error
	for _, s := range old {
		if err := s.abort(ctx, false); err != nil { // nobody comes back for it
			errs = append(errs, err)
			continue
		}
		ids = append(ids, s.id)
	}
	return ids, errors.Join(errs...)
}
