package main

import (
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/holdfast-dr/holdfast/core/agent"
	"github.com/holdfast-dr/holdfast/core/client"
)

func machineCommand(a *app) *cobra.Command {
	return noun("machine", "Machines of the hypervisors", "The inventory of the endpoints, as it is now.", machineListCommand(a))
}

func machineListCommand(a *app) *cobra.Command {
	var fresh bool
	cmd := &cobra.Command{
		Use:   "list [ENDPOINT]",
		Short: "List the machines of an endpoint, or of all",
		Long: `List the machines of an endpoint, or of all. The agent follows the changes that a hypervisor tells of, so this costs the
hypervisor nothing. What it does not tell, such as that a disk grew under libvirt, is seen with the machine's next change
or backup, or at once with --fresh.`,
		Example: `  holdfast machine list
  holdfast machine list kvm1 -o json | jq -r '.[] | select(.jobs == null) | .name'   which no job covers`,
		Args:              cobra.MaximumNArgs(1),
		ValidArgsFunction: a.complete(endpointNames),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.agent()
			if err != nil {
				return err
			}
			params := client.SiteListMachinesParams{}
			if len(args) > 0 {
				params.Endpoint = &args[0]
			}
			if fresh {
				params.Fresh = &fresh
			}
			machines, err := read[[]agent.MachineStatus](c.SiteListMachines(cmd.Context(), &params))
			if err != nil {
				return err
			}
			return list(a, machines,
				column[agent.MachineStatus]{title: "machine", value: func(m agent.MachineStatus) string { return m.Name }},
				column[agent.MachineStatus]{title: "endpoint", value: func(m agent.MachineStatus) string { return m.Endpoint }},
				column[agent.MachineStatus]{title: "state", value: func(m agent.MachineStatus) string { return string(m.State) }},
				column[agent.MachineStatus]{title: "cpus", right: true, value: func(m agent.MachineStatus) string { return strconv.Itoa(m.CPUs) }},
				column[agent.MachineStatus]{title: "memory", right: true, value: func(m agent.MachineStatus) string { return bytesText(m.MemoryBytes) }},
				column[agent.MachineStatus]{title: "disks", value: disksText},
				column[agent.MachineStatus]{title: "tags", value: func(m agent.MachineStatus) string { return strings.Join(m.Tags, ", ") }},
				column[agent.MachineStatus]{title: "jobs", value: func(m agent.MachineStatus) string { return strings.Join(m.Jobs, ", ") }})
		},
	}
	cmd.Flags().BoolVar(&fresh, "fresh", false, "ask the hypervisor now")
	return cmd
}

func disksText(m agent.MachineStatus) string {
	words := make([]string, len(m.Disks))
	for i, d := range m.Disks {
		words[i] = d.Name + " " + bytesText(d.SizeBytes)
		if d.Skip != "" {
			words[i] += " (not backed up: " + d.Skip + ")"
		}
	}
	return strings.Join(words, ", ")
}
