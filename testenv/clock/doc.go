// Package clock starts programs whose wall clock is another one: it can jump by
// minutes or months, forwards and back, while the program runs. Tests use it for
// what depends on dates, with the real programs and without waiting.
//
//	c := clock.New(t)
//	stack.Options{ServerPrefix: c.Prefix()}
//	c.Move(31 * 24 * time.Hour)
//
// # How
//
// The kernel stops each clock_gettime(CLOCK_REALTIME) of the program and asks this
// process for the answer (seccomp's user notification). Reading the clock is
// normally no system call, so the program is started without the page that makes
// it one less: its auxiliary vector does not mention it. The monotonic clock,
// which timers use, is the kernel's own, as when somebody sets a computer's clock.
package clock
