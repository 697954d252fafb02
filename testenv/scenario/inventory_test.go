package scenario

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/sdk/sim"
	"github.com/holdfast-dr/holdfast/testenv/stack"
)

// The agent's inventory follows what the hypervisor tells: it is right although
// nobody may list the machines any more.
func TestInventoryFollowsWithoutListing(t *testing.T) {
	l := newLab(t, stack.Options{})
	l.do("job", "create", "gold", "--endpoint", "lab", "--repository", "backups", "--tag", "gold")
	type machine struct {
		Name, State string
		Jobs        []string
	}
	var last []machine
	until := func(what string, fits func([]machine) bool) {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		defer cancel()
		err := stack.Until(ctx, what, func() (bool, error) {
			last = nil
			err := l.JSON(ctx, &last, "machine", "list")
			return err == nil && fits(last), err
		})
		if err != nil {
			t.Fatalf("%v; the list has %+v", err, last)
		}
	}
	l.machine("first", 8*mib)
	until("the first machine", func(list []machine) bool { return len(list) == 1 })
	// A list right after the endpoint was added may still ask the hypervisor; one that works under this fault does not.
	l.must(l.hv.SetFaults(sim.Fault{Call: "Machines", Action: sim.ActionError, Times: -1}))
	until("a list without listing", func(list []machine) bool { return len(list) == 1 })

	m, err := l.hv.CreateMachine(sim.MachineSpec{Name: "tagged", Tags: []string{"gold"}, DiskBytes: []int64{8 * mib}})
	l.must(err)
	until("the new machine with its job", func(list []machine) bool {
		return slices.ContainsFunc(list, func(m machine) bool { return m.Name == "tagged" && slices.Equal(m.Jobs, []string{"gold"}) })
	})
	if _, err := l.Run(t.Context(), "machine", "list", "--fresh"); err == nil {
		t.Error("a fresh list did not ask the hypervisor, which refuses")
	}
	l.must(l.hv.DeleteMachine(m.ID))
	until("the end of the machine", func(list []machine) bool { return len(list) == 1 && list[0].Name == "first" })
	if log := l.Agent.Output(); !strings.Contains(log, "a machine appeared") || !strings.Contains(log, "a machine is gone") {
		t.Errorf("the agent's log says nothing of the machines:\n%s", log)
	}

	// An agent that starts again takes stock first.
	l.must(l.hv.SetFaults())
	l.must(l.Agent.Stop(20 * time.Second))
	l.machine("second", 8*mib)
	l.must(l.StartAgent(t.Context()))
	until("the machine that came meanwhile", func(list []machine) bool { return len(list) == 2 })
}
