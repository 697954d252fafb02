// Command site gives shells and the demo what package testenv/site gives Go programs: a private libvirt host with guests
// that lives until it is told to end.
//
//	site up [-remote] DIR          start a site in a new directory, print what it offers as shell variables
//	site guest [-agent] [-tag T] [-network N] DIR NAME
//	                               define a guest and boot it
//	site console DIR NAME COMMAND  run a command on a guest's serial console, print what it prints
//	site wait DIR NAME             wait until a guest, such as a restored one, has booted
//	site remove DIR NAME           destroy a guest and its disks
//	site down DIR                  end the site with its guests, remove the directory
//
// DIR names the site. Its path is short, since unix sockets lie below it.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/holdfast-dr/holdfast/testenv/guest"
	"github.com/holdfast-dr/holdfast/testenv/site"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "site:", err)
		stop()
		os.Exit(1)
	}
}

var errUsage = errors.New("usage: site up|guest|console|wait|remove|down DIR …; go doc ./testenv/cmd/site tells more")

func run(ctx context.Context, args []string) error {
	if len(args) == 0 {
		return errUsage
	}
	verb, args := args[0], args[1:]
	if verb == "up" {
		return up(ctx, args)
	}
	if verb == "guest" {
		return boot(ctx, args)
	}
	if len(args) == 0 {
		return errUsage
	}
	s, err := site.Open(args[0])
	if err != nil {
		return err
	}
	args = args[1:]
	switch {
	case verb == "console" && len(args) >= 2:
		out, err := s.Guest(args[0]).Run(ctx, strings.Join(args[1:], " "))
		fmt.Println(out)
		return err
	case verb == "wait" && len(args) == 1:
		return s.Guest(args[0]).WaitReady(ctx)
	case verb == "remove" && len(args) == 1:
		return s.Guest(args[0]).Remove(ctx)
	case verb == "down" && len(args) == 0:
		return s.Close()
	}
	return errUsage
}

func up(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("site up", flag.ContinueOnError)
	remote := flags.Bool("remote", false, "listen on TCP and TLS in a network namespace (needs root)")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if flags.NArg() != 1 {
		return errUsage
	}
	dir, err := filepath.Abs(flags.Arg(0))
	if err != nil {
		return err
	}
	s, err := site.Start(ctx, site.Options{Dir: dir, Remote: *remote, Detach: true})
	if err != nil {
		return err
	}
	fmt.Printf("SITE_URI='%s'\nSITE_SCRATCH='%s'\nSITE_POOL='%s'\nSITE_ACCEL='%s'\n", s.URI, s.Scratch(), site.Pool, s.Accel)
	if *remote {
		fmt.Printf("SITE_TCP_URI='%s'\nSITE_TLS_URI='%s'\nSITE_ADDRESS='%s'\nSITE_CERTIFICATES='%s'\n", s.TCPURI, s.TLSURI,
			s.Address, s.NBDCertificates())
	}
	return nil
}

func boot(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("site guest", flag.ContinueOnError)
	agent := flags.Bool("agent", false, "with the QEMU guest agent")
	tag := flags.String("tag", "", "a tag for the inventory")
	network := flags.String("network", "", "a network of the site")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if flags.NArg() != 2 {
		return errUsage
	}
	s, err := site.Open(flags.Arg(0))
	if err != nil {
		return err
	}
	image, err := guest.Build(ctx, guest.Options{Agent: *agent})
	if err != nil {
		return err
	}
	spec := site.Spec{Name: flags.Arg(1), Image: image, Network: *network}
	if *tag != "" {
		spec.Tags = []string{*tag}
	}
	g, err := s.Define(ctx, spec)
	if err != nil {
		return err
	}
	return g.Start(ctx)
}
