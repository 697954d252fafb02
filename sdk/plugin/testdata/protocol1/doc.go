// Package protocol1 is both ends of protocol 1 as they were when it was
// frozen: the code of package plugin and its generated code, copied, and never
// changed since. It stands for the hosts and the plugins that others have
// installed. The tests of package plugin have today's host drive the plugin
// that is made of it (directory plugin), and today's plugins be driven by its
// host.
//
// It uses the nouns, the NBD and the simulator of today, which vendors compile
// against, too: when this package does not compile any more, neither do their
// plugins.
//
// What is here is not improved. A mistake that it shares with the code it was
// copied from is a mistake that is out there.
package protocol1
