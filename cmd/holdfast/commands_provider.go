package main

import "github.com/spf13/cobra"

// providerCommands are those of the provider's side. All but server call the
// REST API of the provider that the user signed in to.
var providerCommands = []func(*app) *cobra.Command{
	serverCommand, loginCommand, logoutCommand, statusCommand, tenantCommand, tokenCommand, userCommand, leaseCommand, quotaCommand,
	repositoryCommand, cloudRepositoryCommand, certificateCommand, auditCommand,
}
