package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/holdfast-dr/holdfast/core/access"
	"github.com/holdfast-dr/holdfast/core/audit"
	"github.com/holdfast-dr/holdfast/core/blob"
	"github.com/holdfast-dr/holdfast/core/quota"
	"github.com/holdfast-dr/holdfast/core/tenant"
)

// What `server -dev` prepares.
const (
	devTenant     = "demo"
	devLocation   = "demo-store"
	devRepository = "backups"
	devSite       = "demo-site"
	devQuota      = 100 * quota.GiB
	devTasks      = 4
	devFile       = "dev.env"
)

// devCredentials are what a newcomer needs, and scripts read from dev.env.
type devCredentials struct {
	Address     string `json:"address"`
	Fingerprint string `json:"fingerprint"`
	Token       string `json:"token"`
	Enrolment   string `json:"enrolment_token"`
	Tenant      string `json:"tenant"`
	Repository  string `json:"cloud_repository"`
	Data        string `json:"data"`
}

// announce prepares the demo tenant at the first start and prints what is
// needed to use it; at a later start of the same directory it only says where.
func (a *app) announce(ctx context.Context, s *server) error {
	file := filepath.Join(s.config.Data, devFile)
	if _, err := os.Stat(file); err == nil {
		a.say("Holdfast provider at %s, data in %s", s.config.Address, s.config.Data)
		a.say("fingerprint       %s", s.authority.Fingerprint())
		a.say("The credentials of the first start are in %s", file)
		return refreshDev(file, map[string]string{"ADDRESS": s.config.Address, "FINGERPRINT": s.authority.Fingerprint().String()})
	} else if !errors.Is(err, os.ErrNotExist) {
		return err
	}
	c, err := s.demo(audit.With(ctx, audit.System("server", "demo provider")))
	if err != nil {
		return fmt.Errorf("prepare the demo provider: %w", err)
	}
	env := fmt.Sprintf("HOLDFAST_ADDRESS=%s\nHOLDFAST_FINGERPRINT=%s\nHOLDFAST_TOKEN=%s\nHOLDFAST_ENROLMENT_TOKEN=%s\nHOLDFAST_CLOUD_REPOSITORY=%s\n",
		c.Address, c.Fingerprint, c.Token, c.Enrolment, c.Repository)
	if err := replaceFile(file, []byte(env)); err != nil {
		return fmt.Errorf("keep the demo credentials: %w", err)
	}
	if a.output == "json" {
		return a.json(c)
	}
	a.say(`Holdfast provider for trying out: everything is in %s; delete it and nothing is left.
These credentials are printed this once (and kept in %s for you alone).

address           %s
fingerprint       %s
provider token    %s
enrolment token   %s
tenant            %s, cloud repository %s of %s

As the provider, in another terminal:
  set -a; . %s; set +a
  holdfast tenant list

As the tenant, with the enrolment token in a file or typed when asked:
  holdfast agent connect %s --fingerprint %s
  holdfast agent serve
`, c.Data, file, c.Address, c.Fingerprint, c.Token, c.Enrolment, devTenant, devRepository, bytesText(devQuota), file, c.Address, c.Fingerprint)
	return nil
}

// refreshDev writes what holds at this start into the credentials.
func refreshDev(file string, now map[string]string) error {
	text, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	lines := strings.SplitAfter(string(text), "\n")
	for i, line := range lines {
		name, _, _ := strings.Cut(strings.TrimPrefix(line, "HOLDFAST_"), "=")
		if value, ok := now[name]; ok {
			lines[i] = "HOLDFAST_" + name + "=" + value + "\n"
		}
	}
	return replaceFile(file, []byte(strings.Join(lines, "")))
}

// demo makes a tenant with a cloud repository, and tokens for both sides. What
// an interrupted first start left is used.
func (s *server) demo(ctx context.Context) (devCredentials, error) {
	c := devCredentials{Address: s.config.Address, Fingerprint: s.authority.Fingerprint().String(), Tenant: devTenant, Data: s.config.Data}
	t, err := s.db.Tenants().ByName(ctx, devTenant)
	if errors.Is(err, tenant.ErrNotFound) {
		t, err = s.db.Tenants().Create(ctx, tenant.Tenant{Type: tenant.Standalone, Name: devTenant, Description: "made by server -dev", Enabled: true, MaxTasks: devTasks})
	}
	if err != nil {
		return c, err
	}
	location, err := s.devLocation(ctx)
	if err != nil {
		return c, err
	}
	cloud, err := s.devCloud(ctx, t.ID, location)
	if err != nil {
		return c, err
	}
	c.Repository = string(cloud)
	admin, err := s.db.Users().UserByName(ctx, tenant.Provider, "admin")
	if err != nil {
		return c, err
	}
	text, hash := access.NewToken()
	if _, err := s.db.Users().CreateToken(ctx, access.Token{UserID: admin.ID, Name: "demo", Hash: hash}); err != nil {
		return c, err
	}
	c.Token = text
	text, hash = access.NewEnrolmentToken()
	_, err = s.db.Agents().CreateEnrolment(ctx, access.Enrolment{TenantID: t.ID, Site: devSite, Hash: hash, Expires: s.started.Add(access.DefaultEnrolment)})
	c.Enrolment = text
	return c, err
}

func (s *server) devLocation(ctx context.Context) (string, error) {
	all, err := s.db.Locations().List(ctx)
	if err != nil {
		return "", err
	}
	for _, l := range all {
		if l.Name == devLocation {
			return l.ID, nil
		}
	}
	l, err := blob.Location{Name: devLocation, Kind: blob.LocationDir, Path: filepath.Join(s.config.Data, "repository")}.Clean()
	if err != nil {
		return "", err
	}
	if err := prepareLocation(ctx, l); err != nil {
		return "", err
	}
	l, err = s.db.Locations().Create(ctx, l)
	return l.ID, err
}

func (s *server) devCloud(ctx context.Context, t tenant.ID, location string) (quota.ID, error) {
	all, err := s.db.Quotas().List(ctx, quota.Query{Tenant: t})
	if err != nil {
		return "", err
	}
	if len(all) > 0 {
		return all[0].ID, nil
	}
	r, err := s.db.Quotas().Create(ctx, quota.CloudRepository{TenantID: t, Name: devRepository, LocationID: location,
		LimitBytes: devQuota, ChunkSize: quota.DefaultChunkSize})
	return r.ID, err
}
