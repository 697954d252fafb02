package main

import (
	"bytes"
	"errors"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/holdfast-dr/holdfast/core/chunk"
	"github.com/holdfast-dr/holdfast/core/gateway"
	"github.com/holdfast-dr/holdfast/core/quota"
)

// limit sets the quota of the site's cloud repository.
func (s *testSite) limit(bytes int64) {
	s.p.t.Helper()
	r := s.charged()
	r.LimitBytes = bytes
	if _, err := s.p.server.db.Quotas().Update(s.p.ctx, r); err != nil {
		s.p.t.Fatal(err)
	}
}

func (s *testSite) charged() quota.CloudRepository {
	s.p.t.Helper()
	r, err := s.p.server.db.Quotas().Get(s.p.ctx, s.p.tenant().ID, quota.ID(s.repository.ID()))
	if err != nil {
		s.p.t.Fatal(err)
	}
	return r
}

// packed is what the packs of the provider's store take on disk.
func (p *provider) packed() (bytes int64) {
	p.t.Helper()
	err := filepath.WalkDir(p.data, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.Contains(path, "/packs/") && !strings.Contains(path, "/maps/") {
			return err
		}
		info, err := d.Info()
		bytes += info.Size()
		return err
	})
	if err != nil {
		p.t.Fatal(err)
	}
	return bytes
}

// Whoever sends and gives up, again and again, comes to the end of the quota as
// whoever commits does.
func TestGivingUpMakesNoRoom(t *testing.T) {
	p := newProvider(t)
	site := p.enrol(p.env("HOLDFAST_ENROLMENT_TOKEN"))
	const limit = 21 * chunk.Size / 2
	site.limit(limit)
	var arrived int64
	round := func() error {
		session, err := site.repository.Begin(p.ctx, newMachine(), "")
		if err != nil {
			t.Fatal(err)
		}
		batch := bytes.Join(site.seal(session.ID(), 3).records, nil)
		err = session.Put(p.ctx, batch)
		if err == nil {
			arrived += int64(len(batch))
		}
		return errors.Join(err, session.Abort(p.ctx))
	}
	for range 3 {
		if err := round(); err != nil {
			t.Fatalf("what fits: %v", err)
		}
	}
	for again := range 3 {
		err := round()
		full, ok := errors.AsType[*quota.FullError](err)
		if !ok || gateway.HintOf(err) == "" {
			t.Fatalf("round %d above the quota: %v", again, err)
		}
		if want := (quota.FullError{Repository: full.Repository, LimitBytes: limit, PendingBytes: arrived, WantedBytes: full.WantedBytes}); *full != want {
			t.Errorf("refusal says %+v, want %+v", *full, want)
		}
		if again == 1 {
			p.restart()
		}
	}
	if r := site.charged(); r.UsedBytes != 0 || r.PendingBytes != arrived || r.UnreferencedBytes != arrived {
		t.Errorf("charged: %d used, %d pending, %d of it in no point; %d bytes arrived", r.UsedBytes, r.PendingBytes, r.UnreferencedBytes, arrived)
	}
	if packed := p.packed(); packed < arrived || packed > arrived+64<<10 {
		t.Errorf("packs take %d bytes for %d that arrived", packed, arrived)
	}
	info, err := site.Site(p.ctx)
	if err != nil || info.Repositories[0].PendingBytes != arrived {
		t.Errorf("the tenant sees %+v, %v", info.Repositories, err)
	}
}

// A run that breaks, whatever way, does not stand in the way of the next one,
// not even where the quota fits the point to the byte.
func TestBrokenRunIsRetriedWithinAnExactQuota(t *testing.T) {
	for _, how := range []string{"given up", "server restarted", "answer lost"} {
		t.Run(how, func(t *testing.T) {
			p := newProvider(t)
			site := p.enrol(p.env("HOLDFAST_ENROLMENT_TOKEN"))
			session, err := site.repository.Begin(p.ctx, newMachine(), "")
			if err != nil {
				t.Fatal(err)
			}
			c := site.seal(session.ID(), 12)
			root, encoded := page(c.ids)
			exact := int64(len(bytes.Join(c.records, nil)) + len(chunk.AppendPage(nil, session.ID(), root, encoded)))
			if how == "answer lost" { // else more is reserved at first than is needed
				site.limit(exact)
			}
			if err := session.Put(p.ctx, bytes.Join(c.records[:9], nil)); err != nil {
				t.Fatal(err)
			}
			site.limit(exact)
			machine := session.Info().Machine
			switch how {
			case "given up":
				if err := session.Abort(p.ctx); err != nil {
					t.Fatal(err)
				}
				if session, err = site.repository.Begin(p.ctx, machine, ""); err != nil {
					t.Fatal(err)
				}
			case "server restarted":
				p.restart()
				if session, err = site.repository.Resume(p.ctx, session.ID()); err != nil {
					t.Fatal(err)
				}
			case "answer lost":
				for range 3 {
					if err := session.Put(p.ctx, bytes.Join(c.records[:9], nil)); err != nil {
						t.Fatalf("sent again: %v", err)
					}
				}
			}
			have, err := session.Have(p.ctx, chunk.KindData, c.ids)
			if err != nil || slices.Contains(have[:9], false) || slices.Contains(have[9:], true) {
				t.Fatalf("have %v, %v; want what had arrived", have, err)
			}
			rest := []byte{}
			for _, plain := range c.plain[9:] {
				if rest, err = site.keys.NewSealer(session.ID()).Append(rest, site.keys.ID(plain), plain); err != nil {
					t.Fatal(err)
				}
			}
			if err := session.Put(p.ctx, chunk.AppendPage(rest, session.ID(), root, encoded)); err != nil {
				t.Fatalf("the rest: %v", err)
			}
			if err := session.Commit(p.ctx, site.manifest(session, root, 12)); err != nil {
				t.Fatalf("commit: %v", err)
			}
			if r := site.charged(); r.UsedBytes != exact || r.PendingBytes != 0 || r.UnreferencedBytes != 0 {
				t.Errorf("%d bytes are used, %d pending, want %d and none", r.UsedBytes, r.PendingBytes, exact)
			}
			site.mustRestore(c)
		})
	}
}
