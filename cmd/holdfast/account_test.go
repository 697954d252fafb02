package main

import (
	"bytes"
	"encoding/json"
	"io/fs"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/core/api"
	"github.com/holdfast-dr/holdfast/core/chunk"
	"github.com/holdfast-dr/holdfast/core/job"
	"github.com/holdfast-dr/holdfast/core/quota"
)

// runOn has a run about a cloud repository done, and waits for its end.
func (p *provider) runOn(kind job.Kind, r quota.CloudRepository) job.Run {
	p.t.Helper()
	run, err := api.RunFor(kind, r, api.RunSpec{})
	if err == nil {
		run, err = p.server.db.Runs().Create(p.ctx, run)
	}
	if err != nil {
		p.t.Fatal(err)
	}
	p.server.runner.Wake()
	deadline := time.After(time.Minute)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		if run, err = p.server.db.Runs().Get(p.ctx, run.TenantID, run.ID); err != nil {
			p.t.Fatal(err)
		}
		if run.State.Final() {
			return run
		}
		select {
		case <-tick.C:
		case <-deadline:
			p.t.Fatalf("run %s does not end: %+v", kind, run)
		}
	}
}

// onDisk is what the files of a cloud repository take.
func (p *provider) onDisk(cloud quota.ID) (sum int64) {
	p.t.Helper()
	err := filepath.WalkDir(p.data, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.Contains(path, "/"+string(cloud)+"/") || strings.Contains(path, "/spool/") {
			return err
		}
		info, err := d.Info()
		sum += info.Size()
		return err
	})
	if err != nil {
		p.t.Fatal(err)
	}
	return sum
}

// The account of a cloud repository is that of its files, with a point, with
// what a session gave up, and after a charge went wrong.
func TestAccountsAreThoseOfTheDisk(t *testing.T) {
	p := newProvider(t)
	site := p.enrol(p.env("HOLDFAST_ENROLMENT_TOKEN"))
	account := func() (v accountResult, state job.State) {
		t.Helper()
		run := p.runOn(api.RunAccount, site.charged())
		if err := json.Unmarshal(run.Result, &v); err != nil {
			t.Fatalf("%v: %+v", err, run)
		}
		if sum, disk := v.LiveBytes+v.PendingBytes+v.BinBytes+v.WasteBytes+v.OverheadBytes, p.onDisk(site.charged().ID); sum != v.TotalBytes || sum != disk {
			t.Errorf("the parts of %+v add up to %d, the files to %d", v, sum, disk)
		}
		return v, run.State
	}
	_, kept := site.mustBackup(5)
	site.mustRestore(kept)
	v, state := account()
	if used := site.charged().UsedBytes; !v.Balanced || v.Busy || state != job.Succeeded || v.LiveBytes != used || used == 0 || v.WasteBytes != 0 {
		t.Errorf("with one point: %+v, %s; charged are %d", v, state, used)
	}
	session, err := site.repository.Begin(p.ctx, newMachine(), "")
	if err != nil {
		t.Fatal(err)
	}
	batch := bytes.Join(site.seal(session.ID(), 3).records, nil)
	if err := session.Put(p.ctx, batch); err != nil {
		t.Fatal(err)
	}
	if v, state = account(); v.SpooledBytes <= 3*chunk.Size || v.PendingBytes != 0 || state != job.Succeeded {
		t.Errorf("with an open session: %+v, %s", v, state)
	}
	if err := session.Abort(p.ctx); err != nil {
		t.Fatal(err)
	}
	if v, state = account(); v.SpooledBytes != 0 || v.PendingBytes != int64(len(batch)) || !v.Balanced || state != job.Succeeded {
		t.Errorf("with a session that was given up: %+v, %s", v, state)
	}
	id := string(site.charged().ID)
	held, err := p.server.repositories.hold(p.ctx, site.charged())
	if err != nil {
		t.Fatal(err)
	}
	if err := p.server.db.Catalogue().Settle(p.ctx, id, held.repository.Epoch(), v.LiveBytes+1); err != nil {
		t.Fatal(err)
	}
	if v, state = account(); v.Balanced || v.ChargedBytes != v.LiveBytes+1 || state != job.Warned {
		t.Errorf("with a wrong charge: %+v, %s", v, state)
	}
	if run := p.runOn(api.RunCollect, site.charged()); run.State != job.Succeeded {
		t.Errorf("collect: %+v", run)
	}
	if v, state = account(); !v.Balanced || state != job.Succeeded {
		t.Errorf("after the collection that its hint names: %+v, %s", v, state)
	}
}
