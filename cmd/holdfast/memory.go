package main

import "runtime/debug"

// gcPercent is how much garbage the daemons let grow beside what they use, in
// per cent of it. Both stream disks through fixed buffers, so there is little
// to collect and much to save: measured on a disk of 4 GiB, 50 instead of Go's
// 100 takes a fifth off the peak and costs nothing that can be told from noise.
const gcPercent = 50

// boundGarbage sets gcPercent unless the operator has set GOGC.
func (a *app) boundGarbage() {
	if a.env("GOGC") == "" {
		debug.SetGCPercent(gcPercent)
	}
}
