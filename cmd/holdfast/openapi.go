package main

import (
	"github.com/spf13/cobra"

	"github.com/holdfast-dr/holdfast/core/api"
)

func openapiCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "openapi",
		Short: "Print the OpenAPI 3.1 document of the REST API",
		Long: `Print the OpenAPI 3.1 document of the whole REST API: the operations of the provider's server and those of the
agent, which serves its own on a local socket.`,
		Example: "  holdfast openapi > openapi.json",
		Args:    cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			document, err := api.Document()
			if err != nil {
				return err
			}
			_, err = a.out.Write(document)
			return err
		},
	}
}
