package main

import "github.com/spf13/cobra"

// providerCommands are those of the provider's side.
var providerCommands = []func(*app) *cobra.Command{
	serverCommand,
}
