// Package secret holds the master key, which seals and opens what the database
// keeps: the CA's key, plugin credentials, provider-held keyrings. The key lies
// outside the database, so a dump of the database alone opens nothing.
//
// Every sealed text is bound to a purpose ("pki/ca", "endpoint/ID"): moved to
// another row it does not open. A text names the key that sealed it, so that a
// server that was started with the wrong key file says so at once.
//
// The key comes from a URL: file:PATH today. Sealing uses the standard library
// (HKDF-SHA-256 and AES-256-GCM) rather than gocloud.dev/secrets: its keepers
// take no associated data, which is what binds a purpose, and a call to a KMS
// for every row would make each read of a setting depend on the network. A KMS
// unwraps the one master key at start instead.
package secret
