package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"github.com/holdfast-dr/holdfast/core/api"
	"github.com/holdfast-dr/holdfast/core/audit"
	"github.com/holdfast-dr/holdfast/core/blob/dir"
	"github.com/holdfast-dr/holdfast/core/claim"
	"github.com/holdfast-dr/holdfast/core/job"
	"github.com/holdfast-dr/holdfast/core/quota"
	"github.com/holdfast-dr/holdfast/core/repository"
	"github.com/holdfast-dr/holdfast/core/tenant"
)

// collectDue starts a collection of every cloud repository whose last one is
// older than that, so that what tenants forget becomes free without anybody
// asking for it.
func (s *repositories) collectDue(ctx context.Context, every time.Duration) error {
	ctx = audit.With(ctx, audit.System("server", "regular collection"))
	for after := quota.ID(""); ; {
		page, err := s.db.Quotas().List(ctx, quota.Query{Tenant: quota.AnyTenant, After: after, Limit: upkeepPage})
		if err != nil {
			return err
		}
		for _, r := range page {
			after = r.ID
			if err := s.collectIfDue(ctx, r, every); err != nil {
				return fmt.Errorf("collect cloud repository %s: %w", r.ID, err)
			}
		}
		if len(page) < upkeepPage {
			return nil
		}
	}
}

// keepRuns is how long ended runs, of this server and of the agents, are
// remembered: a year, and some weeks for those who look back at it.
const keepRuns = 400 * 24 * time.Hour

// prune forgets runs that ended before a time.
func (s *repositories) prune(ctx context.Context, before time.Time) error {
	_, err := s.db.Runs().Prune(ctx, before)
	_, reports := s.db.PruneReports(ctx, before)
	return errors.Join(err, reports)
}

// upkeepPage is how many cloud repositories are looked at in one query.
const upkeepPage = 100

func (s *repositories) collectIfDue(ctx context.Context, r quota.CloudRepository, every time.Duration) error {
	if location, err := s.db.Locations().Get(ctx, r.LocationID); err != nil || location.ReadOnly {
		return err
	}
	subject := api.SubjectOf(string(r.ID))
	last, err := s.db.Runs().List(ctx, job.Query{All: true, Kind: api.RunCollect, Subject: subject, Limit: 1})
	if err != nil {
		return err
	}
	since := r.Created
	if len(last) > 0 {
		since = last[0].Created
	}
	if time.Since(since) < every {
		return nil
	}
	run, err := api.RunFor(api.RunCollect, r, api.RunSpec{})
	if err != nil {
		return err
	}
	if _, err = s.db.Runs().Create(ctx, run); errors.Is(err, job.ErrActive) {
		return nil
	}
	return err
}

// eraseRetired deletes the objects of cloud repositories whose tenant was
// deleted together with its backups. What cannot be deleted now is tried again
// at the next round.
func (s *repositories) eraseRetired(ctx context.Context) {
	for after := quota.ID(""); ; {
		page, err := s.db.Quotas().List(ctx, quota.Query{Tenant: quota.AnyTenant, Retired: true, After: after, Limit: upkeepPage})
		if err != nil {
			s.log.ErrorContext(ctx, "look for cloud repositories to erase", "error", err)
			return
		}
		for _, r := range page {
			after = r.ID
			if r.Backups != tenant.BackupsDelete {
				continue
			}
			var held *claim.HeldError
			switch err := s.erase(ctx, r); {
			case errors.As(err, &held):
			case err != nil:
				s.log.ErrorContext(ctx, "erase cloud repository", "repository", r.ID, "tenant", r.TenantID, "error", err)
			default:
				s.log.InfoContext(ctx, "cloud repository of a deleted tenant erased", "repository", r.ID, "tenant", r.TenantID)
			}
		}
		if len(page) < upkeepPage {
			return
		}
	}
}

func (s *repositories) erase(ctx context.Context, r quota.CloudRepository) (err error) {
	s.mu.Lock()
	o := s.opened[r.ID]
	s.mu.Unlock()
	if o != nil { // sessions of the tenant may still end there; its claim goes with it
		<-o.ready
		s.drop(r.ID, o)
		if o.err == nil {
			if err := o.close(); err != nil {
				return err
			}
		}
	}
	location, err := s.db.Locations().Get(ctx, r.LocationID)
	if err != nil {
		return err
	}
	work, held, err := claim.Hold(ctx, s.db.Claims(), claim.Resource("repository/"+string(r.ID)), s.holder, 0)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, held.Release()) }()
	// Nothing is deleted on the word of a list that was read before the claim.
	if now, err := s.db.Quotas().Get(work, quota.AnyTenant, r.ID); err != nil || now.Retired.IsZero() || now.Backups != tenant.BackupsDelete {
		return errors.Join(err, errors.New("it is not to be erased any more"))
	}
	blobs, err := dir.Open(location.Path, dir.Options{})
	if err != nil {
		return fmt.Errorf("open repository %q: %w", location.Name, err)
	}
	defer func() { err = errors.Join(err, blobs.Close()) }()
	if err := repository.Erase(work, repository.Config{ID: string(r.ID), Blobs: blobs, Index: s.index, SpoolDir: filepath.Join(s.data, "spool")}); err != nil {
		return err
	}
	return s.db.Erased(audit.With(work, audit.System("server", "the tenant was deleted together with its backups")), r.ID, uint64(held.Epoch()))
}
