package main

import (
	"fmt"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/holdfast-dr/holdfast/core/agent"
)

func restoreCommand(a *app) *cobra.Command {
	return noun("restore", "Bring machines and disks back", "Any point can be restored, not only the last one.",
		restoreMachineCommand(a), restoreDiskCommand(a))
}

func restoreMachineCommand(a *app) *cobra.Command {
	var req agent.MachineRestore
	var networks []string
	var w waiting
	cmd := &cobra.Command{
		Use:   "machine POINT",
		Short: "Restore a machine",
		Long: `Restore a machine from a point, as a new machine with an identity of its own, or with --replace over the original: it is
stopped and its disks are exchanged. The name of the machine that is replaced has to be typed again.`,
		Example: `  holdfast restore machine 01932f6e-…
  holdfast restore machine 01932f6e-… --endpoint kvm2 --name web-restored --pool fast --network default=isolated --start
  holdfast restore machine 01932f6e-… --replace web-01`,
		Args:              onePoint,
		ValidArgsFunction: a.complete(pointNames),
		RunE: func(cmd *cobra.Command, args []string) error {
			req.Point = args[0]
			var err error
			if req.Networks, err = pairs(networks); err != nil {
				return usagef(cmd, "--network: %v", err)
			}
			c, err := a.agent()
			if err != nil {
				return err
			}
			// A terminal is asked; a script has said the name by the flag.
			if req.Replace != "" && isTerminal(a.in) {
				question := fmt.Sprintf("Machine %s will be stopped, and its disks replaced by those of the point.", req.Replace)
				if err := a.confirm(cmd.Context(), question, req.Replace, "--replace NAME"); err != nil {
					return err
				}
			}
			run, err := readRun(c.SiteRestoreMachineWithBody(cmd.Context(), jsonType, content(req)))
			if err != nil {
				return err
			}
			return a.started(cmd.Context(), c, run, w)
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&req.Endpoint, "endpoint", "", "where to (default where it came from)")
	flags.StringVar(&req.Name, "name", "", "name of the new machine (default the old name and the time)")
	flags.StringVar(&req.Pool, "pool", "", "storage pool (default the back-end's)")
	flags.StringArrayVar(&networks, "network", nil, "OLD=NEW: connect what was in network OLD to NEW; may be repeated")
	flags.StringVar(&req.Replace, "replace", "", "restore over this machine, by its name")
	flags.BoolVar(&req.Start, "start", false, "power it on afterwards")
	cmd.MarkFlagsMutuallyExclusive("name", "replace")
	_ = cmd.RegisterFlagCompletionFunc("endpoint", a.completeAll(endpointNames))
	_ = cmd.RegisterFlagCompletionFunc("replace", a.completeAll(machineNames))
	w.register(cmd)
	return cmd
}

func restoreDiskCommand(a *app) *cobra.Command {
	var req agent.DiskRestore
	var w waiting
	cmd := &cobra.Command{
		Use:   "disk POINT",
		Short: "Restore a disk to a file",
		Long: `Restore a disk to a file on the agent's machine: raw (sparse), qcow2, or a stream-optimised vmdk. The file must not exist
yet, unless --overwrite is given.`,
		Example: `  holdfast restore disk 01932f6e-… --to /tmp/web.raw
  holdfast restore disk 01932f6e-… --disk vdb --format qcow2 --to data.qcow2`,
		Args:              onePoint,
		ValidArgsFunction: a.complete(pointNames),
		RunE: func(cmd *cobra.Command, args []string) error {
			req.Point = args[0]
			var err error
			if req.File, err = filepath.Abs(req.File); err != nil { // the agent has another directory
				return err
			}
			c, err := a.agent()
			if err != nil {
				return err
			}
			run, err := readRun(c.SiteRestoreDiskWithBody(cmd.Context(), jsonType, content(req)))
			if err != nil {
				return err
			}
			return a.started(cmd.Context(), c, run, w)
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&req.Disk, "disk", "", "disk by name (default the only one)")
	flags.StringVar(&req.File, "to", "", "the file")
	flags.StringVar(&req.Format, "format", "raw", "raw, qcow2 or vmdk")
	flags.BoolVar(&req.Overwrite, "overwrite", false, "replace a file that exists")
	_ = cmd.MarkFlagRequired("to")
	_ = cmd.RegisterFlagCompletionFunc("format", cobra.FixedCompletions([]string{"raw", "qcow2", "vmdk"}, cobra.ShellCompDirectiveNoFileComp))
	w.register(cmd)
	return cmd
}
