// Package state is the database behind the rooms' stores: SQLite for one server
// or an agent, PostgreSQL for any number of servers, with one SQL text for both.
//
// Each room declares the store it needs; a method of DB returns the store that
// implements it (Tenants, Users, Quotas, Claims, Runs, …). Only cmd and tests
// import this package.
//
// # Transactions
//
// One store method is one whole transaction, and no transaction leaves the
// package. Inside there are three ways in:
//
//	db.read(ctx, func(tx *tx) error)    one consistent view, writes nothing
//	db.write(ctx, func(tx *tx) error)   bookkeeping that nobody decided
//	db.change(ctx, func(tx *tx) error)  a decision: refused without an audit origin
//
// The function may run again after a conflict in PostgreSQL, so it sets its
// results and appends to none, and does nothing outside the database. It must
// not call another method of DB: SQLite has one writer, which it would wait for
// for ever. A change that ends without a call of tx.audit is a fault and rolls
// back.
//
// What a transaction offers:
//
//	tx.now(ctx)                      the clock: the database's on PostgreSQL
//	tx.exec(ctx, sql, args…)         rows affected
//	tx.row(ctx, sql, args…)          one row; scan gives sql.ErrNoRows
//	tx.each(ctx, scan, sql, args…)   every row
//	tx.audit(ctx, chain, action, target, detail)   an entry, and the head moves
//	tx.fence(ctx, resource, epoch)   ErrFenced unless the claim still has this
//	                                 epoch; held until the transaction ends
//	tx.reserve / tx.settle / tx.credit             quota, all conditional
//
// Locks are taken in one order, so that PostgreSQL never sees a circle: claim or
// run, then what the method is about, then quota, then the tenant's audit chain,
// then the provider's.
//
// # Rules for SQL
//
// Parameters are $1, $2 … in any order and number; only modernc's driver reads
// them as PostgreSQL does, and a test asserts it. Times are microseconds (BIGINT,
// 0 for none), ids and JSON are TEXT, sealed bytes BYTEA. An integer parameter
// that stands only beside a literal needs CAST($n AS BIGINT), a text between two
// parameters CAST($n AS TEXT), for PostgreSQL infers the type from what stands
// beside it. A row is locked by an UPDATE of it, never by FOR UPDATE, and a limit
// is kept by a condition in the UPDATE, never by a SELECT before it.
//
// # When it is lost
//
// RECOVERY.md is for the provider: what to back up, and every way back.
//
// # Migrations
//
// goose files under migrations: shared (both databases), server, agent. Versions
// are unique over shared and each of the others, and a new file's is higher than
// every released one's in any of the three, since goose refuses to go back. A
// released file is never edited.
package state
