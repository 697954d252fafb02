package repository_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/holdfast-dr/holdfast/core/chunk"
	"github.com/holdfast-dr/holdfast/core/point"
	"github.com/holdfast-dr/holdfast/core/repository"
)

// forge is an agent that sends what it likes.
type forge struct {
	*backup
	ctx context.Context
}

func (s *site) forge() *forge {
	s.t.Helper()
	ctx := testContext(s.t)
	b, err := s.begin(ctx, newMachine(), "")
	if err != nil {
		s.t.Fatal(err)
	}
	return &forge{b, ctx}
}

func (f *forge) chunk(length int, fill byte) chunk.ID {
	f.s.t.Helper()
	plain := make([]byte, length)
	for i := range plain {
		plain[i] = fill
	}
	id := f.s.keys.ID(plain)
	batch, err := f.sealer.Append(nil, id, plain)
	if err == nil {
		err = f.session.Put(f.ctx, batch)
	}
	if err != nil {
		f.s.t.Fatal(err)
	}
	return id
}

func (f *forge) page(level int, ids ...chunk.ID) chunk.ID {
	f.s.t.Helper()
	page := point.Page{Level: level, IDs: make([]chunk.ID, testFanOut)}
	copy(page.IDs, ids)
	encoded := page.Append(nil)
	if err := f.session.Put(f.ctx, chunk.AppendPage(nil, f.session.ID(), point.PageID(encoded), encoded)); err != nil {
		f.s.t.Fatal(err)
	}
	return point.PageID(encoded)
}

// commit sends the manifest of one disk, after an edit.
func (f *forge) commit(size int64, root chunk.ID, edit func(*point.Public)) error {
	f.s.t.Helper()
	p := point.Public{
		Repository: f.s.id, Point: point.NewID(), Machine: f.machine, Session: sessionText(f.session), Taken: time.Now(), Kind: point.KindFull,
		ChunkSize: testChunk, FanOut: testFanOut, Disks: []point.Disk{{SizeBytes: size, Root: root}},
	}
	if edit != nil {
		edit(&p)
	}
	b, err := point.Manifest{Public: p, Private: point.Private{Disks: make([]point.PrivateDisk, len(p.Disks))}}.Seal(f.s.keys)
	if err != nil {
		f.s.t.Fatal(err)
	}
	f.point = p.Point
	return f.session.Commit(f.ctx, b)
}

func TestCommitRefusesWhatNoDiskIs(t *testing.T) {
	s := newSite(t)
	f := s.forge()
	whole, short := f.chunk(testChunk, 1), f.chunk(100, 2)
	leaf := f.page(0, whole, whole)
	for name, err := range map[string]error{
		"short chunk inside the disk":       f.commit(2*testChunk, f.page(0, short, whole), nil),
		"whole chunk at a short end":        f.commit(testChunk+100, leaf, nil),
		"chunk beyond the end":              f.commit(testChunk, leaf, nil),
		"page of another level":             f.commit(2*testChunk, f.page(1, leaf), nil),
		"leaf for a root":                   f.commit(5*testChunk, leaf, nil),
		"page beyond the end":               f.commit(5*testChunk, f.page(1, leaf, chunk.ID{}, leaf), nil),
		"repeated page at the right edge":   f.commit(5*testChunk+100, f.page(1, f.page(0, whole, whole), f.page(0, whole, whole)), nil),
		"manifest of another repository":    f.commit(2*testChunk, leaf, func(p *point.Public) { p.Repository = uuid.NewString() }),
		"manifest of another machine":       f.commit(2*testChunk, leaf, func(p *point.Public) { p.Machine = newMachine() }),
		"manifest of another session":       f.commit(2*testChunk, leaf, func(p *point.Public) { p.Session = "00000000000000000000000000000000" }),
		"manifest with other chunks":        f.commit(2*testChunk, leaf, func(p *point.Public) { p.ChunkSize = 2 * testChunk }),
		"manifest with pages of other size": f.commit(2*testChunk, leaf, func(p *point.Public) { p.FanOut = 8 }),
		"no manifest":                       f.session.Commit(f.ctx, []byte("no manifest")),
	} {
		wantIs(t, name, err, repository.ErrRefused)
	}
	if points, err := s.repo.Points(f.ctx, "", "", 0); err != nil || len(points) != 0 {
		t.Errorf("points: %v, %v", points, err)
	}
	if objects := s.objects("points/"); len(objects) != 0 {
		t.Errorf("refused manifests were stored: %v", objects)
	}
	if err := f.commit(testChunk+100, f.page(0, whole, short), nil); err != nil {
		t.Errorf("a disk as it should be: %v", err)
	}
}

// A tree in which one page stands for thousands of millions of chunks is looked
// through as fast as what it stores.
func TestRepeatedPagesAreLookedThroughOnce(t *testing.T) {
	s := newSite(t)
	f := s.forge()
	id := f.chunk(testChunk, 1)
	chunks := int64(1)
	for level := range 15 {
		id = f.page(level, id, id, id, id)
		chunks *= testFanOut
	}
	if err := f.commit(chunks*testChunk, id, nil); err != nil {
		t.Fatal(err)
	}
	s.wantBooks()
	s.wantSound()
	if record, err := s.repo.Points(f.ctx, "", "", 0); err != nil || record[0].SizeBytes != chunks*testChunk {
		t.Errorf("points: %+v, %v", record, err)
	}
	s.forget(f.point)
	s.collect(repository.CollectOptions{})
	s.wantBooks()
}

func TestCommitOnAForgottenBaseIsChargedWhole(t *testing.T) {
	s, r := newSite(t), seeded(t)
	ctx := testContext(t)
	machine := newMachine()
	d := randomDisk(r, 60*testChunk)
	one := s.backup(machine, "", d)
	used, _ := s.catalogue.Used(s.id)
	b, err := s.begin(ctx, machine, one)
	if err != nil {
		t.Fatal(err)
	}
	manifest, err := b.send(ctx, d)
	if err != nil {
		t.Fatal(err)
	}
	s.forget(one)
	if err := b.session.Commit(ctx, manifest); err != nil {
		t.Fatal(err)
	}
	if after, _ := s.catalogue.Used(s.id); after != used {
		t.Errorf("charged are %d bytes, want the %d of the whole point", after, used)
	}
	s.wantBooks()
	if _, err := s.begin(ctx, machine, one); !errors.Is(err, repository.ErrNotFound) {
		t.Errorf("began on a forgotten base: %v", err)
	}
	s.wantRestore(b.point, d)
}
