// Package stack runs the real programs together, each as a process of its own,
// for end-to-end tests, the demo and the bench: a provider's server, a tenant's
// agent with plugins, and the command line as the only way to talk to them.
//
// Processes die with the one that started them, whatever ends it, and their
// CPU time and peak memory are read from the kernel.
package stack
