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

// Error says since when.
func (e *EndedError) Error() string {
	return fmt.Sprintf("lease of tenant %q ended on %s", e.Tenant, e.End.UTC().Format("2006-01-02 15:04 MST"))
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
