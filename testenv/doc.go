// Package testenv is the real world that tests and the demo run against: hypervisors, tiny guests, databases, networks.
//
// setup.sh installs what a fresh Debian 12 lacks; it is the only place that installs anything. Need and its relatives are
// the only place that decides what a test does when something is still missing: on a developer's machine the test is
// skipped with one line that names the missing thing and the command that installs it; where CI=true it fails, so that a
// green run never hides a suite that did not run.
//
// Tests of any room may import this package. It imports nothing of ours, and only tests and the demo import it.
package testenv
