// Package host keeps plugin processes: it finds, enables, starts, watches,
// bounds, restarts, exchanges and ends them. Everybody else sees an
// sdk.Platform and never a process.
//
// # Rules
//
//   - A plugin is a program called holdfast-plugin-NAME beside the holdfast
//     program or in the plugin directory. It runs only after an operator
//     enabled it: Enable pins the SHA-256 of the binary, and every start
//     compares it again.
//   - There is one process for each endpoint, started on demand, shared by all
//     who opened the endpoint, and ended when it was idle for a while. Its
//     environment is empty but for what the handshake needs. A Starter may run
//     it on another machine.
//   - A platform that Open handed out survives its process. The call during
//     which the process died fails with sdk.ErrUnavailable, for nobody knows
//     whether it took effect; the next call starts a fresh process, and
//     because every mutating call carries an Op.ID, repeating is safe. Disks
//     that were open are gone with the process and are opened again.
//   - Close ends every process. A host that is killed takes its plugins along.
//
// # A plugin that misbehaves
//
// hurts the jobs of its own endpoint and nobody else's. Errors that are its
// fault name it.
//
//	it ends, or never starts       the next one starts at once, then after 1 s, 2 s … 1 min
//	five times in a row            quarantine; one trial after 2 min, 4 min … 1 h; a minute of life ends it
//	three calls without an answer  while no byte of a disk moves: its process is ended, which counts as above
//	an answer breaks the contract  that call fails; the third within 10 min: quarantine until an operator ends it
//	it is not what it said it was  quarantine until an operator ends it
//	its program was exchanged      processes go on, none starts: the plugin is in quarantine everywhere
//	its back-end is down           calls fail, starts pause; that is no reason for a quarantine
//	it logs too much               the rest is counted; a flood makes the plugin wait, not the host
//	it needs too much memory       it dies, before the host does
//	it leaves children behind      they are killed, except guards that it announced
//	it names a disk elsewhere      refused, unless the settings or its policy name the place
//
// Operators end a quarantine by enabling the plugin again, or by reloading it
// after an upgrade. Quarantines last as long as the host: what is still broken
// after a restart is found again.
//
// # Reload
//
//	          old process ─── users go on ──────────────── released, dead or drained: ended
//	Reload ─┤
//	          new process ─ trial: start, Probe ─ trusted ─ new users ─────────────────▶
//	                              │
//	                              └ fails anywhere: ended, nothing has changed
//
// Two versions run side by side until those who have the old one release it,
// it dies, or the drain is over; then they are moved, which to them is as if
// the process had died. A watch of the inventory is moved at once.
//
// # Policy
//
// A policy says how closely a plugin's processes are kept: a user, memory,
// files, processes, CPU time, and where disks may be. Where the host is root,
// an endpoint gets a user of its own, unless the plugin asks for the host's or
// an operator chose another. What the system does not let the host apply is
// said once, and in Status.
//
// # What is known
//
// Status, Logs and WriteMetrics tell how it stands with a plugin at each
// endpoint, what it said last and which calls failed on whose behalf, and what
// it did, by method and by whose fault.
package host
