package quota

import (
	"errors"
	"strings"
	"testing"

	"github.com/holdfast-dr/holdfast/core/tenant"
)

func TestRules(t *testing.T) {
	ok := CloudRepository{TenantID: "t", Name: "Gold", LocationID: "l", LimitBytes: TiB, ChunkSize: DefaultChunkSize}
	for field, changes := range map[string][]func(*CloudRepository){
		"":           {func(*CloudRepository) {}, func(r *CloudRepository) { r.LimitBytes = MaxLimit }},
		"name":       {func(r *CloudRepository) { r.Name = "" }, func(r *CloudRepository) { r.Name = strings.Repeat("x", MaxName+1) }, func(r *CloudRepository) { r.Name = "a\tb" }},
		"tenant":     {func(r *CloudRepository) { r.TenantID = tenant.Provider }},
		"repository": {func(r *CloudRepository) { r.LocationID = "" }},
		"quota":      {func(r *CloudRepository) { r.LimitBytes = 0 }, func(r *CloudRepository) { r.LimitBytes = MaxLimit + 1 }},
		"chunk size": {func(r *CloudRepository) { r.ChunkSize = 0 }, func(r *CloudRepository) { r.ChunkSize = 100_000 }, func(r *CloudRepository) { r.ChunkSize = 2 << 20 }},
	} {
		for i, change := range changes {
			r := ok
			change(&r)
			var invalid *tenant.InvalidError
			err := r.Check()
			if got := errors.As(err, &invalid); got != (field != "") || got && invalid.Field != field {
				t.Errorf("%q %d: %v", field, i, err)
			}
		}
	}
}

func TestFiguresOfARefusalAreExact(t *testing.T) {
	e := &FullError{Repository: "Gold", LimitBytes: 10 * GiB, UsedBytes: 9*GiB + GiB/2, PendingBytes: GiB/2 - 100, WantedBytes: 256 << 10}
	if got := e.Error(); got != `cloud repository "Gold" is full: 256.0 KiB wanted, 100 B of 10.0 GiB free (9.5 GiB used, 512.0 MiB pending)` {
		t.Error(got)
	}
	if free := (CloudRepository{LimitBytes: 10, UsedBytes: 30}).FreeBytes(); free != 0 {
		t.Errorf("an overfull repository has %d bytes free", free)
	}
}
