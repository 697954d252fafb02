package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/holdfast-dr/holdfast/core/agent"
	"github.com/holdfast-dr/holdfast/core/client"
)

// maxKitFile bounds a recovery kit that is imported.
const maxKitFile = 4 << 20

func keyCommand(a *app) *cobra.Command {
	return noun("key", "The keys that encrypt the backups, and their recovery kit",
		"The keyring encrypts every backup of this site before it leaves. The provider does not have it.\n\n"+agent.LossWarning,
		keyListCommand(a), keyExportKitCommand(a), keyDeclineKitCommand(a), keyImportKitCommand(a))
}

func keyListCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:     "list",
		Short:   "List the keyrings of this site",
		Example: "  holdfast key list",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.agent()
			if err != nil {
				return err
			}
			keys, err := read[[]agent.KeyStatus](c.SiteListKeys(cmd.Context()))
			if err != nil {
				return err
			}
			return list(a, keys,
				column[agent.KeyStatus]{title: "keyring", value: func(k agent.KeyStatus) string { return k.Fingerprint }},
				column[agent.KeyStatus]{title: "seals", value: func(k agent.KeyStatus) string { return yesNo(k.Current && k.Accepted) }},
				column[agent.KeyStatus]{title: "kit", value: func(k agent.KeyStatus) string { return string(k.Kit) }},
				column[agent.KeyStatus]{title: "since", value: func(k agent.KeyStatus) string { return timeText(k.KitTime) }},
				column[agent.KeyStatus]{title: "created", value: func(k agent.KeyStatus) string { return timeText(k.Created) }})
		},
	}
}

func showKey(a *app, k agent.KeyStatus) error {
	return show(a, k, field{"keyring", k.Fingerprint}, field{"seals new backups", yesNo(k.Current && k.Accepted)},
		field{"recovery kit", string(k.Kit)}, field{"since", timeText(k.KitTime)})
}

func keyExportKitCommand(a *app) *cobra.Command {
	var provider, passFile string
	var ask bool
	cmd := &cobra.Command{
		Use:   "export-kit FILE",
		Short: "Write the recovery kit and take the keyring into use",
		Long: agent.LossWarning + `

The recovery kit is a text file. With it, the provider's address and a new enrolment token, a fresh machine restores every
backup. Keep it away from this machine. Whoever has the file can read the backups; a passphrase protects it.

The file must not exist yet. It is written, read back and compared before the keyring is taken into use, and no backup runs
before that.`,
		Example: `  holdfast key export-kit /media/usb/holdfast-kit.txt
  holdfast key export-kit kit.age --passphrase
  holdfast key export-kit kit.age --passphrase-file passphrase.txt`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			a.note("%s\n", agent.LossWarning)
			passphrase, err := a.newPassphrase(cmd.Context(), ask, passFile)
			if err != nil {
				return err
			}
			c, err := a.agent()
			if err != nil {
				return err
			}
			return a.exportKit(cmd, c, args[0], map[string]string{"provider": provider, "passphrase": passphrase})
		},
	}
	cmd.Flags().StringVar(&provider, "provider", "", "provider whose address the kit names (default the only one)")
	cmd.Flags().BoolVar(&ask, "passphrase", false, "ask for a passphrase that encrypts the kit")
	cmd.Flags().StringVar(&passFile, "passphrase-file", "", "file with the passphrase, - for standard input")
	cmd.MarkFlagsMutuallyExclusive("passphrase", "passphrase-file")
	_ = cmd.RegisterFlagCompletionFunc("provider", a.completeAll(providerNames))
	return cmd
}

// newPassphrase reads a passphrase, twice if it is typed; "" if none is wanted.
func (a *app) newPassphrase(ctx context.Context, ask bool, file string) (string, error) {
	if !ask {
		if file == "" {
			return "", nil
		}
		return a.readSecret(file)
	}
	first, err := a.ask(ctx, "", "Passphrase of the kit: ")
	if err != nil {
		return "", err
	}
	second, err := a.ask(ctx, "", "The same again: ")
	if err != nil {
		return "", err
	}
	if first != second {
		return "", errors.New("the two passphrases differ; nothing was written")
	}
	return first, nil
}

// exportKit writes a kit where a person wants it, and has the keyring accepted
// by the checksum of what it read back. A kit that was not accepted is removed:
// it would pass for the one that counts.
func (a *app) exportKit(cmd *cobra.Command, c *client.Client, path string, request map[string]string) (err error) {
	file, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if errors.Is(err, fs.ErrExist) {
		return withHint(fmt.Errorf("%s exists", path), "choose another file; a kit never overwrites one")
	}
	if err != nil {
		return fmt.Errorf("write recovery kit: %w", err)
	}
	defer func() {
		_ = file.Close() // a second time does no harm
		if err == nil {
			return
		}
		if left := os.Remove(path); left != nil && !errors.Is(left, fs.ErrNotExist) {
			err = errors.Join(err, fmt.Errorf("remove the kit that does not count: %w", left))
		}
	}()
	kit, err := read[agent.ExportedKit](c.SiteExportKitWithBody(cmd.Context(), jsonType, content(request)))
	if err != nil {
		return err
	}
	_, err = file.Write(kit.Kit)
	if err = errors.Join(err, file.Sync(), file.Close(), syncDir(path)); err != nil {
		return fmt.Errorf("write recovery kit: %w", err)
	}
	back, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("read the recovery kit back: %w", err)
	}
	sum := sha256.Sum256(back)
	key, err := read[agent.KeyStatus](c.SiteAcceptKitWithBody(cmd.Context(), jsonType, content(map[string]string{"sha256": hex.EncodeToString(sum[:])})))
	if err != nil {
		return fmt.Errorf("the kit in %s was not accepted: %w", path, err)
	}
	a.say("The recovery kit is in %s. Move it to a place that burns on another day.", path)
	return showKey(a, key)
}

// syncDir makes a new file's name durable.
func syncDir(path string) error {
	d, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

func keyDeclineKitCommand(a *app) *cobra.Command {
	var provider, name string
	cmd := &cobra.Command{
		Use:   "decline-kit",
		Short: "Take the keyring into use without a recovery kit",
		Long:  agent.LossWarning + "\n\nTo confirm it, the tenant's name is typed, or given with --tenant.",
		Example: `  holdfast key decline-kit
  holdfast key decline-kit --tenant "Acme"`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.agent()
			if err != nil {
				return err
			}
			if name == "" {
				if name, err = a.confirmTenant(cmd, c, provider); err != nil {
					return err
				}
			}
			key, err := read[agent.KeyStatus](c.SiteDeclineKitWithBody(cmd.Context(), jsonType, content(map[string]string{"provider": provider, "tenant": name})))
			if err != nil {
				return err
			}
			return showKey(a, key)
		},
	}
	cmd.Flags().StringVar(&provider, "provider", "", "provider (default the only one)")
	cmd.Flags().StringVar(&name, "tenant", "", "the tenant's name in full: the confirmation")
	_ = cmd.RegisterFlagCompletionFunc("provider", a.completeAll(providerNames))
	return cmd
}

func (a *app) confirmTenant(cmd *cobra.Command, c *client.Client, provider string) (string, error) {
	all, err := read[[]agent.ConnectionStatus](c.SiteListProviders(cmd.Context()))
	if err != nil {
		return "", err
	}
	for _, p := range all {
		if provider == "" && len(all) == 1 || p.Name == provider || p.ID == provider {
			return p.Tenant, a.confirm(cmd.Context(), agent.LossWarning+"\nNobody can undo this.", p.Tenant, "--tenant NAME")
		}
	}
	return "", withHint(errors.New("say which provider"), "see: holdfast agent status")
}

func keyImportKitCommand(a *app) *cobra.Command {
	var passFile string
	var ask bool
	cmd := &cobra.Command{
		Use:   "import-kit FILE",
		Short: "Take the keyring of a recovery kit",
		Long: `Take the keyring of a recovery kit. On a fresh machine it becomes the keyring of the site, and every point can be listed
and restored. Where the site has a keyring in use already, the imported one only opens older backups.`,
		Example: `  holdfast key import-kit /media/usb/holdfast-kit.txt
  holdfast key import-kit kit.age --passphrase
  holdfast point list`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			kit, err := a.readInput(args[0], maxKitFile)
			if err != nil {
				return fmt.Errorf("read recovery kit: %w", err)
			}
			passphrase := ""
			if ask || passFile != "" {
				if passphrase, err = a.ask(cmd.Context(), passFile, "Passphrase of the kit: "); err != nil {
					return err
				}
			}
			c, err := a.agent()
			if err != nil {
				return err
			}
			key, err := read[agent.KeyStatus](c.SiteImportKitWithBody(cmd.Context(), jsonType, content(map[string]any{"kit": kit, "passphrase": passphrase})))
			if err != nil {
				return err
			}
			return showKey(a, key)
		},
	}
	cmd.Flags().BoolVar(&ask, "passphrase", false, "ask for the kit's passphrase")
	cmd.Flags().StringVar(&passFile, "passphrase-file", "", "file with the kit's passphrase, - for standard input")
	cmd.MarkFlagsMutuallyExclusive("passphrase", "passphrase-file")
	return cmd
}
