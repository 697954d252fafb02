// Package plugin turns a platform into a process and back. An author calls
// Serve in main; a host calls Start and gets the author's platform as an
// sdk.Platform of its own. Local does the same without a second process, for
// an author's tests.
//
// A complete plugin:
//
//	package main
//
//	type config struct {
//		URI      string `json:"uri" help:"where the back-end is" required:"true"`
//		Password string `json:"password" help:"of the user in the URI" secret:"true"`
//	}
//
//	type platform struct{ … } // implements sdk.Platform, and sdk.Source if it can
//
//	func open(ctx context.Context, c any) (sdk.Platform, error) {
//		return dial(ctx, c.(*config))
//	}
//
//	func main() {
//		plugin.Serve(plugin.Author{
//			Name: "mine", Version: "1.0.0",
//			Config: &config{}, Type: (*platform)(nil), Open: open,
//		})
//	}
//
// # What happens between the two
//
//	host                                   plugin process
//	----                                   --------------
//	check SHA-256, exec ────────────────▶ Serve
//	control: gRPC over a unix socket, mutual TLS with one-time keys
//	   Describe ─────────────────────────▶ schema of the configuration
//	   (validates the settings) Configure ▶ Author.Open
//	   Snapshot, Changed, CommitDraft … ─▶ the author's methods
//	   OpenDisk ─────────────────────────▶ the author's OpenDisk
//	            ◀───────── address ─────── the author's own, or data.sock here
//	data: NBD ══════════════════════════▶ the back-end, or this process
//	logs: one JSON line each on stderr ◀── slog
//	stdin, held open ───────────────────▶ its end ends the process
//
// The process gets nothing of the host's environment. Its PATH is that of the
// system's programs, its TMPDIR the directory of the sockets, which has mode
// 0700 and is removed after it, and its working directory is the root. On
// Linux it gains no privileges by the programs that it starts, leaves no core
// file, has the limits of the Launch, and, if its host is root, may be another
// user than its host: an author whose plugin needs the host's says HostUser.
// What it starts ends with it; an author whose plugin leaves a process behind
// on purpose says Guards.
//
// A host may send labels with a call, such as the tenant and the run: gRPC
// metadata holdfast-label-NAME, which Log adds to each line. No plugin has to
// read them.
//
// PROTOCOL.md says all of this exactly, for programs in other languages.
//
// # Promises
//
// To authors: methods are called as package sdk says, and their contexts end a
// little before the host stops waiting, so that ErrPending is still heard;
// settings have been checked against the schema; a panic in a method ends that
// call and not the process; what is logged with slog reaches the host's log;
// and disks never need a line of network code.
//
// To hosts: no call lasts longer than sdk.CallLimit; errors are those of
// package sdk on both sides, and TroubleOf tells what they say about the
// program; everything that a plugin answers is bounded and checked, and what it
// logs is bounded; settings that are marked secret appear in no log and no error; the
// process ends with its host, however that ends.
package plugin
