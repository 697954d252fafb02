package lease

import (
	"errors"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/core/tenant"
)

func TestTheEndIsExclusive(t *testing.T) {
	end := time.Date(2027, 1, 1, 0, 0, 0, 0, time.UTC)
	v := tenant.Tenant{Name: "acme", Enabled: true, LeaseEnd: end}
	if err := Check(v, end.Add(-time.Microsecond)); err != nil {
		t.Errorf("before the end: %v", err)
	}
	for _, now := range []time.Time{end, end.Add(time.Hour)} {
		var ended *EndedError
		if err := Check(v, now); !errors.As(err, &ended) || !ended.End.Equal(end) || ended.Tenant != "acme" || ended.Hint() == "" {
			t.Errorf("at %s: %v", now, err)
		}
	}
	v.LeaseEnd = time.Time{}
	if err := Check(v, end); err != nil {
		t.Errorf("without an end: %v", err)
	}
}

func TestDisabledComesFirst(t *testing.T) {
	v := tenant.Tenant{Name: "acme", LeaseEnd: time.Unix(1, 0)}
	var disabled *tenant.DisabledError
	if err := Admit(v, time.Now()); !errors.As(err, &disabled) {
		t.Errorf("disabled and ended: %v", err)
	}
	v.Enabled = true
	var ended *EndedError
	if err := Admit(v, time.Now()); !errors.As(err, &ended) {
		t.Errorf("ended: %v", err)
	}
}
