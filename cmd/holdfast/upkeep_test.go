package main

import (
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/core/api"
	"github.com/holdfast-dr/holdfast/core/job"
)

func TestCollectionStartsWhenItIsDueAndOnlyThen(t *testing.T) {
	p := newProvider(t)
	runs := func() []job.Run {
		t.Helper()
		list, err := p.server.db.Runs().List(p.ctx, job.Query{All: true, Kind: api.RunCollect})
		if err != nil {
			t.Fatal(err)
		}
		return list
	}
	collect := func(every time.Duration) {
		t.Helper()
		if err := p.server.repositories.collectDue(p.ctx, every); err != nil {
			t.Fatal(err)
		}
	}
	if collect(time.Hour); len(runs()) != 0 {
		t.Fatalf("a repository made just now is collected: %+v", runs())
	}
	if collect(time.Nanosecond); len(runs()) != 1 {
		t.Fatalf("%d collections, want one", len(runs()))
	}
	if collect(time.Hour); len(runs()) != 1 {
		t.Error("collected again before it was due")
	}
	p.server.runner.Wake()
	deadline := time.After(30 * time.Second)
	for tick := time.NewTicker(20 * time.Millisecond); !runs()[0].State.Final(); {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("the collection does not end: %+v", runs()[0])
		}
	}
	if r := runs()[0]; r.State != job.Succeeded {
		t.Errorf("the collection ended as %s: %+v", r.State, r.Failure)
	}
}
