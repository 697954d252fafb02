// Package tenant says who rents: the tenant, the rules for its name and
// contract, and the store that keeps it.
//
// Isolation begins here. Every store of the provider takes the tenant's ID
// next to the object's, and answers ErrNotFound alike for what does not exist
// and for what belongs to somebody else, so that nobody learns the other's ids.
// Rooms on higher floors use ErrNotFound, ErrExists and InvalidError of this
// package for their own scoped objects.
//
// A tenant is never edited by two operators blindly: Update carries the
// version that its caller read and is refused with ErrChanged when another
// edit came first.
package tenant
