package main

import (
	"context"
	"os"

	"github.com/holdfast-dr/holdfast/sdk"
	"github.com/holdfast-dr/holdfast/sdk/plugin"
)

// version is set by the build.
var version = "dev"

func main() {
	if len(os.Args) > 1 && os.Args[1] == guardArgument {
		os.Exit(guardMain(os.Args[2:]))
	}
	plugin.Serve(plugin.Author{
		Name:    "libvirt",
		Version: version,
		Config:  &Config{},
		Type:    (*platform)(nil),
		// libvirt's and QEMU's sockets are for root, or for groups that an operator chooses.
		HostUser: true,
		Guards:   true,
		Open: func(_ context.Context, config any) (sdk.Platform, error) {
			return open(*config.(*Config))
		},
	})
}
