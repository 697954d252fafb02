package quota

import (
	"fmt"

	"github.com/holdfast-dr/holdfast/core/tenant"
)

// Adoption gives a tenant a cloud repository together with objects that lie
// under its id in a location already: those of a database that was lost, or of
// a tenant that was deleted while its backups were kept.
type Adoption struct {
	CloudRepository
	// Whose is the name of the tenant whose backups these are, as far as it is
	// written down beside them; empty if it is not.
	Whose string
	// WhoseID is that tenant's id. A tenant that still has it needs no name.
	WhoseID tenant.ID
	// Said is the name that the caller gave for the former tenant; empty if none.
	Said string
}

// Permit keeps backups from coming into somebody else's hands by a mistyped id
// or tenant. A tenant of the same id or name takes its own; for anybody else
// the former tenant has to be named, and so it has to be where nothing tells
// whose the backups were.
func (a Adoption) Permit(taker tenant.Tenant) error {
	said, whose := tenant.Fold(a.Said), tenant.Fold(a.Whose)
	switch {
	case a.Said != "" && a.Whose == "":
		return nil
	case a.Said != "" && said == whose:
		return nil
	case a.Said == "" && (a.WhoseID != tenant.Provider && a.WhoseID == taker.ID || a.Whose != "" && whose == tenant.Fold(taker.Name)):
		return nil
	}
	return &StrangerError{ID: a.ID, Whose: a.Whose, Taker: taker.Name, Said: a.Said}
}

// StrangerError refuses to give one tenant's backups to another one.
type StrangerError struct {
	ID    ID
	Whose string // empty: unknown
	Taker string
	Said  string
}

// Error says whose they are.
func (e *StrangerError) Error() string {
	switch {
	case e.Whose == "":
		return fmt.Sprintf("nothing under %s says whose backups these are", e.ID)
	case e.Said != "":
		return fmt.Sprintf("the backups under %s are those of tenant %q, not of %q", e.ID, e.Whose, e.Said)
	}
	return fmt.Sprintf("the backups under %s are those of tenant %q, not of %q", e.ID, e.Whose, e.Taker)
}

// Hint says how it is done on purpose.
func (e *StrangerError) Hint() string {
	if e.Whose == "" {
		return "find out which tenant they belong to, and name it: --former-tenant NAME"
	}
	return "check the id; to give them to another tenant all the same, name the former one: --former-tenant NAME"
}

// TakenError refuses an id that a cloud repository has.
type TakenError struct {
	ID     ID
	Name   string // of the cloud repository that has it
	Erased bool   // it is that of a deleted tenant, and its objects are being deleted
}

// Error says what has the id.
func (e *TakenError) Error() string {
	if e.Erased {
		return fmt.Sprintf("the backups under %s are being deleted, as it was decided when their tenant was", e.ID)
	}
	return fmt.Sprintf("cloud repository %q has the id %s", e.Name, e.ID)
}

// Hint says what helps.
func (e *TakenError) Hint() string {
	if e.Erased {
		return "they cannot be taken over any more"
	}
	return "it is in use already, see: holdfast cloud-repository list; to rebuild its catalogue: holdfast repository import"
}

// Is makes it a tenant.ErrExists.
func (e *TakenError) Is(target error) bool { return target == tenant.ErrExists }

// ElsewhereError refuses to adopt what a deleted tenant kept under another
// location than its own.
type ElsewhereError struct {
	ID         ID
	LocationID string
}

// Error names the location.
func (e *ElsewhereError) Error() string {
	return fmt.Sprintf("the kept backups under %s lie in repository %s", e.ID, e.LocationID)
}

// Hint says what helps.
func (e *ElsewhereError) Hint() string { return "name that repository: --repository " + e.LocationID }
