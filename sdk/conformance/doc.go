// Package conformance is the contract of package sdk as a program: it says
// whether a plugin keeps it. It is used in three ways.
//
// A plugin written in Go runs it in its own tests, in the same process, over a
// local connection, or as the program that users get:
//
//	func TestConformance(t *testing.T) {
//		conformance.Run(t, func(t *testing.T) conformance.Fixture { … })
//	}
//
// An operator, or a vendor in any language, runs the same checks against a
// program, over its socket:
//
//	holdfast plugin verify ./holdfast-plugin-mine --settings lab.json --machine scratch --hook ./lab-hook.sh
//
// And both get a Report, as a table or as JSON, which names the program by its
// digest and the suite by its Version, to be published beside the plugin.
//
// # Checks
//
// A check is a name, the ability that it is about, the rule to which it holds a
// plugin, and a function; Checks lists them. They run one after the other on
// one Fixture. Each has epochs of its own, above those before, as every run in
// production has: what a check that failed left open is ended by the next,
// which the contract demands anyway. A call that answers sdk.ErrPending is
// asked again.
//
// Checks of abilities that a platform does not offer are skipped and named, so
// a small plugin passes honestly, and so are those for which the fixture lends
// no hand: no guest that writes, no process that may be killed, no wire that
// may be cut.
//
// # What a fixture lends
//
// Platform, Fresh and Machine are enough to begin with. For the rest:
//
//   - Write, Read, Remove and Objects are what guests and operators do. A Hook
//     does them as a command, for plugin verify and in any language.
//   - Process is a platform in a process that the checks kill in the middle of
//     every mutating call, and stop until somebody else has taken over. Control
//     makes one of a process that plugin.Start has started.
//   - Wire is the way of the disks' bytes, which the checks cut after so many of
//     them, and hold as the kernel of a stopped host would. It is put around
//     every connection with plugin.Launch.WrapData:
//
// As in:
//
//	wire := new(conformance.Wire)
//	process, err := plugin.Start(ctx, plugin.Launch{…, WrapData: wire.Wrap})
//	control := conformance.Control(process)
//	fixture := conformance.Fixture{Platform: control.Platform, Wire: wire, …}
//
// # Who tests the suite
//
// The simulated hypervisor breaks every rule on request (sim.Breach), one at a
// time and as little as possible. A table in the tests of this package says
// which check is there for which breach: with the breach, this check fails and
// no other does. A check without a breach fails the test, so a new check comes
// with the mistake that it is there to catch. What every call has to keep (the
// call limit, one meaning for an error, honest progress) is taken down in a
// ledger and reported by checks at the end, or all would fail at once.
package conformance
