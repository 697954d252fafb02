// Package scenario holds the end-to-end tests: the real programs, each a process
// of its own, driven through the command line as an operator and a tenant would
// drive them.
package scenario
