package main

import (
	"bytes"
	"io/fs"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/core/chunk"
	"github.com/holdfast-dr/holdfast/core/gateway"
)

// A location that becomes read-only takes nothing new from that moment, also
// where its repositories are open, and what is stored can be restored from it
// although nothing can be written there any more.
func TestReadOnlyLocationOnlyRestores(t *testing.T) {
	p := newProvider(t)
	site := p.enrol(p.env("HOLDFAST_ENROLMENT_TOKEN"))
	one, c := site.mustBackup(4)
	session, err := site.repository.Begin(p.ctx, newMachine(), "")
	if err != nil {
		t.Fatal(err)
	}
	sent := site.seal(session.ID(), 4)
	if err := session.Put(p.ctx, bytes.Join(sent.records, nil)); err != nil {
		t.Fatal(err)
	}
	locations, err := p.server.db.Locations().List(p.ctx)
	if err != nil || len(locations) != 1 {
		t.Fatalf("locations %v, %v", locations, err)
	}
	set := func(readOnly bool) {
		t.Helper()
		l, err := p.server.db.Locations().Get(p.ctx, locations[0].ID)
		if err != nil {
			t.Fatal(err)
		}
		l.ReadOnly = readOnly
		if _, err := p.server.db.Locations().Update(p.ctx, l); err != nil {
			t.Fatal(err)
		}
	}
	objects := func() (names []string) {
		t.Helper()
		err := filepath.WalkDir(locations[0].Path, func(path string, d fs.DirEntry, err error) error {
			if err == nil && !d.IsDir() {
				names = append(names, path)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		return names
	}
	before := objects()
	set(true)
	for range 2 { // as it was open, and opened anew
		site.mustRestore(c)
		if err := session.Put(p.ctx, sent.records[0]); codeOf(err) != gateway.CodeReadOnly {
			t.Errorf("put: %v, want read-only", err)
		}
		if _, err := site.repository.Begin(p.ctx, newMachine(), ""); codeOf(err) != gateway.CodeReadOnly {
			t.Errorf("begin: %v, want read-only", err)
		}
		if err := site.repository.Forget(p.ctx, one); codeOf(err) != gateway.CodeReadOnly {
			t.Errorf("forget: %v, want read-only", err)
		}
		if err := p.server.repositories.collectDue(p.ctx, time.Nanosecond); err != nil {
			t.Error(err)
		}
		p.restart()
	}
	if after := objects(); !slices.Equal(before, after) {
		t.Errorf("objects were %v and are %v", before, after)
	}
	set(false)
	have, err := session.Have(p.ctx, chunk.KindData, sent.ids)
	if err != nil || !have[0] || !have[3] {
		t.Errorf("what was sent before: %v, %v; want all there", have, err)
	}
	site.mustBackup(4)
}
