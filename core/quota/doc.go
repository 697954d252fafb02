// Package quota says how much: the cloud repository, a tenant's named share of
// one of the provider's repositories, with a limit in bytes.
//
// Space is reserved before data is taken in, and charged when the point that
// needs it is committed; the rest of the reservation is released. Each of the
// three is one conditional UPDATE in the store, which is what keeps two writers
// from spending the same bytes: used + pending never exceeds the limit by a
// reservation. (An import after a disaster and the return of a point from the
// bin may exceed it, and then block new backups only.)
//
// A reservation belongs to a session and expires when the session stays idle.
// What the session brought is charged in its place as soon as it is stored: as
// unreferenced, until a point uses it or it is collected. So a session that is
// given up makes no room, and its bytes are not counted twice when the next one
// finds them.
package quota
