// Package pki is the provider's trust: its certificate authority, the
// certificates of its servers, those of the tenants' agents, and the checks that
// both sides make of each other.
//
// What a tenant pins is the public key of the CA (its Fingerprint), not a
// certificate: server certificates are issued for 90 days and rotate freely. The
// CA's key is sealed by the master key and lives in the database, so every
// server of a provider uses the same CA.
//
// A provider that has a certificate from a public CA imports it, too, from PEM or
// PFX; tenants then may trust it by its chain and name. Whoever pinned the
// provider's own CA is presented a certificate of that CA as before. Agent
// certificates always come from the provider's own CA.
//
// An agent keeps one key for its whole life: a certificate is renewed for the
// same key, so an answer that got lost on the way back does no harm. Certificates
// last 30 days and are renewed when a third of that has passed; one that expired
// may do nothing but renew, for 90 days, unless its agent was revoked. Listeners
// request client certificates without verifying them and ask VerifyAgent, which
// can tell an expired certificate from a foreign one.
package pki
