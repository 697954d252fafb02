// Package blobtest is the suite that every blob store passes, and a wrapper
// that makes any store fail on request, for the tests of those who use one.
package blobtest
