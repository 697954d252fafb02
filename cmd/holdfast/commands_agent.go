package main

import "github.com/spf13/cobra"

// agentCommands are those of the tenant's side. A command that talks to the
// running agent uses app.agent; one that is the agent constructs it.
var agentCommands = []func(*app) *cobra.Command{
	agentCommand, keyCommand, pluginCommand, endpointCommand, workerCommand, machineCommand, jobCommand, runCommand, pointCommand, restoreCommand,
}
