// Package access says who calls and what they may do: users of the provider and
// of tenants with their roles, the bearer tokens of people and scripts, the
// agents of tenants, and the one-time tokens with which agents enrol.
//
// A Caller travels in the context (With, From). What it may do is decided by
// May alone; where a tenant's data is concerned the store repeats the scope in
// its query, so that a forgotten check in a handler still finds nothing.
//
// No credential can be read back: tokens are kept as SHA-256, which is enough
// for 256 random bits, passwords as argon2id. Verifying a password costs 64 MiB
// of memory, so Passwords bounds how many are verified at once.
package access
