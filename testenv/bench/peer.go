package main

import (
	"context"
	"os/exec"
)

// operation is what is measured, in the order of this list.
type operation string

const (
	opFull        operation = "full"
	opUnchanged   operation = "unchanged"   // again, without help from a change tracker
	opIncremental operation = "incremental" // of day 2, with a change tracker where the tool can use one
	opRestore     operation = "restore"     // of the latest, to a file
)

var operations = []operation{opFull, opUnchanged, opIncremental, opRestore}

// peer is a backup tool with a server and a repository of its own, made anew for
// every repeat.
type peer interface {
	name() string
	// start makes the repository and starts the server.
	start(ctx context.Context) error
	// ready puts the disk into the state in which the operation finds it, and
	// returns the command and the files that it reads.
	ready(ctx context.Context, op operation) (cmd *exec.Cmd, inputs []string, err error)
	// check says whether the operation did what it was meant to, after it ended.
	check(ctx context.Context, op operation) error
	daemons() []daemon
	repository() string
	restored() string // the file that a restore made
	stop() error
}

// kind makes peers of one kind.
type kind struct {
	name string
	note string // what the reader of the table has to know
	make func(r *round) (peer, error)
	// build, if there is one, builds the peer's programs once, below bin.
	build func(ctx context.Context, bin string) error
}

// ours and reference are the peers that the targets compare.
const (
	ours      = "holdfast"
	oursGo    = "holdfast-purego"
	reference = "restic"
)

var kinds = []kind{
	{ours, "agent, plugin and server; TLS; sealed at the source; libzstd", newHoldfast(ours), buildHoldfast(ours, "1")},
	{oursGo, "the same without cgo", newHoldfast(oursGo), buildHoldfast(oursGo, "0")},
	{reference, "restic and rest-server; TLS; sealed at the source", newRestic, nil},
	{"kopia", "kopia and its server; TLS; zstd; the server holds the key and seals", newKopia, nil},
	{"borg", "to a directory, without a network; repokey-blake2; lz4; fixed 4 MiB chunks", newBorg, nil},
}

// round is one repeat: a directory for each peer and the images.
type round struct {
	dir string
	pair
	bin string // where Holdfast's programs are
}
