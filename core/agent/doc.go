// Package agent is Holdfast at the tenant's site. It dials out only, keeps what
// the provider must not have (hypervisor credentials, the keyring), and owns
// the site's jobs: they run when the provider's console is down, and resume
// after a crash or a restart.
//
//	schedule ─▶ run ─▶ steps (one machine each) ─▶ backup ─▶ mover ─▶ tenant wire
//	                        │
//	                        └── claim of the machine: one run at a time
//
// The parts:
//
//   - Connections (connect.go): a provider's pinned CA, our certificate and its
//     renewal.
//   - Keys (keys.go, kit.go): the keyring, its wraps, the recovery kit. A keyring
//     is not accepted into use until its kit was written, or declined by name.
//   - Jobs and runs (job.go, run.go): which machines, when, how long to keep.
//   - Workers (worker.go): other machines that run plugins for the site.
//   - Inventories (inventory.go): the machines of each endpoint, as its plugin
//     tells of changes. A run lists the machines anew before it chooses: it must
//     not miss one whose event is still on its way.
//   - Restores (restore.go): a machine to an endpoint, a disk to a file.
//   - The API on the agent's unix socket (api.go): the operations above, in the
//     same OpenAPI document as the provider's.
//
// Everything that it remembers is in its own database behind Store; secrets are
// sealed by the site's master key before they get there.
package agent
