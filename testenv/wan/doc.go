// Package wan is a long line between two machines, for tests and measurements:
// it delays, limits, loses and reorders packets, and can be cut, stalled and
// healed while programs talk over it.
//
// Each end is a network namespace, so the TCP of both ends is the kernel's own
// and behaves as it would between two cities, with CUBIC, Linux's default. The line between them is this
// process: a TUN device in each namespace, and a goroutine for each direction
// that takes packets from one and gives them to the other when it is their time.
// Nothing but /dev/net/tun and root is needed: no kernel module, no traffic
// control. Nothing survives the process, whatever ends it: the namespaces have
// no name, and the kernel drops them with the last of their processes.
//
//	line := wan.New(t, wan.Quality{Delay: 25 * time.Millisecond, Rate: 100 * wan.Mbit, Loss: 0.001})
//	listener := line.Provider.Listen(…)           // a socket of this process at one end
//	conn, err := line.Tenant.Dial(ctx, address)   // and one at the other
//	stack.Options{ServerPrefix: line.Provider.Prefix(), AgentPrefix: line.Tenant.Prefix()}
//	line.Cut()
//	line.Heal()
//	line.Down.Cut()                               // half open: only answers are lost
//
// # What a packet meets
//
// In this order: a cut; loss, drawn for each packet from a seed, so that the same
// packets are lost in each run that sends the same ones; the queue before the
// narrowest place, which drops what it has no room for; that place's rate; the
// delay, to which jitter and being overtaken by later packets add. A stalled line
// keeps what is on it and goes on where it stopped.
//
// A packet never arrives earlier than it should. It may arrive later where the
// machine is busy: up to some 200 Mbit/s on a core that is otherwise idle the
// line is the slow part, and beyond that this program is. Quality.MTU makes
// larger packets of fewer, where neither loss nor a rate is the point.
package wan
