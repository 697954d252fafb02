package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"path/filepath"
	"sync"
	"time"

	"github.com/holdfast-dr/holdfast/core/api"
	"github.com/holdfast-dr/holdfast/core/audit"
	"github.com/holdfast-dr/holdfast/core/blob"
	"github.com/holdfast-dr/holdfast/core/blob/dir"
	"github.com/holdfast-dr/holdfast/core/chunk"
	"github.com/holdfast-dr/holdfast/core/claim"
	"github.com/holdfast-dr/holdfast/core/gateway"
	"github.com/holdfast-dr/holdfast/core/job"
	"github.com/holdfast-dr/holdfast/core/point"
	"github.com/holdfast-dr/holdfast/core/quota"
	"github.com/holdfast-dr/holdfast/core/repository"
	"github.com/holdfast-dr/holdfast/core/state"
	"github.com/holdfast-dr/holdfast/core/tenant"
)

// repositories opens cloud repositories when they are first used, each under a
// claim, and keeps them open until the claim is lost or the server ends. It is
// where the rooms gateway, repository and claim meet.
type repositories struct {
	db     *state.DB
	holder claim.Holder
	data   string
	// readers is how long a condemned pack stays.
	readers time.Duration
	index   *repository.Index
	log     *slog.Logger

	life context.Context // of everything that is open
	end  context.CancelFunc

	mu     sync.Mutex
	opened map[quota.ID]*openRepository
	closed bool
}

// openRepository is one that this server holds, or is about to.
type openRepository struct {
	ready chan struct{} // closed when the fields below are set
	err   error

	work       context.Context // ends with the claim
	held       *claim.Held
	blobs      *dir.Store
	repository *repository.Repository
	adapter    *servedRepository
	named      func(context.Context) (repository.Label, error) // whose it is, by the database

	closing  sync.Once
	closed   chan struct{} // when nothing of it touches the spool and the store any more
	closeErr error
}

func newRepositories(db *state.DB, holder claim.Holder, c serverConfig, log *slog.Logger) (*repositories, error) {
	index, err := repository.OpenIndex(filepath.Join(c.Data, "index"), repository.IndexOptions{})
	if err != nil {
		return nil, err
	}
	life, end := context.WithCancel(context.Background())
	return &repositories{db: db, holder: holder, data: c.Data, readers: c.Readers, index: index, log: log, life: life, end: end, opened: map[quota.ID]*openRepository{}}, nil
}

// open is the gateway's Opener. The scope is in the query: a foreign repository
// is not found.
func (s *repositories) open(ctx context.Context, t tenant.ID, id string) (gateway.Repository, error) {
	r, err := s.db.Quotas().Get(ctx, t, quota.ID(id))
	if err != nil {
		return nil, err
	}
	o, err := s.hold(ctx, r)
	if err != nil {
		return nil, err
	}
	return o.adapter, nil
}

// hold returns a repository that is open under a live claim, and for reading
// only if its location is.
func (s *repositories) hold(ctx context.Context, r quota.CloudRepository) (*openRepository, error) {
	location, err := s.db.Locations().Get(ctx, r.LocationID)
	if err != nil {
		return nil, err
	}
	for {
		s.mu.Lock()
		if s.closed {
			s.mu.Unlock()
			return nil, claim.ErrFenced
		}
		o, first := s.opened[r.ID], false
		if o == nil {
			o, first = &openRepository{ready: make(chan struct{}), closed: make(chan struct{})}, true
			s.opened[r.ID] = o
		}
		s.mu.Unlock()
		if first {
			o.err = s.fill(o, r, location)
			close(o.ready)
			if o.err != nil {
				s.drop(r.ID, o)
				return nil, o.err
			}
			go s.await(r.ID, o)
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-o.ready:
		}
		switch {
		case o.err != nil:
			return nil, o.err
		case o.work.Err() == nil && o.adapter.readOnly == location.ReadOnly:
			return o, nil
		}
		// Its claim is lost, or the location's mode has changed. What it still does
		// in the spool has to end before another one opens that.
		go s.discard(r.ID, o)
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-o.closed:
		}
		s.drop(r.ID, o)
	}
}

// discard closes a repository and then lets another one take its place.
func (s *repositories) discard(id quota.ID, o *openRepository) {
	if err := o.close(); err != nil {
		s.log.Warn("close cloud repository", "repository", id, "error", err)
	}
	s.drop(id, o)
}

// fill takes the claim and opens the repository.
func (s *repositories) fill(o *openRepository, r quota.CloudRepository, location blob.Location) (err error) {
	defer func() {
		if err != nil {
			err = errors.Join(err, o.close())
		}
	}()
	if o.blobs, err = dir.Open(location.Path, dir.Options{}); err != nil {
		return fmt.Errorf("open repository %q: %w", location.Name, err)
	}
	if o.work, o.held, err = claim.Hold(s.life, s.db.Claims(), claim.Resource("repository/"+string(r.ID)), s.holder, 0); err != nil {
		return err
	}
	epoch := uint64(o.held.Epoch())
	if location.ReadOnly {
		epoch = 0 // not even the claim is written there
	}
	o.repository, err = repository.Open(o.work, repository.Config{ID: string(r.ID), Blobs: o.blobs, Index: s.index, Catalogue: s.db.Catalogue(),
		SpoolDir: filepath.Join(s.data, "spool"), Epoch: epoch, ChunkSize: r.ChunkSize, LongestRead: s.readers, Log: s.log})
	if err != nil {
		return err
	}
	o.named = func(ctx context.Context) (repository.Label, error) { return s.labelOf(ctx, r.ID) }
	if err := o.label(o.work); err != nil { // it helps after a disaster only
		s.log.Warn("label cloud repository", "repository", r.ID, "error", err)
	}
	o.adapter = &servedRepository{Repository: o.repository, work: o.work, epoch: uint64(o.held.Epoch()), readOnly: location.ReadOnly}
	return nil
}

// await closes a repository when its claim ends.
func (s *repositories) await(id quota.ID, o *openRepository) {
	<-o.work.Done()
	if cause := context.Cause(o.work); errors.Is(cause, claim.ErrFenced) {
		s.log.Error("cloud repository closed", "repository", id, "error", cause)
	}
	s.discard(id, o)
}

func (s *repositories) drop(id quota.ID, o *openRepository) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.opened[id] == o {
		delete(s.opened, id)
	}
}

// close ends the repository's use, once; whoever calls it again waits.
func (o *openRepository) close() error {
	o.closing.Do(func() {
		var errs []error
		if o.repository != nil {
			errs = append(errs, o.repository.Close())
		}
		if o.held != nil {
			errs = append(errs, o.held.Release())
		}
		if o.blobs != nil {
			errs = append(errs, o.blobs.Close())
		}
		o.closeErr = errors.Join(errs...)
		close(o.closed)
	})
	return o.closeErr
}

// close ends every repository and gives the claims back.
func (s *repositories) close() error {
	s.mu.Lock()
	s.closed = true
	opened := s.opened
	s.opened = map[quota.ID]*openRepository{}
	s.mu.Unlock()
	var errs []error
	for _, o := range opened {
		<-o.ready
		if o.err == nil {
			errs = append(errs, o.close())
		}
	}
	s.end()
	return errors.Join(append(errs, s.index.Close())...)
}

func (s *repositories) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.opened)
}

// points lists the points of a cloud repository from the catalogue, without
// opening it.
func (s *repositories) points(ctx context.Context, cloud string, machine point.MachineID, after point.ID, limit int) ([]gateway.PointInfo, error) {
	records, err := s.db.Catalogue().Points(ctx, cloud, repository.PointQuery{Machine: machine, After: after, Limit: limit})
	if err != nil {
		return nil, err
	}
	return pointInfos(records), nil
}

func pointInfos(records []repository.PointRecord) []gateway.PointInfo {
	infos := make([]gateway.PointInfo, len(records))
	for i, p := range records {
		infos[i] = gateway.PointInfo{ID: p.ID, Machine: p.Machine, Previous: p.Previous, Kind: p.Kind, Taken: p.Taken, Committed: p.Committed,
			Disks: p.Disks, SizeBytes: p.SizeBytes, ChargedBytes: p.ChargedBytes}
	}
	return infos
}

// tend gives up what has been idle for too long, erases what deleted tenants
// left, forgets old runs, and starts collections that are due.
func (s *repositories) tend(ctx context.Context, every, collect time.Duration) {
	tick := time.NewTicker(every)
	defer tick.Stop()
	var pruned time.Time
	for {
		s.eraseRetired(ctx)
		if now := time.Now(); now.Sub(pruned) > 24*time.Hour {
			if err := s.prune(ctx, now.Add(-keepRuns)); err != nil && ctx.Err() == nil {
				s.log.ErrorContext(ctx, "forget old runs", "error", err)
			}
			pruned = now
		}
		if collect > 0 {
			if err := s.collectDue(ctx, collect); err != nil && ctx.Err() == nil {
				s.log.ErrorContext(ctx, "start collections", "error", err)
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if n, err := s.db.Quotas().Expire(ctx); err != nil && ctx.Err() == nil {
			s.log.Error("expire reservations", "error", err)
		} else if n > 0 {
			s.log.Info("reservations expired", "bytes", n)
		}
		s.mu.Lock()
		var all []*openRepository
		for _, o := range s.opened {
			all = append(all, o)
		}
		s.mu.Unlock()
		for _, o := range all {
			<-o.ready
			if o.err != nil {
				continue
			}
			if ids, err := o.repository.ExpireSessions(ctx, quota.ReservationTTL); err != nil && ctx.Err() == nil {
				s.log.Error("expire sessions", "error", err)
			} else if len(ids) > 0 {
				s.log.Info("idle sessions given up", "sessions", len(ids))
			}
		}
	}
}

// servedRepository is a repository as the gateway sees it: its own types become
// those of the wire, and its work ends with the claim.
type servedRepository struct {
	*repository.Repository
	work     context.Context
	epoch    uint64
	readOnly bool
}

var _ gateway.Repository = (*servedRepository)(nil)

// Epoch is that of the claim.
func (r *servedRepository) Epoch() uint64 { return r.epoch }

// under ends a request's context with the claim.
func (r *servedRepository) under(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	stop := context.AfterFunc(r.work, func() { cancel(claim.ErrFenced) })
	return ctx, func() { stop(); cancel(nil) }
}

// Begin opens a session.
func (r *servedRepository) Begin(ctx context.Context, machine point.MachineID, base point.ID, owner string) (gateway.Session, error) {
	if r.readOnly {
		return nil, gateway.ErrRepositoryReadOnly
	}
	if err := r.Repository.Writable(); err != nil {
		return nil, foreign(err)
	}
	ctx, cancel := r.under(ctx)
	defer cancel()
	s, err := r.Repository.Begin(ctx, machine, base, owner)
	if err != nil {
		return nil, foreign(err)
	}
	return &servedSession{s, r}, nil
}

// Resume finds a session of the owner.
func (r *servedRepository) Resume(ctx context.Context, id chunk.SessionID, owner string) (gateway.Session, error) {
	if r.readOnly { // what sessions brought waits in the spool
		return nil, gateway.ErrRepositoryReadOnly
	}
	s, err := r.Repository.Resume(ctx, id)
	if errors.Is(err, repository.ErrNotFound) || err == nil && s.Owner() != owner && s.Owner() != "" {
		return nil, gateway.ErrSessionClosed
	}
	if err != nil {
		return nil, foreign(err)
	}
	return &servedSession{s, r}, nil
}

// Read reads records.
func (r *servedRepository) Read(ctx context.Context, kind chunk.Kind, ids []chunk.ID, emit func(chunk.Record) error) error {
	ctx, cancel := r.under(ctx)
	defer cancel()
	return foreign(r.Repository.Read(ctx, kind, ids, emit))
}

// Manifest reads a manifest.
func (r *servedRepository) Manifest(ctx context.Context, id point.ID) ([]byte, error) {
	b, err := r.Repository.Manifest(ctx, id)
	return b, foreign(err)
}

// Points lists points.
func (r *servedRepository) Points(ctx context.Context, machine point.MachineID, after point.ID, limit int) ([]gateway.PointInfo, error) {
	records, err := r.Repository.Points(ctx, machine, after, limit)
	return pointInfos(records), foreign(err)
}

// PutWrap keeps a wrap.
func (r *servedRepository) PutWrap(ctx context.Context, name string, wrap []byte) error {
	if r.readOnly {
		return gateway.ErrRepositoryReadOnly
	}
	return foreign(r.Repository.PutWrap(ctx, name, wrap))
}

// Wrap reads a wrap.
func (r *servedRepository) Wrap(ctx context.Context, name string) ([]byte, error) {
	wraps, err := r.Repository.Wraps(ctx)
	if err != nil {
		return nil, foreign(err)
	}
	for _, w := range wraps {
		if w.Name == name {
			return w.Content, nil
		}
	}
	return nil, fmt.Errorf("keyring wrap %q: %w", name, tenant.ErrNotFound)
}

// Wraps lists the wraps.
func (r *servedRepository) Wraps(ctx context.Context) ([]gateway.Wrap, error) {
	wraps, err := r.Repository.Wraps(ctx)
	if err != nil {
		return nil, foreign(err)
	}
	out := make([]gateway.Wrap, len(wraps))
	for i, w := range wraps {
		out[i] = gateway.Wrap{Name: w.Name, SizeBytes: int64(len(w.Content))}
	}
	return out, nil
}

// servedSession is a session as the gateway sees it.
type servedSession struct {
	*repository.Session
	repository *servedRepository
}

var _ gateway.Session = (*servedSession)(nil)

// Have asks for ids.
func (s *servedSession) Have(ctx context.Context, kind chunk.Kind, ids []chunk.ID) ([]bool, error) {
	have, err := s.Session.Have(ctx, kind, ids)
	return have, sessionError(err)
}

// Put takes records.
func (s *servedSession) Put(ctx context.Context, batch []byte) (int64, error) {
	ctx, cancel := s.repository.under(ctx)
	defer cancel()
	taken, err := s.Take(ctx, batch)
	return taken, sessionError(err)
}

// Commit makes the point exist.
func (s *servedSession) Commit(ctx context.Context, manifest []byte) error {
	ctx, cancel := s.repository.under(ctx)
	defer cancel()
	return sessionError(s.Session.Commit(ctx, manifest))
}

// Damaged lists the base point's chunks that have to be sent again.
func (s *servedSession) Damaged(ctx context.Context) ([]chunk.ID, error) {
	ids, err := s.Session.Damaged(ctx)
	return ids, sessionError(err)
}

// Forget puts a point into the bin.
func (r *servedRepository) Forget(ctx context.Context, id point.ID) error {
	return foreign(r.Repository.Forget(ctx, id))
}

// Abort gives the session up.
func (s *servedSession) Abort(ctx context.Context) error { return sessionError(s.Session.Abort(ctx)) }

// sessionError is foreign where "not found" means the session.
func sessionError(err error) error {
	if errors.Is(err, repository.ErrNotFound) {
		return gateway.ErrSessionClosed
	}
	return foreign(err)
}

// foreign turns the repository's own errors into those of the wire.
func foreign(err error) error {
	problem := func(status int, code gateway.Code, after int) error {
		p := gateway.NewProblem(status, code, err.Error())
		p.Hint, p.RetryAfter = gateway.HintOf(err), after
		return p
	}
	old := (*repository.OldDatabaseError)(nil)
	switch {
	case err == nil:
		return nil
	case errors.As(err, &old), errors.Is(err, repository.ErrReadOnly):
		return fmt.Errorf("%w: %w", gateway.ErrRepositoryReadOnly, err)
	case errors.Is(err, claim.ErrFenced):
		return err
	case errors.Is(err, chunk.ErrDamaged) && !errors.Is(err, repository.ErrRefused):
		return problem(http.StatusUnprocessableEntity, gateway.CodeDamaged, 0)
	case errors.Is(err, chunk.ErrAbsent): // also a "not found", so it stands first
		return problem(http.StatusNotFound, gateway.CodeAbsent, 0)
	case errors.Is(err, repository.ErrNotFound):
		return problem(http.StatusNotFound, gateway.CodeNotFound, 0)
	case errors.Is(err, repository.ErrBusy):
		return problem(http.StatusServiceUnavailable, gateway.CodeBusy, 2)
	case errors.Is(err, repository.ErrVoid):
		return problem(http.StatusConflict, gateway.CodeConflict, 0)
	case errors.Is(err, repository.ErrRefused):
		return problem(http.StatusUnprocessableEntity, gateway.CodeInvalid, 0)
	case errors.Is(err, blob.ErrFull):
		return gateway.NewProblem(http.StatusInsufficientStorage, gateway.CodeStorageFull, "the provider's repository has no room").
			WithHint("what is stored stays restorable; tell the provider")
	}
	return err
}

// handlers are the provider's own runs.
func (s *repositories) handlers() map[job.Kind]job.Handler {
	return map[job.Kind]job.Handler{
		api.RunVerify:   s.job(verifyRepository),
		api.RunCollect:  s.job(collectRepository),
		api.RunImport:   s.job(importRepository),
		api.RunAccount:  s.job(s.accountRepository),
		api.RunDistrust: s.job(distrustRepository),
	}
}

// job runs a verb on the repository that a run is about, under its claim.
func (s *repositories) job(verb func(context.Context, *job.Execution, *openRepository, quota.CloudRepository) error) job.Handler {
	return func(ctx context.Context, x *job.Execution) error {
		var spec api.RunSpec
		if err := x.Spec(&spec); err != nil {
			return err
		}
		ctx = audit.With(ctx, audit.Origin{Actor: "system:run", Name: string(x.Run().Kind), Request: x.Run().ID})
		r, err := s.db.Quotas().Get(ctx, tenant.ID(spec.Tenant), quota.ID(spec.Cloud))
		if err != nil {
			return err
		}
		o, err := s.hold(ctx, r)
		if _, held := errors.AsType[*claim.HeldError](err); held {
			return &job.RetryError{After: claim.DefaultTTL, Err: err}
		}
		if err != nil {
			return err
		}
		ctx, cancel := o.adapter.under(ctx)
		defer cancel()
		return verb(ctx, x, o, r)
	}
}
