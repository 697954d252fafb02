package lease

import (
	"fmt"
	"time"

	"github.com/holdfast-dr/holdfast/core/tenant"
)

// EndedError refuses work because the contract has ended.
type EndedError struct {
	Tenant string    // the tenant's name
	End    time.Time // when the contract ended
}

// Error says since when, in the reader's time zone.
func (e *EndedError) Error() string {
	if day, whole := LastDay(e.End, time.Local); whole {
		return fmt.Sprintf("lease of tenant %q has ended: its last day was %s", e.Tenant, day.Format(time.DateOnly))
	}
	return fmt.Sprintf("lease of tenant %q ended on %s", e.Tenant, e.End.Local().Format("2006-01-02 15:04 MST"))
}

// LastDay is the last day of a contract, for one that ends with a day of the
// zone, as contracts do that were made with a date. Whole is false where it ends
// at some other moment.
func LastDay(end time.Time, zone *time.Location) (day time.Time, whole bool) {
	y, m, d := end.In(zone).Date()
	if !time.Date(y, m, d, 0, 0, 0, 0, zone).Equal(end) {
		return time.Time{}, false
	}
	return time.Date(y, m, d-1, 0, 0, 0, 0, zone), true
}

// Hint says what helps and what is safe.
func (e *EndedError) Hint() string {
	return "stored data is kept; ask the provider to extend the lease"
}

// Check returns nil while the contract runs, else an *EndedError. The end is
// exclusive: at that moment the contract is over. A zero end never comes.
func Check(t tenant.Tenant, now time.Time) error {
	if t.LeaseEnd.IsZero() || now.Before(t.LeaseEnd) {
		return nil
	}
	return &EndedError{Tenant: t.Name, End: t.LeaseEnd}
}

// Admit is what every data request has to pass: the tenant is enabled and its
// contract runs. A disabled tenant is told so first, since extending the lease
// would not help it.
func Admit(t tenant.Tenant, now time.Time) error {
	if !t.Enabled {
		return &tenant.DisabledError{Name: t.Name}
	}
	return Check(t, now)
}
