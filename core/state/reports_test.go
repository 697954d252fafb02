package state

import (
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/core/access"
	"github.com/holdfast-dr/holdfast/core/gateway"
	"github.com/holdfast-dr/holdfast/core/tenant"
)

var _ = both("ReportsKeepTheNewestAndForgetTheOld", func(t *testing.T, db *DB) {
	ctx, s := t.Context(), db.Reports()
	mine, other := newTenant(t, db, "mine").ID, newTenant(t, db, "other").ID
	agent := access.Agent{ID: "agent-1", TenantID: mine}
	started := time.Now().Add(-time.Hour)
	put := func(a access.Agent, run string, sequence int64, state string) {
		t.Helper()
		if err := s.Put(ctx, a, run, gateway.RunEvent{Sequence: sequence, State: state, Started: started}); err != nil {
			t.Fatal(err)
		}
	}
	list := func(in tenant.ID) []gateway.Report {
		t.Helper()
		return must[[]gateway.Report](t)(s.List(ctx, in, time.Time{}, 0))
	}
	put(agent, "run", 2, "succeeded")
	put(agent, "run", 1, "running")
	put(access.Agent{ID: "agent-2", TenantID: mine}, "run", 3, "failed")
	put(access.Agent{ID: "agent-1", TenantID: other}, "run", 9, "failed")
	if got := list(mine); len(got) != 1 || got[0].Event.State != "succeeded" || got[0].Agent != "agent-1" {
		t.Errorf("an older event, another agent or another tenant changed it: %+v", got)
	}
	if n := must[int64](t)(db.PruneReports(ctx, time.Now().Add(-time.Minute))); n != 0 || len(list(mine)) != 1 {
		t.Errorf("forgot %d that had just come", n)
	}
	if n := must[int64](t)(db.PruneReports(ctx, time.Now().Add(time.Hour))); n != 2 || len(list(mine))+len(list(other)) != 0 {
		t.Errorf("forgot %d, want 2", n)
	}
})
