package main

import (
	"bytes"
	"strings"

	"github.com/spf13/cobra"

	"github.com/holdfast-dr/holdfast/core/client"
)

// maxCertificate bounds a file that is imported.
const maxCertificate = 1 << 20

func certificateCommand(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use: "certificate", Short: "The server's certificate, and the fingerprint to send to tenants",
		Long: `Show the server's certificate as a text to send to tenants over another channel, so that they can check whom they connect
to. What they pin is the provider's CA: server certificates are replaced without telling them.`,
		Example: `  holdfast certificate
  holdfast certificate replace chain.pem key.pem
  holdfast certificate replace server.pfx --password-file -`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.provider()
			if err != nil {
				return err
			}
			return showCertificate(a)(read[client.Certificate](c.GetCertificate(cmd.Context())))
		},
	}
	show := &cobra.Command{Use: "show", Short: cmd.Short, Example: "  holdfast certificate show", Args: cobra.NoArgs, RunE: cmd.RunE}
	cmd.AddCommand(show, certificateReplaceCommand(a), certificateRemoveCommand(a))
	return cmd
}

func showCertificate(a *app) func(client.Certificate, error) error {
	return func(c client.Certificate, err error) error {
		if err != nil {
			return err
		}
		if a.output == "json" {
			return a.json(c)
		}
		a.say("%s", strings.TrimRight(c.Notice, "\n"))
		return nil
	}
}

func certificateReplaceCommand(a *app) *cobra.Command {
	var passwordFile string
	cmd := &cobra.Command{
		Use: "replace FILE [KEY-FILE]", Short: "Present a certificate from PEM files or a PFX file",
		Long: "Import a certificate with its chain and key. Every server of the provider presents it within a minute to whoever trusts\n" +
			"public authorities; connections go on. Who pinned the provider's CA notices nothing: to them the server goes on to present\n" +
			"a certificate of that CA.",
		Example: "  holdfast certificate replace chain.pem key.pem\n  holdfast certificate replace server.pfx --password-file pfx.pass", Args: cobra.RangeArgs(1, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			var body client.ReplaceCertificateJSONRequestBody
			var texts [][]byte
			for _, file := range args {
				b, err := a.readInput(file, maxCertificate)
				if err != nil {
					return err
				}
				texts = append(texts, b)
			}
			if bytes.Contains(texts[0], []byte("-----BEGIN ")) {
				pem := string(bytes.Join(texts, []byte("\n")))
				body.Pem = &pem
			} else {
				body.Pfx = &texts[0]
				if passwordFile != "" {
					password, err := a.readSecret(passwordFile)
					if err != nil {
						return err
					}
					body.Password = &password
				}
			}
			c, err := a.provider()
			if err != nil {
				return err
			}
			return showCertificate(a)(read[client.Certificate](c.ReplaceCertificate(cmd.Context(), body)))
		},
	}
	cmd.Flags().StringVar(&passwordFile, "password-file", "", "file with the password of a PFX, - for standard input")
	return cmd
}

func certificateRemoveCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "remove", Short: "Go back to certificates of the provider's own CA", Example: "  holdfast certificate remove", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.provider()
			if err != nil {
				return err
			}
			return showCertificate(a)(read[client.Certificate](c.RemoveCertificate(cmd.Context())))
		},
	}
}
