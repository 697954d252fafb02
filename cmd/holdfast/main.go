// Command holdfast lets a service provider sell backup storage and disaster
// recovery to many tenants. It is every process of Holdfast but the plugins: the
// provider's server, the tenant's agent, and the hand of both.
//
// Each command has a file of its own: it declares flags and help and hands
// typed arguments to a function that does the work. This package only wires:
// it turns flags and configuration into structs, constructs the rooms of core,
// and turns their errors into a message, a hint and an exit code.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := run(ctx, os.Args[1:], console{in: os.Stdin, out: os.Stdout, err: os.Stderr, env: os.Getenv})
	stop()
	os.Exit(code)
}
