// Package host keeps plugin processes: it finds, enables, starts, watches,
// restarts and ends them. Everybody else sees an sdk.Platform and never a
// process.
//
// # Rules
//
//   - A plugin is a program called holdfast-plugin-NAME beside the holdfast
//     program or in the plugin directory. It runs only after an operator
//     enabled it: Enable pins the SHA-256 of the binary, and every start
//     compares it again.
//   - There is one process for each endpoint, started on demand, shared by all
//     who opened the endpoint, and ended when it was idle for a while. Its
//     environment is empty but for what the handshake needs.
//   - A platform that Open handed out survives its process. The call during
//     which the process died fails with sdk.ErrUnavailable, for nobody knows
//     whether it took effect; the next call starts a fresh process, and
//     because every mutating call carries an Op.ID, repeating is safe. Disks
//     that were open are gone with the process and are opened again.
//   - A process that keeps dying is started less and less often; in between,
//     calls fail at once with sdk.ErrUnavailable, saying when the next
//     attempt is due.
//   - Close ends every process. A host that is killed takes its plugins along.
package host
