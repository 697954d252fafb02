package main

import (
	"context"

	"github.com/holdfast-dr/holdfast/sdk"
	"github.com/holdfast-dr/holdfast/sdk/plugin"
)

// version is set by the build.
var version = "dev"

func main() {
	plugin.Serve(plugin.Author{
		Name:    "libvirt",
		Version: version,
		Config:  &Config{},
		Type:    (*platform)(nil),
		Open: func(_ context.Context, config any) (sdk.Platform, error) {
			return open(*config.(*Config))
		},
	})
}
