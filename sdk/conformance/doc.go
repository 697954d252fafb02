// Package conformance says whether a plugin keeps the contract of package sdk.
// Every plugin runs it in its own tests:
//
//	func TestConformance(t *testing.T) {
//		conformance.Run(t, func(t *testing.T) conformance.Fixture { … })
//	}
//
// and an operator runs the same checks against a binary with "holdfast plugin
// verify". A check is a name, the ability that it is about, and a function;
// Checks lists them. Checks of abilities that a platform does not advertise
// are skipped and named, so a small plugin passes honestly.
//
// The checks share one Fixture and run one after the other. Each has an epoch
// of its own, above those before, as every run in production has: what a check
// that failed left open is ended by the next, which the contract demands
// anyway. A call that answers sdk.ErrPending is asked again.
package conformance
