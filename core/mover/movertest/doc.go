// Package movertest holds the two ends of a copy in memory: a repository of
// records and a sparse disk, both of which count what is asked of them and fail
// on request. Tests of the mover and of the verbs above it use them.
package movertest
