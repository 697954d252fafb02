package main

import (
	"context"

	"github.com/holdfast-dr/holdfast/sdk"
	"github.com/holdfast-dr/holdfast/sdk/plugin"
)

// pluginVersion is set by the build: -ldflags "-X main.pluginVersion=…".
var pluginVersion = "dev"

func main() {
	plugin.Serve(plugin.Author{
		Name:    "libvirt",
		Version: pluginVersion,
		Config:  &Config{},
		Type:    (*platform)(nil),
		Open: func(_ context.Context, config any) (sdk.Platform, error) {
			return open(*config.(*Config))
		},
	})
}
